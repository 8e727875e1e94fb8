"""Training: the state and the step that all devices run; `loop` repeats it.

Importing this module loads no TensorFlow, so that the step also runs on a machine that has none.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.training import train_state
from ml_collections import ConfigDict

from mgc_jax import parallel
from mgc_jax.training.augment import soft_labels
from mgc_jax.training.crops import random_stretches
from mgc_jax.training.network import Network
from mgc_jax.training.optimizer import learning_rate_schedule, make_optimizer, stop_frozen


class TrainState(train_state.TrainState):
    """Parameters, optimiser state and step, with batch-norm statistics.

    `average` is the running average of `variables`, or an empty dictionary.
    """

    batch_stats: Any
    average: Any

    @property
    def variables(self) -> dict:
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def evaluated(self) -> dict:
        """The variables to evaluate and to keep."""
        return self.average or self.variables


def create_train_state(network: Network, steps_per_epoch: int = 1) -> TrainState:
    """A fresh state on every device; the schedule of `network.config` needs the steps."""
    config = network.config
    schedule = learning_rate_schedule(config, steps_per_epoch)
    optimizer = make_optimizer(config, schedule, network.shapes["params"])

    def create(variables):
        return TrainState.create(
            apply_fn=network.module.apply,
            tx=optimizer,
            average=jax.tree.map(jnp.copy, variables) if config.average_decay else {},
            **variables,
        )

    # Compiled as one function: by themselves, arrays of each shape would be compiled one by one.
    return parallel.replicate(jax.jit(create)(network.init()))


def train_step(
    state: TrainState,
    batch: Mapping[str, jax.Array],
    network: Network,
    augment: Callable | None = None,
    class_weights: np.ndarray | None = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One step of the optimiser, on one replica's part of the batch.

    Args:
        state: equal on all replicas.
        batch: stored features and `label` `[batch] int32`.
        network: of its config the keys `seed`, `crop_seconds`, `label_smoothing`, `average_decay`,
            `skip_nonfinite`, `optimizer.accumulate` and `optimizer.freeze` count.
        augment: changes the batch first, given the step: an `Augmenter` with its noise.
        class_weights: of each clip's loss, by its class: `[classes] float32`.

    Returns:
        The new state, and `loss`, `top1` and `grad_norm` over all replicas, float32 scalars. Where
        mixup blended labels, top-1 is against the heavier one; frozen parameters have no gradient.
    """
    config = network.config
    parts = config.optimizer.accumulate
    step_key = jax.random.fold_in(jax.random.key(config.seed), state.step)
    if config.crop_seconds:
        batch = random_stretches(batch, state.step, network)
    batch = {**network.inputs(batch), "label": batch["label"]}
    if augment:
        batch = augment(batch, state.step)

    def loss_fn(params, batch_stats, part, number):
        """The mean loss of a part; beside it the new statistics, and top-1."""
        trained = stop_frozen(config.optimizer.freeze, params)
        logits, updates = state.apply_fn(
            {"params": trained, "batch_stats": batch_stats},
            *(part[name] for name in network.module.inputs),
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.fold_in(step_key, number)},
        )
        targets = soft_labels(part, logits.shape[-1])
        losses = optax.softmax_cross_entropy(
            logits, optax.smooth_labels(targets, config.label_smoothing)
        )
        if class_weights is not None:
            losses *= jnp.where(targets > 0, targets * class_weights, 0).sum(axis=-1)
        top1 = (logits.argmax(axis=-1) == targets.argmax(axis=-1)).mean()
        return losses.mean(), (updates.get("batch_stats", {}), top1)

    def gradients_of(batch_stats, part, number):
        (loss, (batch_stats, top1)), gradients = jax.value_and_grad(loss_fn, has_aux=True)(
            state.params, batch_stats, part, number
        )
        return (gradients, {"loss": loss, "top1": top1}), batch_stats

    if parts == 1:
        means, batch_stats = gradients_of(state.batch_stats, batch, 0)
    else:
        means, batch_stats = _over_parts(gradients_of, state, batch, parts)
    gradients, metrics = jax.lax.pmean(means, parallel.AXIS)
    metrics["grad_norm"] = optax.tree.norm(gradients)
    new = state.apply_gradients(grads=gradients, batch_stats=batch_stats)
    if config.average_decay:
        new = new.replace(
            average=optax.incremental_update(
                new.variables, state.average, 1 - _average_decay(config, state.step)
            )
        )
    if config.skip_nonfinite:
        finite = jnp.isfinite(metrics["loss"] + metrics["grad_norm"])
        kept = jax.tree.map(lambda x, old: jnp.where(finite, x, old), new, state)
        new = kept.replace(step=new.step)
    return new, metrics


def _over_parts(gradients_of: Callable, state: TrainState, batch: Mapping, parts: int) -> tuple:
    """Means over the parts of a batch, one after another, and the last batch statistics."""
    # Every so many-th clip, so that the parts are the same on any number of devices.
    split = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), batch)

    def add(carry, numbered_part):
        means, batch_stats = carry
        found, batch_stats = gradients_of(batch_stats, *numbered_part)
        return (jax.tree.map(lambda mean, x: mean + x / parts, means, found), batch_stats), None

    zeros = jax.tree.map(jnp.zeros_like, state.params), {"loss": 0.0, "top1": 0.0}
    carry, _ = jax.lax.scan(add, (zeros, state.batch_stats), (split, jnp.arange(parts)))
    return carry


def _average_decay(config: ConfigDict, step: jax.Array) -> jax.Array:
    """Less at first, so that the average soon forgets the initial variables."""
    return jnp.minimum(config.average_decay, (1 + step) / (10 + step))


def class_weights(labels: np.ndarray, classes: int) -> np.ndarray:
    """Weights that make every class count the same, 1 on average: `[clips]` to `[classes]`."""
    counts = np.maximum(np.bincount(labels, minlength=classes), 1)
    return (len(labels) / (classes * counts)).astype(np.float32)
