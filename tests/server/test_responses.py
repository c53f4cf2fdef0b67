"""/v1/responses, by OpenAI's own client."""

import json

import httpx
import openai
import pytest
from openai_types import check_event, check_response
from scripted import ANSWER, CALL, THINKING, scene
from serving import serving

from gptoss import Error, SamplingParams
from gptoss.server.api.app import ServerOptions, create_app

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
TOOL = {"type": "function", "name": "add", "parameters": SCHEMA}
NAMED = {"type": "function", "name": "add"}
UNKEEPABLE = {"type": "object", "properties": {"a": {"not": {}}}}
PREAMBLE = "<|channel|>commentary<|message|>I add.<|end|><|start|>assistant"
SECOND = "<|channel|>analysis<|message|>Once more.<|end|><|start|>assistant"
QUESTION = {"role": "user", "content": "Two and two?"}


@pytest.fixture
def ask(engine, monkeypatch):
    """ask(written, **request) → the response, its JSON checked against OpenAI's types; with
    stream=True the events. ask.asked: the conversation that the model was shown last."""
    with scene(engine, monkeypatch) as made:
        client = made.client("")

        def ask(written, *, finish="stop", **request):
            made.engine.written, made.engine.finish = written, finish
            request = {"input": "Two and two?", **request}
            found = client.responses.with_raw_response.create(model="gpt-oss-20b", **request)
            if not request.get("stream"):
                check_response(json.loads(found.text))
                return found.parse()
            found.http_response.read()
            for number, event in enumerate(sent := events_of(found.text)):
                check_event(event)
                assert event["sequence_number"] == number
            return sent

        ask.scene, ask.client = made, client
        yield ask


def events_of(text):
    """The events of a stream, each under its own name, and nothing after the last."""
    events = []
    for block in text.strip().split("\n\n"):
        name, data = block.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    return events


def shown(ask):
    """(author, channel, recipient, content) of each message that the model was shown."""
    return [
        (message.author, message.channel, message.recipient, message.content)
        for message in ask.scene.chat.asked[-1].messages
    ]


def test_thinking_and_an_answer(ask):
    found = ask(THINKING + ANSWER, instructions="Be brief.", reasoning={"effort": "low"})
    assert found.status == "completed" and found.output_text == "It is four."
    thinking, message = found.output
    assert thinking.type == "reasoning" and thinking.content[0].text == "Let me see."
    assert message.role == "assistant" and message.status == "completed"
    assert found.usage.input_tokens == 7 and found.usage.output_tokens_details.reasoning_tokens > 10
    assert found.completed_at >= found.created_at
    assert shown(ask) == [
        ("developer", None, None, "Be brief."), ("user", None, None, "Two and two?"),
    ]  # fmt: skip
    assert ask.scene.chat.asked[-1].effort == found.reasoning.effort == "low"


def test_the_same_streamed(ask):
    events = ask(THINKING + ANSWER, stream=True)
    kinds = [event["type"] for event in events]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.completed"

    def said(kind):
        kind = f"response.{kind}.delta"
        return "".join(event["delta"] for event in events if event["type"] == kind)

    assert said("reasoning_text") == "Let me see." and said("output_text") == "It is four."
    whole = ask(THINKING + ANSWER)
    streamed = events[-1]["response"]
    assert [item["content"] for item in streamed["output"]] == [
        [part.model_dump() for part in item.content] for item in whole.output
    ]
    assert streamed["usage"] == whole.usage.model_dump(exclude_unset=True)


def test_openais_own_helper_puts_a_stream_together(ask):
    ask.scene.engine.written = THINKING + PREAMBLE + CALL
    with ask.client.responses.stream(
        model="gpt-oss-20b", input="Two and two?", tools=[{**TOOL, "strict": True}]
    ) as stream:
        found = [event.type for event in stream]
        response = stream.get_final_response()
    assert found[-1] == "response.completed"
    assert [item.type for item in response.output] == ["reasoning", "message", "function_call"]
    assert response.output[2].parsed_arguments == {"a": 2}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("preamble", ["", PREAMBLE])
