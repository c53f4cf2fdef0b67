"""The application on Ray Serve: two engines on this machine, each an actor."""

import asyncio
import json
import os
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from unittest import mock

import httpx
import openai
import pytest
from serving import asking
from waiting import until

if find_spec("ray") is None:
    pytest.skip("ray is not installed (pip install '.[ray]')", allow_module_level=True)

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

from gptoss import SamplingParams
from gptoss.server.front.app import Call

# Of Ray's own classes.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

GREEDY = {"temperature": 0, "max_tokens": 12}
KEY = {"Authorization": "Bearer good"}


@pytest.fixture(scope="module")
def address():
    """Where the application answers."""
    import ray
    from ray import serve

    from gptoss.server.front.ray_app import Arguments, build_app

    # Ray listens at a port that it is told, with this option too: until then nobody else gets it.
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    held.bind(("127.0.0.1", 0))
    port = held.getsockname()[1]
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=100 << 20,
        logging_level="ERROR",
        log_to_driver=False,
        _node_ip_address="127.0.0.1",
    )
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        options = {"activation": "f32", "kv_bytes": 32 << 20, "api_keys": ["better"]}
        with mock.patch.dict(os.environ, GPTOSS_API_KEY="good"):
            app = build_app(Arguments(name="nano", replicas=2, **options))
        serve.run(app, logging_config={"log_level": "ERROR"})
        yield f"http://127.0.0.1:{port}"
    finally:
        serve.shutdown()
        ray.shutdown()
        held.close()


def test_arguments_are_those_of_an_engine():
    from gptoss import EngineOptions
    from gptoss.server.front.ray_app import Arguments

    assert Arguments().engine == EngineOptions(threads=1)
    # As `serve run` gives them: text.
    words = {"model": "m", "kv_bytes": "1000000", "prefix_cache": "false", "cpus": "4", "gpus": "2"}
    given = Arguments.model_validate(words)
    wanted = EngineOptions("m", kv_bytes=1000000, threads=4, prefix_cache=False, tensor_parallel=2)
    assert given.engine == wanted
    assert given.model_copy(update={"api_keys": ["k"]}).engine == wanted
    assert Arguments(gpus=4, tensor_parallel=1, threads=None).engine.tensor_parallel == 1
    assert Arguments.model_validate({"threads": "3"}).engine.threads == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"colour": "red"}, "no option is called colour"),
        ({"threads": 0}, "threads: expected an integer from 1 to 1024, found 0"),
        ({"kv_bytes": "much"}, "kv_bytes"),
        ({"activation": "fp8"}, "activation: expected 'bf16' or 'f32', found 'fp8'"),
        ({"replicas": 0}, "replicas"),
    ],
)
def test_arguments_that_are_wrong(options, message):
    from gptoss.server.front.ray_app import Arguments

    with pytest.raises(ValueError, match=message):
        Arguments.model_validate(options)


@pytest.fixture
def client(address):
    with openai.OpenAI(base_url=f"{address}/v1", api_key="good", max_retries=0) as client:
        yield client


def metrics(address):
    def told():
        text = httpx.get(f"{address}/metrics", headers=KEY).text
        lines = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
        found = {name: float(value) for name, _, value in lines}
        # The front leaves out a replica that takes too long to say them.
        pages = [of_replica(i, "gptoss_kv_pages", state="used") for i in range(2)]
        return found if all(name in found for name in pages) else None

    return until(told, "metrics of both replicas")


def of_replica(replica, what, **labels):
    labels = {**labels, "replica": replica}
    inside = ",".join(f'{name}="{value}"' for name, value in sorted(labels.items()))
    return f"{what}{{{inside}}}"


def chats(address):
    """Conversations that each replica had."""
    found = metrics(address)
    labels = {"route": "/v1/chat/completions", "status": 200}
    names = [of_replica(i, "gptoss_requests_total", **labels) for i in range(2)]
    return [found.get(name, 0.0) for name in names]


def health(address):
    return httpx.get(f"{address}/health").json()


