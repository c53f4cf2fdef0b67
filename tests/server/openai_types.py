"""What the types of OpenAI's Python client say of an event or a response, taken at their word."""

from typing import get_args

import pydantic
from openai.types.responses import Response, ResponseStreamEvent

_EVENTS = {
    get_args(kind.model_fields["type"].annotation)[0]: kind
    for kind in get_args(get_args(ResponseStreamEvent)[0])
}
# Keys that OpenAI's server sends and the types leave out, by where they stand.
_UNTYPED = {
    "": {"error"},  # of an `error` event
    "response": {"store"},
    "logprobs": {"bytes"},
    "top_logprobs": {"bytes"},
}
_NAMED = "response.function_call_arguments.done"  # `name` was in the types until 3.0


def check_event(event):
    """Asserts that it is one of OpenAI's events, strictly, and has nothing else in it."""
    kind = _EVENTS[event["type"]]
    made = kind.model_validate(event, strict=True)
    _nothing_else(made, "", {"name"} if event["type"] == _NAMED else set())
    return made


def check_response(response):
    """The same of a whole response; every key of the type that OpenAI's server always sends is in
    it."""
    made = Response.model_validate(response, strict=True)
    _nothing_else(made, "response")
    missing = ALWAYS - set(response)
    assert not missing, missing
    return made


ALWAYS = set(
    "background completed_at created_at error id incomplete_details instructions max_output_tokens "
    "max_tool_calls metadata model object output parallel_tool_calls previous_response_id "
    "prompt_cache_key reasoning safety_identifier service_tier status store temperature text "
    "tool_choice tools top_logprobs top_p truncation usage user conversation".split()
)


def _nothing_else(value, where, more=frozenset()):
    if isinstance(value, pydantic.BaseModel):
        extra = set(value.model_extra or {}) - _UNTYPED.get(where, set()) - more
        assert not extra, f"{where or type(value).__name__}: {extra}"
        for name in type(value).model_fields:
            _nothing_else(getattr(value, name), name)
    elif isinstance(value, list):
        for item in value:
            _nothing_else(item, where)
