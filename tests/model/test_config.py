from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gptoss.checkpoint.synthetic import PRESETS
from gptoss.errors import Error
from gptoss.model.config_file import parse_config, read_config, to_original
from gptoss.model.huggingface import to_huggingface

LARGE = PRESETS["gpt-oss-20b"]
# config.json as published with the original weights
ORIGINAL = {
    "num_hidden_layers": 24,
    "num_experts": 32,
    "experts_per_token": 4,
    "vocab_size": 201088,
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "swiglu_limit": 7.0,
    "head_dim": 64,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "sliding_window": 128,
    "initial_context_length": 4096,
    "rope_theta": 150000,
    "rope_scaling_factor": 32.0,
    "rope_ntk_alpha": 1,
    "rope_ntk_beta": 32,
}
YARN = {
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "factor": 32.0,
    "original_max_position_embeddings": 4096,
    "rope_type": "yarn",
    "truncate": False,
}
# and with the Hugging Face weights
HUGGINGFACE = {
    "architectures": ["GptOssForCausalLM"],
    "attention_bias": True,
    "attention_dropout": 0.0,
    "eos_token_id": 200002,
    "experts_per_token": 4,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2880,
    "initial_context_length": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 2880,
    "layer_types": ["sliding_attention", "full_attention"] * 12,
    "max_position_embeddings": 131072,
    "model_type": "gpt_oss",
    "num_attention_heads": 64,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 24,
    "num_key_value_heads": 8,
    "num_local_experts": 32,
    "output_router_logits": False,
    "pad_token_id": 199999,
    "quantization_config": {"modules_to_not_convert": ["lm_head"], "quant_method": "mxfp4"},
    "rms_norm_eps": 1e-05,
    "rope_scaling": YARN,
    "rope_theta": 150000,
    "router_aux_loss_coef": 0.9,
    "sliding_window": 128,
    "swiglu_limit": 7.0,
    "tie_word_embeddings": False,
    "transformers_version": "4.55.0.dev0",
    "use_cache": True,
    "vocab_size": 201088,
}


@pytest.fixture(autouse=True)
def _no_warnings() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_both_published_forms_are_the_same_model() -> None:
    assert parse_config(ORIGINAL) == LARGE
    assert parse_config(HUGGINGFACE) == LARGE


def test_newer_rope_parameters() -> None:
    data = {key: HUGGINGFACE[key] for key in HUGGINGFACE if not key.startswith("rope_")}
    data["rope_parameters"] = {**YARN, "rope_theta": 150000.0}
    assert parse_config(data) == LARGE
    data["rope_parameters"]["rope_theta"] = 10000.0
    assert parse_config(data).rope_theta == 10000.0


def test_golden_files_agree(tiny_a: Path, tiny_a_hf: Path) -> None:
    ours = read_config(tiny_a / "config.json")
    theirs = read_config(tiny_a_hf / "config.json")
    assert theirs == replace(ours, eos_token_ids=(2,))
    assert ours.sliding_window == 16


def test_numbers_of_the_published_models() -> None:
    assert LARGE.parameters() == 20_914_757_184
    assert round(LARGE.active_parameters() / 1e9, 2) == 3.61  # OpenAI's model card
    larger = PRESETS["gpt-oss-120b"]
    assert round(larger.parameters() / 1e9, 2) == 116.83
    assert round(larger.active_parameters() / 1e9, 2) == 5.13
    assert LARGE.context_length == 131072
    assert LARGE.eos_token_ids == (200002, 200012)
    assert [LARGE.is_sliding(layer) for layer in range(4)] == [True, False, True, False]
    shapes = LARGE.tensor_shapes()
    assert shapes["block.23.attn.qkv.weight"] == ("BF16", (5120, 2880))
    assert shapes["block.0.attn.out.weight"] == ("BF16", (2880, 4096))
    assert shapes["block.0.mlp.mlp1_weight.blocks"] == ("U8", (32, 5760, 90, 16))
    assert shapes["block.0.mlp.mlp2_weight.scales"] == ("U8", (32, 2880, 90))
    assert shapes["block.0.attn.sinks"] == ("BF16", (64,))


def test_defaults_of_optional_keys() -> None:
    required = {
        key: value
        for key, value in ORIGINAL.items()
        if key not in ("experts_per_token", "swiglu_limit", "initial_context_length")
        and not key.startswith("rope")
    }
    assert parse_config(required) == LARGE


def test_plain_rope() -> None:
    data = {**HUGGINGFACE, "rope_scaling": {"rope_type": "default"}}
    data["max_position_embeddings"] = 2048
    config = parse_config(data)
    assert config.rope_scaling_factor == 1.0
    assert config.context_length == 2048
    assert parse_config(to_huggingface(config)) == config
    assert parse_config({**ORIGINAL, "rope_scaling_factor": 0.5}).context_length == 4096


