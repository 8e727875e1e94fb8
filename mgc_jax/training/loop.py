"""The training loop: steps and epochs, validation, saving, and going on where a run stopped."""

import contextlib
import dataclasses
import json
import math
import time
from collections import deque
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from mgc_jax import console, parallel, signals
from mgc_jax.errors import InputError, Interrupted
from mgc_jax.files import write_text
from mgc_jax.results.metrics import classification_metrics
from mgc_jax.training.augment import Augmenter
from mgc_jax.training.checkpoints import Checkpoints
from mgc_jax.training.evaluate import predict_split
from mgc_jax.training.network import Network
from mgc_jax.training.optimizer import learning_rate_schedule, learning_rates
from mgc_jax.training.pretrained import load_weights
from mgc_jax.training.progress import Progress, is_finished
from mgc_jax.training.public_weights import find_weights
from mgc_jax.training.run_log import ProgressLine, RunLog, announce_epoch
from mgc_jax.training.step import class_weights, create_train_state, train_step

if TYPE_CHECKING:
    from mgc_jax.data.input_pipeline import ClipDataset

# What is logged of each step.
_METRICS = ("loss", "top1", "grad_norm")
# Requests to the loop; with several processes the highest of any counts.
_GO_ON, _SAVE, _STOP = range(3)


def load_progress(workdir: Path) -> Progress:
    """Where the run of a workdir is, as process 0 sees it."""
    found = None
    if parallel.is_main():
        with Checkpoints(workdir) as checkpoints:
            found = checkpoints.progress()
    return Progress(**json.loads(parallel.share_text(json.dumps(found or {}))))


def train(network: Network, workdir: Path, dataset: "ClipDataset") -> Progress:
    """Trains or goes on training, up to `config.num_epochs`.

    `checkpoints/last` is what a restart goes on from, saved every `checkpoint_every_minutes` and
    after each epoch; `checkpoints/best` is the epoch that `config.keep` says.

    Args:
        network: to train, as its config says.
        workdir: where checkpoints and logs go.
        dataset: with the splits `train` and `validation`.

    Returns:
        Where the run is, now that it is finished.

    Raises:
        InputError: a batch is larger than the split, or the loss is no finite number.
        Interrupted: SIGTERM or SIGINT came; all steps so far are saved.
    """
    try:
        with Checkpoints(workdir, writing=parallel.is_main()) as checkpoints:
            training = _Training(network, workdir, dataset, checkpoints)
            training.run()
            return training.progress
    except Interrupted:
        parallel.wait_for_main("saved")  # no process leaves while process 0 still saves
        raise
    finally:
        signals.release()


