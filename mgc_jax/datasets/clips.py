"""Tracks to stored clips: decoding, clips and features, spread over worker processes."""

import collections
import functools
import itertools
import multiprocessing
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor

import numpy as np

from mgc_jax import audio, features
from mgc_jax.datasets.tracks import Track
from mgc_jax.errors import InputError

Clip = dict[str, np.ndarray]


def extract_clips(path: str, settings: features.ClipSettings, names: tuple[str, ...]) -> list[Clip]:
    """Decodes one file and computes the stored features of its clips.

    Args:
        path: the audio file.
        settings: rate, clip length and log-mel settings.
        names: `mel` and/or `waveform`.

    Returns:
        One dictionary a clip: `mel` `[frames, mels] uint8`, `waveform` `[samples] int16`.

    Raises:
        InputError: the file cannot be used; the message is the reason.
    """
    waveform = audio.load_audio(path, settings.sample_rate)
    clips = audio.split_clips(waveform, settings.sample_rate, settings.clip_samples)
    compute = {
        "mel": lambda clip: features.encode_mel(_log_mel(settings)(clip), settings.top_db),
        "waveform": features.encode_waveform,
    }
    return [{name: compute[name](clip) for name in names} for clip in clips]


def extract_all(
    tracks: Iterable[Track], settings: features.ClipSettings, names: tuple[str, ...], workers: int
) -> Iterator[tuple[Track, list[Clip] | InputError]]:
    """Runs `extract_clips` over tracks in worker processes.

    Yields:
        Each track in the order given, with its clips or the error that says why it cannot be used.
    """
    extract = functools.partial(_extract_or_error, settings=settings, names=names)
    if workers == 1:
        yield from ((track, extract(track.path)) for track in tracks)
        return
    # Not fork: the parent holds TensorFlow's threads.
    context = multiprocessing.get_context("spawn")
    tracks = iter(tracks)
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        # A bounded window, so that finished clips do not pile up in memory while the writer is
        # busy.
        pending = collections.deque()
        while True:
            for track in itertools.islice(tracks, 4 * workers - len(pending)):
                pending.append((track, pool.submit(extract, track.path)))
            if not pending:
                return
            track, future = pending.popleft()
            yield track, future.result()


def _extract_or_error(path: str, **kwargs) -> list[Clip] | InputError:
    try:
        return extract_clips(path, **kwargs)
    except InputError as error:
        return error


@functools.cache
def _log_mel(settings: features.ClipSettings) -> features.LogMel:
    """One window and filterbank a process."""
    return features.LogMel(settings)


def deviation_from_librosa(path: str, settings: features.ClipSettings) -> dict[str, float]:
    """How far our waveform and log-mel of one file's first clip are from librosa's own, before
    storage.

    Returns:
        `waveform`: largest absolute difference of samples; `mel_db`: largest difference, in dB.

    Raises:
        InputError: the file cannot be used.
    """
    import librosa

    waveform = audio.load_audio(path, settings.sample_rate)
    clip = audio.split_clips(waveform, settings.sample_rate, settings.clip_samples)[0]
    expected_waveform, _ = librosa.load(path, sr=settings.sample_rate)
    power = librosa.feature.melspectrogram(
        y=clip,
        sr=settings.sample_rate,
        n_fft=settings.n_fft,
        hop_length=settings.hop_length,
        n_mels=settings.n_mels,
    )[:, : settings.frames]
    expected_mel = librosa.power_to_db(power, ref=np.max, top_db=settings.top_db).T
    return {
        "waveform": float(np.abs(waveform - expected_waveform).max()),
        "mel_db": float(np.abs(_log_mel(settings)(clip) - expected_mel).max()),
    }
