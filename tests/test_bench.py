"""bench.py measures and reports; how fast it is, is not a test's business."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from waiting import WORK

BENCH = Path(__file__).parents[1] / "bench.py"


def run(*arguments):
    return subprocess.run(
        [sys.executable, BENCH, *map(str, arguments)], capture_output=True, text=True, timeout=WORK
    )


@pytest.fixture(scope="module")
def report(tiny_a, tmp_path_factory):
    path = tmp_path_factory.mktemp("bench") / "report.json"
    options = ["--prefill", 40, "--decode", 3, "--batch", "1,3", "--depth", 20, "--repeat", 2]
    done = run("--model", tiny_a, *options, "--json", path)
    assert done.returncode == 0, done.stderr
    assert "tokens/s" in done.stdout
    return json.loads(path.read_text())


def test_every_figure_is_there(report):
    for key in (
        "prefill_tokens_per_s",
        "decode_tokens_per_s",
        "peak_memory_bytes",
        "load_s",
        "bandwidth_bytes_per_s",
        "time_to_first_token_s",
    ):
        assert report[key] > 0, key
    assert report["peak_flops"] > 0
    assert [entry["batch"] for entry in report["decode"]] == [1, 3]
    assert report["decode"][0]["depth"] == 20
    assert report["peak_memory_bytes"] >= report["weight_bytes"]
    for entry in (*report["prefill"], *report["decode"]):
        spread = entry["tokens_per_s"]
        assert spread["low"] <= spread["median"] <= spread["high"]


WITHOUT_KERNELS = """
import runpy, sys
sys.modules["gptoss.native._kernels"] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_an_installation_for_users_measures_what_it_can(tiny_a, tmp_path):
    """Without gptoss.native._kernels memory is measured all the same, arithmetic is not."""
    path = tmp_path / "report.json"
    options = ["--prefill", "8", "--decode", "2", "--repeat", "1", "--json", path]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_KERNELS, BENCH, "--model", tiny_a, *options],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "developer's build" in done.stdout
    report = json.loads(path.read_text())
    assert report["bandwidth_bytes_per_s"] > 0
    assert report["decode"][0]["share_of_bandwidth"] > 0
    assert report["peak_flops"] is None
    assert report["prefill"][0]["share_of_peak"] is None


def test_bytes_and_operations_are_those_of_the_model(report):
    """tiny-a by hand: 4 layers, hidden 128, 8 of 2 heads of 64, 8 experts of 96, 512 tokens."""
    dense = 4 * ((2 * 512 + 2 * 128) * 128 + 8 * 128) + 512 * 128
    expert = 3 * 128 * 96
    keys = 2 * 16 + 2 * 25  # position 24: two layers with a window of 16, two without
    step = 2 * dense + 4 * 4 * expert * 17 / 32 + keys * 2 * 128 * 2
    assert report["decode"][0]["bytes_per_step"] == pytest.approx(step)
    operations = 2 * (dense + 4 * 4 * expert) + 4 * keys * 512
    assert report["decode"][0]["operations_per_token"] == pytest.approx(operations)


def test_q8_costs_fewer_bytes(tiny_a, tmp_path):
    path = tmp_path / "report.json"
    options = ["--weights", "q8", "--kv", "int8", "--prefill", "8,20", "--decode", 2]
    done = run("--model", tiny_a, *options, "--repeat", 1, "--json", path)
    assert done.returncode == 0, done.stderr
    report = json.loads(path.read_text())
    assert [entry["tokens"] for entry in report["prefill"]] == [8, 20]
    dense = 4 * ((2 * 512 + 2 * 128) * 128 + 8 * 128) + 512 * 128
    step = dense * 34 / 32 + 4 * 4 * 3 * 128 * 96 * 17 / 32 + 4 * 2 * 2 * 128 * (1 + 4 / 64)
    assert report["decode"][0]["bytes_per_step"] == pytest.approx(step)


FAKE_PEER = """
import json, sys
print(json.dumps({"load_s": 1.0, "version": "of paper"}), flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    print(json.dumps({"seconds": asked.get("prefill", 50) / 100}), flush=True)
"""


