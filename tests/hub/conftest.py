"""A home in which nothing was downloaded yet, and a Hub beside it."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from mock_hub import Hub, running

from gptoss.hub import download

VARIABLES = (
    *("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN", "HF_HUB_OFFLINE"),
    *("TRANSFORMERS_OFFLINE", "OLLAMA_MODELS", "LLAMA_CACHE", "XDG_CACHE_HOME", "GPTOSS_CACHE"),
    "GPTOSS_CACHE_BYTES",
)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty home folder, of which every variable speaks."""
    made = tmp_path / "home"
    made.mkdir()
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(made))
    monkeypatch.setenv("HF_HOME", str(made / "hf"))
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return made


@pytest.fixture
def hub(home, monkeypatch, golden_dir):
    """A Hub with two repositories: as OpenAI's are laid out, and one that is not gpt-oss."""
    made = Hub()
    files = {p.name: p.read_bytes() for p in (golden_dir / "tiny-a-hf").iterdir() if p.is_file()}
    files["tokenizer.json"] = b"{}"
    files["generation_config.json"] = b"{}"
    files["README.md"] = b"# read me"
    files["metal/model.bin"] = b"m" * 5000
    original = golden_dir / "tiny-a"
    for name in ("config.json", "model.safetensors"):
        files[f"original/{name}"] = (original / name).read_bytes()
    made.repositories["openai/gpt-oss-20b"] = files
    made.repositories["somebody/llama"] = {
        "config.json": b'{"model_type": "llama"}',
        "model.safetensors": b"s" * 9000,
    }
    monkeypatch.setattr(download, "_PAUSE", 0.01)
    with running(made) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        yield made
