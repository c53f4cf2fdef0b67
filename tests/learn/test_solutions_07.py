"""Solutions to the exercises of docs/learn/07_ablations.ipynb."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from gptoss.model.config import ModelConfig
from gptoss.train.model.architecture import Architecture
from gptoss.train.model.model import GptOss

CONFIG = ModelConfig(
    num_hidden_layers=2,
    num_experts=4,
    experts_per_token=2,
    vocab_size=360,
    hidden_size=64,
    intermediate_size=64,
    head_dim=16,
    num_attention_heads=4,
    num_key_value_heads=2,
    sliding_window=16,
    initial_context_length=128,
    rope_scaling_factor=2.0,
)


def parameters(architecture: Architecture) -> int:
    return sum(p.numel() for p in GptOss(architecture).parameters())


def test_1_luck() -> None:
    """Of the 20 ways to place three of six, one has them all on top: 5% for one given side."""
    exact = 1 / math.comb(6, 3)
    draws = np.random.default_rng(0).standard_normal((100_000, 2, 3))
    found = (draws[:, 0].min(1) > draws[:, 1].max(1)).mean()
    assert exact == 0.05
    assert found == pytest.approx(exact, abs=0.003)
    # with seven variants to look at, one "worse in every run" is no surprise
    assert 1 - (1 - exact) ** 7 > 0.3


def test_2_what_the_engine_can_run() -> None:
    """Everything but another number of KV heads or experts is another architecture."""
    whole = Architecture(CONFIG)
    for change in (
        {"positions": "none"},
        {"positions": "learned"},
        {"sinks": False},
        {"window_pattern": "S"},
        {"window_pattern": "F"},
        {"feed_forward": "swiglu"},
        {"norm": "layer"},
    ):
        assert whole.replace(**change).differences() != [], change
    for same in ({"num_key_value_heads": 4}, {"num_experts": 8}, {"tied_embeddings": True}):
        assert whole.replace(**same).differences() == [], same


def test_3_a_dense_model_with_all_parameters() -> None:
    """As wide as all experts together, less what the router's matrix takes."""
    whole = Architecture(CONFIG)
    active = whole.replace(feed_forward="swiglu")
    assert active.inner_size == 2 * 64
    size = min(
        range(200, 320),
        key=lambda n: abs(parameters(active.replace(feed_forward_size=n)) - parameters(whole)),
    )
    assert size == pytest.approx(4 * 64, abs=6)
    dense = parameters(active.replace(feed_forward_size=size))
    assert dense == pytest.approx(parameters(whole), rel=0.002)


def test_4_order_is_invisible_to_one_layer_without_positions() -> None:
    """ "a b ?" and "b a ?" get the same answer; with positions they do not."""
    for positions, equal in (("none", True), ("yarn", False)):
        model = GptOss(
            Architecture(CONFIG).replace(
                positions=positions, num_hidden_layers=1, window_pattern="F"
            )
        )
        model.initialise(0)
        with torch.no_grad():
            for name, p in model.named_parameters():
                if "qkv" in name:
                    p.mul_(20)  # attention that prefers something
            one = model.logits(torch.tensor([[5, 9, 7]]))[0, -1]
            other = model.logits(torch.tensor([[9, 5, 7]]))[0, -1]
        assert torch.allclose(one, other, atol=1e-4) == equal


def test_5_four_kv_heads_cost_little() -> None:
    """Two more heads of keys and values per layer: 2 · 2 · 16 rows of 64, with biases."""
    whole = Architecture(CONFIG)
    more = parameters(whole.replace(num_key_value_heads=4)) - parameters(whole)
    assert more == 2 * (2 * 2 * 16) * (64 + 1)
