"""Clients that are slow, greedy or hostile, and an engine that is full: others go on."""

import contextlib
import json
import logging
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from fake_engine import settle
from held_steps import held
from serving import asking, connection, serving, until_none_run
from waiting import PATIENCE, until

from gptoss import Engine, SamplingParams
from gptoss.server.api import app as server
from gptoss.server.api.app import ServerOptions, create_app

LONG = {"prompt": "Once upon a time", "max_tokens": 800, "temperature": 1, "ignore_eos": True}


def post(address, body, path="/v1/completions"):
    return httpx.post(address + path, json=body)


def events(address, body):
    with httpx.stream("POST", f"{address}/v1/completions", json=body) as answer:
        return [line[6:] for line in answer.iter_lines() if line.startswith("data: ")]


def test_an_answer_that_takes_too_long(engine, monkeypatch):
    ask = server.CompletionRequest

    def patient(*given):
        """The time begins to run when the first five steps are over."""
        answer = ask(*given)
        until(lambda: steps.waits, "the sixth step")
        return answer

    monkeypatch.setattr(server, "CompletionRequest", patient)
    with serving(create_app(engine, ServerOptions("nano", timeout=0.2))) as address:
        with held(engine, steps=5) as steps:
            answer = post(address, LONG)
        error = answer.json()["error"]
        assert answer.status_code == 504 and error["code"] == "timeout"
        assert "longer than 0.2 seconds" in error["message"]
        settle(engine)
        with held(engine, steps=5) as steps:
            found = events(address, {**LONG, "stream": True})
            until_none_run(address)
        assert len(found) > 3  # what was written came, and then why it ended
        assert json.loads(found[-1])["error"]["code"] == "timeout"
    settle(engine)
    monkeypatch.undo()
    with serving(create_app(engine, ServerOptions("nano"))) as address:
        assert post(address, {**LONG, "max_tokens": 2}).status_code == 200


def test_a_body_that_does_not_come(engine):
    with serving(create_app(engine, ServerOptions("nano", body_timeout=0.3))) as address:
        head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n"
        head += "Content-Type: application/json\r\n\r\n{"
        with connection(address) as client:
            client.sendall(head.encode())
            assert client.recv(1000).startswith(b"HTTP/1.1 408 ")


def test_a_reader_that_does_not_read(engine):
    """It holds up nobody, and finds everything when it comes."""
    with serving(create_app(engine, ServerOptions("nano"))) as address:
        body = {**LONG, "stream": True, "logprobs": 20, "seed": 1}
        ends = {"Connection": "close"}
        with asking(address, "/v1/completions", body, narrow=True, **ends) as client:
            for _ in range(3):
                assert post(address, {**LONG, "max_tokens": 30}).status_code == 200
            settle(engine)  # computed to the end, though nothing was read
            received = all_of(client)
        assert b"data: [DONE]" in received and b'"finish_reason": "length"' in received


def test_a_reader_that_never_reads_is_cut_off(engine, monkeypatch):
    ask = server.CompletionRequest

    def computed(*given):
        """The time begins to run when there is nothing to wait for but the reader."""
        answer = ask(*given)
        until(lambda: engine.info()["steps"] > before, "the first step")
        settle(engine)
        asked.set()
        return answer

    before, asked = engine.info()["steps"], threading.Event()
    monkeypatch.setattr(server, "CompletionRequest", computed)
    monkeypatch.setattr(server, "_GRACE", 0.2)
    with serving(create_app(engine, ServerOptions("nano", timeout=0.3)), narrow=True) as address:
        body = {**LONG, "stream": True, "logprobs": 20}  # more than the sockets hold
        with asking(address, "/v1/completions", body, narrow=True) as client:
            assert asked.wait(PATIENCE)
            until_none_run(address)
            received = all_of(client)
        assert 0 < len(received) < 200_000 and not received.endswith(b"0\r\n\r\n")


