"""The options of an engine: checked when made, described once, and the same for every user."""

import argparse
import inspect
import subprocess
import sys
from dataclasses import FrozenInstanceError, asdict, fields, replace
from pathlib import Path

import numpy as np
import pytest

from gptoss import Engine, EngineOptions, Error
from gptoss.cli.arguments import add_engine_options, add_model, engine_options
from gptoss.engine.options import MAX_BATCH, OPTIONS, STEP_TOKENS


def test_the_first_five_go_by_position():
    given = EngineOptions("model", "cpu", "f32", 1 << 30, 2)
    assert (given.model, given.device, given.activation) == ("model", "cpu", "f32")
    assert (given.kv_bytes, given.threads) == (1 << 30, 2)
    with pytest.raises(TypeError):
        EngineOptions("model", "cpu", "f32", 1 << 30, 2, 8)
    with pytest.raises(FrozenInstanceError):
        given.threads = 3


def test_an_engine_takes_every_option():
    own = inspect.signature(Engine).parameters
    assert list(own) == [*inspect.signature(EngineOptions).parameters, "progress"]
    with pytest.raises(TypeError, match=r"Engine.__init__.*'colour'"):
        Engine(colour="red")
    with pytest.raises(Error, match="threads: expected an integer from 1 to 1024, found 0"):
        Engine(threads=0)


@pytest.mark.parametrize(
    "options",
    [
        {name: value}
        for name in ("kv_bytes", "threads", "max_batch", "step_tokens", "tensor_parallel")
        for value in (0, -1, 10**30, 1.0, True, "1", np.bool_(True), float("nan"))
    ]
    + [
        {"threads": 1025},
        {"kv_bytes": 1 << 63},
        {"max_batch": (1 << 20) + 1},
        {"step_tokens": (1 << 20) + 1},
        {"tensor_parallel": 9},
        {"tensor_parallel": None},
        {"model": 3},
        {"model": b"model"},
        {"device": None},
        {"device": 0},
        {"activation": None},
        {"activation": "fp8"},
        {"weights": ["q8"]},
        {"weights": "int4"},
        {"kv": "q8"},
        {"kv": None},
        {"prefix_cache": 1},
        {"prefix_cache": None},
        {"speculation": "no"},
        {"overlap": "auto"},
    ],
    ids=str,
)
def test_what_is_out_of_range_is_named(options):
    ((name, value),) = options.items()
    with pytest.raises(Error, match=f"^{name}: expected .+, found .+") as caught:
        EngineOptions(**options)
    assert len(str(caught.value)) < 200 and caught.value.field == name
    if isinstance(value, str):
        assert repr(value) in str(caught.value)


def test_integers_of_any_make_become_plain_ones():
    options = EngineOptions(kv_bytes=np.int64(1 << 40), threads=np.uint8(3), max_batch=1)
    assert (options.kv_bytes, options.threads) == (1 << 40, 3)
    assert type(options.kv_bytes) is type(options.threads) is int
    assert EngineOptions(model=Path("a")).model == Path("a")


def test_what_a_step_holds_depends_on_the_device():
    for device in ("cpu", "cuda"):
        assert EngineOptions().step_limits(device) == (STEP_TOKENS[device], MAX_BATCH[device])
        assert EngineOptions(overlap=False).overlaps(device) is False
        assert EngineOptions(overlap=True).overlaps(device) is True
    assert EngineOptions(step_tokens=5).step_limits("cpu") == (5, 5)
    assert EngineOptions(max_batch=2, step_tokens=5).step_limits("cuda") == (5, 2)
    assert (EngineOptions().overlaps("cpu"), EngineOptions().overlaps("cuda")) == (False, True)
    with pytest.raises(Error, match=r"max_batch: expected 1 to 512 .*, found 513"):
        EngineOptions(max_batch=513).step_limits("cpu")


def test_every_field_is_described():
    assert [field.name for field in fields(EngineOptions)] == list(OPTIONS)
    for name, option in OPTIONS.items():
        assert option.help and option.default_text, name
        assert f"        {name}: {option.help[:30]}" in EngineOptions.__doc__
        assert (option.kind == "choice") == bool(option.choices)
        assert bool(option.disable) == (option.default is True)


def parse(*words, names=None, **defaults):
    parser = argparse.ArgumentParser()
    if names is None:
        add_model(parser)
    else:
        add_engine_options(parser, names, defaults)
    return engine_options(parser.parse_args(words))


OTHERS = {
    "model": "somewhere",
    "device": "cpu",
    "activation": "f32",
    "kv_bytes": 3 << 29,
    "threads": 3,
    "max_batch": 7,
    "step_tokens": 99,
    "weights": "q8",
    "kv": "int8",
    "tensor_parallel": 2,
    "prefix_cache": False,
    "speculation": False,
    "overlap": True,
}


def test_the_command_line_has_them_all():
    assert parse() == EngineOptions()
    words = ["-m", "somewhere", "--kv-bytes", "1.5GiB", "--overlap"]
    words += ["--no-prefix-cache", "--no-speculation"]
    for name in ("device", "activation", "threads", "max_batch", "step_tokens", "weights", "kv"):
        words += [f"--{name.replace('_', '-')}", str(OTHERS[name])]
    found = parse(*words, "--tensor-parallel", "2")
    assert asdict(found) == OTHERS
    default = asdict(EngineOptions())
    assert all(value != default[name] for name, value in OTHERS.items())
    assert parse("--no-overlap").overlap is False


def test_a_program_may_have_some_of_them_and_defaults_of_its_own():
    found = parse("--threads", "2", names=["device", "threads"], device="cpu")
    assert found == replace(EngineOptions(), device="cpu", threads=2)
    with pytest.raises(Error, match="threads: expected an integer from 1 to 1024, found 5000"):
        parse("--threads", "5000", names=["threads"])


def test_help_says_what_each_is():
    done = subprocess.run(
        [sys.executable, "-m", "gptoss", "generate", "--help"], capture_output=True, text=True
    )
    text = " ".join(done.stdout.split())
    for name, option in OPTIONS.items():
        flag = f"--no-{name}" if option.disable else f"--{name}"
        assert flag.replace("_", "-") in text
        expected = option.disable or f"(default: {option.default_text})"
        assert expected in text.replace("- ", "-")


def test_options_need_no_numpy():
    code = (
        "import sys\nfrom gptoss.engine.options import EngineOptions\nEngineOptions()\n"
        "print({'numpy', 'gptoss.native._core'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr
