"""Finding a model's vocabulary: beside its weights, in tiktoken's cache, or by download."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import tiktoken
import tiktoken.load

from gptoss.errors import Error
from gptoss.tokenizer import vocabulary
from gptoss.tokenizer.files import holds_vocabulary, tokenizer_files
from gptoss.tokenizer.gguf import read_gguf_vocabulary
from gptoss.tokenizer.tokenizer import Tokenizer
from gptoss.tokenizer.tokenizer_json import NAME as TOKENIZER_JSON
from gptoss.tokenizer.tokenizer_json import read_tokenizer_json
from gptoss.tokenizer.vocabulary import (
    HARMONY_SIZE,
    O200K_FILE,
    O200K_SHA256,
    O200K_URL,
    Vocabulary,
)


class HasVocabSize(Protocol):
    """What is needed of a ModelConfig."""

    @property
    def vocab_size(self) -> int: ...


def load_tokenizer(directory: Path | None, config: HasVocabSize) -> Tokenizer:
    """The tokenizer of a model whose tokenizer files, if any, lie in `directory`.

    Of a GGUF file, which holds its own, `directory` is the file. Otherwise the first of these that
    exists is taken:

    1. a rank file `*.tiktoken` in `directory`: o200k_base.tiktoken, or a vocabulary of the model's
       own, described by tokenizer_config.json (see `vocabulary.read_rank_directory`);
    2. tokenizer.json in `directory`;
    3. where config.vocab_size is 201088, o200k_base.tiktoken from TIKTOKEN_ENCODINGS_BASE, from
       tiktoken's cache, or by tiktoken's own download.

    Raises Error for a damaged file, and, where nothing is at hand, with the file to put where.
    """
    return Tokenizer(load_vocabulary(directory, config))


def load_vocabulary(directory: Path | None, config: HasVocabSize) -> Vocabulary:
    """What `load_tokenizer` makes a tokenizer of. Raises Error as it does."""
    found = None
    if directory is not None and directory.is_file():
        return read_gguf_vocabulary(directory, config.vocab_size)
    if directory is not None:
        found = vocabulary.read_rank_directory(directory, config.vocab_size)
        if found is None and (directory / TOKENIZER_JSON).is_file():
            found = read_tokenizer_json(directory / TOKENIZER_JSON, config.vocab_size)
    if found is None:
        if config.vocab_size != HARMONY_SIZE:
            raise Error(
                f"no tokenizer for this model of {config.vocab_size} tokens: put tokenizer.json, "
                f"or tokenizer.tiktoken and tokenizer_config.json, "
                f"{_into(directory)}; until then only token ids can be used"
            )
        found = _find_harmony(directory)
    return found


def copy_tokenizer_files(place: Path, target: Path, config: HasVocabSize) -> list[str]:
    """Puts the tokenizer's files of `place` into the folder `target`; their names.

    Of a GGUF file, its vocabulary is written as such files. Raises Error.
    """
    if not place.is_file():
        found = {path.name: path for path in tokenizer_files(place)}
        for name, path in found.items():
            shutil.copyfile(path, target / name)
        return list(found)
    if not holds_vocabulary(place):
        return []
    written = vocabulary.vocabulary_files(load_vocabulary(place, config))
    for name, data in written.items():
        (target / name).write_bytes(data)
    return list(written)


def _find_harmony(directory: Path | None) -> Vocabulary:
    base = os.environ.get("TIKTOKEN_ENCODINGS_BASE")
    if base:
        path = Path(base) if Path(base).is_file() else Path(base, O200K_FILE)
        if path.is_file():
            data = vocabulary.read_bytes(path)
            if not vocabulary.is_o200k(data):
                raise Error(
                    f"{path} (from TIKTOKEN_ENCODINGS_BASE): expected sha256 {O200K_SHA256}, "
                    f"found {hashlib.sha256(data).hexdigest()}"
                )
            return vocabulary.harmony(data, str(path), HARMONY_SIZE)
    for path in _cached_files():
        if path.is_file():
            data = vocabulary.read_bytes(path)
            if vocabulary.is_o200k(data):  # tiktoken replaces what is not
                return vocabulary.harmony(data, str(path), HARMONY_SIZE)
    try:
        data = _download()
    except Exception as error:  # a network can fail in any way
        raise Error(
            f"no tokenizer at hand for this model: put {O200K_FILE} (from {O200K_URL}) or the "
            f"published {TOKENIZER_JSON} {_into(directory)}; or set TIKTOKEN_ENCODINGS_BASE to "
            f"the folder that holds {O200K_FILE}. The download failed: {error}"
        ) from None
    return vocabulary.harmony(data, O200K_URL, HARMONY_SIZE)


def _into(directory: Path | None) -> str:
    return f"into {directory}" if directory is not None else "beside the checkpoint"


def _cached_files() -> Iterator[Path]:
    """Where tiktoken keeps what it has downloaded."""
    name = hashlib.sha1(O200K_URL.encode(), usedforsecurity=False).hexdigest()
    for variable in ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR"):
        if directory := os.environ.get(variable):
            yield Path(directory, name)
    yield Path(tempfile.gettempdir(), "data-gym-cache", name)


def _download() -> bytes:
    """o200k_base.tiktoken through tiktoken, which checks it and keeps it in its cache."""
    import ssl
    import urllib.error
    import urllib.request

    # tiktoken waits for an answer without limit, so ask first whether there is one
    try:
        request = urllib.request.Request(O200K_URL, method="HEAD")
        urllib.request.urlopen(request, timeout=10).close()
    except urllib.error.URLError as error:
        if not isinstance(error.reason, ssl.SSLError):  # tiktoken brings certificates of its own
            raise
    data: bytes = tiktoken.load.read_file_cached(O200K_URL, O200K_SHA256)
    return data
