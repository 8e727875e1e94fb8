"""FMA's archives, from a server on this machine."""

import hashlib
import http.server
import io
import threading
import zipfile

import numpy as np
import pytest

from mgc_jax.datasets import download
from mgc_jax.errors import InputError


def content_of(i):
    return np.random.default_rng(i).bytes(150_000)


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves `content`, in ranges; ends the connection after `budget` bytes."""

    def do_GET(self):  # noqa: N802
        server, content = self.server, self.server.content
        start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        server.starts.append(start)
        if self.path != "/fma/fma_small.zip":
            self.send_error(404)
            return
        if start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if server.ranges else 200)
        rest = content[start if server.ranges else 0 :]
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        self.wfile.write(rest[: server.budget])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for i in range(3):
            file.writestr(f"fma_small/000/00000{i}.mp3", content_of(i))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.content, server.starts = archive.getvalue(), []
        server.budget, server.ranges = 10**9, True
        server.address = f"http://127.0.0.1:{server.server_port}/fma"
        digest = hashlib.sha1(server.content).hexdigest()
        monkeypatch.setitem(download.SHA1, "fma_small", digest)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_fetches_once_and_unpacks(server, tmp_path):
    folder = download.fetch("fma_small", tmp_path, address=server.address)
    assert folder.name == "fma_small"
    assert (folder / "000" / "000002.mp3").read_bytes() == content_of(2)
    assert download.fetch("fma_small", tmp_path, address=server.address) == folder
    assert server.starts == [0]


def test_goes_on_where_it_stopped(server, tmp_path):
    server.budget = 70_000
    with pytest.raises(InputError, match="cannot fetch.*goes on from where it stopped"):
        download.fetch("fma_small", tmp_path, address=server.address)
    assert server.starts == [i * 2**16 for i in range(5)]
    server.budget = 10**9
    folder = download.fetch("fma_small", tmp_path, address=server.address)
    assert server.starts[5:] == [5 * 2**16]
    assert len(list(folder.glob("000/*.mp3"))) == 3
    assert not list(tmp_path.rglob("*.part"))


def test_a_server_that_knows_no_ranges(server, tmp_path):
    server.budget = 70_000
    with pytest.raises(InputError):
        download.fetch("fma_small", tmp_path, address=server.address)
    server.budget, server.ranges = 10**9, False
    assert download.fetch("fma_small", tmp_path, address=server.address).is_dir()


def test_another_content_is_refused_and_deleted(server, tmp_path, monkeypatch):
    monkeypatch.setitem(download.SHA1, "fma_small", "0" * 40)
    for _ in range(2):
        with pytest.raises(InputError, match="SHA-1 .*, but FMA publishes 0000"):
            download.fetch("fma_small", tmp_path, address=server.address)
    assert server.starts == [0, 0]


def test_missing_archive(server, tmp_path):
    with pytest.raises(InputError, match="cannot fetch .*fma_medium.zip: 404"):
        download.fetch("fma_medium", tmp_path, address=server.address)
