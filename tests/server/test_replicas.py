"""`gptoss serve --replicas 2`: processes that come, go and are started again."""

import argparse
import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import openai
import pytest
from serving import asking
from waiting import PATIENCE, until, until_async

from gptoss import Error, SamplingParams
from gptoss.cli import serve
from gptoss.server.front import replicas as module
from gptoss.server.front.app import Call
from gptoss.server.front.replicas import Plan, Replicas, gpus_of_replica
from gptoss.server.front.router import GENERATING, Router

SERVE = [sys.executable, "-m", "gptoss", "serve", "--replicas", "2", "--port", "0"]
SERVE += ["--name", "nano", "--activation", "f32", "--kv-bytes", "32MiB", "--threads", "1"]
GREEDY = {"temperature": 0, "max_tokens": 12}
KEY = {"Authorization": "Bearer good"}


def children(process):
    """The replicas of a front: their process ids by their numbers."""
    found = {}
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((directory / "stat").read_text().rpartition(")")[2].split()[1])
            words = (directory / "cmdline").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if parent == process.pid and b"gptoss.cli.replica" in words:
            found[int(words[words.index(b"gptoss.cli.replica") + 1])] = int(directory.name)
    return found


def runs(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


class Served:
    def __init__(self, process):
        self.process, self.lines = process, []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.address = until(self._address, "the address")
        self.children = children(process)

    def _read(self):
        self.lines.extend(self.process.stderr)

    def _address(self):
        assert self.process.poll() is None, self.lines
        found = re.search(r"running on (http://127\.0\.0\.1:\d+)", "".join(self.lines))
        return found and found[1]

    def health(self):
        return httpx.get(f"{self.address}/health").json()

    def metrics(self):
        """(name, labels, value) of each."""
        return until(self._metrics, "metrics of every replica")

    def _metrics(self):
        text = httpx.get(f"{self.address}/metrics", headers=KEY).text
        found = re.findall(r"^(\w+)(?:{(.*)})? (\S+)$", text, re.M)
        found = [(name, set(labels.split(",")), float(value)) for name, labels, value in found]
        up = sum(value for name, _, value in found if name == "gptoss_replica_up")
        told = [labels for name, labels, _ in found if name == "gptoss_kv_pages"]
        # The front leaves out a replica that takes too long to say them.
        return found if len(set().union(*told) & {'replica="0"', 'replica="1"'}) == up else None

    def metric(self, name, **labels):
        """The sum of what has this name and these labels."""
        wanted = {f'{label}="{value}"' for label, value in labels.items()}
        return sum(value for n, given, value in self.metrics() if n == name and wanted <= given)

    def generations(self):
        """Requests that each replica had."""
        found = [0.0, 0.0]
        routes = {f'route="{path}"' for path in GENERATING}
        for name, labels, value in self.metrics():
            if name == "gptoss_requests_total" and labels & routes:
                found['replica="1"' in labels] += value
        return found

    def busy(self):
        """The number of the only replica that has a request."""
        running = [each["running"] for each in self.health()["replicas"]]
        assert sorted(running) == [0, 1]
        return running.index(1)

    def idle(self):
        return (
            self.health()["running"] == 0
            and self.metric("gptoss_kv_pages", state="used") == 0
            and self.metric("gptoss_sequences") == 0
        )

    def stream(self, body):
        """A stream of this server, open while the block runs."""
        options = {"json": {**body, "stream": True}, "headers": KEY}
        return httpx.stream("POST", f"{self.address}/v1/completions", **options)


@contextmanager
def served(*options, command=SERVE):
    with subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True) as process:
        try:
            server = Served(process)
            yield server
        finally:
            process.terminate()
            try:
                process.wait(PATIENCE)
            finally:
                process.kill()
    until(lambda: not any(map(runs, server.children.values())), "the end of the replicas")


@pytest.fixture(scope="module")
def server():
    with served("--api-key", "good", "--origin", "http://good") as server:
        yield server


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=f"{server.address}/v1", api_key="good", max_retries=0) as client:
        yield client
    until(server.idle, "the end of all requests")


