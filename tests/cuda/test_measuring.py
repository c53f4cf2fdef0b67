"""bench.py and bench/cuda.py run, emulated; how fast a GPU is, is not a test's business."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from waiting import WORK

from gptoss.native import _kernels

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def run(*command, **environment):
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        capture_output=True, text=True, timeout=WORK, env={**os.environ, **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_kernel_is_measured():
    printed = run(ROOT / "bench" / "cuda.py", "--library", "", "--small", "--repeat", 1)
    rows = [line.split(" | ") for line in printed.splitlines() if line.startswith("| ")][1:]
    kernels = {row[0][2:] for row in rows}
    assert {"gemv_bf16", "gemm_bf16", "gemm_hopper", "experts_few", "experts_tiles",
            "experts_hopper", "attention_decode", "attention_prefill", "route", "rms_norm",
            "sample"} <= kernels  # fmt: skip
    for row in rows:
        assert float(row[2]) > 0, row


def test_whole_steps_are_measured(tmp_path, tiny_a):
    (tmp_path / "libgptoss_cuda.so").symlink_to(_kernels.__file__)
    options = ["--prefill", 20, "--decode", 2, "--batch", "1,2", "--repeat", 1]
    printed = run(ROOT / "bench.py", "--device", "cuda", "--model", tiny_a, *options,
                  GPTOSS_PLUGINS=str(tmp_path))  # fmt: skip
    assert "emulated on the CPU" in printed and "decode    batch 2" in printed
