"""How this installation gets what an optional part of gptoss needs: said here, and nowhere else.

The name gptoss is not registered on PyPI: `pip install gptoss[serve]` there would fetch a
stranger's package. So the hint names the folder that this was installed from, or the packages.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from urllib.parse import unquote, urlsplit


def install_hint(*extras: str) -> str:
    """The command that brings the packages of these extras, such as "serve"."""
    try:
        installed = distribution("gptoss")
    except PackageNotFoundError:  # a source tree that was never installed
        return f"pip install '.[{','.join(extras)}]' in gptoss's folder"
    if (folder := _folder(installed)) is not None:
        return f"pip install {shlex.quote(f'{folder}[' + ','.join(extras) + ']')}"
    found = dict.fromkeys(need for extra in extras for need in _needs(installed, extra))
    return f"pip install {' '.join(map(shlex.quote, found))}"


def _folder(installed: Distribution) -> Path | None:
    """The checkout of an installation from one that is still there (PEP 610)."""
    try:
        origin = json.loads(installed.read_text("direct_url.json") or "{}")
        if "dir_info" not in origin:
            return None
        folder = Path(unquote(urlsplit(origin["url"]).path))
    except (ValueError, KeyError, TypeError):
        return None
    return folder if (folder / "pyproject.toml").is_file() else None


def _needs(installed: Distribution, extra: str) -> Iterator[str]:
    """Other people's packages that an extra asks for, those of the extras that it names too."""
    for line in installed.requires or ():
        need, _, marker = line.partition(";")
        if re.search(rf"""extra\s*==\s*['"]{re.escape(extra)}['"]""", marker) is None:
            continue
        need = need.strip()
        own = re.fullmatch(r"gptoss\[([^]]+)\].*", need)
        if own is None:
            yield need.replace(" ", "")
            continue
        for other in own[1].split(","):
            yield from _needs(installed, other.strip())
