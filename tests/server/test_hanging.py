"""Replicas that hang: a process that was stopped keeps its connections and says nothing more."""

import asyncio
import json
import math
import os
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import test_replicas
from held_steps import held
from test_replicas import GREEDY, KEY, SERVE, children, runs
from waiting import PATIENCE, until

from gptoss.engine import Engine, EngineOptions
from gptoss.server.api.app import ServerOptions, create_app
from gptoss.server.front.app import Call
from gptoss.server.front.replicas import Plan, ProcessReplica
from gptoss.server.front.router import DOWN, HUNG, UP, Router

# The command, with a front that is less patient.
IMPATIENT = """
import sys
from gptoss.cli import main
from gptoss.server.front.replicas import Health, Replicas
Replicas.__init__.__defaults__ = (Health(every=0.5, patience=2.0, hung=2, killed=KILLED),)
sys.exit(main(sys.argv[1:]))
"""
LONG = {"max_tokens": 900, "ignore_eos": True}


def served(killed):
    script = IMPATIENT.replace("KILLED", str(killed))
    command = [sys.executable, "-c", script, *SERVE[SERVE.index("serve") :]]
    return test_replicas.served("--api-key", "good", command=command)


def states(server):
    return [replica["state"] for replica in server.health()["replicas"]]


def ask(server, prompt):
    body = {"prompt": prompt, **GREEDY}
    return httpx.post(f"{server.address}/v1/completions", json=body, headers=KEY, timeout=PATIENCE)


def test_one_that_is_stopped_is_ended_and_started_again():
    """What had begun there ends with an error, what waits there goes to the other one."""
    with served(killed=4) as server, ThreadPoolExecutor(8) as pool:
        with server.stream({**LONG, "prompt": "One day", "n": 16}) as stream:
            lines = stream.iter_lines()
            next(lines)
            victim = server.busy()
            stopped = server.children[victim]
            os.kill(stopped, signal.SIGSTOP)
            asked = [pool.submit(ask, server, f"Number {i}") for i in range(8)]
            assert [each.result().status_code for each in asked] == [200] * 8
            *_, last = [line for line in lines if line]
        error = json.loads(last.removeprefix("data: "))["error"]
        assert error["type"] == "server_error" and f"replica {victim}" in error["message"]
        until(lambda: server.health()["status"] == "ok", "the replica's return")
        until(lambda: not runs(stopped), "the end of the stopped process")
        assert server.health()["replicas"][victim]["ended"] == 1
        assert children(server.process)[victim] != stopped
        assert ask(server, "Again").status_code == 200
        said = "".join(server.lines)
        assert f"replica {victim} does not answer: it gets no more requests" in said
        assert f"replica {victim} does not answer: it is ended" in said


def test_one_that_answers_again_is_used_again():
    with served(killed=1000) as server:
        victim = 1
        os.kill(server.children[victim], signal.SIGSTOP)
        until(lambda: states(server)[victim] == HUNG, "its being noticed")
        assert server.health()["status"] == "degraded"
        for i in range(4):
            assert ask(server, f"Number {i}").status_code == 200
        os.kill(server.children[victim], signal.SIGCONT)
        until(lambda: states(server) == [UP, UP], "its return")
        assert server.health()["replicas"][victim]["ended"] == 0
        assert children(server.process) == server.children


def test_all_hang():
    """The front says so, and nothing waits for ever."""
    with served(killed=1000) as server:
        for pid in server.children.values():
            os.kill(pid, signal.SIGSTOP)
        until(lambda: states(server) == [HUNG, HUNG], "their being noticed")
        answer = httpx.get(f"{server.address}/health")
        assert answer.status_code == 503 and answer.json()["status"] == "down"
        answer = ask(server, "Anybody?")
        assert answer.status_code == 503 and answer.headers["retry-after"]
        assert httpx.get(f"{server.address}/v1/models", headers=KEY).status_code == 503
        for pid in server.children.values():
            os.kill(pid, signal.SIGCONT)


def test_states_of_a_router():
    router = Router(2, 1)
    router.set_state(0, HUNG)
    assert router.up == [False, True] and router.ended == [0, 0]
    router.set_state(0, DOWN)
    router.set_state(0, DOWN)
    assert router.ended == [1, 0]
    router.set_state(0, UP)
    assert router.up == [True, True]


@pytest.mark.parametrize(("seconds", "status"), [(0.0, 200), (29.0, 200), (31.0, 503)])
def test_an_engine_that_hangs_says_so(engine, monkeypatch, seconds, status):
    """A device that does not answer leaves the server's own thread alone."""
    info = engine.info()
    monkeypatch.setattr(engine, "info", lambda: {**info, "step_seconds": seconds})
    app = create_app(engine, ServerOptions("nano", step_timeout=30.0))

    async def asked():
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.get("/health")

    answer = asyncio.run(asked())
    assert answer.status_code == status
    assert answer.json()["status"] == ("ok" if status == 200 else "stuck")


def test_a_step_in_progress_has_a_duration(engine):
    until(lambda: engine.info()["step_seconds"] == 0.0, "rest")
    with held(engine) as backend, engine.stream("Once") as stream, ThreadPoolExecutor(1) as pool:
        first = pool.submit(next, stream)
        until(lambda: engine.info()["step_seconds"] > 0.05, "a step that takes a while")
        backend.let(100)
        first.result(PATIENCE)
    until(lambda: engine.info()["step_seconds"] == 0.0, "the end of the step")


def test_an_engine_whose_thread_has_ended_says_so(monkeypatch):
    """Nothing of ours should end it; whatever does leaves nobody to answer."""
    monkeypatch.setattr(threading, "excepthook", lambda found: None)
    engine = Engine.from_options(EngineOptions(activation="f32", kv_bytes=32 << 20))
    try:
        assert engine.info()["step_seconds"] == 0.0
        engine._worker._inbox.put(sys.exit)
        until(lambda: not engine._worker._thread.is_alive(), "the end of the thread")
        assert engine.info()["step_seconds"] == math.inf
    finally:
        engine.close()
    assert engine.info()["step_seconds"] < math.inf  # it was meant to end


class Line:
    """A replica's end of a connection, which answers when it is told."""

    def __init__(self):
        self.asked, self.answer, self.left = (asyncio.Event() for _ in range(3))

    async def serve(self, reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        self.asked.set()
        await self.answer.wait()
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
        await writer.drain()
        assert await reader.read() == b""
        self.left.set()
        writer.close()


def test_an_answer_that_comes_as_the_client_leaves_is_closed():
    """It would else be written on for nobody."""

    async def run():
        line = Line()
        server = await asyncio.start_server(line.serve, "127.0.0.1", 0)
        replica = ProcessReplica(0, Plan([], {}))
        port = server.sockets[0].getsockname()[1]
        replica._client = client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}")
        sent = asyncio.Event()
        real = client.send

        async def send(*arguments, **options):
            answer = await real(*arguments, **options)
            asking.cancel()  # in this very moment
            sent.set()
            return answer

        client.send = send
        asking = asyncio.ensure_future(replica.ask(Call("GET", "/")))
        await line.asked.wait()
        line.answer.set()
        await asyncio.wait({asking})
        assert sent.is_set() and asking.cancelled()
        await asyncio.wait_for(line.left.wait(), PATIENCE)
        await client.aclose()
        server.close()

    asyncio.run(run())