@pytest.fixture(scope="module")
def long(engine):
    """A request of some seconds: no text of it may end by itself."""
    bias = {str(token): -100 for token in engine.tokenizer.eos_ids}
    return {"max_tokens": 900, "n": 64, "logit_bias": bias}


def test_the_surface_is_that_of_one_engine(server, client, engine):
    wanted = engine.generate("Once upon a time", SamplingParams(**GREEDY))[0].text
    done = client.completions.create(model="nano", prompt="Once upon a time", **GREEDY)
    assert done.choices[0].text == wanted
    messages = [{"role": "user", "content": "Once upon a time"}]
    done = client.chat.completions.create(model="nano", messages=messages, **GREEDY)
    assert done.choices[0].message.content == wanted
    stream = client.chat.completions.create(model="nano", messages=messages, stream=True, **GREEDY)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == wanted
    asked = {"model": "nano", "input": "Once upon a time", "temperature": 0}
    with client.responses.create(**asked, max_output_tokens=12, stream=True) as events:
        assert list(events)[-1].response.output_text == wanted
    assert client.models.list().data[0].id == "nano" == client.models.retrieve("nano").id
    with httpx.Client(base_url=server.address, headers=KEY) as plain:
        tokens = plain.post("/tokenize", json={"prompt": "Once upon"}).json()["tokens"]
        assert tokens == engine.tokenizer.encode("Once upon")
        assert plain.post("/detokenize", json={"tokens": tokens}).json()["prompt"] == "Once upon"
        # What a replica refuses is passed on as it says it.
        refused = plain.post("/v1/completions", json={"prompt": "a", "model": "other"})
        assert refused.status_code == 404 and "expected nano" in refused.text
        assert (
            plain.post(
                "/v1/completions", content=b"{", headers={"Content-Type": "application/json"}
            ).status_code
            == 400
        )
        assert plain.get("/v1/completions").status_code == 405
        # The page needs no key, as where there is one engine.
        page = httpx.get(server.address)
        assert page.status_code == 200 and "content-security-policy" in page.headers

        # Replicas log what they answered, and for whom.
        def logged():
            lines = [json.loads(line) for line in list(server.lines) if line.startswith("{")]
            chats = [line for line in lines if line["path"] == "/v1/chat/completions"]
            return [line for line in chats if line["completion_tokens"] == 12]

        chat = until(logged, "the lines of both conversations")[0]
        assert chat["client"] == "127.0.0.1"
        # A path that looks like another place stays a path.
        assert plain.get(f"{server.address}//127.0.0.1:1/v1/models").status_code == 404


def test_several_at_a_time_are_spread(server, client, engine):
    prompts = [f"The {word} dog" for word in ("big", "old", "red", "sad", "shy", "wet")]
    before = server.generations()

    def ask(prompt):
        done = client.completions.create(model="nano", prompt=prompt, **GREEDY)
        return done.choices[0].text

    with ThreadPoolExecutor(len(prompts)) as pool:
        found = list(pool.map(ask, prompts))
    assert found == [each.text for each in engine.generate(prompts, SamplingParams(**GREEDY))]
    new = [after - then for after, then in zip(server.generations(), before, strict=True)]
    assert sum(new) == len(prompts) and min(new) >= 1


def test_a_conversation_stays_where_it_began(server, client):
    homes, known = [], server.metric("gptoss_admitted_prompt_tokens_total", cache="hit")
    for name in ("Tom", "Ann", "Ben", "Sue"):
        talk, home = [{"role": "user", "content": f"{name} had a dog. " * 8}], set()
        for _ in range(3):
            before = server.generations()
            done = client.chat.completions.create(model="nano", messages=talk, max_tokens=4)
            new = [after - then for after, then in zip(server.generations(), before, strict=True)]
            assert sum(new) == 1
            home.add(new.index(1))
            talk.append({"role": "assistant", "content": done.choices[0].message.content or "So"})
            talk.append({"role": "user", "content": "And then?"})
        assert len(home) == 1
        homes += home
    assert homes in ([0, 1] * 2, [1, 0] * 2)
    # Which is worth it: eight turns found at least two pages of their first one.
    found = server.metric("gptoss_admitted_prompt_tokens_total", cache="hit") - known
    assert found >= 8 * 2 * 16


