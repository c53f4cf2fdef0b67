"""Completions of several prompts in one request: told as they are made, ended all together."""

import asyncio
import json
import threading

import httpx
import pytest
from fake_engine import settle
from scripted import ROOMY
from serving import serving

from gptoss import Error, SamplingParams
from gptoss.request import Delta
from gptoss.server.api import app as server
from gptoss.server.api.merge import Merged

PATIENCE = 30  # seconds after which a test that waits in vain fails


class Told:
    """An AsyncEngine whose streams say what they are told to."""

    def __init__(self):
        self.streams = []

    engine = ROOMY

    def stream(self, prompt, params, *, loop, priority, client, account, salt):
        self.streams.append(ToldStream(loop, prompt, params.n))
        return self.streams[-1]


class ToldStream:
    timings = ()
    cancelled = ()

    def __init__(self, loop, prompt, choices):
        self._loop, self._items, self.prompt_tokens = loop, asyncio.Queue(), len(prompt)
        self.choices = choices
        self.was_cancelled, self.left = threading.Event(), threading.Event()

    def say(self, text, finish=None, index=0):
        self._put(Delta(text, (1,), finish, index=index))

    def fail(self, error):
        self._put(error)

    def _put(self, item):
        self._loop.call_soon_threadsafe(self._items.put_nowait, item)

    def cancel(self):
        self.was_cancelled.set()

    end = cancel

    async def __aiter__(self):
        try:
            while True:
                item = await self._items.get()
                if isinstance(item, Exception):
                    raise item
                yield item
                if item.finish_reason is not None:
                    return
        finally:
            self.left.set()


@pytest.fixture
def told(engine, monkeypatch):
    """(address of a server, the Told behind it)."""
    told = Told()
    monkeypatch.setattr(server, "AsyncEngine", lambda engine: told)
    with serving(server.create_app(engine, server.ServerOptions("nano"))) as address:
        yield address, told


def asked(address, **more):
    body = {"prompt": ["one", "three"], "stream": True, **more}
    return httpx.stream("POST", f"{address}/v1/completions", json=body, timeout=PATIENCE)


def events(answer):
    """Each event as it comes."""
    for line in answer.iter_lines():
        if line:
            said = line.removeprefix("data: ")
            yield said if said == "[DONE]" else json.loads(said)


def choice(event):
    (found,) = event["choices"]
    return found["index"], found["text"], found["finish_reason"]


def test_texts_come_as_they_are_made(told):
    address, engine = told
    with asked(address, stream_options={"include_usage": True}) as answer:
        found = events(answer)
        first, second = engine.streams
        # Each is read before the next one is said: none waits for the end of another.
        for stream, index, text, finish in (
            (first, 0, "a", None),
            (second, 1, "b", None),
            (second, 1, "c", None),
            (first, 0, "d", None),
            (second, 1, "e", "stop"),
            (first, 0, "f", "length"),
        ):
            stream.say(text, finish)
            assert choice(next(found)) == (index, text, finish)
        last = next(found)
        assert last["choices"] == []
        counts = {"prompt_tokens": 8, "completion_tokens": 6, "total_tokens": 14}
        assert last["usage"].items() >= counts.items()
        assert next(found) == "[DONE]" and next(found, None) is None


def test_choices_are_counted_through_all_prompts(told):
    address, engine = told
    with asked(address, n=2) as answer:
        found = events(answer)
        for place, index in ((1, 1), (0, 1), (1, 0), (0, 0)):
            engine.streams[place].say("x", index=index)
            assert choice(next(found))[0] == 2 * place + index


def test_a_client_that_leaves_ends_all_of_them(told):
    address, engine = told
    with asked(address) as answer:
        found = events(answer)  # dropped, it would close the connection
        engine.streams[1].say("a")
        assert choice(next(found)) == (1, "a", None)
    for stream in engine.streams:
        assert stream.was_cancelled.wait(PATIENCE) and stream.left.wait(PATIENCE)


def test_an_error_of_one_ends_all_of_them(told):
    address, engine = told
    with asked(address) as answer:
        found = events(answer)
        engine.streams[0].say("a")
        assert choice(next(found)) == (0, "a", None)
        engine.streams[1].fail(Error("no luck"))
        error = next(found)["error"]
        assert (error["message"], error["type"]) == ("no luck", "server_error")
        assert next(found, None) is None
    for stream in engine.streams:
        assert stream.was_cancelled.wait(PATIENCE) and stream.left.wait(PATIENCE)


def test_an_error_of_one_is_the_answer_where_nothing_is_streamed(told, monkeypatch):
    address, engine = told
    stream = Told.stream

    def failing(self, *args, **options):
        made = stream(self, *args, **options)
        if len(self.streams) == 2:
            made.fail(Error("no luck"))
        return made

    monkeypatch.setattr(Told, "stream", failing)
    body = {"prompt": ["one", "three"]}
    answer = httpx.post(f"{address}/v1/completions", json=body, timeout=PATIENCE)
    assert answer.status_code == 500 and answer.json()["error"]["message"] == "no luck"
    assert all(stream.was_cancelled.wait(PATIENCE) for stream in engine.streams)


def test_they_add_up_to_what_is_not_streamed(engine):
    prompts = ["One day", "The dog", "A girl"]
    options = {"max_tokens": 9, "seed": 3, "n": 2}
    body = {"prompt": prompts, "stream": True, "logprobs": 0, **options}
    texts, offsets = [""] * 6, [[] for _ in range(6)]
    with serving(server.create_app(engine, server.ServerOptions("nano"))) as address:
        with httpx.stream("POST", f"{address}/v1/completions", json=body) as answer:
            for event in events(answer):
                if event != "[DONE]":
                    (found,) = event["choices"]
                    index, logprobs = found["index"], found["logprobs"]
                    offsets[index] += logprobs["text_offset"]
                    assert logprobs["text_offset"] == [len(texts[index])]
                    texts[index] += found["text"]
    assert texts == [done.text for done in engine.generate(prompts, SamplingParams(**options))]
    assert all(len(found) == 9 for found in offsets)
    settle(engine)


def test_an_iteration_that_is_cancelled_ends():
    async def run():
        begun = asyncio.Event()

        async def silent():
            begun.set()
            await asyncio.Event().wait()
            yield

        async def all_of(merged):
            return [item async for item in merged]

        merged = Merged([silent(), silent()])
        reading = asyncio.create_task(all_of(merged))
        await begun.wait()
        merged.cancel()
        return await asyncio.wait_for(reading, PATIENCE)

    assert asyncio.run(run()) == []
