"""The front alone, before replicas that do as they are told."""

import asyncio
import json

import httpx
import pytest
from openai_types import check_event, check_response
from serving import serving
from test_response_events import PIECES, response_of, told
from waiting import until_async

from gptoss.server.front import app as module
from gptoss.server.front.app import Broken, Call, FrontOptions, Unreached, create_front
from gptoss.server.front.router import (
    CHAT,
    COMPLETIONS,
    DOWN,
    HUNG,
    RESPONSES,
    STARTING,
    STATES,
    UP,
    Router,
)
from gptoss.server.http import CALLER_HEADER, CLIENT_HEADER

EVENTS = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"}
JSON = {"content-type": "application/json", "server": "inner", "x-own": "1"}


class Reply:
    def __init__(self, parts, headers=JSON, status=200):
        self.status, self.headers, self._parts, self.closed = status, headers, parts, 0

    async def parts(self):
        for part in self._parts:
            if isinstance(part, Exception):
                raise part
            if isinstance(part, asyncio.Event):
                await part.wait()
            else:
                yield part

    async def close(self):
        self.closed += 1


class Replica:
    """Answers with what `reply` makes of a call; `calls` are those that came."""

    def __init__(self, reply=lambda call: Reply([b"{}"])):
        self.reply, self.calls = reply, []

    async def ask(self, call: Call) -> Reply:
        self.calls.append(call)
        found = self.reply(call)
        if isinstance(found, Exception):
            raise found
        if isinstance(found, asyncio.Event):
            try:
                await found.wait()
            except asyncio.CancelledError:
                self.calls.append("cancelled")
                raise
        return found


def ask(replicas, *requests, most=10, router=None, **options):
    """The answers to requests (method, path, options of httpx), one after the other."""
    router = router or Router(len(replicas), most)
    app = create_front(replicas, router, FrontOptions("inner", **options))

    async def run():
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://front") as client:
            return [await client.request(*request[:2], **request[2]) for request in requests]

    answers = asyncio.run(run())
    assert router.running == [0] * len(replicas)
    return answers


def post(path=COMPLETIONS, **options):
    return "POST", path, {"json": {"prompt": "a"}, **options}


def test_what_is_passed_on():
    replica = Replica(lambda call: Reply([b'{"a', b'": 1}'], status=404))
    headers = {"Authorization": "Bearer good", "Origin": "http://x", "X-Asked": "yes"}
    request = post("/v1/what%2Fever?a=b&c", headers=headers)
    (answer,) = ask([replica], request, api_keys=("good",))
    assert answer.status_code == 404 and answer.json() == {"a": 1}
    assert answer.headers["x-own"] == "1" and "server" not in answer.headers
    (call,) = replica.calls
    assert (call.method, call.path) == ("POST", "/v1/what%2Fever?a=b&c")
    assert json.loads(call.body) == {"prompt": "a"}
    assert call.headers["authorization"] == "Bearer inner" and call.headers["x-asked"] == "yes"
    assert not {"host", "origin", "content-length"} & set(call.headers)


def test_keys():
    replica = Replica()
    bad = {"headers": {"Authorization": "Bearer bad"}}
    good = {"headers": {"Authorization": "bearer good"}}
    requests = [post(**bad), ("GET", "/metrics", bad), ("GET", "/health", {}), post(**good)]
    answers = ask([replica], *requests, api_keys=("better", "good"))
    assert [answer.status_code for answer in answers] == [401, 401, 200, 200]
    assert answers[0].json()["error"]["code"] == "invalid_api_key"
    assert len(replica.calls) == 1
    # Whether other routes need one is the replica's to say: it gets them without key and body.
    ask([replica], post("/tokenize", **bad), api_keys=("good",))
    assert "authorization" not in replica.calls[-1].headers and replica.calls[-1].body == b""


