"""Times the source's networks and musicnn: a train step (forward, backward, AdamW) and inference.

    python benchmarks/networks.py --torch
    python benchmarks/networks.py --networks=baseline_a_2d,densenet --batch=32,8 --repetitions=9
    python benchmarks/networks.py --torch --dtype=bfloat16 --batch=256 --profile=traces

What runs is the package's own train step and predict step, compiled as training compiles them, on
stored features (uint8, int16) that already lie on the device. With --torch the same networks run in
PyTorch (benchmarks/torch_networks.py), in a process of its own, in alternation with ours. float32
means what each library does with it by default or better: on an NVIDIA GPU that is TF32, for both.
Train steps and inference are measured one after the other, each in processes of its own, as
training has glibc keep freed memory (`parallel.keep_memory`), and predicting has not. Run it on an
idle machine: where other programs take its cores, PyTorch's threads wait for each other in busy
loops and lose far more than ours; GOMP_SPINCOUNT=10000 in the environment bounds that, and costs
PyTorch a tenth on idle cores.

Prints one JSON object: `{network: {"parameters", "train": {...}, "inference": [{...}, ...]},
"machine": {...}}`, `machine` as the process of the train steps found it. Each entry holds:

batch            clips a step
ours_s           seconds a step, the median of the repetitions; a repetition is half a second of
                 steps, or one step
clips_per_s      batch / ours_s
compile_s        the first call: tracing, compiling without the persistent cache, and one step
gflop            XLA's count for one step as written, before its optimisations: after them, a GPU's
                 library routines would count as nothing, and rewritten convolutions as too much
gbyte            XLA's count of what the compiled step reads and writes, caches not considered; of a
                 loop over a batch's parts (DenseNet's inference on a CPU) one pass
gflop_per_s      gflop / ours_s
share_of_peak    gflop_per_s / the matmul peak of this dtype, measured in the same run
floor_s          the larger of gflop / matmul peak and gbyte / memory bandwidth
floor_share      floor_s / ours_s: 1 means that nothing is left to gain
torch_s, ratio   PyTorch's median, and the median of ours / PyTorch's over the pairs of repetitions;
                 null without --torch
ratio_of_best    our fastest repetition / PyTorch's; far from ratio means that the machine was busy
"""

import dataclasses
import importlib
import importlib.util
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib.metadata import version
from pathlib import Path

# Runs from a clone, whether or not the package is installed.
sys.path.insert(0, str(Path(__file__).parents[1]))
# PyTorch needs a part of the GPU's memory.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from mgc_jax import cli, console, parallel
from mgc_jax.errors import InputError
from mgc_jax.models import MODELS, count_parameters
from mgc_jax.results.published import PUBLISHED
from mgc_jax.training.inference import predict_step
from mgc_jax.training.network import Network
from mgc_jax.training.step import create_train_state, train_step

_NETWORKS = flags.DEFINE_list(
    "networks", list(PUBLISHED), "Names of networks: of the source's, or musicnn."
)
_BATCH = flags.DEFINE_list(
    "batch",
    [],
    "Clips a train step: one number for all networks, or one for each of --networks. Default: the "
    "config's, but 8 for densenet on a CPU.",
)
_INFERENCE_BATCH = flags.DEFINE_list(
    "inference_batch", [], "Clips an inference step, all for each network; default: the config's, 1"
)
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Type to compute in.")
_REPETITIONS = flags.DEFINE_integer("repetitions", 5, "Repetitions to take medians of.", 1)
_TORCH = flags.DEFINE_bool("torch", False, "Compare with PyTorch.")
_PROFILE = flags.DEFINE_string(
    "profile", None, "Folder for a profiler trace of each network's train step."
)
_PART = flags.DEFINE_enum("part", None, ["train", "inference"], "Measure this alone.")

_CLASSES = 8
_PROFILED_STEPS = 3
_TURN_S = 0.5
# Products of one timing of an accelerator's peak, which hides the time to launch one.
_CHAIN = 20
_LOAD_AT_START = round(os.getloadavg()[0], 2)


@dataclasses.dataclass(frozen=True)
class Machine:
    """What the measurements are judged by.

    Attributes:
        matmul_flop_per_s: peak in the type that the networks compute in.
        bytes_per_s: of the memory.
    """

    matmul_flop_per_s: float
    bytes_per_s: float


