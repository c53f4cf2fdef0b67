"""Hints at packages that are missing: never at a name on PyPI that is not ours."""

import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from gptoss import extras

ROOT = Path(__file__).parents[1]
TEXTS = [
    path
    for folder in ("gptoss", "docs", "tools", "bench", "tests")
    for path in sorted((ROOT / folder).rglob("*"))
    if path.suffix in {".py", ".md", ".ipynb", ".sh", ".html", ".js"} and path != Path(__file__)
] + sorted(ROOT.glob("*.md"))


class Installed:
    """A distribution. origin: where it was installed from, as PEP 610 has it."""

    requires = (
        "numpy>=1.25",
        'llguidance>=1.9; extra == "grammar"',
        "gptoss[grammar]; extra == 'serve'",
        "starlette>=0.40; extra == 'serve'",
        'tomli>=2; python_version < "3.11" and extra == "train"',
    )

    def __init__(self, origin=None):
        self.origin = origin

    def read_text(self, name):
        assert name == "direct_url.json"
        return self.origin


@pytest.fixture
def installed(monkeypatch):
    def install(origin):
        monkeypatch.setattr(extras, "distribution", lambda name: Installed(origin))

    return install


@pytest.mark.parametrize(
    "origin", [None, "{", "[]", '{"url": "file:///tmp/x.whl", "archive_info": {}}',
               '{"url": "file:///no/such/folder", "dir_info": {}}', '{"dir_info": {}}'],
)  # fmt: skip
def test_a_wheel_names_the_packages(installed, origin):
    installed(origin)
    assert extras.install_hint("serve") == "pip install 'llguidance>=1.9' 'starlette>=0.40'"
    assert extras.install_hint("train") == "pip install 'tomli>=2'"
    for word in ("grammar", "serve"):
        assert "gptoss" not in extras.install_hint(word)


def test_a_checkout_names_itself(installed, tmp_path):
    folder = tmp_path / "with blank"
    folder.mkdir()
    (folder / "pyproject.toml").write_text("")
    installed(f'{{"url": "{folder.as_uri()}", "dir_info": {{"editable": true}}}}')
    assert extras.install_hint("grammar", "train") == f"pip install '{folder}[grammar,train]'"


def test_what_this_installation_says():
    for extra in ("grammar", "serve", "ray", "train"):
        hint = extras.install_hint(extra)
        words = re.findall(r"'([^']+)'|(\S+)", hint.removeprefix("pip install "))
        for word in (quoted or plain for quoted, plain in words):
            assert word.endswith(f"[{extra}]") or Requirement(word).name != "gptoss"


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_nobody_is_told_to_install_the_name(path):
    text = path.read_text(encoding="utf-8")
    found = re.findall(
        r"pip3? install [^\n`]*?(?<![\w./-])gptoss(?:\[|\b(?![-_./\w]))[^\n`]*", text
    )
    # The module that says why, in its first words.
    assert not [line for line in found if path.name != "extras.py"], found
