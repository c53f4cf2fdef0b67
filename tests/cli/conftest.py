"""Runs `python -m gptoss` as a user would."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
from waiting import WORK

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default"}


@pytest.fixture
def gptoss(environment: dict[str, str]) -> Run:
    """gptoss(*arguments, stdin=…, **changes to the environment): a finished process."""

    def run(
        *arguments: object, stdin: str | bytes = "", **changes: str
    ) -> subprocess.CompletedProcess[str]:
        result = subprocess.run(
            [sys.executable, "-m", "gptoss", *map(str, arguments)],
            input=stdin.encode() if isinstance(stdin, str) else stdin,
            capture_output=True,
            timeout=WORK,
            env={**environment, **changes},
        )
        return subprocess.CompletedProcess(
            result.args, result.returncode, result.stdout.decode(), result.stderr.decode()
        )

    return run
