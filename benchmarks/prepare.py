"""Times how fast MP3s become clips: ours, librosa's plain way, and decoding alone.

    python benchmarks/prepare.py
    python benchmarks/prepare.py --tracks=24 --repetitions=9

Makes its own MP3s: 30 s of music from the demo's synthesiser, 44.1 kHz, stereo, 256 kbit/s, as the
clips of FMA small are on average. Run it on an idle machine with at least two free cores. Every
worker is a process with one thread; all three ways run in the same processes, in alternation.

Prints one JSON object, in tracks/s, medians of the repetitions: `{"one_worker": {"ours", "plain",
"decode"}, "two_workers": {...}, "ratios": {...}, "machine": {...}}`.

ours         what a worker of `mgc_jax.prepare` computes: both features in their stored form. To
             write them, which neither of the others does, takes some 1.3 ms a track more
plain        `librosa.load`, then `melspectrogram` and `power_to_db` of each clip
decode       `soundfile.read`
of_decode, over_plain, scaling   ours / decode and ours / plain with one worker, and ours with two
             workers / one: medians of the ratios within a repetition
core_hours, gigabytes            of FMA's subsets, extrapolated from ours with one worker and from
             the size of a track's clips
"""

import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

# One thread a worker; set before numpy loads its libraries.
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
# Runs from a clone, whether or not the package is installed.
sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import soundfile
from absl import flags

from mgc_jax import cli
from mgc_jax.configs import default
from mgc_jax.data.clips import iter_clips
from mgc_jax.data.features import make_features
from mgc_jax.demo.synth import GENRES, SAMPLE_RATE, synthesize_track

_TRACKS = flags.DEFINE_integer("tracks", 16, "MP3s a repetition, an even number.", 2)
_REPETITIONS = flags.DEFINE_integer("repetitions", 5, "Repetitions to take medians of.", 1)

_STORED = make_features(("mel", "waveform"), default.get_config())
# Tracks that are prepared (of large and full, those with a top genre) and their mean length in s.
_FMA = {
    "fma_small": (8_000, 30),
    "fma_medium": (25_000, 30),
    "fma_large": (49_598, 30),
    "fma_full": (49_598, 278),
}


def ours(path: str) -> None:
    list(iter_clips(path, _STORED))


def plain(path: str) -> None:
    import librosa

    mel = _STORED[0]
    rate = mel.audio.sample_rate
    samples = mel.audio.clip_samples
    waveform, _ = librosa.load(path, sr=rate)
    count = len(waveform) // samples
    for clip in waveform[: count * samples].reshape(count, samples):
        power = librosa.feature.melspectrogram(
            y=clip, sr=rate, n_fft=mel.n_fft, hop_length=mel.hop_length, n_mels=mel.n_mels
        )
        librosa.power_to_db(power, ref=np.max, top_db=mel.top_db)


def decode(path: str) -> None:
    soundfile.read(path, dtype="float32")


_WAYS = {"ours": ours, "plain": plain, "decode": decode}


def main(argv: list[str]) -> None:
    cli.reject_arguments(argv)
    context = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(1, context) as one,
        ProcessPoolExecutor(2, context) as two,
    ):
        paths = _write_tracks(Path(folder), _TRACKS.value)
        pools = {"one_worker": one, "two_workers": two}
        rates = {pool: {way: [] for way in _WAYS} for pool in pools}
        for repetition in range(-1, _REPETITIONS.value):  # the first warms up
            for name, pool in pools.items():
                for way, function in _WAYS.items():
                    start = time.perf_counter()
                    list(pool.map(function, paths))
                    rate = len(paths) / (time.perf_counter() - start)
                    if repetition >= 0:
                        rates[name][way].append(rate)
        clip = next(iter_clips(paths[0], _STORED)).features
        clip_bytes = sum(array.nbytes for array in clip.values())
    print(json.dumps(_summary(rates, clip_bytes), indent=1))


def _write_tracks(folder: Path, count: int) -> list[str]:
    paths = [str(folder / f"{i}.mp3") for i in range(count)]
    for i, path in enumerate(paths):
        coding = {"format": "MP3", "bitrate_mode": "CONSTANT", "compression_level": 0.25}
        soundfile.write(path, synthesize_track(GENRES[i % len(GENRES)], i), SAMPLE_RATE, **coding)
    return paths


def _summary(rates: dict, clip_bytes: int) -> dict:
    medians = {
        pool: {way: round(statistics.median(values), 2) for way, values in ways.items()}
        for pool, ways in rates.items()
    }

    def ratio(above: list[float], below: list[float]) -> float:
        return round(statistics.median(a / b for a, b in zip(above, below, strict=True)), 3)

    one, two = rates["one_worker"], rates["two_workers"]
    seconds = 1 / statistics.median(one["ours"]) / 30  # of computing a second of audio
    return medians | {
        "ratios": {
            "of_decode": ratio(one["ours"], one["decode"]),
            "over_plain": ratio(one["ours"], one["plain"]),
            "scaling": ratio(two["ours"], one["ours"]),
        },
        "core_hours": {
            name: round(tracks * length * seconds / 3600, 2)
            for name, (tracks, length) in _FMA.items()
        },
        "gigabytes": {
            name: round(tracks * (length // 10) * clip_bytes / 1e9, 1)
            for name, (tracks, length) in _FMA.items()
        },
        "machine": {"cores": len(os.sched_getaffinity(0)), "load_average": os.getloadavg()[0]},
    }


if __name__ == "__main__":
    cli.run_main(main)
