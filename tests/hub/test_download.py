"""Downloads from a Hub that breaks off, lies and refuses."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from mock_hub import COMMIT, blob_of

from gptoss import files
from gptoss import hub as models
from gptoss.checkpoint import open_checkpoint
from gptoss.errors import Error
from gptoss.hub import download, places
from gptoss.hub.names import parse

REPO = "openai/gpt-oss-20b"


def fetch(name=REPO, told=None, progress=None):
    return download.fetch(parse(name), (told if told is not None else []).append, progress)


def shards(hub):
    return [name for name in hub.repositories[REPO] if name.endswith(".safetensors")
            and "/" not in name]  # fmt: skip


def total(hub):
    return sum(len(hub.repositories[REPO][name]) for name in shards(hub))


def test_only_what_the_engine_reads_is_fetched(hub):
    told, seen = [], []
    place = fetch(told=told, progress=lambda done, all_: seen.append((done, all_)))
    assert not [n for n in hub.files_asked() if n.startswith(("metal/", "original/", "README"))]
    with open_checkpoint(place.path) as source:
        assert source.layout == "huggingface"
    assert seen[-1] == (total(hub), total(hub)) and seen == sorted(seen)
    assert len(told) == 1 and "downloading openai/gpt-oss-20b" in told[0]


def test_the_cache_is_hugging_faces_own(hub, monkeypatch):
    place = fetch()
    script = (
        "from huggingface_hub import hf_hub_download, scan_cache_dir\n"
        f"named = {{'repo_id': {REPO!r}, 'filename': 'config.json', 'local_files_only': True}}\n"
        f"print(hf_hub_download(**named))\n"
        f"print(hf_hub_download(**named, revision={COMMIT!r}))\n"
        "found = scan_cache_dir()\n"
        "print([(r.repo_id, [sorted(v.refs) for v in r.revisions]) for r in found.repos],"
        " found.warnings)\n"
    )
    lines = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert lines[0] == lines[1] == str(place.path / "config.json")
    assert lines[2] == f"[('{REPO}', [['main']])] []"


def test_what_hugging_face_has_fetched_is_not_asked_for(hub):
    script = (
        "from huggingface_hub import snapshot_download\n"
        f"snapshot_download({REPO!r}, allow_patterns=['*.json', '*.safetensors'])\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    hub.asked.clear()
    told = []
    found = models.find("gpt-oss-20b", tell=told.append)
    assert hub.asked == [] and not found.fetched and "Hugging Face's cache" in told[0]
    open_checkpoint(found.model).close()
    # Nor by a pull, which asks whether there is something new.
    fetch()
    assert hub.files_asked() == []


def test_an_interruption_is_gone_on_from(hub):
    """Within a call, and by a later one."""
    name = shards(hub)[0]
    hub.break_after = [1000, 500]
    place = fetch()
    ranges = [r for _, path, r in hub.asked if path.endswith(name) and "/cdn/" in path]
    assert ranges == [None, "bytes=1000-", "bytes=1500-"]
    open_checkpoint(place.path).close()


def test_a_later_process_goes_on(hub):
    name = shards(hub)[0]
    hub.break_after = [1000] + [0] * 20
    with pytest.raises(Error, match=rf"{name}: broken off after 1000 of \d+ bytes.*goes on"):
        fetch()
    assert places.in_hub_cache(REPO) is None
    hub.break_after, told = [], []
    hub.asked.clear()
    fetch(told=told)
    assert "bytes=1000-" in {r for _, _, r in hub.asked}
    assert "0.0 MB of it are here" in told[0]


def test_a_killed_process_loses_nothing(hub):
    sent = threading.Event()
    hub.break_after = [5000]

    def slow(name):
        if hub.break_after == [] and name.endswith(".safetensors"):
            sent.set()
            hold.wait(30)

    hold = threading.Event()
    hub.before_file = slow
    child = subprocess.Popen(
        [sys.executable, "-m", "gptoss", "pull", "gpt-oss-20b"], stderr=subprocess.DEVNULL
    )
    assert sent.wait(60)
    child.kill()
    child.wait()
    hold.set()
    hub.before_file = lambda name: None
    hub.asked.clear()
    fetch()
    assert "bytes=5000-" in {r for _, _, r in hub.asked}


def test_a_server_without_ranges(hub):
    hub.ignores_range = True
    hub.break_after = [1000]
    open_checkpoint(fetch().path).close()


def test_without_ranges_once(hub):
    """What was hashed before the file began anew is not in its hash."""
    hub.break_after = [1000, 500]

    def ranges(name):
        hub.ignores_range = len(hub.break_after) == 1

    hub.before_file = ranges
    open_checkpoint(fetch().path).close()
    assert "bytes=500-" in {r for _, _, r in hub.asked}


def test_a_part_that_is_not_there(hub):
    """416: begun anew, with a new hash."""
    hub.break_after = [1000]

    def refuse_once(name):
        if name.endswith(".safetensors") and not hub.refusals:
            hub.refuse("/cdn/", 416, times=1)

    hub.before_file = refuse_once
    open_checkpoint(fetch().path).close()
    assert hub.refusals[0][3] == 0


def test_too_much_of_a_file_is_begun_anew(hub):
    name = shards(hub)[0]
    data = hub.repositories[REPO][name]
    partial = places.repository_folder(REPO) / "blobs" / f"{blob_of(name, data)}.incomplete"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(b"x" * (len(data) + 7))
    open_checkpoint(fetch().path).close()
    partial.with_suffix("").unlink()
    partial.write_bytes(b"x" * len(data))  # the right size, the wrong bytes
    with pytest.raises(Error, match="expected the hash .* thrown away"):
        fetch()
    open_checkpoint(fetch().path).close()


@pytest.mark.parametrize("by", [-1, 1])
def test_a_lie_about_a_size(hub, by):
    name = shards(hub)[-1]
    hub.sizes[name] = len(hub.repositories[REPO][name]) + by
    with pytest.raises(Error, match=rf"{name}: (expected \d+ bytes.*found more|broken off)"):
        fetch()
    assert places.in_hub_cache(REPO) is None


def test_a_lie_about_a_size_costs_no_file_that_is_here(hub):
    place = fetch()
    name = shards(hub)[-1]
    hub.sizes[name] = len(hub.repositories[REPO][name]) + 1
    with pytest.raises(Error):
        fetch()
    open_checkpoint(place.path).close()


def _description(**changes):
    sibling = {"rfilename": "config.json", "size": 2, "blobId": "0" * 40}
    whole = {"id": REPO, "sha": COMMIT, "siblings": [sibling]}
    return json.dumps(whole | changes).encode()


@pytest.mark.parametrize(
    "body",
    [
        *(b"<html>Please log in</html>", b"", b"[]", b"null"),
        _description(siblings="x"),
        _description(siblings=[{"size": 3}]),
        _description(siblings=[{"rfilename": "config.json", "size": "x", "blobId": "0" * 40}]),
        _description(siblings=[{"rfilename": "config.json", "size": 2, "blobId": 5}]),
        _description(siblings=[{"rfilename": "config.json", "size": 2, "lfs": "x"}]),
        _description(siblings=[{"rfilename": "config.json", "size": 2, "lfs": {"size": 3}}]),
        _description(gguf="x", siblings=[]),
        _description(lastModified="x"),
    ],
)
def test_answers_that_are_no_description(hub, body):
    hub.description = body
    with pytest.raises(Error, match=f"{REPO}: "):
        fetch()


def test_damage_on_the_way(hub):
    name = shards(hub)[0]
    good = hub.repositories[REPO][name]
    hub.contents[name] = good[:-1] + bytes([good[-1] ^ 1])
    with pytest.raises(Error, match=rf"{name}: expected the hash .* found .* damaged"):
        fetch()
    hub.contents["config.json"] = b"{" + hub.repositories[REPO]["config.json"][1:-1] + b" "
    with pytest.raises(Error, match=r"expected the hash"):
        fetch()
    hub.contents.clear()
    open_checkpoint(fetch().path).close()


@pytest.mark.parametrize(
    ("status", "headers", "message"),
    [
        (401, {"X_Error_Code": "RepoNotFound"}, "no such repository, or shows it only to those"),
        (403, {"X_Error_Code": "GatedRepo"}, "agreed to its terms: do so at .*HF_TOKEN"),
        (404, {"X_Error_Code": "RepoNotFound"}, "no such repository"),
        (404, {"X_Error_Code": "RevisionNotFound"}, "has no revision 'main'"),
        (418, {}, "the Hub refuses"),
    ],
)
def test_refusals(hub, status, headers, message):
    hub.refuse("^/api/", status, **headers)
    with pytest.raises(Error, match=message):
        fetch()


def test_refusals_of_a_file(hub):
    hub.refuse("/resolve/.*safetensors$", 403, X_Error_Code="GatedRepo")
    with pytest.raises(Error, match="agreed to its terms"):
        fetch()


def test_too_many_requests_are_waited_for(hub):
    hub.refuse("/resolve/", 429, times=2, Retry_After="0")
    hub.refuse("/cdn/", 503, times=1)
    open_checkpoint(fetch().path).close()


def test_nobody_waits_for_an_hour(hub):
    hub.refuse("/resolve/", 429, Retry_After="3600")
    with pytest.raises(Error, match="answers 429 and asks to come again in 3600 s"):
        fetch()


def test_nobody_answers(hub, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(Error, match=r"http://127.0.0.1:9 cannot be reached"):
        fetch()


def test_a_full_disk_is_found_before(hub, monkeypatch):
    import shutil

    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=300_000))
    with pytest.raises(Error, match=r"expected 0.3 GB of free disk space in .*, found 0.3 MB"):
        fetch()
    assert not [name for name in hub.files_asked() if name.endswith(".safetensors")]


def test_another_kind_of_model_is_refused_by_its_configuration(hub):
    with pytest.raises(Error, match="expected a gpt-oss model, found one of type 'llama'"):
        fetch("somebody/llama")
    assert hub.files_asked() == ["config.json"]


@pytest.mark.parametrize(
    "name", ["../../escape.safetensors", "/etc/x.safetensors", "a/../../b.safetensors", ".hidden"]
)
def test_names_that_reach_outside(hub, name, tmp_path):
    hub.repositories[REPO][name] = b"boo"
    fetch()
    assert not [path for path in tmp_path.rglob("*") if "escape" in path.name]
    assert name not in hub.files_asked()


def test_an_index_names_what_is_not_there(hub):
    del hub.repositories[REPO][shards(hub)[0]]
    with pytest.raises(Error, match="which the repository does not have"):
        fetch()


def test_only_an_original_layout(hub):
    files = hub.repositories[REPO]
    hub.repositories[REPO] = {
        name: data for name, data in files.items() if name.startswith(("original/", "tokenizer"))
    }
    place = fetch()
    with open_checkpoint(place.path) as source:
        assert source.layout == "original"
    assert places.in_hub_cache(REPO) == place


def test_gguf_repositories(hub):
    hub.repositories["ggml-org/gpt-oss-20b-GGUF"] = {"gpt-oss-20b-mxfp4.gguf": b"GGUF" + b"x" * 99}
    place = fetch("hf:ggml-org/gpt-oss-20b-GGUF")
    assert place.path.name == "gpt-oss-20b-mxfp4.gguf" and place.path.read_bytes()[:4] == b"GGUF"
    hub.repositories["a/b"] = {"x-Q4_K.gguf": b"GGUF", "x-Q2_K.gguf": b"GGUF"}
    with pytest.raises(Error, match=r"holds several models.*hf:a/b/x-Q2_K.gguf"):
        fetch("hf:a/b")
    assert fetch("hf:a/b/x-Q4_K.gguf").path.name == "x-Q4_K.gguf"
    with pytest.raises(Error, match="no file is called x.gguf; GGUF files there: x-Q2_K"):
        fetch("hf:a/b/x.gguf")
    hub.repositories["a/c"] = {"m-00001-of-00002.gguf": b"GGUF1", "m-00002-of-00002.gguf": b"GGUF2"}
    place = fetch("hf:a/c")
    assert [p.read_bytes() for p in places.parts_of(place.path)] == [b"GGUF1", b"GGUF2"]
    hub.gguf = {"architecture": "llama"}
    with pytest.raises(Error, match="found one of type 'llama'"):
        fetch("hf:a/c")


def test_revisions(hub):
    place = fetch(f"hf:{REPO}@v1")
    assert places.in_hub_cache(REPO, "v1") == place and places.in_hub_cache(REPO) is None
    with pytest.raises(Error, match="has no revision 'v2'"):
        fetch(f"{REPO}@v2")
    assert models.find(f"{REPO}@v1").model == place.path


def test_two_processes_fetch_it_once(hub):
    """The second waits for the first."""
    command = [sys.executable, "-m", "gptoss", "pull", "gpt-oss-20b"]
    both = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [child.communicate(timeout=120)[1] for child in both]
    assert [child.returncode for child in both] == [0, 0], "".join(said)
    asked = [path for _, path, _ in hub.asked if "/cdn/" in path and path.endswith("safetensors")]
    assert sorted(asked) == sorted({*asked})


def test_a_name_that_another_process_makes_meanwhile(hub, monkeypatch):
    """Between our look and our link."""
    is_file = Path.is_file
    monkeypatch.setattr(
        Path, "is_file", lambda path: "snapshots" not in path.parts and is_file(path)
    )
    unlink = Path.unlink
    monkeypatch.setattr(
        Path, "unlink", lambda path, **how: "snapshots" in path.parts or unlink(path, **how)
    )
    fetch()
    fetch()


def test_nothing_is_written_where_all_is_here(hub, monkeypatch):
    """The cache may be read-only."""
    place = fetch()

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(files, "write_in_one_piece", refuse)
    assert fetch() == place


def test_the_bar_counts_what_another_process_has_brought(hub):
    data = hub.repositories[REPO][shards(hub)[0]]
    blob = blob_of(".safetensors", data)
    seen = []

    def meanwhile(line):
        (places.repository_folder(REPO) / "blobs" / blob).write_bytes(data)

    download.fetch(parse(REPO), meanwhile, lambda done, all_: seen.append((done, all_)))
    assert seen[-1] == (total(hub), total(hub))


def test_an_interrupted_download_is_removed_whole(hub, home):
    """What came before the interruption, what came after it, and half a file."""
    hub.break_after = [10**9, 1000] + [0] * 20
    with pytest.raises(Error, match="broken off"):
        fetch()
    hub.break_after = []
    fetch()
    models.remove(REPO)
    assert [path for path in home.rglob("*") if path.is_file() or path.is_symlink()] == []
    hub.break_after = [1000] + [0] * 20
    with pytest.raises(Error, match="broken off"):
        fetch()
    assert models.remove(REPO).nbytes > 1000
    assert [path for path in home.rglob("*") if path.is_file() or path.is_symlink()] == []


def test_two_revisions_are_removed_with_what_they_share(hub, home):
    fetch()
    hub.commit = "f" * 40
    hub.repositories[REPO]["generation_config.json"] = b'{"new": 1}'
    fetch()
    assert len(list((places.repository_folder(REPO) / "snapshots").iterdir())) == 2
    assert models.remove(REPO).kept == []
    assert [path for path in home.rglob("*") if path.is_file() or path.is_symlink()] == []


def test_a_download_is_removed_from_where_it_was_put(hub, home, monkeypatch):
    """Though the cache lies elsewhere today."""
    place = fetch()
    monkeypatch.setenv("HF_HUB_CACHE", str(home / "other"))
    assert models.remove(REPO).nbytes > 0 and not place.path.exists()


def test_what_was_downloaded_is_removed_and_nothing_else(hub):
    place = fetch()
    folder = places.repository_folder(REPO)
    # Somebody else's: another revision that shares a shard, and a file that was not ours.
    other = folder / "snapshots" / ("f" * 40)
    other.mkdir()
    name = shards(hub)[0]
    (other / name).symlink_to(os.readlink(place.path / name))
    (folder / "blobs" / ("e" * 64)).write_bytes(b"theirs")
    removed = models.remove(REPO)
    assert (other / name).is_file() and (folder / "blobs" / ("e" * 64)).is_file()
    assert len(removed.kept) == 1 and removed.nbytes > 0
    assert places.in_hub_cache(REPO) is None
    assert models.remove(REPO).paths == []


def test_after_removal_nothing_is_left(hub, home):
    fetch()
    models.remove(REPO)
    assert [path for path in home.rglob("*") if path.is_file() or path.is_symlink()] == []