def test_a_turn_with_a_call_comes_back_as_it_was(ask, stream, preamble):
    """Whatever output holds is input; thinking before the call is kept, a preamble no answer."""
    written = THINKING + preamble + SECOND + CALL
    found = ask(written, tools=[TOOL], stream=stream)
    output = (
        found[-1]["response"]["output"]
        if stream
        else [item.model_dump(exclude_unset=True) for item in found.output]
    )
    call = output[-1]
    assert (call["name"], call["arguments"]) == ("add", '{"a": 2}')
    result = {"type": "function_call_output", "call_id": call["call_id"], "output": "4"}
    ask(ANSWER, input=[QUESTION, *output, result], tools=[TOOL])
    said = [("assistant", "commentary", None, "I add.")] if preamble else []
    assert shown(ask) == [
        ("user", None, None, "Two and two?"),
        ("assistant", "analysis", None, "Let me see."),
        *said,
        ("assistant", "analysis", None, "Once more."),
        ("assistant", "commentary", "functions.add", '{"a": 2}'),
        ("functions.add", "commentary", "assistant", "4"),
    ]


class TestThinkingThatClientsKeep:
    def test_it_is_packed_where_it_is_asked_for(self, ask):
        include = ["reasoning.encrypted_content"]
        found = ask(THINKING + CALL, tools=[TOOL], include=include, store=False)
        thinking, call = (item.model_dump(exclude_unset=True) for item in found.output)
        packed = {k: thinking[k] for k in ("id", "type", "summary", "encrypted_content")}
        ask(ANSWER, input=[QUESTION, packed, call], tools=[TOOL], include=include)
        assert shown(ask)[1] == ("assistant", "analysis", None, "Let me see.")
        assert ask(THINKING + ANSWER).output[0].encrypted_content is None

    def test_one_of_another_server_is_refused(self, ask):
        item = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAAAABp"}
        with pytest.raises(openai.BadRequestError, match="encrypted_content: expected") as caught:
            ask(ANSWER, input=[QUESTION, item])
        assert caught.value.param == "input"

    def test_items_are_held_for_clients_that_refer_to_them(self, ask):
        found = ask(THINKING + PREAMBLE + CALL, tools=[TOOL], stream=True)[-1]["response"]
        thinking, said, call = found["output"]
        references = [{"type": "item_reference", "id": item["id"]} for item in (thinking, said)]
        result = {"type": "function_call_output", "call_id": call["call_id"], "output": "4"}
        ask(ANSWER, input=[QUESTION, *references, call, result], tools=[TOOL])
        by_reference = shown(ask)
        ask(ANSWER, input=[QUESTION, thinking, said, call, result], tools=[TOOL])
        assert by_reference == shown(ask)

    def test_not_where_nothing_is_to_be_stored(self, ask):
        found = ask(THINKING + ANSWER, store=False)
        assert found.to_dict()["store"] is False
        gone = [{"type": "item_reference", "id": item.id} for item in found.output]
        ask(ANSWER, input=[QUESTION, gone[0]])
        assert len(shown(ask)) == 1
        with pytest.raises(openai.BadRequestError, match=r"input\[1\]: 'msg_.*is not held here"):
            ask(ANSWER, input=[QUESTION, gone[1]])


class TestCuts:
    """What the limit cuts is incomplete, and so is the response."""

    @pytest.mark.parametrize("stream", [False, True])
    @pytest.mark.parametrize(
        ("written", "kind"),
        [
            ("<|channel|>final<|message|>It is", "message"),
            ("<|channel|>analysis<|message|>Let", "reasoning"),
            (CALL.removesuffix(': 2}<|call|>'), "function_call"),
        ],
    )  # fmt: skip
    def test_in_a_message(self, ask, written, kind, stream):
        found = ask(
            THINKING + written, finish="length", max_output_tokens=5, stream=stream, tools=[TOOL]
        )
        if stream:
            assert found[-1]["type"] == "response.incomplete"
            found = openai.types.responses.Response.model_validate(found[-1]["response"])
        assert found.status == "incomplete" and found.max_output_tokens == 5
        assert found.incomplete_details.reason == "max_output_tokens"
        before, cut = found.output
        assert (before.status, cut.status, cut.type) == ("completed", "incomplete", kind)


