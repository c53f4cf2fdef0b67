"""The state of a run on disk: written atomically, checked when read."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from gptoss.errors import Error, shown
from gptoss.files import write_in_one_piece
from gptoss.train.run.settings import Settings

CHECKPOINT_FILE = "state.pt"
LOG_FILE = "log.jsonl"
STATISTICS_FILE = "statistics.jsonl"
CONFIG_FILE = "config.json"
FORMAT = 1

# Settings that a run may change when it goes on; every other one makes it another run.
CHANGEABLE = frozenset(
    "steps learning_rate final_learning_rate schedule decay_from warmup clip spike micro_tokens "
    "device compile checkpointing parallel validate_every validation_rows save_every "
    "statistics_every tensorboard sample_prompt sample_tokens".split()
)
SCHEDULE = frozenset("steps learning_rate final_learning_rate schedule decay_from warmup".split())


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Replaces the state at `path`. Raises Error, with the old one untouched, if that fails."""
    try:
        write_in_one_piece(path, lambda file: torch.save(dict(state), file))
    except (OSError, RuntimeError) as error:  # PyTorch's writer makes a RuntimeError of the first
        reason: BaseException = error
        while not isinstance(reason, OSError) and (reason.__cause__ or reason.__context__):
            reason = reason.__cause__ or reason.__context__ or reason
        raise Error(
            f"{path}: step {state['step']} could not be saved ({reason}); "
            + ("the state before it is intact" if path.exists() else "there is no state yet")
        ) from error


def load_state(path: Path) -> dict[str, Any]:
    """The state at `path`, on the CPU. Raises Error for a file that is not, or not quite, one."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise Error(f"{path}: expected the state of a run, found {damaged} damaged")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Error:
        raise
    except (zipfile.BadZipFile, RuntimeError, EOFError, KeyError, pickle.UnpicklingError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise Error(
            f"{path}: expected the state of a run, found a damaged file ({first})"
        ) from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        found = state.get("format") if isinstance(state, dict) else type(state).__name__
        raise Error(f"{path}: expected a state of format {FORMAT}, found {shown(found)}")
    return state


def check_same_run(
    path: Path,
    state: Mapping[str, Any],
    architecture: Mapping[str, Any],
    settings: Settings,
    digest: str,
) -> dict[str, Any]:
    """Which changeable settings differ from those of `state`: name → value asked for now.

    Raises Error, naming the first key, where anything differs that may not.
    """
    asked = {**architecture, **vars(settings), "data": digest}
    kept = {**state["architecture"], **state["settings"], "data": state["digest"]}
    changed = {}
    for name, value in asked.items():
        found = kept.get(name, _default(name))
        if _plain(found) == _plain(value):
            continue
        if name not in CHANGEABLE:
            what = "the digest of " if name == "data" else ""
            raise Error(
                f"{path}: {name}: expected {what}{shown(value)} as asked for, found "
                f"{shown(found)} in the state; go on with that, or begin another run elsewhere"
            )
        changed[name] = value
    return changed


def _default(name: str) -> Any:
    """What a run had before a setting of this name existed."""
    return getattr(Settings(), name, None)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def trim_log(path: Path, step: int) -> None:
    """Drops records of steps after `step`, which will be taken again, and a broken last one."""
    if not path.exists():
        return
    lines = path.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if _step_of(line) <= step]
    if len(kept) < len(lines):
        write_in_one_piece(path, lambda file: file.write(b"".join(kept)))


def _step_of(line: bytes) -> float:
    try:
        record = json.loads(line)
        return float(record.get("step", record.get("resumed_after", 0)))
    except (ValueError, AttributeError, TypeError):
        return float("inf")  # cut off when the process was killed
