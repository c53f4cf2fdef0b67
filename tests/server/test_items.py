"""Input items of /v1/responses: what they mean, what is taken back, what is refused and how."""

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptoss.server.api.encrypted_content import decode_thinking, encode_thinking
from gptoss.server.api.item_memory import ItemMemory
from gptoss.server.api.items import parse_items
from gptoss.server.errors import ApiError

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
USER = {"role": "user", "content": "Weather?"}
THOUGHT = {
    "type": "reasoning",
    "id": "rs_1",
    "summary": [],
    "content": [{"type": "reasoning_text", "text": "They ask for Oslo."}],
}
CALL = {"type": "function_call", "call_id": "call_1", "name": "weather", "arguments": '{"a": 1}'}
RESULT = {"type": "function_call_output", "call_id": "call_1", "output": "20C"}


def said(text, **more):
    part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    return {"type": "message", "role": "assistant", "content": [part], **more}


def read(*items, **options):
    """(author, channel, recipient, content) of each message."""
    return [
        (message.author, message.channel, message.recipient, message.content)
        for message in parse_items(list(items), **options)
    ]


def test_a_text_is_of_the_user():
    assert parse_items("Hello", instructions="Be brief.") == parse_items(
        [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    )


@pytest.mark.parametrize("kind", [{"type": "message"}, {"type": None}, {}])
@pytest.mark.parametrize("role", ["user", "system", "developer"])
def test_messages(kind, role):
    parts = [{"type": "input_text", "text": "One."}, {"type": "input_text", "text": "Two."}]
    assert read({**kind, "role": role, "content": parts}) == [(role, None, None, "One.\nTwo.")]


def test_a_turn_of_thinking_preamble_call_and_answer():
    assert read(USER, THOUGHT, said("I'll look."), CALL, RESULT, said("20C.")) == [
        ("user", None, None, "Weather?"),
        ("assistant", "analysis", None, "They ask for Oslo."),
        ("assistant", "commentary", None, "I'll look."),
        ("assistant", "commentary", "functions.weather", '{"a": 1}'),
        ("functions.weather", "commentary", "assistant", "20C"),
        ("assistant", "final", None, "20C."),
    ]


@pytest.mark.parametrize(
    ("items", "channel"),
    [
        ([], "final"),
        ([USER], "final"),
        ([USER, CALL], "final"),  # of another turn
        ([RESULT], "final"),
        ([said("More."), USER], "final"),
        ([CALL], "commentary"),
        ([THOUGHT, CALL], "commentary"),
        ([said("More."), THOUGHT, CALL, RESULT, USER], "commentary"),
        ([{"id": "rs_gone"}, CALL], "commentary"),
    ],
)
def test_a_text_is_a_preamble_if_a_call_of_its_turn_follows(items, channel):
    asked = [USER, CALL, said("Text."), *items]
    (found,) = (found for found in read(*asked) if found[3] == "Text.")
    assert found[1] == channel


@pytest.mark.parametrize(
    ("phase", "channel"), [("commentary", "commentary"), ("final_answer", "final"), (None, None)]
)
@pytest.mark.parametrize(("after", "otherwise"), [([CALL], "commentary"), ([USER], "final")])
def test_a_phase_says_it_itself(phase, channel, after, otherwise):
    (found,) = (f for f in read(USER, said("Text.", phase=phase), *after) if f[3] == "Text.")
    assert found[1] == channel or (phase is None and found[1] == otherwise)


IDS = ["call_0", "", 5, 5.5, None, True, {"a": [1]}, ["x"], "5"]


@pytest.mark.parametrize("name", IDS)
def test_a_result_belongs_to_the_nearest_earlier_call_of_its_id(name):
    def call(function, identity=name):
        return {**CALL, "name": function, "call_id": identity}

    def result(text):
        return {**RESULT, "call_id": copy.deepcopy(name), "output": text}

    found = read(
        USER, call("one"), result("1"), call("two"), call("other", "another"), result("2"), USER,
        call("three"),
    )  # fmt: skip
    assert [f[0] for f in found if f[3] in "12"] == ["functions.one", "functions.two"]
    with pytest.raises(ApiError, match=r"input\[1\].call_id: expected that of an earlier"):
        read(USER, result("1"), call("late"))


def test_without_an_id_a_result_belongs_to_the_tool_that_it_names_or_the_last_call_without():
    call, result = {**CALL, "call_id": None}, {**RESULT, "call_id": None}
    assert read(CALL, {**result, "name": "clock"})[1][0] == "functions.clock"
    assert read(call, {**result, "name": "clock"})[1][0] == "functions.clock"
    for more in ({}, {"name": ""}, {"name": 5}):
        assert read(call, CALL, {**result, **more})[2][0] == "functions.weather"
        with pytest.raises(ApiError, match=r"input\[1\].call_id: expected that of an earlier"):
            read(CALL, {**result, **more})


def test_a_result_whose_call_is_not_there_belongs_to_the_tool_that_it_names():
    assert read(CALL, {**RESULT, "call_id": "x", "name": "clock"})[1][0] == "functions.clock"
    assert read(CALL, {**RESULT, "name": "clock"})[1][0] == "functions.weather"


@pytest.mark.parametrize(
    ("output", "text"),
    [
        ("20C", "20C"),
        ("", ""),
        (None, ""),
        ([], ""),
        ([{"type": "input_text", "text": "r1"}, {"type": "input_text", "text": "r2"}], "r1\nr2"),
    ],
)
def test_what_a_tool_said(output, text):
    assert read(CALL, {**RESULT, "output": output})[-1][3] == text


@pytest.mark.parametrize(
    ("name", "declared", "recipient"),
    [
        ("weather", [], "functions.weather"),
        ("functions.weather", [], "functions.weather"),
        ("mcp.srv.read", [], "functions.mcp.srv.read"),
        ("browser.search", [], "browser.search"),
        ("container.exec", [], "container.exec"),
        ("python", [], "python"),
        ("python", ["python"], "functions.python"),
        ("pythonic", [], "functions.pythonic"),
        ("", [], "functions."),
        ("Web Search", [], "functions.Web Search"),
    ],
)
def test_any_name_is_taken_back(name, declared, recipient):
    call, result = read({**CALL, "name": name}, RESULT, declared=declared)
    assert call[2] == result[0] == recipient


def test_calls_without_arguments():
    for arguments in ({}, {"arguments": None}):
        call = {key: value for key, value in CALL.items() if key != "arguments"}
        assert read({**call, **arguments})[0][3] == "{}"
    assert read({**CALL, "arguments": '{"'})[0][3] == '{"'  # cut, as it came


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({}, []),
        ({"content": None, "encrypted_content": None}, []),
        ({"content": []}, []),
        ({"content": [{"type": "reasoning_text", "text": "A"}, {"text": "B"}]}, ["A\nB"]),
        ({"content": "A"}, ["A"]),
        ({"encrypted_content": encode_thinking("A")}, ["A"]),
        ({"encrypted_content": encode_thinking("A"), "content": []}, ["A"]),
        ({"summary": [{"type": "summary_text", "text": "S"}]}, ["S"]),
        ({"summary": [{"text": "S"}], "encrypted_content": encode_thinking("A")}, ["A"]),
        ({"summary": [{"text": "S"}], "content": [{"text": "A"}]}, ["A"]),
    ],
)
def test_thinking_in_all_its_forms(given, found):
    items = read({"type": "reasoning", "id": "rs_1", "summary": [], **given})
    assert items == [("assistant", "analysis", None, text) for text in found]


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_packed_thinking_comes_back(text):
    packed = encode_thinking(text)
    assert decode_thinking(packed) == text and packed.isascii()


