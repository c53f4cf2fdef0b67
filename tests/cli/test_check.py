"""`gptoss check`: what it finds of good and of damaged models, its block, its exit codes."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from waiting import WORK

from gptoss.checkpoint import BUNDLED_MODEL, ArraySource, open_checkpoint, write_checkpoint
from gptoss.model import f32_to_bf16

FAST = ("kl bf16", "kl q8", "kl int8")


def verdicts(path: Path) -> dict[str, str]:
    return {each["name"]: each["verdict"] for each in json.loads(path.read_text())["checks"]}


def lines(path: Path) -> dict[str, str]:
    return {each["name"]: each["line"] for each in json.loads(path.read_text())["checks"]}


def copied(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target


def test_the_bundled_model_is_well(gptoss, tmp_path):
    out = tmp_path / "found.json"
    done = gptoss("check", "nano", "--json", out)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("```\ngptoss check ") and done.stdout.endswith("\n```\n")
    assert done.stdout.count("```") == 2
    found = json.loads(out.read_text())
    assert found["failed"] == [] and found["interrupted"] is False
    expected = dict.fromkeys(verdicts(out), "ok")
    expected |= dict.fromkeys(("harmony", "tool call", "effort"), "skipped")
    if find_spec("transformers") is None or find_spec("torch") is None:
        expected["transformers"] = "skipped"
    assert verdicts(out) == expected
    figures = {each["name"]: each["figures"] for each in found["checks"]}
    for name in FAST:
        assert 0 < figures[name]["kl"] < 1e-3 and figures[name]["top1"] > 0.95
    assert 1.5 < figures["perplexity"]["bits_per_byte"] < 2.2
    assert figures["speed"]["decode_tokens_per_second"] > 0
    assert 0 < figures["speed"]["share_of_bandwidth"]
    assert figures["memory"]["peak"] > figures["memory"]["weights"]
    for name, verdict in verdicts(out).items():  # the block and the progress say the same
        assert re.search(rf"^{re.escape(name)} +{verdict} ", done.stdout, re.M)
        assert re.search(rf"^{re.escape(name)} +{verdict} ", done.stderr, re.M)
    assert "'The capital of France is' → " in done.stdout


def test_made_up_weights_have_no_tokenizer_and_fail_nothing(gptoss, tmp_path):
    out = tmp_path / "found.json"
    done = gptoss("check", "synthetic:tiny", "--quick", "--json", out, "--threads", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    found = verdicts(out)
    assert set(found.values()) == {"ok", "skipped"}
    assert [name for name, verdict in found.items() if verdict == "ok"] == [
        "files", "configuration", "bandwidth", "load", "continuations", "speed", "memory"
    ]  # fmt: skip
    assert lines(out)["kl q8"] == "left out with --quick"
    assert "threads=1" in done.stdout


def test_made_up_weights_of_harmony_report_what_they_write(gptoss, tmp_path):
    pytest.importorskip("tiktoken")
    if "TIKTOKEN_ENCODINGS_BASE" not in os.environ:
        pytest.skip("TIKTOKEN_ENCODINGS_BASE does not name a folder with o200k_base.tiktoken")
    out = tmp_path / "found.json"
    done = gptoss("check", "synthetic:tiny?vocab=201088&layers=1", "--quick", "--json", out)
    assert done.returncode == 0, done.stdout + done.stderr
    found, said = verdicts(out), lines(out)
    assert found["tokenizer"] == found["harmony"] == found["tool call"] == "ok"
    assert said["tool call"].endswith("(of weights that are made up)")
    assert "known ids of 6 texts" in said["tokenizer"]


def test_a_model_that_does_not_open(gptoss, tmp_path):
    model = tmp_path / "model"
    copied(BUNDLED_MODEL, model)
    os.truncate(model / "model.safetensors", 5_000_000)
    out = tmp_path / "found.json"
    done = gptoss("check", model, "--json", out)
    assert done.returncode == 1
    found = verdicts(out)
    assert found["files"] == "FAILED"
    # The hashes, so that the report says which file this is.
    expected = {"files": "FAILED", "bandwidth": "ok", "hashes": "ok"}
    assert "model.safetensors  5,000,000  sha256:" in done.stdout
    assert found == {name: expected.get(name, "skipped") for name in found}
    assert "Traceback" not in done.stderr and "FAILED: files." in done.stderr


def test_a_weight_that_is_no_number(gptoss, tmp_path):
    with open_checkpoint(BUNDLED_MODEL) as source:
        arrays = {info.name: np.array(source.tensor(info.name)) for info in source.tensors()}
        arrays["block.1.mlp.norm.scale"][7] = f32_to_bf16(np.array([np.nan], np.float32))[0]
        write_checkpoint(
            ArraySource(source.config, arrays, directory=BUNDLED_MODEL), tmp_path / "model"
        )
    out = tmp_path / "found.json"
    done = gptoss("check", tmp_path / "model", "--json", out)
    assert done.returncode == 1
    found, said = verdicts(out), lines(out)
    for name in ("weights", "continuations", "perplexity", "f32 logits"):
        assert found[name] == "FAILED", name
    assert "block.1.mlp.norm.scale (1)" in said["weights"]
    assert "NaN" in said["continuations"] and "NaN" in said["f32 logits"]
    assert found["kl q8"] == "skipped" and found["memory"] == "ok"


def test_a_tokenizer_of_another_model(gptoss, tmp_path):
    """The same vocabulary in another order: every text comes back, and means something else."""
    model = copied(BUNDLED_MODEL, tmp_path / "model")
    path = model / "tokenizer.tiktoken"
    ranks = [line.split(" ") for line in path.read_text().splitlines()]
    last = len(ranks) - 1
    path.write_text("".join(f"{token} {last - int(rank)}\n" for token, rank in ranks))
    out = tmp_path / "found.json"
    done = gptoss("check", model, "--quick", "--json", out)
    assert done.returncode == 1
    found = verdicts(out)
    assert found["perplexity"] == "FAILED"
    assert "does this tokenizer belong to this model?" in lines(out)["perplexity"]


def test_a_tokenizer_that_cannot_be_read(gptoss, tmp_path):
    model = copied(BUNDLED_MODEL, tmp_path / "model")
    (model / "tokenizer.tiktoken").write_text("IQ== 5000\n")
    done = gptoss("check", model, "--quick", "--json", tmp_path / "found.json")
    assert done.returncode == 1
    found = verdicts(tmp_path / "found.json")
    assert found["tokenizer"] == "FAILED"
    assert found["continuations"] == found["speed"] == "ok"  # of random tokens


def test_the_block_names_nobody(gptoss, tmp_path):
    home = tmp_path / "home" / "somebody"
    home.mkdir(parents=True)
    copied(BUNDLED_MODEL, home / "models" / "mine")
    done = gptoss("check", home / "models" / "mine", "--quick", "--json", home / "found.json",
                  HOME=str(home), USER="somebody", LOGNAME="somebody")  # fmt: skip
    assert done.returncode == 0
    assert "model    ~/models/mine" in done.stdout
    for text in (done.stdout, done.stderr, (home / "found.json").read_text()):
        assert "somebody" not in text and str(tmp_path) not in text


def test_ctrl_c_leaves_what_was_found(environment, tmp_path):
    out = tmp_path / "found.json"
    process = subprocess.Popen(
        [sys.executable, "-m", "gptoss", "check", "nano", "--json", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("harmony"):  # the next one takes seconds
            break
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=WORK)
    assert process.returncode == 130
    assert "Traceback" not in stderr
    assert stdout.startswith("```\n") and stdout.endswith("```\n")
    found = verdicts(out)
    assert found["files"] == found["tokenizer"] == "ok"
    # Or in the moment between two.
    assert lines(out)["bandwidth"] in ("interrupted", "not reached: interrupted")
    assert lines(out)["kl q8"] == "not reached: interrupted"
    assert json.loads(out.read_text())["interrupted"] is True


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--json", "/no/such/folder/found.json"], 2, "expected a file in a folder"),
        (["--device", "abacus"], 1, "abacus"),
        (["--threads", "0"], 1, "threads"),
        (["-m", "no/such/model"], 2, "expected one model, found nano and no/such/model"),
    ],
)
def test_wrong_options_are_told_at_once(gptoss, options, code, message):
    done = gptoss("check", "nano", *options)
    assert done.returncode == code
    assert message in done.stderr.splitlines()[0]
    assert done.stdout == "" and "Traceback" not in done.stderr