@dataclasses.dataclass(frozen=True)
class Step:
    """A compiled step on one batch.

    Attributes:
        run: runs that many steps and waits for the last.
        compile_s: seconds of the first call.
        flop: of one step.
        bytes_accessed: by one step.
    """

    run: Callable[[int], None]
    compile_s: float
    flop: float
    bytes_accessed: float


class Ours:
    """One of our networks with its training state."""

    def __init__(self, name: str, dtype: str):
        config = importlib.import_module(f"mgc_jax.configs.{name}").get_config()
        config.dtype = dtype
        self.network = Network.from_config(config, [str(i) for i in range(_CLASSES)])
        self._state = create_train_state(self.network)

    @property
    def parameters(self) -> int:
        return count_parameters(self._state.variables)

    def random_batch(self, size: int) -> dict[str, np.ndarray]:
        """Clips as the input pipeline gives them."""
        rng = np.random.default_rng(0)
        batch = {"label": rng.integers(0, _CLASSES, size, np.int32)}
        for feature in self.network.features:
            info = np.iinfo(feature.dtype)
            shape = (size, *feature.shape)
            batch[feature.name] = rng.integers(
                info.min, info.max, shape, feature.dtype, endpoint=True
            )
        return batch

    def train_step(self, batch: Mapping[str, np.ndarray]) -> Step:
        def function(state, batch):
            return train_step(state, batch, self.network)

        compiled = parallel.data_parallel(function, donate=True)
        on_device = jax.device_put(batch)

        def run(steps: int) -> None:
            for _ in range(steps):
                self._state, metrics = compiled(self._state, on_device)
            jax.block_until_ready((self._state, metrics))

        return _first_call(run, _count_flop(function, self._state, batch))

    def predict_step(self, batch: Mapping[str, np.ndarray]) -> Step:
        def function(variables, batch):
            return predict_step(variables, batch, self.network)

        compiled = self.network.predict_step
        on_device, variables = jax.device_put(batch), self._state.variables

        def run(steps: int) -> None:
            for _ in range(steps):
                log_probs = compiled(variables, on_device)
            log_probs.block_until_ready()

        # A pass of a loop over a batch's parts would count once.
        size, one = len(batch["label"]), {name: array[:1] for name, array in batch.items()}
        return _first_call(run, size * _count_flop(function, variables, one))


class Rival:
    """The same network in PyTorch, in a process of its own."""

    def __init__(self, process: ProcessPoolExecutor, name: str, ours: Ours):
        self._process = process
        settings = {
            "mels": ours.network.config.mel.n_mels,
            "classes": _CLASSES,
            "learning_rate": ours.network.config.learning_rate,
            "weight_decay": ours.network.config.weight_decay,
            "bfloat16": _DTYPE.value == "bfloat16",
            "cuda": jax.default_backend() == "gpu",
            "threads": _cores(),
        }
        parameters = self._call("make", name, **settings)
        if parameters != ours.parameters:
            raise AssertionError(f"{name}: {ours.parameters} parameters, PyTorch's {parameters}")

    def choose(self, step: str, batch: Mapping[str, np.ndarray]) -> Callable[[int], float]:
        """Chooses a step on one batch; the result times that many of it."""
        self._call("choose", step, batch)
        return partial(self._call, "seconds")

    def _call(self, function: str, *args, **kwargs):
        return self._process.submit(_call_torch, function, *args, **kwargs).result()


def _call_torch(function: str, *args, **kwargs):
    from benchmarks import torch_networks

    return getattr(torch_networks, function)(*args, **kwargs)


def main(argv: list[str]) -> None:
    cli.reject_arguments(argv)
    if _TORCH.value and importlib.util.find_spec("torch") is None:
        raise InputError("--torch needs PyTorch: pip install torch")
    for name in _NETWORKS.value:
        if name not in MODELS:
            raise InputError(f"--networks={name!r} is unknown: one of {', '.join(MODELS)}")
        if _TORCH.value and name not in (*PUBLISHED, "musicnn"):
            raise InputError(f"--torch: there is no {name} in PyTorch here")
    # Here, not where they are used, after minutes of measuring.
    if len(_integers(_BATCH)) not in (0, 1, len(_NETWORKS.value)):
        raise InputError(
            f"--batch: give one number, or {len(_NETWORKS.value)}, one for each network"
        )
    _integers(_INFERENCE_BATCH)
    results = _measure_part() if _PART.value else _measure_parts()
    print(json.dumps(results, indent=2))


