"""`gptoss finetune`."""

from __future__ import annotations

import argparse

NAME = "finetune"
HELP = "Fine-tune a model on conversations, preferences or texts."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""


def run(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Carry the command out; the exit code."""
    raise NotImplementedError