def test_a_client_that_leaves_ends_its_request(server, client, long):
    left = server.metric("gptoss_cancelled_texts_total")
    with server.stream({**long, "prompt": "The cat"}) as answer:
        lines = answer.iter_lines()  # dropped, it would close the connection
        next(lines)
        assert server.metric("gptoss_kv_pages", state="used") > 0
    until(server.idle, "an end of the stream")
    with asking(server.address, "/v1/completions", {**long, "prompt": "The cat"}, **KEY):
        until(lambda: server.metric("gptoss_kv_pages", state="used") > 0, "the request")
    until(server.idle, "an end of the request")
    # None came to its end.
    assert server.metric("gptoss_cancelled_texts_total") == left + 2 * long["n"]


def test_keys_sizes_and_origins(server):
    for headers in ({}, {"Authorization": "Bearer bad"}):
        for path in ("/v1/completions", "/tokenize"):
            answer = httpx.post(server.address + path, json={"prompt": "a"}, headers=headers)
            assert answer.status_code == 401
            assert answer.json()["error"]["code"] == "invalid_api_key"
        assert httpx.get(f"{server.address}/v1/models", headers=headers).status_code == 401
        assert httpx.get(f"{server.address}/metrics", headers=headers).status_code == 401
    large = b" " * ((16 << 20) + 1)
    headers = {**KEY, "Content-Type": "application/json"}
    answer = httpx.post(f"{server.address}/v1/completions", content=large, headers=headers)
    assert answer.status_code == 413
    for origin, allowed in (("http://good", "http://good"), ("http://bad", None)):
        headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        answer = httpx.options(f"{server.address}/v1/completions", headers=headers)
        assert answer.headers.get("access-control-allow-origin") == allowed


def test_one_that_is_killed_is_started_again(server, client, long):
    before_all = int(time.time())
    with server.stream({**long, "prompt": "One day"}) as first:
        first_lines = first.iter_lines()
        next(first_lines)
        victim = server.busy()
        with server.stream({**long, "n": 1, "prompt": "A girl"}) as second:
            second_lines = second.iter_lines()
            next(second_lines)
            old = dict(server.children)
            os.kill(old[victim], signal.SIGKILL)
            *_, last = [line for line in first_lines if line]
            error = json.loads(last.removeprefix("data: "))["error"]
            assert f"replica {victim} ended" in error["message"]
            assert error["type"] == "server_error"
            others = [line for line in second_lines if line]
            assert others[-1] == "data: [DONE]"
            assert json.loads(others[-2][6:])["choices"][0]["finish_reason"] == "length"
    done = client.completions.create(model="nano", prompt="One day", **GREEDY)  # by the other one
    assert done.choices[0].text
    until(lambda: server.health()["status"] == "ok", "the replica's return")
    replica = server.health()["replicas"][victim]
    since = replica.pop("since")
    again = {"up": True, "state": "up", "running": 0, "texts": 0, "ended": 1, "last_code": -9}
    assert replica == again
    assert before_all <= since <= time.time()
    assert server.metric("gptoss_replica_state", replica=victim, state="up") == 1
    server.children = children(server.process)
    assert server.children[victim] != old[victim]
    assert server.children[1 - victim] == old[1 - victim]
    before = server.generations()[victim]
    for prompt in ("Three", "Four"):
        client.completions.create(model="nano", prompt=prompt, **GREEDY)
    assert server.generations()[victim] == before + 1


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_what_runs_is_finished_at_the_end(how, long):
    with served("--api-key", "good") as server:
        assert sorted(server.children) == [0, 1]
        with server.stream({**long, "n": 2, "prompt": "One day"}) as stream:
            lines = stream.iter_lines()
            next(lines)
            server.process.send_signal(how)
            assert "data: [DONE]" in list(lines)
        assert server.process.wait(PATIENCE) in (0, -how)
        assert not any(map(runs, server.children.values()))  # they end first


