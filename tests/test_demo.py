"""The demo corpus: it repeats exactly, sounds sane, differs by genre, and is laid out as FMA is."""

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mgc_jax.demo import corpus as corpus_module
from mgc_jax.demo import synth

EIGHT = "Electronic Experimental Folk Hip-Hop Instrumental International Pop Rock".split()
SHORT = 1.5  # seconds


def write_short(root: Path, monkeypatch: pytest.MonkeyPatch, seed: int = 5) -> Path:
    """A whole corpus of short tracks, made in this process."""
    whole = synth.synthesize_track
    monkeypatch.setattr(
        corpus_module, "synthesize_track", lambda genre, own: whole(genre, own, SHORT)
    )
    corpus_module.write_corpus(root, tracks=24, seed=seed, workers=1)
    monkeypatch.undo()
    return root


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as monkeypatch:
        return write_short(tmp_path_factory.mktemp("corpus"), monkeypatch)


def read_table(root: Path) -> list[list[str]]:
    with open(root / "fma_metadata" / "tracks.csv", newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def column(root: Path, group: str, name: str) -> list[str]:
    table = read_table(root)
    places = [i for i, pair in enumerate(zip(*table[:2], strict=True)) if pair == (group, name)]
    assert len(places) == 1
    return [row[places[0]] for row in table[3:]]


def mp3_bytes(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*.mp3")}


def test_genres_are_fma_smalls_in_order() -> None:
    assert list(synth.GENRES) == EIGHT


@pytest.mark.parametrize("genre", EIGHT)
def test_a_track_is_sane_audio(genre: str) -> None:
    for seed in range(2):
        audio = synth.synthesize_track(genre, seed, seconds=5)
        assert audio.shape == (220_500, 2)
        assert audio.dtype == np.float32
        assert np.isfinite(audio).all()
        assert np.abs(audio).max() <= 1
        assert 0.02 < np.sqrt(np.mean(audio**2)) < 0.4
        assert np.abs(audio.mean(axis=0)).max() < 0.03
        assert not np.array_equal(audio[:, 0], audio[:, 1])  # stereo, not mono twice


def test_a_track_is_alive_throughout() -> None:
    for genre in EIGHT:
        seconds = synth.synthesize_track(genre, 3, seconds=8).reshape(8, -1)
        assert (np.sqrt(np.mean(seconds**2, axis=1)) > 1e-3).all()
        assert len(np.unique(seconds[:, :200], axis=0)) == 8


def test_genre_and_seed_determine_the_samples() -> None:
    first = synth.synthesize_track("Pop", 7, seconds=3)
    np.testing.assert_array_equal(first, synth.synthesize_track("Pop", 7, seconds=3))
    for genre, seed in (("Pop", 8), ("Rock", 7)):
        other = synth.synthesize_track(genre, seed, seconds=3)
        assert abs(np.corrcoef(first[:, 0], other[:, 0])[0, 1]) < 0.5


def test_an_odd_number_of_samples() -> None:
    assert synth.synthesize_track("Folk", 1, seconds=1.00003).shape == (44_101, 2)


def test_an_unknown_genre_is_named() -> None:
    with pytest.raises(ValueError, match="'Polka'.*Hip-Hop"):
        synth.synthesize_track("Polka", 1)


def test_genres_can_be_told_apart() -> None:
    """The nearest genre mean of log band energies beats chance (1/8) by far on other tracks."""

    def bands(genre: str, seed: int) -> np.ndarray:
        audio = synth.synthesize_track(genre, seed, seconds=3).mean(axis=1)
        power = np.abs(np.fft.rfft(audio[: 2048 * 64].reshape(-1, 2048))) ** 2
        edges = np.unique(np.geomspace(1, 1024, 30).astype(int))[:-1]
        loud = np.log(np.add.reduceat(power, edges, axis=1) + 1e-4)
        return np.concatenate([loud.mean(axis=0), loud.std(axis=0)])

    train = np.array([[bands(genre, seed) for seed in range(6)] for genre in EIGHT])
    spread = train.reshape(-1, train.shape[-1]).std(axis=0)
    means = train.mean(axis=1) / spread
    hits = [
        np.argmin(np.sum((means - bands(genre, seed) / spread) ** 2, axis=1)) == index
        for index, genre in enumerate(EIGHT)
        for seed in (50, 51, 52, 53)
    ]
    assert np.mean(hits) > 0.28


def test_the_header_is_fmas(corpus: Path) -> None:
    table = read_table(corpus)
    assert {len(row) for row in table} == {53}
    assert table[2] == ["track_id"] + [""] * 52
    assert Counter(table[0]) == {"": 1, "album": 13, "artist": 17, "set": 2, "track": 20}
    header = list(zip(table[0], table[1], strict=True))
    assert header[:3] == [("", ""), ("album", "comments"), ("album", "date_created")]
    assert header[30:34] == [
        ("artist", "wikipedia_page"),
        ("set", "split"),
        ("set", "subset"),
        ("track", "bit_rate"),
    ]
    assert header[40:43] == [("track", "genre_top"), ("track", "genres"), ("track", "genres_all")]
    assert header[-1] == ("track", "title")
    assert len(set(header)) == 53


def test_every_genre_is_in_every_split(corpus: Path) -> None:
    genres = column(corpus, "track", "genre_top")
    splits = column(corpus, "set", "split")
    pairs = Counter(zip(genres, splits, strict=True))
    assert pairs == {(g, s): 1 for g in EIGHT for s in ("training", "validation", "test")}
    assert set(column(corpus, "set", "subset")) == {"small"}
    assert all(column(corpus, "track", "title")) and all(column(corpus, "artist", "name"))
    assert "synthesised" in column(corpus, "artist", "bio")[0]
    ids = dict(zip(genres, column(corpus, "track", "genres"), strict=True))
    assert ids["Hip-Hop"] == "[21]" and ids["Instrumental"] == "[1235]"


def test_twelve_tracks_a_genre_split_eight_two_two() -> None:
    splits = Counter(row[2] for row in corpus_module._draw_rows(96, 0) if row[1] == "Folk")
    assert splits == {"training": 8, "validation": 2, "test": 2}


def test_the_files_lie_where_fma_puts_them(corpus: Path) -> None:
    ids = [int(row[0]) for row in read_table(corpus)[3:]]
    assert ids == sorted(set(ids)) and len(ids) == 24
    names = {f"fma_small/{f'{i:06d}'[:3]}/{i:06d}.mp3" for i in ids}
    files = {p.relative_to(corpus).as_posix() for p in corpus.rglob("*") if p.is_file()}
    assert files == names | {"fma_metadata/tracks.csv"}
    assert len({name[10:13] for name in names}) > 1
    genres = column(corpus, "track", "genre_top")
    assert genres != sorted(genres)


def test_a_file_holds_its_genres_track(tmp_path: Path) -> None:
    path = tmp_path / "000" / "000007.mp3"
    corpus_module._write_track((tmp_path, 7, "Rock", "training", 11))
    info = soundfile.info(path)
    assert (info.samplerate, info.channels, info.frames) == (44_100, 2, 1_323_000)
    assert info.format == "MP3"
    decoded = soundfile.read(path)[0]
    made = synth.synthesize_track("Rock", 11)
    assert np.corrcoef(decoded[:, 0], made[:, 0])[0, 1] > 0.8  # the coding loses a little


def test_processes_make_the_same_files(corpus: Path, tmp_path: Path) -> None:
    for row in corpus_module._draw_rows(24, 5)[:22]:  # leave two for the workers, to be quick
        path = tmp_path / "fma_small" / f"{row[0] // 1000:03d}" / f"{row[0]:06d}.mp3"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"kept")
    corpus_module.write_corpus(tmp_path, tracks=24, seed=5, workers=2)
    made = mp3_bytes(tmp_path)
    assert sorted(made) == sorted(mp3_bytes(corpus))
    assert sum(content == b"kept" for content in made.values()) == 22  # trusted, not made anew
    assert read_table(tmp_path) == read_table(corpus)
    last = corpus_module._draw_rows(24, 5)[-1]
    corpus_module._write_track((tmp_path / "again", *last))
    (again,) = mp3_bytes(tmp_path / "again").items()
    assert made[f"fma_small/{again[0]}"] == again[1]


def test_seed_and_number_alone_make_the_track(corpus: Path, tmp_path: Path, monkeypatch) -> None:
    assert mp3_bytes(write_short(tmp_path / "same", monkeypatch)) == mp3_bytes(corpus)
    few = {row[1:4:2] for row in corpus_module._draw_rows(24, 5)}
    assert few < {row[1:4:2] for row in corpus_module._draw_rows(96, 5)}
    assert not few & {row[1:4:2] for row in corpus_module._draw_rows(24, 6)}
    assert len({row[3] for row in corpus_module._draw_rows(96, 5)}) == 96
    # From run to run too: the seeds of two tracks, as first drawn.
    assert ("Electronic", 12631478326263854183) in few
    assert ("Rock", 12151908989600622437) in few


def test_a_failed_track_leaves_no_table_and_no_part(tmp_path: Path, monkeypatch) -> None:
    def fail(path: Path, *_args: object, **_kwargs: object) -> None:
        Path(path).write_bytes(b"half a track")
        raise OSError("no space left")

    monkeypatch.setattr(corpus_module, "synthesize_track", lambda genre, seed: np.zeros((9, 2)))
    monkeypatch.setattr(corpus_module.soundfile, "write", fail)
    with pytest.raises(OSError, match="no space"):
        corpus_module.write_corpus(tmp_path, tracks=24, seed=1, workers=1)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("tracks", [0, 16, 25, -24])
def test_a_bad_number_of_tracks_is_refused(tracks: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"multiple of 8 and at least 24, not {tracks}"):
        corpus_module.write_corpus(tmp_path / "new", tracks=tracks, seed=1, workers=1)
    assert not (tmp_path / "new").exists()


def test_no_workers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="workers"):
        corpus_module.write_corpus(tmp_path, tracks=24, seed=1, workers=0)
