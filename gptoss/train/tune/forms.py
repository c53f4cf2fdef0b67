"""What a row of a data set says: conversations, whatever form they are written in.

docs/finetuning.md has the table of forms. Which one a row has is seen from its keys.
"""

from __future__ import annotations

import datetime
import hashlib
import json
from collections import ChainMap, Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from gptoss.chat import EFFORTS, Conversation, Message, Tool
from gptoss.errors import Error, shown
from gptoss.train.tune.messages import read_messages, read_tools

VARIED, NO_DATE = "varied", "none"
_FIRST_DAY, _DAYS = datetime.date(2025, 1, 1), 1826  # five years
# Efforts that harmony has no word for, as the server reads them.
_EFFORTS = {"none": "low", "minimal": "low", "xhigh": "high", "max": "high"}
_SETTINGS = ("tools", "functions", "reasoning_effort", "chat_template_kwargs")
_SILENT = ("parallel_tool_calls", "system", "settings", *_SETTINGS)
_OUTPUTS = ("preferred_output", "non_preferred_output")
_CUT = ("length", "content_filter")  # finish reasons of answers that are not whole


@dataclass(frozen=True)
class Record:
    """A row. form: its name in docs/finetuning.md.

    conversations: for "sft" what is to be learned, each by itself; for "dpo" the chosen one and the
    rejected one. What is learned has weight 1.
    """

    form: str
    conversations: tuple[Conversation, ...]


@dataclass
class Reader:
    """Reads the rows of one file, and counts what it has come across.

    date: of the conversations: "varied", "none", or a day such as "2026-11-27". exact: texts and
    names are written as they are, with no system message of ours (`--raw`).
    forms: how many rows were read as which. unused: keys that say nothing here, and how often.
    cut: answers in logs that were not whole, which are left out.
    """

    method: str = "sft"
    date: str = VARIED
    exact: bool = False
    forms: Counter[str] = field(default_factory=Counter)
    unused: Counter[str] = field(default_factory=Counter)
    cut: int = 0
    raw: Mapping[str, Any] = field(default_factory=dict, init=False)  # the row being read
    where: str = field(default="", init=False)
    settings: Mapping[str, Any] = field(default_factory=dict, init=False)  # of it: tools, effort
    tools: tuple[Tool, ...] = field(default=(), init=False)

    def __post_init__(self) -> None:
        check_date(self.date)

    def read(self, raw: Mapping[str, Any], where: str) -> Record:
        """A row as conversations. `where` is named in errors: "file.jsonl:12". Raises Error."""
        self.raw, self.where = {k: v for k, v in raw.items() if v is not None}, where
        forms = _PREFERENCES if self.method == "dpo" else _CONVERSATIONS
        fits = (form for form in forms if self.raw.keys() >= set(form[1]))
        form = next(fits, None)
        if form is None:
            raise Error(f"{where}: {self._no_form()}")
        name, _, read = form
        try:
            # Logs, OpenAI's preferences and what the page has exported have them one level down.
            inside = (self.raw.get(key) for key in ("request", "input", "settings"))
            more = (value for value in inside if isinstance(value, Mapping))
            self.settings = dict(ChainMap(*map(dict, more), self.raw))
            tools = self.settings.get("tools") or self.settings.get("functions")
            self.tools = read_tools(tools, where)
            used, found = read(self)
        except RecursionError:
            raise Error(f"{where}: expected a row, found one nested too deep") from None
        self.unused.update(key for key in self.raw if key not in used and key not in _SILENT)
        self.forms[name] += 1
        return replace(found, form=name)

    def _no_form(self) -> str:
        other = _CONVERSATIONS if self.method == "dpo" else _PREFERENCES
        keys = ", ".join(map(str, list(self.raw)[:8])) or "none"
        if any(self.raw.keys() >= set(needed) for _, needed, _ in other):
            method = "sft" if self.method == "dpo" else "dpo"
            return f"expected a row for --method {self.method}, found one for {method}"
        wanted = "chosen and rejected" if self.method == "dpo" else "messages or another form"
        return f"expected {wanted} (docs/finetuning.md has a table), found the keys {keys}"

    # What all forms share.

    def messages(self, raw: object, where: str = "", role: str | None = None) -> list[Message]:
        place = f"{self.where}: {where}" if where else self.where
        return read_messages(raw, place, self.unused, role, self.tools, self.exact)

    def conversation(self, messages: Sequence[Message]) -> Conversation:
        """`messages` with what the row says besides."""
        if self.exact and self.tools:
            self.unused["tools"] += 1  # no message of ours shows them
        return Conversation(
            messages=(*self._system(messages), *messages),
            tools=self.tools,
            effort=self._effort(),
            today=self._day(),
        )

    def _system(self, messages: Sequence[Message]) -> list[Message]:
        """The column "system", where the messages have no such message themselves."""
        text = self.raw.get("system")
        if not text or any(message.role == "system" for message in messages):
            return []
        return self.messages(text, "system", "system")

    def _effort(self) -> str:
        effort = self.settings.get("reasoning_effort")
        for name, key in (("chat_template_kwargs", "reasoning_effort"), ("reasoning", "effort")):
            inside = self.settings.get(name)
            if effort is None and isinstance(inside, Mapping):
                effort = inside.get(key)
        if effort is None:
            return "medium"
        known = _EFFORTS.get(effort, effort) if isinstance(effort, str) else ""
        if known not in EFFORTS:
            raise Error(
                f"{self.where}: reasoning_effort: expected one of {', '.join(EFFORTS)}, found "
                f"{shown(effort)}"
            )
        return known

    def _day(self) -> datetime.date | None:
        """The day that the model is told, the same for every reading of the same row."""
        if self.exact or self.date == NO_DATE:
            return None
        if self.date != VARIED:
            return datetime.date.fromisoformat(self.date)
        response = self.raw.get("response")
        created = response.get("created") if isinstance(response, Mapping) else None
        if type(created) is int and 0 <= created < 1 << 33:
            return datetime.datetime.fromtimestamp(created, datetime.timezone.utc).date()
        text = json.dumps(self.raw, sort_keys=True, default=str)
        number = int.from_bytes(hashlib.sha256(text.encode()).digest()[-8:], "big")
        return _FIRST_DAY + datetime.timedelta(days=number % _DAYS)


