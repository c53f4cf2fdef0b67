"""No check ends another."""

from __future__ import annotations

import pytest

from gptoss.errors import Error
from gptoss.eval.outcome import Check, Outcome, Skipped, run_checks


class PanicException(BaseException):  # PyO3 calls it so
    """What a panic inside a library of Rust becomes."""


def raising(error: BaseException):
    def run() -> Outcome:
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "verdict", "line"),
    [
        (Error("x: expected\n 1"), "FAILED", "x: expected 1"),
        (OSError(5, "Input/output error"), "FAILED", "[Errno 5] Input/output error"),
        (MemoryError(), "FAILED", "out of memory"),
        (ZeroDivisionError("y"), "FAILED", "unexpected ZeroDivisionError: y"),
        (PanicException("z"), "FAILED", "unexpected PanicException: z"),
        (Skipped("not here"), "skipped", "not here"),
    ],
)
def test_whatever_is_raised(error, verdict, line):
    checks = [Check("bad", raising(error)), Check("good", lambda: Outcome("well"))]
    begun, ended = [], []
    results, interrupted = run_checks(checks, begin=begun.append, end=ended.append)
    assert [(each.verdict, each.line) for each in results] == [(verdict, line), ("ok", "well")]
    assert begun == ["bad", "good"] and ended == results and not interrupted


def test_failed_and_its_figures():
    checks = [Check("bad", lambda: Outcome("ill", True, {"n": 3}, ("more",)))]
    (result,), _ = run_checks(checks)
    assert (result.verdict, result.figures, result.details) == ("FAILED", {"n": 3}, ("more",))


def test_ctrl_c_skips_the_rest():
    checks = [
        Check("good", lambda: Outcome("well")),
        Check("long", raising(KeyboardInterrupt())),
        Check("never", raising(AssertionError("it ran"))),
    ]
    results, interrupted = run_checks(checks)
    assert interrupted
    assert [each.verdict for each in results] == ["ok", "skipped", "skipped"]
    assert [each.line for each in results][1:] == ["interrupted", "not reached: interrupted"]


def test_quick_leaves_out_what_is_slow():
    checks = [Check("slow", raising(AssertionError("it ran")), slow=True)]
    (result,), _ = run_checks(checks, quick=True)
    assert result.verdict == "skipped"
