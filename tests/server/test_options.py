"""Every option of the table, on every route that has it, asked of a server; keys that nobody knows;
and what people write in place of the values that this server's own documentation has.
"""

import asyncio
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import httpx
import pytest

from gptoss.errors import Error
from gptoss.server.api.app import ServerOptions, create_app, ignored_header
from gptoss.server.api.option_table import STRICT, TABLE
from gptoss.server.api.option_values import anything
from gptoss.server.api.options import read_options
from gptoss.server.errors import ApiError

ROOT = Path(__file__).parents[2]
PATHS = {
    "chat": "/v1/chat/completions",
    "responses": "/v1/responses",
    "completions": "/v1/completions",
    "tokenize": "/tokenize",
    "detokenize": "/detokenize",
}
SAID = [{"role": "user", "content": "Once"}]
GOOD = {
    "chat": {"messages": SAID, "max_tokens": 2},
    "responses": {"input": "Once", "max_output_tokens": 2},
    "completions": {"prompt": "Once", "max_tokens": 2},
    "tokenize": {"prompt": "Once"},
    "detokenize": {"tokens": [5]},
}
SCHEMA = {"type": "object"}
FORMAT = {"type": "json_schema", "name": "x", "schema": SCHEMA}
# A value of each option that is not refused, and what else a request with it needs.
VALUES = {
    "model": "nano",
    "messages": SAID,
    "input": [{"role": "user", "content": "Once"}],
    "instructions": "Be brief.",
    "prompt": ["Once", [5, 6]],
    "tools": [],
    "tool_choice": "auto",
    "parallel_tool_calls": False,
    "allow_undeclared_calls": True,
    "stream": False,
    "n": 2,
    "best_of": 1,
    "max_completion_tokens": 2,
    "max_tokens": 2.0,
    "max_output_tokens": 2,
    "n_predict": 2,
    "min_tokens": 1,
    "stop": "x",
    "stop_token_ids": [7],
    "include_stop_str_in_output": True,
    "ignore_eos": True,
    "temperature": 0,
    "top_p": 0.5,
    "top_k": 3.0,
    "min_p": 0.1,
    "presence_penalty": 1,
    "frequency_penalty": -0.5,
    "repetition_penalty": 1.1,
    "repeat_penalty": 1.1,
    "logit_bias": {"5": 1.5},
    "seed": -(1 << 63),
    "priority": -3,
    "cache_salt": "mine",
    "top_logprobs": 2,
    "include": ["message.output_text.logprobs"],
    "prompt_logprobs": 1,
    "return_token_ids": True,
    "return_tokens_as_token_ids": True,
    "response_format": {"type": "json_object", "schema": SCHEMA},
    "text.format": FORMAT,
    "json_schema": SCHEMA,
    "grammar": 'root ::= "a"',
    "guided_json": SCHEMA,
    "guided_regex": "a+",
    "guided_choice": ["a"],
    "guided_grammar": 'start: "a"',
    "structured_outputs.json": SCHEMA,
    "structured_outputs.regex": "a+",
    "structured_outputs.choice": ["a"],
    "structured_outputs.grammar": 'root ::= "a"',
    "structured_outputs.json_object": True,
    "structured_outputs.disable_fallback": True,
    "structured_outputs.backend": "auto",
    "guided_decoding_backend": "auto",
    "reasoning_effort": "minimal",
    "reasoning.effort": "xhigh",
    "reasoning.summary": "auto",
    "reasoning.generate_summary": "auto",
    "chat_template_kwargs.reasoning_effort": "low",
    "think": True,
    "include_reasoning": False,
    "continue_final_message": False,
    "add_generation_prompt": True,
    "metadata": {"a": "b"},
    "user": "me",
    "safety_identifier": "x",
    "prompt_cache_key": "x",
    "prompt_cache_retention": "24h",
    "prompt_cache_options": {"mode": "explicit"},
    "service_tier": "auto",
    "store": False,
    "truncation": "auto",
    "max_tool_calls": 3,
    "request_id": "x",
    "session_id": "x",
    "stream_interval": 2,
    "id_slot": -1,
    "n_keep": -1,
    "sse_ping_interval": 5,
    "chat_template_content_format": "string",
    "skip_special_tokens": True,
    "spaces_between_special_tokens": False,
    "dynatemp_exponent": 1.0,
    "mirostat_tau": 5.0,
    "mirostat_eta": 0.1,
    "dry_base": 1.75,
    "dry_allowed_length": 2,
    "dry_penalty_last_n": 64,
    "dry_sequence_breakers": ["\n"],
    "xtc_threshold": 0.1,
    "adaptive_decay": 0.9,
    "keep_alive": "5m",
    "content": "Once",
    "add_special_tokens": True,
    "add_special": True,
    "parse_special": True,
    "return_token_strs": True,
    "with_pieces": True,
    "tokens": [5, 6],
    "echo": True,
    "logprobs": True,
    "stream_options.include_usage": True,
    "stream_options.continuous_usage_stats": True,
    "stream_options.include_obfuscation": True,
}
BESIDE = {
    "top_logprobs": {"logprobs": True, "include": ["message.output_text.logprobs"]},
    "messages": {"prompt": None},
    "content": {"prompt": None},
}
STREAMED = "stream_options."
CASES = [(route, option) for option in TABLE for route in option.routes]
TAKEN = [case for case in CASES if case[1].verdict != "refused"]
REFUSED = [case for case in CASES if case[1].verdict == "refused"]


