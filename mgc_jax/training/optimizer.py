"""AdamW as a config describes it: schedule, clipping, weight decay, frozen parameters."""

import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import optax
from flax.traverse_util import path_aware_map
from ml_collections import ConfigDict

from mgc_jax.errors import InputError, choices

SCHEDULES = ("constant", "cosine")


def learning_rate_schedule(config: ConfigDict, steps_per_epoch: int) -> optax.Schedule:
    """Step (from 0) to learning rate.

    It rises linearly from 0 over `optimizer.warmup_epochs`; then it stays (`constant`), or falls to
    0 at the last step along half a cosine (`cosine`; Loshchilov and Hutter 2017, no restarts).

    Raises:
        InputError: no such schedule, or a warm-up longer than the run.
    """
    o = config.optimizer
    if o.schedule not in SCHEDULES:
        raise InputError(
            f"config.optimizer.schedule={o.schedule!r} is unknown: {choices(o.schedule, SCHEDULES)}"
        )
    if not 0 <= o.warmup_epochs < max(config.num_epochs, 1):
        raise InputError(
            f"config.optimizer.warmup_epochs={o.warmup_epochs:g} does not fit in "
            f"config.num_epochs={config.num_epochs}"
        )
    warmup = round(o.warmup_epochs * steps_per_epoch)
    rate = config.learning_rate
    if o.schedule == "cosine":
        total = config.num_epochs * steps_per_epoch
        return optax.warmup_cosine_decay_schedule(0.0, rate, warmup, total)
    return optax.warmup_constant_schedule(0.0, rate, warmup) if warmup else lambda _: rate


def learning_rates(schedule: optax.Schedule, steps: int) -> np.ndarray:
    """The rate of every step of a run: `[steps] float32`."""
    return np.broadcast_to(np.asarray(jax.jit(schedule)(np.arange(steps)), np.float32), (steps,))


def make_optimizer(
    config: ConfigDict, schedule: optax.Schedule, params: Mapping
) -> optax.GradientTransformation:
    """AdamW (Loshchilov and Hutter 2019) on the parameters that are not frozen.

    Gradients are scaled to a global norm of `optimizer.clip_norm` at most, where that is above 0;
    frozen parameters count neither there nor in the optimizer's memory; see `stop_frozen`.

    Raises:
        InputError: `optimizer.freeze` is no regular expression, or freezes nothing or everything.
    """
    o = config.optimizer
    decay_mask = None if o.decay_biases_and_norms else _is_weight
    steps = [optax.clip_by_global_norm(o.clip_norm)] if o.clip_norm else []
    steps.append(
        optax.adamw(
            schedule, b1=o.b1, b2=o.b2, eps=o.eps, weight_decay=config.weight_decay, mask=decay_mask
        )
    )
    trained = optax.chain(*steps)
    if not o.freeze:
        return trained
    labels = _frozen_or_trained(o.freeze, params)
    return optax.partition({"trained": trained, "frozen": optax.set_to_zero()}, labels)


def stop_frozen(pattern: str, params: Mapping) -> Mapping:
    """Parameters of which those that `optimizer.freeze` matches are constants: no gradient of
    theirs is computed, nor what it takes to reach them."""
    if not pattern:
        return params
    labels = _frozen_or_trained(pattern, params)
    return jax.tree.map(
        lambda label, x: jax.lax.stop_gradient(x) if label == "frozen" else x, labels, params
    )


def _is_weight(params: Mapping) -> Any:
    """Marks kernels, neither biases nor a norm's scale and bias."""
    return path_aware_map(lambda path, _: path[-1] == "kernel", params)


def _frozen_or_trained(pattern: str, params: Mapping) -> Any:
    """Labels each parameter; raises InputError unless some, but not all, are frozen."""
    try:
        frozen = re.compile(pattern)
    except re.error as error:
        raise InputError(
            f"config.optimizer.freeze={pattern!r} is no regular expression: {error}"
        ) from None
    paths = []

    def label(path: tuple[str, ...], _) -> str:
        paths.append("/".join(path))
        return "frozen" if frozen.match(paths[-1]) else "trained"

    labels = path_aware_map(label, params)
    matches = sum(bool(frozen.match(path)) for path in paths)
    if matches in (0, len(paths)):
        raise InputError(
            f"config.optimizer.freeze={pattern!r} matches {'none' if not matches else 'all'} of "
            f"the parameters, which are called such as {paths[0]} and {paths[-1]}"
        )
    return labels
