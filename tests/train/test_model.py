"""The PyTorch model: published numbers, attention with sinks, routing, gradients."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from gptoss.checkpoint.files import open_checkpoint
from gptoss.errors import Error
from gptoss.model import mxfp4
from gptoss.model.config import ModelConfig
from gptoss.train.model import attention, cross_entropy, experts, model
from gptoss.train.model.architecture import Architecture
from gptoss.train.model.convert import from_source
from gptoss.train.model.positions import rotary_tables, sinusoids
from gptoss.viz.trace import trace


def small_model(config: ModelConfig, seed: int = 0) -> model.GptOss:
    """Random weights; biases and sinks too, so that nothing can be left out unnoticed."""
    net = model.GptOss(config)
    net.initialise(seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith(("bias", "sinks")):
                parameter.normal_(0, 0.5, generator=generator)
    return net


def relative(found: torch.Tensor, expected: np.ndarray | torch.Tensor) -> float:
    expected = torch.as_tensor(expected)
    assert torch.isfinite(found).all()
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("length", [1, 5, 48, 160])
@pytest.mark.parametrize("layout", ["tiny-a", "tiny-a-hf"])
def test_golden(golden_dir: Path, layout: str, length: int) -> None:
    golden = np.load(golden_dir / "tiny-a" / "golden.npz")
    with open_checkpoint(golden_dir / layout) as source:
        net = from_source(source)
    tokens = torch.from_numpy(golden[f"tokens_{length}"]).long()[None]
    with torch.no_grad():
        logits = net.logits(tokens)[0]
    found = trace(net, tokens[0].tolist())
    assert relative(logits, golden[f"logits_f32_{length}"]) < 1e-5
    assert relative(torch.from_numpy(found.logits), golden[f"logits_f32_{length}"]) < 1e-5
    for layer, expected in enumerate(golden[f"hidden_f32_{length}"]):
        assert relative(torch.from_numpy(found.residuals[layer + 1]), expected) < 1e-5


def plain_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    sink: torch.Tensor,
    documents: torch.Tensor,
    window: int | None,
) -> torch.Tensor:
    """The formula, on the whole matrix."""
    place = torch.arange(q.shape[2])
    distance = place[:, None] - place
    seen = (distance >= 0) & (documents[:, :, None] == documents[:, None, :])
    if window is not None:
        seen &= distance < window
    scores = (q @ k.transpose(-1, -2)) / q.shape[-1] ** 0.5
    scores = scores.masked_fill(~seen[:, None], -torch.inf)
    column = sink[None, :, None, None].expand(*scores.shape[:-1], 1)
    return torch.cat([scores, column], -1).softmax(-1)[..., :-1] @ v


def attention_inputs(length: int, heads: int = 4) -> tuple[list[torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(length)
    inputs = [torch.randn(2, heads, length, 64, generator=generator) for _ in range(3)]
    inputs.append(torch.randn(heads, generator=generator))
    documents = torch.zeros(2, length, dtype=torch.long)
    documents[1, length // 3 :] = 1
    return [t.requires_grad_() for t in inputs], documents


@pytest.mark.parametrize("window", [None, 1, 16, 128, 200])
@pytest.mark.parametrize("length", [1, 33, 128, 300])  # partial and whole blocks of queries
def test_sink_attention_and_its_gradients(length: int, window: int | None) -> None:
    inputs, documents = attention_inputs(length)
    grad = torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(1))
    doubles = [t.detach().double().requires_grad_() for t in inputs]
    expected = plain_attention(*doubles, documents, window)
    found = attention.sink_attention(*inputs, documents, window, 1 / 8)
    assert relative(found, expected) < 1e-6
    wanted = torch.autograd.grad((expected * grad).sum(), doubles)
    for one, other in zip(torch.autograd.grad((found * grad).sum(), inputs), wanted, strict=True):
        assert relative(one, other) < 1e-5


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("window", [None, 20])
def test_shared_kv_heads_get_the_sum_of_gradients(window: int | None, groups: int) -> None:
    (q, _, _, sink), documents = attention_inputs(150)
    kv = [torch.randn(2, groups, 150, 64, requires_grad=True) for _ in range(2)]
    found = attention.sink_attention(q, *kv, sink, documents, window, 1 / 8)
    doubles = [t.detach().double().requires_grad_() for t in kv]
    wide = [t.repeat_interleave(4 // groups, 1) for t in doubles]
    expected = plain_attention(q.double(), *wide, sink.double(), documents, window)
    wanted = torch.autograd.grad(expected.square().sum(), doubles)
    for one, other in zip(torch.autograd.grad(found.square().sum(), kv), wanted, strict=True):
        assert relative(one, other) < 1e-5


def test_minus_infinity_is_no_sink() -> None:
    (q, k, v, _), documents = attention_inputs(70)
    nothing = torch.full((4,), -torch.inf)
    found = attention.sink_attention(q, k, v, nothing, documents, None, 1 / 8)
    seen = attention.visible(documents, slice(0, 70), slice(0, 70), None)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen)
    assert relative(found, expected) < 1e-5
    for gradient in torch.autograd.grad(found.sum(), (q, k, v)):
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("window", [None, 16])
def test_flex_attention_computes_the_same(window: int | None) -> None:
    """Its forward pass, as written; PyTorch has the backward pass on GPUs only."""
    inputs, documents = attention_inputs(150)
    with torch.no_grad():
        found = attention.flex_sink_attention(
            *(t.detach() for t in inputs), documents, window, 1 / 8, compiled=False
        )
    assert relative(found, plain_attention(*inputs, documents, window).detach()) < 1e-5


def test_attention_never_holds_the_square(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest mask it makes is as long as one block of queries."""
    sizes = []
    original = attention.visible

    def spy(documents: torch.Tensor, *rest: object) -> torch.Tensor:
        found = original(documents, *rest)
        sizes.append(found.numel())
        return found

    monkeypatch.setattr(attention, "visible", spy)
    inputs, documents = attention_inputs(1024, heads=1)
    attention.sink_attention(*inputs, documents, None, 1 / 8).sum().backward()
    assert max(sizes) == 2 * attention.BLOCK * 1024
    sizes.clear()
    attention.sink_attention(*inputs, documents, 64, 1 / 8).sum().backward()
    assert max(sizes) == 2 * attention.BLOCK * (attention.BLOCK + 63)


