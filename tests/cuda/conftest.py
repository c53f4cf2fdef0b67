"""CUDA kernels against float64: emulated on the CPU, and on a GPU where GPTOSS_CUDA_LIBRARY names
the built libgptoss_cuda.so. Helpers beside the tests are importable: `from cuda_calls import …`."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from gptoss.native import _kernels

sys.path.insert(0, str(Path(__file__).parent))

LIBRARY = os.environ.get("GPTOSS_CUDA_LIBRARY", "")
# GPTOSS_TEST_SEED: other random numbers in every run of tools/gpu_check.sh.
SEED = int(os.environ.get("GPTOSS_TEST_SEED", "0"))


class Kernels:
    """Kernels of a library; array arguments are inputs, Out is poisoned and given back."""

    def __init__(self, library):
        self.library = library

    def __call__(self, kernel, arrays, sizes, numbers=(), **device):
        return _kernels.cuda(kernel, arrays, sizes, numbers, library=self.library, **device)


@pytest.fixture(
    params=["", LIBRARY] if LIBRARY else [""], ids=lambda path: "real" if path else "emulated"
)
def cuda(request):
    return Kernels(request.param)


@pytest.fixture
def random(request):
    """A generator seeded by the test's name: the same numbers in every run."""
    return np.random.default_rng([SEED, *request.node.name.encode()])
