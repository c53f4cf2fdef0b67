"""From a fine-tuning run to the weights of a checkpoint, tensor by tensor."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gptoss import jsonfile, mxfp4
from gptoss.checkpoint import PackedExperts, TensorInfo, TensorSource
from gptoss.config import ModelConfig
from gptoss.dtypes import bf16_to_f32, f32_to_bf16
from gptoss.errors import Error
from gptoss.source import row_blocks
from gptoss.train.architecture import Architecture
from gptoss.train.state import load_state
from gptoss.train.tune import base as bases
from gptoss.train.tune.lora import difference

MARKER = "adapters.json"  # its presence says: a fine-tuning run
STATE = "adapters.pt"


def is_run(path: Path) -> bool:
    """Whether `path` is the directory of a fine-tuning run."""
    return (path / MARKER).is_file()


class Factors(NamedTuple):
    """Of a difference scale·B·A; float32 a [(E,) r, in], b [(E,) out, r]."""

    a: Tensor
    b: Tensor
    scale: float

    def difference(self, expert: int | None = None) -> NDArray[np.float32]:
        """[out, in]; of one expert where there is one for each."""
        a, b = (self.a, self.b) if expert is None else (self.a[expert], self.b[expert])
        return difference(a.float(), b.float(), self.scale).numpy()


class MergedSource(TensorSource):
    """A base with differences added to some of its matrices; one matrix in memory at a time.

    Everything else is handed on as it is. Experts that have differences are given unpacked
    (expert_dtype "bf16"; `expert` gives float32, not rounded); see `merged_source`.
    """

    def __init__(
        self,
        base: TensorSource,
        config: ModelConfig,
        factors: Mapping[str, Factors],
        rows: Mapping[str, NDArray[np.float32]] | None = None,
        row_ids: Sequence[int] = (),
    ) -> None:
        """`factors`: by names such as "block.0.attn.qkv.weight", "block.0.mlp.mlp1_weight".

        `rows`: of "embedding.weight" and "unembedding.weight", what is added to rows `row_ids`.
        """
        unpacked = any(name.endswith("_weight") for name in factors)
        super().__init__(
            config,
            name=f"{base.name}, fine-tuned",
            layout=base.layout,
            expert_dtype="bf16" if unpacked else base.expert_dtype,
            files=base.files,
            directory=base.directory,
        )
        self._base = base
        self._held = {info.name for info in base.tensors()}
        self._factors = dict(factors)
        self._rows = dict(rows or {})
        self._row_ids = list(row_ids)

    def _read(self, info: TensorInfo) -> NDArray[Any]:
        name = info.name
        if self.expert_dtype == "bf16" and name.endswith("_weight"):
            out = np.empty(info.shape, np.uint16)
            for index in range(len(out)):
                out[index] = f32_to_bf16(self.expert(name, index))
            return out
        if name in self._rows:
            table = np.array(self._base.tensor(name))
            table[self._row_ids] = f32_to_bf16(bf16_to_f32(table[self._row_ids]) + self._rows[name])
            return table
        found, rows = self._difference(name)
        if found is None:
            return self._base.tensor(name)
        return f32_to_bf16(bf16_to_f32(self._base.tensor(name)) + found.difference()[rows])

    def _difference(self, name: str) -> tuple[Factors | None, slice]:
        """What is added to a dense tensor, and which rows of it."""
        head, _, part = name.removesuffix(".weight").rpartition(".")
        if name.endswith(".weight") and head.endswith(".attn") and part in ("q", "k", "v"):
            return self._factors.get(f"{head}.qkv.weight"), row_blocks(self.config)[part]
        return self._factors.get(name), slice(None)

    def expert(self, name: str, index: int) -> NDArray[np.float32]:
        matrix = self._base.expert(name, index)
        found = self._factors.get(name)
        return matrix if found is None else matrix + found.difference(index)

    def release(self, name: str) -> None:
        for known in (name, f"{name}.blocks", f"{name}.scales"):
            if known in self._held:
                self._base.release(known)

    def close(self) -> None:
        self._base.close()


class PackedMerged(PackedExperts):
    """`PackedExperts` whose single experts are packed one by one: it may be a base itself."""

    def expert(self, name: str, index: int) -> NDArray[np.float32]:
        blocks, scales = mxfp4.quantize(self._base.expert(name, index), self._rule)
        return mxfp4.dequantize(blocks, scales)


def merged_source(run: Path, base: str | None = None, rule: str | None = "mse") -> TensorSource:
    """The weights that a fine-tuning run has arrived at, for `write_checkpoint`.

    Of adapters on an MXFP4 base, each expert is unpacked, changed and packed again by `rule`
    ("mse" or "mx") when it is asked for, or left unpacked without a rule; matrices without
    adapters keep their bits. `base` says where the base is now, if it has moved. Raises Error, also
    for another base than it was.
    """
    marker = read_marker(run)
    state = load_state(run / STATE)
    if marker["recipe"]["full"]:
        return _full(run, marker, state, rule)
    path = base or marker["base"]
    if not path.startswith("synthetic:") and not Path(path).exists():
        raise Error(f"{run}: base: expected the model it was fine-tuned from in {path}, found none")
    found = bases.fingerprint(path)
    if found != marker["fingerprint"]:
        raise Error(
            f"{run}: base: expected {path} as it was (fingerprint {marker['fingerprint'][:12]}), "
            f"found another model ({found[:12]})"
        )
    source = bases.open_base(path)
    recipe = marker["recipe"]
    scale = recipe["lora_alpha"] / recipe["lora_rank"]
    config = _with_stop_ids(source.config, marker["stop_ids"])
    trained = state["trained"]
    rows = {
        name.replace(".rows", ".weight"): values.numpy()
        for name, values in trained.items()
        if name.endswith("embedding.rows")
    }
    merged = MergedSource(source, config, factors_of(trained, scale), rows, marker["token_ids"])
    if rule and merged.expert_dtype == "bf16" and source.expert_dtype == "mxfp4":
        return PackedMerged(merged, rule)
    return merged


def factors_of(trained: Mapping[str, Tensor], scale: float) -> dict[str, Factors]:
    """Adapters by the name of the matrix they change, from parameters by the model's names."""
    found = {}
    for name, a in trained.items():
        if not name.endswith(".a"):
            continue
        stem = name.removesuffix(".a")
        b = trained[f"{stem}.b"]
        if ".mlp.adapters." in stem:  # block.n.mlp.adapters.mlp1
            target = stem.replace(".adapters.", ".") + "_weight"
        else:  # block.n.attn.qkv.adapter
            target = stem.removesuffix(".adapter") + ".weight"
        found[target] = Factors(a, b, scale)
    return found


