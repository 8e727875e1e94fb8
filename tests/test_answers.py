"""Answers about a library: a table that survives kills, shares of it, paths that are not there."""

import csv
import io
import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from child import Python, call, killed_after
from crashing import crashing
from shared import write_audio

import mgc_jax
from mgc_jax import console
from mgc_jax.answers import GrowingTable
from mgc_jax.errors import InputError
from mgc_jax.library import find_songs, following
from mgc_jax.predictor import Prediction
from mgc_jax.results.song_index import part_folder


@pytest.fixture(scope="module")
def network(workdir):
    return mgc_jax.load(workdir)


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """Six songs, one of a name that is not UTF-8 and one with a line's end, and a bad file."""
    root = tmp_path_factory.mktemp("originals")
    for seed, name in enumerate(("a/one.flac", "a/two.flac", "b/three.flac")):
        write_audio(root / name, 3.0 + seed, seed=seed)
    for name in (b"m\xfcsik.flac", b'two\nlines, "quoted".flac', b"b/four.flac"):
        shutil.copy(root / "a" / "two.flac", os.path.join(os.fsencode(root), name))
    (root / "b" / "bad.mp3").write_text("not music")
    return root


@pytest.fixture
def library(originals, tmp_path):
    return Path(shutil.copytree(originals, tmp_path / "library"))


def rows_of(table: Path) -> list[dict]:
    text = table.read_bytes().decode()
    if table.suffix == ".csv":
        return list(csv.DictReader(io.StringIO(text, newline="")))
    return [json.loads(line) for line in text.splitlines()]


def without(row: dict, *names: str) -> dict:
    return {key: value for key, value in row.items() if key not in names}


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_a_killed_run_goes_on(workdir, library, tmp_path, ending):
    """Killed after four files, within a fifth's row: the table of an uninterrupted run, no file
    answered twice but the one that changed in between."""
    whole, table = (tmp_path / f"{name}.{ending}" for name in ("whole", "table"))
    flags = (f"--workdir={workdir}", library)
    done = call("predict", *flags, f"--output={whole}")
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.endswith("1 of 7 files could not be used\n"), done.stderr
    expected = rows_of(whole)
    printed = call("predict", f"--format={'csv' if ending == 'csv' else 'json'}", *flags).stdout
    (tmp_path / f"printed.{ending}").write_text(printed, newline="")
    for row, said in zip(expected, rows_of(tmp_path / f"printed.{ending}"), strict=True):
        assert without(row, "size", "mtime_ns", "answered_by") == said
    paths = [row["path"] for row in expected]
    assert all(os.path.isabs(path) for path in paths) and len(set(paths)) == 7
    size = os.path.getsize(library / "a" / "one.flac")
    assert int(expected[0]["size"]) == size

    killed = Python(
        "-c", killed_after(4, "answers.GrowingTable", "predict"), *flags, f"--output={table}"
    ).finish()
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    kept = table.read_bytes()
    assert [row["path"] for row in rows_of(table)] == paths[:4]
    with open(whole, "rb") as file:
        rest = file.read()[len(kept) :]
    with open(table, "ab") as file:
        file.write(rest[:30])
    write_audio(library / "a" / "two.flac", 4.5, seed=9)
    again = call("predict", *flags, f"--output={table}")
    assert again.returncode == 1, again.stderr
    assert "3 of 7 files are done already: going on" in again.stderr
    assert again.stderr.count("bad.mp3: cannot be decoded") == 1
    found = rows_of(table)
    assert sorted(row["path"] for row in found) == sorted(paths)
    changed = str(library / "a" / "two.flac")
    for row in found:
        (same,) = [other for other in expected if other["path"] == row["path"]]
        told = [without(x, "probabilities", "mtime_ns") for x in (row, same)]
        if row["path"] == changed:
            assert row["size"] != same["size"]
        elif ending == "jsonl":
            assert told[0] == told[1]
            if "error" not in row:
                assert row["probabilities"] == pytest.approx(same["probabilities"], abs=1e-5)
        else:
            assert (row["genre"], row["size"]) == (same["genre"], same["size"])

    before = table.read_bytes()
    last = call("predict", *flags, f"--output={table}")
    assert "7 of 7 files are done already" in last.stderr and last.returncode == 1
    assert table.read_bytes() == before


