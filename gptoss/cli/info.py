"""`gptoss info`: what there is to say about a model or a machine."""

from __future__ import annotations

import argparse
import json
import platform
from typing import TYPE_CHECKING, Any

from gptoss import __version__
from gptoss.cli.arguments import add_model_names
from gptoss.cli.progress import human_bytes

if TYPE_CHECKING:
    from gptoss.checkpoint import TensorSource

KV_VALUE_BYTES = 2  # bf16
# Against published weights and a bf16 cache: the bundled model on a text it has not seen
# (python tools/quality.py; docs/benchmarks.md). KL in nats per token.
FORMAT_LOSS = {
    "weights q8": {"kl": 2.1e-4, "top1": 0.991, "perplexity": 0.9998},
    "kv int8": {"kl": 2.2e-4, "top1": 0.994, "perplexity": 1.0006},
}


def describe_machine() -> dict[str, Any]:
    """Version, the CPU's features and the kernels chosen by them, backends.

    Backends are {name, available, reason}. Under "format_loss": what inexact formats cost,
    as the mean Kullback-Leibler divergence, the share of tokens whose most likely successor
    stays the same, and the ratio of perplexities.
    """
    from gptoss.native import _core

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
    from gptoss.model import to_original

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
            "other": "q8" if source.panels == "q8" else "q8_0" if source.q8_0 else "bf16",
        },
        "context_length": config.context_length,
        "kv_bytes_per_token": full_layers * layer_bytes,
        "kv_bytes_of_windows": (config.num_hidden_layers - full_layers)
        * layer_bytes
        * config.sliding_window,
        "config": to_original(config),
    }
    if tensors:
        found["tensors"] = [
            {"name": t.name, "dtype": t.dtype, "shape": list(t.shape), "bytes": t.nbytes}
            for t in source.tensors()
        ]
    return found


NAME = "info"
HELP = "Describe a model, or this installation."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_names(parser, None)
    parser.add_argument("--tensors", action="store_true", help="list every tensor")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """`gptoss info`."""
    from gptoss.cli.info import describe_machine, describe_model

    if arguments.model is None:
        if arguments.tensors:
            parser.error("info: --tensors needs a MODEL")
        found = describe_machine()
    else:
        from gptoss.checkpoint import open_checkpoint
        from gptoss.cli.opening import locate

        found_model = locate(arguments.model, offline=arguments.offline).model
        with open_checkpoint(found_model) as source:
            found = describe_model(source, tensors=arguments.tensors)
    if arguments.json:
        print(json.dumps(found, indent=2))
    elif arguments.model is None:
        _print_machine(found)
    else:
        _print_model(found)
    return 0


def _print_machine(found: dict[str, Any]) -> None:
    features = " ".join(found["cpu_features"]) or "none known"
    rows = [
        ("gptoss", found["version"]),
        ("python", f"{found['python']}, {found['platform']}"),
        ("cpu", f"{found['cpu_isa']}, {found['cpu_threads']} threads"),
        ("cpu features", features),
    ]
    for backend in found["backends"]:
        state = "available" if backend["available"] else "not available"
        state += f": {backend['reason']}" if backend["reason"] else ""
        rows.append((f"backend {backend['name']}", state))
    for name, loss in found["format_loss"].items():
        text = f"KL {loss['kl']:.1e} nats, top-1 {loss['top1']:.1%}"
        rows.append((name, f"{text}, perplexity x {loss['perplexity']:.4f}"))
    _print_rows(rows)


def _print_model(found: dict[str, Any]) -> None:
    quantization = found["quantization"]
    rows = [
        ("model", found["name"]),
        ("layout", found["layout"]),
        ("files", str(len(found["files"]))),
        ("parameters", f"{found['parameters']:,} ({found['active_parameters']:,} active)"),
        ("weights", f"{human_bytes(found['bytes'])} ({found['bytes']:,} bytes)"),
        (
            "quantization",
            f"experts {quantization['experts']}, all else {quantization['other']}",
        ),
        ("context", f"{found['context_length']:,} tokens"),
        (
            "KV cache, bf16",
            f"{human_bytes(found['kv_bytes_per_token'])} per token"
            f" + {human_bytes(found['kv_bytes_of_windows'])} per sequence",
        ),
    ]
    rows += [(f"  {key}", f"{value}") for key, value in found["config"].items()]
    _print_rows(rows)
    tensors = found.get("tensors")
    if tensors:
        print()
        name_width = max(len(tensor["name"]) for tensor in tensors)
        for tensor in tensors:
            shape = " × ".join(str(size) for size in tensor["shape"])
            print(
                f"{tensor['name']:<{name_width}}  {tensor['dtype']:<5} "
                f"{human_bytes(tensor['bytes']):>10}  {shape}"
            )


def _print_rows(rows: list[tuple[str, str]]) -> None:
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value}")
