"""Downloads from a real server on this machine: resume, mirrors, hashes."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from fssbench.errors import UserError
from fssbench.preparation.fetch import Source, fetch, verify

CONTENT = bytes(range(256)) * 4000
SHA = hashlib.sha256(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """/whole serves everything, /ranges resumes, /breaks stops half-way, /wrong is another file."""

    seen: list[tuple[str, str | None]]

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.seen.append((self.path, wanted))
        content = CONTENT[::-1] if self.path == "/wrong" else CONTENT
        start = int(wanted[6:-1]) if wanted and self.path == "/ranges" else 0
        if start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        body = content[start:]
        self.wfile.write(body[: len(body) // 2] if self.path == "/breaks" else body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[str]:
    Handler.seen = []
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    httpd.server_close()


def source(*urls: str, digest: tuple[str, str] | None = ("sha256", SHA)) -> Source:
    return Source("file.bin", ("file.bin",), urls, digest, "https://example.org")


def test_a_file_is_downloaded_once(server: str, tmp_path: Path) -> None:
    path = fetch(source(f"{server}/whole"), tmp_path)
    assert path.read_bytes() == CONTENT
    fetch(source(f"{server}/whole"), tmp_path)
    assert len(Handler.seen) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["file.bin"]


@pytest.mark.parametrize("have", [1000, len(CONTENT)])
@pytest.mark.parametrize("path", ["ranges", "whole"])
def test_it_goes_on_where_it_stopped(server: str, path: str, have: int, tmp_path: Path) -> None:
    (tmp_path / "file.bin.part").write_bytes(CONTENT[:have])
    assert fetch(source(f"{server}/{path}"), tmp_path).read_bytes() == CONTENT
    assert Handler.seen[0] == (f"/{path}", f"bytes={have}-")


def test_a_broken_connection_leaves_a_part_to_go_on_from(server: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="goes on where it stopped"):
        fetch(source(f"{server}/breaks"), tmp_path)
    assert (tmp_path / "file.bin.part").stat().st_size == len(CONTENT) // 2
    assert not (tmp_path / "file.bin").exists()
    assert fetch(source(f"{server}/ranges"), tmp_path).read_bytes() == CONTENT


def test_mirrors_are_tried_in_turn(server: str, tmp_path: Path) -> None:
    urls = (f"{server}/wrong", "http://127.0.0.1:9/nobody", f"{server}/whole")
    assert fetch(source(*urls), tmp_path).read_bytes() == CONTENT


def test_a_wrong_hash_leaves_nothing(server: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Cannot download file\.bin.*SHA256 is .* expected"):
        fetch(source(f"{server}/wrong"), tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file.bin").write_bytes(b"cut")
    with pytest.raises(UserError, match="damaged, cut off or another file"):
        fetch(source(f"{server}/whole"), tmp_path)


def test_what_cannot_be_downloaded_says_where_it_is(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"from https://example\.org and name it with --from"):
        fetch(source(), tmp_path)
    with pytest.raises(UserError, match="Cannot read"):
        verify(tmp_path / "none", source())


def test_without_a_stated_hash_the_found_one_is_told(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(CONTENT)
    assert verify(tmp_path / "a", source(digest=None)) == f"sha256:{SHA}"
    md5 = hashlib.md5(CONTENT).hexdigest()
    assert verify(tmp_path / "a", source(digest=("md5", md5))) == f"md5:{md5}"
