"""Byte-pair vocabularies: rank files, the o200k_harmony table, and what makes either usable.

A rank file has one token per line: its bytes in base64, a space, its rank. The rank is both the
token's id and its priority when pairs are merged, lowest first.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeGuard

from gptoss import files
from gptoss.errors import Error, shown

O200K_FILE = "o200k_base.tiktoken"
O200K_URL = "https://openaipublic.blob.core.windows.net/encodings/o200k_base.tiktoken"
O200K_SHA256 = "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"
CONVERSATION_FORMATS = ("harmony", "none")
_KEYS = {"pattern", "special_tokens", "eos_token", "bos_token", "conversation_format"}
HARMONY_SIZE = 201_088  # ids, those of reserved special tokens included

# How o200k splits text into pieces, as published in tiktoken: words (the case changes at most once,
# a contraction may follow), up to three digits, punctuation, line ends, other whitespace.
O200K_PATTERN = "|".join(
    [
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)
_HARMONY_NAMED = {
    "<|startoftext|>": 199998,
    "<|endoftext|>": 199999,
    "<|return|>": 200002,
    "<|constrain|>": 200003,
    "<|channel|>": 200005,
    "<|start|>": 200006,
    "<|end|>": 200007,
    "<|message|>": 200008,
    "<|call|>": 200012,
    "<|endofprompt|>": 200018,
}
HARMONY_END = ("<|return|>", "<|call|>")  # not <|end|>: another message follows it
_FILE_LIMIT = 1 << 28  # bytes; o200k_base has 3.6 MB, as tokenizer.json 28 MB
_ID_LIMIT = 1 << 24  # no model has more ids
# Characters of a special token's name. `re` compiles names with a common prefix in time
# proportional to the square of its length.
_NAME_LIMIT = 1024


@dataclass(frozen=True)
class Vocabulary:
    """Everything that defines a tokenizer. Every instance has passed `__post_init__`'s checks.

    source: the file, for messages. vocab_size: ids in the model's tables; may exceed the tokens.
    ranks: token bytes → id, lowest merged first. pattern: the regular expression (in tiktoken's
    dialect) whose matches are encoded one by one. special_tokens: name → id, recognised in text
    only where allowed. plain_tokens: name → id, added tokens that are recognised in any text.
    eos_ids: ids that end a text. conversation_format: what the model's files say of how it takes
    conversations, one of CONVERSATION_FORMATS; None: nothing. unreachable: id → bytes of tokens
    that a model may write but no text is encoded to.
    """

    source: str
    vocab_size: int
    ranks: Mapping[bytes, int]
    pattern: str
    special_tokens: Mapping[str, int]
    plain_tokens: Mapping[str, int]
    eos_ids: frozenset[int]
    conversation_format: str | None = None
    unreachable: Mapping[int, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        missing = [byte for byte in range(256) if bytes([byte]) not in self.ranks]
        if missing:
            raise Error(
                f"{self.source}: expected a token for each of the 256 bytes, found none for "
                f"{', '.join(f'0x{byte:02x}' for byte in missing[:8])}"
                + (f" and {len(missing) - 8} more" if len(missing) > 8 else "")
            )
        taken = {rank: token for token, rank in self.ranks.items()}
        every = taken | dict(self.unreachable)
        top = max(every)
        if top >= self.vocab_size:
            raise Error(
                f"{self.source}: expected token ids below the model's vocab_size "
                f"{self.vocab_size}, found {top} for {shown(every[top])}"
            )
        for name, token in [*self.special_tokens.items(), *self.plain_tokens.items()]:
            what = f"{self.source}: special token {shown(name)}"
            if not name or not _is_text(name):
                raise Error(f"{what}: expected a name of valid, non-empty text")
            if len(name) > _NAME_LIMIT:
                raise Error(
                    f"{what}: expected a name of at most {_NAME_LIMIT} characters, found "
                    f"{len(name)}"
                )
            if type(token) is not int or token < 0:
                raise Error(f"{what}: expected a token id, found {shown(token)}")
            if token >= self.vocab_size:
                raise Error(
                    f"{what}: expected an id below the model's vocab_size {self.vocab_size}, "
                    f"found {token}"
                )
            if token in taken and (name in self.special_tokens or taken[token] != name.encode()):
                raise Error(
                    f"{what}: expected an id of its own, found {token}, the id of the token "
                    f"{shown(taken[token])}"
                )

    def token_table(self) -> list[bytes]:
        """The bytes of every id up to the highest in use; b"" for those between that are not."""
        added = [*self.plain_tokens.items(), *self.special_tokens.items()]
        top = max([*self.ranks.values(), *self.unreachable, *(token for _, token in added)])
        table = [b""] * (top + 1)
        for token, rank in self.ranks.items():
            table[rank] = token
        for rank, token in self.unreachable.items():
            table[rank] = token
        for name, rank in added:  # of two names for an id the first is the one to show
            table[rank] = table[rank] or name.encode()
        return table


def harmony_special_tokens() -> dict[str, int]:
    """The special tokens of o200k_harmony, as in tiktoken: named ones, and `<|reserved_N|>`.

    200018 has two names: tiktoken knows it as `<|endofprompt|>` and as `<|reserved_200018|>`.
    """
    named = set(_HARMONY_NAMED.values()) - {_HARMONY_NAMED["<|endofprompt|>"]}
    reserved = (token for token in range(200_000, HARMONY_SIZE) if token not in named)
    return _HARMONY_NAMED | {f"<|reserved_{token}|>": token for token in reserved}


def harmony(data: bytes, source: str, vocab_size: int) -> Vocabulary:
    """o200k_harmony from the bytes of o200k_base.tiktoken, whose digest the caller has checked."""
    special = harmony_special_tokens()
    return Vocabulary(
        source=source,
        vocab_size=vocab_size,
        ranks=parse_ranks(data, source),
        pattern=O200K_PATTERN,
        special_tokens=special,
        plain_tokens={},
        eos_ids=frozenset(special[name] for name in HARMONY_END),
    )


def is_token_id(value: object) -> TypeGuard[int]:
    """Whether `value`, from a file, can be an id in any vocabulary.

    Ask before it becomes a key: the hash values of integers beyond 2^61 can be made to collide, and
    a dictionary of n such keys takes time in n².
    """
    return type(value) is int and 0 <= value < _ID_LIMIT


def is_o200k(data: bytes) -> bool:
    """Whether `data` is the published o200k_base.tiktoken."""
    return hashlib.sha256(data).hexdigest() == O200K_SHA256


def dump_ranks(ranks: Mapping[bytes, int]) -> bytes:
    """The rank file of a vocabulary, in the order of ranks."""
    lines = (
        b"%s %d\n" % (binascii.b2a_base64(token, newline=False), rank)
        for token, rank in sorted(ranks.items(), key=lambda item: item[1])
    )
    return b"".join(lines)


def vocabulary_files(vocabulary: Vocabulary) -> dict[str, bytes]:
    """Name → content of files that `read_rank_directory` reads as this vocabulary.

    Of several ids that end a text one is named; config.json names the others. Raises Error for
    tokens that these files have no words for.
    """
    for others, what in (
        ([*vocabulary.plain_tokens], "which is found in any text"),
        ([*vocabulary.unreachable.values()], "which no text is encoded to"),
    ):
        if others:
            raise Error(
                f"{vocabulary.source}: expected special tokens and those that merging leads to, "
                f"found {shown(others[0])}, {what}: it cannot be written into a rank file"
            )
    data = dump_ranks(vocabulary.ranks)
    harmonys = harmony_special_tokens()
    extra = (
        {}
        if vocabulary.conversation_format is None
        else {"conversation_format": vocabulary.conversation_format}
    )
    known = all(harmonys.get(name) == token for name, token in vocabulary.special_tokens.items())
    if is_o200k(data) and known and vocabulary.vocab_size == HARMONY_SIZE:
        found = {O200K_FILE: data}
        config: dict[str, Any] = extra
    else:
        found = {"tokenizer.tiktoken": data}
        names = {token: name for name, token in vocabulary.special_tokens.items()}
        ends = [token for token in sorted(vocabulary.eos_ids) if token in names]
        config = {
            "pattern": vocabulary.pattern,
            "special_tokens": {name: token for token, name in names.items()},
            "eos_token": names[ends[0]] if ends else None,
            "bos_token": None,
            **extra,
        }
    if config:
        text = json.dumps(config, indent=1, ensure_ascii=False) + "\n"
        found["tokenizer_config.json"] = text.encode()
    return found


def parse_ranks(data: bytes, source: str) -> dict[bytes, int]:
    """The tokens of a rank file. Raises Error, with the line, for what cannot be a vocabulary."""
    ranks: dict[bytes, int] = {}
    lines: dict[int, int] = {}  # rank → the line it stands in
    for number, line in enumerate(data.splitlines(), 1):
        if not line:
            continue
        where = f"{source}, line {number}"
        encoded, _, digits = line.partition(b" ")
        try:
            token = base64.b64decode(encoded, validate=True)
        except binascii.Error:
            raise Error(f"{where}: expected a token in base64, found {shown(encoded)}") from None
        if not token:
            raise Error(f"{where}: expected a token in base64 and its rank, found {shown(line)}")
        if not digits.isdigit() or len(digits) > 9:
            raise Error(
                f"{where}: expected the token's rank, a whole number, found {shown(digits)}"
            )
        rank = int(digits)
        if token in ranks:
            raise Error(
                f"{where}: the token {shown(token)} is in line {lines[ranks[token]]} already"
            )
        if rank in lines:
            raise Error(f"{where}: the rank {rank} is in line {lines[rank]} already")
        ranks[token] = rank
        lines[rank] = number
    if not ranks:
        raise Error(f"{source}: expected a token and its rank in each line, found none")
    return ranks


def read_rank_directory(directory: Path, vocab_size: int) -> Vocabulary | None:
    """The vocabulary whose rank file lies in `directory`; None where there is no such file.

    `tokenizer_config.json` beside it tells the rest: "pattern", "special_tokens" (name → id),
    "eos_token" and "bos_token" (names, or null; encoding adds neither), "conversation_format" (see
    `conversation_format`). Without a pattern the file has to be o200k_base.tiktoken. Raises Error.
    """
    path = _rank_file(directory)
    if path is None:
        return None
    data = read_bytes(path)
    config_path = directory / "tokenizer_config.json"
    config = files.read_object(config_path) if config_path.is_file() else {}
    if "pattern" in config:
        return _own(path, parse_ranks(data, str(path)), config_path, config, vocab_size)
    if not is_o200k(data):
        raise Error(
            f"{path}: expected {O200K_FILE} (sha256 {O200K_SHA256}), found another file (sha256 "
            f"{hashlib.sha256(data).hexdigest()}); a vocabulary of your own also needs "
            f"{config_path.name} with the keys pattern, special_tokens and eos_token"
        )
    found = harmony(data, str(path), vocab_size)
    return replace(found, conversation_format=conversation_format(config, config_path))


def conversation_format(config: Mapping[str, Any], path: Path) -> str | None:
    """What a tokenizer_config.json, read from `path`, says of conversations: "harmony"; "none" of a
    model that was not taught any; None where it says nothing. Raises Error for anything else.
    """
    found = config.get("conversation_format")
    if found is not None and (not isinstance(found, str) or found not in CONVERSATION_FORMATS):
        raise Error(
            f"{path}: conversation_format: expected {' or '.join(CONVERSATION_FORMATS)}, found "
            f"{shown(found)}"
        )
    return found


def read_bytes(path: Path) -> bytes:
    """A tokenizer's file. Raises Error where it cannot be read or is absurdly large."""
    try:
        with path.open("rb") as file:
            data = file.read(_FILE_LIMIT + 1)
    except OSError as error:
        raise Error(f"{path}: cannot be read: {files.reason(error)}") from None
    if len(data) > _FILE_LIMIT:
        raise Error(f"{path}: expected at most {_FILE_LIMIT} bytes, found more")
    return data


