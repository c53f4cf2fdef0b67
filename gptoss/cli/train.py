"""`gptoss train`."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptoss.cli.progress import Progress
from gptoss.errors import Error

if TYPE_CHECKING:
    from gptoss.train.run.presets import Preset
    from gptoss.train.run.trainer import Trainer

NAME = "train"
HELP = "Train a model, or go on with a run."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="RUN", help="a new directory, or a run")
    add("--preset", metavar="P", help="nano, nano-cpu, gpt2-style, shakespeare or gpt-oss-20b")
    add(
        "--data",
        metavar="DATA",
        help="made by `gptoss data prepare`; or texts, prepared with what suits the preset into "
        "RUN/data first",
    )
    add("--config", type=Path, metavar="F", help="settings and sizes in a TOML or JSON file")
    add(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="change a setting or a size, such as steps=2000; may be given often",
    )
    add("--device", metavar="D", help="auto, cpu or cuda; as --set device=D")
    add("--no-export", dest="export", action="store_false", help="write no RUN/model at the end")
    add("--quiet", action="store_true", help="print no progress")


def run(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Carry the command out; the exit code."""
    from gptoss.train.run.distributed import leave

    first = os.environ.get("RANK", "0") == "0"
    try:
        code = _train(arguments, first)
    except Error:
        if first or getattr(arguments, "debug", False):
            raise
        code = 1  # the first process says what is wrong
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        leave()
        # Threads of the process group may abort an interpreter that ends in the usual way.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _train(arguments: argparse.Namespace, first: bool) -> int:
    from gptoss.train.data import open_data
    from gptoss.train.run.trainer import Trainer

    preset, changes, place = _asked(arguments)
    data = open_data(_prepared(place, arguments, preset))
    preset = preset.fit(data).replace(**changes)
    trainer = Trainer(preset.architecture, preset.settings, data, arguments.out)
    if first and not arguments.quiet:
        _describe(trainer)
    caught: list[int] = []

    def stop(number: int, frame: object) -> None:
        caught.append(number)
        trainer.stopping = True
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else before[number])

    before: dict[int, Any] = {}
    for name in ("SIGINT", "SIGTERM"):
        number = int(getattr(signal, name))
        before[number] = signal.signal(number, stop)
    try:
        trainer.run(quiet=arguments.quiet)
    finally:
        trainer.logs.close()
        for number, handler in before.items():
            signal.signal(number, handler)
    if trainer.step < trainer.settings.steps and first:
        print(
            f"stopped after step {trainer.step}, which is saved; the same command goes on",
            file=sys.stderr,
        )
    if caught:
        return 128 + caught[0]
    if first and arguments.export and trainer.step >= trainer.settings.steps:
        _export(trainer, arguments.quiet)
    return 0


def _prepared(place: str, arguments: argparse.Namespace, preset: Preset) -> Path:
    """The prepared data at `place`; prepared from the texts there if they are not yet."""
    from gptoss.train.data import prepare

    if (Path(place) / "data.json").exists():
        return Path(place)
    out: Path = arguments.out / "data"
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if (out / "data.json").exists() and (several or not Path(place).exists()):
        return out
    if several:
        raise Error(
            f"{place}: expected data made by `gptoss data prepare`, which has to come first where "
            "several processes train"
        )
    vocabulary = None if preset.tokenizer != "bpe" else _vocabulary_for(Path(place))
    with Progress("preparing the text") as bar:
        prepare(
            [place],
            out,
            tokenizer=preset.tokenizer,
            vocab_size=vocabulary,
            progress=lambda what, done, total: bar(done, total),
        )
    return out


def _vocabulary_for(place: Path) -> int:
    """Ids that a text of this size gives, roughly one for each kilobyte, 512 to 4,096."""
    files = [place] if place.is_file() else [p for p in place.rglob("*") if p.is_file()]
    size = sum(p.stat().st_size for p in files)
    if not place.exists():  # a dataset of the Hub
        return 4096
    return max(512, min(4096, 1 << (size // 1000).bit_length()))


def _export(trainer: Trainer, quiet: bool) -> None:
    """RUN/model, which the engine runs, if it can."""
    from gptoss.cli.export import print_losses
    from gptoss.train.export import export

    differences = trainer.architecture.differences()
    out = trainer.out / "model"
    if differences:
        print(f"not exported: the engine runs gpt-oss, this model has {', '.join(differences)}")
        return
    if out.exists():
        print(f"{out}: is there already, and stays")
        return
    report = export(trainer.out, out)
    if not quiet:
        print_losses(report)
    prompt = trainer.settings.sample_prompt
    print(f'written to {out}; try: gptoss generate -m {out} "{prompt}"')


def _asked(arguments: argparse.Namespace) -> tuple[Preset, dict[str, Any], str]:
    """The preset, changes to it, and the data; what is not named comes from the run itself."""
    from gptoss.train.run.overrides import from_options, from_table, read_file
    from gptoss.train.run.presets import get_preset
    from gptoss.train.run.state import CHECKPOINT_FILE, CONFIG_FILE

    out, table = arguments.out, {}
    if arguments.config is not None:
        table = read_file(arguments.config)
    name = arguments.preset or table.get("preset")
    kept: dict[str, Any] = {}
    if (out / CHECKPOINT_FILE).exists() and (out / CONFIG_FILE).exists():
        kept = read_file(out / CONFIG_FILE)
    if name is not None:
        preset = get_preset(name)
    elif kept or "architecture" in table:
        about = kept or table
        where = out / CONFIG_FILE if kept else arguments.config
        preset = get_preset("nano")
        preset = preset.replace(**from_table(about, preset, str(where)))
    else:
        raise Error(f"train: expected --preset, or a run to go on with in {out}")
    changes = from_table(table, preset, str(arguments.config))
    named = from_options(arguments.set, preset)
    changes |= named
    if arguments.device is not None:
        if "device" in named:
            raise Error("train: expected --device or --set device, found both")
        changes["device"] = arguments.device
    data = arguments.data or _directory(table) or _directory(kept)
    if data is None:
        raise Error("train: expected --data, made by `gptoss data prepare`, or texts")
    return preset, changes, data


def _directory(table: dict[str, Any]) -> str | None:
    found = table.get("data")
    if isinstance(found, dict):  # as config.json of a run has it
        found = found.get("directory")
    return found if isinstance(found, str) else None


def _describe(trainer: Trainer) -> None:
    from gptoss.train.run.state import SCHEDULE

    model, world, s = trainer.model, trainer.world, trainer.settings
    total = sum(p.numel() for p in model.parameters())
    tokens = sum(trainer.data.tokens("train", name) for name in trainer.texts)
    many = f", {world.size} processes ({s.parallel})" if world.size > 1 else ""
    print(
        f"{total / 1e6:.2f} M parameters, {tokens} tokens of text, {s.steps} steps of "
        f"{s.batch_tokens} tokens, on {world.device}{many}"
    )
    if trainer.step:
        print(f"going on after step {trainer.step}")
    if trainer.changed:
        text = ", ".join(f"{name} = {value}" for name, value in trainer.changed.items())
        print(f"changed from here on: {text}")
        if SCHEDULE & set(trainer.changed):
            print(
                "gptoss: warning: the learning rate jumps to where the new schedule has it",
                file=sys.stderr,
            )
    silent = sorted(set(trainer.texts) - set(trainer.validated))
    if silent:
        print(
            f"gptoss: warning: no held-out documents of {', '.join(silent)}: not validated",
            file=sys.stderr,
        )
    sys.stdout.flush()