def test_a_cache_that_is_full():
    """Requests wait for pages and send each other back, and all are answered; one that can never
    fit is told so."""
    with small() as few:
        with serving(create_app(few, ServerOptions("nano"))) as address:
            room = few.info()["kv_tokens"]
            body = {"prompt": [5, 6, 7] * 10, "max_tokens": room // 2, "ignore_eos": True}
            with ThreadPoolExecutor(10) as pool:
                asked = [{**body, "seed": i} for i in range(10)]
                found = list(pool.map(lambda each: post(address, each), asked))
            assert [answer.status_code for answer in found] == [200] * 10
            alone = [
                few.generate([5, 6, 7] * 10, SamplingParams(max_tokens=room // 2, ignore_eos=True,
                                                            seed=i))[0].text
                for i in range(10)
            ]  # fmt: skip
            assert [answer.json()["choices"][0]["text"] for answer in found] == alone
            assert few.info()["preemptions"] > 0
            answer = post(address, {"prompt": [5] * (room + 20), "max_tokens": 5})
            assert answer.status_code == 400
            assert "raise kv_bytes" in answer.json()["error"]["message"]
        settle(few)


def all_of(connection):
    """What comes until the connection ends."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(1 << 16):
            received += part
    return received


def small():
    """An engine with room for about two hundred tokens."""
    with Engine(threads=1) as engine:
        page = engine.info()["kv_page_bytes"]
    return Engine(activation="f32", kv_bytes=2 * 40 * page, threads=1, step_tokens=64)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/v1/responses"])
def test_a_text_that_cannot_fit_is_not_taken_apart(engine, path, monkeypatch):
    def encode(text, *more):
        raise AssertionError("it was")

    text = "word " * 200_000
    named = {
        "/v1/completions": ("prompt", text),
        "/v1/chat/completions": ("messages", [{"role": "user", "content": text}]),
        "/v1/responses": ("input", text),
    }
    field, value = named[path]
    with serving(create_app(engine, ServerOptions("nano"))) as address:
        monkeypatch.setattr(engine.tokenizer, "encode", encode)
        answer = post(address, {field: value}, path)
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert error["code"] == "context_length_exceeded" and error["param"] == field


def test_megabytes_of_text(engine, monkeypatch):
    """Others go on while it is taken apart."""
    encode, begun, served = engine.tokenizer.encode, threading.Event(), threading.Event()

    def watched(text, *more):
        if len(text) > 1_000_000:
            begun.set()
            assert served.wait(PATIENCE)
        return encode(text, *more)

    monkeypatch.setattr(engine.tokenizer, "encode", watched)
    with serving(create_app(engine, ServerOptions("nano"))) as address:
        with ThreadPoolExecutor(1) as pool:
            big = pool.submit(post, address, {"prompt": "word " * 800_000}, "/tokenize")
            assert begun.wait(PATIENCE)
            while not big.done():
                assert post(address, {**LONG, "max_tokens": 3}).status_code == 200
                served.set()
            answer = big.result()
        assert answer.json()["count"] > 400_000


@pytest.mark.parametrize(
    ("asked", "status"), [(10**9, 200), (10**12, 400), (-1, 200), (-2, 400), (0, 400), (1.5, 400)]
)
def test_huge_max_tokens(engine, asked, status):
    with serving(create_app(engine, ServerOptions("nano"))) as address:
        context = engine.info()["context_length"]
        body = {"prompt": [5] * (context - 10), "max_tokens": asked, "ignore_eos": True}
        answer = post(address, body)
        assert answer.status_code == status
        if status == 200:
            assert answer.json()["usage"]["completion_tokens"] == 10
            assert answer.json()["choices"][0]["finish_reason"] == "length"


def test_the_access_log(engine, caplog):
    secret = "a very private question"
    with caplog.at_level(logging.INFO, logger="gptoss.access"):
        with serving(create_app(engine, ServerOptions("nano", api_keys=("pass",)))) as address:
            headers = {"Authorization": "Bearer pass"}
            body = {"prompt": secret, "max_tokens": 5, "ignore_eos": True}
            with httpx.Client(base_url=address, headers=headers) as client:
                client.post("/v1/completions", json=body)
                list(client.post("/v1/completions", json={**body, "stream": True}).iter_lines())
                until(lambda: len(caplog.records) == 2, "the line of the stream")
                client.post("/v1/completions", json={"prompt": 5})
            httpx.get(f"{address}/v1/models")
    lines = [json.loads(record.message) for record in caplog.records]
    assert [(line["path"], line["status"]) for line in lines] == [
        ("/v1/completions", 200), ("/v1/completions", 200), ("/v1/completions", 400),
        ("/v1/models", 401),
    ]  # fmt: skip
    for line in lines[:2]:
        assert line["completion_tokens"] == 5 and line["prompt_tokens"] > 0
        assert 0 <= line["first_token_seconds"] <= line["seconds"]
        assert line["client"] == "127.0.0.1" and line["method"] == "POST"
    assert lines[1]["stream"] is True
    text = json.dumps(lines)
    assert secret not in text and "pass" not in text


def test_a_client_that_left_is_in_the_log(engine, caplog):
    with caplog.at_level(logging.INFO, logger="gptoss.access"):
        with serving(create_app(engine, ServerOptions("nano"))) as address, held(engine) as steps:
            with asking(address, "/v1/completions", {**LONG, "stream": True}):
                until(lambda: steps.waits, "its first step")
            until(lambda: caplog.records, "the line of the request")
    settle(engine)
    assert json.loads(caplog.records[0].message)["status"] == 499


def test_hits_of_the_cache_are_told(engine):
    with serving(create_app(engine, ServerOptions("nano"))) as address:
        message = {"role": "user", "content": "Tell me of the sea and of ships. " * 8}
        body = {"messages": [message], "max_tokens": 3}
        for _ in range(2):
            usage = post(address, body, "/v1/chat/completions").json()["usage"]
        assert usage["prompt_tokens_details"]["cached_tokens"] >= 32
        text = httpx.get(f"{address}/metrics").text
    hits = [line for line in text.splitlines() if 'prompt_tokens_total{cache="hit"}' in line]
    assert float(hits[0].split()[1]) >= 32
