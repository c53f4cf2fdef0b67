"""The training loop: AdamW, warm-up and cosine, accumulation, validation, exact resume."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gptoss.config import ModelConfig
from gptoss.errors import Error
from gptoss.train.data import Batch, PackedRows, load_encoding
from gptoss.train.model import GptOss
from gptoss.train.presets import Settings

CHECKPOINT_FILE = "state.pt"
LOG_FILE = "log.jsonl"


def learning_rate(step: int, settings: Settings) -> float:
    """Rate of step 0 … steps − 1: linear warm-up, then half a cosine down to the final rate."""
    if step < settings.warmup:
        return settings.learning_rate * (step + 1) / settings.warmup
    span = max(1, settings.steps - settings.warmup)
    wave = 0.5 * (1 + math.cos(math.pi * min(1.0, (step - settings.warmup) / span)))
    low = settings.final_learning_rate
    return settings.learning_rate * (low + (1 - low) * wave)


def decays(name: str) -> bool:
    """Weight decay is for the matrices inside the blocks and the unembedding alone."""
    return name.endswith("weight") and not name.startswith("embedding")


def to_tensors(batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    arrays = (batch.tokens, batch.targets, batch.positions, batch.documents)
    tokens, targets, positions, documents = (torch.from_numpy(a) for a in arrays)
    return tokens, targets, positions, documents


class Diverged(RuntimeError):
    """The loss or the gradient norm is no longer a finite number."""


@torch.no_grad()
def evaluate(model: GptOss, rows: PackedRows, count: int = 8, limit: int = 0) -> tuple[float, int]:
    """Mean loss in nats per token over `rows` (the first `limit` if not 0), and the tokens."""
    total, tokens = 0.0, 0
    for number, batch in enumerate(rows.sequential(count)):
        if limit and number * count >= limit:
            break
        loss, _ = model.loss(*to_tensors(batch))
        total += loss.item()
        tokens += int((batch.targets >= 0).sum())
    return total / max(1, tokens), tokens


@torch.no_grad()
def sample(
    model: GptOss, ids: Sequence[int], count: int, stop: int, temperature: float, seed: int
) -> list[int]:
    """Continues `ids` by up to `count` tokens, without a cache: for a look during training."""
    generator = torch.Generator().manual_seed(seed)
    out = list(ids)
    for _ in range(count):
        logits = model.logits(torch.tensor([out]))[0, -1].float()
        if temperature > 0:
            token = int(
                torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)
            )
        else:
            token = int(logits.argmax())
        if token == stop:
            break
        out.append(token)
    return out[len(ids) :]


class Trainer:
    """One run in one directory: `state.pt` (everything needed to go on) and `log.jsonl`."""

    def __init__(
        self,
        config: ModelConfig,
        settings: Settings,
        data: Path,
        texts: Sequence[tuple[str, int]],
        out: Path,
        workers: int = 1,
    ) -> None:
        """`data`: a directory written by `data.prepare`; `texts`: (name, times per epoch).

        `workers` threads share the rows of a step; with more than one, each runs PyTorch on one
        thread. That is as fast as PyTorch's own threads on an idle machine, and several times
        faster on a busy one, because the workers wait for each other once a step, not once an
        operation. Their number changes the order of additions, and the groups of rows over
        which the balance loss is formed.
        """
        self.config, self.settings, self.out = config, settings, out
        self.data, self.texts = data, list(texts)
        out.mkdir(parents=True, exist_ok=True)
        self.encoding = load_encoding(data)
        if self.encoding.n_vocab > config.vocab_size:
            raise Error(
                f"vocab_size: expected at least {self.encoding.n_vocab} (the vocabulary in "
                f"{data}), found {config.vocab_size}"
            )
        self.model = GptOss(config, getattr(torch, settings.dtype))
        self.model.initialise(settings.seed)
        self.pool = None
        if workers > 1:
            torch.set_num_threads(1)
            self.pool = ThreadPoolExecutor(
                workers, initializer=torch.set_num_threads, initargs=(1,)
            )
        self.workers = workers
        named = list(self.model.named_parameters())
        self.optimizer = torch.optim.AdamW(
            [
                {
                    "params": [p for n, p in named if decays(n)],
                    "weight_decay": settings.weight_decay,
                },
                {"params": [p for n, p in named if not decays(n)], "weight_decay": 0.0},
            ],
            lr=settings.learning_rate,
            betas=(settings.beta1, settings.beta2),
            eps=1e-9,
            fused=True,
        )
        self.step, self.tokens_seen, self.seconds = 0, 0, 0.0
        self.epoch, self.row, self.row_length = 0, 0, settings.length
        self.rows = self._rows(settings.length)
        if (out / CHECKPOINT_FILE).exists():
            self.load()

    def _rows(self, length: int) -> PackedRows:
        files = [(self.data / f"{name}.train.bin", repeats) for name, repeats in self.texts]
        return PackedRows(files, length, self.encoding.eot_token, self.settings.seed)

    def validation_rows(self, name: str) -> PackedRows:
        files = [(self.data / f"{name}.val.bin", 1)]
        return PackedRows(files, self.settings.long_length, self.encoding.eot_token, shuffle=False)

    def save(self) -> None:
        """Writes the state beside its place and renames it, so that a crash leaves the old one."""
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "config": dataclasses.asdict(self.config),
            "settings": dataclasses.asdict(self.settings),
            "texts": self.texts,
            "step": self.step,
            "tokens_seen": self.tokens_seen,
            "seconds": self.seconds,
            "epoch": self.epoch,
            "row": self.row,
            "row_length": self.row_length,
            "rng": torch.get_rng_state(),
        }
        partial = self.out / (CHECKPOINT_FILE + ".partial")
        with partial.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self.out / CHECKPOINT_FILE)

    def load(self) -> None:
        path = self.out / CHECKPOINT_FILE
        state = torch.load(path, weights_only=True)
        for name, value in dataclasses.asdict(self.config).items():
            if state["config"].get(name) != value:
                raise Error(
                    f"{path}: {name}: expected {value} (the model asked for), "
                    f"found {state['config'].get(name)}"
                )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for name in ("step", "tokens_seen", "seconds", "epoch", "row", "row_length"):
            setattr(self, name, state[name])
        self.rows = self._rows(self.row_length)
        torch.set_rng_state(state["rng"])
        self._trim_log()
        now = {**dataclasses.asdict(self.settings), "texts": self.texts}
        before = {**state["settings"], "texts": [tuple(text) for text in state["texts"]]}
        changed = {name: value for name, value in now.items() if before.get(name) != value}
        if changed:  # allowed, but then the run is no longer the one that began
            self.log({"resumed_after": self.step, "changed": changed})

    def _trim_log(self) -> None:
        """Drops records of steps behind the state, which will be taken again."""
        path = self.out / LOG_FILE
        if not path.exists():
            return
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if json.loads(line).get("step", 0) <= self.step]
        if len(kept) < len(lines):
            partial = self.out / (LOG_FILE + ".partial")
            partial.write_text("".join(kept), encoding="utf-8")
            partial.replace(path)

    def _next_batch(self, progress: float) -> Batch:
        length = self.settings.length
        if progress >= self.settings.long_from:
            length = self.settings.long_length
        if length != self.row_length:  # other rows: begin another epoch of them
            self.row_length, self.rows = length, self._rows(length)
            self.epoch, self.row = self.epoch + 1, 0
        count = self.settings.batch_tokens // length
        batch, self.epoch, self.row = self.rows.batch(self.epoch, self.row, count)
        return batch

    def _gradients(
        self, part: list[Tensor], predicted: int, rows: int
    ) -> tuple[float, float, np.ndarray, tuple[Tensor, ...]]:
        """Of some rows of a step: loss (a sum), share of the balance loss, load, gradients."""
        loss, routing = self.model.loss(*part)
        even = torch.stack([r.balance for r in routing]).mean() * (len(part[0]) / rows)
        objective = loss / predicted + self.settings.balance * even
        gradients = torch.autograd.grad(objective, list(self.model.parameters()))
        counts = np.array([r.load.tolist() for r in routing])
        return loss.item(), even.item(), counts, gradients

    def train_step(self) -> dict[str, Any]:
        """One optimizer step; returns its figures (loss in nats per token)."""
        s = self.settings
        began = time.perf_counter()
        progress = self.step / s.steps
        self.model.fake_quantize(progress >= s.quantize_from)
        batch = self._next_batch(progress)
        predicted = int((batch.targets >= 0).sum())
        rate = learning_rate(self.step, s)
        for group in self.optimizer.param_groups:
            group["lr"] = rate

        rows = len(batch.tokens)
        part = max(1, min(s.micro_tokens // self.row_length, -(-rows // self.workers)))
        arrays = to_tensors(batch)
        parts = [[t[at : at + part] for t in arrays] for at in range(0, rows, part)]
        compute = functools.partial(self._gradients, predicted=predicted, rows=rows)
        total = 0.0
        balance = 0.0
        load = np.zeros((self.config.num_hidden_layers, self.config.num_experts))
        # results come in the order of the parts, whoever finishes first: sums are reproducible
        for loss, even, counts, gradients in (self.pool.map if self.pool else map)(compute, parts):
            total += loss
            balance += even
            load += counts
            for parameter, gradient in zip(self.model.parameters(), gradients, strict=True):
                if parameter.grad is None:
                    parameter.grad = gradient
                else:
                    parameter.grad += gradient
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), s.clip).item()
        mean = total / predicted
        if not (math.isfinite(mean) and math.isfinite(norm)):
            raise Diverged(
                f"step {self.step}: loss {mean}, gradient norm {norm}; the last good state is in "
                f"{self.out / CHECKPOINT_FILE}: lower learning_rate ({s.learning_rate}) and resume"
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.tokens_seen += batch.tokens.size
        took = time.perf_counter() - began
        self.seconds += took
        load /= load.sum(1, keepdims=True)
        return {
            "step": self.step,
            "loss": mean,
            "rate": rate,
            "norm": norm,
            "balance": balance,
            "load_max": float(load.max()),
            "load_min": float(load.min()),
            "tokens": self.tokens_seen,
            "tokens_per_s": batch.tokens.size / took,
        }

    def validate(self, limit: int) -> dict[str, float]:
        """Loss per held-out text, nats per token."""
        return {
            name: evaluate(self.model, self.validation_rows(name), limit=limit)[0]
            for name, _ in self.texts
        }

    def log(self, record: dict[str, Any]) -> None:
        with (self.out / LOG_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def sample(self) -> str:
        s = self.settings
        ids = self.encoding.encode_ordinary(s.sample_prompt)
        new = sample(self.model, ids, s.sample_tokens, self.encoding.eot_token, 0.7, self.step)
        return s.sample_prompt + self.encoding.decode(new)

    def run(self, until: int | None = None, quiet: bool = False) -> list[dict[str, Any]]:
        """Trains up to step `until` (default: the end); saves, validates and logs on the way."""
        s = self.settings
        records = []
        end = s.steps if until is None else min(until, s.steps)
        while self.step < end:
            record = self.train_step()
            last = self.step == end
            if self.step % s.validate_every == 0 or self.step == s.steps:
                record["validation"] = self.validate(s.validation_rows)
                record["sample"] = self.sample()
            self.log(record)
            records.append(record)
            if self.step % s.save_every == 0 or last:
                self.save()
            if not quiet and (self.step % 10 == 0 or last):
                print(
                    f"step {self.step}/{s.steps}  loss {record['loss']:.4f}  "
                    f"norm {record['norm']:.2f}  balance {record['balance']:.3f}  "
                    f"{record['tokens_per_s']:.0f} tokens/s",
                    flush=True,
                )
                if "validation" in record:
                    print(f"  validation {record['validation']}\n  {record['sample']}", flush=True)
        return records
