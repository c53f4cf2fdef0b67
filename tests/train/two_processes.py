"""Run by test_distributed.py under torchrun: small runs, on as many processes as there are.

Arguments: configuration (JSON: architecture, settings, and runs: name → changes to the settings),
data, directory. A run with "until" stops there. In the one called "nan", one process has one.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path

import torch

from gptoss.train.model.architecture import Architecture
from gptoss.train.run.distributed import leave
from gptoss.train.run.settings import Settings
from gptoss.train.run.trainer import Diverged, Trainer


def main() -> None:
    about, data, out = json.loads(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    architecture = Architecture.from_dict(about["architecture"])
    for name, changes in about["runs"].items():
        until = changes.pop("until", None)
        settings = dataclasses.replace(Settings(**about["settings"]), **changes)
        run = Trainer(architecture, settings, data, out / name)
        if name == "nan" and run.world.rank == 1:
            shard = run.model.block[1].attn.out.bias
            with torch.no_grad():
                shard.fill_(float("nan"))
        try:
            run.run(until=until, quiet=True)
        except Diverged as error:
            (out / f"{name}.{run.world.rank}.txt").write_text(str(error))
    leave()
    os._exit(0)  # as `gptoss train` does


if __name__ == "__main__":
    main()
