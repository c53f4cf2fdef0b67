"""`gptoss finetune`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

NAME = "finetune"
HELP = "Fine-tune a model on conversations, preferences or texts."

_SETTINGS = ("learning_rate", "steps", "batch_tokens", "length", "seed", "dtype", "device")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add = parser.add_argument
    add(
        "model",
        metavar="MODEL|RUN",
        help='a checkpoint, "nano" (the bundled model), a run, or a fine-tuning run',
    )
    add("--data", type=Path, required=True, metavar="FILE", help="examples: .jsonl, or texts")
    add(
        "--out", type=Path, required=True, metavar="RUN", help="a new directory, or one to go on in"
    )
    add(
        "--method",
        choices=["sft", "dpo", "text"],
        default="sft",
        help="conversations, preferences or plain texts (default: sft)",
    )
    add("--full", action="store_true", help="train all weights instead of adapters (LoRA)")
    add("--lora-rank", type=int, metavar="N", help="default: 8")
    add("--lora-alpha", type=float, metavar="X", help="default: twice the rank")
    add(
        "--lora-targets",
        metavar="NAMES",
        help="default: attention,router,experts,tokens (rows of the special tokens)",
    )
    add("--beta", type=float, metavar="X", help="dpo: pull towards the base (default: 0.1)")
    add("--epochs", type=float, metavar="X", help="passes over the examples (default: 3)")
    add("--steps", type=int, metavar="N", help="optimizer steps, instead of --epochs")
    add(
        "--learning-rate",
        type=float,
        metavar="X",
        help="default: 1 / hidden size; for --full a tenth of it, for dpo a thirtieth",
    )
    add("--length", type=int, metavar="N", help="tokens of the longest example (default: 512)")
    add("--batch-tokens", type=int, metavar="N", help="tokens per step (default: 4096)")
    add("--validation", type=float, metavar="X", help="share held out (default: 0.1)")
    add(
        "--truncate",
        action="store_true",
        help="cut examples that are too long, instead of leaving them out",
    )
    add("--seed", type=int, metavar="N", help="default: 0")
    add("--dtype", choices=["bfloat16", "float32"], help="of matrix operands (default: bfloat16)")
    add("--device", help="auto, cpu or cuda (default: auto)")
    add(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="any other setting of training, such as warmup=20; may be given often",
    )


def run(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Carry the command out; the exit code."""
    from gptoss.train.tune.recipe import Recipe
    from gptoss.train.tune.tuner import Tuner

    a = arguments
    chosen: dict[str, Any] = {"method": a.method, "full": a.full, "truncate": a.truncate}
    for name in ("lora_rank", "lora_alpha", "lora_targets", "beta", "validation", "epochs"):
        if getattr(a, name) is not None:
            chosen[name] = getattr(a, name)
    if a.full and (unused := sorted(name for name in chosen if name.startswith("lora_"))):
        parser.error(f"finetune: --{unused[0].replace('_', '-')} makes no sense with --full")
    if a.steps is not None:
        if a.epochs is not None:
            parser.error("finetune: expected --epochs or --steps, found both")
        chosen["epochs"] = 0.0
    if a.lora_rank is not None and a.lora_alpha is None:
        chosen["lora_alpha"] = 2.0 * a.lora_rank
    recipe = Recipe(**chosen)
    changes = {name: getattr(a, name) for name in _SETTINGS if getattr(a, name) is not None}
    for item in a.set:
        changes.update(_setting(item))
    tuner = Tuner(_model(a.model), a.data, a.out, recipe, changes)
    trained = sum(p.numel() for p in tuner.named.values())
    print(f"{a.data}: {tuner.examples}", flush=True)
    print(f"{trained:,} weights to train, {tuner.settings.steps} steps", flush=True)
    if tuner.step:
        print(f"going on after step {tuner.step}", flush=True)
    tuner.run()
    print(f"written to {a.out}; a checkpoint of it: gptoss export {a.out} DIR")
    return 0


def _model(name: str) -> str:
    """The path of a model; "nano" is the bundled one unless there is such a directory here."""
    if name != "nano" or Path(name).exists():
        return name

    from gptoss.checkpoint import BUNDLED_MODEL

    return str(BUNDLED_MODEL)


def _setting(item: str) -> dict[str, Any]:
    """ "warmup=20" as a setting of its type. Raises Error for an unknown name or a wrong value."""
    import dataclasses

    from gptoss.errors import Error
    from gptoss.train.run.settings import Settings

    name, equals, text = item.partition("=")
    kinds: dict[str, type] = {f.name: type(f.default) for f in dataclasses.fields(Settings)}
    if not equals or name not in kinds:
        raise Error(f"--set: expected NAME=VALUE, NAME among {', '.join(kinds)}, found {item!r}")
    kind = kinds[name]
    try:
        value: Any = {"true": True, "false": False}[text] if kind is bool else kind(text)
    except (ValueError, KeyError):
        raise Error(
            f"--set {name}: expected a value of type {kind.__name__}, found {text!r}"
        ) from None
    return {name: value}
