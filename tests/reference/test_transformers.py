"""Hugging Face transformers on random checkpoints of other shapes than the golden ones."""

import copy

import numpy as np
import pytest

from gptoss import Engine
from gptoss.model.mxfp4 import dequantize

torch = pytest.importorskip("torch", reason="needs PyTorch (extra: test)")
transformers = pytest.importorskip("transformers", reason="needs transformers (extra: test)")

# An odd number of layers, an odd vocabulary, windows that pages do not divide, one expert chosen of
# few and four of many, no grouping and grouping by eight, heads narrower and wider than 64.
SHAPES = {
    "three layers, heads of 32": {
        "num_hidden_layers": 3, "num_local_experts": 4, "num_experts_per_tok": 2,
        "head_dim": 32,
        "num_attention_heads": 4, "num_key_value_heads": 4, "sliding_window": 9,
        "vocab_size": 301,
        "hidden_size": 96, "intermediate_size": 64,
    },
    "16 experts, groups of eight": {
        "num_hidden_layers": 2, "num_local_experts": 16, "num_experts_per_tok": 4,
        "head_dim": 64,
        "num_attention_heads": 8, "num_key_value_heads": 1, "sliding_window": 128,
        "vocab_size": 1000,
        "hidden_size": 192, "intermediate_size": 160,
    },
    "five layers, heads of 128": {
        "num_hidden_layers": 5, "num_local_experts": 5, "num_experts_per_tok": 1,
        "head_dim": 128,
        "num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": 32,
        "vocab_size": 97,
        "hidden_size": 64, "intermediate_size": 128,
    },
}  # fmt: skip


def random_model(shape, seed=0):
    """A float32 model whose every parameter is random and a bf16 value, biases and sinks too."""
    config = transformers.GptOssConfig(
        **shape,
        rope_scaling={
            "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0,
            "original_max_position_embeddings": 4096, "truncate": False,
        },
        rope_theta=150000.0,
        attn_implementation="eager",
    )  # fmt: skip
    model = transformers.GptOssForCausalLM(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name:
                value = 1.0 + 0.2 * noise
            elif name.endswith("sinks"):
                value = noise
            elif "bias" in name:
                value = 0.1 * noise
            elif "embed" in name:
                value = noise
            else:
                # Experts are stored (in, out), linear layers (out, in).
                fan_in = parameter.shape[1]
                value = noise * 1.5 / fan_in**0.5
            parameter.copy_(value.to(torch.bfloat16).to(torch.float32))
    return model


@pytest.fixture(scope="module", params=SHAPES, ids=[name.replace(" ", "_") for name in SHAPES])
def models(request, tmp_path_factory):
    shape = SHAPES[request.param]
    model = random_model(shape)
    directory = tmp_path_factory.mktemp("hf")
    # A copy: converting the model itself would round its rotary frequencies too.
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(directory)
    return model, directory, shape


@pytest.mark.parametrize("length", [1, 30, 150])
def test_float32_agrees(models, length):
    model, directory, shape = models
    tokens = np.random.default_rng(length).integers(0, shape["vocab_size"], length)
    with torch.no_grad():
        wanted = model(torch.from_numpy(tokens)[None]).logits[0].double().numpy()
    with Engine(directory, activation="f32", kv_bytes=64 << 20) as engine:
        found = engine.logits(tokens)
    assert np.linalg.norm(found - wanted) <= 2e-4 * np.linalg.norm(wanted)


def test_packed_on_request_is_the_rounded_model(models):
    """experts="mxfp4": the model that transformers runs with those rounded experts."""
    from gptoss.checkpoint.files import open_checkpoint
    from gptoss.native import _core

    model, directory, shape = models
    tokens = np.random.default_rng(3).integers(0, shape["vocab_size"], 20)
    with open_checkpoint(directory, experts="mxfp4") as source:
        original = {}
        with torch.no_grad():
            for n, layer in enumerate(model.model.layers):
                for ours, theirs in (("mlp1", "gate_up_proj"), ("mlp2", "down_proj")):
                    name = f"block.{n}.mlp.{ours}_weight"
                    values = dequantize(
                        source.tensor(name + ".blocks"), source.tensor(name + ".scales")
                    )
                    parameter = getattr(layer.mlp.experts, theirs)
                    original[parameter] = parameter.clone()
                    parameter.copy_(torch.from_numpy(values).transpose(1, 2))
            wanted = model(torch.from_numpy(tokens)[None]).logits[0].double().numpy()
            for parameter, values in original.items():
                parameter.copy_(values)
        backend = _core.Backend(source.config, source, activation="f32")
        backend.alloc_kv(8)
        table = np.array([[[0, 1]], [[2, 3]]])
        found = backend.step(tokens, [0, 20], [20], table, np.arange(20), want_logits=True).logits
        backend.close()
    assert np.linalg.norm(found - wanted) <= 2e-4 * np.linalg.norm(wanted)
