"""tokenizer.json of a Hugging Face checkpoint as a Vocabulary, without the `tokenizers` package.

Read: byte-level BPE, split by one regular expression. Everything else the format can express would
give other tokens than the model was trained on, and is refused.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from heapq import heappop, heappush
from pathlib import Path
from typing import Any

from gptoss import files
from gptoss.errors import Error, shown
from gptoss.tokenizer.vocabulary import (
    HARMONY_END,
    Vocabulary,
    conversation_format,
    dump_ranks,
    is_o200k,
    is_token_id,
)

NAME = "tokenizer.json"
_LIMIT = 1 << 28  # bytes; gpt-oss's has 28 MB
# What a ByteLevel pre-tokenizer splits by when it is told to split: GPT-2's pattern.
_GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_WHOLE_TEXT = r"[\s\S]+"


def read_tokenizer_json(path: Path, vocab_size: int) -> Vocabulary:
    """The vocabulary in `path`, for a model with `vocab_size` ids. Raises Error.

    The end of a text is tokenizer_config.json's "eos_token" where that lies beside it, and, where
    they exist, `<|return|>` and `<|call|>`. Its "conversation_format" is read, too.
    """
    data = files.read_object(path, _LIMIT)
    if data.get("normalizer") not in (None, {"type": "Sequence", "normalizers": []}):
        raise _unsupported(path, "normalizer", "none", data["normalizer"])
    pattern = _pattern(path, data.get("pre_tokenizer"))
    model = _model(path, data.get("model"))
    special, plain = _added_tokens(path, data.get("added_tokens", []))
    ranks = _ranks(path, model["vocab"], special)
    # The published vocabulary's merges are those its ranks imply; others are compared one by one.
    if not is_o200k(dump_ranks(ranks)):
        # an added token is found in the text before anything is merged
        apart = {name.encode("utf-8", "replace") for name in plain}
        if model.get("ignore_merges"):
            apart |= {token for token in ranks if len(_merge_to_two(token, ranks)) > 2}
        _check_merges(path, ranks, model.get("merges", []), apart)
    names = [*HARMONY_END] if all(name in special for name in HARMONY_END) else []
    config_path = path.with_name("tokenizer_config.json")
    config = files.read_object(config_path) if config_path.is_file() else {}
    if eos := _eos_token(config_path, config.get("eos_token"), special | plain):
        names.append(eos)
    return Vocabulary(
        source=str(path),
        vocab_size=vocab_size,
        ranks=ranks,
        pattern=pattern,
        special_tokens=special,
        plain_tokens=plain,
        eos_ids=frozenset((special | plain)[name] for name in names),
        conversation_format=conversation_format(config, config_path),
    )


def _unsupported(path: Path, key: str, expected: str, found: Any) -> Error:
    return Error(f"{path}: {key}: expected {expected}, found {shown(found)}")


def _pattern(path: Path, pre: Any) -> str:
    """The regular expression that the pre-tokenizers amount to."""
    expected = "ByteLevel, or a Sequence of one Split by a regular expression and ByteLevel"
    steps = pre.get("pretokenizers") if _type(pre) == "Sequence" else [pre]
    if not isinstance(steps, list) or not steps or _type(steps[-1]) != "ByteLevel":
        raise _unsupported(path, "pre_tokenizer", expected, pre)
    byte_level, splits = steps[-1], steps[:-1]
    if byte_level.get("add_prefix_space"):
        raise _unsupported(path, "pre_tokenizer: add_prefix_space", "false", True)
    if not splits:
        return _GPT2_PATTERN if byte_level.get("use_regex", True) else _WHOLE_TEXT
    split = splits[0]
    regex = split.get("pattern") if _type(split) == "Split" else None
    if len(splits) > 1 or byte_level.get("use_regex", True) or not isinstance(regex, dict):
        raise _unsupported(path, "pre_tokenizer", expected, pre)
    if split.get("behavior") != "Isolated" or split.get("invert"):
        raise _unsupported(path, "pre_tokenizer: Split", "behavior Isolated, invert false", split)
    text = regex.get("Regex")
    if not isinstance(text, str):
        raise _unsupported(path, "pre_tokenizer: Split: pattern", "a Regex", regex)
    return text


def _type(value: Any) -> Any:
    return value.get("type") if isinstance(value, dict) else None


def _model(path: Path, model: Any) -> dict[str, Any]:
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        raise _unsupported(path, "model", "a BPE model", model)
    if not isinstance(model.get("vocab"), dict):
        raise _unsupported(path, "model.vocab", "an object of tokens and ids", model.get("vocab"))
    if not isinstance(model.get("merges", []), list):
        raise _unsupported(path, "model.merges", "a list of pairs", model["merges"])
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        if model.get(key):
            raise _unsupported(path, f"model.{key}", "none", model[key])
    return model


def _added_tokens(path: Path, entries: Any) -> tuple[dict[str, int], dict[str, int]]:
    """(special tokens, the other added tokens): name → id."""
    if not isinstance(entries, list):
        raise _unsupported(path, "added_tokens", "a list", entries)
    special: dict[str, int] = {}
    plain: dict[str, int] = {}
    ids: dict[int, str] = {}
    for index, entry in enumerate(entries):
        key = f"added_tokens[{index}]"
        if not isinstance(entry, dict):
            raise _unsupported(path, key, "an object", entry)
        name, token = entry.get("content"), entry.get("id")
        if not isinstance(name, str) or not is_token_id(token):
            raise _unsupported(path, key, "content (text) and id (a token id)", entry)
        for option in ("lstrip", "rstrip", "single_word"):
            if entry.get(option):
                raise _unsupported(path, f"{key}: {option}", "false", entry[option])
        if name in special or name in plain:
            raise Error(f"{path}: {key}: the token {shown(name)} is listed twice")
        if token in ids:
            raise Error(f"{path}: {key}: {shown(name)} has the id {token} of {shown(ids[token])}")
        ids[token] = name
        (special if entry.get("special") else plain)[name] = token
    return special, plain


def _ranks(path: Path, vocab: dict[str, Any], special: Mapping[str, int]) -> dict[bytes, int]:
    """model.vocab in bytes, without the special tokens that some writers repeat there."""
    ranks: dict[bytes, int] = {}
    seen: dict[int, str] = {}
    for text, rank in vocab.items():
        if not is_token_id(rank):
            raise _unsupported(path, f"model.vocab: {shown(text)}", "a token id", rank)
        if special.get(text, rank) != rank:
            key = f"model.vocab: {shown(text)}"
            raise _unsupported(path, key, f"the id {special[text]} as in added_tokens", rank)
        if text in special:
            continue
        if rank in seen:
            raise Error(
                f"{path}: model.vocab: {shown(seen[rank])} and {shown(text)} have the same id "
                f"{rank}"
            )
        seen[rank] = text
        ranks[_to_bytes(path, "model.vocab", text)] = rank
    return ranks


def _byte_table() -> dict[int, int]:
    """GPT-2's printable stand-ins → the bytes they stand for, by code point.

    Printable bytes of Latin-1 stand for themselves, the others for code points from 256 up. What
    stands for nothing becomes 256, which no byte is.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in printable]
    table = dict.fromkeys(hidden, 256)
    return table | {256 + index: byte for index, byte in enumerate(hidden)}