class _Training:
    """One start of a run: what its loop shares."""

    def __init__(
        self,
        network: Network,
        workdir: Path,
        dataset: "ClipDataset",
        checkpoints: Checkpoints,
    ):
        """Makes the state, or restores the one that was saved last."""
        config = network.config
        self.network = network
        self.config = config
        self.workdir = workdir
        self.dataset = dataset
        self.checkpoints = checkpoints
        self.split = dataset.splits["train"]
        self.steps = self.split.steps_per_epoch(config.batch_size)
        self.state = create_train_state(network, self.steps)
        self.progress = Progress()
        self.restore()
        data = dataset.fingerprint()["hash"]
        if self.progress.data not in ("", data):
            raise InputError(f"the checkpoints in {workdir} are of a run on other data")
        self.progress.data = data
        schedule = learning_rate_schedule(config, self.steps)
        self.rates = learning_rates(schedule, self.steps * config.num_epochs).tolist()
        self.save_interval = 60 * config.checkpoint_every_minutes
        self.saved_at = time.monotonic()

    def restore(self) -> None:
        """Starts from `last`, from `config.init_from`, or afresh: process 0's state for all."""
        state = self.state
        progress = self.progress
        if parallel.is_main():
            if restored := self.checkpoints.restore_last(state):
                state = restored[0]
                progress = Progress(**restored[1])
                console.log.info(
                    "resuming after step %d, %d of %d epochs done",
                    *(progress.step, progress.epoch, self.config.num_epochs),
                )
            elif self.config.init_from:
                variables = load_weights(
                    find_weights(self.config.init_from),
                    self.config.model,
                    state.variables,
                    self.network.genres,
                )
                average = jax.tree.map(jnp.copy, variables) if state.average else {}
                state = state.replace(average=average, **variables)
        self.state = parallel.replicate(parallel.share_arrays(state))
        text = parallel.share_text(json.dumps(dataclasses.asdict(progress)))
        self.progress = Progress(**json.loads(text))

    def run(self) -> None:
        """Trains until the run is finished."""
        config = self.config
        progress = self.progress
        weights = None
        if config.balance_classes:
            weights = class_weights(self.split.labels["label"], len(self.network.genres))
        augmenter = Augmenter(config, self.network.features)

        def step(state, batch, kept):
            clips, noise = kept
            request = jax.lax.pmax(batch["request"].max(), parallel.AXIS)
            batch |= {name: stored[batch["row"]] for name, stored in clips.items()}
            augment = partial(augmenter, noise=noise)
            state, metrics = train_step(state, batch, self.network, augment, weights)
            # One array: fetching each of them would take as long as fetching all.
            return state, jnp.stack([*(metrics[name] for name in _METRICS), request])

        clips = self.split.on_devices(config.device_cache)
        kept = clips, augmenter.noise()
        self.step_fn = parallel.data_parallel(step, donate=True, kept=kept)
        console.log.info("compiling the step (once; kept in %s)", parallel.compilation_cache())
        batches = self.split.train_batches(
            config.batch_size, config.seed, progress.step, copy=not clips
        )
        if config.profile and parallel.is_main():
            batches = _profiled(batches, self.workdir / "profile")
        self.line = ProgressLine(config.num_epochs, self.steps, config.batch_size, progress.step)
        with (
            contextlib.closing(self.line),
            RunLog(
                self.workdir, progress.step, progress.epoch, self.steps * config.num_epochs
            ) as self.log,
        ):
            while not is_finished(config, progress):
                self.train_epoch(batches)
                self.validate()

    def train_epoch(self, batches: Iterator[dict[str, np.ndarray]]) -> None:
        """What is left of an epoch. Metrics are fetched some steps late, so that no step waits."""
        progress = self.progress
        end = (progress.epoch + 1) * self.steps
        share = self.config.batch_size // jax.process_count()
        requests = np.repeat(np.int32([[_GO_ON], [_SAVE], [_STOP]]), share, axis=1)
        self.request = _GO_ON
        self.clock = time.perf_counter()
        self.line.start_epoch(progress.step)
        pending = deque()
        for _ in range(end - progress.step):
            start = time.perf_counter()
            batch = next(batches)
            self.line.waited(time.perf_counter() - start)
            batch["request"] = requests[self.local_request()]
            self.state, metrics = self.step_fn(self.state, batch)
            pending.append(metrics)
            if len(pending) > parallel.STEPS_IN_FLIGHT:
                self.account(pending.popleft())
            if self.request != _GO_ON:
                while pending:
                    self.account(pending.popleft())
                if progress.step < end:  # else the validation is next
                    self.save()
                    if self.request == _STOP:
                        self.stop()
                    self.request = _GO_ON
        while pending:
            self.account(pending.popleft())
        self.line.clear()

    def local_request(self) -> int:
        """What this process wants of the loop."""
        if signals.stop_requested():
            return _STOP
        due = time.monotonic() - self.saved_at >= self.save_interval
        return _SAVE if due else _GO_ON

    def account(self, metrics: jax.Array) -> None:
        """Adds a step's metrics to the epoch's, and logs them."""
        signals.hold()  # from the first step on, there is something to save
        progress = self.progress
        *metrics, request = np.asarray(metrics).tolist()
        self.request = max(self.request, request)
        metrics = dict(zip(_METRICS, metrics, strict=True))
        metrics["learning_rate"] = self.rates[progress.step - progress.skipped]
        finite = math.isfinite(metrics["loss"]) and math.isfinite(metrics["grad_norm"])
        if not finite and not self.config.skip_nonfinite:
            self.fail(metrics)
        progress.step += 1
        if finite:
            progress.loss += metrics["loss"]
            progress.top1 += metrics["top1"]
            progress.counted += 1
            self.line.update(
                progress.step, progress.loss / progress.counted, progress.top1 / progress.counted
            )
        else:
            progress.skipped += 1
            metrics |= {"loss": None, "top1": None, "grad_norm": None}
        now = time.perf_counter()
        progress.seconds += now - self.clock
        self.clock = now
        self.log.write("step", progress.epoch + 1, progress.step, **metrics)

    def fail(self, metrics: Mapping[str, float]) -> None:
        """Stops at a step that is not finite, before anything of it is saved."""
        step = self.progress.step
        rows = self.split.train_rows(np.array([step]), self.config.batch_size, self.config.seed)
        tracks = np.unique(self.split.labels["track_id"][rows]).tolist()
        path = self.workdir / "nonfinite.json"
        if parallel.is_main():
            write_text(path, json.dumps({"step": step + 1, **metrics, "track_ids": tracks}))
        raise InputError(
            f"step {step + 1}: the loss is {metrics['loss']} and the gradient's norm "
            f"{metrics['grad_norm']}, at a learning rate of {metrics['learning_rate']:g}; {path} "
            f"lists the batch's {len(tracks)} tracks. Lower config.learning_rate, or go on with "
            "--config.skip_nonfinite=True"
        )

    def validate(self) -> None:
        """Ends an epoch: logs it, validates, and saves."""
        config = self.config
        progress = self.progress
        epoch = progress.epoch + 1
        step = progress.step
        if not progress.counted:
            raise InputError(f"no step of epoch {epoch} was finite: lower config.learning_rate")
        scores = {name: getattr(progress, name) / progress.counted for name in ("loss", "top1")}
        scores["seconds"] = progress.seconds
        scores["clips_per_s"] = self.steps * config.batch_size / progress.seconds
        if config.skip_nonfinite:
            scores["skipped"] = progress.skipped
        self.log.write("train", epoch, step, **scores)
        start = time.perf_counter()

        def predict(variables, batch):
            if signals.stop_requested() and jax.process_count() == 1:  # several would have to agree
                self.save()
                self.stop()
            return self.network.predict_step(variables, batch)

        variables = self.state.evaluated
        validation = self.dataset.splits["validation"]
        predictions = predict_split(predict, variables, validation, config.batch_size)
        held_out = classification_metrics(predictions, self.dataset.genres)
        held_out = {name: held_out[name] for name in ("loss", "top1", "f1", "f1_macro")}
        improved = progress.validated(epoch, held_out, config.keep)
        if improved:
            self.checkpoints.save_best(variables, {"epoch": epoch, "loss": held_out["loss"]})
        held_out["seconds"] = time.perf_counter() - start
        self.log.write("validation", epoch, step, **held_out)
        progress.epoch = epoch
        progress.loss = progress.top1 = progress.seconds = 0.0
        progress.counted = 0
        self.save()
        announce_epoch(epoch, config.num_epochs, scores, held_out, improved)
        if self.request == _STOP:
            self.stop()

    def save(self) -> None:
        """Saves `last`, the log first: no checkpoint may be ahead of it."""
        self.log.flush()
        self.checkpoints.save_last(self.state, dataclasses.asdict(self.progress))
        self.saved_at = time.monotonic()

    def stop(self) -> None:
        """Ends the training after a request to stop."""
        self.line.clear()
        step = self.progress.step
        total = self.steps * self.config.num_epochs
        raise Interrupted(f"stopped after step {step} of {total}, which is saved")


def _profiled(batches: Iterator, folder: Path) -> Iterator:
    """Passes batches on, and writes a JAX profile while the steps 6 to 10 of them run."""
    yield from islice(batches, 5)
    with jax.profiler.trace(str(folder)):
        yield from islice(batches, 5)
    yield from batches
