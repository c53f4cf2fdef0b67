"""docs/options.md, printed from the table of options: `python tools/document_options.py`."""

from __future__ import annotations

from pathlib import Path

from gptoss.server.api.option import Option
from gptoss.server.api.option_table import TABLE

PAGE = Path(__file__).parents[1] / "docs" / "options.md"
_COLUMNS = "| option | of | | what it does |\n|---|---|---|---|\n"
_VERDICTS = ("done", "mapped", "refused")
_ROUTES = {
    "chat": "`/v1/chat/completions`",
    "responses": "`/v1/responses`",
    "completions": "`/v1/completions`",
    "tokenize": "`/tokenize`",
    "detokenize": "`/detokenize`",
}
_HEAD = """# Options

Printed from the table that requests are read by (`gptoss/server/api/option_table.py`) with
`python tools/document_options.py`; a test holds the two together. What it does for you is in
[serving.md](serving.md).

- **done**: does what its author says.
- **mapped**: is taken, and does what the last column tells.
- **refused**: a value that asks for something is answered 400 with its name in `param`. null,
  false, 0, an empty text or list, and what the option is by itself elsewhere, ask for nothing.

A key that is in no table is no error: the answer's header `x-gptoss-ignored` names it. Inside of
`structured_outputs`, where it would ask for nothing, it is one. null is the same as no key.
"""


def page() -> str:
    """The whole page."""
    parts = [_HEAD]
    for route, name in _ROUTES.items():
        mine = [option for option in TABLE if route in option.routes]
        rows = [_row(o) for verdict in _VERDICTS for o in mine if o.verdict == verdict]
        parts.append(f"## {name}\n\n{_COLUMNS}{''.join(rows)}")
    return "\n".join(parts)


def _row(option: Option) -> str:
    says = option.says.replace("|", "\\|")
    return f"| `{option.name}` | {option.of} | {option.verdict} | {says} |\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
