"""What a run tells: JSON lines, TensorBoard, a line on the terminal, statistics of the weights."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor

from gptoss.train.run.state import LOG_FILE, STATISTICS_FILE

QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
_SAMPLE = 1_000_000  # values of a tensor that quantiles are formed of


def append(path: Path, record: dict[str, Any], durable: bool = False) -> None:
    """Adds one JSON line; `durable`: and everything written so far is on the disk."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record, ensure_ascii=False) + "\n")
        file.flush()
        if durable:
            os.fsync(file.fileno())


def distribution(values: Tensor, prefix: str = "") -> dict[str, Any]:
    """Norm, root mean square, largest magnitude and QUANTILES of a tensor, for JSON.

    Quantiles of more than a million values are those of every n-th.
    """
    flat = values.detach().flatten().float()
    norm = float(flat.norm())
    step = -(-len(flat) // _SAMPLE)
    cuts = torch.quantile(flat[::step].cpu(), torch.tensor(QUANTILES))
    return {
        f"{prefix}norm": norm,
        f"{prefix}rms": norm / max(1, len(flat)) ** 0.5,
        f"{prefix}max": float(flat.abs().max()),
        f"{prefix}quantiles": cuts.tolist(),
    }


def duration(seconds: float) -> str:
    """A duration in words: "45 s", "12 min", "3 h 05 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


class Logs:
    """The files of a run, and its line on the terminal; silent without `out`."""

    def __init__(self, out: Path | None, step: int, tensorboard: bool = False) -> None:
        """`step`: what the run goes on after. TensorBoard's files go into out/tensorboard."""
        self.out, self.board = out, None
        if out is not None and tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(out / "tensorboard"), purge_step=step + 1)

    def record(self, record: dict[str, Any], durable: bool = False) -> None:
        """One line of log.jsonl."""
        if self.out is None:
            return
        append(self.out / LOG_FILE, record, durable)
        if self.board is not None and "step" in record:
            self._board(record)

    def statistics(self, step: int, parameters: dict[str, Any]) -> None:
        """One line of statistics.jsonl."""
        if self.out is not None:
            append(self.out / STATISTICS_FILE, {"step": step, "parameters": parameters})

    def _board(self, record: dict[str, Any]) -> None:
        assert self.board is not None
        step = record["step"]
        for name, value in record.items():
            if name != "step" and isinstance(value, int | float):
                self.board.add_scalar(f"train/{name}", value, step)
        for text, nats in record.get("validation", {}).items():
            self.board.add_scalar(f"validation/{text}", nats, step)
        if "sample" in record:
            self.board.add_text("sample", record["sample"], step)

    def close(self) -> None:
        """Brings TensorBoard's events to the disk."""
        if self.board is not None:
            self.board.close()


class Line:
    """The terminal's line: drawn over and over on a terminal, printed now and then elsewhere."""

    EVERY = 10  # steps, where the output is not a terminal

    def __init__(self, steps: int, batch_tokens: int, stream: TextIO | None = None) -> None:
        self.steps, self.batch_tokens = steps, batch_tokens
        self.stream = sys.stdout if stream is None else stream
        self.pace = 0.0  # seconds per token, smoothed over about ten steps

    def __call__(self, record: dict[str, Any], last: bool) -> None:
        """Tells one step's record."""
        step = record["step"]
        pace = 1 / record["tokens_per_s"]
        self.pace = 0.9 * self.pace + 0.1 * pace if self.pace else pace
        live = self.stream.isatty()
        told = "validation" in record
        if not (live or last or told or step % self.EVERY == 0):
            return
        speed = 1 / self.pace
        mfu = record["mfu"] * speed / record["tokens_per_s"]
        left = duration(self.pace * self.batch_tokens * (self.steps - step))
        text = (
            f"step {step}/{self.steps}  loss {record['loss']:.4f}  norm {record['norm']:.2f}  "
            f"{speed:.0f} tokens/s  MFU {mfu:.0%}  {left} left"
        )
        if live:
            self.stream.write("\r" + text.ljust(79) + ("\n" if told or last else ""))
        else:
            self.stream.write(text + "\n")
        if told:
            losses = [f"{name} {nats:.4f}" for name, nats in record["validation"].items()]
            self.stream.write(f"  validation: {'  '.join(losses)}\n")
            if record.get("sample"):
                self.stream.write("  " + record["sample"].replace("\n", "\n  ") + "\n")
        self.stream.flush()
