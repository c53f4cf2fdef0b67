"""The loop: it learns, adds up what it should, looks at itself, stops at nonsense."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from gptoss.errors import Error
from gptoss.model.config import ModelConfig
from gptoss.train import data
from gptoss.train.model.architecture import Architecture
from gptoss.train.model.model import GptOss
from gptoss.train.run.evaluation import evaluate
from gptoss.train.run.sampling import sample
from gptoss.train.run.schedule import learning_rate
from gptoss.train.run.settings import Settings
from gptoss.train.run.state import CHECKPOINT_FILE, LOG_FILE, STATISTICS_FILE
from gptoss.train.run.trainer import Diverged, Trainer

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
    architecture: Architecture | ModelConfig, prepared: Path, out: Path, **changes: Any
) -> Trainer:
    settings = dataclasses.replace(QUICK, **{"texts": "stories:2", **changes})
    return Trainer(architecture, settings, prepared, out)


def weights(run: Trainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in run.model.named_parameters()}


def test_parts_of_a_step_add_up(small_config: ModelConfig, prepared: Path, tmp_path: Path) -> None:
    """Accumulation changes the order of additions and nothing else, in every step of the run.

    The balance loss is formed within each part, so it is left out here.
    """
    one = trainer(small_config, prepared, tmp_path / "one", balance=0.0)
    other = trainer(small_config, prepared, tmp_path / "other", balance=0.0, micro_tokens=32)
    for _ in range(9):
        expected, found = one.train_step(), other.train_step()
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        assert found["norm"] == pytest.approx(expected["norm"], rel=1e-3)


def test_checkpointing_changes_nothing(
    small_config: ModelConfig, prepared: Path, tmp_path: Path
) -> None:
    """Not even dropout, whose draws are repeated."""
    architecture = Architecture(small_config, dropout=0.2)
    plain = trainer(architecture, prepared, tmp_path / "plain")
    again = trainer(architecture, prepared, tmp_path / "again", checkpointing=True)
    for _ in range(3):
        expected, found = plain.train_step(), again.train_step()
        assert (found["loss"], found["norm"]) == (expected["loss"], expected["norm"])


def test_compiled_parts_compute_the_same(
    small_config: ModelConfig, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced and differentiated by the compiler, but run without its C++, which takes a minute."""
    compile_module = torch.nn.Module.compile
    compiled = []

    def quick(self: torch.nn.Module) -> None:
        compiled.append(self)
        compile_module(self, backend="aot_eager")

    monkeypatch.setattr(torch.nn.Module, "compile", quick)
    config = dataclasses.replace(small_config, num_hidden_layers=1)
    plain = trainer(config, prepared, tmp_path / "plain")
    other = trainer(config, prepared, tmp_path / "compiled", compile=True)
    assert compiled == [block.mlp for block in other.model.blocks()]
    for _ in range(2):
        expected, found = plain.train_step(), other.train_step()
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        assert found["norm"] == pytest.approx(expected["norm"], rel=1e-4)


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
    layers = records[-1]["load"]
    assert len(layers) == 2
    assert all(sum(layer) == pytest.approx(1, abs=1e-4) for layer in layers)
    assert max(map(max, layers)) == pytest.approx(records[-1]["load_max"], abs=1e-5)
    assert records[-1]["sample"].startswith("Once upon a time")
    assert all(r["mfu"] > 0 and r["tokens_per_s"] > 0 for r in records)


def test_a_dense_model_has_no_load(
    small_config: ModelConfig, prepared: Path, tmp_path: Path
) -> None:
    dense = Architecture(
        small_config, positions="learned", norm="layer", feed_forward="gelu", tied_embeddings=True
    )
    records = trainer(dense, prepared, tmp_path).run(quiet=True)
    assert records[-1]["loss"] < records[0]["loss"] - 0.5
    assert not {"balance", "z", "load", "load_max"} & set(records[-1])
    again = trainer(dense, prepared, tmp_path, steps=14)  # tied weights come back too
    assert again.model.unembedding.weight is again.model.embedding.weight
    assert again.run(quiet=True)[-1]["step"] == 14


def test_z_loss_pulls_router_logits_down(
    small_config: ModelConfig, prepared: Path, tmp_path: Path
) -> None:
    ends = []
    for weight in (0.0, 1.0):
        out = tmp_path / str(weight)
        run = trainer(small_config, prepared, out, steps=20, z_loss=weight, validate_every=20)
        ends.append(run.run(quiet=True)[-1]["z"])
    assert ends[1] < 0.5 * ends[0]


