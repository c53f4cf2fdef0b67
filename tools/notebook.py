"""Run, check and edit the notebooks of docs/learn.

    python tools/notebook.py run docs/learn/*.ipynb      execute in place
    python tools/notebook.py check docs/learn/*.ipynb    execute copies with small settings
    python tools/notebook.py read NOTEBOOK.ipynb SCRIPT.py
    python tools/notebook.py write SCRIPT.py NOTEBOOK.ipynb

A notebook is kept with its outputs, and without what changes from run to run: times, cell ids,
versions of the kernel. A script has a `# %%` line before each cell of code and `# %% [markdown]`
before each cell of text, whose lines are comments. Under small settings (GPTOSS_LEARN=small in the
environment) a notebook trains less; its assertions hold there too.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import sys
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

TIMEOUT = 900  # seconds a cell may take
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def execute(path: Path, small: bool = False) -> Any:
    """The notebook at `path` with fresh outputs. Raises nbclient's CellExecutionError."""
    notebook = nbformat.read(path, as_version=4)
    before = os.environ.get("GPTOSS_LEARN")
    os.environ["GPTOSS_LEARN"] = "small" if small else "full"
    try:
        # the kernel starts in the notebook's folder: relative paths mean the same for readers
        NotebookClient(
            notebook,
            timeout=TIMEOUT,
            kernel_name="python3",
            resources={"metadata": {"path": str(path.parent)}},
        ).execute()
    finally:
        if before is None:
            del os.environ["GPTOSS_LEARN"]
        else:
            os.environ["GPTOSS_LEARN"] = before
    return notebook


def settled(notebook: Any) -> Any:
    """`notebook` without what differs between two runs, and with ids that follow from its text."""
    notebook.metadata = nbformat.from_dict(
        {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    )
    notebook.nbformat_minor = 5
    for number, cell in enumerate(notebook.cells):
        cell.metadata = nbformat.from_dict({})
        cell.id = hashlib.sha256(f"{number}\n{cell.source}".encode()).hexdigest()[:12]
        if cell.cell_type == "code":
            cell.outputs = [_settled_output(output) for output in _joined(cell.outputs)]
    return notebook


def _joined(outputs: list[Any]) -> list[Any]:
    """Pieces of one stream in a row as one: how they were cut is chance."""
    found: list[Any] = []
    for output in outputs:
        last = found[-1] if found else None
        if last and output.output_type == "stream" == last.output_type and last.name == output.name:
            last.text += output.text
        else:
            found.append(output)
    return found


def _settled_output(output: Any) -> Any:
    if "metadata" in output:
        output.metadata = nbformat.from_dict({})
    if "text/plain" in output.get("data", {}):
        output.data["text/plain"] = re.sub(r" at 0x[0-9a-f]+", "", output.data["text/plain"])
    return output


def to_script(notebook: Any) -> str:
    """The cells in percent format."""
    parts = []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            text = "\n".join(f"# {line}".rstrip() for line in cell.source.split("\n"))
            parts.append(f"# %% [markdown]\n{text}\n")
        else:
            parts.append(f"# %%\n{cell.source}\n")
    return "\n".join(parts)


def from_script(text: str) -> Any:
    """A notebook without outputs from a script in percent format."""
    cells = []
    for part in re.split(r"^# %%", text, flags=re.MULTILINE)[1:]:
        head, _, body = part.partition("\n")
        body = body.strip("\n")
        if "[markdown]" in head:
            lines = [re.sub(r"^# ?", "", line) for line in body.split("\n")]
            cells.append(nbformat.v4.new_markdown_cell("\n".join(lines)))
        elif body:
            cells.append(nbformat.v4.new_code_cell(body))
    return nbformat.v4.new_notebook(cells=cells)


def save(notebook: Any, path: Path) -> None:
    """Writes beside `path` and renames: a notebook is old or new, never half."""
    partial = path.with_name(path.name + ".partial")
    try:
        nbformat.write(notebook, partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("what", choices=["run", "check", "read", "write"])
    parser.add_argument("paths", type=Path, nargs="+")
    arguments = parser.parse_args()
    paths = arguments.paths
    if arguments.what in ("read", "write") and len(paths) != 2:
        parser.error(f"{arguments.what}: expected two paths, found {len(paths)}")
    if arguments.what == "read":
        paths[1].write_text(to_script(nbformat.read(paths[0], as_version=4)), encoding="utf-8")
    elif arguments.what == "write":
        save(settled(from_script(paths[0].read_text(encoding="utf-8"))), paths[1])
    else:
        failed = [path for path in paths if not _executed(path, keep=arguments.what == "run")]
        if failed:
            print("failed:", *failed, file=sys.stderr)
            return 1
    return 0


def _executed(path: Path, keep: bool) -> bool:
    """Executes one notebook, and keeps its outputs or checks it under small settings."""
    print(path, file=sys.stderr)
    try:
        notebook = execute(path, small=not keep)
    except CellExecutionError as error:
        print(error, file=sys.stderr)
        return False
    if keep:
        save(settled(notebook), path)
    return True


if __name__ == "__main__":
    sys.exit(main())
