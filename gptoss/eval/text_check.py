"""What a model writes by itself, and how well it foresees a text that people wrote."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gptoss.errors import Error
from gptoss.eval.numbers import most_common_share, repeated_share
from gptoss.eval.outcome import Outcome, Skipped
from gptoss.eval.session import Session, random_tokens
from gptoss.eval.texts import PROMPTS, PROSE
from gptoss.request import SamplingParams

TOKENS = 48  # of a continuation
# Of a continuation, the share of one and the same token that no language has. Greedy text runs in
# circles now and then; a broken model writes one token for ever.
MOST_COMMON = 0.5
# Bits a byte of PROSE. Knowing nothing costs 17.6 bits for each of the published models' tokens,
# about 4 a byte. They were taught to talk, not to go on with prose: on WikiText-2 llama.cpp finds a
# perplexity of 196 (ggml-org/llama.cpp, issue 15155), about 1.7 a byte.
PUBLISHED_BITS = 2.5
# Nats a token above those of guessing, ln(vocabulary): who is sure of the wrong tokens pays more.
WORSE_THAN_GUESSING = 1.0
BEGINNINGS = ("<|startoftext|>", "<|endoftext|>")  # special tokens that an empty prompt stands for


def check_continuations(session: Session) -> Outcome:
    """Greedy text of a few prompts: finite logits, and no token that repeats itself for ever."""
    engine = session.engine()
    params = SamplingParams(max_tokens=TOKENS, temperature=0.0)
    texts: list[dict[str, Any]] = []
    collapsed = 0
    for number, prompt in enumerate(PROMPTS):
        ids = prompt_ids(session, prompt, number)
        wrong = int(np.count_nonzero(~np.isfinite(engine.logits(ids))))
        if wrong:
            line = f"{prompt!r}: expected finite logits, found {wrong:,} that are not"
            return Outcome(line, True, {"not_finite": wrong})
        (completion,) = engine.generate(ids, params)
        share = most_common_share(completion.token_ids)
        repeated = repeated_share(completion.token_ids)
        collapsed += len(completion.token_ids) > 8 and share > MOST_COMMON
        texts.append({"prompt": prompt, "text": completion.text, "most_common": share,
                      "repeated": repeated, "tokens": completion.token_ids})  # fmt: skip
        session.say(f"  {prompt!r} → {completion.text or completion.token_ids!r}")
    largest = max(each["most_common"] for each in texts)
    line = (
        f"{len(texts)} prompts, up to {TOKENS} tokens: most frequent token at most {largest:.0%}, "
        f"4-grams repeated {np.mean([each['repeated'] for each in texts]):.0%}"
    )
    failed = 2 * collapsed > len(texts) and not session.synthetic
    if failed:
        line = f"{collapsed} of {len(texts)} continuations are one token again and again; {line}"
    details = tuple(f"{each['prompt']!r} → {each['text'] or each['tokens']!r}" for each in texts)
    return Outcome(line, failed, {"continuations": texts, "not_finite": 0}, details)


def prompt_ids(session: Session, prompt: str, number: int) -> list[int]:
    """A text's ids; eight random ones where there is no tokenizer."""
    try:
        return session.tokenizer.encode(prompt)
    except Skipped:
        return random_tokens(session.config, 8, seed=number).tolist()


def check_perplexity(session: Session) -> Outcome:
    """Bits per byte of PROSE, two kilobytes."""
    tokenizer = session.tokenizer
    engine = session.engine()
    ids = tokenizer.encode(PROSE)
    begins = any(name in tokenizer.special_tokens for name in BEGINNINGS)
    size = min(session.config.context_length - 1, 1024)
    total, count = 0.0, 0
    for start in range(0, len(ids), size):
        score = engine.score("" if begins else " ", ids[start : start + size])
        total -= score.total
        count += len(score)
    if not math.isfinite(total):
        raise Error("expected finite log-probabilities, found others")
    bits = total / math.log(2) / len(PROSE.encode())
    line = f"{bits:.3f} bits per byte ({total / count:.3f} nats a token, {count} tokens)"
    guessing = math.log(session.config.vocab_size)
    failed = session.published and bits > PUBLISHED_BITS
    if failed:
        line += f"; expected at most {PUBLISHED_BITS} bits per byte of published weights"
    elif total / count > guessing + WORSE_THAN_GUESSING and not session.synthetic:
        failed = True
        line += (
            f"; expected less than guessing would take, {guessing:.3f} nats a token: does this "
            f"tokenizer belong to this model?"
        )
    figures = {"bits_per_byte": bits, "nats_per_token": total / count, "tokens": count}
    return Outcome(line, failed, figures)
