"""The vocabulary inside a GGUF file, read and written: byte-level BPE, which it calls "gpt2".

Tokens and merges are byte-level text; a pre-tokenizer's name stands for the pattern. Ids that are
nobody's are called `[PAD7]`, after their number or their place among them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gptoss.errors import Error, shown
from gptoss.gguf import types
from gptoss.gguf.reader import GgufFile
from gptoss.gguf.writer import Metadata
from gptoss.tokenizer.byte_level import (
    GPT2_PATTERN,
    check_merges,
    merge_to_two,
    to_bytes,
    to_text,
    unsupported,
)
from gptoss.tokenizer.vocabulary import (
    HARMONY_END,
    O200K_PATTERN,
    Vocabulary,
    conversation_format,
    dump_ranks,
    is_o200k,
)

_PREFIX = "tokenizer.ggml."
# The pre-tokenizers of llama.cpp that split as gpt-oss's tokenizer does, and GPT-2's.
_PATTERNS = {"gpt-4o": O200K_PATTERN, "llama4": O200K_PATTERN, "gpt-2": GPT2_PATTERN}
# A pattern that llama.cpp has no name for, and what it is told in its place, as it refuses names
# that it does not know: the nearest, which splits the bundled model's texts alike but for long
# numbers.
_OWN_PATTERN, _NEAREST = "gptoss.tokenizer.pattern", "gpt-2"
_FORMAT = "gptoss.conversation_format"
_END_IDS = _PREFIX + "eos_token_ids"  # Ollama's
_TEMPLATE = "tokenizer.chat_template"
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED = 1, 2, 3, 4, 5


def read_gguf_vocabulary(path: Path, vocab_size: int) -> Vocabulary:
    """The vocabulary in `path`, for a model with `vocab_size` ids. Raises Error.

    What ends a text is said by eos_token_id and eos_token_ids. Without the latter `<|return|>` and
    `<|call|>`, where they exist, do so, too. Tokens that no merge makes are decoded only.
    """
    file = GgufFile(path)
    try:
        return _read(file, vocab_size)
    finally:
        file.close()


def _read(file: GgufFile, vocab_size: int) -> Vocabulary:
    path = file.path
    model = file.text(_PREFIX + "model")
    if model != "gpt2":
        raise unsupported(path, _PREFIX + "model", "'gpt2', byte-level BPE", model)
    tokens, kinds = file.array(_PREFIX + "tokens"), file.array(_PREFIX + "token_type")
    if len(tokens) != len(kinds) or not all(isinstance(token, str) for token in tokens):
        raise Error(
            f"{path}: {_PREFIX}tokens: expected text and as many values of token_type, found "
            f"{len(tokens)} and {len(kinds)}"
        )
    ranks, special, plain = _sort(path, tokens, kinds)
    # The published vocabulary's merges are those its ranks imply; others are compared one by one.
    unreachable: dict[int, bytes] = {}
    if not is_o200k(dump_ranks(ranks)):
        apart = {name.encode("utf-8", "replace") for name in plain}
        merges = file.array(_PREFIX + "merges")
        made = {merge.replace(" ", "") for merge in merges if isinstance(merge, str)}
        unreachable = {
            token: octets
            for octets, token in ranks.items()
            if len(octets) > 1 and octets not in apart and tokens[token] not in made
        }
        ranks = {octets: token for octets, token in ranks.items() if token not in unreachable}
        check_merges(path, _PREFIX + "merges", ranks, merges, apart)
    ends = set(_end_ids(file, len(tokens)))
    if _END_IDS not in file.fields and special.keys() >= {*HARMONY_END}:
        ends |= {special[name] for name in HARMONY_END}  # llama.cpp's converter names one of them
    return Vocabulary(
        source=str(path),
        vocab_size=vocab_size,
        ranks=ranks,
        pattern=_pattern(file),
        special_tokens=special,
        plain_tokens=plain,
        eos_ids=frozenset(ends),
        unreachable=unreachable,
        conversation_format=conversation_format(
            {"conversation_format": file.text(_FORMAT)} if _FORMAT in file.fields else {}, path
        ),
    )


def _sort(
    path: Path, tokens: list[str], kinds: list[Any]
) -> tuple[dict[bytes, int], dict[str, int], dict[str, int]]:
    """(ranks, special tokens, other added tokens) from the list of all tokens."""
    ranks: dict[bytes, int] = {}
    special: dict[str, int] = {}
    plain: dict[str, int] = {}
    # Ollama calls ids beyond the vocabulary the user's tokens, and counts them from 0.
    first = tokens.index("[PAD0]") if "[PAD0]" in tokens else 0
    for token, (text, kind) in enumerate(zip(tokens, kinds, strict=True)):
        padding = text in (f"[PAD{token}]", f"[PAD{token - first}]")
        if kind in (_UNUSED, _UNKNOWN) or (kind == _USER_DEFINED and padding):
            continue
        where = f"{_PREFIX}tokens[{token}]"
        if kind == _NORMAL:
            octets = to_bytes(path, where, text)
            if not octets or octets in ranks:
                raise unsupported(path, where, "a token of its own", text)
            ranks[octets] = token
        elif kind in (_CONTROL, _USER_DEFINED):
            if text in special or text in plain:
                raise unsupported(path, where, "a name of its own", text)
            (special if kind == _CONTROL else plain)[text] = token
        else:
            raise unsupported(path, f"{_PREFIX}token_type[{token}]", "1 to 5", kind)
    if not ranks:
        raise Error(f"{path}: {_PREFIX}tokens: expected a vocabulary, found no tokens")
    return ranks, special, plain


def _pattern(file: GgufFile) -> str:
    if _OWN_PATTERN in file.fields:
        return file.text(_OWN_PATTERN)
    if file.text("general.architecture", "") == "gptoss":
        return O200K_PATTERN  # Ollama's engine splits so whatever the file says
    key = _PREFIX + "pre"
    name = file.text(key)
    if name not in _PATTERNS:
        raise unsupported(file.path, key, " or ".join(map(repr, _PATTERNS)), name)
    return _PATTERNS[name]


def _end_ids(file: GgufFile, count: int) -> list[int]:
    ids = file.array(_END_IDS)
    for name in ("eos_token_id", "eot_token_id"):
        if _PREFIX + name in file.fields:
            ids.append(file.integer(_PREFIX + name))
    for token in ids:
        if type(token) is not int or not 0 <= token < count:
            raise unsupported(file.path, _PREFIX + "eos_token_id", f"an id below {count}", token)
    return ids


def gguf_metadata(vocabulary: Vocabulary, template: str | None = None) -> Metadata:
    """What a file says of a vocabulary, as `gguf.writer` takes it. template: a chat template.

    Raises Error for a vocabulary with a token that merging does not lead to.
    """
    tokens = [f"[PAD{token}]" for token in range(vocabulary.vocab_size)]
    kinds = [_UNUSED] * vocabulary.vocab_size
    merges = []
    for octets, token in sorted(vocabulary.ranks.items(), key=lambda item: item[1]):
        tokens[token], kinds[token] = to_text(octets), _NORMAL
        if len(octets) > 1:
            parts = merge_to_two(octets, vocabulary.ranks)
            if len(parts) != 2:
                raise Error(
                    f"{vocabulary.source}: token {shown(octets)}: expected one that merging leads "
                    f"to, as GGUF needs; found one that it does not"
                )
            merges.append(" ".join(map(to_text, parts)))
    for token, octets in vocabulary.unreachable.items():
        tokens[token], kinds[token] = to_text(octets), _NORMAL
    for names, kind in (
        (vocabulary.plain_tokens, _USER_DEFINED),
        (_one_name_each(vocabulary.special_tokens), _CONTROL),
    ):
        for name, token in names.items():
            tokens[token], kinds[token] = name, kind
    pre = next((name for name, p in _PATTERNS.items() if p == vocabulary.pattern), None)
    found: Metadata = [
        (_PREFIX + "model", types.TEXT, "gpt2"),
        (_PREFIX + "pre", types.TEXT, pre or _NEAREST),
        (_PREFIX + "tokens", types.TEXT, tokens),
        (_PREFIX + "token_type", types.I32, kinds),
        (_PREFIX + "merges", types.TEXT, merges),
        (_PREFIX + "add_bos_token", types.BOOL, False),
    ]
    if pre is None:
        found.append((_OWN_PATTERN, types.TEXT, vocabulary.pattern))
    for key, name in (("bos_token_id", "<|startoftext|>"), ("padding_token_id", "<|endoftext|>")):
        if name in vocabulary.special_tokens:
            found.append((_PREFIX + key, types.U32, vocabulary.special_tokens[name]))
    if vocabulary.eos_ids:
        first = vocabulary.special_tokens.get(HARMONY_END[0], -1)
        end = first if first in vocabulary.eos_ids else min(vocabulary.eos_ids)
        found.append((_PREFIX + "eos_token_id", types.U32, end))
        found.append((_END_IDS, types.I32, sorted(vocabulary.eos_ids)))
    if vocabulary.conversation_format is not None:
        found.append((_FORMAT, types.TEXT, vocabulary.conversation_format))
    if template is not None:
        found.append((_TEMPLATE, types.TEXT, template))
    return found


def _one_name_each(special: Mapping[str, int]) -> dict[str, int]:
    """Of two names for an id, the first."""
    names: dict[int, str] = {}
    for name, token in special.items():
        names.setdefault(token, name)
    return {name: token for token, name in names.items()}