@given(st.data())
def test_packed_thinking_that_was_changed_is_refused(data):
    packed = encode_thinking(data.draw(st.text(max_size=9)))
    place = data.draw(st.integers(0, len(packed) - 1))
    letter = data.draw(st.sampled_from("Aa0-_=.+/é "))
    changed = data.draw(
        st.sampled_from(
            [packed[:place], packed[:place] + letter + packed[place + 1 :],
             packed[:place] + letter + packed[place:], packed + letter]
        )
    )  # fmt: skip
    if changed == packed:
        return
    with pytest.raises(ApiError, match=r"^input\[1\].encrypted_content: expected what this server"):
        read(USER, {"type": "reasoning", "summary": [], "encrypted_content": changed})


def test_an_unpaired_surrogate_in_thinking():
    assert decode_thinking(encode_thinking("a\ud800b")) == "a?b"


def test_halves_of_characters_are_mended_everywhere():
    half, whole, pair = "a\ud83d", "a\ufffd", "\ud83d\ude00"
    thought = {"type": "reasoning", "content": [{"text": half}]}
    call = {**CALL, "name": half, "arguments": half}
    user = {"role": "user", "content": [{"type": "input_text", "text": half}]}
    found = read(
        user, thought, said(half), call, {**RESULT, "output": half}, said(pair), instructions=half
    )
    assert found == [
        ("developer", None, None, whole),
        ("user", None, None, whole),
        ("assistant", "analysis", None, whole),
        ("assistant", "commentary", None, whole),
        ("assistant", "commentary", f"functions.{whole}", whole),
        (f"functions.{whole}", "commentary", "assistant", whole),
        ("assistant", "final", None, "\U0001f600"),
    ]
    assert parse_items(half)[0].content == whole


