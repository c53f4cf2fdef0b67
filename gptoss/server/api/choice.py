"""One answer while it is written: from the tokens of a model to pieces."""

from __future__ import annotations

import json
import secrets
from collections import deque
from dataclasses import dataclass

from gptoss.chat import ANALYSIS, HarmonyParser, Message, call_name
from gptoss.chat import Piece as Written
from gptoss.engine import StopMatcher
from gptoss.request import Delta, FinishReason, TokenLogprob
from gptoss.server.api.pieces import Finish, Finished, Kind, Part, Piece


@dataclass
class _Open:
    """The message being written.

    begun: whether a part of it has been given. length: of its text; passed: of what was given of
    it. arguments: of a call, so far.
    """

    number: int
    kind: Kind
    channel: str = "final"
    call_id: str = ""
    name: str = ""
    stop: StopMatcher | None = None
    begun: bool = False
    length: int = 0
    passed: int = 0
    arguments: str = ""


class Choice:
    """One of the answers to a request.

    Args:
        index: its number.
        parser: takes apart what a model writes in harmony; None: all of it is text, and the engine
            itself looks for stop strings.
        stop: strings that end the answer where it is text for the user; thinking, calls and
            headers may hold them.
        includes_stop: whether the stop string that ends it is part of it. min_tokens: fewest tokens
            before one does.
        can_call: whether there is anything to call. Where there is not, a call is text.
        one_call: whether it ends with its first call.

    Attributes:
        ended: nothing more is to be taken, whatever the model goes on to write.
        thinking: how many tokens of thinking there were.
    """

    def __init__(
        self,
        index: int,
        parser: HarmonyParser | None,
        stop: tuple[str, ...] = (),
        *,
        includes_stop: bool = False,
        min_tokens: int = 0,
        can_call: bool = False,
        one_call: bool = False,
    ) -> None:
        self.index = index
        self.ended = False
        self.thinking = 0
        self._parser = parser
        self._stop, self._includes_stop = stop, includes_stop
        self._fewest = min_tokens  # that are still to come before the answer may end
        self._can_call, self._one_call = can_call, one_call
        self._messages = 0
        self._open: _Open | None = None
        self._calls: list[bool] = []  # of each that has ended: whether it is whole
        self._ids: list[int] = []  # of tokens since the last piece
        # Log-probabilities of tokens whose text is still to come, each with where in the text of
        # its message it begins.
        self._held: deque[tuple[int, TokenLogprob]] = deque()
        self._given: list[Piece] = []

    def take(self, delta: Delta) -> list[Piece]:
        """What the delta adds; the last piece of all is `Finished`."""
        self._given = []
        if self._parser is None:
            self._take_text(delta)
        else:
            self._take_harmony(self._parser, delta)
        return self._given

    def _take_text(self, delta: Delta) -> None:
        self._ids += delta.token_ids
        message = self._open = self._open or _Open(0, "text")
        finish = delta.finish_reason
        if delta.text or delta.logprobs or finish is not None:
            ends, whole = finish is not None, finish != "length"
            self._give(message, delta.text, ends, whole, delta.logprobs or ())
        if finish is not None:
            self._finish(finish)

    def _take_harmony(self, parser: HarmonyParser, delta: Delta) -> None:
        for place, token in enumerate(delta.token_ids):
            self._ids.append(token)
            self._fewest -= 1
            special = parser.is_special(token)
            if delta.logprobs and not special:
                self._held.append((self._open.length if self._open else 0, delta.logprobs[place]))
            thinks = self._thinks
            for written in parser.push(token):
                self._write(written, cut=False)
                thinks = thinks or self._thinks
                if self.ended:
                    return
            self.thinking += thinks
            if special:
                self._held.clear()  # of a header
        if delta.finish_reason is not None:
            for written in parser.finish():
                self._write(written, cut=delta.finish_reason == "length")
                if self.ended:
                    return
            self._finish(delta.finish_reason)

    @property
    def _thinks(self) -> bool:
        return self._open is not None and self._open.kind == "thinking"

    def _write(self, written: Written, cut: bool) -> None:
        """cut: whether a message that ends here, ends because the limit was reached."""
        if written.begins:
            self._open = self._begin(written.message)
            self._forget_header(written.text)
        message = self._open
        if message is None:  # of somebody else, whom the model speaks for: no part of its answer
            return
        text, stopped = written.text, False
        if written.ends and message.kind != "call":
            text = ""  # arguments that nobody wrote, of a call that has none and is shown as text
        message.length += len(text)
        whole = not cut
        if message.stop is not None:
            text, stopped = message.stop.push(text, self._fewest <= 0)
            if written.ends and not stopped:
                text += message.stop.flush()
        if message.kind == "call":
            message.arguments += text
            if written.ends:
                # Where nothing that the model writes ended it, a token of the client's choice may
                # have, anywhere.
                whole = whole and (written.ended_by is not None or _is_json(message.arguments))
                self._calls.append(whole)
        ends = written.ends or stopped
        if text or ends or not message.begun:
            self._give(message, text, ends, whole or stopped, self._logprobs_until(message, text))
        if ends:
            self._open = None
        if stopped or (self._one_call and self._calls and self._calls[-1]):
            self._finish("stop")

    def _begin(self, message: Message) -> _Open | None:
        if not message.from_model:
            return None
        channel, number = message.channel or "final", self._messages
        self._messages += 1
        # A call where nothing can be called is shown as what it is: words of the model.
        if message.is_call and self._can_call:
            name = call_name(message.recipient)
            return _Open(number, "call", channel, f"call_{secrets.token_hex(12)}", name)
        if channel == ANALYSIS:
            return _Open(number, "thinking", channel)
        stop = StopMatcher(self._stop, self._includes_stop) if self._stop else None
        return _Open(number, "text", channel, stop=stop)

    def _forget_header(self, text: str) -> None:
        """Where a message begins without a mark: of the tokens held those before its text."""
        size = len(text.encode())
        while sum(len(logprob.bytes) for _, logprob in self._held) > size:
            self._held.popleft()

    def _logprobs_until(self, message: _Open, text: str) -> tuple[TokenLogprob, ...]:
        """Those of the tokens that begin in text which is given now."""
        message.passed += len(text)
        found = []
        while self._held and self._held[0][0] < message.passed:
            found.append(self._held.popleft()[1])
        return tuple(found)

    def _give(
        self,
        message: _Open,
        text: str,
        ends: bool,
        whole: bool,
        logprobs: tuple[TokenLogprob, ...],
    ) -> None:
        self._given.append(
            Part(
                choice=self.index,
                number=message.number,
                kind=message.kind,
                text=text,
                channel=message.channel,
                begins=not message.begun,
                ends=ends,
                whole=whole,
                call_id=message.call_id,
                name=message.name,
                logprobs=logprobs,
                token_ids=self._taken_ids(),
            )
        )
        message.begun = True

    def _finish(self, why: FinishReason) -> None:
        self.ended = True
        reason: Finish = why
        if not all(self._calls):
            reason = "length"
        elif self._calls and reason == "stop":
            reason = "tool_calls"
        self._given.append(Finished(self.index, reason, self._taken_ids()))

    def _taken_ids(self) -> tuple[int, ...]:
        taken, self._ids = tuple(self._ids), []
        return taken


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