def _rank_file(directory: Path) -> Path | None:
    paths = sorted(path for path in directory.glob("*.tiktoken") if path.is_file())
    for name in ("tokenizer.tiktoken", O200K_FILE):
        if directory / name in paths:
            return directory / name
    if len(paths) > 1:
        raise Error(
            f"{directory}: expected one rank file (*.tiktoken), found "
            f"{', '.join(path.name for path in paths)}; name the right one tokenizer.tiktoken"
        )
    return paths[0] if paths else None


def _own(
    path: Path, ranks: dict[bytes, int], config_path: Path, config: dict[str, Any], vocab_size: int
) -> Vocabulary:
    unknown = sorted(config.keys() - _KEYS)
    if unknown:
        names = ", ".join(shown(key) for key in unknown[:20])
        warnings.warn(f"{config_path}: unknown keys ignored: {names}", stacklevel=4)
    pattern, special = config["pattern"], config.get("special_tokens", {})
    if not isinstance(pattern, str):
        raise Error(f"{config_path}: pattern: expected text, found {shown(pattern)}")
    if not isinstance(special, dict):
        raise Error(f"{config_path}: special_tokens: expected an object, found {shown(special)}")
    ids: dict[int, str] = {}
    for name, token in special.items():
        if type(token) is not int or token < 0:
            raise Error(
                f"{config_path}: special_tokens: {shown(name)}: expected a token id, found "
                f"{shown(token)}"
            )
        if not is_token_id(token):
            continue  # Vocabulary refuses it, naming the model's own limit
        if token in ids:
            raise Error(
                f"{config_path}: special_tokens: {shown(ids[token])} and {shown(name)} have the "
                f"same id {token}"
            )
        ids[token] = name
    for key in ("eos_token", "bos_token"):
        name = config.get(key)
        if name is not None and (not isinstance(name, str) or name not in special):
            raise Error(
                f"{config_path}: {key}: expected one of special_tokens or null, found {shown(name)}"
            )
    used = {*ranks.values(), *ids}
    gap = next((rank for rank in range(max(ranks.values())) if rank not in used), None)
    if gap is not None:
        raise Error(
            f"{path}: expected every rank up to {max(ranks.values())}, found none for {gap}"
        )
    eos = config.get("eos_token")
    return Vocabulary(
        source=str(path),
        vocab_size=vocab_size,
        ranks=ranks,
        pattern=pattern,
        special_tokens=special,
        plain_tokens={},
        eos_ids=frozenset() if eos is None else frozenset({special[eos]}),
        conversation_format=conversation_format(config, config_path),
    )


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
