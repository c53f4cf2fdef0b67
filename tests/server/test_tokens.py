"""/tokenize and /detokenize: texts, and conversations as long as chat completions count them."""

import asyncio

import httpx
import pytest
from fake_engine import settle
from test_structured import BundledHarmony

from gptoss.server.api import app as server
from gptoss.server.api import tokenize as tokenizing

TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds.",
        "parameters": {"type": "object", "properties": {"a": {"type": "number"}}},
    },
}
CALL = {"id": "c", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
USER = {"role": "user", "content": "Two and two? 日本"}
CONVERSATIONS = [
    {"messages": [USER]},
    {"messages": [{"role": "system", "content": "Brief."}, USER]},
    {"messages": [USER], "tools": [TOOL]},
    {"messages": [USER], "tools": [TOOL], "tool_choice": "none"},
    {"messages": [USER], "reasoning_effort": "high"},
    {"messages": [USER], "chat_template_kwargs": {"reasoning_effort": "low"}},
    {"messages": [USER, {"role": "assistant", "content": "It is"}], "continue_final_message": True},
    {
        "messages": [
            USER,
            {"role": "assistant", "reasoning": "Hm.", "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "c", "content": "4"},
        ],
        "tools": [TOOL],
    },
]


@pytest.fixture(scope="module", params=["plain", "harmony"])
def ask(request, engine):
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "harmony":
            patch.setattr(server, "load_chat", BundledHarmony)
        app = server.create_app(engine, server.ServerOptions("nano"))

    async def send(path, body):
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            return await (client.get(path) if body is None else client.post(path, json=body))

    def ask(path, body=None):
        return asyncio.run(send(path, body))

    ask.harmony = request.param == "harmony"
    yield ask
    settle(engine)


@pytest.mark.parametrize("body", CONVERSATIONS)
def test_a_conversation_is_as_long_as_it_is_counted(ask, engine, body):
    if not ask.harmony and ("tools" in body or body.get("continue_final_message")):
        pytest.skip("a model that was not taught conversations takes none of this kind")
    found = ask("/tokenize", body)
    assert found.status_code == 200, found.text
    found = found.json()
    chat = ask("/v1/chat/completions", {**body, "max_tokens": 1, "return_token_ids": True})
    assert chat.status_code == 200, chat.text
    assert found["count"] == len(found["tokens"]) == chat.json()["usage"]["prompt_tokens"]
    assert found["tokens"] == chat.json()["prompt_token_ids"]
    assert found["max_model_len"] == engine.config.context_length


def test_a_text(ask, engine):
    text = "Once 日本 <|end|>"
    ids = engine.tokenizer.encode(text)
    for name in ("prompt", "content"):
        assert ask("/tokenize", {name: text}).json()["tokens"] == ids
    found = ask("/tokenize", {"prompt": text, "return_token_strs": True}).json()
    assert len(found["token_strs"]) == len(ids) == found["count"]
    pieces = ask("/tokenize", {"content": text, "with_pieces": True}).json()["tokens"]
    assert [piece["id"] for piece in pieces] == ids
    spelled = b"".join(
        piece["piece"].encode() if isinstance(piece["piece"], str) else bytes(piece["piece"])
        for piece in pieces
    )
    assert spelled.decode() == text
    (special,) = ask("/tokenize", {"prompt": "<|end|>", "parse_special": True}).json()["tokens"]
    assert special == engine.tokenizer.special_tokens["<|end|>"]
    assert len(ask("/tokenize", {"prompt": "<|end|>"}).json()["tokens"]) > 1
    assert ask("/tokenize", {"prompt": ""}).json() == {
        "tokens": [], "count": 0, "max_model_len": engine.config.context_length
    }  # fmt: skip


def test_there_and_back(ask, engine):
    ids = engine.tokenizer.encode("Once 日本")
    found = ask("/detokenize", {"tokens": ids}).json()
    assert found == {"prompt": "Once 日本", "content": "Once 日本"}
    assert ask("/detokenize", {"tokens": []}).json()["content"] == ""


def test_tokens_of_a_text_that_is_too_long(ask, monkeypatch):
    ids = ask("/tokenize", {"prompt": "Once upon a time"}).json()["tokens"]
    monkeypatch.setattr(tokenizing, "_MAX_TEXT", len("Once upon a time"))
    assert ask("/detokenize", {"tokens": ids}).status_code == 200
    answer = ask("/detokenize", {"tokens": ids + ids})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == "tokens" and "at most 16 bytes, found 32" in error["message"]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "content": "a"}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": [USER]}, "prompt"),
        ("/tokenize", {"prompt": ["a"]}, "prompt"),
        ("/tokenize", {"content": 5}, "content"),
        ("/tokenize", {"messages": 5}, "messages"),
        ("/tokenize", {"messages": [{"role": "x"}]}, "messages"),
        ("/tokenize", {"messages": [USER], "tools": 5}, "tools"),
        ("/tokenize", {"messages": [USER], "reasoning_effort": "huge"}, "reasoning_effort"),
        ("/tokenize", {"prompt": "a", "chat_template": "{{x}}"}, "chat_template"),
        ("/tokenize", {"prompt": "a", "with_pieces": "yes"}, "with_pieces"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": 5}, "tokens"),
        *[("/detokenize", {"tokens": [5, value]}, "tokens")
          for value in (True, False, None, "5", 5.0, -1, 10**9, 10**400, [5])],
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(ask, path, body, param):
    found = ask(path, body)
    assert (found.status_code, found.json()["error"]["param"]) == (400, param)


def test_another_model(ask):
    assert ask("/tokenize", {"prompt": "a", "model": "x"}).status_code == 404


def test_what_clients_ask_of_the_tokenizer(ask, engine):
    found = ask("/tokenizer_info").json()
    assert found["vocab_size"] == engine.tokenizer.vocab_size and found["eos_token"] is None
