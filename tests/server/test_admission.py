"""How much may be asked for: texts, log-probabilities, bodies, values in them."""

import asyncio
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from serving import asking, connection, running, serving
from waiting import PATIENCE, until

from gptoss.engine import AsyncEngine
from gptoss.request import Delta, SamplingParams
from gptoss.server import bodies
from gptoss.server.admission import Admission, texts_of
from gptoss.server.api import app as module
from gptoss.server.api.app import ServerOptions, create_app
from gptoss.server.api.logprobs import MAX_LOGPROBS
from gptoss.server.errors import ApiError
from gptoss.server.front.app import FrontOptions, create_front
from gptoss.server.front.router import Router
from gptoss.server.parse import MAX_VALUES, parse_body
from gptoss.server.pools import SMALL, Pools


def post(address, body, path="/v1/completions"):
    return httpx.post(address + path, json=body, timeout=PATIENCE)


@pytest.mark.parametrize(
    ("body", "texts"),
    [
        ({"prompt": "a"}, 1),
        ({"prompt": "a", "n": 5}, 5),
        ({"prompt": ["a", "b"], "n": 5}, 10),
        ({"prompt": [1, 2, 3]}, 1),
        ({"prompt": [[1, 2], [3]], "n": 2}, 4),
        ({"prompt": [], "n": 3}, 3),
        ({"messages": [], "n": 128}, 128),
        ({"prompt": ["a", "b"], "n": 5.0}, 10),
        ({"prompt": "a", "n": 1e2}, 100),
        ({"prompt": "a", "n": 2.5}, 1),
        ({"n": True}, 1),
        ({"n": "many"}, 1),
        ({"n": -3, "prompt": {}}, 1),
        ({}, 1),
    ],
)
def test_texts_of_a_request(body, texts):
    assert texts_of(body) == texts


def status(call):
    with pytest.raises(ApiError) as error:
        call()
    return error.value.status


def test_texts_are_counted():
    admission = Admission(16)
    assert status(lambda: admission.take("a", 17)) == 400
    admission.take("a", 10)
    assert status(lambda: admission.take("a", 7)) == 429
    admission.take("b", 6)
    assert admission.running == 16
    assert status(lambda: admission.take("b", 1)) == 429
    admission.release("a", 10)
    admission.take("b", 10)
    admission.release("b", 16)
    assert admission.running == 0


def test_one_that_takes_all_places_does_not_keep_out_the_next():
    admission = Admission(32)
    admission.take("greedy", 32)
    assert status(lambda: admission.take("greedy", 1)) == 429
    admission.take("a", 2)  # a sixteenth
    assert status(lambda: admission.take("a", 1)) == 429
    for name in ("b", "c", "d"):
        admission.take(name, 2)
    assert status(lambda: admission.take("e", 1)) == 429  # a quarter more, and that is all


@pytest.mark.parametrize("front", [False, True])
def test_a_request_for_more_texts_than_may_be_is_refused_at_once(engine, front):
    if front:
        app = create_front([], Router(2, 8), FrontOptions("inner"))
    else:
        app = create_app(engine, ServerOptions("nano", max_sequences=8))
    with serving(app) as address:
        answer = post(address, {"prompt": ["Once"] * 64, "n": 128, "max_tokens": 1000})
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert error["param"] == "n" and "at most 8 texts" in error["message"]
        assert "8192" in error["message"] and "--max-sequences" in error["message"]
        # Written as 128.0 it is the same number, which must not count as one.
        again = post(address, {"prompt": ["Once"] * 64, "n": 128.0, "max_tokens": 1})
        assert again.status_code == 400 and again.json()["error"] == error


