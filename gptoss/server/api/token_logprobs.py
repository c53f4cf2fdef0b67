"""Log-probabilities of tokens, in the forms that completions have for them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from gptoss.engine import Engine
from gptoss.request import Score, TokenLogprob
from gptoss.server.api.answer import Answer
from gptoss.server.api.logprobs import LEAST
from gptoss.server.errors import ApiError

_MAX_TOLD = 1 << 18  # log-probabilities told of all prompts of a request


class TokenLogprobs:
    """OpenAI's object of lists, for a text that comes token by token.

    A token is called by its text; by its bytes, where they are no text by themselves; by its id
    where it stands for nothing, where another one is called the same, or where `by_id` asks for it.
    """

    def __init__(self, engine: Engine, by_id: bool) -> None:
        self._bytes = engine.tokenizer.token_bytes
        self._decoder = engine.tokenizer.stream()
        self._by_id = by_id
        self._length = 0  # of the text before the next token, in characters

    def of(self, tokens: Iterable[TokenLogprob]) -> dict[str, list[Any]]:
        """Of tokens that were drawn; each is among its own top_logprobs."""
        found = _empty()
        for token in tokens:
            likely = [(top.token_id, top.logprob) for top in token.top]
            self._add(found, token.token_id, token.logprob, likely)
        return found

    def of_prompt(self, ids: Sequence[int], score: Score, top: int) -> dict[str, list[Any]]:
        """Of a prompt's tokens; nothing is said of the first, which has nothing before it."""
        found = _empty()
        self._add(found, ids[0], None, [])
        rows = zip(
            score.token_ids.tolist(),
            score.logprobs.tolist(),
            score.top_ids[:, :top].tolist(),
            score.top_logprobs[:, :top].tolist(),
            strict=True,
        )
        for token, logprob, likely, values in rows:
            self._add(found, token, logprob, list(zip(likely, values, strict=True)))
        return found

    def _add(
        self,
        found: dict[str, list[Any]],
        token: int,
        logprob: float | None,
        likely: list[tuple[int, float]],
    ) -> None:
        found["tokens"].append(self._name(token))
        found["token_logprobs"].append(None if logprob is None else max(logprob, LEAST))
        found["text_offset"].append(self._length)
        self._length += len(self._decoder.push(token))
        if logprob is None:
            found["top_logprobs"].append(None)
            return
        if all(other != token for other, _ in likely):
            likely = [*likely, (token, logprob)]
        named: dict[str, float] = {}
        for other, value in likely:
            name = self._name(other)
            named[_id(other) if name in named else name] = max(value, LEAST)
        found["top_logprobs"].append(named)

    def _name(self, token: int) -> str:
        return _id(token) if self._by_id else token_name(token, self._bytes(token))


def token_name(token: int, written: bytes) -> str:
    """What a token is called, where the same name means the same bytes."""
    if not written:
        return _id(token)
    try:
        return written.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in written)


def prompt_logprobs(engine: Engine, score: Score, top: int) -> list[dict[str, Any] | None]:
    """vLLM's list: for each token of a prompt the likely ones by their ids, and itself; null for
    the first. A rank is 1 for the most likely; null where that is not known.
    """
    found: list[dict[str, Any] | None] = [None]
    rows = zip(
        score.token_ids.tolist(),
        score.logprobs.tolist(),
        score.greedy.tolist(),
        score.top_ids[:, :top].tolist(),
        score.top_logprobs[:, :top].tolist(),
        strict=True,
    )
    for token, logprob, greedy, likely, values in rows:
        here = {
            str(other): _entry(engine, other, value, rank + 1)
            for rank, (other, value) in enumerate(zip(likely, values, strict=True))
        }
        here.setdefault(str(token), _entry(engine, token, logprob, 1 if greedy else None))
        found.append(here)
    return found


def check_size(answer: Answer, name: str, top: int, times: int = 1) -> None:
    """Cancels it, and raises ApiError about `name`, where too much is to be told of prompts.

    times: how often each prompt is told of.
    """
    tokens = times * sum(stream.prompt_tokens for stream in answer.streams)
    if tokens * (top + 1) > _MAX_TOLD:
        answer.cancel()
        raise ApiError(
            f"{name}: expected {_MAX_TOLD} log-probabilities of prompts at most, found {tokens} "
            f"tokens with {top + 1} each",
            field=name,
        )


def _entry(engine: Engine, token: int, logprob: float, rank: int | None) -> dict[str, Any]:
    text = engine.tokenizer.token_bytes(token).decode("utf-8", "replace")
    return {"logprob": max(logprob, LEAST), "rank": rank, "decoded_token": text}


def _id(token: int) -> str:
    return f"token_id:{token}"


def _empty() -> dict[str, list[Any]]:
    return {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