@pytest.mark.parametrize("preset", PRESETS)
def test_round_trip(preset: str) -> None:
    config = replace(PRESETS[preset], rms_norm_eps=1e-6, sliding_window=64)
    for written in (to_original(config), to_huggingface(config), to_huggingface(config, "bf16")):
        assert parse_config(json.loads(json.dumps(written))) == config
    assert "quantization_config" not in to_huggingface(config, "bf16")


def test_published_form_is_written() -> None:
    assert to_original(LARGE) == ORIGINAL
    assert json.dumps(to_original(LARGE)["rope_theta"]) == "150000"
    written = to_huggingface(LARGE)
    ignored = {"transformers_version", "quantization_config", "rms_norm_eps"}
    for key in HUGGINGFACE.keys() - ignored:
        assert written[key] == HUGGINGFACE[key], key


def test_end_tokens() -> None:
    small = {**ORIGINAL, "vocab_size": 512}
    assert parse_config(small).eos_token_ids == ()
    assert parse_config({**small, "eos_token_id": 5}).eos_token_ids == (5,)
    several = parse_config({**small, "eos_token_id": [5, 7]})
    assert several.eos_token_ids == (5, 7)
    assert parse_config(to_original(several)) == several
    assert parse_config(to_huggingface(several)) == several
    assert parse_config({**ORIGINAL, "eos_token_id": 7}).eos_token_ids == (7,)
    for bad in ("x", 1.5, True, [3, None], {}):
        with pytest.raises(Error, match="eos_token_id: expected token ids"):
            parse_config({**small, "eos_token_id": bad})
    with pytest.raises(Error, match="eos_token_id: expected ids within the vocabulary of 512"):
        parse_config({**small, "eos_token_id": 512})


def test_unknown_keys_are_named_in_a_warning() -> None:
    with pytest.warns(UserWarning, match="model/config.json: unknown keys ignored: 'colour', 'x'"):
        parse_config({**ORIGINAL, "x": 1, "colour": 2}, "model/config.json")
    with pytest.warns(UserWarning, match="'colour', 'rope_scaling.spin'"):
        parse_config({**HUGGINGFACE, "colour": 1, "rope_scaling": {**YARN, "spin": 1}}, "c")


def test_a_contradictory_context_is_named_in_a_warning() -> None:
    with pytest.warns(UserWarning, match="max_position_embeddings: .* 131072, found 4096"):
        parse_config({**HUGGINGFACE, "max_position_embeddings": 4096})


BAD_VALUES = [
    ("num_hidden_layers", 0, r"expected 1\.\.1024, found 0"),
    ("num_hidden_layers", -3, r"expected 1\.\.1024, found -3"),
    ("num_hidden_layers", "24", "expected an integer, found '24'"),
    ("num_hidden_layers", True, "expected an integer, found True"),
    ("num_hidden_layers", 24.0, "expected an integer, found 24.0"),
    ("num_hidden_layers", None, "expected an integer, found None"),
    ("num_experts", 10**9, "found 1000000000"),
    ("vocab_size", 10**4000, "found an integer of 13288 bits"),
    ("hidden_size", 2881, "expected a multiple of 32"),
    ("intermediate_size", 100, "expected a multiple of 32"),
    ("hidden_size", [2880], "expected an integer"),
    ("head_dim", 63, "expected an even number"),
    ("num_attention_heads", 60, r"expected a multiple of num_key_value_heads \(8\), found 60"),
    ("num_key_value_heads", 0, "expected 1"),
    ("experts_per_token", 33, r"expected at most num_experts \(32\), found 33"),
    ("sliding_window", None, "expected an integer"),
    ("swiglu_limit", 0, "expected a number above 0"),
    ("swiglu_limit", float("nan"), "expected a finite number"),
    ("rope_theta", float("inf"), "expected a finite number"),
    ("rope_theta", 10**400, "expected a finite number"),
    ("rope_theta", "150000", "expected a finite number, found '150000'"),
    ("rope_theta", 1, "expected a number above 1"),
    ("rope_scaling_factor", 1e300, "expected a context below"),
    ("rope_scaling_factor", 10**300, "expected a context below"),
    ("rope_scaling_factor", -1, "expected a number above 0"),
    ("rope_ntk_alpha", 32, "expected less than rope_ntk_beta"),
    ("rms_norm_eps", -1e-5, "expected a number above 0"),
    ("initial_context_length", 0, "expected 1"),
]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    BAD_VALUES,
    ids=[f"{bad[0]}-{i}" for i, bad in enumerate(BAD_VALUES)],
)
def test_bad_values(key: str, value: Any, message: str) -> None:
    with pytest.raises(Error, match=f"^my.json: .*{key}.*{message}"):
        parse_config({**ORIGINAL, key: value}, "my.json")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("layer_types", ["full_attention"] * 24, r"layer_types\[0\]: expected 'sliding_attention'"),
        ("layer_types", ["sliding_attention"], "layer_types: expected a list of 24 layers"),
        ("layer_types", 5, "layer_types: expected a list"),
        ("tie_word_embeddings", True, "tie_word_embeddings: expected False, found True"),
        ("attention_bias", False, "attention_bias: expected True, found False"),
        ("hidden_act", "gelu", "hidden_act: expected 'silu', found 'gelu'"),
        ("model_type", "llama", "model_type: expected 'gpt_oss', found 'llama'"),
        ("swiglu_alpha", 1.0, "swiglu_alpha: expected 1.702"),
        ("quantization_config", {"quant_method": "gptq"}, "quant_method: expected 'mxfp4'"),
        ("quantization_config", [], "quant_method: expected 'mxfp4'"),
        ("rope_scaling", None, "rope_scaling: expected an object"),
        ("rope_scaling", {**YARN, "rope_type": "linear"}, "rope_type: expected 'yarn'"),
        ("rope_scaling", {**YARN, "truncate": True}, "truncate: expected false"),
        ("rope_scaling", {**YARN, "factor": "32"}, "rope_scaling.factor: expected a finite number"),
        ("rope_scaling", {**YARN, "attention_factor": 1.0}, "attention_factor: expected none"),
        ("rope_scaling", {**YARN, "partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ("rope_scaling", {**YARN, "original_max_position_embeddings": 10**400}, "same value"),
        ("initial_context_length", 2048, "expected the same value, found 4096 and 2048"),
        ("experts_per_token", 2, "num_experts_per_tok and experts_per_token: expected the same"),
        ("num_local_experts", 0, "num_local_experts: expected 1"),
        ("num_experts_per_tok", [], "expected the same value"),
    ],
)
def test_bad_huggingface_values(key: str, value: Any, message: str) -> None:
    with pytest.raises(Error, match=f"^c.json: .*{message}"):
        parse_config({**HUGGINGFACE, key: value}, "c.json")


