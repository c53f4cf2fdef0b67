"""What a model wrote, printed by /v1/responses and sent back, is in the next prompt as it was."""

import asyncio

from byte_vocabulary import WORDS
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gptoss.chat import HarmonyParser, Message, encode, message_segments, render
from gptoss.request import Delta
from gptoss.server.api.answer import Usage
from gptoss.server.api.choice import Choice
from gptoss.server.api.items import parse_items
from gptoss.server.api.response_events import Response
from gptoss.server.api.response_output import ThinkingForms

TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
KINDS = [
    ("analysis", None, None),
    ("commentary", None, None),
    ("final", None, None),
    ("commentary", "functions.weather", "<|constrain|>json"),
    ("commentary", "functions.mcp.srv.read", "<|constrain|>json"),
    ("commentary", "browser.search", "<|constrain|>json"),
    ("commentary", "python", "<|constrain|>json"),
]
TEXTS = st.text(min_size=1, max_size=8) | st.sampled_from(
    ["to=user", "assistant", " ", "\n\n", "{}", "é\U0001f600"]
)
TURNS = st.lists(st.tuples(st.sampled_from(KINDS), TEXTS), min_size=1, max_size=6)
USER = {"role": "user", "content": "Weather?"}


def printed(turn, **options):
    """The output of a response whose model writes these messages, token by token."""
    segments = [part for message in turn for part in message_segments(message)]
    author = segments[1][1].removeprefix("assistant")  # of the first message it is in the prompt
    tokens = encode([(False, author), *segments[2:]] if author else segments[2:], WORDS)
    choice = Choice(0, HarmonyParser(WORDS), can_call=True)
    pieces = [
        piece
        for i, token in enumerate(tokens)
        for piece in choice.take(Delta("", (token,), "stop" if i == len(tokens) - 1 else None))
    ]

    class Written:
        usage = Usage()

        async def __aiter__(self):
            for piece in pieces:
                yield piece

    return asyncio.run(Response(Written(), {}, **options).whole())["output"]


@settings(max_examples=150, deadline=None)
@given(TURNS, st.booleans(), st.booleans(), st.booleans())
def test_the_same_prompt(turn, packed, answered, declared):
    """Whether the client keeps thinking as text or packed, whether tools are declared, and
    whether the conversation goes on with what the tools said or with a user."""
    turn = [
        Message("assistant", channel, recipient, kind, text)
        for (channel, recipient, kind), text in turn
        if recipient is None or text.strip()  # a call of blanks is one without arguments: {}
    ]
    assume(turn)
    output = printed(turn, thinking=ThinkingForms(packed=packed))
    if packed:
        output = [{**item, "content": None} if item["type"] == "reasoning" else item
                  for item in output]  # fmt: skip
    then_items, then = [USER], [Message("user", content="Weather?")]
    if answered:
        calls = [item["call_id"] for item in output if item["type"] == "function_call"]
        then_items = [
            {"type": "function_call_output", "call_id": call, "output": f"said {i}"}
            for i, call in enumerate(calls)
        ]
        then = [
            Message(call.recipient, "commentary", "assistant", content=f"said {i}")
            for i, call in enumerate(message for message in turn if message.is_call)
        ]
    tools = [TOOL] if declared else []
    names = [tool["function"]["name"] for tool in tools]
    read = parse_items([USER, *output, *then_items], declared=names)
    wanted = [Message("user", content="Weather?"), *turn, *then]
    assert render(read, tools=tools, tokenizer=WORDS).ids == (
        render(wanted, tools=tools, tokenizer=WORDS).ids
    )
