"""Each form that rows have, with rows as well-known data sets have them."""

from __future__ import annotations

import datetime
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gptoss.chat import Conversation, Message, parse_messages, parse_tools
from gptoss.errors import Error
from gptoss.train.tune.forms import Reader
from gptoss.train.tune.records import read_records

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a place.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "unit": {"type": "string", "default": None}},
            "required": ["city"],
        },
    },
}


def read(row: dict[str, Any], method: str = "sft", **options: Any) -> Conversation:
    (found,) = Reader(method, **options).read(row, "f:1").conversations
    return found


def brief(messages: Any) -> list[tuple[Any, ...]]:
    """(author, channel, recipient, content, weight) of each."""
    return [(m.author, m.channel, m.recipient, m.content, m.weight) for m in messages]


USER = ("user", None, None, "How warm is it in Ulm?", 1)
CALL = ("assistant", "commentary", "functions.get_weather", '{"city": "Ulm"}', 1)
RESULT = ("functions.get_weather", "commentary", "assistant", "12", 1)
ANSWER = ("assistant", "final", None, "It is 12 degrees.", 1)


def test_openais_form_with_tools() -> None:
    """As OpenAI's guide to fine-tuning has it, with calls in parallel and a weight."""
    row = {
        "messages": [
            {"role": "user", "content": USER[3]},
            {
                "role": "assistant",
                "content": None,
                "weight": 0,
                "tool_calls": [
                    {
                        "id": "call_id",
                        "type": "function",
                        "function": {"name": "get_weather", "arguments": '{"city": "Ulm"}'},
                    }
                ],
            },
            {"role": "tool", "tool_call_id": "call_id", "content": "12"},
            {"role": "assistant", "content": ANSWER[3], "weight": 1},
        ],
        "parallel_tool_calls": False,
        "tools": [WEATHER],
    }
    reader = Reader()
    record = reader.read(row, "f:1")
    (conversation,) = record.conversations
    assert record.form == "messages" and not reader.unused
    assert brief(conversation.messages) == [USER, (*CALL[:4], 0), RESULT, ANSWER]
    assert conversation.tools == tuple(parse_tools([WEATHER]))


def test_the_older_function_call() -> None:
    call = {"name": "get_weather", "arguments": '{"city": "Ulm"}'}
    row = {
        "messages": [
            {"role": "user", "content": USER[3]},
            {"role": "assistant", "content": None, "function_call": call},
            {"role": "function", "name": "get_weather", "content": "12"},
            {"role": "assistant", "content": ANSWER[3]},
        ],
        "functions": [WEATHER["function"]],
    }
    conversation = read(row)
    assert brief(conversation.messages) == [USER, CALL, RESULT, ANSWER]
    assert conversation.tools == tuple(parse_tools([WEATHER]))


@pytest.mark.parametrize("as_text", [False, True])
def test_trls_form_with_tools(as_text: bool) -> None:
    """Arguments are an object with the keys of every other row, calls have no ids."""
    arguments: Any = {"city": "Ulm", "expression": None}
    row = {
        "messages": [
            {"role": "user", "content": USER[3], "tool_calls": None, "name": None},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {
                        "type": "function",
                        "function": {"name": "get_weather", "arguments": arguments},
                    }
                ],
            },
            {"role": "tool", "name": "get_weather", "content": "12", "tool_calls": None},
            {"role": "assistant", "content": ANSWER[3], "tool_calls": None},
        ],
        "tools": json.dumps([WEATHER]) if as_text else [WEATHER],
    }
    conversation = read(row)
    assert brief(conversation.messages) == [USER, CALL, RESULT, ANSWER]
    assert conversation.tools == tuple(parse_tools([WEATHER]))


def test_results_without_ids_go_to_the_calls_they_answer() -> None:
    def call(name: str) -> dict[str, Any]:
        return {"function": {"name": name, "arguments": {}}}

    def authors(*results: dict[str, Any]) -> list[str]:
        row = {
            "messages": [
                {"role": "user", "content": "x"},
                {"role": "assistant", "tool_calls": [call("one"), call("two")]},
                *results,
                {"role": "assistant", "content": "ok"},
            ]
        }
        return [m.author for m in read(row).messages if m.role == "tool"]

    one, two = ({"role": "tool", "name": n, "content": n} for n in ("one", "two"))
    assert authors(two, one) == ["functions.two", "functions.one"]
    nameless = {"role": "tool", "content": "x"}
    assert authors(nameless, nameless) == ["functions.one", "functions.two"]


