"""`gptoss data`: `prepare` makes training data out of texts, `info` shows what is in it.

`show` prints what `gptoss finetune` would learn of a file.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from gptoss.cli.finetune import add_reading, base_of, reading, warn_of_unused
from gptoss.cli.progress import Progress, human_bytes
from gptoss.errors import Error

NAME = "data"
HELP = "Turn texts into training data, and see what is learned of conversations."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    commands = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    prepare = commands.add_parser(
        "prepare",
        help="clean texts, drop duplicates, learn a vocabulary, write token files",
        description="Clean texts, drop duplicates, learn a vocabulary, write token files. "
        "A preparation that was interrupted goes on when the same command is given again.",
    )
    _add_prepare(prepare)
    info = commands.add_parser("info", help="show what prepared data holds")
    info.add_argument("directory", type=Path, metavar="DIR", help="made by `gptoss data prepare`")
    info.add_argument("--json", action="store_true", help="print the report as JSON")
    info.add_argument("--verify", action="store_true", help="compare the checksum of every file")
    _add_show(
        commands.add_parser(
            "show",
            help="print conversations as `gptoss finetune` reads them, what is learned in colour",
            description="Print the rows of a file as `gptoss finetune` reads them. What is learned "
            "is in colour, or between ⟦ and ⟧ where there is none (NO_COLOR, or no terminal).",
        )
    )


def _add_show(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="as of gptoss finetune --data")
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "-m",
        "--model",
        default="nano",
        metavar="MODEL|RUN",
        help='whose vocabulary it is; default: "nano", the bundled model',
    )
    where.add_argument(
        "--tokenizer", metavar="T", help='a vocabulary alone: a directory, or "o200k_harmony"'
    )
    parser.add_argument(
        "--rows", type=int, default=5, metavar="N", help="how many; 0 = all (default: 5)"
    )
    add_reading(parser)


def _add_prepare(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="a .txt, .jsonl or .parquet file (.gz too), a folder of such files, or a dataset of "
        "the Hugging Face Hub as owner/name[@revision][:part]",
    )
    add("--out", type=Path, required=True, metavar="DIR", help="a new or empty directory")
    add(
        "--tokenizer",
        choices=["bpe", "o200k_harmony", "characters", "words"],
        default="bpe",
        help="default: bpe, learned from the texts",
    )
    add("--vocab-size", type=int, metavar="N", help="ids of bpe and words (default: 4096)")
    add(
        "--weights",
        type=_numbers,
        metavar="N,N,…",
        help="how often each source counts for the vocabulary (default: 1 each)",
    )
    add(
        "--validation",
        type=float,
        default=0.05,
        metavar="SHARE",
        help="share of documents held out (default: 0.05)",
    )
    add("--field", default="text", metavar="NAME", help="of JSONL and Parquet (default: text)")
    add(
        "--separator",
        metavar="TEXT",
        help="what stands between the documents of a text file (default: <|endoftext|>)",
    )
    add("--min-chars", type=int, metavar="N", help="shorter documents are left out (default: 80)")
    add("--max-chars", type=int, metavar="N", help="longer ones too (default: no limit)")
    add(
        "--max-symbols",
        type=float,
        metavar="SHARE",
        help="documents with more than this share of symbols are left out (default: 0.25)",
    )
    add(
        "--drop-prefix",
        action="append",
        metavar="TEXT",
        help="documents that begin with TEXT are left out; may be given often",
    )
    add(
        "--near-duplicates",
        type=float,
        default=0.8,
        metavar="SIMILARITY",
        help="from which similarity on the first of two documents is kept alone; 0 = only exact "
        "duplicates go (default: 0.8)",
    )
    add("--workers", type=int, metavar="N", help="processes (default: one per core)")
    add("--cache", type=Path, metavar="DIR", help="where fetched datasets stay")
    add("--quiet", action="store_true", help="print no progress and no report")


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers as in 3,1; found {text!r}") from None


def run(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Carry the command out; the exit code."""
    if arguments.what == "show":
        return _show(arguments, parser)
    return _info(arguments) if arguments.what == "info" else _prepare(arguments)