def test_the_surface_is_that_of_one_engine(address, client, engine):
    wanted = engine.generate("Once upon a time", SamplingParams(**GREEDY))[0].text
    done = client.completions.create(model="nano", prompt="Once upon a time", **GREEDY)
    assert done.choices[0].text == wanted
    messages = [{"role": "user", "content": "Once upon a time"}]
    stream = client.chat.completions.create(model="nano", messages=messages, stream=True, **GREEDY)
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == wanted
    assert len(chunks) > 5  # and not all at once
    asked = {"model": "nano", "input": "Once upon a time", "temperature": 0}
    with client.responses.create(**asked, max_output_tokens=12, stream=True) as events:
        assert list(events)[-1].response.output_text == wanted
    assert client.models.list().data[0].id == "nano"
    with httpx.Client(base_url=address, headers=KEY) as plain:
        tokens = plain.post("/tokenize", json={"prompt": "Once upon"}).json()["tokens"]
        assert tokens == engine.tokenizer.encode("Once upon")
        refused = plain.post("/v1/completions", json={"prompt": "a", "model": "other"})
        assert refused.status_code == 404 and "expected nano" in refused.text
        assert (
            plain.post(
                "/v1/completions", content=b"{", headers={"Content-Type": "application/json"}
            ).status_code
            == 400
        )
        assert (
            plain.post(
                "/v1/completions",
                content=b" " * (17 << 20),
                headers={"Content-Type": "application/json"},
            ).status_code
            == 413
        )


def test_keys(address):
    for headers in ({}, {"Authorization": "Bearer bad"}):
        for method, path in (("POST", "/v1/completions"), ("GET", "/v1/models")):
            answer = httpx.request(method, address + path, headers=headers)
            assert answer.status_code == 401
            assert answer.json()["error"]["code"] == "invalid_api_key"
    for key in ("good", "better"):
        headers = {"Authorization": f"Bearer {key}"}
        assert httpx.get(f"{address}/v1/models", headers=headers).status_code == 200
    assert health(address)["status"] == "ok"


def test_a_conversation_stays_where_it_began(address, client):
    homes = []
    for name in ("Tom", "Ann", "Ben", "Sue"):
        talk, home = [{"role": "user", "content": f"{name} had a dog."}], set()
        for _ in range(2):
            before = chats(address)
            done = client.chat.completions.create(model="nano", messages=talk, max_tokens=4)
            new = [after - then for after, then in zip(chats(address), before, strict=True)]
            assert sum(new) == 1
            home.add(new.index(1))
            talk.append({"role": "assistant", "content": done.choices[0].message.content or "So"})
            talk.append({"role": "user", "content": "And then?"})
        assert len(home) == 1
        homes += home
    assert homes in ([0, 1] * 2, [1, 0] * 2)


@pytest.fixture(scope="module")
def long(engine):
    """A request of some seconds: no text of it may end by itself."""
    bias = {str(token): -100 for token in engine.tokenizer.eos_ids}
    return {"max_tokens": 900, "n": 64, "logit_bias": bias}


def idle(address):
    found = metrics(address)
    names = [of_replica(i, "gptoss_kv_pages", state="used") for i in range(2)]
    return not any(found[name] for name in names) and health(address)["running"] == 0


def left(address):
    found = metrics(address)
    return sum(found.get(of_replica(i, "gptoss_cancelled_texts_total"), 0.0) for i in range(2))


def test_a_client_that_leaves_ends_its_request(address, long):
    before = left(address)
    body = {**long, "prompt": "The cat", "stream": True}
    with httpx.stream("POST", f"{address}/v1/completions", json=body, headers=KEY) as answer:
        lines = answer.iter_lines()
        next(lines)
        assert not idle(address)
    until(lambda: idle(address), "an end of the stream")
    with asking(address, "/v1/completions", {**long, "prompt": "The cat"}, **KEY):
        until(lambda: not idle(address), "the request")
    until(lambda: idle(address), "an end of the request")
    assert left(address) == before + 2 * long["n"]  # none came to its end


