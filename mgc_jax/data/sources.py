"""Where a config's data set comes from: its list of tracks, and a fingerprint of that source."""

import collections
import hashlib
import json
import os
from collections.abc import Mapping

from etils import epath
from ml_collections import ConfigDict

from mgc_jax.data.audio_folder import read_folder
from mgc_jax.data.fma import read_fma
from mgc_jax.data.folders import real_folder
from mgc_jax.data.gtzan import read_gtzan
from mgc_jax.data.tracks import SPLITS, Listing, genres_of
from mgc_jax.errors import InputError

PathLike = str | os.PathLike


def list_tracks(
    config: ConfigDict,
    workers: int,
    *,
    audio_dir: PathLike | None = None,
    metadata_dir: PathLike | None = None,
    download: bool = False,
    **folder_options: PathLike | None,
) -> Listing:
    """The tracks of a config's data set.

    Args:
        config: keys `dataset`, `data_dir`, and `demo` for the demo.
        workers: processes that synthesise the demo.
        audio_dir: folder of audio files; the demo makes its own if none is given.
        metadata_dir: folder of FMA's `tracks.csv`; `fma_metadata` beside `audio_dir` if none is
            given.
        download: fetch FMA's archives, if no `audio_dir` is given.
        **folder_options: `splits_csv`, `labels_csv`, `labels`, `group_by`, as for `read_folder`;
            None is as if an option was not given.

    Raises:
        InputError: missing folders, foreign or empty metadata, flags of another data set.
    """
    name = config.dataset
    options = {key: value for key, value in folder_options.items() if value is not None}
    if options and name != "audio_folder":
        raise InputError(
            "--splits_csv, --labels_csv, --labels and --group_by are for audio_folder; "
            f"{name} has genres and splits of its own"
        )
    if name not in ("audio_folder", "gtzan"):
        return _list_fma(config, workers, audio_dir, metadata_dir, download)
    if metadata_dir or download:
        raise InputError(f"--metadata_dir and --download are for FMA, not for {name}")
    if not audio_dir:
        raise InputError(f"{name} needs --audio_dir, the folder of the genres' folders")
    return read_gtzan(audio_dir) if name == "gtzan" else read_folder(audio_dir, **options)


def fingerprint(listing: Listing) -> dict[str, str]:
    """What a data set was made from, so that another source is told from the same one.

    Args:
        listing: as `list_tracks` gives it, before anything is decoded.

    Returns:
        `hash`: of the folder, and of every track's path, size in bytes, genre and split;
        `summary`: the same in a few words, for people.
    """
    folder = listing.source.get("folder", "")
    files = [*listing.tracks, *(track for track, _ in listing.skipped)]
    sizes = [_size_of(track.path) for track in files]
    rows = []
    for track, size in zip(files, sizes, strict=True):
        # An id stands for the path below the folder, which itself may be named in several ways.
        name = os.path.basename(track.path) if track.track_id < 0 else track.track_id
        rows.append(json.dumps([name, size, track.genre, track.split]))
    content = json.dumps([folder, sorted(rows)])
    splits = collections.Counter(track.split for track in listing.tracks)
    parts = [
        f"{len(files):,} files of {sum(size for size in sizes if size > 0) / 1e6:,.1f} MB",
        f"{len(genres_of(listing.tracks))} genres",
        ", ".join(f"{splits[split]:,} {split}" for split in SPLITS),
        *(f"{key} {value}" for key, value in listing.source.items() if key != "folder"),
    ]
    return {
        "hash": hashlib.sha256(content.encode()).hexdigest(),
        "summary": f"{folder} ({'; '.join(parts)})",
    }


def check_same_source(
    stored: Mapping[str, str], found: Mapping[str, str], target: PathLike
) -> None:
    """Checks that records were made from the source that a command names.

    Args:
        stored, found: fingerprints, of the records and of the command.
        target: the folder of the records, for the message.

    Raises:
        InputError: they were not.
    """
    if stored.get("hash") != found["hash"]:
        raise InputError(
            f"{target} was prepared from {stored.get('summary', 'an unknown source')}, not from "
            f"{found['summary']}: name another --data_dir, or delete it"
        )


def _list_fma(
    config: ConfigDict,
    workers: int,
    audio_dir: PathLike | None,
    metadata_dir: PathLike | None,
    download: bool,
) -> Listing:
    """An FMA subset, or the demo in FMA's layout; their audio is made or fetched if asked for."""
    name = config.dataset
    if audio_dir:
        folder = real_folder(audio_dir)
    elif name == "demo":
        audio_dir = _make_demo(config, workers)
        folder = f"the demo's {audio_dir.parent.name.replace('_', ' ')}"
    elif download:
        from mgc_jax.data.download import fetch

        downloads = epath.Path(config.data_dir) / "downloads"
        metadata_dir = metadata_dir or fetch("fma_metadata", downloads)
        audio_dir = fetch(name, downloads)
        folder = f"FMA's archive {name}"
    else:
        raise InputError(
            f"{name} needs --audio_dir, the folder with its audio files, or --download"
        )
    if not metadata_dir:
        beside = (
            os.fspath(audio_dir) if "://" in os.fspath(audio_dir) else os.path.abspath(audio_dir)
        )
        metadata_dir = epath.Path(beside).parent / "fma_metadata"
    subset = "small" if name == "demo" else name.removeprefix("fma_")
    listing = read_fma(audio_dir, metadata_dir, subset)
    return listing._replace(source={"folder": folder, "splits": "FMA's"})


def _make_demo(config: ConfigDict, workers: int) -> epath.Path:
    """Synthesises the demo, unless that is done already; gives the folder of its audio."""
    from mgc_jax.demo import corpus

    made = f"{config.demo.tracks}_tracks_seed_{config.demo.seed}"
    root = epath.Path(config.data_dir) / "demo_audio" / made
    corpus.write_corpus(root, tracks=config.demo.tracks, seed=config.demo.seed, workers=workers)
    return root / "fma_small"


def _size_of(path: str) -> int:
    """In bytes; -1 of what is not there, or not on this machine's disks."""
    try:
        return os.stat(path).st_size
    except (OSError, ValueError):
        return -1