def test_multilingual_thinking() -> None:
    """The columns of HuggingFaceH4/Multilingual-Thinking, which Arrow has filled with null."""
    row = {
        "reasoning_language": "French",
        "developer": "You are a chatbot.",
        "user": "Why?",
        "analysis": "Hm.",
        "final": "So.",
        "messages": [
            {"content": "reasoning language: French", "role": "system", "thinking": None},
            {"content": "Why?", "role": "user", "thinking": None},
            {"content": "So.", "role": "assistant", "thinking": "Hm."},
        ],
    }
    reader = Reader()
    (conversation,) = reader.read(row, "f:1").conversations
    assert brief(conversation.messages) == [
        ("system", None, None, "reasoning language: French", 1),
        ("user", None, None, "Why?", 1),
        ("assistant", "analysis", None, "Hm.", 1),
        ("assistant", "final", None, "So.", 1),
    ]
    assert set(reader.unused) == {"reasoning_language", "developer", "user", "analysis", "final"}


@pytest.mark.parametrize("key", ["thinking", "reasoning", "reasoning_content"])
def test_thinking_by_all_its_names(key: str) -> None:
    row = {
        "messages": [
            {"role": "user", "content": "x", key: None},
            {"role": "assistant", "content": "y", key: "hm"},
        ]
    }
    assert [m.channel for m in read(row).messages] == [None, "analysis", "final"]


def test_keys_that_mean_nothing_are_counted_not_refused() -> None:
    reader = Reader()
    for _ in range(3):
        reader.read(
            {
                "id": 5,
                "source": "web",
                "score": None,
                "messages": [
                    {"role": "user", "content": "x", "id": "m1", "annotations": None},
                    {"role": "assistant", "content": "y", "audio": {"a": 1}},
                ],
            },
            "f:1",
        )
    assert reader.unused == {"id": 3, "source": 3, "messages: id": 3, "messages: audio": 3}


def test_harmonys_own_fields() -> None:
    row = {
        "messages": [
            {"role": "user", "content": "x"},
            {"role": "assistant", "content": "I look."},
            {
                "role": "assistant",
                "thinking": "hm",
                "recipient": "functions.f",
                "content_type": "<|constrain|>json",
                "content": "",
                "weight": 0,
            },
            {"role": "tool", "name": "functions.f", "content": "2"},
            {"role": "assistant", "channel": "commentary", "content": "It said 2."},
            {"role": "assistant", "content": [{"type": "text", "text": "2"}], "channel": "final"},
        ]
    }
    messages = read(row).messages
    assert brief(messages) == [
        ("user", None, None, "x", 1),
        ("assistant", "commentary", None, "I look.", 1),
        ("assistant", "analysis", None, "hm", 0),
        ("assistant", "commentary", "functions.f", "", 0),
        ("functions.f", "commentary", "assistant", "2", 1),
        ("assistant", "commentary", None, "It said 2.", 1),
        ("assistant", "final", None, "2", 1),
    ]
    assert messages[3].content_type == "<|constrain|>json"


SHAREGPT = [
    {"from": "human", "value": USER[3]},
    {"from": "function_call", "value": '{"name": "get_weather", "arguments": {"city": "Ulm"}}'},
    {"from": "observation", "value": "12"},
    {"from": "gpt", "value": ANSWER[3]},
]


def test_sharegpt() -> None:
    row = {
        "id": "x_0",
        "conversations": SHAREGPT,
        "system": "Be brief.",
        "tools": json.dumps([WEATHER["function"]]),
    }
    reader = Reader()
    record = reader.read(row, "f:1")
    (conversation,) = record.conversations
    system = ("system", None, None, "Be brief.", 1)
    assert brief(conversation.messages) == [system, USER, CALL, RESULT, ANSWER]
    assert [tool.name for tool in conversation.tools] == ["get_weather"]
    assert record.form == "sharegpt" and set(reader.unused) == {"id"}


def test_sharegpt_with_a_system_message_and_roles() -> None:
    said = [{"from": "system", "value": "S"}, *SHAREGPT]
    assert brief(read({"conversations": said, "system": "other"}).messages)[0][3] == "S"
    plain = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    assert len(read({"conversations": plain}).messages) == 2


