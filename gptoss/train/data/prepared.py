"""A directory of prepared data, as the trainer sees it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from gptoss.errors import Error, shown
from gptoss.train.data.collect import SPLITS
from gptoss.train.data.packing import TextRows
from gptoss.train.data.tokenizers import HARMONY, TOKENIZER_FILES, TextTokenizer, load_tokenizer

INDEX_FILE = "data.json"
FORMAT = 1
ITEM_SIZES = {"uint16": 2, "uint32": 4}


class PreparedData:
    """Shards of token ids by text and split ("train" or "validation"), and their tokenizer.

    vocab_size: ids in all. end_of_text: the id after each document. stop_ids: ids that may end a
    generation. texts: names, in the order of the sources. digest: sha256, in hex, over the shards'
    checksums and the vocabulary: equal digests are equal data.
    """

    def __init__(self, directory: Path, index: Mapping[str, Any]) -> None:
        self.directory, self.index = directory, index
        self.vocab_size: int = index["vocab_size"]
        self.end_of_text: int = index["end_of_text"]
        self.stop_ids: tuple[int, ...] = tuple(index["stop_ids"])
        self.texts: tuple[str, ...] = tuple(index["texts"])
        self.digest: str = digest_of(index)

    @cached_property
    def tokenizer(self) -> TextTokenizer:
        """The tokenizer the ids were made with."""
        return load_tokenizer(HARMONY if self.index["tokenizer"] == HARMONY else self.directory)

    def shards(self, split: str, text: str | None = None) -> list[dict[str, Any]]:
        """The index entries of a split, of one text or of all."""
        if split not in SPLITS:
            raise Error(f"split: expected {' or '.join(SPLITS)}, found {split!r}")
        if text is not None and text not in self.texts:
            raise Error(f"texts: expected some of {', '.join(self.texts)}; found {text!r}")
        shards = self.index["shards"]
        return [s for s in shards if s["split"] == split and text in (None, s["text"])]

    def tokens(self, split: str, text: str | None = None) -> int:
        """Ids in a split, ``<|endoftext|>`` included."""
        return sum(shard["tokens"] for shard in self.shards(split, text))

    def bytes_per_token(self, split: str, text: str | None = None) -> float:
        """UTF-8 bytes of text for each id; 0 where there are none."""
        shards = self.shards(split, text)
        tokens = sum(shard["tokens"] for shard in shards)
        return sum(shard["bytes"] for shard in shards) / tokens if tokens else 0.0

    def rows(
        self,
        split: str,
        length: int,
        seed: int = 0,
        shuffle: bool = True,
        repeats: Mapping[str, int] | None = None,
        texts: Sequence[str] | None = None,
    ) -> TextRows:
        """Rows of `length` tokens; of `texts` (default: all), each `repeats` times per epoch."""
        files = [
            (self.directory / shard["file"], (repeats or {}).get(text, 1))
            for text in (self.texts if texts is None else texts)
            for shard in self.shards(split, text)
            if shard["tokens"]
        ]
        return TextRows(files, length, self.end_of_text, seed, shuffle, self.index["dtype"])

    def verify(self) -> None:
        """Reads every shard and compares its checksum. Raises Error for the first that differs."""
        for shard in self.index["shards"]:
            found = hashlib.sha256((self.directory / shard["file"]).read_bytes()).hexdigest()
            if found != shard["sha256"]:
                raise Error(
                    f"{self.directory / shard['file']}: expected sha256 {shard['sha256']}, "
                    f"found {found}"
                )

    def copy_tokenizer(self, directory: Path) -> None:
        """Puts what `load_tokenizer` reads into `directory` too."""
        for name in TOKENIZER_FILES:
            if (self.directory / name).is_file():
                (directory / name).write_bytes((self.directory / name).read_bytes())


def digest_of(index: Mapping[str, Any]) -> str:
    """See `PreparedData.digest`."""
    shards = [[s[key] for key in ("text", "split", "sha256")] for s in index["shards"]]
    parts = [index["tokenizer"], index["vocabulary"], index["vocab_size"], index["dtype"], shards]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


_KINDS: dict[str, type | tuple[type, ...]] = {
    "tokenizer": str,
    "vocabulary": str,
    "vocab_size": int,
    "end_of_text": int,
    "stop_ids": list,
    "dtype": str,
    "texts": list,
    "shards": list,
}
_SHARD: dict[str, type] = {
    "file": str,
    "text": str,
    "split": str,
    "documents": int,
    "tokens": int,
    "bytes": int,
    "sha256": str,
}


def open_data(directory: Path | str) -> PreparedData:
    """What `prepare` wrote into `directory`.

    Raises Error for a folder that is not whole: shards missing or of another size included.
    """
    directory = Path(directory)
    path = directory / INDEX_FILE
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Error(
            f"{path}: expected prepared data, found nothing; make it with `gptoss data prepare "
            f"SOURCE --out {directory}`"
        ) from None
    except (ValueError, RecursionError) as error:
        raise Error(f"{path}: expected JSON, found {error}") from None
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        found = index.get("format") if isinstance(index, dict) else index
        raise Error(f"{path}: expected prepared data of format {FORMAT}, found {shown(found)}")
    _check(index, _KINDS, str(path))
    if index["dtype"] not in ITEM_SIZES:
        raise Error(f"{path}: dtype: expected uint16 or uint32, found {shown(index['dtype'])}")
    for number, shard in enumerate(index["shards"]):
        _check(shard, _SHARD, f"{path}: shards[{number}]")
        if Path(shard["file"]).name != shard["file"]:
            raise Error(f"{path}: expected shards beside it, found {shown(shard['file'])}")
        file = directory / shard["file"]
        expected = shard["tokens"] * ITEM_SIZES[index["dtype"]]
        found = file.stat().st_size if file.is_file() else None
        if found != expected:
            what = "nothing" if found is None else f"{found}"
            raise Error(f"{file}: expected {expected} bytes, found {what}; prepare it again")
    return PreparedData(directory, index)


def _check(found: Any, kinds: Mapping[str, Any], where: str) -> None:
    if not isinstance(found, dict):
        raise Error(f"{where}: expected a JSON object, found {shown(found)}")
    for name, kind in kinds.items():
        if type(found.get(name)) is not kind:
            raise Error(
                f"{where}: {name}: expected {kind.__name__}, found {shown(found.get(name))}"
            )
