"""CUDA kernels against float64: emulated on the CPU, and on a GPU where GPTOSS_CUDA_LIBRARY names
the built libgptoss_cuda.so."""

import os

import numpy as np
import pytest

LIBRARIES = [""] + [path for path in [os.environ.get("GPTOSS_CUDA_LIBRARY")] if path]


@pytest.fixture(params=LIBRARIES, ids=["emulated", "gpu"][: len(LIBRARIES)])
def library(request):
    return request.param


@pytest.fixture
def random(request):
    """A generator seeded by the test's name: the same numbers in every run."""
    return np.random.default_rng(list(request.node.name.encode()))
