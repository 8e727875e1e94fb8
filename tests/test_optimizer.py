"""The recipe: schedules, masks, clipping, freezing, averaging, weights, against numbers by hand."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from shared import once
from sklearn.utils.class_weight import compute_class_weight

from mgc_jax import parallel
from mgc_jax.configs import default
from mgc_jax.errors import InputError
from mgc_jax.models import create_model
from mgc_jax.training import loop, optimizer
from mgc_jax.training import step as step_module
from mgc_jax.training.network import Network
from mgc_jax.training.step import class_weights, create_train_state, train_step


def rates(**keys):
    config = default.get_config()
    config.update(num_epochs=4, learning_rate=0.8)
    config.optimizer.update(**keys)
    return optimizer.learning_rates(optimizer.learning_rate_schedule(config, 5), 20)


def test_schedules():
    np.testing.assert_allclose(rates(), 0.8)
    np.testing.assert_allclose(rates(warmup_epochs=0.8)[:6], [0, 0.2, 0.4, 0.6, 0.8, 0.8])
    cosine = rates(schedule="cosine")
    steps = np.arange(20)
    np.testing.assert_allclose(cosine, 0.4 * (1 + np.cos(np.pi * steps / 20)), rtol=1e-5)
    warm = rates(schedule="cosine", warmup_epochs=1)
    expected = optax.warmup_cosine_decay_schedule(0, 0.8, 5, 20)
    np.testing.assert_allclose(warm, [expected(step) for step in steps], rtol=1e-5)


@pytest.mark.parametrize(
    "key,value,says",
    [
        ("schedule", "linear", "'linear' is unknown: one of constant, cosine"),
        ("warmup_epochs", 20.0, "does not fit in config.num_epochs=20"),
        ("freeze", "(", "is no regular expression"),
        ("freeze", "conv9", "matches none of the parameters, which are called such as conv0/bias"),
        ("freeze", ".*", "matches all"),
    ],
)
def test_bad_recipes_are_named(key, value, says):
    config = default.get_config()
    config.optimizer[key] = value
    params = {"conv0": {"bias": np.zeros(2), "kernel": np.zeros((2, 2))}}
    with pytest.raises(InputError, match=f"config.optimizer.{key}.*{says}"):
        optimizer.make_optimizer(config, optimizer.learning_rate_schedule(config, 1), params)


@pytest.fixture
def take_step(config, dataset):
    """Takes a step of a config on a batch: the states before and after, metrics, and the batch."""

    def take(class_weights=None):
        batch = dataset.splits["train"].gather(np.arange(8))
        network = Network.from_config(config, dataset.genres)
        before = create_train_state(network)
        step = parallel.data_parallel(
            lambda s, b: train_step(s, b, network, class_weights=class_weights)
        )
        after, metrics = step(before, {name: batch[name] for name in ("mel", "label")})
        return *jax.device_get((before, after, metrics)), batch

    return take


def test_step_of_the_whole_recipe(config, take_step):
    """Smoothing, class weights, parts, clipping, decay and average, beside the plain formulas."""
    weights = np.linspace(0.5, 2, 8).astype(np.float32)
    config.update(label_smoothing=0.2, average_decay=0.9, weight_decay=0.1)
    config.optimizer.update(accumulate=2, clip_norm=0.5, decay_biases_and_norms=False)
    before, after, metrics, batch = take_step(weights)

    @jax.jit
    @jax.value_and_grad
    def loss_of(params, mel, label):
        variables = {"params": params, "batch_stats": before.batch_stats}
        x = mel.astype(jnp.float32) / 255 * 2 - 1
        model = create_model("baseline_a_2d")
        logits, _ = model.apply(variables, x, train=True, mutable="batch_stats")
        log_probs = jax.nn.log_softmax(logits)
        own = log_probs[np.arange(4), label]
        return -jnp.mean((0.8 * own + 0.2 * log_probs.mean(axis=1)) * jnp.asarray(weights)[label])

    # Parts are every second clip, each with batch statistics of its own.
    parts = [loss_of(before.params, *(batch[n][i::2] for n in ("mel", "label"))) for i in (0, 1)]
    assert metrics["loss"] == pytest.approx(float(parts[0][0] + parts[1][0]) / 2, rel=1e-5)
    gradient = jax.tree.map(lambda a, b: (a + b) / 2, parts[0][1], parts[1][1])
    norm = np.sqrt(sum(float(jnp.sum(g**2)) for g in jax.tree.leaves(gradient)))
    assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-4) and norm > 0.5
    mean, square = (optax.tree.get(after.opt_state, name) for name in ("mu", "nu"))
    jax.tree.map(
        lambda m, g: np.testing.assert_allclose(m, 0.1 * g * 0.5 / norm, atol=1e-6), mean, gradient
    )
    assert after.step == 1

    def check(path, old, new, m, v):  # only kernels decay
        decay = 0.1 * old if path[-1].key == "kernel" else 0.0
        update = (m / 0.1) / (np.sqrt(v / 0.001) + 1e-8)
        expected = old - config.learning_rate * (update + decay)
        np.testing.assert_allclose(new, expected, atol=1e-6)

    jax.tree.map_with_path(check, before.params, after.params, mean, square)
    jax.tree.map(  # at step 0 the decay is a tenth
        lambda average, new, old: np.testing.assert_allclose(
            average, 0.9 * new + 0.1 * old, atol=1e-6
        ),
        after.average,
        after.variables,
        before.variables,
    )
    assert after.evaluated is after.average
    assert float(step_module._average_decay(config, 1000)) == pytest.approx(0.9)
    # The first norm's statistics have moved twice by a tenth.
    kernel, bias = before.params["conv0"]["kernel"], before.params["conv0"]["bias"]
    x = batch["mel"].astype(np.float32) / 255 * 2 - 1
    windows = jnp.stack([x[:, i : i + 125] for i in range(4)], axis=2)
    y = jnp.einsum("btwf,wfc->btc", windows, kernel) + bias
    moved = 0.9 * 0.1 * y[0::2].mean((0, 1)) + 0.1 * y[1::2].mean((0, 1))
    np.testing.assert_allclose(after.batch_stats["norm0"]["mean"], moved, atol=1e-4)


def test_frozen_parameters_stay(config, take_step):
    config.optimizer.freeze = "conv[01]|norm0"
    config.weight_decay = 0.1
    before, after, *_ = take_step()
    for name in before.params:
        same = jax.tree.map(np.array_equal, before.params[name], after.params[name])
        assert set(jax.tree.leaves(same)) == {name in ("conv0", "conv1", "norm0")}, name
    moments = optax.tree.get(after.opt_state, "mu")
    assert not jax.tree.leaves(moments["conv0"]) and jax.tree.leaves(moments["conv2"])
    assert np.any(after.batch_stats["norm0"]["mean"] != before.batch_stats["norm0"]["mean"])


def test_what_is_frozen_costs_no_gradient(config, dataset, take_step):
    """A step with frozen convolutions is its forward pass, and the head's gradient."""

    def flops() -> float:
        network = Network.from_config(config, dataset.genres)
        batch = dataset.splits["train"].gather(np.arange(8))
        state = create_train_state(network)
        mapped = jax.pmap(lambda s, b: train_step(s, b, network), parallel.AXIS, in_axes=(None, 0))
        batch = {name: batch[name][None] for name in ("mel", "label")}
        return mapped.lower(state, batch).compile().cost_analysis()["flops"]

    all_of_it = flops()
    *_, metrics, _ = take_step()
    config.optimizer.freeze = "(conv|norm)"
    assert flops() < 0.5 * all_of_it
    _, after, frozen, _ = take_step()
    first = jax.tree.leaves(optax.tree.get(after.opt_state, "mu"))  # 0.1 of the gradients
    norm = 10 * np.sqrt(sum(float(jnp.sum(m**2)) for m in first))
    assert frozen["grad_norm"] == pytest.approx(norm, rel=1e-4)
    assert frozen["grad_norm"] < metrics["grad_norm"]


