"""One model, three programs: the trainer, the reference and the engine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from gptoss import reference
from gptoss.checkpoint.files import open_checkpoint
from gptoss.checkpoint.write import write_checkpoint
from gptoss.model.config import ModelConfig
from gptoss.train.data import load_tokenizer
from gptoss.train.model.convert import from_source, rounded, to_source
from gptoss.train.model.model import GptOss
from gptoss.train.run.trainer import Trainer

from .test_trainer import QUICK

pytest.importorskip("gptoss.native._core", reason="the compiled core is not built")

NANO = Path(reference.__file__).parent / "bundled" / "nano"
STORY = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the sun. "
    'One day, her mom said, "Lily, let us go to the park." Lily was very happy. She put on her '
    "red hat and ran to the door. At the park she saw a big dog.\n\n"
) * 8


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    assert np.isfinite(found).all()
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def torch_logits(model: GptOss, ids: list[int]) -> np.ndarray:
    with torch.no_grad():
        return model.logits(torch.tensor([ids]))[0].numpy()


def engine_logits(path: Path, ids: list[int]) -> np.ndarray:
    from gptoss import Engine

    with Engine(path, device="cpu", activation="f32", threads=1) as engine:
        return engine.logits(ids)


@pytest.fixture(scope="module")
def trained(small_config: ModelConfig, prepared: Path, tmp_path_factory) -> GptOss:  # type: ignore[no-untyped-def]
    """A small model after a few steps, in float32."""
    run = Trainer(small_config, QUICK, prepared, tmp_path_factory.mktemp("run"))
    run.run(quiet=True)
    return run.model


@pytest.mark.parametrize(
    ("layout", "experts"), [("huggingface-bf16", "bf16"), ("original", "mxfp4")]
)
def test_engine_before_and_after_packing(
    trained: GptOss, prepared: Path, tmp_path: Path, layout: str, experts: str
) -> None:
    write_checkpoint(to_source(trained, experts, directory=prepared), tmp_path / "out", layout)
    ids = load_tokenizer(prepared).encode("Once upon a time there was a bear. " * 10)[:128]
    expected = torch_logits(rounded(trained, experts), ids)
    assert relative(engine_logits(tmp_path / "out", ids), expected) < 1e-4


@pytest.fixture(scope="module")
def nano_ids() -> list[int]:
    """More tokens than the window holds."""
    ids = load_tokenizer(NANO).encode(STORY)[:400]
    assert len(ids) == 400
    return ids


def test_reference_on_the_bundled_model(nano_ids: list[int]) -> None:
    with open_checkpoint(NANO) as source:
        expected = torch_logits(from_source(source), nano_ids)
        found, _ = reference.forward(source.config, source, nano_ids)
    assert relative(found, expected) < 1e-5


def test_engine_on_the_bundled_model(nano_ids: list[int]) -> None:
    with open_checkpoint(NANO) as source:
        expected = torch_logits(from_source(source), nano_ids)
    assert relative(engine_logits(NANO, nano_ids), expected) < 1e-4


def test_bundled_model_knows_english(nano_ids: list[int]) -> None:
    """Far below the log of the vocabulary (8.3), on a story written for this test."""
    with open_checkpoint(NANO) as source:
        assert source.config.num_attention_heads == 8 * source.config.num_key_value_heads
        assert load_tokenizer(NANO).special["<|endoftext|>"] in source.config.eos_token_ids
        model = from_source(source)
    once = torch.tensor(nano_ids[:64])
    logp = torch.from_numpy(torch_logits(model, once.tolist())).log_softmax(-1)
    loss = -logp[:-1].gather(1, once[1:, None]).mean()
    assert loss.item() < 3.5


def test_bundled_model_is_small() -> None:
    assert sum(path.stat().st_size for path in NANO.iterdir()) <= 8_000_000
