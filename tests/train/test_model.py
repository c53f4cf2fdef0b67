"""The PyTorch model: published numbers, attention with sinks, routing, gradients."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from gptoss.checkpoint import open_checkpoint
from gptoss.config import ModelConfig
from gptoss.train import functions, model
from gptoss.train.convert import from_source


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
    residuals: list[torch.Tensor] = []
    with torch.no_grad():
        logits = net.logits(tokens)[0]
        net.hidden(tokens, residuals=residuals)
    assert relative(logits, golden[f"logits_f32_{length}"]) < 1e-5
    for layer, expected in enumerate(golden[f"hidden_f32_{length}"]):
        assert relative(residuals[layer][0], expected) < 1e-5


def plain_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, sink: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + mask
    column = sink[None, :, None, None].expand(*scores.shape[:-1], 1)
    return torch.cat([scores, column], -1).softmax(-1)[..., :-1] @ v


@pytest.mark.parametrize("length", [1, 33, 128, 300])
def test_sink_attention_and_its_gradients(length: int) -> None:
    generator = torch.Generator().manual_seed(length)
    q, k, v, grad = (torch.randn(2, 4, length, 64, generator=generator) for _ in range(4))
    sink = torch.randn(4, generator=generator)
    inputs = [t.requires_grad_() for t in (q, k, v, sink)]
    documents = torch.zeros(2, length, dtype=torch.long)
    documents[1, length // 3 :] = 1
    place = torch.arange(length)
    visible = (place[:, None] >= place) & (documents[:, :, None] == documents[:, None, :])
    mask = model.additive_mask(visible[:, None], torch.float32)
    expected = plain_attention(q, k, v, sink, mask)
    found = functions.sink_attention(q, k, v, sink, mask, 1 / 8)
    assert relative(found, expected) < 1e-6
    wanted = torch.autograd.grad((expected * grad).sum(), inputs)
    for one, other in zip(torch.autograd.grad((found * grad).sum(), inputs), wanted, strict=True):
        assert relative(one, other) < 1e-5


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


@pytest.mark.parametrize("length", [40, 48])  # dense mask, and in blocks
def test_window_is_as_many_keys_with_its_own(small_config: ModelConfig, length: int) -> None:
    net = small_model(small_config).double()
    documents = torch.zeros(1, length, dtype=torch.long)
    masks = model.build_masks(small_config, documents, torch.float64)
    cos, sin = (
        t[:, :, None].double()
        for t in model.rotary_tables(small_config, torch.arange(length)[None])
    )
    for layer, window in ((0, 16), (1, length)):
        x = torch.randn(1, length, 32, dtype=torch.float64, requires_grad=True)
        y = net.block[layer].attn(x, cos, sin, masks, torch.float64)
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
    assert torch.autograd.gradcheck(lambda t: functions.ClampedSwiglu.apply(t, 7.0), u)


def test_linear_cross_entropy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functions.LinearCrossEntropy, "CHUNK", 7)  # the last chunk is partial
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(30, 16, generator=generator, requires_grad=True)
    weight = torch.randn(50, 16, generator=generator, requires_grad=True)
    targets = torch.randint(-1, 50, (30,), generator=generator)
    expected = torch.nn.functional.cross_entropy(
        x @ weight.T, targets, ignore_index=-1, reduction="sum"
    )
    found = functions.linear_cross_entropy(x, weight, targets)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    wanted = torch.autograd.grad(3 * expected, (x, weight))
    for one, other in zip(torch.autograd.grad(3 * found, (x, weight)), wanted, strict=True):
        assert relative(one, other) < 1e-5


def test_rotary_tables_of_the_published_model() -> None:
    config = ModelConfig(1, 4, 16, 32, 32, 64, 8, 1)
    position = 1000
    cos, sin = model.rotary_tables(config, torch.tensor([position]))
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