class TestReferences:
    """Clients that believe their answers stored send ids."""

    @pytest.mark.parametrize("kind", [{"type": "item_reference"}, {"type": None}, {}])
    def test_what_is_held_is_taken(self, kind):
        memory = ItemMemory()
        items = [THOUGHT, said("I'll look.", id="msg_1"), {**CALL, "id": "fc_1"}]
        for item in items:
            memory.add(item)
        references = [{**kind, "id": item["id"]} for item in items]
        assert read(USER, *references, RESULT, held=memory.get) == read(USER, *items, RESULT)

    def test_the_model_can_do_without_thinking(self):
        assert read(USER, {"id": "rs_gone"}, CALL) == read(USER, CALL)

    def test_but_not_without_what_was_said(self):
        with pytest.raises(ApiError, match=r"input\[1\]: 'msg_gone' is not held here") as caught:
            read(USER, {"type": "item_reference", "id": "msg_gone"})
        assert caught.value.field == "input" and caught.value.status == 400

    def test_the_oldest_are_forgotten(self):
        memory = ItemMemory(max_chars=10_000)
        for number in range(9):
            memory.add({"id": f"rs_{number}", "content": [{"text": "x" * 1000}]})
        held = [number for number in range(9) if memory.get(f"rs_{number}")]
        assert held == list(range(9 - len(held), 9)) and 3 <= len(held) <= 5

    def test_more_than_is_held_at_all(self):
        memory = ItemMemory(max_chars=10_000)
        memory.add({"id": "rs_1", "content": [{"text": "x" * 20_000}]})
        memory.add(THOUGHT | {"id": "rs_2"})
        assert memory.get("rs_1") is None and memory.get("rs_2")


OTHERS = [
    "custom_tool_call", "custom_tool_call_output", "web_search_call", "computer_call", "mcp_call",
    "compaction", "local_shell_call", "image_generation_call", "x", 5, [], {}, True,
]  # fmt: skip


@pytest.mark.parametrize("kind", OTHERS)
def test_items_of_other_kinds_are_refused_by_name(kind):
    with pytest.raises(ApiError) as caught:
        read(USER, {"type": kind, "id": "rs_1", "role": "user", "content": "a"})
    assert str(caught.value).startswith("input[1]: expected a message, reasoning, function_call")
    assert repr(kind) in str(caught.value)


