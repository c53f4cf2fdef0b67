"""Models in panels: they run as their source does, and whatever is wrong with one is said."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from waiting import WORK

from gptoss import Engine, Error, SamplingParams
from gptoss.checkpoint import BUNDLED_MODEL
from gptoss.checkpoint.files import open_checkpoint
from gptoss.checkpoint.panels import FILE, PanelSource, write_panels
from gptoss.checkpoint.source import ArraySource
from gptoss.checkpoint.write import write_checkpoint

PROMPT = [1, 5, 9, 200, 33]


def logits(model, **options):
    with Engine(model, **options) as engine:
        return engine.logits(PROMPT)


@pytest.fixture(scope="module")
def packed(tiny_a, tmp_path_factory):
    """tiny-a, packed in both ways: weights → directory."""
    root = tmp_path_factory.mktemp("packed")
    made = {weights: root / weights for weights in ("published", "q8")}
    with open_checkpoint(tiny_a) as source:
        for weights, directory in made.items():
            write_panels(source, directory, weights)
    return made


@pytest.fixture
def copy(packed, tmp_path, broken_copy):
    return broken_copy(packed["q8"], tmp_path / "broken")


@pytest.mark.parametrize("weights", ["published", "q8"])
@pytest.mark.parametrize("activation", ["bf16", "f32"])
def test_runs_as_its_source_does(tiny_a, packed, weights, activation):
    options = {"activation": activation}
    assert np.array_equal(
        logits(packed[weights], **options), logits(tiny_a, weights=weights, **options)
    )


def test_q8_is_near_but_not_the_same(tiny_a, packed):
    exact, near = logits(tiny_a, activation="f32"), logits(packed["q8"], activation="f32")
    error = np.linalg.norm(near - exact) / np.linalg.norm(exact)
    assert 1e-4 < error < 3e-2  # each weight within 2^-8 of its block's largest


def test_layouts_and_bf16_experts(tiny_a, tiny_a_hf, tmp_path):
    """The panels do not depend on how the source was stored."""
    with open_checkpoint(tiny_a) as source:
        write_checkpoint(source, tmp_path / "bf16", "huggingface-bf16")
    expected = logits(tiny_a)
    for name, model in (("hf", tiny_a_hf), ("unpacked", tmp_path / "bf16")):
        with open_checkpoint(model) as source:
            write_panels(source, tmp_path / name)
        found = logits(tmp_path / name)
        if name == "hf":
            assert np.array_equal(found, expected)
        else:  # other products run on bf16 experts
            assert np.linalg.norm(found - expected) <= 2e-2 * np.linalg.norm(expected)


def test_the_bundled_model_with_its_tokenizer(tmp_path):
    with open_checkpoint(BUNDLED_MODEL) as source:
        files = write_panels(source, tmp_path / "nano", "q8", threads=2)
    assert {path.name for path in files} > {FILE, "config.json"}  # and a vocabulary
    params = SamplingParams(max_tokens=12, temperature=0)
    with Engine(tmp_path / "nano") as engine:
        assert engine.info()["layout"] == "packed"
        assert engine.info()["dense_weights"].startswith("q8")
        (found,) = engine.generate("Once upon a time", params)
    with Engine(weights="q8") as engine:
        (expected,) = engine.generate("Once upon a time", params)
    assert found.token_ids == expected.token_ids


def test_every_panel_begins_at_a_cache_line(packed):
    with open_checkpoint(packed["published"]) as source:
        for info in source.tensors():
            address = source.tensor(info.name).ctypes.data
            assert address % (64 if info.name.endswith(".panels") else 2) == 0
        assert source.panels == "published"


def test_views_are_of_the_mapped_file(packed):
    """Nothing is copied: processes share the pages."""
    with open_checkpoint(packed["published"]) as source:
        view = source.tensor("unembedding.panels")
        assert not view.flags.owndata
        assert not view.flags.writeable


def test_two_processes_at_once(packed):
    code = "import sys, gptoss; print(gptoss.Engine(sys.argv[1]).logits([1, 5])[-1].argmax())"
    command = [sys.executable, "-c", code, packed["q8"]]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    answers = {process.communicate(timeout=WORK)[0] for process in running}
    assert len(answers) == 1
    assert all(process.returncode == 0 for process in running)


def test_a_packed_model_is_no_source(packed, tmp_path):
    with open_checkpoint(packed["q8"]) as source:
        with pytest.raises(Error, match="is packed already"):
            write_panels(source, tmp_path / "again")
        with pytest.raises(Error, match="cannot be written in another layout"):
            write_checkpoint(source, tmp_path / "original")
        with pytest.raises(Error, match="use the checkpoint that it was made from"):
            source.tensor("block.0.attn.q.weight")
        with pytest.raises(Error, match="cannot be unpacked"):
            source.expert("block.0.mlp.mlp1_weight", 0)
    assert not (tmp_path / "again").exists()


def test_contradicting_weights(packed):
    with pytest.raises(Error, match="packed with weights 'q8', asked for 'published'"):
        Engine(packed["q8"], weights="published")
    with pytest.raises(Error, match="expected 'published' or 'q8', found 'q4'"):
        Engine(packed["q8"], weights="q4")


def test_interrupted(tiny_a, tmp_path):
    """Nothing is left that opens, and nothing at all."""

    def stop(done, total):
        if done > total / 2:
            raise KeyboardInterrupt

    with open_checkpoint(tiny_a) as source, pytest.raises(KeyboardInterrupt):
        write_panels(source, tmp_path / "half", progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_where_something_is_already(tiny_a, tmp_path):
    (tmp_path / "file").write_text("x")
    with open_checkpoint(tiny_a) as source:
        with pytest.raises(Error, match="expected a new or empty directory"):
            write_panels(source, tmp_path)
        with pytest.raises(Error, match="weights: expected one of published, q8"):
            write_panels(source, tmp_path / "new", weights="q3")


def test_no_room(tiny_a, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with open_checkpoint(tiny_a) as source, pytest.raises(Error, match="GB of free space"):
        write_panels(source, tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


def metadata(edit):
    return lambda header: edit(header["__metadata__"])


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (metadata(lambda m: m.update(version="0")), "packed in version '0' of the layout"),
        (metadata(lambda m: m.pop("version")), "packed in version None"),
        (metadata(lambda m: m.update(weights="q3")), "weights: expected one of published, q8"),
        (metadata(lambda m: m.update(weights="published")), "expected U8"),
        (metadata(lambda m: m.update(experts="int4")), "experts: expected one of mxfp4, bf16"),
        (metadata(lambda m: m.pop("checksums")), "checksums: expected an object"),
        (metadata(lambda m: m.update(checksums="[]")), "checksums: expected an object"),
        (metadata(lambda m: m.update(checksums="{}")), "checksums: expected an object"),
        (metadata(lambda m: m.update(checksums="{")), "checksums: expected an object"),
    ],
)
def test_wrong_metadata(copy, edit, message):
    copy.header(edit)
    with pytest.raises(Error, match=message):
        Engine(copy.directory)


def test_another_configuration(copy):
    copy.json(lambda config: config.update(num_experts=4))
    with pytest.raises(Error, match=r"by config\.json"):
        open_checkpoint(copy.directory)


def test_missing_and_unknown_tensors(copy):
    def rename(header):
        header["block.0.attn.q.pannels"] = header.pop("block.0.attn.q.panels")

    copy.header(rename)
    with pytest.raises(Error, match=r"missing tensors .*block\.0\.attn\.q\.panels"):
        open_checkpoint(copy.directory)


def test_panels_that_are_not_aligned(copy):
    header, data = copy.parse()
    text = json.dumps(header).encode()
    copy.write(text + b" " * (-(len(text) + 8) % 64 + 8), data)
    with pytest.raises(Error, match="begin at a multiple of 64 bytes"):
        open_checkpoint(copy.directory)


@pytest.mark.parametrize("where", [0.0, 0.3, 0.9, 1.0])
def test_one_flipped_bit(copy, where):
    header, data = copy.parse()
    place = int(where * (len(data) - 1))
    changed = bytearray(data)
    changed[place] ^= 1
    path = copy[FILE]
    start = path.stat().st_size - len(data)
    with path.open("r+b") as file:
        file.seek(start)
        file.write(changed)
    (name,) = (
        name
        for name, entry in header.items()
        if name != "__metadata__" and entry["data_offsets"][0] <= place < entry["data_offsets"][1]
    )
    with pytest.raises(Error, match=rf"tensor {name}: corrupt: expected checksum [0-9a-f]{{16}}"):
        Engine(copy.directory)


def test_truncated(copy):
    path = copy[FILE]
    os.truncate(path, path.stat().st_size - 64)
    with pytest.raises(Error, match="truncated"):
        open_checkpoint(copy.directory)


def test_verify_reports_progress(packed):
    seen = []
    with open_checkpoint(packed["q8"]) as source:
        assert isinstance(source, PanelSource)
        source.verify(2, lambda done, total: seen.append((done, total)))
        assert seen[-1] == (source.nbytes, source.nbytes)


def test_a_trainers_arrays(tiny_a, tmp_path):
    """Any source can be packed, not only files."""
    with open_checkpoint(tiny_a) as source:
        arrays = {info.name: np.array(source.tensor(info.name)) for info in source.tensors()}
        write_panels(ArraySource(source.config, arrays), tmp_path / "packed")
    assert np.array_equal(logits(tmp_path / "packed"), logits(tiny_a))


def test_command_line(tiny_a, tmp_path):
    def run(*arguments):
        command = [sys.executable, "-m", "gptoss", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=WORK)

    target = tmp_path / "packed"
    done = run("convert", tiny_a, target, "--layout", "packed", "--weights", "q8")
    assert done.returncode == 0, done.stderr
    shown = json.loads(run("info", target, "--json").stdout)
    assert shown["layout"] == "packed"
    assert shown["quantization"] == {"experts": "mxfp4", "other": "q8"}
    refused = run("convert", tiny_a, tmp_path / "x", "--layout", "original", "--weights", "q8")
    assert refused.returncode == 2
    assert "--weights needs --layout packed" in refused.stderr


def test_memory_of_loading(tmp_path):
    """A published source of 100 MB is repacked within 1.15 times its packed size."""
    code = """
import resource, sys
from gptoss import Engine
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
engine = Engine(sys.argv[1], kv_bytes=1 << 20)
size = int(engine.info()["weight_bytes"])
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / size)
"""
    model = "synthetic:tiny?layers=60&experts=48"
    model_dir = Path(tmp_path / "model")
    with open_checkpoint(model) as source:
        write_checkpoint(source, model_dir)
    done = subprocess.run(
        [sys.executable, "-c", code, model_dir], capture_output=True, text=True, timeout=WORK
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) <= 1.15
