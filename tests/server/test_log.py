"""What clients send can neither forge lines of the log, nor fill it, nor be read in it."""

import asyncio
import gc
import json
import logging
import sys
from contextlib import contextmanager

import httpx
import pytest
from serving import asking, connection, running, serving
from starlette.routing import Route
from waiting import until

from gptoss.server.api import app as module
from gptoss.server.api.app import ServerOptions, create_app
from gptoss.server.log import FewRepeats, OneLine, log_to_stderr, one_line

KEY, SECRET = "key-of-alice", "the harbour master's cat"


def record(message="%s", *values, level=logging.WARNING, error=None):
    info = (type(error), error, error.__traceback__) if error else None
    return logging.LogRecord("gptoss.server", level, __file__, 1, message, values, info)


@pytest.mark.parametrize(
    "hostile",
    [
        "\n",
        "\r\n",
        "\x1b[2J",
        "\x00",
        "\x7f",
        "\x9b31m",
        "\u2028",
        "\u2029",
        "\u202e",
        "\u2066",
        "\u061c",
        "\u200b",
        "\ufeff",
        "\U000e0041",
        "\ud800",
    ],
)
def test_a_record_is_one_line(hostile):
    text = OneLine().format(record("path %s", f"/v1/{hostile}forged"))
    assert (
        hostile not in text and text.startswith("warning: path /v1/\\") and text.endswith("forged")
    )
    text.encode()


def test_what_is_no_control_character_stays():
    assert one_line('ümlaut 日本 "quoted" \\') == 'ümlaut 日本 "quoted" \\'


def test_a_long_record_is_cut():
    text = OneLine().format(record("%s", "x" * 100_000))
    assert len(text) < 9000 and text.endswith("(100000 characters)")
    text = OneLine().format(record("%s", "\x00" * 5000))
    assert len(text) < 9000 and text.endswith("(5000 characters)")


def traced(raiser):
    """A record as it is written, of what that raises."""
    try:
        raiser()
    except BaseException as error:
        return OneLine().format(record("it broke", error=error))


def test_lines_of_a_traceback_are_indented():
    def raiser():
        raise RuntimeError("bad\nforged: line \x1b[0m" + "x" * 1000)

    first, *rest = traced(raiser).split("\n")
    assert first == "warning: it broke" and all(line.startswith("    ") for line in rest)
    assert any("test_log.py" in line for line in rest)
    assert rest[-1].startswith("    RuntimeError: bad\\x0aforged") and len(rest[-1]) < 300
    assert "\x1b" not in "".join(rest)


@pytest.mark.parametrize(
    "raiser",
    [
        lambda: {}[SECRET],
        lambda: int(SECRET),
        lambda: SECRET.encode("utf-16").decode("utf-8"),
        lambda: json.loads(json.dumps(SECRET)[:-1]),
        lambda: httpx.Request("GET", "http://x", headers={"a": SECRET + "\ud800"}),
        lambda: (_ for _ in ()).throw(Exception(SECRET)),
    ],
    ids=range(6),
)
def test_an_exception_that_may_quote_what_was_sent_does_not(raiser):
    text = traced(raiser)
    assert SECRET not in text and "test_log.py" in text and text.splitlines()[-1].strip()


def test_what_an_exception_came_of_is_told():
    def raiser():
        try:
            {}[SECRET]
        except KeyError as error:
            raise OSError("no room") from error

    text = traced(raiser)
    assert text.index("OSError: no room") < text.index("which came of:") < text.index("KeyError")

    def hidden():
        try:
            {}[SECRET]
        except KeyError:
            raise OSError("no room") from None

    assert "KeyError" not in traced(hidden)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="no groups")
def test_exceptions_of_a_group_are_told():
    def raiser():
        raise ExceptionGroup("some", [TypeError("one"), KeyError(SECRET)])  # noqa: F821

    text = traced(raiser)
    assert "TypeError: one" in text and "KeyError" in text and SECRET not in text