def test_one_that_is_killed_is_started_again(address, client, long):
    from ray import serve

    handles = [serve.get_deployment_handle(f"replica-{i}", "default") for i in range(2)]
    old = [handle.here.remote().result() for handle in handles]
    body = {**long, "prompt": "One day", "stream": True}
    with httpx.stream("POST", f"{address}/v1/completions", json=body, headers=KEY) as answer:
        lines = answer.iter_lines()
        next(lines)
        running = [each["running"] for each in health(address)["replicas"]]
        assert sorted(running) == [0, 1]
        victim = running.index(1)
        os.kill(old[victim], signal.SIGKILL)
        *_, last = [line for line in lines if line]
    error = json.loads(last.removeprefix("data: "))["error"]
    assert f"replica {victim} ended" in error["message"] and error["type"] == "server_error"
    assert client.completions.create(model="nano", prompt="One day", **GREEDY).choices[0].text
    until(lambda: health(address)["status"] == "ok", "the replica's return")
    new = [handle.here.remote().result() for handle in handles]
    assert new[victim] != old[victim] and new[1 - victim] == old[1 - victim]


@pytest.mark.slow  # Ray lets it have its time to end in peace first
def test_one_that_is_stopped_is_started_again(address):
    """Ray finds out; what waits there goes to the other one."""
    from ray import serve

    handles = [serve.get_deployment_handle(f"replica-{i}", "default") for i in range(2)]
    old = [handle.here.remote().result() for handle in handles]
    os.kill(old[0], signal.SIGSTOP)
    asked = {"model": "nano", **GREEDY}
    with ThreadPoolExecutor(4) as pool:
        bodies = [{**asked, "prompt": f"Number {i}"} for i in range(4)]
        url = f"{address}/v1/completions"
        answers = list(pool.map(lambda body: httpx.post(url, json=body, headers=KEY), bodies))
    assert [answer.status_code for answer in answers] == [200] * 4
    until(lambda: health(address)["status"] == "ok", "the replica's return")
    new = [handle.here.remote().result() for handle in handles]
    assert new[0] != old[0] and new[1] == old[1]


def test_the_health_of_an_actor():
    from gptoss.server.front.ray_app import Arguments, EngineActor

    actor = EngineActor(Arguments(name="nano", activation="f32", kv_bytes=32 << 20), "inner")
    engine = actor._engine
    try:
        asyncio.run(actor.check_health())
        with mock.patch.object(engine, "info", lambda: {"step_seconds": 301.0}):
            with pytest.raises(RuntimeError, match="hangs"):
                asyncio.run(actor.check_health())
    finally:
        engine.close()


def test_an_application_is_called_without_a_socket():
    from gptoss.server.front.ray_app import call_app

    seen = []

    async def app(scope, receive, send):
        seen.append((scope["path"], scope["query_string"], dict(scope["headers"])))
        seen.append(await receive())
        await send({"type": "http.response.start", "status": 201, "headers": [(b"a", b"b")]})
        try:
            for part in (b"one", b"", b"two"):
                await send({"type": "http.response.body", "body": part, "more_body": True})
            if scope["path"] == "/raises":
                raise RuntimeError("no luck")
        finally:
            seen.append("ended")

    async def run(path, most):
        found = []
        answer = call_app(app, Call("POST", path, {"x": "y"}, b"data"))
        async for part in answer:
            found.append(part)
            if len(found) == most:
                break
        await answer.aclose()
        assert seen[-1] == "ended"
        return found

    assert asyncio.run(run("/path?a=b", 10)) == [(201, {"a": "b"}), b"one", b"two"]
    assert seen[0] == ("/path", b"a=b", {b"x": b"y"}) and seen[1]["body"] == b"data"
    assert asyncio.run(run("/path", 2)) == [(201, {"a": "b"}), b"one"]
    assert len(asyncio.run(run("/raises", 10))) == 3


def test_arguments_are_checked():
    from gptoss.server.front.ray_app import Arguments

    for bad in ({"replicas": 0}, {"model_name": "x"}, {"max_requests": "many"}, {"threads": 0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            Arguments(**bad)
