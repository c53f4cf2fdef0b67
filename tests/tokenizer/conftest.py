"""Makes the helpers beside these tests importable: `from vocabularies import …`."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def o200k_file() -> Path:
    """o200k_base.tiktoken, which only some machines hold; tests that need it skip on the others."""
    from vocabularies import o200k_path

    return o200k_path()