def test_asyncio_does_not_say_what_was_in_work():
    """Its messages show the arguments of callbacks and the results of tasks."""

    async def broken(text):
        raise KeyError(text)

    async def callbacks(handle):
        loop = asyncio.get_running_loop()
        loop.call_soon(handle, SECRET)
        task = asyncio.ensure_future(broken(SECRET))
        await asyncio.wait({task})
        del task
        gc.collect()
        await asyncio.sleep(0)

    written = []
    handler = logging.Handler()
    handler.emit = lambda each: written.append(OneLine().format(each))
    logger = logging.getLogger("asyncio")
    logger.addHandler(handler)
    try:
        asyncio.run(callbacks(lambda text: {}[text]))
    finally:
        logger.removeHandler(handler)
    assert len(written) == 2 and not any(SECRET in each for each in written)
    assert any("error: Exception in callback" in each for each in written)
    assert any("error: Task exception was never retrieved" in each for each in written)


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_a_few_of_a_kind_and_then_how_many_were_left_out():
    clock = Clock()
    few, written = FewRepeats(clock), OneLine()
    passed = [few.filter(record("refused %s", i)) for i in range(1000)]
    assert passed == [True] * 5 + [False] * 995
    assert few.filter(record("another kind"))
    clock.now = 61.0
    again = record("refused %s", "x")
    assert few.filter(again)
    left_out = "warning: 995 more of this kind were left out: refused 0"
    assert written.format(again) == f"warning: refused x\n{left_out}"
    assert all(few.filter(record("a line", level=logging.INFO)) for _ in range(100))


def test_what_was_left_out_is_told_by_whatever_comes_next():
    clock = Clock()
    few = FewRepeats(clock)
    for _ in range(8):
        few.filter(record("refused"))
    clock.now = 59.0
    early, late = (record("a line", level=logging.INFO) for _ in range(2))
    assert few.filter(early) and OneLine().format(early) == "a line"
    clock.now = 60.0
    assert few.filter(late)
    assert OneLine().format(late) == "a line\nwarning: 3 more of this kind were left out: refused"
    assert few.filter(early) and OneLine().format(early) == "a line"


def test_a_traceback_comes_once_a_minute():
    few = FewRepeats(Clock())

    def broken(kind, through):
        def raiser():
            raise kind("x")

        try:
            through(raiser)
        except Exception as error:
            return record("it broke", error=error)

    def another_way(call):
        call()

    def passes(kind, through):
        return few.filter(broken(kind, through))

    def one_way(call):
        call()

    assert [passes(kind, one_way) for kind in (ValueError, ValueError)] == [True, False]
    assert [passes(kind, one_way) for kind in (KeyError, KeyError)] == [True, False]
    assert [passes(ValueError, another_way) for _ in range(2)] == [True, False]


def test_messages_of_asyncio_are_of_few_kinds():
    few = FewRepeats(Clock())
    passed = 0
    for i in range(100):
        try:
            {}[i]
        except KeyError as error:
            each = record(f"Exception in callback f({i})\nhandle: <{i}>", error=error)
            each.name = "asyncio"
            passed += few.filter(each)
    assert passed == 1


def test_kinds_do_not_pile_up():
    few = FewRepeats(Clock())
    for _ in range(6):
        few.filter(record("kind 0"))
    for i in range(1, 5000):
        found = record(f"kind {i}")
        few.filter(found)
        assert len(few._kinds) <= 1024
        if i == 1024:  # that pushed out the first one, of which something was left out
            assert found.left_out == [("kind 0", 1)]


# The server's own.


@contextmanager
def restored(loggers):
    """These loggers, without handlers, are afterwards what they are now."""
    before = [(log.handlers[:], log.propagate, log.level) for log in loggers]
    for log in loggers:  # of a server that another test began, whose standard error is closed
        log.handlers = []
    try:
        yield
    finally:
        for log, (handlers, propagate, level) in zip(loggers, before, strict=True):
            log.handlers, log.propagate = handlers, propagate
            log.setLevel(level)
        logging.getLogger("gptoss.access").setLevel(logging.NOTSET)


@pytest.fixture
def said(caplog):
    """All that was logged, as it is written."""
    caplog.set_level("INFO")

    def text():
        return "\n".join(OneLine().format(each) for each in caplog.records)

    return text


def ask(app, method="POST", path="/v1/completions", **given):
    async def asked():
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.request(method, path, **given)

    return asyncio.run(asked())


MISTAKES = [
    {"prompt": SECRET, "temperature": 10**400},
    {"prompt": SECRET, "top_p": 1e-46},
    {"prompt": SECRET + "\ud800"},
    {"prompt": [[]] * 3},
    {"prompt": SECRET, "structured_outputs": {"regex": "(" + SECRET}},
    {"prompt": SECRET, "structured_outputs": {"json": {"$ref": "#"}}},
    {"prompt": SECRET, "structured_outputs": {"grammar": "start: start"}},
    {"prompt": SECRET, "response_format": SECRET},
    {"prompt": {"a": SECRET}},
    {"prompt": SECRET, "logit_bias": {SECRET: 1}},
    {"prompt": SECRET, "stop": [SECRET] * 10_000},
    {"prompt": SECRET, "user": SECRET * 1000, "max_tokens": -1},
]


