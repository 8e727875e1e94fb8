"""A trained network with its features as files that need nothing of this package.

One function, from clips to probabilities, serialised by `jax.export`, as a SavedModel, and for
onnxruntime.
"""

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export

from mgc_jax import console, process
from mgc_jax.errors import InputError
from mgc_jax.files import write_bytes, write_text
from mgc_jax.predictor import DEMO_NOTICE
from mgc_jax.training.inference import over_windows
from mgc_jax.training.network import TrainedRun, load_run


def export_run(workdir: str | os.PathLike, out: Path, onnx: bool = False) -> None:
    """Writes `network.jax_export`, `saved_model/` (where TensorFlow is installed) and `model.json`;
    if `onnx` is asked for, `network.onnx` too.

    Raises:
        InputError: the workdir holds no run or no finished epoch; what writes ONNX is missing.
        OSError: a file cannot be written.
    """
    if onnx:
        _import_jax2onnx()  # fails before anything is written
    run = load_run(workdir)
    network = run.network
    audio = network.stored[0].audio
    probabilities = _clips_to_probabilities(run)
    # The log-mel is float64, which leaves the least to rounding on any platform.
    with jax.enable_x64(True):
        (batch,) = jax_export.symbolic_shape("batch")
        clips = jax.ShapeDtypeStruct((batch, audio.clip_samples), np.float32)
        exported = jax_export.export(jax.jit(probabilities), platforms=("cpu", "cuda"))(clips)
        write_bytes(out / "network.jax_export", exported.serialize())
        console.log.info("wrote %s", out / "network.jax_export")
        _write_saved_model(probabilities, audio.clip_samples, out / "saved_model")
    if onnx:
        write_onnx(run, out / "network.onnx")
    about = {
        "genres": network.genres,
        "sample_rate": audio.sample_rate,
        "clip_samples": audio.clip_samples,
    }
    if network.config.dataset == "demo":
        about["notice"] = DEMO_NOTICE
    write_text(out / "model.json", json.dumps(about, indent=2, ensure_ascii=False))


def _clips_to_probabilities(run: TrainedRun) -> Callable:
    """The network with its features: `[batch, samples] float32` to `[batch, genres] float32`."""
    network, variables, _, temperature = run

    def logits_of(stored):
        return network.module.apply(variables, *network.inputs(stored).values(), train=False)

    def probabilities(clips):
        stored = {f.name: f.encode_on_device(clips) for f in network.stored}
        # Their means over windows are those of log-probabilities, but for what softmax takes away.
        logits = over_windows(logits_of, stored, network)
        return jax.nn.softmax(logits / temperature)

    return probabilities


def _write_saved_model(probabilities: Callable, clip_samples: int, folder: Path) -> None:
    """Converts the function for TensorFlow on CPUs."""
    try:
        process.hide_gpus_from_tensorflow()
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


class _Spectrum(NamedTuple):
    """Real and imaginary part of a spectrum, without complex numbers."""

    real: jax.Array
    imag: jax.Array


def _rfft_by_products(x) -> _Spectrum:
    """`jnp.fft.rfft` as products of matrices: jax2onnx's own does not load in onnxruntime."""
    size = x.shape[-1]
    turns = np.outer(np.arange(size), np.arange(size // 2 + 1)) % size
    angles = 2 * np.pi / size * turns
    return _Spectrum(x @ np.cos(angles).astype(x.dtype), x @ -np.sin(angles).astype(x.dtype))


def _import_jax2onnx() -> Callable:
    """`jax2onnx.to_onnx`; it says at its import which of its examples lack a package."""
    for name in ("jax2onnx", "onnx_ir"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        import onnx  # noqa: F401
        from jax2onnx import to_onnx
    except ImportError as error:
        raise InputError(
            f"--onnx: {error.name} is not installed: pip install 'mgc_jax[onnx]' (in a clone "
            "'.[onnx]'), and pip install --no-deps jax2onnx==0.17.1, which asks for an older orbax "
            "than ours but does not need it"
        ) from None
    return to_onnx


def write_onnx(run: TrainedRun, path: Path) -> None:
    """Converts a network with its features for onnxruntime, in float32.

    Raises:
        InputError: what writes ONNX is missing.
        OSError: the file cannot be written.
    """
    to_onnx = _import_jax2onnx()
    clips = ("batch", run.network.stored[0].audio.clip_samples)
    rfft = jnp.fft.rfft
    jnp.fft.rfft = _rfft_by_products
    try:
        model = to_onnx(_clips_to_probabilities(run), [clips], opset=21)
    finally:
        jnp.fft.rfft = rfft
    model.graph.input[0].name, old = "clips", model.graph.input[0].name
    for node in model.graph.node:
        node.input[:] = ["clips" if name == old else name for name in node.input]
    write_bytes(path, model.SerializeToString())
    console.log.info("wrote %s", path)
