"""A trained network with its features as files that need nothing of this package.

One function, from clips to probabilities, serialised by `jax.export` and as a SavedModel.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jax import export as jax_export

from mgc_jax import console, process
from mgc_jax.files import write_bytes, write_text
from mgc_jax.predictor import DEMO_NOTICE
from mgc_jax.training.network import load_run


def export_run(workdir: str | os.PathLike, out: Path) -> None:
    """Writes `network.jax_export`, `saved_model/` (where TensorFlow is installed) and `model.json`.

    Raises:
        InputError: the workdir holds no run or no finished epoch.
        OSError: a file cannot be written.
    """
    network, variables, _, temperature = load_run(workdir)
    audio = network.features[0].audio

    def probabilities(clips):
        inputs = [f.network_input(f.encode_on_device(clips)) for f in network.features]
        logits = network.module.apply(variables, *inputs, train=False)
        return jax.nn.softmax(logits / temperature)

    # The log-mel is float64, which leaves the least to rounding on any platform.
    with jax.enable_x64(True):
        (batch,) = jax_export.symbolic_shape("batch")
        clips = jax.ShapeDtypeStruct((batch, audio.clip_samples), np.float32)
        exported = jax_export.export(jax.jit(probabilities), platforms=("cpu", "cuda"))(clips)
        write_bytes(out / "network.jax_export", exported.serialize())
        console.log.info("wrote %s", out / "network.jax_export")
        _write_saved_model(probabilities, audio.clip_samples, out / "saved_model")
    about = {
        "genres": network.genres,
        "sample_rate": audio.sample_rate,
        "clip_samples": audio.clip_samples,
    }
    if network.config.dataset == "demo":
        about["notice"] = DEMO_NOTICE
    write_text(out / "model.json", json.dumps(about, indent=2, ensure_ascii=False))


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
