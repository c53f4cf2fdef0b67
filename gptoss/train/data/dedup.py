"""Documents that were there before, word for word or nearly so.

Near duplicates: two documents whose sets of word 5-grams share more than a threshold of their union
(Jaccard) are likely to share a band of their MinHash signatures (Broder 1997; bands after Leskovec
et al., Mining of Massive Datasets, chapter 3). Signatures are datasketch's, and so are the bands.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any

SHINGLE = 5  # words
PERMUTATIONS = 64  # values of a signature


def digest(text: str) -> bytes:
    """What exact duplicates share: 16 bytes over the text in lower case without its blanks."""
    bare = "".join(text.lower().split())
    return hashlib.blake2b(bare.encode(), digest_size=16).digest()


def shingles(text: str) -> set[bytes]:
    """The word 5-grams of a text in lower case; of a shorter one, all of it."""
    words = re.findall(r"\w+", text.lower())
    if len(words) < SHINGLE:
        return {" ".join(words).encode()}
    return {" ".join(words[n : n + SHINGLE]).encode() for n in range(len(words) - SHINGLE + 1)}


def signature(text: str) -> Any:
    """The MinHash of `shingles`, small enough to be sent between processes."""
    from datasketch import LeanMinHash, MinHash

    found = MinHash(PERMUTATIONS, seed=1)
    found.update_batch(list(shingles(text)))
    return LeanMinHash(found)


class Seen:
    """Remembers documents; of those that are alike the first is kept."""

    def __init__(self, near: float = 0.8) -> None:
        """`near`: the Jaccard similarity from which documents count as the same; 0 = exact only."""
        self._exact: set[bytes] = set()
        self._kept: dict[bytes, Any] = {}
        self._near = None
        if near:
            from datasketch import MinHashLSH

            self._near = MinHashLSH(threshold=near, num_perm=PERMUTATIONS)
        self._threshold = near

    def objection(self, text_digest: bytes, text_signature: Any) -> str | None:
        """ "exact duplicate" or "near duplicate" of one before, or None, and then remembered."""
        if text_digest in self._exact:
            return "exact duplicate"
        if self._near is not None:
            for other in self._near.query(text_signature):
                # the bands only propose: the signatures decide
                if text_signature.jaccard(self._kept[other]) >= self._threshold:
                    return "near duplicate"
            self._kept[text_digest] = text_signature
            self._near.insert(text_digest, text_signature, check_duplication=False)
        self._exact.add(text_digest)
        return None
