"""What there is to say about a model or a machine, as plain dictionaries (for `gptoss info`)."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING, Any

from gptoss import __version__

if TYPE_CHECKING:
    from gptoss.source import TensorSource

KV_VALUE_BYTES = 2  # bf16
# Against published weights and a bf16 cache: the bundled model on a text it has not seen
# (python tools/quality.py; docs/benchmarks.md). KL in nats a token.
FORMAT_LOSS = {
    "weights q8": {"kl": 2.1e-4, "top1": 0.991, "perplexity": 0.9998},
    "kv int8": {"kl": 2.2e-4, "top1": 0.994, "perplexity": 1.0006},
}


def describe_machine() -> dict[str, Any]:
    """Version, the CPU's features and the kernels chosen by them, backends.

    Backends are {name, available, reason}. Under "format_loss": what formats cost that are not
    exact, as the mean Kullback-Leibler divergence, the share of tokens whose most likely successor
    stays the same, and the ratio of perplexities.
    """
    from gptoss import _core

    return {
        "version": __version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        **{f"cpu_{name}": value for name, value in _core.cpu_features().items()},
        "backends": _core.backends(),
        "format_loss": FORMAT_LOSS,
    }


def describe_model(source: TensorSource, *, tensors: bool = False) -> dict[str, Any]:
    """Configuration, sizes and quantization of a checkpoint; on request its tensors.

    Tensors appear as the engine reads them: those of q, k and v apart.
    """
    config = source.config
    full_layers = sum(not config.is_sliding(n) for n in range(config.num_hidden_layers))
    layer_bytes = 2 * config.num_key_value_heads * config.head_dim * KV_VALUE_BYTES
    found: dict[str, Any] = {
        "name": source.name,
        "layout": source.layout,
        "files": [str(file) for file in source.files],
        "parameters": config.parameters(),
        "active_parameters": config.active_parameters(),
        "bytes": source.nbytes,
        "quantization": {
            "experts": source.expert_dtype,
            "other": "q8" if source.packed == "q8" else "bf16",
        },
        "context_length": config.context_length,
        "kv_bytes_per_token": full_layers * layer_bytes,
        "kv_bytes_of_windows": (config.num_hidden_layers - full_layers)
        * layer_bytes
        * config.sliding_window,
        "config": config.to_original(),
    }
    if tensors:
        found["tensors"] = [
            {"name": t.name, "dtype": t.dtype, "shape": list(t.shape), "bytes": t.nbytes}
            for t in source.tensors()
        ]
    return found
