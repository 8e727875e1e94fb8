"""Rates of the input pipeline beside other readers of the same clips, or its share of a step.

python benchmarks/input_pipeline.py                               (rates)
python benchmarks/input_pipeline.py --config=configs/densenet.py  (waiting for data)

Both make clips of random bytes and write them with TFDS as `mgc_jax.prepare` does. Rates come from
one run, the readers taking turns, and are JSON on stdout: for `mel`, `waveform` and `mel_waveform`,
clips/s (the median of the rounds) in shuffled batches of 32, null where a package is missing.

ours          as training reads
on_device     as training reads where the clips lie on the devices: gathered in the compiled step
plain         tfds.load with its decoding, shuffle, batch, prefetch, as_numpy; nothing cached
tf_data       TFRecordDataset, shuffle, batch, then parse in two threads, prefetch
torch_npy     PyTorch's DataLoader over a float32 .npy a clip, the better of 0 and 2 workers
torch_memmap  the same over a memory map of all clips, in the type that is stored
grain         grain.MapDataset over uncompressed array_record files
limit         clips gathered from memory into one buffer, again and again

Ours, plain, tf_data and grain end in a compiled step over all devices that touches every input;
PyTorch's batches stay on the CPU. Ratios and both numbers of workers are logged.

With --config: for steps that take an accelerator 0.1 to 5 ms a batch of 32 (posed: nothing is
computed, and up to four steps are under way, as in training), the share of the time that it has
nothing to do, and the rates needed; each where the loop's thread copies, as training does, and
where tf.data's threads copy ahead of it. `cpu_ms` is what a batch takes of the loop's own thread,
which other work on the machine does not change much: with less than the step takes, the device is
busy. For the config's network on this machine, seconds a step with its augmentation and the share
of them spent in getting batches, where the loop copies clips and where they lie on the devices.
"""

import collections
import concurrent.futures
import contextlib
import functools
import importlib.util
import itertools
import json
import math
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

# Runs from a clone, whether or not the package is installed.
sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from absl import flags
from ml_collections import ConfigDict

from benchmarks import torch_loaders
from mgc_jax import cli, console, parallel
from mgc_jax.configs import default
from mgc_jax.data.features import make_features, settings_of
from mgc_jax.data.input_pipeline import Split, open_dataset
from mgc_jax.data.shards import dataset_path
from mgc_jax.data.tracks import SPLITS
from mgc_jax.training.augment import Augmenter
from mgc_jax.training.network import Network
from mgc_jax.training.step import create_train_state, train_step

cli.define_config()
_CLIPS = flags.DEFINE_integer("clips", 2048, "Clips of the set.", 64)
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Turns of each reader.", 1)
_SECONDS = flags.DEFINE_float("seconds", 0.4, "Length of a turn.")
_DIR = flags.DEFINE_string("dir", None, "Where the set is made, some 5 GB; default: for this run.")

_BATCH = 32
_CLASSES = 8
_STEPS_IN_FLIGHT = 4
_FEATURES = {"mel": np.dtype(np.uint8), "waveform": np.dtype(np.int16)}
_READERS = ("ours", "on_device", "plain", "tf_data", "torch_npy", "torch_memmap", "grain", "limit")


def main(argv: list[str]) -> None:
    cli.reject_arguments(argv)
    tfds.disable_progress_bar()
    asked = any(argument.lstrip("-").startswith("config") for argument in sys.argv[1:])
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(_DIR.value or temporary)
        if asked:
            results = measure_waiting(flags.FLAGS.config, folder)
        else:
            results = measure_rates(default.get_config(), folder)
    print(json.dumps(results, indent=2))


def measure_rates(config: ConfigDict, folder: Path) -> dict:
    clips = make_clips(config, folder)
    if importlib.util.find_spec("torch"):
        torch_loaders.write(folder, clips)
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, spawn) as torch_process:
        return {
            "_".join(names): _compare(config, folder, names, clips, torch_process)
            for names in (("mel",), ("waveform",), ("mel", "waveform"))
        }