@pytest.mark.parametrize(
    ("item", "place"),
    [
        ({"role": "tool", "content": "a"}, "role"),
        ({"content": "a"}, "role"),
        ({"role": ["user"], "content": "a"}, "role"),
        ({"role": "user"}, "content"),
        ({"role": "user", "content": 5}, "content"),
        ({"role": "user", "content": {"type": "input_text", "text": "a"}}, "content"),
        ({"role": "user", "content": [5]}, "content[0]"),
        ({"role": "user", "content": [{"type": "input_text", "text": 5}]}, "content[0].text"),
        ({"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}, "content[0]"),
        ({"role": "user", "content": [{"type": {}}]}, "content[0]"),
        (said("a", phase="x"), "phase"),
        (said("a", phase={}), "phase"),
        ({"type": "reasoning", "content": 5}, "content"),
        ({"type": "reasoning", "content": [{}]}, "content[0]"),
        ({"type": "reasoning", "summary": {"text": "a"}}, "summary"),
        ({"type": "reasoning", "summary": [5]}, "summary[0]"),
        ({"type": "reasoning", "encrypted_content": {}}, "encrypted_content"),
        ({"type": "reasoning", "encrypted_content": "gAAAAABpPDIU"}, "encrypted_content"),
        ({**CALL, "name": 5}, "name"),
        ({**CALL, "name": None}, "name"),
        ({**CALL, "arguments": {}}, "arguments"),
        ({**RESULT, "output": 5}, "output"),
        ({**RESULT, "output": {}}, "output"),
        ({**RESULT, "output": [{"type": "input_file", "file_id": "x"}]}, "output[0]"),
        ({**RESULT, "call_id": "call_2"}, "call_id"),
        ({"type": "item_reference"}, "id"),
        ({"type": "item_reference", "id": []}, "id"),
    ],
)
def test_what_is_wrong_is_named(item, place):
    with pytest.raises(ApiError) as caught:
        read(CALL, item, instructions="Be brief.")
    assert str(caught.value).startswith(f"input[1].{place}: expected ")
    assert caught.value.field == "input" and caught.value.status == 400


@pytest.mark.parametrize("given", [None, [], 5, {}, True])
def test_an_input_that_is_none(given):
    with pytest.raises(ApiError, match="^input: expected a string or a list of items") as caught:
        parse_items(given)
    assert caught.value.field == "input"


@pytest.mark.parametrize("given", [5, [], {}, False])
def test_instructions_that_are_none(given):
    with pytest.raises(ApiError, match="^instructions: expected a string") as caught:
        parse_items("a", instructions=given)
    assert caught.value.field == "instructions"


@settings(max_examples=300)
@given(st.data())
def test_any_value_anywhere(data):
    """It is read, or refused with the number of the item."""
    items = [
        USER,
        copy.deepcopy(data.draw(st.sampled_from([THOUGHT, CALL, said("a"), USER]))),
        USER,
    ]
    place = items[1]
    while True:
        key = data.draw(st.sampled_from(list(place) if isinstance(place, dict) else [0]))
        if not isinstance(place[key], (dict, list)) or not place[key] or data.draw(st.booleans()):
            place[key] = data.draw(anything)
            break
        place = place[key]
    try:
        assert parse_items(items)
    except ApiError as error:
        assert str(error).startswith("input[1]") and error.field == "input"


def test_log_probabilities_are_not_remembered():
    token = {"token": "a", "logprob": -1.0, "bytes": [97], "top_logprobs": []}
    part = {"type": "output_text", "text": "a", "annotations": [], "logprobs": [token]}
    memory = ItemMemory()
    memory.add({"type": "message", "id": "msg_1", "role": "assistant", "content": [part]})
    held = memory.get("msg_1")
    assert held is not None and "logprobs" not in held["content"][0]
    assert held["content"][0]["text"] == "a" and part["logprobs"] == [token]
