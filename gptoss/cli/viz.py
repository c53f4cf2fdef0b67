"""`gptoss viz`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptoss.errors import Error

if TYPE_CHECKING:
    from gptoss.train.model import GptOss
    from gptoss.train.trace import Trace

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
        type=Path,
        metavar="RUN|MODEL",
        help="a run or a checkpoint (default: the bundled model); for curves, several runs",
    )
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
    add("--out", type=Path, default=Path("viz"), metavar="DIR", help="default: viz")
    add("--format", choices=["png", "svg"], default="png", help="default: png")


def run(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Carry the command out; the exit code."""
    targets = arguments.targets or [_bundled()]
    if len(targets) > 1 and arguments.what != "curves":
        parser.error(f"{arguments.what}: expected one RUN or MODEL, found {len(targets)}")
    for target in targets:
        if not target.exists():
            raise Error(f"{target}: expected a run or a checkpoint, found nothing")
    is_run = (targets[0] / "log.jsonl").exists()
    wanted = [arguments.what]
    if arguments.what == "all":
        wanted = [*OF_TEXT, *(["curves"] if is_run else [])]
        wanted += ["statistics"] if (targets[0] / "statistics.jsonl").exists() else []
    inside = _Inside(targets[0], arguments) if set(wanted) & set(OF_TEXT) else None
    for what in wanted:
        if what in OF_TEXT:
            assert inside is not None
            written = getattr(inside, what)()
        elif what == "curves":
            written = _curves(targets, arguments)
        else:
            written = _statistics(targets[0], arguments)
        for path in written:
            print(path)
    return 0


def _bundled() -> Path:
    import gptoss

    return Path(gptoss.__file__).parent / "models" / "nano"


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
    """One text through one model, and what is drawn of it."""

    def __init__(self, target: Path, arguments: argparse.Namespace) -> None:
        from gptoss.train.data import load_tokenizer
        from gptoss.train.export import load_model
        from gptoss.train.trace import trace

        self.arguments = arguments
        self.model: GptOss
        self.model, directory = load_model(target, packed=True)
        tokenizer = load_tokenizer(directory, self.model.config.vocab_size)
        ids = tokenizer.encode(_text(arguments))
        if not ids:
            raise Error("text: expected at least one token, found none")
        self.name_of: Callable[[int], str] = lambda token: tokenizer.decode([token])
        self.trace: Trace = trace(self.model, ids)
        self.tokens = [self.name_of(token) for token in ids]

    def _save(self, name: str, figure: Any) -> Path:
        from gptoss.viz import save

        return save(figure, self.arguments.out / f"{name}.{self.arguments.format}")

    def _layers(self) -> list[int]:
        layers, one = len(self.trace.attention), self.arguments.layer
        if one is not None and not 0 <= one < layers:
            raise Error(f"--layer: expected 0 to {layers - 1}, found {one}")
        return list(range(layers)) if one is None else [one]

    def attention(self) -> list[Path]:
        from gptoss.viz import attention_maps, draw_attention

        head = self.arguments.head
        return [
            self._save(
                f"attention-layer-{n}" + ("" if head is None else f"-head-{head}"),
                draw_attention(
                    attention_maps(self.trace, self.model.architecture, n, head), self.tokens
                ),
            )
            for n in self._layers()
        ]

    def experts(self) -> list[Path]:
        from gptoss.viz import draw_coactivation, draw_load, draw_routing

        found = [
            self._save("expert-load", draw_load(self.trace)),
            self._save("expert-coactivation", draw_coactivation(self.trace)),
        ]
        for n in self._layers():
            picture = draw_routing(self.trace, self.tokens, n)
            found.append(self._save(f"routing-layer-{n}", picture))
        return found

    def entropy(self) -> list[Path]:
        from gptoss.viz import draw_entropy

        return [self._save("router-entropy", draw_entropy(self.trace, self.tokens))]

    def lens(self) -> list[Path]:
        from gptoss.viz import draw_lens, logit_lens

        found = logit_lens(self.model, self.trace)
        names = [[self.name_of(int(token)) for token in row] for row in found.top]
        return [self._save("logit-lens", draw_lens(found, self.tokens, names))]

    def page(self) -> list[Path]:
        from gptoss.viz import page, token_views

        path: Path = self.arguments.out / "tokens.html"
        path.parent.mkdir(parents=True, exist_ok=True)
        views = token_views(self.trace, self.arguments.best)
        path.write_text(page(views, self.name_of), encoding="utf-8")
        return [path]


def _curves(runs: list[Path], arguments: argparse.Namespace) -> list[Path]:
    from gptoss.viz import draw_curves, read_curve, save

    figure = draw_curves([read_curve(run) for run in runs], arguments.x)
    return [save(figure, arguments.out / f"curves.{arguments.format}")]


def _statistics(target: Path, arguments: argparse.Namespace) -> list[Path]:
    from gptoss.viz import draw_distributions, draw_statistics, read_statistics, save
    from gptoss.viz.statistics import matrices

    found = read_statistics(target)
    written = [save(draw_statistics(found), arguments.out / f"statistics.{arguments.format}")]
    for kind in [arguments.kind] if arguments.kind else matrices(found):
        figure = draw_distributions(found, kind)
        name = kind.replace(".", "-")
        written.append(save(figure, arguments.out / f"distributions-{name}.{arguments.format}"))
    return written