def test_messages_are_never_run_together(ask):
    texts = ["One.", "Two."]
    written = "<|end|><|start|>assistant".join(
        f"<|channel|>{channel}<|message|>{text}"
        for channel in ("analysis", "commentary", "final")
        for text in texts
    )
    found = ask(written + "<|return|>")
    assert [(item.type, item.content[0].text) for item in found.output] == [
        (kind, text) for kind in ("reasoning", "message", "message") for text in texts
    ]
    assert [item.phase for item in found.output if item.type == "message"] == [
        "commentary", "commentary", "final_answer", "final_answer",
    ]  # fmt: skip


class TestLogprobs:
    @pytest.mark.parametrize(
        ("request_", "logprobs"),
        [
            ({"include": ["message.output_text.logprobs"]}, 0),
            ({"include": ["message.output_text.logprobs"], "top_logprobs": 2}, 2),
            ({"top_logprobs": 3}, 3),
            ({"top_logprobs": 0}, None),
            ({}, None),
        ],
    )
    def test_they_come_where_asked_for(self, ask, request_, logprobs):
        events = ask(THINKING + ANSWER, stream=True, **request_)
        assert ask.scene.engine.params.logprobs == logprobs
        (part,) = events[-1]["response"]["output"][1]["content"]
        assert events[-1]["response"]["top_logprobs"] == (logprobs or 0)
        told = "".join(entry["token"] for entry in part["logprobs"])
        assert told == ("It is four." if logprobs is not None else "")
        deltas = [e["logprobs"] for e in events if e["type"] == "response.output_text.delta"]
        (done,) = (e["logprobs"] for e in events if e["type"] == "response.output_text.done")
        assert [entry for delta in deltas for entry in delta] == done == part["logprobs"]
        assert all(entry["logprob"] == -0.5 for entry in part["logprobs"])

    def test_by_a_real_engine_the_drawn_token_is_always_among_the_likely_ones(self, engine):
        with (
            serving(create_app(engine, ServerOptions("nano"))) as address,
            openai.OpenAI(base_url=f"{address}/v1", api_key="x") as client,
        ):
            found = client.responses.create(
                model="nano", input="Once", temperature=2, max_output_tokens=20, top_logprobs=2,
                extra_body={"seed": 3},
            )  # fmt: skip
        (part,) = found.output[0].content
        assert len(part.logprobs) == 20
        tops = [[other.token for other in entry.top_logprobs] for entry in part.logprobs]
        assert all(entry.token in top for entry, top in zip(part.logprobs, tops, strict=True))
        assert {len(top) for top in tops} == {2, 3}  # some were unlikely


@pytest.mark.parametrize("summary", ["auto", "concise", "detailed", None])
def test_a_summary_of_thinking(ask, summary):
    events = ask(THINKING + ANSWER, stream=True, reasoning={"summary": summary})
    kind = "response.reasoning_summary_text.delta"
    said = "".join(event["delta"] for event in events if event["type"] == kind)
    assert said == ("Let me see." if summary else "")
    assert events[-1]["response"]["reasoning"]["summary"] == summary


def test_what_a_response_repeats(ask):
    request = {
        "instructions": "Be brief.", "max_output_tokens": 99, "metadata": {"a": "b"},
        "parallel_tool_calls": False, "temperature": 0.5, "top_p": 0.5, "user": "me",
        "safety_identifier": "s", "prompt_cache_key": "k", "reasoning": {"summary": "auto"},
        "tools": [{**TOOL, "strict": False, "description": "Adds."}], "tool_choice": "auto",
        "text": {"format": {"type": "json_object"}},
    }  # fmt: skip
    found = ask(THINKING + ANSWER, **request).to_dict()
    expected = {**request, "reasoning": {"effort": "medium", "summary": "auto"}}
    assert {name: found[name] for name in request} == expected


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("more", [{}, {"strict": True, "description": "A sum."}])
def test_a_form_in_that_of_this_api(ask, nested, more):
    pytest.importorskip("llguidance", reason="the extra grammar is missing")
    form = {"name": "sum", "schema": SCHEMA, **more}
    sent = {"type": "json_schema", "json_schema": form} if nested else form
    found = ask(ANSWER, text={"format": {"type": "json_schema", **sent}}).to_dict()
    assert found["text"] == {"format": {"type": "json_schema", **form}}