def test_averaged_weights_are_what_is_validated(
    small_config: ModelConfig, prepared: Path, tmp_path: Path
) -> None:
    run = trainer(small_config, prepared, tmp_path, ema=0.5)
    history = []
    for _ in range(5):
        run.train_step()
        history.append(weights(run))
    expected = run.model.state_dict()  # names in order; values replaced below
    start = GptOss(small_config)
    start.initialise(0)
    for name, p in start.named_parameters():
        average = p.detach().clone()
        for taken, values in enumerate(history):
            decay = min(0.5, (1 + taken) / (10 + taken))
            average = decay * average + (1 - decay) * values[name]
        expected[name] = average
        torch.testing.assert_close(run.ema[name], average)
    model = GptOss(small_config)
    model.load_state_dict(expected)
    found = run.validate(0)["stories"]
    assert found == pytest.approx(evaluate(model, run.validation_rows("stories"))[0], rel=1e-5)
    for name, tensor in weights(run).items():
        assert torch.equal(tensor, history[-1][name]), "training goes on with its own weights"


def test_statistics_are_those_of_the_weights(
    small_config: ModelConfig, prepared: Path, tmp_path: Path
) -> None:
    run = trainer(small_config, prepared, tmp_path, statistics_every=2)
    run.train_step()
    before = weights(run)
    record = run.train_step()
    (line,) = (tmp_path / STATISTICS_FILE).read_text().splitlines()
    found = json.loads(line)
    assert found["step"] == 2
    assert set(found["parameters"]) == set(before)
    total = 0.0
    for name, figures in found["parameters"].items():
        values = before[name].flatten()
        assert figures["norm"] == pytest.approx(values.norm().item(), rel=1e-5)
        assert figures["rms"] == pytest.approx(values.square().mean().sqrt().item(), rel=1e-5)
        assert figures["max"] == values.abs().max().item()
        assert figures["quantiles"][4] == pytest.approx(values.quantile(0.5).item())
        assert sorted(figures["quantiles"]) == figures["quantiles"]
        total += figures["grad_norm"] ** 2
    assert math.sqrt(total) == pytest.approx(record["norm"], rel=1e-5)


@pytest.mark.parametrize("harm", ["nan", "spike"])
def test_nonsense_stops_the_run(
    small_config: ModelConfig, prepared: Path, tmp_path: Path, harm: str
) -> None:
    run = trainer(small_config, prepared, tmp_path, steps=60, spike=1.5)
    run.run(until=24, quiet=True)
    saved = (tmp_path / CHECKPOINT_FILE).read_bytes()
    with torch.no_grad():
        if harm == "nan":
            run.model.block[1].attn.out.bias[0] = math.nan  # type: ignore[union-attr,index]
        else:
            run.model.unembedding.weight.mul_(100)
    message = {"nan": "step 25: loss nan", "spike": r"step 25: loss \d+\.\d+ after a mean of \d"}
    with pytest.raises(Diverged, match=message[harm] + ".*good state, of step 24, .*learning_rate"):
        run.run(quiet=True)
    assert (tmp_path / CHECKPOINT_FILE).read_bytes() == saved
    again = trainer(small_config, prepared, tmp_path, steps=60, spike=1.5, learning_rate=1e-3)
    assert again.run(until=26, quiet=True)[-1]["step"] == 26


