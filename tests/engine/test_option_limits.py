"""Numbers given to an engine: plain ones in range, or an Error that names the option."""

import numpy as np
import pytest

from gptoss import Engine, Error, SamplingParams

LIMITS = {
    "kv_bytes": 2**63 - 1,
    "threads": 4096,
    "max_batch": 2**31 - 1,
    "step_tokens": 2**31 - 1,
    "tensor_parallel": 8,
}
WRONG = [
    *(0, -1, 2**63, 2**64, 10**30, 10**400, 10**5000),
    *(1.0, 1e30, float("inf"), float("nan"), np.float32(4)),
    *(True, False, np.True_, "4", b"4", [4], np.array([4]), np.uint64(2**64 - 1), np.int8(-1)),
]


@pytest.mark.parametrize("option", LIMITS)
def test_refused(option):
    for value in [*WRONG, LIMITS[option] + 1]:
        with pytest.raises(Error) as caught:
            Engine(**{option: value})
        message = str(caught.value)
        assert message.startswith(
            f"{option}: expected an integer from 1 to {LIMITS[option]}, found"
        )
        assert len(message) < 250


def test_none_is_no_number_of_ranks():
    with pytest.raises(Error, match="tensor_parallel: expected an integer from 1 to 8, found None"):
        Engine(tensor_parallel=None)


@pytest.mark.parametrize("kv_bytes", [2**52, 2**63 - 1])
def test_a_cache_that_no_memory_holds(kv_bytes):
    with pytest.raises(Error, match=f"kv_bytes: expected what the memory holds, found {kv_bytes}:"):
        Engine(kv_bytes=kv_bytes)


def test_integers_of_numpy():
    """Small ones would overflow where they are added to others."""
    prompt = list(range(5, 305))
    with Engine(threads=1, kv_bytes=1 << 24, max_batch=127, step_tokens=127) as plain:
        wanted = plain.generate(prompt, SamplingParams(max_tokens=4, temperature=0))
        pages = plain.info()["kv_pages"]
    with Engine(
        threads=np.int8(1),
        kv_bytes=np.int32(1 << 24),
        max_batch=np.int8(127),
        step_tokens=np.int8(127),
        tensor_parallel=np.uint8(1),
    ) as engine:
        found = engine.generate(prompt, SamplingParams(max_tokens=4, temperature=0))
        assert found[0].token_ids == wanted[0].token_ids
        assert engine.info()["kv_pages"] == pages
        assert type(engine.info()["step_tokens"]) is int


@pytest.mark.parametrize("priority", [10**30, -(10**30), 1.0, "1", None, True])
def test_priorities(priority):
    """One that cannot be compared with others would end the worker."""
    with Engine(threads=1, kv_bytes=1 << 24) as engine:
        with pytest.raises(Error, match="priority: expected an integer from -9223372036854775807"):
            engine.stream("Once", priority=priority)
        with engine.stream("Once", SamplingParams(max_tokens=2), priority=np.int8(-1)) as stream:
            assert len(list(stream)) >= 1
