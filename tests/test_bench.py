"""bench.py measures and reports; how fast it is, is not a test's business."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[1] / "bench.py"


def run(*arguments):
    return subprocess.run(
        [sys.executable, BENCH, *map(str, arguments)], capture_output=True, text=True, timeout=300
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
    assert report["peak_flops"] is None or report["peak_flops"] > 0
    assert [entry["batch"] for entry in report["decode"]] == [1, 3]
    assert report["decode"][0]["depth"] == 20
    assert report["peak_memory_bytes"] >= report["weight_bytes"]
    for entry in (report["prefill"], *report["decode"]):
        spread = entry["tokens_per_s"]
        assert spread["low"] <= spread["median"] <= spread["high"]


def test_bytes_and_operations_are_those_of_the_model(report):
    """tiny-a by hand: 4 layers, hidden 128, 8 of 2 heads of 64, 8 experts of 96, 512 tokens."""
    dense = 4 * ((2 * 512 + 2 * 128) * 128 + 8 * 128) + 512 * 128
    expert = 3 * 128 * 96
    keys = 2 * 16 + 2 * 22  # position 21: two layers with a window of 16, two without
    step = 2 * dense + 4 * 4 * expert * 17 / 32 + keys * 2 * 128 * 2
    assert report["decode"][0]["bytes_per_step"] == pytest.approx(step)
    operations = 2 * (dense + 4 * 4 * expert) + 4 * keys * 512
    assert report["decode"][0]["operations_per_token"] == pytest.approx(operations)


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--model", "no-such-model"], 1, "no-such-model"),
        (["--weights", "q3"], 2, "invalid choice"),
        (["--batch", "0"], 2, "expected numbers from 1 on"),
        (["--decode", "0"], 2, "expected a number from 1 on"),
        (["--depth", "-1"], 2, "expected 0 or more"),
    ],
)
def test_wrong_options_are_one_line(arguments, status, message):
    done = run(*arguments)
    assert done.returncode == status
    assert message in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
