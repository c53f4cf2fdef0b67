"""The numbers behind each picture, against independent computations."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from gptoss import viz
from gptoss.errors import Error
from gptoss.model.config import ModelConfig
from gptoss.train.model.architecture import Architecture
from gptoss.train.model.model import GptOss
from gptoss.train.run.logs import Logs, distribution
from gptoss.viz.curves import smoothed
from gptoss.viz.statistics import BANDS, MEDIAN, layer_of, matrices
from gptoss.viz.trace import Trace, trace

CONFIG = ModelConfig(
    num_hidden_layers=2,
    num_experts=4,
    experts_per_token=2,
    vocab_size=50,
    hidden_size=32,
    intermediate_size=32,
    head_dim=16,
    num_attention_heads=4,
    num_key_value_heads=2,
    sliding_window=6,
    initial_context_length=64,
    rope_scaling_factor=1.0,
)
IDS = [int(x) for x in np.random.default_rng(0).integers(0, 50, 20)]


@pytest.fixture(scope="module")
def model() -> GptOss:
    net = GptOss(CONFIG)
    net.initialise(0)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith(("bias", "sinks")) or "gate" in name:
                parameter.normal_(0, 0.5, generator=torch.Generator().manual_seed(len(name)))
    return net


@pytest.fixture(scope="module")
def looked(model: GptOss) -> Trace:
    return trace(model, IDS)


def by_hand(model: GptOss, chosen: list[list[list[int]]]) -> Trace:
    """A trace with this routing, [L][S][k], and logits that prefer nothing."""
    routing = np.array(chosen)
    shape = (*routing.shape[:2], 4)
    whole = trace(model, IDS[: routing.shape[1]])
    return dataclasses.replace(
        whole,
        chosen=routing,
        router_logits=np.zeros(shape, np.float32),
        expert_weights=np.full(routing.shape, 0.5, np.float32),
    )


def test_attention_and_sinks_are_shares_of_one(model: GptOss, looked: Trace) -> None:
    maps = viz.attention_maps(looked, model.architecture)
    assert [(m.layer, m.head) for m in maps] == [(n, h) for n in range(2) for h in range(4)]
    for one in maps:
        np.testing.assert_allclose(one.weights.sum(1) + one.sink, 1, rtol=1e-5)
        assert (one.sink > 0).all()
    (single,) = viz.attention_maps(looked, model.architecture, 1, 3)
    assert (single.layer, single.head, single.window) == (1, 3, None)


def test_attention_is_softmax_of_products(model: GptOss, looked: Trace) -> None:
    """The first layer again, in NumPy and float64."""
    p = {name: value.detach().double().numpy() for name, value in model.named_parameters()}
    x = p["embedding.weight"][IDS]
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)
    qkv = x @ p["block.0.attn.qkv.weight"].T + p["block.0.attn.qkv.bias"]
    q, k = qkv[:, :64].reshape(20, 4, 16), qkv[:, 64:96].reshape(20, 2, 16)
    angle = np.arange(20)[:, None] * 150_000.0 ** (-np.arange(8) / 8)
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]

    def turn(t: np.ndarray) -> np.ndarray:
        a, b = t[..., :8], t[..., 8:]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    q, k = turn(q), turn(k)
    for head in range(4):
        scores = q[:, head] @ k[:, head // 2].T / 4
        far = np.arange(20)[:, None] - np.arange(20)
        e = np.where((far >= 0) & (far < 6), np.exp(scores), 0)
        total = e.sum(1) + np.exp(p["block.0.attn.sinks"][head])
        (one,) = viz.attention_maps(looked, model.architecture, 0, head)
        np.testing.assert_allclose(one.weights, e / total[:, None], atol=1e-5)


def test_window_edge_is_left_of_the_first_key_seen(model: GptOss, looked: Trace) -> None:
    (one,) = viz.attention_maps(looked, model.architecture, 0, 0)
    assert one.window == 6
    x, y = one.edge()
    for query in range(6, 20):
        places = x[(y > query - 0.6) & (y < query + 0.6)]
        assert query - 6 + 1 - 0.5 in places
        assert (one.weights[query, : query - 5] == 0).all()
        assert one.weights[query, query - 5] > 0
    (full,) = viz.attention_maps(looked, model.architecture, 1, 0)
    assert len(full.edge()[0]) == 0


@pytest.mark.parametrize(("layer", "head"), [(2, 0), (-1, 0), (0, 4)])
def test_heads_that_are_not_there(model: GptOss, looked: Trace, layer: int, head: int) -> None:
    with pytest.raises(Error, match="expected 0 to"):
        viz.attention_maps(looked, model.architecture, layer, head)


def test_load_and_coactivation_of_a_routing_made_by_hand(model: GptOss) -> None:
    made = by_hand(model, [[[0, 1], [1, 0], [2, 1]], [[3, 2], [3, 2], [3, 2]]])
    np.testing.assert_allclose(viz.expert_load(made), [[2 / 6, 3 / 6, 1 / 6, 0], [0, 0, 0.5, 0.5]])
    both = viz.coactivation(made)
    assert both[0].tolist() == [[2, 2, 0, 0], [2, 3, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
    assert both[1].tolist() == [[0] * 4, [0] * 4, [0, 0, 3, 3], [0, 0, 3, 3]]
    assert viz.routing(made, 0).tolist() == [[0.5, 0.5, 0, 0], [0.5, 0.5, 0, 0], [0, 0.5, 0.5, 0]]


def test_load_is_what_the_model_counts(model: GptOss, looked: Trace) -> None:
    _, routing = model.hidden(torch.tensor([IDS]))
    for layer, one in enumerate(routing):
        np.testing.assert_allclose(viz.expert_load(looked)[layer], one.load / one.load.sum())
    np.testing.assert_array_equal(
        viz.coactivation(looked), viz.coactivation(looked).transpose(0, 2, 1)
    )
    np.testing.assert_allclose(viz.routing(looked, 1).sum(1), 1, rtol=1e-5)


def test_entropy(model: GptOss, looked: Trace) -> None:
    even = by_hand(model, [[[0, 1]] * 3] * 2)
    np.testing.assert_allclose(viz.router_entropy(even), math.log(4), rtol=1e-6)
    assert even.router_logits is not None and looked.router_logits is not None
    sure = dataclasses.replace(even, router_logits=even.router_logits + [1000.0, 0, 0, 0])
    np.testing.assert_allclose(viz.router_entropy(sure), 0, atol=1e-12)
    p = np.exp(looked.router_logits.astype(float))
    p /= p.sum(-1, keepdims=True)
    np.testing.assert_allclose(viz.router_entropy(looked), -(p * np.log(p)).sum(-1), rtol=1e-6)


def test_dense_models_have_no_experts() -> None:
    dense = GptOss(Architecture(CONFIG, feed_forward="gelu"))
    dense.initialise(0)
    with pytest.raises(Error, match="found a dense model"):
        viz.expert_load(trace(dense, IDS))


def test_lens_ends_with_the_models_own_answer(model: GptOss, looked: Trace) -> None:
    found = viz.logit_lens(model, looked)
    logits = looked.logits.astype(np.float64)
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_array_equal(found.top[-1], p.argmax(-1))
    np.testing.assert_allclose(found.probability[-1], p.max(-1), rtol=1e-5)
    np.testing.assert_allclose(found.target[-1], p[np.arange(19), IDS[1:]], rtol=1e-5)
    first = looked.residuals[0].astype(np.float64)  # the embedding, through norm and unembedding
    first /= np.sqrt((first**2).mean(-1, keepdims=True) + 1e-5)
    weight = model.unembedding.weight.detach().double().numpy()
    np.testing.assert_array_equal(found.top[0], (first @ weight.T).argmax(-1))


def test_token_probabilities(looked: Trace) -> None:
    views = viz.token_views(looked.tokens, looked.logits, best=3)
    logits = looked.logits.astype(np.float64)
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    assert views[0].probability is None and views[0].bits is None
    for place, view in enumerate(views[1:]):
        expected = p[place, IDS[place + 1]]
        assert view.probability == pytest.approx(expected, rel=1e-9)
        assert view.bits == pytest.approx(-math.log2(expected), rel=1e-9)
        assert view.rank == 1 + (p[place] > expected).sum()
        assert [token for token, _ in view.alternatives] == np.argsort(-p[place])[:3].tolist()
    mean = -np.log2(p[np.arange(19), IDS[1:]]).mean()
    assert viz.bits_per_token(views) == pytest.approx(mean, rel=1e-9)


def test_curve_is_what_the_log_says(tmp_path: Path) -> None:
    records = [
        {"step": n, "tokens": 100 * n, "seconds": 0.5 * n, "loss": 5 / n}
        | ({"validation": {"a": 4.0 - n, "b": 1.0}} if n % 2 == 0 else {})
        for n in range(1, 5)
    ]
    lines = [json.dumps(r) for r in [records[0], {"resumed_after": 1}, *records[1:]]]
    (tmp_path / "log.jsonl").write_text("\n".join(lines) + '\n{"step": 5, "lo')
    curve = viz.read_curve(tmp_path)
    assert curve.loss.tolist() == [5, 2.5, 5 / 3, 1.25]
    assert curve.along("tokens").tolist() == [100, 200, 300, 400]
    assert curve.along("seconds").tolist() == [0.5, 1, 1.5, 2]
    rows, losses = curve.validation["a"]
    assert curve.step[rows].tolist() == [2, 4] and losses.tolist() == [2, 0]
    pairs = [5, 3.75, (2.5 + 5 / 3) / 2, (5 / 3 + 1.25) / 2]
    np.testing.assert_allclose(smoothed(curve.loss, 2), pairs, rtol=1e-12)
    with pytest.raises(Error, match="x: expected one of tokens"):
        curve.along("epochs")


def test_curve_of_a_fine_tuning_begins_before_its_first_step(tmp_path: Path) -> None:
    records = [
        {"step": 0, "validation": {"held out": 3.0, "accuracy": 0.5, "margin": -1.0}},
        {"step": 1, "tokens": 64, "seconds": 2, "loss": 2.0, "margin": 0.1, "accuracy": 0.6},
        {"step": 2, "tokens": 128, "seconds": 4, "loss": 1.0, "margin": 0.2, "accuracy": 0.7},
    ]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    curve = viz.read_curve(tmp_path)
    assert curve.step.tolist() == [0, 1, 2] and curve.tokens.tolist() == [0, 64, 128]
    assert np.isnan(curve.loss[0]) and curve.loss[1:].tolist() == [2, 1]
    assert list(curve.validation) == ["held out"], "shares and margins are no losses"
    (axes,) = viz.draw_curves([curve], "step").axes
    assert axes.get_ylabel() == "loss (nats per pair)"
    training, held_out = axes.get_lines()
    assert training.get_xydata().tolist() == [[1, 2], [2, 1]]
    assert held_out.get_xydata().tolist() == [[0, 3]]
    with pytest.raises(Error, match="losses of one kind, found those per pair and per token"):
        viz.draw_curves([curve, dataclasses.replace(curve, counted="token")])


def test_curves_are_drawn_where_the_log_says(tmp_path: Path) -> None:
    records = [{"step": n, "tokens": 10 * n, "seconds": n, "loss": 1 / n} for n in range(1, 101)]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    (axes,) = viz.draw_curves([viz.read_curve(tmp_path)], width=4).axes
    (line,) = axes.get_lines()
    drawn = line.get_xydata()
    assert drawn[:, 0].tolist() == [10 * n for n in range(1, 101)]
    assert drawn[-1, 1] == pytest.approx(sum(1 / n for n in range(97, 101)) / 4)
    assert "mean of 4 steps" in str(line.get_label())


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "log.jsonl: expected what"), ("", "found none"), ("{}\nno\n", "log.jsonl:2"),
     ("[1]\n", "log.jsonl:1"), ('{"step": 1, "loss": "low"}\n', "expected numbers"),
     ('{"step": 1, "loss": 1, "validation": {"a": null}}\n', "expected numbers")],
)  # fmt: skip
def test_logs_that_are_none(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "log.jsonl").write_text(text)
    with pytest.raises(Error, match=message):
        viz.read_curve(tmp_path)


def test_statistics_are_what_the_file_says(tmp_path: Path) -> None:
    def entry(n: int) -> dict[str, object]:
        quantiles = [n * q for q in (-4, -3, -2, -1, 0, 1, 2, 3, 4)]
        return {"rms": n, "quantiles": quantiles, "grad_rms": n / 10, "grad_quantiles": quantiles}

    names = ["block.0.attn.qkv.weight", "block.1.attn.qkv.weight", "norm.scale"]
    with (tmp_path / "statistics.jsonl").open("w") as file:
        for step in (10, 20):
            parameters = {name: entry(step + at) for at, name in enumerate(names)}
            file.write(json.dumps({"step": step, "parameters": parameters}) + "\n")
    found = viz.read_statistics(tmp_path)
    assert found.step.tolist() == [10, 20]
    assert found.rms.tolist() == [[10, 11, 12], [20, 21, 22]]
    assert found.grad_rms[1].tolist() == [2.0, 2.1, 2.2]
    assert found.quantiles[1, 2].tolist() == [-88, -66, -44, -22, 0, 22, 44, 66, 88]
    assert matrices(found) == {"attn.qkv.weight": [0, 1]}
    assert [layer_of(name) for name in names] == [0, 1, None]
    with pytest.raises(Error, match="statistics_every"):
        viz.read_statistics(tmp_path / "other")


@pytest.mark.parametrize("text", ["", "{}\n", '{"step": 1, "parameters": {"a": 1}}\n'])
def test_statistics_that_are_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "statistics.jsonl").write_text(text)
    with pytest.raises(Error, match="statistics.jsonl: expected statistics"):
        viz.read_statistics(tmp_path)


def test_quantiles_are_those_the_trainer_writes(tmp_path: Path) -> None:
    """The bands of the picture are the 5th, 25th, 75th and 95th per cent of known numbers."""
    weights, gradients = torch.arange(101.0), torch.arange(101.0) / 10
    entry = distribution(weights) | {
        f"grad_{key}": value for key, value in distribution(gradients).items()
    }
    logs = Logs(tmp_path, 0)
    for step in (1, 2):
        logs.statistics(step, {"block.0.attn.qkv.weight": entry})
    found = viz.read_statistics(tmp_path)
    assert found.rms[0, 0] == pytest.approx(math.sqrt((weights**2).mean()))
    cuts = found.quantiles[0, 0]
    assert [cuts[at] for band in BANDS for at in band] == [5, 95, 25, 75] and cuts[MEDIAN] == 50
    np.testing.assert_allclose(found.grad_quantiles[1, 0], cuts / 10, rtol=1e-6)
    left, right = viz.draw_distributions(found).axes
    assert (left.get_ylabel(), right.get_ylabel()) == ("weight", "gradient")
    assert left.get_xlabel() == right.get_xlabel() == "optimizer steps"
    (line,) = left.get_lines()
    assert line.get_xydata().tolist() == [[1, 50], [2, 50]]


def test_page_shows_the_probabilities(looked: Trace) -> None:
    """What stands in the HTML, against softmax in NumPy."""
    content = viz.page(viz.token_views(looked.tokens, looked.logits, best=2), str)
    logits = looked.logits.astype(np.float64)
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    found = re.findall(
        r'<span class="more">p (\S+)  (\S+) bits  rank (\d+)\n(\S+)  (\d+)\n', content
    )
    assert len(found) == 19
    for place, (shown, bits, rank, best, top) in enumerate(found):
        q = p[place, IDS[place + 1]]
        assert float(shown) == pytest.approx(q, abs=6e-5)
        assert float(bits) == pytest.approx(-math.log2(q), abs=6e-3)
        assert int(rank) == 1 + (p[place] > q).sum() and int(top) == p[place].argmax()
        assert float(best) == pytest.approx(p[place].max(), abs=6e-5)


def test_the_darker_the_more_surprising() -> None:
    """Probabilities 1/2 … 1/2^14 by hand: the ground darkens with each, and stops at 12 bits."""
    views = [viz.TokenView(0, 2.0**-n, 2, []) for n in range(15)]
    grounds = [
        int(x)
        for x in re.findall(r'tabindex="0" style="background:rgb\((\d+)', viz.page(views, str))
    ]
    assert grounds[0] == 255 and grounds == sorted(grounds, reverse=True)
    assert len(set(grounds[:13])) == 13 and len(set(grounds[12:])) == 1


def test_logits_of_other_tokens_are_refused(looked: Trace) -> None:
    with pytest.raises(Error, match="logits: expected 3 rows, one per token, found 20"):
        viz.token_views([1, 2, 3], looked.logits)
