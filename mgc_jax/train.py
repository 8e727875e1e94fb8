"""Training: the state, the step that all devices run, and the loop over epochs.

Importing this module loads no TensorFlow, so that the step also runs on a machine that has none.
"""

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.training import train_state
from ml_collections import ConfigDict

from mgc_jax import cli, parallel
from mgc_jax.augment import Augmenter, soft_labels
from mgc_jax.checkpoints import Checkpoints
from mgc_jax.errors import InputError
from mgc_jax.evaluate import predict_split
from mgc_jax.features import ClipSettings, to_network_input
from mgc_jax.metrics import classification_metrics
from mgc_jax.models import create_model
from mgc_jax.pretrained import load_weights

if TYPE_CHECKING:
    from mgc_jax.input_pipeline import ClipDataset

# Steps that may be under way before the loop waits for the oldest: enough to keep a device busy.
_STEPS_IN_FLIGHT = 4


class TrainState(train_state.TrainState):
    """Parameters, optimiser state and step, with batch-norm statistics."""

    batch_stats: Any

    @property
    def variables(self) -> dict:
        return {"params": self.params, "batch_stats": self.batch_stats}


def make_model(config: ConfigDict, num_classes: int) -> nn.Module:
    """The network of a config, its batch norm tied over all replicas."""
    return create_model(
        config.model,
        num_classes,
        dtype=jnp.dtype(config.dtype),
        axis_name=parallel.AXIS,
        **config.model_overrides,
    )


def init_variables(model: nn.Module, settings: ClipSettings, seed: int) -> dict:
    """Initial parameters and statistics."""
    inputs = [jnp.zeros((1, *settings.shape(name)), jnp.float32) for name in model.features]
    # train=False: there are no replicas outside pmap.
    init = jax.jit(lambda key: model.init(key, *inputs, train=False))
    return init(jax.random.key(seed))


def create_train_state(config: ConfigDict, model: nn.Module) -> TrainState:
    """A fresh state on every device."""
    variables = init_variables(model, ClipSettings.from_config(config), config.seed)
    state = TrainState.create(
        apply_fn=model.apply,
        params=variables["params"],
        batch_stats=variables.get("batch_stats", {}),
        tx=optax.adamw(config.learning_rate, weight_decay=config.weight_decay),
    )
    return parallel.replicate(state)


class TrainedRun(NamedTuple):
    """What a workdir holds of a run: its network with the weights of its best epoch."""

    config: ConfigDict
    genres: list[str]
    settings: ClipSettings
    model: nn.Module
    variables: dict
    epoch: int


def load_run(workdir: str | os.PathLike) -> TrainedRun:
    """Loads the best checkpoint of a run, as the run's own config says; nothing else is needed.

    Raises:
        InputError: the workdir holds no run, no finished epoch, or damaged files.
    """
    workdir = Path(workdir)
    for part in ("config.json", "genres.json", "checkpoints/best"):
        if not (workdir / part).exists():
            raise InputError(f"{workdir} holds no trained run: there is no {part} in it")
    try:
        config = ConfigDict(json.loads((workdir / "config.json").read_text()))
        genres = json.loads((workdir / "genres.json").read_text())
        model, settings = make_model(config, len(genres)), ClipSettings.from_config(config)
        shapes = jax.eval_shape(lambda: init_variables(model, settings, config.seed))
        with Checkpoints(workdir) as checkpoints:
            variables = checkpoints.restore_best(shapes)
            epoch = checkpoints.best["epoch"]
    except InputError:
        raise
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        # What json, ml_collections and orbax raise for a damaged file is any of these.
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise InputError(f"{workdir}: cannot read this run: {reason}") from error
    return TrainedRun(config, genres, settings, model, variables, epoch)


def train_step(
    state: TrainState,
    batch: Mapping[str, jax.Array],
    features: tuple[str, ...],
    augment: Augmenter | None = None,
):
    """One step of AdamW on one replica's part of the batch.

    Args:
        state: equal on all replicas.
        batch: stored features (see `to_network_input`) and `label` `[batch] int32`.
        features: the network's inputs, in order.
        augment: changes the batch first.

    Returns:
        The new state, and `loss` and `top1` over all replicas, float32 scalars; where mixup blended
        labels, top-1 is against the heavier one.
    """
    inputs = {name: to_network_input(name, batch[name]) for name in features}
    batch = {**inputs, "label": batch["label"]}
    if augment:
        batch = augment(batch, state.step)

    def loss_fn(params):
        logits, updates = state.apply_fn(
            {"params": params, "batch_stats": state.batch_stats},
            *(batch[name] for name in features),
            train=True,
            mutable=["batch_stats"],
        )
        labels = soft_labels(batch, logits.shape[-1])
        top1 = (logits.argmax(axis=-1) == labels.argmax(axis=-1)).mean()
        losses = optax.softmax_cross_entropy(logits, labels)
        return losses.mean(), (top1, updates["batch_stats"])

    (loss, (top1, batch_stats)), gradients = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    gradients, metrics = jax.lax.pmean((gradients, {"loss": loss, "top1": top1}), parallel.AXIS)
    return state.apply_gradients(grads=gradients, batch_stats=batch_stats), metrics