def test_a_peer_on_the_same_line(tiny_a, tmp_path):
    """A Python that runs a fake peer instead of what it is told to run."""
    script, python = tmp_path / "peer.py", tmp_path / "python"
    script.write_text(FAKE_PEER)
    python.write_text(f"#!/bin/sh\nexec {sys.executable} {script}\n")
    python.chmod(0o755)
    path = tmp_path / "report.json"
    options = ["--prefill", 20, "--decode", 2, "--batch", "1,2", "--repeat", 2, "--json", path]
    peer = ["--peer", "llama.cpp", "--peer-python", python, "--peer-model", "x.gguf"]
    done = run("--model", tiny_a, *options, *peer)
    assert done.returncode == 0, done.stderr
    assert "llama-cpp-python of paper" in done.stdout
    report = json.loads(path.read_text())
    assert report["prefill"][0]["peer_tokens_per_s"]["median"] == pytest.approx(100)
    assert report["decode"][0]["peer_tokens_per_s"]["median"] == pytest.approx(2)
    assert report["decode"][1]["peer_tokens_per_s"] is None  # batches are ours alone
    assert sum(" x\n" in line for line in done.stdout.splitlines(True)) == 2


@pytest.mark.parametrize("python", ["/no/such/python", "/bin/true"])
def test_a_peer_that_does_not_start(tiny_a, python):
    peer = ["--peer", "llama.cpp", "--peer-python", python, "--peer-model", "x.gguf"]
    done = run("--model", tiny_a, "--prefill", 8, "--decode", 1, "--repeat", 1, *peer)
    assert done.returncode == 1
    expected = "--peer-python" if python != "/bin/true" else "ended without an answer"
    assert expected in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--model", "no-such-model"], 1, "no-such-model"),
        (["--weights", "q3"], 2, "invalid choice"),
        (["--batch", "0"], 2, "expected numbers from 1 on"),
        (["--decode", "0"], 2, "expected a number from 1 on"),
        (["--depth", "-1"], 2, "expected numbers from 0 on"),
        (["--peer", "llama.cpp"], 2, "expected --peer-python and --peer-model"),
    ],
)
def test_wrong_options_are_one_line(arguments, status, message):
    done = run(*arguments)
    assert done.returncode == status
    assert message in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


JUDGE = """
import json, sys
from bench.serve import Answer, Ask
from bench.soak import grows, lost_of

stays, leaves = Ask([1], 3), Ask([1], 3, leaves=2)
three, gone = [0.1, 0.2, 0.3], "replica 1 ended while it had this request"
answers = {
    "whole": Answer(stays, times=three, finish="length", begun=True),
    "left": Answer(leaves, times=three[:2], begun=True),
    "cut": Answer(stays, times=three[:2], begun=True),
    "left with an error": Answer(leaves, times=three[:1], error="500", begun=True),
    "left before its time": Answer(leaves, times=three[:1], begun=True),
    "never begun": Answer(stays, error=gone),
    "ended with a replica": Answer(stays, times=three[:1], error=gone, begun=True),
}
lost = {harmed: [[name for name, a in answers.items() if a is b][0] for b in lost_of(
    list(answers.values()), harmed)[0]] for harmed in (True, False)}
mb = 1 << 20
print(json.dumps([lost[True], lost[False],
                  grows([100 * mb] * 3 + [300 * mb] * 6), grows([300 * mb] * 6 + [600 * mb] * 3)]))
"""


def test_what_a_soak_calls_lost():
    """A request may end with its replica where one was harmed, and it had begun, and it says so."""
    done = subprocess.run(
        [sys.executable, "-c", JUDGE], capture_output=True, text=True, cwd=BENCH.parent
    )
    assert done.returncode == 0, done.stderr
    with_harm, without, flat, grown = json.loads(done.stdout)
    assert with_harm == ["cut", "left with an error", "left before its time", "never begun"]
    assert without == [*with_harm, "ended with a replica"]
    assert not flat and grown
