"""How much a model thinks, by all the names that clients have for it."""

import pytest
from chatting import OfBytes, printed
from scripted import ANSWER

from gptoss.server.api.effort import EFFORTS, NAMES
from gptoss.server.api.options import read_options
from gptoss.server.errors import ApiError

OWN = {"reasoning_effort", "reasoning.effort"}


def effort_of(body, own="reasoning_effort"):
    return read_options(body, "responses" if own == "reasoning.effort" else "chat").effort()


def body_of(name, value):
    outer, _, inner = name.partition(".")
    return {outer: {inner: value}} if inner else {outer: value}


@pytest.mark.parametrize("own", sorted(OWN))
@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_read_on_every_route(name, own):
    for value, effort in EFFORTS.items():
        assert effort_of(body_of(name, value), own) == effort
    assert effort_of(body_of(name, None), own) == "medium"


def test_what_others_call_efforts():
    assert {EFFORTS[name] for name in ("none", "minimal")} == {"low"}
    assert {EFFORTS[name] for name in ("xhigh", "max")} == {"high"}
    assert all(EFFORTS[name] == name for name in ("low", "medium", "high"))
    assert effort_of({"think": True}) == "medium" and effort_of({"think": False}) == "low"
    assert effort_of({}) == "medium"


@pytest.mark.parametrize("own", sorted(OWN))
def test_the_routes_own_name_counts(own):
    others = [name for name in NAMES if name != own]
    for other in others:
        body = {**body_of(other, "low"), **body_of(own, "high")}
        assert effort_of(body, own) == "high"
        assert effort_of({**body_of(own, None), **body_of(other, "low")}, own) == "low"


@pytest.mark.parametrize("value", ["huge", "", 5, True, [], {}, 1.5])
@pytest.mark.parametrize("name", NAMES)
def test_what_is_no_effort_is_named(name, value):
    """By the name that was used, though the route's own is there too."""
    if name == "think" and value is True:
        return
    for more in ({}, {"reasoning_effort": "low"} if name != "reasoning_effort" else {}):
        with pytest.raises(ApiError, match=f"^{name}: expected one of none, minimal") as error:
            effort_of({**more, **body_of(name, value)})
        assert error.value.field == name and error.value.status == 400


@pytest.mark.parametrize("name", ["reasoning", "chat_template_kwargs"])
@pytest.mark.parametrize("value", ["high", 5, []])
def test_what_is_no_object_is_named(name, value):
    with pytest.raises(ApiError, match=f"^{name}: expected an object") as error:
        effort_of({name: value})
    assert error.value.field == name


@pytest.mark.parametrize("name", NAMES)
def test_the_model_is_told(name):
    chat = OfBytes()
    printed(ANSWER, chat=chat, **body_of(name, "xhigh"))
    assert [conversation.effort for conversation in chat.asked] == ["high", "high"]
