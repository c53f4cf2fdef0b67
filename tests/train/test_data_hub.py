"""Datasets fetched from a small server that behaves as the Hub does, and at times badly."""

from __future__ import annotations

import errno
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from gptoss.errors import Error
from gptoss.train.data import hub
from gptoss.train.data.download import Expected, Patience

COMMIT = "0123456789abcdef0123456789abcdef01234567"
QUICK = Patience(attempts=3, pause=0.0)
BIG = bytes(range(256)) * 9000  # 2.3 MB: more than two chunks
NAME = "owner/stories"


class Hub:
    """`files` of one dataset, and what is wrong with the server at the moment."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {
            "README.md": b"about",
            "data/train-00000-of-00002.parquet": BIG,
            "data/train-00001-of-00002.parquet": b"second",
            "data/validation-00000-of-00001.parquet": b"held out",
        }
        self.refs = {"main", COMMIT}
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.break_after: list[int] = []  # bytes before the connection ends, one per download
        self.ranges = True
        self.wrong_start = False
        self.damage: Callable[[bytes], bytes] = lambda data: data
        self.status: list[int] = []  # answers to give before the true ones
        self.token = ""
        self.page = 1000  # entries of a listing
        self.elsewhere = ""  # redirect downloads to this host
        self.small = {"README.md"}  # kept by git itself, not by LFS

    def downloads(self) -> list[dict[str, str]]:
        return [headers for path, headers in self.requests if "/resolve/" in path]

    def tree(self) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = [{"type": "directory", "path": "data", "oid": "0" * 40}]
        for path, data in self.files.items():
            blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            entry = {"type": "file", "path": path, "size": len(data), "oid": blob}
            if path not in self.small:
                digest = hashlib.sha256(data).hexdigest()
                entry["lfs"] = {"oid": digest, "size": len(data), "pointerSize": 130}
            entries.append(entry)
        return entries


class Handler(BaseHTTPRequestHandler):
    """HTTP/1.0 with Content-Length: an early end is an early end."""

    server: Any

    def log_message(self, format: str, *args: object) -> None:
        """Keeps quiet."""

    def do_GET(self) -> None:
        hub, url = self.server.hub, urlsplit(self.path)
        path = unquote(url.path)
        hub.requests.append((path, dict(self.headers)))
        if hub.status:
            return self.answer(hub.status.pop(0), b"not now")
        if hub.token and self.headers.get("Authorization") != f"Bearer {hub.token}":
            return self.answer(401, b"who are you")
        if match := re.fullmatch(rf"/api/datasets/{NAME}/revision/(.+)", path):
            known = match[1] in hub.refs
            return self.answer(200, json.dumps({"sha": COMMIT}).encode()) if known else self.gone()
        if path == f"/api/datasets/{NAME}/tree/{COMMIT}":
            return self.listing(url.query)
        if match := re.fullmatch(rf"/datasets/{NAME}/resolve/{COMMIT}/(.+)", path):
            if hub.elsewhere:
                return self.answer(302, b"", {"Location": hub.elsewhere + self.path})
            data = hub.files.get(match[1])
            return self.gone() if data is None else self.file(data)
        return self.gone()

    def gone(self) -> None:
        self.answer(404, b"nothing here")

    def listing(self, query: str) -> None:
        hub = self.server.hub
        start = int((re.findall(r"cursor=(\d+)", query) or ["0"])[0])
        entries, end = hub.tree(), start + hub.page
        port = self.server.server_address[1]
        here = f"http://127.0.0.1:{port}{urlsplit(self.path).path}"
        more = {"Link": f'<{here}?recursive=true&cursor={end}>; rel="next"'}
        self.answer(200, json.dumps(entries[start:end]).encode(), more if entries[end:] else {})

    def file(self, data: bytes) -> None:
        hub, start = self.server.hub, 0
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        headers = {}
        if asked and hub.ranges:
            start = int(asked[1])
            said = start + hub.wrong_start
            headers["Content-Range"] = f"bytes {said}-{len(data) - 1}/{len(data)}"
        body = hub.damage(data)[start:]
        length = len(body)
        if hub.break_after:
            body = body[: hub.break_after.pop(0)]
        self.answer(206 if headers else 200, body, {**headers, "Content-Length": str(length)})

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


class Server(ThreadingHTTPServer):
    """Says nothing of clients that hang up."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Keeps quiet."""


