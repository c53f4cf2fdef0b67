"""How far the engine is from OpenAI's own PyTorch code on the golden checkpoints.

    python tools/parity.py

Relative norms of the logits' difference to the published code evaluated in float32
(tests/golden), for both activations and every instruction set. "published code, bf16" is that
code as published: what the engine's bf16 activations are measured against.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gptoss import Engine, reference
from gptoss.checkpoint.files import open_checkpoint
from gptoss.native import _kernels

GOLDEN = Path(__file__).parents[1] / "tests" / "golden"
LENGTHS = (1, 5, 48, 160)


def distance(found: NDArray[np.floating], wanted: NDArray[np.floating]) -> float:
    wide = wanted.astype(np.float64)
    return float(np.linalg.norm(found - wide) / np.linalg.norm(wide))


def main() -> None:
    golden = np.load(GOLDEN / "tiny-a" / "golden.npz")
    tokens = [golden[f"tokens_{length}"] for length in LENGTHS]
    wanted = [golden[f"logits_f32_{length}"] for length in LENGTHS]

    def show(model: str, computed_by: str, logits: list[NDArray[np.floating]]) -> None:
        figures = [f"{distance(*pair):.1e}" for pair in zip(logits, wanted, strict=True)]
        print(f"| {model} | {computed_by} | " + " | ".join(figures) + " |")

    print("| checkpoint | computed by | " + " | ".join(f"{n} tokens" for n in LENGTHS) + " |")
    print("|---|---|" + "---|" * len(LENGTHS))
    show("tiny-a", "published code, bf16", [golden[f"logits_bf16_{n}"] for n in LENGTHS])
    for model in ("tiny-a", "tiny-a-hf"):
        with open_checkpoint(GOLDEN / model) as source:
            plain = [reference.forward(source.config, source, t)[0] for t in tokens]
        show(model, "reference.py", plain)
        for activation in ("f32", "bf16"):
            for isa in _kernels.isas():
                os.environ["GPTOSS_CPU_ISA"] = isa
                with Engine(GOLDEN / model, device="cpu", activation=activation) as engine:
                    show(model, f"{activation}, {isa}", [engine.logits(t) for t in tokens])


if __name__ == "__main__":
    main()
