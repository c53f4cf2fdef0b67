"""`gptoss export`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

NAME = "export"
HELP = "Write a trained or fine-tuned model as a checkpoint that the engine runs."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("source", type=Path, metavar="RUN", help="what train or finetune wrote")
    parser.add_argument("out", type=Path, metavar="DIR", help="a new or empty directory")
    parser.add_argument(
        "--layout",
        choices=["original", "hf", "hf-bf16"],
        default="original",
        help="OpenAI's, Hugging Face's, or the latter with experts in bf16 (default: original)",
    )
    parser.add_argument(
        "--rule",
        choices=["best", "mx", "mse"],
        default="best",
        help="block scales by the MX specification, of least squared error, or whichever gives "
        "less loss (default: best)",
    )
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="measure on this, if the run's data has moved"
    )
    parser.add_argument(
        "--base", type=Path, metavar="MODEL", help="what finetune started from, if it has moved"
    )
    parser.add_argument(
        "--rows", type=int, default=0, metavar="N", help="measure N rows per text (default: all)"
    )


def run(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Carry the command out; the exit code."""
    from gptoss.train.export import LAYOUTS, export
    from gptoss.train.weights import is_run, merged_source

    if is_run(arguments.source):
        from gptoss.checkpoint import write_checkpoint

        rule = None if arguments.layout == "hf-bf16" else arguments.rule.replace("best", "mse")
        base = None if arguments.base is None else str(arguments.base)
        with merged_source(arguments.source, base, rule) as source:
            write_checkpoint(source, arguments.out, LAYOUTS[arguments.layout])
        print(f"written to {arguments.out}")
        return 0
    report = export(
        arguments.source,
        arguments.out,
        arguments.layout,
        arguments.data,
        arguments.rule,
        arguments.rows,
    )
    print_losses(report)
    rule = f", experts in MXFP4 with rule {report['rule']}" if report["rule"] else ""
    print(f"written to {arguments.out}{rule}")
    return 0


_STAGES = {
    "float32": "float32",
    "bf16": "bf16",
    "mx": "MXFP4, rule mx",
    "mse": "MXFP4, rule mse",
}


def print_losses(report: dict[str, Any]) -> None:
    """A table of what `gptoss.train.export.export` has measured."""
    if "float32" not in report:
        print("loss: not measured: the run's data has moved (see --data) or holds nothing out")
        return
    texts = list(report["float32"])
    width = max(12, *(len(text) for text in texts))
    print("held-out loss, nats per token (bits per byte)")
    print(f"{'':16}" + "".join(f"  {text:>{width + 8}}" for text in texts))
    for stage, label in _STAGES.items():
        if stage not in report:
            continue
        found = [report[stage][text] for text in texts]
        cells = [f"{f['nats_per_token']:.4f} ({f['bits_per_byte']:.4f})" for f in found]
        print(f"{label:16}" + "".join(f"  {cell:>{width + 8}}" for cell in cells))
