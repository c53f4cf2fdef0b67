"""Prompt-lookup decoding: draft what comes next from what stands in the text already.

When the last few tokens occurred before, what followed them then may follow again: names, code,
quotations of the prompt (Saxena, "Prompt lookup decoding", 2023). The draft is computed in one step
together with the last token. A token of it is right when it is the token that the sampler draws at
its place, from the same logits and with the same random number as without a draft; the first wrong
one is replaced by that token. So greedy and seeded texts are what they would have been.

A wrong draft costs time. How much one more token in a step costs is learned from the steps that
ran; how often drafts are right, from the text. One is made where it is likely enough to pay.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence as SequenceOf

from gptoss.engine.scheduler import Scheduler
from gptoss.engine.sequence import Chunk

MAX_DRAFT = 8
LONGEST_MATCH, SHORTEST_MATCH = 8, 3  # tokens that must have occurred before
PAYS = 1.15  # drafts are made where they promise to be faster by this factor
TRY_AGAIN = 24  # tokens after which a text that does not repeat itself is tried again


class StepCost:
    """How long a decoding step takes, as a + b · (tokens in it), learned by least squares.

    Old steps count less and less: the load of the machine and the depth of the texts change.
    """

    FADING = 0.98
    # Until both kinds of steps were seen: as for a small batch of a mixture of experts on a CPU.
    GUESS = 0.4

    def __init__(self) -> None:
        self._weight = self._x = self._y = self._xx = self._xy = 0.0

    def observe(self, tokens: int, seconds: float) -> None:
        """A step that did nothing but decode `tokens` tokens took `seconds`."""
        self._weight = self.FADING * self._weight + 1
        self._x = self.FADING * self._x + tokens
        self._y = self.FADING * self._y + seconds
        self._xx = self.FADING * self._xx + tokens * tokens
        self._xy = self.FADING * self._xy + tokens * seconds

    def share(self, tokens: int) -> float:
        """The time of one more token as a part of the present time per token, 0 to 1.

        A drafted token pays where it is right more often than this.
        """
        spread = self._weight * self._xx - self._x * self._x
        if spread <= 1e-9 * self._weight * self._xx:
            return tokens * self.GUESS / (1 + (tokens - 1) * self.GUESS)
        slope = max(0.0, (self._weight * self._xy - self._x * self._y) / spread)
        constant = max(0.0, (self._y - slope * self._x) / self._weight)
        whole = constant + slope * tokens
        return min(1.0, slope * tokens / whole) if whole > 0 else 1.0


class Drafter:
    """Drafts for one text.

    Args:
        cost: shared by all texts of an engine.
    """

    def __init__(self, tokens: SequenceOf[int], cost: StepCost) -> None:
        self._cost = cost
        self._text = bytearray(array("i", tokens).tobytes())  # bytes: searched without Python
        # Right ones and all, old ones fading: begins with a cautious prior.
        self._right, self._made = 1.2, 2.0
        self._since = TRY_AGAIN  # tokens since the last draft

    def learn(self, drawn: SequenceOf[int], draft: SequenceOf[int]) -> None:
        """A step drew tokens, the first of them against this draft, until one was wrong."""
        self._text += array("i", drawn).tobytes()
        self._since += len(drawn)
        if not draft:
            return
        right = len(drawn) - 1
        judged = min(len(draft), right + 1)  # one after a wrong one is not
        self._right = 0.9**judged * self._right + right
        self._made = 0.9**judged * self._made + judged
        self._since = 0

    def draft(self, max_tokens: int, sequences: int) -> tuple[int, ...]:
        """At most `max_tokens` tokens; none where they would not pay.

        sequences: how many texts share the step.
        """
        likely = self._right / self._made
        if self._since >= TRY_AGAIN:
            likely = max(likely, 0.6)
        needed = PAYS * self._cost.share(sequences)
        count, chance = 0, likely
        while count < min(max_tokens, MAX_DRAFT) and chance > needed:
            count += 1
            chance *= likely
        return self._lookup(count) if count else ()

    def _lookup(self, count: int) -> tuple[int, ...]:
        """What followed the latest earlier occurrence of the longest suffix that has one."""
        size = array("i").itemsize
        text = self._text
        found: tuple[int, ...] = ()
        for length in range(SHORTEST_MATCH, LONGEST_MATCH + 1):
            end = bytes(text[-length * size :])
            at = text.rfind(end, 0, len(text) - size) if len(end) == length * size else -1
            while at >= 0 and at % size:  # not at a token's first byte
                at = text.rfind(end, 0, at + len(end) - 1)
            if at < 0:
                break  # then a longer one did not either
            begin = at + len(end)
            found = tuple(array("i", bytes(text[begin : begin + count * size])))
        if not found:
            return ()
        # What followed may run into the suffix itself: the text repeats, so go on with the period.
        return tuple(found[i % len(found)] for i in range(count))


def with_drafts(
    chunks: list[Chunk], drafters: SequenceOf[Drafter | None], scheduler: Scheduler
) -> list[Chunk]:
    """The same step, with drafts after the tokens of those that decode.

    The step's tokens are all known by now. Where prompts enter or wait, there is enough to compute
    without drafts.
    """
    if scheduler.waiting or any(chunk.count > 1 or not chunk.reaches_end for chunk in chunks):
        return chunks
    budget = scheduler.step_tokens - len(chunks)
    extended = []
    for chunk, drafter in zip(chunks, drafters, strict=True):
        most = min(budget, chunk.sequence.limit - chunk.end)
        if drafter is not None and most > 0:
            chunk = scheduler.extend(chunk, drafter.draft(most, len(chunks)))
            budget -= len(chunk.draft)
        extended.append(chunk)
    return extended
