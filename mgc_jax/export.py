"""A trained network with its features as files that need nothing of this package.

    python -m mgc_jax.export --workdir=runs/densenet exported/

exported/network.jax_export   for jax.export.deserialize, on CPUs and NVIDIA GPUs
exported/saved_model/         for tf.saved_model.load, on CPUs; where tensorflow is installed
exported/model.json           genres, sample rate and samples of a clip

Both are one function: clips `[batch, samples] float32`, mono in [-1, 1], to probabilities
`[batch, genres] float32`, for any batch. Inside, features are rounded as they are for training.
README.md shows how to call them. A file's prediction is the mean of its clips' log-probabilities.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from absl import flags

from mgc_jax import cli, console
from mgc_jax.errors import InputError
from mgc_jax.files import write_bytes, write_text

if TYPE_CHECKING:
    import jax

    from mgc_jax.data.features import ClipSettings

_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Workdir of the run whose best checkpoint is exported."
)


def main(argv: list[str]) -> None:
    if not _WORKDIR.value:
        raise InputError("--workdir=... is missing: the folder of a trained run")
    if len(argv) != 2:
        raise InputError("give one folder to write to: python -m mgc_jax.export --workdir=W OUT")
    out = Path(argv[1])
    try:
        out.mkdir(parents=True, exist_ok=True)
        write(_WORKDIR.value, out)
    except OSError as error:
        raise InputError(f"cannot write to {out}: {error.strerror}") from None


def write(workdir: str, out: Path) -> None:
    """Writes what the module's head lists.

    Raises:
        InputError: the workdir holds no run or no finished epoch.
    """
    import jax
    from jax import export as jax_export

    from mgc_jax.training.network import load_run

    run = load_run(workdir)
    s = run.network.settings

    def probabilities(clips):
        inputs = [network_input(name, clips, s) for name in run.network.module.inputs]
        return jax.nn.softmax(run.network.module.apply(run.variables, *inputs, train=False))

    # The log-mel is float64, which leaves the least to rounding on any platform.
    with jax.enable_x64(True):
        (batch,) = jax_export.symbolic_shape("batch")
        clips = jax.ShapeDtypeStruct((batch, s.clip_samples), np.float32)
        exported = jax_export.export(jax.jit(probabilities), platforms=("cpu", "cuda"))(clips)
        write_bytes(out / "network.jax_export", exported.serialize())
        console.log.info("wrote %s", out / "network.jax_export")
        _write_saved_model(probabilities, s.clip_samples, out / "saved_model")
    about = {
        "genres": run.network.genres,
        "sample_rate": s.sample_rate,
        "clip_samples": s.clip_samples,
    }
    write_text(out / "model.json", json.dumps(about, indent=2, ensure_ascii=False))


def network_input(name: str, clips: "jax.Array", s: "ClipSettings") -> "jax.Array":
    """A network's input from waveforms, by JAX alone: as the stored features give it.

    Args:
        name: `mel` or `waveform`.
        clips: `[batch, samples] float32`.
        s: settings of the run.

    Returns:
        `[batch, frames, mels]` or `[batch, samples]`, float32 in [-1, 1].
    """
    import jax.numpy as jnp

    from mgc_jax.data.features import to_network_input

    if name == "waveform":
        stored = jnp.clip(jnp.round(clips * 32768), -32768, 32767)
    else:
        stored = jnp.round((log_mel(clips, s) + s.top_db) * (255 / s.top_db))
    return to_network_input(name, stored)


def log_mel(clips: "jax.Array", s: "ClipSettings") -> "jax.Array":
    """`features.LogMel` for a batch, by JAX alone.

    Args:
        clips: `[batch, samples] float32`.
        s: settings of the run.

    Returns:
        `[batch, frames, mels] float32`, dB in [-top_db, 0].
    """
    import jax.numpy as jnp

    from mgc_jax.data.features import MIN_POWER, LogMel

    reference = LogMel(s, np.float64)
    padded = jnp.pad(clips.astype(jnp.float64), ((0, 0), (s.n_fft // 2,) * 2))
    starts = np.arange(s.frames) * s.hop_length
    windows = padded[:, starts[:, None] + np.arange(s.n_fft)] * reference.window
    spectrum = jnp.fft.rfft(windows)
    power = spectrum.real**2 + spectrum.imag**2
    mel = power @ reference.filterbank.toarray().T
    db = 10 * jnp.log10(jnp.maximum(mel, MIN_POWER))
    return jnp.maximum(db - db.max(axis=(1, 2), keepdims=True), -s.top_db).astype(jnp.float32)


def _write_saved_model(probabilities: Callable, clip_samples: int, folder: Path) -> None:
    try:
        import tensorflow as tf
    except ImportError:
        console.log.info("no saved_model: tensorflow is not installed")
        return
    from jax.experimental import jax2tf

    converted = jax2tf.convert(
        probabilities,
        polymorphic_shapes=["(batch, _)"],
        with_gradient=False,
        native_serialization_platforms=("cpu",),
    )
    module = tf.Module()
    module.predict = tf.function(
        converted,
        input_signature=[tf.TensorSpec((None, clip_samples), tf.float32, name="clips")],
        autograph=False,
    )
    tf.saved_model.save(module, folder, signatures=module.predict)
    console.log.info("wrote %s", folder)


if __name__ == "__main__":
    cli.run(main, __doc__)