def filled(path, network, songs, timeline=False):
    """A table of these files' answers."""
    with GrowingTable(path, network, timeline) as table:
        for result in network.stream(songs):
            table.add(result, songs[result.source])


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_torn_at_any_byte(network, library, tmp_path, ending):
    """Rows that are whole stay, the torn one is cut off, and what follows stands in whole rows."""
    songs = find_songs([str(library)], None, absolute=True)
    path = tmp_path / f"table.{ending}"
    filled(path, network, songs)
    content = path.read_bytes()
    results = {result.source: result for result in network.stream(songs)}
    names = [row["path"] for row in rows_of(path)]
    for cut in range(0, len(content), 11):
        path.write_bytes(content[:cut])
        with GrowingTable(path, network) as table:
            kept = [name for name in songs if table.has(name)]
            assert kept == list(songs)[: len(kept)]
            for name in list(songs)[len(kept) :]:
                table.add(results[name], songs[name])
        assert [row["path"] for row in rows_of(path)] == names
        if cut > len(content) // 2:
            assert len(kept) >= 2
    assert len(path.read_bytes()) == pytest.approx(len(content), abs=60)


def test_rows_of_what_is_not_there_stay_and_changed_ones_go(network, library, tmp_path):
    songs = find_songs([str(library)], None, absolute=True)
    path = tmp_path / "table.csv"
    filled(path, network, songs)
    first, second, *others = songs
    os.unlink(first)
    os.utime(second)
    odd = next(name for name in others if "\udcfc" in name)
    os.utime(odd, ns=(1, 1))
    with GrowingTable(path, network) as table:
        assert table.has(first) and not table.has(second) and not table.has(odd)
        assert [name for name in others if not table.has(name)] == [odd]
        assert list(table.answered) == [first, *(name for name in others if name != odd)]
        assert table.error(str(library / "b" / "bad.mp3")).startswith("cannot be decoded")
    assert len(rows_of(path)) == len(songs) - 2


