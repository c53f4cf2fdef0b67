"""The command line from nothing to a conversation, with a Hub beside it."""

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
import urllib.request

import pytest
from waiting import WORK, until

from gptoss.checkpoint import open_checkpoint, write_gguf


@pytest.fixture
def gptoss(hub):
    def run(*arguments, stdin="", **environment):
        return subprocess.run(
            [sys.executable, "-m", "gptoss", *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=WORK,
            env={**os.environ, **environment},
        )

    return run


@pytest.fixture
def words(hub, tiny_a_words):
    """The Hub's gpt-oss-20b has a vocabulary, so that it can be talked to."""
    files = hub.repositories["openai/gpt-oss-20b"]
    del files["tokenizer.json"]
    for name in ("tokenizer.tiktoken", "tokenizer_config.json"):
        files[name] = (tiny_a_words / name).read_bytes()


def test_from_nothing_to_an_answer(gptoss, hub, words):
    """Broken off, resumed, and then without the network."""
    command = ("run", "gpt-oss:20b", "Hello", "--max-tokens", "8", "--temperature", "0")
    hub.break_after = [2000] + [0] * 30
    first = gptoss(*command)
    assert first.returncode == 1 and first.stdout == ""
    assert "broken off after 2000 of" in first.stderr and "goes on from there" in first.stderr
    hub.break_after = []
    second = gptoss(*command)
    assert second.returncode == 0 and second.stdout.strip()
    assert "downloading openai/gpt-oss-20b" in second.stderr and "of it are here" in second.stderr
    assert "gptoss pull gpt-oss:20b --pack" in second.stderr
    third = gptoss(*command, "--offline")
    assert third.stdout == second.stdout and "found in Hugging Face's cache" in third.stderr
    piped = gptoss("run", "gpt-oss-20b", "--max-tokens", "8", "--temperature", "0", stdin="Hello")
    assert piped.stdout == third.stdout


def test_pull_list_pack_rm(gptoss, hub, words, home):
    assert gptoss("pull", "gpt-oss-20b").returncode == 0
    packed = gptoss("pull", "gpt-oss-20b", "--pack")
    assert packed.returncode == 0 and "packed (published): ~/.cache/gptoss/" in packed.stdout
    listed = gptoss("list").stdout.splitlines()
    assert [line.split()[0] for line in listed] == ["MODEL", "nano", "gpt-oss-20b", "gpt-oss-20b"]
    assert str(home) not in listed[2] and listed[2].split()[-1].startswith("~/hf/hub/models--")
    rows = json.loads(gptoss("list", "--json").stdout)
    assert rows[2]["where"] == "gptoss, packed published" and rows[2]["bytes"] > 0
    run = ("run", "gpt-oss-20b", "Hello", "--max-tokens", "8", "--temperature", "0")
    started = gptoss(*run)
    assert "starts from its packed copy" in started.stderr and started.stdout.strip()
    removed = gptoss("rm", "gpt-oss-20b")
    assert removed.returncode == 0 and "removed" in removed.stdout
    assert len(gptoss("list").stdout.splitlines()) == 2
    again = gptoss("rm", "gpt-oss-20b")
    assert again.returncode == 1 and "expected something that gptoss downloaded" in again.stderr


def test_commands_take_the_name(gptoss, hub, words, tmp_path):
    gptoss("pull", "gpt-oss-20b")
    hub.asked.clear()
    info = json.loads(gptoss("info", "gpt-oss:20b", "--json").stdout)
    assert info["layout"] == "huggingface"
    assert json.loads(gptoss("info", "-m", "gpt-oss:20b", "--json").stdout) == info
    made = gptoss("convert", "gpt-oss-20b", "out", "--layout", "original")
    assert made.returncode == 0 and (tmp_path / "work" / "out" / "config.json").is_file()
    chat = gptoss("chat", "gpt-oss-20b", "--max-tokens", "4", stdin="Hello\n")
    assert chat.returncode == 0 and chat.stdout.strip()
    assert hub.asked == []


@pytest.mark.parametrize("name", ["pull", "rm"])
def test_local_models_are_not_pulled_or_removed(gptoss, hub, name):
    result = gptoss(name, "nano")
    assert result.returncode == 2 and "expected a model of the Hub, found nano" in result.stderr


def test_a_typo_downloads_nothing(gptoss, hub):
    for name in ("gpt-os-20b", "opnai/gpt-oss-20b"):
        result = gptoss("run", name, "Hello")
        assert result.returncode == 1 and "did you mean" in result.stderr
    assert hub.asked == []


def test_offline(gptoss, hub):
    for options, environment in ((["--offline"], {}), ([], {"HF_HUB_OFFLINE": "1"})):
        result = gptoss("run", "gpt-oss-20b", "Hello", *options, **environment)
        assert result.returncode == 1 and "downloads are off" in result.stderr
    result = gptoss("viz", "entropy", "gpt-oss-20b", "--text", "Hello", "--offline")
    assert result.returncode == 1 and "downloads are off" in result.stderr
    assert hub.asked == []


def test_ctrl_c_while_it_downloads(hub, words):
    """Within a second, without a traceback, and nothing of what came is lost."""
    hub.before_file = lambda name: time.sleep(600) if name.endswith("00001-of-00002.safetensors") \
        else None  # fmt: skip
    child = subprocess.Popen(
        [sys.executable, "-m", "gptoss", "pull", "gpt-oss-20b"],
        stderr=subprocess.PIPE,
        text=True,
    )
    until(lambda: any("/cdn/" in p and "00001-of" in p for _, p, _ in hub.asked), "the file")
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=WORK)
    assert child.returncode == 130 and "Traceback" not in said
    hub.before_file = lambda name: None
    hub.asked.clear()
    again = subprocess.run([sys.executable, "-m", "gptoss", "pull", "gpt-oss-20b"])
    assert again.returncode == 0
    asked = [p for _, p, _ in hub.asked if "/cdn/" in p]
    assert [p.rpartition("/")[2] for p in asked] == ["model-00001-of-00002.safetensors"]


