"""From the trainer to checkpoints and back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from gptoss.checkpoint.files import open_checkpoint
from gptoss.checkpoint.write import write_checkpoint
from gptoss.cli import main
from gptoss.errors import Error
from gptoss.model import mxfp4
from gptoss.model.config import ModelConfig
from gptoss.train.data import load_tokenizer, open_data, prepare
from gptoss.train.export import REPORT_FILE, export
from gptoss.train.model.architecture import Architecture
from gptoss.train.model.convert import from_source, rounded, to_source
from gptoss.train.model.model import GptOss
from gptoss.train.model.quantize import round_mxfp4, straight_through
from gptoss.train.run.evaluation import evaluate
from gptoss.train.run.trainer import Trainer
from gptoss.train.weights import load_model, load_run

from .test_trainer import QUICK


@pytest.fixture
def model(small_config: ModelConfig) -> GptOss:
    net = GptOss(small_config)
    net.initialise(3)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith(("bias", "sinks")):
                parameter.normal_(generator=torch.Generator().manual_seed(len(name)))
    return net


@pytest.mark.parametrize(
    ("layout", "experts"),
    [("original", "mxfp4"), ("huggingface", "mxfp4"), ("huggingface-bf16", "bf16")],
)
def test_written_checkpoint_holds_the_rounded_model(
    model: GptOss, tmp_path: Path, layout: str, experts: str
) -> None:
    write_checkpoint(to_source(model, experts), tmp_path / "out", layout)
    expected = rounded(model, experts)
    with open_checkpoint(tmp_path / "out") as source:
        assert source.config == model.config
        found = from_source(source)
    for (name, a), b in zip(found.named_parameters(), expected.parameters(), strict=True):
        assert torch.equal(a, b), name
    tokens = torch.arange(40)[None]
    with torch.no_grad():
        assert torch.equal(found.logits(tokens), expected.logits(tokens))


def test_rounding_twice_changes_nothing(model: GptOss) -> None:
    once = rounded(model)
    for a, b in zip(once.parameters(), rounded(once).parameters(), strict=True):
        assert torch.equal(a, b)


def test_rounding_in_training_is_that_of_export() -> None:
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(8, 64, 96, generator=generator)
    w *= torch.exp(3 * torch.randn(8, 64, 1, generator=generator))
    w[0, 0] = 0
    w[0, 1, :40] = 2.0**-3
    ties = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 7.0])
    w[1, 0, :32] = torch.cat([ties, -ties, ties, -ties])
    expected = mxfp4.dequantize(*mxfp4.quantize(w.numpy(), "mse"))
    assert torch.equal(round_mxfp4(w), torch.from_numpy(expected))


def test_straight_through_gradient_is_the_identity() -> None:
    w = torch.randn(4, 64, requires_grad=True)
    grad = torch.randn(4, 64)
    rounded_w = straight_through(w)
    torch.testing.assert_close(rounded_w, round_mxfp4(w.detach()), rtol=1e-6, atol=1e-7)
    assert torch.equal(torch.autograd.grad((rounded_w * grad).sum(), w)[0], grad)


@pytest.fixture(scope="module")
def trained(small_config: ModelConfig, prepared: Path, tmp_path_factory) -> Path:  # type: ignore[no-untyped-def]
    """The directory of a short run."""
    out: Path = tmp_path_factory.mktemp("run")
    Trainer(small_config, QUICK, prepared, out).run(quiet=True)
    return out


def test_export_of_a_run(trained: Path, prepared: Path, tmp_path: Path) -> None:
    report = export(trained, tmp_path / "out")
    assert json.loads((trained / REPORT_FILE).read_text())["rule"] == report["rule"]
    assert report["tokens_seen"] == 12 * 128
    model, _ = load_run(trained)
    plain = report["float32"]["all"]
    data = open_data(prepared)
    rows = data.rows("validation", 128, shuffle=False)
    mean, count = evaluate(model, rows)
    assert plain["tokens"] == count
    assert plain["nats_per_token"] == pytest.approx(mean, rel=1e-6)
    assert plain["bits_per_byte"] == pytest.approx(
        mean / np.log(2) / data.bytes_per_token("validation"), rel=1e-6
    )
    for stage in ("bf16", "mx", "mse"):
        assert report[stage]["all"]["nats_per_token"] == pytest.approx(
            plain["nats_per_token"], rel=0.02
        )
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        "config.json",
        "model.safetensors",
        "tokenizer.tiktoken",
        "tokenizer_config.json",
    }
    said = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert said["conversation_format"] == "none"
    with open_checkpoint(tmp_path / "out") as source:
        assert source.config.eos_token_ids == model.config.eos_token_ids != ()
        for a, b in zip(
            from_source(source).parameters(),
            rounded(model, rule=report["rule"]).parameters(),
            strict=True,
        ):
            assert torch.equal(a, b)


@pytest.mark.parametrize("layout", ["original", "hf", "hf-bf16"])
def test_command_line(
    trained: Path, tmp_path: Path, layout: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["export", str(trained), str(out), "--layout", layout, "--rows", "2"]) == 0
    printed = capsys.readouterr().out
    assert "float32" in printed and ("rule mse" in printed) == (layout != "hf-bf16")
    with open_checkpoint(out) as source:
        assert source.layout == {"hf": "huggingface", "hf-bf16": "huggingface-bf16"}.get(
            layout, layout
        )
    model, directory = load_model(out)
    run, place = load_model(trained)
    assert directory == out and place == trained
    rule = json.loads((trained / REPORT_FILE).read_text())["rule"]
    expected = rounded(run, "mxfp4", rule) if rule else rounded(run, "bf16")
    for a, b in zip(model.parameters(), expected.parameters(), strict=True):
        assert torch.equal(a, b)


def test_export_without_the_data(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lonely = tmp_path / "run"
    lonely.mkdir()
    for file in trained.iterdir():
        (lonely / file.name).write_bytes(file.read_bytes())
    state = torch.load(lonely / "state.pt", weights_only=True)
    torch.save({**state, "data": str(tmp_path / "gone")}, lonely / "state.pt")
    assert main(["export", str(lonely), str(tmp_path / "out")]) == 0
    assert "not measured" in capsys.readouterr().out
    assert load_tokenizer(tmp_path / "out").encode("a cat")


def test_export_says_what_is_wrong(
    trained: Path, stories: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare([stories], tmp_path / "other", vocab_size=330, validation=0.1)
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine").write_text("precious")
    for arguments, message in (
        ([str(tmp_path), str(tmp_path / "out")], "state.pt: expected the state of a run"),
        ([str(trained), str(full)], "full"),
        (
            [str(trained), str(tmp_path / "out"), "--data", str(tmp_path / "other")],
            "expected the data of the run",
        ),
    ):
        assert main(["export", *arguments]) == 1
        assert message in capsys.readouterr().err
    assert (full / "mine").read_text() == "precious"
    assert not (tmp_path / "out").exists()


def test_other_architectures_are_not_exported(
    small_config: ModelConfig, prepared: Path, tmp_path: Path
) -> None:
    architecture = Architecture(small_config, norm="layer", sinks=False)
    Trainer(architecture, QUICK, prepared, tmp_path / "run").run(until=1, quiet=True)
    with pytest.raises(Error, match="found norm 'layer', no sinks"):
        export(tmp_path / "run", tmp_path / "out")
