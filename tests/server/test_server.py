"""OpenAI's own client, and hostile clients, against a server of the bundled model."""

import json
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest
from fake_engine import settle
from held_steps import held
from serving import asking, running, serving, until_none_run
from waiting import until

from gptoss import Error, SamplingParams
from gptoss.server.api.app import ServerOptions, create_app

GREEDY = {"temperature": 0, "max_tokens": 12}

JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def address(engine):
    with serving(create_app(engine, ServerOptions("nano", max_body=1 << 20))) as address:
        yield address


@pytest.fixture
def client(address, engine):
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
        yield client
    settle(engine)


def test_completions(client, engine):
    done = client.completions.create(model="nano", prompt="Once upon a time", **GREEDY)
    (wanted,) = engine.generate("Once upon a time", SamplingParams(**GREEDY))
    assert done.object == "text_completion" and done.model == "nano"
    assert done.choices[0].text == wanted.text
    assert done.choices[0].finish_reason == wanted.finish_reason
    assert done.usage.completion_tokens == len(wanted.token_ids)
    assert done.usage.total_tokens == done.usage.prompt_tokens + done.usage.completion_tokens


def test_streamed_completions(client, engine):
    asked = {"stream": True, "stream_options": {"include_usage": True}, **GREEDY}
    chunks = list(client.completions.create(model="nano", prompt="Once upon a time", **asked))
    text = "".join(chunk.choices[0].text for chunk in chunks if chunk.choices)
    assert text == engine.generate("Once upon a time", SamplingParams(**GREEDY))[0].text
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 12
    assert chunks[-2].choices[0].finish_reason == "length"


def test_several_prompts_and_choices(client, engine):
    prompts = ["One day", "The dog"]
    options = {"max_tokens": 6, "seed": 3, "n": 2}
    done = client.completions.create(model="nano", prompt=prompts, **options)
    wanted = engine.generate(prompts, SamplingParams(**options))
    assert [choice.text for choice in done.choices] == [each.text for each in wanted]
    assert [choice.index for choice in done.choices] == [0, 1, 2, 3]
    ids = engine.tokenizer.encode("One day")
    done = client.completions.create(model="nano", prompt=ids, max_tokens=6, seed=3)
    assert done.choices[0].text == wanted[0].text


def test_logprobs_and_stop(client, engine):
    done = client.completions.create(model="nano", prompt="Once", logprobs=2, **GREEDY)
    found = done.choices[0].logprobs
    assert len(found.tokens) == len(found.token_logprobs) == len(found.text_offset) == 12
    assert all(logprob <= 0 for logprob in found.token_logprobs)
    assert all(1 <= len(top) <= 2 for top in found.top_logprobs)
    text = done.choices[0].text
    stopped = client.completions.create(model="nano", prompt="Once", stop=text[5:8], **GREEDY)
    assert stopped.choices[0].text == text[: text.find(text[5:8])]
    assert stopped.choices[0].finish_reason == "stop"


def test_chat_with_a_model_that_was_not_taught_it(client, engine):
    messages = [{"role": "user", "content": "Once upon a time"}]
    done = client.chat.completions.create(model="nano", messages=messages, **GREEDY)
    wanted = engine.generate("Once upon a time", SamplingParams(**GREEDY))[0].text
    assert done.choices[0].message.content == wanted
    stream = client.chat.completions.create(model="nano", messages=messages, stream=True, **GREEDY)
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == wanted
    asked = {"messages": messages, "logprobs": True, "top_logprobs": 3}
    found = client.chat.completions.create(model="nano", **asked, **GREEDY).choices[0].logprobs
    assert len(found.content) == 12 and len(found.content[0].top_logprobs) == 3


