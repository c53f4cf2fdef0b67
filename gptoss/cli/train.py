"""`gptoss train`."""

from __future__ import annotations

import argparse

NAME = "train"
HELP = "Train a model, or go on with a run."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""


def run(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Carry the command out; the exit code."""
    raise NotImplementedError
