"""Digests of files, and what huggingface_hub left of what they should be."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from xxhash import xxh3_128_hexdigest

from gptoss import EngineOptions
from gptoss.eval import files_check
from gptoss.eval.files_check import check_hashes, digests_of, expected_digest, files_of
from gptoss.eval.session import Session

DATA = bytes(range(256)) * 5
SHA256 = hashlib.sha256(DATA).hexdigest()
GIT = hashlib.sha1(b"blob %d\0" % len(DATA) + DATA).hexdigest()


def in_cache(folder: Path, digest: str, data: bytes = DATA) -> Path:
    """A file as it lies in the Hub's cache."""
    blob = folder / "models--openai--gpt-oss-20b" / "blobs" / digest
    blob.parent.mkdir(parents=True, exist_ok=True)
    blob.write_bytes(data)
    path = blob.parents[1] / "snapshots" / "abc" / "some.file"
    path.parent.mkdir(parents=True)
    path.symlink_to(Path("..") / ".." / "blobs" / digest)
    return path


def in_folder(folder: Path, digest: str, name: str = "some.file", data: bytes = DATA) -> Path:
    """A file as `hf download --local-dir` leaves it."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    note = folder / ".cache" / "huggingface" / "download" / f"{name}.metadata"
    note.parent.mkdir(parents=True, exist_ok=True)
    note.write_text(f"{'0' * 40}\n{digest}\n1764000000.5\n")
    return path


@pytest.mark.parametrize("digest", [SHA256, GIT], ids=["sha256", "git"])
@pytest.mark.parametrize("place", [in_cache, in_folder])
@pytest.mark.parametrize("good", [True, False])
def test_what_the_hub_says(tmp_path, place, digest, good):
    path = place(tmp_path, digest, data=DATA if good else DATA[:-1] + b"?")
    (found,) = digests_of([path])
    assert found.expected == expected_digest(path) == digest
    assert found.kind == ("sha256" if digest == SHA256 else "git-sha1")
    assert found.wrong is not good
    assert (found.value == digest) is good


def test_what_the_hub_says_of_a_file_in_a_folder(tmp_path):
    path = in_folder(tmp_path, SHA256, "original/model.safetensors")
    assert expected_digest(path) == SHA256


@pytest.mark.parametrize("note", [b"", b"one line", b"x\nno digest\n", b"\xff\xfe\n" + b"0" * 40])
def test_notes_that_say_nothing(tmp_path, note):
    path = in_folder(tmp_path, SHA256)
    (tmp_path / ".cache/huggingface/download/some.file.metadata").write_bytes(note)
    assert expected_digest(path) is None


def test_large_files_have_a_quick_digest(tmp_path, monkeypatch):
    path = tmp_path / "large"
    path.write_bytes(DATA)
    (small,) = digests_of([path])
    assert (small.kind, small.value, small.size) == ("sha256", SHA256, len(DATA))
    monkeypatch.setattr(files_check, "SMALL", len(DATA) - 1)
    monkeypatch.setattr(files_check, "_CHUNK", 100)
    seen = []
    (large,) = digests_of([path], lambda done, total: seen.append((done, total)))
    assert (large.kind, large.value) == ("xxh3", xxh3_128_hexdigest(DATA))
    assert all(done <= total == len(DATA) for done, total in seen)


def test_an_empty_file(tmp_path):
    (tmp_path / "empty").touch()
    (found,) = digests_of([tmp_path / "empty"])
    assert found.value == hashlib.sha256().hexdigest()


def test_of_a_model(tiny_a_hf, monkeypatch):
    session = Session(EngineOptions(tiny_a_hf))
    session.open()
    names = [path.name for path in files_of(session)]
    assert names[-2:] == ["config.json", "model.safetensors.index.json"] and len(names) == 4
    everything = check_hashes(session)
    assert not everything.failed and len(everything.figures["digests"]) == 4
    monkeypatch.setattr(files_check, "SMALL", 100_000)
    quick = check_hashes(session, quick=True)
    assert len(quick.figures["digests"]) == 2 and "2 large ones left out" in quick.line
    session.close()


def test_a_model_in_the_hubs_cache(tmp_path, tiny_a):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        data = (tiny_a / name).read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        if name == "config.json":
            digest = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        (blobs / digest).write_bytes(data)
        (snapshot / name).symlink_to(Path("..") / ".." / "blobs" / digest)
    session = Session(EngineOptions(snapshot))
    session.open()
    found = check_hashes(session)
    assert found.line == "2 of 2 files compared with what the Hub says of them"
    kinds = {each["name"]: each["kind"] for each in found.figures["digests"]}
    assert kinds == {"model.safetensors": "sha256", "config.json": "git-sha1"}
    session.close()


def test_a_file_that_is_not_what_was_fetched(tmp_path, tiny_a):
    for name in ("config.json", "model.safetensors"):
        data = (tiny_a / name).read_bytes()
        in_folder(tmp_path, hashlib.sha256(data).hexdigest(), name, data)
    session = Session(EngineOptions(tmp_path))
    session.open()
    assert "2 of 2 files compared" in check_hashes(session).line
    path = tmp_path / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-100] ^= 1  # of a weight: nothing but a digest can tell
    path.write_bytes(data)
    found = check_hashes(session)
    assert found.failed and "model.safetensors: expected sha256" in found.line
    session.close()
