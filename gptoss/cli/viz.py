"""`gptoss viz`."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, BinaryIO

from gptoss.cli.arguments import add_offline
from gptoss.errors import Error

NAME = "viz"
HELP = "Draw what a model has learned, and how."

TEXT = "Once upon a time there was a little dog. The dog was called Max."
OF_TEXT = ("attention", "experts", "entropy", "lens", "page")
OF_RUN = ("curves", "statistics")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add = parser.add_argument
    add(
        "what",
        choices=[*OF_TEXT, *OF_RUN, "all"],
        help="attention, experts, entropy, lens and page look at a text inside a model; curves and "
        "statistics at the course of runs; all: whatever applies",
    )
    add(
        "targets",
        nargs="*",
        metavar="RUN|MODEL",
        help="a run, or a model by its name or path (default: the bundled model); for curves, "
        "several runs",
    )
    add_offline(parser)
    add("--text", help="the text to look at")
    add("--file", type=Path, metavar="F", help="read the text from a file")
    add("--layer", type=int, metavar="N", help="this layer only (default: all)")
    add("--head", type=int, metavar="N", help="this head only (default: all)")
    add("--best", type=int, default=5, metavar="N", help="page: alternatives shown (default: 5)")
    add(
        "--x",
        choices=["tokens", "step", "seconds"],
        default="tokens",
        help="curves: the horizontal axis (default: tokens)",
    )
    add("--kind", help="statistics: distributions of this kind of matrix, as attn.qkv.weight")
    add(
        "--out",
        type=Path,
        default=Path("viz"),
        metavar="DIR|FILE",
        help="a folder; or, of a single picture, its file (.png, .svg, .html) (default: viz)",
    )
    add("--format", choices=["png", "svg"], help="of the pictures in a folder (default: png)")


# A picture before it is drawn: its name, and what makes a Figure of it, or HTML.
_Picture = tuple[str, Callable[[], Any]]
_SUFFIXES = (".png", ".svg", ".html")


def run(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Carry the command out; the exit code."""
    what, targets = (
        arguments.what,
        [_target(name, arguments.offline) for name in arguments.targets or [None]],
    )
    if len(targets) > 1 and what != "curves":
        parser.error(f"{what}: expected one RUN or MODEL, found {len(targets)}")
    if _is_file(arguments.out) and arguments.format not in (None, arguments.out.suffix[1:]):
        parser.error(f"--format: expected {arguments.out.suffix[1:]}, as in --out {arguments.out}")
    for target in targets:
        if not target.exists():
            raise Error(f"{target}: expected a run or a checkpoint, found nothing")
    pictures: list[_Picture] = []
    if what in (*OF_TEXT, "all"):
        inside = _Inside(targets[0], arguments)
        for name in OF_TEXT if what == "all" else [what]:
            reason = inside.obstacle(name)
            if reason is None:
                pictures += getattr(inside, name)()
            elif what == "all":
                print(f"gptoss: {name}: left out: {reason}", file=sys.stderr)
            else:
                raise Error(reason)
    if what == "curves" or (what == "all" and (targets[0] / "log.jsonl").exists()):
        pictures += _curves(targets, arguments)
    if what == "statistics" or (what == "all" and (targets[0] / "statistics.jsonl").exists()):
        pictures += _statistics(targets[0], arguments)
    for path in _write(pictures, arguments):
        print(path, flush=True)
    return 0


def _is_file(out: Path) -> bool:
    return out.suffix.lower() in _SUFFIXES and not out.is_dir()


def _write(pictures: Sequence[_Picture], arguments: argparse.Namespace) -> Iterator[Path]:
    from gptoss.files import write_in_one_piece
    from gptoss.viz import save

    out: Path = arguments.out
    if _is_file(out) and len(pictures) > 1:
        names = ", ".join(name for name, _ in pictures[:3])
        raise Error(f"--out: expected a folder for {names} and so on, found {out}")
    for name, make in pictures:
        page = name.endswith(".html")
        path = (
            out
            if _is_file(out)
            else out / (name if page else f"{name}.{arguments.format or 'png'}")
        )
        if page != (path.suffix.lower() == ".html"):
            kinds = ".html" if page else ".png or .svg"
            raise Error(f"--out: expected a name that ends in {kinds}, found {out}")
        if page:
            text = make()
            path.parent.mkdir(parents=True, exist_ok=True)
            write_in_one_piece(path, partial(_write_text, text))
        else:
            save(make(), path)
        yield path


def _write_text(text: str, file: BinaryIO) -> None:
    file.write(text.encode())


def _target(name: str | None, offline: bool) -> Path:
    """The folder of a run, or of a model by its name; a run need not hold a model yet."""
    from gptoss.cli.opening import locate

    return Path(locate(name, offline=offline).model)


def _text(arguments: argparse.Namespace) -> str:
    if arguments.text is not None and arguments.file is not None:
        raise Error("viz: expected --text or --file, found both")
    if arguments.file is None:
        return TEXT if arguments.text is None else arguments.text
    try:
        return arguments.file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise Error(f"{arguments.file}: expected UTF-8, found {error.reason}") from None


