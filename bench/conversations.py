"""Conversations rendered and parsed, beside OpenAI's openai-harmony in the same run.

    TIKTOKEN_ENCODINGS_BASE=FOLDER python bench/conversations.py   # which holds o200k_base.tiktoken

Medians of several rounds; in each round both take their turn. Both results are compared before.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import Any

import openai_harmony as oh

from gptoss.chat import Conversation, HarmonyChat, HarmonyParser, Message, Tool, encode, parse
from gptoss.chat.render import published_tokenizer

ROUNDS = 7
SENTENCE = "The quick brown fox jumps over 13 lazy dogs, and nobody in Köln truly cares. "
SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "description": "Where."},
        "unit": {"type": "string", "enum": ["celsius", "fahrenheit"], "default": "celsius"},
        "days": {"type": "array", "items": {"type": "integer"}},
    },
    "required": ["city"],
}


def ratio(name: str, ours: Callable[[], Any], theirs: Callable[[], Any], repeat: int) -> None:
    """One row: medians in microseconds, and ours over theirs."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS):
        for function, found in zip((ours, theirs), times, strict=True):
            start = perf_counter()
            for _ in range(repeat):
                function()
            found.append((perf_counter() - start) / repeat * 1e6)
    a, b = map(median, times)
    low, high = (f(x / y for x, y in zip(*times, strict=True)) for f in (min, max))
    print(f"{name:34} {a:12,.0f} {b:12,.0f}   {a / b:5.2f} ({low:.2f} to {high:.2f})", flush=True)


def rendering(chat: HarmonyChat, harmony: Any) -> None:
    """Prompts of one text, and of tools."""
    tools = tuple(Tool(f"tool_{i}", "Does it.", SCHEMA) for i in range(50))
    for name, text, declared, repeat in (
        ("render: Hello", "Hello", (), 100),
        ("render: English, 2,000 letters", (SENTENCE * 30)[:2000], (), 50),
        ("render: English, 200,000 letters", (SENTENCE * 3000)[:200_000], (), 1),
        ("render: ACGT, 20,000 letters", ("ACGTTGCATC" * 2000), (), 3),
        ("render: a, 10,000 letters", "a" * 10_000, (), 3),
        ("render: 50 tools", "Hello", tools, 5),
    ):

        def ours(text: str = text, declared: tuple[Tool, ...] = declared) -> list[int]:
            return chat.render(Conversation((Message("user", content=text),), declared)).ids

        def theirs(text: str = text, declared: tuple[Tool, ...] = declared) -> list[int]:
            messages = [oh.Message.from_role_and_content(oh.Role.SYSTEM, oh.SystemContent.new())]
            if declared:
                described = [
                    oh.ToolDescription.new(tool.name, tool.description, parameters=SCHEMA)
                    for tool in declared
                ]
                content = oh.DeveloperContent.new().with_function_tools(described)
                messages.append(oh.Message.from_role_and_content(oh.Role.DEVELOPER, content))
            messages.append(oh.Message.from_role_and_content(oh.Role.USER, text))
            found: list[int] = harmony.render_conversation_for_completion(
                oh.Conversation.from_messages(messages), oh.Role.ASSISTANT
            )
            return found

        assert ours() == list(theirs()), name
        ratio(name, ours, theirs, repeat)


def parsing(tokenizer: Any, harmony: Any) -> None:
    """An answer with thinking and a call, token by token and at once."""
    for letters, repeat in ((40, 50), (7_000, 3), (100_000, 1)):
        written = (
            f"<|channel|>analysis<|message|>{(SENTENCE * 2000)[:letters]}<|end|><|start|>assistant"
            '<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"a": 1}<|call|>'
        )
        ids = tokenizer.encode(written, "all")

        def ours(ids: list[int] = ids) -> int:
            parser = HarmonyParser(tokenizer)
            for token in ids:
                parser.push(token)
            parser.finish()
            return len(parser.messages)

        def theirs(ids: list[int] = ids) -> int:
            parser = oh.StreamableParser(harmony, role=oh.Role.ASSISTANT)
            for token in ids:
                parser.process(token)
            parser.process_eos()
            return len(parser.messages)

        def at_once(ids: list[int] = ids) -> int:
            return len(parse(ids, tokenizer))

        def theirs_at_once(ids: list[int] = ids) -> int:
            return len(harmony.parse_messages_from_completion_tokens(ids, oh.Role.ASSISTANT))

        assert ours() == theirs() == at_once() == theirs_at_once() == 2
        ratio(f"parse: {len(ids):,} tokens, one by one", ours, theirs, repeat)
        ratio(f"parse: {len(ids):,} tokens, at once", at_once, theirs_at_once, repeat)


def main() -> None:
    tokenizer = published_tokenizer()
    harmony = oh.load_harmony_encoding(oh.HarmonyEncodingName.HARMONY_GPT_OSS)
    encode([(False, "warm")], tokenizer)
    print(f"{'':34} {'gptoss, µs':>12} {'theirs, µs':>12}   ratio (spread)")
    rendering(HarmonyChat(tokenizer), harmony)
    parsing(tokenizer, harmony)


if __name__ == "__main__":
    main()
