"""The NumPy reference: against the golden files, and against what can be checked by hand."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gptoss import Error, ModelConfig, reference
from gptoss.checkpoint.files import open_checkpoint
from gptoss.checkpoint.source import ArraySource, TensorSource

GOLDEN = Path(__file__).parents[1] / "golden"
LAYOUTS = ("tiny-a", "tiny-a-hf")
LENGTHS = (1, 5, 48, 160)
PUBLISHED = ModelConfig(
    num_hidden_layers=24,
    num_experts=32,
    vocab_size=201088,
    hidden_size=2880,
    intermediate_size=2880,
    head_dim=64,
    num_attention_heads=64,
    num_key_value_heads=8,
)


@pytest.fixture(scope="module")
def golden() -> Any:
    return np.load(GOLDEN / "tiny-a" / "golden.npz")


@pytest.fixture(scope="module", params=LAYOUTS)
def source(request: pytest.FixtureRequest) -> Iterator[TensorSource]:
    with open_checkpoint(GOLDEN / request.param) as source:
        yield source


@pytest.fixture(scope="module")
def tiny() -> Iterator[TensorSource]:
    with open_checkpoint(GOLDEN / "tiny-a") as source:
        yield source


def distance(found: np.ndarray, expected: np.ndarray) -> float:
    """Relative norm; NaN where anything is NaN, which no `<=` lets pass."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


# Against OpenAI's PyTorch code with every weight and activation in float32.


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("length", LENGTHS)
def test_end_to_end(source: TensorSource, golden: Any, length: int, dtype: Any) -> None:
    logits, hidden = reference.forward(source.config, source, golden[f"tokens_{length}"], dtype)
    assert logits.dtype == hidden.dtype == dtype
    assert distance(logits, golden[f"logits_f32_{length}"]) <= 1e-5
    for layer, expected in enumerate(golden[f"hidden_f32_{length}"]):
        assert distance(hidden[layer], expected) <= 1e-5, f"layer {layer}"


@pytest.mark.parametrize("length", LENGTHS)
def test_layer_by_layer(source: TensorSource, golden: Any, length: int) -> None:
    """Each layer from the golden inputs of that layer, so that errors cannot add up."""
    config = source.config
    x = reference.embed(config, source, golden[f"tokens_{length}"])
    for layer, expected in enumerate(golden[f"hidden_f32_{length}"]):
        found = reference.block(config, source, layer, x)
        assert distance(found, expected) <= 2e-6, f"layer {layer}"
        x = expected
    assert distance(reference.unembed(config, source, x), golden[f"logits_f32_{length}"]) <= 2e-6


@pytest.mark.parametrize("length", LENGTHS)
def test_routing_agreement(
    tiny: TensorSource, golden: Any, length: int, record_property: Any
) -> None:
    """The same experts end to end as from the golden inputs; bf16 inputs flip a few near-ties."""
    config, tokens = tiny.config, golden[f"tokens_{length}"]
    _, hidden = reference.forward(config, tiny, tokens)
    embedded = reference.embed(config, tiny, tokens)
    for layer in range(config.num_hidden_layers):

        def chosen(stream: np.ndarray, layer: int = layer) -> np.ndarray:
            x = stream[layer - 1] if layer else embedded
            return np.sort(reference.routing(config, tiny, layer, x))

        expected = chosen(golden[f"hidden_f32_{length}"])
        np.testing.assert_array_equal(chosen(hidden), expected)
        agreement = np.mean(chosen(golden[f"hidden_bf16_{length}"]) == expected)
        record_property(f"bf16_routing_agreement_layer_{layer}", float(agreement))
        assert agreement >= 0.75


def test_bf16_experts_give_the_same_model(tiny: TensorSource, golden: Any) -> None:
    config = tiny.config
    arrays = {i.name: tiny.tensor(i.name) for i in tiny.tensors() if "mlp1_w" not in i.name}
    arrays = {name: array for name, array in arrays.items() if "mlp2_w" not in name}
    for layer in range(config.num_hidden_layers):
        for matrix in (f"block.{layer}.mlp.mlp1_weight", f"block.{layer}.mlp.mlp2_weight"):
            experts = [tiny.expert(matrix, expert) for expert in range(config.num_experts)]
            arrays[matrix] = np.stack(experts)
    unpacked = ArraySource(config, arrays)
    assert unpacked.expert_dtype == "bf16"
    tokens = golden["tokens_5"]
    np.testing.assert_array_equal(
        reference.forward(config, unpacked, tokens)[0], reference.forward(config, tiny, tokens)[0]
    )


