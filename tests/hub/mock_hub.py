"""A Hugging Face Hub on this machine, which breaks off, lies and refuses as it is told to."""

import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = (".safetensors", ".gguf", "tokenizer.json", ".bin")  # kept apart from git, as LFS does


class Hub:
    """repositories: {"owner/name": {file: bytes}}.

    refusals: [(pattern of a path, status, headers, how often)], the first that fits is used.
    break_after: of each of the next downloads of weights, how many bytes come before the
    connection ends. sizes, contents: files about which it lies. ignores_range: sends all again.
    description: what it says of every repository, in place of the truth. commit: of all files.
    asked: (method, path, Range) of every request. before_file: called before a file is sent.
    """

    def __init__(self):
        self.repositories = {}
        self.refusals = []
        self.break_after = []
        self.sizes, self.contents = {}, {}
        self.ignores_range = False
        self.asked = []
        self.before_file = lambda name: None
        self.gguf = self.description = None
        self.commit = COMMIT

    def refuse(self, pattern, status, times=10**9, **headers):
        self.refusals.append([pattern, status, headers, times])

    def files_asked(self):
        """The names of the files of which anything was asked, without repetition."""
        found = [re.search(r"/resolve/[^/]+/(.+)$", path) for _, path, _ in self.asked]
        return list(dict.fromkeys(match[1] for match in found if match))


def blob_of(name, data):
    if name.endswith(LARGE):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        hub = self.server.hub
        path = unquote(urlsplit(self.path).path)
        hub.asked.append((self.command, path, self.headers.get("Range")))
        for refusal in hub.refusals:
            pattern, status, headers, times = refusal
            if times and re.search(pattern, path):
                refusal[3] -= 1
                headers = {name.replace("_", "-"): value for name, value in headers.items()}
                return self.answer(status, b'{"error":"no"}', headers)
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            return self.describe(match[1], match[2] or "main")
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            repo, _, name = match.groups()
            data = hub.repositories.get(repo, {}).get(name)
            if data is None:
                return self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
            # What huggingface_hub reads of an answer to HEAD.
            blob = blob_of(name, data)
            named = {"X-Repo-Commit": hub.commit, "ETag": f'"{blob}"'}
            if name.endswith(LARGE):  # from elsewhere, as from its CDN
                named |= {"X-Linked-Size": str(len(data)), "X-Linked-Etag": f'"{blob}"'}
                port = self.server.server_port
                cdn = f"http://localhost:{port}/cdn/{repo}/{name}"
                return self.answer(302, b"", {"Location": cdn, **named})
            return self.send(name, data, named)
        if match := re.fullmatch(r"/cdn/([^/]+/[^/]+)/(.+)", path):
            return self.send(match[2], hub.repositories[match[1]][match[2]], {}, breaks=True)
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/[^/]+", path):
            entries = [
                {"type": "file", "path": name, "size": len(data), "oid": blob_of("x", data),
                 **({"lfs": {"oid": blob_of(name, data), "size": len(data), "pointerSize": 130}}
                    if name.endswith(LARGE) else {})}
                for name, data in hub.repositories[match[1]].items()
            ]  # fmt: skip
            kind = {"Content-Type": "application/json"}
            return self.answer(200, json.dumps(entries).encode(), kind)
        return self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})

    def describe(self, repo, revision):
        hub = self.server.hub
        found = hub.repositories.get(repo)
        if hub.description is not None:
            return self.answer(200, hub.description, {"Content-Type": "application/json"})
        if found is None:
            return self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        if revision not in ("main", hub.commit, "v1"):
            return self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        siblings = []
        for name, data in found.items():
            size = hub.sizes.get(name, len(data))
            entry = {"rfilename": name, "size": size, "blobId": blob_of("x", data)}
            if name.endswith(LARGE):
                sha = blob_of(name, data)
                entry["lfs"] = {"sha256": sha, "size": size, "pointerSize": 130}
            siblings.append(entry)
        body = {"id": repo, "modelId": repo, "sha": hub.commit, "siblings": siblings, "tags": []}
        if hub.gguf is not None:
            body["gguf"] = hub.gguf
        return self.answer(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def send(self, name, data, headers, breaks=False):
        hub = self.server.hub
        hub.before_file(name)
        data = hub.contents.get(name, data)
        begin, status, headers = 0, 200, dict(headers)
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if asked and not hub.ignores_range:
            begin = int(asked[1])
            if begin >= len(data):
                return self.answer(416, b"", {})
            status = 206
            headers["Content-Range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
        rest = data[begin:]
        breaks = breaks and hub.break_after and name.endswith((".safetensors", ".gguf"))
        most = hub.break_after.pop(0) if breaks else None
        self.answer(status, rest, headers, most)

    def answer(self, status, body, headers, most=None):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body if most is None else body[:most])
        if most is not None:
            self.close_connection = True


@contextmanager
def running(hub):
    """The address at which a hub answers."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    server.hub = hub
    thread = threading.Thread(target=server.serve_forever, args=[0.01], daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
