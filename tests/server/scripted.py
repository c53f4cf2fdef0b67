"""A model that writes what it is told to, in harmony of single bytes, behind a server."""

from contextlib import ExitStack, contextmanager
from types import SimpleNamespace

import openai
from byte_vocabulary import WORDS
from serving import serving

from gptoss.chat.formats import HarmonyChat
from gptoss.chat.harmony import HarmonyParser
from gptoss.request.result import Delta, TokenLogprob
from gptoss.server.api import app as server

THINKING = "<|channel|>analysis<|message|>Let me see.<|end|><|start|>assistant"
ANSWER = "<|channel|>final<|message|>It is four.<|return|>"
CALL = '<|channel|>commentary to=functions.add <|constrain|>json<|message|>{"a": 2}<|call|>'


# What is asked of the engine behind an AsyncEngine: one that takes anything.
ROOMY = SimpleNamespace(
    config=SimpleNamespace(context_length=1 << 17),
    info=lambda: {"kv_tokens": 1 << 17},
    check_text=lambda field, characters: None,
)


class OfBytes(HarmonyChat):
    def __init__(self):
        self.asked = []

    def parser(self, continues=None):
        return HarmonyParser(WORDS, continues)

    def render(self, conversation):
        self.asked.append(conversation)
        return SimpleNamespace(ids=[0] * 7)

    def grammar(self, *given, **named):
        self.held = named["hold"]
        return super().grammar(*given, **named)


class Scripted:
    """An AsyncEngine whose model writes `written`, the same for every choice. tokens: how many of
    its tokens, if not all."""

    def __init__(self, written, finish="stop", tokens=None):
        self.written, self.finish, self.params = written, finish, None
        self.tokens = tokens

    engine = ROOMY

    def stream(self, prompt, params, *, loop, priority, client, salt):
        self.params = params
        tokens = WORDS.encode(self.written)[: self.tokens]
        deltas = [
            Delta("", (token,), self.finish if i == len(tokens) - 1 else None, index=index,
                  logprobs=(TokenLogprob(token, bytes([token % 256]), -0.5),)
                  if params.logprobs is not None else None)
            for i, token in enumerate(tokens) for index in range(params.n)
        ]  # fmt: skip
        return Stream(deltas, len(prompt), params.n)


class Stream:
    def __init__(self, deltas, prompt_tokens, choices):
        self._deltas, self.prompt_tokens, self.choices = deltas, prompt_tokens, choices
        self._cancelled, self.timings, self.cancelled = False, [], []

    def fail(self, error):
        raise error

    def cancel(self):
        self._cancelled = True

    end = cancel

    async def __aiter__(self):
        for delta in self._deltas:
            if self._cancelled:
                return
            yield delta


class Scene:
    """`client(written)`: OpenAI's client of a server whose model writes that; chat.asked: what the
    model was shown; engine: the last model."""

    def __init__(self, engine, monkeypatch, stack):
        self.chat, self._real, self._patch, self._stack = OfBytes(), engine, monkeypatch, stack
        monkeypatch.setattr(server, "load_chat", lambda tokenizer: self.chat)

    def client(self, written, finish="stop"):
        self.engine = Scripted(written, finish)
        self._patch.setattr(server, "AsyncEngine", lambda engine: self.engine)
        app = server.create_app(self._real, server.ServerOptions("gpt-oss-20b"))
        address = self._stack.enter_context(serving(app))
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="x", max_retries=0)
        return self._stack.enter_context(client)


@contextmanager
def scene(engine, monkeypatch):
    with ExitStack() as stack:
        yield Scene(engine, monkeypatch, stack)
