"""Adapters: where they begin, what they train, and that merging is what they compute."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from gptoss.checkpoint.files import open_checkpoint
from gptoss.checkpoint.source import ArraySource, TensorSource
from gptoss.errors import Error
from gptoss.model.bf16 import bf16_to_f32, f32_to_bf16
from gptoss.train.merge import MergedSource, QuantizedMerged, factors_of
from gptoss.train.model.convert import from_source
from gptoss.train.model.experts import QuantizedMatrix
from gptoss.train.model.model import GptOss
from gptoss.train.model.quantize import straight_through
from gptoss.train.tune import lora
from gptoss.train.tune.frozen import load_frozen

RANK, ALPHA = 4, 8.0
IDS = (276, 279, 281)
TOKENS = torch.randint(0, 285, (2, 48), generator=torch.Generator().manual_seed(2))


def adapted(
    source: TensorSource, targets: tuple[str, ...], dtype: torch.dtype = torch.float32
) -> GptOss:
    model = load_frozen(source, dtype)
    lora.attach(model, targets, RANK, ALPHA, 7, IDS)
    return model


def disturb(model: GptOss, size: float = 0.05) -> dict[str, Tensor]:
    """Gives the adapters values as training might, and returns them by name."""
    generator = torch.Generator().manual_seed(9)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for name, parameter in trained.items():
            if name.endswith((".b", ".rows")):
                parameter.copy_(size * torch.randn(parameter.shape, generator=generator))
    return {name: p.detach() for name, p in trained.items()}


def merged(source: TensorSource, trained: dict[str, Tensor]) -> MergedSource:
    rows = {
        name.replace(".rows", ".weight"): values.numpy()
        for name, values in trained.items()
        if name.endswith(".rows")
    }
    return MergedSource(source, source.config, factors_of(trained, ALPHA / RANK), rows, IDS)


def test_frozen_base_is_the_checkpoint(checkpoint: Path) -> None:
    with open_checkpoint(checkpoint) as source:
        model = load_frozen(source, torch.float32)
        torch.testing.assert_close(
            model.logits(TOKENS), from_source(source).logits(TOKENS), rtol=1e-5, atol=1e-6
        )
        assert model.embedding.weight.dtype == torch.bfloat16
        assert model.block[0].mlp.gate.weight.dtype == torch.float32
        assert isinstance(model.block[1].mlp.mlp2_weight, QuantizedMatrix)


@pytest.mark.parametrize("targets", [*((t,) for t in lora.TARGETS), lora.TARGETS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_step_0_is_the_base(checkpoint: Path, targets: tuple[str, ...], dtype: torch.dtype) -> None:
    with open_checkpoint(checkpoint) as source:
        expected = load_frozen(source, dtype).logits(TOKENS)
        assert torch.equal(adapted(source, targets, dtype).logits(TOKENS), expected)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_adapter_learns_and_nothing_else_does(checkpoint: Path, checkpointing: bool) -> None:
    with open_checkpoint(checkpoint) as source:
        model = adapted(source, lora.TARGETS)
        disturb(model)
        model.checkpointing = checkpointing
        model.logits(TOKENS).logsumexp(-1).sum().backward()
        for name, parameter in model.named_parameters():
            is_adapter = name.endswith((".a", ".b", ".rows"))
            assert parameter.requires_grad == is_adapter
            assert (parameter.grad is not None) == is_adapter, name
            if parameter.grad is not None and "mlp" not in name:
                assert parameter.grad.any(), name
        experts = model.block[0].mlp.adapters
        assert isinstance(experts, lora.AdaptedExperts)
        used = experts.mlp1.a.grad
        assert used is not None and used.flatten(1).any(1).sum() >= 2  # those with tokens


@pytest.mark.parametrize("target", lora.TARGETS)
def test_merging_is_what_the_adapters_compute(checkpoint: Path, target: str) -> None:
    with open_checkpoint(checkpoint) as source:
        model = adapted(source, (target,))
        before = model.logits(TOKENS)
        trained = disturb(model)
        found = model.logits(TOKENS)
        assert (found - before).norm() > 0.02 * before.norm()
        whole = from_source(merged(source, trained))
        # experts are merged in float32; other matrices are rounded to bf16: 2^-9 of a weight
        # the middle token, because a near-tie may send one to another expert
        each = (whole.logits(TOKENS) - found).norm(dim=-1) / found.norm(dim=-1)
        assert each.median() < (1e-5 if target == "experts" else 2**-8)


@pytest.mark.parametrize("name", ["attn.q", "attn.k", "attn.v", "attn.out", "mlp.gate"])
def test_merged_matrices(checkpoint: Path, name: str) -> None:
    with open_checkpoint(checkpoint) as source:
        model = adapted(source, ("attention", "router"))
        trained = disturb(model)
        c = source.config
        full = f"block.1.{name}.weight"
        stem = "block.1.attn.qkv" if name[-2:] in (".q", ".k", ".v") else f"block.1.{name}"
        a, b = (trained[f"{stem}.adapter.{part}"].double().numpy() for part in "ab")
        difference = ALPHA / RANK * b @ a
        if stem.endswith("qkv"):
            ends = np.cumsum([0, c.query_size, c.kv_size, c.kv_size])
            at = "qkv".index(name[-1])
            difference = difference[ends[at] : ends[at + 1]]
        expected = bf16_to_f32(source.tensor(full)) + difference
        got = bf16_to_f32(merged(source, trained).tensor(full))
        # rounding of the sum in float32, then to bf16
        assert (np.abs(got - expected) <= 2.0**-8 * np.abs(expected) + 1e-6).all()
        assert (got != bf16_to_f32(source.tensor(full))).mean() > 0.9


def test_what_has_no_adapter_keeps_its_bits(checkpoint: Path) -> None:
    with open_checkpoint(checkpoint) as source:
        trained = disturb(adapted(source, ("attention", "tokens")))
        changed = set()
        result = merged(source, trained)
        assert result.expert_dtype == "mxfp4"
        for info in source.tensors():
            if not np.array_equal(result.tensor(info.name), source.tensor(info.name)):
                changed.add(info.name)
        weights = {
            f"block.{n}.attn.{part}.weight" for n in (0, 1) for part in ("q", "k", "v", "out")
        }
        assert changed == weights | {"embedding.weight", "unembedding.weight"}
        table, base = result.tensor("embedding.weight"), source.tensor("embedding.weight")
        assert set(np.flatnonzero((table != base).any(1))) == set(IDS)


def test_experts_are_packed_again_one_by_one(checkpoint: Path) -> None:
    with open_checkpoint(checkpoint) as source:
        trained = disturb(adapted(source, ("experts",)))
        packed = QuantizedMerged(merged(source, trained), "mse")
        whole = from_source(packed, quantized=True)
        matrix = whole.block[0].mlp.mlp1_weight
        assert isinstance(matrix, QuantizedMatrix)
        for index in range(source.config.num_experts):
            name = "block.0.mlp.mlp1_weight"
            one = packed.expert(name, index)
            np.testing.assert_array_equal(one, matrix.expert(index, torch.float32).numpy())
            exact = merged(source, trained).expert(name, index)
            assert np.abs(one - exact).max() <= np.abs(exact).max() / 3


def test_merging_onto_unpacked_experts(checkpoint: Path) -> None:
    with open_checkpoint(checkpoint) as source:
        names = [info.name for info in source.tensors() if info.dtype == "BF16"]
        arrays = {name: source.tensor(name) for name in names}
        for n in range(2):
            for part in ("mlp1_weight", "mlp2_weight"):
                name = f"block.{n}.mlp.{part}"
                each = [source.expert(name, e) for e in range(source.config.num_experts)]
                arrays[name] = f32_to_bf16(np.stack(each))
        for n in range(2):
            for part in ("weight", "bias"):
                qkv = [arrays.pop(f"block.{n}.attn.{x}.{part}") for x in "qkv"]
                arrays[f"block.{n}.attn.qkv.{part}"] = np.concatenate(qkv)
        unpacked = ArraySource(source.config, arrays)
        model = adapted(unpacked, ("experts",))
        trained = disturb(model)
        found = model.logits(TOKENS)
        same = adapted(source, ("experts",))
        disturb(same)
        torch.testing.assert_close(found, same.logits(TOKENS), rtol=1e-4, atol=1e-5)
        result = from_source(merged(unpacked, trained)).logits(TOKENS)
        assert (result - found).norm() < 1e-5 * found.norm()


def test_rounded_experts_compute_what_the_packed_checkpoint_will(checkpoint: Path) -> None:
    with open_checkpoint(checkpoint) as source:
        model = adapted(source, ("experts",))
        trained = disturb(model)
        exported = from_source(QuantizedMerged(merged(source, trained), "mse")).logits(TOKENS)
        lora.set_rounded(model, True)
        rounded = model.logits(TOKENS)
        assert (rounded - exported).norm() < 1e-5 * exported.norm()
        lora.set_rounded(model, False)
        assert (model.logits(TOKENS) - exported).norm() > 1e-3 * exported.norm()


def test_rounded_experts_have_straight_through_gradients(checkpoint: Path) -> None:
    with open_checkpoint(checkpoint) as source:
        model = adapted(source, ("experts",))
        disturb(model)
        experts, mlp = model.block[0].mlp.adapters, model.block[0].mlp
        assert isinstance(experts, lora.AdaptedExperts)
        experts.rounded = True
        rows = torch.randn(9, 32, generator=torch.Generator().manual_seed(0), requires_grad=True)
        weigh = torch.randn(9, 320, generator=torch.Generator().manual_seed(1))
        (experts.delta("mlp1", 2, rows) * weigh).sum().backward()
        found = [rows.grad, experts.mlp1.a.grad, experts.mlp1.b.grad]

        again = rows.detach().clone().requires_grad_()
        a = experts.mlp1.a.detach().clone().requires_grad_()
        b = experts.mlp1.b.detach().clone().requires_grad_()
        w = mlp.mlp1_weight.expert(2, torch.float32)
        rounded = straight_through(w + (b[2] @ a[2]) * (ALPHA / RANK)) - w
        ((again @ rounded.T) * weigh).sum().backward()
        for got, expected in zip(found, (again.grad, a.grad, b.grad), strict=True):
            assert got is not None
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_memory_of_unpacked_experts_is_not_kept_for_backward(checkpoint: Path) -> None:
    with open_checkpoint(checkpoint) as source:
        c = source.config
        for rounded in (False, True):
            model = adapted(source, ("experts",))
            lora.set_rounded(model, rounded)
            shapes: list[tuple[int, ...]] = []

            def note(tensor: Tensor, shapes: list[tuple[int, ...]] = shapes) -> Tensor:
                shapes.append(tuple(tensor.shape))
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
                model.logits(TOKENS).sum()
            matrices = {
                (2 * c.intermediate_size, c.hidden_size),
                (c.hidden_size, c.intermediate_size),
            }
            assert not matrices & (set(shapes) | {shape[::-1] for shape in shapes})


def test_same_seed_same_adapters(checkpoint: Path) -> None:
    with open_checkpoint(checkpoint) as source:
        one, two = adapted(source, lora.TARGETS), adapted(source, lora.TARGETS)
        a, b = (m.block[1].mlp.adapters.mlp2.a for m in (one, two))
        assert torch.equal(a, b) and a.any()
        assert a.abs().max() <= 1 / math.sqrt(source.config.intermediate_size)


def test_rank_above_a_matrix(checkpoint: Path) -> None:
    with open_checkpoint(checkpoint) as source:
        model = load_frozen(source, torch.float32)
        with pytest.raises(Error, match="lora_rank: expected 1 to 32 for block.0.attn.qkv.weight"):
            lora.attach(model, ("attention",), 33, 1.0, 0)
        lora.attach(model, ("router",), 33, 1.0, 0)  # at most the number of experts
        assert model.block[0].mlp.gate.adapter.a.shape == (4, 32)
        with pytest.raises(Error, match="lora_rank: expected 1 to 32 for block.0.mlp.mlp1_weight"):
            lora.attach(model, ("experts",), 33, 1.0, 0)


def test_targets() -> None:
    assert lora.parse_targets("experts, attention") == ("attention", "experts")
    with pytest.raises(Error, match="lora_targets: expected names among .* found 'mlp'"):
        lora.parse_targets("attention,mlp")