def _full(
    run: Path, marker: dict[str, Any], state: dict[str, Any], rule: str | None
) -> TensorSource:
    from gptoss.train.convert import to_source
    from gptoss.train.model import GptOss

    architecture = Architecture.from_dict(marker["architecture"])
    config = _with_stop_ids(architecture.config, marker["stop_ids"])
    with torch.device("meta"):
        model = GptOss(dataclasses.replace(architecture, config=config))
    model.load_state_dict(state["trained"], assign=True)
    return to_source(model, "mxfp4" if rule else "bf16", rule or "mse", directory=run)


def _with_stop_ids(config: ModelConfig, stop_ids: list[int]) -> ModelConfig:
    """The end tokens that were taught, beside those that the base has."""
    ids = dict.fromkeys((*config.eos_token_ids, *stop_ids))
    return dataclasses.replace(config, eos_token_ids=tuple(ids))


def read_marker(run: Path) -> dict[str, Any]:
    """What `run` says about itself. Raises Error."""
    path = run / MARKER
    found = jsonfile.read_object(path)
    needed = ("base", "fingerprint", "recipe", "stop_ids", "token_ids", "architecture")
    missing = [key for key in needed if key not in found]
    if missing or found.get("format") != 1:
        raise Error(f"{path}: expected a fine-tuning run of format 1, found another file")
    return found
