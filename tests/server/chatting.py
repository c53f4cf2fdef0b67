"""Answers of chat completions to what a model is told to write, whole and streamed, without HTTP;
each is checked against the types of OpenAI's Python client."""

import asyncio
import json
from dataclasses import dataclass, field

import pydantic
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from scripted import OfBytes, Scripted

from gptoss.server.api.chat_completions import ChatRequest
from gptoss.server.api.fields import Caller
from gptoss.server.http import as_json

TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
# What the types leave out, by where it stands: what other servers have, which clients look for.
_MORE = {
    "message": {"reasoning", "reasoning_content"},
    "delta": {"reasoning", "reasoning_content"},
    "choices": {"token_ids"},
    "": {"prompt_token_ids"},
}


@dataclass
class Said:
    """What the choice of an answer says, however it came."""

    content: str = ""
    thinking: str = ""
    calls: list = field(default_factory=list)  # of [name, arguments]
    finish: str | None = None
    logprobs: list = field(default_factory=list)  # of the tokens' bytes
    token_ids: list = field(default_factory=list)


def ask(written, *, finish="stop", tokens=None, **body):
    """The choices of the whole answer, after the streamed one was found to say the same."""
    whole, chunks = printed(written, finish=finish, tokens=tokens, **body)
    said = [_said(choice) for choice in whole["choices"]]
    assert list(joined(chunks).values()) == said
    return said


def printed(written, *, finish="stop", tokens=None, chat=None, **body):
    """(the whole answer, the chunks of the streamed one), as clients read them."""
    body = {"messages": [{"role": "user", "content": "Two and two?"}], **body}
    chat = chat or OfBytes()

    def request(**more):
        engine = Scripted(written, finish, tokens)
        return ChatRequest(engine, chat, {**body, **more}, Caller(None), "scripted")

    async def both():
        whole = await request(stream_options=None).whole()  # which only a stream may have
        return whole, [chunk async for chunk in request(stream=True).events()]

    whole, chunks = asyncio.run(both())
    whole, chunks = json.loads(as_json(whole)), [json.loads(as_json(chunk)) for chunk in chunks]
    check(ChatCompletion, whole)
    for chunk in chunks:
        check(ChatCompletionChunk, chunk)
    assert len({chunk["id"] for chunk in chunks}) == 1
    return whole, chunks


def check(kind, value):
    """Asserts that it is what OpenAI's type says, strictly, and has nothing else in it."""
    _nothing_else(kind.model_validate(value, strict=True), "")


def _nothing_else(value, where):
    if isinstance(value, pydantic.BaseModel):
        extra = set(value.model_extra or {}) - _MORE.get(where, set())
        assert not extra, f"{where or type(value).__name__}: {extra}"
        for name in type(value).model_fields:
            _nothing_else(getattr(value, name), name)
    elif isinstance(value, list):
        for item in value:
            _nothing_else(item, where)


def _said(choice):
    message = choice["message"]
    assert message.get("reasoning") == message.get("reasoning_content")
    calls = [
        [call["function"]["name"], call["function"]["arguments"]]
        for call in message.get("tool_calls", ())
    ]
    return Said(
        message["content"] or "",
        message.get("reasoning") or "",
        calls,
        choice["finish_reason"],
        _bytes(choice),
        choice.get("token_ids") or [],
    )


def joined(chunks):
    """What the deltas say together, by the number of the choice."""
    found = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            said = found.setdefault(choice["index"], Said())
            delta = choice["delta"]
            assert said.finish is None, "a choice goes on after its end"
            assert delta.get("reasoning") == delta.get("reasoning_content")
            said.content += delta.get("content") or ""
            said.thinking += delta.get("reasoning") or ""
            for call in delta.get("tool_calls", ()):
                function = call["function"]
                if call["index"] == len(said.calls):  # its first part has all that names it
                    assert call["id"] and call["type"] == "function"
                    said.calls.append([function["name"], ""])
                said.calls[call["index"]][1] += function["arguments"]
            said.finish = choice["finish_reason"]
            said.logprobs += _bytes(choice)
            said.token_ids += choice.get("token_ids") or []
    return dict(sorted(found.items()))


def _bytes(choice):
    found = (choice["logprobs"] or {}).get("content") or ()
    return [bytes(token["bytes"]) for token in found]