def test_models_tokens_and_health(client, address, engine):
    (model,) = client.models.list().data
    assert model.id == "nano" == client.models.retrieve("nano").id
    until_none_run(address)
    with httpx.Client(base_url=address) as plain:
        tokens = plain.post("/tokenize", json={"prompt": "Once upon"}).json()["tokens"]
        assert tokens == engine.tokenizer.encode("Once upon")
        assert plain.post("/detokenize", json={"tokens": tokens}).json()["prompt"] == "Once upon"
        assert plain.get("/health").json() == {"status": "ok", "running": 0}


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/v1/completions", {"prompt": "a", "model": "gpt-5"}, 404, "model: expected nano"),
        ("/v1/completions", {}, 400, "prompt: expected a string, token ids"),
        ("/v1/completions", {"prompt": []}, 400, "prompt: expected a string"),
        ("/v1/completions", {"prompt": ["a"] * 100}, 400, "at most 64, found 100"),
        ("/v1/completions", {"prompt": [10**9]}, 400, "token ids: expected integers"),
        ("/v1/completions", {"prompt": "a " * 5000}, 400, "prompt: expected at most"),
        ("/v1/completions", {"prompt": "a", "max_tokens": -2}, 400, "max_tokens: expected"),
        ("/v1/completions", {"prompt": "a", "temperature": "hot"}, 400, "temperature: expected"),
        ("/v1/completions", {"prompt": "a", "stop": ["x"] * 50}, 400, "stop: expected"),
        ("/v1/completions", {"prompt": "a", "n": 10**6}, 400, "n: expected"),
        ("/v1/completions", {"prompt": "a", "stream": "yes"}, 400, "stream: expected true or"),
        ("/v1/completions", {"prompt": "a", "stream_options": 5}, 400, "stream_options: expected"),
        ("/v1/completions", {"prompt": "a", "logit_bias": {"x": 1}}, 400, "logit_bias: expected"),
        ("/v1/completions", {"prompt": "a", "suffix": "b"}, 400, "suffix: this server cannot"),
        ("/v1/completions", {"prompt": "a", "best_of": 3}, 400, "best_of: expected as many as n"),
        ("/v1/chat/completions", {}, 400, "messages: expected a list"),
        ("/v1/chat/completions", {"messages": [{"role": "x"}]}, 400, "messages[0].role"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}],
                                  "response_format": {"type": "xml"}}, 400,
         "response_format: expected type text"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}],
                                  "tool_choice": "required"}, 400, "expected tools to choose"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}],
                                  "reasoning_effort": "huge"}, 400, "reasoning_effort: expected"),
        ("/tokenize", {"prompt": 5}, 400, "prompt: expected a string"),
        ("/detokenize", {"tokens": [10**9]}, 400, "tokens[0]: expected an id below"),
        ("/v1/nothing", {}, 404, "/v1/nothing"),
    ],
)  # fmt: skip
def test_what_cannot_be_answered_is_named(address, engine, path, body, status, message):
    answer = httpx.post(address + path, json=body)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert message in error["message"] and set(error) == {"message", "type", "param", "code"}
    settle(engine)


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"\xff\xfe", b"[" * 100_000, b"null"])
def test_bodies_that_are_none(address, body):
    answer = httpx.post(f"{address}/v1/completions", content=body, headers=JSON)
    assert answer.status_code == 400 and answer.json()["error"]["message"]


def test_bodies_that_are_too_large(address):
    answer = httpx.post(f"{address}/v1/completions", content=b" " * (2 << 20), headers=JSON)
    assert answer.status_code == 413 and "1048576" in answer.json()["error"]["message"]


def test_many_at_a_time(client, engine):
    prompts = [f"The {word} dog" for word in ("big", "old", "red", "sad", "shy", "wet", "odd")]

    def ask(prompt):
        done = client.completions.create(model="nano", prompt=prompt, **GREEDY)
        return done.choices[0].text

    with ThreadPoolExecutor(len(prompts)) as pool:
        found = list(pool.map(ask, prompts))
    wanted = engine.generate(prompts, SamplingParams(**GREEDY))
    assert found == [each.text for each in wanted]


LONG = {"prompt": "Once upon a time", "max_tokens": 900, "logit_bias": {}, "temperature": 1}


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_a_client_that_leaves_ends_its_request(address, engine, path, stream):
    body = {**LONG, "messages": [{"role": "user", "content": "Once"}], "stream": stream}
    with held(engine, steps=3) as steps:
        if stream:
            with httpx.stream("POST", address + path, json=body) as answer:
                lines = answer.iter_lines()  # dropped, it would close the connection
                assert next(lines).startswith("data: ")
                until(lambda: steps.waits, "the fourth step")
        else:
            with asking(address, path, body):
                until(lambda: steps.waits, "the fourth step")
                assert running(address) == 1
        until_none_run(address)
    settle(engine)
    assert steps.begun <= 4


