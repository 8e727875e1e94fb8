"""One audio file to its stored clips: decoding, clips and features."""

from collections.abc import Generator, Sequence
from typing import NamedTuple

import numpy as np
from etils import epath

from mgc_jax.data import audio
from mgc_jax.data.features import Feature, Mel


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


def iter_clips(path: str, features: Sequence[Feature]) -> Generator[Clip, None, int]:
    """Decodes one file and computes the stored features of its clips, in bounded memory.

    Args:
        path: the audio file.
        features: what to store of each clip.

    Yields:
        At least one clip; those without signal are passed over.

    Returns:
        How many were passed over, once all are given.

    Raises:
        InputError: the file cannot be used; the message is the reason. It may come after clips.
    """
    settings = features[0].audio
    clips = audio.read_clips(path, settings.sample_rate, settings.clip_samples)
    while True:
        try:
            clip = next(clips)
        except StopIteration as end:
            return end.value
        yield encode_clip(clip, features)


def encode_clip(
    clip: audio.AudioClip,
    features: Sequence[Feature],
    precision: type[np.floating] = np.float32,
) -> Clip:
    """A clip's stored features, computed in a precision (see `Feature.encode`)."""
    encoded = {feature.name: feature.encode(clip.samples, precision) for feature in features}
    return Clip(clip.number, clip.start / features[0].audio.sample_rate, encoded)


def deviation_from_librosa(path: str, features: Sequence[Feature]) -> dict[str, float]:
    """How far our waveform and log-mels of one file's first clip are from librosa's own, before
    storage.

    Returns:
        `waveform`: largest absolute difference of samples; `<name>_db` of each log-mel: largest
        difference of its values.

    Raises:
        InputError: the file cannot be used.
    """
    import librosa

    settings = features[0].audio
    clips = audio.read_clips(path, settings.sample_rate, settings.clip_samples)
    first = next(clips)
    clip = first.samples
    with epath.Path(path).open("rb") as file:
        # One clip more, as the resampler looks ahead.
        seconds = (first.number + 2) * settings.clip_seconds
        expected, _ = librosa.load(file, sr=settings.sample_rate, duration=seconds)
        expected = expected[first.start :]
    # A file shorter than a clip is repeated.
    deviations = {"waveform": float(np.abs(clip - np.resize(expected, len(clip))).max())}
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