def check_date(text: str) -> None:
    """Raises Error unless `text` is "varied", "none" or a day."""
    try:
        if text not in (VARIED, NO_DATE):
            datetime.date.fromisoformat(text)
    except ValueError:
        raise Error(
            f"date: expected {VARIED}, {NO_DATE} or a day such as 2026-11-27, found {shown(text)}",
            field="date",
        ) from None


_Found = tuple[tuple[str, ...], Record]  # which keys were used, and what they say


def _one(conversation: Conversation) -> Record:
    return Record("", (conversation,))


def _unweighted(messages: Sequence[Message]) -> list[Message]:
    return [replace(message, weight=0) for message in messages]


# Conversations.


def _log(reader: Reader) -> _Found:
    """A request of the server and its response; each answer is a conversation."""
    request = reader.raw.get("request", reader.raw)
    response = reader.raw["response"]
    if not isinstance(request, Mapping):
        raise Error(f"{reader.where}: request: expected an object, found {shown(request)}")
    asked = request.get("messages")
    if not isinstance(asked, list):
        raise Error(f"{reader.where}: messages: expected a list of messages, found {shown(asked)}")
    before = _unweighted(reader.messages(asked))
    if isinstance(response, Mapping) and "role" in response:
        response = {"choices": [{"message": response}]}
    choices = response.get("choices") if isinstance(response, Mapping) else None
    if not isinstance(choices, list) or not choices:
        raise Error(f"{reader.where}: response: expected choices, found {shown(choices)}")
    found = []
    for number, choice in enumerate(choices):
        place = f"{reader.where}: response: choices[{number}]"
        if not isinstance(choice, Mapping) or not isinstance(choice.get("message"), Mapping):
            raise Error(f"{place}: expected a message, found {shown(choice)}")
        if choice.get("finish_reason") in _CUT:
            reader.cut += 1
            continue
        # Read together with the question: a result belongs to the call that it answers.
        whole = reader.messages([*asked, choice["message"]])
        learned = [*before, *whole[len(before) :]]
        found.append(reader.conversation(learned))
    return tuple(reader.raw), Record("", tuple(found))


def _messages(reader: Reader) -> _Found:
    messages = reader.messages(reader.raw["messages"])
    return ("messages", "exported", "model"), _one(reader.conversation(messages))


def _sharegpt(reader: Reader) -> _Found:
    messages = reader.messages(reader.raw["conversations"])
    return ("conversations",), _one(reader.conversation(messages))


def _completion(reader: Reader) -> _Found:
    prompt = _unweighted(reader.messages(reader.raw["prompt"], "prompt", "user"))
    reply = reader.messages(reader.raw["completion"], "completion", "assistant")
    return ("prompt", "completion"), _one(reader.conversation([*prompt, *reply]))


