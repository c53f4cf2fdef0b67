"""What a request is called, in its answer and in the log; and what of it meant nothing."""

import json
import logging
import re

import httpx
import pytest
from fake_engine import settle
from serving import serving, until_none_run
from waiting import until

from gptoss.server.api.app import ServerOptions, create_app, ignored_header

GOOD = {"prompt": "Once", "max_tokens": 2}
NEW = re.compile("req_[0-9a-f]{32}")


@pytest.fixture(scope="module")
def address(engine):
    options = ServerOptions("nano", api_keys=("good",), origins=("http://page",), max_body=1000)
    with serving(create_app(engine, options)) as address:
        yield address
        until_none_run(address)
    settle(engine)


def ask(address, method="POST", path="/v1/completions", headers=None, **more):
    headers = {"Authorization": "Bearer good", **(headers or {})}
    return httpx.request(method, address + path, headers=headers, **more)


TYPED = {"Content-Type": "application/json"}
CASES = {
    "an answer": ({"json": GOOD}, 200),
    "a stream": ({"json": {**GOOD, "stream": True}}, 200),
    "a mistake": ({"json": {"prompt": 5}}, 400),
    "no JSON": ({"content": b"{", "headers": TYPED}, 400),
    "too large": ({"content": b" " * 2000, "headers": TYPED}, 413),
    "no key": ({"json": GOOD, "headers": {"Authorization": "Bearer bad"}}, 401),
    "no route": ({"path": "/v1/nothing", "json": GOOD}, 404),
    "no method": ({"method": "DELETE"}, 405),
    "no model": ({"method": "GET", "path": "/v1/models/x"}, 404),
    "health": ({"method": "GET", "path": "/health"}, 200),
}


@pytest.mark.parametrize("case", CASES)
def test_every_answer_has_a_name(address, case):
    asked, status = CASES[case]
    names = set()
    for _ in range(2):
        answer = ask(address, **asked)
        assert answer.status_code == status
        (name,) = answer.headers.get_list("x-request-id")
        assert NEW.fullmatch(name)
        names.add(name)
    assert len(names) == 2
    headers = {**asked.get("headers", {}), "X-Request-Id": "my-own/7"}
    answer = ask(address, **{**asked, "headers": headers})
    assert answer.headers.get_list("x-request-id") == ["my-own/7"]


@pytest.mark.parametrize("given", ["", "a b", "x" * 201, "caf\xe9", "a\tb"])
def test_a_name_that_is_none_is_replaced(address, given):
    answer = ask(address, json=GOOD, headers={"X-Request-Id": given.encode("latin-1")})
    assert NEW.fullmatch(answer.headers["x-request-id"])


def test_the_log_has_the_same_names(address, caplog):
    with caplog.at_level(logging.INFO, logger="gptoss.access"):
        names = []
        for case in ("an answer", "a stream", "a mistake", "no key"):
            asked, _ = CASES[case]
            names.append(ask(address, **asked).headers["x-request-id"])
            until(lambda: len(caplog.records) == len(names), "the line of the request")
    assert [json.loads(record.message)["request_id"] for record in caplog.records] == names


def test_a_mistake_of_the_server_has_a_name_too(engine, monkeypatch, caplog):
    def broken(*given):
        raise KeyError("a mistake of ours")

    monkeypatch.setattr("gptoss.server.api.app.CompletionRequest", broken)
    with serving(create_app(engine, ServerOptions("nano"))) as address:
        answer = httpx.post(f"{address}/v1/completions", json=GOOD)
    assert answer.status_code == 500
    assert answer.headers["x-request-id"] in caplog.text


def test_pages_may_read_it(address):
    exposed = ask(address, json=GOOD, headers={"Origin": "http://page"}).headers
    assert "x-request-id" in exposed["access-control-expose-headers"].lower()
    assert "x-gptoss-ignored" in exposed["access-control-expose-headers"].lower()


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ([], None),
        (["one"], "one"),
        (["one", "two"], "one, two"),
        (["a,b", "c d", "line\r\nSet-Cookie: x", "四", "\ud800"],
         "a%2Cb, c%20d, line%0D%0ASet-Cookie:%20x, %E5%9B%9B, ?"),
        (["x" * 900, "y" * 900], "x" * 900 + ", ..."),
        (["x" * 5000], "..."),
    ],
)  # fmt: skip
def test_names_of_keys_that_mean_nothing_are_safe_in_a_header(names, said):
    assert ignored_header(names).get("x-gptoss-ignored") == said
