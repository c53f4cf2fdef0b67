"""Hugging Face's config.json for gpt-oss: its keys translated to and from the original ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gptoss.errors import Error, shown
from gptoss.model.config import ModelConfig

# our field → their keys, the first present one counts and the others must agree with it
_RENAMED = {
    "num_experts": ("num_local_experts", "num_experts"),
    "experts_per_token": ("num_experts_per_tok", "experts_per_token"),
}
_SAME = (
    "num_hidden_layers",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "swiglu_limit",
    "head_dim",
    "num_attention_heads",
    "num_key_value_heads",
    "sliding_window",
    "rms_norm_eps",
    "eos_token_id",
)
# keys with only one value this architecture can compute
_FIXED: dict[str, tuple[Any, ...]] = {
    "model_type": ("gpt_oss",),
    "hidden_act": ("silu",),
    "attention_bias": (True,),
    "tie_word_embeddings": (False,),
    "swiglu_alpha": (1.702,),
}
# keys that say nothing about the arithmetic of inference
_IRRELEVANT = {
    "architectures",
    "attention_dropout",
    "bos_token_id",
    "chunk_size_feed_forward",
    "dtype",
    "id2label",
    "initializer_range",
    "is_encoder_decoder",
    "label2id",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "pad_token_id",
    "problem_type",
    "return_dict",
    "router_aux_loss_coef",
    "torch_dtype",
    "transformers_version",
    "use_cache",
    "_name_or_path",
}
_ROPE_KEYS = {
    "rope_type",
    "type",
    "factor",
    "beta_fast",
    "beta_slow",
    "original_max_position_embeddings",
    "truncate",
    "rope_theta",
    "partial_rotary_factor",
}
_NOT_CONVERTED = [
    "model.layers.*.self_attn",
    "model.layers.*.mlp.router",
    "model.embed_tokens",
    "lm_head",
]


@dataclass
class Translated:
    """`values` by our field names (plus eos_token_id); `keys` has the user's where they differ.

    context: the context length that the file states beside the rope settings, None without one.
    """

    values: dict[str, Any]
    keys: dict[str, str] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    context: Any = None


def is_huggingface(data: Mapping[str, Any]) -> bool:
    """Whether the keys are Hugging Face's rather than the original layout's."""
    return any(key in data for key in ("num_local_experts", "model_type", "architectures"))


def translate(data: Mapping[str, Any], source: str) -> Translated:
    """Their keys as ours. Raises Error for a setting that this architecture does not have."""
    result = Translated(values={key: data[key] for key in _SAME if key in data})
    used = {*_SAME, *_FIXED, *_IRRELEVANT}
    for name, theirs in _RENAMED.items():
        used.update(theirs)
        _take(result, name, [(key, data[key]) for key in theirs if key in data], source)
    for name, allowed in _FIXED.items():
        if name in data and data[name] not in allowed:
            raise Error(
                f"{source}: {name}: expected {shown(allowed[0])}, found {shown(data[name])}"
            )
    _check_quantization(data.get("quantization_config"), source)
    _translate_rope(result, data, source)
    _check_layer_types(result, data.get("layer_types"), source)
    used.update(("quantization_config", "layer_types", "rope_theta", "rope_scaling"))
    used.update(("rope_parameters", "max_position_embeddings", "initial_context_length"))
    result.unknown += [key for key in data if key not in used]
    return result


def _take(result: Translated, name: str, found: list[tuple[str, Any]], source: str) -> None:
    """Set field `name` from the (key, value) pairs `found`, which must agree."""
    if not found:
        return
    key, value = found[0]
    for other, second in found[1:]:
        if second != value:
            raise Error(
                f"{source}: {key} and {other}: expected the same value, found {shown(value)} "
                f"and {shown(second)}"
            )
    result.values[name] = value
    result.keys[name] = key


def _check_quantization(quantization: Any, source: str) -> None:
    if quantization is None:
        return
    method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
    if method != "mxfp4":
        raise Error(
            f"{source}: quantization_config.quant_method: expected 'mxfp4', found {shown(method)}"
        )


def _check_layer_types(result: Translated, types: Any, source: str) -> None:
    layers = result.values.get("num_hidden_layers")
    if types is None or type(layers) is not int:
        return  # absent, or an error that the caller reports better
    if not isinstance(types, list) or len(types) != layers:
        raise Error(
            f"{source}: layer_types: expected a list of {shown(layers)} layers, "
            f"found {shown(types)}"
        )
    for layer, kind in enumerate(types):
        expected = "sliding_attention" if layer % 2 == 0 else "full_attention"
        if kind != expected:
            raise Error(
                f"{source}: layer_types[{layer}]: expected {expected!r} (gpt-oss alternates, "
                f"sliding first), found {shown(kind)}"
            )


def _translate_rope(result: Translated, data: Mapping[str, Any], source: str) -> None:
    where = "rope_parameters" if "rope_parameters" in data else "rope_scaling"
    rope = data.get(where, {"rope_type": "yarn"})  # what transformers assumes where it is absent
    if not isinstance(rope, dict):
        # null meant plain RoPE in older releases of transformers and means YaRN in newer ones
        raise Error(
            f'{source}: {where}: expected an object such as {{"rope_type": "yarn", …}} or '
            f'{{"rope_type": "default"}}, found {shown(rope)}'
        )
    kind = rope.get("rope_type", rope.get("type"))
    if kind not in ("yarn", "default"):
        raise Error(
            f"{source}: {where}.rope_type: expected 'yarn' or 'default', found {shown(kind)}"
        )
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise Error(
            f"{source}: {where}.partial_rotary_factor: expected 1.0, "
            f"found {shown(rope['partial_rotary_factor'])}"
        )
    for key in ("attention_factor", "mscale", "mscale_all_dim"):
        if rope.get(key) is not None:
            raise Error(
                f"{source}: {where}.{key}: expected none (the model computes it from the factor), "
                f"found {shown(rope[key])}"
            )
    result.unknown += [f"{where}.{key}" for key in rope if key not in _ROPE_KEYS]
    theta = [(k, v) for k, v in (("rope_theta", data.get("rope_theta")),) if v is not None]
    if rope.get("rope_theta") is not None:
        theta.append((f"{where}.rope_theta", rope["rope_theta"]))
    _take(result, "rope_theta", theta, source)
    top = [(k, v) for k, v in data.items() if k == "initial_context_length" and v is not None]
    longest = data.get("max_position_embeddings")
    if kind == "default":
        result.values["rope_scaling_factor"] = 1.0
        result.keys["rope_scaling_factor"] = f"{where}.factor"
        found = [("max_position_embeddings", longest)] if longest is not None else top
        _take(result, "initial_context_length", found, source)
        return
    if rope.get("truncate") not in (False, None):
        raise Error(
            f"{source}: {where}.truncate: expected false (gpt-oss does not round YaRN's "
            f"bounds), found {shown(rope['truncate'])}"
        )
    for name, key in (
        ("rope_scaling_factor", "factor"),
        ("rope_ntk_alpha", "beta_slow"),
        ("rope_ntk_beta", "beta_fast"),
    ):
        result.keys[name] = f"{where}.{key}"
        if key in rope:
            result.values[name] = rope[key]
    original = f"{where}.original_max_position_embeddings"
    if "original_max_position_embeddings" in rope:
        top.insert(0, (original, rope["original_max_position_embeddings"]))
    _take(result, "initial_context_length", top, source)
    result.context = longest


def to_huggingface(config: ModelConfig, experts: str = "mxfp4") -> dict[str, Any]:
    """The config.json of `config` in Hugging Face's keys; `experts` is "mxfp4" or "bf16"."""
    if experts not in ("mxfp4", "bf16"):
        raise Error(f"experts: expected 'mxfp4' or 'bf16', found {shown(experts)}")
    eos: Any = list(config.eos_token_ids)
    official = config.vocab_size == 201_088 and eos == [200_002, 200_012]
    # the published file names <|return|> alone; generation_config.json holds the whole list
    eos = eos[0] if official or len(eos) == 1 else eos or None
    scaled = config.rope_scaling_factor > 1.0
    data: dict[str, Any] = {
        "architectures": ["GptOssForCausalLM"],
        "attention_bias": True,
        "attention_dropout": 0.0,
        "eos_token_id": eos,
        "experts_per_token": config.experts_per_token,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "initial_context_length": config.initial_context_length,
        "initializer_range": 0.02,
        "intermediate_size": config.intermediate_size,
        "layer_types": [
            "sliding_attention" if config.is_sliding(layer) else "full_attention"
            for layer in range(config.num_hidden_layers)
        ],
        "max_position_embeddings": config.context_length,
        "model_type": "gpt_oss",
        "num_attention_heads": config.num_attention_heads,
        "num_experts_per_tok": config.experts_per_token,
        "num_hidden_layers": config.num_hidden_layers,
        "num_key_value_heads": config.num_key_value_heads,
        "num_local_experts": config.num_experts,
        "output_router_logits": False,
        "pad_token_id": 199_999 if official else None,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_scaling": {
            "beta_fast": config.rope_ntk_beta,
            "beta_slow": config.rope_ntk_alpha,
            "factor": config.rope_scaling_factor,
            "original_max_position_embeddings": config.initial_context_length,
            "rope_type": "yarn",
            "truncate": False,
        }
        if scaled
        else {"rope_type": "default"},
        "rope_theta": config.rope_theta,
        "router_aux_loss_coef": 0.9,
        "sliding_window": config.sliding_window,
        "swiglu_limit": config.swiglu_limit,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": config.vocab_size,
    }
    if experts == "mxfp4":
        data["quantization_config"] = {
            "modules_to_not_convert": list(_NOT_CONVERTED),
            "quant_method": "mxfp4",
        }
    return data