def test_replicas_learn_who_asks():
    replica, callers = Replica(), []
    for key in ("one", "two", "one"):
        headers = {"Authorization": f"Bearer {key}", CALLER_HEADER: "x", CLIENT_HEADER: "x"}
        ask([replica], post(headers=headers), api_keys=("one", "two"))
        assert replica.calls[-1].headers[CLIENT_HEADER] == "127.0.0.1"
        callers.append(replica.calls[-1].headers[CALLER_HEADER])
    assert callers[0] == callers[2] != callers[1] and "x" not in callers
    ask([replica], post(headers={CALLER_HEADER: "x"}))
    assert replica.calls[-1].headers[CALLER_HEADER] == "127.0.0.1"


def test_a_request_has_one_name_here_and_there():
    """Whoever gave it; also where no replica was asked."""
    replica = Replica(lambda call: Reply([b"{}"], {**JSON, "X-Request-Id": "other"}))
    bad = post(headers={"Authorization": "Bearer bad"})
    for headers in ({}, {"X-Request-Id": "mine"}, {"X-Request-Id": "not mine"}):
        good = post(headers={"Authorization": "Bearer good", **headers})
        found, refused = ask([replica], good, bad, api_keys=("good",))
        (name,) = found.headers.get_list("x-request-id")
        assert replica.calls[-1].headers["x-request-id"] == name != ""
        assert (name == "mine") == (headers.get("X-Request-Id") == "mine")
        assert refused.status_code == 401 and refused.headers["x-request-id"]


TYPED = {"Content-Type": "application/json"}


def test_what_the_front_refuses_it_logs(caplog):
    caplog.set_level("INFO", "gptoss.access")
    requests = [("POST", COMPLETIONS, {"content": b" " * 101, "headers": TYPED}), post()]
    ask([Replica()], *requests, max_body=100)
    (line,) = [json.loads(record.message) for record in caplog.records
               if record.name == "gptoss.access"]  # fmt: skip
    assert line["path"] == COMPLETIONS and line["status"] == 413 and line["client"] == "127.0.0.1"


def test_bodies_that_are_too_large():
    replica = Replica()
    large = {"content": b" " * 101, "headers": TYPED}
    paths = (COMPLETIONS, "/tokenize")
    answers = ask([replica], *(("POST", path, large) for path in paths), max_body=100)
    assert [answer.status_code for answer in answers] == [413, 413] and replica.calls == []
    ask([replica], ("POST", COMPLETIONS, {"content": b" " * 100, "headers": TYPED}), max_body=100)
    assert len(replica.calls) == 1


def test_as_many_as_may():
    router = Router(2, 1)
    taken = [router.take(), router.take()]
    app = create_front([Replica(), Replica()], router, FrontOptions("inner"))
    with serving(app) as address:
        answer = httpx.post(f"{address}{COMPLETIONS}", json={"prompt": "a"})
        assert answer.status_code == 429 and answer.headers["retry-after"] == "1"
        assert answer.json()["error"]["code"] == "rate_limit_exceeded"
        assert httpx.post(f"{address}/tokenize", json={}).status_code == 200
        router.release(taken[0])
        assert httpx.post(f"{address}{COMPLETIONS}", json={"prompt": "a"}).status_code == 200


def bearer(key):
    return {"Authorization": f"Bearer {key}"}


def test_one_client_that_takes_all_places_does_not_keep_out_the_next():
    router, replica = Router(1, 16), Replica()
    app = create_front([replica], router, FrontOptions("inner", api_keys=("a", "b")))
    replica.reply = lambda call: Reply([b"data: 1\n\n", asyncio.Event()], EVENTS)
    with serving(app) as address:
        many = {"prompt": "a", "n": 16, "stream": True}
        with httpx.stream(
            "POST", f"{address}{COMPLETIONS}", json=many, headers=bearer("a")
        ) as stream:
            parts = stream.iter_raw()  # dropped, it would close the connection
            next(parts)
            replica.reply = lambda call: Reply([b"{}"])
            for key, status in (("a", 429), ("b", 200)):
                answer = httpx.post(
                    f"{address}{COMPLETIONS}", json={"prompt": "a"}, headers=bearer(key)
                )
                assert answer.status_code == status