def serve(state: Hub) -> tuple[ThreadingHTTPServer, str]:
    server = Server(("127.0.0.1", 0), Handler)
    server.hub = state  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    return server, f"http://127.0.0.1:{server.server_address[1]}"


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    state = Hub()
    server, url = serve(state)
    monkeypatch.setenv("HF_ENDPOINT", url)
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    yield state
    server.shutdown()
    server.server_close()


def contents(fetched: hub.Fetched) -> list[bytes]:
    return [path.read_bytes() for path in fetched.files]


def leftovers(cache: Path) -> list[str]:
    return [path.name for path in cache.rglob("*.partial")]


@pytest.mark.parametrize(
    ("place", "meaning"),
    [
        ("roneneldan/TinyStories", hub.Dataset("roneneldan/TinyStories", "main", ())),
        ("a/b:validation", hub.Dataset("a/b", "main", ("validation",))),
        ("a/b@refs/pr/3:en/train", hub.Dataset("a/b", "refs/pr/3", ("en", "train"))),
        ("../data", None),
        ("./a/b", None),
        ("a/b/c", None),
        ("/a/b", None),
        ("story.txt", None),
        ("a/../b", None),
    ],
)
def test_names(place: str, meaning: hub.Dataset | None) -> None:
    assert hub.parse(place) == meaning


def test_a_path_is_no_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert hub.is_dataset("texts/mine")
    (tmp_path / "texts" / "mine").mkdir(parents=True)
    assert not hub.is_dataset("texts/mine")
    assert hub.resolve("texts/mine", None, None) is None


