"""Losses against formulas written out in NumPy, in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from gptoss.checkpoint.files import open_checkpoint
from gptoss.train.model.convert import from_source
from gptoss.train.tune import objectives
from gptoss.train.tune.objectives import dpo, sequence_logps, token_losses


def test_dpo_is_equation_7() -> None:
    rng = np.random.default_rng(0)
    chosen, rejected, ref_chosen, ref_rejected = rng.normal(-40, 9, (4, 50))
    beta = 0.3
    ratio = beta * (chosen - ref_chosen) - beta * (rejected - ref_rejected)
    expected = np.logaddexp(0, -ratio)  # −log σ(x)
    found = dpo(
        torch.from_numpy(chosen),
        torch.from_numpy(rejected),
        torch.from_numpy(np.stack([ref_chosen, ref_rejected], 1)),
        beta,
    )
    np.testing.assert_allclose(found.loss, expected, rtol=1e-12)
    np.testing.assert_allclose(found.margin, ratio, rtol=1e-12)


def test_dpo_begins_at_log_2_and_pulls_the_replies_apart() -> None:
    chosen = torch.tensor([-3.0], requires_grad=True)
    rejected = torch.tensor([-5.0], requires_grad=True)
    found = dpo(chosen, rejected, torch.tensor([[-3.0, -5.0]]), 0.1)
    assert found.loss.item() == pytest.approx(np.log(2))
    found.loss.sum().backward()
    # β·σ(−margin), equation 7's gradient: −0.05 for the chosen, 0.05 for the rejected
    assert chosen.grad is not None and chosen.grad.item() == pytest.approx(-0.05)
    assert rejected.grad is not None and rejected.grad.item() == pytest.approx(0.05)


def test_sequence_logps() -> None:
    losses = torch.tensor([[1.0, 2.0, 4.0, 0.0], [8.0, 16.0, 32.0, 64.0]])
    documents = torch.tensor([[0, 0, 1, -1], [0, 1, 1, 1]])
    assert sequence_logps(losses, documents, 2).tolist() == [[-3, -4], [-8, -112]]


@pytest.fixture
def batch(tune_config: object) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, 250, (2, 40), generator=generator)
    targets = torch.randint(0, 250, (2, 40), generator=generator)
    targets[0, :15] = -1
    targets[1, 30:] = -1
    documents = torch.zeros(2, 40, dtype=torch.int64)
    documents[:, 20:] = 1
    positions = torch.arange(20).repeat(2)[None].expand(2, -1)
    return tokens, targets, positions, documents


def test_token_losses(
    checkpoint: Path, batch: tuple[torch.Tensor, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = from_source(open_checkpoint(checkpoint))
    tokens, targets, positions, documents = batch
    logits = model.logits(tokens, positions, documents)
    expected = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1).double(), targets.flatten(), ignore_index=-1, reduction="none"
    )
    monkeypatch.setattr(objectives, "LOGITS", 1)  # several chunks, the last one not full
    found, routing = token_losses(model, *batch)
    torch.testing.assert_close(found.flatten().double(), expected, rtol=1e-5, atol=1e-5)
    assert len(routing) == 2

    found.sum().backward()
    grad = model.unembedding.weight.grad
    assert grad is not None
    kept = grad.clone()
    model.zero_grad()
    model.loss(*batch)[0].backward()
    torch.testing.assert_close(kept, model.unembedding.weight.grad, rtol=1e-4, atol=1e-5)


def test_nothing_to_predict_costs_nothing(
    checkpoint: Path, batch: tuple[torch.Tensor, ...]
) -> None:
    model = from_source(open_checkpoint(checkpoint))
    tokens, targets, positions, documents = batch
    losses, _ = token_losses(model, tokens, torch.full_like(targets, -1), positions, documents)
    assert losses.shape == tokens.shape and not losses.any()
