"""From the trainer to checkpoints and back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from gptoss import mxfp4
from gptoss.checkpoint import open_checkpoint, write_checkpoint
from gptoss.config import ModelConfig
from gptoss.train.__main__ import main
from gptoss.train.convert import from_source, rounded, to_source
from gptoss.train.export import REPORT_FILE, export
from gptoss.train.loop import Trainer
from gptoss.train.model import GptOss
from gptoss.train.quantize import round_mxfp4, straight_through

from .test_loop import QUICK


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


def test_export_of_a_run(small_config: ModelConfig, prepared: Path, tmp_path: Path) -> None:
    run = Trainer(small_config, QUICK, prepared, [("stories", 1)], tmp_path / "run")
    run.run(quiet=True)
    report = export(tmp_path / "run", prepared, tmp_path / "out")
    assert json.loads((tmp_path / "run" / REPORT_FILE).read_text())["rule"] == report["rule"]
    assert report["tokens_seen"] == 12 * 128
    plain = report["float32"]["all"]
    assert plain["nats_per_token"] == pytest.approx(run.validate(0)["stories"], rel=0.05)
    for stage in ("bf16", "mx", "mse"):
        assert report[stage]["all"]["nats_per_token"] == pytest.approx(
            plain["nats_per_token"], rel=0.02
        )
    ids = np.fromfile(prepared / "stories.val.bin", np.uint16)
    assert plain["tokens"] == (ids != 319).sum()
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        "config.json",
        "model.safetensors",
        "tokenizer.tiktoken",
        "tokenizer_config.json",
    }
    with open_checkpoint(tmp_path / "out") as source:
        assert source.config.eos_token_ids == (319,)
        for a, b in zip(
            from_source(source).parameters(),
            rounded(run.model, rule=report["rule"]).parameters(),
            strict=True,
        ):
            assert torch.equal(a, b)


def test_export_without_a_run(prepared: Path, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    assert main(["export", str(tmp_path), str(tmp_path / "out"), "--data", str(prepared)]) == 1
    assert "state.pt: expected a run's state" in capsys.readouterr().err