def test_later_tokens_change_nothing_before_them(tiny: TensorSource, golden: Any) -> None:
    tokens = golden["tokens_48"]
    _, whole = reference.forward(tiny.config, tiny, tokens, np.float64)
    _, start = reference.forward(tiny.config, tiny, tokens[:20], np.float64)
    np.testing.assert_allclose(start, whole[:, :20], rtol=1e-9, atol=1e-9)


def test_a_sliding_layer_forgets_at_the_window(tiny: TensorSource, golden: Any) -> None:
    x = golden["hidden_f32_48"][1].astype(np.float64)
    changed = x.copy()
    changed[3] += 1
    window = tiny.config.sliding_window
    for layer, reach in ((2, 3 + window), (3, 48)):
        before = reference.attention_block(tiny.config, tiny, layer, x)
        after = reference.attention_block(tiny.config, tiny, layer, changed)
        differs = np.abs(after - before).max(axis=1) > 1e-9
        assert differs.tolist() == [3 <= t < reach for t in range(48)]


@pytest.mark.parametrize("ids", [[512], [-1], [], [[1, 2]], [0.5], "text"])
def test_wrong_token_ids(tiny: TensorSource, ids: Any) -> None:
    with pytest.raises(Error, match="reference: expected"):
        reference.forward(tiny.config, tiny, ids)


def test_wrong_dtype(tiny: TensorSource) -> None:
    with pytest.raises(Error, match="float32 or float64, found float16"):
        reference.forward(tiny.config, tiny, [1], np.float16)


# Norm and rotary positions.


def test_rms_norm_by_hand() -> None:
    x = np.array([[3.0, 4.0]])
    found = reference.rms_norm(x, np.array([1.0, 2.0]), 0.5)
    np.testing.assert_allclose(found, [[3 / math.sqrt(13), 8 / math.sqrt(13)]])
    zeros = reference.rms_norm(np.zeros((1, 4), np.float32), np.ones(4, np.float32), 1e-5)
    assert zeros.dtype == np.float32 and not zeros.any()


def test_yarn_of_the_published_models() -> None:
    low, high = reference.yarn_bounds(PUBLISHED)
    assert (round(low, 4), round(high, 4)) == (8.0928, 17.3980)
    frequencies, concentration = reference.inverse_frequencies(PUBLISHED)
    assert round(concentration, 5) == 1.34657
    plain = 150000.0 ** (-np.arange(32) / 32)
    np.testing.assert_allclose(frequencies[:9], plain[:9], rtol=1e-14)  # up to pair 8: kept
    np.testing.assert_allclose(frequencies[18:], plain[18:] / 32, rtol=1e-14)  # from 18: slowed
    share = (12 - 8.0928) / (17.3980 - 8.0928)  # not rounded to (12 − 8) / (18 − 8)
    assert frequencies[12] == pytest.approx(plain[12] * (1 - share + share / 32), rel=1e-4)


@pytest.mark.parametrize("factor", [1.0, 0.5])
def test_factor_of_one_is_plain_rope(factor: float) -> None:
    config = dataclasses.replace(PUBLISHED, rope_scaling_factor=factor)
    frequencies, concentration = reference.inverse_frequencies(config)
    assert concentration == 1
    np.testing.assert_array_equal(frequencies, 150000.0 ** -(np.arange(32) / 32))


def test_rope_tables_by_hand() -> None:
    cos, sin = reference.rope_tables(PUBLISHED, np.array([0, 3, 131071]))
    assert cos.shape == sin.shape == (3, 32) and cos.dtype == np.float32
    np.testing.assert_allclose(cos[0], 1.34657, rtol=1e-5)
    assert not sin[0].any()
    assert cos[1, 0] == pytest.approx(1.346574 * math.cos(3), rel=1e-6)
    assert sin[2, 0] == pytest.approx(1.346574 * math.sin(131071), rel=1e-5)


