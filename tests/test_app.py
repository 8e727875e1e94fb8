"""The page, in a browser, from a server on loopback."""

import base64
import csv
import io
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile
from child import ROOT, call, free_port
from shared import write_audio

import mgc_jax

CHROMIUM = shutil.which("chromium")
REQUESTS = 12  # one after the other, and a quarter of them at once
KEPT = 20  # s, for ten minutes
SERVE = f"from mgc_jax import app, cli; app._CLEARED_EVERY, app._KEPT = 1, {KEPT}; cli.run('app')"


@pytest.fixture(scope="module")
def server(workdir, tmp_path_factory):
    """The page's address, once it is served, the process that serves it, and where files come."""
    port = free_port()
    uploads = tmp_path_factory.mktemp("app") / "uploads"
    command = [sys.executable, "-c", SERVE, f"--workdir={workdir}", f"--port={port}"]
    environment = os.environ | {"GRADIO_TEMP_DIR": str(uploads)}
    with subprocess.Popen(
        [*command, "--minutes=1"], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
    ) as process:
        said = process.stderr.readline()
        assert f"open http://127.0.0.1:{port}/" in said, said + process.stderr.read()
        yield f"http://127.0.0.1:{port}/", process, uploads
        process.terminate()
        last = process.communicate()[1].splitlines()[-1]
        assert process.returncode == 130 and last.endswith("stopped"), last


def descriptors(process) -> int:
    """How many files and sockets a process has open."""
    return len(os.listdir(f"/proc/{process.pid}/fd"))


def memory(process) -> int:
    """In MiB, what a process has in use."""
    pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 2**20


def table_of(link: str) -> list[dict[str, str]]:
    """The rows of the CSV file that is in a link."""
    content = base64.b64decode(re.search('base64,([^"]+)', link)[1]).decode()
    return list(csv.DictReader(io.StringIO(content)))


def test_many_requests_leave_nothing(server, workdir, tmp_path):
    """Answers are those of the predictor; a long file is refused, and others are not held up.

    300 of them, and 50 at once: see `benchmarks/RESULTS.md`.
    """
    from gradio_client import Client, handle_file

    url, process, uploads = server
    write_audio(tmp_path / "song.flac", 4, 16000, 1)
    (expected,) = mgc_jax.load(workdir).predict(tmp_path / "song.flac")
    silence = np.zeros(3600 * 8000, np.int16)  # a few kB
    soundfile.write(tmp_path / "hour.flac", silence, 8000)
    client = Client(url, verbose=False)

    def ask(name="song.flac"):
        return table_of(client.predict([handle_file(tmp_path / name)], api_name="/predict"))

    (row,) = ask()
    (upload,) = uploads.rglob("song.flac")
    assert row["path"] == "song.flac" and row["genre"] == expected.genre
    shares = [float(row[f"prob_{genre}"]) for genre in expected.genres]
    assert shares == pytest.approx([expected.ranking[g] for g in expected.genres], abs=1e-5)
    assert ask("hour.flac")[0]["error"] == "longer than 1 min"
    with ThreadPoolExecutor(REQUESTS // 4) as together:

        def ask_all():
            assert all(ask() == [row] for _ in range(REQUESTS))
            found = [together.submit(ask) for _ in range(REQUESTS // 4)]
            assert all(answer.result() == [row] for answer in found)

        ask_all()  # what is made once
        before, used = descriptors(process), memory(process)
        ask_all()
    assert descriptors(process) <= before + 2
    assert memory(process) <= used + 128
    while upload in (left := [path for path in uploads.rglob("*") if path.is_file()]):
        time.sleep(1)
    assert not left


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium (Debian: apt-get install chromium)")
def test_files_and_recordings_in_a_browser(server, tmp_path):
    from playwright.sync_api import sync_playwright

    server, *_ = server
    for name, seconds in (("first.mp3", 21.0), ("second.flac", 12.0)):
        write_audio(tmp_path / name, seconds)
    (tmp_path / "bad.mp3").write_text("not music")
    genres = re.compile("Electronic|Experimental|Folk|Hip-Hop|Instrumental|International|Pop|Rock")
    microphone = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    with sync_playwright() as playwright:
        # Chromium's sandbox does not work for root.
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", *microphone]
        )
        page = browser.new_page()
        asked, errors = [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: errors.append(error))
        page.goto(server)
        files = [tmp_path / name for name in ("first.mp3", "bad.mp3", "second.flac")]
        page.locator("input[type=file]").first.set_input_files(files)
        page.get_by_text("could not be used: cannot be decoded").wait_for()
        titles = page.locator("h3")
        assert titles.all_inner_texts() == ["first.mp3", "bad.mp3", "second.flac"]
        labels = page.get_by_test_id("label-output-value")
        assert labels.count() == 2
        assert all(genres.fullmatch(text.strip()) for text in labels.all_inner_texts())
        pictures = page.locator("img.timeline")
        assert pictures.count() == 2
        for i in range(2):
            pictures.nth(i).wait_for()
            assert pictures.nth(i).evaluate("image => image.decode().then(() => image.width)") > 300

        assert page.locator("audio, #waveform, [data-testid^=waveform]").count() >= 2
        assert page.get_by_role("link", name="CSV").get_attribute("download") == "answers.csv"
        assert "Share" not in page.content()
        accepted = page.locator("input[type=file]").first.get_attribute("accept")
        assert ".mp3" in accepted and ".flac" in accepted and "*" not in accepted
        page.get_by_role("button", name="Record").click()
        page.wait_for_timeout(2500)  # of the fake microphone's beeps
        page.get_by_role("button", name="Stop").first.click()
        page.get_by_text("audio.wav").last.wait_for()
        titles.get_by_text("audio.wav").wait_for()
        assert titles.count() == 1 and labels.count() == 1
        browser.close()
    assert not errors
    # Nothing comes from another host.
    assert asked and all(url.startswith((server, "blob:", "data:")) for url in asked)


def test_a_port_in_use_is_one_line(workdir):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = call("app", f"--workdir={workdir}", f"--port={port}")
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr
    assert f"error: cannot listen at --port={port}" in done.stderr
