"""The progress bar: on a terminal, for work that takes long, and gone afterwards."""

import io

import pytest

from gptoss.cli import progress
from gptoss.cli.progress import Progress, human_bytes


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """Seconds; tests advance clock[0]."""
    now = [0.0]
    monkeypatch.setattr(progress, "monotonic", lambda: now[0])
    return now


def screen(text):
    """What a terminal's line shows after this output."""
    line = ""
    for part in text.split("\r"):
        line = part + line[len(part) :]
    return line.rstrip()


def test_shown_while_it_runs_and_cleared_at_the_end(clock):
    terminal = Terminal()
    with Progress("loading", terminal) as bar:
        clock[0] = 1.0
        bar(2_500_000, 10_000_000)
        assert screen(terminal.getvalue()) == (
            "loading [########······················]  25% 2.50 MB of 10.00 MB"
        )
        clock[0] = 1.01
        bar(2_600_000, 10_000_000)  # too soon to draw again
        assert "2.60" not in terminal.getvalue()
        clock[0] = 2.0
        bar(10_000_000, 10_000_000)
        assert "100%" in screen(terminal.getvalue())
    assert screen(terminal.getvalue()) == ""


def test_short_work_shows_nothing(clock):
    terminal = Terminal()
    with Progress("loading", terminal) as bar:
        clock[0] = 0.4
        bar(1, 2)
    assert terminal.getvalue() == ""


def test_nothing_is_written_to_a_file(clock):
    file = io.StringIO()
    with Progress("loading", file) as bar:
        clock[0] = 9.0
        bar(1, 2)
    assert file.getvalue() == ""


def test_a_terminal_without_unicode(clock):
    buffer = io.BytesIO()
    terminal = io.TextIOWrapper(buffer, encoding="ascii", write_through=True)
    terminal.isatty = lambda: True
    with Progress("loading", terminal) as bar:
        clock[0] = 9.0
        bar(1, 2)
    assert b"[###############...............]  50%" in buffer.getvalue()


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (13_760_000_000, "13.76 GB"),
        (2e12, "2.00 TB"),
    ],
)
def test_human_bytes(count, text):
    assert human_bytes(count) == text
