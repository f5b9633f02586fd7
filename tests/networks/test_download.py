import contextlib
import errno
import hashlib
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from lib_dino.errors import ModelError
from lib_dino.networks import download
from lib_dino.networks.download import fetch
from lib_dino.networks.hub import PUBLISHED

CONTENT = bytes(i * 7 % 251 for i in range(100_000))
CHECKSUM = hashlib.sha256(CONTENT).hexdigest()
QUIET = {"told": lambda done, total: None, "pause_s": 0.0}


class Server:
    """A file server with a redirect in front of it, as Hugging Face has; attributes make it misbehave."""

    def __init__(self):
        self.asked, self.cuts, self.status, self.ranges = [], [], 200, True
        self.stated, self.kind, self.shift, self.body = CHECKSUM, "application/octet-stream", 0, CONTENT
        self.length = True

    def get(self, handler):
        if handler.path == "/hub":
            handler.send_response(302)
            handler.send_header("Location", f"http://localhost:{handler.server.server_port}/storage")
            if self.stated:
                handler.send_header("X-Linked-Etag", f'"{self.stated}"')
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        self.send(handler)

    def send(self, handler):
        asked = handler.headers.get("Range", "") if self.ranges else ""
        start = int(asked[6:-1]) if asked else 0
        if self.status != 200 or start >= len(self.body):
            handler.send_response(self.status if self.status != 200 else 416)
            handler.send_header("Content-Range", f"bytes */{len(self.body)}")
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        handler.send_response(206 if asked else 200)
        handler.send_header("Content-Type", self.kind)
        if asked:
            handler.send_header("Content-Range", f"bytes {start + self.shift}-{len(self.body) - 1}/{len(self.body)}")
        if self.length:
            handler.send_header("Content-Length", str(len(self.body) - start))
        handler.end_headers()
        cut = self.cuts.pop(0) if self.cuts else len(self.body)
        with contextlib.suppress(ConnectionError):
            handler.wfile.write(self.body[start : start + cut])


@pytest.fixture
def server():
    held = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            held.asked.append((self.command, self.path, dict(self.headers)))
            held.get(self)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.005,))
        thread.start()
        held.url = f"http://127.0.0.1:{http.server_port}/hub"
        yield held
        http.shutdown()
        thread.join()


@pytest.fixture
def target(tmp_path):
    return tmp_path / "models" / "dinov2" / "net.safetensors"


def parts(target):
    return list(target.parent.glob("*.part"))


def ranges(server):
    return [headers.get("Range") for command, path, headers in server.asked if path == "/storage"]


def test_a_file_arrives_whole_with_nothing_left_beside_it(server, target):
    assert fetch(server.url, target, sha256=CHECKSUM, **QUIET) == target
    assert target.read_bytes() == CONTENT
    assert [p.name for p in target.parent.iterdir()] == [target.name]


def test_a_broken_connection_goes_on_where_it_broke(server, target):
    server.cuts = [30_000, 30_000]
    fetch(server.url, target, sha256=CHECKSUM, **QUIET)
    assert target.read_bytes() == CONTENT
    assert ranges(server) == [None, "bytes=30000-", "bytes=60000-"]


def test_the_next_call_goes_on_where_the_last_one_gave_up(server, target):
    server.cuts = [40_000] + [0] * download.TRIES
    with pytest.raises(ModelError, match="stay for the next try"):
        fetch(server.url, target, sha256=CHECKSUM, **QUIET)
    assert not target.exists() and parts(target)[0].read_bytes() == CONTENT[:40_000]
    server.asked.clear()
    fetch(server.url, target, sha256=CHECKSUM, **QUIET)
    assert target.read_bytes() == CONTENT and not parts(target)
    assert ranges(server) == ["bytes=40000-"]


def test_a_server_that_cannot_continue_starts_over(server, target):
    server.cuts, server.ranges = [30_000], False
    fetch(server.url, target, sha256=CHECKSUM, **QUIET)
    assert target.read_bytes() == CONTENT


def test_a_server_that_continues_elsewhere_is_not_believed(server, target):
    server.cuts, server.shift = [30_000], 5
    with pytest.raises(ModelError, match="another part"):
        fetch(server.url, target, sha256=CHECKSUM, **QUIET)
    assert not target.exists()


def test_a_part_that_is_whole_already_is_checked_and_used(server, target):
    server.cuts = [99_999] + [0] * download.TRIES
    with pytest.raises(ModelError):
        fetch(server.url, target, sha256=CHECKSUM, **QUIET)
    [part] = parts(target)
    part.write_bytes(CONTENT)
    fetch(server.url, target, sha256=CHECKSUM, **QUIET)
    assert target.read_bytes() == CONTENT


def test_a_part_that_is_too_long_is_thrown_away(server, target):
    server.cuts = [10] + [0] * download.TRIES
    with pytest.raises(ModelError):
        fetch(server.url, target, sha256=CHECKSUM, **QUIET)
    parts(target)[0].write_bytes(CONTENT + b"more")
    fetch(server.url, target, sha256=CHECKSUM, **QUIET)
    assert target.read_bytes() == CONTENT


def test_a_part_of_another_address_is_not_continued(server, target):
    target.parent.mkdir(parents=True)
    target.with_name(target.name + ".01234567.part").write_bytes(b"x" * 500)
    fetch(server.url, target, sha256=CHECKSUM, **QUIET)
    assert ranges(server) == [None]


@pytest.mark.parametrize("known", [True, False])
def test_another_checksum_is_refused_and_removed(server, target, known):
    server.body = CONTENT[:-1] + b"?"
    with pytest.raises(ModelError, match=f"should be {CHECKSUM}"):
        fetch(server.url, target, sha256=CHECKSUM if known else None, **QUIET)
    assert not target.exists() and not parts(target)