def test_what_null_stands_for(ask):
    nulls = dict.fromkeys(
        ["instructions", "max_output_tokens", "metadata", "parallel_tool_calls", "temperature",
         "top_p", "user", "safety_identifier", "prompt_cache_key", "reasoning", "tools",
         "tool_choice", "text", "top_logprobs", "include", "store", "stream", "max_tool_calls",
         "service_tier", "previous_response_id", "background", "truncation", "conversation"]
    )  # fmt: skip
    found, missing = ask(ANSWER, extra_body=nulls).to_dict(), ask(ANSWER).to_dict()
    for response in (found, missing):
        for name in ("id", "created_at", "completed_at", "output"):
            del response[name]
    assert found == missing
    assert (found["temperature"], found["top_p"], found["tool_choice"]) == (1.0, 1.0, "auto")
    assert found["text"] == {"format": {"type": "text"}} and found["parallel_tool_calls"] is True


@pytest.mark.parametrize(
    ("choice", "shown"),
    [
        ("none", "none"),
        ("required", "required"),
        (NAMED, NAMED),
        ({"type": "function", "function": {"name": "add"}}, NAMED),
        *[
            (
                {"type": "allowed_tools", "mode": mode, "tools": [NAMED]},
                {"type": "allowed_tools", "mode": mode, "tools": [NAMED]},
            )
            for mode in ("auto", "required")
        ],
    ],
)  # fmt: skip
def test_choices_of_tools_in_the_form_of_this_api(ask, choice, shown):
    pytest.importorskip("llguidance", reason="the extra grammar is missing")
    found = ask(CALL, tools=[TOOL], tool_choice=choice)
    assert found.to_dict()["tool_choice"] == shown


@pytest.mark.parametrize(("parallel", "calls"), [(True, 2), (None, 2), (False, 1)])
def test_parallel_calls(ask, parallel, calls):
    two = CALL.replace("<|call|>", "<|end|><|start|>assistant") + CALL
    found = ask(two, tools=[TOOL], parallel_tool_calls=parallel)
    assert [item.type for item in found.output] == ["function_call"] * calls
    assert found.parallel_tool_calls is (parallel is not False) and found.status == "completed"
    assert len({item.call_id for item in found.output}) == calls


@pytest.mark.parametrize("allowed", [False, None, True])
def test_calls_are_held_to_declared_tools(ask, allowed):
    ask(CALL, tools=[TOOL], extra_body={"allow_undeclared_calls": allowed})
    assert ask.scene.chat.held is (allowed is not True)


@pytest.mark.parametrize(
    ("asked", "effort"),
    [
        ({"reasoning": {"effort": "high"}}, "high"),
        ({"reasoning": {"effort": "minimal"}}, "low"),
        ({"reasoning": {"effort": "xhigh"}}, "high"),
        ({"reasoning": {"effort": None}}, "medium"),
        ({"reasoning_effort": "high"}, "high"),
        ({"reasoning_effort": "high", "reasoning": {"effort": "low"}}, "low"),
        ({"chat_template_kwargs": {"reasoning_effort": "low"}}, "low"),
        ({"think": "low"}, "low"),
    ],
)
def test_efforts_in_all_their_names(ask, asked, effort):
    found = ask(ANSWER, extra_body=asked)
    assert ask.scene.chat.asked[-1].effort == found.reasoning.effort == effort