def test_sink_gradient_is_that_of_finite_differences(small_config: ModelConfig) -> None:
    net = small_model(small_config).double()
    generator = torch.Generator().manual_seed(5)
    tokens = torch.randint(0, 320, (2, 48), generator=generator)
    rows = (tokens, tokens.roll(-1, 1), torch.arange(48).expand(2, 48), torch.zeros_like(tokens))
    net.loss(*rows)[0].backward()
    for block in net.block:
        sinks = block.attn.sinks
        assert sinks.grad.abs().min() > 0
        for head in range(len(sinks)):
            with torch.no_grad():
                sinks[head] += 1e-5
                high = net.loss(*rows)[0]
                sinks[head] -= 2e-5
                low = net.loss(*rows)[0]
                sinks[head] += 1e-5
            assert float((high - low) / 2e-5) == pytest.approx(float(sinks.grad[head]), rel=1e-5)


def test_float32_gradients_are_those_of_float64(small_config: ModelConfig) -> None:
    """The kernels with a backward pass of their own against plain autograd, end to end."""
    generator = torch.Generator().manual_seed(6)
    tokens = torch.randint(0, 320, (2, 64), generator=generator)
    targets = tokens.roll(-1, 1).masked_fill(tokens < 20, -1)
    documents = (torch.arange(64) >= 25).long().expand(2, 64)
    positions = torch.cat([torch.arange(25), torch.arange(39)]).expand(2, 64)
    gradients = []
    for dtype in (torch.float32, torch.float64):
        net = small_model(small_config).to(dtype)
        net.loss(tokens, targets, positions, documents)[0].backward()
        gradients.append({name: p.grad for name, p in net.named_parameters()})
    for name, expected in gradients[1].items():
        assert expected.abs().max() > 0, name
        assert relative(gradients[0][name].double(), expected) < 1e-4, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])  # the kernel, and written out
