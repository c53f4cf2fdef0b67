"""A text as a page: how likely the model thought each token, and what else it thought of."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from gptoss.errors import Error
from gptoss.train.trace import Trace


@dataclass(frozen=True)
class TokenView:
    """A token of the text; the first has no probability: nothing came before it.

    alternatives: (id, probability) of the likeliest tokens at its place, best first.
    """

    token: int
    probability: float | None
    rank: int | None  # 1 = it was the likeliest
    alternatives: list[tuple[int, float]]

    @property
    def bits(self) -> float | None:
        """Surprisal, −log2 of the probability."""
        return None if self.probability is None else float(-np.log2(max(self.probability, 1e-300)))


def token_views(trace: Trace, best: int = 5) -> list[TokenView]:
    """Of each token, by softmax over the logits before it, in float64."""
    if best < 0:
        raise Error(f"best: expected 0 or more, found {best}")
    logits = trace.logits.astype(np.float64)
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    views = [TokenView(trace.tokens[0], None, None, [])]
    for place, token in enumerate(trace.tokens[1:]):
        row = p[place]
        order = np.argsort(-row, kind="stable")[:best]
        views.append(
            TokenView(
                token=token,
                probability=float(row[token]),
                rank=int((row > row[token]).sum()) + 1,
                alternatives=[(int(n), float(row[n])) for n in order],
            )
        )
    return views


def bits_per_token(views: Sequence[TokenView]) -> float:
    """Mean surprisal of all tokens but the first; NaN where there is no other."""
    bits = [view.bits for view in views if view.bits is not None]
    return float(np.mean(bits)) if bits else float("nan")


_STYLE = """
body { font: 17px/2 Georgia, serif; max-width: 46em; margin: 2em auto; padding: 0 1em; color: #000;
       background: #fff }
p.about { font: 14px/1.5 system-ui, sans-serif }
.t { position: relative; border-bottom: 2px solid transparent; white-space: pre-wrap }
.t.likeliest { border-bottom-color: #000 }
.t .more { display: none; position: absolute; left: 0; top: 1.7em; z-index: 1; background: #fff;
           color: #000; border: 1px solid #000; padding: .4em .7em; font: 13px/1.5 monospace;
           white-space: pre; box-shadow: 2px 2px 6px #0003 }
.t:hover .more, .t:focus .more { display: block }
"""


def page(
    views: Sequence[TokenView], name_of: Callable[[int], str], title: str = "Token probabilities"
) -> str:
    """A self-contained HTML page: darker is less likely; hover or tab shows the alternatives."""
    parts = [_token(view, name_of) for view in views]
    mean = bits_per_token(views)
    about = (
        f"{len(views)} tokens, {mean:.2f} bits per token on average. The darker the ground, the "
        "more surprising the token; underlined ones were the likeliest. Point at a token for its "
        "probability and the likeliest tokens at its place."
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>\n"
        f'<h1>{html.escape(title)}</h1>\n<p class="about">{html.escape(about)}</p>\n'
        f"<div>{''.join(parts)}</div>\n</body></html>\n"
    )


def _token(view: TokenView, name_of: Callable[[int], str]) -> str:
    text = html.escape(name_of(view.token))
    if view.probability is None or view.bits is None:
        return f'<span class="t">{text}</span>'
    # 0 bits white, 12 bits and more dark; the writing turns white where the ground is dark
    ground = round(255 - min(1.0, view.bits / 12) * 175)
    ink = "#fff" if ground < 140 else "#000"
    lines = [f"p {view.probability:.4f}  {view.bits:.2f} bits  rank {view.rank}"]
    lines += [f"{p:.4f}  {_shown(name_of(token))}" for token, p in view.alternatives]
    more = html.escape("\n".join(lines))
    kind = "t likeliest" if view.rank == 1 else "t"
    return (
        f'<span class="{kind}" tabindex="0" style="background:rgb({ground},{ground},{ground});'
        f'color:{ink}">{text}<span class="more">{more}</span></span>'
    )


def _shown(text: str) -> str:
    return repr(text)[1:-1].replace(" ", "␣") or "∅"