class TestStrictness:
    """Tools are strict here where they do not say otherwise, as far as they can be."""

    @pytest.mark.parametrize(
        ("tool", "strict"),
        [
            ({}, True),
            ({"strict": None}, True),
            ({"strict": True}, True),
            ({"strict": False}, False),
            ({"parameters": UNKEEPABLE}, False),
            ({"parameters": None}, False),
        ],
    )
    def test_by_default(self, ask, tool, strict):
        pytest.importorskip("llguidance", reason="the extra grammar is missing")
        others = [{**TOOL, "name": "a"}, {**TOOL, "name": "b", "strict": False}]
        found = ask(CALL, tools=[others[0], {**TOOL, **tool}, others[1]])
        assert [each.strict for each in found.tools] == [True, strict, False]

    def test_what_cannot_be_kept_to_and_must_be_is_refused(self, ask):
        with pytest.raises(openai.BadRequestError) as caught:
            ask(CALL, tools=[{**TOOL, "parameters": UNKEEPABLE, "strict": True}])
        assert caught.value.param == "tools"


def test_a_model_that_was_not_taught_it(engine):
    wanted = engine.generate("Once upon a time", SamplingParams(temperature=0, max_tokens=9))[0]
    with (
        serving(create_app(engine, ServerOptions("nano"))) as address,
        openai.OpenAI(base_url=f"{address}/v1", api_key="x") as client,
    ):
        found = client.responses.create(
            model="nano", input="Once upon a time", temperature=0, max_output_tokens=9
        )
    assert found.output_text == wanted.text and found.status == "incomplete"


# What is sent beside a good request, the field that is at fault, and how the message begins.
REFUSED = [
    ({"input": None}, "input", "input: expected a string or a list of items"),
    ({"input": [5]}, "input", "input[0]: expected an item"),
    ({"input": [{"type": "image"}]}, "input", "input[0]: expected a message"),
    ({"input": [QUESTION, {"role": "x"}], "instructions": "a"}, "input", "input[1].role: expected"),
    ({"instructions": 5}, "instructions", "instructions: expected a string"),
    ({"reasoning": 5}, "reasoning", "reasoning: expected an object"),
    ({"reasoning": {"effort": "huge"}}, "reasoning.effort", "reasoning.effort: expected one of"),
    ({"reasoning": {"summary": "x"}}, "reasoning.summary", "reasoning.summary: expected one of"),
    (
        {"reasoning": {"generate_summary": {}}},
        "reasoning.generate_summary",
        "reasoning.generate_summary: expected one of",
    ),
    ({"reasoning_effort": "huge"}, "reasoning_effort", "reasoning_effort: expected one of"),
    ({"text": 5}, "text", "text: expected an object"),
    ({"text": {"format": {"type": "x"}}}, "text.format", "text.format: expected"),
    ({"text": {"format": {"type": "json_schema"}}}, "text.format", "text.format.schema: expected"),
    ({"text": {"verbosity": "x"}}, "text.verbosity", "text.verbosity: this server cannot"),
    ({"max_output_tokens": "many"}, "max_output_tokens", "max_output_tokens: "),
    ({"max_output_tokens": 0}, "max_output_tokens", "max_output_tokens: "),
    ({"include": ["banana"]}, "include", "include[0]: expected one of"),
    ({"include": "reasoning.encrypted_content"}, "include", "include: expected a list"),
    ({"include": [[]]}, "include", "include[0]: expected one of"),
    ({"top_logprobs": "x"}, "top_logprobs", "top_logprobs: "),
    ({"top_logprobs": False}, "top_logprobs", "top_logprobs: "),
    ({"top_logprobs": 1000}, "top_logprobs", "top_logprobs: "),
    ({"metadata": 5}, "metadata", "metadata: expected an object"),
    ({"metadata": {"a": 5}}, "metadata", "metadata: expected an object"),
    ({"user": 5}, "user", "user: expected a string"),
    ({"safety_identifier": []}, "safety_identifier", "safety_identifier: expected a string"),
    ({"prompt_cache_key": {}}, "prompt_cache_key", "prompt_cache_key: expected a string"),
    ({"store": "no"}, "store", "store: expected true or false"),
    ({"parallel_tool_calls": 5}, "parallel_tool_calls", "parallel_tool_calls: expected true"),
    ({"max_tool_calls": "x"}, "max_tool_calls", "max_tool_calls: expected"),
    ({"previous_response_id": "x"}, "previous_response_id", "previous_response_id: "),
    ({"conversation": "x"}, "conversation", "conversation: "),
    ({"background": True}, "background", "background: "),
    ({"prompt": {"id": "x"}}, "prompt", "prompt: "),
    ({"tools": [{"type": "web_search"}]}, "tools", "tools[0].type: expected function"),
]  # fmt: skip


