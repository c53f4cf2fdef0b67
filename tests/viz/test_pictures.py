"""Every picture is written, valid, and says on its axes what it shows."""

from __future__ import annotations

import json
import re
import warnings
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

import gptoss
from gptoss import viz
from gptoss.cli import main
from gptoss.errors import Error
from gptoss.train.model.model import GptOss
from gptoss.train.run.presets import get_preset
from gptoss.viz.attention import AttentionMap
from gptoss.viz.figures import new_figure, printable

NANO = Path(gptoss.__file__).parent / "bundled" / "nano"
TEXT = "Once upon a time there was a little dog."


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A directory with the logs of a run, and no model."""
    out = tmp_path / "run"
    out.mkdir()
    quantiles = [-4, -3, -2, -1, 0, 1, 2, 3, 4]
    entry = {"rms": 1, "quantiles": quantiles, "grad_rms": 0.1, "grad_quantiles": quantiles}
    with (out / "log.jsonl").open("w") as log, (out / "statistics.jsonl").open("w") as statistics:
        for n in range(1, 40):
            record = {"step": n, "tokens": n, "seconds": n, "loss": 5 / n}
            log.write(json.dumps({**record, "validation": {"a": 5 / n}}) + "\n")
            parameters = {f"block.{layer}.attn.qkv.weight": entry for layer in range(2)}
            statistics.write(json.dumps({"step": n, "parameters": parameters}) + "\n")
    return out


def draw(*arguments: str, out: Path) -> list[Path]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a missing glyph is a warning
        assert main(["viz", *arguments, "--out", str(out)]) == 0
    return sorted(out.iterdir())


@pytest.mark.parametrize(
    ("what", "axes"),
    [
        ("attention", ["query", "key", "sink"]),
        ("experts", ["expert", "token"]),
        ("entropy", ["router entropy (nats)", "layer", "token"]),
        ("lens", ["logits from", "probability"]),
    ],
)
def test_pictures_of_a_text(
    what: str, axes: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels: set[str] = set()
    original = viz.save

    def spy(figure: object, path: Path) -> Path:
        for one in figure.findobj():  # type: ignore[attr-defined]
            if hasattr(one, "get_text"):
                labels.add(one.get_text())
        return original(figure, path)  # type: ignore[arg-type]

    monkeypatch.setattr(viz, "save", spy)
    made = draw(what, "--text", TEXT, "--layer", "0", out=tmp_path / "out")
    assert set(axes) <= labels
    for path in made:
        assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_svg_is_xml_and_repeats(tmp_path: Path) -> None:
    """One picture may go into a file; the same numbers give the same bytes."""
    files = [tmp_path / "a.svg", tmp_path / "b.svg"]
    for file in files:
        arguments = ("attention", "--text", TEXT, "--layer", "1", "--head", "2", "--out", str(file))
        assert main(["viz", *arguments]) == 0
    assert ElementTree.parse(files[0]).getroot().tag.endswith("svg")
    assert files[0].read_bytes() == files[1].read_bytes()
    assert sorted(tmp_path.iterdir()) == files, "nothing half-written is left"


@pytest.mark.parametrize("what", ["curves", "statistics"])
def test_pictures_of_a_run(what: str, run: Path, tmp_path: Path) -> None:
    made = draw(what, str(run), out=tmp_path / "out")
    assert len(made) == (1 if what == "curves" else 2)
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in made)


def test_curves_of_several_runs_on_one_plot(run: Path) -> None:
    figure = viz.draw_curves([viz.read_curve(run), viz.read_curve(run)], "step")
    (axes,) = figure.axes
    assert axes.get_xlabel() == "optimizer steps" and axes.get_ylabel() == "loss (nats per token)"
    assert len(axes.get_lines()) == 4
    styles = {(line.get_linestyle(), line.get_marker()) for line in axes.get_lines()}
    assert len(styles) == 4, "told apart without colour"


def test_everything_that_applies(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the bundled model and more than 48 tokens: no curves, no lens, which is said."""
    monkeypatch.setattr("gptoss.viz.figures.MAX_LABELS", 8)
    text = " and ".join([TEXT] * 5)
    names = {p.name for p in draw("all", "--text", text, "--layer", "0", out=tmp_path / "out")}
    assert names == {
        *("attention-layer-0.png", "routing-layer-0.png", "expert-load.png"),
        *("expert-coactivation.png", "router-entropy.png", "tokens.html"),
    }
    assert "lens: left out: text: expected at most 48 tokens" in capsys.readouterr().err


