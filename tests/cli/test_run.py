"""`gptoss run`: its words among options, and what it does without one of its streams."""

import os
import subprocess
import sys

import pytest
from waiting import WORK

FEW = ("--max-tokens", "4", "--temperature", "0")


@pytest.mark.parametrize(
    "words",
    [
        ("run", "nano", *FEW, "Once", "upon"),
        ("run", *FEW, "nano", "Once", "upon"),
        ("run", "-m", "nano", *FEW, "Once", "upon"),
        ("run", "Once", "-m", "nano", "upon", *FEW),
        ("run", "nano", *FEW, "--", "Once", "upon"),
    ],
)
def test_options_stand_where_people_put_them(gptoss, words):
    wanted = gptoss("run", "nano", "Once upon", *FEW).stdout
    result = gptoss(*words)
    assert result.returncode == 0 and result.stdout == wanted and wanted.strip()


def test_an_option_that_is_none(gptoss):
    result = gptoss("run", "nano", "--bogus", "Once")
    assert result.returncode == 2 and "unrecognized arguments: --bogus" in result.stderr


@pytest.mark.parametrize("command", ["run", "chat"])
def test_a_value_out_of_range(gptoss, command):
    result = gptoss(command, "nano", "--max-tokens", "0")
    first, second = result.stderr.splitlines()
    assert result.returncode == 2 and second == f"gptoss {command} --help lists what there is."
    assert first.startswith(f"gptoss {command}: error: max_tokens: expected an integer from 1")


@pytest.mark.parametrize(
    ("command", "closed"),
    [
        (("list",), "1"),
        (("run", "nano", "Once", *FEW), "1"),
        (("run", "nano", "Once", *FEW), "2"),
        (("run", "nano", *FEW), "0"),
        (("chat", "nano", *FEW), "0"),
        (("chat", "nano", *FEW), "012"),
    ],
)
def test_a_stream_that_is_closed(environment, command, closed):
    result = subprocess.run(
        [sys.executable, "-m", "gptoss", *command],
        capture_output=True,
        stdin=subprocess.DEVNULL,
        env=environment,
        timeout=WORK,
        preexec_fn=lambda: [os.close(int(number)) for number in closed],
    )
    assert result.returncode == 0 and b"Traceback" not in result.stderr
