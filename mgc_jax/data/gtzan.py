"""GTZAN with the fault-filtered split, without repeated, distorted and mislabelled tracks.

The split is that of C. Kereliuk, B. L. Sturm and J. Larsen, "Deep Learning and Music Adversaries",
IEEE Transactions on Multimedia 17(11), 2015: 443 tracks to train, 197 to validate, 290 to test.
`gtzan_splits.csv` has their numbers.
"""

import csv
import importlib.resources
import os

from etils import epath

from mgc_jax import console
from mgc_jax.data import audio
from mgc_jax.data.folders import find_audio, real_folder
from mgc_jax.data.tracks import Listing, Track, check_folder
from mgc_jax.errors import InputError

# Its file is no audio in the copies that most people have.
DAMAGED = "jazz.00054"


def read_splits() -> dict[str, str]:
    """The 930 tracks of the fault-filtered split by name, such as `blues.00029`, with the split."""
    table = importlib.resources.files("mgc_jax.data") / "gtzan_splits.csv"
    splits = {}
    for row in csv.DictReader(table.read_text(encoding="utf-8").splitlines()):
        for numbers in row["numbers"].split():
            first, _, last = numbers.partition("-")
            for number in range(int(first), int(last or first) + 1):
                splits[f"{row['genre']}.{number:05d}"] = row["split"]
    return splits


def read_gtzan(audio_dir: str | os.PathLike) -> Listing:
    """Lists GTZAN's tracks, wherever below a folder they are, sorted by name.

    Args:
        audio_dir: holds `blues/blues.00000.wav` (or `.au`, `.mp3`, ...) to any depth.

    Returns:
        The tracks of the split; those that are not there have the path where they should be. A
        track's id is its number from 0 to 999, 100 a genre: that of `jazz.00054` is 554.
        `jazz.00054` is skipped if it is damaged.

    Raises:
        InputError: the folder is missing, or holds none of the tracks.
    """
    check_folder(epath.Path(audio_dir), "the one that holds blues/, classical/, ...")
    splits = read_splits()
    found = find_audio(audio_dir)
    found.say_what_was_passed_over()
    paths = {}
    for path in found.audio:
        paths.setdefault(os.path.splitext(os.path.basename(path))[0], path)
    if not splits.keys() & paths.keys():
        raise InputError(f"no file such as blues/blues.00000.wav below --audio_dir={audio_dir}")
    listing = Listing([], [], [], {"folder": real_folder(audio_dir), "splits": "GTZAN's"})
    genres = sorted({name.partition(".")[0] for name in splits})
    for name, split in sorted(splits.items()):
        genre, _, number = name.partition(".")
        track_id = 100 * genres.index(genre) + int(number)
        path = paths.get(name, os.path.join(audio_dir, genre, f"{name}.wav"))
        track = Track(track_id, path, genre, split)
        if name == DAMAGED and name in paths and (reason := _damage(path)):
            listing.skipped.append((track, f"{reason}: known to be damaged in copies of GTZAN"))
        else:
            listing.tracks.append(track)
    others = len(paths.keys() - splits.keys())
    if others:
        console.log.info("%d files are no part of the fault-filtered split", others)
    return listing


def _damage(path: str) -> str | None:
    """Why a file cannot be decoded, if so."""
    try:
        for _ in audio.read_blocks(path, 22050):
            pass
    except InputError as error:
        return str(error)
    return None
