"""Fusion over time: positions of the same instant, and what is attended to."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from shared import once

from mgc_jax.data.input_pipeline import open_dataset
from mgc_jax.errors import InputError
from mgc_jax.models import create_model
from mgc_jax.models.baseline_a_1d import WaveformTrunk
from mgc_jax.models.temporal_fusion import (
    _PICTURES,
    _SOUNDS,
    ResidualTrunk,
    _Picture,
    at_instants,
)
from mgc_jax.results.files import write_config, write_genres
from mgc_jax.training.checkpoints import Checkpoints
from mgc_jax.training.network import Network
from mgc_jax.training.reporting import _attention

BRANCHES = {
    **{name: (_Picture(name, jnp.float32, None), (64, 9)) for name in _PICTURES},
    "trunk": (WaveformTrunk(), (24_000,)),
    "residual": (ResidualTrunk(), (24_000,)),
}


@pytest.mark.parametrize("name", [name for name in BRANCHES if name != "densenet"])
def test_positions_see_their_instants(name):
    """The gradient of a position in the middle is centred on where it is said to be."""
    module, shape = BRANCHES[name]
    x = jax.random.normal(jax.random.key(1), (1, *shape))
    variables = once(lambda x: module.init(jax.random.key(0), x, train=False))(x)
    shape_of = jax.eval_shape(lambda x: module.apply(variables, x, train=False), x).shape
    position = shape_of[1] // 2
    gradient = once(jax.grad(lambda x: module.apply(variables, x, train=False)[0, position].sum()))
    seen = np.abs(np.asarray(gradient(x))[0]).reshape(shape[0], -1).sum(axis=1)
    places = np.flatnonzero(seen)
    own = {**_PICTURES, **_SOUNDS}[name].shares(position + 1, shape[0])[-1] * shape[0]
    # Pools pick single places, so the ends of what is seen are near, not at, those possible.
    width = places[-1] - places[0] + 1
    assert abs((places[0] + places[-1]) / 2 - own) <= max(0.6, 0.15 * width)


def test_densenets_positions():
    """32 frames each, the first one centred after 14: a click moves the mean by as much."""
    assert _PICTURES["densenet"].shares(2, 1).tolist() == [14, 46]


@pytest.mark.parametrize("coarse,fine", [(26, 78), (78, 26), (5, 6)])
def test_the_same_instant_is_side_by_side(coarse, fine):
    """A ramp in time, as both branches have it, is the same ramp at any instants."""
    own = (np.arange(fine) + 0.5) / fine
    wanted = (np.arange(coarse) + 0.5) / coarse
    found = at_instants(jnp.asarray(own)[None, :, None], own, wanted)[0, :, 0]
    inside = (wanted > own[1]) & (wanted < own[-2])
    np.testing.assert_allclose(found[inside], wanted[inside], atol=0.5 / fine)
    # A click stays where it is.
    click = np.zeros((1, fine, 1))
    click[0, fine // 3] = 1
    found = np.asarray(at_instants(jnp.asarray(click), own, wanted))[0, :, 0]
    assert abs(wanted[found.argmax()] - own[fine // 3]) <= 0.5 / coarse + 1e-6
    ones = at_instants(jnp.ones((1, fine, 1)), own, wanted)
    np.testing.assert_allclose(ones, 1, rtol=1e-5)


def small(**overrides):
    model = create_model("temporal_fusion", 3, width=8, heads=2, **overrides)
    mel = jax.random.uniform(jax.random.key(1), (2, 40, 20), minval=-1)
    waveform = jax.random.uniform(jax.random.key(2), (2, 50_000), minval=-1)
    init = jax.jit(lambda m, w: model.init(jax.random.key(0), m, w, train=False))
    return model, init(mel, waveform), (mel, waveform)


def pooled_by_hand(model, variables, inputs):
    """Logits and attention, and the positions and pooled channels from NumPy and the weights."""
    look = functools.partial(
        model.apply,
        train=False,
        mutable=["intermediates"],
        capture_intermediates=lambda module, _: module.name in ("picture", "sound", "norm"),
    )
    logits, seen = once(look)(variables, *inputs)
    seen = seen["intermediates"]
    picture, sound, norm = (
        np.asarray(seen[name]["__call__"][0]) for name in ("picture", "sound", "norm")
    )
    own = [_PICTURES["baseline_a_2d"].shares(picture.shape[1], inputs[0].shape[1])]
    own += [_SOUNDS["residual"].shares(sound.shape[1], inputs[1].shape[1])]
    instants = min(own, key=len)
    x = [at_instants(part, of, instants) for part, of in zip((picture, sound), own, strict=True)]
    x = np.concatenate(x, axis=-1)
    back = variables["params"]["back"]
    x = x + np.maximum(norm, 0) @ back["kernel"] + back["bias"]
    attention = np.asarray(seen["attention"][0])
    # Channels belong to the two heads by turns.
    pooled = np.stack([(attention[:, :, [h]] * x[:, :, h::2]).sum(axis=1) for h in (0, 1)], -1)
    pooled = pooled.reshape(len(x), -1)
    return np.asarray(logits), attention, x, np.concatenate([pooled, x.max(axis=1)], axis=-1)


def test_attention_pools_what_it_says():
    """Logits worked out by hand from both branches, what joins them, and the attention."""
    model, variables, inputs = small()
    for name, key in (("back", 3), ("scores", 4)):
        kernel = variables["params"][name]["kernel"]
        variables["params"][name]["kernel"] = jax.random.normal(jax.random.key(key), kernel.shape)
    logits, attention, x, pooled = pooled_by_hand(model, variables, inputs)
    assert attention.shape == (2, 4, 2) and attention.std() > 0.1
    scores = x @ variables["params"]["scores"]["kernel"]
    scores -= scores.max(axis=1, keepdims=True)
    expected = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(attention, expected, atol=1e-4)
    by_hand = pooled @ variables["params"]["classifier"]["kernel"]
    np.testing.assert_allclose(logits, by_hand, rtol=1e-4, atol=1e-4)


def test_training_starts_at_late_fusion():
    """At the mean and the maximum over time of each branch, by itself."""
    model, variables, inputs = small()
    _, attention, x, pooled = pooled_by_hand(model, variables, inputs)
    np.testing.assert_allclose(attention, 1 / 4, rtol=1e-6)
    late = np.concatenate([x.mean(axis=1), x.max(axis=1)], axis=-1)
    np.testing.assert_allclose(pooled, late, rtol=1e-5)
    assert not variables["params"]["back"]["kernel"].any()


def test_late_fusion_has_the_same_branches():
    time, late = (jax.eval_shape(lambda f=f: small(fusion=f)[1]) for f in ("time", "late"))
    for branch in ("picture", "sound"):
        assert time["params"][branch] == late["params"][branch]
    assert "scores" in time["params"] and "scores" not in late["params"]


def test_all_branches_fit_together():
    for picture, sound in itertools.product(_PICTURES, _SOUNDS):
        model = create_model("temporal_fusion", 3, picture=picture, sound=sound)
        inputs = [jax.ShapeDtypeStruct((2, *s), jnp.float32) for s in ((128, 96), (160_000,))]
        found, _ = jax.eval_shape(
            lambda *x, m=model: m.init_with_output(jax.random.key(0), *x, train=False), *inputs
        )
        assert found.shape == (2, 3)


@pytest.mark.parametrize(
    "overrides,message",
    [
        ({"picture": "densnet"}, "did you mean 'densenet'"),
        ({"fusion": "early"}, "one of time, late"),
        ({"heads": 3}, "heads=3 does not divide the 512 channels"),
    ],
)
def test_what_there_is_not(overrides, message):
    with pytest.raises(InputError, match=message):
        model = create_model("temporal_fusion", 3, **{"width": 8, **overrides})
        inputs = jnp.zeros((1, 40, 20)), jnp.zeros((1, 50_000))
        jax.eval_shape(lambda: model.init(jax.random.key(0), *inputs, train=False))


def test_the_report_shows_attention(config, tmp_path):
    config.model = "temporal_fusion"
    config.model_overrides.update(width=8, heads=2)
    dataset = open_dataset(config, ("mel", "waveform"))
    write_config(tmp_path, config.to_dict())
    write_genres(tmp_path, dataset.genres)
    network = Network.from_config(config, dataset.genres)
    with Checkpoints(tmp_path, writing=True) as checkpoints:
        checkpoints.save_best(network.init(), {"epoch": 1, "loss": 2.0})
    found = _attention(network, tmp_path, dataset)
    assert [title for title, _ in found] == dataset.genres
    drawn = found[0][1].keywords
    assert drawn["attention"].shape == (26, 2) and drawn["seconds"][0] == pytest.approx(
        12 * 10 / 128
    )
    config.model = "baseline_a_2d"
    config.model_overrides = ConfigDict()
    assert _attention(Network.from_config(config, dataset.genres), tmp_path, dataset) == []