def _measure_parts() -> dict:
    """Both parts, each in processes of its own."""
    results = {}
    for part in ("inference", "train"):
        command = [sys.executable, *sys.argv, f"--part={part}"]
        done = subprocess.run(command, stdout=subprocess.PIPE)
        if done.returncode:
            sys.exit(done.returncode)  # it has said why
        for name, entries in json.loads(done.stdout).items():
            results.setdefault(name, {}).update(entries)
    return results


def _measure_part() -> dict:
    jax.config.update("jax_enable_compilation_cache", False)
    if _PART.value == "train":
        parallel.keep_memory()
    machine, facts = _measure_machine()
    console.log.info("machine: %s", json.dumps(facts))
    results = {}
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as torch_process:
        for name in _NETWORKS.value:
            ours = Ours(name, _DTYPE.value)
            rival = Rival(torch_process, name, ours) if _TORCH.value else None
            measure = _measure_training if _PART.value == "train" else _measure_inference
            results[name] = {"parameters": ours.parameters} | measure(name, ours, rival, machine)
    return results | {"machine": facts}


def _measure_training(name: str, ours: Ours, rival: Rival | None, machine: Machine) -> dict:
    size = _train_batch_sizes()[name]
    batch = ours.random_batch(size)
    step = ours.train_step(batch)
    entry = _measure(step, rival and rival.choose("train_step", batch), size, machine)
    console.log.info("%s train: %s", name, json.dumps(entry))
    if _PROFILE.value:
        with jax.profiler.trace(os.path.join(_PROFILE.value, name)):
            step.run(_PROFILED_STEPS)
    return {"train": entry}


def _measure_inference(name: str, ours: Ours, rival: Rival | None, machine: Machine) -> dict:
    entries = []
    for size in _integers(_INFERENCE_BATCH) or [ours.network.config.batch_size, 1]:
        batch = ours.random_batch(size)
        step = ours.predict_step(batch)
        entry = _measure(step, rival and rival.choose("predict_step", batch), size, machine)
        console.log.info("%s inference: %s", name, json.dumps(entry))
        entries.append(entry)
    return {"inference": entries}


def _measure(
    step: Step, rival_seconds: Callable[[int], float] | None, batch_size: int, machine: Machine
) -> dict:
    """Times a step, in alternation with PyTorch's, and judges it."""
    timers = [partial(_seconds, step.run), *([rival_seconds] if rival_seconds else [])]
    for timer in timers:
        timer(1)
    steps = max(1, round(_TURN_S / timers[0](1)))

    def turn(timer: Callable[[int], float]) -> float:
        if steps > 1:
            timer(1)  # the other's threads still spin for a while, and hold the caches
        return timer(steps) / steps

    rounds = [[turn(timer) for timer in timers] for _ in range(_REPETITIONS.value)]
    ours_s = statistics.median(seconds[0] for seconds in rounds)
    floor_s = max(step.flop / machine.matmul_flop_per_s, step.bytes_accessed / machine.bytes_per_s)
    entry = {
        "ours_s": ours_s,
        "clips_per_s": batch_size / ours_s,
        "compile_s": step.compile_s,
        "gflop": step.flop / 1e9,
        "gbyte": step.bytes_accessed / 1e9,
        "gflop_per_s": step.flop / ours_s / 1e9,
        "share_of_peak": step.flop / ours_s / machine.matmul_flop_per_s,
        "floor_s": floor_s,
        "floor_share": floor_s / ours_s,
        "torch_s": None,
        "ratio": None,
        "ratio_of_best": None,
    }
    if rival_seconds:
        entry["torch_s"] = statistics.median(theirs for _, theirs in rounds)
        entry["ratio"] = statistics.median(ours / theirs for ours, theirs in rounds)
        ours_best, theirs_best = map(min, zip(*rounds, strict=True))
        entry["ratio_of_best"] = ours_best / theirs_best
    return {"batch": batch_size} | {key: _rounded(value) for key, value in entry.items()}


def _first_call(run: Callable[[int], None], flop: float) -> Step:
    """Compiles a step by running it once, and asks XLA about the program that this added."""
    client = jax.devices()[0].client
    before = client.live_executables()
    compile_s = _seconds(run, 1)
    added = [new for new in client.live_executables() if not any(new is old for old in before)]
    return Step(run, compile_s, flop, max(map(_bytes_accessed, added)))


