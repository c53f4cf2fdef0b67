"""tokenizer.json: the same tokens as Hugging Face's `tokenizers`, and clear refusals."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vocabularies import PATTERN, Size, texts, tiktoken_harmony

from gptoss import Error
from gptoss.tokenizer.load import load_tokenizer
from gptoss.tokenizer.tokenizer import Tokenizer
from gptoss.tokenizer.vocabulary import O200K_PATTERN, parse_ranks

tokenizers = pytest.importorskip("tokenizers")

CORPUS = [
    "Once upon a time there was a little girl, and her mother's house stood by the wood.",
    "the other one's 12345 things!! weren't there, they're aaaa aaaaaaa banana bananas",
    "Grüße aus Köln, às vezes é útil: 中文字符 ελληνικά 😀😀",
    "   indented\n\n\ttext  with   blanks\r\n and line\nends",
] * 3


def trained(split: str | None = PATTERN, size: int = 600, **added: Any) -> Any:
    """A tokenizer made by `tokenizers` itself."""
    levels, trainers = tokenizers.pre_tokenizers, tokenizers.trainers
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    if split is None:
        made.pre_tokenizer = levels.ByteLevel(add_prefix_space=False)
    else:
        made.pre_tokenizer = levels.Sequence(
            [
                levels.Split(tokenizers.Regex(split), behavior="isolated"),
                levels.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    made.decoder = tokenizers.decoders.ByteLevel()
    made.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=size,
            initial_alphabet=levels.ByteLevel.alphabet(),
            show_progress=False,
            **added,
        ),
    )
    return made


def ids_of(made: Any, text: str) -> list[int]:
    return list(made.encode(text, add_special_tokens=False).ids)


@pytest.fixture(scope="module", params=["split", "gpt2"])
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Tokenizer, Any]:
    """(ours, theirs) from one tokenizer.json."""
    directory = tmp_path_factory.mktemp(request.param)
    made = trained(PATTERN if request.param == "split" else None, special_tokens=["<|endoftext|>"])
    made.add_special_tokens(["<|start|>", "<|start|>er"])
    made.add_tokens(["<plain>", "ban ana"])
    made.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": {"content": "<|endoftext|>", "special": True}})
    )
    return load_tokenizer(directory, Size(700)), made


@settings(max_examples=300, deadline=None)
@given(text=texts)
def test_encodes_as_tokenizers_does(pair: tuple[Tokenizer, Any], text: str) -> None:
    ours, theirs = pair
    ids = ours.encode(text, "all")
    assert ids == ids_of(theirs, text)
    assert ours.decode(ids) == text


@pytest.mark.parametrize(
    "text", [*CORPUS[:4], "bananabanana ban ana<plain>x", "<|start|>er<|endoftext|><|start|>e", ""]
)
def test_corpus_and_added_tokens(pair: tuple[Tokenizer, Any], text: str) -> None:
    ours, theirs = pair
    assert ours.encode(text, "all") == ids_of(theirs, text)
    assert ours.decode(ours.encode(text)) == text


def test_special_tokens_are_plain_text_unless_allowed(pair: tuple[Tokenizer, Any]) -> None:
    ours, theirs = pair
    assert ours.special_tokens == {
        name: theirs.token_to_id(name) for name in ("<|endoftext|>", "<|start|>", "<|start|>er")
    }
    assert not set(ours.special_tokens.values()) & set(ours.encode("<|endoftext|><|start|>er"))
    # tokens added without being special are found in any text, as `tokenizers` does
    assert ours.encode("<plain>") == [theirs.token_to_id("<plain>")]
    assert ours.eos_ids == {theirs.token_to_id("<|endoftext|>")}
    assert ours.token_bytes(ours.special_tokens["<|start|>"]) == b"<|start|>"
    assert ours.token_bytes(699) == b""


@settings(max_examples=100, deadline=None)
@given(ids=st.lists(st.integers(0, 605), max_size=12))
def test_decodes_as_tokenizers_does(pair: tuple[Tokenizer, Any], ids: list[int]) -> None:
    ours, theirs = pair
    added = set(ours.special_tokens.values()) | set(ours.encode("<plain>ban ana"))
    ids = [token for token in ids if token not in added]  # theirs joins text there, not bytes
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=False)


# The published vocabulary in the published form.


@pytest.fixture(scope="module")
def harmony_json(o200k_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tokenizer.json of o200k_harmony, made as transformers converts tiktoken vocabularies."""
    ranks = parse_ranks(o200k_file.read_bytes(), "o200k")
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {byte: chr(byte) for byte in printable}
    for byte in range(256):
        letters.setdefault(byte, chr(256 + len(letters) - len(printable)))
    text = {token: "".join(letters[byte] for byte in token) for token in ranks}
    merges = []
    for token in ranks:
        splits = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        known = [split for split in splits if split[0] in ranks and split[1] in ranks]
        known.sort(key=lambda split: (ranks[split[0]], ranks[split[1]]))
        merges += [[text[left], text[right]] for left, right in known]
    named = {199998: "<|startoftext|>", 199999: "<|endoftext|>", 200002: "<|return|>"}
    named |= {200006: "<|start|>", 200007: "<|end|>", 200012: "<|call|>", 200018: "<|endofprompt|>"}
    added = [
        {
            "id": token,
            "content": named.get(token, f"<|reserved_{token}|>"),
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for token in range(199998, 200019)
    ]
    split = {"Regex": O200K_PATTERN}
    data = {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": split, "behavior": "Isolated", "invert": False},
                {
                    "type": "ByteLevel",
                    "add_prefix_space": False,
                    "trim_offsets": True,
                    "use_regex": False,
                },
            ],
        },
        "post_processor": None,
        "decoder": {
            "type": "ByteLevel",
            "add_prefix_space": True,
            "trim_offsets": True,
            "use_regex": True,
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,
            "vocab": {text[token]: rank for token, rank in ranks.items()},
            "merges": merges,
        },
    }
    directory = tmp_path_factory.mktemp("harmony")
    (directory / "tokenizer.json").write_text(json.dumps(data, ensure_ascii=False))
    return directory


