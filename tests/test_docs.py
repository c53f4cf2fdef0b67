"""What documentation and comments refer to is there: files, headings, decisions."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SPEC = ROOT / "docs" / "spec.md"
ADR = ROOT / "docs" / "adr"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
SOURCES = [
    path
    for folder in ("core", "cuda", "bindings", "gptoss", "tests", "tools", "bench")
    for path in sorted((ROOT / folder).rglob("*"))
    if path.suffix in {".py", ".pyx", ".pxd", ".pyi", ".h", ".cpp", ".cu", ".cuh", ".txt"}
    and path != Path(__file__)
]
# docs/spec.md "Attention", which may be broken into two lines of a comment
CITED = re.compile(r'docs/spec\.md[\s/#]*"([^"]+)"')
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)\s#]*)(?:#([^)\s]*))?\)")


def headings(page: Path) -> list[str]:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    return re.findall(r"^#+ (.+)$", text, flags=re.M)


def anchor(heading: str) -> str:
    """The fragment that GitHub gives to a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    wrong = []
    for target, fragment in LINK.findall(page.read_text(encoding="utf-8")):
        path = page.parent / target if target else page
        known = path.exists() and (
            not fragment or path.suffix != ".md" or fragment in map(anchor, headings(path))
        )
        if not known:
            wrong.append(f"{target}#{fragment}" if fragment else target)
    assert wrong == []


def test_comments_cite_headings_of_the_specification() -> None:
    known = set(headings(SPEC))
    cited = [
        (str(path.relative_to(ROOT)), heading)
        for path in SOURCES
        for heading in CITED.findall(path.read_text(encoding="utf-8", errors="replace"))
    ]
    assert cited
    assert [place for place in cited if place[1] not in known] == []


def test_decisions_are_listed_and_those_cited_exist() -> None:
    listing = (ADR / "README.md").read_text(encoding="utf-8")
    records = {path.name for path in ADR.glob("[0-9]*.md")}
    assert set(re.findall(r"\]\(([0-9]{4}-[\w-]+\.md)\)", listing)) == records
    numbers = {name[:4] for name in records}
    cited = [
        (str(path.relative_to(ROOT)), number)
        for path in SOURCES
        for number in re.findall(
            r"docs/adr/(\d{4})", path.read_text(encoding="utf-8", errors="replace")
        )
    ]
    assert [place for place in cited if place[1] not in numbers] == []
