"""Texts that are scored over HTTP: their log-probabilities are the engine's own, in the forms that
OpenAI's and vLLM's clients know, whole and streamed.
"""

import asyncio
import json

import httpx
import numpy as np
import pytest
from fake_engine import settle
from openai.types import Completion

from gptoss import SamplingParams
from gptoss.server.api import token_logprobs
from gptoss.server.api.app import ServerOptions, create_app

TEXT = "Once upon a time there was a 日本 dog 😀 named \xff Bo."


@pytest.fixture(scope="module")
def ask(engine):
    app = create_app(engine, ServerOptions("nano"))

    async def post(path, body):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            return await client.post(path, json=body)

    yield lambda body, path="/v1/completions": asyncio.run(post(path, body))
    settle(engine)


@pytest.fixture
def complete(ask):
    """The choices of the whole answer, after the streamed one was found to say the same."""

    def complete(**body):
        body = {"seed": 1, **body}  # both answers are drawn alike
        found = ask(body)
        assert found.status_code == 200, found.text
        whole = found.json()
        if not body.get("echo"):  # the type does not know of the first token's null
            Completion.model_validate(whole, strict=True)
        if body.get("prompt_logprobs") is None:
            streamed = joined(ask({**body, "stream": True}).text, len(whole["choices"]))
            assert streamed == whole["choices"]
        return whole

    return complete


def joined(text, count):
    choices = [None] * count
    for line in text.splitlines():
        if line.startswith("data: {"):
            (new,) = json.loads(line[6:])["choices"]
            mine = choices[new["index"]]
            if mine is None:
                choices[new["index"]] = new
                continue
            assert mine["finish_reason"] is None
            mine["text"] += new["text"]
            mine["finish_reason"] = new["finish_reason"]
            if new["logprobs"]:
                mine["logprobs"] = mine["logprobs"] or {name: [] for name in new["logprobs"]}
                for name, values in new["logprobs"].items():
                    mine["logprobs"][name] += values
            if "token_ids" in new:
                mine["token_ids"] += new["token_ids"]
    return choices


def offsets(engine, ids):
    """Where each token begins in the text of all, in characters."""
    decoder, found, length = engine.tokenizer.stream(), [], 0
    for token in ids:
        found.append(length)
        length += len(decoder.push(token))
    return found


