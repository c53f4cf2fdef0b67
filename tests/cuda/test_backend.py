"""The CUDA backend in an engine: against OpenAI's own PyTorch code and beside the CPU backend.

Emulated, the real library's name leads to the compiled kernels of the tests, which hold the
emulated backend too.
"""

import os
import sys

import numpy as np
import pytest

from gptoss import Engine, Error, SamplingParams
from gptoss.native import _core, _kernels

LIBRARY = os.environ.get("GPTOSS_CUDA_LIBRARY", "")
LENGTHS = [1, 5, 48, 160]


@pytest.fixture(
    params=["", LIBRARY] if LIBRARY else [""], ids=lambda path: "real" if path else "emulated"
)
def plugin(request, tmp_path, monkeypatch):
    (tmp_path / "libgptoss_cuda.so").symlink_to(request.param or _kernels.__file__)
    monkeypatch.setenv("GPTOSS_PLUGINS", str(tmp_path))
    return request.param


def distance(found, wanted):
    wanted = wanted.astype(np.float64)
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def test_it_is_listed(plugin):
    (cuda,) = [status for status in _core.backends() if status["name"] == "cuda"]
    assert cuda["available"], cuda["reason"]


@pytest.mark.parametrize("layout", ["tiny_a", "tiny_a_hf"])
def test_no_further_from_float32_than_the_published_bf16(plugin, layout, tiny_a, request):
    golden = np.load(tiny_a / "golden.npz")
    with Engine(request.getfixturevalue(layout), device="cuda") as engine:
        for length in LENGTHS:
            wanted = golden[f"logits_f32_{length}"]
            found = engine.logits(golden[f"tokens_{length}"])
            assert distance(found, wanted) <= distance(golden[f"logits_bf16_{length}"], wanted)


def test_chunks_and_company_move_logits_by_roundings_only(plugin, tiny_a):
    golden = np.load(tiny_a / "golden.npz")
    for chunk, length in ((1, 48), (7, 48), (64, 160)):
        wanted = golden[f"logits_f32_{length}"]
        bound = distance(golden[f"logits_bf16_{length}"], wanted)
        with Engine(tiny_a, device="cuda", step_tokens=chunk, max_batch=1) as engine:
            found = engine.logits(golden[f"tokens_{length}"])
        assert distance(found, wanted) <= bound


def test_the_bundled_model_tells_the_story_that_it_tells_on_a_cpu(plugin):
    greedy = SamplingParams(temperature=0, max_tokens=100 if plugin else 20)
    prompts = ["Once upon a time", "The old king"]
    with Engine(device="cpu") as engine:
        wanted = [done.text for done in engine.generate(prompts, greedy)]
    with Engine(device="cuda") as engine:
        found = [done.text for done in engine.generate(prompts, greedy)]
        (alone,) = engine.generate(prompts[1:], greedy)
    assert found == wanted
    assert alone.text == wanted[1]


def test_sampling_is_that_of_the_cpu(plugin):
    """The same draws fall on the same tokens, unless a rounding is in the way."""
    options = [
        SamplingParams(temperature=1.0, seed=1, max_tokens=12),
        SamplingParams(temperature=0.8, top_p=0.9, seed=2, max_tokens=12, logprobs=4),
        SamplingParams(temperature=1.2, top_k=30, min_p=0.01, seed=3, max_tokens=12),
        SamplingParams(temperature=0.7, repetition_penalty=1.2, frequency_penalty=0.3, seed=4,
                       max_tokens=12),
        SamplingParams(temperature=0, logprobs=100, max_tokens=3),
    ]  # fmt: skip
    texts = {}
    for device in ("cpu", "cuda"):
        with Engine(device=device) as engine:
            texts[device] = engine.generate(["Once upon a time"] * len(options), options)
    same = [a.text == b.text for a, b in zip(texts["cpu"], texts["cuda"], strict=True)]
    assert sum(same) >= 4
    for pair in zip(texts["cpu"], texts["cuda"], strict=True):
        if pair[0].text == pair[1].text and pair[0].logprobs is not None:
            on_cpu, on_cuda = ([each.logprob for each in done.logprobs] for done in pair)
            assert np.allclose(on_cpu, on_cuda, atol=0.05)


def test_tensor_parallel(plugin, tiny_a):
    if plugin:
        pytest.skip("takes two GPUs")
    golden = np.load(tiny_a / "golden.npz")
    wanted = golden["logits_f32_48"]
    with Engine(tiny_a, device="cuda", tensor_parallel=2) as engine:
        assert engine.info()["tensor_parallel"] == "2"
        found = engine.logits(golden["tokens_48"])
    assert distance(found, wanted) <= distance(golden["logits_bf16_48"], wanted)


def test_nccl_is_found_where_its_package_puts_it(tmp_path, monkeypatch):
    folder = tmp_path / "nvidia" / "nccl" / "lib"
    folder.mkdir(parents=True)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.split(".")[0] == "nvidia"]:
        monkeypatch.delitem(sys.modules, name)
    assert _core.find_nccl() is None
    (folder / "libnccl.so.2").touch()
    assert _core.find_nccl() == str(folder / "libnccl.so.2")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activation": "f32"}, "expected activation bf16"),
        ({"weights": "q8"}, "expected published weights"),
        ({"kv": "int8"}, "expected a bf16 cache"),
    ],
)
def test_what_it_cannot_do_is_named(plugin, options, message):
    with pytest.raises(Error, match=message):
        Engine(device="cuda", **options)


def test_too_many_pages_are_named(plugin, tiny_a):
    with pytest.raises(Error, match=r"needed \d+ bytes.* would fit|KV pages"):
        Engine(tiny_a, device="cuda", kv_bytes=1 << 60)