def test_dense_models_have_pictures_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No experts, no sinks, learned positions."""
    model = GptOss(get_preset("gpt2-style").architecture.replace(num_hidden_layers=1))
    model.initialise(0)
    monkeypatch.setattr("gptoss.train.weights.load_model", lambda *_, **__: (model.eval(), NANO))
    names = {path.name for path in draw("all", "--text", "A dog", out=tmp_path / "out")}
    assert names == {"attention-layer-0.png", "logit-lens.png", "tokens.html"}
    assert "experts: left out" in capsys.readouterr().err
    assert main(["viz", "entropy", "--text", "A dog", "--out", str(tmp_path / "out")]) == 1
    assert "found a dense model" in capsys.readouterr().err


class Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.depth, self.text, self.open = 0, "", 0
        self.stack: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag != "meta":
            self.stack.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_page_holds_the_text_and_no_foreign_markup(tmp_path: Path) -> None:
    text = 'A <script>alert("x")</script> & more\nlines'
    (path,) = draw("page", "--text", text, "--best", "2", out=tmp_path / "out")
    content = path.read_text(encoding="utf-8")
    assert "<script" not in content and "http" not in content.replace("http-equiv", "")
    reader = Reader()
    reader.feed(content)
    assert reader.stack == []
    bare = re.sub(r'<span class="more">.*?</span>', "", content, flags=re.DOTALL)
    shown = Reader()
    shown.feed(bare.split("<div>")[1].split("</div>")[0])
    assert shown.text.strip() == text


def test_labels_can_be_seen() -> None:
    assert printable(" a\n") == "␣a\\n"
    assert printable("\x00\t$") == "U+0000\\t$"
    assert printable("") == "∅"
    assert printable("ü日ก") == "üU+65E5U+0E01", "of no glyph the code point"
    assert printable(" " * 30, 5) == "␣␣␣␣…"


def test_bytes_that_are_no_character_are_named() -> None:
    from gptoss.train.data import load_tokenizer

    tokenizer = load_tokenizer(NANO)
    names = viz.token_names(tokenizer, tokenizer.encode("a 日"))
    assert names == ["a", " ", "\\xe6", "\\x97", "\\xa5"]
    assert viz.token_name(tokenizer, tokenizer.special["<|endoftext|>"]) == "<|endoftext|>"


def test_too_much_text_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = AttentionMap(0, 0, np.zeros((600, 600), np.float32), np.zeros(600, np.float32), None)
    with pytest.raises(Error, match="at most 512 tokens for this picture, found 600"):
        viz.draw_attention([one], ["a"] * 600)
    assert main(["viz", "lens", "--text", "a b c " * 40, "--out", str(tmp_path)]) == 1
    assert "at most 48 tokens" in capsys.readouterr().err
    assert main(["viz", "page", "--text", "word " * 2000, "--out", str(tmp_path)]) == 1
    assert "at most 1024, the context" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["attention", "./no/such"], "expected a folder or a file, found nothing at no/such"),
        (["attention", "--text", ""], "at least one token"),
        (["attention", "--text", "a", "--file", "b"], "found both"),
        (["attention", "--layer", "9"], "--layer: expected 0 to 3, found 9"),
        (["attention", "--head", "9"], "--head: expected 0 to 7, found 9"),
        (["page", "--best", "-1"], "best: expected 0 or more"),
        (["page", "--out", "a.png"], "--out: expected a name that ends in .html"),
        (["lens", "--out", "a.html"], "--out: expected a name that ends in .png or .svg"),
        (["attention", "--out", "a.png"], "--out: expected a folder for attention-layer-0"),
        (["curves"], "expected what `gptoss train` writes"),
        (["statistics"], "statistics_every"),
    ],
)
def test_clear_errors(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["viz", "--out", "out", *arguments]) == 1
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [], "nothing was written"


def test_other_formats_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Error, match=r"ends in .png or .svg, found '.gif'"):
        viz.save(new_figure(1, 1), tmp_path / "a.gif")
