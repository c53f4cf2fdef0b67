"""Models in the folders of other tools, made up as those lay them out."""

import hashlib
import json
import os
import shutil
import threading
from pathlib import Path

import pytest

from gptoss import hub as models
from gptoss.checkpoint import open_checkpoint
from gptoss.cli import opening
from gptoss.engine import EngineOptions
from gptoss.errors import Error
from gptoss.files import short_path
from gptoss.hub import packed, places, search

REPO = "openai/gpt-oss-20b"
COMMIT = "a" * 40


@pytest.fixture(autouse=True)
def offline(home, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def every_file_is_good(monkeypatch):
    monkeypatch.setattr(search, "unreadable", lambda path: None)


def in_hub(home, tiny_a_hf, repo=REPO, commit=COMMIT):
    folder = home / "hf" / "hub" / f"models--{repo.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    shutil.copytree(tiny_a_hf, folder / "snapshots" / commit)
    return folder / "snapshots" / commit


def in_ollama(home, name="gpt-oss", tag="20b", owner="library", data=b"GGUF", size=None):
    digest = hashlib.sha256(data).hexdigest()
    root = home / ".ollama" / "models"
    manifest = root / "manifests" / "registry.ollama.ai" / owner / name / tag
    manifest.parent.mkdir(parents=True, exist_ok=True)
    layers = [
        {"mediaType": "application/vnd.ollama.image.license", "digest": "sha256:" + "0" * 64},
        {
            "mediaType": "application/vnd.ollama.image.model",
            "digest": f"sha256:{digest}",
            "size": len(data) if size is None else size,
        },
    ]
    manifest.write_text(json.dumps({"schemaVersion": 2, "layers": layers}))
    blob = root / "blobs" / f"sha256-{digest}"
    blob.parent.mkdir(parents=True, exist_ok=True)
    blob.write_bytes(data)
    return blob


def gguf(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"GGUF")
    return path


def find(name=REPO):
    told = []
    return models.find(name, tell=told.append).model, told


def test_nothing_anywhere(home):
    with pytest.raises(Error, match="expected it on this machine.*found none in ~/hf/hub"):
        find()


def test_hugging_faces_cache(home, tiny_a_hf):
    snapshot = in_hub(home, tiny_a_hf)
    found, told = find("gpt-oss:20b")
    assert found == snapshot and told == [
        f"gpt-oss-20b: found in Hugging Face's cache: ~/{snapshot.relative_to(home)}"
    ]


@pytest.mark.parametrize(
    "gone", ["config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json"]
)
def test_half_a_download_is_none(home, tiny_a_hf, gone):
    (in_hub(home, tiny_a_hf) / gone).unlink()
    with pytest.raises(Error, match="expected it on this machine"):
        find()


@pytest.mark.parametrize("commit", ["", "../../..", "x" * 40, "\0", "b" * 40])
def test_a_damaged_reference(home, tiny_a_hf, commit):
    snapshot = in_hub(home, tiny_a_hf)
    (snapshot.parents[1] / "refs" / "main").write_text(commit)
    with pytest.raises(Error, match="expected it on this machine"):
        find()


@pytest.mark.parametrize("variable", ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"])
def test_a_cache_elsewhere(home, tiny_a_hf, tmp_path, monkeypatch, variable):
    snapshot = in_hub(home, tiny_a_hf)
    shutil.move(home / "hf" / "hub", tmp_path / "moved")
    monkeypatch.setenv(variable, str(tmp_path / "moved"))
    assert find()[0] == tmp_path / "moved" / snapshot.relative_to(home / "hf" / "hub")


def test_ollama(home, every_file_is_good):
    blob = in_ollama(home)
    found, told = find()
    assert found == blob and told[0].startswith("gpt-oss-20b: found in Ollama (~/.ollama/")
    with pytest.raises(Error):
        find("gpt-oss-120b")


def test_ollamas_latest_is_20b(home, every_file_is_good):
    blob = in_ollama(home, tag="latest")
    assert find("gpt-oss")[0] == blob


@pytest.mark.parametrize(
    "changes",
    [{"size": 5}, {"name": "gpt-oss-abliterated"}, {"owner": "somebody"}, {"tag": "20b-cloud"}],
)
def test_other_models_of_ollama(home, every_file_is_good, changes):
    """One not all there, one of others, a fine-tune, one that is not on this machine at all."""
    in_ollama(home, **changes)
    with pytest.raises(Error, match="expected it on this machine"):
        find()


@pytest.mark.parametrize(
    "manifest",
    [b"", b"{", b"[]", b"{}", b'{"layers": 5}', b'{"layers": [5, null, {}]}', b"\xff" * 99,
     b'{"layers": [{"mediaType": "application/vnd.ollama.image.model", "digest": "../x"}]}',
     b'{"layers": [{"mediaType": "application/vnd.ollama.image.model", "digest": 5}]}'],
)  # fmt: skip
def test_damaged_manifests(home, manifest):
    blob = in_ollama(home)
    for path in (blob.parents[1] / "manifests").rglob("20b"):
        path.write_bytes(manifest)
    assert list(models.everything()) == []


def test_lm_studio(home, every_file_is_good, tmp_path):
    folder = "lmstudio-community/gpt-oss-20b-GGUF"
    path = gguf(home / ".lmstudio" / "models" / folder / "gpt-oss-20b-MXFP4.gguf")
    assert find()[0] == path
    moved = tmp_path / "disk" / "models" / folder
    moved.parent.mkdir(parents=True)
    shutil.move(path.parent, moved)
    (home / ".lmstudio-home-pointer").write_text(str(tmp_path / "disk"))
    assert find()[0] == moved / path.name


def test_llama_cpp(home, every_file_is_good, monkeypatch, tmp_path):
    name = "ggml-org_gpt-oss-20b-GGUF_gpt-oss-20b-mxfp4.gguf"
    assert find_after(gguf(home / ".cache" / "llama.cpp" / name))
    (home / ".cache" / "llama.cpp" / name).unlink()
    monkeypatch.setenv("LLAMA_CACHE", str(tmp_path / "elsewhere"))
    assert find_after(gguf(tmp_path / "elsewhere" / name))


def find_after(path):
    return find()[0] == path


def test_llama_cpps_downloads_in_hugging_faces_cache(home, every_file_is_good):
    folder = home / "hf" / "hub" / "models--ggml-org--gpt-oss-20b-GGUF" / "snapshots" / COMMIT
    assert find_after(gguf(folder / "gpt-oss-20b-mxfp4.gguf"))


def test_parts_that_are_missing(home, every_file_is_good):
    folder = home / ".lmstudio" / "models" / "unsloth" / "gpt-oss-120b-GGUF"
    first = gguf(folder / "gpt-oss-120b-F16-00001-of-00002.gguf")
    with pytest.raises(Error):
        find("gpt-oss-120b")
    gguf(folder / "gpt-oss-120b-F16-00002-of-00002.gguf")
    assert find("gpt-oss-120b")[0] == first


@pytest.mark.parametrize(
    "name",
    [
        "gpt-oss-20b-abliterated-MXFP4.gguf",
        "my-gpt-oss-20b.gguf",
        "gpt-oss-20b-uncensored-bf16.gguf",
        "gpt-oss-120b-MXFP4.gguf",
        "gpt-oss-safeguard-20b-MXFP4.gguf",
        "llama-20b.gguf",
    ],
)
def test_a_fine_tune_does_not_pass_for_the_original(home, every_file_is_good, name):
    gguf(home / ".cache" / "llama.cpp" / name)
    with pytest.raises(Error, match="expected it on this machine"):
        find()


def test_what_cannot_be_run_is_passed_over_and_said(home):
    """A file that is no model, then the next place."""
    gguf(home / ".lmstudio" / "models" / "unsloth" / "gpt-oss-20b-GGUF" / "gpt-oss-20b-Q4_K.gguf")
    told = []
    with pytest.raises(Error, match="expected it on this machine"):
        models.find(REPO, tell=told.append)
    assert len(told) == 1 and "passed over in LM Studio" in told[0]


def test_hugging_faces_copy_goes_before_others(home, tiny_a_hf, every_file_is_good):
    in_ollama(home)
    snapshot = in_hub(home, tiny_a_hf)
    assert find()[0] == snapshot


def test_everything_is_listed(home, tiny_a_hf):
    in_hub(home, tiny_a_hf)
    in_ollama(home)
    in_ollama(home, "gpt-oss-mine", "latest", "me", b"GGUF mine")
    gguf(home / ".cache" / "llama.cpp" / "gpt-oss-20b-abliterated.gguf")
    found = [(place.where, models.title(place)) for place in models.everything()]
    assert found == [
        (places.HUB, "gpt-oss-20b"),
        (places.LLAMA_CPP, "gpt-oss-20b-abliterated.gguf"),
        (places.OLLAMA, "gpt-oss-20b"),
        (places.OLLAMA, "me/gpt-oss-mine:latest"),
    ]


def test_a_folder_that_may_not_be_read_hides_no_other(home, tiny_a_hf, monkeypatch):
    in_hub(home, tiny_a_hf, "a/gpt-oss-secret", "b" * 40)
    in_hub(home, tiny_a_hf)
    is_file = Path.is_file

    def refused(path):
        if "a--gpt-oss-secret" in str(path):
            raise PermissionError(13, "Permission denied")
        return is_file(path)

    monkeypatch.setattr(Path, "is_file", refused)
    assert [models.title(place) for place in models.everything()] == ["gpt-oss-20b"]


# ---- Packed copies


def test_a_packed_copy_is_used(home, tiny_a_hf):
    snapshot = in_hub(home, tiny_a_hf)
    copy = models.pack(snapshot, REPO, "published")
    found = models.find(REPO, packed_too=True)
    assert found.model == copy.path and models.find(REPO).model == snapshot
    assert models.find(REPO, packed_too=True, weights="q8").model == snapshot
    # Of a source that is gone, it stands in; of one that was changed, it is none.
    shutil.move(snapshot, home / "gone")
    assert models.find(REPO, packed_too=True).model == copy.path
    shutil.move(home / "gone", snapshot)
    config = snapshot / "config.json"
    config.write_text(config.read_text() + "\n")
    assert models.find(REPO, packed_too=True).model == snapshot


def test_the_least_used_copies_make_room(home, tiny_a_hf, monkeypatch):
    sources = [in_hub(home, tiny_a_hf, f"owner/gpt-oss-{i}", str(i) * 40) for i in range(3)]
    first = models.pack(sources[0], "owner/gpt-oss-0", "published")
    monkeypatch.setenv("GPTOSS_CACHE_BYTES", str(2 * first.nbytes + 1000))
    second = models.pack(sources[1], "owner/gpt-oss-1", "published")
    os.utime(second.folder / "about.json", (1, 1))
    assert models.packed_copy(sources[0], "published") == first
    third = models.pack(sources[2], "owner/gpt-oss-2", "published")
    assert {copy.folder for copy in models.all_packed()} == {first.folder, third.folder}
    monkeypatch.setenv("GPTOSS_CACHE_BYTES", "1kB")
    with pytest.raises(Error, match="expected at most 1000 bytes together"):
        models.pack(sources[1], "owner/gpt-oss-1", "published")
    assert len(list(models.all_packed())) == 2


def test_packing_that_ends_early_leaves_nothing(home, tiny_a_hf):
    snapshot = in_hub(home, tiny_a_hf)

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        models.pack(snapshot, REPO, "published", stop)
    assert list(models.all_packed()) == []
    assert not [path for path in (home / ".cache" / "gptoss").rglob("*") if path.is_file()]


def test_two_pack_at_once(home, tiny_a_hf):
    """The second waits, and has what the first made."""
    snapshot = in_hub(home, tiny_a_hf)
    made = []
    other = threading.Thread(target=lambda: made.append(models.pack(snapshot, REPO, "published")))

    def meanwhile(done, total):
        if other.ident is None:
            other.start()
            other.join(0.5)  # long enough to spoil ours

    made.append(models.pack(snapshot, REPO, "published", meanwhile))
    other.join()
    assert made[0] == made[1]
    open_checkpoint(made[0].path).close()


def test_what_a_killed_process_packed_is_removed_by_the_next(home, tiny_a_hf):
    left = home / ".cache" / "gptoss" / "packed" / ("0" * 20)
    (left / "model").mkdir(parents=True)
    (left / "model" / "half").write_bytes(b"x" * 1000)
    other = left.parent / "mine"
    other.mkdir()
    models.pack(in_hub(home, tiny_a_hf), REPO, "published")
    assert not left.exists() and other.exists()


def test_packed_copies_of_others(home, tiny_a_hf, monkeypatch):
    """They are used, though not noted as used; one whose files are gone is not."""
    snapshot = in_hub(home, tiny_a_hf)
    copy = models.pack(snapshot, REPO, "published")

    def refuse(*_, **__):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "utime", refuse)
    assert models.find(REPO, packed_too=True).model == copy.path
    shutil.rmtree(copy.path)
    assert models.find(REPO, packed_too=True).model == snapshot


def test_no_packed_copy_for_a_gpu(monkeypatch):
    """It could not read it."""
    assert opening.runs_on_cpu(EngineOptions(device="cpu"))
    monkeypatch.setattr("gptoss.engine.choose_device", lambda device, backends: "cuda")
    assert not opening.runs_on_cpu(EngineOptions())
    assert not opening.runs_on_cpu(EngineOptions(device="cuda"))


def test_a_home_that_is_none(monkeypatch):
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    assert short_path(Path("/a/b")) == "/a/b"


@pytest.mark.parametrize(
    ("text", "wanted"), [("", packed.BUDGET), ("40GB", 40 * 10**9), ("5k", 5120), ("0", 0)]
)
def test_budgets(home, monkeypatch, text, wanted):
    monkeypatch.setenv("GPTOSS_CACHE_BYTES", text)
    assert packed.budget() == wanted


def test_a_wrong_budget(home, monkeypatch):
    monkeypatch.setenv("GPTOSS_CACHE_BYTES", "lots")
    with pytest.raises(Error, match="GPTOSS_CACHE_BYTES: expected a size such as 500MB"):
        packed.budget()
