"""Where PyTorch or matplotlib is missing, nothing of this folder is imported."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

NEEDED = ("torch", "matplotlib", "tokenizers", "datasketch", "ftfy")
MISSING = [name for name in NEEDED if find_spec(name) is None]


class Skipped(pytest.Module):
    """A test file that is not even imported."""

    def collect(self) -> list[pytest.Item]:
        pytest.skip(f"{' and '.join(MISSING)} not installed (pip install 'gptoss[train]')")


def pytest_pycollect_makemodule(
    module_path: Path, parent: pytest.Collector
) -> pytest.Module | None:
    return Skipped.from_parent(parent, path=module_path) if MISSING else None
