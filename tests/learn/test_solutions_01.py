"""Solutions to the exercises of docs/learn/01_tokenization.ipynb."""

from __future__ import annotations

import codecs
import itertools
import re
from collections import Counter

Piece = tuple[bytes, ...]
Pair = tuple[bytes, bytes]

PIECES = re.compile(r" ?\w+| ?[^\w\s]+|\s+")
TEXT = (
    "Once upon a time there was a little dog. The dog lived in a little house near the wood. "
    "Every morning the little dog ran to the wood and looked for the bird that sang there."
)


def merge(piece: Piece, pair: Pair) -> Piece:
    out: list[bytes] = []
    n = 0
    while n < len(piece):
        if piece[n : n + 2] == pair:
            out.append(piece[n] + piece[n + 1])
            n += 2
        else:
            out.append(piece[n])
            n += 1
    return tuple(out)


def learn(text: str, merges: int, pattern: re.Pattern[str] = PIECES) -> list[Pair]:
    """As in the notebook."""
    pieces = Counter(tuple(bytes([b]) for b in p.encode()) for p in pattern.findall(text))
    learned: list[Pair] = []
    for _ in range(merges):
        pairs: Counter[Pair] = Counter()
        for piece, times in pieces.items():
            for pair in itertools.pairwise(piece):
                pairs[pair] += times
        if not pairs:
            break
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        learned.append(best)
        pieces = Counter({merge(piece, best): times for piece, times in pieces.items()})
    return learned


def encode(text: str, merges: list[Pair], pattern: re.Pattern[str] = PIECES) -> list[bytes]:
    """As in the notebook."""
    tokens: list[bytes] = []
    for piece in pattern.findall(text):
        parts: Piece = tuple(bytes([b]) for b in piece.encode())
        for pair in merges:
            parts = merge(parts, pair)
        tokens += parts
    return tokens


def pairs_of(piece: Piece) -> Counter[Pair]:
    return Counter(itertools.pairwise(piece))


def learn_incrementally(text: str, merges: int) -> list[Pair]:
    pieces = Counter(tuple(bytes([b]) for b in p.encode()) for p in PIECES.findall(text))
    counts: Counter[Pair] = Counter()
    for piece, times in pieces.items():
        for pair, n in pairs_of(piece).items():
            counts[pair] += n * times
    learned: list[Pair] = []
    for _ in range(merges):
        counts += Counter()  # drops what has fallen to zero
        if not counts:
            break
        best = max(counts, key=lambda pair: (counts[pair], pair))
        learned.append(best)
        for piece in [p for p in pieces if best in pairs_of(p)]:
            times = pieces.pop(piece)
            merged = merge(piece, best)
            for pair, n in pairs_of(piece).items():
                counts[pair] -= n * times
            for pair, n in pairs_of(merged).items():
                counts[pair] += n * times
            pieces[merged] += times
    return learned


def test_1_counts_that_are_kept() -> None:
    """Keep the counts of pairs and update only what a merge has changed."""
    assert learn_incrementally(TEXT, 60) == learn(TEXT, 60)


def test_2_pairs_that_cross_words() -> None:
    """Without the rule, tokens hold ends and beginnings of different words."""
    everything = re.compile(r"(?s).+")
    free = learn(TEXT * 3, 60, everything)
    crossing = [a + b for a, b in free if re.search(rb"\S \S", a + b)]
    assert crossing, "such as the end of one word and the beginning of the next"
    bound = learn(TEXT * 3, 60)
    assert not [a + b for a, b in bound if re.search(rb"\S \S", a + b)]
    # the text it was learned from does get shorter; that is overfitting
    assert len(encode(TEXT, free, everything)) <= len(encode(TEXT, bound))


def test_3_first_learned_first() -> None:
    """Merge the pair that was learned first among those that are there, until none is left."""
    merges = learn(TEXT, 80)
    rank = {pair: n for n, pair in enumerate(merges)}
    steps = 0

    def encode_by_rank(piece: Piece) -> Piece:
        nonlocal steps
        while True:
            there = [pair for pair in pairs_of(piece) if pair in rank]
            if not there:
                return piece
            piece = merge(piece, min(there, key=lambda pair: rank[pair]))
            steps += 1

    sentence = "the little bird looked for the dog in the wood"
    pieces = PIECES.findall(sentence)
    found = [t for p in pieces for t in encode_by_rank(tuple(bytes([b]) for b in p.encode()))]
    assert found == encode(sentence, merges)
    assert steps < len(merges) * len(pieces) / 5


def test_4_other_languages_cost_more() -> None:
    """Bytes per token on the training text are too good: its own phrases became tokens."""
    merges = learn(TEXT, 100)
    german = "Es war einmal ein kleiner Hund, der lebte in einem Haus am Walde."
    own = len(TEXT.encode()) / len(encode(TEXT, merges))
    other = len(german.encode()) / len(encode(german, merges))
    assert own > 1.5 * other > 1.5


def test_5_half_a_character() -> None:
    """A stream holds back bytes that are not yet a character."""
    left, right = "犬".encode()[:2], "犬".encode()[2:]
    assert left.decode(errors="replace") == "\ufffd"
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    assert decoder.decode(left) == ""
    assert decoder.decode(right) == "犬"