def test_alpaca() -> None:
    row = {"instruction": "Add.", "input": "1 2", "output": "3", "system": "S", "text": "### …"}
    reader = Reader()
    (conversation,) = reader.read(row, "f:1").conversations
    assert [(m.role, m.content) for m in conversation.messages] == [
        ("system", "S"),
        ("user", "Add.\n\n1 2"),
        ("assistant", "3"),
    ]
    assert set(reader.unused) == {"text"}
    bare = read({"instruction": "Add.", "input": "", "output": "3", "history": [["a", "b"]]})
    assert [m.content for m in bare.messages] == ["a", "b", "Add.", "3"]


def test_prompt_and_completion() -> None:
    """Of TRL: what is learned is the completion."""
    texts = read({"prompt": "The sky is", "completion": " blue."})
    assert [(m.role, m.content) for m in texts.messages] == [
        ("user", "The sky is"),
        ("assistant", " blue."),
    ]
    turn = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    row = {"prompt": [*turn, turn[0]], "completion": [turn[1]]}
    assert [m.weight for m in read(row).messages] == [0, 0, 0, 1]


def pair(row: dict[str, Any]) -> tuple[list[Any], list[Any]]:
    chosen, rejected = Reader("dpo").read(row, "f:1").conversations
    return brief(chosen.messages), brief(rejected.messages)


ASKED = {"role": "user", "content": "What colour is the sky?"}
GOOD, BAD = ({"role": "assistant", "content": text} for text in ("Blue.", "Green."))


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": ASKED["content"], "chosen": "Blue.", "rejected": "Green."},
        {"prompt": [ASKED], "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": [ASKED], "chosen": GOOD, "rejected": BAD, "score_chosen": 9.5},
        {"chosen": [ASKED, GOOD], "rejected": [ASKED, BAD]},
        # as HuggingFaceH4/ultrafeedback_binarized
        {"prompt": ASKED["content"], "chosen": [ASKED, GOOD], "rejected": [ASKED, BAD]},
        {"instruction": ASKED["content"], "input": "", "chosen": "Blue.", "rejected": "Green."},
        {
            "conversations": [{"from": "human", "value": ASKED["content"]}],
            "chosen": {"from": "gpt", "value": "Blue."},
            "rejected": {"from": "gpt", "value": "Green."},
        },
        {
            "input": {"messages": [ASKED], "tools": [], "parallel_tool_calls": True},
            "preferred_output": [GOOD],
            "non_preferred_output": [BAD],
        },
    ],
)
def test_preferences(row: dict[str, Any]) -> None:
    chosen, rejected = pair(row)
    assert chosen[:-1] == rejected[:-1] == [("user", None, None, ASKED["content"], 0)]
    assert chosen[-1] == ("assistant", "final", None, "Blue.", 1)
    assert rejected[-1] == ("assistant", "final", None, "Green.", 1)


def test_what_whole_conversations_share_is_not_learned() -> None:
    """Also a turn before; but of a last turn nothing is shared, even if it begins alike."""
    earlier = [ASKED, GOOD]
    think = {"role": "assistant", "content": "Blue.", "thinking": "hm"}
    other = {"role": "assistant", "content": "Green.", "thinking": "hm"}
    row = {"chosen": [*earlier, ASKED, think], "rejected": [*earlier, ASKED, other]}
    chosen, rejected = pair(row)
    assert [m[4] for m in chosen] == [m[4] for m in rejected] == [0, 0, 0, 1, 1]
    system = {"role": "system", "content": "S"}
    row = {"prompt": [system], "chosen": [ASKED, GOOD], "rejected": [ASKED, BAD]}
    assert [m[0] for m in pair(row)[0]] == ["system", "user", "assistant"]


def test_replies_with_calls() -> None:
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    result = {"role": "tool", "content": "1"}
    row = {"prompt": [ASKED], "chosen": [call, result, GOOD], "rejected": [BAD], "tools": [WEATHER]}
    chosen, _ = pair(row)
    assert [(m[0], m[4]) for m in chosen] == [
        ("user", 0),
        ("assistant", 1),
        ("functions.f", 1),
        ("assistant", 1),
    ]


