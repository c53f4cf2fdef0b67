"""/tokenize, /detokenize and /tokenizer_info: texts and conversations as tokens, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gptoss.chat import HarmonyChat, PlainChat
from gptoss.engine import Engine
from gptoss.errors import shown
from gptoss.server.api.chat_completions import read_conversation
from gptoss.server.api.options import Options, read_options
from gptoss.server.errors import ApiError

_MAX_LETTERS = 4 << 20  # characters of a text; its tokens become Python's at once
_MAX_PIECES = 1 << 18  # tokens that are told one by one
_MAX_TEXT = 16 << 20  # bytes that tokens are told as: a million of the longest would be 128 MB


def tokenize(
    engine: Engine, chat: HarmonyChat | PlainChat | None, body: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """(the answer, keys of the body that mean nothing): the tokens of a text, or of a conversation,
    just as chat completions would have the model read it.

    chat: how the model takes conversations; None: it does not. Raises Error, ApiError.
    """
    options = read_options(body, "tokenize")
    tokens = _tokens(engine, chat, options)
    tokenizer = engine.tokenizer
    for name in ("return_token_strs", "with_pieces"):
        if options[name] and len(tokens) > _MAX_PIECES:
            raise ApiError(
                f"{name}: expected a text of at most {_MAX_PIECES} tokens, found {len(tokens)}",
                field=name,
            )
    found: dict[str, Any] = {
        "tokens": tokens,
        "count": len(tokens),
        "max_model_len": engine.config.context_length,
    }
    if options["return_token_strs"]:
        found["token_strs"] = [
            tokenizer.token_bytes(token).decode("utf-8", "replace") for token in tokens
        ]
    if options["with_pieces"]:
        found["tokens"] = [
            {"id": token, "piece": _piece(tokenizer.token_bytes(token))} for token in tokens
        ]
    return found, options.ignored


def detokenize(engine: Engine, body: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """(the answer, keys of the body that mean nothing): the text of tokens. Raises ApiError."""
    options = read_options(body, "detokenize")
    tokens, size = options["tokens"], engine.tokenizer.vocab_size
    if not isinstance(tokens, list):
        raise ApiError(f"tokens: expected a list, found {shown(tokens)}", field="tokens")
    for place, token in enumerate(tokens):
        if type(token) is not int or not 0 <= token < size:
            raise ApiError(
                f"tokens[{place}]: expected an id below {size}, found {shown(token)}",
                field="tokens",
            )
    size = sum(len(engine.tokenizer.token_bytes(token)) for token in tokens)
    if size > _MAX_TEXT:
        raise ApiError(
            f"tokens: expected a text of at most {_MAX_TEXT} bytes, found {size}", field="tokens"
        )
    text = engine.tokenizer.decode(tokens)
    return {"prompt": text, "content": text}, options.ignored  # vLLM's name, llama.cpp's


def tokenizer_info(engine: Engine) -> dict[str, Any]:
    """What clients ask who leave the tokenizing to a server. Names of special tokens in a text are
    words here, so none is named that a client might write into one.
    """
    return {
        "tokenizer_class": "gptoss",
        "vocab_size": engine.tokenizer.vocab_size,
        "model_max_length": engine.config.context_length,
        "bos_token": None,
        "eos_token": None,
        "pad_token": None,
        "chat_template": None,
    }


def _tokens(engine: Engine, chat: HarmonyChat | PlainChat | None, options: Options) -> list[int]:
    texts = [name for name in ("messages", "prompt", "content") if name in options.given]
    if len(texts) != 1:
        found = " and ".join(texts) or "none of them"
        raise ApiError(
            f"prompt: expected prompt, content or messages, found {found}", field="prompt"
        )
    if texts == ["messages"]:
        if chat is None:
            raise ApiError("messages: this model takes no conversations", field="messages")
        with options.named(prompt="messages"):
            conversation, _ = read_conversation(options)
            engine.check_text("messages", sum(len(each.content) for each in conversation.messages))
            return list(chat.render(conversation).ids)
    text = options[texts[0]]
    if not isinstance(text, str):
        raise ApiError(f"{texts[0]}: expected a string, found {shown(text)}", field=texts[0])
    if len(text) > _MAX_LETTERS:
        raise ApiError(
            f"{texts[0]}: expected at most {_MAX_LETTERS} characters, found {len(text)}",
            field=texts[0],
        )
    return engine.tokenizer.encode(text, "all" if options["parse_special"] else ())


def _piece(written: bytes) -> str | list[int]:
    try:
        return written.decode()
    except UnicodeDecodeError:
        return list(written)
