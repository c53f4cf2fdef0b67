"""Two processes under torchrun, over gloo on the CPU, against one."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from waiting import WORK

from gptoss.cli import main
from gptoss.errors import Error
from gptoss.model.config import ModelConfig
from gptoss.train.model.architecture import Architecture
from gptoss.train.run.distributed import World, join
from gptoss.train.run.state import CHECKPOINT_FILE, LOG_FILE, load_state
from gptoss.train.run.trainer import Trainer

from .test_trainer import QUICK

# four rows of 32 tokens, later two of 64: one row at a time, alone or shared by two
SHARED = dataclasses.replace(QUICK, micro_tokens=32, ema=0.9, z_loss=1e-3, texts="stories:2")
HALF = 8


def launch(program: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return subprocess.run(
        [*torchrun, "--nproc-per-node", "2", *program],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=WORK,
        **options,
    )


def records(run: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (run / LOG_FILE).read_text().splitlines()]
    return [record for record in found if "step" in record]


def assert_same_run(found: Path, expected: Path) -> None:
    """Up to the order of sums, in every step and in all that is saved."""
    one, two = records(expected), records(found)
    assert [r["step"] for r in two] == [r["step"] for r in one] == list(range(1, 13))
    for a, b in zip(one, two, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=2e-6)
        assert b["norm"] == pytest.approx(a["norm"], rel=2e-5)
        for key in ("balance", "z", "load_max", "load_min"):
            assert b[key] == pytest.approx(a[key], rel=1e-4), key
        assert (b["rate"], b["tokens"]) == (a["rate"], a["tokens"])
        if "validation" in a:
            assert b["validation"] == pytest.approx(a["validation"], rel=1e-5)
            assert b["sample"] == a["sample"]
    states = [load_state(run / CHECKPOINT_FILE) for run in (expected, found)]
    for part in ("model", "ema"):
        for name, tensor in states[0][part].items():
            torch.testing.assert_close(states[1][part][name], tensor, rtol=1e-3, atol=1e-5)
    for name, moments in states[0]["optimizer"].items():
        for key, tensor in moments.items():
            torch.testing.assert_close(
                states[1]["optimizer"][name][key], tensor, rtol=1e-2, atol=1e-7
            )


@pytest.fixture(scope="module")
def runs(small_config: ModelConfig, prepared: Path, tmp_path_factory: Any) -> Path:
    """one: a run in this process. ddp, fsdp: in two. to_…, from_…: the number changes half-way."""
    out: Path = tmp_path_factory.mktemp("runs")
    architecture = Architecture(small_config)
    Trainer(architecture, SHARED, prepared, out / "one").run(quiet=True)
    Trainer(architecture, SHARED, prepared, out / "to_ddp").run(until=HALF, quiet=True)
    shutil.copytree(out / "to_ddp", out / "to_fsdp")
    plan = {
        "ddp": {},
        "fsdp": {"parallel": "fsdp", "statistics_every": 6},
        "to_ddp": {},
        "to_fsdp": {"parallel": "fsdp"},
        "from_ddp": {"until": HALF},
        "from_fsdp": {"until": HALF, "parallel": "fsdp"},
        "nan": {"parallel": "fsdp"},
    }
    about = {"architecture": architecture.to_dict(), "settings": vars(SHARED), "runs": plan}
    program = Path(__file__).with_name("two_processes.py")
    done = launch([str(program), json.dumps(about), str(prepared), str(out)])
    assert done.returncode == 0, done.stderr
    for name in ("from_ddp", "from_fsdp"):
        run = Trainer(architecture, SHARED, prepared, out / name)
        assert run.step == HALF
        run.run(quiet=True)
    return out


@pytest.mark.parametrize("name", ["ddp", "fsdp", "to_ddp", "to_fsdp", "from_ddp", "from_fsdp"])
def test_two_processes_make_the_same_run_as_one(runs: Path, name: str) -> None:
    assert_same_run(runs / name, runs / "one")


def test_shards_are_whole_in_the_statistics(runs: Path) -> None:
    line = (runs / "fsdp" / "statistics.jsonl").read_text().splitlines()[-1]
    found = json.loads(line)["parameters"]
    state = load_state(runs / "fsdp" / CHECKPOINT_FILE)
    assert json.loads(line)["step"] == 12
    assert set(found) == set(state["model"])
    # those of the weights before the last step
    name = "unembedding.weight"
    assert found[name]["norm"] == pytest.approx(state["model"][name].norm().item(), rel=1e-2)


def test_nan_in_one_process_stops_both(runs: Path) -> None:
    messages = [(runs / f"nan.{rank}.txt").read_text() for rank in (0, 1)]
    assert messages[0] == messages[1]
    assert messages[0].startswith("step 1: loss nan")
    assert not (runs / "nan" / CHECKPOINT_FILE).exists()


def test_command_under_torchrun(prepared: Path, tmp_path: Path) -> None:
    """One voice, one writer."""
    changes = (
        "steps=4 hidden_size=32 intermediate_size=32 num_hidden_layers=1 batch_tokens=128 "
        "length=64 long_length=64 warmup=1 validate_every=4 sample_tokens=2 parallel=fsdp"
    )
    given = ["-m", "gptoss", "train", "--data", str(prepared), "--out", str(tmp_path / "run")]
    given += [part for change in changes.split() for part in ("--set", change)]
    done = launch([*given, "--preset", "nano-cpu"])
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("step 4/4") == done.stdout.count("2 processes (fsdp)") == 1
    assert [r["step"] for r in records(tmp_path / "run")] == [1, 2, 3, 4]


@pytest.mark.parametrize(("rank", "lines"), [("0", 1), ("1", 0)])
def test_only_the_first_process_says_what_is_wrong(
    prepared: Path,
    tmp_path: Path,
    rank: str,
    lines: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("RANK", rank)
    given = ["train", "--data", str(prepared), "--out", str(tmp_path / "run")]
    assert main([*given, "--preset", "nano", "--set", "texts=tales"]) == 1
    assert len(capsys.readouterr().err.splitlines()) == lines


def test_rows_are_shared_evenly() -> None:
    device = torch.device("cpu")
    found = [World(rank, 4, device).share(8) for rank in range(4)]
    assert [i for part in found for i in range(8)[part]] == list(range(8))
    with pytest.raises(Error, match="batch_tokens: .* 3 processes can share evenly, found 8 rows"):
        World(0, 3, device).share(8)


def test_a_missing_gpu_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert join("auto") == World(0, 1, torch.device("cpu"))
    with pytest.raises(Error, match="device: expected auto, cpu or cuda, found 'cuda' and no GPU"):
        join("cuda")
