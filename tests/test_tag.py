"""Genres into files' tags: read back by FFmpeg, the sound equal, and undone to the byte."""

import csv
import json
import os
import shutil
import signal
import zipfile
from pathlib import Path

import av
import mutagen
import numpy as np
import pytest
import soundfile
from child import ROOT, Python, call
from mutagen.flac import Picture
from mutagen.id3 import APIC, ID3, TCON, TIT2, TPE1, TYER, ParseID3v1
from shared import write_audio

from mgc_jax import tagging
from mgc_jax.data.tags import read_tags
from mgc_jax.errors import InputError

SECONDS = 12.0
NAMES = ["none.mp3", "v23.mp3", "v24.mp3", "v1.mp3", "v1only.mp3", "bare.flac", "full.flac"]
NAMES += ["id3.flac", "vorbis.ogg", "opus.opus", "large.ogg", "front.m4a", "end.m4a"]


def write_mp4(path: Path, source: Path, *options: str) -> None:
    """AAC in MP4, its index at the front or at the end."""
    samples, rate = soundfile.read(source, dtype="float32", always_2d=True)
    flags = dict(option.split("=") for option in options)
    with av.open(str(path), "w", format="mp4", options=flags) as container:
        stream = container.add_stream("aac", rate=rate, layout="stereo")
        for at in range(0, len(samples), 1024):
            block = np.ascontiguousarray(samples[at : at + 1024].T)
            frame = av.AudioFrame.from_ndarray(block, format="fltp", layout="stereo")
            frame.sample_rate = rate
            frame.pts = at
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def add_id3(path: Path, version: int, v1: int = 0) -> None:
    tags = ID3()
    tags.add(TIT2(encoding=1, text=["Tïtle"]))
    tags.add(TPE1(encoding=1, text=["One", "Two"]))
    tags.add(TYER(encoding=0, text=["1987"]))
    tags.add(APIC(encoding=0, mime="image/png", type=3, desc="", data=bytes(range(256)) * 40))
    tags.save(path, v2_version=version, v23_sep=None, v1=v1)


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> Path:
    """Files of all kinds that are written, with tags of all sorts but a genre."""
    root = tmp_path_factory.mktemp("originals")
    for seed, name in enumerate(("none.mp3", "bare.flac", "vorbis.ogg", "plain.wav")):
        write_audio(root / name, SECONDS, seed=seed)
    sound, _ = soundfile.read(root / "none.mp3")
    soundfile.write(root / "opus.opus", sound, 48000, format="OGG", subtype="OPUS")
    for name in ("v23", "v24", "v1", "v1only"):
        shutil.copy(root / "none.mp3", root / f"{name}.mp3")
    add_id3(root / "v23.mp3", 3)
    add_id3(root / "v24.mp3", 4)
    add_id3(root / "v1.mp3", 3, v1=2)
    with open(root / "v1only.mp3", "ab") as file:
        file.write(b"TAG" + b"Old title".ljust(124, b"\0") + b"\xff")
    for name in ("full.flac", "id3.flac"):
        shutil.copy(root / "bare.flac", root / name)
    flac = mutagen.File(root / "full.flac")
    flac["title"] = "Tïtle"
    picture = Picture()
    picture.data = bytes(range(256)) * 40
    flac.add_picture(picture)
    flac.save()
    add_id3(root / "id3.flac", 4)  # beside Vorbis comments
    flac = mutagen.File(root / "id3.flac")
    flac["title"] = "Tïtle"
    flac.save()
    shutil.copy(root / "vorbis.ogg", root / "large.ogg")
    ogg = mutagen.File(root / "large.ogg")
    ogg["comment"] = "x" * 65_020  # the genre needs one page more, and all pages a new number
    ogg.save(padding=lambda info: 0)
    write_mp4(root / "front.m4a", root / "plain.wav", "movflags=faststart")
    write_mp4(root / "end.m4a", root / "plain.wav")
    mp4 = mutagen.File(root / "front.m4a")
    mp4["\xa9nam"] = ["Tïtle"]
    mp4.save()
    (root / "plain.wav").unlink()
    assert sorted(os.listdir(root)) == sorted(NAMES)
    return root


@pytest.fixture
def music(originals, tmp_path) -> Path:
    return Path(shutil.copytree(originals, tmp_path / "music"))


