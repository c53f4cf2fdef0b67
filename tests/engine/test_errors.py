"""What an Error carries besides its text."""

import copy
import pickle

import pytest

from gptoss.errors import Error
from gptoss.request import Grammar


@pytest.mark.parametrize("field", ["max_tokens", None])
@pytest.mark.parametrize(
    "again", [copy.copy, copy.deepcopy, lambda error: pickle.loads(pickle.dumps(error))]
)
def test_the_field_goes_with_the_error(again, field):
    found = again(Error("max_tokens: expected more", field=field))
    assert type(found) is Error and found.field == field
    assert str(found) == "max_tokens: expected more"


def test_no_field_is_none():
    assert Error("the disk is full").field is None and str(Error()) == ""


@pytest.mark.parametrize(
    "make",
    [
        lambda: Grammar.json("{"),
        lambda: Grammar.json(False),
        lambda: Grammar.regex(5),
        lambda: Grammar.choice([]),
        lambda: Grammar.lark(5),
    ],
)
def test_grammars_are_of_the_option_that_holds_them(make):
    with pytest.raises(Error) as caught:
        make()
    assert caught.value.field == "grammar"
