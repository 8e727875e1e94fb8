"""FMA's archives, from a server on this machine."""

import hashlib
import http.server
import io
import signal
import threading
import zipfile

import numpy as np
import pytest
from child import Python
from shared import write_audio
from test_datasets import write_metadata

from mgc_jax.configs import default
from mgc_jax.data import download, preparation
from mgc_jax.data.input_pipeline import open_dataset
from mgc_jax.errors import InputError

SPLITS = ("training", "validation", "test")


def content_of(i):
    return np.random.default_rng(i).bytes(150_000)


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves archives, in ranges; ends the connection after `budget` bytes."""

    def do_GET(self):  # noqa: N802
        server = self.server
        start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        server.starts.append(start)
        content = server.archives.get(self.path.removeprefix("/fma/"))
        if content is None:
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


def zipped(files):
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in files.items():
            file.writestr(name, content)
    return archive.getvalue()


@pytest.fixture
def server(monkeypatch):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.archives, server.starts = {}, []
        server.budget, server.ranges = 10**9, True
        monkeypatch.setattr(download, "ADDRESS", f"http://127.0.0.1:{server.server_port}/fma")

        def offer(name, files):
            content = server.archives[f"{name}.zip"] = zipped(files)
            monkeypatch.setitem(download.SHA1, name, hashlib.sha1(content).hexdigest())

        server.offer = offer
        offer("fma_small", {f"fma_small/000/00000{i}.mp3": content_of(i) for i in range(3)})
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_fetches_once_and_unpacks(server, tmp_path):
    folder = download.fetch("fma_small", tmp_path)
    assert folder.name == "fma_small"
    assert (folder / "000" / "000002.mp3").read_bytes() == content_of(2)
    assert download.fetch("fma_small", tmp_path) == folder
    assert server.starts == [0]


def test_goes_on_where_it_stopped(server, tmp_path):
    server.budget = 70_000
    with pytest.raises(InputError, match="cannot fetch.*goes on from where it stopped"):
        download.fetch("fma_small", tmp_path)
    assert server.starts == [i * 2**16 for i in range(5)]
    server.budget = 10**9
    folder = download.fetch("fma_small", tmp_path)
    assert server.starts[5:] == [5 * 2**16]
    assert len(list(folder.glob("000/*.mp3"))) == 3
    assert not list(tmp_path.rglob("*.part"))


def test_a_server_that_knows_no_ranges(server, tmp_path):
    server.budget = 70_000
    with pytest.raises(InputError):
        download.fetch("fma_small", tmp_path)
    server.budget, server.ranges = 10**9, False
    assert download.fetch("fma_small", tmp_path).is_dir()


def test_another_content_is_refused_and_deleted(server, tmp_path, monkeypatch):
    monkeypatch.setitem(download.SHA1, "fma_small", "0" * 40)
    for _ in range(2):
        with pytest.raises(InputError, match="SHA-1 .*, but FMA publishes 0000"):
            download.fetch("fma_small", tmp_path)
    assert server.starts == [0, 0]


def test_missing_archive(server, tmp_path):
    with pytest.raises(InputError, match="cannot fetch .*fma_medium.zip: 404"):
        download.fetch("fma_medium", tmp_path)


def test_prepare_downloads_what_it_needs(server, tmp_path):
    write_metadata(tmp_path, "".join(f"{i},y,{SPLITS[i]},small,Rock,x\n" for i in range(3)))
    for i in range(3):
        write_audio(tmp_path / f"fma_small/000/00000{i}.mp3", 2, seed=i)
    for name in ("fma_small", "fma_metadata"):
        paths = (path for path in (tmp_path / name).rglob("*") if path.is_file())
        server.offer(name, {str(p.relative_to(tmp_path)): p.read_bytes() for p in paths})
    config = default.get_config()
    for name, sources in {"there": {"audio_dir": tmp_path / "fma_small"}, "fetched": {}}.items():
        config.data_dir = str(tmp_path / name)
        preparation.prepare(config, ("mel",), download=True, **sources)
        assert len(server.starts) == (0 if sources else 2)
        assert open_dataset(config, ("mel",)).metadata["tracks_listed"] == 3


UNPACK_AND_DIE = """
import os, signal, sys
from mgc_jax.data import download
def die_at_the_hundredth(event, arguments):
    if event == "open" and str(arguments[0]).endswith("fma_small/000/000100.mp3"):
        os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(die_at_the_hundredth)
download.ADDRESS, download.SHA1["fma_small"] = sys.argv[1:3]
download.fetch("fma_small", sys.argv[3])
"""


def test_killed_while_it_unpacks_it_unpacks_anew(server, tmp_path):
    names = [f"fma_small/{i // 1000:03d}/{i:06d}.mp3" for i in range(5000)]
    server.offer("fma_small", {name: name.encode() for name in names})
    arguments = [download.ADDRESS, download.SHA1["fma_small"], str(tmp_path)]
    killed = Python("-c", UNPACK_AND_DIE, *arguments).finish()
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    incomplete = tmp_path / "incomplete.fma_small"
    assert incomplete.is_dir() and not (tmp_path / "fma_small").exists()
    (incomplete / "fma_small/000/stray.mp3").write_bytes(b"of another archive")
    folder = download.fetch("fma_small", tmp_path)
    assert server.starts == [0]  # the archive was whole
    assert {str(path.relative_to(tmp_path)) for path in folder.rglob("*.mp3")} == set(names)
    assert (folder / "000/000000.mp3").read_bytes() == names[0].encode()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fma_small", "fma_small.zip"]


def test_a_damaged_archive_and_a_folder_elsewhere(server, tmp_path):
    (tmp_path / "fma_small.zip").write_bytes(b"no archive")
    with pytest.raises(
        InputError, match="fma_small.zip is damaged: File is not a zip file; delete"
    ):
        download.fetch("fma_small", tmp_path)
    with pytest.raises(InputError, match="cannot unpack into gs://bucket: name a local --data_dir"):
        download.fetch("fma_small", "gs://bucket")
