"""Commands, and training alone, in processes of their own that start in no time.

They are forked from a process that has imported everything, and has touched no device yet. What an
import does is for tests that start Python itself.
"""

import atexit
import contextlib
import itertools
import json
import multiprocessing
import os
import re
import runpy
import socket
import subprocess
import sys
import tempfile
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from unittest import mock

from mgc_jax import signals

ROOT = Path(__file__).parents[1]
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["mgc_jax.training.train", "mgc_jax.predictor", "mgc_jax.results.comparison", "librosa"]
)


def import_everything() -> None:
    """Starts the process that others are forked from, while the tests are collected."""
    # At the end it would complain of the locks that killed processes have left.
    with mock.patch.dict(os.environ, PYTHONWARNINGS="ignore:resource_tracker"):
        resource_tracker.ensure_running()  # before the other, which would start it
    # As `process.set_up_logging` does, which comes too late for what is imported already.
    with mock.patch.dict(os.environ, TF_CPP_MIN_LOG_LEVEL="2", TF_ENABLE_ONEDNN_OPTS="0"):
        forkserver.ensure_running()


class Python:
    """`python -m MODULE ARGUMENTS...` or `python -c CODE ARGUMENTS...`, under way."""

    def __init__(self, *command, cwd=ROOT, env=None):
        """Starts it."""
        self.args = list(map(str, command))
        self._folder = tempfile.TemporaryDirectory()
        environment = dict(os.environ if env is None else env)
        arguments = (self.args, str(cwd), environment, self._folder.name)
        self.process = CONTEXT.Process(target=_run, args=arguments)
        self.process.start()

    def finish(self) -> subprocess.CompletedProcess:
        """Waits for its end; what it printed, and its exit code."""
        self.process.join()
        said = self.read("stdout"), self.read("stderr")
        self._folder.cleanup()
        return subprocess.CompletedProcess(self.args, self.process.exitcode, *said)

    def read(self, stream: str) -> str:
        """What it has printed so far."""
        path = Path(self._folder.name, stream)
        return path.read_text() if path.exists() else ""


def call(module: str, *arguments, **place) -> subprocess.CompletedProcess:
    """Runs a command of the package to its end, as a user types it."""
    return Python("-m", f"mgc_jax.{module}", *arguments, **place).finish()


def _run(command, cwd, environment, folder):
    os.chdir(cwd)
    os.environ.clear()
    os.environ |= environment
    for stream, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CREAT), stream)
    signals.PATIENCE = 600.0  # however loaded the machine is
    if cache := environment.get("JAX_COMPILATION_CACHE_DIR"):
        _use_cache(cache)
    _keep_what_is_compiled()
    kind, program, *arguments = command
    sys.path.insert(0, cwd)
    sys.argv = [program if kind == "-m" else kind, *arguments]
    try:
        if kind == "-m":
            runpy.run_module(program, run_name="__main__", alter_sys=True)
        else:
            exec(program, {"__name__": "__main__"})
    finally:
        # As Python does, but not multiprocessing: the first process of a job must not take its
        # meeting place away before the others have left it.
        atexit._run_exitfuncs()


def killed_after(count: int, kept_by: str, command: str) -> str:
    """A program: a command that kills itself once it has kept so many files.

    Args:
        count: of files.
        kept_by: the class whose `add` keeps one, with its module: `answers.GrowingTable`.
        command: its word.
    """
    module, _, name = kept_by.rpartition(".")
    return f"""
import os, signal
from mgc_jax import cli
from mgc_jax.{module} import {name}
add, done = {name}.add, []
def add_some(*arguments):
    add(*arguments)
    done.append(arguments)
    if len(done) == {count}:
        os.kill(os.getpid(), signal.SIGKILL)
{name}.add = add_some
cli.run("{command}")
"""


def assert_one_error(done: subprocess.CompletedProcess, says: str = "") -> None:
    """A command ended with one line of what is wrong, after a line of what it was loading."""
    said = [x for x in done.stderr.splitlines() if not re.match(r"[\d:]+ loading ", x)]
    assert done.returncode == 1 and done.stdout == "", done
    assert len(said) == 1 and said[0].startswith("error: ") and says in said[0], done.stderr


def start(config, workdir, *, devices=1, process=0, processes=1, port=0):
    """Starts `loop.train`, with fake devices; its output goes to a file beside the workdir."""
    arguments = (config.to_json(), str(workdir), devices, process, processes, port)
    child = CONTEXT.Process(target=_train, args=arguments, daemon=True)
    child.start()
    return child


def start_job(config, workdir, *, processes, devices):
    """Starts the processes of one job on this machine."""
    port = free_port()
    return [
        start(
            config,
            workdir,
            devices=devices,
            process=i,
            processes=processes,
            port=port,
        )
        for i in range(processes)
    ]


def free_port() -> int:
    """A port that nobody uses, and below those that the system gives to who asks for any."""
    for port in itertools.count(10_000 + os.getpid() % 10_000):
        with contextlib.suppress(OSError), socket.socket() as free:
            free.bind(("localhost", port))
            return port


def finish(*children, code=0, workdir=None):
    """Waits for processes and checks their exit codes."""
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [code] * len(children), said(workdir)


def said(workdir) -> str:
    """What the processes that trained in a workdir printed."""
    return "".join(path.read_text() for path in sorted(Path(f"{workdir}.said").glob("*")))


def log_lines(workdir, kind=None) -> list[dict]:
    """Lines of metrics.jsonl without times; a half-written last line is left out."""
    lines = []
    path = Path(workdir) / "metrics.jsonl"
    for text in path.read_text().splitlines(keepends=True) if path.exists() else []:
        if text.endswith("\n"):
            line = json.loads(text)
            lines.append({k: v for k, v in line.items() if k not in ("seconds", "clips_per_s")})
    return [line for line in lines if kind in (None, line["kind"])]


def _train(config, workdir, devices, process, processes, port):
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
    Path(f"{workdir}.said").mkdir(exist_ok=True)
    output = os.open(f"{workdir}.said/{process}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(output, stream)
    signals.PATIENCE = 600.0
    _keep_what_is_compiled()
    from ml_collections import ConfigDict

    from mgc_jax import cli, models, parallel
    from mgc_jax.data.input_pipeline import open_dataset
    from mgc_jax.process import set_up_logging
    from mgc_jax.training import loop
    from mgc_jax.training.network import Network

    set_up_logging()
    if processes > 1:
        os.environ["JAX_COORDINATOR_ADDRESS"] = f"localhost:{port}"
        os.environ |= {"JAX_NUM_PROCESSES": str(processes), "JAX_PROCESS_ID": str(process)}
        parallel.join_hosts()
    signals.listen(cli.RESUME)
    parallel.use_compilation_cache()
    config = ConfigDict(json.loads(config))
    Path(workdir).mkdir(exist_ok=True)
    try:
        with cli.exit_codes(cli.RESUME):
            data = open_dataset(config, models.inputs_of(config.model))
            loop.train(Network.from_config(config, data.genres), Path(workdir), data)
    finally:
        atexit._run_exitfuncs()


def _use_cache(folder: str) -> None:
    """As JAX does at its import, which is over."""
    import jax

    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def _keep_what_is_compiled() -> None:
    """In every process of a job: on CPUs each has its own, and JAX keeps the first process's alone.

    Else the others compile anew in each test, for 11 s of CPU time.
    """
    from jax._src import compiler, distributed

    write = compiler._cache_write

    def write_as_the_first(*arguments):
        with mock.patch.object(distributed.global_state, "process_id", 0):
            write(*arguments)

    compiler._cache_write = write_as_the_first
