"""A model's vocabulary: nothing is lost on the way to ids and back, and ids are the known ones."""

from __future__ import annotations

import hashlib
import os
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gptoss.errors import Error, shown
from gptoss.eval.outcome import Outcome, Skipped
from gptoss.eval.session import Session
from gptoss.eval.texts import KNOWN, KNOWN_SPECIAL, PROSE, ROUND_TRIPS
from gptoss.tokenizer import HARMONY_SIZE, O200K_FILE, Tokenizer, tokenizer_files
from gptoss.tokenizer.vocabulary import O200K_SHA256

_VARIABLE = "TIKTOKEN_ENCODINGS_BASE"  # where openai-harmony looks for the vocabulary
_VOCABULARIES = (".tiktoken",)


def check_tokenizer(session: Session) -> Outcome:
    """Texts come back whole; of the published vocabulary, ids are the published ones."""
    try:
        tokenizer = session.load_tokenizer()
    except Error as error:
        if has_vocabulary(session.source.directory) or session.published:
            raise
        raise Skipped(" ".join(str(error).split())) from None
    wrong = [*lost(tokenizer), *lost_special(tokenizer)]
    tried = len(ROUND_TRIPS) + 1 + len(tokenizer.special_tokens)
    line = f"{tried} round trips"
    figures: dict[str, Any] = {"vocab_size": tokenizer.vocab_size, "wrong": wrong}
    if session.config.vocab_size == HARMONY_SIZE:
        wrong += unlike_published(tokenizer)
        peer, differing = compare_with_peer(tokenizer) if not wrong else ("not compared", [])
        wrong += differing
        figures["openai_harmony"] = peer
        line += f", known ids of {len(KNOWN) + len(KNOWN_SPECIAL)} texts; openai-harmony: {peer}"
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        return Outcome(f"{wrong[0]}{more}", True, figures)
    return Outcome(line, figures=figures)


def has_vocabulary(directory: Path | None) -> bool:
    """Whether a vocabulary lies there, whatever is in it."""
    if directory is None:
        return False
    return any(
        path.name == "tokenizer.json" or path.suffix in _VOCABULARIES
        for path in tokenizer_files(directory)
    )


def lost(tokenizer: Tokenizer) -> list[str]:
    """Each text that does not come back as it was."""
    found = []
    for text in (*ROUND_TRIPS, PROSE):
        back = tokenizer.decode(tokenizer.encode(text))
        if back != text:
            found.append(f"a text does not come back: expected {shown(text)}, found {shown(back)}")
    return found


def lost_special(tokenizer: Tokenizer) -> list[str]:
    """Each special token whose name is not its id, where allowed, or is more than text."""
    found = []
    for name, token in tokenizer.special_tokens.items():
        ids = tokenizer.encode(name, [name])
        if ids != [token]:
            found.append(f"special token {shown(name)}: expected id {token}, found {shown(ids)}")
        if token in tokenizer.encode(name):
            found.append(f"special token {shown(name)}: expected plain text to be no such token")
    return found


def unlike_published(tokenizer: Tokenizer) -> list[str]:
    """In what the vocabulary differs from o200k_harmony."""
    found = []
    ids = {text: tuple(tokenizer.encode(text)) for text in KNOWN}
    for text in KNOWN_SPECIAL:
        try:
            ids[text] = tuple(tokenizer.encode(text, "all"))
        except Error as error:
            found.append(str(error))
    for text, known in {**KNOWN, **KNOWN_SPECIAL}.items():
        if ids.get(text, known) != known:
            found.append(
                f"ids of {shown(text)}: expected {list(known)} (o200k_harmony), found "
                f"{shown(list(ids[text]))}"
            )
    digest = hashlib.sha256(tokenizer.rank_file()).hexdigest()
    if digest != O200K_SHA256:
        found.append(f"vocabulary: expected sha256 {O200K_SHA256} of its ranks, found {digest}")
    return found


def compare_with_peer(tokenizer: Tokenizer) -> tuple[str, list[str]]:
    """(what became of it, texts of which OpenAI's package openai-harmony has other ids)."""
    if find_spec("openai_harmony") is None:
        return "not installed", []
    before = os.environ.get(_VARIABLE)
    try:
        # It would download the vocabulary; here is the same, as its digest was found to be.
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, O200K_FILE).write_bytes(tokenizer.rank_file())
            os.environ[_VARIABLE] = folder
            return _compare(tokenizer)
    except Exception as error:  # another release of it
        return f"cannot be used ({type(error).__name__})", []
    finally:
        if before is None:
            os.environ.pop(_VARIABLE, None)
        else:
            os.environ[_VARIABLE] = before


def _compare(tokenizer: Tokenizer) -> tuple[str, list[str]]:
    import openai_harmony

    encoding = openai_harmony.load_harmony_encoding(
        openai_harmony.HarmonyEncodingName.HARMONY_GPT_OSS
    )
    differing = []
    texts = [*ROUND_TRIPS, PROSE, *KNOWN]
    for text in texts:
        theirs = encoding.encode(text, allowed_special=set(), disallowed_special=())
        if theirs != tokenizer.encode(text):
            differing.append(f"ids of {shown(text)}: expected those of openai-harmony")
    return f"the same ids of {len(texts)} texts", differing
