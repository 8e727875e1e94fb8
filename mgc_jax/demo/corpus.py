"""The demo corpus: synthesised MP3s and a `tracks.csv`, laid out as FMA small is.

It lets the whole way (decoding, features, training, evaluation) run without a download, through the
same code that reads the real FMA.
"""

import csv
import math
import os
from pathlib import Path

import numpy as np
import soundfile

from mgc_jax import console
from mgc_jax.demo.synth import GENRES, SAMPLE_RATE, synthesize_track
from mgc_jax.files import replacing
from mgc_jax.workers import run_all

_Row = tuple[int, str, str, int]  # track id, genre, split, own seed

# The tables' columns, as FMA's.
_COLUMNS = {
    "album": """comments date_created date_released engineer favorites id information listens
        producer tags title tracks type""",
    "artist": """active_year_begin active_year_end associated_labels bio comments date_created
        favorites id latitude location longitude members name related_projects tags website
        wikipedia_page""",
    "set": "split subset",
    "track": """bit_rate comments composer date_created date_recorded duration favorites genre_top
        genres genres_all information interest language_code license listens lyricist number
        publisher tags title""",
}
_GENRE_IDS = dict(zip(GENRES, (15, 38, 17, 21, 1235, 2, 10, 12), strict=True))  # FMA's


def write_corpus(root: str | os.PathLike, *, tracks: int, seed: int, workers: int) -> None:
    """Write a corpus as FMA small is laid out: `fma_small/` and `fma_metadata/tracks.csv`.

    `tracks.csv` is written last, so where it stands the corpus is whole. A rerun trusts the MP3
    files it finds, so keep one folder for one (tracks, seed). How a track sounds depends on the
    seed, its genre and its number in the genre alone. With several workers the processes are
    spawned: a script must call this under `if __name__ == "__main__"`.

    Args:
        root: the folder, made if missing.
        tracks: how many in all: a multiple of 8, at least 24, so that each split has every genre.
        seed: a non-negative integer that determines the corpus.
        workers: how many processes; 1 works in this one.

    Raises:
        ValueError: if `tracks` or `workers` is out of range.
        OSError, soundfile.LibsndfileError: if a file cannot be written.
    """
    if tracks < 24 or tracks % len(GENRES):
        raise ValueError(f"tracks must be a multiple of 8 and at least 24, not {tracks}")
    if workers < 1:
        raise ValueError(f"workers must be at least 1, not {workers}")
    rows = _draw_rows(tracks, seed)
    jobs = [(Path(root, "fma_small"), *row) for row in rows]
    done = ((job, _write_track(job)) for job in jobs)
    if workers > 1:
        done = run_all(_write_track, jobs, workers)
    with console.progress_bar(total=tracks, description="synthesising", unit="track") as bar:
        for _, error in done:
            if error is not None:
                raise error
            bar.update()
    _write_table(Path(root, "fma_metadata", "tracks.csv"), rows)


def _draw_rows(tracks: int, seed: int) -> list[_Row]:
    rng = np.random.default_rng([seed, len(GENRES)])  # no genre's number: apart from the tracks'
    ids = 2 + rng.choice(max(3998, 4 * tracks), size=tracks, replace=False)
    each = tracks // len(GENRES)
    held_out = math.ceil(each / 10)
    splits = ["training"] * (each - 2 * held_out)
    splits += ["validation"] * held_out + ["test"] * held_out
    rows = []
    for place, track_id in enumerate(ids.tolist()):
        index, number = divmod(place, each)
        entropy = np.random.SeedSequence([seed, index, number]).generate_state(1, np.uint64)
        rows.append((track_id, GENRES[index], splits[number], int(entropy[0])))
    return sorted(rows)


def _write_track(job: tuple[Path, int, str, str, int]) -> None:
    folder, track_id, genre, _, seed = job
    path = folder / f"{track_id // 1000:03d}" / f"{track_id:06d}.mp3"
    if not path.exists():
        coding = {"format": "MP3", "bitrate_mode": "VARIABLE", "compression_level": 0.85}
        with replacing(path) as part:
            soundfile.write(part, synthesize_track(genre, seed), SAMPLE_RATE, **coding)


def _write_table(path: Path, rows: list[_Row]) -> None:
    columns = [(group, name) for group, names in _COLUMNS.items() for name in names.split()]
    with replacing(path) as part, open(part, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        for level in (0, 1):
            writer.writerow(["", *(column[level] for column in columns)])
        writer.writerow(["track_id", *[""] * len(columns)])
        for track_id, genre, split, _ in rows:
            cells = _cells(track_id, genre, split)
            writer.writerow([track_id, *(cells.get(" ".join(column)) for column in columns)])


def _cells(track_id: int, genre: str, split: str) -> dict[str, object]:
    """A track's row of the table, by the two header rows' words."""
    rng = np.random.default_rng(track_id)
    first, second = ("Amber", "Broken", "Early", "Quiet"), ("Engines", "Meadow", "Orbit", "Winter")
    album, artist, title = (f"{rng.choice(first)} {rng.choice(second)}" for _ in range(3))
    about = {"id": track_id, "comments": 0, "favorites": 0, "listens": int(rng.integers(100, 9000))}
    about |= {"date_created": "2008-11-26 01:48:12", "tags": "['synthesised']", "title": title}
    cells = {f"{group} {key}": about[key] for key in about for group in _COLUMNS}
    genres = [_GENRE_IDS[genre]]
    return cells | {
        "album title": album, "album tracks": 1, "album type": "Album", "artist name": artist,
        "artist bio": "<p>No band:\nthis is synthesised.</p>", "set split": split,
        "set subset": "small", "track bit_rate": 256000, "track duration": 30, "track number": 1,
        "track genre_top": genre, "track genres": genres, "track genres_all": genres,
        "track information": "<p>Synthesised.</p>", "track interest": 3 * about["listens"],
        "track language_code": "en", "track license": "CC0 1.0",
    }  # fmt: skip
