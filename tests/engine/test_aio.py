"""The engine in an event loop: many requests at a time, cancelled and failing ones among them."""

import asyncio
import gc
from itertools import islice

import numpy as np
import pytest
from fake_engine import settle
from held_steps import held
from waiting import until_async

from gptoss import AsyncEngine, Engine, Error, SamplingParams

GREEDY = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)


@pytest.fixture(scope="module")
def engine(tiny_a_words):
    with Engine(tiny_a_words, activation="f32", kv_bytes=64 << 20, threads=1) as engine:
        yield engine


@pytest.fixture(autouse=True)
def nothing_is_left(engine):
    yield
    gc.collect()
    settle(engine)


async def text_of(stream):
    return "".join([delta.text async for delta in stream])


def test_a_stream_is_what_a_thread_gets(engine):
    async def run():
        async with AsyncEngine(engine).stream("abc", GREEDY) as stream:
            text = await text_of(stream)
        assert stream.timing is not None and stream.timing.completion_tokens == 20
        return text

    assert asyncio.run(run()) == engine.generate("abc", GREEDY)[0].text


def test_many_at_a_time(engine):
    prompts = [f"prompt {i}" for i in range(12)]

    async def run():
        return await asyncio.gather(*(AsyncEngine(engine).generate(p, GREEDY) for p in prompts))

    before = engine._worker.steps
    found = [completion.text for (completion,) in asyncio.run(run())]
    assert found == [completion.text for completion in engine.generate(prompts, GREEDY)]
    assert engine._worker.steps - before < 2 * 12 * 20  # they shared steps


def test_choices(engine):
    params = SamplingParams(n=3, seed=5, max_tokens=8, ignore_eos=True)

    async def run():
        return await AsyncEngine(engine).generate("abc", params)

    found = asyncio.run(run())
    assert [c.text for c in found] == [c.text for c in engine.generate("abc", params)]
    assert [c.index for c in found] == [0, 1, 2]


@pytest.mark.parametrize("way", ["aclose", "block", "task", "dropped"])
def test_leaving_cancels(engine, way):
    """Pages become free (checked after every test), and others are not disturbed."""
    endless = SamplingParams(temperature=0, max_tokens=3000, ignore_eos=True)

    async def leave():
        asynchronous = AsyncEngine(engine)
        if way == "task":
            with held(engine) as steps:
                task = asyncio.create_task(asynchronous.generate("abc", endless))
                await until_async(lambda: steps.waits, "its first step")
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            return
        stream = asynchronous.stream("abc", endless)
        await anext(stream)
        if way == "aclose":
            await stream.aclose()
            with pytest.raises(StopAsyncIteration):
                await anext(stream)
        elif way == "block":
            async with stream:
                await anext(stream)
        else:
            del stream

    async def run():
        other = asyncio.create_task(AsyncEngine(engine).generate("other", GREEDY))
        await leave()
        return (await other)[0].text

    assert asyncio.run(run()) == engine.generate("other", GREEDY)[0].text


def test_a_slow_reader_holds_up_nobody_and_loses_nothing(engine):
    async def run():
        asynchronous = AsyncEngine(engine)
        slow = asynchronous.stream("slow", GREEDY)
        (quick,) = await asynchronous.generate("quick", GREEDY)
        await until_async(lambda: not engine.info()["running"], "the end of the slow one too")
        return await text_of(slow), quick.text

    wanted = [c.text for c in engine.generate(["slow", "quick"], GREEDY)]
    assert list(asyncio.run(run())) == wanted


def test_errors_are_the_request_s_own(engine):
    async def run():
        asynchronous = AsyncEngine(engine)
        with pytest.raises(Error, match="token ids"):
            asynchronous.stream([10**9], GREEDY)
        with pytest.raises(Error, match="params"):
            asynchronous.stream("abc", {"temperature": 0})
        return await text_of(asynchronous.stream("abc", GREEDY))

    assert asyncio.run(run()) == engine.generate("abc", GREEDY)[0].text


def test_a_step_that_fails_ends_its_own_request_alone(engine, monkeypatch, before_step):
    def fails_for_long_prompts(token_ids, seq_start, context_len, *arrays):
        if context_len.max() > 60:
            raise Error("no luck")

    before_step(engine, fails_for_long_prompts)

    async def run():
        asynchronous = AsyncEngine(engine)
        good = asynchronous.stream("abc", GREEDY)
        with pytest.raises(Error, match="no luck"):
            await asynchronous.generate("x " * 80, GREEDY)
        return await text_of(good)

    text = asyncio.run(run())
    monkeypatch.undo()
    assert text == engine.generate("abc", GREEDY)[0].text


def test_a_loop_that_ends_leaves_the_engine_alone(engine):
    endless = SamplingParams(temperature=0, max_tokens=3000, ignore_eos=True)

    async def run():
        return AsyncEngine(engine).stream("abc", endless)

    stream = asyncio.run(run())
    text = engine.generate("abc", GREEDY)[0].text
    assert text
    del stream


def test_a_closed_engine_says_so(tiny_a_words):
    engine = Engine(tiny_a_words, kv_bytes=8 << 20, threads=1)

    async def run():
        asynchronous = AsyncEngine(engine)
        stream = asynchronous.stream("abc", SamplingParams(max_tokens=3000, ignore_eos=True))
        await anext(stream)
        with held(engine):  # it may not come to its end before
            closing = asyncio.ensure_future(asyncio.to_thread(engine.close))
            with pytest.raises(Error, match="closed"):
                while True:
                    await asynchronous.stream("abc").aclose()
                    await asyncio.sleep(0)
        with pytest.raises(Error, match="closed"):
            await text_of(stream)
        await closing

    asyncio.run(run())


def test_many_streams_with_random_cancels(tiny_a_words):
    """Too few pages for all: those that stay get the right text, and every page comes back."""
    random = np.random.default_rng(7)
    prompts = [f"text {i} " * int(random.integers(1, 12)) for i in range(64)]
    leaves = random.random(64) < 0.4
    params = SamplingParams(temperature=0, max_tokens=30, ignore_eos=True)

    async def run(engine):
        waiting, begun = iter(range(64)), []

        def begin():
            for index in islice(waiting, 1):
                begun.append(asyncio.ensure_future(follow(index)))

        async def follow(index):
            text = ""
            async with AsyncEngine(engine).stream(prompts[index], params) as stream:
                async for delta in stream:
                    text += delta.text
                    if random.random() < 0.1:  # others come while it runs
                        begin()
                    if leaves[index] and len(text) > 5:
                        text = None
                        break
            begin()
            return text

        begin()
        while len(begun) < 64 or not all(task.done() for task in begun):
            await asyncio.wait([task for task in begun if not task.done()])
        return [task.result() for task in begun]

    with Engine(tiny_a_words, activation="f32", kv_bytes=8 << 20, threads=1) as engine:
        found = asyncio.run(run(engine))
        settle(engine)
        wanted = engine.generate(prompts, params)
        settle(engine)
    for text, left, done in zip(found, leaves, wanted, strict=True):
        assert text == (None if left else done.text)
