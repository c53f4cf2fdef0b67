"""Whole runs: learning, going on, merging, the engine, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gptoss import Engine, SamplingParams
from gptoss.chat import Conversation, parse_messages
from gptoss.checkpoint.files import open_checkpoint
from gptoss.checkpoint.write import write_checkpoint
from gptoss.cli import main
from gptoss.errors import Error
from gptoss.model.config import ModelConfig
from gptoss.train.data.tokenizers import BytePairs
from gptoss.train.model.convert import from_source, rounded, to_source
from gptoss.train.model.quantize import round_mxfp4
from gptoss.train.tune import lora
from gptoss.train.tune.conversations import Teacher
from gptoss.train.tune.recipe import Recipe
from gptoss.train.tune.tuner import Tuner
from gptoss.train.weights import MARKER, STATE, is_run, merged_source

SHORT: dict[str, Any] = {
    "length": 64,
    "batch_tokens": 256,
    "micro_tokens": 128,
    "steps": 6,
    "warmup": 1,
    "dtype": "float32",
    "learning_rate": 1e-2,
    "validate_every": 3,
}


def tuner(base: Path, data: Path, out: Path, changes: dict[str, Any], **recipe: Any) -> Tuner:
    """A short run; `epochs` 0 unless said."""
    # Conversations as they are: with harmony's system message none fits into 64 bytes.
    small = {"epochs": 0.0, "lora_rank": 4, "lora_alpha": 8.0, "raw": True}
    made = Recipe(**{**small, **recipe})
    return Tuner(str(base), data, out, made, {**SHORT, **changes})


def log(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative, of the logits of the middle token: where a near-tie sends a token to another
    expert, its own are far off."""
    each = (found - expected).norm(dim=-1) / expected.norm(dim=-1)
    return float(each.detach().median())


@pytest.fixture
def chat_file(jsonl: Callable[..., Path], chats: list[Any]) -> Path:
    return jsonl(*chats, name="chats.jsonl")


@pytest.fixture
def preference_file(jsonl: Callable[..., Path], preferences: list[Any]) -> Path:
    return jsonl(*preferences, name="preferences.jsonl")


@pytest.mark.parametrize("full", [False, True])
def test_conversations_are_learned_and_the_engine_runs_the_result(
    checkpoint: Path, chat_file: Path, tmp_path: Path, full: bool
) -> None:
    out = tmp_path / "run"
    run = tuner(checkpoint, chat_file, out, {"steps": 30}, full=full, validation=0.2)
    run.run(quiet=True)
    records = log(out)
    assert records[0]["step"] == 0 and records[-1]["step"] == 30
    before, after = (records[at]["validation"]["held out"] for at in (0, -1))
    assert after < 0.7 * before
    assert records[-1]["loss"] < 0.7 * records[1]["loss"]

    source = merged_source(out)
    write_checkpoint(source, tmp_path / "merged")
    tokenizer_names = {"tokenizer.tiktoken", "tokenizer_config.json"}
    assert tokenizer_names <= {p.name for p in (tmp_path / "merged").iterdir()}
    with open_checkpoint(tmp_path / "merged") as written:
        special = run.stop_ids
        assert set(special) < set(written.config.eos_token_ids)
        exported = from_source(written)
    with Engine(str(tmp_path / "merged"), activation="f32", threads=1) as engine:
        words = engine.tokenizer
        assert words.conversation_format == "harmony"
        said = parse_messages([{"role": "user", "content": "Say the."}])
        prompt = Teacher(BytePairs(words), raw=True).prompt(Conversation(tuple(said)))
        # experts were rounded in training, other matrices are rounded to bf16 now
        mine, theirs = (m.logits(torch.tensor([prompt]))[0] for m in (run.model, exported))
        assert distance(mine, theirs) < 0.02
        greedy = [int(theirs[-1].argmax())]
        (completion,) = engine.generate(
            [prompt], SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True)
        )
        assert completion.token_ids == greedy
        assert words.token_bytes(greedy[0]) == b"<|channel|>"