def test_tables_of_others_are_refused_and_stay(network, workdir, library, tmp_path):
    songs = find_songs([str(library / "a")], None, absolute=True)
    lines = tmp_path / "table.jsonl"
    table = tmp_path / "table.csv"
    filled(lines, network, songs)
    filled(table, network, songs)
    other = mgc_jax.load(workdir, unknown=0.1)
    for path, who, timeline in (
        (lines, other, False),
        (table, other, False),
        (lines, network, True),
    ):
        before = path.read_bytes()
        with pytest.raises(InputError, match="another network or of other settings") as said:
            GrowingTable(path, who, timeline)
        assert "\n" not in str(said.value) and path.read_bytes() == before
    content = table.read_bytes()
    head, row, rest = content.split(b"\r\n", 2)
    for name, bad, number in (
        ("list.csv", b"song,genre\r\na,b\r\n", 1),
        ("notes.csv", b"my notes", 1),
        ("notes.jsonl", b"my notes", 1),
        ("more.jsonl", lines.read_bytes() + b"my notes", 3),
        ("list.jsonl", b'["a"]\n', 1),
        ("other.jsonl", b'{"path": "a.mp3"}\n', 1),
        ("cut.csv", head + b"\r\n" + row[: len(row) // 2] + b"\r\n" + rest, 2),
        ("zeros.csv", content + bytes(20) + b"\r\n", 4),
        ("bytes.csv", content + b"\xff,\r\n", 4),
        ("quotes.csv", content + b'"' + b"a\r\n" * 400_000, 4),
    ):
        path = tmp_path / name
        path.write_bytes(bad)
        with pytest.raises(InputError, match=f"row {number} is none that this command wrote"):
            GrowingTable(path, network)
        assert path.read_bytes() == bad
    with GrowingTable(table, network):
        with pytest.raises(InputError, match="is written by another process"):
            GrowingTable(table, network)


def test_shares_are_all_files_each_once(tmp_path):
    """As one command does them all, whatever the machine; about as many in each."""
    for i in range(400):
        path = tmp_path / f"{i % 7}" / f"{i}.mp3"
        path.parent.mkdir(exist_ok=True)
        path.touch()
    everything = find_songs([str(tmp_path)], None)
    shares = [list(find_songs([str(tmp_path)], f"{i}/8")) for i in range(1, 9)]
    assert sorted(sum(shares, [])) == sorted(everything) and len(everything) == 400
    assert 30 < min(map(len, shares)) and max(map(len, shares)) < 75
    odd = os.fsdecode(b"m\xfcsik.mp3")
    found = [i for i in range(1, 4) if odd in find_songs([odd], f"{i}/3")]
    assert len(found) == 1
    for shard in ("0/8", "9/8", "1", "a/b", "1/0", "-1/3", "1/8/2"):
        with pytest.raises(InputError, match="need NUMBER/COUNT"):
            find_songs([str(tmp_path)], shard)


def test_commands_share_a_library(workdir, library, tmp_path):
    """What predict, embed and tag do of two shares is what they do of the whole."""
    seen = {"predict": [], "embed": [], "tag": []}
    for shard in ("1/2", "2/2"):
        flags = (f"--workdir={workdir}", f"--shard={shard}", library)
        call("predict", *flags, f"--output={tmp_path}/table.csv")
        # The names of temporary folders decide what is in a share: it may be empty, or bad alone.
        index = tmp_path / f"{shard[0]}.npz"
        call("embed", *flags, f"--output={index}")
        seen["embed"] += np.load(index)["paths"].tolist() if index.exists() else []
        plan = tmp_path / f"{shard[0]}.csv"
        call("tag", *flags, f"--output={plan}")
        seen["tag"] += [row["file"] for row in rows_of(plan)] if plan.exists() else []
    seen["predict"] = [row["path"] for row in rows_of(tmp_path / "table.csv")]
    expected = list(find_songs([str(library)], None))
    bad = str(library / "b" / "bad.mp3")
    plain = {name for name in expected if "\udcfc" not in name}
    for word, paths in seen.items():
        assert len(paths) == len(set(paths)) == len(expected) - (word == "embed"), word
        assert plain - set(paths) == ({bad} if word == "embed" else set())


def test_what_is_not_there_is_one_error_of_many(workdir, library, tmp_path):
    """A URL, a missing file, a socket: the rest go on, and the exit code is 1."""
    song = library / "a" / "one.flac"
    wrong = [
        "https://example.org/song.mp3",
        str(tmp_path / "missing.mp3"),
        str(tmp_path / "no" / "x"),
    ]
    done = call("predict", f"--workdir={workdir}", "--format=json", *wrong, song)
    assert done.returncode == 1
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["path"] for row in rows] == [*wrong, str(song)]
    assert all(row["error"] for row in rows[:3]) and rows[3]["genre"]
    assert [line.startswith("error: ") for line in done.stderr.splitlines()] == [True] * 4
    assert (
        done.stderr.endswith("3 of 4 files could not be used\n") and "Traceback" not in done.stderr
    )
    embedded = call("embed", f"--workdir={workdir}", f"--output={tmp_path}/x.npz", *wrong, song)
    assert embedded.returncode == 1 and np.load(tmp_path / "x.npz")["paths"].tolist() == [str(song)]
    assert not part_folder(tmp_path / "x.npz").exists()
    planned = call("tag", f"--workdir={workdir}", *wrong, song)
    assert planned.returncode == 1 and "3 of 4 files could not be used" in planned.stderr
    assert str(song) in planned.stdout and "Traceback" not in planned.stderr


def test_pictures_go_on_too(workdir, library, tmp_path):
    """Songs of one name in two folders: the second's picture does not take the first's place."""
    for folder in ("a", "b"):
        write_audio(library / "same" / folder / "song.flac", 3.0, seed=ord(folder))
    flags = (f"--workdir={workdir}", f"--output={tmp_path}/t.csv", f"--plot={tmp_path}/plots")
    assert call("predict", *flags, library / "same" / "a").returncode == 0
    first = (tmp_path / "plots" / "song.flac.png").read_bytes()
    assert call("predict", *flags, library / "same").returncode == 0
    assert len(rows_of(tmp_path / "t.csv")) == 2
    assert (tmp_path / "plots" / "song.flac.png").read_bytes() == first
    assert (tmp_path / "plots" / "song.flac-2.png").exists()


def test_bar_counts_bytes(tmp_path, monkeypatch):
    """Halfway by bytes is halfway in time, whatever the number of files."""
    sizes = {"/small": 100, "/large": 900}
    songs = {path: (size, 0) for path, size in sizes.items()}
    bars = []
    make = console.progress_bar
    monkeypatch.setattr(console, "progress_bar", lambda **k: bars.append(make(**k)) or bars[-1])
    seen = []
    for _ in following(map(Prediction, songs), songs, "hearing"):
        seen.append(bars[0].n)
    assert seen == [0, 100] and bars[0].n == bars[0].total == 1000
    assert bars[0].smoothing == 0 and "2/2 files" in str(bars[0])


def test_a_log_file_gets_whole_lines(capfd, caplog, monkeypatch):
    """No bar that other lines would be glued to; the time left is by bytes."""
    monkeypatch.setattr("mgc_jax.library.LOG_EVERY", -1)
    monkeypatch.setattr("mgc_jax.library._time_left", lambda bar: bar.total - bar.n)
    songs = {"/small": (10, 0), "/large": (600, 0)}
    with caplog.at_level("INFO", "mgc_jax"):
        assert len(list(following(map(Prediction, songs), songs, "hearing"))) == 2
    assert caplog.messages[0] == "hearing: 1 of 2 files, 10:00 left"
    assert "\r" not in capfd.readouterr().err


def test_a_decoder_that_crashes_costs_one_file(network, library, monkeypatch):
    """The others' answers and vectors are what threads give."""
    songs = list(find_songs([str(library)], None))
    plain = list(network.stream(songs))
    monkeypatch.setattr("mgc_jax.predictor.iter_clips", crashing)
    for result, expected in zip(network.stream_isolated(songs), plain, strict=True):
        assert result.source == expected.source
        if result.source.endswith("three.flac"):
            assert result.error.startswith("its process ended twice: SIGSEGV")
        else:
            assert result.error == expected.error
            np.testing.assert_allclose(result.timeline, expected.timeline, atol=1e-6)
            assert result.silent_clips == expected.silent_clips
    vectors = list(network.stream_embeddings_isolated(songs[:2]))
    for result, expected in zip(vectors, network.embed(songs[:2]), strict=True):
        np.testing.assert_allclose(result.vector, expected.vector, atol=1e-5)


def test_many_files_are_decoded_by_processes(workdir, library):
    """No answer changes; the command ends with all its processes."""
    code = "from mgc_jax import cli, library; library.ISOLATED_FROM = 3; cli.run('predict')"
    flags = (f"--workdir={workdir}", "--format=json", library / "a", library / "b")
    done = Python("-c", code, *flags).finish()
    plain = call("predict", *flags)
    assert done.returncode == plain.returncode == 1, done.stderr
    for line, expected in zip(done.stdout.splitlines(), plain.stdout.splitlines(), strict=True):
        found, expected = json.loads(line), json.loads(expected)
        assert without(found, "probabilities") == without(expected, "probabilities")
        assert found.get("probabilities") == pytest.approx(expected.get("probabilities"), abs=1e-6)


@pytest.mark.parametrize(
    "flags, says",
    [
        (["--output=x.txt", "song.mp3"], "should end in .csv or .jsonl"),
        (["--output=x.csv", "--format=json", "song.mp3"], "--format is of what is printed"),
        (["--output=x.csv", "--timeline", "song.mp3"], "--timeline does not fit into CSV"),
        (["--output=README.md/x.csv", "README.md"], "cannot write to --output=README.md/x.csv"),
        (["--shard=9/8", "README.md"], "--shard=9/8: need NUMBER/COUNT"),
        (["--output=x.csv"], "no audio files"),
    ],
)
def test_bad_use_is_one_line(workdir, flags, says):
    done = call("predict", f"--workdir={workdir}", *flags)
    assert done.returncode == 1 and says in done.stderr, done.stderr
    assert len(done.stderr.splitlines()) == 1
