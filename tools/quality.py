"""What weight and cache formats cost in quality: measured on a real model and real text.

    python tools/quality.py
    python tools/quality.py --model gpt-oss-20b --text book.txt --tokens 512 --windows 8

Logits of every window under the published weights are the reference. For each format: the mean and
largest Kullback-Leibler divergence from it (nats a token), how often the most likely token is the
same, and perplexity beside the reference's. "±" is the standard error over windows. q8 and int8 run
in the engine; "int4" and "mxfp4" for dense matrices, which the engine does not have, are simulated
by rounding the matrices.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptoss import Engine
from gptoss.checkpoint import BUNDLED_MODEL
from gptoss.checkpoint.files import open_checkpoint
from gptoss.checkpoint.source import ArraySource, TensorSource
from gptoss.errors import Error
from gptoss.eval.numbers import log_softmax
from gptoss.model import mxfp4
from gptoss.model.bf16 import bf16_to_f32, f32_to_bf16

TEXT = Path(__file__).parents[1] / "docs" / "learn" / "data" / "shakespeare.txt"
DENSE = ("attn.q.weight", "attn.k.weight", "attn.v.weight", "attn.out.weight", "unembedding.weight")
GROUP = 32
Float = NDArray[np.float64]


def int4(matrix: NDArray[np.float32]) -> NDArray[np.float32]:
    """Symmetric, groups of 32 along the input, bf16 scales."""
    groups = matrix.reshape(-1, GROUP)
    scale = bf16_to_f32(f32_to_bf16(np.abs(groups).max(1, keepdims=True) / 7))
    codes = np.clip(np.rint(groups / np.where(scale > 0, scale, 1)), -7, 7)
    return (codes * scale).reshape(matrix.shape).astype(np.float32)


def four_bit_float(matrix: NDArray[np.float32]) -> NDArray[np.float32]:
    """MXFP4, as the experts have it, scales of least squared error."""
    return mxfp4.dequantize(*mxfp4.quantize(matrix, "mse"))


def simulated(source: TensorSource, rounding: Any) -> ArraySource:
    """The model with its dense matrices rounded (and then to bf16)."""
    arrays = {}
    for info in source.tensors():
        array = np.array(source.tensor(info.name))
        if info.name.endswith(DENSE):
            array = f32_to_bf16(rounding(bf16_to_f32(array)))
        arrays[info.name] = array
    return ArraySource(source.config, arrays)


def compare(reference: list[Float], found: list[Float], windows: list[list[int]]) -> dict[str, Any]:
    """Figures of one format over all windows; log-probabilities are [tokens, vocabulary]."""
    divergence, agreement, loss, base = [], [], [], []
    largest = 0.0
    for exact, near, tokens in zip(reference, found, windows, strict=True):
        each = np.sum(np.exp(exact) * (exact - near), axis=-1)
        largest = max(largest, float(each.max()))
        divergence.append(float(each.mean()))
        agreement.append(float((exact.argmax(-1) == near.argmax(-1)).mean()))
        following = np.array(tokens[1:])
        rows = np.arange(len(following))
        loss.append(-float(near[rows, following].mean()))
        base.append(-float(exact[rows, following].mean()))
    spread = float(np.std(divergence) / np.sqrt(len(divergence)))
    return {
        "kl": float(np.mean(divergence)),
        "kl_error": spread,
        "kl_max": largest,
        "top1": float(np.mean(agreement)),
        "perplexity": float(np.exp(np.mean(loss))),
        "perplexity_published": float(np.exp(np.mean(base))),
    }


def run(model: Any, windows: list[list[int]], **options: Any) -> list[Float]:
    with Engine(model, **options) as engine:
        return [log_softmax(engine.logits(tokens)) for tokens in windows]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--model", default=str(BUNDLED_MODEL), help="default: the bundled model")
    parser.add_argument("--text", type=Path, default=TEXT, help=f"default: {TEXT.name}")
    parser.add_argument("--tokens", type=int, default=256, help="of a window (default: 256)")
    parser.add_argument("--windows", type=int, default=64, help="at most (default: 64)")
    parser.add_argument("--simulate", action="store_true", help="also the formats we do not have")
    arguments = parser.parse_args(argv)
    try:
        return measure(arguments)
    except (Error, OSError) as error:
        print(f"quality.py: error: {error}", file=sys.stderr)
        return 1


def measure(arguments: argparse.Namespace) -> int:
    with Engine(arguments.model) as engine:
        tokens = engine.tokenizer.encode(arguments.text.read_text(encoding="utf-8"))
    size = arguments.tokens
    windows = [tokens[i : i + size] for i in range(0, len(tokens) - size + 1, size)]
    windows = windows[: arguments.windows]
    if not windows:
        raise Error(f"{arguments.text}: expected at least {size} tokens, found {len(tokens)}")
    print(f"{arguments.model}, {arguments.text.name}: {len(windows)} windows of {size} tokens")
    reference = run(arguments.model, windows, weights="published")
    cases: list[tuple[str, dict[str, Any]]] = [
        ("float32 operands", {"activation": "f32"}),
        ("kv int8", {"kv": "int8"}),
        ("weights q8", {"weights": "q8"}),
        ("weights q8, kv int8", {"weights": "q8", "kv": "int8"}),
    ]
    results = {name: run(arguments.model, windows, **options) for name, options in cases}
    if arguments.simulate:
        with open_checkpoint(arguments.model) as source:
            for name, rounding in (("dense mxfp4", four_bit_float), ("dense int4", int4)):
                results[name] = _run_arrays(simulated(source, rounding), windows)
    print(f"{'':22}{'KL, nats':>22}{'largest':>10}{'top-1':>9}{'perplexity':>12}{'published':>11}")
    for name, found in results.items():
        row = compare(reference, found, windows)
        print(
            f"{name:22}{row['kl']:>12.2e} ± {row['kl_error']:.0e}{row['kl_max']:>10.1e}"
            f"{row['top1']:>9.2%}{row['perplexity']:>12.4f}{row['perplexity_published']:>11.4f}"
        )
    return 0


def _run_arrays(source: ArraySource, windows: list[list[int]]) -> list[Float]:
    """As `run`, on tensors in memory."""
    import tempfile

    from gptoss.checkpoint.write import write_checkpoint

    with tempfile.TemporaryDirectory() as directory:
        target = Path(directory) / "model"
        write_checkpoint(source, target)
        return run(target, windows)


if __name__ == "__main__":
    sys.exit(main())
