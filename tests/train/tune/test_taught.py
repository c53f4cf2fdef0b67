"""A model that was taught conversations chats at once; one that was not says so."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from gptoss import Engine, SamplingParams
from gptoss.chat import Conversation, HarmonyChat, load_chat, parse_messages
from gptoss.checkpoint import open_checkpoint
from gptoss.checkpoint.write import write_checkpoint
from gptoss.cli import chat as chat_command
from gptoss.cli import main
from gptoss.server.api import chat_completions
from gptoss.server.api.app import ServerOptions, create_app
from gptoss.train.data import load_tokenizer
from gptoss.train.tune.examples import read_examples
from gptoss.train.tune.recipe import Recipe
from gptoss.train.tune.tuner import Tuner
from gptoss.train.weights import merged_source

SAID = {
    "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "the end"}]
}
BASE = ["--date", "none", "--validation", "0", "--device", "cpu", "--set", "dtype=float32"]


def told(directory: Path) -> Any:
    """What a model's files say of its conversations."""
    return json.loads((directory / "tokenizer_config.json").read_text()).get("conversation_format")


def test_finetune_export_chat_and_serve(
    untaught: Path,
    jsonl: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, model, data = tmp_path / "run", tmp_path / "model", jsonl(SAID)
    options = ["--steps", "60", "--length", "512", "--batch-tokens", "512", "--full"]
    changes = ["--learning-rate", "0.01", "--set", "warmup=2"]
    command = ["finetune", str(untaught), "--data", str(data), "--out", str(run)]
    assert main([*command, *BASE, *options, *changes]) == 0
    assert main(["export", str(run), str(model)]) == 0
    assert told(untaught) == "none" and told(model) == "harmony"

    with Engine(str(model), threads=1) as engine:
        chat = load_chat(engine.tokenizer)
        assert isinstance(chat, HarmonyChat)
        asked = tuple(parse_messages([{"role": "user", "content": "Hi"}]))
        prompt = chat.render(Conversation(asked)).ids
        words = load_tokenizer(model)
        (item,) = read_examples(data, "sft", words, 512, 0.0, date="none").train
        assert item[0].tokens[: len(prompt)].tolist() == prompt
        assert (item[0].targets[: len(prompt) - 1] < 0).all()
        (found,) = engine.generate([prompt], SamplingParams(max_tokens=40, temperature=0.0))
        assert found.finish_reason == "stop"
        said = engine.tokenizer.decode(found.token_ids)
        assert said.startswith("<|channel|>final<|message|>the end"), said

    class NoDay:
        today = staticmethod(lambda: None)

    # Both tell the day's date, which this model, of one example, has never seen.
    for module in (chat_command, chat_completions):
        monkeypatch.setattr(module, "date", NoDay)
    capsys.readouterr()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"Hi\n")))
    assert main(["chat", "-m", str(model), "--temperature", "0", "--max-tokens", "40"]) == 0
    captured = capsys.readouterr()
    assert captured.out.strip() == "the end" and "not taught" not in captured.err

    with (
        Engine(str(model), threads=1) as engine,
        TestClient(create_app(engine, ServerOptions("m"))) as client,
    ):
        body = {"messages": SAID["messages"][:1], "temperature": 0, "max_tokens": 40}
        (choice,) = client.post("/v1/chat/completions", json=body).json()["choices"]
        assert choice["finish_reason"] == "stop"
        assert choice["message"]["content"] == "the end"
        assert client.get("/v1/models").json()["data"][0]["format"] == "harmony"


@pytest.mark.parametrize("full", [False, True])
def test_what_export_says_follows_the_chain_of_runs(
    untaught: Path, checkpoint: Path, jsonl: Callable[..., Path], tmp_path: Path, full: bool
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("<|endoftext|>".join(f"the end of {n} and the rest" for n in range(8)))
    pairs = jsonl({"prompt": "a", "chosen": "the", "rejected": "end"}, name="pairs.jsonl")
    data = {"sft": jsonl(SAID), "dpo": pairs, "text": text}

    def tuned(base: Path, *methods: str) -> Any:
        """What the export says after these methods, one upon the other."""
        for number, method in enumerate(methods):
            out = tmp_path / f"{base.name}-{'-'.join(methods[: number + 1])}"
            recipe = Recipe(
                method=method, full=full, epochs=0.0, raw=method != "text", lora_rank=2,
                validation=0.0,
            ) if method != "text" else Recipe(
                method=method, full=full, epochs=0.0, lora_rank=2, validation=0.0
            )  # fmt: skip
            changes = {"steps": 1, "length": 64, "batch_tokens": 128, "warmup": 1}
            if not (out / "adapters.json").exists():
                Tuner(str(base), data[method], out, recipe, changes).run(quiet=True)
            base = out
        written = tmp_path / f"{base.name}-written"
        with merged_source(base) as source:
            write_checkpoint(source, written, "huggingface")
        return told(written)

    assert tuned(untaught, "text") == "none"
    assert tuned(untaught, "text", "sft") == "harmony"
    assert tuned(untaught, "sft", "dpo") == "harmony"
    assert tuned(untaught, "sft", "text") == "harmony"
    assert tuned(checkpoint, "text") is None
    assert tuned(checkpoint, "dpo") == "harmony"


@pytest.mark.parametrize(
    ("files", "wanted", "expected"),
    [
        ({}, None, None),
        ({}, "harmony", None),  # that is what the special tokens say already
        ({}, "none", {"conversation_format": "none"}),
        ({"tokenizer.json": "{}"}, "harmony", None),
        (
            {"tokenizer_config.json": '{"chat_template": "ä", "conversation_format": "none"}'},
            "harmony",
            {"chat_template": "ä", "conversation_format": "harmony"},
        ),
        ({"tokenizer_config.json": '{"a": 1}'}, None, {"a": 1}),
    ],
)
def test_what_is_written(
    checkpoint: Path, tmp_path: Path, files: dict[str, str], wanted: Any, expected: Any
) -> None:
    words = tmp_path / "words"
    words.mkdir()
    for name, content in files.items():
        (words / name).write_text(content)
    with open_checkpoint(checkpoint) as source:
        source.directory, source.conversation_format = words, wanted
        write_checkpoint(source, tmp_path / "out")
    path = tmp_path / "out" / "tokenizer_config.json"
    assert (json.loads(path.read_text()) if path.exists() else None) == expected
    if wanted is None and files:
        assert path.read_bytes() == (words / path.name).read_bytes()