@pytest.mark.parametrize("kind", [Error, RuntimeError])
def test_a_step_that_fails_ends_its_stream_alone(client, address, engine, before_step, kind):
    def fails(token_ids, seq_start, context_len, *arrays):
        if context_len.max() > 40:
            raise kind("no luck")

    before_step(engine, fails)
    body = {"prompt": "a b c d e f g h " * 10, "max_tokens": 5}
    answer = httpx.post(f"{address}/v1/completions", json=body)
    assert answer.status_code == 500
    mistake = answer.json()["error"]["message"]
    assert mistake == "no luck" if kind is Error else "its log says more" in mistake
    with httpx.stream("POST", f"{address}/v1/completions", json={**body, "stream": True}) as found:
        events = [json.loads(line[6:]) for line in found.iter_lines() if line]
    assert events[-1]["error"]["type"] == "server_error"
    assert client.completions.create(model="nano", prompt="a", max_tokens=3).choices
    until_none_run(address)


def test_keys(engine):
    options = ServerOptions("nano", api_keys=("good", "better"))
    with serving(create_app(engine, options)) as address:
        for key in ("bad", "goo", "góod"):
            headers = {"Authorization": f"Bearer {key}".encode()}
            answer = httpx.get(f"{address}/v1/models", headers=headers)
            assert answer.status_code == 401
            assert answer.json()["error"]["code"] == "invalid_api_key"
        assert httpx.get(f"{address}/v1/models").status_code == 401
        assert httpx.get(f"{address}/health").status_code == 200
        for key in ("good", "better"):
            with openai.OpenAI(base_url=f"{address}/v1", api_key=key) as client:
                assert client.models.list().data[0].id == "nano"


def test_metrics(engine):
    with serving(create_app(engine, ServerOptions("nano"))) as address:
        body = {"prompt": "Once upon a time", "max_tokens": 7, "n": 2}
        httpx.post(f"{address}/v1/completions", json=body)
        list(httpx.post(f"{address}/v1/completions", json={**body, "stream": True}).iter_lines())
        httpx.post(f"{address}/v1/completions", json={"prompt": 5})
        until_none_run(address)
        lines = httpx.get(f"{address}/metrics").text.splitlines()
    found = {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)
             if not name.startswith("#")}  # fmt: skip
    assert found['gptoss_requests_total{route="/v1/completions",status="200"}'] == 2
    assert found['gptoss_requests_total{route="/v1/completions",status="400"}'] == 1
    assert found['gptoss_tokens_total{kind="completion"}'] == 28
    assert found["gptoss_time_to_first_token_seconds_count"] == 4
    assert found["gptoss_time_per_output_token_seconds_count"] == 4
    assert found['gptoss_kv_pages{state="used"}'] == 0
    assert found['gptoss_sequences{state="running"}'] == 0


def test_no_more_than_may(engine):
    with serving(create_app(engine, ServerOptions("nano", max_sequences=1))) as address:
        with held(engine) as steps, asking(address, "/v1/completions", LONG):
            until(lambda: steps.waits, "a step of the first one")
            answer = httpx.post(f"{address}/v1/completions", json={"prompt": "a"})
            assert answer.status_code == 429 and answer.headers["Retry-After"] == "1"
        until_none_run(address)
        answer = httpx.post(f"{address}/v1/completions", json={"prompt": "a", "max_tokens": 2})
        assert answer.status_code == 200


def test_pages_that_may_ask(engine):
    with serving(create_app(engine, ServerOptions("nano", origins=("http://good",)))) as address:
        for origin, allowed in (("http://good", "http://good"), ("http://bad", None)):
            headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
            answer = httpx.options(f"{address}/v1/completions", headers=headers)
            assert answer.headers.get("access-control-allow-origin") == allowed
