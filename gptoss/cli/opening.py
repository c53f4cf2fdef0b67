"""An engine as the command line asks for it."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from gptoss.cli.arguments import engine_options
from gptoss.cli.progress import Progress

if TYPE_CHECKING:
    from gptoss import Engine


def open_engine(arguments: argparse.Namespace, *, show: bool = True) -> Engine:
    """The model that `arguments.add_model` named, with a bar while it loads if `show`."""
    from gptoss.engine import Engine

    with Progress("loading") as progress:
        return Engine.from_options(engine_options(arguments), progress if show else None)
