"""A checkout in front of an installed package finds the compiled modules of that.

So it is with `python bench.py` after `pip install .`: the folder of the script comes first.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy

import gptoss
from gptoss.native import _core

# Without site no .pth file is read: an editable installation is not there, and only these are.
CODE = """
import sys
sys.path[:0] = [{checkout!r}, {installed!r}]
sys.path += {others!r}
import gptoss.native
from gptoss.native import _core
print(gptoss.__file__, _core.__file__, sep="\\n")
"""


def test_compiled_modules_are_found_from_a_checkout(tmp_path: Path) -> None:
    source = Path(gptoss.__file__).parent
    checkout, installed = tmp_path / "checkout", tmp_path / "installed"
    only_python = shutil.ignore_patterns("*.so", "__pycache__", "nano")
    for place in (checkout, installed):
        shutil.copytree(source, place / "gptoss", ignore=only_python)
    compiled = Path(_core.__file__)
    shutil.copy(compiled, installed / "gptoss" / "native" / compiled.name)
    others = [str(Path(numpy.__file__).parents[1])]
    code = CODE.format(checkout=str(checkout), installed=str(installed), others=others)
    run = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    package, core = run.stdout.split()
    assert Path(package).is_relative_to(checkout)
    assert Path(core).is_relative_to(installed)
