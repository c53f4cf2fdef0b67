"""An engine as the command line asks for it."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from gptoss.cli.progress import Progress

if TYPE_CHECKING:
    from gptoss import Engine


def open_engine(arguments: argparse.Namespace, *, show: bool = True) -> Engine:
    """The model that `arguments.add_model` named, with a bar while it loads if `show`."""
    from gptoss.engine import Engine

    with Progress("loading") as progress:
        return Engine(
            arguments.model,
            device=arguments.device,
            activation=arguments.activation,
            weights=arguments.weights,
            kv=arguments.kv,
            tensor_parallel=arguments.tensor_parallel,
            kv_bytes=arguments.kv_bytes,
            threads=arguments.threads,
            prefix_cache=not arguments.no_prefix_cache,
            speculation=not arguments.no_speculation,
            progress=progress if show else None,
        )
