"""`gptoss info`, `convert`, `synth`, and what all commands share."""

import argparse
import json
import re
import subprocess
import sys

import pytest

import gptoss as package
from gptoss.cli import arguments


def test_version(gptoss):
    result = gptoss("--version")
    assert (result.returncode, result.stdout) == (0, f"gptoss {package.__version__}\n")


@pytest.mark.parametrize("command", [[], ["generate"], ["info"], ["check"], ["convert"], ["synth"]])
def test_help(gptoss, command):
    result = gptoss(*command, "--help")
    assert result.returncode == 0 and result.stderr == ""
    assert result.stdout.startswith(" ".join(["usage: gptoss", *command]))


def test_help_imports_nothing_heavy():
    code = (
        "import sys, gptoss.cli\n"
        "try: gptoss.cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'numpy', 'tiktoken', 'torch', 'gptoss.native._core', 'gptoss.engine.engine'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.endswith("[]\n")


def test_importing_the_package_is_light():
    code = "import sys, gptoss\nprint('numpy' in sys.modules, gptoss.Error.__name__, dir(gptoss))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.startswith("False Error [")
    for name in package.__all__:
        assert f"'{name}'" in result.stdout
        assert getattr(package, name)
    with pytest.raises(AttributeError, match="no attribute 'Motor'"):
        _ = package.Motor


def test_the_config_needs_no_compiled_core():
    code = (
        "import sys; sys.modules['gptoss.native._core'] = None\n"
        "from gptoss import ModelConfig, Error"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_info_of_the_machine(gptoss):
    result = gptoss("info")
    assert result.returncode == 0 and result.stderr == ""
    for name in (
        "gptoss",
        "cpu",
        "cpu features",
        "backend cpu",
        "backend cuda",
        "weights q8",
        "kv int8",
    ):
        assert re.search(rf"^{name} +\S", result.stdout, re.M), name
    found = json.loads(gptoss("info", "--json").stdout)
    assert found["version"] == package.__version__
    assert {"name": "cpu", "available": True} in [
        {key: backend[key] for key in ("name", "available")} for backend in found["backends"]
    ]


def test_info_of_a_model(gptoss, tiny_a):
    result = gptoss("info", tiny_a)
    assert result.returncode == 0
    assert "1,985,216 (1,324,736 active)" in result.stdout
    assert re.search(r"quantization +experts mxfp4, all else bf16", result.stdout)
    assert "block.0" not in result.stdout
    result = gptoss("info", tiny_a, "--tensors")
    assert re.search(
        r"^block\.3\.mlp\.mlp1_weight\.blocks +U8 +98.30 kB +8 × 192 × 4 × 16$",
        result.stdout,
        re.M,
    )


def test_info_as_json(gptoss, tiny_a, tiny_a_hf):
    found = [
        json.loads(gptoss("info", m, "--tensors", "--json").stdout) for m in (tiny_a, tiny_a_hf)
    ]
    assert [f["layout"] for f in found] == ["original", "huggingface"]
    assert [len(f["files"]) for f in found] == [1, 2]
    for f in found:
        f["config"].pop("eos_token_id", None)  # the original layout has no such key
    assert found[0]["config"] == found[1]["config"]
    assert found[0]["tensors"] == found[1]["tensors"]
    assert found[0]["bytes"] == sum(tensor["bytes"] for tensor in found[0]["tensors"])


def test_info_of_the_published_sizes(gptoss):
    found = json.loads(gptoss("info", "synthetic:gpt-oss-20b", "--json").stdout)
    assert found["parameters"] == 20_914_757_184
    assert found["kv_bytes_per_token"] * 131072 + found["kv_bytes_of_windows"] == pytest.approx(
        3.0 * 2**30, rel=0.01
    )


def test_convert_there_and_back(gptoss, tiny_a, tmp_path):
    there, back = tmp_path / "hf", tmp_path / "original"
    result = gptoss("convert", tiny_a, there, "--layout", "huggingface")
    assert result.returncode == 0 and result.stderr == ""
    assert result.stdout.startswith(f"{there}: ")
    assert gptoss("convert", there, back, "--layout", "original").returncode == 0
    original = json.loads(gptoss("info", tiny_a, "--json").stdout)
    again = json.loads(gptoss("info", back, "--json").stdout)
    assert again["layout"] == "original"
    assert again["config"]["num_experts"] == original["config"]["num_experts"]
    assert (tiny_a / "model.safetensors").stat().st_size == pytest.approx(
        (back / "model.safetensors").stat().st_size, rel=0.01
    )


def test_packing_must_be_asked_for(gptoss, tiny_a, tmp_path):
    unpacked, packed = tmp_path / "bf16", tmp_path / "packed"
    assert gptoss("convert", tiny_a, unpacked, "--layout", "huggingface-bf16").returncode == 0
    result = gptoss("convert", unpacked, packed, "--layout", "original")
    assert result.returncode == 1 and not packed.exists()
    assert re.fullmatch(r"gptoss: error: .*loses precision: say --experts mxfp4.*\n", result.stderr)
    result = gptoss("convert", unpacked, packed, "--layout", "original", "--experts", "mxfp4")
    assert result.returncode == 0
    found = json.loads(gptoss("info", packed, "--json").stdout)
    assert found["quantization"]["experts"] == "mxfp4"


def test_convert_overwrites_nothing(gptoss, tiny_a, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    result = gptoss("convert", tiny_a, tmp_path, "--layout", "original")
    assert result.returncode == 1 and "expected a new or empty directory" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_synth(gptoss, tmp_path):
    result = gptoss("synth", "tiny", tmp_path / "a", "--layers", 2, "--seed", 5)
    assert result.returncode == 0 and result.stderr == ""
    found = json.loads(gptoss("info", tmp_path / "a", "--json").stdout)
    assert found["config"]["num_hidden_layers"] == 2 and found["layout"] == "original"
    gptoss("synth", "tiny", tmp_path / "b", "--layers", 2, "--seed", 5)
    gptoss("synth", "tiny", tmp_path / "c", "--layers", 2, "--seed", 6)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in "abc"]
    assert weights[0] == weights[1] != weights[2]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("synth", "gpt-5", "x"), 1, "expected a preset out of"),
        (("synth", "tiny"), 2, "required: DST"),
        (("synth", "tiny", "x", "--layers", "two"), 2, "expected a whole number"),
        (("convert", "a", "b"), 2, "required: --layout"),
        (("convert", "a", "b", "--layout", "onnx"), 2, "invalid choice: 'onnx'"),
        (("convert", "/no/such", "b", "--layout", "original"), 1, "/no/such"),
        (("info", "/no/such"), 1, "/no/such"),
        (("info", "--tensors"), 2, "--tensors needs a MODEL"),
        (("generate", "x", "--threads", 2**40), 1, "threads: expected an integer from 1 to 1024"),
        (("generate", "x", "--kv-bytes", "9" * 20 + "TiB"), 1, "kv_bytes: expected an integer"),
        (("generate", "x", "--kv-bytes", "9" * 400), 2, "expected a size such as 500MB or 2GiB"),
        (("generate", "x", "--tensor-parallel", "9" * 40), 1, "tensor_parallel: expected an"),
        (("generate", "x", "--threads", "9" * 5000), 2, "expected a whole number, found '999"),
        (("generate", "x", "--temperature", "1e999"), 2, "temperature: expected a number from 0"),
        (("generate", "x", "--top-p", "1e-46"), 2, "top_p: expected a number above 0"),
        (("generate", "x", "--top-k", "9" * 400), 2, "top_k: expected an integer from 0"),
        (("generate", "x", "--logit-bias", f"{'9' * 400}=1"), 2, "logit_bias: token id: expected"),
    ],
)
def test_errors(gptoss, arguments, code, message):
    result = gptoss(*arguments)
    assert result.returncode == code and message in result.stderr
    assert "Traceback" not in result.stderr and result.stdout == ""


def test_warnings_are_one_line(gptoss, tiny_a, tmp_path):
    config = json.loads((tiny_a / "config.json").read_text())
    config["favourite_colour"] = "green"
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").symlink_to(tiny_a / "model.safetensors")
    result = gptoss("info", tmp_path)
    assert result.returncode == 0
    assert re.fullmatch(r"gptoss: warning: .*favourite_colour.*\n", result.stderr)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("5", 5),
        ("5B", 5),
        ("1kB", 1000),
        ("2GiB", 2 << 30),
        ("2 GB", 2 * 10**9),
        ("1.5g", 3 << 29),
        ("16M", 16 << 20),
        ("1TiB", 1 << 40),
        ("9" * 20, 10**20),
    ],
)
def test_sizes(text, size):
    assert arguments.size(text) == size


@pytest.mark.parametrize(
    "text", ["", "GiB", "-1", "1e9", "nan", "2 apples", "1.2.3", "9" * 400, "9" * 5000]
)
def test_bad_sizes(text):
    with pytest.raises(argparse.ArgumentTypeError, match="expected a size"):
        arguments.size(text)
