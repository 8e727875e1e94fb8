"""One audio file to its stored clips: decoding, clips and features."""

from collections.abc import Generator, Sequence
from typing import NamedTuple

import numpy as np
from etils import epath

from mgc_jax.data import audio
from mgc_jax.data.decoders import reads_as_librosa
from mgc_jax.data.features import AudioSettings, Feature, Mel
from mgc_jax.errors import InputError
from mgc_jax.workers import patience, watched

_FILTER = 1000  # samples, more than the resampler's filter is long


class Clip(NamedTuple):
    """A clip as it is stored.

    Attributes:
        number: of the clip in its track.
        start: in s from the start of the track.
        features: arrays by feature name.
    """

    number: int
    start: float
    features: dict[str, np.ndarray]


def iter_clips(
    path: str, features: Sequence[Feature], precision: type[np.floating] = np.float32
) -> Generator[Clip, None, int]:
    """Decodes one file and computes the stored features of its clips, in bounded memory.

    Args:
        path: the audio file.
        features: what to store of each clip.
        precision: see `encode_clips`.

    Yields:
        At least one clip; those without signal are passed over.

    Returns:
        How many were passed over, once all are given.

    Raises:
        InputError: the file cannot be used; the message is the reason. It may come after clips.
    """
    return encode_clips(_read_clips(path, features[0].audio), features, precision)


def encode_clips(
    clips: Generator[audio.AudioClip, None, int],
    features: Sequence[Feature],
    precision: type[np.floating] = np.float32,
) -> Generator[Clip, None, int]:
    """The stored features of clips, computed in a precision (see `Feature.encode`).

    Returns:
        What `clips` returns: how many were passed over, as they had no signal.
    """
    while True:
        try:
            clip = next(clips)
        except StopIteration as end:
            return end.value
        encoded = {feature.name: feature.encode(clip.samples, precision) for feature in features}
        yield Clip(clip.number, clip.start / features[0].audio.sample_rate, encoded)


def _read_clips(path: str, settings: AudioSettings) -> Generator[audio.AudioClip, None, int]:
    """The clips of a file; a worker process ends where its decoder hangs."""
    blocks = watched(audio.read_blocks(path, settings.sample_rate))
    return audio.cut_clips(blocks, settings.sample_rate, settings.clip_samples)


def deviation_from_librosa(path: str, features: Sequence[Feature]) -> dict[str, float]:
    """How far our waveform and log-mels of one file's first clip are from librosa's own, before
    storage.

    Returns:
        `waveform`: largest absolute difference of samples; `<name>_db` of each log-mel: largest
        difference of its values.

    Raises:
        InputError: the file cannot be used, or is none that librosa decodes as we do.
    """
    import librosa

    if not reads_as_librosa(path):
        raise InputError("librosa reads it by another decoder, or not to its end")
    settings = features[0].audio
    first = next(_read_clips(path, settings))
    clip = first.samples
    with patience(), epath.Path(path).open("rb") as file:
        # One clip more, as the resampler looks ahead.
        seconds = (first.number + 2) * settings.clip_seconds
        expected, _ = librosa.load(file, sr=settings.sample_rate, duration=seconds)
        expected = expected[first.start :]
    # Shorter than a clip are short files, which we repeat, and those whose length librosa guesses:
    # where it ends, its resampler's filter does.
    expected = expected[: len(clip)] if len(expected) > len(clip) else expected[:-_FILTER]
    found = clip[: len(expected)]
    apart = ~np.isclose(found, expected, atol=1e-6)
    if np.square(expected[apart]).sum() < 1e-3 * np.square(found[apart]).sum():
        raise InputError("its channels cancel each other, so that librosa's mean is silent")
    deviations = {"waveform": float(np.abs(found - expected).max(initial=0.0))}
    for mel in features:
        if isinstance(mel, Mel):
            power = librosa.feature.melspectrogram(
                y=clip,
                sr=settings.sample_rate,
                n_fft=mel.n_fft,
                hop_length=mel.hop_length,
                n_mels=mel.n_mels,
            )
            reference = mel.compress(power.T[: mel.frames], np)
            deviations[f"{mel.name}_db"] = float(np.abs(mel.log_mel(clip) - reference).max())
    return deviations
