"""`gptoss serve`: starts, says where, ends when it is told to; invalid options."""

import re
import signal
import subprocess
import sys

import httpx
import pytest
from waiting import PATIENCE

SERVE = [sys.executable, "-m", "gptoss", "serve", "--port", "0", "--threads", "1"]


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_until_it_is_told_to_end(how):
    with subprocess.Popen([*SERVE, "--name", "nano"], stderr=subprocess.PIPE, text=True) as process:
        address = None
        for line in process.stderr:
            if found := re.search(r"running on (http://127\.0\.0\.1:\d+)", line):
                address = found[1]
                break
        assert address
        body = {"prompt": "Once upon a time", "max_tokens": 5, "model": "nano"}
        answer = httpx.post(f"{address}/v1/completions", json=body)
        assert answer.json()["choices"][0]["text"]
        body = {**body, "max_tokens": 300, "stream": True}
        with httpx.stream("POST", f"{address}/v1/completions", json=body) as stream:
            lines = stream.iter_lines()
            next(lines)
            process.send_signal(how)  # what runs is finished first
            assert "data: [DONE]" in list(lines)
        process.stderr.read()
        assert process.wait(PATIENCE) in (0, -how)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--port", "99999"], "--port: expected 0 to 65535, found 99999"),
        (["--max-requests", "0"], "--max-sequences: expected at least 1"),
        (["--model", "no-such-model"], "no-such-model"),
    ],
)
def test_options_that_are_none(options, message):
    done = subprocess.run([*SERVE, *options], capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 1
    assert message in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr


def test_a_place_that_others_reach_without_a_key_is_warned_of():
    command = [*SERVE, "--host", "0.0.0.0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        lines = []
        for line in process.stderr:
            lines.append(line)
            if "running on" in line:
                break
        process.terminate()
        process.stderr.read()
    assert any("no --api-key is set" in line for line in lines)
