"""The fine-tuning loop: one run in one directory, which goes on exactly where it stopped."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gptoss.chat import CALL, REQUIRED, RETURN
from gptoss.errors import Error, shown
from gptoss.files import write_in_one_piece
from gptoss.tokenizer import copy_tokenizer_files
from gptoss.train import weights
from gptoss.train.data import END_OF_TEXT
from gptoss.train.run.distributed import join
from gptoss.train.run.logs import Logs, append
from gptoss.train.run.schedule import learning_rate, parameter_groups
from gptoss.train.run.settings import Settings
from gptoss.train.run.state import CHANGEABLE, FORMAT, LOG_FILE, load_state, save_state, trim_log
from gptoss.train.tune import frozen, lora
from gptoss.train.tune.examples import Rows, read_examples
from gptoss.train.tune.objectives import dpo, sequence_logps, token_losses
from gptoss.train.tune.recipe import Recipe
from gptoss.train.weights import MARKER, STATE, TAUGHT, read_marker

_LARGE = 1_000_000_000  # parameters above which activations are computed again by default


class Tuner:
    """Fine-tunes the model at `base` on the examples of `data`, into the directory `out`.

    `out` holds adapters.json (what this run is), adapters.pt (trained weights, optimizer, place in
    the data), log.jsonl, and the tokenizer's files. A run that is there already goes on. Raises
    Error for wrong data, another model, and a run with other settings.
    """

    def __init__(
        self,
        base: str,
        data: Path,
        out: Path,
        recipe: Recipe,
        changes: Mapping[str, Any] | None = None,
    ) -> None:
        """`changes`: settings other than those that `recipe.settings` chooses, by name."""
        self.out, self.recipe = out, recipe
        self.base = weights.absolute(base)
        self.source = weights.open_base(base)
        settings = recipe.settings(self.source.config, changes or {})
        world = join(settings.device)
        if world.size > 1:
            raise Error(f"torchrun: expected one process for fine-tuning, found {world.size}")
        self.device = world.device
        tokenizer = frozen.open_vocabulary(self.source)
        self.examples = read_examples(
            data,
            recipe.method,
            tokenizer,
            settings.length,
            recipe.validation,
            recipe.truncate,
            recipe.date,
            recipe.raw,
        )
        width = settings.length * recipe.sequences
        self.rows = Rows(self.examples.train, width, settings.seed)
        self.held_out = Rows(self.examples.held_out, width, 0, shuffle=False)
        self.rows_per_step = settings.batch_tokens // width
        shorten = "warmup" not in (changes or {})
        self.settings = settings = self._with_steps(settings, shorten)
        ends = (END_OF_TEXT,) if recipe.method == "text" else (RETURN, CALL)
        self.stop_ids = [tokenizer.special[name] for name in ends]
        known = (END_OF_TEXT, *REQUIRED)
        self.token_ids = [tokenizer.special[n] for n in known if n in tokenizer.special]
        self.model = self._open_model(base)
        self.named = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        self.optimizer = torch.optim.AdamW(
            [g for g in parameter_groups(self.model, settings.weight_decay) if g["params"]],
            lr=settings.learning_rate,
            betas=(settings.beta1, settings.beta2),
            eps=1e-9,
            fused=True,
        )
        self.step, self.epoch, self.row, self.tokens_seen, self.seconds = 0, 0, 0, 0, 0.0
        self.reference = torch.zeros(0)  # DPO: log p under the base, [examples, 2], held out last
        out.mkdir(parents=True, exist_ok=True)
        if (out / STATE).exists():
            self.load()
        else:
            self._begin()

    def _with_steps(self, settings: Settings, shorten: bool) -> Settings:
        """`settings` with the steps that the epochs asked for take, and no longer a warm-up.

        Unless it may be shortened, a longer one raises Error.
        """
        if not self.recipe.epochs:
            return settings
        rows = len(self.rows.rows(0)) * self.recipe.epochs
        steps = max(1, math.ceil(rows / self.rows_per_step))
        warmup = min(settings.warmup, steps) if shorten else settings.warmup
        return dataclasses.replace(settings, steps=steps, warmup=warmup)

    def _open_model(self, base: str) -> Any:
        s, r = self.settings, self.recipe
        dtype = getattr(torch, s.dtype)
        if r.full:
            model = frozen.load_trainable(base, self.source, dtype)
        else:
            model = frozen.load_frozen(self.source, dtype)
            lora.attach(model, r.targets, r.lora_rank, r.lora_alpha, s.seed, self.token_ids)
        size = math.prod((self.source.config.hidden_size, self.source.config.vocab_size))
        model.checkpointing = s.checkpointing or 2 * size > _LARGE
        return model.eval().to(self.device)  # without dropout, if it was trained with it

    def _begin(self) -> None:
        """Leaves in `out` what the run is, then its first state."""
        if not (self.out / MARKER).exists() and any(self.out.iterdir()):
            raise Error(f"{self.out}: expected a new or empty directory, found something there")
        marker = {
            "format": 1,
            "base": self.base,
            "fingerprint": weights.fingerprint(self.base),
            "recipe": self.recipe.to_dict(),
            "settings": dataclasses.asdict(self.settings),
            "data": self.examples.digest,
            "stop_ids": self.stop_ids,
            "token_ids": self.token_ids,
            "conversation_format": (
                TAUGHT if self.recipe.method != "text" else self.source.conversation_format
            ),
            "architecture": self.model.architecture.to_dict(),
        }
        text = json.dumps(marker, indent=1) + "\n"
        write_in_one_piece(self.out / MARKER, lambda file: file.write(text.encode()))
        if self.source.directory is not None:
            copy_tokenizer_files(self.source.directory, self.out, self.source.config)
        if self.recipe.method == "dpo":
            self.reference = self._log_reference()
        self.save()

    def save(self) -> None:
        """Replaces the state in one piece."""
        trained = self.model.state_dict() if self.recipe.full else self.named
        state = {
            "format": FORMAT,
            "trained": {name: p.detach().cpu() for name, p in trained.items()},
            "optimizer": self.optimizer.state_dict(),
            "reference": self.reference,
            **{name: getattr(self, name) for name in _PLACE},
        }
        save_state(self.out / STATE, state)

    def load(self) -> None:
        """Goes on where the run in `out` stopped. Raises Error if it is another one."""
        marker = read_marker(self.out)
        asked = {
            "data": self.examples.digest,
            "fingerprint": weights.fingerprint(self.base),
            **self.recipe.to_dict(),
            **dataclasses.asdict(self.settings),
        }
        # Runs of before conversations had a system message of harmony's wrote them as they were.
        exact = marker["recipe"]["method"] != "text"
        kept = {
            "raw": exact,
            "date": self.recipe.date,
            **marker,
            **marker["recipe"],
            **marker["settings"],
        }
        changed = {name: value for name, value in asked.items() if kept.get(name) != value}
        for name, value in changed.items():
            if name not in CHANGEABLE | {"epochs"}:
                raise Error(
                    f"{self.out}: {name}: expected {shown(kept.get(name))} as the run began, found "
                    f"{shown(value)}; go on with that, or begin another run elsewhere"
                )
        state = load_state(self.out / STATE)
        with torch.no_grad():
            for name, parameter in self.named.items():
                parameter.copy_(state["trained"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.reference = state["reference"]
        for name in _PLACE:
            setattr(self, name, state[name])
        trim_log(self.out / LOG_FILE, self.step)
        if changed:  # allowed, but then the run is no longer the one that began
            append(self.out / LOG_FILE, {"resumed_after": self.step, "changed": changed})

    def _tensors(self, rows: Rows, picked: Sequence[Sequence[int]]) -> tuple[Tensor, ...]:
        batch = rows.build(picked)
        arrays = (batch.tokens, batch.targets, batch.positions, batch.documents)
        return tuple(torch.from_numpy(array).to(self.device) for array in arrays)

    def _pair_logps(self, rows: Rows, picked: Sequence[Sequence[int]]) -> tuple[Tensor, Any]:
        """log p of the replies of some rows, [pairs, 2], in the order of `picked`; routing."""
        tensors = self._tensors(rows, picked)
        losses, routing = token_losses(self.model, *tensors)
        most = 2 * max(map(len, picked))
        logps = sequence_logps(losses, tensors[3], most).view(len(picked), -1, 2)
        kept = [logps[r, : len(row)] for r, row in enumerate(picked)]
        return torch.cat(kept), routing

    @torch.no_grad()
    def _log_reference(self) -> Tensor:
        """log p of every reply under the model that training starts from, [examples, 2]."""
        parts = []
        for rows in (self.rows, self.held_out):
            found = torch.zeros(len(rows.items), 2)
            plain = Rows(rows.items, rows.length, 0, shuffle=False)
            for row in plain.rows(0):
                found[row] = self._pair_logps(plain, [row])[0].float().cpu()
            parts.append(found)
        return torch.cat(parts)

    def _objective(
        self, rows: Rows, picked: Sequence[Sequence[int]]
    ) -> tuple[Tensor, dict[str, float], Any]:
        """Loss of some rows, summed over what is counted (tokens or pairs); figures; routing."""
        if self.recipe.method != "dpo":
            losses, routing = token_losses(self.model, *self._tensors(rows, picked))
            return losses.sum(), {}, routing
        logps, routing = self._pair_logps(rows, picked)
        indices = torch.tensor([index for row in picked for index in row])
        if rows is self.held_out:
            indices += len(self.rows.items)
        reference = self.reference[indices].to(logps.device)
        found = dpo(logps[:, 0], logps[:, 1], reference, self.recipe.beta)
        figures = {
            "margin": float(found.margin.detach().sum()),
            "accuracy": float((found.margin.detach().sign().sum() + len(logps)) / 2),
        }
        return found.loss.sum(), figures, routing

    def _count(self, rows: Rows, picked: Sequence[Sequence[int]]) -> int:
        """Tokens that are learned, or pairs."""
        if self.recipe.method == "dpo":
            return sum(map(len, picked))
        items = [rows.items[index] for row in picked for index in row]
        return sum(int((sequence.targets >= 0).sum()) for item in items for sequence in item)

    def _micro(self, picked: Sequence[Sequence[int]]) -> Iterator[Sequence[Sequence[int]]]:
        """`picked` in parts of at most `micro_tokens`, but at least a row."""
        step = max(1, self.settings.micro_tokens // self.rows.length)
        for at in range(0, len(picked), step):
            yield picked[at : at + step]

    def train_step(self) -> dict[str, Any]:
        """One optimizer step; its figures, the loss in nats per learned token (DPO: per pair)."""
        s, began = self.settings, time.perf_counter()
        rounded = self.step >= s.quantize_from * s.steps
        self.model.fake_quantize(rounded and self.recipe.full)
        lora.set_rounded(self.model, rounded)
        rate = learning_rate(self.step, s)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        picked, self.epoch, self.row = self.rows.take(self.epoch, self.row, self.rows_per_step)
        counted = self._count(self.rows, picked)
        total, sums = 0.0, dict.fromkeys(_FIGURES if self.recipe.method == "dpo" else (), 0.0)
        for part in self._micro(picked):
            loss, figures, routing = self._objective(self.rows, part)
            total += loss.item()
            sums = {name: sums[name] + value for name, value in figures.items()}
            objective = loss / counted
            if s.balance and routing:
                even = torch.stack([r.balance for r in routing]).mean() * len(part) / len(picked)
                objective = objective + s.balance * even
            objective.backward()
        clip = s.clip or math.inf
        norm = float(torch.nn.utils.clip_grad_norm_(list(self.named.values()), clip))
        if not (math.isfinite(total) and math.isfinite(norm)):
            raise Error(
                f"step {self.step}: loss {total / counted}, gradient norm {norm}; the last good "
                f"state is in {self.out}: lower learning_rate ({s.learning_rate}) and go on"
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        tokens = sum(len(q) for row in picked for index in row for q in self.rows.items[index])
        self.tokens_seen += tokens
        took = time.perf_counter() - began
        self.seconds += took
        return {
            "step": self.step,
            "loss": total / counted,
            "rate": rate,
            "norm": norm,
            **{name: value / counted for name, value in sums.items()},
            "tokens": self.tokens_seen,
            "tokens_per_s": tokens / took,
            "seconds": self.seconds,
        }

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Of the examples held out: nats per token; for DPO loss, margin and accuracy per pair."""
        rows = self.held_out.rows(0)
        if not rows:
            return {}
        total, sums = 0.0, dict.fromkeys(_FIGURES if self.recipe.method == "dpo" else (), 0.0)
        for part in self._micro(rows):
            loss, figures, _ = self._objective(self.held_out, part)
            total += loss.item()
            sums = {name: sums[name] + value for name, value in figures.items()}
        counted = self._count(self.held_out, rows)
        return {"held out": total / counted, **{n: v / counted for n, v in sums.items()}}

    def run(self, until: int | None = None, quiet: bool = False) -> list[dict[str, Any]]:
        """Trains up to step `until` (default: the end); saves, validates and logs on the way."""
        s, records = self.settings, []
        end = s.steps if until is None else min(until, s.steps)
        with contextlib.closing(Logs(self.out, self.step, s.tensorboard)) as logs:
            if self.step == 0:  # what held-out examples cost the base
                before = {"step": 0, "validation": self.validate()}
                logs.record(before)
                self._tell(before, quiet)
            while self.step < end:
                record = self.train_step()
                last = self.step == end
                if self.step % s.validate_every == 0 or self.step == s.steps:
                    record["validation"] = self.validate()
                logs.record(record)
                records.append(record)
                if self.step % s.save_every == 0 or last:
                    self.save()
                self._tell(
                    record, quiet or not (last or self.step % 10 == 0 or "validation" in record)
                )
        return records

    def _tell(self, record: dict[str, Any], quiet: bool) -> None:
        """A record on the terminal; what was held out in any case."""
        parts = [f"step {record['step']}/{self.settings.steps}"]
        if "loss" in record:
            names = ("loss", *_FIGURES)
            parts += [f"{name} {record[name]:.4f}" for name in names if name in record]
            parts.append(f"{record['tokens_per_s']:.0f} tokens/s")
        if record.get("validation"):
            found = record["validation"].items()
            parts.append("(" + ", ".join(f"{name}: {value:.4f}" for name, value in found) + ")")
        if not quiet:
            print("  ".join(parts), flush=True)


_PLACE = ("step", "epoch", "row", "tokens_seen", "seconds")
_FIGURES = ("margin", "accuracy")
