"""A data set from its audio files, in order: list the tracks, compare one with librosa, decode all
in worker processes, write the records.

Finished tracks are kept on disk until the set is whole, so that a rerun goes on where this one
stopped; the set appears under its name as the last step.
"""

import contextlib
import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import tensorflow as tf
import tensorflow_datasets as tfds
from etils import epath
from ml_collections import ConfigDict

from mgc_jax import console, process, signals
from mgc_jax.data.builders import BUILDERS, make_builder
from mgc_jax.data.cache import ClipCache
from mgc_jax.data.clips import Clip, deviation_from_librosa, iter_clips
from mgc_jax.data.features import Feature, make_features
from mgc_jax.data.shards import dataset_path, read_metadata
from mgc_jax.data.sources import check_same_source, fingerprint, list_tracks
from mgc_jax.data.tracks import (
    SKIPPED_FILE,
    Listing,
    Track,
    check_usable,
    count_duplicates,
    genres_of,
    name_lost_genres,
    without_duplicates,
)
from mgc_jax.errors import InputError, choices
from mgc_jax.files import take_lock
from mgc_jax.workers import run_all

# Largest differences from librosa's waveform (samples) and log-mels (dB).
_MAX_DEVIATION = {"waveform": 1e-6}
_MAX_MEL_DEVIATION = 0.01


def prepare(
    config: ConfigDict,
    feature_names: Sequence[str],
    *,
    workers: int = 1,
    max_skipped: float = 0.05,
    beam_runner: str | None = None,
    beam_options: str = "",
    **sources,
) -> None:
    """Writes a config's data set, unless it is there already.

    Finished tracks are kept on disk until the set is whole, so that a rerun goes on where this one
    stopped; the set appears under its name as the last step. A second process waits for the first.

    Args:
        config: keys `dataset`, `data_dir`, `audio`, those of the features, and `demo` for the demo.
        feature_names: names of stored features.
        workers: processes that decode.
        max_skipped: the largest share of tracks that may be unusable.
        beam_runner: Apache Beam's runner that decodes and writes, instead of the workers.
        beam_options: of the runner, as `key=value,...`.
        **sources: as for `list_tracks`.

    Raises:
        InputError: unknown data set, missing folder, foreign or empty metadata, no usable track in
            a split, more than `max_skipped` unusable ones, or nowhere to write.
    """
    if config.dataset not in BUILDERS:
        known = choices(config.dataset, BUILDERS)
        raise InputError(f"config.dataset={config.dataset!r} is unknown: {known}")
    if config.name and (
        config.name in BUILDERS or not re.fullmatch("[a-z][a-z0-9_]*", config.name)
    ):
        raise InputError(
            f"config.name={config.name!r}: use small letters, digits and _, beginning with a "
            "letter, and no data set's own name"
        )
    process.hide_gpus_from_tensorflow()
    tfds.disable_progress_bar()  # ours counts tracks
    features = make_features(feature_names, config)
    target = dataset_path(config, feature_names)
    folder = target.parent
    try:
        with _locked(folder):
            for leftover in folder.glob("incomplete.*"):
                leftover.rmtree()  # of a run that was killed
            if (target / "dataset_info.json").exists():
                _check_same_source(target, config, workers, sources)
                console.log.info("%s is there already; delete it to make it again", target)
            elif target.exists():
                raise InputError(f"{target} is not a whole data set: delete it")
            else:
                listing = list_tracks(config, workers, **sources)
                left_out = listing.left_out
                check_usable(listing.tracks, listing.skipped, max_skipped, folder, left_out)
                _write(config, features, listing, workers, max_skipped, beam_runner, beam_options)
            (folder / SKIPPED_FILE).unlink(missing_ok=True)  # of a run that failed
            _cache_folder(folder).rmtree(missing_ok=True)
    except (OSError, tf.errors.OpError) as error:
        raise InputError(f"cannot write the data set to {target}: {error}") from None


def _write(
    config: ConfigDict,
    features: tuple[Feature, ...],
    listing: Listing,
    workers: int,
    max_skipped: float,
    beam_runner: str | None,
    beam_options: str,
) -> None:
    """Decodes what is not decoded yet, and writes the records, the lists and the metadata."""
    folder = dataset_path(config, [feature.name for feature in features]).parent
    download_config = None
    if beam_runner:
        try:
            from mgc_jax.data.beam import make_runner
        except ImportError as error:
            raise InputError(f"--beam_runner needs the extra beam: {error}") from None
        runner, options = make_runner(beam_runner, beam_options)
        download_config = tfds.download.DownloadConfig(beam_runner=runner, beam_options=options)
    facts = {
        "source": fingerprint(listing),
        "librosa_deviation": _check_against_librosa(listing.tracks, features),
        "versions": {name: version(name) for name in ("mgc_jax", "soundfile", "soxr", "librosa")},
    }
    if beam_runner:
        used = listing
        clips_of = functools.partial(_decode, features=features)
    else:
        cache = ClipCache(str(_cache_folder(folder)), features)
        entries, failures = _fill_cache(cache, listing.tracks, workers)
        used = _without_failures(listing, failures)
        digests = {track.path: cache.digest(entries[track.path]) for track in used.tracks}
        if config.dataset == "audio_folder":
            used = _without_copies(used, digests)
        else:
            facts["duplicates"] = _say_copies(used.tracks, digests)
        facts["silent_clips"] = sum(cache.silent(entries[track.path]) for track in used.tracks)
        check_usable(used.tracks, used.skipped, max_skipped, folder, used.left_out)
        name_lost_genres(listing.tracks, used.tracks)

        def clips_of(track):
            return cache.load(entries[track.path])

    builder = make_builder(
        config.dataset,
        config.name,
        data_dir=config.data_dir,
        tracks=used.tracks,
        skipped=used.skipped,
        left_out=used.left_out,
        genres=genres_of(used.tracks),
        clip_features=features,
        clips_of=clips_of,
        max_skipped=max_skipped,
        facts=facts,
    )
    with contextlib.redirect_stdout(None):  # TFDS talks of downloading
        builder.download_and_prepare(download_config=download_config)
    metadata = builder.info.metadata
    listed = metadata["tracks_listed"]
    splits = metadata["splits"].values()
    count = sum(split["tracks"] for split in splits)
    clips = sum(split["clips"] for split in splits)
    said = f"; {listed - count} skipped, see {SKIPPED_FILE} there" if count < listed else ""
    if silent := metadata.get("silent_clips"):
        said += f"; {silent} clips without signal left out"
    console.log.info(
        "%s: %d of %d tracks, %d clips%s", builder.data_dir, count, listed, clips, said
    )