def test_places_are_given_back(engine):
    app = create_app(engine, ServerOptions("nano", max_sequences=4))
    with serving(app) as address:
        long = {"prompt": "Once", "n": 4, "max_tokens": 900, "ignore_eos": True, "stream": True}
        with asking(address, "/v1/completions", long) as client:
            assert client.recv(100)
            refused = post(address, {"prompt": "Once", "n": 4, "max_tokens": 1})
            assert refused.status_code == 429 and refused.headers["retry-after"] == "1"
            # Wrong in another way: that takes no place either.
            assert post(address, {"prompt": "Once", "top_p": 7}).status_code in (400, 429)
        until(lambda: running(address) == 0, "the end of the stream")
        assert post(address, {"prompt": "Once", "top_p": 7}).status_code == 400
        done = post(address, {"prompt": "Once", "n": 4, "max_tokens": 1})
        assert done.status_code == 200


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/v1/completions", {"prompt": ["Once"] * 8, "n": 8, "logprobs": 20}, "logprobs"),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": "Hi"}], "n": 64, "logprobs": True,
             "top_logprobs": 20},
            "top_logprobs",
        ),
    ],
)  # fmt: skip
def test_probabilities_times_tokens_times_texts(engine, path, body, field):
    with serving(create_app(engine, ServerOptions("nano"))) as address:
        answer = post(address, {**body, "max_tokens": 900}, path)
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert error["param"] == field and str(MAX_LOGPROBS) in error["message"]
        assert post(address, {**body, "max_tokens": 2}, path).status_code == 200


def test_without_a_limit_of_its_own_a_request_gets_as_many_tokens_as_can_be_told(engine):
    body = {"messages": [{"role": "user", "content": "Hi"}], "n": 64, "logprobs": True,
            "top_logprobs": 20, "ignore_eos": True}  # fmt: skip
    with serving(create_app(engine, ServerOptions("nano"))) as address:
        found = post(address, body, "/v1/chat/completions").json()
    most = MAX_LOGPROBS // (64 * 21)
    assert {len(choice["logprobs"]["content"]) for choice in found["choices"]} == {most}
    assert {choice["finish_reason"] for choice in found["choices"]} == {"length"}


def test_probabilities_of_all_that_runs(engine, monkeypatch):
    monkeypatch.setattr(module, "_MAX_TOLD", 1500)
    body = {"prompt": "Once", "max_tokens": 900, "ignore_eos": True, "logprobs": 0}
    with serving(create_app(engine, ServerOptions("nano"))) as address:
        with asking(address, "/v1/completions", {**body, "stream": True}) as client:
            assert client.recv(100)
            assert post(address, body).status_code == 429
            assert post(address, {**body, "max_tokens": 5}).status_code == 200
        until(lambda: running(address) == 0, "the end of the stream")
        assert post(address, {**body, "max_tokens": 800}).status_code == 200


