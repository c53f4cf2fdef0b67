"""Files over HTTP, whole or not at all: resumed where they broke off, checked, then renamed."""

from __future__ import annotations

import hashlib
import http.client
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from gptoss.errors import Error, shown
from gptoss.files import reason

CHUNK = 1 << 20  # bytes
TIMEOUT = 30.0  # seconds without a byte
PARTIAL = ".partial"
_BUSY = (408, 429, 500, 502, 503, 504)  # answers that may be others a little later
_LONGEST_PAUSE = 60.0  # seconds


@dataclass(frozen=True)
class Patience:
    """`attempts`: how often in a row nothing may come; `pause`: seconds before the second try.

    The pause doubles with each try. A try that brought bytes counts as none.
    """

    attempts: int = 6
    pause: float = 1.0

    def wait(self, failed: int, asked: float = 0.0) -> None:
        """Sleeps after the `failed`-th failure in a row; at least as long as the server `asked`."""
        time.sleep(min(_LONGEST_PAUSE, max(asked, self.pause * 2.0 ** (failed - 1))))


DEFAULT = Patience()


@dataclass(frozen=True)
class Expected:
    """What a file has to be: its size in bytes, and one of the two digests (hex).

    `sha256` is of the bytes; `blob` is git's SHA-1 of a blob, for files that git keeps itself.
    """

    size: int
    sha256: str = ""
    blob: str = ""

    def objection(self, path: Path) -> str | None:
        """What is wrong with the file at `path`, or None."""
        size = path.stat().st_size
        if size != self.size:
            return f"expected {self.size} bytes, found {size}"
        name, digest = ("sha256", hashlib.sha256()) if self.sha256 else ("git blob", hashlib.sha1())
        if not self.sha256:
            digest.update(b"blob %d\0" % size)
        with path.open("rb") as file:
            while part := file.read(CHUNK):
                digest.update(part)
        wanted, found = self.sha256 or self.blob, digest.hexdigest()
        return None if wanted == found else f"expected {name} {wanted}, found {found}"


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to other hosts without the token, which is not for them."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        # 308 is 301 to Python 3.10's urllib, which does not know it
        found = super().redirect_request(
            req, fp, 301 if code == 308 else code, msg, headers, newurl
        )
        before, after = urlsplit(req.full_url), urlsplit(newurl)
        if found is not None and (before.scheme, before.netloc) != (after.scheme, after.netloc):
            found.remove_header("Authorization")
        return found

    http_error_308 = urllib.request.HTTPRedirectHandler.http_error_302


_OPENER = urllib.request.build_opener(_Redirects)


@contextmanager
def answer(url: str, token: str = "", start: int = 0) -> Iterator[http.client.HTTPResponse]:
    """The server's answer to a GET of `url`, from byte `start` on. Raises what urllib raises."""
    request = urllib.request.Request(url, headers={"User-Agent": "gptoss"})
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    if start:
        request.add_header("Range", f"bytes={start}-")
    with _OPENER.open(request, timeout=TIMEOUT) as response:
        yield response


def read(url: str, token: str = "", patience: Patience = DEFAULT) -> tuple[bytes, str]:
    """A short answer, and its Link header. Raises Refused or Unreachable."""

    def whole() -> tuple[bytes, str]:
        with answer(url, token) as response:
            return response.read(), response.headers.get("Link", "")

    return _persist(whole, url, patience, lambda: 0)


def fetch(
    url: str,
    target: Path,
    expected: Expected,
    *,
    token: str = "",
    patience: Patience = DEFAULT,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Brings `url` to `target`; one that is there already is taken as it is if its size is right.

    Until all is there and checked it lies at `target`.partial, where a later call goes on. Raises
    Error where the server refuses, stays silent, or sends something else twice; OSError for a full
    disk (what has come is kept).
    """
    if target.is_file() and target.stat().st_size == expected.size:
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + PARTIAL)

    def so_far() -> int:
        return partial.stat().st_size if partial.exists() else 0

    def rest() -> None:
        _append(url, partial, expected.size, token, progress)

    for last in (False, True):
        if so_far() > expected.size:
            partial.unlink()
        if not partial.exists() or so_far() < expected.size:
            _persist(rest, url, patience, so_far)
        wrong = expected.objection(partial)
        if wrong is None:
            os.replace(partial, target)
            return target
        partial.unlink()  # a wrong file cannot be resumed
        if last:
            raise Error(f"{url}: {wrong}: the file is damaged there, or on its way")
    raise AssertionError("unreachable")


def _append(
    url: str,
    partial: Path,
    size: int,
    token: str,
    progress: Callable[[int, int], None] | None,
) -> None:
    """One try to bring what is missing. Raises ConnectionError where it breaks off."""
    start = partial.stat().st_size if partial.exists() else 0
    with answer(url, token, start) as response:
        resumed = response.status == 206
        if resumed:
            begin = response.headers.get("Content-Range", "").removeprefix("bytes ").split("-")[0]
            if begin != str(start):
                raise ConnectionError(f"asked for byte {start}, got {shown(begin)}")
        with partial.open("ab" if resumed else "wb") as file:  # 200: all of it from the beginning
            done = start if resumed else 0
            while done <= size and (part := response.read(CHUNK)):
                file.write(part)
                done += len(part)
                if progress is not None:
                    progress(min(done, size), size)
            file.flush()
            os.fsync(file.fileno())
    if done < size:
        raise ConnectionError(f"broke off after {done} of {size} bytes")


class Refused(Error):
    """The server has refused. `status`: 401, 403, 404, …"""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Unreachable(Error):
    """No complete answer came, however often we asked."""


def _persist(
    work: Callable[[], Any], url: str, patience: Patience, so_far: Callable[[], int]
) -> Any:
    """`work()`, again and again while the network fails. Raises Refused or Unreachable."""
    failed, before = 0, so_far()
    while True:
        asked = 0.0
        try:
            return work()
        except urllib.error.HTTPError as error:
            error.close()
            if error.code not in _BUSY:
                raise Refused(f"{url}: {error.code} {error.reason}", error.code) from None
            pause = error.headers.get("Retry-After", "")
            asked = float(pause) if pause.isdigit() else 0.0
            why = f"{error.code} {error.reason}"
        except (
            urllib.error.URLError,
            http.client.HTTPException,
            ConnectionError,
            TimeoutError,
        ) as e:
            cause = getattr(e, "reason", e)
            why = reason(cause) if isinstance(cause, Exception) else str(cause)
        now = so_far()
        failed = 1 if now > before else failed + 1
        before = now
        if failed >= patience.attempts:
            raise Unreachable(f"{url}: no answer after {failed} tries: {why}")
        patience.wait(failed, asked)