@pytest.mark.parametrize("path", [COMPLETIONS, "/tokenize"])
def test_another_takes_what_one_did_not_get(path):
    replicas = [Replica(lambda call: Unreached("gone")), Replica()]
    answers = ask(replicas, *[post(path)] * 3)
    assert [answer.status_code for answer in answers] == [200] * 3
    assert len(replicas[1].calls) == 3
    replicas[1].reply = replicas[0].reply
    (answer,) = ask(replicas, post(path))
    assert answer.status_code == 503 and answer.headers["retry-after"]


@pytest.mark.parametrize("path", [COMPLETIONS, "/tokenize"])
@pytest.mark.parametrize("cut", [[], [b'{"a']])
def test_what_one_had_goes_to_one_other(path, cut):
    """Nothing was sent to the client. But it may be what ended them: a third is not tried."""
    lost = Broken("replica 0 went")

    def reply(call):
        return Reply([*cut, lost]) if cut else lost

    replicas = [Replica(reply), Replica(), Replica()]
    (answer,) = ask(replicas, post(path))
    assert answer.status_code == 200
    assert [len(replica.calls) for replica in replicas] == [1, 1, 0]
    replicas = [Replica(reply), Replica(reply), Replica()]
    (answer,) = ask(replicas, post(path))
    assert answer.status_code == 502 and "replica 0 went" in answer.json()["error"]["message"]
    assert answer.json()["error"]["type"] == "server_error"
    assert [len(replica.calls) for replica in replicas] == [1, 1, 0]


def test_a_stream_ends_with_an_error_of_its_kind():
    parts = [b"data: 1\n\ndata:", b" 2\n", b"\ndata: half", Broken("went")]
    for path, kind in ((CHAT, None), (RESPONSES, "error")):
        reply = Reply(parts, EVENTS)
        (answer,) = ask([Replica(lambda call, reply=reply: reply)], post(path))
        assert answer.status_code == 200 and answer.headers["cache-control"] == "no-cache"
        *whole, last = answer.text.removesuffix("\n\n").split("\n\n")
        assert whole == ["data: 1", "data: 2"]  # half an event does not count
        name, _, data = last.rpartition("data: ")
        error = json.loads(data)
        assert (name, error.get("type")) == (("event: error\n", kind) if kind else ("", None))
        assert "went" in (error if kind else error["error"])["message"] and reply.closed == 1


@pytest.mark.parametrize("parts", [1, 2, 5, 100])
def test_a_response_that_breaks_off_has_failed(parts):
    """By events of OpenAI's types, whose numbers go on, and the response that was begun."""

    async def written():
        pieces = response_of(*PIECES)
        return [event async for event in told(pieces)]

    events = asyncio.run(written())[:-1]
    sent = "".join(f"event: {e['type']}\ndata: {json.dumps(e)}\n\n" for e in events).encode()
    step = len(sent) // parts + 1
    cut = [sent[i : i + step] for i in range(0, len(sent), step)]
    reply = Reply([*cut, b"event: half", Broken("went")], EVENTS)
    (answer,) = ask([Replica(lambda call: reply)], post(RESPONSES))
    found = [json.loads(block.split("data: ")[1]) for block in answer.text.strip().split("\n\n")]
    assert found[:-2] == events
    assert [check_event(event).sequence_number for event in found] == list(range(len(found)))
    said, failed = found[-2:]
    assert said["message"] == said["error"]["message"] == "went"
    assert check_response(failed["response"]).status == "failed"
    assert failed["response"]["id"] == events[0]["response"]["id"]
    assert failed["response"]["error"] == {"code": "server_error", "message": "went"}


def test_events_come_as_they_are_written():
    async def run(address, wait, reply):
        async with httpx.AsyncClient() as client:
            async with client.stream("POST", address + CHAT, json={}) as answer:
                parts = answer.aiter_raw()
                assert await anext(parts) == b"data: 1\n\n"  # while the next one waits
                assert router.running == [1]
            # Left before its end.
            await until_async(lambda: reply.closed and router.running == [0], "the end of it")
            assert reply.closed == 1

    wait, router = asyncio.Event(), Router(1, 5)
    reply = Reply([b"data: 1\n\n", wait, b"data: 2\n\n"], EVENTS)
    app = create_front([Replica(lambda call: reply)], router, FrontOptions("inner"))
    with serving(app) as address:
        asyncio.run(run(address, wait, reply))