LOG: dict[str, Any] = {
    "messages": [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ],
    "tools": [WEATHER],
    "reasoning_effort": "high",
    "temperature": 0.5,
    "stream": False,
}
RESPONSE: dict[str, Any] = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1795737600,  # 2026-11-27
    "choices": [
        {
            "index": 0,
            "finish_reason": "stop",
            "message": {
                "role": "assistant",
                "content": "d",
                "reasoning": "hm",
                "reasoning_content": "hm",
                "tool_calls": None,
            },
        },
        {
            "index": 1,
            "finish_reason": "length",
            "message": {"role": "assistant", "content": "d and th"},
        },
    ],
    "usage": {"total_tokens": 9},
}


@pytest.mark.parametrize(
    "row", [{**LOG, "response": RESPONSE}, {"request": LOG, "response": RESPONSE}]
)
def test_a_log_of_the_server(row: dict[str, Any]) -> None:
    """Answers are learned, not what was asked, and not what max_tokens cut."""
    reader = Reader()
    record = reader.read(row, "f:1")
    (conversation,) = record.conversations
    assert record.form == "log" and reader.cut == 1 and not reader.unused
    assert [(m.content, m.weight) for m in conversation.messages] == [
        ("a", 0),
        ("b", 0),
        ("c", 0),
        ("hm", 1),
        ("d", 1),
    ]
    assert conversation.effort == "high" and len(conversation.tools) == 1
    assert conversation.today == datetime.date(2026, 11, 27)
    assert read(row, date="none").today is None


def test_what_chat_saves_and_the_page_exports(tmp_path: Path) -> None:
    said = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": "y", "reasoning": "hm"},
    ]
    saved = tmp_path / "saved.json"
    saved.write_text(json.dumps({"messages": said}, indent=2) + "\n")
    ((where, row),) = read_records(saved, saved.read_bytes())
    assert where == f"{saved}: record 1"
    assert [m.channel for m in read(row).messages] == [None, "analysis", "final"]
    exported = {
        "model": "m",
        "exported": "2026-11-27T00:00:00Z",
        "settings": {"reasoning_effort": "low", "tools": json.dumps([WEATHER]), "top_p": "1"},
        "messages": said,
    }
    reader = Reader()
    (conversation,) = reader.read(exported, "f:1").conversations
    assert conversation.effort == "low" and len(conversation.tools) == 1 and not reader.unused


@pytest.mark.parametrize(
    ("row", "effort"),
    [
        ({}, "medium"),
        ({"reasoning_effort": "low"}, "low"),
        ({"reasoning_effort": "xhigh"}, "high"),
        ({"chat_template_kwargs": {"reasoning_effort": "high"}}, "high"),
    ],
)
def test_effort(row: dict[str, Any], effort: str) -> None:
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    assert read({"messages": messages, **row}).effort == effort


def test_dates() -> None:
    rows = [
        {"messages": [{"role": "user", "content": f"{n}"}, {"role": "assistant", "content": "y"}]}
        for n in range(200)
    ]
    varied = [read(row).today for row in rows]
    assert varied == [read(row).today for row in rows]
    assert len(set(varied)) > 150
    years = {day.year for day in varied if day is not None}
    assert years == {2025, 2026, 2027, 2028, 2029}
    assert read(rows[0], date="2026-11-27").today == datetime.date(2026, 11, 27)
    assert read(rows[0], date="none").today is None
    with pytest.raises(Error, match="date: expected varied, none or a day"):
        Reader(date="yesterday")