def test_the_servers_own_checksum_is_taken_where_none_is_known(server, target):
    fetch(server.url, target, sha256=None, **QUIET)
    assert target.read_bytes() == CONTENT
    assert server.asked[0][:2] == ("HEAD", "/hub")


@pytest.mark.parametrize("stated", [None, "abc123", "g" * 64])
def test_without_any_checksum_the_file_itself_is_looked_at(server, target, stated):
    server.stated = stated
    looked = []
    fetch(server.url, target, sha256=None, check=lambda path: looked.append(path.read_bytes()), **QUIET)
    assert looked == [CONTENT] and target.read_bytes() == CONTENT
    target.unlink()

    def refuse(path):
        raise ModelError("no DINOv2")

    for check in (refuse, None):
        with pytest.raises(ModelError, match="no DINOv2" if check else "states no checksum"):
            fetch(server.url, target, sha256=None, check=check, **QUIET)
        assert not target.exists() and not parts(target)


@pytest.mark.parametrize(("status", "word"), [(404, "404"), (401, "HF_TOKEN"), (403, "HF_TOKEN")])
def test_what_trying_again_cannot_mend_is_said_at_once(server, target, status, word):
    server.status = status
    with pytest.raises(ModelError, match=word):
        fetch(server.url, target, sha256=CHECKSUM, **QUIET)
    assert len(ranges(server)) == 1


def test_an_overloaded_server_is_tried_again_but_not_for_ever(server, target):
    server.status = 503
    with pytest.raises(ModelError, match="Service Unavailable"):
        fetch(server.url, target, sha256=CHECKSUM, **QUIET)
    assert len(ranges(server)) == download.TRIES


def test_a_page_to_log_in_is_not_taken_for_weights(server, target):
    server.kind = "text/html; charset=utf-8"
    with pytest.raises(ModelError, match="web page"):
        fetch(server.url, target, sha256=CHECKSUM, **QUIET)
    assert not parts(target)


def test_nobody_at_the_address_is_said(target):
    with pytest.raises(ModelError, match="refused"):
        fetch("http://127.0.0.1:9/x", target, sha256=CHECKSUM, **QUIET)


def test_the_token_goes_to_the_hub_and_not_to_the_storage_behind_it(server, target, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    fetch(server.url, target, sha256=None, **QUIET)
    seen = {path: headers.get("Authorization") for command, path, headers in server.asked}
    assert seen == {"/hub": "Bearer hf_secret", "/storage": None}


def test_a_full_disk_is_noticed_before_it_is_full(server, target, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(ModelError, match="Make room"):
        fetch(server.url, target, sha256=CHECKSUM, **QUIET)


def test_a_disk_that_fills_up_leaves_what_came(server, target, monkeypatch):
    def pour(reply, file, done, total, told):
        file.write(CONTENT[:20_000])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(download, "_pour", pour)
    with pytest.raises(ModelError, match=r"disk .* is full"):
        fetch(server.url, target, sha256=CHECKSUM, **QUIET)
    monkeypatch.undo()
    fetch(server.url, target, sha256=CHECKSUM, **QUIET)
    assert ranges(server)[-1] == "bytes=20000-" and target.read_bytes() == CONTENT


def test_a_folder_that_cannot_be_made_is_named(server, tmp_path):
    (tmp_path / "models").write_text("a file")
    with pytest.raises(ModelError, match="models"):
        fetch(server.url, tmp_path / "models" / "net.safetensors", sha256=CHECKSUM, **QUIET)


def test_progress_is_told_and_can_end_it(server, target):
    told = []
    server.cuts = [30_000]
    fetch(server.url, target, sha256=CHECKSUM, told=lambda *seen: told.append(seen), pause_s=0.0)
    assert (0, 100_000) in told and (30_000, 100_000) in told
    target.unlink()

    def stop(done, total):
        raise ModelError("interrupted")

    with pytest.raises(ModelError, match="interrupted"):
        fetch(server.url, target, sha256=CHECKSUM, told=stop)


def test_a_length_that_is_not_stated_is_no_obstacle(server, target):
    server.length = False
    fetch(server.url, target, sha256=CHECKSUM, **QUIET)
    assert target.read_bytes() == CONTENT


def test_two_at_once_fetch_it_once(server, target):
    def one():
        results.append(fetch(server.url, target, sha256=CHECKSUM, **QUIET))

    results = []
    threads = [threading.Thread(target=one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [target] * 4 and target.read_bytes() == CONTENT
    assert len(ranges(server)) == 1


def test_other_processes_wait_too(server, target):
    code = (
        "import sys; from pathlib import Path; from lib_dino.networks.download import fetch; "
        "fetch(sys.argv[1], Path(sys.argv[2]), sha256=sys.argv[3], told=lambda done, total: None)"
    )
    command = [sys.executable, "-c", code, server.url, str(target), CHECKSUM]
    root = Path(download.__file__).parents[2]
    running = [subprocess.Popen(command, cwd=root) for _ in range(2)]
    assert [process.wait(20) for process in running] == [0, 0]
    assert target.read_bytes() == CONTENT and len(ranges(server)) == 1


def test_the_published_networks_are_pinned():
    for name, published in PUBLISHED.items():
        assert published.repository == f"facebook/{name}"
        assert len(published.revision) == 40
        assert published.sha256 is None or len(published.sha256) == 64
    assert len({p.sha256 for p in PUBLISHED.values() if p.sha256}) >= 4


def test_a_mirror_can_be_named(monkeypatch):
    url = PUBLISHED["dinov2-small"].url
    assert url.startswith("https://huggingface.co/facebook/dinov2-small/resolve/ed25f3a3")
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example/")
    assert PUBLISHED["dinov2-small"].url == url.replace("huggingface.co", "mirror.example")