def test_who_does_not_read_holds_up_the_replica():
    """What the server does not take, as its sockets are full, is not fetched either."""
    taken, fetched = [], []

    class Endless(Reply):
        async def parts(self):
            while True:
                fetched.append(b"data: x\n\n")
                yield fetched[-1]

    async def run():
        full, asked = asyncio.Event(), iter([{"type": "http.request", "body": b"{}"}])

        async def receive():
            return next(asked, None) or await full.wait()

        async def send(message):
            taken.append(message)
            if len(taken) > 5:
                await full.wait()

        replica = Replica(lambda call: Endless([], EVENTS))
        app = create_front([replica], Router(1, 5), FrontOptions("inner"))
        scope = {"type": "http", "method": "POST", "path": CHAT, "raw_path": CHAT.encode(),
                 "query_string": b"", "headers": []}  # fmt: skip
        answering = asyncio.ensure_future(app(scope, receive, send))
        await until_async(lambda: len(taken) > 5, "the first events")
        for _ in range(1000):  # turns in which it could fetch more
            await asyncio.sleep(0)
        answering.cancel()
        await asyncio.gather(answering, return_exceptions=True)

    asyncio.run(run())
    assert len(taken) == 6 and len(fetched) <= 6


@pytest.mark.parametrize("path", [COMPLETIONS, "/tokenize"])
def test_who_leaves_while_nothing_came(path):
    router, replica = Router(1, 5), Replica(lambda call: asyncio.Event())

    async def run(address):
        async with httpx.AsyncClient() as client:
            asking = asyncio.ensure_future(client.post(address + path, json={}))
            await until_async(lambda: replica.calls, "the call")
            asking.cancel()
            await until_async(lambda: replica.calls[-1] == "cancelled", "its end")
            await until_async(lambda: router.running == [0], "the router's notice of it")

    with serving(create_front([replica], router, FrontOptions("inner"))) as address:
        asyncio.run(run(address))


def test_health_says_who_is_up():
    router = Router(2, 5)
    get = ("GET", "/health", {})
    for up, status, code in (((1, 1), "ok", 200), ((1, 0), "degraded", 200), ((0, 0), "down", 503)):
        for i in range(2):
            router.set_up(i, bool(up[i]))
        (answer,) = ask([Replica()] * 2, get, router=router)
        assert answer.status_code == code and answer.json()["status"] == status
        assert [each["up"] for each in answer.json()["replicas"]] == [bool(i) for i in up]
        assert [each["state"] for each in answer.json()["replicas"]] == [(DOWN, UP)[i] for i in up]
    assert [each["ended"] for each in answer.json()["replicas"]] == [1, 1]


def test_health_says_since_when_and_how_the_last_one_ended(monkeypatch):
    monkeypatch.setattr("time.time", lambda: 1000.9)
    router = Router(1, 5)

    def told():
        (answer,) = ask([Replica()], ("GET", "/health", {}), router=router)
        (replica,) = answer.json()["replicas"]
        return [replica[key] for key in ("state", "since", "last_code")]

    assert told() == [UP, 1000, None]
    for now, state, code in ((1010.0, HUNG, None), (1020.0, HUNG, None), (1030.0, DOWN, -9)):
        monkeypatch.setattr("time.time", lambda now=now: now)
        router.set_state(0, state, code)
        assert told() == [state, 1010 if state == HUNG else 1030, code]
    router.set_state(0, STARTING)
    assert told() == [STARTING, 1030, -9]


