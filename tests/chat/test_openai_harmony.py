"""Prompts, token by token those of OpenAI's own library, wherever that can write them.

Where ours differ on purpose, test_render.py and test_typescript.py say how, each in a test.
"""

import pytest
from conversations import Case, cases, plain_tools, theirs
from hypothesis import given, settings
from hypothesis import strategies as st

from gptoss.chat import render
from gptoss.chat.conversation import EFFORTS

library = pytest.importorskip("openai_harmony")

OPTIONS = st.fixed_dictionaries(
    {
        "effort": st.sampled_from(EFFORTS),
        "today": st.none() | st.dates(),
        "built_in": st.sampled_from([(), ("python",), ("browser",), ("browser", "python")]),
    }
)


def same(published, expected, case, **options):
    rendered = render(case.all_raw(), tokenizer=published, **options)
    if rendered.ids != expected:  # texts are easier to read
        assert rendered.text == published.decode(expected)
    assert rendered.ids == expected
    assert rendered.text == published.decode(rendered.ids)


@settings(max_examples=150, deadline=None)
@given(case=cases(), options=OPTIONS)
def test_conversations(published, openais, case, options):
    same(published, theirs(library, openais, case, **options), case, **options)


@settings(max_examples=200, deadline=None)
@given(tools=plain_tools(), options=OPTIONS)
def test_tools(published, openais, tools, options):
    case = Case([("system", "Be brief.")])
    case.raw.append({"role": "user", "content": "Hi"})
    case.said.append(("user", None, None, None, None, "Hi"))
    same(published, theirs(library, openais, case, tools=tools, **options), case,
         tools=tools, **options)  # fmt: skip


@settings(max_examples=50, deadline=None)
@given(case=cases(middle=False))
def test_thinking_that_their_own_rule_drops(published, openais, case):
    """With one answer, the last of what the assistant wrote, their rule is ours."""
    if [i for i, m in enumerate(case.said) if m[0] == "assistant"][-1:] == case.answers:
        same(published, theirs(library, openais, case, drop=True), case)