@pytest.mark.parametrize("top", [0, 1, 3])
@pytest.mark.parametrize("asked", ["text", "ids"])
def test_echo_with_logprobs_and_nothing_more(engine, complete, top, asked):
    ids = engine.tokenizer.encode(TEXT)
    whole = complete(prompt=TEXT if asked == "text" else ids, echo=True, logprobs=top, max_tokens=0)
    (choice,) = whole["choices"]
    assert (choice["text"], choice["finish_reason"]) == (TEXT, "length")
    score, found = engine.score(ids[:1], ids[1:], top=top), choice["logprobs"]
    assert found["token_logprobs"][0] is None and found["top_logprobs"][0] is None
    assert found["token_logprobs"][1:] == pytest.approx(score.logprobs.tolist(), abs=1e-5)
    assert found["text_offset"] == offsets(engine, ids)
    for i, here in enumerate(found["top_logprobs"][1:]):
        assert found["tokens"][1 + i] in here  # also where it is none of the likely ones
        assert here[found["tokens"][1 + i]] == found["token_logprobs"][1 + i]
        known = ids[1 + i] in score.top_ids[i]
        assert len(here) == (top if known else top + 1)
        assert (max(here.values()) == here[found["tokens"][1 + i]]) >= bool(score.greedy[i])
    usage = whole["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (len(ids), 0)
    assert "cached_tokens" in usage["prompt_tokens_details"]


@pytest.mark.parametrize("n", [1, 3])
def test_echo_before_what_comes(engine, complete, n):
    options = {"max_tokens": 7, "temperature": 0, "n": n, "logprobs": 2}
    plain = complete(prompt=["The cat", "A dog"], **options)["choices"]
    echoed = complete(prompt=["The cat", "A dog"], echo=True, **options)["choices"]
    for i, (before, after) in enumerate(zip(plain, echoed, strict=True)):
        prompt = ["The cat", "A dog"][i // n]
        count = len(engine.tokenizer.encode(prompt))
        assert after["text"] == prompt + before["text"]
        for name in ("tokens", "token_logprobs", "top_logprobs"):
            assert after["logprobs"][name][count:] == before["logprobs"][name]
        shifted = [len(prompt) + offset for offset in before["logprobs"]["text_offset"]]
        assert after["logprobs"]["text_offset"][count:] == shifted
        assert len(after["logprobs"]["tokens"]) == count + 7


def test_echo_without_logprobs(engine, complete):
    (choice,) = complete(prompt=TEXT, echo=True, max_tokens=0)["choices"]
    assert (choice["text"], choice["logprobs"], choice["finish_reason"]) == (TEXT, None, "length")
    (choice,) = complete(prompt=TEXT, echo=True, max_tokens=3, temperature=0)["choices"]
    assert choice["text"].startswith(TEXT) and choice["logprobs"] is None


def test_the_token_that_came_is_always_told(engine, complete):
    (choice,) = complete(prompt="Once", max_tokens=30, logprobs=2, seed=3, temperature=3)["choices"]
    found = choice["logprobs"]
    assert any(len(here) == 3 for here in found["top_logprobs"])
    for token, logprob, here in zip(
        found["tokens"], found["token_logprobs"], found["top_logprobs"], strict=True
    ):
        assert here[token] == logprob and 2 <= len(here) <= 3
    (choice,) = complete(prompt="Once", max_tokens=3, logprobs=0)["choices"]
    assert [len(here) for here in choice["logprobs"]["top_logprobs"]] == [1, 1, 1]


def test_tokens_of_the_same_text_stay_two(engine, complete):
    """Pieces of characters are no text by themselves: they are called by their bytes."""
    tokenizer = engine.tokenizer
    pieces = [t for t in range(256) if 0x80 <= (tokenizer.token_bytes(t) or b" ")[0] < 0xF0]
    assert len({token_logprobs.token_name(t, tokenizer.token_bytes(t)) for t in pieces}) == len(
        pieces
    )
    ids = [5, *pieces[:4]]
    bias = {str(token): 100 for token in pieces[:3]}
    still = {"temperature": 0, "seed": 1}
    (choice,) = complete(
        prompt=ids, max_tokens=4, logprobs=100, logit_bias=bias, echo=True, **still
    )["choices"]
    for here in choice["logprobs"]["top_logprobs"][1:]:
        assert len(here) in (100, 101)
    assert choice["logprobs"]["tokens"][1].startswith("bytes:\\x")
    (choice,) = complete(
        prompt=ids, max_tokens=2, logprobs=1, echo=True, return_tokens_as_token_ids=True, **still
    )["choices"]
    assert choice["logprobs"]["tokens"][:5] == [f"token_id:{token}" for token in ids]
    assert all(name.startswith("token_id:") for here in choice["logprobs"]["top_logprobs"][1:]
               for name in here)  # fmt: skip


@pytest.mark.parametrize("top", [0, 2])
def test_prompt_logprobs(engine, complete, ask, top):
    ids = engine.tokenizer.encode(TEXT)
    (choice,) = complete(prompt=TEXT, prompt_logprobs=top, max_tokens=2)["choices"]
    score, found = engine.score(ids[:1], ids[1:], top=top), choice["prompt_logprobs"]
    assert found[0] is None and len(found) == len(ids) and TEXT not in choice["text"]
    for i, here in enumerate(found[1:]):
        mine = here[str(ids[1 + i])]
        assert mine["logprob"] == pytest.approx(float(score.logprobs[i]), abs=1e-5)
        likely = [str(token) for token in score.top_ids[i]]
        assert [here[token]["rank"] for token in likely] == list(range(1, top + 1))
        assert set(here) == {*likely, str(ids[1 + i])}
        if str(ids[1 + i]) not in likely:
            assert mine["rank"] == (1 if score.greedy[i] else None)
    body = {"messages": [{"role": "user", "content": TEXT}], "max_tokens": 2}
    plain = ask(body, "/v1/chat/completions").json()
    chat = ask({**body, "prompt_logprobs": top}, "/v1/chat/completions").json()
    assert len(chat["prompt_logprobs"]) == chat["usage"]["prompt_tokens"]
    assert chat["usage"]["prompt_tokens"] == plain["usage"]["prompt_tokens"]


def test_ids_of_tokens(engine, complete):
    (choice,) = complete(prompt="The cat", max_tokens=5, temperature=0, return_token_ids=True)[
        "choices"
    ]
    params = SamplingParams(max_tokens=5, temperature=0)
    assert choice["prompt_token_ids"] == engine.tokenizer.encode("The cat")
    assert choice["token_ids"] == engine.generate("The cat", params)[0].token_ids


def test_more_than_is_told_at_once(ask, monkeypatch):
    monkeypatch.setattr(token_logprobs, "_MAX_TOLD", 30)
    for more, field in (
        ({"echo": True, "logprobs": 4}, "logprobs"),
        ({"prompt_logprobs": 4}, "prompt_logprobs"),
        ({"prompt_logprobs": 4, "echo": True, "logprobs": 2}, "prompt_logprobs"),
    ):
        found = ask({"prompt": [[5] * 4, [6] * 4], **more})
        assert (found.status_code, found.json()["error"]["param"]) == (400, field)
    assert ask({"prompt": [[5] * 3, [6] * 3], "echo": True, "logprobs": 4}).status_code == 200


def test_a_prompt_as_long_as_the_context(engine, ask):
    """It can be scored; nothing could follow it."""
    context = engine.config.context_length
    body = {"prompt": [5] * context, "echo": True, "logprobs": 0}
    assert ask({**body, "max_tokens": 0}).status_code == 200
    error = ask({**body, "max_tokens": 1}).json()["error"]
    assert (error["param"], error["code"]) == ("prompt", "context_length_exceeded")


def test_numbers_of_tokens_with_every_chunk(ask):
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = {"prompt": "Once", "max_tokens": 5, "ignore_eos": True, "stream": True}
    lines = ask({**body, "stream_options": options}).text.splitlines()
    usages = [json.loads(line[6:])["usage"] for line in lines if line.startswith("data: {")]
    counts = [usage["completion_tokens"] for usage in usages]
    assert counts == sorted(counts) and counts[-1] == 5


def test_ends_over_http(engine, complete):
    """min_tokens, and a stop string that stays."""
    (free,) = complete(prompt="Once upon", max_tokens=30, temperature=0)["choices"]
    stop = free["text"][4:6]
    body = {"prompt": "Once upon", "max_tokens": 30, "temperature": 0, "stop": stop}
    (cut,) = complete(**body)["choices"]
    (kept,) = complete(**body, include_stop_str_in_output=True)["choices"]
    assert kept["text"] == cut["text"] + stop and kept["finish_reason"] == "stop"
    (long,) = complete(**body, min_tokens=10)["choices"]
    assert len(engine.tokenizer.encode(long["text"])) >= 9
    bias = {str(min(engine.tokenizer.eos_ids)): 100}
    (forced,) = complete(prompt="Once", min_tokens=4, logit_bias=bias, logprobs=0, temperature=0)[
        "choices"
    ]
    assert len(forced["logprobs"]["tokens"]) == 5
    assert np.isfinite(forced["logprobs"]["token_logprobs"]).all()


def test_every_choice_is_told_the_scores_of_a_prompt_that_was_computed_before(complete, engine):
    """Only one of them computes them, and later than the others are done."""
    ids = [int(token) for token in np.random.default_rng(3).integers(0, 4000, 300)]
    complete(prompt=ids, max_tokens=1, temperature=0)
    found = complete(prompt=ids, max_tokens=1, n=3, echo=True, logprobs=1, temperature=0)
    told = [choice["logprobs"]["token_logprobs"] for choice in found["choices"]]
    assert len(told) == 3 and told[0] == told[1] == told[2]
    assert len(told[0]) >= 300 and told[0][0] is None


def test_the_bound_on_scores_counts_every_choice(ask):
    body = {"prompt": [5] * 80, "max_tokens": 1, "echo": True, "logprobs": 100}
    assert ask(body).status_code == 200
    refused = ask({**body, "n": 128})
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "logprobs"


@pytest.mark.parametrize("sent", [-1, 3])
def test_which_number_is_wrong(ask, sent):
    body = {"prompt": "Once", "max_tokens": 1, "prompt_logprobs": sent if sent < 0 else 10**6}
    error = ask(body)
    assert error.status_code == 400 and error.json()["error"]["param"] == "prompt_logprobs"
