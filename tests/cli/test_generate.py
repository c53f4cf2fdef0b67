"""`gptoss generate`: where the prompt comes from, what is printed, how it ends."""

import fcntl
import json
import os
import pty
import re
import signal
import subprocess
import sys
from contextlib import nullcontext

import pytest
from waiting import PATIENCE

from gptoss import Engine, SamplingParams
from gptoss.cli import main

OPTIONS = ("--max-tokens", 20, "--seed", 3, "--ignore-eos", "--activation", "f32", "--threads", 1)


@pytest.fixture(scope="module")
def wanted(tiny_a_words):
    """The text that OPTIONS lead to after "abc"."""
    params = SamplingParams(max_tokens=20, seed=3, ignore_eos=True)
    with Engine(tiny_a_words, activation="f32", threads=1) as engine:
        return engine.generate("abc", params)[0].text


def ended(text):
    return text if text.endswith("\n") else text + "\n"


def test_prompt_as_an_argument(gptoss, tiny_a_words, wanted):
    result = gptoss("generate", "abc", "-m", tiny_a_words, *OPTIONS)
    assert (result.returncode, result.stdout, result.stderr) == (0, ended(wanted), "")


@pytest.mark.parametrize("way", ["stdin", "dash", "file"])
def test_prompt_from_elsewhere(gptoss, tiny_a_words, wanted, tmp_path, way):
    (tmp_path / "prompt.txt").write_text("abc")
    arguments = {"stdin": [], "dash": ["-"], "file": ["--file", tmp_path / "prompt.txt"]}[way]
    stdin = "" if way == "file" else "abc"
    result = gptoss("generate", *arguments, "-m", tiny_a_words, *OPTIONS, stdin=stdin)
    assert (result.returncode, result.stdout) == (0, ended(wanted))


def test_echo_and_no_stream(gptoss, tiny_a_words, wanted):
    result = gptoss("generate", "abc", "-m", tiny_a_words, "--echo", "--no-stream", *OPTIONS)
    assert result.stdout == ended("abc" + wanted)


def test_stats_go_to_standard_error(gptoss, tiny_a_words, wanted):
    result = gptoss("generate", "abc", "-m", tiny_a_words, "--stats", *OPTIONS)
    assert result.stdout == ended(wanted)
    assert re.fullmatch(
        r"prompt \d+ tokens in [\d.]+ s \([\d.]+/s\); output 20 tokens, [\d.]+ tokens/s; "
        r"first token after [\d.]+ s; loaded in [\d.]+ s\n",
        result.stderr,
    )


def test_json_with_logprobs(gptoss, tiny_a_words, wanted):
    result = gptoss(
        "generate", "abc", "-m", tiny_a_words, "--json", "--logprobs", 2, "--n", 2, *OPTIONS
    )
    first, second = (json.loads(line) for line in result.stdout.splitlines())
    assert first["text"] == wanted and (first["index"], second["index"]) == (0, 1)
    assert first["finish_reason"] == "length" and len(first["token_ids"]) == 20
    assert len(first["logprobs"]) == 20 and len(first["logprobs"][0]["top"]) == 2
    assert first["timing"]["completion_tokens"] == 20


def test_several_choices(gptoss, tiny_a_words, wanted):
    result = gptoss("generate", "abc", "-m", tiny_a_words, "--n", 3, "--stats", *OPTIONS)
    assert result.stdout.startswith(f"--- 1 of 3 ---\n{wanted}\n--- 2 of 3 ---\n")
    assert "3 outputs, 60 tokens" in result.stderr


def test_stop_and_bias(gptoss, tiny_a_words):
    result = gptoss(
        *("generate", "abc", "-m", tiny_a_words, "--logit-bias", f"{ord('x')}=100"),
        *("--logit-bias", "3=-1", "--stop", "q", "--stop", "xxx", "--max-tokens", "none"),
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "\n", "")


@pytest.mark.parametrize("locale", [{"LC_ALL": "C"}, {"PYTHONIOENCODING": "ascii"}])
def test_output_is_utf8_in_any_locale(gptoss, tiny_a_words, locale):
    arguments = ("generate", "naïve 日本", "--echo", "-m", tiny_a_words, "--max-tokens", 1)
    result = gptoss(*arguments, PYTHONCOERCECLOCALE="0", **locale)
    assert result.returncode == 0 and result.stdout.startswith("naïve 日本")


# Errors.


def assert_usage(result, message):
    assert result.returncode == 2 and result.stdout == ""
    said, help_ = result.stderr.splitlines()  # not below a page of usage
    assert re.match(r"gptoss( \w+)?: error: ", said) and re.search(message, said)
    assert re.fullmatch(r"gptoss( \w+)? --help lists what there is\.", help_)