@pytest.mark.parametrize(
    ("budget", "answer"), [("", b"packed (published)"), ("0", b"not kept: packed copies: ")]
)
def test_on_a_terminal_a_packed_copy_is_offered(hub, words, monkeypatch, budget, answer):
    """And kept when it is wanted; where it cannot be, the model answers all the same."""
    monkeypatch.setenv("GPTOSS_CACHE_BYTES", budget)
    main, other = pty.openpty()
    command = ["run", "gpt-oss-20b", "Hello", "--max-tokens", "4"]
    child = subprocess.Popen(
        [sys.executable, "-m", "gptoss", *command],
        stdin=other,
        stderr=other,
        stdout=subprocess.PIPE,
    )
    os.close(other)
    said = b""
    while b"[y/N]" not in said:
        said += os.read(main, 1000)
    os.write(main, b"y\n")
    while answer not in said:
        said += os.read(main, 1000)
    out, _ = child.communicate(timeout=WORK)
    os.close(main)
    assert child.returncode == 0 and b"packed" not in out
    rows = subprocess.run(
        [sys.executable, "-m", "gptoss", "list"], capture_output=True, text=True
    ).stdout
    assert ("gptoss, packed published" in rows) == (not budget)


def test_another_name_is_the_one_to_type(gptoss, hub, words):
    """What is said and listed can be given to the next command."""
    hub.repositories["somebody/my-gpt-oss-20b"] = hub.repositories["openai/gpt-oss-20b"]
    first = gptoss("run", "hf:somebody/my-gpt-oss-20b@v1", "Hello", "--max-tokens", "4")
    assert "gptoss pull hf:somebody/my-gpt-oss-20b@v1 --pack" in first.stderr
    assert gptoss("pull", "hf:somebody/my-gpt-oss-20b@v1", "--pack").returncode == 0
    names = {row["name"] for row in json.loads(gptoss("list", "--json").stdout)}
    assert names == {"nano", "somebody/my-gpt-oss-20b"}
    removed = gptoss("rm", "somebody/my-gpt-oss-20b")
    assert removed.returncode == 0 and "kept" not in removed.stdout


def test_gguf_repositories_are_removed_by_the_name_that_is_listed(gptoss, hub, tiny_a, tmp_path):
    repo = "ggml-org/gpt-oss-20b-GGUF"
    with open_checkpoint(tiny_a) as source:
        (made,) = write_gguf(source, tmp_path / "made")
    hub.repositories[repo] = {"gpt-oss-20b-mxfp4.gguf": made.read_bytes()}
    pulled = gptoss("pull", repo)
    assert pulled.returncode == 0, pulled.stderr
    rows = json.loads(gptoss("list", "--json").stdout)
    assert rows[1]["name"] == repo
    refused = gptoss("rm", f"hf:{repo}/gpt-oss-20b-mxfp4.gguf")
    assert refused.returncode == 2 and f"a whole repository, as {repo}" in refused.stderr
    removed = gptoss("rm", repo)
    assert removed.returncode == 0 and "kept" not in removed.stdout


def test_replicas_start_from_a_packed_copy(gptoss, hub, words, home):
    """By the model's name, and though nothing else is left of it."""
    assert gptoss("pull", "gpt-oss-20b", "--pack").returncode == 0
    shutil.rmtree(home / "hf")
    server = subprocess.Popen(
        [sys.executable, "-m", "gptoss", "serve", "gpt-oss-20b", "--replicas", "2", "--port", "0"],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert server.stderr is not None
    said = []
    for line in server.stderr:
        said.append(line)
        if "chat page" in line:
            break
    assert server.poll() is None, "".join(said)
    address = said[-1].split()[-1]
    with urllib.request.urlopen(f"{address}v1/models") as answer:
        assert json.load(answer)["data"][0]["id"] == "gpt-oss-20b"
    server.send_signal(signal.SIGINT)
    server.communicate(timeout=WORK)
    assert any("found packed" in line for line in said)
