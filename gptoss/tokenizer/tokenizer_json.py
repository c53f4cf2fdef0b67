"""tokenizer.json of a Hugging Face checkpoint as a Vocabulary, without the `tokenizers` package.

Read: byte-level BPE, split by one regular expression. Everything else the format can express would
give other tokens than the model was trained on, and is refused.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from gptoss import files
from gptoss.errors import Error, shown
from gptoss.tokenizer.byte_level import (
    GPT2_PATTERN,
    check_merges,
    merge_to_two,
    to_bytes,
    unsupported,
)
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
_WHOLE_TEXT = r"[\s\S]+"


def read_tokenizer_json(path: Path, vocab_size: int) -> Vocabulary:
    """The vocabulary in `path`, for a model with `vocab_size` ids. Raises Error.

    The end of a text is tokenizer_config.json's "eos_token" where that lies beside it, and, where
    they exist, `<|return|>` and `<|call|>`. Its "conversation_format" is read, too.
    """
    data = files.read_object(path, _LIMIT)
    if data.get("normalizer") not in (None, {"type": "Sequence", "normalizers": []}):
        raise unsupported(path, "normalizer", "none", data["normalizer"])
    pattern = _pattern(path, data.get("pre_tokenizer"))
    model = _model(path, data.get("model"))
    special, plain = _added_tokens(path, data.get("added_tokens", []))
    ranks = _ranks(path, model["vocab"], special)
    # The published vocabulary's merges are those its ranks imply; others are compared one by one.
    if not is_o200k(dump_ranks(ranks)):
        # an added token is found in the text before anything is merged
        apart = {name.encode("utf-8", "replace") for name in plain}
        if model.get("ignore_merges"):
            apart |= {token for token in ranks if len(merge_to_two(token, ranks)) > 2}
        check_merges(path, "model.merges", ranks, model.get("merges", []), apart)
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


def _pattern(path: Path, pre: Any) -> str:
    """The regular expression that the pre-tokenizers amount to."""
    expected = "ByteLevel, or a Sequence of one Split by a regular expression and ByteLevel"
    steps = pre.get("pretokenizers") if _type(pre) == "Sequence" else [pre]
    if not isinstance(steps, list) or not steps or _type(steps[-1]) != "ByteLevel":
        raise unsupported(path, "pre_tokenizer", expected, pre)
    byte_level, splits = steps[-1], steps[:-1]
    if byte_level.get("add_prefix_space"):
        raise unsupported(path, "pre_tokenizer: add_prefix_space", "false", True)
    if not splits:
        return GPT2_PATTERN if byte_level.get("use_regex", True) else _WHOLE_TEXT
    split = splits[0]
    regex = split.get("pattern") if _type(split) == "Split" else None
    if len(splits) > 1 or byte_level.get("use_regex", True) or not isinstance(regex, dict):
        raise unsupported(path, "pre_tokenizer", expected, pre)
    if split.get("behavior") != "Isolated" or split.get("invert"):
        raise unsupported(path, "pre_tokenizer: Split", "behavior Isolated, invert false", split)
    text = regex.get("Regex")
    if not isinstance(text, str):
        raise unsupported(path, "pre_tokenizer: Split: pattern", "a Regex", regex)
    return text


def _type(value: Any) -> Any:
    return value.get("type") if isinstance(value, dict) else None


def _model(path: Path, model: Any) -> dict[str, Any]:
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        raise unsupported(path, "model", "a BPE model", model)
    if not isinstance(model.get("vocab"), dict):
        raise unsupported(path, "model.vocab", "an object of tokens and ids", model.get("vocab"))
    if not isinstance(model.get("merges", []), list):
        raise unsupported(path, "model.merges", "a list of pairs", model["merges"])
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        if model.get(key):
            raise unsupported(path, f"model.{key}", "none", model[key])
    return model


def _added_tokens(path: Path, entries: Any) -> tuple[dict[str, int], dict[str, int]]:
    """(special tokens, the other added tokens): name → id."""
    if not isinstance(entries, list):
        raise unsupported(path, "added_tokens", "a list", entries)
    special: dict[str, int] = {}
    plain: dict[str, int] = {}
    ids: dict[int, str] = {}
    for index, entry in enumerate(entries):
        key = f"added_tokens[{index}]"
        if not isinstance(entry, dict):
            raise unsupported(path, key, "an object", entry)
        name, token = entry.get("content"), entry.get("id")
        if not isinstance(name, str) or not is_token_id(token):
            raise unsupported(path, key, "content (text) and id (a token id)", entry)
        for option in ("lstrip", "rstrip", "single_word"):
            if entry.get(option):
                raise unsupported(path, f"{key}: {option}", "false", entry[option])
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
            raise unsupported(path, f"model.vocab: {shown(text)}", "a token id", rank)
        if special.get(text, rank) != rank:
            key = f"model.vocab: {shown(text)}"
            raise unsupported(path, key, f"the id {special[text]} as in added_tokens", rank)
        if text in special:
            continue
        if rank in seen:
            raise Error(
                f"{path}: model.vocab: {shown(seen[rank])} and {shown(text)} have the same id "
                f"{rank}"
            )
        seen[rank] = text
        ranks[to_bytes(path, "model.vocab", text)] = rank
    return ranks


def _eos_token(path: Path, value: object, added: Collection[str]) -> str | None:
    """The name of the token that ends a text, as tokenizer_config.json has it."""
    if isinstance(value, dict):
        value = value.get("content")
    if value is not None and (not isinstance(value, str) or value not in added):
        raise unsupported(path, "eos_token", f"an added token of {NAME}", value)
    return value
