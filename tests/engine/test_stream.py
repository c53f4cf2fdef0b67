"""Streams side by side, left early, interrupted at any moment; errors; the engine's end."""

import gc
import signal
import subprocess
import sys
import threading
import weakref
from contextlib import suppress
from pathlib import Path

import fake_backend as fake
import pytest
from fake_engine import WINDOW, make_engine, settle
from held_steps import held
from waiting import PATIENCE, until

from gptoss import Error, SamplingParams

HERE = Path(__file__).parent
LONG = SamplingParams(temperature=0, max_tokens=150, ignore_eos=True)
SHORT = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)


def expected(prompt, count):
    return fake.reference_greedy(prompt, count, WINDOW)


def tokens(deltas):
    return [token for delta in deltas for token in delta.token_ids]


@pytest.fixture
def engine():
    with make_engine() as engine:
        yield engine


def test_streams_consumed_alternately(engine):
    streams = [engine.stream([i], SHORT) for i in range(3)]
    found = [[], [], []]
    for _ in range(12):
        for stream, deltas in zip(streams, found, strict=True):
            deltas.append(next(stream))
    assert [tokens(deltas) for deltas in found] == [expected([i], 12) for i in range(3)]
    assert all(list(stream) == [] for stream in streams)
    # They shared steps: far fewer than 36 were needed.
    assert engine.info()["steps"] <= 16
    settle(engine)


def test_streams_consumed_one_after_the_other(engine):
    first, second = engine.stream([1], LONG), engine.stream([2], SHORT)
    assert tokens(second) == expected([2], 12)
    assert tokens(first) == expected([1], 150)


def test_generate_while_a_stream_is_open(engine):
    stream = engine.stream([1], LONG)
    start = [next(stream) for _ in range(5)]
    assert engine.generate([2, 3], SHORT)[0].token_ids == expected([2, 3], 12)
    assert tokens([*start, *stream]) == expected([1], 150)


def test_logits_while_a_stream_is_open(engine):
    stream = engine.stream([1], SHORT)
    start = [next(stream)]
    assert (engine.logits([5, 6])[1] == fake.expected_logits([5, 6], 1, WINDOW)).all()
    assert tokens([*start, *stream]) == expected([1], 12)


def test_a_stream_that_is_not_read_computes_one_token(engine):
    stream = engine.stream([1], LONG)
    for read in range(1, 4):
        for _ in range(5):  # the worker looks for something to do this often
            looked = threading.Event()
            engine._worker._inbox.put(looked.set)
            assert looked.wait(PATIENCE)
        assert engine.info()["steps"] == read
        next(stream)


def test_timing_of_a_stream(engine):
    stream = engine.stream([1, 2], SHORT)
    assert stream.timing is None
    last = list(stream)[-1]
    assert stream.timing is last.timing and last.timing.completion_tokens == 12
    assert last.timing.ttft >= last.timing.prefill_seconds > 0
    assert last.timing.tokens_per_second > 0


@pytest.mark.parametrize("read", [0, 1, 20])
@pytest.mark.parametrize("way", ["close", "with", "drop", "break", "throw"])
def test_leaving_a_stream_frees_its_pages(engine, way, read):
    stream = engine.stream([1, 2, 3], LONG)
    for _ in range(read):
        next(stream)
    if way == "close":
        stream.close()
        assert list(stream) == []
    elif way == "with":
        with stream:
            pass
    elif way == "drop":
        del stream
    elif way == "break":
        for _ in stream:
            break
        del stream
    else:
        with suppress(ZeroDivisionError):
            for _ in stream:
                raise ZeroDivisionError
        del stream
    gc.collect()
    settle(engine)
    assert engine.generate([1], SHORT)[0].token_ids == expected([1], 12)


def test_closing_from_another_thread_wakes_the_reader(engine):
    stream, found = None, []
    reader = threading.Thread(target=lambda: found.extend(stream))
    with held(engine) as steps:
        stream = engine.stream([1], LONG)
        reader.start()
        until(lambda: steps.waits, "a step, so that there is nothing to read")
        until(lambda: inside(reader, "_take"), "the reader")
        stream.close()
        reader.join(PATIENCE)
        assert not reader.is_alive() and found == []
    settle(engine)


def inside(thread, function):
    """Whether a thread runs this function just now."""
    frame = sys._current_frames().get(thread.ident)
    return frame is not None and frame.f_code.co_name == function


def test_many_threads(engine):
    results = {}

    def work(i):
        if i % 3:
            results[i] = engine.generate([i], SHORT)[0].token_ids
        else:
            results[i] = tokens(engine.stream([i], SHORT))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert results == {i: expected([i], 12) for i in range(24)}
    settle(engine)


# Ctrl-C.


def interrupt_at(count, work):
    """Run `work`, raising KeyboardInterrupt at the count-th line of gptoss; False if never."""
    left = count

    def on_line(frame, event, argument):
        nonlocal left
        if event == "line":
            left -= 1
            if left == 0:
                sys.settrace(None)
                raise KeyboardInterrupt
        return on_line

    def on_call(frame, event, argument):
        file = frame.f_code.co_filename
        # In a finaliser Python ignores exceptions: nothing to test there.
        inside = "/gptoss/" in file and frame.f_code.co_name not in ("__del__", "close")
        return on_line if inside else None

    before = sys.gettrace()
    sys.settrace(on_call)
    try:
        work()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


