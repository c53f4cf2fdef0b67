"""Byte-level BPE as Hugging Face's files and GGUF write it: bytes as printable text, and merges."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from heapq import heappop, heappush
from pathlib import Path
from typing import Any

from gptoss.errors import Error, shown

# What a ByteLevel pre-tokenizer splits by when it is told to split: GPT-2's pattern.
GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def unsupported(path: Path, key: str, expected: str, found: Any) -> Error:
    return Error(f"{path}: {key}: expected {expected}, found {shown(found)}")


def _byte_table() -> dict[int, int]:
    """GPT-2's printable stand-ins → the bytes they stand for, by code point.

    Printable bytes of Latin-1 stand for themselves, the others for code points from 256 up. What
    stands for nothing becomes 256, which no byte is.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in printable]
    table = dict.fromkeys(hidden, 256)
    return table | {256 + index: byte for index, byte in enumerate(hidden)}


BYTES = _byte_table()
_TEXT = {byte: byte for byte in range(256)} | {
    byte: code for code, byte in BYTES.items() if byte < 256
}


def to_bytes(path: Path, key: str, text: str) -> bytes:
    try:
        return text.translate(BYTES).encode("latin-1")
    except UnicodeEncodeError:
        raise unsupported(path, key, "tokens in byte-level characters", text) from None


def to_text(token: bytes) -> str:
    """The printable stand-ins of a token's bytes: what `to_bytes` reads."""
    return token.decode("latin-1").translate(_TEXT)


def check_merges(
    path: Path,
    key: str,
    ranks: Mapping[bytes, int],
    merges: Iterable[Any],
    apart: Collection[bytes],
) -> None:
    """Raise Error, naming `key`, unless merging by rank gives what the list of merges gives.

    Tokens in `apart` need not come out of merging.
    The list says which pairs may merge and in which order; ranks say that any pair may whose sum is
    a token, in the order of ids. The two agree when the list is in the order of ids and holds, for
    each token, the pair that merging by rank reaches last: a token that is merged whole is merged
    in the same way whatever surrounds it.
    """
    pairs: set[tuple[bytes, bytes]] = set()
    last = -1
    for index, merge in enumerate(merges):
        where = f"{key}[{index}]"
        parts = merge.split(" ") if isinstance(merge, str) else merge
        if (
            not isinstance(parts, list)
            or len(parts) != 2
            or not all(isinstance(part, str) for part in parts)
        ):
            raise unsupported(path, where, "a pair of tokens", merge)
        left, right = (to_bytes(path, where, part) for part in parts)
        if left not in ranks or right not in ranks or left + right not in ranks:
            raise unsupported(path, where, "tokens of the vocabulary, their sum among them", merge)
        if ranks[left + right] < last:
            raise unsupported(path, where, "merges in the order of token ids", merge)
        last = ranks[left + right]
        pairs.add((left, right))
    for token in ranks:
        if len(token) == 1 or token in apart:
            continue
        parts = merge_to_two(token, ranks)
        if len(parts) != 2 or tuple(parts) not in pairs:
            left_out = f" and {len(parts) - 6} more" if len(parts) > 6 else ""
            raise Error(
                f"{path}: {key}: expected {' + '.join(map(shown, parts[:6]))}{left_out} → "
                f"{shown(token)}, found no such merge"
            )


def merge_to_two(token: bytes, ranks: Mapping[bytes, int]) -> list[bytes]:
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
