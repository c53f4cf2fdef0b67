"""What a server and a front do alike around each of their endpoints."""

import asyncio
import json
from types import SimpleNamespace

import pytest
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from gptoss import Error
from gptoss.server.errors import ApiError
from gptoss.server.front.app import Broken
from gptoss.server.http import address_of, guarded


def call(endpoint, *, is_logged=False, goes_on=False):
    """(what comes of a request, what was counted)."""
    counted = []
    scope = {"type": "http", "method": "POST", "path": "/v1/things/5", "headers": [],
             "query_string": b"", "client": ("10.1.2.3", 5), "state": {},
             "route": SimpleNamespace(path="/v1/things/{id}")}  # fmt: skip
    answer = guarded(
        endpoint,
        client=address_of,
        answered=lambda route, status: counted.append((route, status)),
        is_logged=lambda response: is_logged,
        goes_on=lambda response: goes_on,
    )

    async def run():
        return await answer(Request(scope))

    try:
        return asyncio.run(run()), counted
    except RuntimeError as error:
        return error, counted


@pytest.fixture
def logged(caplog):
    """logged() → (client, method, path, status) of each line."""
    caplog.set_level("INFO", "gptoss.access")

    def logged():
        records = [each for each in caplog.records if each.name == "gptoss.access"]
        lines = [json.loads(each.message) for each in records]
        return [
            tuple(line[name] for name in ("client", "method", "path", "status")) for line in lines
        ]

    return logged


@pytest.mark.parametrize(
    ("error", "status", "param"),
    [
        (ApiError("come again", 429, headers={"Retry-After": "1"}), 429, None),
        (Error("n: too many", field="n"), 400, "n"),
        (Broken("replica 0 went"), 502, None),
        (ClientDisconnect(), 499, None),
        (RuntimeError("a mistake"), 500, None),
    ],
)
def test_what_goes_wrong_is_told_counted_and_logged(logged, error, status, param):
    async def fails(request):
        raise error

    found, counted = call(fails, is_logged=True)  # an error is logged by nobody else
    assert counted == [("/v1/things/{id}", status)]
    assert logged() == [("10.1.2.3", "POST", "/v1/things/5", status)]
    assert found.status_code == status
    if isinstance(error, RuntimeError):  # nobody is told what it was
        assert json.loads(found.body)["error"]["type"] == "server_error"
        assert b"a mistake" not in found.body.replace(b"made a mistake", b"")
    if isinstance(error, Error):
        said = json.loads(found.body)["error"]
        assert said["message"] == str(error) and said["param"] == param
        assert found.headers.get("retry-after") == ("1" if status == 429 else None)


@pytest.mark.parametrize("is_logged", [False, True])
def test_an_answer_is_logged_once(logged, is_logged):
    async def answers(request):
        request.state.access.note(stream=True)
        return Response(status_code=201)

    found, counted = call(answers, is_logged=is_logged)
    assert found.status_code == 201 and counted == [("/v1/things/{id}", 201)]
    assert logged() == ([] if is_logged else [("10.1.2.3", "POST", "/v1/things/5", 201)])


def test_what_goes_on_is_counted_by_who_ends_it(logged):
    async def answers(request):
        return Response(status_code=200)

    found, counted = call(answers, is_logged=True, goes_on=True)
    assert found.status_code == 200 and counted == [] and logged() == []
