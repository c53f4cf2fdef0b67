"""Training speed and memory beside Hugging Face transformers, in one run.

    python bench/train.py --preset nano-cpu --length 512 --batch-tokens 4096

Every contestant trains the same geometry on the same random tokens: forward, backward, clipping and
an AdamW step. Each round runs each of them in a process of its own, so that peak memory is its own
and a change of the machine meets all; the figures are medians over the rounds, with the range.
GPT-2 has the active parameters per token of the preset's blocks.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable
from time import perf_counter
from typing import Any

CONTESTANTS = {
    "gptoss bf16": "gptoss, bf16 operands, f32 masters",
    "gptoss f32": "gptoss, f32",
    "gptoss gpt2-style bf16": "gptoss's own gpt2-style preset",
    "transformers bf16": "GptOssForCausalLM, bf16 autocast",
    "transformers f32": "GptOssForCausalLM, f32",
    "transformers gpt2 bf16": "GPT2LMHeadModel of equal active parameters, bf16 autocast",
    "transformers gpt2 f32": "the same, f32",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--preset", default="nano-cpu")
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=3, help="timed steps per round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0, help="default: PyTorch's")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true", help="torch.compile each model")
    parser.add_argument("--only", nargs="+", choices=list(CONTESTANTS), default=list(CONTESTANTS))
    parser.add_argument("--json", help="also write the figures here")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        print(json.dumps(measure(arguments)))
        return 0
    results: dict[str, list[dict[str, float]]] = {name: [] for name in arguments.only}
    for number in range(arguments.rounds):
        for name in arguments.only:
            found = subprocess.run(
                [sys.executable, __file__, *sys.argv[1:], "--run", name],
                stdout=subprocess.PIPE,
                check=True,
            )
            results[name].append(json.loads(found.stdout.splitlines()[-1]))
            speed = results[name][-1]["tokens_per_s"]
            print(f"round {number + 1}: {name}: {speed:.0f} tokens/s", file=sys.stderr)
    print_table(results)
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump({"arguments": vars(arguments), "results": results}, file, indent=1)
    return 0


def print_table(results: dict[str, list[dict[str, float]]]) -> None:
    first = next(iter(results))
    print(f"{'':24} {'tokens/s':>9} {'low':>8} {'high':>8} {'peak MB':>8} {'first is':>9}")
    for name, rounds in results.items():
        speeds = [r["tokens_per_s"] for r in rounds]
        # ratios within a round: a slow minute slows both
        ratios = [a["tokens_per_s"] / b["tokens_per_s"] for a, b in zip(results[first], rounds)]  # noqa: B905
        print(
            f"{name:24} {statistics.median(speeds):9.0f} {min(speeds):8.0f} {max(speeds):8.0f} "
            f"{statistics.median(r['peak_mb'] for r in rounds):8.0f} "
            f"{statistics.median(ratios):8.2f}x"
        )


def measure(arguments: argparse.Namespace) -> dict[str, float]:
    import torch

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    device = torch.device(arguments.device)
    rows = arguments.batch_tokens // arguments.length
    dtype = torch.bfloat16 if arguments.run.endswith("bf16") else torch.float32
    model, loss = build(arguments.run, arguments.preset, dtype, arguments.length, device)
    if arguments.compile:
        model.compile()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    vocabulary = 4096
    tokens = torch.randint(0, vocabulary, (rows, arguments.length), device=device)

    def step() -> None:
        loss(tokens).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize()

    step()
    step()
    began = perf_counter()
    for _ in range(arguments.steps):
        step()
    seconds = perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated() / 1e6
    return {
        "tokens_per_s": arguments.steps * rows * arguments.length / seconds,
        "peak_mb": peak,
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def build(
    name: str, preset_name: str, dtype: Any, length: int, device: Any
) -> tuple[Any, Callable[[Any], Any]]:
    """The model and what gives its mean loss for int64 [B, S] tokens."""
    import torch

    from gptoss.train.run.presets import get_preset

    preset = get_preset("gpt2-style" if "gpt2-style" in name else preset_name)
    if name.startswith("gptoss"):
        from gptoss.train.model.model import GptOss

        own = GptOss(preset.architecture, dtype)
        own.initialise(0)
        own.to(device)
        places = torch.arange(length, device=device)

        def own_loss(tokens: Any) -> Any:
            targets = tokens.roll(-1, 1)
            targets[:, -1] = -1
            total, routing = own(
                tokens, targets, places.expand_as(tokens), torch.zeros_like(tokens)
            )
            objective = total / (targets >= 0).sum()
            if routing:
                objective = objective + 0.01 * torch.stack([r.balance for r in routing]).mean()
            return objective

        return own, own_loss
    model = transformers_model(name, preset.architecture, length).to(device)
    model.train()

    def loss(tokens: Any) -> Any:
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            return model(input_ids=tokens, labels=tokens, use_cache=False).loss

    return model, loss


def transformers_model(name: str, architecture: Any, length: int) -> Any:
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    c = architecture.config
    if "gpt2" in name:
        # attention 4·H², feed-forward 8·H²: the width whose blocks have these parameters
        attention = c.hidden_size * c.head_dim * (2 * c.num_attention_heads)
        attention += c.hidden_size * c.head_dim * 2 * c.num_key_value_heads
        experts = 3 * c.hidden_size * c.intermediate_size * c.experts_per_token
        heads = max(1, round(((attention + experts) / 12) ** 0.5 / 48))
        width = round(((attention + experts) / 12) ** 0.5 / heads / 2) * heads * 2
        config = transformers.GPT2Config(
            vocab_size=c.vocab_size,
            n_positions=length,
            n_embd=width,
            n_layer=c.num_hidden_layers,
            n_head=heads,
        )
        return transformers.GPT2LMHeadModel(config)
    from gptoss.model import to_huggingface

    config = transformers.GptOssConfig(**to_huggingface(c, "bf16"))
    config._attn_implementation = "eager"  # the one that knows sinks on this device
    config.output_router_logits = True
    config.torch_dtype = torch.float32
    return transformers.GptOssForCausalLM(config).float()


if __name__ == "__main__":
    sys.exit(main())
