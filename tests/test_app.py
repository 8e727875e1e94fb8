"""The page, in a browser, from a server on loopback."""

import re
import shutil
import socket
import subprocess
import sys

import pytest
from child import call, free_port
from conftest import ROOT, write_audio

CHROMIUM = shutil.which("chromium")


@pytest.fixture
def server(workdir):
    """The address of the page, once it is served."""
    port = free_port()
    command = [sys.executable, "-m", "mgc_jax.app", f"--workdir={workdir}", f"--port={port}"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        said = process.stderr.readline()
        assert f"open http://127.0.0.1:{port}/" in said, said + process.stderr.read()
        yield f"http://127.0.0.1:{port}/"
        process.terminate()
        last = process.communicate()[1].splitlines()[-1]
        assert process.returncode == 130 and last.endswith("stopped"), last


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium (Debian: apt-get install chromium)")
def test_files_and_recordings_in_a_browser(server, tmp_path):
    from playwright.sync_api import sync_playwright

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
        pictures = page.get_by_test_id("matplotlib").locator("img")
        assert pictures.count() == 2
        for i in range(2):
            pictures.nth(i).wait_for()
            assert pictures.nth(i).evaluate("image => image.decode().then(() => image.width)") > 300

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
