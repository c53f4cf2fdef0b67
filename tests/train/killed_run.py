"""Run by test_resume.py: trains a small model in child processes that are killed with SIGKILL.

Arguments: configuration (JSON), data, directory of the whole run, directory of the killed one. Each
child goes on where the one before it was killed. PyTorch is imported once, before the forks.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # the first optimizer would import it, in every child

from gptoss.train.model.architecture import Architecture
from gptoss.train.run import trainer as loop
from gptoss.train.run.logs import Logs
from gptoss.train.run.settings import Settings

# (step, place): where a child kills itself; the last lives on
KILLS = [(1, "logged"), (3, "step"), (4, "writing"), (6, "saved")]


def kill_at(step: int, place: str) -> None:
    """Makes this process end there, as if power had failed."""

    def strike(found: int, here: str) -> None:
        if (found, here) == (step, place):
            os.kill(os.getpid(), signal.SIGKILL)

    take, save, record, write = (
        loop.Trainer.train_step,
        loop.Trainer.save,
        Logs.record,
        torch.save,
    )

    def train_step(self: Any) -> Any:
        found = take(self)
        strike(self.step, "step")
        return found

    def saved(self: Any) -> None:
        save(self)
        strike(self.step, "saved")

    def logged(self: Any, found: dict[str, Any], durable: bool = False) -> None:
        record(self, found, durable)
        strike(found.get("step", 0), "logged")

    def half(state: Any, file: Any) -> None:
        if (state["step"], "writing") == (step, place):
            file.write(b"PK\x03\x04 half of a state")
            file.flush()
        strike(state["step"], "writing")
        write(state, file)

    loop.Trainer.train_step, loop.Trainer.save = train_step, saved  # type: ignore[method-assign]
    Logs.record, torch.save = logged, half  # type: ignore[method-assign]


def train(about: dict[str, Any], data: Path, out: Path) -> None:
    torch.set_num_threads(1)
    architecture = Architecture.from_dict(about["architecture"])
    loop.Trainer(architecture, Settings(**about["settings"]), data, out).run(quiet=True)


def child(about: dict[str, Any], data: Path, out: Path, kill: tuple[int, str] | None) -> int:
    number = os.fork()
    if number == 0:
        if kill is not None:
            kill_at(*kill)
        train(about, data, out)
        os._exit(0)
    return number


def main() -> None:
    about = json.loads(sys.argv[1])
    data, whole, parts = (Path(argument) for argument in sys.argv[2:])
    assert os.waitpid(child(about, data, whole, None), 0)[1] == 0
    for kill in KILLS:
        _, status = os.waitpid(child(about, data, parts, kill), 0)
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, kill
    # and once from outside, wherever it is
    number = child(about, data, parts, None)
    log = parts / loop.LOG_FILE
    while len(log.read_bytes().splitlines()) < 9:
        time.sleep(0.001)
    os.kill(number, signal.SIGKILL)
    os.waitpid(number, 0)
    assert os.waitpid(child(about, data, parts, None), 0)[1] == 0


if __name__ == "__main__":
    main()