@pytest.mark.parametrize("kind", ["stream", "generate", "logits"])
def test_an_interrupt_at_any_line_leaves_the_engine_usable(engine, kind):
    params = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True, n=2)
    work = {
        "stream": lambda: list(engine.stream([1, 2], params)),
        "generate": lambda: engine.generate([[1, 2], [3]], params),
        "logits": lambda: engine.logits([1, 2, 3]),
    }[kind]
    other = engine.stream([7], LONG)
    read = []
    count = 0
    gc.disable()  # callbacks of others on a collection would swallow the interrupt
    try:
        while interrupt_at(count + 1, work):
            count += 1
            if len(read) < 140:
                read.append(next(other))
    finally:
        gc.enable()
    assert count > 30
    assert tokens([*read, *other]) == expected([7], 150)
    gc.collect()
    settle(engine)
    assert engine.generate([1], SHORT)[0].token_ids == expected([1], 12)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs POSIX timers")
def test_signals_at_random_moments(engine):
    def interrupt(_, frame):
        while frame is not None:
            if frame.f_code.co_name == "__del__":  # there Python ignores exceptions: once more
                signal.setitimer(signal.ITIMER_REAL, 0.0001)
                return
            frame = frame.f_back
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGALRM, interrupt)
    hits = 0
    try:
        for i in range(60):
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.0005 + 0.0003 * (i % 20))
                while True:
                    for _ in engine.stream([i % 40], LONG):
                        pass
            except KeyboardInterrupt:
                hits += 1
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.signal(signal.SIGALRM, previous)
    assert hits == 60
    gc.collect()
    settle(engine)
    assert engine.generate([1], SHORT)[0].token_ids == expected([1], 12)


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="needs POSIX signals")
def test_an_interrupt_does_not_wait_for_the_step(engine):
    def interrupt(*_):
        raise KeyboardInterrupt

    def strike():
        until(lambda: steps.waits, "the step")
        signal.pthread_kill(threading.main_thread().ident, signal.SIGALRM)

    previous = signal.signal(signal.SIGALRM, interrupt)
    striker = threading.Thread(target=strike)
    try:
        with held(engine) as steps:
            with pytest.raises(KeyboardInterrupt):
                striker.start()
                engine.generate([1], SHORT)
            assert steps.waits  # the step is not even begun
        striker.join(PATIENCE)
    finally:
        signal.signal(signal.SIGALRM, previous)
    settle(engine)


# Errors in a step.


def test_an_error_in_a_step_reaches_its_own_request(engine):
    def fail(token_ids):
        if 13 in token_ids:
            raise MemoryError("out of it")

    engine.fake.fail_when = fail
    spared = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, logit_bias={13: -100})
    good = engine.stream([1], spared)
    first = next(good)
    with pytest.raises(MemoryError, match="out of it"):
        engine.generate([[2], [13]], spared)
    with pytest.raises(MemoryError):
        next(engine.stream([13], spared))
    with pytest.raises(MemoryError):
        engine.logits([1, 13])
    assert len(tokens([first, *good])) == 12
    settle(engine)
    engine.fake.fail_when = None
    assert engine.generate([13], SHORT)[0].token_ids == expected([13], 12)


def test_a_fault_of_the_worker_itself_hangs_nobody(engine, monkeypatch):
    stream = engine.stream([1], LONG)
    next(stream)

    def plan(*_):
        raise RuntimeError("a bug")

    with monkeypatch.context() as patch:
        patch.setattr(engine._worker.scheduler, "plan", plan)
        with pytest.raises(RuntimeError, match="a bug"):
            engine.generate([2], SHORT)
        with pytest.raises(RuntimeError, match="a bug"):
            list(stream)
    settle(engine)
    assert engine.generate([1], SHORT)[0].token_ids == expected([1], 12)


# The end.


def test_close_ends_everything(engine):
    stream = engine.stream([1], LONG)
    next(stream)
    engine.close()
    engine.close()
    assert engine.fake.closed
    with pytest.raises(Error, match="closed"):
        list(stream)
    for call in (
        lambda: engine.generate([1], SHORT),
        lambda: engine.stream([1], SHORT),
        lambda: engine.logits([1]),
    ):
        with pytest.raises(Error, match="engine: it is closed"):
            call()


def test_close_while_another_thread_generates(engine):
    caught = []

    def work():
        try:
            while True:
                engine.generate([1, 2], LONG)
        except Error as error:
            caught.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    until(lambda: any(count == 4 for count, _ in engine.fake.steps), "all four in one step")
    engine.close()
    for thread in threads:
        thread.join(PATIENCE)
    assert not any(thread.is_alive() for thread in threads)
    assert len(caught) == 4 and all("closed" in str(error) for error in caught)


def test_an_engine_that_is_dropped_closes_itself():
    engine = make_engine()
    backend, thread, alive = engine.fake, engine._worker._thread, weakref.ref(engine)
    stream = engine.stream([1], SHORT)
    del engine
    gc.collect()
    assert tokens(stream) == expected([1], 12)  # an open stream keeps it
    del stream
    gc.collect()
    assert alive() is None
    thread.join(PATIENCE)
    assert backend.closed


def test_a_program_that_never_closes_its_engine_ends():
    code = (
        f"import sys; sys.path[:0] = {[str(folder) for folder in (HERE, HERE.parent)]}\n"
        "from fake_engine import make_engine\n"
        "from gptoss import SamplingParams\n"
        "engine = make_engine()\n"
        "stream = engine.stream([1], SamplingParams(max_tokens=300, ignore_eos=True))\n"
        "next(stream)\n"
        "print('done')\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "done\n", "")
