"""Engines and fork: a new one in the child works, the parent's says whose it is, none hangs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system knows no fork")


@pytest.fixture(scope="module")
def found(tiny_a):
    script = Path(__file__).parent / "forked_engines.py"
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", script, tiny_a],
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    "call", ["generate", "generate_groups", "stream", "open_stream", "logits", "info", "async"]
)
def test_the_parents_engine_says_whose_it_is(found, call):
    assert f"engine: it belongs to the process that made it (pid {found['pid']})" in found[call]
    assert "'spawn'" in found[call]


@pytest.mark.parametrize("call", ["close", "close_groups"])
def test_the_parents_engine_can_be_closed(found, call):
    assert found[call] == "closed"


def test_the_parents_engine_can_be_dropped(found):
    assert found["drop"] == "dropped"


def test_what_needs_no_thread_works_on(found):
    assert found["tokenizer"] == "Once upon a time"


def test_a_new_engine_computes_what_the_parents_does(found):
    assert found["new_engine"] == found["tokens"]
    assert found["new_groups"] == found["groups_tokens"]


def test_the_parent_goes_on(found):
    assert found["tokens_in_parent"] == found["tokens"]
    assert found["rest_in_parent"] == len(found["tokens"]) - 1