def test_window_is_as_many_keys_with_its_own(small_config: ModelConfig, dtype: torch.dtype) -> None:
    net = small_model(small_config).to(dtype)
    length = 40
    place = net.place(torch.arange(length)[None], torch.zeros(1, length, dtype=torch.long), dtype)
    for layer, window in ((0, 16), (1, length)):
        x = torch.randn(1, length, 32, dtype=dtype, requires_grad=True)
        y = net.block[layer].attn(x, place, dtype)
        (gradient,) = torch.autograd.grad(y[0, -1].sum(), x)
        seen = gradient[0].abs().sum(-1).nonzero().flatten().tolist()
        assert seen == list(range(length - window, length))


def test_documents_of_a_row_do_not_see_each_other(small_config: ModelConfig) -> None:
    net = small_model(small_config)
    generator = torch.Generator().manual_seed(7)
    tokens = torch.randint(0, 320, (1, 64), generator=generator)
    documents = (torch.arange(64) >= 21).long()[None]
    positions = torch.cat([torch.arange(21), torch.arange(43)])[None]
    with torch.no_grad():
        packed, _ = net.hidden(tokens, positions, documents)
        first, _ = net.hidden(tokens[:, :21])
        second, _ = net.hidden(tokens[:, 21:])
    assert relative(packed[:, :21], first) < 1e-5
    assert relative(packed[:, 21:], second) < 1e-5


def test_experts_against_a_loop_over_tokens(small_config: ModelConfig) -> None:
    net = small_model(small_config)
    mlp = net.block[0].mlp
    x = torch.randn(1, 30, 32, generator=torch.Generator().manual_seed(8)) * 3
    with torch.no_grad():
        found, router = mlp(x, torch.float32)
        t = mlp.norm(x)[0]
        top, chosen = mlp.gate(t).topk(2, -1)
        weights = top.softmax(-1)
        expected = x[0].clone()
        for row in range(30):
            for rank in range(2):
                e = chosen[row, rank]
                u = mlp.mlp1_weight[e] @ t[row] + mlp.mlp1_bias[e]
                glu, linear = u[0::2].clamp(max=7), u[1::2].clamp(-7, 7)
                h = glu * torch.sigmoid(1.702 * glu) * (linear + 1)
                expected[row] += weights[row, rank] * (mlp.mlp2_weight[e] @ h + mlp.mlp2_bias[e])
    assert relative(found[0], expected) < 1e-6
    assert router.load.tolist() == torch.bincount(chosen.flatten(), minlength=4).tolist()


def test_expert_without_tokens(small_config: ModelConfig) -> None:
    net = small_model(small_config)
    mlp = net.block[0].mlp
    with torch.no_grad():
        mlp.gate.bias[:] = torch.tensor([100.0, 50.0, -100.0, -100.0])
    y, router = mlp(torch.randn(1, 5, 32), torch.float32)
    assert router.load.tolist() == [5, 5, 0, 0]
    y.sum().backward()
    assert mlp.mlp1_weight.grad[2:].abs().max() == 0
    assert mlp.mlp1_weight.grad[:2].abs().max() > 0