def _alpaca(reader: Reader) -> _Found:
    messages = _asked(reader)
    messages += reader.messages(reader.raw["output"], "output", "assistant")
    used = ("instruction", "input", "output", "history")
    return used, _one(reader.conversation(messages))


def _asked(reader: Reader) -> list[Message]:
    """Alpaca's question, after the turns of its history."""
    raw = reader.raw
    texts: list[tuple[str, object]] = []
    history = raw.get("history") or []
    if not isinstance(history, list) or not all(
        isinstance(turn, list) and len(turn) == 2 for turn in history
    ):
        raise Error(f"{reader.where}: history: expected pairs of texts, found {shown(history)}")
    for question, answer in history:
        texts += [("user", question), ("assistant", answer)]
    question, more = raw["instruction"], raw.get("input") or ""
    if not isinstance(question, str) or not isinstance(more, str):
        raise Error(f"{reader.where}: instruction, input: expected texts, found {shown(question)}")
    texts.append(("user", f"{question}\n\n{more}" if more.strip() else question))
    return reader.messages([{"role": role, "content": text} for role, text in texts])


# Preferences.


def _openai_preference(reader: Reader) -> _Found:
    asked, where = reader.raw["input"], f"{reader.where}: input"
    if not isinstance(asked, Mapping):
        raise Error(f"{where}: expected an object with messages, found {shown(asked)}")
    prompt = reader.messages(asked.get("messages"), "input")
    return ("input", *_OUTPUTS), _pair(reader, prompt, _OUTPUTS)


def _preference(reader: Reader) -> _Found:
    """Two replies, and what they answer: named, or what two whole conversations share."""
    keys = ("chosen", "rejected")
    raw = reader.raw
    if "instruction" in raw and "prompt" not in raw:
        return ("instruction", "input", "history", *keys), _pair(reader, _asked(reader), keys)
    name = next((key for key in ("prompt", "messages", "conversations") if key in raw), "")
    prompt = reader.messages(raw[name], name, "user") if name else []
    return (name, *keys), _pair(reader, prompt, keys)


def _pair(
    reader: Reader,
    prompt: list[Message],
    keys: tuple[str, str],
) -> Record:
    replies = [reader.messages(reader.raw[key], key, "assistant") for key in keys]
    for key, reply in zip(keys, replies, strict=True):
        if not reply:
            raise Error(f"{reader.where}: {key}: expected a reply, found an empty one")
    if all(reply[0].role not in ("assistant", "tool") for reply in replies):
        shared = _shared(*replies)
        asked = [(m.author, m.content) for m in prompt]
        # Many sets name the question beside conversations that begin with it.
        if asked and asked == [(m.author, m.content) for m in replies[0][: len(asked)]]:
            prompt = []
        prompt = [*prompt, *replies[0][:shared]]
        replies = [reply[shared:] for reply in replies]
    if not prompt:
        raise Error(
            f"{reader.where}: expected a prompt, or {' and '.join(keys)} as whole conversations, "
            "found replies alone"
        )
    for key, reply in zip(keys, replies, strict=True):
        if not reply or not all(message.role in ("assistant", "tool") for message in reply):
            raise Error(f"{reader.where}: {key}: expected assistant messages, found others")
    if replies[0] == replies[1]:
        raise Error(f"{reader.where}: expected two different replies, found the same one twice")
    before = _unweighted(prompt)
    pair = (reader.conversation([*before, *reply]) for reply in replies)
    return Record("", tuple(pair))


def _shared(one: Sequence[Message], other: Sequence[Message]) -> int:
    """How many messages two conversations begin with alike; an answer is the least that differs."""
    most = min(len(one), len(other)) - 1
    count = next((i for i in range(most) if one[i] != other[i]), most)
    while count and one[count - 1].from_model:  # thinking, say, that both share
        count -= 1
    return count


_Form = tuple[str, tuple[str, ...], Callable[[Reader], _Found]]
_CONVERSATIONS: tuple[_Form, ...] = (
    ("log", ("request", "response"), _log),
    ("log", ("messages", "response"), _log),
    ("messages", ("messages",), _messages),
    ("sharegpt", ("conversations",), _sharegpt),
    ("prompt and completion", ("prompt", "completion"), _completion),
    ("alpaca", ("instruction", "output"), _alpaca),
)
_PREFERENCES: tuple[_Form, ...] = (
    ("OpenAI preference", ("input", *_OUTPUTS), _openai_preference),
    ("preference", ("chosen", "rejected"), _preference),
)
