"""What people take for a model, told from one, with what to do instead."""

from __future__ import annotations

import re
from pathlib import Path

from gptoss import files
from gptoss.errors import Error, shown

CONFIG = "config.json"
ADAPTER = "adapter_config.json"  # of PEFT
_RUN, _TUNING_RUN = "state.pt", "adapters.json"  # gptoss.train's own
_LFS = b"version https://git-lfs.github.com/spec/"
_LFS_LIMIT = 1024  # bytes of a pointer; the specification's own limit
_ARCHITECTURE = "gpt_oss"


def check_folder(directory: Path) -> None:
    """Raise Error, saying what helps, for a folder that is known to be something else."""
    if (directory / ADAPTER).is_file() and not (directory / CONFIG).exists():
        raise Error(
            f"{directory}: expected a model, found a PEFT adapter ({ADAPTER}): merge it into its "
            f"base model first (PeftModel.merge_and_unload, then save_pretrained in bfloat16)"
        )
    weights = any(directory.glob("*.safetensors"))
    for marker, what in ((_RUN, "training"), (_TUNING_RUN, "fine-tuning")):
        if (directory / marker).is_file() and not weights:
            model = directory / "model"
            way_out = (
                f"use {model}"
                if (model / CONFIG).is_file()
                else f"write its model with: gptoss export {directory} {model}"
            )
            raise Error(f"{directory}: expected a model, found a {what} run ({marker}): {way_out}")
    check_pointer(directory / CONFIG)
    _check_architecture(directory / CONFIG)
    _check_pickled(directory, weights)


def check_pointer(path: Path) -> None:
    """Raise Error where `path` is what Git leaves in place of a large file."""
    try:
        if not path.is_file() or path.stat().st_size > _LFS_LIMIT:
            return
        data = path.read_bytes()
    except OSError:
        return  # whoever opens it says why
    if not data.startswith(_LFS):
        return
    size = re.search(rb"\nsize (\d{1,18})\n", data)
    stands = f" for {int(size[1]):,} bytes" if size else ""
    raise Error(
        f"{path}: expected the file itself, found a Git LFS pointer that stands{stands}: fetch it "
        f"with `git lfs pull` in that folder (git-lfs has to be installed)"
    )


def _check_architecture(path: Path) -> None:
    if not path.is_file():
        return
    config = files.read_object(path)
    found = config.get("model_type", _ARCHITECTURE)
    if isinstance(found, str) and found != _ARCHITECTURE:
        names = config.get("architectures")
        first = names[0] if isinstance(names, list) and names else None
        also = f" ({first})" if isinstance(first, str) and first.isidentifier() else ""
        raise Error(
            f"{path}: model_type: expected {_ARCHITECTURE!r}, found {shown(found)}{also}: this "
            f"engine runs gpt-oss alone"
        )


def _check_pickled(directory: Path, weights: bool) -> None:
    pickled = sorted(directory.glob("pytorch_model*.bin"))
    if pickled and not weights:
        raise Error(
            f"{directory}: expected *.safetensors, found {pickled[0].name}, which would run code "
            f"when it is read: save the model anew (save_pretrained does so in safetensors)"
        )
