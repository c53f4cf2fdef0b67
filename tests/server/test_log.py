"""What clients send can neither forge lines of the log, nor fill it, nor be read in it."""

import asyncio
import json
import logging
import sys

import httpx
import pytest
from serving import asking, connection, running, serving
from waiting import until

from gptoss.server.api import app as module
from gptoss.server.api.app import ServerOptions, create_app
from gptoss.server.log import FewRepeats, OneLine, one_line

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


def test_lines_of_a_traceback_are_indented_and_say_little_of_what_was_sent():
    try:
        raise ValueError(f"bad\nforged: line \x1b[0m {SECRET * 100}")
    except ValueError as error:
        text = OneLine().format(record("it broke", error=error))
    first, *rest = text.split("\n")
    assert first == "warning: it broke" and all(line.startswith("    ") for line in rest)
    assert "test_log.py" in text and "ValueError: bad\\x0aforged" in text
    assert text.count(SECRET) < 10 and "\x1b" not in text


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
    assert written.format(again) == "warning: refused x (995 more of this kind were left out)"
    assert all(few.filter(record("a line", level=logging.INFO)) for _ in range(100))


def test_a_traceback_comes_once_a_minute():
    few = FewRepeats(Clock())

    def broken(where):
        try:
            raise where("x")
        except Exception as error:
            return record("it broke", error=error)

    kinds = [ValueError, ValueError, KeyError, KeyError]
    assert [few.filter(broken(kind)) for kind in kinds] == [True, False, True, False]


def test_kinds_do_not_pile_up():
    few = FewRepeats(Clock())
    for i in range(5000):
        few.filter(record(f"kind {i}"))
    assert len(few._kinds) <= 1024


# The server's own.


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
    assert text.count("KeyError: 'of ours'") == 2  # no filter is here: one for each request
    assert "ASGI" not in text


def test_paths_cannot_forge_lines(engine, said):
    with serving(create_app(engine, ServerOptions("nano"))) as address:
        with connection(address) as client:
            client.sendall(
                b"GET /v1/models/%0aforged%1b[2J HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
            )
            assert client.recv(1000).startswith(b"HTTP/1.1 404")
    assert not any(line.startswith("forged") for line in said().splitlines())
    assert "\x1b" not in said()


def test_what_is_no_http_is_said_in_few_lines(engine, capfd):
    from gptoss.server.log import log_to_stderr

    loggers = [logging.getLogger(name) for name in ("gptoss", "uvicorn", "asyncio")]
    before = [(log.handlers[:], log.propagate, log.level) for log in loggers]
    try:
        log_to_stderr(access=False)
        handlers = [log.handlers[-1] for log in loggers]
        for handler in handlers:
            handler.setStream(sys.stderr)
        with serving(create_app(engine, ServerOptions("nano"))) as address:
            for _ in range(50):
                with connection(address) as client:
                    client.sendall(b"\x16\x03\x01 nonsense\r\n\r\n")
                    client.recv(1000)
    finally:
        for log, (handlers, propagate, level) in zip(loggers, before, strict=True):
            log.handlers, log.propagate = handlers, propagate
            log.setLevel(level)
        logging.getLogger("gptoss.access").setLevel(logging.NOTSET)
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


def test_unknown_paths_make_no_series(engine):
    with serving(create_app(engine, ServerOptions("nano"))) as address:
        before = httpx.get(f"{address}/metrics").text.count("\n")
        for i in range(50):
            httpx.get(f"{address}/v1/models/{i}")
            httpx.get(f"{address}/nowhere/{i}")
        assert httpx.get(f"{address}/metrics").text.count("\n") < before + 10