def predict_step(variables: Mapping, batch: Mapping[str, jax.Array], model: nn.Module) -> jax.Array:
    """Log-probabilities of the whole batch, on every replica: `[batch, classes] float32`."""
    inputs = [to_network_input(name, batch[name]) for name in model.features]
    log_probs = jax.nn.log_softmax(model.apply(variables, *inputs, train=False))
    return jax.lax.all_gather(log_probs, parallel.AXIS, tiled=True)


def compile_predict_step(model: nn.Module) -> Callable:
    """`predict_step` over all devices: `(variables, batch) -> log_probs`."""
    return parallel.data_parallel(lambda variables, batch: predict_step(variables, batch, model))


def train(config: ConfigDict, workdir: Path, dataset: "ClipDataset") -> None:
    """Trains or goes on training, up to `config.num_epochs`.

    After each epoch `checkpoints/last` is what a restart goes on from; `checkpoints/best` is the
    epoch with the lowest validation loss.

    Args:
        config: as in `configs/default.py`.
        workdir: where checkpoints and logs go.
        dataset: with the splits `train` and `validation`.

    Raises:
        InputError: a batch is larger than the split, or the loss is no finite number.
    """
    from mgc_jax.run_log import RunLog

    train_split, validation = dataset.splits["train"], dataset.splits["validation"]
    steps = train_split.steps_per_epoch(config.batch_size)
    model = make_model(config, len(dataset.genres))
    with Checkpoints(workdir) as checkpoints, RunLog(workdir, checkpoints.epochs_done) as log:
        state = create_train_state(config, model)
        done = checkpoints.epochs_done
        if done:
            state = parallel.replicate(checkpoints.restore_last(state))
            cli.log.info("resuming after epoch %d of %d", done, config.num_epochs)
        elif config.init_from:
            variables = load_weights(config.init_from, config.model, state.variables)
            state = parallel.replicate(state.replace(**variables))
        augment = Augmenter(config)
        step_fn = parallel.data_parallel(
            lambda state, batch: train_step(state, batch, model.features, augment), donate=True
        )
        predict_fn = compile_predict_step(model)
        best_loss = checkpoints.best["loss"] if checkpoints.best else np.inf
        batches = train_split.train_batches(config.batch_size, config.seed, first_step=done * steps)
        for epoch in range(done + 1, config.num_epochs + 1):
            start = time.perf_counter()
            state, scores = _train_epoch(step_fn, state, batches, steps, f"epoch {epoch}")
            _check_finite(scores["loss"], epoch, config)
            scores["seconds"] = time.perf_counter() - start
            scores["clips_per_s"] = steps * config.batch_size / scores["seconds"]
            log.write("train", epoch, epoch * steps, **scores)
            predictions = predict_split(predict_fn, state.variables, validation, config.batch_size)
            held_out = classification_metrics(predictions, dataset.genres)
            improved = held_out["loss"] < best_loss
            if improved:
                best_loss = held_out["loss"]
                checkpoints.save_best(epoch, state.variables, best_loss)
            checkpoints.save_last(epoch, state)
            seconds = time.perf_counter() - start
            held_out = {name: held_out[name] for name in ("loss", "top1", "f1", "f1_macro")}
            held_out["seconds"] = seconds - scores["seconds"]
            log.write("validation", epoch, epoch * steps, **held_out)
            _announce_epoch(epoch, config.num_epochs, scores, held_out, improved, seconds)


def _train_epoch(step_fn, state, batches, steps: int, name: str) -> tuple[TrainState, dict]:
    """Runs one epoch; its metrics stay on the device until the end."""
    history = []
    with cli.progress_bar(total=steps, description=name, unit="step", leave=False) as bar:
        for _ in range(steps):
            state, metrics = step_fn(state, next(batches))
            history.append(metrics)
            if len(history) > _STEPS_IN_FLIGHT:
                history[-1 - _STEPS_IN_FLIGHT]["loss"].block_until_ready()
            bar.update()
    history = jax.device_get(history)
    return state, {name: float(np.mean([m[name] for m in history])) for name in history[0]}


def _check_finite(loss: float, epoch: int, config: ConfigDict) -> None:
    if not np.isfinite(loss):
        raise InputError(
            f"the loss of epoch {epoch} is {loss}: lower config.learning_rate (now "
            f"{config.learning_rate:g}); checkpoints/last holds the epoch before"
        )


def _announce_epoch(
    epoch: int, epochs: int, scores: Mapping, held_out: Mapping, improved: bool, seconds: float
) -> None:
    """One line for people; a star marks the best validation loss so far."""
    cli.log.info(
        "epoch %*d/%d  train loss %.3f top-1 %.3f  validation loss %.3f top-1 %.3f %s  %.0f clips/s"
        "  %s left",
        len(str(epochs)),
        epoch,
        epochs,
        scores["loss"],
        scores["top1"],
        held_out["loss"],
        held_out["top1"],
        "*" if improved else " ",
        scores["clips_per_s"],
        _duration(seconds * (epochs - epoch)),
    )


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return (
        f"{minutes // 60} h {minutes % 60:02d} min"
        if minutes >= 60
        else f"{minutes} min {seconds:02d} s"
    )
