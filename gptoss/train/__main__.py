"""Command line of the trainer: ``python -m gptoss.train {prepare,run,export} …``."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from gptoss.errors import Error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m gptoss.train", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    prepare = commands.add_parser("prepare", help="texts → vocabulary and token files")
    prepare.add_argument("texts", nargs="+", type=_text, metavar="FILE[:WEIGHT]")
    prepare.add_argument("--out", type=Path, required=True)
    prepare.add_argument("--vocab-size", type=int, default=4096)
    prepare.add_argument("--validation", type=float, default=0.05, help="share held out")

    run = commands.add_parser("run", help="train, or go on where the run in --out stopped")
    run.add_argument("texts", nargs="+", type=_text, metavar="TEXT[:TIMES]")
    run.add_argument("--preset", default="nano")
    run.add_argument("--data", type=Path, required=True, help="directory made by `prepare`")
    run.add_argument("--out", type=Path, required=True)
    run.add_argument("--workers", type=int, default=1, help="threads that share each step")
    run.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="change a setting, as in --set steps=2000 (see presets.Settings)",
    )

    export = commands.add_parser("export", help="a run → a checkpoint with MXFP4 experts")
    export.add_argument("run", type=Path)
    export.add_argument("out", type=Path)
    export.add_argument("--data", type=Path, required=True, help="directory made by `prepare`")
    export.add_argument("--rule", default="best", choices=["best", "mx", "mse"])
    return parser


def _text(value: str) -> tuple[str, int]:
    name, _, times = value.partition(":")
    return name, int(times or 1)


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    try:
        return COMMANDS[args.command](args)
    except ImportError as error:
        print(f"error: {error}; the trainer needs: pip install 'gptoss[train]'", file=sys.stderr)
    except (OSError, ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
    return 1


def _prepare(args: argparse.Namespace) -> int:
    from gptoss.train.data import prepare

    index = prepare(
        [Path(name) for name, _ in args.texts],
        args.out,
        args.vocab_size,
        args.validation,
        [weight for _, weight in args.texts],
    )
    for entry in index["files"]:
        print(
            "{text}.{split}: {documents} documents, {tokens} tokens, {bytes} bytes".format(**entry)
        )
    return 0


def _run(args: argparse.Namespace) -> int:
    from gptoss.train.loop import Trainer
    from gptoss.train.presets import PRESETS, Settings

    if args.preset not in PRESETS:
        raise Error(f"preset: expected one of {sorted(PRESETS)}, found {args.preset!r}")
    preset = PRESETS[args.preset]
    types = {field.name: field.type for field in dataclasses.fields(Settings)}
    changes: dict[str, object] = {}
    for item in args.set:
        name, _, value = item.partition("=")
        if name not in types:
            raise Error(f"--set: expected one of {sorted(types)}, found {name!r}")
        changes[name] = {"int": int, "float": float}.get(str(types[name]), str)(value)
    settings = dataclasses.replace(preset.settings, **changes)  # type: ignore[arg-type]
    trainer = Trainer(preset.model, settings, args.data, args.texts, args.out, args.workers)
    if trainer.step:
        print(f"going on after step {trainer.step}", flush=True)
    trainer.run()
    return 0


def _export(args: argparse.Namespace) -> int:
    from gptoss.train.export import export

    report = export(args.run, args.data, args.out, args.rule)
    for stage in ("float32", "bf16", "mx", "mse"):
        for text, figures in report.get(stage, {}).items():
            print(
                f"{stage:8} {text:20} {figures['nats_per_token']:.4f} nats/token  "
                f"{figures['bits_per_byte']:.4f} bits/byte"
            )
    print(f"written to {args.out} with rule {report['rule']}")
    return 0


COMMANDS = {"prepare": _prepare, "run": _run, "export": _export}

if __name__ == "__main__":
    sys.exit(main())
