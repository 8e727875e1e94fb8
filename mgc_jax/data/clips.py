"""One audio file to its stored clips: decoding, clips and features."""

from collections.abc import Iterator, Sequence

import numpy as np
from etils import epath

from mgc_jax.data import audio
from mgc_jax.data.features import Feature, Mel

Clip = dict[str, np.ndarray]


def iter_clips(path: str, features: Sequence[Feature]) -> Iterator[Clip]:
    """Decodes one file and computes the stored features of its clips, in bounded memory.

    Args:
        path: the audio file.
        features: what to store of each clip.

    Yields:
        A clip, by feature name; at least one.

    Raises:
        InputError: the file cannot be used; the message is the reason. It may come after clips.
    """
    settings = features[0].audio
    for clip in audio.read_clips(path, settings.sample_rate, settings.clip_samples):
        yield clip_features(clip, features)


def clip_features(
    clip: np.ndarray, features: Sequence[Feature], precision: type[np.floating] = np.float32
) -> Clip:
    """The stored features of one clip `[samples] float32`, by name."""
    return {feature.name: feature.encode(clip, precision) for feature in features}


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
    clip = next(audio.read_clips(path, settings.sample_rate, settings.clip_samples))
    with epath.Path(path).open("rb") as file:
        # One clip more, as the resampler looks ahead.
        expected, _ = librosa.load(
            file, sr=settings.sample_rate, duration=2 * settings.clip_seconds
        )
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