def decoded(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.concatenate([f.to_ndarray() for f in container.decode(audio=0)], axis=-1)


def texts(path: Path) -> dict[str, str]:
    """What FFmpeg reads of the tags."""
    with av.open(str(path)) as container:
        found = container.metadata | container.streams.audio[0].metadata
    return {key.lower(): value for key, value in found.items()}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def tag_all(folder: Path, undo_file: Path, genre: str = "Hip-Hop") -> None:
    genres = {str(path): genre for path in folder.iterdir()}
    changes, errors = tagging.write_undo_file(undo_file, genres)
    assert not errors and len(changes) == len(genres)
    assert not any(error for _, error in tagging.write_genres(changes))


@pytest.mark.parametrize("name", NAMES)
def test_genre_is_read_back_and_all_else_stays(originals, music, tmp_path, name):
    (tmp_path / "one").mkdir()
    path = Path(shutil.move(music / name, tmp_path / "one"))
    os.chmod(path, 0o640)
    tag_all(path.parent, tmp_path / "undo.zip")
    before = texts(originals / name)
    after = texts(path)
    assert after.pop("genre") == "Hip-Hop" and "genre" not in before
    assert after == before
    np.testing.assert_array_equal(decoded(path), decoded(originals / name))
    assert os.stat(path).st_mode & 0o777 == 0o640
    assert os.listdir(path.parent) == [name]


def test_version_of_id3_stays(music, tmp_path):
    tag_all(music, tmp_path / "undo.zip")
    heads = {p.name: p.read_bytes()[:4] for p in music.glob("*.mp3")}
    versions = {"none": 3, "v23": 3, "v24": 4, "v1": 3, "v1only": 3}
    assert heads == {f"{n}.mp3": b"ID3" + bytes([v]) for n, v in versions.items()}
    tags = ID3(music / "v23.mp3", translate=False)
    assert tags["TPE1"].text == ["One", "Two"] and tags["TYER"].text == ["1987"]
    assert len(tags.getall("APIC")[0].data) == 256 * 40
    # Number 7 of ID3v1 is Hip-Hop.
    old = (music / "v1.mp3").read_bytes()[-128:]
    assert old[:3] == b"TAG" and old[-1] == 7 and ParseID3v1(old)["TIT2"].text == ["Tïtle"]
    assert (music / "v1only.mp3").read_bytes()[-128:].startswith(b"TAGOld title\0")


def test_undo_is_to_the_byte_and_small(originals, music, tmp_path):
    for path in music.iterdir():
        os.utime(path, ns=(10**18, 10**18 + 7))
    tag_all(music, tmp_path / "undo.zip")
    tagged = contents(music)
    assert not any(tagged[name] == old for name, old in contents(originals).items())
    outcomes = dict(tagging.undo(tmp_path / "undo.zip"))
    assert set(outcomes.values()) == {""} and len(outcomes) == len(NAMES)
    assert contents(music) == contents(originals)
    assert {path.stat().st_mtime_ns for path in music.iterdir()} == {10**18 + 7}
    # Heads and ends are kept, not the sound; but for the one whose pages all changed.
    with zipfile.ZipFile(tmp_path / "undo.zip") as box:
        listed = json.loads(box.read("files.json"))
        for number, entry in enumerate(listed):
            if not entry["path"].endswith("large.ogg"):
                assert box.getinfo(f"{number}/middle").file_size < 50_000, entry["path"]
    # Once more changes nothing.
    assert set(dict(tagging.undo(tmp_path / "undo.zip")).values()) == {""}


def test_what_changed_since_is_not_undone(originals, music, tmp_path):
    tag_all(music, tmp_path / "undo.zip")
    later = mutagen.File(music / "bare.flac")
    later["title"] = "added later"
    later.save()
    (music / "none.mp3").unlink()
    kept = (music / "bare.flac").read_bytes()
    found = call("tag", f"--undo={tmp_path / 'undo.zip'}")
    assert found.returncode == 1
    assert "bare.flac: it changed since" in found.stderr
    assert "none.mp3: No such file" in found.stderr
    assert "2 of 13 files were not restored" in found.stderr
    assert "Traceback" not in found.stderr
    assert (music / "bare.flac").read_bytes() == kept
    expected = contents(originals) | {"bare.flac": kept}
    del expected["none.mp3"]
    assert contents(music) == expected


def test_killed_run_leaves_whole_files_and_can_be_undone(originals, music, tmp_path):
    """Killed at the third file, after its copy was written."""
    code = (
        "import os, sys, signal; from pathlib import Path; from mgc_jax import tagging\n"
        "genres = {str(p): 'Rock' for p in sorted(Path(sys.argv[1]).iterdir())}\n"
        "changes, _ = tagging.write_undo_file(sys.argv[2], genres)\n"
        "replace, done = os.replace, []\n"
        "def replace_two(*paths):\n"
        "    if len(done) == 2: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    done.append(replace(*paths))\n"
        "os.replace = replace_two\n"
        "list(tagging.write_genres(changes))\n"
    )
    killed = Python("-c", code, music, tmp_path / "undo.zip").finish()
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    now = {name: data for name, data in contents(music).items() if name[0] != "."}
    changed = {name for name, old in contents(originals).items() if now[name] != old}
    assert changed == set(sorted(NAMES)[:2])
    for name in changed:
        assert texts(music / name)["genre"] == "Rock"
        np.testing.assert_array_equal(decoded(music / name), decoded(originals / name))
    assert set(dict(tagging.undo(tmp_path / "undo.zip")).values()) == {""}
    now = {name: data for name, data in contents(music).items() if name[0] != "."}
    assert now == contents(originals)


def test_changes_between_the_undo_file_and_the_writing_are_kept(music, tmp_path):
    path = music / "none.mp3"
    changes, _ = tagging.write_undo_file(tmp_path / "undo.zip", {str(path): "Rock"})
    add_id3(path, 4)
    theirs = path.read_bytes()
    assert list(tagging.write_genres(changes)) == [(str(path), "it changed meanwhile")]
    assert path.read_bytes() == theirs


def test_links_stay_links(music, tmp_path):
    link = tmp_path / "link.mp3"
    link.symlink_to(music / "none.mp3")
    genres = {str(link): "Rock", str(music / "none.mp3"): "Rock"}
    changes, _ = tagging.write_undo_file(tmp_path / "undo.zip", genres)
    assert [error for _, error in tagging.write_genres(changes)] == [""]
    assert link.is_symlink() and read_tags(music / "none.mp3").genre == "Rock"


@pytest.mark.parametrize(
    "content, message",
    [
        ("text", "is no undo file"),
        ({}, "is no undo file"),
        ({"files.json": "{}"}, "holds no list"),
        ({"files.json": '[{"path": 1}]'}, "something else than files"),
        (None, "cannot be read: No such file"),
    ],
)
def test_bad_undo_files_are_one_line(tmp_path, content, message):
    path = tmp_path / "undo.zip"
    if isinstance(content, dict):
        with zipfile.ZipFile(path, "w") as box:
            for name, text in content.items():
                box.writestr(name, text)
    elif content:
        path.write_text(content)
    with pytest.raises(InputError, match=message):
        list(tagging.undo(path))


def test_damaged_undo_file_leaves_the_file(music, tmp_path):
    only = tmp_path / "only"
    only.mkdir()
    shutil.move(music / "none.mp3", only)
    tag_all(only, tmp_path / "undo.zip")
    tagged = contents(only)
    with zipfile.ZipFile(tmp_path / "undo.zip") as box:
        (entry,) = json.loads(box.read("files.json"))
    entry["length"] -= 1
    with zipfile.ZipFile(tmp_path / "damaged.zip", "w") as box:
        box.writestr("files.json", json.dumps([entry]))
        box.writestr("0/middle", b"")
        box.writestr("0/tail", b"")
    ((_, error),) = tagging.undo(tmp_path / "damaged.zip")
    assert "undo file is damaged" in error
    assert contents(only) == tagged


def rows_of(path: Path) -> dict[str, dict[str, str]]:
    with open(path, newline="") as file:
        return {os.path.basename(row["file"]): row for row in csv.DictReader(file)}


def test_command_plans_then_writes_then_undoes(workdir, originals, music, tmp_path):
    tagged = music / "v24.mp3"
    tags = ID3(tagged)
    tags.add(TCON(encoding=3, text=["Polka"]))
    tags.save(tagged)
    write_audio(music / "plain.wav", 3.0)
    (music / "bad.mp3").write_text("not music")
    before = contents(music)
    genres = json.loads((workdir / "genres.json").read_text())
    names = tmp_path / "genres.csv"
    names.write_text("genre,name\n" + "".join(f"{genre},My {genre}\n" for genre in genres))
    flags = (f"--workdir={workdir}", "--min_probability=0", f"--names={names}")
    flags += (f"--output={tmp_path / 'plan.csv'}", music)
    planned = call("tag", *flags, cwd=ROOT)
    assert planned.returncode == 1 and "1 of 15 files could not be used" in planned.stderr
    assert contents(music) == before
    plan = rows_of(tmp_path / "plan.csv")
    assert set(plan) == {*NAMES, "plain.wav", "bad.mp3"}
    assert plan["v24.mp3"]["note"] == "has a genre" and plan["v24.mp3"]["genre_now"] == "Polka"
    assert plan["plain.wav"]["note"] == "kind is not written"
    assert "cannot be decoded" in plan["bad.mp3"]["note"]
    chosen = {name for name, row in plan.items() if not row["note"]}
    assert chosen == set(NAMES) - {"v24.mp3"}
    for row in plan.values():
        assert row["file"] in planned.stdout or row["note"].startswith("cannot")
    # What predict says is what is proposed.
    said = call("predict", f"--workdir={workdir}", "--format=json", music).stdout.splitlines()
    for found in map(json.loads, said):
        if "error" not in found:
            row = plan[os.path.basename(found["path"])]
            assert row["genre_proposed"] == f"My {found['genre']}"
            best = found["probabilities"][found["genre"]]
            assert float(row["probability"]) == pytest.approx(best, abs=1e-5)

    undo = tmp_path / "undo.zip"
    written = call("tag", *flags, "--write", f"--undo_file={undo}")
    assert written.returncode == 1 and "12 files got a genre" in written.stderr
    for name in chosen:
        assert texts(music / name)["genre"] == plan[name]["genre_proposed"]
    assert {n for n, old in contents(music).items() if old != before[n]} == chosen
    again = call("tag", *flags, "--write", f"--undo_file={undo}")
    assert again.returncode == 1 and "is there already" in again.stderr
    undone = call("tag", f"--undo={undo}")
    assert undone.returncode == 0, undone.stderr
    assert contents(music) == before


def test_what_is_left_as_it_is(music):
    path = str(music / "none.mp3")
    given = {"overwrite": False, "min_probability": 0.5}
    assert tagging.propose(path, "Rock", 0.5, **given).note == ""
    assert tagging.propose(path, "Rock", 0.49, **given).note == tagging.UNSURE
    tags = ID3()
    tags.add(TCON(encoding=3, text=["Polka"]))
    tags.save(path)
    assert tagging.propose(path, "Rock", 0.9, **given).note == tagging.HAS_GENRE
    given["overwrite"] = True
    assert tagging.propose(path, "Rock", 0.9, **given).note == ""
    assert tagging.propose(path, "Polka", 0.9, **given).note == tagging.SAME
    assert tagging.propose(path, "Rock", 0.4, **given).note == tagging.UNSURE


@pytest.mark.parametrize("comments", ["none", "empty"])
def test_id3_that_vorbis_comments_would_hide_is_left_alone(music, tmp_path, comments):
    """A FLAC file whose only tag is ID3: FFmpeg reads that no more once there are comments."""
    path = music / "bare.flac"
    flac = mutagen.File(path)
    if comments == "none":
        flac.delete(path)
    assert not flac.tags
    add_id3(path, 4)
    found = tagging.propose(str(path), "Rock", 0.9, overwrite=True, min_probability=0.5)
    assert found.note == tagging.NO_TAGS
    before = path.read_bytes()
    _, errors = tagging.write_undo_file(tmp_path / "undo.zip", {str(path): "Rock"})
    assert errors == {str(path): tagging.NO_TAGS}
    assert path.read_bytes() == before


def test_tables_of_names(tmp_path):
    table = tmp_path / "names.csv"
    table.write_text("genre;name\nHip-Hop;Hip Hop/Rap\n")
    assert tagging.read_names(table, ["Rock", "Hip-Hop"]) == {"Hip-Hop": "Hip Hop/Rap"}
    table.write_text("genre,name\nRok,x\n")
    with pytest.raises(InputError, match="no genre 'Rok': did you mean 'Rock'"):
        tagging.read_names(table, ["Rock", "Hip-Hop"])
    table.write_text("genre,name\nRock,x\nRock,y\n")
    with pytest.raises(InputError, match="two rows for 'Rock'"):
        tagging.read_names(table, ["Rock"])


def test_bad_flags_are_one_line(tmp_path, music):
    for flags, message in (
        ([], "--workdir=... is missing"),
        (["--undo=x.zip", "--write"], "do not go together"),
        (["--undo=x.zip"], "cannot be read: No such file"),
        (["--undo=x.zip", "song.mp3"], "unexpected argument 'song.mp3'"),
        (["--workdir=w", "no_such.mp3"], "no such folder: w"),
        (["--workdir=w", music, f"--output={music}/none.mp3/x"], "cannot write --output"),
    ):
        found = call("tag", *flags)
        assert found.returncode == 1
        assert message in found.stderr and found.stderr.count("\n") == 1, found.stderr