def test_rope_turns_half_split_pairs() -> None:
    x = np.zeros((1, 1, 4))
    x[0, 0] = [1, 0, 0, 1]  # pairs (0, 2) and (1, 3)
    cos, sin = np.cos([[0.3, 0.5]]), np.sin([[0.3, 0.5]])
    found = reference.apply_rope(x, cos, sin)
    np.testing.assert_allclose(found[0, 0], [cos[0, 0], -sin[0, 1], sin[0, 0], cos[0, 1]])


def test_rope_depends_on_the_distance_alone() -> None:
    rng = np.random.default_rng(0)
    q, k = rng.normal(size=(2, 1, 64))
    products = []
    for first, second in ((0, 7), (100, 107), (4000, 4007)):
        cos, sin = reference.rope_tables(PUBLISHED, np.array([first, second]), np.float64)
        turned = reference.apply_rope(np.stack([k, q]), cos, sin)
        products.append(float(turned[0, 0] @ turned[1, 0]))
    np.testing.assert_allclose(products, products[0], rtol=1e-9)


# Attention. Values are one-hot, so that the output is the row of weights.


def weights_of(tokens: int, sink: float, window: int | None, queries: int | None = None) -> Any:
    """Attention weights [queries, tokens] where every visible key has logit 0."""
    zeros, values = np.zeros((tokens, 1, tokens)), np.eye(tokens)[:, None, :]
    q = zeros[tokens - (queries or tokens) :]
    return reference.attention(q, zeros, values, np.array([sink]), window)[:, 0]


@pytest.mark.parametrize("window", [1, 16, 128])
def test_window_boundary(window: int) -> None:
    weights = weights_of(150, -1e9, window)
    for query, row in enumerate(weights):
        first = max(0, query - window + 1)
        expected = np.zeros(150)
        expected[first : query + 1] = 1 / (query + 1 - first)
        np.testing.assert_allclose(row, expected)
    assert np.count_nonzero(weights[-1]) == window


def test_full_layers_are_causal() -> None:
    weights = weights_of(40, -1e9, None)
    np.testing.assert_allclose(weights, np.tril(1 / np.arange(1, 41)[:, None] * np.ones((40, 40))))


def test_sink_takes_mass_and_gives_nothing() -> None:
    weights = weights_of(10, 0.0, None)  # as one more key of logit 0
    np.testing.assert_allclose(weights.sum(axis=1), np.arange(1, 11) / np.arange(2, 12))
    assert weights_of(10, 1e4, None).max() == 0
    # not scaled by 1/√D, as logits are: e^1 beside ten keys of e^0
    np.testing.assert_allclose(weights_of(10, 1.0, None)[-1].sum(), 10 / (10 + math.e))


def test_last_queries_alone() -> None:
    np.testing.assert_array_equal(weights_of(30, 0.0, 8, 5), weights_of(30, 0.0, 8)[-5:])


def test_softmax_by_hand() -> None:
    q = np.array([[[2.0, 0, 0, 0]]])
    k = np.array([[[1.0, 0, 0, 0]], [[3.0, 0, 0, 0]]])  # logits 2·1/√4 = 1 and 2·3/√4 = 3
    v = np.array([[[1.0, 0, 0, 0]], [[0.0, 1, 0, 0]]])
    found = reference.attention(q, k, v, np.array([2.0]))[0, 0]
    total = math.e + math.e**3 + math.e**2
    np.testing.assert_allclose(found, [math.e / total, math.e**3 / total, 0, 0])