def test_the_train_split_is_fetched(site: Hub, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    found = hub.fetch(NAME, tmp_path, progress=lambda *at: told.append(at))
    assert contents(found) == [BIG, b"second"]
    assert found.commit == COMMIT and found.name == NAME
    total = len(BIG) + 6
    assert told[-1] == (total, total) and told == sorted(told) and len(told) >= 4
    assert not leftovers(tmp_path)
    seen = len(site.requests)
    assert contents(hub.fetch(NAME, tmp_path)) == [BIG, b"second"]
    assert len(site.requests) == seen + 2  # asks for news, downloads nothing


def test_resolve_reports_and_uses_the_cache_folder(
    site: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    told: list[tuple[str, int, int]] = []
    (path,) = hub.resolve(f"{NAME}:validation", None, lambda *at: told.append(at)) or []
    assert path.read_bytes() == b"held out" and tmp_path in path.parents
    assert told == [(f"fetching {NAME}:validation", 8, 8)]


def test_listing_in_pages(site: Hub, tmp_path: Path) -> None:
    site.page = 2
    assert contents(hub.fetch(f"{NAME}@{COMMIT}:validation", tmp_path)) == [b"held out"]


def chosen(part: str, *paths: str) -> list[str]:
    files = [hub.RemoteFile(path, Expected(1, blob="0" * 40)) for path in paths]
    return [
        file.path for file in hub.choose(hub.Dataset("a/b", "main", tuple(part.split())), files)
    ]


def test_choice_of_files() -> None:
    assert chosen("", "a.txt", "b.jsonl", "c.parquet") == ["c.parquet"]
    assert chosen("", "a.txt", "b.jsonl.gz", "README.md") == ["b.jsonl.gz"]
    assert chosen("", "LICENSE.txt", ".hidden.txt", "z.txt", "y.txt") == ["y.txt", "z.txt"]
    assert chosen("", "data/test-0.parquet", "data/train-0.parquet") == ["data/train-0.parquet"]
    assert chosen("test", "constest.txt", "x/test.txt", "latest-1.txt") == ["x/test.txt"]
    assert chosen("en train", "en/train.txt", "de/train.txt") == ["en/train.txt"]
    # texts are asked too where no better kind has the part
    assert chosen("V2", "data/train.parquet", "V2-train.txt") == ["V2-train.txt"]
    with pytest.raises(Error, match="expected the files of one folder, found 'de', 'en'; .*a/b:de"):
        chosen("", "en/train.txt", "de/train.txt")
    with pytest.raises(Error, match="with fr in their path, found 'en/train.txt'"):
        chosen("fr", "en/train.txt")
    with pytest.raises(Error, match=r"expected .parquet, .jsonl or .txt files, found 'a.zip'"):
        chosen("", "a.zip")


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_connection_is_taken_up(site: Hub, tmp_path: Path, ranges: bool) -> None:
    site.ranges, site.break_after = ranges, [1_500_000, 300_000]
    found = hub.fetch(NAME, tmp_path, patience=QUICK)
    assert contents(found)[0] == BIG
    asked = [headers.get("Range") for headers in site.downloads()[:3]]
    second = "bytes=1800000-" if ranges else "bytes=300000-"
    assert asked == [None, "bytes=1500000-", second]


def test_a_later_call_goes_on(site: Hub, tmp_path: Path) -> None:
    site.break_after = [1000, 0, 0, 0]
    with pytest.raises(Error, match=r"no answer after 3 tries: broke off after 1000 of \d+ bytes"):
        hub.fetch(NAME, tmp_path, patience=QUICK)
    assert leftovers(tmp_path) == ["train-00000-of-00002.parquet.partial"]
    site.break_after = []
    assert contents(hub.fetch(NAME, tmp_path, patience=QUICK))[0] == BIG
    assert site.downloads()[-2]["Range"] == "bytes=1000-"
    assert not leftovers(tmp_path)


def test_progress_renews_patience(site: Hub, tmp_path: Path) -> None:
    site.break_after = [100] * 12
    assert contents(hub.fetch(NAME, tmp_path, patience=QUICK))[0] == BIG


def test_other_bytes_than_asked_for_are_not_taken(site: Hub, tmp_path: Path) -> None:
    site.break_after, site.wrong_start = [1000], True
    with pytest.raises(Error, match="asked for byte 1000, got '1001'"):
        hub.fetch(NAME, tmp_path, patience=QUICK)


def flipped(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


@pytest.mark.parametrize("name", ["data/validation-00000-of-00001.parquet", "notes.txt"])
def test_a_damaged_file_is_refused(site: Hub, tmp_path: Path, name: str) -> None:
    site.files = {name: b"precious words"}
    site.small = {"notes.txt"}
    site.damage = flipped
    kind = "git blob" if name in site.small else "sha256"
    with pytest.raises(Error, match=f"expected {kind} [0-9a-f]+, found [0-9a-f]+: the file is"):
        hub.fetch(NAME, tmp_path, patience=QUICK)
    assert len(site.downloads()) == 2 and not leftovers(tmp_path)
    site.damage = lambda data: data
    assert contents(hub.fetch(NAME, tmp_path, patience=QUICK)) == [b"precious words"]


def test_a_damaged_beginning_is_fetched_anew(site: Hub, tmp_path: Path) -> None:
    partial = tmp_path / "owner--stories" / COMMIT / "data" / "train-00000-of-00002.parquet.partial"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(b"x" * 1000)
    assert contents(hub.fetch(NAME, tmp_path, patience=QUICK))[0] == BIG
    (partial.with_suffix("")).unlink()
    partial.write_bytes(b"x" * (len(BIG) + 1))
    assert contents(hub.fetch(NAME, tmp_path, patience=QUICK))[0] == BIG


def test_a_busy_server_is_asked_again(site: Hub, tmp_path: Path) -> None:
    site.status = [503, 429]
    assert contents(hub.fetch(NAME, tmp_path, patience=QUICK)) == [BIG, b"second"]
    site.status = [500] * 3
    # what is known is used, as where there is no network at all
    assert contents(hub.fetch(NAME, tmp_path, patience=QUICK)) == [BIG, b"second"]


@pytest.mark.parametrize("token", ["", "wrong"])
def test_closed_datasets(
    site: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    site.token = "secret"
    monkeypatch.setenv("HF_TOKEN", token)
    state = "the token in HF_TOKEN does not open it" if token else "HF_TOKEN is not set"
    with pytest.raises(Error, match=f"private, gated or not there .{state}.: .*401") as caught:
        hub.fetch(NAME, tmp_path, patience=QUICK)
    assert len(site.requests) == 1 and "secret" not in str(caught.value)
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert contents(hub.fetch(NAME, tmp_path, patience=QUICK)) == [BIG, b"second"]


def test_the_token_stays_with_the_hub(
    site: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Hub()
    server, url = serve(other)
    site.elsewhere, site.token = url, "secret"
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert contents(hub.fetch(NAME, tmp_path, patience=QUICK)) == [BIG, b"second"]
    server.shutdown()
    server.server_close()
    assert len(other.requests) == 2
    assert all("Authorization" not in headers for _, headers in other.requests)
    assert all(headers["Authorization"] == "Bearer secret" for _, headers in site.requests)


def test_what_is_not_there(site: Hub, tmp_path: Path) -> None:
    with pytest.raises(Error, match="expected a dataset with a revision 'main'.*found none.*404"):
        hub.fetch("owner/other", tmp_path, patience=QUICK)
    with pytest.raises(Error, match="a revision 'v9'"):
        hub.fetch(f"{NAME}@v9", tmp_path, patience=QUICK)
    with pytest.raises(Error, match="expected owner/name"):
        hub.fetch("stories", tmp_path, patience=QUICK)
    assert not list(tmp_path.iterdir())


def test_the_hubs_parquet_copy_is_second_best(site: Hub, tmp_path: Path) -> None:
    site.files = {"script.py": b"", "data.zip": b"zip"}
    with pytest.raises(Error, match=r"expected .parquet, .jsonl or .txt files, found 'script.py'"):
        hub.fetch(NAME, tmp_path, patience=QUICK)
    asked = [path for path, _ in site.requests if "revision" in path]
    assert asked[-1].endswith("/revision/refs/convert/parquet")


def test_without_a_network(site: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = hub.fetch(NAME, tmp_path, patience=QUICK)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    assert hub.fetch(NAME, tmp_path, patience=QUICK) == fetched
    with pytest.raises(Error, match="the Hugging Face Hub is out of reach, and nothing of this"):
        hub.fetch(NAME, tmp_path / "empty", patience=QUICK)
    with pytest.raises(Error, match="no answer after 3 tries"):
        hub.fetch(f"{NAME}:validation", tmp_path, patience=QUICK)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert hub.fetch(NAME, tmp_path, patience=QUICK) == fetched
    with pytest.raises(Error, match="validation.* is not in .*, and HF_HUB_OFFLINE is set"):
        hub.fetch(f"{NAME}:validation", tmp_path, patience=QUICK)
    with pytest.raises(Error, match="nothing of it is in .*, and HF_HUB_OFFLINE is set"):
        hub.fetch("owner/other", tmp_path, patience=QUICK)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"path": "../evil.txt"}, "expected the path of a file below it, found '../evil.txt'"),
        ({"path": "/etc/evil.txt"}, "expected the path of a file below it"),
        ({"size": -1}, "expected a size in bytes, found -1"),
        ({"oid": "zz"}, "expected a digest, found 'zz'"),
    ],
)
def test_a_hostile_listing(
    site: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entry: dict[str, Any], message: str
) -> None:
    good = {"type": "file", "path": "a.txt", "size": 1, "oid": "0" * 40}
    monkeypatch.setattr(Hub, "tree", lambda _: [good | entry])
    with pytest.raises(Error, match=message):
        hub.fetch(NAME, tmp_path / "in", patience=QUICK)
    assert [path.name for path in tmp_path.rglob("*.txt")] == []


def test_no_hub_at_all(site: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub.download, "read", lambda *_: (b"<html>Log in to this WLAN", ""))
    with pytest.raises(Error, match="expected JSON, found .*WLAN.*: is it the Hub"):
        hub.fetch(NAME, tmp_path, patience=QUICK)


def test_a_full_disk_loses_nothing(
    site: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("gptoss.train.data.download.os.fsync", full)
        with pytest.raises(OSError, match="No space left"):
            hub.fetch(NAME, tmp_path, patience=QUICK)
    assert leftovers(tmp_path) == ["train-00000-of-00002.parquet.partial"]
    assert not list(tmp_path.rglob("*.parquet"))
    assert contents(hub.fetch(NAME, tmp_path, patience=QUICK)) == [BIG, b"second"]
