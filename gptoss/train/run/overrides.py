"""Changes to a preset that a person names: NAME=VALUE, or a TOML or JSON file."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import json
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from gptoss.errors import Error, shown
from gptoss.train.run.presets import Preset
from gptoss.train.run.settings import Settings

_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


# What other trainers, and papers, call these settings.
_ELSEWHERE = {
    "activation": ("feed_forward",),
    "attention": ("num_attention_heads", "num_key_value_heads", "window_pattern"),
    "batch": ("batch_tokens",),
    "batch_size": ("batch_tokens",),
    "block_size": ("length",),
    "context": ("length", "initial_context_length"),
    "context_length": ("length", "initial_context_length"),
    "max_length": ("length",),
    "depth": ("num_hidden_layers",),
    "layers": ("num_hidden_layers",),
    "n_layer": ("num_hidden_layers",),
    "heads": ("num_attention_heads", "num_key_value_heads"),
    "n_head": ("num_attention_heads", "num_key_value_heads"),
    "kv_heads": ("num_key_value_heads",),
    "n_embd": ("hidden_size",),
    "d_model": ("hidden_size",),
    "dim": ("hidden_size",),
    "width": ("hidden_size",),
    "experts": ("num_experts", "experts_per_token"),
    "top_k": ("experts_per_token",),
    "epochs": ("steps",),
    "iterations": ("steps",),
    "max_iters": ("steps",),
    "max_steps": ("steps",),
    "grad_clip": ("clip",),
    "gradient_accumulation": ("micro_tokens",),
    "lr": ("learning_rate",),
    "min_lr": ("final_learning_rate",),
    "betas": ("beta1", "beta2"),
    "window": ("sliding_window", "window_pattern"),
}
_CLOSE = 0.75  # of difflib: misspelt, not merely of some of the same letters


def unknown_name(name: str, known: Collection[str], where: str) -> Error:
    """The error for an unknown name: those that mean the same or look like it, or all."""
    near = [other for other in _ELSEWHERE.get(name.lower(), ()) if other in known]
    near = near or difflib.get_close_matches(name, known, 5, _CLOSE)
    expected = f"{' or '.join(near)}?" if near else f"one of {', '.join(sorted(known))};"
    return Error(f"{where}: expected {expected} found {name!r}")


def parse(name: str, text: str, like: object) -> Any:
    """`text` as a value of the kind of `like`; raises Error, naming `name`, where it is not."""
    lowered = text.strip().lower()
    try:
        if isinstance(like, bool):
            if lowered not in _TRUE + _FALSE:
                raise ValueError
            return lowered in _TRUE
        if isinstance(like, int):
            return int(text)
        if isinstance(like, float):
            return float(text)
        if isinstance(like, list | tuple):
            return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise Error(f"{name}: expected {_kind(like)}, found {shown(text)}") from None
    return text


def known_values(preset: Preset) -> dict[str, Any]:
    """Everything that can be changed, with the values that `preset` has."""
    return {**preset.architecture.to_dict(), **vars(preset.settings)}


def from_options(options: Sequence[str], preset: Preset) -> dict[str, Any]:
    """The values of options NAME=VALUE."""
    known = known_values(preset)
    found = {}
    for option in options:
        name, equals, text = option.partition("=")
        name = name.strip().replace("-", "_")
        if not equals:
            raise Error(f"--set: expected NAME=VALUE, found {option!r}")
        if name not in known:
            raise unknown_name(name, known, "--set")
        found[name] = parse(name, text, known[name])
    return found


def read_file(path: Path) -> dict[str, Any]:
    """A TOML or JSON file (by its ending) as one table. Raises Error for any other."""
    if path.suffix not in (".toml", ".json"):
        raise Error(f"{path}: expected a file that ends with .toml or .json")
    text = path.read_text(encoding="utf-8")
    try:
        table = json.loads(text) if path.suffix == ".json" else _toml(path, text)
    except ValueError as error:  # of both parsers
        if isinstance(error, Error):
            raise
        raise Error(f"{path}: {error}") from None
    if not isinstance(table, dict):
        raise Error(f"{path}: expected a table of names and values, found {shown(table)}")
    return table


def _toml(path: Path, text: str) -> Any:
    try:
        parser = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    except ModuleNotFoundError:
        raise Error(
            f"{path}: TOML needs Python 3.11, or: pip install tomli; JSON works everywhere"
        ) from None
    return parser.loads(text)


def from_table(table: Mapping[str, Any], preset: Preset, where: str) -> dict[str, Any]:
    """The values of a file: at its top level, or under [architecture] and [settings]."""
    names = {field.name for field in dataclasses.fields(Settings)}
    known = known_values(preset)
    found: dict[str, Any] = {}
    for key, value in table.items():
        if key in ("preset", "data"):
            continue
        if key in ("architecture", "settings"):
            inside = names if key == "settings" else set(known) - names
            if not isinstance(value, Mapping):
                raise Error(f"{where}: {key}: expected a table, found {shown(value)}")
            for name in value:
                if name not in inside:
                    raise unknown_name(name, inside, f"{where}: {key}")
            found.update(value)
        elif key in known:
            found[key] = value
        else:
            raise unknown_name(key, [*known, "preset", "data"], where)
    for name, value in found.items():
        if name not in names and not _fits(value, known[name]):
            raise Error(f"{where}: {name}: expected {_kind(known[name])}, found {shown(value)}")
    return found


def _fits(value: object, like: object) -> bool:
    if isinstance(like, float):
        return type(value) in (int, float)
    return type(value) is type(like)


def _kind(like: object) -> str:
    kinds = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
    return kinds.get(type(like), "a list of whole numbers")
