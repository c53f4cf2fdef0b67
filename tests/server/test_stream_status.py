"""The status with which a stream ends, as the front of several replicas counts and logs it."""

import asyncio
import json

import pytest
from serving import asking, serving
from test_front import EVENTS, Replica, Reply, ask, post
from waiting import until

from gptoss.server.api.app import as_json
from gptoss.server.errors import ApiError
from gptoss.server.front import app as module
from gptoss.server.front.app import Broken, FrontOptions, create_front
from gptoss.server.front.router import CHAT, COMPLETIONS, RESPONSES, Router
from gptoss.server.stream_failure import end_status, failure_events

DONE = b"data: [DONE]\n\n"


def said(error, path=COMPLETIONS):
    """The events with which a replica ends a stream."""
    body = error.body()
    if path != RESPONSES:
        return f"data: {as_json(body)}\n\n".encode()
    events = failure_events(body["error"], {"id": "resp"}, 3)
    return "".join(f"event: {e['type']}\ndata: {as_json(e)}\n\n" for e in events).encode()


ERRORS = [
    (ApiError("late", 504, code="timeout"), 504),
    (ApiError("a mistake", 500), 500),
    (ApiError("a grammar"), 400),
]


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT, RESPONSES])
@pytest.mark.parametrize("error, status", ERRORS)
def test_an_error_has_a_status(path, error, status):
    assert end_status(said(error, path)) == status
    before = b'data: {"choices": []}\n\n' if path != RESPONSES else b"event: a\ndata: {}\n\n"
    assert end_status(before + said(error, path)) == status


def test_what_is_whole_has_ended_well():
    assert end_status(DONE) == 200
    for kind in ("completed", "incomplete"):
        assert end_status(f"event: response.{kind}\ndata: {{}}\n\n".encode()) == 200


@pytest.mark.parametrize(
    "text", ['data: {"error": 1}\n\n', "event: error\n", DONE.decode(), "[DONE]"]
)
def test_what_a_model_writes_ends_nothing(text):
    event = f"event: a\ndata: {as_json({'text': text, 'error': text})}\n\n"
    assert end_status(event.encode()) is None


@pytest.mark.parametrize("given", [b"event: error\n\n", b'data: {"error": 5}\n\n'])
def test_an_error_that_is_not_understood_is_a_servers(given):
    assert end_status(given) == 500


def counted(replica, path, **options):
    """The statuses by which the front counts one request for a stream."""
    _, metrics = ask([replica], post(path), ("GET", "/metrics", {}), **options)
    lines = [line for line in metrics.text.splitlines() if "front_requests_total" in line]
    return [line.split('status="')[1][:3] for line in lines if f'"{path}"' in line]


@pytest.mark.parametrize("path", [COMPLETIONS, RESPONSES])
@pytest.mark.parametrize("error, status", ERRORS)
def test_the_front_counts_what_a_replica_says(path, error, status, caplog):
    caplog.set_level("INFO", "gptoss.access")
    stream = [b"event: a\ndata: {}\n\n", said(error, path)]
    replica = Replica(lambda call: Reply(stream if call.method == "POST" else [b""], EVENTS))
    assert counted(replica, path) == [str(status)]
    assert not lines(caplog, path)  # the replica has written it


def lines(caplog, path):
    found = [json.loads(r.message) for r in caplog.records if r.name == "gptoss.access"]
    return [line for line in found if line["path"] == path]


def test_a_replica_that_ends_writes_no_line_so_the_front_does(caplog):
    caplog.set_level("INFO", "gptoss.access")
    stream = [b"data: {}\n\n", Broken("it has ended")]
    replica = Replica(lambda call: Reply(stream if call.method == "POST" else [b""], EVENTS))
    assert counted(replica, COMPLETIONS) == ["502"]
    (line,) = lines(caplog, COMPLETIONS)
    assert line["status"] == 502 and line["stream"] and line["replica"] == 0


def test_so_it_does_for_one_that_does_not_end(caplog, monkeypatch):
    caplog.set_level("INFO", "gptoss.access")
    monkeypatch.setattr(module, "_GRACE", 0.0)
    silent = lambda call: Reply([b"data: {}\n\n", asyncio.Event()], EVENTS)  # noqa: E731
    replica = Replica(lambda call: silent(call) if call.method == "POST" else Reply([b""]))
    assert counted(replica, COMPLETIONS, timeout=0.05) == ["504"]
    assert [line["status"] for line in lines(caplog, COMPLETIONS)] == [504]


@pytest.mark.parametrize("last, status", [(DONE, 200), (b"", 499)])
def test_who_leaves_after_the_last_event_has_all(last, status):
    """The replica's end may come later than the client goes."""
    router, found = Router(1, 10), []

    class Held(Reply):
        async def parts(self):
            yield b"data: {}\n\n" + last
            await asyncio.Event().wait()

    app = create_front([Replica(lambda call: Held([], EVENTS))], router, FrontOptions("inner"))
    with serving(app) as address:
        with asking(address, COMPLETIONS, {"prompt": "a"}) as client:
            seen = b""
            while b"data: {}" + b"\n\n" + last not in seen:
                seen += client.recv(1000)
        until(lambda: router.requests == [0], "the end of the request")
        import httpx

        text = httpx.get(f"{address}/metrics").text
        found = [line for line in text.splitlines() if "front_requests_total" in line]
    assert [line for line in found if f'status="{status}"' in line and COMPLETIONS in line], found
