"""Does a model speak harmony: call a tool, use what it said, think little and much?"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from gptoss.chat import (
    ANALYSIS,
    CALL,
    COMMENTARY,
    FINAL,
    FUNCTIONS,
    JSON_TYPE,
    START,
    Conversation,
    HarmonyChat,
    Message,
    Tool,
    encode,
    load_chat,
    message_segments,
)
from gptoss.errors import shown
from gptoss.eval.outcome import Outcome, Skipped
from gptoss.eval.session import Session
from gptoss.request import Completion, SamplingParams

WEATHER = Tool(
    "get_weather",
    "The weather in a city, now.",
    {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
)
ASKED = "What is the weather in Paris right now?"
SAID = '{"city": "Paris", "temperature_celsius": 21, "sky": "clear"}'
DEGREES = "21"
SUM, RESULT = "What is 17 * 23? Answer with the number alone.", "391"
CALL_TOKENS = 256
EFFORT_TOKENS = {"low": 256, "high": 512}
MADE_UP_TOKENS = 48  # at most, of weights that never come to an end by themselves


class Generates(Protocol):
    """What is needed of an engine."""

    def generate(self, prompts: list[int], params: SamplingParams) -> Sequence[Completion]: ...


def harmony_of(session: Session) -> HarmonyChat:
    """How the model takes conversations. Raises Skipped where that is not harmony."""
    chat = load_chat(session.tokenizer)
    if not isinstance(chat, HarmonyChat):
        raise Skipped(f"the model was not taught conversations: {chat.why}")
    return chat


def read(chat: HarmonyChat, ids: Iterable[int]) -> list[Message]:
    """The messages in what stands behind ``<|start|>assistant``."""
    parser = chat.parser()
    for token in ids:
        parser.push(token)
    parser.finish()
    return parser.messages


def check_format(session: Session) -> Outcome:
    """A call and its result, written as harmony with the model's vocabulary and read again."""
    chat, tokenizer = harmony_of(session), session.tokenizer
    recipient = FUNCTIONS + WEATHER.name
    thinking = Message("assistant", ANALYSIS, content="The user asks for the weather: <|end|> ☂")
    call = Message("assistant", COMMENTARY, recipient, JSON_TYPE, '{"city": "Paris"}')
    written = [*message_segments(thinking)[2:], *message_segments(call)]
    found = read(chat, encode(written, tokenizer))
    if found != [thinking, call]:
        return Outcome(f"expected to read {shown([thinking, call])}, found {shown(found)}", True)
    names = [name for name in (START, CALL) if name in tokenizer.special_tokens]
    ids = ", ".join(f"{name} {tokenizer.special_tokens[name]}" for name in names)
    return Outcome(f"thinking and a call are written and read again; {ids}")


def check_tool_call(session: Session) -> Outcome:
    """The model is asked for the weather, with a tool that knows it, and told what that said."""
    chat = harmony_of(session)
    limit = MADE_UP_TOKENS if session.synthetic else CALL_TOKENS
    return _judged(session, tool_call(session.engine(), chat, limit))


def tool_call(engine: Generates, chat: HarmonyChat, limit: int = CALL_TOKENS) -> Outcome:
    """One call and its answer. Failed where the call is none, or its result is not made use of."""
    user = Message("user", content=ASKED)
    asked = Conversation((user,), (WEATHER,), effort="low")
    first, count = _answer(engine, chat, asked, limit)
    call = next((message for message in first if message.is_call), None)
    details = tuple(map(_shown_message, first))
    figures: dict[str, Any] = {"messages": [_as_json(message) for message in first]}
    if call is None:
        line = f"expected a call of {WEATHER.name}, found none in {count} tokens"
        return Outcome(line, True, figures, details)
    if call.recipient != FUNCTIONS + WEATHER.name or "paris" not in _city(call.content).lower():
        line = (
            f'expected {WEATHER.name}({{"city": "Paris"}}), found {call.recipient}({call.content})'
        )
        return Outcome(line, True, figures, details)
    result = Message(call.recipient, COMMENTARY, content=SAID)
    told = Conversation((user, *first, result), (WEATHER,), effort="low")
    second, more = _answer(engine, chat, told, limit)
    details += tuple(map(_shown_message, second))
    figures["messages"] += [_as_json(message) for message in second]
    answer = "".join(message.content for message in second if message.is_answer)
    line = f"called {WEATHER.name}({call.content}), then said {shown(answer)}"
    if DEGREES not in answer:
        return Outcome(f"{line}: expected {DEGREES} in it", True, figures, details)
    return Outcome(f"{line} ({count} and {more} tokens)", False, figures, details)


def check_effort(session: Session) -> Outcome:
    """The same question with effort low and high."""
    chat = harmony_of(session)
    limit = MADE_UP_TOKENS if session.synthetic else max(EFFORT_TOKENS.values())
    return _judged(session, efforts(session.engine(), chat, limit))


def efforts(
    engine: Generates, chat: HarmonyChat, most: int = max(EFFORT_TOKENS.values())
) -> Outcome:
    """A sum, with little and with much thinking. Failed where an answer is wrong or missing.

    most: tokens of an answer, if that is less than EFFORT_TOKENS. One that is not reached in so
    many is no failure while the thinking is in its channel.
    """
    parts, details, figures, failed = [], [], {}, False
    for effort, tokens in EFFORT_TOKENS.items():
        limit = min(tokens, most)
        asked = Conversation((Message("user", content=SUM),), effort=effort)
        messages, count = _answer(engine, chat, asked, limit)
        thought = sum(len(each.content) for each in messages if each.channel == ANALYSIS)
        answer = "".join(each.content for each in messages if each.channel == FINAL)
        cut = count >= limit and thought > 0 and not answer
        good = RESULT in answer or cut
        failed = failed or not good
        said = f"not reached in {limit} tokens" if cut else f"answer {shown(answer)}"
        if not good:
            said += f", expected {RESULT}"
        parts.append(f"{effort}: {thought} characters of thinking, {said}")
        details += [f"{effort}: {_shown_message(each)}" for each in messages]
        figures[effort] = {"tokens": count, "thinking": thought, "answer": answer, "good": good}
    return Outcome("; ".join(parts), failed, figures, tuple(details))


def _judged(session: Session, found: Outcome) -> Outcome:
    """As it is of a model that learned something; weights that are made up write nonsense."""
    if session.synthetic and found.failed:
        return Outcome(f"{found.line} (of weights that are made up)", False, found.figures)
    return found


def _answer(
    engine: Generates,
    chat: HarmonyChat,
    conversation: Conversation,
    limit: int,
) -> tuple[list[Message], int]:
    """(the messages that the model writes, how many tokens that took), greedily."""
    params = SamplingParams(max_tokens=limit, temperature=0.0, stop_token_ids=sorted(chat.stop_ids))
    (completion,) = engine.generate(chat.render(conversation).ids, params)
    messages = [each for each in read(chat, completion.token_ids) if each.from_model]
    return messages, len(completion.token_ids)


def _city(arguments: str) -> str:
    """What a call's arguments say of the city; "" where they are not as they should be."""
    try:
        found = json.loads(arguments)
    except (ValueError, RecursionError):
        return ""
    city = found.get("city") if isinstance(found, dict) else None
    return city if isinstance(city, str) else ""


def _shown_message(message: Message) -> str:
    to = f" to {message.recipient}" if message.recipient else ""
    return f"{message.channel}{to}: {message.content!r}"


def _as_json(message: Message) -> dict[str, Any]:
    return {
        "channel": message.channel,
        "recipient": message.recipient,
        "content": message.content,
    }
