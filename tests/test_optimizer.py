"""The recipe: schedules, masks, clipping, freezing, averaging, weights, against numbers by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.utils.class_weight import compute_class_weight

from configs import default
from mgc_jax import loop, optimizer, parallel, train
from mgc_jax.errors import InputError
from mgc_jax.features import to_network_input
from mgc_jax.models import create_model


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
    np.testing.assert_allclose(warm, [expected(step) for step in steps], rtol=1e-6)


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
def test_bad_recipes_are_named(config, key, value, says):
    config.num_epochs = 20
    config.optimizer[key] = value
    with pytest.raises(InputError, match=f"config.optimizer.{key}.*{says}".replace("(", r"\(")):
        train.create_train_state(config, train.make_model(config, 8))


@pytest.fixture
def take_step(config, dataset):
    """Takes a step of a config on a batch: the states before and after, and the metrics."""

    def take(class_weights=None):
        batch = dataset.splits["train"].gather(np.arange(8))
        model = train.make_model(config, 8)
        before = train.create_train_state(config, model)
        step = parallel.data_parallel(
            lambda s, b: train.train_step(s, b, ("mel",), config, class_weights=class_weights)
        )
        after, metrics = step(before, {name: batch[name] for name in ("mel", "label")})
        return before, after, jax.device_get(metrics), batch

    return take


def loss_by_hand(state, batch, rows=slice(None)):
    """Mean cross entropy, its gradient and the log-probabilities, without pmap."""
    model = create_model("baseline_a_2d")

    def loss(params):
        variables = {"params": params, "batch_stats": state.batch_stats}
        x = to_network_input("mel", batch["mel"][rows])
        logits, _ = model.apply(variables, x, train=True, mutable="batch_stats")
        log_probs = jax.nn.log_softmax(logits)
        labels = batch["label"][rows]
        return -log_probs[np.arange(len(labels)), labels].mean(), log_probs

    (value, log_probs), gradient = jax.value_and_grad(loss, has_aux=True)(state.params)
    return value, gradient, log_probs


def test_clipping_scales_the_gradient(config, take_step):
    config.optimizer.clip_norm = 0.5
    before, after, metrics, batch = take_step()
    _, gradient, _ = loss_by_hand(before, batch)
    norm = optax.tree.norm(gradient)
    assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-4) and norm > 0.5
    first = optax.tree.get(after.opt_state, "mu")
    assert optax.tree.norm(first) == pytest.approx(0.1 * 0.5, rel=1e-4)


def test_decay_can_leave_out_biases_and_norms(config, take_step):
    changes = {}
    for all_of_them in (True, False):
        config.optimizer.decay_biases_and_norms = all_of_them
        for decay in (0.0, 0.1):
            config.weight_decay = decay
            before, after, *_ = take_step()
            changes[all_of_them, decay] = after.params
    rate = config.learning_rate

    def decayed(all_of_them):
        with_decay, without = changes[all_of_them, 0.1], changes[all_of_them, 0.0]
        return jax.tree.map(lambda a, b: np.asarray(b - a) / (rate * 0.1), with_decay, without)

    everything, kernels = decayed(True), decayed(False)
    for name, leaf in (("norm0", "scale"), ("conv0", "kernel")):
        start = before.params[name][leaf]
        np.testing.assert_allclose(everything[name][leaf], start, atol=2e-3)
    np.testing.assert_allclose(
        kernels["conv0"]["kernel"], before.params["conv0"]["kernel"], atol=2e-3
    )
    assert not np.any(kernels["norm0"]["scale"]) and not np.any(kernels["conv0"]["bias"])


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


def test_accumulation_is_the_mean_over_parts(config, take_step):
    """Each part has batch statistics of its own; parts are every second clip."""
    config.optimizer.accumulate = 2
    before, after, metrics, batch = take_step()
    parts = [loss_by_hand(before, batch, slice(i, None, 2)) for i in (0, 1)]
    assert metrics["loss"] == pytest.approx(np.mean([part[0] for part in parts]), rel=1e-5)
    mean = jax.tree.map(lambda a, b: (a + b) / 2, parts[0][1], parts[1][1])
    assert metrics["grad_norm"] == pytest.approx(optax.tree.norm(mean), rel=1e-4)
    moments = optax.tree.get(after.opt_state, "mu")
    jax.tree.map(lambda m, g: np.testing.assert_allclose(m, 0.1 * g, atol=1e-6), moments, mean)
    assert after.step == 1 and optax.tree.get(after.opt_state, "count") == 1
    # norm0 sees the pictures themselves, so its statistics are moved twice, by a tenth each.
    x = to_network_input("mel", batch["mel"])
    y = _first_convolution(before.params, x)
    means = [y[i::2].mean((0, 1)) for i in (0, 1)]
    expected = 0.9 * 0.1 * means[0] + 0.1 * means[1]
    np.testing.assert_allclose(after.batch_stats["norm0"]["mean"], expected, atol=1e-4)


def _first_convolution(params, x):
    kernel, bias = params["conv0"]["kernel"], params["conv0"]["bias"]
    windows = jnp.stack([x[:, i : i + 125] for i in range(4)], axis=2)
    return jnp.einsum("btwf,wfc->btc", windows, kernel) + bias


def test_average_follows_the_variables(config, take_step):
    config.average_decay = 0.9
    before, after, *_ = take_step()  # at step 0 the decay is a tenth
    jax.tree.map(
        lambda average, new, old: np.testing.assert_allclose(
            average, 0.9 * new + 0.1 * old, atol=1e-6
        ),
        after.average,
        after.variables,
        before.variables,
    )
    assert after.evaluated is after.average
    assert float(train._average_decay(config, 1000)) == pytest.approx(0.9)


def test_label_smoothing_and_class_weights(config, take_step):
    weights = np.linspace(0.5, 2, 8).astype(np.float32)
    config.label_smoothing = 0.2
    before, _, metrics, batch = take_step(weights)
    log_probs = np.asarray(loss_by_hand(before, batch)[2], np.float64)
    own = log_probs[np.arange(8), batch["label"]]
    losses = -(0.8 * own + 0.2 * log_probs.mean(axis=1))
    assert metrics["loss"] == pytest.approx(np.mean(losses * weights[batch["label"]]), rel=1e-5)


def test_class_weights_are_scikit_learns():
    labels = np.array([0, 0, 0, 1, 2, 2])
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    np.testing.assert_allclose(train.class_weights(labels, 3), expected, rtol=1e-6)


def test_dropout_only_in_training(config):
    model = create_model("baseline_a_2d", dropout=0.5)
    x = jax.random.normal(jax.random.key(1), (4, 128, 513))
    variables = model.init(jax.random.key(0), x, train=False)
    plain = create_model("baseline_a_2d").apply(variables, x, train=False)
    np.testing.assert_array_equal(model.apply(variables, x, train=False), plain)

    def hidden(key):
        _, seen = model.apply(
            variables,
            x,
            train=True,
            mutable=["batch_stats", "intermediates"],
            capture_intermediates=True,
            rngs={"dropout": jax.random.key(key)},
        )
        head = seen["intermediates"]["head"]
        return np.maximum(head["dense0"]["__call__"][0], 0), head["dropout0"]["__call__"][0]

    before, after = hidden(0)
    kept = after != 0
    np.testing.assert_allclose(after[kept], 2 * before[kept], rtol=1e-6)
    assert 0.4 < kept.sum() / (before > 0).sum() < 0.6
    assert not np.array_equal(kept[0], kept[1])
    assert not np.array_equal(kept, hidden(1)[1] != 0)


def test_early_stopping_counts_from_the_best_epoch(config):
    config.num_epochs, config.early_stopping_epochs = 10, 3
    finished = [
        loop.is_finished(config, loop.Progress(epoch=epoch, best_epoch=best))
        for epoch, best in ((0, 0), (4, 2), (5, 2), (10, 9))
    ]
    assert finished == [False, False, True, True]
    config.early_stopping_epochs = 0
    assert not loop.is_finished(config, loop.Progress(epoch=9, best_epoch=1))