def _compare(config, folder: Path, names: tuple[str, ...], clips: dict, torch_process) -> dict:
    write_tfds(config, folder, names, clips)
    shapes = {feature.name: feature.shape for feature in make_features(names, config)}
    batches = {
        "ours": open_dataset(config, names).splits["train"].train_batches(_BATCH, seed=0),
        "plain": plain_batches(config, names),
        "tf_data": tf_data_batches(config, shapes),
    }
    if importlib.util.find_spec("grain"):
        batches["grain"] = grain_batches(folder, shapes, clips)
    batches = {name: map(_deliver, reader) for name, reader in batches.items()}
    batches["on_device"] = on_device_batches(open_dataset(config, names).splits["train"])
    batches["limit"] = memory_batches({name: clips[name] for name in names})

    def turn(reader: str) -> float:
        if reader in batches:
            return _rate(batches[reader])
        kind, workers = reader.split()
        job = torch_process.submit(
            torch_loaders.rate, folder, kind, names, _BATCH, int(workers), _SECONDS.value
        )
        return job.result()

    readers = list(batches)
    if importlib.util.find_spec("torch"):
        readers += ["npy 0", "npy 2", "memmap 0", "memmap 2"]
    for reader in readers:
        turn(reader)
    rounds = [{reader: turn(reader) for reader in readers} for _ in range(_ROUNDS.value)]
    torch_process.submit(torch_loaders.close).result()
    rates = {reader: statistics.median(r[reader] for r in rounds) for reader in readers}
    ratios = {
        reader: round(statistics.median(r["ours"] / r[reader] for r in rounds), 2)
        for reader in readers
    }
    rounded = {reader: round(rate) for reader, rate in rates.items()}
    console.log.info("%s: %s", "_".join(names), json.dumps(rounded))
    console.log.info("ours / theirs, median of the rounds: %s", json.dumps(ratios))
    for kind in ("npy", "memmap") if "npy 0" in rounded else ():
        rounded[f"torch_{kind}"] = max(rounded[f"{kind} 0"], rounded[f"{kind} 2"])
    return {reader: rounded.get(reader) for reader in _READERS}


def make_clips(config: ConfigDict, folder: Path) -> dict[str, np.ndarray]:
    """Random clips, `[clips, ...]` of each feature."""
    rng = np.random.default_rng(0)
    clips = {}
    folder.mkdir(parents=True, exist_ok=True)
    for feature in make_features(_FEATURES, config):
        info = np.iinfo(feature.dtype)
        shape = (_CLIPS.value, *feature.shape)
        clips[feature.name] = rng.integers(info.min, info.max, shape, feature.dtype, endpoint=True)
    return clips


def write_tfds(config: ConfigDict, folder: Path, names: tuple[str, ...], clips: dict) -> None:
    """Writes clips as our builders do, and points the config at them."""
    config.data_dir, config.dataset = str(folder), "benchmark"
    stored = make_features(names, config)
    features = {
        feature.name: tfds.features.Tensor(
            shape=feature.shape, dtype=feature.dtype, encoding="bytes"
        )
        for feature in stored
    }
    genres = tfds.features.ClassLabel(num_classes=_CLASSES)
    examples = (
        (i, {n: clips[n][i] for n in names} | {"label": i % _CLASSES, "track_id": i, "clip": 0})
        for i in range(_CLIPS.value)
    )
    path = Path(dataset_path(config, names))
    if not path.exists():
        with contextlib.redirect_stdout(sys.stderr):  # TFDS talks of downloading
            tfds.dataset_builders.store_as_tfds_dataset(
                name=config.dataset,
                config="_".join(names),
                version=path.name,
                data_dir=folder,
                features=tfds.features.FeaturesDict(
                    features | {"label": genres, "track_id": np.int64, "clip": np.int64}
                ),
                split_datasets={"train": examples},
            )
        count = {"tracks": _CLIPS.value, "clips": _CLIPS.value}
        metadata = {
            "settings": settings_of(stored),
            "splits": dict.fromkeys(SPLITS, count),
            "tracks_listed": _CLIPS.value,
            "synthetic": True,
        }
        (path / "metadata.json").write_text(json.dumps(metadata))


def on_device_batches(split: Split) -> Iterator[dict]:
    """Delivered already."""
    parallel.device_memory = lambda: sys.maxsize  # else a CPU, which has none of its own, copies

    def gather(state, batch, stored):
        return {name: array[batch["row"]] for name, array in stored.items()}

    step = parallel.data_parallel(gather, kept=split.on_devices(1.0))
    for batch in split.train_batches(_BATCH, seed=0, copy=False):
        yield jax.block_until_ready(step(np.float32(0), batch))