def named(cases):
    return pytest.mark.parametrize(
        ("route", "option"), cases, ids=[f"{route}-{option.name}" for route, option in cases]
    )


@pytest.fixture(scope="module")
def ask(engine):
    """(status, JSON or None of a stream, headers) of a request."""
    app = create_app(engine, ServerOptions("nano"))

    async def post(path, body):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            answer = await client.post(path, json=body)
            kind = answer.headers["content-type"]
            found = answer.json() if kind.startswith("application/json") else None
            return answer.status_code, found, answer.headers

    return lambda route, body: asyncio.run(post(PATHS[route], body))


def body_with(route, name, value, **more):
    """A good request of the route with an option in its place."""
    body = {**GOOD[route], **more}
    *outer, inner = name.split(".")
    place = body
    for each in outer:
        place = place.setdefault(each, {})
    place[inner] = value
    return body


def test_every_option_stands_once_for_each_route():
    places = [(option.name, route) for option in TABLE for route in option.routes]
    assert len(set(places)) == len(places)
    assert {option.name for option in TABLE if option.verdict != "refused"} == set(VALUES)
    assert all(option.says and option.of for option in TABLE)


def test_the_page_is_the_table():
    spec = spec_from_file_location("document_options", ROOT / "tools" / "document_options.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.PAGE.read_text(encoding="utf-8") == module.page()


@named(CASES)
def test_null_is_the_same_as_no_key(route, option):
    body = body_with(route, option.name, None)
    assert read_options(body, route).ignored == []


@named(TAKEN)
def test_what_is_taken(ask, route, option):
    if option.form is not None:
        pytest.importorskip("llguidance", reason="the extra grammar is missing")
    needed = BESIDE.get(option.name, {})
    more = {key: value for key, value in needed.items() if key in _names(route)}
    if option.name.startswith(STREAMED):
        more["stream"] = True
    value = "Once" if (route, option.name) == ("tokenize", "prompt") else VALUES[option.name]
    status, found, headers = ask(route, body_with(route, option.name, value, **more))
    assert status == 200, found
    assert "x-gptoss-ignored" not in headers


def _names(route):
    return {option.name for option in TABLE if route in option.routes}


@named(REFUSED)
@pytest.mark.parametrize(
    "value", ["something", [1], {"a": 1}, 77], ids=["text", "list", "object", "number"]
)
def test_what_is_refused(route, option, value):
    with pytest.raises(ApiError) as caught:
        read_options(body_with(route, option.name, value), route)
    error = caught.value
    assert (error.status, error.field, error.code) == (400, option.name, "unsupported_parameter")
    assert option.says in str(error)


@named([case for case in REFUSED if case[1].harmless(False)])
@pytest.mark.parametrize("value", [False, "", 0, [], {}], ids=repr)
def test_asking_for_nothing_is_no_fault(route, option, value):
    assert read_options(body_with(route, option.name, value), route).ignored == []


@pytest.mark.parametrize(
    ("route", "name", "value"),
    [
        ("completions", "typical_p", 1.0),
        ("completions", "typical_p", 1),
        ("chat", "length_penalty", 1.0),
        ("chat", "skip_special_tokens", True),
        ("chat", "cache_prompt", True),
        ("chat", "modalities", ["text"]),
        ("chat", "verbosity", "medium"),
        ("responses", "text.verbosity", "medium"),
        ("chat", "reasoning_format", "auto"),
        ("chat", "thinking_token_budget", -1),
        ("chat", "function_call", "auto"),
        ("chat", "repeat_last_n", -1),
    ],
)
def test_what_an_option_is_elsewhere_by_itself(ask, route, name, value):
    status, _, headers = ask(route, body_with(route, name, value))
    assert status == 200 and "x-gptoss-ignored" not in headers


@pytest.mark.parametrize(
    ("route", "name", "value"),
    [
        ("chat", "typical_p", True),  # which is 1 to Python
        ("chat", "thinking_token_budget", 0),
        ("chat", "repeat_last_n", 0),
        ("chat", "cache_prompt", False),
        ("chat", "reasoning_format", "none"),
        ("chat", "modalities", ["text", "audio"]),
    ],
)
def test_what_asks_for_something_all_the_same(ask, route, name, value):
    status, found, _ = ask(route, body_with(route, name, value))
    assert status == 400 and found["error"]["param"] == name


@named([case for case in TAKEN if case[1].read is not anything])
def test_a_value_of_another_kind_names_its_option(route, option):
    with pytest.raises((Error, ApiError)) as caught:
        options = read_options(body_with(route, option.name, {"a": {"b": 1}}), route)
        if option.param:
            with options.named():
                options.sampling()
    assert caught.value.field == option.name


@named([case for case in TAKEN if case[1].param])
def test_what_the_sampler_is_told(route, option):
    """That a parameter does what it says, the engine's own tests show."""
    plain = read_options(GOOD[route], route).sampling()
    options = read_options(body_with(route, option.name, VALUES[option.name]), route)
    found, before = getattr(options.sampling(), option.param), getattr(plain, option.param)
    wanted = {"5": {5: 1.5}, "x": ("x",)}.get(str(next(iter(VALUES[option.name]))), None) if (
        option.name in ("logit_bias", "stop")
    ) else VALUES[option.name]  # fmt: skip
    if option.name == "seed":
        wanted %= 1 << 64
    if option.name == "stop_token_ids":
        wanted = (7,)
    assert found == wanted
    assert option.param == "max_tokens" or found != before


@pytest.mark.parametrize(
    ("route", "sent", "name", "wanted"),
    [
        ("chat", {"top_k": -1}, "top_k", 0),
        ("completions", {"max_tokens": -1}, "max_tokens", None),
        ("chat", {"max_tokens": -1}, "max_tokens", None),
        ("responses", {"max_output_tokens": -1}, "max_tokens", None),
        ("chat", {"max_completion_tokens": 5, "max_tokens": 9}, "max_tokens", 5),
        ("chat", {"max_completion_tokens": None, "max_tokens": 9}, "max_tokens", 9),
        ("chat", {"n_predict": 7, "max_tokens": None}, "max_tokens", 7),
        ("completions", {"max_tokens": None}, "max_tokens", 16),
        ("chat", {"max_tokens": None}, "max_tokens", None),
        ("chat", {"seed": -1}, "seed", None),
        ("chat", {"seed": -2}, "seed", (1 << 64) - 2),
        ("chat", {"seed": 1 << 63}, "seed", 1 << 63),
        ("chat", {"temperature": 1}, "temperature", 1.0),
        ("chat", {"logit_bias": [[5, -1.0], [6, False]]}, "logit_bias", {5: -1.0, 6: -100.0}),
        ("chat", {"stop": ""}, "stop", ()),
        ("chat", {"stop": ["", "a"]}, "stop", ("a",)),
        ("chat", {"repetition_penalty": 1.2, "repeat_penalty": 1.5}, "repetition_penalty", 1.2),
        ("chat", {"logprobs": True}, "logprobs", 0),
        ("chat", {"logprobs": True, "top_logprobs": 3}, "logprobs", 3),
        ("chat", {"logprobs": False, "top_logprobs": 0}, "logprobs", None),
        ("responses", {"top_logprobs": 2}, "logprobs", 2),
        ("completions", {"logprobs": 0}, "logprobs", 0),
        ("completions", {"logprobs": True}, "logprobs", 0),
        ("completions", {"logprobs": False}, "logprobs", None),
    ],
)
def test_what_other_servers_take(route, sent, name, wanted):
    options = read_options({**GOOD[route], **sent}, route)
    assert getattr(options.sampling(), name) == wanted


@pytest.mark.parametrize(
    ("route", "sent", "field"),
    [
        ("chat", {"top_logprobs": 2}, "top_logprobs"),
        ("chat", {"logprobs": False, "top_logprobs": 2}, "top_logprobs"),
        ("chat", {"stream_options": {"include_usage": True}}, "stream_options"),
        ("responses", {"stream_options": {"include_obfuscation": True}}, "stream_options"),
        ("chat", {"max_completion_tokens": 0}, "max_completion_tokens"),
        ("chat", {"max_tokens": 1.5}, "max_tokens"),
        ("chat", {"max_tokens": True}, "max_tokens"),
        ("chat", {"max_tokens": 10**400}, "max_tokens"),
        ("chat", {"temperature": 10**400}, "temperature"),
        ("chat", {"top_p": 1e-46}, "top_p"),
        ("chat", {"repetition_penalty": 1e-46}, "repetition_penalty"),
        ("chat", {"logit_bias": {"5": 10**400}}, "logit_bias"),
        ("chat", {"logit_bias": {"1" * 5000: 1}}, "logit_bias"),
        ("chat", {"logit_bias": {"١": 1}}, "logit_bias"),
        ("chat", {"logit_bias": {"100000": 1}}, "logit_bias"),
        ("chat", {"min_tokens": 9, "max_tokens": 3}, "min_tokens"),
        ("chat", {"stop_token_ids": [10**9]}, "stop_token_ids"),
        ("responses", {"max_output_tokens": 0}, "max_output_tokens"),
        ("chat", {"service_tier": "gold"}, "service_tier"),
        ("chat", {"prompt_logprobs": 101}, "prompt_logprobs"),
        ("chat", {"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
        ("completions", {"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
        ("completions", {"max_tokens": 0}, "max_tokens"),
        ("completions", {"best_of": 3}, "best_of"),
        ("completions", {"logprobs": 101}, "logprobs"),
        ("completions", {"logprobs": 101, "echo": True}, "logprobs"),
        ("completions", {"echo": True, "max_tokens": 0, "n": 2}, "n"),
        ("chat", {"reasoning": 5}, "reasoning"),
        ("chat", {"chat_template_kwargs": []}, "chat_template_kwargs"),
        ("chat", {"structured_outputs": {"reFex": "a"}}, "structured_outputs"),
        ("chat", {"structured_outputs": {"regex": "a", "enum": ["a"]}}, "structured_outputs"),
        ("chat", {"response_format": "json_object"}, "response_format"),
        ("chat", {"response_format": {"type": "xml"}}, "response_format"),
        ("chat", {"guided_regex": "a", "guided_choice": ["a"]}, "guided_choice"),
        ("completions", {"grammar": "root ::= x"}, "grammar"),
        ("completions", {"grammar": 'start: "a'}, "grammar"),
        ("completions", {"json_schema": {"type": "banana"}}, "json_schema"),
    ],
)
def test_what_is_wrong_names_the_field_that_was_sent(ask, route, sent, field):
    status, found, _ = ask(route, {**GOOD[route], **sent})
    assert (status, found["error"]["param"]) == (400, field), found


@pytest.mark.parametrize("route", PATHS)
def test_keys_that_nobody_knows(ask, route):
    """Are named in a header, as they stand, in what may stand there."""
    body = {**GOOD[route], "banana": 1, "schön, neu\r\nx: y": None, "a.b": 2, "": 3}
    if route == "chat":
        body |= {"chat_template_kwargs": {"enable_thinking": False}}
    status, _, headers = ask(route, body)
    assert status == 200
    names = headers["x-gptoss-ignored"].split(", ")
    assert names[0] == "banana" and "a.b" in names and "x" not in headers
    assert "sch%C3%B6n%2C%20neu%0D%0Ax:%20y" in names
    assert ("chat_template_kwargs.enable_thinking" in names) == (route == "chat")


def test_many_keys_that_nobody_knows_are_a_short_header():
    (value,) = ignored_header([f"key{i}" for i in range(10_000)]).values()
    assert len(value) <= 1100 and value.endswith("...")


def test_a_dotted_key_is_no_nested_option():
    options = read_options({**GOOD["chat"], "stream_options.include_usage": True}, "chat")
    assert options.ignored == ["stream_options.include_usage"]
    assert options["stream_options.include_usage"] is False
    assert STRICT <= {"structured_outputs"}


def test_the_table_is_all_there_is():
    """A route cannot read an option that the table does not have."""
    options = read_options(GOOD["chat"], "chat")
    with pytest.raises(KeyError):
        options["suffix"]
    assert set(options) == _names("chat") and len(options) == len(_names("chat"))


def test_openais_own_options_are_all_in_it():
    """Of the client that is installed here."""
    from openai.types import completion_create_params as completions
    from openai.types.chat import completion_create_params as chat
    from openai.types.responses import response_create_params as responses

    for route, kind in (
        ("chat", chat.CompletionCreateParamsBase),
        ("responses", responses.ResponseCreateParamsBase),
        ("completions", completions.CompletionCreateParamsBase),
    ):
        known = {name.split(".")[0] for name in _names(route)}
        assert set(kind.__annotations__) - known == set()


@pytest.mark.parametrize(
    ("route", "name", "value"),
    [
        ("responses", "response_format", {"type": "json_object"}),
        ("responses", "max_tokens", 5),
        ("responses", "n", 2),
        ("responses", "guided_json", {"type": "object"}),
        ("responses", "bad_words", ["a"]),
        ("chat", "max_output_tokens", 5),
        ("chat", "previous_response_id", "resp_1"),
        ("chat", "max_output_tokens", 7),
        ("completions", "previous_response_id", "resp_1"),
    ],
)
def test_what_another_route_has_is_not_ignored(ask, route, name, value):
    status, found, _ = ask(route, body_with(route, name, value))
    assert status == 400 and found["error"]["param"] == name
    assert found["error"]["code"] == "unsupported_parameter"


def test_what_changes_nothing_elsewhere_is_no_fault(ask):
    for name, value in (("n", 1), ("best_of", 1), ("max_tokens", None), ("suffix", "")):
        status, _, _ = ask("responses", body_with("responses", name, value))
        assert status == 200
