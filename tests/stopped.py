"""Sends a signal to `gptoss` in the middle of writing: after the tensors, before the target."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

# fsync comes when a file's bytes have been written. Reading waits until the signal comes.
# A run under nohup has the tests ignore SIGHUP, and their children with them.
_WAITING = """
import os, signal, sys
signal.signal(signal.SIGHUP, signal.SIG_DFL)
def wait(descriptor):
    print("writing", flush=True)
    sys.stdin.buffer.read()
os.fsync = wait
from gptoss.cli import main
sys.exit(main())
"""


def while_writing(directory: Path, *arguments: object) -> subprocess.Popen[str]:
    """`gptoss ARGUMENTS` that has begun to write into `directory`, and waits there."""
    process = subprocess.Popen(
        [sys.executable, "-c", _WAITING, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stderr is not None
    for line in process.stdout:
        if line == "writing\n":
            break
    else:
        raise AssertionError(process.stderr.read())
    assert partials(directory)
    return process


def partials(directory: Path) -> list[str]:
    """Names of what is half written."""
    return sorted(path.name for path in directory.iterdir() if ".partial" in path.name)


def stop(process: subprocess.Popen[str], *numbers: signal.Signals) -> tuple[int, str]:
    """Send signals; the exit status and what was written to standard error."""
    for number in numbers:
        process.send_signal(number)
    _, stderr = process.communicate(timeout=120)
    return process.returncode, stderr
