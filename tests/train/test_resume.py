"""A run goes on exactly where it stopped, whatever stopped it, or says why it does not."""

from __future__ import annotations

import dataclasses
import json
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from waiting import WORK

from gptoss.errors import Error
from gptoss.model.config import ModelConfig
from gptoss.train.model.architecture import Architecture
from gptoss.train.run.state import CHECKPOINT_FILE, LOG_FILE, STATISTICS_FILE, load_state, trim_log
from gptoss.train.run.trainer import Trainer

from .test_trainer import QUICK, trainer

SAME = ("loss", "norm", "balance", "z", "rate", "tokens", "load", "validation", "sample")


def logged(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / LOG_FILE).read_text().splitlines()]


def assert_same_state(one: Path, other: Path) -> None:
    """Every tensor bit for bit, and every place in the data."""
    expected, found = (load_state(run / CHECKPOINT_FILE) for run in (one, other))
    for part in ("model", "ema"):
        assert found[part].keys() == expected[part].keys()
        for name, tensor in expected[part].items():
            assert torch.equal(found[part][name], tensor), (part, name)
    assert found["optimizer"].keys() == expected["optimizer"].keys() != set()
    for name, moments in expected["optimizer"].items():
        for key, tensor in moments.items():
            assert torch.equal(found["optimizer"][name][key], tensor), (name, key)
    for key in ("step", "tokens_seen", "loss_mean", "epoch", "row", "row_length"):
        assert found[key] == expected[key], key