@pytest.mark.parametrize(
    "data",
    [
        b"[" + b"[]," * MAX_VALUES + b"[]]",
        b"[" + b"1," * (MAX_VALUES + 1) + b"1]",
        b"{" + b",".join(b'"%d":1' % i for i in range(MAX_VALUES // 2 + 1)) + b"}",
    ],
)
def test_more_values_than_are_read(data):
    with pytest.raises(ApiError, match="expected at most 1048576 values") as error:
        parse_body(data)
    assert error.value.status == 413


def test_as_many_values_as_are_read():
    ids = [7] * (MAX_VALUES - 2)
    assert parse_body(json.dumps({"prompt": ids}, separators=(",", ":")).encode())["prompt"] == ids


def test_small_requests_do_not_wait_for_large_ones():
    begun, go = threading.Semaphore(0), threading.Event()

    def wait():
        begun.release()
        assert go.wait(PATIENCE)
        return "large"

    async def run():
        pools = Pools()
        large = [asyncio.ensure_future(pools.run("a", SMALL + 1, wait)) for _ in range(16)]
        await asyncio.to_thread(begun.acquire)
        small = [await pools.run("a", SMALL, lambda: "small") for _ in range(20)]
        with pytest.raises(ApiError) as error:  # one too many of one client
            await pools.run("a", SMALL + 1, wait)
        another = asyncio.ensure_future(pools.run("b", SMALL + 1, wait))
        go.set()
        return small, await asyncio.gather(*large, another), error.value.status

    small, large, refused = asyncio.run(run())
    assert small == ["small"] * 20 and large == ["large"] * 17 and refused == 429


def test_what_a_slow_reader_has_not_read_is_put_together(engine, monkeypatch):
    """Nothing of it is lost."""
    from gptoss.engine import aio

    monkeypatch.setattr(aio, "_UNREAD", 8)
    params = SamplingParams(max_tokens=600, ignore_eos=True, n=2, temperature=0)
    wanted = engine.generate("Once upon a time", params)

    async def slowly():
        async with AsyncEngine(engine).stream("Once upon a time", params) as stream:
            first = await anext(stream)  # before, none may run yet
            await asyncio.to_thread(until, lambda: engine.info()["running"] == 0, "the end")
            await asyncio.sleep(0)
            return [first, *[delta async for delta in stream]]

    deltas: list[Delta] = asyncio.run(slowly())
    assert len(deltas) < 60
    for index, completion in enumerate(wanted):
        mine = [delta for delta in deltas if delta.index == index]
        assert "".join(delta.text for delta in mine) == completion.text
        assert [i for delta in mine for i in delta.token_ids] == completion.token_ids
        assert [delta.finish_reason for delta in mine][-1] == completion.finish_reason
        assert mine[-1].timing is not None


# Bodies.


def half(address, size, sent, path="/v1/completions"):
    """A connection whose body is not complete."""
    client = connection(address)
    client.sendall(
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Connection: close\r\nContent-Length: {size}\r\n\r\n".encode()
        + b" " * sent
    )
    return client


def test_a_body_that_says_it_is_too_large_is_not_waited_for(engine):
    app = create_app(engine, ServerOptions("nano", max_body=1000))
    with serving(app) as address, half(address, 1001, 0) as client:
        assert client.recv(1000).startswith(b"HTTP/1.1 413 ")


@pytest.fixture
def bodies_of(engine, monkeypatch):
    """Makes an application with room for so many bytes of bodies: it, and its bodies."""
    made = []

    class Kept(bodies.Bodies):
        def __init__(self, *given):
            super().__init__(*given)
            made.append(self)

    def make(together, stalled):
        monkeypatch.setattr(module, "Bodies", Kept)
        monkeypatch.setattr(bodies, "STALLED", stalled)
        app = create_app(engine, ServerOptions("nano", max_bodies=together))
        return app, made[-1]

    return make


def test_bodies_that_stall_make_room_for_others(bodies_of):
    """The one that has stalled longest is told to come again."""
    app, held = bodies_of(3 << 20, stalled=0.0)
    with serving(app) as address:
        with half(address, 4 << 20, 1 << 20) as first, half(address, 4 << 20, 1 << 20):
            until(lambda: held.held > 1.8 * (1 << 20), "both of them")
            body = b'{"prompt":"Once","max_tokens":1,"user":"' + b"x" * (2 << 20) + b'"}'
            answer = httpx.post(
                f"{address}/v1/completions",
                content=body,
                headers={"Content-Type": "application/json"},
                timeout=PATIENCE,
            )
            assert answer.status_code == 200
            said = first.recv(1000)
            assert said.startswith(b"HTTP/1.1 503 ") and b"retry-after: 1" in said.lower()
        until(lambda: held.held == 0, "an end of all bodies")


def test_where_nobody_stalls_the_newcomer_waits(bodies_of):
    app, held = bodies_of(1 << 20, stalled=3600.0)
    with serving(app) as address:
        with half(address, 4 << 20, 1 << 20):
            until(lambda: held.held > 0.9 * (1 << 20), "the first one")
            with half(address, 4 << 20, 1 << 20) as second:
                assert second.recv(1000).startswith(b"HTTP/1.1 503 ")
            # There is always room for a small one.
            assert post(address, {"prompt": "Once", "max_tokens": 1}).status_code == 200
        until(lambda: held.held == 0, "an end of all bodies")


def test_many_at_once_are_all_answered(engine):
    app = create_app(engine, ServerOptions("nano"))
    with serving(app) as address, ThreadPoolExecutor(32) as pool:
        bodies = [{"prompt": f"{i} " * 200, "max_tokens": 1} for i in range(64)]
        answers = list(pool.map(lambda body: post(address, body), bodies))
    assert {answer.status_code for answer in answers} == {200}
