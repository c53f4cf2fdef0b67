"""Solutions to the exercises of docs/learn/05_training.ipynb."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from gptoss.train.data import PreparedData, open_data, prepare
from gptoss.train.model.model import GptOss
from gptoss.train.run.presets import Preset, get_preset
from gptoss.train.run.trainer import Trainer


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    folder: Path = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    animals, things = ["dog", "cat", "fox", "bear"], ["ball", "bone", "book", "bell"]
    stories = [
        f"Once upon a time there was a {animals[a]}. One day the {animals[a]} found a {things[t]}. "
        f"It took the {things[t]} home. The end."
        for a, t in rng.integers(0, 4, (200, 2))
    ]
    (folder / "stories.txt").write_text(
        "\n<|endoftext|>\n".join(f"{s} ({n})" for n, s in enumerate(stories))
    )
    prepare([folder / "stories.txt"], folder / "out", vocab_size=320, near_duplicates=0)
    return open_data(folder / "out")


@pytest.fixture(scope="module")
def preset(data: PreparedData) -> Preset:
    small = get_preset("shakespeare").replace(
        num_hidden_layers=2,
        num_experts=4,
        experts_per_token=2,
        hidden_size=32,
        intermediate_size=32,
        head_dim=16,
        steps=8,
        warmup=2,
        batch_tokens=256,
        length=64,
        long_length=64,
        sample_tokens=0,
        dtype="float32",
    )
    return small.fit(data)


def test_1_adamw_by_hand() -> None:
    """m and v are running means of g and g², corrected for their start at 0."""
    rate, b1, b2, eps, decay = 0.1, 0.9, 0.99, 1e-8, 0.01
    x, m, v = 10.0, 0.0, 0.0
    parameter = torch.nn.Parameter(torch.tensor([10.0], dtype=torch.float64))
    optimizer = torch.optim.AdamW([parameter], lr=rate, betas=(b1, b2), eps=eps, weight_decay=decay)
    for step in range(1, 301):
        g = 2 * (x - 3)
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        x -= rate * decay * x
        x -= rate * (m / (1 - b1**step)) / (math.sqrt(v / (1 - b2**step)) + eps)
        optimizer.zero_grad()
        ((parameter - 3) ** 2).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        assert parameter.item() == pytest.approx(x, rel=1e-9)
    assert x == pytest.approx(3, abs=0.1), "a little less: weights decay towards 0"


def test_2_frequencies_alone(data: PreparedData) -> None:
    """−Σ p ln p of the tokens' frequencies: less than ln V, far more than what can be known."""
    ids = np.fromfile(data.directory / data.shards("train")[0]["file"], data.index["dtype"])
    counts = np.array(list(Counter(ids.tolist()).values()))
    p = counts / counts.sum()
    unigram = -(p * np.log(p)).sum()
    tokens_per_story = len(ids) / data.shards("train")[0]["documents"]
    # 4 animals and 4 things; the numbers in brackets are no more than 3 digits
    bound = (2 * math.log(4) + math.log(200)) / tokens_per_story
    assert 3 * bound < unigram < 0.8 * math.log(data.vocab_size)


def test_3_what_leaks_without_document_numbers(preset: Preset) -> None:
    """With one number for all, the second document changes with the first."""
    model = GptOss(preset.architecture)
    model.initialise(0)
    first, other, second = ([5, 6, 7, 8], [9, 10, 11, 12], [20, 21, 22, 23])
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3]])
    apart, together = torch.tensor([[0] * 4 + [1] * 4]), torch.zeros(1, 8, dtype=torch.long)

    def last(start: list[int], documents: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return model.logits(torch.tensor([start + second]), positions, documents)[0, 4:]

    torch.testing.assert_close(last(first, apart), last(other, apart))
    assert (last(first, together) - last(other, together)).abs().max() > 1e-3


def test_4_halves_of_a_batch(preset: Preset, data: PreparedData) -> None:
    """Sums add up; means do not, where the halves count different numbers of targets."""
    model = GptOss(preset.architecture.replace(feed_forward="swiglu"))
    model.initialise(0)
    batch = next(data.rows("train", 64, shuffle=False).sequential(4))
    arrays = [
        torch.from_numpy(a) for a in (batch.tokens, batch.targets, batch.positions, batch.documents)
    ]
    arrays[1][:2, 20:] = -1  # the first half counts fewer targets

    def gradient(*parts: slice, means: bool = False) -> torch.Tensor:
        model.zero_grad()
        for part in parts:
            some = [a[part] for a in arrays]
            loss, _ = model(*some)
            scale = int((some[1] >= 0).sum()) * len(parts) if means else 1
            (loss / scale).backward()
        assert model.unembedding.weight.grad is not None
        return model.unembedding.weight.grad.clone()

    whole, halves = slice(0, 4), (slice(0, 2), slice(2, 4))
    torch.testing.assert_close(gradient(*halves), gradient(whole), rtol=1e-4, atol=1e-5)
    mean_of_all, mean_of_means = gradient(whole, means=True), gradient(*halves, means=True)
    assert (mean_of_all - mean_of_means).norm() > 0.05 * mean_of_all.norm()


def test_5_stopped_and_resumed(preset: Preset, data: PreparedData, tmp_path: Path) -> None:
    """The losses are the same to the last bit."""

    def trainer(name: str) -> Trainer:
        return Trainer(preset.architecture, preset.settings, data, tmp_path / name)

    whole = [r["loss"] for r in trainer("whole").run(quiet=True)]
    parts = [r["loss"] for r in trainer("parts").run(until=5, quiet=True)]
    parts += [r["loss"] for r in trainer("parts").run(quiet=True)]
    assert parts == whole
