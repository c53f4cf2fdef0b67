"""`gptoss data`."""

from __future__ import annotations

import argparse

NAME = "data"
HELP = "Turn texts into training data."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""


def run(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Carry the command out; the exit code."""
    raise NotImplementedError
