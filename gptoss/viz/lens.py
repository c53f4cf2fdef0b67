"""The logit lens: what the model would say if it stopped after each layer.

The residual stream after each block goes through the final norm and the unembedding as if it were
the last (nostalgebraist 2020, "interpreting GPT: the logit lens").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from gptoss.train.model.model import GptOss
from gptoss.viz.figures import (
    DARK_IS_MUCH,
    add_bar,
    dress,
    label_tokens,
    new_figure,
    printable,
    require_at_most,
)
from gptoss.viz.trace import Trace

MAX_TOKENS = 48  # columns in which a word can still be read
_LONGEST = 8  # characters of a word


@dataclass(frozen=True)
class Lens:
    """After the embedding (row 0) and each block, for each position.

    top: int64 [L + 1, S], the likeliest next token. probability: float64 [L + 1, S], of it.
    target: float64 [L + 1, S − 1], of the token that comes next in the text.
    """

    top: NDArray[np.int64]
    probability: NDArray[np.float64]
    target: NDArray[np.float64]


@torch.no_grad()
def logit_lens(model: GptOss, trace: Trace) -> Lens:
    """softmax(unembedding(norm(residual))) after each block, from a trace of the same model."""
    device, dtype = model.norm.scale.device, model.operand_dtype
    following = torch.tensor(trace.tokens[1:], device=device)[:, None]
    tops, best, targets = [], [], []
    for residual in torch.from_numpy(trace.residuals).to(device):
        logits = model.unembedding(model.norm(residual).to(dtype)).double()
        p = logits.softmax(-1)
        value, token = p.max(-1)
        tops.append(token.cpu().numpy())
        best.append(value.cpu().numpy())
        targets.append(p[:-1].gather(1, following)[:, 0].cpu().numpy())
    return Lens(np.stack(tops), np.stack(best), np.stack(targets))


def draw_lens(lens: Lens, tokens: Sequence[str], names: Sequence[Sequence[str]]) -> Figure:
    """Positions across, layers up, the likeliest next token in each cell, shaded by probability.

    tokens: text of each position. names: text of `lens.top`, [L + 1][S]. Raises Error for more than
    MAX_TOKENS tokens.
    """
    layers, count = lens.top.shape
    require_at_most(count, MAX_TOKENS)
    figure = new_figure(0.62 * count + 2.4, 0.38 * layers + 1.6)
    axes = figure.add_subplot()
    image = axes.imshow(lens.probability, cmap=DARK_IS_MUCH, vmin=0, vmax=1, aspect="auto")
    for (layer, place), probability in np.ndenumerate(lens.probability):
        axes.text(
            place,
            layer,
            f"{printable(names[layer][place], _LONGEST)}\n{probability:.2f}",
            color="white" if probability > 0.6 else "black",
            fontsize=6,
            linespacing=1.1,
            ha="center",
            va="center",
            parse_math=False,
        )
    dress(
        axes, "token read; a cell names the likeliest next one and its probability", "logits from"
    )
    label_tokens(axes, tokens, "x")
    rows = ["embedding", *(f"after layer {n}" for n in range(layers - 1))]
    axes.set_yticks(range(layers), rows)
    axes.invert_yaxis()
    add_bar(figure, image, axes, "probability")
    return figure