@pytest.fixture(scope="module")
def nano(engine):
    with serving(create_app(engine, ServerOptions("nano"))) as address:
        yield address


@pytest.mark.parametrize(("body", "field", "message"), REFUSED)
def test_what_cannot_be_answered_is_named(nano, body, field, message):
    body = {"input": "Once", "max_output_tokens": 2, **body}
    answer = httpx.post(f"{nano}/v1/responses", json=body)
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["type"] == "invalid_request_error"
    assert error["param"] == field and error["message"].startswith(message), error


@pytest.mark.parametrize("stream", [False, True])
def test_halves_of_characters_in_what_is_repeated(ask, stream):
    """JavaScript's clients cut texts in the middle of a character."""
    half = "a\ud83d"
    request = {
        "model": "gpt-oss-20b", "input": half, "instructions": half, "metadata": {half: half},
        "user": half, "safety_identifier": half, "prompt_cache_key": half, "stream": stream,
        "tools": [{**TOOL, "description": half, "strict": False}],
    }  # fmt: skip
    ask.scene.engine.written = ANSWER
    found = httpx.post(
        f"{ask.client.base_url}responses",
        content=json.dumps(request),
        headers={"Content-Type": "application/json"},
    )
    assert found.status_code == 200
    response = events_of(found.text)[-1]["response"] if stream else found.json()
    check_response(response)
    mended = "a\ufffd"
    for name in ("instructions", "user", "safety_identifier", "prompt_cache_key"):
        assert response[name] == mended
    assert response["metadata"] == {mended: mended}
    assert response["tools"][0]["description"] == mended


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e999", "[" * 100_000 + "]" * 100_000])
@pytest.mark.parametrize("stream", ["true", "false"])
@pytest.mark.parametrize(
    "body",
    ['"metadata": {"a": VALUE}', '"max_tool_calls": VALUE',
     '"tools": [{"type": "function", "name": "f", "parameters": {"default": VALUE}}]',
     '"tools": [{"type": "function", "name": "f", "description": VALUE}]',
     '"input": [{"type": "reasoning", "content": VALUE}]',
     '"input": [{"type": "function_call", "name": "f", "call_id": VALUE, "arguments": VALUE}]'],
)  # fmt: skip
def test_values_that_json_has_not(nano, value, stream, body):
    written = f'{{"input": "a", "max_output_tokens": 2, "stream": {stream}, {body}}}'
    answer = httpx.post(
        f"{nano}/v1/responses",
        content=written.replace("VALUE", value),
        headers={"Content-Type": "application/json"},
    )
    assert answer.status_code == 400 and answer.json()["error"]["message"], answer.text


def test_a_prompt_that_is_too_long(nano):
    answer = httpx.post(f"{nano}/v1/responses", json={"input": "a " * 5000})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, "input")
    assert error["code"] == "context_length_exceeded"


def test_a_step_that_fails_ends_the_events_with_a_failure(engine, before_step):
    def fails(*arrays):
        raise Error("no luck")

    before_step(engine, fails)
    with serving(create_app(engine, ServerOptions("nano"))) as address:
        body = {"input": "a", "stream": True}
        answer = httpx.post(f"{address}/v1/responses", json=body)
        *_, said, failed = events_of(answer.text)
        check_event(said), check_event(failed)
        assert (said["type"], said["message"]) == ("error", "no luck")
        assert failed["type"] == "response.failed" and failed["response"]["status"] == "failed"
        assert failed["response"]["error"] == {"code": "server_error", "message": "no luck"}
        with openai.OpenAI(base_url=f"{address}/v1", api_key="x", max_retries=0) as client:
            with pytest.raises(openai.APIError, match="no luck"):  # by the stream itself
                list(client.responses.create(model="nano", input="a", stream=True))