class _Inside:
    """One text through one model, and what can be drawn of it."""

    def __init__(self, target: Path, arguments: argparse.Namespace) -> None:
        from gptoss.train.data import load_tokenizer
        from gptoss.train.weights import load_model
        from gptoss.viz import token_name, token_names

        self.target, self.arguments = target, arguments
        text = _text(arguments)
        self.model, directory = load_model(target, quantized=True)
        tokenizer = load_tokenizer(directory, self.model.config.vocab_size)
        self.ids = tokenizer.encode(text)
        most = self.model.config.context_length
        if not 1 <= len(self.ids) <= most:
            raise Error(
                f"text: expected at least one token and at most {most}, the context of the model; "
                f"found {len(self.ids) or 'none'}"
            )
        self.name_of = partial(token_name, tokenizer)
        self.tokens = token_names(tokenizer, self.ids)
        self.layers = self._some("layer", self.model.config.num_hidden_layers)
        self._some("head", self.model.config.num_attention_heads)

    def _some(self, option: str, count: int) -> list[int]:
        one = getattr(self.arguments, option)
        if one is not None and not 0 <= one < count:
            raise Error(f"--{option}: expected 0 to {count - 1}, found {one}")
        return list(range(count)) if one is None else [one]

    def obstacle(self, what: str) -> str | None:
        """Why a picture cannot be drawn of this text in this model, before anything is computed."""
        from gptoss.viz import attention, experts, lens

        most = {
            "attention": attention.MAX_TOKENS,
            "experts": experts.MAX_TOKENS,
            "entropy": experts.MAX_TOKENS,
            "lens": lens.MAX_TOKENS,
        }
        if what in most and len(self.ids) > most[what]:
            return (
                f"text: expected at most {most[what]} tokens for this picture, "
                f"found {len(self.ids)}"
            )
        if what in ("experts", "entropy") and self.model.architecture.feed_forward != "moe":
            return f"{self.target}: expected a mixture of experts, found a dense model"
        return None

    @cached_property
    def trace(self) -> Any:
        from gptoss.viz.trace import trace

        return trace(self.model, self.ids)

    def attention(self) -> list[_Picture]:
        head = self.arguments.head
        ending = "" if head is None else f"-head-{head}"
        return [(f"attention-layer-{n}{ending}", partial(self._attention, n)) for n in self.layers]

    def _attention(self, layer: int) -> Any:
        from gptoss.viz import attention_maps, draw_attention

        maps = attention_maps(self.trace, self.model.architecture, layer, self.arguments.head)
        return draw_attention(maps, self.tokens)

    def experts(self) -> list[_Picture]:
        from gptoss.viz import draw_coactivation, draw_load, draw_routing

        return [
            ("expert-load", lambda: draw_load(self.trace)),
            ("expert-coactivation", lambda: draw_coactivation(self.trace)),
            *(
                (f"routing-layer-{n}", lambda n=n: draw_routing(self.trace, self.tokens, n))
                for n in self.layers
            ),
        ]

    def entropy(self) -> list[_Picture]:
        from gptoss.viz import draw_entropy

        return [("router-entropy", lambda: draw_entropy(self.trace, self.tokens))]

    def lens(self) -> list[_Picture]:
        return [("logit-lens", self._lens)]

    def _lens(self) -> Any:
        from gptoss.viz import draw_lens, logit_lens

        found = logit_lens(self.model, self.trace)
        names = [[self.name_of(int(token)) for token in row] for row in found.top]
        return draw_lens(found, self.tokens, names)

    def page(self) -> list[_Picture]:
        return [("tokens.html", self._page)]

    def _page(self) -> str:
        import torch

        from gptoss.viz import page, token_views

        with torch.inference_mode():  # not the trace: its attention would not fit for long texts
            logits = self.model.logits(torch.tensor([self.ids]))[0].float().numpy()
        views = token_views(self.ids, logits, self.arguments.best)
        return page(views, self.name_of, f"Token probabilities of {self.target.resolve().name}")


def _curves(runs: Sequence[Path], arguments: argparse.Namespace) -> list[_Picture]:
    from gptoss.viz import draw_curves, read_curve

    curves = [read_curve(run) for run in runs]
    if len({curve.name for curve in curves}) < len(curves):  # as a/run and b/run
        names = [str(run) for run in runs]
        curves = [dataclasses.replace(c, name=n) for c, n in zip(curves, names, strict=True)]
    return [("curves", lambda: draw_curves(curves, arguments.x))]


def _statistics(target: Path, arguments: argparse.Namespace) -> list[_Picture]:
    from gptoss.viz import draw_distributions, draw_statistics, read_statistics
    from gptoss.viz.statistics import matrices

    found = read_statistics(target)
    kinds = list(matrices(found))
    if arguments.kind not in (None, *kinds):
        raise Error(f"--kind: expected one of {', '.join(kinds)}; found {arguments.kind!r}")
    distributions: list[_Picture] = [
        (f"distributions-{kind.replace('.', '-')}", partial(draw_distributions, found, kind))
        for kind in ([arguments.kind] if arguments.kind else kinds)
    ]
    if arguments.kind:
        return distributions
    return [("statistics", partial(draw_statistics, found)), *distributions]
