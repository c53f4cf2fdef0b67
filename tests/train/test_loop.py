"""The loop: it learns, resumes exactly, stops at nonsense."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from gptoss.config import ModelConfig
from gptoss.errors import Error
from gptoss.train.__main__ import main
from gptoss.train.loop import CHECKPOINT_FILE, LOG_FILE, Diverged, Trainer, learning_rate
from gptoss.train.presets import Settings

QUICK = Settings(
    steps=12,
    batch_tokens=128,
    micro_tokens=128,
    length=32,
    long_length=64,
    long_from=0.5,
    quantize_from=0.75,
    learning_rate=5e-3,
    warmup=3,
    dtype="float32",
    validate_every=6,
    validation_rows=2,
    save_every=4,
    sample_tokens=4,
)


def trainer(
    config: ModelConfig, data: Path, out: Path, workers: int = 1, **changes: Any
) -> Trainer:
    settings = dataclasses.replace(QUICK, **changes)
    return Trainer(config, settings, data, [("stories", 2)], out, workers)


def weights(run: Trainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in run.model.named_parameters()}


@pytest.mark.parametrize("stop", [4, 7, 10])  # before, between and after the changes of the run
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_interrupted_run_equals_uninterrupted(
    small_config: ModelConfig, prepared: Path, tmp_path: Path, stop: int, dtype: str
) -> None:
    whole = trainer(small_config, prepared, tmp_path / "whole", dtype=dtype)
    expected = whole.run(quiet=True)
    first = trainer(small_config, prepared, tmp_path / "parts", dtype=dtype)
    records = first.run(until=stop, quiet=True)
    second = trainer(small_config, prepared, tmp_path / "parts", dtype=dtype)
    assert second.step == stop
    records += second.run(quiet=True)
    for key in ("loss", "norm", "balance", "rate", "tokens", "validation", "sample"):
        assert [r.get(key) for r in records] == [r.get(key) for r in expected], key
    for name, tensor in weights(second).items():
        assert torch.equal(tensor, weights(whole)[name]), name
    logged = [json.loads(s) for s in (tmp_path / "parts" / LOG_FILE).read_text().splitlines()]
    assert [r["step"] for r in logged] == list(range(1, 13))


def test_log_goes_back_with_the_state_and_names_changes(
    small_config: ModelConfig, prepared: Path, tmp_path: Path
) -> None:
    run = trainer(small_config, prepared, tmp_path)
    run.run(until=4, quiet=True)
    run.log(run.train_step())  # logged, but stopped before the next save
    again = trainer(small_config, prepared, tmp_path, steps=6, clip=0.5)
    again.run(quiet=True)
    logged = [json.loads(s) for s in (tmp_path / LOG_FILE).read_text().splitlines()]
    assert logged.pop(4) == {"resumed_after": 4, "changed": {"steps": 6, "clip": 0.5}}
    assert [r["step"] for r in logged] == [1, 2, 3, 4, 5, 6]


def test_state_is_replaced_in_one_piece(
    small_config: ModelConfig, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trainer(small_config, prepared, tmp_path)
    run.run(until=4, quiet=True)
    good = (tmp_path / CHECKPOINT_FILE).read_bytes()

    def fail(state: object, file: Any) -> None:
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fail)
    run.train_step()
    with pytest.raises(OSError):
        run.save()
    assert (tmp_path / CHECKPOINT_FILE).read_bytes() == good


@pytest.mark.parametrize("change", [{"micro_tokens": 32}, {"workers": 2}])
def test_parts_of_a_step_add_up(
    small_config: ModelConfig, prepared: Path, tmp_path: Path, change: dict[str, int]
) -> None:
    """Accumulation and workers change the order of additions and nothing else.

    The balance loss is formed within each part, so it is left out here.
    """
    one = trainer(small_config, prepared, tmp_path / "one", balance=0.0)
    other = trainer(small_config, prepared, tmp_path / "other", balance=0.0, **change)
    for _ in range(3):
        expected, found = one.train_step(), other.train_step()
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-4)
        assert found["norm"] == pytest.approx(expected["norm"], rel=1e-3)


def test_loss_falls_and_validation_follows(
    small_config: ModelConfig, prepared: Path, tmp_path: Path
) -> None:
    run = trainer(
        small_config, prepared, tmp_path, steps=80, warmup=5, batch_tokens=256, validate_every=40
    )
    before = run.validate(0)["stories"]
    records = run.run(quiet=True)
    assert before == pytest.approx(math.log(320), rel=0.05)
    assert records[-1]["loss"] < 1.5
    assert records[-1]["validation"]["stories"] < 1.6
    assert all(sum(r["balance"] for r in records[at : at + 10]) < 13 for at in range(20, 80, 10))
    for name, tensor in weights(run).items():
        if name.endswith("sinks"):
            assert tensor.abs().min() > 0, "sinks are trained"


def test_nan_stops_the_run(small_config: ModelConfig, prepared: Path, tmp_path: Path) -> None:
    run = trainer(small_config, prepared, tmp_path)
    run.run(until=4, quiet=True)
    saved = (tmp_path / CHECKPOINT_FILE).read_bytes()
    with torch.no_grad():
        run.model.block[1].attn.out.bias[0] = math.nan
    with pytest.raises(Diverged, match=r"step 4: loss nan.*learning_rate"):
        run.run(quiet=True)
    assert (tmp_path / CHECKPOINT_FILE).read_bytes() == saved


def test_learning_rate() -> None:
    s = dataclasses.replace(QUICK, steps=100, warmup=10, final_learning_rate=0.1)
    rates = [learning_rate(step, s) for step in range(101)]
    assert rates[0] == pytest.approx(s.learning_rate / 10)
    assert rates[10] == s.learning_rate == max(rates)
    assert rates[100] == pytest.approx(s.learning_rate * 0.1)
    assert all(a > b > 0 for a, b in itertools.pairwise(rates[10:]))
    for short in (Settings(steps=1, warmup=1), Settings(steps=5, warmup=0)):
        assert all(learning_rate(n, short) > 0 for n in range(short.steps))


def test_decay_is_for_matrices(small_config: ModelConfig, prepared: Path, tmp_path: Path) -> None:
    run = trainer(small_config, prepared, tmp_path)
    names = {id(p): name for name, p in run.model.named_parameters()}
    decayed, rest = (
        {names[id(p)] for p in group["params"]} for group in run.optimizer.param_groups
    )
    assert {"block.0.mlp.mlp1_weight", "block.1.attn.qkv.weight", "unembedding.weight"} <= decayed
    assert {"embedding.weight", "block.0.mlp.mlp1_bias", "block.0.attn.sinks"} <= rest
    assert len(decayed) + len(rest) == len(names)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"warmup": 13}, "warmup"),
        ({"dtype": "float16"}, "float16"),
        ({"batch_tokens": 100}, "multiple of the row length"),
    ],
)
def test_impossible_settings(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(Error, match=message):
        dataclasses.replace(QUICK, **changes)


def test_another_models_state_is_refused(
    small_config: ModelConfig, prepared: Path, tmp_path: Path
) -> None:
    trainer(small_config, prepared, tmp_path).save()
    other = dataclasses.replace(small_config, intermediate_size=64)
    with pytest.raises(Error, match="intermediate_size: expected 64"):
        trainer(other, prepared, tmp_path)


def test_vocabulary_larger_than_the_model_is_refused(
    small_config: ModelConfig, prepared: Path, tmp_path: Path
) -> None:
    small = dataclasses.replace(small_config, vocab_size=300, eos_token_ids=())
    with pytest.raises(Error, match="vocab_size: expected at least 320"):
        trainer(small, prepared, tmp_path)


def test_command_line_says_what_is_wrong(
    prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["run", "stories", "--data", str(prepared), "--out", str(tmp_path)]
    assert main([*common, "--preset", "giant"]) == 1
    assert main([*common, "--set", "speed=9"]) == 1
    assert main(["run", "stories", "--data", str(tmp_path / "no"), "--out", str(tmp_path)]) == 1
    found = capsys.readouterr().err.splitlines()
    assert "giant" in found[0] and "'speed'" in found[1] and "no" in found[2]
    assert len(found) == 3
