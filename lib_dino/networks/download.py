"""Fetching a published network: resumable, checked, whole or not at all, by one process at a time.

The WebUIs' own downloader (`torch.hub`'s) starts over after every break, and `huggingface_hub` keeps files under names
and in folders of its own choosing; so this is the standard library, to the same place and name as either would.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import http.client
import os
import re
import shutil
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final

from ..errors import ModelError

Told = Callable[[int, int], None]
"""Told how many bytes are there, out of how many; 0 when that is unknown. What it raises ends the download."""

TIMEOUT_S: Final = 30.0
TRIES: Final = 5  # in a row that bring nothing
_BLOCK: Final = 1 << 20
_TELL_S: Final = 0.3
_BREAKS: Final = (http.client.HTTPException, urllib.error.URLError, ssl.SSLError, ConnectionError, TimeoutError)
_SHA256: Final = re.compile(r"[0-9a-fA-F]{64}")


def fetch(
    url: str,
    target: Path,
    *,
    sha256: str | None,
    told: Told,
    check: Callable[[Path], Any] | None = None,
    pause_s: float = 1.0,
) -> Path:
    """`target`, with what `url` holds in it; what came of an unfinished download stays beside it for the next try.

    Args:
        sha256: the checksum; None asks the server for the one it states.
        told: see `Told`.
        check: where nobody states a checksum, raises for a file that is not what was wanted.
        pause_s: before trying again after a break, seconds; grows with every try.

    Raises:
        ModelError: it could not be had, with the reason; `target` is not there then.
    """
    # A part belongs to one address: another revision must not be continued with it.
    part = target.with_name(f"{target.name}.{hashlib.sha256(url.encode()).hexdigest()[:8]}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _alone(target, lambda: told(_size(part), 0)):
            if not target.is_file():  # else another process was faster
                checksum = sha256 or _stated_checksum(url)
                _complete(url, part, told, pause_s)
                _accept(part, checksum, check)
                os.replace(part, target)
    except OSError as error:
        raise ModelError(_disk_words(error, target)) from error
    return target


@contextlib.contextmanager
def _alone(target: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """No other process is at `target` inside the block."""
    from filelock import FileLock, Timeout  # comes with torch

    path = target.with_name(f".{target.name}.lock")
    lock = FileLock(path)
    while not lock.is_locked:
        try:
            lock.acquire(timeout=_TELL_S)
        except Timeout:
            waiting()
    try:
        yield
        # Whoever still waits finds the finished file. Windows does not remove what is open.
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
    finally:
        lock.release()


def _accept(part: Path, sha256: str | None, check: Callable[[Path], Any] | None) -> None:
    """Check the finished part, and remove it where it is not the file asked for."""
    try:
        if sha256 is not None and (found := _sha256(part)) != sha256.lower():
            raise ModelError(f"its SHA-256 is {found}, it should be {sha256}; what came was removed")
        if sha256 is None and check is None:
            raise ModelError("the server states no checksum to hold it to")
        if sha256 is None and check is not None:
            check(part)
    except ModelError:
        part.unlink(missing_ok=True)
        raise


def _complete(url: str, part: Path, told: Told, pause_s: float) -> None:
    """Have `part` hold everything, going on after breaks as long as each try brings something."""
    idle = 0
    while True:
        before = _size(part)
        try:
            if _one_try(url, part, told):
                return
            reason: object = "the connection broke"
        except _BREAKS as error:
            _give_up_at_once(error)
            reason = getattr(error, "reason", error)
        idle = 0 if _size(part) > before else idle + 1
        if idle >= TRIES:
            kept = f"; {_megabytes(_size(part))} MB came and stay for the next try" if _size(part) else ""
            raise ModelError(f"{reason or 'the connection broke'}, {TRIES} times in a row{kept}")
        _wait(pause_s * idle, part, told)


def _wait(seconds: float, part: Path, told: Told) -> None:
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        told(_size(part), 0)
        time.sleep(min(left, _TELL_S))


def _give_up_at_once(error: Exception) -> None:
    """Raise what trying again cannot mend."""
    if isinstance(error, urllib.error.HTTPError) and error.code < 500 and error.code not in (408, 416, 429):
        wish = " Set HF_TOKEN to a token that may read it." if error.code in (401, 403) else ""
        raise ModelError(f"the server answers {error.code} {error.reason}.{wish}") from error


def _one_try(url: str, part: Path, told: Told) -> bool:
    """Ask for what is missing and append what comes; whether that was all of it."""
    have = _size(part)
    request = _request(url)
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        reply = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:
            raise
        # Nothing is left to send: either all is there, or more than all.
        if _total(error.headers.get("Content-Range")) == have:
            return True
        part.unlink()
        return False
    with reply:
        start, total = _span(reply, have)
        _refuse_pages(reply.headers.get("Content-Type", ""))
        _refuse_full_disk(part.parent, total - start)
        with part.open("r+b" if start else "wb") as file:
            file.seek(start)
            done = _pour(reply, file, start, total, told)
    return done == total if total else True


def _request(url: str) -> urllib.request.Request:
    request = urllib.request.Request(url, headers={"Accept-Encoding": "identity"})
    if token := os.environ.get("HF_TOKEN"):
        # For this address alone: the storage that it redirects to must not see it.
        request.add_unredirected_header("Authorization", f"Bearer {token.strip()}")
    return request


def _span(reply: Any, have: int) -> tuple[int, int]:
    """Offset in the file at which the reply begins, and the file's size; 0 where it is not stated."""
    length = int(reply.headers.get("Content-Length") or 0)
    if reply.status != 206:  # the server cannot continue, so it starts over
        return 0, length
    begin = re.match(r"bytes (\d+)-", reply.headers.get("Content-Range", ""))
    if begin is None or int(begin[1]) != have:
        raise ModelError("the server sent another part of the file than was asked for; try another HF_ENDPOINT")
    return have, _total(reply.headers["Content-Range"]) or have + length


