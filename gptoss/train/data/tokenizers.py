"""Vocabularies for training: published, learned byte pairs, characters, words.

Byte pairs and characters are written as a rank file that tiktoken, and so the engine, loads. Every
vocabulary made here ends with harmony's special tokens (SPECIAL), so that what is trained on it can
be taught conversations later.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from gptoss.errors import Error
from gptoss.tokenizer import Tokenizer, vocabulary
from gptoss.tokenizer import load_tokenizer as load_byte_pairs

END_OF_TEXT = "<|endoftext|>"
STOPS = (END_OF_TEXT, "<|return|>", "<|call|>")
SPECIAL = (
    "<|startoftext|>",
    END_OF_TEXT,
    "<|return|>",
    "<|constrain|>",
    "<|channel|>",
    "<|start|>",
    "<|end|>",
    "<|message|>",
    "<|call|>",
)
KINDS = ("bpe", "o200k_harmony", "characters", "words")
UNKNOWN = "<unk>"

# GPT-2's splitting rule with digits in threes, in syntax that both tiktoken (fancy-regex) and
# tokenizers (oniguruma) read in the same way.
PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
CHARACTER = r"(?s:.)"

RANKS_FILE = "tokenizer.tiktoken"
CONFIG_FILE = "tokenizer_config.json"
WORDS_FILE = "words.json"
HARMONY = "o200k_harmony"


class TextTokenizer(Protocol):
    """What the trainer asks of a tokenizer."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def special(self) -> Mapping[str, int]:
        """Name → id of the special tokens."""

    def encode(self, text: str) -> list[int]:
        """Ordinary text: names of special tokens in it are text too."""

    def decode(self, ids: Iterable[int]) -> str: ...


class BytePairs:
    """A tokenizer that the engine has too."""

    def __init__(self, inner: Tokenizer) -> None:
        self.inner, self.vocab_size = inner, inner.vocab_size
        self.special: Mapping[str, int] = inner.special_tokens

    def encode(self, text: str) -> list[int]:
        return self.inner.encode(text)

    def decode(self, ids: Iterable[int]) -> str:
        return self.inner.decode(ids)


class Words:
    """One id per word, with the blank before it; every other word is ``<unk>``: text is lost."""

    PIECES = re.compile(r" ?\w+| ?[^\w\s]|\s")

    def __init__(self, words: Sequence[str]) -> None:
        """`words`: the vocabulary in order of ids, ``<unk>`` first; SPECIAL come after them."""
        self.words = [*words, *SPECIAL]
        self.ids = {word: number for number, word in enumerate(words)}
        self.special: Mapping[str, int] = {
            name: len(words) + number for number, name in enumerate(SPECIAL)
        }
        self.vocab_size = len(self.words)

    @classmethod
    def pieces(cls, text: str) -> list[str]:
        """`text` cut into words, marks and blanks; joined they are the text."""
        return cls.PIECES.findall(text)

    def encode(self, text: str) -> list[int]:
        return [self.ids.get(piece, 0) for piece in self.pieces(text)]

    def decode(self, ids: Iterable[int]) -> str:
        return "".join(
            self.words[number] if 0 <= number < self.vocab_size else "" for number in ids
        )


