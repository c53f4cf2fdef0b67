"""Every notebook runs from top to bottom, and is kept with its outputs."""

from __future__ import annotations

import base64
import importlib.util
import re
from pathlib import Path
from types import ModuleType

import nbformat
import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "docs" / "learn").glob("*.ipynb"))
LONG = ("01", "05", "06", "07", "08")  # take half a minute and more


def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("notebook_tool", ROOT / "tools" / "notebook.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_path_is_whole() -> None:
    assert [path.name[:2] for path in NOTEBOOKS] == [f"0{n}" for n in range(1, 10)]


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.stem, marks=[pytest.mark.slow] * path.name.startswith(LONG))
        for path in NOTEBOOKS
    ],
)
def test_runs_with_small_settings(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = tool().execute(path, small=True)
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_kept_as_executed(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not any(output.output_type == "error" for cell in code for output in cell.outputs)
    headings = re.findall(
        r"^## (.*)",
        "\n\n".join(c.source for c in notebook.cells if c.cell_type == "markdown"),
        re.M,
    )
    assert headings and headings[-1].startswith("Exercises")
    text = path.read_text(encoding="utf-8")
    assert len(text) < 400_000
    assert not re.search(r"/(?:home|root|tmp|work|usr|opt)/", text), "a path of some machine"
    solutions = Path(__file__).with_name(f"test_solutions_{path.name[:2]}.py")
    assert solutions.exists()


def test_a_script_and_back(tmp_path: Path) -> None:
    script = "# %% [markdown]\n# # Title\n#\n# Text.\n\n# %%\nx = 1\nprint(x)\n"
    module = tool()
    notebook = module.from_script(script)
    assert [cell.cell_type for cell in notebook.cells] == ["markdown", "code"]
    assert notebook.cells[0].source == "# Title\n\nText."
    assert module.to_script(notebook) == script
    nbformat.write(module.settled(notebook), tmp_path / "a.ipynb")
    done = module.settled(module.execute(tmp_path / "a.ipynb"))
    assert done.cells[1].outputs[0].text == "1\n"
    again = module.settled(module.execute(tmp_path / "a.ipynb"))
    assert nbformat.writes(again) == nbformat.writes(done)


def test_a_failure_is_told_and_nothing_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = tool()
    bad, good = tmp_path / "bad.ipynb", tmp_path / "good.ipynb"
    for path, code in ((bad, "assert 1 == 2"), (good, "print(1)")):
        nbformat.write(module.settled(module.from_script(f"# %%\n{code}\n")), path)
    before = bad.read_bytes()
    monkeypatch.setattr("sys.argv", ["notebook.py", "run", str(bad), str(good)])
    assert module.main() == 1
    assert "AssertionError" in (told := capsys.readouterr().err)
    assert told.rstrip().endswith(f"failed: {bad}")
    assert bad.read_bytes() == before
    assert nbformat.read(good, as_version=4).cells[0].outputs[0].text == "1\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.ipynb", "good.ipynb"]


def test_pictures_are_small() -> None:
    for path in NOTEBOOKS:
        for cell in nbformat.read(path, as_version=4).cells:
            for output in cell.get("outputs", []):
                picture = output.get("data", {}).get("image/png", "")
                assert len(base64.b64decode(picture)) <= 60_000, (path.name, cell.id)