@pytest.mark.parametrize("method", ["sft", "dpo", "text"])
@pytest.mark.parametrize("full", [False, True])
def test_a_run_goes_on_exactly(
    checkpoint: Path,
    chat_file: Path,
    preference_file: Path,
    tmp_path: Path,
    method: str,
    full: bool,
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("<|endoftext|>".join(f"the end of {n} and the rest" for n in range(30)))
    data = {"sft": chat_file, "dpo": preference_file, "text": text}[method]
    recipe: dict[str, Any] = {"method": method, "full": full, "validation": 0.2}
    changes = {"quantize_from": 0.3, "save_every": 2}
    whole = tuner(checkpoint, data, tmp_path / "whole", changes, **recipe)
    expected = whole.run(quiet=True)

    out = tmp_path / "parts"
    tuner(checkpoint, data, out, changes, **recipe).run(until=4, quiet=True)
    killed = tuner(checkpoint, data, out, changes, **recipe)
    killed.settings = whole.settings
    killed.train_step()  # not saved: taken again
    again = tuner(checkpoint, data, out, changes, **recipe)
    assert again.step == 4
    found = again.run(quiet=True)
    assert [r["loss"] for r in found] == [r["loss"] for r in expected[4:]]
    assert found[-1]["validation"] == expected[-1]["validation"]
    for name, parameter in whole.named.items():
        assert torch.equal(parameter, again.named[name]), name
    assert [r["step"] for r in log(out)] == [r["step"] for r in log(tmp_path / "whole")]


def test_dpo_widens_the_margin(checkpoint: Path, preference_file: Path, tmp_path: Path) -> None:
    recipe: dict[str, Any] = {"method": "dpo", "validation": 0.2, "beta": 0.5}
    run = tuner(checkpoint, preference_file, tmp_path / "run", {"steps": 12}, **recipe)
    records = run.run(quiet=True)
    first = log(tmp_path / "run")[0]["validation"]
    assert first["held out"] == pytest.approx(np.log(2), abs=1e-4)
    assert first["margin"] == pytest.approx(0, abs=1e-4)
    assert records[0]["loss"] == pytest.approx(np.log(2), abs=1e-4)
    assert records[-1]["accuracy"] == 1 and records[-1]["margin"] > 1
    last = records[-1]["validation"]
    assert last["held out"] < 0.5 and last["accuracy"] == 1


def test_reference_is_the_base(checkpoint: Path, preference_file: Path, tmp_path: Path) -> None:
    run = tuner(checkpoint, preference_file, tmp_path / "run", {}, method="dpo", validation=0.2)
    base = from_source(open_checkpoint(checkpoint))
    items = run.examples.train + run.examples.held_out
    for number in (0, len(run.examples.train), len(items) - 1):
        for side, sequence in enumerate(items[number]):
            logits = base.logits(torch.from_numpy(sequence.tokens)[None])[0].double()
            logp = logits.log_softmax(-1).detach().numpy()
            places = np.flatnonzero(sequence.targets >= 0)
            expected = logp[places, sequence.targets[places]].sum()
            assert run.reference[number, side] == pytest.approx(expected, rel=1e-4)


def test_one_run_after_another(
    checkpoint: Path, chat_file: Path, preference_file: Path, tmp_path: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    tuner(checkpoint, chat_file, first, {}, validation=0.0).run(quiet=True)
    run = tuner(first, preference_file, second, {}, method="dpo", validation=0.0)
    run.run(quiet=True)
    write_checkpoint(merged_source(second), tmp_path / "merged")
    with open_checkpoint(tmp_path / "merged") as written:
        tokens = torch.arange(40)[None]
        found, expected = from_source(written).logits(tokens), run.model.logits(tokens)
    assert distance(found, expected) < 0.02


@pytest.mark.parametrize("full", [False, True])
def test_a_run_of_the_trainer_as_base(
    small_config: ModelConfig, prepared: Path, chat_file: Path, tmp_path: Path, full: bool
) -> None:
    from gptoss.train.run.settings import Settings
    from gptoss.train.run.trainer import Trainer

    settings = Settings(
        steps=2, batch_tokens=64, length=32, long_length=32, warmup=1, dtype="float32",
        validation_rows=1, sample_tokens=0,
    )  # fmt: skip
    trained = Trainer(small_config, settings, prepared, tmp_path / "trained")
    trained.run(quiet=True)
    changes = {"quantize_from": 1.0, "length": 128}
    run = tuner(tmp_path / "trained", chat_file, tmp_path / "run", changes, full=full)
    tokens = torch.arange(40)[None]
    # LoRA begins at what an export of the run would be, all weights at the run itself
    expected = trained.model if full else from_source(to_source(trained.model))
    torch.testing.assert_close(
        run.model.logits(tokens), expected.logits(tokens), rtol=1e-4, atol=1e-5
    )
    run.run(quiet=True)
    write_checkpoint(merged_source(tmp_path / "run"), tmp_path / "merged")
    with open_checkpoint(tmp_path / "merged") as written:
        found = from_source(written).logits(tokens)
    if full:
        assert torch.equal(found, rounded(run.model).logits(tokens))
        return
    with open_checkpoint(tmp_path / "merged") as written:
        merged = from_source(written)
    for mine, theirs in zip(run.model.block, merged.block, strict=True):
        for name in ("mlp1", "mlp2"):
            adapter = getattr(mine.mlp.adapters, name)
            for expert in range(small_config.num_experts):
                base = getattr(mine.mlp, f"{name}_weight").expert(expert, torch.float32)
                added = lora.difference(adapter.a[expert], adapter.b[expert], adapter.scale)
                packed = getattr(theirs.mlp, f"{name}_weight")[expert]
                assert torch.equal(packed, round_mxfp4((base + added).detach()))
        for one, other in ((mine.attn.qkv, theirs.attn.qkv), (mine.mlp.gate, theirs.mlp.gate)):
            a, b, scale = one.adapter.a, one.adapter.b, one.adapter.scale
            whole = one.base.weight.float() + lora.difference(a, b, scale)
            torch.testing.assert_close(other.weight, whole, rtol=2**-8, atol=0)


def test_unpacked_result(checkpoint: Path, chat_file: Path, tmp_path: Path) -> None:
    changes = {"quantize_from": 1.0}
    for full in (False, True):
        out = tmp_path / f"run-{full}"
        run = tuner(checkpoint, chat_file, out, changes, full=full)
        run.run(quiet=True)
        write_checkpoint(merged_source(out, rule=None), out / "merged", "huggingface-bf16")
        tokens = torch.arange(40)[None]
        with open_checkpoint(out / "merged") as written:
            found, expected = from_source(written).logits(tokens), run.model.logits(tokens)
        assert distance(found, expected) < 0.02


def test_layouts(checkpoint: Path, chat_file: Path, tmp_path: Path) -> None:
    tuner(checkpoint, chat_file, tmp_path / "run", {"steps": 2}).run(quiet=True)
    tokens = torch.arange(40)[None]
    logits = []
    for layout in ("original", "huggingface"):
        write_checkpoint(merged_source(tmp_path / "run"), tmp_path / layout, layout)
        with open_checkpoint(tmp_path / layout) as written:
            logits.append(from_source(written).logits(tokens))
    assert torch.equal(*logits)


def test_hugging_face_and_unpacked_bases(checkpoint: Path, chat_file: Path, tmp_path: Path) -> None:
    losses = []
    for layout in ("huggingface", "huggingface-bf16"):
        with open_checkpoint(checkpoint) as source:
            write_checkpoint(source, tmp_path / layout, layout)
        run = tuner(
            tmp_path / layout, chat_file, tmp_path / f"run-{layout}", {"quantize_from": 1.0}
        )
        losses.append([record["loss"] for record in run.run(quiet=True)])
        with merged_source(tmp_path / f"run-{layout}") as merged:
            assert merged.expert_dtype == ("bf16" if layout.endswith("bf16") else "mxfp4")
    np.testing.assert_allclose(*losses, rtol=1e-4)


def test_steps_follow_from_epochs(checkpoint: Path, chat_file: Path, tmp_path: Path) -> None:
    small = {name: value for name, value in SHORT.items() if name not in ("steps", "warmup")}
    recipe = Recipe(epochs=4.0, validation=0.0, raw=True, lora_rank=4)
    run = Tuner(str(checkpoint), chat_file, tmp_path / "run", recipe, small)
    rows = len(run.rows.rows(0))
    assert run.settings.steps == -(-4 * rows // 4)


def test_learning_rate_by_width(checkpoint: Path, chat_file: Path, tmp_path: Path) -> None:
    made = Recipe(lora_rank=2, raw=True)
    run = Tuner(str(checkpoint), chat_file, tmp_path / "run", made)
    assert run.settings.learning_rate == 1 / 32
    assert run.settings.length == 256 == run.source.config.context_length
    assert Recipe(method="dpo", full=True).rate(100) == pytest.approx(1e-3 / 30)


@pytest.mark.parametrize(
    ("recipe", "changes", "message"),
    [
        ({"lora_rank": 2}, {}, "lora_rank: expected 4 as the run began, found 2"),
        ({"validation": 0.5}, {}, "validation: expected 0.2"),
        ({}, {"seed": 3}, "seed: expected 0"),
        ({}, {"batch_tokens": 512}, "batch_tokens: expected 256"),
    ],
)
def test_going_on_with_other_settings(
    checkpoint: Path,
    chat_file: Path,
    tmp_path: Path,
    recipe: dict[str, Any],
    changes: dict[str, Any],
    message: str,
) -> None:
    out = tmp_path / "run"
    tuner(checkpoint, chat_file, out, {}, validation=0.2)
    with pytest.raises(Error, match=message):
        tuner(checkpoint, chat_file, out, changes, **{"validation": 0.2, **recipe})
    longer = tuner(checkpoint, chat_file, out, {"steps": 9}, validation=0.2)
    assert longer.settings.steps == 9
    assert log(out) == [{"resumed_after": 0, "changed": {"steps": 9}}]


def test_going_on_with_other_data(
    checkpoint: Path, chat_file: Path, preference_file: Path, tmp_path: Path, chats: list[Any]
) -> None:
    tuner(checkpoint, chat_file, tmp_path / "run", {})
    chat_file.write_text("".join(json.dumps(record) + "\n" for record in chats[1:]))
    with pytest.raises(Error, match="data: expected"):
        tuner(checkpoint, chat_file, tmp_path / "run", {})


def test_another_base_is_not_merged(checkpoint: Path, chat_file: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(checkpoint, base)
    tuner(base, chat_file, tmp_path / "run", {})
    moved = tmp_path / "moved"
    base.rename(moved)
    with pytest.raises(Error, match="expected the model it was fine-tuned from in .*base"):
        merged_source(tmp_path / "run")
    merged_source(tmp_path / "run", base=str(moved)).close()
    data = bytearray((moved / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (moved / "model.safetensors").write_bytes(data)
    with pytest.raises(Error, match="found another model"):
        merged_source(tmp_path / "run", base=str(moved))


def test_an_interrupted_beginning_begins_again(
    checkpoint: Path, preference_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(
            Tuner, "_log_reference", lambda self: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        with pytest.raises(KeyboardInterrupt):
            tuner(checkpoint, preference_file, out, {}, method="dpo")
    assert is_run(out) and not (out / STATE).exists()
    assert tuner(checkpoint, preference_file, out, {}, method="dpo").step == 0


def test_damaged_runs(checkpoint: Path, chat_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    tuner(checkpoint, chat_file, out, {})
    state = (out / STATE).read_bytes()
    (out / STATE).write_bytes(state[: len(state) // 2])
    with pytest.raises(Error, match="adapters.pt"):
        merged_source(out)
    (out / MARKER).write_text('{"format": 9}')
    with pytest.raises(Error, match="adapters.json: expected a fine-tuning run of format 1"):
        merged_source(out)


def test_what_is_not_a_run_is_not_written_into(
    checkpoint: Path, chat_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "thesis.txt").write_text("dear")
    with pytest.raises(Error, match="expected a new or empty directory"):
        tuner(checkpoint, chat_file, out, {})
    assert [path.name for path in out.iterdir()] == ["thesis.txt"]


def test_lengths_that_do_not_fit(checkpoint: Path, chat_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(Error, match="length: expected at most 256, the model's context, found 512"):
        tuner(checkpoint, chat_file, out, {"length": 512, "batch_tokens": 512})
    with pytest.raises(Error, match="batch_tokens: expected a multiple of 128"):
        tuner(checkpoint, chat_file, out, {"batch_tokens": 192}, method="dpo")
    assert not out.exists()


def test_diverging_stops_and_keeps_the_last_state(
    checkpoint: Path, chat_file: Path, tmp_path: Path
) -> None:
    run = tuner(checkpoint, chat_file, tmp_path / "run", {})
    run.train_step()
    with torch.no_grad():
        for parameter in run.named.values():
            parameter.fill_(float("nan"))
    with pytest.raises(Error, match="step 1: loss nan"):
        run.train_step()
    assert tuner(checkpoint, chat_file, tmp_path / "run", {}).step == 0


def test_recipes_that_make_no_sense() -> None:
    for changes, message in (
        ({"method": "rl"}, "method: expected one of"),
        ({"lora_rank": 0}, "lora_rank: expected 1 to"),
        ({"beta": 0.0}, "beta: expected"),
        ({"lora_targets": "heads"}, "lora_targets"),
    ):
        with pytest.raises(Error, match=message):
            Recipe(**changes)  # type: ignore[arg-type]


def test_command_line(
    checkpoint: Path, chat_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    command = ["finetune", str(checkpoint), "--data", str(chat_file), "--out", str(out)]
    short = [
        "--raw",
        "--length",
        "64",
        "--batch-tokens",
        "256",
        "--validation",
        "0.2",
        "--device",
        "cpu",
    ]
    options = [*short, "--lora-rank", "2", "--lora-targets", "experts", "--set", "warmup=1"]
    assert main([*command, *options, "--steps", "2"]) == 0
    shown = capsys.readouterr().out
    assert "more held out" in shown and "step 2/2" in shown and "gptoss export" in shown
    assert json.loads((out / MARKER).read_text())["recipe"]["lora_alpha"] == 4
    assert main([*command, *options, "--steps", "4"]) == 0
    assert "going on after step 2" in capsys.readouterr().out
    assert log(out)[-1]["step"] == 4
    assert main([*command, *options, "--steps", "4", "--lora-rank", "3"]) == 1
    assert "lora_rank: expected 2 as the run began, found 3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--lora-rank", "99"], "lora_rank: expected 1 to 32 for block.0.attn.qkv.weight"),
        (["--set", "speed=9"], "found 'speed"),
        (["--set", "warmup=soon"], "warmup"),
        (["--device", "tpu"], "device: expected"),
    ],
)
def test_command_line_errors(
    checkpoint: Path,
    chat_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    out = tmp_path / "run"
    command = ["finetune", str(checkpoint), "--data", str(chat_file), "--out", str(out)]
    assert main([*command, "--raw", "--length", "64", *options]) == 1
    error = capsys.readouterr().err
    assert error.startswith("gptoss: error: ") and message in error
    assert error.count("\n") == 1
    assert not out.exists() or not any(out.iterdir())


def test_command_line_contradictions(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["finetune", str(checkpoint), "--data", "x", "--out", "y"]
    for options in (["--full", "--lora-rank", "4"], ["--steps", "3", "--epochs", "1"]):
        with pytest.raises(SystemExit) as stopped:
            main([*command, *options])
        assert stopped.value.code == 2


def test_model_without_harmony(
    checkpoint: Path, chat_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tmp_path / "base"
    shutil.copytree(checkpoint, base)
    settings = json.loads((base / "tokenizer_config.json").read_text())
    kept = {"<|endoftext|>": settings["special_tokens"]["<|endoftext|>"]}
    (base / "tokenizer_config.json").write_text(json.dumps({**settings, "special_tokens": kept}))
    command = ["finetune", str(base), "--data", str(chat_file), "--out", str(tmp_path / "run")]
    assert main(command) == 1
    assert "lacks <|start|> <|end|>" in capsys.readouterr().err


def test_adapters_take_a_fraction_of_the_memory(
    checkpoint: Path, chat_file: Path, tmp_path: Path
) -> None:
    run = tuner(
        checkpoint, chat_file, tmp_path / "run", {}, lora_targets="attention,router,experts"
    )
    trained = sum(p.numel() for p in run.named.values())
    c = run.source.config
    per_expert = 4 * (3 * c.intermediate_size + 2 * c.hidden_size)
    attention = 4 * (2 * c.hidden_size + 2 * c.query_size + 2 * c.kv_size)
    assert trained == c.num_hidden_layers * (
        c.num_experts * per_expert + attention + 4 * (c.hidden_size + c.num_experts)
    )
    assert all(
        isinstance(m.scale, float) for m in run.model.modules() if isinstance(m, lora.LowRank)
    )
