"""Opening what was trained: the weights of a run, of a fine-tuning run, or of any checkpoint."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from pathlib import Path
from typing import Any

import torch

from gptoss import files
from gptoss.checkpoint import TensorSource, open_checkpoint
from gptoss.errors import Error
from gptoss.model import ModelConfig
from gptoss.train.merge import MergedSource, QuantizedMerged, factors_of
from gptoss.train.model.architecture import Architecture
from gptoss.train.model.convert import from_source, to_source
from gptoss.train.model.model import GptOss
from gptoss.train.run.state import CHECKPOINT_FILE, load_state

MARKER = "adapters.json"  # its presence says: a fine-tuning run
STATE = "adapters.pt"
# What a model says of its conversations (TensorSource.conversation_format): after training on
# plain texts, and after fine-tuning on conversations or preferences.
UNTAUGHT, TAUGHT = "none", "harmony"
_ENDS = 1 << 20  # bytes hashed at either end of a file


def is_run(path: Path) -> bool:
    """Whether `path` is the directory of a fine-tuning run."""
    return (path / MARKER).is_file()


def merged_source(run: Path, base: str | None = None, rule: str | None = "mse") -> TensorSource:
    """The weights that a fine-tuning run has arrived at, for `write_checkpoint`.

    Of adapters on an MXFP4 base, each expert is dequantized, changed and quantized again by `rule`
    ("mse" or "mx") when it is asked for, or left in bf16 without a rule; matrices without
    adapters keep their bits. `base` says where the base is now, if it has moved. Raises Error, also
    for another base than it was.
    """
    marker = read_marker(run)
    state = load_state(run / STATE)
    if marker["recipe"]["full"]:
        return _full(run, marker, state, rule)
    path = base or marker["base"]
    if not path.startswith("synthetic:") and not Path(path).exists():
        raise Error(f"{run}: base: expected the model it was fine-tuned from in {path}, found none")
    found = fingerprint(path)
    if found != marker["fingerprint"]:
        raise Error(
            f"{run}: base: expected {path} as it was (fingerprint {marker['fingerprint'][:12]}), "
            f"found another model ({found[:12]})"
        )
    source = open_base(path)
    recipe = marker["recipe"]
    scale = recipe["lora_alpha"] / recipe["lora_rank"]
    config = _with_stop_ids(source.config, marker["stop_ids"])
    trained = state["trained"]
    rows = {
        name.replace(".rows", ".weight"): values.numpy()
        for name, values in trained.items()
        if name.endswith("embedding.rows")
    }
    merged = MergedSource(source, config, factors_of(trained, scale), rows, marker["token_ids"])
    merged.conversation_format = _format_after(marker) or source.conversation_format
    if rule and merged.expert_dtype == "bf16" and source.expert_dtype == "mxfp4":
        return QuantizedMerged(merged, rule)
    return merged


def _full(
    run: Path, marker: dict[str, Any], state: dict[str, Any], rule: str | None
) -> TensorSource:
    architecture = Architecture.from_dict(marker["architecture"])
    config = _with_stop_ids(architecture.config, marker["stop_ids"])
    with torch.device("meta"):
        model = GptOss(dataclasses.replace(architecture, config=config))
    model.load_state_dict(state["trained"], assign=True)
    experts = "mxfp4" if rule else "bf16"
    return to_source(model, experts, rule or "mse", run, _format_after(marker))


def _format_after(marker: dict[str, Any]) -> str | None:
    """What a run says of conversations; None: what its base says."""
    if marker["recipe"]["method"] != "text":
        return TAUGHT
    found = marker.get("conversation_format")  # absent in runs of earlier versions
    return found if isinstance(found, str) else None


def _with_stop_ids(config: ModelConfig, stop_ids: list[int]) -> ModelConfig:
    """The end tokens that were taught, besides those that the base has."""
    ids = dict.fromkeys((*config.eos_token_ids, *stop_ids))
    return dataclasses.replace(config, eos_token_ids=tuple(ids))


def read_marker(run: Path) -> dict[str, Any]:
    """What `run` says about itself. Raises Error."""
    path = run / MARKER
    found = files.read_object(path)
    needed = ("base", "fingerprint", "recipe", "stop_ids", "token_ids", "architecture")
    missing = [key for key in needed if key not in found]
    if missing or found.get("format") != 1:
        raise Error(f"{path}: expected a fine-tuning run of format 1, found another file")
    return found


def open_base(path: str) -> TensorSource:
    """The weights under `path`: a checkpoint, "synthetic:…", a run or a fine-tuning run.

    Those of a run are given as its export has them, experts in MXFP4. Raises Error.
    """
    if is_run(Path(path)):
        return merged_source(Path(path))
    if (Path(path) / CHECKPOINT_FILE).exists():
        model = load_run(Path(path))[0]
        return to_source(model, directory=Path(path), conversation_format=UNTAUGHT)
    return open_checkpoint(path)


def fingerprint(path: str) -> str:
    """Tells one base from another: sha256 hex of its files' names, sizes, first and last megabyte.

    For "synthetic:…" of the description itself.
    """
    digest = hashlib.sha256()
    place = Path(path)
    if path.startswith("synthetic:"):
        return hashlib.sha256(path.encode()).hexdigest()
    inside = sorted([*place.glob("*"), *place.glob("original/*")])
    kept = (".safetensors", ".pt", "config.json")
    for file in [place] if place.is_file() else inside:
        if file.is_file() and file.name.endswith(kept):
            size = file.stat().st_size
            digest.update(f"{file.name}:{size}:".encode())
            with file.open("rb") as opened:
                digest.update(opened.read(_ENDS))
                opened.seek(max(0, size - _ENDS))
                digest.update(opened.read(_ENDS))
    return digest.hexdigest()


def absolute(path: str) -> str:
    """`path` as it will still be found from elsewhere."""
    return path if path.startswith("synthetic:") else os.path.abspath(path)


def load_run(run: Path) -> tuple[GptOss, dict[str, Any]]:
    """The float32 model of a run (its averaged weights, if it keeps any) and its whole state."""
    path = run / CHECKPOINT_FILE
    if not path.exists():
        raise Error(f"{path}: expected the state of a run, found nothing")
    state = load_state(path)
    model = GptOss(Architecture.from_dict(state["architecture"]))
    model.load_state_dict(state["model"])
    if state["ema"]:
        model.load_state_dict(state["ema"], strict=False)
    return model.eval(), state


def load_model(
    path: Path, compute_dtype: torch.dtype = torch.float32, quantized: bool = False
) -> tuple[GptOss, Path]:
    """The model of a run or of any checkpoint, and where its tokenizer files are.

    `quantized` leaves the MXFP4 experts of a checkpoint as they are. Raises Error for neither.
    """
    if (path / CHECKPOINT_FILE).exists():
        model, _ = load_run(path)
        model.compute_dtype = compute_dtype
        return model, path
    source = merged_source(path) if is_run(path) else open_checkpoint(path)
    with source:
        return from_source(source, compute_dtype, quantized).eval(), source.directory or path
