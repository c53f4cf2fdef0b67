"""Test folders that need more than the package itself: where that is missing, they are skipped."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest


class _Skipped(pytest.Module):
    """A test file that is not even imported."""

    missing: Sequence[str] = ()

    def collect(self) -> list[pytest.Item]:
        pytest.skip(f"{' and '.join(self.missing)} not installed (pip install '.[train,test]')")


def module_or_skip(
    needed: Sequence[str], path: Path, parent: pytest.Collector
) -> pytest.Module | None:
    """For a conftest's pytest_pycollect_makemodule: None, or a module that says what is missing."""
    missing = [name for name in needed if find_spec(name) is None]
    if not missing:
        return None
    module = _Skipped.from_parent(parent, path=path)
    module.missing = missing
    return module