def test_class_weights_are_scikit_learns():
    labels = np.array([0, 0, 0, 1, 2, 2])
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    np.testing.assert_allclose(class_weights(labels, 3), expected, rtol=1e-6)


def test_dropout_only_in_training():
    model = create_model("baseline_a_2d", dropout=0.5)
    x = jax.random.normal(jax.random.key(1), (4, 64, 16))
    variables = once(partial(model.init, train=False))(jax.random.key(0), x)
    plain = create_model("baseline_a_2d")
    predictions = [once(partial(m.apply, train=False))(variables, x) for m in (model, plain)]
    np.testing.assert_array_equal(*predictions)

    @once
    def hidden(key):
        _, seen = model.apply(
            variables,
            x,
            train=True,
            mutable=["batch_stats", "intermediates"],
            capture_intermediates=True,
            rngs={"dropout": key},
        )
        head = seen["intermediates"]["head"]
        return jax.nn.relu(head["dense0"]["__call__"][0]), head["dropout0"]["__call__"][0]

    before, after = jax.device_get(hidden(jax.random.key(0)))
    kept = after != 0
    np.testing.assert_allclose(after[kept], 2 * before[kept], rtol=1e-6)
    assert 0.4 < kept.sum() / (before > 0).sum() < 0.6
    assert not np.array_equal(kept[0], kept[1])
    assert not np.array_equal(kept, hidden(jax.random.key(1))[1] != 0)


def test_early_stopping_counts_from_the_best_epoch(config):
    config.num_epochs, config.early_stopping_epochs = 10, 3
    finished = [
        loop.is_finished(config, loop.Progress(epoch=epoch, best_epoch=best))
        for epoch, best in ((0, 0), (4, 2), (5, 2), (10, 9))
    ]
    assert finished == [False, False, True, True]
    config.early_stopping_epochs = 0
    assert not loop.is_finished(config, loop.Progress(epoch=9, best_epoch=1))