def _total(content_range: str | None) -> int:
    found = re.search(r"/(\d+)$", content_range or "")
    return int(found[1]) if found else 0


def _refuse_pages(kind: str) -> None:
    if kind.lower().startswith("text/html"):
        raise ModelError("a web page came instead of the file: log in to the network, or look at HF_ENDPOINT")


def _refuse_full_disk(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ModelError(f"{_megabytes(needed)} MB more are needed, {folder} has {_megabytes(free)} MB free. Make room")


def _pour(reply: Any, file: BinaryIO, done: int, total: int, told: Told) -> int:
    """Write all that comes to `file`; how much of the whole is there then."""
    said = 0.0
    told(done, total)
    while block := reply.read1(_BLOCK):
        file.write(block)
        done += len(block)
        if time.monotonic() - said > _TELL_S:
            said = time.monotonic()
            told(done, total)
    return done


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        """None: the answer that redirects is the one with the checksum."""


def _stated_checksum(url: str) -> str | None:
    """The SHA-256 that the server promises for a file; None when it does not say."""
    request = _request(url)
    request.method = "HEAD"
    try:
        headers = urllib.request.build_opener(_NoRedirect).open(request, timeout=TIMEOUT_S).headers
    except urllib.error.HTTPError as error:
        if error.code in (401, 403, 404, 410):
            _give_up_at_once(error)
        headers = error.headers
    except _BREAKS as error:
        raise ModelError(str(getattr(error, "reason", error))) from error
    tag = str(headers.get("X-Linked-Etag", "")).strip('"')
    return tag if _SHA256.fullmatch(tag) else None


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _disk_words(error: OSError, target: Path) -> str:
    if error.errno == errno.ENOSPC:
        return f"the disk of {target.parent} is full; what came stays for the next try. Make room"
    return f"{target.parent} cannot be written to: {error.strerror or error}"


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.0f}"
