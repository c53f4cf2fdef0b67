"""Looking inside a model: the numbers behind each picture, and the picture.

Numbers come from a `gptoss.viz.trace.Trace` (one text through one model) or from the files of a
run; each `draw_…` makes a matplotlib Figure of them. `docs/looking-inside.md` shows them all.
"""

from gptoss.viz.attention import AttentionMap, attention_maps, draw_attention
from gptoss.viz.curves import Curve, draw_curves, read_curve, smoothed
from gptoss.viz.experts import (
    coactivation,
    draw_coactivation,
    draw_entropy,
    draw_load,
    draw_routing,
    expert_load,
    router_entropy,
    routing,
)
from gptoss.viz.figures import printable, save
from gptoss.viz.lens import Lens, draw_lens, logit_lens
from gptoss.viz.page import TokenView, bits_per_token, page, token_views
from gptoss.viz.statistics import Statistics, draw_distributions, draw_statistics, read_statistics
from gptoss.viz.tokens import token_name, token_names

__all__ = [
    "AttentionMap",
    "Curve",
    "Lens",
    "Statistics",
    "TokenView",
    "attention_maps",
    "bits_per_token",
    "coactivation",
    "draw_attention",
    "draw_coactivation",
    "draw_curves",
    "draw_distributions",
    "draw_entropy",
    "draw_lens",
    "draw_load",
    "draw_routing",
    "draw_statistics",
    "expert_load",
    "logit_lens",
    "page",
    "printable",
    "read_curve",
    "read_statistics",
    "router_entropy",
    "routing",
    "save",
    "smoothed",
    "token_name",
    "token_names",
    "token_views",
]