def _count_flop(function: Callable, state, batch: Mapping[str, np.ndarray]) -> float:
    """XLA's count for one call on one replica. Only JAX's CPU backend counts before compiling."""
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
    batch = {
        name: jax.ShapeDtypeStruct((1, *array.shape), array.dtype) for name, array in batch.items()
    }
    replicas = jax.vmap(function, in_axes=(None, 0), out_axes=None, axis_name=parallel.AXIS)
    with jax.default_device(jax.devices("cpu")[0]):
        return jax.jit(replicas).lower(shapes, batch).cost_analysis()["flops"]


def _bytes_accessed(executable) -> float:
    analysis = executable.cost_analysis()
    # A list with one entry a partition in some versions.
    analysis = analysis[0] if isinstance(analysis, list) else analysis
    return analysis.get("bytes accessed", 0.0)


def _measure_machine() -> tuple[Machine, dict]:
    chain = 1 if jax.default_backend() == "cpu" else _CHAIN
    dtypes = dict.fromkeys(["float32", _DTYPE.value])
    peaks = {dtype: _matmul_flop_per_s(dtype, chain) for dtype in dtypes}
    machine = Machine(peaks[_DTYPE.value], _bytes_per_s(chain))
    packages = ["jax", "jaxlib", "flax", *(["torch"] if _TORCH.value else [])]
    facts = {
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "processor": _processor(),
        "cores": _cores(),
        "load_average_at_start": _LOAD_AT_START,
        "dtype": _DTYPE.value,
        "matmul_peak_gflops": {dtype: _rounded(peak / 1e9) for dtype, peak in peaks.items()},
        "bandwidth_gb_per_s": _rounded(machine.bytes_per_s / 1e9),
        "repetitions": _REPETITIONS.value,
        "versions": {name: version(name) for name in packages}
        | {"python": platform.python_version()},
    }
    return machine, facts


def _matmul_flop_per_s(dtype: str, chain: int) -> float:
    size = 2048 if chain == 1 else 8192
    # Of random entries, as a GPU is faster on zeros; scaled so that a chain of products is finite.
    x = jax.random.normal(jax.random.key(0), (size, size)) / np.sqrt(size)
    x, factor = x.astype(dtype), x.astype(dtype)
    multiply = jax.jit(jnp.matmul)

    def run(steps: int) -> None:
        y = x
        for _ in range(steps):
            y = multiply(y, factor)
        y.block_until_ready()

    return 2 * size**3 / _best_seconds(run, chain)


def _bytes_per_s(chain: int) -> float:
    """A large array is read and written, in place: fresh pages would cost a CPU more."""
    x = jnp.ones(2**26 if chain == 1 else 2**28, jnp.float32)
    size = 2 * x.nbytes
    negate = jax.jit(jnp.negative, donate_argnums=0)

    def run(steps: int) -> None:
        nonlocal x
        for _ in range(steps):
            x = negate(x)
        x.block_until_ready()

    return size / _best_seconds(run, chain)


def _best_seconds(run: Callable[[int], None], steps: int) -> float:
    """Of one step; the best of ten, as a peak is what the machine can do undisturbed."""
    run(1)
    return min(_seconds(run, steps) for _ in range(10)) / steps


def _seconds(run: Callable[[int], None], steps: int) -> float:
    start = time.perf_counter()
    run(steps)
    return time.perf_counter() - start


def _train_batch_sizes() -> dict[str, int]:
    names, sizes = _NETWORKS.value, _integers(_BATCH)
    if not sizes:
        return {name: _default_batch_size(name) for name in names}
    return dict(zip(names, sizes * (len(names) // len(sizes)), strict=True))


def _default_batch_size(name: str) -> int:
    if name == "densenet" and jax.default_backend() == "cpu":
        return 8
    return importlib.import_module(f"mgc_jax.configs.{name}").get_config().batch_size


def _integers(flag: flags.FlagHolder) -> list[int]:
    if not all(text.isdecimal() and int(text) for text in flag.value):
        raise InputError(f"--{flag.name}: positive numbers, separated by commas")
    return [int(text) for text in flag.value]


def _cores() -> int:
    """Those that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


if __name__ == "__main__":
    cli.run_main(main)
