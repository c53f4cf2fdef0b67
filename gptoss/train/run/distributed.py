"""One process or many: joining them, sharing a step's rows, wrapping the model.

Every process holds the same batch and works on its own rows of it. With "ddp" each has a copy of
the model, and gradients are averaged. With "fsdp" (FSDP2) each has a shard of every parameter, of
its gradient and of the optimizer's state; a block's parameters are gathered when it runs.
"""

from __future__ import annotations

import contextlib
import os
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from gptoss.errors import Error
from gptoss.train.model.model import GptOss


@dataclass(frozen=True)
class World:
    """The processes of a run; this one is number `rank` of `size`, and computes on `device`."""

    rank: int
    size: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and speaks."""
        return self.rank == 0

    def share(self, rows: int, what: str = "batch_tokens") -> slice:
        """Which of `rows` rows are this process's; raises Error where they do not divide."""
        if rows % self.size:
            raise Error(
                f"{what}: expected a number of rows that {self.size} processes can share evenly, "
                f"found {rows} rows"
            )
        each = rows // self.size
        return slice(self.rank * each, (self.rank + 1) * each)

    def sum(self, values: list[float]) -> list[float]:
        """The sums of `values` over all processes, in float64."""
        if self.size == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        found: list[float] = total.tolist()
        return found

    def agree(self, trouble: str | None) -> None:
        """Raises Error in every process if the first one has met `trouble`; also a barrier."""
        if self.size > 1:
            message = [trouble]
            dist.broadcast_object_list(message, src=0, device=self.device)
            trouble = message[0]
        if trouble is not None:
            raise Error(trouble)


def join(device: str = "auto") -> World:
    """The world that torchrun has made, or this process alone. Raises Error for a missing GPU."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    kind = device.split(":")[0]
    if kind not in ("cpu", "cuda") or (kind == "cuda" and not torch.cuda.is_available()):
        found = "a GPU" if torch.cuda.is_available() else "no GPU"
        raise Error(f"device: expected auto, cpu or cuda, found {device!r} and {found}")
    if not dist.is_initialized() and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        dist.init_process_group("nccl" if kind == "cuda" else "gloo")
    if not dist.is_initialized():
        return World(0, 1, torch.device(device))
    if kind == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(device)
    return World(dist.get_rank(), dist.get_world_size(), torch.device(device))


def leave() -> None:
    """Leaves the process group, if this process is in one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def wrap(model: GptOss, world: World, parallel: str) -> nn.Module:
    """What to call in training instead of `model`; "fsdp" shards `model` itself."""
    if world.size == 1:
        return model
    if parallel == "ddp":
        ids = [world.device] if world.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(
            model, device_ids=ids, gradient_as_bucket_view=True
        )
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(world.device.type, (world.size,))
    for block in model.blocks():
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    register_fsdp_forward_method(model, "logits")
    return model


def hold_back(net: nn.Module, last: bool) -> AbstractContextManager[None]:
    """While gradients accumulate, DDP exchanges them with the `last` part only.

    FSDP reduces those of every part at once, so as never to hold a whole gradient.
    """
    if isinstance(net, nn.parallel.DistributedDataParallel) and not last:
        held: AbstractContextManager[None] = net.no_sync()
        return held
    return contextlib.nullcontext()


def forget_gathered(model: nn.Module) -> None:
    """To be called before shards are changed without FSDP's knowledge.

    After a forward pass without a backward one it keeps what it gathered for the outermost module.
    """
    reshard = getattr(model, "reshard", None)  # the method is FSDP's
    if reshard is not None:
        reshard()


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor, without its history; shares its memory."""
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def full(tensor: Tensor, keep: bool = True) -> Tensor:
    """The whole of a tensor, on the CPU. Every process must ask; one may `keep` nothing of it."""
    whole = tensor.detach()
    if isinstance(whole, DTensor):
        whole = whole.full_tensor()
    return whole.cpu() if keep else whole.new_empty(0)


@torch.no_grad()
def copy_whole(target: Tensor, whole: Tensor) -> None:
    """Copies `whole`, which every process has, into `target`, which may be sharded."""
    if isinstance(target, DTensor):
        whole = whole.to(target.device, target.dtype)
        shard = distribute_tensor(whole, target.device_mesh, target.placements, src_data_rank=None)
        local(target).copy_(shard.to_local())
    else:
        target.copy_(whole)
