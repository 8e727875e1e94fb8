"""One audio file to its stored clips: decoding, clips and features."""

import functools
from collections.abc import Iterator

import numpy as np
from etils import epath

from mgc_jax.data import audio, features

Clip = dict[str, np.ndarray]
DTYPES = {"mel": np.uint8, "waveform": np.int16}


def iter_clips(
    path: str, settings: features.ClipSettings, names: tuple[str, ...]
) -> Iterator[Clip]:
    """Decodes one file and computes the stored features of its clips, in bounded memory.

    Args:
        path: the audio file.
        settings: rate, clip length and log-mel settings.
        names: `mel` and/or `waveform`.

    Yields:
        A clip: `mel` `[frames, mels] uint8`, `waveform` `[samples] int16`; at least one.

    Raises:
        InputError: the file cannot be used; the message is the reason. It may come after clips.
    """
    for clip in audio.read_clips(path, settings.sample_rate, settings.clip_samples):
        yield clip_features(clip, settings, names)


def clip_features(
    clip: np.ndarray,
    settings: features.ClipSettings,
    names: tuple[str, ...],
    dtype: type[np.floating] = np.float32,
) -> Clip:
    """The stored features of one clip `[samples] float32`, as `iter_clips` gives them.

    In float64 a few bytes of a log-mel round to their neighbours.
    """
    compute = {
        "mel": lambda: features.encode_mel(_log_mel(settings, dtype)(clip), settings.top_db),
        "waveform": lambda: features.encode_waveform(clip),
    }
    return {name: compute[name]() for name in names}


def extract_clips(path: str, settings: features.ClipSettings, names: tuple[str, ...]) -> list[Clip]:
    """All of `iter_clips`."""
    return list(iter_clips(path, settings, names))


@functools.cache
def _log_mel(
    settings: features.ClipSettings, dtype: type[np.floating] = np.float32
) -> features.LogMel:
    """One window and filterbank a process."""
    return features.LogMel(settings, dtype)


def deviation_from_librosa(path: str, settings: features.ClipSettings) -> dict[str, float]:
    """How far our waveform and log-mel of one file's first clip are from librosa's own, before
    storage.

    Returns:
        `waveform`: largest absolute difference of samples; `mel_db`: largest difference, in dB.

    Raises:
        InputError: the file cannot be used.
    """
    import librosa

    clip = next(audio.read_clips(path, settings.sample_rate, settings.clip_samples))
    with epath.Path(path).open("rb") as file:
        # One clip more, as the resampler looks ahead.
        expected, _ = librosa.load(
            file, sr=settings.sample_rate, duration=2 * settings.clip_seconds
        )
    power = librosa.feature.melspectrogram(
        y=clip,
        sr=settings.sample_rate,
        n_fft=settings.n_fft,
        hop_length=settings.hop_length,
        n_mels=settings.n_mels,
    )[:, : settings.frames]
    expected_mel = librosa.power_to_db(power, ref=np.max, top_db=settings.top_db).T
    return {
        # A file shorter than a clip is repeated.
        "waveform": float(np.abs(clip - np.resize(expected, len(clip))).max()),
        "mel_db": float(np.abs(_log_mel(settings)(clip) - expected_mel).max()),
    }
