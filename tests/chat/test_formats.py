"""Which format a model takes conversations in, and what it makes of one."""

import pytest

from gptoss import Engine, Error
from gptoss.chat import Conversation, PlainChat, load_chat
from gptoss.chat.conversation import Message, Tool


@pytest.fixture(scope="module")
def bundled():
    with Engine() as engine:
        yield engine.tokenizer


def test_a_model_without_conversations_gets_paragraphs(bundled):
    chat = load_chat(bundled)
    assert isinstance(chat, PlainChat) and chat.name == "plain"
    messages = (
        Message("system", content="A story."),
        Message("user", content=""),
        Message("user", content="Once upon"),
        Message("assistant", "analysis", content="hm"),
        Message("assistant", "commentary", "functions.f", content="{}"),
        Message("functions.f", "commentary", "assistant", content="a time"),
        Message("assistant", "final", content="Well"),
    )
    rendered = chat.render(Conversation(messages))
    assert rendered.text == "A story.\n\nOnce upon\n\na time\n\nWell"
    assert bundled.decode(rendered.ids) == rendered.text


def test_a_model_without_conversations_calls_no_tools(bundled):
    chat = load_chat(bundled)
    messages = (Message("user", content="Hello"),)
    for wrong in (
        Conversation(messages, (Tool("weather"),)),
        Conversation(messages, built_in=("python",)),
    ):
        with pytest.raises(Error, match="not taught conversations") as caught:
            chat.render(wrong)
        assert chat.why in str(caught.value) and caught.value.field == "tools"