def test_a_second_interrupt_waits_for_nobody(long):
    with served("--api-key", "good") as server:
        with server.stream({**long, "n": 64, "prompt": "One day"}) as stream:
            lines = stream.iter_lines()
            next(lines)
            server.process.send_signal(signal.SIGINT)
            until(lambda: "Shutting down" in "".join(server.lines), "the first one's effect")
            server.process.send_signal(signal.SIGINT)
            read = []
            with suppress(httpx.RemoteProtocolError):  # it may be cut anywhere
                read += lines
            assert "data: [DONE]" not in read
        server.process.wait(PATIENCE)


def test_none_is_left_when_the_front_is_killed(long):
    with served("--api-key", "good") as server:
        with server.stream({**long, "prompt": "One day"}) as stream:
            lines = stream.iter_lines()
            next(lines)
            server.process.kill()
            until(lambda: not any(map(runs, server.children.values())), "the replicas' end")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "no-such-model"], "no-such-model"),
        (["--replicas", "0"], "--replicas: expected 1 to 64, found 0"),
        (["--threads", "0"], "error: threads: expected an integer from 1 to 1024, found 0"),
    ],
)
def test_options_that_are_none(options, message):
    done = subprocess.run([*SERVE, *options], capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert message in line


def test_a_replica_asks_for_the_fronts_key_and_notices_its_leaving(long):
    asked = {"host": "127.0.0.1", "port": 0, "api_key": ["inner"], "origin": [], "name": "nano"}
    asked |= {"max_sequences": 5, "model": None, "device": "cpu", "activation": "bf16"}
    asked |= {"weights": None, "kv": "bf16", "kv_bytes": 1 << 25, "threads": 1}
    asked |= {"tensor_parallel": 1, "replica": 0, "timeout": 60.0, "no_access_log": True}
    asked |= {"prefix_cache": True, "speculation": True, "max_connections": 50}
    asked |= {"priority": "any", "cache_isolation": False}

    async def run():
        command = [sys.executable, "-m", "gptoss.cli.replica", "0"]
        replicas = Replicas([Plan(command, asked)], Router(1, 5))
        await replicas.start()
        (replica,) = replicas.upstreams
        try:
            found = []
            for headers in ({}, {"authorization": "Bearer inner"}):
                reply = await replica.ask(Call("GET", "/v1/models", headers))
                found.append(reply.status)
                await reply.close()
            assert replica._client.base_url.host == "127.0.0.1"
            # Nothing of the answer is read.
            body = json.dumps({**long, "prompt": "The cat", "stream": True}).encode()
            reply = await replica.ask(Call("POST", "/v1/completions", headers, body))
            await reply.close()

            async def read(path):
                reply = await replica.ask(Call("GET", path, headers))
                return b"".join([part async for part in reply.parts()]).decode()

            async def told(path, words):
                while words not in await read(path):
                    pass

            for path, idle in (
                ("/health", '"running":0'),
                ("/metrics", 'gptoss_kv_pages{state="used"} 0.0'),  # the worker's next step
            ):
                await asyncio.wait_for(told(path, idle), PATIENCE)
            # None came to its end.
            assert 'gptoss_tokens_total{kind="completion"}' not in await read("/metrics")
            return found
        finally:
            await replicas.close()
            assert replica.process.returncode is not None

    assert asyncio.run(run()) == [401, 200]


def test_what_waits_for_the_killed_goes_to_the_other(server, client):
    """Nobody learns of it: nothing was sent to the client yet."""
    url, body = f"{server.address}/v1/completions", {"prompt": "One day", **GREEDY, "n": 8}
    body |= {"max_tokens": 400, "ignore_eos": True}
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(httpx.post, url, json=body, headers=KEY)
        until(lambda: server.health()["running"] == 1, "the request")
        victim = server.busy()
        until(lambda: server.metric("gptoss_sequences", replica=victim) == 8, "its texts")
        os.kill(children(server.process)[victim], signal.SIGKILL)
        answer = asked.result(PATIENCE)
    assert answer.status_code == 200 and len(answer.json()["choices"]) == 8
    until(lambda: server.health()["status"] == "ok", "the replica's return")
    server.children = children(server.process)


# What a replica does the first, second … time it is started: serves until it may go, refuses, ends
# without a word, speaks nonsense, serves.
ACTOR = """
import json, pathlib, socket, sys, time
line, log = socket.socket(fileno=int(sys.argv[2])), pathlib.Path(sys.argv[1])
asked = json.loads(line.makefile().readline())
time_of_day = len(log.read_text()) if log.exists() else 0
log.write_text("x" * (time_of_day + 1))
act = asked["acts"][min(time_of_day, len(asked["acts"]) - 1)]
if act == "refuses":
    line.sendall(b'{"error": "no luck"}\\n')
elif act == "nonsense":
    line.sendall(b"port 1\\n")
    line.recv(1)
elif act != "ends":
    line.sendall(b'{"port": 1}\\n')
    while act == "moment" and not log.with_suffix(".go").exists():
        time.sleep(0.005)
    act == "moment" or line.recv(1)  # until the other end is closed
"""


def play(tmp_path, *acts):
    command = [sys.executable, "-c", ACTOR, str(tmp_path / "log")]
    return Plan(command, {"acts": acts})


def test_one_that_does_not_start_is_tried_again(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(module, "FIRST_DELAY", 0.01)
    router = Router(1, 5)

    async def run():
        plan = play(tmp_path, "moment", "refuses", "ends", "nonsense", "serves")
        replicas = Replicas([plan], router)
        await replicas.start()
        assert router.up == [True]
        (tmp_path / "log.go").touch()
        try:
            await until_async(lambda: router.ended == [1], "its end")
            await until_async(lambda: router.up == [True], "its return")
        finally:
            await replicas.close()

    asyncio.run(run())
    assert (tmp_path / "log").read_text() == "xxxxx" and router.ended == [1]
    assert router.code == [-signal.SIGTERM]  # of the one that spoke nonsense
    messages = [record.getMessage() for record in caplog.records]
    waits = [re.search(r"in (\S+) s$", message) for message in messages]
    assert [found[1] for found in waits if found] == ["0.01", "0.02", "0.04", "0.08"]
    assert "no luck" in messages[1] and "ended with code 0" in messages[2]


@pytest.mark.parametrize(("act", "message"), [("refuses", "no luck"), ("ends", "with code 0")])
def test_all_must_start_at_first(tmp_path, act, message):
    (tmp_path / "other").mkdir()

    async def run():
        plans = [play(tmp_path / "other", "serves"), play(tmp_path, act)]
        replicas = Replicas(plans, Router(2, 5))
        with pytest.raises(Error, match=message):
            await replicas.start()
        return [replica.process.returncode for replica in replicas.upstreams]

    assert None not in asyncio.run(run())


def test_what_replicas_are_told(monkeypatch):
    parser = argparse.ArgumentParser()
    serve.add_arguments(parser)
    cores = len(os.sched_getaffinity(0))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")

    def plans(*words):
        arguments = parser.parse_args(["--replicas", "2", *words])
        return serve._plans(arguments, "inner")

    first, second = plans("--api-key", "outer", "--max-requests", "5", "--model", "m")
    assert {**first.asked, "replica": 1} == second.asked == json.loads(json.dumps(second.asked))
    assert first.asked["api_key"] == ["inner"] and first.asked["model"] == "m"
    assert (first.asked["host"], first.asked["port"]) == ("127.0.0.1", 0)
    assert first.asked["threads"] == max(1, cores // 2) and first.asked["max_sequences"] > 5
    assert [plan.environment for plan in (first, second)] == [
        {"CUDA_VISIBLE_DEVICES": "4"},
        {"CUDA_VISIBLE_DEVICES": "7"},
    ]
    for plan in plans("--threads", "3", "--device", "cpu"):
        assert plan.asked["threads"] == 3 and plan.environment == {}


def test_gpus():
    def gpus(*options):
        return [gpus_of_replica(i, options[0], *options[1:]) for i in range(options[0])]

    assert gpus(2, 1, None, 2) == ["0", "1"]
    assert gpus(2, 2, None, 8) == ["0,1", "2,3"]
    assert gpus(2, 1, "5, 3,1", 8) == ["5", "3"]
    for few in ((2, 1, None, 0), (2, 1, None, 1), (2, 1, "3", 8), (3, 1, None, 2), (2, 1, "", 8)):
        assert gpus(*few) == [None] * few[0]