def train_bpe(documents: Iterable[str], vocab_size: int) -> dict[bytes, int]:
    """Byte-level BPE (Sennrich et al. 2016, arXiv:1508.07909): token bytes → rank.

    The top len(SPECIAL) of `vocab_size` ids are left free. Raises Error where the text does not
    give that many.
    """
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    wanted = vocab_size - len(SPECIAL)
    if wanted < 256:
        raise Error(
            f"vocab_size: expected at least {256 + len(SPECIAL)} (256 bytes and "
            f"{len(SPECIAL)} special tokens), found {vocab_size}"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=wanted,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    found = tokenizer.get_vocab()
    if len(found) < wanted:
        raise Error(
            f"vocab_size: expected at most {len(found) + len(SPECIAL)} (all that this text "
            f"gives), found {vocab_size}"
        )
    to_byte = {char: byte for byte, char in _byte_characters().items()}
    return {bytes(to_byte[char] for char in token): rank for token, rank in found.items()}


def _byte_characters() -> dict[int, str]:
    """The printable stand-in of each byte in a byte-level vocabulary (GPT-2's table)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {byte: chr(byte) for byte in printable}
    hidden = (byte for byte in range(256) if byte not in table)
    table.update({byte: chr(256 + n) for n, byte in enumerate(hidden)})
    return table


def character_ranks(documents: Iterable[str]) -> dict[bytes, int]:
    """All 256 bytes, then each longer character of the texts: token bytes → rank."""
    seen: set[str] = set()
    for document in documents:
        seen.update(document)
    wide = sorted(char for char in seen if len(char.encode()) > 1)
    tokens = [bytes([byte]) for byte in range(256)] + [char.encode() for char in wide]
    return {token: rank for rank, token in enumerate(tokens)}


def count_words(documents: Iterable[str], vocab_size: int) -> list[str]:
    """``<unk>`` and the most frequent words; ties in alphabetical order."""
    counts: Counter[str] = Counter()
    for document in documents:
        counts.update(Words.pieces(document))
    wanted = vocab_size - len(SPECIAL) - 1
    if wanted < 1:
        raise Error(f"vocab_size: expected at least {len(SPECIAL) + 2}, found {vocab_size}")
    best = sorted(counts, key=lambda word: (-counts[word], word))[:wanted]
    return [UNKNOWN, *best]


class Files(NamedTuple):
    """What a vocabulary is on disk: name → content; and its size."""

    content: dict[str, bytes]
    vocab_size: int


def make_tokenizer(kind: str, documents: Iterable[str], vocab_size: int | None) -> Files:
    """Learns a vocabulary of `kind` from `documents`. Raises Error for sizes that cannot be."""
    if kind not in KINDS:
        raise Error(f"tokenizer: expected one of {', '.join(KINDS)}; found {kind!r}")
    if kind == HARMONY:
        if vocab_size not in (None, vocabulary.HARMONY_SIZE):
            raise Error(f"vocab_size: expected none, {kind} has its own, found {vocab_size}")
        return Files({}, vocabulary.HARMONY_SIZE)
    if kind == "words":
        words = count_words(documents, vocab_size or 4096)
        text = json.dumps(words, ensure_ascii=False, indent=0) + "\n"
        return Files({WORDS_FILE: text.encode()}, len(words) + len(SPECIAL))
    if kind == "characters":
        if vocab_size is not None:
            raise Error(f"vocab_size: expected none, characters give their own, found {vocab_size}")
        ranks, pattern = character_ranks(documents), CHARACTER
    else:
        ranks, pattern = train_bpe(documents, vocab_size or 4096), PATTERN
    config = {
        "pattern": pattern,
        "special_tokens": {name: len(ranks) + n for n, name in enumerate(SPECIAL)},
        "eos_token": END_OF_TEXT,
        "bos_token": None,
    }
    content = {
        RANKS_FILE: vocabulary.dump_ranks(ranks),
        CONFIG_FILE: (json.dumps(config, indent=1) + "\n").encode(),
    }
    return Files(content, len(ranks) + len(SPECIAL))


class _Size(NamedTuple):
    vocab_size: int


def load_tokenizer(place: Path | str, vocab_size: int | None = None) -> TextTokenizer:
    """The tokenizer in a directory, or the published one by its name, "o200k_harmony".

    `vocab_size` is needed for directories that do not say it themselves: with tokenizer.json.
    Raises Error where there is none.
    """
    if place == HARMONY:
        return BytePairs(load_byte_pairs(None, _Size(vocabulary.HARMONY_SIZE)))
    directory = Path(place)
    if (directory / WORDS_FILE).is_file():
        return Words(_read_words(directory / WORDS_FILE))
    if vocab_size is None:
        vocab_size = _own_size(directory)
    return BytePairs(load_byte_pairs(directory, _Size(vocab_size)))


def _read_words(path: Path) -> list[str]:
    try:
        words = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise Error(f"{path}: expected a JSON list of words, found {error}") from None
    if (
        not isinstance(words, list)
        or not all(isinstance(word, str) and word for word in words)
        or words[:1] != [UNKNOWN]
        or len(set(words)) < len(words)
    ):
        raise Error(f"{path}: expected a JSON list of different words, {UNKNOWN} first")
    return words


def _own_size(directory: Path) -> int:
    """One more than the highest id of a vocabulary written here; else that of o200k_harmony."""
    path = directory / CONFIG_FILE
    if not (directory / RANKS_FILE).is_file() or not path.is_file():
        return vocabulary.HARMONY_SIZE
    try:
        special = json.loads(path.read_text(encoding="utf-8"))["special_tokens"]
        return int(max(special.values())) + 1
    except (ValueError, KeyError, TypeError, AttributeError):
        raise Error(f"{path}: expected special_tokens, name → id, found none") from None


TOKENIZER_FILES = (RANKS_FILE, CONFIG_FILE, WORDS_FILE)