@pytest.mark.parametrize("body", MISTAKES, ids=range(len(MISTAKES)))
def test_a_clients_mistake_is_no_traceback_and_its_text_not_in_the_log(engine, said, body):
    if "structured_outputs" in body:
        pytest.importorskip("llguidance")
    app = create_app(engine, ServerOptions("nano", api_keys=(KEY,)))
    data = json.dumps({"max_tokens": 1, **body}).encode()
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    answer = ask(app, content=data, headers=headers)
    assert answer.status_code in (200, 400), answer.text
    text = said()
    assert "Traceback" not in text and "Error" not in text
    assert SECRET not in text and KEY not in text


def test_texts_that_cannot_be_worked_on_are_not_logged(engine, said, monkeypatch):
    def fails(*given):
        SECRET.encode("utf-16").decode("utf-8")

    monkeypatch.setattr(module, "CompletionRequest", fails)
    answer = ask(create_app(engine, ServerOptions("nano")), json={"prompt": SECRET})
    assert answer.status_code == 400
    text = said()
    assert "a request could not be worked on: UnicodeDecodeError" in text and SECRET not in text


def test_a_mistake_of_ours_is_one_traceback_and_the_connection_stays(engine, said, monkeypatch):
    def fails(*given):
        raise KeyError("of ours")

    monkeypatch.setattr(module, "CompletionRequest", fails)
    with serving(create_app(engine, ServerOptions("nano"))) as address:
        with httpx.Client() as client:
            for _ in range(2):
                answer = client.post(f"{address}/v1/completions", json={"prompt": "a"})
                assert answer.status_code == 500
    text = said()
    assert text.count("    KeyError") == 2  # no filter is here: one for each request
    assert "ASGI" not in text


@pytest.mark.parametrize("broken", ["_health", "route", "streamed"])
def test_so_is_one_anywhere_else(engine, said, monkeypatch, broken):
    """Outside of what guards endpoints, too: in a route without, in sending, in a middleware."""

    async def endpoint(request):
        raise KeyError("of ours")

    class Halfway:
        async def __call__(self, scope, receive, send):
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"half", "more_body": True})
            raise KeyError("of ours")

    if broken == "_health":
        monkeypatch.setattr(engine, "info", dict, raising=False)
    app = create_app(engine, ServerOptions("nano"))
    app.router.routes.insert(0, Route("/broken", endpoint if broken == "route" else Halfway()))
    path = "/health" if broken == "_health" else "/broken"
    with serving(app) as address, httpx.Client() as client:
        if broken == "streamed":
            with pytest.raises(httpx.RemoteProtocolError):
                client.get(address + path)
        else:
            answer = client.get(address + path)
            assert answer.status_code == 500 and answer.headers["x-request-id"]
            assert answer.json()["error"]["type"] == "server_error"
    text = said()
    assert text.count("    KeyError") == 1 and "Exception in ASGI" not in text


def test_paths_cannot_forge_lines(engine, said):
    with serving(create_app(engine, ServerOptions("nano"))) as address:
        with connection(address) as client:
            client.sendall(
                b"GET /v1/models/%0aforged%1b[2J HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
            )
            assert client.recv(1000).startswith(b"HTTP/1.1 404")
    assert not any(line.startswith("forged") for line in said().splitlines())
    assert "\x1b" not in said()


@pytest.mark.parametrize("path", ["%7f%7f", "%c2%9b", "%e2%80%ae", "%ff", "😀" * 900, "%00" * 900])
def test_a_line_of_the_access_log_is_json(engine, caplog, path):
    caplog.set_level("INFO", "gptoss.access")
    app = create_app(engine, ServerOptions("nano"))
    assert ask(app, "GET", f"/v1/models/{path}").status_code == 404
    (found,) = [each for each in caplog.records if each.name == "gptoss.access"]
    line = OneLine().format(found)
    entry = json.loads(line)
    assert entry["path"].isprintable() and entry["path"].startswith("/v1/models/")
    assert entry["status"] == 404 and len(line) < 8000


def test_other_libraries_write_lines_too():
    """Python itself would write what they say as it is."""
    loggers = [logging.getLogger(name) for name in ("", "gptoss", "uvicorn", "asyncio")]
    with restored(loggers):
        log_to_stderr(access=False)
        handler = loggers[0].handlers[-1]
        assert isinstance(handler.formatter, OneLine)
        logger = logging.getLogger("some.library")
        assert logger.propagate and logger.getEffectiveLevel() == logging.WARNING
        # None comes twice.
        assert all(not each.propagate for each in loggers[1:])


