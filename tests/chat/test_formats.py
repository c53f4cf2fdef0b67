"""Which format a model takes conversations in, and what it makes of one."""

import shutil

import pytest
from vocabularies import PATTERN, Size, o200k_path, rank_lines, tiny_ranks, write_tiny

from gptoss import Engine, Error
from gptoss.chat import REQUIRED, Conversation, HarmonyChat, PlainChat, load_chat, render
from gptoss.chat.conversation import Message, Tool
from gptoss.tokenizer import HARMONY_SIZE, load_tokenizer


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


# Harmony is where its special tokens are, whatever the size of the vocabulary.

TALK = Conversation(
    (
        Message("system", content="Be brief. <|end|>"),
        Message("user", content="Grüße 👋"),
        Message("assistant", "commentary", "functions.f", "<|constrain|>json", "{}"),
        Message("functions.f", "commentary", "assistant", content="rain"),
    ),
    (Tool("f", "Tells it.", {"type": "object", "properties": {"a": {"type": "string"}}}),),
)


def own_vocabulary(directory, names=REQUIRED, **config):
    """One that is trained on one's own texts, with these special tokens."""
    ranks = tiny_ranks()
    special = {name: len(ranks) + i for i, name in enumerate(names)}
    config = {"pattern": PATTERN, "special_tokens": special, "eos_token": None, **config}
    return load_tokenizer(write_tiny(directory, rank_lines(ranks), config), Size(300))


def check_harmony(tokenizer):
    chat = load_chat(tokenizer)
    assert isinstance(chat, HarmonyChat)
    rendered = chat.render(TALK)
    assert rendered.text == render(TALK.messages, tools=TALK.tools).text
    assert tokenizer.decode(rendered.ids) == rendered.text
    special = set(tokenizer.special_tokens.values())
    names = [name for is_special, name in rendered.segments if is_special]
    found = [tokenizer.decode([token]) for token in rendered.ids if token in special]
    assert found == names and "<|end|>" in names


@pytest.mark.parametrize("size", [HARMONY_SIZE, HARMONY_SIZE + 1, 201_216])
def test_published_tokens_in_tables_of_any_size(tmp_path, published, size):
    shutil.copy(o200k_path(), tmp_path / "o200k_base.tiktoken")
    tokenizer = load_tokenizer(tmp_path, Size(size))
    check_harmony(tokenizer)
    assert load_chat(tokenizer).render(TALK).ids == load_chat(published).render(TALK).ids


@pytest.mark.parametrize("said", [{}, {"conversation_format": "harmony"}])
def test_a_vocabulary_of_ones_own(tmp_path, said):
    check_harmony(own_vocabulary(tmp_path, **said))


def test_what_was_not_taught_says_so(tmp_path):
    chat = load_chat(own_vocabulary(tmp_path, conversation_format="none"))
    assert isinstance(chat, PlainChat) and "tokenizer_config.json says so" in chat.why


@pytest.mark.parametrize("missing", REQUIRED)
def test_a_vocabulary_without_one_of_the_tokens(tmp_path, missing):
    names = [name for name in REQUIRED if name != missing]
    tokenizer = own_vocabulary(tmp_path, names, conversation_format="harmony")
    chat = load_chat(tokenizer)
    assert isinstance(chat, PlainChat) and chat.why == f"its vocabulary lacks {missing}"
    with pytest.raises(Error, match=missing.strip("<|>")):
        render([{"role": "user", "content": "Hi"}], tokenizer=tokenizer)


@pytest.mark.parametrize("kind", ["bpe", "characters"])
def test_vocabularies_of_data_prepare(tmp_path, kind):
    made = pytest.importorskip("gptoss.train.data.tokenizers")
    documents = ["Once upon a time there was a girl. " * 20, "Grüße 👋 (rain)"] * 5
    files = made.make_tokenizer(kind, documents, None if kind == "characters" else 280)
    for name, content in files.content.items():
        (tmp_path / name).write_bytes(content)
    check_harmony(load_tokenizer(tmp_path, Size(files.vocab_size)))