@pytest.mark.parametrize(
    ("row", "method", "message"),
    [
        ({"messages": [{"role": "user", "content": "x"}], "tools": [{"type": "web"}]}, "sft",
         "f:1: tools[0].type: expected function"),
        ({"messages": [{"role": "user", "content": "x"}], "tools": "["}, "sft",
         "f:1: tools: expected JSON"),
        ({"messages": [{"role": "user", "content": "x"}], "reasoning_effort": "huge"}, "sft",
         "f:1: reasoning_effort: expected one of"),
        ({"instruction": 1, "output": "x"}, "sft", "f:1: instruction"),
        ({"instruction": "a", "output": "x", "history": ["a"]}, "sft", "f:1: history"),
        ({"messages": [ASKED], "response": {"error": "x"}}, "sft", "f:1: response: expected choi"),
        ({"messages": [ASKED], "response": {"choices": [{}]}}, "sft", "choices[0]: expected a mes"),
        ({"chosen": [GOOD], "rejected": [BAD]}, "dpo", "f:1: expected a prompt, or chosen and rej"),
        ({"chosen": "a", "rejected": "b"}, "dpo", "f:1: expected a prompt"),
        ({"prompt": "a", "chosen": "", "rejected": "b"}, "dpo", "f:1: chosen: expected a reply"),
        ({"chosen": [ASKED, GOOD], "rejected": [ASKED]}, "dpo", "f:1: expected a prompt"),
        ({"prompt": [ASKED], "chosen": [GOOD], "rejected": [BAD, ASKED, BAD]}, "dpo",
         "f:1: rejected: expected assistant messages"),
        ({"input": "a", "preferred_output": [GOOD], "non_preferred_output": [BAD]}, "dpo",
         "f:1: input: expected an object"),
    ],
)  # fmt: skip
def test_broken_rows(row: dict[str, Any], method: str, message: str) -> None:
    with pytest.raises(Error) as error:
        Reader(method).read(row, "f:1")
    assert message in str(error.value) and str(error.value).startswith("f:1: ")


# Files.


ROWS = [{"messages": [{"role": "user", "content": f"{n}", "name": None}]} for n in range(3)]


@pytest.mark.parametrize(
    ("name", "data", "places"),
    [
        ("a.jsonl", "\n\n".join(map(json.dumps, ROWS)), [":1", ":3", ":5"]),
        ("a.json", "\n".join(map(json.dumps, ROWS)), [":1", ":2", ":3"]),
        ("a.json", json.dumps(ROWS, indent=1), [f": record {n}" for n in (1, 2, 3)]),
        ("a.jsonl", "\ufeff" + json.dumps(ROWS), [f": record {n}" for n in (1, 2, 3)]),
    ],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_json_files(tmp_path: Path, name: str, data: str, places: list[str], zipped: bool) -> None:
    path = tmp_path / (name + ".gz" * zipped)
    content = gzip.compress(data.encode()) if zipped else data.encode()
    assert [(w.removeprefix(str(path)), r) for w, r in read_records(path, content)] == [
        *zip(places, ROWS, strict=True)
    ]


def test_parquet(tmp_path: Path) -> None:
    """Columns of structs: every row has every key, and null where it had none."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")

    call = {"function": {"name": "get_weather", "arguments": {"city": "Ulm", "day": None}}}
    rows = [
        {
            "messages": [
                {"role": "user", "content": USER[3], "tool_calls": None},
                {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "content": "12", "tool_calls": None},
                {"role": "assistant", "content": ANSWER[3], "tool_calls": None},
            ],
            "tools": [WEATHER],
            "id": 1,
        },
        {
            "messages": [
                {"role": "user", "content": USER[3]},
                {"role": "assistant", "content": ANSWER[3]},
            ],
            "tools": None,
            "id": None,
        },
    ]
    path = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    reader = Reader()
    found = [reader.read(row, where) for where, row in read_records(path, path.read_bytes())]
    assert brief(found[0].conversations[0].messages) == [USER, CALL, RESULT, ANSWER]
    assert brief(found[1].conversations[0].messages) == [USER, ANSWER]
    assert [len(record.conversations[0].tools) for record in found] == [1, 0]
    assert reader.unused == {"id": 1}
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(Error, match="expected a whole Parquet file"):
        list(read_records(path, path.read_bytes()))


def test_the_same_messages_as_the_server_reads(jsonl: Callable[..., Path]) -> None:
    """What is OpenAI's form is read by the code that reads requests."""
    messages: list[dict[str, Any]] = [
        {"role": "developer", "content": "D"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": "I look.", "reasoning": "hm"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {"id": 7, "function": {"name": "browser.search", "arguments": "{}"}},
                {"id": "x", "function": {"name": "get_weather", "arguments": "{"}},
            ],
        },
        {"role": "tool", "tool_call_id": "x", "content": "r1"},
        {"role": "tool", "tool_call_id": 7, "content": "r2"},
        {"role": "assistant", "content": "ok"},
    ]
    expected: list[Message] = parse_messages(messages)
    assert list(read({"messages": messages}).messages) == expected
