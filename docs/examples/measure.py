"""Fine-tunes a model on the examples beside this file, and measures what it has learned.

    python docs/examples/measure.py nano OUT

Prints the table of docs/finetuning.md: the loss on held-out examples before, after, and after
packing for the engine; and for stories, what the engine makes of requests.
"""

from __future__ import annotations

import sys
import time
from datetime import date
from pathlib import Path

import torch

from gptoss import Engine, SamplingParams
from gptoss.chat import Conversation, load_chat, parse, parse_messages
from gptoss.checkpoint.write import write_checkpoint
from gptoss.train.model.convert import from_source
from gptoss.train.tune.recipe import Recipe
from gptoss.train.tune.tuner import Tuner
from gptoss.train.weights import merged_source

HERE = Path(__file__).parent
ANIMALS = "cat dog bear fox frog duck mouse rabbit horse goat hen pig sheep turtle bee cow".split()


def tune(base: str, data: str, out: Path, recipe: Recipe) -> Path:
    """One row of the table; the exported checkpoint."""
    run = Tuner(base, HERE / data, out, recipe, {"length": 256, "batch_tokens": 1024})
    before = run.validate()
    run.run(quiet=True)
    after = run.validate()
    exported = out / "exported"
    write_checkpoint(merged_source(out), exported)
    with merged_source(out) as source:
        run.model = from_source(source, getattr(torch, run.settings.dtype))
    packed = run.validate()
    cells = (f"{found['held out']:.3f}" for found in (before, after, packed))
    kind = "all weights" if recipe.full else "LoRA"
    minutes = run.seconds / 60
    print(
        f"| `{data}`, {recipe.method}, {kind} | {run.step} | {minutes:.1f} | {' | '.join(cells)} |"
    )
    if recipe.method == "dpo":
        for when, found in (("before", before), ("after", packed)):
            print(f"  {when}: margin {found['margin']:.2f}, accuracy {found['accuracy']:.2f}")
    return exported


def ask(model: Path) -> None:
    """How many stories are about the animal asked for and end, and two of them.

    They are asked for as `gptoss chat` and `gptoss serve` ask, with the day's date.
    """
    with Engine(str(model)) as engine:
        chat = load_chat(engine.tokenizer)
        prompts = []
        for animal in ANIMALS:
            request = [{"role": "user", "content": f"Write a story about a {animal}."}]
            asked = Conversation(tuple(parse_messages(request)), today=date.today())
            prompts.append(chat.render(asked).ids)
        params = [
            SamplingParams(max_tokens=160, temperature=0.7, seed=n) for n in range(len(prompts))
        ]
        stories = engine.generate(prompts, params)
    about = sum(animal in s.text for animal, s in zip(ANIMALS, stories, strict=True))
    ended = sum(s.finish_reason == "stop" for s in stories)
    print(f"  of {len(stories)} requests: {about} answers name the animal, {ended} end")
    for story in stories[:2]:
        for message in parse(story.token_ids, engine.tokenizer):
            print("  >", message.content)


def main() -> None:
    base, out = sys.argv[1], Path(sys.argv[2])
    if base == "nano":
        import gptoss

        base = str(Path(gptoss.__file__).parent / "bundled" / "nano")
    began = time.perf_counter()
    print("| data | steps | minutes | before | after | after packing |\n|---|---|---|---|---|---|")
    tune(base, "letters.jsonl", out / "letters", Recipe(method="text", epochs=10))
    for name, full in (("stories", False), ("stories-full", True)):
        made = tune(base, "stories.jsonl", out / name, Recipe(full=full, epochs=10))
        ask(made)
    stories = str(out / "stories")
    kind = tune(stories, "preferences.jsonl", out / "kind", Recipe(method="dpo", epochs=2))
    ask(kind)
    print(f"in all {(time.perf_counter() - began) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