def plain_batches(config: ConfigDict, names: tuple[str, ...]) -> Iterator[dict]:
    builder = tfds.builder_from_directory(dataset_path(config, names))
    # Sets under 250 MiB TFDS would keep in memory, decoded; FMA small's are larger.
    read_config = tfds.ReadConfig(try_autocache=False)
    dataset = builder.as_dataset(split="train", read_config=read_config)
    dataset = dataset.repeat().shuffle(_CLIPS.value).batch(_BATCH).prefetch(tf.data.AUTOTUNE)
    return ({n: batch[n] for n in (*names, "label")} for batch in tfds.as_numpy(dataset))


def tf_data_batches(config: ConfigDict, shapes: dict) -> Iterator[dict]:
    def parse(records):
        types = dict.fromkeys(shapes, tf.io.FixedLenFeature([], tf.string))
        types["label"] = tf.io.FixedLenFeature([], tf.int64)
        batch = tf.io.parse_example(records, types)
        for name, shape in shapes.items():
            batch[name] = tf.io.decode_raw(batch[name], tf.as_dtype(_FEATURES[name]))
            batch[name] = tf.reshape(batch[name], (_BATCH, *shape))
        return batch

    files = sorted(map(str, Path(dataset_path(config, tuple(shapes))).glob("*.tfrecord-*")))
    records = tf.data.TFRecordDataset(files).repeat().shuffle(_CLIPS.value)
    return records.batch(_BATCH).map(parse, num_parallel_calls=2).prefetch(2).as_numpy_iterator()


def grain_batches(folder: Path, shapes: dict, clips: dict) -> Iterator[dict]:
    import grain
    from array_record.python.array_record_module import ArrayRecordWriter

    path = str(folder / f"{'_'.join(shapes)}.array_record")
    writer = ArrayRecordWriter(path, "group_size:1,uncompressed")
    for i in range(_CLIPS.value):
        label = np.int32(i % _CLASSES).tobytes()
        writer.write(b"".join([*(clips[name][i].tobytes() for name in shapes), label]))
    writer.close()

    def parse(record: bytes) -> dict:
        example, start = {}, 0
        for name, shape in shapes.items():
            count = math.prod(shape)
            values = np.frombuffer(record, _FEATURES[name], count, start)
            example[name] = values.reshape(shape)
            start += values.nbytes
        return example | {"label": np.frombuffer(record, np.int32, 1, start)[0]}

    source = grain.sources.ArrayRecordDataSource([path])
    dataset = grain.MapDataset.source(source).seed(0).shuffle().repeat().map(parse)
    return iter(dataset.batch(_BATCH).to_iter_dataset())


