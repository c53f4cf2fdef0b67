"""How far the engine is from OpenAI's own PyTorch code on the golden checkpoints.

    python tools/parity.py

Relative norms of the difference to the published code evaluated in float32 (tests/data/golden).
The column "published bf16" is that code as published, in bf16: what the engine's bf16 mode is
measured against.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gptoss import Engine, _kernels, reference
from gptoss.checkpoint import open_checkpoint

GOLDEN = Path(__file__).parents[1] / "tests" / "data" / "golden"


def distance(found: NDArray[np.floating], wanted: NDArray[np.floating]) -> float:
    wide = wanted.astype(np.float64)
    return float(np.linalg.norm(found - wide) / np.linalg.norm(wide))


def main() -> None:
    golden = np.load(GOLDEN / "tiny-a" / "golden.npz")
    print(f"kernels: {_kernels.isas()[-1]}; relative norm of the logits' difference")
    print("| checkpoint | tokens | reference.py | engine f32 | engine bf16 | published bf16 |")
    print("|---|---|---|---|---|---|")
    for model in ("tiny-a", "tiny-a-hf"):
        for length in (1, 5, 48, 160):
            tokens = golden[f"tokens_{length}"]
            wanted = golden[f"logits_f32_{length}"]
            with open_checkpoint(GOLDEN / model) as source:
                plain, _ = reference.forward(source.config, source, tokens)
            figures = [distance(plain, wanted)]
            for activation in ("f32", "bf16"):
                with Engine(GOLDEN / model, device="cpu", activation=activation) as engine:
                    figures.append(distance(engine.logits(tokens), wanted))
            figures.append(distance(golden[f"logits_bf16_{length}"], wanted))
            print(f"| {model} | {length} | " + " | ".join(f"{f:.1e}" for f in figures) + " |")


if __name__ == "__main__":
    main()