def test_what_is_no_http_is_said_in_few_lines(engine, capfd):
    loggers = [logging.getLogger(name) for name in ("gptoss", "uvicorn", "asyncio", "")]
    with restored(loggers):
        log_to_stderr(access=False)
        for each in loggers:
            each.handlers[-1].setStream(sys.stderr)
        with serving(create_app(engine, ServerOptions("nano"))) as address:
            for _ in range(50):
                with connection(address) as client:
                    client.sendall(b"\x16\x03\x01 nonsense\r\n\r\n")
                    client.recv(1000)
    written = capfd.readouterr().err
    assert written.count("Invalid HTTP request received.") == 5


# Metrics and the line of a request say how it ended.

LONG = {"prompt": "Once upon a time", "max_tokens": 900, "ignore_eos": True, "stream": True}


def metric(address, name):
    lines = httpx.get(f"{address}/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


def lines_of(caplog):
    return [json.loads(r.message) for r in caplog.records if r.name == "gptoss.access"]


def test_a_stream_whose_client_left(engine, caplog):
    caplog.set_level("INFO", "gptoss.access")
    with serving(create_app(engine, ServerOptions("nano"))) as address:
        with asking(address, "/v1/completions", LONG) as client:
            seen = b""
            while seen.count(b"data: ") < 5:
                seen += client.recv(1000)
        until(lambda: running(address) == 0, "the end of the request")
        route = 'gptoss_requests_total{route="/v1/completions",status='
        assert metric(address, route + '"499"') == 1 and metric(address, route + '"200"') == 0
        assert metric(address, "gptoss_cancelled_texts_total") == 1
        written = metric(address, 'gptoss_tokens_total{kind="completion"}')
        assert 5 <= written < 900
        assert metric(address, 'gptoss_tokens_total{kind="prompt"}') > 0
        assert metric(address, "gptoss_time_to_first_token_seconds_count") == 0
    (line,) = [line for line in lines_of(caplog) if line["path"] == "/v1/completions"]
    assert line["status"] == 499 and line["cancelled"] == 1
    assert line["completion_tokens"] == written and line["prompt_tokens"] > 0


def test_a_stream_that_took_too_long(engine, caplog):
    caplog.set_level("INFO", "gptoss.access")
    with serving(create_app(engine, ServerOptions("nano", timeout=0.2))) as address:
        body = {**LONG, "n": 64}
        httpx.post(f"{address}/v1/completions", json=body)
        assert metric(address, 'gptoss_requests_total{route="/v1/completions",status="504"}') == 1
        assert metric(address, "gptoss_cancelled_texts_total") > 0
    assert [line["status"] for line in lines_of(caplog) if line.get("stream")] == [504]


def test_a_whole_stream_counts_once(engine):
    with serving(create_app(engine, ServerOptions("nano"))) as address:
        httpx.post(f"{address}/v1/completions", json={**LONG, "max_tokens": 3})
        assert metric(address, 'gptoss_requests_total{route="/v1/completions",status="200"}') == 1
        assert metric(address, 'gptoss_tokens_total{kind="completion"}') == 3
        assert metric(address, "gptoss_cancelled_texts_total") == 0


def test_unknown_paths_are_counted_and_logged(engine, caplog):
    caplog.set_level("INFO", "gptoss.access")
    app = create_app(engine, ServerOptions("nano"))
    assert ask(app, "GET", "/nowhere").status_code == 404
    refused = ask(app, "PUT", "/v1/completions")
    assert refused.status_code == 405 and refused.headers["allow"]
    assert refused.json()["error"]["type"] == "invalid_request_error"
    text = ask(app, "GET", "/metrics").text
    for status in (404, 405):
        assert f'gptoss_requests_total{{route="unknown",status="{status}"}} 1.0' in text
    lines = [(line["method"], line["path"], line["status"]) for line in lines_of(caplog)]
    assert lines[:2] == [("GET", "/nowhere", 404), ("PUT", "/v1/completions", 405)]


def test_bodies_that_are_being_read_are_told(engine):
    with serving(create_app(engine, ServerOptions("nano"))) as address:
        assert metric(address, "gptoss_body_bytes") == 0
        with connection(address) as client:
            head = "POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            client.sendall(f"{head}Content-Length: 300000\r\n\r\n".encode() + b" " * 200_000)
            more = 200_000 - (64 << 10)
            until(lambda: metric(address, "gptoss_body_bytes") == more, "the bytes that came")
        until(lambda: metric(address, "gptoss_body_bytes") == 0, "the end of the body")


def test_unknown_paths_make_no_series(engine):
    with serving(create_app(engine, ServerOptions("nano"))) as address:
        before = httpx.get(f"{address}/metrics").text.count("\n")
        for i in range(50):
            httpx.get(f"{address}/v1/models/{i}")
            httpx.get(f"{address}/nowhere/{i}")
        assert httpx.get(f"{address}/metrics").text.count("\n") < before + 10