def memory_batches(clips: dict[str, np.ndarray]) -> Iterator[dict]:
    flat = {name: array.reshape(len(array), -1) for name, array in clips.items()}
    buffers = {name: np.empty_like(array[:_BATCH]) for name, array in flat.items()}
    rng = np.random.default_rng(0)
    while True:
        order = rng.permutation(_CLIPS.value)
        for start in range(0, _CLIPS.value // _BATCH * _BATCH, _BATCH):
            for name, array in flat.items():
                rows = order[start : start + _BATCH]
                np.take(array, rows, axis=0, out=buffers[name], mode="clip")
            yield buffers


_touch = parallel.data_parallel(
    lambda state, batch: state + sum(x.ravel()[0].astype(np.float32) for x in batch.values())
)


def _deliver(batch: dict) -> jax.Array:
    """Takes a batch to the devices, as a step of training does, and waits for it."""
    return _touch(np.float32(0), batch).block_until_ready()


def _rate(batches: Iterator) -> float:
    """Clips/s of a turn, after all queues are full, and what had waited in them is read."""
    time.sleep(_SECONDS.value)
    torch_loaders.count_batches(batches, _SECONDS.value / 2)
    count, seconds = torch_loaders.count_batches(batches, _SECONDS.value)
    return count * _BATCH / seconds


def measure_waiting(config: ConfigDict, folder: Path) -> dict:
    network = Network.from_config(config, [str(number) for number in range(_CLASSES)])
    names = network.module.inputs
    write_tfds(config, folder, names, make_clips(config, folder))
    split = open_dataset(config, names).splits["train"]
    results = {"posed": {}, "real": {}}
    forms = {"loop": split.train_batches(_BATCH, seed=0), "tf_data": tf_data_copies(split)}
    for form, batches in forms.items():
        for _ in range(split.steps_per_epoch(_BATCH)):
            next(batches)
        began = time.thread_time()
        count, _ = torch_loaders.count_batches(map(_deliver, batches), 5 * _SECONDS.value)
        spent = 1000 * (time.thread_time() - began) / count
        results["posed"][form] = {"cpu_ms": _rounded(spent)}
    for milliseconds in (0.1, 0.3, 1, 2, 5):
        for form, batches in forms.items():
            share = _share_of_posed_step(batches, milliseconds / 1000)
            results["posed"][form][f"{milliseconds} ms"] = _rounded(share)
    for place in ("host", "device"):
        seconds, share = _share_of_real_step(network, split, on_device=place == "device")
        rate = _rounded(network.config.batch_size / seconds)
        results["real"][place] = {"clips_per_s": rate, "waiting": _rounded(share)}
    console.log.info("waiting: %s", json.dumps(results))
    return results


def tf_data_copies(split: Split) -> Iterator[dict]:
    """As `train_batches`, but copied by tf.data's own threads, some batches ahead."""
    fields = split.gather(np.zeros(1, np.int64))

    def gather(step):
        rows = split.train_rows(np.array([step]), _BATCH, 0)[0]
        return list(split.gather(rows).values())

    types = [tf.as_dtype(values.dtype) for values in fields.values()]
    dataset = tf.data.Dataset.range(sys.maxsize)
    dataset = dataset.map(lambda step: tf.numpy_function(gather, [step], types), 2)
    dataset = dataset.prefetch(2 * _STEPS_IN_FLIGHT)
    return (dict(zip(fields, batch, strict=True)) for batch in dataset.as_numpy_iterator())


def _share_of_posed_step(batches: Iterator, seconds: float) -> float:
    """The share of the time in which a device that takes so long for a step has none to do."""
    ends = collections.deque([time.perf_counter()], maxlen=_STEPS_IN_FLIGHT)
    idle, began = 0.0, ends[0]
    while ends[-1] < began + 5 * _SECONDS.value:
        _deliver(next(batches))
        now = time.perf_counter()
        idle += max(0.0, now - ends[-1])
        ends.append(max(now, ends[-1]) + seconds)
        # A sleep of nothing takes some 0.08 ms.
        if len(ends) == _STEPS_IN_FLIGHT and ends[0] > now:
            time.sleep(ends[0] - now)
    return idle / (ends[-1] - began)


def _share_of_real_step(network: Network, split: Split, on_device: bool) -> tuple[float, float]:
    """Seconds a step of training, and the share of them spent in getting the batch."""
    config = network.config
    state = create_train_state(network)
    augmenter = Augmenter(config, network.features)
    if on_device:
        parallel.device_memory = lambda: sys.maxsize  # as in `on_device_batches`
    clips = split.on_devices(1.0) if on_device else {}

    def train(state, batch, kept):
        clips, noise = kept
        batch |= {name: stored[batch["row"]] for name, stored in clips.items()}
        return train_step(state, batch, network, functools.partial(augmenter, noise=noise))

    step = parallel.data_parallel(train, donate=True, kept=(clips, augmenter.noise()))
    batches = split.train_batches(config.batch_size, config.seed, copy=not clips)
    history, waited = [], 0.0
    for i in itertools.count():
        start = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - start
        state, metrics = step(state, batch)
        history.append(metrics)
        if i >= _STEPS_IN_FLIGHT:
            history[-_STEPS_IN_FLIGHT]["loss"].block_until_ready()
        if i == _STEPS_IN_FLIGHT:  # compiled, and under way
            began, first, waited = time.perf_counter(), i, 0.0
        if i >= 3 * _STEPS_IN_FLIGHT and time.perf_counter() > began + 5 * _SECONDS.value:
            break
    total = time.perf_counter() - began
    return total / (i - first), waited / total


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")


if __name__ == "__main__":
    cli.run_main(main)
