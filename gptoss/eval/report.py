"""What was found, as a block to paste into an issue, and as JSON."""

from __future__ import annotations

import getpass
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gptoss import __version__
from gptoss.checkpoint import BUNDLED_MODEL
from gptoss.eval.machine import describe_machine
from gptoss.eval.outcome import Result, Skipped
from gptoss.eval.session import Session

_HOMES = re.compile(
    r"(?<![\w.])/(?:home|Users)/[^/\s'\"]+|(?<![\w.])/root(?![\w-])|[A-Za-z]:\\Users\\[^\\\s'\"]+"
)
_WIDTH = 110  # characters of a line of details


def describe(session: Session, results: Sequence[Result]) -> dict[str, Any]:
    """Everything as a JSON object: no names of people, and numbers that are none as null."""
    found = {
        "version": __version__,
        "machine": describe_machine(),
        "model": _model(session),
        "options": _options(session),
        "failed": [result.name for result in results if result.verdict == "FAILED"],
        "checks": [
            {
                "name": result.name,
                "verdict": result.verdict,
                "line": result.line,
                "seconds": round(result.seconds, 3),
                "figures": result.figures,
                "details": list(result.details),
            }
            for result in results
        ],
    }
    cleaned: dict[str, Any] = _cleaned(found)
    return cleaned


def block(found: Mapping[str, Any]) -> str:
    """What `describe` gave, as text between ``` fences."""
    machine, model = found["machine"], found["model"]
    memory = "" if machine["memory"] is None else f"{machine['memory'] / 1e9:.1f} GB memory"
    free = f"{machine['memory_free'] / 1e9:.1f} free"
    lines = [
        f"gptoss check {found['version']}",
        f"machine  {machine['cpu']}, {machine['isa']}, {machine['threads']} threads of "
        f"{machine['cores']} cores, {memory} ({free}), {machine['system']}",
        f"python   {machine['python']}, numpy {machine['numpy']}; devices: "
        f"{', '.join(machine['devices'])}",
        f"model    {model['name']}",
    ]
    if "layout" in model:
        lines.append(
            f"         {model['layout']}, {model['parameters'] / 1e9:.3f} G parameters, "
            f"{model['bytes'] / 1e9:.3f} GB, experts {model['experts']}"
            + (f", shaped as {model['preset']}" if model["preset"] else "")
        )
    lines.append(f"options  {', '.join(f'{k}={v}' for k, v in found['options'].items())}")
    lines.append("")
    width = max((len(each["name"]) for each in found["checks"]), default=0)
    lines += [
        f"{each['name']:<{width}}  {each['verdict']:<7}  {each['seconds']:>6.1f} s  {each['line']}"
        for each in found["checks"]
    ]
    for each in found["checks"]:
        if each["details"]:
            lines += ["", f"{each['name']}:"]
            lines += [f"  {_cut(detail)}" for detail in each["details"]]
    text = "\n".join(lines).replace("```", "'''")  # a fence of the model's would end ours
    return f"```\n{text}\n```"


def anonymous(text: str) -> str:
    """`text` with home folders, of whomever, as ~, and without the user's name in paths."""
    for home in {str(Path.home()), os.path.realpath(Path.home())}:
        if len(home) > 1:
            text = re.sub(rf"(?<![\w.]){re.escape(home)}(?![\w-])", "~", text)
    text = _HOMES.sub("~", text)
    try:
        user = re.escape(getpass.getuser())
    except (OSError, KeyError, ImportError):  # nobody has this number
        return text
    return re.sub(rf"(?<=[/\\]){user}(?![\w-])|(?<![\w-]){user}(?=[/\\])", "USER", text)


def _model(session: Session) -> dict[str, Any]:
    name = str(session.options.model)
    if name == str(BUNDLED_MODEL):
        name = "nano, the bundled model"
    try:
        source = session.source
    except (Skipped, ValueError, OSError):
        return {"name": name}
    return {
        "name": name,
        "layout": source.layout,
        "preset": session.preset,
        "parameters": session.config.parameters(),
        "bytes": source.nbytes,
        "experts": source.expert_dtype,
    }


def _options(session: Session) -> dict[str, Any]:
    """Those that are not as they are by themselves, and the device."""
    options = session.options
    found: dict[str, Any] = {"device": options.device, "threads": session.threads}
    for name in ("activation", "weights", "kv", "kv_bytes", "step_tokens", "tensor_parallel"):
        value = getattr(options, name)
        if value is not None and value != 1:
            found[name] = value
    return found


def _cleaned(value: Any) -> Any:
    """`value` as JSON has it: texts anonymous, numbers that are none as None."""
    if isinstance(value, Mapping):
        return {str(key): _cleaned(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_cleaned(each) for each in value]
    if isinstance(value, str):
        return anonymous(value.encode("utf-8", "replace").decode())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int)):
        return value
    return _cleaned(value.item()) if hasattr(value, "item") else anonymous(str(value))


def _cut(text: str) -> str:
    return text if len(text) <= _WIDTH else text[: _WIDTH - 1] + "…"