def test_balance_is_one_when_even_and_grows_with_collapse(small_config: ModelConfig) -> None:
    mlp = small_model(small_config).block[0].mlp
    x = torch.randn(1, 4000, 32, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        mlp.gate.weight.mul_(0.01)
        mlp.gate.bias.zero_()
        even = float(mlp(x, torch.float32)[1].balance)
        mlp.gate.bias[:] = torch.tensor([5.0, 5.0, 0.0, 0.0])
        uneven = float(mlp(x, torch.float32)[1].balance)
    assert even == pytest.approx(1, abs=0.02)
    assert uneven > 1.9


def test_clamped_swiglu_gradient() -> None:
    u = torch.randn(20, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 6
    u.requires_grad_()
    assert torch.autograd.gradcheck(lambda t: experts.ClampedSwiglu.apply(t, 7.0), u)


def test_linear_cross_entropy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_entropy.LinearCrossEntropy, "CHUNK", 7)  # the last chunk is partial
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(30, 16, generator=generator, requires_grad=True)
    weight = torch.randn(50, 16, generator=generator, requires_grad=True)
    targets = torch.randint(-1, 50, (30,), generator=generator)
    expected = torch.nn.functional.cross_entropy(
        x @ weight.T, targets, ignore_index=-1, reduction="sum"
    )
    found = cross_entropy.linear_cross_entropy(x, weight, targets)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    wanted = torch.autograd.grad(3 * expected, (x, weight))
    for one, other in zip(torch.autograd.grad(3 * found, (x, weight)), wanted, strict=True):
        assert relative(one, other) < 1e-5


def test_frozen_unembedding_gets_no_gradient() -> None:
    x = torch.randn(9, 16, requires_grad=True)
    weight = torch.randn(50, 16)
    targets = torch.arange(9)
    found = cross_entropy.linear_cross_entropy(x, weight, targets)
    expected = torch.nn.functional.cross_entropy(x @ weight.T, targets, reduction="sum")
    (one,), (other,) = (torch.autograd.grad(loss, x) for loss in (found, expected))
    assert relative(one, other) < 1e-5 and weight.grad is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_unpacking_is_exact(dtype: torch.dtype) -> None:
    """Against NumPy, bit for bit, over every nibble and a wide range of scales."""
    generator = torch.Generator().manual_seed(4)
    matrix = experts.QuantizedMatrix(2, 6, 96)
    matrix.blocks.copy_(torch.randint(0, 256, matrix.blocks.shape, generator=generator))
    matrix.scales.copy_(torch.randint(60, 190, matrix.scales.shape, generator=generator))
    for index in range(2):
        expected = mxfp4.dequantize(matrix.blocks[index].numpy(), matrix.scales[index].numpy())
        found = matrix.expert(index, dtype)
        assert found.dtype == dtype
        np.testing.assert_array_equal(found.double().numpy(), expected.astype(np.float64))


def test_rotary_tables_of_the_published_model() -> None:
    config = ModelConfig(1, 4, 16, 32, 32, 64, 8, 1)
    position = 1000
    cos, sin = rotary_tables(config, torch.tensor([position]))
    i = np.arange(32)
    ramp = np.clip((i - 8.0928) / (17.3980 - 8.0928), 0, 1)
    plain = 150_000.0 ** (-i / 32)
    angle = position * (ramp * plain / 32 + (1 - ramp) * plain)
    np.testing.assert_allclose(cos[0], np.cos(angle) * 1.34657, atol=2e-3)
    np.testing.assert_allclose(sin[0], np.sin(angle) * 1.34657, atol=2e-3)


def test_fresh_model_knows_nothing(small_config: ModelConfig) -> None:
    net = model.GptOss(small_config)
    net.initialise(0)
    tokens = torch.randint(0, 320, (4, 64), generator=torch.Generator().manual_seed(3))
    rows = (tokens, tokens.roll(-1, 1), torch.arange(64).expand(4, 64), torch.zeros_like(tokens))
    with torch.no_grad():
        loss = float(net.loss(*rows)[0]) / tokens.numel()
    assert loss == pytest.approx(np.log(320), rel=0.05)


# Parts that can be exchanged.

VARIANTS = [
    {"positions": "rope"},
    {"positions": "learned"},
    {"positions": "sinusoidal"},
    {"positions": "none"},
    {"norm": "layer"},
    {"feed_forward": "swiglu"},
    {"feed_forward": "gelu"},
    {"feed_forward": "relu", "feed_forward_size": 48},
    {"num_key_value_heads": 4},
    {"num_key_value_heads": 1},
    {"window_pattern": "F"},
    {"window_pattern": "SSF"},
    {"sinks": False},
    {"tied_embeddings": True},
]


def variant(config: ModelConfig, **changes: object) -> model.GptOss:
    net = model.GptOss(Architecture(config).replace(**changes))
    net.initialise(0)
    return net


def random_rows(length: int = 48) -> tuple[torch.Tensor, ...]:
    tokens = torch.randint(0, 320, (2, length), generator=torch.Generator().manual_seed(3))
    places = torch.arange(length).expand(2, length)
    return tokens, tokens.roll(-1, 1), places, torch.zeros_like(tokens)


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_every_part_trains_and_differs(
    small_config: ModelConfig, changes: dict[str, object]
) -> None:
    net = variant(small_config, **changes)
    loss, routing = net(*random_rows())
    loss.backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
    assert len(routing) == (2 if net.architecture.feed_forward == "moe" else 0)
    whole = variant(small_config)
    assert net.architecture != whole.architecture
    if "tied_embeddings" in changes or "num_key_value_heads" in changes:
        return
    with torch.no_grad():  # the same weights where the parts are the same, another function
        shared = {n: p for n, p in whole.named_parameters() if n in dict(net.named_parameters())}
        net.load_state_dict(shared, strict=False)
        assert relative(net.logits(random_rows()[0]), whole.logits(random_rows()[0])) > 1e-4


def test_without_positions_order_matters_only_through_the_mask(small_config: ModelConfig) -> None:
    net = variant(small_config, positions="none", window_pattern="F")
    tokens = torch.arange(10, 20)[None]
    swapped = tokens[:, [1, 0, *range(2, 10)]]
    with torch.no_grad():
        assert relative(net.logits(swapped)[:, 0], net.logits(tokens)[:, 0]) > 1e-2
    single = variant(small_config, positions="none", window_pattern="F", num_hidden_layers=1)
    with torch.no_grad():  # in one layer the last token sees a set
        a, b = single.logits(tokens)[0, -1], single.logits(swapped)[0, -1]
    assert relative(b, a) < 1e-5


def test_learned_positions_end(small_config: ModelConfig) -> None:
    net = variant(small_config, positions="learned", rope_scaling_factor=1.0)
    with torch.no_grad(), pytest.raises(Error, match="at most 32 learned, found 33"):
        net.logits(torch.zeros(1, 33, dtype=torch.long))


def test_sinusoids() -> None:
    found = sinusoids(torch.tensor([0, 7]), 6)
    assert found[0].tolist() == [0, 1, 0, 1, 0, 1]
    angles = 7 / 10000 ** (np.arange(3) / 3)
    np.testing.assert_allclose(found[1, 0::2], np.sin(angles), rtol=1e-6)
    np.testing.assert_allclose(found[1, 1::2], np.cos(angles), rtol=1e-6)


def test_tied_embeddings_are_one_parameter(small_config: ModelConfig) -> None:
    net = variant(small_config, tied_embeddings=True)
    assert "unembedding.weight" not in dict(net.named_parameters())
    assert net.unembedding.weight is net.embedding.weight


def test_dropout_is_for_training_only(small_config: ModelConfig) -> None:
    net, plain = variant(small_config, dropout=0.5), variant(small_config)
    rows = random_rows()
    with torch.no_grad():
        torch.manual_seed(0)
        assert net(*rows)[0] != plain(*rows)[0]
        assert net.eval()(*rows)[0] == plain(*rows)[0]


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_checkpointing_changes_nothing(small_config: ModelConfig, dropout: float) -> None:
    gradients = []
    for checkpointing in (False, True):
        net = variant(small_config, dropout=dropout)
        net.checkpointing = checkpointing
        torch.manual_seed(4)
        net(*random_rows())[0].backward()
        gradients.append([p.grad for p in net.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)


def test_grouped_product_is_one_per_expert(small_config: ModelConfig) -> None:
    generator = torch.Generator().manual_seed(11)
    load = torch.tensor([5, 0, 30, 1])
    rows = torch.randn(36, 32, generator=generator).bfloat16().requires_grad_()
    weight = torch.randn(4, 48, 32, generator=generator).bfloat16().requires_grad_()
    bias = torch.randn(4, 48, generator=generator).bfloat16().requires_grad_()
    one = experts.expert_linear(rows, load, weight, bias)
    other = experts.grouped_linear(rows, load, weight, bias)
    assert relative(other.float(), one.float().detach()) < 1e-2
    grad = torch.randn(one.shape, generator=generator).bfloat16()
    inputs = (rows, weight, bias)
    wanted = torch.autograd.grad(one, inputs, grad)
    for a, b in zip(torch.autograd.grad(other, inputs, grad), wanted, strict=True):
        assert relative(a.float(), b.float()) < 1e-2


@pytest.mark.parametrize("layout", ["tiny-a", "tiny-a-hf"])
def test_packed_experts_compute_and_pass_gradients_on(golden_dir: Path, layout: str) -> None:
    with open_checkpoint(golden_dir / layout) as source:
        whole, packed = from_source(source), from_source(source, quantized=True)
    assert not any("mlp1_weight" in name for name, _ in packed.named_parameters())
    tokens = torch.arange(30)[None] % whole.config.vocab_size
    rows = (tokens, tokens.roll(-1, 1), torch.arange(30)[None], torch.zeros_like(tokens))
    for net in (whole, packed):
        net(*rows)[0].backward()
    found = dict(whole.named_parameters())
    for name, parameter in packed.named_parameters():
        assert relative(parameter.grad, found[name].grad) < 1e-5, name


def test_z_loss_is_the_mean_square_of_the_normaliser(small_config: ModelConfig) -> None:
    mlp = small_model(small_config).block[0].mlp
    x = torch.randn(1, 20, 32)
    with torch.no_grad():
        logits = mlp.gate(mlp.norm(x)[0])
        expected = (logits.exp().sum(-1).log() ** 2).mean()
        assert float(mlp(x, torch.float32)[1].z) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"positions": "alibi"}, "positions: expected one of yarn"),
        ({"norm": "batch"}, "norm: expected one of rms"),
        ({"feed_forward": "conv"}, "feed_forward: expected one of moe"),
        ({"window_pattern": "SX"}, "window_pattern: expected letters S"),
        ({"window_pattern": ""}, "window_pattern"),
        ({"dropout": 1.0}, "dropout: expected 0 <= dropout < 1"),
        ({"speed": 1}, "found 'speed'"),
        ({"hidden_size": 33}, "hidden_size"),
    ],
)
def test_impossible_architectures(
    small_config: ModelConfig, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(Error, match=message):
        Architecture(small_config).replace(**changes)


def test_architecture_survives_json(small_config: ModelConfig) -> None:
    some = Architecture(small_config).replace(positions="learned", window_pattern="F", dropout=0.2)
    assert Architecture.from_dict(json.loads(json.dumps(some.to_dict()))) == some
    assert Architecture(small_config).differences() == []
    assert some.differences() == ["positions 'learned'", "window_pattern 'F'"]
    rope = Architecture(small_config, positions="rope")
    assert rope.differences() == ["positions 'rope' with scaling"]
    assert rope.replace(rope_scaling_factor=1.0).differences() == []


def test_trace_tells_what_the_model_did(small_config: ModelConfig) -> None:
    net = small_model(small_config)
    ids = random_rows()[0][0].tolist()
    found = trace(net, ids)
    assert found.attention[0].shape == (4, 48, 48)
    for layer, weights in enumerate(found.attention):
        np.testing.assert_allclose(weights.sum(-1) + found.sink_share[layer], 1, rtol=1e-5)
    assert found.chosen is not None and found.chosen.shape == (2, 48, 2)
    assert found.expert_weights is not None
    np.testing.assert_allclose(found.expert_weights.sum(-1), 1, rtol=1e-5)
    with torch.no_grad():
        assert relative(torch.from_numpy(found.logits), net.logits(torch.tensor([ids]))[0]) < 1e-5
    assert trace(variant(small_config, feed_forward="gelu"), ids).chosen is None
    for wrong, message in (([], "found 0"), ([320], "below 320"), ([0] * 129, "1 to 128")):
        with pytest.raises(Error, match=message):
            trace(net, wrong)
