"""What a run tells, and the arithmetic behind it."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from gptoss.model.config import ModelConfig
from gptoss.train.model.architecture import Architecture
from gptoss.train.run.logs import QUANTILES, Line, Logs, distribution, duration
from gptoss.train.run.state import LOG_FILE
from gptoss.train.run.throughput import flops_per_token, peak_flops

RECORD: dict[str, Any] = {
    "step": 3,
    "loss": 2.5,
    "norm": 0.75,
    "tokens_per_s": 2000.0,
    "mfu": 0.25,
    "seconds": 4.5,
}
LOOK: dict[str, Any] = {"validation": {"tales": 2.25}, "sample": "Once …\nthe end"}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_line_in_a_file_comes_now_and_then() -> None:
    stream = io.StringIO()
    line = Line(steps=20, batch_tokens=100_000, stream=stream)
    for step in range(1, 14):
        line({**RECORD, **(LOOK if step == 7 else {}), "step": step}, last=step == 13)
    found = stream.getvalue().splitlines()
    assert [text.split()[1] for text in found if text.startswith("step")] == [
        "7/20",
        "10/20",
        "13/20",
    ]
    assert found[1:4] == ["  validation: tales 2.2500", "  Once …", "  the end"]
    assert found[-1] == "step 13/20  loss 2.5000  norm 0.75  2000 tokens/s  MFU 25%  6 min left"


def test_line_on_a_terminal_is_drawn_over() -> None:
    stream = Terminal()
    line = Line(steps=3, batch_tokens=1000, stream=stream)
    for step in (1, 2, 3):
        line({**RECORD, "step": step}, last=step == 3)
    found = stream.getvalue()
    assert found.count("\r") == 3
    assert found.count("\n") == 1
    assert found.endswith("\n")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (89.4, "89 s"), (90, "2 min"), (5399, "1 h 30 min"), (3 * 3600, "3 h 00 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_tensorboard_has_the_figures_of_the_log(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logs = Logs(tmp_path, step=2, tensorboard=True)
    logs.record({**RECORD, **LOOK, "load": [[0.5, 0.5]]})
    logs.record({"resumed_after": 3, "changed": {}})
    logs.close()
    assert len((tmp_path / LOG_FILE).read_text().splitlines()) == 2
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    names = {f"train/{name}" for name in RECORD if name != "step"} | {"validation/tales"}
    assert set(events.Tags()["scalars"]) == names
    (loss,) = events.Scalars("train/loss")
    assert (loss.step, loss.value) == (3, 2.5)
    assert events.Scalars("validation/tales")[0].value == 2.25


def test_only_one_process_writes(tmp_path: Path) -> None:
    logs = Logs(None, step=0, tensorboard=True)
    logs.record(RECORD)
    logs.statistics(1, {})
    logs.close()
    assert not list(tmp_path.iterdir())


def test_distribution_of_many_values_is_that_of_a_part() -> None:
    values = torch.arange(3_000_001, dtype=torch.float32) / 3e6
    found = distribution(values, "grad_")
    assert found["grad_quantiles"] == pytest.approx(list(QUANTILES), abs=1e-5)
    assert found["grad_max"] == 1.0
    assert found["grad_rms"] == pytest.approx(1 / math.sqrt(3), rel=1e-4)
    assert json.loads(json.dumps(found)) == found


def test_flops_of_a_token_by_hand(small_config: ModelConfig) -> None:
    """Two layers, one of which sees 16 keys: counted product by product."""
    weights = 2 * (
        32 * (4 + 2 + 2) * 16  # q, k, v
        + 4 * 16 * 32  # out
        + 32 * 4  # router
        + 2 * (32 * 64 + 32 * 32)  # two of four experts
    )
    weights += 32 * 320  # unembedding
    length = 64
    seen = sum(min(i, 16) for i in range(1, 65)) / length + sum(range(1, 65)) / length
    # scores and weighted values: 2 products of 2 FLOPs, forward once and backward twice
    attention = 3 * 2 * 2 * (4 * 16) * seen
    found = flops_per_token(Architecture(small_config), length)
    assert found == pytest.approx(6 * weights + attention)
    dense = Architecture(small_config, feed_forward="gelu", feed_forward_size=100)
    swiglu = Architecture(small_config, feed_forward="swiglu", feed_forward_size=100)
    difference = flops_per_token(swiglu, 64) - flops_per_token(dense, 64)
    assert difference == pytest.approx(6 * 2 * 32 * 100)


def test_known_gpus_are_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, half in (("NVIDIA H100 PCIe", 756e12), ("NVIDIA H200", 989e12)):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        peak_flops.cache_clear()
        assert peak_flops(torch.device("cuda"), torch.bfloat16) == half
    peak_flops.cache_clear()


def test_a_cpu_is_measured_once() -> None:
    device = torch.device("cpu")
    assert 1e8 < peak_flops(device, torch.float32) < 1e15
    assert peak_flops(device, torch.float32) == peak_flops(device, torch.float32)
