"""From a run to a checkpoint that the engine loads, with the loss before and after rounding."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch

from gptoss.checkpoint import write_checkpoint
from gptoss.errors import Error
from gptoss.files import write_in_one_piece
from gptoss.train.data import PreparedData, open_data
from gptoss.train.model.convert import require_exportable, rounded, to_source
from gptoss.train.model.model import GptOss
from gptoss.train.run.evaluation import evaluate
from gptoss.train.weights import UNTAUGHT, load_run

REPORT_FILE = "export.json"
RULES = ("mx", "mse")
LAYOUTS = {"original": "original", "hf": "huggingface", "hf-bf16": "huggingface-bf16"}


def losses(model: GptOss, data: PreparedData, limit: int = 0) -> dict[str, Any]:
    """Per held-out text and over all of them: nats per token and bits per byte of text.

    A row is at most the model's context long. `limit` rows of each text (0 = all).
    """
    result: dict[str, Any] = {}
    nats, tokens, size = 0.0, 0, 0.0
    for name in data.texts:
        if not data.tokens("validation", name):
            continue
        length = model.config.context_length
        rows = data.rows("validation", length, shuffle=False, texts=(name,))
        mean, count = evaluate(model, rows, limit=limit)
        bytes_per_token = data.bytes_per_token("validation", name)
        result[name] = {
            "tokens": count,
            "nats_per_token": mean,
            "bits_per_byte": mean / math.log(2) / bytes_per_token,
        }
        nats, tokens, size = nats + mean * count, tokens + count, size + count * bytes_per_token
    if not tokens:
        raise Error(f"{data.directory}: expected held-out documents to measure on, found none")
    result["all"] = {
        "tokens": tokens,
        "nats_per_token": nats / tokens,
        "bits_per_byte": nats / math.log(2) / size,
    }
    return result


@torch.no_grad()
def export(
    run: Path,
    out: Path,
    layout: str = "original",
    data: Path | None = None,
    rule: str = "best",
    limit: int = 0,
) -> dict[str, Any]:
    """Writes the model of `run` into `out`; experts in MXFP4, but not for layout "hf-bf16".

    `rule` for the block scales is "mx", "mse" or "best", the one of less validation loss. Measures
    on the held-out documents of `data` (default: where the run had its data), `limit` rows of each
    text. Returns the losses (see `losses`) in float32, with bf16 weights and with MXFP4 experts of
    each rule tried; writes them into the run directory too. Where the data is no longer there, or
    holds nothing out, nothing is measured and "best" is "mse". Raises Error for another
    architecture than gpt-oss.
    """
    if layout not in LAYOUTS:
        raise Error(f"layout: expected one of {', '.join(LAYOUTS)}; found {layout!r}")
    if rule not in ("best", *RULES):
        raise Error(f"rule: expected best, {' or '.join(RULES)}; found {rule!r}")
    model, state = load_run(run)
    require_exportable(model)
    report: dict[str, Any] = {
        name: state[name]
        for name in ("step", "tokens_seen", "seconds", "settings", "architecture", "digest")
    }
    experts = "bf16" if layout == "hf-bf16" else "mxfp4"
    held_out = _held_out(data, state)
    if held_out is not None:
        report["float32"] = losses(model, held_out, limit)
        report["bf16"] = losses(rounded(model, "bf16"), held_out, limit)
        for name in (RULES if rule == "best" else (rule,)) if experts == "mxfp4" else ():
            report[name] = losses(rounded(model, rule=name), held_out, limit)
    measured = {name: report[name]["all"]["nats_per_token"] for name in RULES if name in report}
    if rule == "best":
        rule = min(measured, key=lambda name: measured[name]) if measured else "mse"
    report["rule"] = rule if experts == "mxfp4" else None
    source = to_source(model, experts, rule, run, UNTAUGHT)
    write_checkpoint(source, out, LAYOUTS[layout])
    text = json.dumps(report, indent=1) + "\n"
    write_in_one_piece(run / REPORT_FILE, lambda file: file.write(text.encode()))
    return report


def _held_out(data: Path | None, state: dict[str, Any]) -> PreparedData | None:
    """The run's data, if it is where it was and can be measured on, or the one named.

    Raises Error when the one named is not the run's.
    """
    if data is None:
        place = Path(state["data"])
        if not place.is_dir():
            return None
        found = open_data(place)
        measurable = found.digest == state["digest"] and found.tokens("validation") > 0
        return found if measurable else None
    found = open_data(data)
    if found.digest != state["digest"]:
        raise Error(
            f"{data}: expected the data of the run (digest {state['digest'][:12]}…), "
            f"found {found.digest[:12]}…"
        )
    return found
