"""Does a small gpt-oss reach a lower loss faster than a GPT-2 of the same size? Run it and see.

    python tools/claim.py --data DATA --out RUNS [--tokens 2000000] [--seeds 0 1 2]

Both get the same prepared data in the same order, the same tokens, schedule and optimizer, and as
many parameters that work on a token (blocks and unembedding; the table prints them). The learning
rate is chosen for each by a sweep of shorter runs with another seed. Runs go on where they stopped.
Losses are in nats per token on the first 24 rows of 512 of each held-out text, the mean over the
texts, and then over the seeds with its range. Writes RUNS/claim.json and RUNS/claim.png.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

RATES = (1.25e-3, 2.5e-3, 5e-3)
SWEEP_SEED = 1000
ROWS = 24  # of each held-out text, 512 tokens each

# 4 layers of hidden size 160; the blocks of both have 1.2 million parameters that work on a token
SIZES = {
    "num_hidden_layers": 4,
    "hidden_size": 160,
    "initial_context_length": 512,
    "rope_scaling_factor": 1.0,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt-oss": (
        "nano-cpu",
        {
            **SIZES,
            "intermediate_size": 96,
            "head_dim": 64,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
        },
    ),
    "GPT-2": (
        "gpt2-style",
        {
            **SIZES,
            "head_dim": 40,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "feed_forward_size": 581,
            "dropout": 0.0,  # hardly any text is seen twice
        },
    ),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=2_000_000)
    parser.add_argument("--sweep-tokens", type=int, help="of a run of the sweep; a quarter")
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", choices=list(MODELS), help="train one of the two and stop")
    parser.add_argument("--threads", type=int, default=0)
    arguments = parser.parse_args()
    arguments.sweep_tokens = arguments.sweep_tokens or arguments.tokens // 4
    import torch

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    names = [arguments.only] if arguments.only else list(MODELS)
    rates = {name: best_rate(name, arguments) for name in names}
    results = {
        name: [train(name, seed, rates[name], arguments) for seed in arguments.seeds]
        for name in names
    }
    if arguments.only:
        return 0
    report = {
        name: {
            "learning_rate": rates[name],
            "parameters": active(name, arguments.data),
            "runs": results[name],
        }
        for name in names
    }
    (arguments.out / "claim.json").write_text(json.dumps(report, indent=1) + "\n")
    print_table(report)
    draw(report, arguments.out / "claim.png")
    return 0


def settings(
    name: str, seed: int, rate: float, tokens: int, batch: int, validations: int = 8
) -> Any:
    from gptoss.train.run.presets import get_preset

    preset, sizes = MODELS[name]
    steps = tokens // batch
    return get_preset(preset).replace(
        **sizes,
        steps=steps,
        batch_tokens=batch,
        length=512,
        long_length=512,
        quantize_from=1.0,
        learning_rate=rate,
        warmup=steps // 20,
        weight_decay=0.1,
        seed=seed,
        validate_every=max(1, steps // validations),
        validation_rows=ROWS,
        save_every=50,
        sample_tokens=0,
        device="cpu",
    )


def train(
    name: str, seed: int, rate: float, arguments: argparse.Namespace, sweep: bool = False
) -> list[dict[str, float]]:
    """Tokens, seconds and held-out loss along a run."""
    from gptoss.train.data import open_data
    from gptoss.train.run.trainer import Trainer

    data = open_data(arguments.data)
    tokens, looks = (arguments.sweep_tokens, 1) if sweep else (arguments.tokens, 8)
    preset = settings(name, seed, rate, tokens, arguments.batch_tokens, looks)
    preset = preset.fit(data)
    out = arguments.out / f"{name}-{rate:g}-{seed}{'-sweep' if sweep else ''}"
    run = Trainer(preset.architecture, preset.settings, data, out)
    run.run()
    curve = []
    for line in (out / "log.jsonl").read_text().splitlines():
        record = json.loads(line)
        if "validation" in record:
            losses = record["validation"].values()
            curve.append(
                {
                    "tokens": record["tokens"],
                    "seconds": record["seconds"],
                    "loss": sum(losses) / len(losses),
                }
            )
    return curve


def best_rate(name: str, arguments: argparse.Namespace) -> float:
    """The rate whose short run ends lowest."""
    ends = {rate: train(name, SWEEP_SEED, rate, arguments, True)[-1]["loss"] for rate in RATES}
    print(name, "sweep", {f"{rate:g}": round(loss, 4) for rate, loss in ends.items()})
    return min(ends, key=lambda rate: ends[rate])


def active(name: str, data: Path) -> dict[str, int]:
    """Parameters: all, and those of blocks and unembedding that work on a token."""
    from gptoss.train.data import open_data
    from gptoss.train.model.model import GptOss

    architecture = settings(name, 0, 1e-3, 10**6, 4096).fit(open_data(data)).architecture
    model, c = GptOss(architecture), architecture.config
    blocks = sum(p.numel() for n, p in model.named_parameters() if n.startswith("block."))
    idle = 0
    if architecture.feed_forward == "moe":
        per_expert = sum(
            p[0].numel()
            for n, p in model.named_parameters()
            if n.startswith("block.") and ".mlp.mlp" in n
        )
        idle = per_expert * (c.num_experts - c.experts_per_token)
    return {
        "all": sum(p.numel() for p in model.parameters()),
        "blocks": blocks - idle,
        "unembedding": c.vocab_size * c.hidden_size,
    }


def print_table(report: dict[str, Any]) -> None:
    for name, found in report.items():
        counts = ", ".join(f"{key} {value:,}" for key, value in found["parameters"].items())
        print(f"{name}: learning rate {found['learning_rate']:g}; parameters: {counts}")
    print(f"{'tokens':>10}" + "".join(f"  {name:>24}" for name in report) + "   difference")
    curves = {name: found["runs"] for name, found in report.items()}
    for at in range(len(next(iter(curves.values()))[0])):
        cells, means = [], []
        for runs in curves.values():
            losses = [run[at]["loss"] for run in runs]
            means.append(statistics.mean(losses))
            cells.append(f"{means[-1]:.4f} ({min(losses):.4f}-{max(losses):.4f})")
        tokens = next(iter(curves.values()))[0][at]["tokens"]
        row = "".join(f"  {cell:>24}" for cell in cells)
        print(f"{tokens:10,}{row}   {means[0] - means[1]:+.4f}")
    for name, runs in curves.items():
        speeds = [run[-1]["tokens"] / run[-1]["seconds"] for run in runs]
        print(f"{name}: {statistics.median(speeds):.0f} tokens/s while others may have run")


def draw(report: dict[str, Any], path: Path) -> None:
    """Mean and range over the seeds, against tokens."""
    import numpy as np

    from gptoss.viz.figures import line_style, new_figure, save

    figure = new_figure(6, 4)
    axes = figure.add_subplot()
    for number, (name, found) in enumerate(report.items()):
        tokens = [point["tokens"] for point in found["runs"][0]]
        losses = np.array([[point["loss"] for point in run] for run in found["runs"]])
        style = line_style(number)
        axes.fill_between(tokens, losses.min(0), losses.max(0), color=style["color"], alpha=0.25)
        axes.plot(tokens, losses.mean(0), label=name, **style)
    axes.set_xlabel("tokens")
    axes.set_ylabel("held-out loss (nats per token)")
    axes.grid(color="0.9")
    axes.legend()
    save(figure, path)


if __name__ == "__main__":
    sys.exit(main())