def test_the_published_vocabulary(harmony_json: Path, o200k_file: Path) -> None:
    ours = load_tokenizer(harmony_json, Size(201088))
    theirs = tokenizers.Tokenizer.from_file(str(harmony_json / "tokenizer.json"))
    published = tiktoken_harmony(o200k_file)
    assert ours.eos_ids == {200002, 200012}
    assert ours.vocab_size == 201088 and ours.token_bytes(201087) == b""  # maps to nothing here

    @settings(max_examples=200, deadline=None)
    @given(text=texts)
    def agree(text: str) -> None:
        ids = ours.encode(text)
        assert ids == published.encode(text, disallowed_special=())
        assert ours.encode(text, "all") == ids_of(theirs, text)

    agree()
    with pytest.raises(Error, match="below the model's vocab_size 200000, found 200000"):
        load_tokenizer(harmony_json, Size(200000))


# What is refused. `data` is a small good file, changed.


@pytest.fixture(scope="module")
def good() -> dict[str, Any]:
    made = trained(size=300, special_tokens=["<|endoftext|>"])
    return dict(json.loads(made.to_str()))


def load(directory: Path, data: Any, size: int = 400) -> Tokenizer:
    (directory / "tokenizer.json").write_text(json.dumps(data))
    return load_tokenizer(directory, Size(size))