@pytest.mark.parametrize("path", [COMPLETIONS, "/tokenize"])
@pytest.mark.parametrize("silent", ["head", "body"])
def test_an_answer_that_takes_too_long(monkeypatch, path, silent):
    """The replica should have ended it itself; it may hang."""
    monkeypatch.setattr(module, "_GRACE", 0.0)
    reply = Reply([b'{"a', asyncio.Event()])
    replica = Replica(lambda call: asyncio.Event() if silent == "head" else reply)
    (answer,) = ask([replica, Replica()], post(path), timeout=0.05)
    assert answer.status_code == 504 and answer.json()["error"]["code"] == "timeout"
    # It may have been worked on: nobody else is asked.
    assert replica.calls[1:] == (["cancelled"] if silent == "head" else [])
    assert reply.closed == (silent == "body")


@pytest.mark.parametrize("path", [CHAT, RESPONSES])
def test_a_stream_that_takes_too_long(monkeypatch, path):
    monkeypatch.setattr(module, "_GRACE", 0.0)
    reply = Reply([b"data: {}\n\n", asyncio.Event()], EVENTS)
    replica = Replica(lambda call: reply if call.path == path else Reply([b""]))
    answer, metrics = ask([replica], post(path), ("GET", "/metrics", {}), timeout=0.05)
    error = json.loads(answer.text.strip().rpartition("data: ")[2])
    error = error if path == RESPONSES else error["error"]
    assert answer.text.startswith("data: {}\n\n") and error["code"] == "timeout"
    assert reply.closed == 1
    assert f'gptoss_front_requests_total{{route="{path}",status="504"}} 1.0' in metrics.text


def test_metrics_say_whose_they_are():
    def text(count):
        lines = (
            "# HELP gptoss_x_total What.",
            "# TYPE gptoss_x_total counter",
            f'gptoss_x_total{{a="b"}} {count}',
            "# HELP t Time.",
            "# TYPE t histogram",
            't_bucket{le="1.0"} 1.0',
            't_bucket{le="+Inf"} 2.0',
            "t_count 2.0",
            "t_sum 3.5",
        )
        return Reply(["\n".join(lines).encode() + b"\n"])

    replicas = [Replica(lambda call, i=i: text(i)) for i in (3, 4)] + [
        Replica(lambda call: Broken("gone"))
    ]
    answers = ask(replicas, post("/tokenize"), ("GET", "/metrics", {}))
    assert answers[1].status_code == 200
    lines = answers[1].text.splitlines()
    for i, count in ((0, 3), (1, 4)):
        assert f'gptoss_x_total{{a="b",replica="{i}"}} {count}.0' in lines
        assert f't_bucket{{le="1.0",replica="{i}"}} 1.0' in lines
        assert f't_sum{{replica="{i}"}} 3.5' in lines
    assert 'gptoss_front_requests_total{route="/{path:path}",status="200"} 1.0' in lines
    assert 'gptoss_replica_up{replica="2"} 1.0' in lines
    for state in STATES:
        found = f'gptoss_replica_state{{replica="2",state="{state}"}} {float(state == UP)}'
        assert found in lines
    assert lines.count("# TYPE gptoss_x_total counter") == 1
    assert all(call.headers["authorization"] == "Bearer inner" for call in replicas[0].calls)


def test_pages_that_may_ask():
    headers = {"Origin": "http://good", "Access-Control-Request-Method": "POST"}
    requests = [("OPTIONS", CHAT, {"headers": headers}), post(headers={"Origin": "http://good"})]
    for origins, allowed in ((("http://good",), "http://good"), ((), None)):
        for answer in ask([Replica()], *requests, origins=origins):
            assert answer.headers.get("access-control-allow-origin") == allowed


def test_prefixes_choose():
    replicas = [Replica(), Replica()]
    first = {"role": "user", "content": "One"}
    other = {"role": "user", "content": "Two"}
    talk = [[first], [other], [first, other], [other, first], [first, other, first]]
    ask(replicas, *(post(CHAT, json={"messages": messages}) for messages in talk))
    asked = [[json.loads(call.body)["messages"] for call in replica.calls] for replica in replicas]
    assert asked == [[talk[0], talk[2], talk[4]], [talk[1], talk[3]]]