def _show(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    from itertools import islice

    from gptoss.train.tune.examples import Source
    from gptoss.train.tune.recipe import Recipe
    from gptoss.train.tune.show import show_row

    a = arguments
    if a.rows < 0:
        raise Error(f"--rows: expected 0 or more, found {a.rows}")
    recipe = Recipe(**reading(a, parser, "data show"))
    length = 512 if a.length is None else a.length
    tokenizer = _tokenizer(a)
    source = Source(
        a.file, recipe.method, tokenizer, length, recipe.truncate, recipe.date, recipe.raw
    )
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    count = 0
    for row in islice(source, a.rows or None):
        print(show_row(row, tokenizer, length, colour))
        count += 1
    if not count:
        raise Error(f"{a.file}: expected at least one example, found an empty file")
    warn_of_unused(a.file, source.reader.unused)
    return 0


def _tokenizer(arguments: argparse.Namespace) -> Any:
    from gptoss.train.data import load_tokenizer
    from gptoss.train.tune.frozen import open_vocabulary
    from gptoss.train.weights import open_base

    if arguments.tokenizer is not None:
        return load_tokenizer(arguments.tokenizer)
    with open_base(base_of(arguments.model, offline=False)) as source:
        return open_vocabulary(source)


def _prepare(arguments: argparse.Namespace) -> int:
    from gptoss.train.data import END_OF_TEXT, Cleaning, prepare

    limits = {
        name: getattr(arguments, name)
        for name in ("min_chars", "max_chars", "max_symbols")
        if getattr(arguments, name) is not None
    }
    with _Steps(arguments.quiet) as steps:
        report = prepare(
            arguments.sources,
            arguments.out,
            tokenizer=arguments.tokenizer,
            vocab_size=arguments.vocab_size,
            validation=arguments.validation,
            weights=arguments.weights,
            cleaning=Cleaning(**limits, drop_prefixes=tuple(arguments.drop_prefix or ())),
            near_duplicates=arguments.near_duplicates,
            field=arguments.field,
            separator=END_OF_TEXT if arguments.separator is None else arguments.separator,
            workers=_cores() if arguments.workers is None else arguments.workers,
            cache=arguments.cache,
            progress=steps,
        )
    if not arguments.quiet:
        print_report(report)
        print(f"written to {arguments.out}")
    return 0


def _info(arguments: argparse.Namespace) -> int:
    from gptoss.train.data import open_data

    data = open_data(arguments.directory)
    if arguments.verify:
        data.verify()
    report = data.index.get("report")
    if not isinstance(report, dict):
        raise Error(f"{arguments.directory}: expected a report in data.json, found none")
    if arguments.json:
        print(json.dumps(report, indent=1, ensure_ascii=False))
        return 0
    print(f"tokenizer   {data.index['tokenizer']}")
    print_report(report)
    return 0


def _cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class _Steps:
    """One progress bar after the other, a new one for each kind of work."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._what = ""
        self._bar: Progress | None = None

    def __call__(self, what: str, done: int, total: int) -> None:
        if self._quiet:
            return
        if what != self._what:
            self._end()
            self._what, self._bar = what, Progress(what)
        if self._bar is not None:
            self._bar(done, total)

    def __enter__(self) -> _Steps:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def _end(self) -> None:
        if self._bar is not None:
            self._bar.__exit__(None, None, None)
            self._bar = None


def print_report(report: dict[str, Any]) -> None:
    """The report of `gptoss.train.data.prepare` as a small table."""
    dropped = sum(report["dropped"].values())
    print(f"documents   {report['documents_read']:,} read, {report['documents']:,} kept")
    if dropped:
        reasons = ", ".join(f"{name} {count:,}" for name, count in report["dropped"].items())
        print(f"left out    {dropped:,}: {reasons}")
    print(f"vocabulary  {report['vocab_size']:,} ids")
    print(
        f"tokens      {report['tokens']:,} of {human_bytes(report['bytes'])} of text, "
        f"{report['bytes_per_token']:.2f} bytes per token"
    )
    if "unknown" in report:
        print(f"unknown     {report['unknown']:.2%} of the tokens are <unk>: their text is lost")
    print(f"digest      {report['digest']}")
    width = max(4, *(len(entry["text"]) for entry in report["texts"]))
    print(f"\n{'text':<{width}}  {'split':<10} {'documents':>10} {'tokens':>14} {'text':>10}")
    for entry in report["texts"]:
        print(
            f"{entry['text']:<{width}}  {entry['split']:<10} {entry['documents']:>10,} "
            f"{entry['tokens']:>14,} {human_bytes(entry['bytes']):>10}"
        )
