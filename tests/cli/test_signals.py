"""SIGTERM, SIGHUP and SIGKILL in the middle of writing a model: what is left, and for how long."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from waiting import PATIENCE, until

from gptoss import Error
from gptoss.checkpoint import open_checkpoint, write_checkpoint
from gptoss.checkpoint.write import new_directory
from gptoss.cli.signals import Terminated, raising_terminated

from ..stopped import partials, stop, while_writing

TERM, HUP, INT, KILL = signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGKILL
COMMANDS = {
    "convert": ("convert", "synthetic:tiny", "OUT", "--layout", "huggingface"),
    "pack": ("convert", "synthetic:tiny", "OUT", "--layout", "packed"),
    "synth": ("synth", "tiny", "OUT"),
}


def written(out: Path, name: str) -> list[object]:
    return [out if part == "OUT" else part for part in COMMANDS[name]]


@pytest.mark.parametrize("number", [TERM, HUP])
@pytest.mark.parametrize("name", COMMANDS)
def test_nothing_is_left(tmp_path: Path, name: str, number: signal.Signals) -> None:
    process = while_writing(tmp_path, *written(tmp_path / "out", name))
    assert stop(process, number) == (128 + number, f"gptoss: ended by {number.name}\n")
    assert list(tmp_path.iterdir()) == []


def test_a_second_signal_does_not_interrupt_the_clearing_away(tmp_path: Path) -> None:
    process = while_writing(tmp_path, *written(tmp_path / "out", "synth"))
    code, stderr = stop(process, HUP, TERM, TERM, HUP)
    assert (code, stderr) in [(128 + n, f"gptoss: ended by {n.name}\n") for n in (HUP, TERM)]
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path: Path) -> None:
    process = while_writing(tmp_path, *written(tmp_path / "out", "synth"))
    assert stop(process, KILL)[0] == -KILL
    (left,) = partials(tmp_path)
    assert (tmp_path / left / "model.safetensors").exists()
    with open_checkpoint("synthetic:tiny") as source:
        write_checkpoint(source, tmp_path / "other")  # another target leaves it alone
        assert partials(tmp_path) == [left]
        write_checkpoint(source, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "out"]


def test_what_a_living_process_writes_stays(tmp_path: Path) -> None:
    process = while_writing(tmp_path, *written(tmp_path / "out", "synth"))
    before = partials(tmp_path)
    with open_checkpoint("synthetic:tiny") as source:
        write_checkpoint(source, tmp_path / "out")
    assert partials(tmp_path) == before
    assert process.stdin is not None
    process.stdin.close()  # it goes on, and finds that it was not the first
    assert process.wait(120) == 1
    assert process.stderr is not None and "cannot be written" in process.stderr.read()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_only_directories_of_that_name_are_swept(tmp_path: Path) -> None:
    kept = [
        ".out.partial-0123456",
        ".out.partial-0123456g",
        ".out.partial-012345678",
        ".out2.partial-01234567",
        "out.partial-01234567",
        ".out.partial-a.partial-01234567",
        ".outxpartial-01234567",
    ]
    for name in [*kept, ".out.partial-01234567", ".out.partial-89abcdef"]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("x")
    (tmp_path / ".out.partial-00000000").write_text("a file")
    (tmp_path / ".out.partial-11111111").symlink_to(tmp_path / kept[0])
    with pytest.raises(ZeroDivisionError), new_directory(tmp_path / "out", 0):
        raise ZeroDivisionError
    left = [*kept, ".out.partial-00000000", ".out.partial-11111111"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(left)
    assert all((tmp_path / name / "file").exists() for name in kept)


def test_leftovers_are_removed_where_the_target_is_there(tmp_path: Path) -> None:
    (tmp_path / ".out.partial-01234567").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").write_text("x")
    with (
        pytest.raises(Error, match="expected a new or empty directory"),
        new_directory(tmp_path / "out", 0),
    ):
        raise AssertionError
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_two_writers_in_one_process(tmp_path: Path) -> None:
    with new_directory(tmp_path / "out", 0) as (_, first):
        (first / "file").write_text("first")
        with (
            pytest.raises(Error, match="cannot be written"),
            new_directory(tmp_path / "out", 0) as (_, second),
        ):
            assert first.is_dir() and second.is_dir() and first != second
            (tmp_path / "out").mkdir()
            (tmp_path / "out" / "file").write_text("third")
        (tmp_path / "out" / "file").unlink()
    assert (tmp_path / "out" / "file").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether a leftover's writer lives cannot be told there: it stays."""

    def unsupported(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("gptoss.checkpoint.write.flock", unsupported)
    (tmp_path / ".out.partial-01234567").mkdir()
    with new_directory(tmp_path / "out", 0) as (_, partial):
        (partial / "file").write_text("x")
    assert (tmp_path / "out" / "file").exists()
    assert partials(tmp_path) == [".out.partial-01234567"]


def test_a_sweeper_that_is_faster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes a new directory before that is locked: the writer begins another."""
    from gptoss.checkpoint import write

    lock, taken = write._lock, []

    def swept_first(directory: Path, swept: bool = False) -> int | None:
        if not taken:
            taken.append(directory)
            write._sweep(tmp_path / "out")
            assert not directory.exists()
        return lock(directory, swept)

    monkeypatch.setattr(write, "_lock", swept_first)
    with new_directory(tmp_path / "out", 0) as (_, partial):
        assert partial.is_dir() and partial != taken[0]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_handlers_are_put_back() -> None:
    # Other tests may have left theirs (Ray does), and nohup has SIGHUP ignored.
    before = {number: signal.signal(number, signal.SIG_DFL) for number in (TERM, HUP)}
    try:
        with pytest.raises(Terminated) as caught, raising_terminated():
            os.kill(os.getpid(), TERM)
        assert caught.value.number == TERM
        assert signal.getsignal(TERM) == signal.getsignal(HUP) == signal.SIG_DFL
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_handlers_of_others_are_left_alone() -> None:
    """SIGHUP is ignored under nohup; a program that calls `main` may have handlers of its own."""
    heard: list[int] = []
    before = signal.signal(TERM, lambda number, frame: heard.append(number))
    ignored = signal.signal(HUP, signal.SIG_IGN)
    try:
        with raising_terminated():
            os.kill(os.getpid(), HUP)
            os.kill(os.getpid(), TERM)
        assert heard == [TERM] and signal.getsignal(HUP) == signal.SIG_IGN
    finally:
        signal.signal(TERM, before)
        signal.signal(HUP, ignored)


def test_in_a_thread_nothing_changes() -> None:
    found: list[object] = []

    def work() -> None:
        with raising_terminated():
            found.append(signal.getsignal(TERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [signal.getsignal(TERM)]


@pytest.mark.parametrize(
    "command", [["generate", "x", "-m"], ["serve", "--port", "0"], ["run", "-m"]]
)
def test_ctrl_c_while_a_model_loads(command, tmp_path, environment):
    """Within a moment, and without a traceback."""
    spec = "synthetic:gpt-oss-20b?layers=3"
    child = subprocess.Popen(
        [sys.executable, "-m", "gptoss", *command, spec],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    # It maps gigabytes while it loads.
    status = Path(f"/proc/{child.pid}/status")
    until(lambda: memory(status) > 300_000, "loading")
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=PATIENCE)
    assert child.returncode == 130 and "Traceback" not in said


def memory(status):
    """Kilobytes that a process holds."""
    found = re.search(r"VmRSS:\s+(\d+)", status.read_text())
    return int(found[1]) if found else 0