def test_stopping_from_outside_saves(
    small_config: ModelConfig, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trainer(small_config, prepared, tmp_path)
    take = run.train_step

    def train_step() -> dict[str, Any]:
        run.stopping = run.step == 4
        return take()

    monkeypatch.setattr(run, "train_step", train_step)
    assert run.run(quiet=True)[-1]["step"] == 5
    assert trainer(small_config, prepared, tmp_path).step == 5


@pytest.mark.parametrize("schedule", ["cosine", "constant", "wsd"])
def test_learning_rate(schedule: str) -> None:
    s = dataclasses.replace(
        QUICK, steps=100, warmup=10, final_learning_rate=0.1, schedule=schedule, decay_from=0.6
    )
    rates = [learning_rate(step, s) for step in range(101)]
    high, low = s.learning_rate, s.learning_rate * 0.1
    assert rates[:10] == pytest.approx([high * n / 10 for n in range(1, 11)])
    assert rates[10] == high == max(rates)
    falls = {"cosine": 10, "constant": 100, "wsd": 60}[schedule]
    assert all(rate == high for rate in rates[10 : falls + 1])
    assert all(a > b > 0 for a, b in itertools.pairwise(rates[falls:]))
    if schedule != "constant":
        assert rates[100] == pytest.approx(low)
    middle = {"cosine": (high + low) / 2, "wsd": low + (high - low) * (1 - math.sqrt(0.5))}
    if schedule in middle:
        assert rates[{"cosine": 55, "wsd": 80}[schedule]] == pytest.approx(middle[schedule])
    for short in (Settings(steps=1, warmup=1), Settings(steps=5, warmup=0)):
        short = dataclasses.replace(short, schedule=schedule)
        assert all(learning_rate(n, short) > 0 for n in range(short.steps))


def test_decay_is_for_matrices(small_config: ModelConfig, prepared: Path, tmp_path: Path) -> None:
    run = trainer(Architecture(small_config, positions="learned"), prepared, tmp_path)
    names = {id(p): name for name, p in run.model.named_parameters()}
    decayed, rest = (
        {names[id(p)] for p in group["params"]} for group in run.optimizer.param_groups
    )
    assert {"block.0.mlp.mlp1_weight", "block.1.attn.qkv.weight", "unembedding.weight"} <= decayed
    assert {"embedding.weight", "positions.weight", "block.0.mlp.mlp1_bias"} <= rest
    assert {"block.0.attn.sinks", "norm.scale"} <= rest
    assert len(decayed) + len(rest) == len(names)


def test_a_model_to_begin_with(small_config: ModelConfig, prepared: Path, tmp_path: Path) -> None:
    model = GptOss(small_config)
    model.initialise(7)
    settings = dataclasses.replace(QUICK, dtype="bfloat16")
    run = Trainer(small_config, settings, prepared, tmp_path, model=model)
    assert run.model is model
    assert model.compute_dtype == torch.bfloat16
    other = Architecture(small_config, norm="layer")
    with pytest.raises(Error, match="model: expected one of"):
        Trainer(other, settings, prepared, tmp_path / "other", model=model)


def test_text_without_held_out_documents(
    small_config: ModelConfig, stories: Path, tmp_path: Path
) -> None:
    data.prepare([stories], tmp_path / "data", vocab_size=320, validation=0, near_duplicates=0)
    run = trainer(small_config, tmp_path / "data", tmp_path / "run")
    records = run.run(quiet=True)
    assert run.validated == []
    assert not any("validation" in r for r in records)
    assert "sample" in records[-1]


def test_evaluation_is_a_mean_over_tokens(
    small_config: ModelConfig, prepared: Path, tmp_path: Path
) -> None:
    run = trainer(small_config, prepared, tmp_path)
    rows = run.validation_rows("stories")
    total, tokens = 0.0, 0
    run.model.eval()
    for batch in rows.sequential(1):
        logits = run.model.logits(
            *(torch.from_numpy(a) for a in (batch.tokens, batch.positions, batch.documents))
        )
        counted = torch.from_numpy(batch.targets >= 0)
        logp = logits.log_softmax(-1)[counted]
        targets = torch.from_numpy(batch.targets)[counted]
        total -= logp.gather(1, targets[:, None]).sum().item()
        tokens += len(targets)
    found, counted_tokens = evaluate(run.model, rows, count=3)
    assert counted_tokens == tokens
    assert found == pytest.approx(total / tokens, rel=1e-5)
    first, some = evaluate(run.model, rows, count=3, limit=2)
    again, same = evaluate(run.model, rows, count=1, limit=2)
    assert some == same < tokens
    assert first == pytest.approx(again, rel=1e-6)


def test_samples_end_where_they_should(small_config: ModelConfig) -> None:
    model = GptOss(small_config)
    model.initialise(1)
    ids = [1, 2, 3]
    drawn = sample(model, ids, 20, stop=(), seed=5)
    assert len(drawn) == 20
    assert sample(model, ids, 20, stop=(), seed=5) == drawn != sample(model, ids, 20, (), seed=6)
    assert sample(model, ids, 20, stop={drawn[9]}, seed=5) == drawn[: drawn.index(drawn[9])]
    assert len(sample(model, ids * 42, 4, stop=(), seed=5)) == 4  # past the context of 128
    greedy = sample(model, ids, 1, stop=(), temperature=0)
    assert greedy == [int(model.logits(torch.tensor([ids]))[0, -1].argmax())]


def test_log_and_tokenizer_lie_in_the_run(
    small_config: ModelConfig, prepared: Path, tmp_path: Path
) -> None:
    run = trainer(small_config, prepared, tmp_path)
    records = run.run(quiet=True)
    logged = [json.loads(line) for line in (tmp_path / LOG_FILE).read_text().splitlines()]
    assert logged == records
    assert list(logged[0])[:3] == ["step", "loss", "rate"]
    text = "Once upon a time there was a bear."
    assert data.load_tokenizer(tmp_path).encode(text) == run.data.tokenizer.encode(text)