def _without_failures(listing: Listing, failures: Mapping[str, str]) -> Listing:
    """A listing whose tracks that could not be decoded are skipped: path to reason."""
    tracks = [track for track in listing.tracks if track.path not in failures]
    failed = [(t, failures[t.path]) for t in listing.tracks if t.path in failures]
    return listing._replace(tracks=tracks, skipped=[*listing.skipped, *failed])


def _without_copies(listing: Listing, digests: Mapping[str, str]) -> Listing:
    """A listing that has each content once, by a hash of its first clip."""
    once = without_duplicates(listing.tracks, digests)
    if once.left_out:
        console.log.warning("%d copies of other tracks are left out", len(once.left_out))
    return listing._replace(tracks=once.tracks, left_out=[*listing.left_out, *once.left_out])


def _say_copies(tracks: Sequence[Track], digests: Mapping[str, str]) -> dict[str, int]:
    """Counts the copies in data whose tracks are given, and says them."""
    counts = count_duplicates(tracks, digests)
    if counts["contents"]:
        console.log.warning(
            "%d tracks are copies of %d contents, %d of them in several splits: kept, as the data "
            "set has them",
            *(counts[name] for name in ("tracks", "contents", "across_splits")),
        )
    return counts


def _check_same_source(
    target: epath.Path, config: ConfigDict, workers: int, sources: Mapping[str, Any]
) -> None:
    """Raises InputError where records that are there were made from something else.

    Those of the demo and of FMA's archives are not listed anew: that could mean to make or fetch
    them again.
    """
    metadata = read_metadata(target)
    if sources.get("audio_dir"):
        found = fingerprint(list_tracks(config, workers, **sources))
        check_same_source(metadata.get("source", {}), found, target)
    elif config.dataset == "demo":
        made = f"{config.demo.tracks} tracks seed {config.demo.seed}"
        stored = metadata.get("source", {}).get("summary", made)
        if made not in stored:
            raise InputError(
                f"{target} was prepared from {stored}, not from the demo's {made}: name another "
                "--data_dir, or delete it"
            )


def _decode(track: Track, features: tuple[Feature, ...]) -> Iterator[Clip]:
    return iter_clips(track.path, features)


def _check_against_librosa(
    tracks: Sequence[Track], features: tuple[Feature, ...]
) -> dict[str, float]:
    """Compares the first track that decodes with librosa, whose features ours must equal."""
    compare = functools.partial(deviation_from_librosa, features=features)
    with contextlib.closing(run_all(compare, [track.path for track in tracks], 1)) as results:
        for path, found in results:
            if isinstance(found, InputError):
                continue
            for name, deviation in found.items():
                if deviation > _MAX_DEVIATION.get(name, _MAX_MEL_DEVIATION):
                    raise InputError(
                        f"features of {path} differ from librosa's by {found}: the installed "
                        "versions do not fit together, install with constraints.txt"
                    )
            return found
    return {}  # nothing decodes, which is said later, with the reasons


def _fill_cache(
    cache: ClipCache, tracks: Sequence[Track], workers: int
) -> tuple[dict[str, epath.Path], dict[str, str]]:
    """Decodes what the cache does not hold.

    Returns:
        Path to entry, and path to the reason for those that cannot be used.
    """
    epath.Path(cache.folder).mkdir(parents=True, exist_ok=True)
    entries = {track.path: cache.entry(track.path) for track in tracks}
    todo = [(path, str(entry)) for path, entry in entries.items() if not cache.holds(entry)]
    if len(todo) < len(entries):
        console.log.info("%d tracks were decoded before", len(entries) - len(todo))
    failures = {}
    with console.progress_bar(total=len(todo), description="audio to clips", unit="track") as bar:
        for (path, _), error in run_all(cache.store, todo, workers):
            if error is not None:
                failures[path] = str(error)
                bar.set_postfix(skipped=len(failures), refresh=False)
            bar.update()
    return entries, failures


def _cache_folder(folder: epath.Path) -> epath.Path:
    return folder / "clips.incomplete"


@contextlib.contextmanager
def _locked(folder: epath.Path) -> Iterator[None]:
    """One process at a time; the lock ends with its process, however that ends."""
    folder.mkdir(parents=True, exist_ok=True)
    if "://" in str(folder):
        yield  # nothing to lock with
        return
    with open(folder / ".lock", "a+", encoding="utf-8", errors="replace") as file:
        waiting = False
        while holder := take_lock(file):
            if not waiting:
                console.log.info("waiting for %s, which prepares %s", holder, folder)
            waiting = True
            signals.stop_requested(seconds=0.2)
            signals.check()
        yield
