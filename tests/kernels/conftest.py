"""Every kernel test runs on every instruction set that this machine has; helpers beside the tests
are importable: `from panels import …`."""

import sys
from pathlib import Path

import numpy as np
import pytest

from gptoss.native import _kernels

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(params=_kernels.isas())
def isa(request):
    return request.param


@pytest.fixture
def random(request):
    """A generator seeded by the test's name: the same numbers in every run."""
    return np.random.default_rng(list(request.node.name.encode()))
