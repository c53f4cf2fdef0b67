"""`gptoss finetune`."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gptoss.cli.arguments import add_offline

NAME = "finetune"
HELP = "Fine-tune a model on conversations, preferences or texts."

_SETTINGS = ("learning_rate", "steps", "batch_tokens", "length", "seed", "dtype", "device")
_RECIPE = (
    "method",
    "full",
    "lora_rank",
    "lora_alpha",
    "lora_targets",
    "beta",
    "validation",
    "epochs",
    "truncate",
    "date",
    "raw",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add = parser.add_argument
    add(
        "model",
        metavar="MODEL|RUN",
        help="a model by its name or path, a run, or a fine-tuning run",
    )
    add("--data", type=Path, required=True, metavar="FILE", help="examples: .jsonl, or texts")
    add(
        "--out", type=Path, required=True, metavar="RUN", help="a new directory, or one to go on in"
    )
    add_offline(parser)
    add_reading(parser)
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
    add("--batch-tokens", type=int, metavar="N", help="tokens per step (default: 4096)")
    add("--validation", type=float, metavar="X", help="share held out (default: 0.1)")
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


def add_reading(parser: argparse.ArgumentParser) -> None:
    """Options of how examples are read."""
    add = parser.add_argument
    add(
        "--method",
        choices=["sft", "dpo", "text"],
        default="sft",
        help="conversations, preferences or plain texts (default: sft)",
    )
    add("--length", type=int, metavar="N", help="tokens of the longest example (default: 512)")
    add(
        "--truncate",
        action="store_true",
        help="cut examples that are too long, instead of leaving them out",
    )
    add(
        "--date",
        metavar="DAY",
        help='what conversations tell the model: a day as 2026-11-27, "none", or "varied" '
        "(default), another day in each",
    )
    add(
        "--raw",
        action="store_true",
        help="write conversations exactly as they are, with no system message of harmony's",
    )


def run(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Carry the command out; the exit code."""
    from gptoss.train.tune.recipe import Recipe
    from gptoss.train.tune.tuner import Tuner

    a = arguments
    chosen = reading(a, parser, NAME)
    changes = {name: getattr(a, name) for name in _SETTINGS if getattr(a, name) is not None}
    for item in a.set:
        name, value = _setting(item)
        if getattr(a, name, None) is not None:
            option = name.replace("_", "-")
            parser.error(f"finetune: expected --{option} or --set {name}, found both")
        changes[name] = value
    if "steps" in changes:
        if a.epochs is not None:
            parser.error("finetune: expected --epochs or a number of steps, found both")
        chosen["epochs"] = 0.0
    if a.lora_rank is not None and a.lora_alpha is None:
        chosen["lora_alpha"] = 2.0 * a.lora_rank
    recipe = Recipe(**chosen)
    tuner = Tuner(base_of(a.model, a.offline), a.data, a.out, recipe, changes)
    trained = sum(p.numel() for p in tuner.named.values())
    print(f"{a.data}: {tuner.examples}", flush=True)
    warn_of_unused(a.data, tuner.examples.unused)
    print(f"{trained:,} weights to train, {tuner.settings.steps} steps", flush=True)
    if tuner.step:
        print(f"going on after step {tuner.step}", flush=True)
    tuner.run()
    print(f"written to {a.out}; a checkpoint of it: gptoss export {a.out} DIR")
    return 0


def reading(
    arguments: argparse.Namespace, parser: argparse.ArgumentParser, command: str
) -> dict[str, Any]:
    """The fields of a recipe that the options name; an error for those without effect."""
    chosen: dict[str, Any] = {}
    for name in _RECIPE:
        value = getattr(arguments, name, None)
        if value is not None and value is not False:
            chosen[name] = value
    for unused, why in _without_effect(chosen):
        parser.error(f"{command}: --{unused.replace('_', '-')} makes no sense with {why}")
    return chosen


def warn_of_unused(path: Path, unused: Mapping[str, int]) -> None:
    """Names, once, what stands in the rows of a file and is not used."""
    if unused:
        warnings.warn(f"{path}: not used: {', '.join(sorted(unused))}", stacklevel=2)


def base_of(model: str, offline: bool) -> str:
    """The path of a model by any of its names, or its synthetic description."""
    from gptoss.cli.opening import locate

    return str(locate(model, offline=offline).model)


def _without_effect(chosen: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Options that would change nothing, and what with."""
    method = chosen["method"]
    for name in chosen:
        if name.startswith("lora_") and "full" in chosen:
            yield name, "--full"
        if name == "beta" and method != "dpo":
            yield name, f"--method {method}"
        if name in ("truncate", "date", "raw") and method == "text":
            yield name, "--method text"
    if "date" in chosen and "raw" in chosen:
        yield "date", "--raw"


def _setting(item: str) -> tuple[str, Any]:
    """ "warmup=20" as a name and a value of its type. Raises Error for an unknown or wrong one."""
    from gptoss.errors import Error
    from gptoss.train.run.overrides import parse, unknown_name
    from gptoss.train.run.settings import Settings
    from gptoss.train.tune.recipe import USED

    name, equals, text = item.partition("=")
    name = name.strip().replace("-", "_")
    if not equals:
        raise Error(f"--set: expected NAME=VALUE, found {item!r}")
    if name not in USED:
        raise unknown_name(name, USED, "--set")
    return name, parse(f"--set {name}", text, getattr(Settings, name))
