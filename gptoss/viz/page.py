"""A text as a page: how likely the model thought each token, and what else it thought of."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gptoss.errors import Error
from gptoss.viz.figures import printable


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


def token_views(
    tokens: Sequence[int], logits: NDArray[np.floating], best: int = 5
) -> list[TokenView]:
    """Of each of S tokens, by softmax over the logits before it, in float64.

    logits: [S, V]; row i predicts token i + 1, the last row nothing that is shown.
    """
    if best < 0:
        raise Error(f"best: expected 0 or more, found {best}")
    if len(logits) != len(tokens):
        raise Error(f"logits: expected {len(tokens)} rows, one per token, found {len(logits)}")
    views = [TokenView(token, None, None, []) for token in tokens[:1]]
    for row, token in zip(logits[:-1], tokens[1:], strict=True):
        p = np.exp(row.astype(np.float64) - row.max())
        p /= p.sum()
        order = np.argsort(-p, kind="stable")[:best]
        views.append(
            TokenView(
                token=int(token),
                probability=float(p[token]),
                rank=int((p > p[token]).sum()) + 1,
                alternatives=[(int(n), float(p[n])) for n in order],
            )
        )
    return views


def bits_per_token(views: Sequence[TokenView]) -> float:
    """Mean surprisal of all tokens but the first; NaN where there is no other."""
    bits = [view.bits for view in views if view.bits is not None]
    return float(np.mean(bits)) if bits else float("nan")


DARKEST = 12  # bits of surprisal, and more
_STYLE = """
body { font: 17px/2 Georgia, serif; max-width: 46em; margin: 2em auto; padding: 0 1em; color: #000;
       background: #fff }
p.about { font: 14px/1.7 system-ui, sans-serif }
.t { position: relative; padding: .15em 0; border-left: 1px solid #bbb;
     border-bottom: 2px solid transparent; white-space: pre-wrap }
.t.likeliest { border-bottom-color: #000 }
.t .more { display: none; position: absolute; left: 0; top: 1.9em; z-index: 1; background: #fff;
           color: #000; border: 1px solid #000; padding: .4em .7em; font: 13px/1.5 monospace;
           white-space: pre; box-shadow: 2px 2px 6px #0003 }
.t:hover .more, .t:focus .more { display: block }
.scale span { padding: .15em .6em; border: 1px solid #bbb }
"""


def page(
    views: Sequence[TokenView], name_of: Callable[[int], str], title: str = "Token probabilities"
) -> str:
    """A self-contained HTML page: darker is less likely; hover or tab shows the alternatives.

    name_of: the text of a token; whatever it is, it is escaped in the page.
    """
    about = (
        "The darker the ground, the more surprising the token; underlined ones were the likeliest. "
        "Point at a token, or tab to it, for its probability, its surprisal −log2 p, and the "
        "likeliest tokens at its place."
    )
    total = "1 token" if len(views) == 1 else f"{len(views)} tokens"
    if len(views) > 1:
        total += f", {bits_per_token(views):.2f} bits per token on average (the first is given)"
    scale = "".join(
        f'<span style="{_colours(bits)}">{bits}</span>' for bits in range(0, DARKEST + 1, 2)
    )
    name = html.escape(title)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{name}</title><style>{_STYLE}</style></head><body>\n"
        f'<h1>{name}</h1>\n<p class="about">{total}. {html.escape(about)}</p>\n'
        f'<p class="about scale">bits of surprisal: {scale} and more</p>\n'
        f"<div>{''.join(_token(view, name_of) for view in views)}</div>\n</body></html>\n"
    )


def _visible(text: str) -> str:
    """Control and format characters by their code points: they would upset the page."""
    return "".join(c if c.isprintable() or c in "\n\t" else f"U+{ord(c):04X}" for c in text)


def _colours(bits: float) -> str:
    """The ground from white to dark; the writing turns white where the ground is dark."""
    ground = round(255 - min(1.0, bits / DARKEST) * 175)
    return f"background:rgb({ground},{ground},{ground});color:{'#fff' if ground < 140 else '#000'}"


def _token(view: TokenView, name_of: Callable[[int], str]) -> str:
    text = html.escape(_visible(name_of(view.token)) or "∅")
    if view.probability is None or view.bits is None:
        return f'<span class="t">{text}</span>'
    lines = [f"p {view.probability:.4f}  {view.bits:.2f} bits  rank {view.rank}"]
    lines += [
        f"{p:.4f}  {printable(name_of(token), 40, any_font=True)}" for token, p in view.alternatives
    ]
    more = html.escape("\n".join(lines))
    kind = "t likeliest" if view.rank == 1 else "t"
    return (
        f'<span class="{kind}" tabindex="0" style="{_colours(view.bits)}">{text}'
        f'<span class="more">{more}</span></span>'
    )
