"""From options to an open model: what is refused, and that nothing stays open then."""

from types import SimpleNamespace

import fake_backend as fake
import pytest

from gptoss import Engine, EngineOptions, Error
from gptoss.checkpoint import open_checkpoint
from gptoss.engine import load as module
from gptoss.engine.load import Model, choose_device, load, open_model, prepare


def backends(**available):
    return [{"name": n, "available": a, "reason": "broken"} for n, a in available.items()]


def test_auto_is_the_first_that_is_available():
    assert choose_device("auto", backends(cuda=True, cpu=True)) == "cuda"
    assert choose_device("auto", backends(cuda=False, cpu=True)) == "cpu"
    assert choose_device("cpu", backends(cuda=True, cpu=True)) == "cpu"
    with pytest.raises(Error, match="device: 'cuda' is not available: broken"):
        choose_device("cuda", backends(cuda=False, cpu=True))
    with pytest.raises(Error, match=r"device: expected 'auto' or one of \['cpu'\], found 'tpu'"):
        choose_device("tpu", backends(cpu=True))


class Watched:
    """Opens checkpoints, and remembers which are still open."""

    def __init__(self):
        self.open = []
        self.asked = []

    def __call__(self, path):
        self.asked.append(path)
        source = open_checkpoint(path)
        close = source.close
        source.close = lambda: (close(), self.open.remove(source))
        self.open.append(source)
        return source


@pytest.fixture
def watched(monkeypatch):
    opens = Watched()
    monkeypatch.setattr(module, "open_checkpoint", opens)
    return opens


def test_a_cache_that_is_too_small_leaves_nothing_open(watched, tiny_a):
    with pytest.raises(Error, match="kv_bytes: expected at least"):
        load(EngineOptions(tiny_a, "cpu", kv_bytes=1, threads=1))
    assert watched.asked == [tiny_a] and not watched.open


def test_a_load_that_is_interrupted_leaves_nothing_open(watched, tiny_a):
    calls = []

    def interrupts(done, total):
        calls.append((done, total))
        if len(calls) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Engine(tiny_a, "cpu", threads=1, progress=interrupts)
    assert len(calls) == 3 and watched.asked and not watched.open


def test_steps_that_make_no_sense_are_refused_before_anything_is_opened(watched):
    with pytest.raises(Error, match="max_batch: expected 1 to 16"):
        load(EngineOptions(device="cpu", max_batch=17, step_tokens=16))
    assert not watched.asked


def test_progress_ends_with_all_bytes(tiny_a):
    calls = []
    model = open_model(EngineOptions(tiny_a, threads=1), "cpu", lambda *c: calls.append(c))
    model.close()
    assert [done for done, _ in calls] == sorted({done for done, _ in calls})
    assert {total for _, total in calls} == {model.source.nbytes} == {calls[-1][0]}


def test_a_fake_is_closed_when_its_cache_cannot_be_made():
    closed = []
    config = SimpleNamespace(sliding_window=20, context_length=400)
    source = SimpleNamespace(config=config, close=lambda: closed.append("source"))
    backend = fake.FakeBackend(20)
    with pytest.raises(Error, match="kv_bytes: expected at least 2000"):
        prepare(Model(source, backend, "cpu"), EngineOptions(kv_bytes=1999))
    assert backend.closed and closed == ["source"]


def test_an_engine_from_options_is_the_same(tiny_a):
    options = EngineOptions(tiny_a, "cpu", "f32", 8 << 20, 1, step_tokens=32, max_batch=3)
    calls = []
    with Engine.from_options(options, lambda *c: calls.append(c)) as engine:
        info = engine.info()
        assert (info["step_tokens"], info["max_batch"]) == (32, 3)
        found = engine.logits([1, 2, 3])
    assert calls
    with Engine(tiny_a, "cpu", "f32", 8 << 20, 1, step_tokens=32, max_batch=3) as engine:
        assert (engine.logits([1, 2, 3]) == found).all()
