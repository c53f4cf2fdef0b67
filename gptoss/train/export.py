"""From a run to a checkpoint that the engine loads, with the loss before and after rounding."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import torch

from gptoss.checkpoint import write_checkpoint
from gptoss.config import ModelConfig
from gptoss.errors import Error
from gptoss.train.convert import rounded, to_source
from gptoss.train.data import INDEX_FILE, PackedRows, load_encoding
from gptoss.train.loop import CHECKPOINT_FILE, evaluate
from gptoss.train.model import GptOss

REPORT_FILE = "export.json"


def load_run(run: Path) -> tuple[GptOss, dict[str, Any]]:
    """The float32 model of a run directory, and the rest of its state."""
    path = run / CHECKPOINT_FILE
    if not path.exists():
        raise Error(f"{path}: expected a run's state, found nothing")
    state = torch.load(path, weights_only=True)
    config = ModelConfig(
        **{**state["config"], "eos_token_ids": tuple(state["config"]["eos_token_ids"])}
    )
    model = GptOss(config)
    model.load_state_dict(state.pop("model"))
    return model, state


def losses(model: GptOss, data: Path, texts: list[str], limit: int = 0) -> dict[str, Any]:
    """Per held-out text and over all of them: nats per token and bits per byte of text.

    A row is at most the model's context long. `limit` rows of each text (0 = all).
    """
    end = load_encoding(data).eot_token
    index = json.loads((data / INDEX_FILE).read_text())
    sizes = {f["text"]: (f["tokens"], f["bytes"]) for f in index["files"] if f["split"] == "val"}
    result: dict[str, Any] = {}
    nats, tokens, byte_total = 0.0, 0, 0.0
    for name in texts:
        rows = PackedRows(
            [(data / f"{name}.val.bin", 1)], model.config.context_length, end, shuffle=False
        )
        mean, count = evaluate(model, rows, limit=limit)
        bytes_per_token = sizes[name][1] / sizes[name][0]
        result[name] = {
            "tokens": count,
            "nats_per_token": mean,
            "bits_per_byte": mean / math.log(2) / bytes_per_token,
        }
        nats, tokens = nats + mean * count, tokens + count
        byte_total += count * bytes_per_token
    result["all"] = {
        "tokens": tokens,
        "nats_per_token": nats / tokens,
        "bits_per_byte": nats / math.log(2) / byte_total,
    }
    return result


@torch.no_grad()
def export(run: Path, data: Path, out: Path, rule: str = "best", limit: int = 0) -> dict[str, Any]:
    """Writes the model of `run` into `out` in the original layout, experts in MXFP4.

    `rule` for the block scales is "mx", "mse" or "best", the one of less validation loss. Returns
    the losses (see `losses`) in float32, with bf16 weights, and with MXFP4 experts of each rule
    tried, and writes them into the run directory.
    """
    model, state = load_run(run)
    texts = [name for name, _ in state["texts"]]
    report: dict[str, Any] = {
        "step": state["step"],
        "tokens_seen": state["tokens_seen"],
        "seconds": state["seconds"],
        "settings": state["settings"],
        "config": dataclasses.asdict(model.config),
        "float32": losses(model, data, texts, limit),
        "bf16": losses(rounded(model, "bf16"), data, texts, limit),
    }
    for name in ("mx", "mse") if rule == "best" else (rule,):
        report[name] = losses(rounded(model, rule=name), data, texts, limit)
    if rule == "best":
        rule = min(("mx", "mse"), key=lambda name: report[name]["all"]["nats_per_token"])
    report["rule"] = rule
    write_checkpoint(to_source(model, rule=rule, directory=data), out)
    (run / REPORT_FILE).write_text(json.dumps(report, indent=1) + "\n")
    return report
