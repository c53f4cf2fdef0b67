"""Where a package that the notebooks need is missing, nothing of this folder is imported."""

from __future__ import annotations

from pathlib import Path

import pytest

from ..optional import module_or_skip

NEEDED = ("torch", "tokenizers", "datasketch", "ftfy", "matplotlib", "nbclient", "ipykernel")


def pytest_pycollect_makemodule(
    module_path: Path, parent: pytest.Collector
) -> pytest.Module | None:
    return module_or_skip(NEEDED, module_path, parent)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Weights that a test draws are the same in any order of tests."""
    import torch

    torch.manual_seed(0)
