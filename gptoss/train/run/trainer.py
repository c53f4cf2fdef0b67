"""The training loop: AdamW over shared, accumulated batches, with exact resume.

Masters and the optimizer's state are float32; the model casts the operands of matrix products to
`Settings.dtype` itself, which takes the place of PyTorch's autocast.

A step's random numbers (dropout) depend on the seed, the step and the process alone, and its data
on the place in the data: what a state has to hold besides tensors is a handful of numbers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from gptoss.errors import Error
from gptoss.files import write_in_one_piece
from gptoss.model import ModelConfig
from gptoss.train.data import Batch, PreparedData, TextRows, open_data
from gptoss.train.model.architecture import Architecture
from gptoss.train.model.model import GptOss, Routing
from gptoss.train.run.distributed import (
    copy_whole,
    forget_gathered,
    full,
    hold_back,
    join,
    local,
    wrap,
)
from gptoss.train.run.evaluation import evaluate, to_tensors
from gptoss.train.run.logs import Line, Logs, distribution
from gptoss.train.run.sampling import sample
from gptoss.train.run.schedule import learning_rate, parameter_groups
from gptoss.train.run.settings import Settings
from gptoss.train.run.state import (
    CHECKPOINT_FILE,
    CONFIG_FILE,
    FORMAT,
    LOG_FILE,
    STATISTICS_FILE,
    check_same_run,
    load_state,
    save_state,
    trim_log,
)
from gptoss.train.run.throughput import flops_per_token, peak_flops

MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's state of a parameter
MEMORY = 0.95  # of the running mean of the loss, per step
EARLY = 20  # steps in which no loss is called a spike


class Diverged(Error):
    """The loss is no longer a finite number, or far above what it was."""


class Trainer:
    """One run in one directory: its state, its logs, and a tokenizer to read its ids with."""

    def __init__(
        self,
        architecture: Architecture | ModelConfig,
        settings: Settings,
        data: Path | PreparedData,
        out: Path,
        *,
        model: GptOss | None = None,
    ) -> None:
        """Begins a run, or goes on where the one in `out` stopped.

        `model`: float32 weights to begin with, instead of random ones. Raises Error where model,
        data and settings do not fit each other or the run in `out`.
        """
        if isinstance(architecture, ModelConfig):
            architecture = Architecture(architecture)
        self.architecture, self.settings, self.out = architecture, settings, out
        self.data = open_data(data) if isinstance(data, Path) else data
        self._check_data()
        self.world = join(settings.device)
        self.model = self._model(model)
        self.net = wrap(self.model, self.world, settings.parallel)
        self.sharded = settings.parallel == "fsdp" and self.world.size > 1
        if settings.compile:
            self._compile()
        self.parameters = dict(self.model.named_parameters())
        self.optimizer = torch.optim.AdamW(
            parameter_groups(self.model, settings.weight_decay),
            lr=settings.learning_rate,
            betas=(settings.beta1, settings.beta2),
            eps=1e-9,
            fused=True,
        )
        kept = self.parameters if settings.ema else {}
        self.ema = {name: p.detach().clone() for name, p in kept.items()}
        self.step, self.tokens_seen, self.seconds = 0, 0, 0.0
        self.loss_mean = 0.0
        self.epoch, self.row, self.row_length = 0, 0, settings.length
        self.saved_step: int | None = None
        self.stopping = False  # set from outside: `run` saves and returns after this step
        self.changed: dict[str, Any] = {}
        resumes = (out / CHECKPOINT_FILE).exists()
        if resumes:
            self.load()
        if self.world.sum([float(self.step)])[0] != self.world.size * self.step:
            raise Error(
                f"{out}: expected a directory that every process sees, found different ones"
            )
        self.rows = self._rows(self.row_length)
        if self.world.first:
            self._prepare_directory()
        self.logs = Logs(out if self.world.first else None, self.step, settings.tensorboard)
        if self.changed:
            self.logs.record({"resumed_after": self.step, "changed": self.changed})
        self.world.agree(None)

    # What a run is made of.

    def _check_data(self) -> None:
        s, data, size = self.settings, self.data, self.architecture.config.vocab_size
        if data.vocab_size != size:
            raise Error(
                f"vocab_size: expected {data.vocab_size} as in {data.directory}, found {size} in "
                "the model"
            )
        unknown = sorted(set(s.repeats) - set(data.texts))
        if unknown:
            raise Error(f"texts: expected some of {', '.join(data.texts)}, found {unknown[0]!r}")
        self.texts = tuple(s.repeats) or tuple(data.texts)
        context = self.architecture.config.context_length
        longest = max(s.length, s.long_length if s.long_from < 1 else 0)
        if self.architecture.positions == "learned" and longest > context:
            raise Error(f"length: expected at most {context} learned positions, found {longest}")
        tokens = sum(data.tokens("train", name) for name in self.texts)
        if tokens < longest:
            raise Error(
                f"{data.directory}: expected at least {longest} tokens to train on (one row), "
                f"found {tokens}; add text, or lower length and long_length"
            )
        if s.sample_tokens:
            data.tokenizer.encode(s.sample_prompt)  # fails now, not at the first sample
        self.validated = [name for name in self.texts if data.tokens("validation", name) > 0]

    def _model(self, model: GptOss | None) -> GptOss:
        s = self.settings
        if model is None:
            model = GptOss(self.architecture)
            model.initialise(s.seed)
        elif model.architecture != self.architecture:
            raise Error(f"model: expected one of {self.architecture}, found {model.architecture}")
        model.compute_dtype = getattr(torch, s.dtype)
        model.checkpointing = s.checkpointing
        return model.to(self.world.device).train()

    def _compile(self) -> None:
        """Blocks on a GPU; on a CPU feed-forward parts alone.

        Attention on a CPU is a loop over blocks of queries, which the compiler would write out.
        """
        for block in self.model.blocks():
            part = block.mlp if self.world.device.type == "cpu" else block
            part.compile()

    def _rows(self, length: int) -> TextRows:
        s = self.settings
        return self.data.rows(
            "train", length, seed=s.seed, repeats=s.repeats or None, texts=self.texts
        )

    def validation_rows(self, name: str) -> TextRows:
        """The held-out rows of one text, each document from its beginning."""
        return self.data.rows("validation", self.settings.long_length, shuffle=False, texts=(name,))

    def _prepare_directory(self) -> None:
        """What people and other programs want to find beside the state."""
        self.out.mkdir(parents=True, exist_ok=True)
        for name in (CHECKPOINT_FILE, LOG_FILE, STATISTICS_FILE, CONFIG_FILE):
            (self.out / f"{name}.partial").unlink(missing_ok=True)  # a killed process left it
        for name in (LOG_FILE, STATISTICS_FILE):
            trim_log(self.out / name, self.step)
        about = {
            "architecture": self.architecture.to_dict(),
            "settings": vars(self.settings),
            "data": {"directory": str(self.data.directory), "digest": self.data.digest},
        }
        text = json.dumps(about, indent=1) + "\n"
        write_in_one_piece(self.out / CONFIG_FILE, lambda file: file.write(text.encode()))
        self.data.copy_tokenizer(self.out)

    # State.

    def save(self) -> None:
        """Writes the state; a failure leaves the old one. All processes must call it."""
        keep, moments = self.world.first, self.optimizer.state
        state = {
            "format": FORMAT,
            "model": {name: full(p, keep) for name, p in self.model.state_dict().items()},
            "optimizer": {
                name: {key: full(moments[p][key], keep) for key in MOMENTS}
                for name, p in self.parameters.items()
                if p in moments
            },
            "ema": {name: full(average, keep) for name, average in self.ema.items()},
            "architecture": self.architecture.to_dict(),
            "settings": dict(vars(self.settings)),
            "data": str(self.data.directory),
            "digest": self.data.digest,
            "step": self.step,
            "tokens_seen": self.tokens_seen,
            "seconds": self.seconds,
            "loss_mean": self.loss_mean,
            "epoch": self.epoch,
            "row": self.row,
            "row_length": self.row_length,
        }
        trouble = None
        if self.world.first:
            try:
                save_state(self.out / CHECKPOINT_FILE, state)
            except Error as error:
                trouble = str(error)
        self.world.agree(trouble)
        self.saved_step = self.step

    def load(self) -> None:
        """Goes back to the state in `out`. Raises Error for that of another run."""
        path = self.out / CHECKPOINT_FILE
        state = load_state(path)
        self.changed = check_same_run(
            path, state, self.architecture.to_dict(), self.settings, self.data.digest
        )
        for name, p in self.parameters.items():
            copy_whole(p, state["model"][name])
            moments = state["optimizer"].get(name)
            if moments is not None:
                self.optimizer.state[p] = {
                    "step": torch.tensor(float(state["step"]), device=self.world.device),
                    **{key: torch.zeros_like(p) for key in MOMENTS},
                }
                for key in MOMENTS:
                    copy_whole(self.optimizer.state[p][key], moments[key])
        for name, average in self.ema.items():
            copy_whole(average, state["ema"][name])
        for name in (
            "step",
            "tokens_seen",
            "seconds",
            "loss_mean",
            "epoch",
            "row",
            "row_length",
        ):
            setattr(self, name, state[name])
        self.saved_step = self.step

    # One step.

    def train_step(self) -> dict[str, Any]:
        """One optimizer step; returns its figures (loss in nats per token)."""
        s = self.settings
        began = perf_counter()
        progress = self.step / s.steps
        self.model.fake_quantize(progress >= s.quantize_from)
        torch.manual_seed(((s.seed * 10**9 + self.step) * 10**5 + self.world.rank) % 2**63)
        rate = learning_rate(self.step, s)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        batch = self._next_batch(progress)
        figures, load = self._gradients(batch)
        if s.statistics_every and (self.step + 1) % s.statistics_every == 0:
            self._log_statistics()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), s.clip or math.inf)
        figures["norm"] = float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
        self._check(figures["loss"], figures["norm"])
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._average()

        self.step += 1
        self.tokens_seen += batch.tokens.size
        took = perf_counter() - began
        self.seconds += took
        speed = batch.tokens.size / took
        return {
            "step": self.step,
            "loss": figures.pop("loss"),
            "rate": rate,
            **figures,
            **self._load_figures(load),
            "tokens": self.tokens_seen,
            "tokens_per_s": speed,
            "mfu": speed * self._flops_per_token() / self._peak(),
            "seconds": self.seconds,
        }

    def _next_batch(self, progress: float) -> Batch:
        s = self.settings
        length = s.long_length if progress >= s.long_from else s.length
        if length != self.row_length:  # other rows: begin another epoch of them
            self.row_length, self.rows = length, self._rows(length)
            self.epoch, self.row = self.epoch + 1, 0
        count = s.batch_tokens // length
        batch, self.epoch, self.row = self.rows.batch(self.epoch, self.row, count)
        return batch

    def _gradients(self, batch: Batch) -> tuple[dict[str, float], Tensor]:
        """Adds up the gradient of the whole batch; returns its figures and the load [L, E].

        The cross entropy is divided by the predicted tokens of the whole batch, so that parts and
        processes change nothing but the order of sums. Balance and z-loss are means over a part:
        how even the routing of a part is.
        """
        s = self.settings
        rows = len(batch.tokens)
        predicted = max(1, int((batch.targets >= 0).sum()))
        mine = self.world.share(rows)
        size = max(1, s.micro_tokens // self.row_length)
        # nats, balance and z-loss; on the device, so as to wait for it once
        sums = torch.zeros(3, dtype=torch.float64, device=self.world.device)
        load = torch.zeros(0, 0, device=self.world.device)
        for at in range(mine.start, mine.stop, size):
            part = slice(at, min(mine.stop, at + size))
            weight = (part.stop - part.start) / rows
            arrays = [t.to(self.world.device) for t in to_tensors(batch, part)]
            with hold_back(self.net, part.stop == mine.stop):
                loss, routing = self.net(*arrays)
                objective = loss / predicted
                if routing:
                    means = _means(routing)
                    objective = objective + weight * (s.balance * means[0] + s.z_loss * means[1])
                    sums[1:] += weight * means.detach()
                    counts = torch.stack([r.load for r in routing]).double()
                    load = load + counts if load.numel() else counts
                # DDP and FSDP take the mean over the processes where the sum is meant
                (objective * self.world.size).backward()
            sums[0] += loss.detach()
        nats, balance, z, *counted = self.world.sum(torch.cat([sums, load.flatten()]).tolist())
        figures = {"loss": nats / predicted}
        if counted:
            figures |= {"balance": balance, "z": z}
        return figures, torch.tensor(counted).view(load.shape)

    def _load_figures(self, load: Tensor) -> dict[str, Any]:
        """Shares of the tokens; those of each expert where the step is validated."""
        if not load.numel():
            return {}
        share = load / load.sum(1, keepdim=True)
        found: dict[str, Any] = {"load_max": float(share.max()), "load_min": float(share.min())}
        if self._validates():
            found["load"] = [[round(x, 5) for x in layer] for layer in share.tolist()]
        return found

    def _check(self, loss: float, norm: float) -> None:
        s = self.settings
        spike = (
            s.spike > 0
            and self.step >= max(EARLY, s.warmup)
            and loss > max(s.spike * self.loss_mean, self.loss_mean + 1)
        )
        if math.isfinite(loss) and math.isfinite(norm) and not spike:
            old = self.loss_mean
            self.loss_mean = MEMORY * old + (1 - MEMORY) * loss if self.step else loss
            return
        self.optimizer.zero_grad(set_to_none=True)
        good = "no state was saved before"
        if self.saved_step is not None:
            path = self.out / CHECKPOINT_FILE
            good = f"the last good state, of step {self.saved_step}, is in {path}"
        advice = f"lower learning_rate ({s.learning_rate:g}) or clip ({s.clip:g}) and go on"
        if spike:
            found = f"loss {loss:.3f} after a mean of {self.loss_mean:.3f}"
            advice += f", or raise spike ({s.spike:g}; 0 = never stop)"
        else:
            found = f"loss {loss}, gradient norm {norm}"
        raise Diverged(f"step {self.step + 1}: {found}; {good}: {advice}")

    # Averaged weights.

    @torch.no_grad()
    def _average(self) -> None:
        if not self.ema:
            return
        # faster at first, so that the random initial weights are forgotten
        decay = min(self.settings.ema, (1 + self.step) / (10 + self.step))
        for name, average in self.ema.items():
            local(average).lerp_(local(self.parameters[name]), 1 - decay)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within it the model has its averaged weights, if the run keeps any."""
        if not self.ema:
            yield
            return
        kept = {name: local(p).clone() for name, p in self.parameters.items()}
        forget_gathered(self.model)
        try:
            for name, average in self.ema.items():
                local(self.parameters[name]).copy_(local(average))
            yield
        finally:
            forget_gathered(self.model)
            for name, value in kept.items():
                local(self.parameters[name]).copy_(value)

    # A look at the run.

    def _validates(self) -> bool:
        """Whether the step being taken ends with a validation."""
        taken = self.step
        return taken % self.settings.validate_every == 0 or taken == self.settings.steps

    def validate(self, limit: int) -> dict[str, float]:
        """Loss per held-out text, nats per token, over its first `limit` rows (0 = all)."""
        with self.averaged():
            return {
                name: evaluate(
                    self.model, self.validation_rows(name), limit=limit, world=self.world
                )[0]
                for name in self.validated
            }

    def sample(self) -> str:
        """The prompt of the settings and its continuation."""
        s, tokenizer = self.settings, self.data.tokenizer
        ids = tokenizer.encode(s.sample_prompt) or [self.data.end_of_text]
        stop = {self.data.end_of_text, *self.data.stop_ids}
        with self.averaged():
            new = sample(self.model, ids, s.sample_tokens, stop, seed=self.step)
        return s.sample_prompt + tokenizer.decode(new)

    def _log_statistics(self) -> None:
        found = {}
        for name, p in self.parameters.items():
            weight = distribution(full(p))
            gradient = distribution(full(p.grad)) if p.grad is not None else {}
            found[name] = {**weight, **{f"grad_{key}": value for key, value in gradient.items()}}
        self.logs.statistics(self.step + 1, found)

    def _flops_per_token(self) -> float:
        return flops_per_token(self.architecture, self.row_length)

    def _peak(self) -> float:
        """Of all processes together, FLOP/s."""
        return self.world.size * peak_flops(self.world.device, self.model.compute_dtype)

    # The run.

    def run(self, until: int | None = None, quiet: bool = False) -> list[dict[str, Any]]:
        """Trains up to step `until` (default: the end); saves, validates and logs on the way."""
        s = self.settings
        records = []
        end = s.steps if until is None else min(until, s.steps)
        line = Line(s.steps, s.batch_tokens)
        while self.step < end and not self.stopping:
            record = self.train_step()
            if self._validates():
                if self.validated:
                    record["validation"] = self.validate(s.validation_rows)
                if s.sample_tokens and (self.world.first or self.sharded):
                    record["sample"] = self.sample()
            self.stopping = self.world.sum([float(self.stopping)])[0] > 0
            last = self.step == end or self.stopping
            saves = last or self.step % s.save_every == 0
            self.logs.record(record, durable=saves)
            records.append(record)
            if saves:
                self.save()
            if self.world.first and not quiet:
                line(record, last)
        return records


def _means(routing: list[Routing]) -> Tensor:
    """Over the layers: the balance loss and the z-loss, float32 [2]."""
    return torch.stack([torch.stack([r.balance, r.z]) for r in routing]).mean(0)