def assert_error(result, message):
    assert result.returncode == 1 and result.stdout == ""
    assert re.fullmatch(rf"gptoss: error: .*{message}.*\n", result.stderr)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--temperature", "-1"], "temperature: expected a number from 0"),
        (["--temperature", "nan"], "temperature: expected"),
        (["--temperature", "warm"], "--temperature: invalid float value: 'warm'"),
        (["--top-p", "2"], "top_p: expected"),
        (["--max-tokens", "0"], "max_tokens: expected"),
        (["--max-tokens", "many"], "expected a whole number, found 'many'"),
        (["--seed", "-1"], "seed: expected"),
        (["--logit-bias", "5"], "expected ID=X, such as 17=-100, found '5'"),
        (["--stop", ""], "stop: expected strings of 1 to"),
        (["--kv-bytes", "2 apples"], "expected a size such as 500MB or 2GiB, found '2 apples'"),
        (["--activation", "fp8"], "invalid choice: 'fp8'"),
        (["--file", "x"], "expected PROMPT or --file, found both"),
        (["--logprobs", "2"], "--logprobs is shown with --json only"),
        (["-m", "nano", "--model", "x"], "expected one model, found nano and x"),
        (["--no-such-option"], "unrecognized arguments"),
    ],
)
def test_usage_errors(gptoss, arguments, message):
    assert_usage(gptoss("generate", "abc", *arguments), message)


@pytest.mark.parametrize("arguments", [[], ["dance"]])
def test_no_such_command(gptoss, arguments):
    assert gptoss(*arguments).returncode == 2


def test_no_prompt_on_a_terminal(environment):
    """Instead of waiting for a text that the user does not know to type."""
    primary, secondary = pty.openpty()
    try:
        result = subprocess.run(
            [sys.executable, "-m", "gptoss", "generate"],
            stdin=secondary,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            env=environment,
        )
    finally:
        os.close(primary)
        os.close(secondary)
    assert_usage(result, "expected PROMPT, --file, or a text on standard input")


def test_runtime_errors_are_one_line(gptoss, tiny_a_words, tmp_path):
    (tmp_path / "latin1.txt").write_bytes(b"caf\xe9")
    model = ("-m", tiny_a_words)
    for arguments, message in (
        (("-m", tmp_path / "nothing"), "nothing"),
        ((*model, "--device", "tpu"), "device: expected"),
        ((*model, "--kv-bytes", "1"), "kv_bytes: expected at least"),
        ((*model, "--logit-bias", "512=1"), "logit_bias: expected token ids from 0 to 511"),
    ):
        assert_error(gptoss("generate", "abc", *arguments), message)
    assert_error(gptoss("generate", "--file", tmp_path / "no.txt", *model), "no.txt")
    assert_error(
        gptoss("generate", "--file", tmp_path / "latin1.txt", *model),
        "latin1.txt: expected UTF-8, found byte 0xe9 at offset 3",
    )
    assert_error(gptoss("generate", *model, stdin=b"\xff"), "standard input: expected UTF-8")


@pytest.mark.parametrize("place", ["before", "after"])
def test_debug_shows_a_traceback(gptoss, tmp_path, place):
    before, after = (["--debug"], []) if place == "before" else ([], ["--debug"])
    result = gptoss(*before, "generate", "abc", "-m", tmp_path / "nothing", *after)
    assert result.returncode == 1 and "Traceback" in result.stderr


def start(environment, *arguments):
    """A process that cannot come to its end: what is not read of it soon fills the pipe."""
    process = subprocess.Popen(
        [sys.executable, "-m", "gptoss", *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        # A job in the background ignores Ctrl-C and hands that on to its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    if hasattr(fcntl, "F_SETPIPE_SZ"):
        fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, 4096)
    return process


ENDLESS = ("--max-tokens", "none", "--ignore-eos", "--threads", 1)


def test_ctrl_c(environment, tiny_a_words):
    with start(environment, "generate", "abc", "-m", tiny_a_words, *ENDLESS) as process:
        assert process.stdout.read(20)
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        stderr = process.stderr.read().decode()
        assert process.wait(PATIENCE) == 130
    assert stderr == "\n"


def test_a_reader_that_goes_away(environment, tiny_a_words):
    """`gptoss generate … | head -c 20` ends quietly."""
    with start(environment, "generate", "abc", "-m", tiny_a_words, *ENDLESS) as process:
        assert process.stdout.read(20)
        process.stdout.close()
        stderr = process.stderr.read().decode()
        assert process.wait(PATIENCE) == 141
    assert stderr == ""


def test_text_comes_as_it_is_made(environment, tiny_a_words):
    with start(environment, "generate", "abc", "-m", tiny_a_words, *ENDLESS) as process:
        assert process.stdout.read(10) and process.poll() is None
        process.kill()


@pytest.mark.parametrize(
    ("option", "value", "fits"),
    [
        ("--regex", "[0-9]{3}-[a-f]", r"\d{3}-[a-f]"),
        ("--choice", "either", "either"),
        ("--json-schema", '{"enum": [17, 18]}', "17|18"),
        ("--lark", 'start: "ab" "c"', "abc"),
    ],
)
def test_texts_of_a_form(option, value, fits, tmp_path, capsys):
    pytest.importorskip("llguidance", reason="the extra grammar is missing")
    if option in ("--json-schema", "--lark"):
        path = tmp_path / "form"
        path.write_text(value)
        value = str(path)
    assert main(["generate", "Once", option, value, "--seed", "1"]) == 0
    assert re.fullmatch(fits, capsys.readouterr().out.strip())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--regex", "("], "regex"),
        (["--json-schema", "no-such-file"], "no-such-file"),
        (["--regex", "a", "--choice", "b"], "not allowed with"),
    ],
)
def test_forms_that_are_none(options, message, capsys):
    with pytest.raises(SystemExit) if "no-such-file" not in options else nullcontext():
        assert main(["generate", "Once", *options]) != 0
    assert message in capsys.readouterr().err
