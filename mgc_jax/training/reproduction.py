"""All runs of the source's results table: what they would take, and the runs one after another."""

import importlib
import shlex
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from mgc_jax import console, models, parallel
from mgc_jax.data import shards
from mgc_jax.data.features import make_features
from mgc_jax.errors import InputError, choices
from mgc_jax.results.published import PUBLISHED
from mgc_jax.results.reproduction import write_table
from mgc_jax.training.augment import Augmenter
from mgc_jax.training.claim import check_config
from mgc_jax.training.network import Network
from mgc_jax.training.reporting import flops_per_clip
from mgc_jax.training.run_log import duration
from mgc_jax.training.step import create_train_state, train_step
from mgc_jax.training.train import train_and_evaluate

NETWORKS = tuple(PUBLISHED)
# What is known before anything is fetched: tracks (with a top genre), and GiB of audio.
_FMA = {"fma_small": (8_000, 7.2), "fma_medium": (25_000, 22), "fma_large": (49_598, 93)}
_TRAIN_SHARE = 0.8
_CLIPS_A_TRACK = 3  # of 30 s
# Tracks of 30 s that a core prepares in a second (benchmarks/RESULTS.md).
_TRACKS_A_SECOND = 26
_TIMED_STEPS = 3


def make_configs(
    networks: Sequence[str],
    *,
    seeds: int,
    epochs: int | None,
    dataset: str,
    name: str,
    data_dir: str,
) -> list[ConfigDict]:
    """The configs of all runs, every network with one seed before the next seed.

    Raises:
        InputError: an unknown network.
    """
    for network in networks:
        if network not in NETWORKS:
            raise InputError(f"--networks={network}: {choices(network, NETWORKS)}")
    configs = []
    for seed in range(seeds):
        for network in networks:
            config = importlib.import_module(f"mgc_jax.configs.{network}").get_config()
            config.update(dataset=dataset, name=name, data_dir=data_dir, seed=seed)
            config.num_epochs = epochs or config.num_epochs
            configs.append(config)
    return configs


def reproduce(configs: Sequence[ConfigDict], folder: Path) -> None:
    """Trains and evaluates each config in `folder`/runs, and writes the table after each.

    Raises:
        InputError: records are missing or made with other settings, or a folder holds another run.
        Interrupted: SIGTERM or SIGINT came; the same call goes on.
    """
    for config in configs:  # nothing is trained before all can be
        check_config(config)
        shards.find_records(config, models.inputs_of(config.model))
    workdirs = []
    for number, config in enumerate(configs, start=1):
        workdir = folder / "runs" / f"{config.model}-seed{config.seed}"
        console.log.info("run %d of %d  %s", number, len(configs), workdir.name)
        train_and_evaluate(config, workdir, training=True, command=_command(config, workdir))
        workdirs.append(workdir)
        if parallel.is_main():
            console.log.info("table     %s", write_table(workdirs, folder))


def estimate(configs: Sequence[ConfigDict]) -> None:
    """Prints what is to be prepared, and what all runs would take; nothing needs to be there."""
    first = configs[0]
    names = tuple(dict.fromkeys(n for c in configs for n in models.inputs_of(c.model)))
    train_clips = _describe_records(first, names)
    seeds = {config.seed for config in configs}
    print(f"runs       {len(configs)}, each of {first.num_epochs} epochs")
    print(f"device     {parallel.describe_devices()}")
    row = "{:14} {:>6} {:>14} {:>9} {:>9}  {}".format
    print(row("network", "batch", "GFLOP a clip", "s a step", "clips/s", "all its runs"))
    total = 0.0
    for config in configs:
        if config.seed:
            continue
        check_config(config)
        network = Network.from_config(config, [f"genre {i}" for i in range(8)])
        step = seconds_a_step(network)
        rate = config.batch_size / step
        seconds = len(seeds) * config.num_epochs * train_clips / rate
        total += seconds
        gflop = (flops_per_clip(network) or float("nan")) / 1e9
        numbers = (f"{gflop:.3f}", f"{step:.3f}", f"{rate:,.0f}")
        print(row(config.model, config.batch_size, *numbers, duration(seconds)), flush=True)
    print(f"all        {duration(total)}, without validation and compiling")


def seconds_a_step(network: Network) -> float:
    """Of a training step on random clips: the fastest of some, without compiling."""
    size = network.config.batch_size // jax.process_count()
    rng = np.random.default_rng(0)
    batch = {"label": rng.integers(len(network.genres), size=size, dtype=np.int32)}
    for feature in network.stored:
        limits = np.iinfo(feature.dtype)
        shape = (size, *feature.shape)
        batch[feature.name] = rng.integers(limits.min, limits.max, shape, dtype=feature.dtype)
    augmenter = Augmenter(network.config, network.features)

    def train(state, batch, noise):
        return train_step(state, batch, network, partial(augmenter, noise=noise))

    step = parallel.data_parallel(train, donate=True, kept=augmenter.noise())
    state = create_train_state(network)
    seconds = []
    for _ in range(1 + _TIMED_STEPS):
        start = time.perf_counter()
        state, metrics = step(state, batch)
        jax.block_until_ready(metrics)
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])  # the first one compiled


def _describe_records(config: ConfigDict, names: Sequence[str]) -> float:
    """Prints where the records are, or how they are made; returns the clips of an epoch."""
    if not shards.has_records(config, names):
        return _describe_preparation(config)
    path = shards.find_records(config, names)
    clips = shards.read_info(path).metadata["splits"]["train"]["clips"]
    print(f"records    {path}: {clips:,} clips to train on")
    return clips


def _describe_preparation(config: ConfigDict) -> float:
    """Prints how records of both features are made, and how large they are; returns the clips of
    an epoch."""
    tracks, archive = _FMA.get(config.dataset, (1_000, None))
    features = make_features(models.inputs_of("fusionnet"), config)
    clip_bytes = sum(np.dtype(f.dtype).itemsize * int(np.prod(f.shape)) for f in features)
    clips = _CLIPS_A_TRACK * tracks
    about = f"{clips * clip_bytes / 1e9:.1f} GB of records (twice that while they are made)"
    hours = tracks / _TRACKS_A_SECOND / 3600
    command = ["mgc_jax", "prepare", "--config=fusionnet", f"--config.dataset={config.dataset}"]
    command += [f"--config.name={config.name}"] if config.name else []
    command += [f"--data_dir={config.data_dir}"]
    if archive:
        command += ["--download"]
        print(f"fetch      342 MiB of metadata, {archive} GiB of audio")
    else:
        command += ["--audio_dir=FOLDER"]
        about += f" for each {tracks:,} tracks of 30 s; the times are for so many"
    print(f"prepare    {shlex.join(command)}\n           {about}; about {hours:.2g} core-hours")
    return _TRAIN_SHARE * clips


def _command(config: ConfigDict, workdir: Path) -> str:
    """The command that makes the same run alone."""
    keys = ("dataset", "name", "data_dir", "seed", "num_epochs")
    settings = [f"--config.{key}={config[key]}" for key in keys if config[key] != ""]
    command = ["python", "-m", "mgc_jax.main", f"--config={config.model}", *settings]
    return shlex.join([*command, f"--workdir={workdir}"])