@pytest.mark.parametrize(
    "changes",
    [
        {"dtype": "float32", "ema": 0.9, "statistics_every": 4},
        {"dtype": "bfloat16", "schedule": "wsd", "z_loss": 1e-3},
    ],
)
def test_interrupted_run_equals_uninterrupted(
    small_config: ModelConfig, prepared: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    """With dropout, and stops before, between and after the changes of the run."""
    architecture = Architecture(small_config, dropout=0.1)
    whole = trainer(architecture, prepared, tmp_path / "whole", **changes)
    whole.run(quiet=True)
    for stop in (4, 7, 10, 12):
        torch.manual_seed(stop)  # what a program did before is of no account
        part = trainer(architecture, prepared, tmp_path / "parts", **changes)
        part.run(until=stop, quiet=True)
        assert part.step == part.saved_step == stop
    expected, found = logged(tmp_path / "whole"), logged(tmp_path / "parts")
    assert [r["step"] for r in found] == list(range(1, 13))
    for key in SAME:
        assert [r.get(key) for r in found] == [r.get(key) for r in expected], key
    assert_same_state(tmp_path / "whole", tmp_path / "parts")
    if "statistics_every" in changes:
        one, other = ((tmp_path / run / STATISTICS_FILE).read_text() for run in ("whole", "parts"))
        assert one == other
        assert one.count("\n") == 3


@pytest.mark.skipif(sys.platform == "win32", reason="forks and SIGKILL")
def test_killed_run_equals_unharmed(
    small_config: ModelConfig, prepared: Path, tmp_path: Path
) -> None:
    """SIGKILL in the middle of steps, of writing a state, before and after it."""
    settings = dataclasses.replace(QUICK, texts="stories:2", save_every=2, ema=0.9)
    about = {
        "architecture": Architecture(small_config, dropout=0.1).to_dict(),
        "settings": vars(settings),
    }
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    program = Path(__file__).with_name("killed_run.py")
    subprocess.run(
        [sys.executable, program, json.dumps(about), prepared, whole, parts],
        check=True,
        timeout=WORK,
    )
    expected, found = logged(whole), logged(parts)
    assert [r["step"] for r in found] == list(range(1, 13))
    for key in SAME:
        assert [r.get(key) for r in found] == [r.get(key) for r in expected], key
    assert_same_state(whole, parts)
    assert not list(parts.glob("*.partial"))


def test_a_full_disk_leaves_the_old_state(
    small_config: ModelConfig, prepared: Path, tmp_path: Path
) -> None:
    """A real write that fails half-way: no file may grow beyond 50 kB, the state is larger."""
    run = trainer(small_config, prepared, tmp_path)
    run.run(until=4, quiet=True)
    good = (tmp_path / CHECKPOINT_FILE).read_bytes()
    assert len(good) > 100_000
    run.train_step()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        with pytest.raises(Error, match=r"state.pt: step 5 could not be saved \(.*File too large"):
            run.save()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert (tmp_path / CHECKPOINT_FILE).read_bytes() == good
    assert not list(tmp_path.glob("*.partial"))
    run.save()
    assert load_state(tmp_path / CHECKPOINT_FILE)["step"] == 5


@pytest.fixture(scope="module")
def saved(small_config: ModelConfig, prepared: Path, tmp_path_factory: Any) -> Path:
    """A run's directory after one step."""
    out: Path = tmp_path_factory.mktemp("saved")
    trainer(small_config, prepared, out).run(until=1, quiet=True)
    return out


@pytest.mark.parametrize("harm", ["empty", "half", "flipped", "foreign", "list", "format"])
def test_damaged_states_are_named(saved: Path, tmp_path: Path, harm: str) -> None:
    data = bytearray((saved / CHECKPOINT_FILE).read_bytes())
    path = tmp_path / CHECKPOINT_FILE
    if harm == "flipped":
        data[len(data) // 2] ^= 1
    path.write_bytes({"empty": b"", "half": data[: len(data) // 2]}.get(harm, bytes(data)))
    if harm == "foreign":
        path.write_text("not a state")
    if harm == "list":
        torch.save([1, 2], path)
    if harm == "format":
        torch.save({"format": 99}, path)
    with pytest.raises(Error, match=r"state\.pt: expected (a|the) state of") as error:
        load_state(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "value", "found"),
    [
        ("seed", 3, 0),
        ("dtype", "bfloat16", "'float32'"),
        ("batch_tokens", 256, 128),
        ("long_length", 128, 64),
        ("texts", "stories", "'stories:2'"),
        ("balance", 0.5, 0.01),
        ("intermediate_size", 64, 32),
        ("norm", "layer", "'rms'"),
    ],
)
def test_another_run_is_refused(
    saved: Path, small_config: ModelConfig, prepared: Path, name: str, value: Any, found: Any
) -> None:
    architecture, settings = (
        Architecture(small_config),
        dataclasses.replace(QUICK, texts="stories:2"),
    )
    if name in vars(settings):
        settings = dataclasses.replace(settings, **{name: value})
    else:
        architecture = architecture.replace(**{name: value})
    before = (saved / CHECKPOINT_FILE).read_bytes(), (saved / LOG_FILE).read_bytes()
    with pytest.raises(Error) as error:
        Trainer(architecture, settings, prepared, saved)
    assert f"state.pt: {name}: expected {value!r} as asked for, found {found} in" in str(
        error.value
    )
    assert before == ((saved / CHECKPOINT_FILE).read_bytes(), (saved / LOG_FILE).read_bytes())


def test_other_data_is_refused(
    saved: Path, small_config: ModelConfig, stories: Path, tmp_path: Path
) -> None:
    from gptoss.train import data

    data.prepare([stories], tmp_path, vocab_size=320, validation=0.2, near_duplicates=0)
    settings = dataclasses.replace(QUICK, texts="stories:2")
    with pytest.raises(Error, match=r"state\.pt: data: expected the digest of '"):
        Trainer(small_config, settings, tmp_path, saved)


def test_log_goes_back_with_the_state_and_names_changes(
    small_config: ModelConfig, prepared: Path, tmp_path: Path
) -> None:
    run = trainer(small_config, prepared, tmp_path)
    run.run(until=4, quiet=True)
    run.logs.record(run.train_step())  # logged, but stopped before the next save
    with (tmp_path / LOG_FILE).open("a") as file:
        file.write('{"step": 6, "loss": 3.')  # killed while it wrote
    again = trainer(small_config, prepared, tmp_path, steps=6, clip=0.5)
    again.run(quiet=True)
    records = logged(tmp_path)
    assert records.pop(4) == {"resumed_after": 4, "changed": {"steps": 6, "clip": 0.5}}
    assert [r["step"] for r in records] == [1, 2, 3, 4, 5, 6]


def test_a_log_without_harm_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / LOG_FILE
    trim_log(path, 3)
    assert not path.exists()
    path.write_text('{"step": 1}\n{"resumed_after": 1}\n{"step": 2}\n')
    before = path.stat()
    trim_log(path, 2)
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    trim_log(path, 1)
    assert path.read_text() == '{"step": 1}\n{"resumed_after": 1}\n'