def test_query_heads_share_key_value_heads() -> None:
    """Four query heads in a row read one key/value head, each with its own sink."""
    rng = np.random.default_rng(2)
    q, k, v = rng.normal(size=(6, 8, 4)), rng.normal(size=(6, 2, 4)), rng.normal(size=(6, 2, 4))
    sinks = rng.normal(size=8)
    found = reference.attention(q, k, v, sinks, 3)
    for head in range(8):
        own, shared = slice(head, head + 1), slice(head // 4, head // 4 + 1)
        alone = reference.attention(q[:, own], k[:, shared], v[:, shared], sinks[own], 3)
        np.testing.assert_allclose(found[:, own], alone)


def test_large_logits_stay_finite() -> None:
    q = np.full((3, 1, 64), 1e3, np.float32)
    with np.errstate(over="raise", invalid="raise"):
        found = reference.attention(q, q, np.ones_like(q), np.zeros(1, np.float32))
        np.testing.assert_allclose(found, 1)
        found = reference.attention(q * 0, q, q, np.full(1, 1e3, np.float32))  # a large sink
        assert not found.any()


# Router and experts.


def test_router_ties_go_to_the_lowest_expert() -> None:
    experts, shares = reference.router_topk(np.array([[1.0, 2, 2, 1, 1, 2, 0, 1]]), 5)
    assert experts.tolist() == [[1, 2, 5, 0, 3]]
    assert shares.sum() == pytest.approx(1)
    logits = np.random.default_rng(3).integers(0, 4, size=(20, 128)).astype(np.float32)
    for row, chosen in zip(logits, reference.router_topk(logits, 8)[0], strict=True):
        assert chosen.tolist() == sorted(range(128), key=lambda e, row=row: (-row[e], e))[:8]


def test_router_softmax_is_over_the_chosen_alone() -> None:
    _, shares = reference.router_topk(np.array([[0.0, 1.0, -5.0, 1.0]]), 2)
    np.testing.assert_allclose(shares, [[0.5, 0.5]])
    _, shares = reference.router_topk(np.array([[math.log(3), 0.0, -1.0]]), 2)
    np.testing.assert_allclose(shares, [[0.75, 0.25]])


@pytest.mark.parametrize(
    ("glu", "linear", "expected"),
    [
        (1.0, 0.0, 1 / (1 + math.exp(-1.702))),
        (1.0, -1.0, 0.0),
        (100.0, 0.0, 7 / (1 + math.exp(-1.702 * 7))),
        (-8.0, 0.0, -8 / (1 + math.exp(1.702 * 8))),  # no lower bound
        (-1e30, 0.0, 0.0),
        (1.0, 100.0, 8 / (1 + math.exp(-1.702))),
        (1.0, -100.0, -6 / (1 + math.exp(-1.702))),
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_swiglu_by_hand(glu: float, linear: float, expected: float, dtype: Any) -> None:
    found = reference.swiglu(np.array([[glu, linear]], dtype), 7.0)
    assert found.dtype == dtype and found.shape == (1, 1)
    assert found[0, 0] == pytest.approx(expected, rel=1e-6)


class _Counting(ArraySource):
    """Remembers which experts were unpacked."""

    asked: list[int]

    def expert(self, name: str, index: int) -> np.ndarray:
        self.asked.append(index)
        return super().expert(name, index)


def test_moe_unpacks_the_chosen_experts_alone_and_weighs_biases(tiny: TensorSource) -> None:
    config = tiny.config
    source = _Counting(config, {i.name: tiny.tensor(i.name) for i in tiny.tensors()})
    source.asked = []
    t = np.random.default_rng(1).normal(size=(3, config.hidden_size))
    experts = np.array([[6, 1], [1, 3], [3, 6]])
    shares = np.array([[0.75, 0.25], [0.5, 0.5], [1.0, 0.0]])
    found = reference.moe(config, source, 0, t, experts, shares)
    assert sorted(set(source.asked)) == [1, 3, 6] and len(source.asked) == 6

    def one(token: int, expert: int) -> np.ndarray:
        bias1 = reference.weight(tiny, "block.0.mlp.mlp1_bias", t)[expert]
        bias2 = reference.weight(tiny, "block.0.mlp.mlp2_bias", t)[expert]
        u = tiny.expert("block.0.mlp.mlp1_weight", expert).astype(float) @ t[token] + bias1
        h = reference.swiglu(u, config.swiglu_limit)
        return tiny.expert("block.0.mlp.mlp2_weight", expert).astype(float) @ h + bias2

    expected = [
        0.75 * one(0, 6) + 0.25 * one(0, 1),
        0.5 * one(1, 1) + 0.5 * one(1, 3),
        one(2, 3),
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)
