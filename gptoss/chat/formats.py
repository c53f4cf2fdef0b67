"""How a model takes a conversation: in harmony, or as plain paragraphs that it goes on with."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from gptoss.chat.conversation import ANALYSIS, Conversation, Message, Tool
from gptoss.chat.grammar import answer_grammar
from gptoss.chat.harmony import REQUIRED, HarmonyParser, check_vocabulary
from gptoss.chat.render import Rendered, segments
from gptoss.errors import Error
from gptoss.request import Grammar, valid_text
from gptoss.tokenizer import Tokenizer


class PlainChat:
    """For models that were not taught conversations: paragraphs that the model continues.

    stop_ids: what ends an answer. why: the reason, for messages.
    """

    name = "plain"

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.stop_ids = tokenizer.eos_ids
        missing = [name for name in REQUIRED if name not in tokenizer.special_tokens]
        self.why = (
            f"its vocabulary lacks {' '.join(missing)}"
            if missing
            else "its tokenizer_config.json says so (conversation_format)"
        )

    def grammar(
        self,
        tools: Sequence[Tool],
        answer: Grammar | None,
        must_call: bool = False,
        *,
        hold: bool = True,
        continues: bool = False,
    ) -> Grammar | None:
        """What such a model may write, where its answer must be something: just that."""
        return answer

    def render(self, conversation: Conversation) -> Rendered:
        """Raises Error for tools, of which such a model knows nothing."""
        if conversation.tools or conversation.built_in:
            raise Error(
                f"tools: this model was not taught conversations and cannot call tools: {self.why}",
                field="tools",
            )
        texts = [
            message.content
            for message in conversation.messages
            if message.content and message.channel != ANALYSIS and not message.is_call
        ]
        return Rendered([(False, valid_text("\n\n".join(texts)))], self._tokenizer)


class HarmonyChat:
    """The published models' format, with any vocabulary that has its special tokens.

    stop_ids: ``<|return|>`` and ``<|call|>``; never ``<|end|>``, after which a message follows.
    """

    name = "harmony"

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Raises Error where the vocabulary lacks harmony's special tokens."""
        check_vocabulary(tokenizer)
        special = tokenizer.special_tokens
        self.stop_ids = frozenset((special["<|return|>"], special["<|call|>"]))
        self._tokenizer = tokenizer

    def parser(self, continues: Message | None = None) -> HarmonyParser:
        """Of an answer. continues: the message that the prompt ended in, whose content goes on."""
        return HarmonyParser(self._tokenizer, continues)

    def grammar(
        self,
        tools: Sequence[Tool],
        answer: Grammar | None,
        must_call: bool = False,
        *,
        hold: bool = True,
        continues: bool = False,
    ) -> Grammar | None:
        """What a model may write so that its answer fits a grammar, and its calls their schemas.

        Thinking stays free; headers are well-formed. None where everything is allowed.

        Args:
            tools: those that may be called.
            answer: of the final channel; None: any text.
            must_call: whether it must call one of the tools instead of answering.
            hold: whether calls are held to the tools even where nothing else is asked for; they are
                not where llguidance is not installed.
            continues: whether the prompt ended inside the answer.

        Raises:
            Error: a schema that must be kept to is invalid, or asks too much.
        """
        hold = hold and find_spec("llguidance") is not None
        source = answer_grammar(tools, answer, must_call, hold, continues)
        if source is None:
            return None
        try:
            return Grammar.lark(source, what="response format")
        except Error as error:
            # The answer's grammar was checked when it was made; only the tools' schemas are new.
            strict = any(tool.strict for tool in tools)
            raise Error(str(error), field="tools" if strict else error.field) from None

    def render(self, conversation: Conversation) -> Rendered:
        """The prompt for the next message: see `gptoss.chat.render`."""
        return Rendered(segments(conversation), self._tokenizer)


def load_chat(tokenizer: Tokenizer) -> HarmonyChat | PlainChat:
    """How a model takes conversations.

    Harmony where its vocabulary has the special tokens of that, unless what exported the model
    wrote that it was not taught conversations.
    """
    taught = tokenizer.conversation_format != "none"
    if taught and all(name in tokenizer.special_tokens for name in REQUIRED):
        return HarmonyChat(tokenizer)
    return PlainChat(tokenizer)