def test_a_number_beyond_every_float() -> None:
    rope = {**YARN, "original_max_position_embeddings": 10**400}
    with pytest.raises(Error, match="expected 1..16777216, found an integer of 1329 bits"):
        parse_config({**HUGGINGFACE, "rope_scaling": rope, "initial_context_length": None})


def test_missing_keys_are_named() -> None:
    data = {key: ORIGINAL[key] for key in ORIGINAL if key not in ("hidden_size", "head_dim")}
    with pytest.raises(Error, match="c: missing hidden_size, head_dim"):
        parse_config(data, "c")
    with pytest.raises(Error, match="c: neither the original layout's key num_experts"):
        parse_config({"hidden_size": 64}, "c")
    with pytest.raises(Error, match="expected a JSON object, found list"):
        parse_config([], "c")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected JSON, found an error at character 0"),
        (b"{", "expected JSON"),
        (b"[]", r"expected a JSON object, found \[\]"),
        (b"null", "expected a JSON object, found None"),
        (b'{"num_experts": 1, "num_experts": 2}', "key 'num_experts' appears twice"),
        (b'{"num_experts": NaN}', "NaN is not JSON"),
        (b'{"num_experts": -Infinity}', "-Infinity is not JSON"),
        (b'{"num_experts": "\xff"}', "expected UTF-8 text, found an invalid byte at 17"),
        (b'{"a": ' * 100_000, "nested too deep"),
        (b"[" * 100_000, "nested too deep"),
        (b'{"num_experts": ' + b"9" * 10_000 + b"}", "an integer too long to read"),
        (b'{"num_experts": 1}' + b" " * (1 << 24), "expected at most 16777216 bytes"),
    ],
    ids=[
        "empty",
        "cut_off",
        "array",
        "null",
        "duplicate_key",
        "nan",
        "infinity",
        "not_utf8",
        "deep_objects",
        "deep_arrays",
        "huge_integer",
        "too_long",
    ],
)
def test_bad_files(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(Error, match=message) as caught:
        read_config(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 600


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(Error, match=r"config\.json: cannot be read: No such file"):
        read_config(tmp_path / "config.json")
    with pytest.raises(Error, match="expected a file, found something else"):
        read_config(tmp_path)


def test_values_nested_to_the_recursion_limit() -> None:
    deep: Any = []
    for _ in range(50_000):
        deep = [deep]
    for key in ("experts_per_token", "hidden_size", "rope_scaling", "colour", "eos_token_id"):
        with pytest.raises((Error, UserWarning)) as caught:
            parse_config({**HUGGINGFACE, key: deep}, "c")
        assert "c: " in str(caught.value)
    same = {**HUGGINGFACE, "experts_per_token": deep, "num_experts_per_tok": [deep]}
    with pytest.raises(Error):
        parse_config(same, "c")


def test_built_directly() -> None:
    with pytest.raises(Error, match=r"ModelConfig: head_dim: expected an even number.*found 7"):
        replace(LARGE, head_dim=7)
    assert replace(LARGE, rope_theta=150000) == LARGE
    assert hash(LARGE) == hash(replace(LARGE))
