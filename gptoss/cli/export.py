"""`gptoss export`."""

from __future__ import annotations

import argparse

NAME = "export"
HELP = "Write a trained model as a checkpoint."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""


def run(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Carry the command out; the exit code."""
    raise NotImplementedError
