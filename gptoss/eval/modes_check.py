"""How far each faster mode is from float32 activations, which round nothing.

One engine at a time: the logits of a few dozen tokens are kept between them.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptoss.eval.numbers import distance
from gptoss.eval.outcome import Outcome, Skipped
from gptoss.eval.session import Session
from gptoss.eval.texts import PROSE

TOKENS = 256
KEPT_BYTES = 128 << 20  # of logits: 166 tokens of the published vocabulary
EXACT: dict[str, Any] = {
    "device": "cpu",
    "activation": "f32",
    "kv": "bf16",
    "weights": None,
    "tensor_parallel": 1,
}
MODES: dict[str, dict[str, Any]] = {
    "kl bf16": {**EXACT, "activation": "bf16"},
    "kl q8": {**EXACT, "activation": "bf16", "weights": "q8"},
    "kl int8": {**EXACT, "activation": "bf16", "kv": "int8"},
}
# Mean divergence in nats a token, at most. The bundled model has 6e-5, 1.3e-4 and 1.0e-4 on this
# text; random weights of 4 small layers up to 2e-3, of 6 layers of gpt-oss-20b's size 8e-3. More
# layers round more, and a router that chooses another expert for that costs most. A kernel that
# reads what it should not costs whole nats.
BOUND = {"kl bf16": 0.1, "kl q8": 0.2, "kl int8": 0.2, "kl cuda": 0.1}


class Modes:
    """Compares modes of one model with f32, whose logits are computed when first asked for."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._tokens: NDArray[np.int32] | None = None
        self._exact: NDArray[np.float32] | None = None
        self._kept: dict[str, NDArray[np.float32]] = {}
        self._modes = dict(MODES)
        if session.options.device != "cpu":
            self._modes = {f"kl {session.options.device}": {}, **MODES}

    @property
    def names(self) -> list[str]:
        """What `mode` takes."""
        return list(self._modes)

    def exact(self) -> Outcome:
        """The reference itself: do float32 activations give finite logits?"""
        for name, options in self._modes.items():
            if self._session.is_open(**options):  # spares loading it again afterwards
                self._kept[name] = self._logits(**options)
        logits = self._logits(**EXACT)
        wrong = int(np.count_nonzero(~np.isfinite(logits)))
        if wrong:
            return Outcome(f"expected finite logits, found {wrong:,} that are not", True)
        self._exact = logits
        size = f"{len(logits)} tokens, largest logit {np.abs(logits).max():.1f}"
        return Outcome(f"finite logits of {size}", figures={"tokens": len(logits)})

    def mode(self, name: str) -> Outcome:
        """One of `names`, beside the reference."""
        if self._exact is None:
            raise Skipped("there are no f32 logits to compare with")
        panels = self._session.source.panels
        if name == "kl q8" and panels is not None:
            raise Skipped(f"the model is packed with {panels} weights")
        near = self._kept.pop(name, None)
        if near is None:
            near = self._logits(**self._modes[name])
        found = distance(self._exact, near)
        line = (
            f"{found.kl:.1e} nats from f32 (largest {found.largest:.1e}), "
            f"top-1 the same {found.top1:.1%}, {len(self._exact)} tokens"
        )
        failed = not found.kl <= BOUND[name]  # NaN is not
        if failed:
            line += f"; expected at most {BOUND[name]} nats"
        return Outcome(line, failed, {**asdict(found), "bound": BOUND[name]})

    def _logits(self, **options: Any) -> NDArray[np.float32]:
        """float32 [tokens, vocabulary] of the text that all modes read."""
        config = self._session.config
        if self._tokens is None:
            rows = max(1, KEPT_BYTES // (4 * config.vocab_size))
            self._tokens = self._session.tokens(PROSE, min(TOKENS, rows, config.context_length))
        return self._session.engine(**options).logits(self._tokens)
