"""config.json in either published form: OpenAI's original and Hugging Face's, read and written.

The Hugging Face form is recognised by its own keys and translated; whatever in it this architecture
cannot express is refused rather than ignored, because a model run with the wrong formula still
produces fluent-looking text.
"""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gptoss import files
from gptoss.errors import Error, shown
from gptoss.model import huggingface
from gptoss.model.config import OFFICIAL_EOS, OFFICIAL_VOCABULARY, ModelConfig, check_values

REQUIRED = (
    "num_hidden_layers",
    "num_experts",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "head_dim",
    "num_attention_heads",
    "num_key_value_heads",
    "sliding_window",
)


def parse_config(data: Mapping[str, Any], source: str = "config.json") -> ModelConfig:
    """A configuration from the keys of either layout; `source` names it in messages.

    Unknown keys are named in a warning. Raises Error for missing, mistyped, absurd or
    contradictory values.
    """
    try:
        return _parse(data, source)
    except RecursionError:  # values nested so deep that comparing them overflows
        raise Error(f"{source}: expected a flat JSON object, found deep nesting") from None


def _parse(data: Mapping[str, Any], source: str) -> ModelConfig:
    if not isinstance(data, Mapping):
        raise Error(f"{source}: expected a JSON object, found {type(data).__name__}")
    if huggingface.is_huggingface(data):
        translated = huggingface.translate(data, source)
    elif "num_experts" in data:
        translated = _translate_original(data)
    else:
        raise Error(
            f"{source}: neither the original layout's key num_experts nor Hugging Face's "
            f"num_local_experts is there; found the keys {shown(sorted(map(str, data)))}"
        )
    values, keys = translated.values, translated.keys
    missing = [keys.get(name, name) for name in REQUIRED if name not in values]
    if missing:
        raise Error(f"{source}: missing {', '.join(missing)}")
    if translated.unknown:
        names = ", ".join(shown(name) for name in sorted(translated.unknown)[:20])
        warnings.warn(f"{source}: unknown keys ignored: {names}", stacklevel=3)
    values["eos_token_ids"] = _eos_token_ids(values.pop("eos_token_id", None), values, source)
    check_values(values, source, keys)
    config = ModelConfig(**values)
    if translated.context not in (None, config.context_length):
        warnings.warn(
            f"{source}: max_position_embeddings: the rope settings make it "
            f"{config.context_length}, found {shown(translated.context)}, which is ignored",
            stacklevel=3,
        )
    return config


def read_config(path: str | os.PathLike[str]) -> ModelConfig:
    """`parse_config` of a file. Raises Error for whatever is wrong with the file too."""
    return parse_config(files.read_object(Path(path)), str(path))


def to_original(config: ModelConfig) -> dict[str, Any]:
    """The original layout's config.json; keys that layout lacks only where not the default."""
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    eos = list(values.pop("eos_token_ids"))
    if values["rms_norm_eps"] == 1e-5:
        del values["rms_norm_eps"]
    for name in ("rope_theta", "rope_ntk_alpha", "rope_ntk_beta"):  # published as integers
        if values[name].is_integer():
            values[name] = int(values[name])
    if eos and not (config.vocab_size == OFFICIAL_VOCABULARY and tuple(eos) == OFFICIAL_EOS):
        values["eos_token_id"] = eos[0] if len(eos) == 1 else eos
    return values


def _translate_original(data: Mapping[str, Any]) -> huggingface.Translated:
    fields = {field.name for field in dataclasses.fields(ModelConfig)} - {"eos_token_ids"}
    known = fields | {"eos_token_id"}
    return huggingface.Translated(
        values={key: value for key, value in data.items() if key in known},
        unknown=[key for key in data if key not in known],
    )


def _eos_token_ids(value: Any, values: Mapping[str, Any], source: str) -> tuple[int, ...]:
    """The `eos_token_id` key (absent, null, an id or a list of ids) as a tuple."""
    if value is None:
        return ()
    ids = tuple(value) if isinstance(value, list) else (value,)
    for token in ids:
        if type(token) is not int:
            raise Error(f"{source}: eos_token_id: expected token ids, found {shown(value)}")
    # Hugging Face's config names only <|return|>, but a tool call ends the turn as well
    if values.get("vocab_size") == OFFICIAL_VOCABULARY and ids == OFFICIAL_EOS[:1]:
        return OFFICIAL_EOS
    return ids