def changed(data: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy with the entry at `path` ("model.vocab.a", "added_tokens.0") replaced or added."""
    data = copy.deepcopy(data)
    *keys, last = path.split(".")
    place: Any = data
    for key in keys:
        place = place[int(key)] if isinstance(place, list) else place[key]
    place[int(last) if isinstance(place, list) else last] = value
    return data


def added(**entry: Any) -> dict[str, Any]:
    return {"id": 350, "content": "<x>", "special": True, **entry}


END = {"id": 0, "content": "<|endoftext|>", "special": True}
SPLIT, BYTES = "pre_tokenizer.pretokenizers.0", "pre_tokenizer.pretokenizers.1"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("normalizer", {"type": "NFC"}, r"normalizer: expected none, found {'type': 'NFC'}"),
        ("pre_tokenizer", None, r"pre_tokenizer: expected ByteLevel, or a Sequence"),
        ("pre_tokenizer", {"type": "Metaspace"}, r"pre_tokenizer: expected ByteLevel"),
        ("pre_tokenizer.pretokenizers", [], r"pre_tokenizer: expected ByteLevel"),
        (BYTES, {"type": "Digits"}, r"pre_tokenizer: expected ByteLevel"),
        (f"{BYTES}.add_prefix_space", True, r"add_prefix_space: expected false, found True"),
        (f"{BYTES}.use_regex", True, r"pre_tokenizer: expected ByteLevel, or a Sequence of one"),
        (SPLIT, {"type": "Digits"}, r"pre_tokenizer: expected ByteLevel, or a Sequence of one"),
        (f"{SPLIT}.behavior", "Removed", r"expected behavior Isolated, invert false"),
        (f"{SPLIT}.invert", True, r"expected behavior Isolated, invert false"),
        (f"{SPLIT}.pattern", {"String": " "}, r"pattern: expected a Regex, found {'String': ' '}"),
        (f"{SPLIT}.pattern", {"Regex": "["}, r"expected a regular expression, found '\['"),
        (f"{SPLIT}.pattern", {"Regex": "[a-z]+"}, r"expected to match any text"),
        ("model", None, r"model: expected a BPE model, found None"),
        ("model.type", "Unigram", r"model: expected a BPE model"),
        ("model.vocab", [], r"model.vocab: expected an object of tokens and ids, found \[\]"),
        ("model.vocab.a", 1.5, r"model.vocab: 'a': expected a token id, found 1.5"),
        ("model.vocab.a", 2, r"model.vocab: '\"' and 'a' have the same id 2"),
        (
            "model.vocab.中",
            399,
            r"model.vocab: expected tokens in byte-level characters, found '中'",
        ),
        ("model.vocab.new", 399, r"model.merges: expected .* → b'new', found no such merge"),
        ("model.vocab.new line", 399, r"expected tokens in byte-level characters"),
        ("model.merges", None, r"model.merges: expected a list of pairs, found None"),
        ("model.merges", [], r"model.merges: expected .* found no such merge"),
        ("model.merges.0", "t", r"model.merges\[0\]: expected a pair of tokens, found 't'"),
        ("model.merges.0", [1, 2], r"model.merges\[0\]: expected a pair of tokens, found \[1, 2\]"),
        ("model.merges.0", ["q", "q"], r"model.merges\[0\]: expected tokens of the vocabulary"),
        ("model.byte_fallback", True, r"model.byte_fallback: expected none, found True"),
        ("model.dropout", 0.1, r"model.dropout: expected none, found 0.1"),
        ("model.end_of_word_suffix", "</w>", r"model.end_of_word_suffix: expected none"),
        ("added_tokens", {}, r"added_tokens: expected a list, found {}"),
        ("added_tokens.0", 5, r"added_tokens\[0\]: expected an object, found 5"),
        ("added_tokens.0", added(id="7"), r"added_tokens\[0\]: expected content \(text\) and id"),
        ("added_tokens.0", added(content=None), r"added_tokens\[0\]: expected content"),
        ("added_tokens.0", added(lstrip=True), r"added_tokens\[0\]: lstrip: expected false"),
        ("added_tokens", [END, added(id=400)], r"special token '<x>': expected an id below .* 400"),
        (
            "added_tokens",
            [END, added(id=9)],
            r"special token '<x>': expected an id of its own, found 9",
        ),
        ("added_tokens", [END, added(content="")], r"special token '': expected a name"),
        ("added_tokens", [added(), added(id=351)], r"added_tokens\[1\]: the token '<x>' is listed"),
        ("added_tokens", [added(), added(content="y")], r"\[1\]: 'y' has the id 350 of '<x>'"),
        ("added_tokens.0.id", 350, r"'<\|endoftext\|>': expected the id 350 as in added_tokens"),
    ],
)
def test_refused(tmp_path: Path, good: dict[str, Any], path: str, value: Any, message: str) -> None:
    assert load(tmp_path, good).encode("the")
    with pytest.raises(Error, match=message) as caught:
        load(tmp_path, changed(good, path, value))
    assert "tokenizer.json" in str(caught.value)


@pytest.mark.parametrize("said", [None, "none", "harmony"])
def test_conversation_format(tmp_path: Path, good: dict[str, Any], said: str | None) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"conversation_format": said}))
    assert load(tmp_path, good).conversation_format == said
    (tmp_path / "tokenizer_config.json").unlink()
    assert load(tmp_path, good).conversation_format is None


@pytest.mark.parametrize("wrong", ["Harmony", "", 5, [], {}, True])
def test_a_conversation_format_that_is_none(
    tmp_path: Path, good: dict[str, Any], wrong: Any
) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"conversation_format": wrong}))
    with pytest.raises(
        Error, match=r"tokenizer_config.json: conversation_format: expected harmony"
    ):
        load(tmp_path, good)


def test_a_normalizer_that_does_nothing(tmp_path: Path, good: dict[str, Any]) -> None:
    nothing = changed(good, "normalizer", {"type": "Sequence", "normalizers": []})
    text = "the thing é"
    assert load(tmp_path, nothing).encode(text) == load(tmp_path, good).encode(text)


def test_merges_out_of_the_order_of_ids(tmp_path: Path, good: dict[str, Any]) -> None:
    merges = copy.deepcopy(good["model"]["merges"])
    merges[3], merges[7] = merges[7], merges[3]
    with pytest.raises(Error, match=r"model.merges\[4\]: expected merges in the order of token"):
        load(tmp_path, changed(good, "model.merges", merges))


def test_merges_that_ranks_cannot_express(tmp_path: Path, good: dict[str, Any]) -> None:
    """b+c → bc comes first, a+bc is no merge: by the list "abc" stays a, bc."""
    data = changed(
        good, "model.vocab", {**good["model"]["vocab"], "bc": 396, "ab": 397, "abc": 398}
    )
    data["model"]["merges"] += [["b", "c"], ["a", "b"], ["ab", "c"]]
    assert ids_of(tokenizers.Tokenizer.from_str(json.dumps(data)), "abc") == [
        data["model"]["vocab"]["a"],
        396,
    ]
    with pytest.raises(Error, match=r"expected b'a' \+ b'bc' → b'abc', found no such merge"):
        load(tmp_path, data)
    data["model"]["merges"][-1] = ["a", "bc"]
    assert load(tmp_path, data).encode("abc") == [398]


def test_a_byte_is_missing(tmp_path: Path, good: dict[str, Any]) -> None:
    data = copy.deepcopy(good)
    del data["model"]["vocab"]["z"]
    with pytest.raises(Error, match="each of the 256 bytes, found none for 0x7a"):
        load(tmp_path, data)


def test_tokens_for_whole_pieces_only(tmp_path: Path, good: dict[str, Any]) -> None:
    """With ignore_merges a token that no merges lead to still stands for a whole piece."""
    data = changed(good, "model.vocab.qxz", 399)
    data["model"]["ignore_merges"] = True
    theirs = tokenizers.Tokenizer.from_str(json.dumps(data))
    ours = load(tmp_path, data)
    for text in ("qxz", "qxz qxz", "aqxz"):
        assert ours.encode(text) == ids_of(theirs, text)
    assert ours.encode("qxz") == [399]


def test_older_forms_of_the_file(tmp_path: Path, good: dict[str, Any]) -> None:
    """Merges as text, no "type", and no added tokens."""
    data = copy.deepcopy(good)
    data["model"]["merges"] = [" ".join(merge) for merge in data["model"]["merges"]]
    del data["model"]["type"]
    ours = load(tmp_path, data)
    assert ours.encode("the other", "all") == ids_of(
        tokenizers.Tokenizer.from_str(json.dumps(good)), "the other"
    )
    data["added_tokens"] = []
    del data["model"]["vocab"]["<|endoftext|>"]
    assert load(tmp_path, data).special_tokens == {}


def test_no_splitting_at_all(tmp_path: Path, good: dict[str, Any]) -> None:
    data = changed(good, "pre_tokenizer", good["pre_tokenizer"]["pretokenizers"][1])
    theirs = tokenizers.Tokenizer.from_str(json.dumps(data))
    ours = load(tmp_path, data)
    for text in ("the other\n\none's", " a  b "):
        assert ours.encode(text) == ids_of(theirs, text)


@pytest.mark.parametrize("eos", ["<|nothing|>", 5, {"content": None, "id": 1}, ["<|endoftext|>"]])
def test_wrong_eos_token(tmp_path: Path, good: dict[str, Any], eos: Any) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": eos}))
    if eos == {"content": None, "id": 1}:
        assert load(tmp_path, good).eos_ids == frozenset()
        return
    with pytest.raises(Error, match=r"tokenizer_config.json: eos_token: expected an added token"):
        load(tmp_path, good)


def test_not_json(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(b'{"model": {')
    with pytest.raises(Error, match=r"tokenizer.json: expected JSON"):
        load_tokenizer(tmp_path, Size(400))
    with pytest.raises(Error, match=r"tokenizer.json: expected a JSON object, found \[1\]"):
        load(tmp_path, [1])
    with pytest.raises(Error, match=r"model: expected a BPE model, found None"):
        load(tmp_path, {"pre_tokenizer": {"type": "ByteLevel"}})


_values = st.sampled_from([None, True, 0, -1, 2**70, 0.5, "", "x", [], [[]], {}, {"type": "BPE"}])


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_damaged_files_give_errors_only(
    tmp_path_factory: pytest.TempPathFactory, good: dict[str, Any], data: st.DataObject
) -> None:
    """Any one value replaced: the file is read or refused, and only with Error."""
    damaged: Any = copy.deepcopy(good)
    place: Any = damaged
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(place[key], (dict, list)) or not place[key] or data.draw(st.booleans()):
            place[key] = data.draw(_values)
            break
        place = place[key]
    try:
        load(tmp_path_factory.getbasetemp(), damaged)
    except Error as error:
        assert "tokenizer.json" in str(error)