_BYTES = _byte_table()


def _to_bytes(path: Path, key: str, text: str) -> bytes:
    try:
        return text.translate(_BYTES).encode("latin-1")
    except UnicodeEncodeError:
        raise _unsupported(path, key, "tokens in byte-level characters", text) from None


def _check_merges(
    path: Path, ranks: Mapping[bytes, int], merges: Iterable[Any], apart: Collection[bytes]
) -> None:
    """Raise Error unless merging by rank gives the tokens that the list of merges gives.

    Tokens in `apart` need not come out of merging.
    The list says which pairs may merge and in which order; ranks say that any pair may whose sum is
    a token, in the order of ids. The two agree when the list is in the order of ids and holds, for
    each token, the pair that merging by rank reaches last: a token that is merged whole is merged
    in the same way whatever surrounds it.
    """
    pairs: set[tuple[bytes, bytes]] = set()
    last = -1
    for index, merge in enumerate(merges):
        key = f"model.merges[{index}]"
        parts = merge.split(" ") if isinstance(merge, str) else merge
        if (
            not isinstance(parts, list)
            or len(parts) != 2
            or not all(isinstance(part, str) for part in parts)
        ):
            raise _unsupported(path, key, "a pair of tokens", merge)
        left, right = (_to_bytes(path, key, part) for part in parts)
        if left not in ranks or right not in ranks or left + right not in ranks:
            raise _unsupported(path, key, "tokens of model.vocab, their sum among them", merge)
        if ranks[left + right] < last:
            raise _unsupported(path, key, "merges in the order of token ids", merge)
        last = ranks[left + right]
        pairs.add((left, right))
    for token in ranks:
        if len(token) == 1 or token in apart:
            continue
        parts = _merge_to_two(token, ranks)
        if len(parts) != 2 or tuple(parts) not in pairs:
            left_out = f" and {len(parts) - 6} more" if len(parts) > 6 else ""
            raise Error(
                f"{path}: model.merges: expected {' + '.join(map(shown, parts[:6]))}{left_out} → "
                f"{shown(token)}, found no such merge"
            )


def _merge_to_two(token: bytes, ranks: Mapping[bytes, int]) -> list[bytes]:
    """`token` merged by rank until two parts are left, or more where nothing merges any further.

    The parts are a linked list by the offsets of their first bytes, the pairs that may merge a
    heap: a token of n bytes costs n log n, not n², since the file's author chose n.
    """
    size = len(token)
    ends = list(range(1, size + 1))  # first byte of a part → its end; 0 where no part begins
    before = list(range(-1, size - 1))  # first byte of a part → that of the part before it
    pairs: list[tuple[int, int, int]] = []  # (rank, first byte, end); those of merged parts stay in

    def offer(start: int) -> None:
        middle = ends[start]
        if middle < size:
            rank = ranks.get(token[start : ends[middle]])
            if rank is not None:
                heappush(pairs, (rank, start, ends[middle]))

    for start in range(size):
        offer(start)
    left = size
    while left > 2 and pairs:
        _, start, end = heappop(pairs)
        middle = ends[start]
        if not 0 < middle < size or ends[middle] != end:
            continue  # one of the two has been merged with another since
        ends[start], ends[middle] = end, 0
        left -= 1
        if end < size:
            before[end] = start
        offer(start)
        if start:
            offer(before[start])
    return [token[start:end] for start, end in enumerate(ends) if end]


def _eos_token(path: Path, value: object, added: Collection[str]) -> str | None:
    """The name of the token that ends a text, as tokenizer_config.json has it."""
    if isinstance(value, dict):
        value = value.get("content")
    if value is not None and (not isinstance(value, str) or value not in added):
        raise _unsupported(path, "eos_token", f"an added token of {NAME}", value)
    return value
