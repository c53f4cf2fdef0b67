"""What a check says in the end, and running many of them so that none ends the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Literal

from gptoss.errors import Error

Verdict = Literal["ok", "FAILED", "skipped"]


class Skipped(Exception):
    """A check cannot be made here; the message says why."""


@dataclass(frozen=True)
class Outcome:
    """What one check found.

    Attributes:
        line: one line for a reader.
        failed: whether what was found is wrong.
        figures: what was measured, for programs: numbers, texts, lists and dictionaries of these.
        details: lines for the report, below the table.
    """

    line: str
    failed: bool = False
    figures: dict[str, Any] = field(default_factory=dict)
    details: tuple[str, ...] = ()


@dataclass(frozen=True)
class Result:
    """An outcome with its check's name, verdict and duration in seconds."""

    name: str
    verdict: Verdict
    line: str
    seconds: float
    figures: dict[str, Any] = field(default_factory=dict)
    details: tuple[str, ...] = ()


@dataclass(frozen=True)
class Check:
    """A check by its name. slow: left out with --quick."""

    name: str
    run: Callable[[], Outcome]
    slow: bool = False


def run_checks(
    checks: Iterable[Check],
    *,
    quick: bool = False,
    begin: Callable[[str], None] = lambda name: None,
    end: Callable[[Result], None] = lambda result: None,
) -> tuple[list[Result], bool]:
    """Run all of them, each whatever became of those before it.

    begin, end: called with the name before each check, and with its result.

    Returns:
        A result for each check; and whether Ctrl-C came: the check that ran then, and those after
        it, are "skipped".
    """
    results: list[Result] = []
    interrupted = False
    for check in checks:
        try:
            if interrupted:
                results.append(_skipped(check, "not reached: interrupted"))
            elif quick and check.slow:
                results.append(_skipped(check, "left out with --quick"))
                end(results[-1])
            else:
                begin(check.name)
                results.append(_timed(check))
                end(results[-1])
        except KeyboardInterrupt:
            interrupted = True
            if not results or results[-1].name != check.name:
                results.append(_skipped(check, "interrupted"))
                end(results[-1])
    return results, interrupted


def _skipped(check: Check, why: str) -> Result:
    return Result(check.name, "skipped", why, 0.0)


def _timed(check: Check) -> Result:
    start = perf_counter()
    verdict, outcome = _run(check)
    seconds = perf_counter() - start
    return Result(check.name, verdict, outcome.line, seconds, outcome.figures, outcome.details)


def _run(check: Check) -> tuple[Verdict, Outcome]:
    try:
        outcome = check.run()
        return "FAILED" if outcome.failed else "ok", outcome
    except Skipped as reason:
        return "skipped", Outcome(str(reason))
    except (Error, OSError) as error:
        return "FAILED", Outcome(" ".join(str(error).split()))
    except MemoryError as error:
        return "FAILED", Outcome(f"out of memory {error}".rstrip())
    except BaseException as error:  # a mistake of ours must not cost the reader all that was found
        # Failures inside libraries of Rust are not even Exceptions.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        text = " ".join(str(error).split())
        return "FAILED", Outcome(f"unexpected {type(error).__name__}: {text}")
