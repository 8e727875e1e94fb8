"""Kills, mutated audio and flipped bits, by the hundred: nothing is lost, and nothing believed.

    python benchmarks/soak.py --kills=200 --mutations=2000 --flips=1000

Prints JSON, `{"kills": {"trials": n, "failed": n}, "mutations": ..., "flips": ...}`; what failed is
said on stderr, with its number. All of a trial depends on --seed and its number; results are
kept in --folder, and the same command goes on from there.

A kill: prepare, train (whose end draws the report) or --mode=eval gets SIGKILL, SIGTERM, or SIGSTOP
and SIGCONT after a random share of the processor time that it takes undisturbed; then the same
command goes on, is killed again some times, and ends. Failed: a traceback, another exit code
than that signal's, or in the end other records, log, scores or predictions than those undisturbed.

A mutation: an audio file with bytes changed, cut, moved, doubled or zeroed, which predict and
prepare read among others. Failed: no answer for it, a traceback, a crash of the process or none of
its end.

A flip: a bit or the end of a file of a run or of records. Failed: a traceback, or another result
than before without an error or a warning. Of the log and of the pages nothing is computed; they may
not lead to tracebacks.
"""

import collections
import contextlib
import json
import logging
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

# Runs from a clone, whether or not the package is installed.
sys.path[:0] = [str(Path(__file__).parents[1] / part) for part in ("", "tests")]

import child  # noqa: E402
import numpy as np  # noqa: E402
import soundfile  # noqa: E402
from absl import flags  # noqa: E402

from mgc_jax import cli, console  # noqa: E402

_KILLS = flags.DEFINE_integer("kills", 200, "Trials of that kind.", 0)
_MUTATIONS = flags.DEFINE_integer("mutations", 2000, "Trials of that kind.", 0)
_FLIPS = flags.DEFINE_integer("flips", 1000, "Trials of that kind.", 0)
_SEED = flags.DEFINE_integer("seed", 0, "Of all that is drawn.")
_FOLDER = flags.DEFINE_string("folder", "build/soak", "Where runs and results are kept.")

_A_CHAIN = 4  # kills before a command may end
_A_PROCESS = 250  # mutated files, or flips, that one process reads
_HANGS = 300.0  # s of waiting for an end, or for any use of the processor
_SMALL = (  # a network and clips that cost next to nothing
    "--config=baseline_a_2d",
    "--config.dataset=audio_folder",
    "--config.audio.clip_seconds=2.0",
    "--config.mel.n_fft=512",
    "--config.mel.hop_length=500",
    "--config.mel.frames=64",
    "--config.mel.n_mels=32",
)
_TRAINING = ("--config.batch_size=4", "--config.num_epochs=3", "--config.learning_rate=1e-3")
_TRAINING += ("--config.checkpoint_every_minutes=0.0",)
_MUSIC = (("wav", {}), ("flac", {}), ("ogg", {}), ("mp3", {}), ("aiff", {}))


def main(argv: list[str]) -> None:
    """Runs all three kinds."""
    cli.reject_arguments(argv)
    folder = Path(_FOLDER.value).absolute()
    child.import_everything()
    base = _Base(folder / "base")
    found = {
        "kills": _counted(folder, "kills", _KILLS.value, base.kills),
        "mutations": _counted(folder, "mutations", _MUTATIONS.value, base.mutations),
        "flips": _counted(folder, "flips", _FLIPS.value, base.flips),
    }
    print(json.dumps(found))


def _counted(folder: Path, kind: str, trials: int, run: Callable) -> dict[str, int]:
    """Does what is not done yet of a kind; `run(numbers)` yields numbers and problems."""
    path = folder / f"{kind}-{_SEED.value}.jsonl"
    done = {}
    if path.exists():
        done = dict(json.loads(line) for line in path.read_text().splitlines())
    todo = [number for number in range(trials) if number not in done]
    bar = console.progress_bar(total=trials, description=kind, unit="trial")
    with bar, open(path, "a") as file:
        bar.update(trials - len(todo))
        for number, problem in run(todo):
            done[number] = problem
            file.write(json.dumps([number, problem]) + "\n")
            file.flush()
            bar.update()
    for number, problem in sorted(done.items()):
        if problem:
            console.log.warning("%s %d: %s", kind, number, problem)
    return {"trials": len(done), "failed": sum(map(bool, done.values()))}


class _Base:
    """Music, records and a run, made undisturbed; all trials are compared with them."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.music = folder / "music"
        self.records = folder / "records"
        self.run = folder / "run"
        self.work = folder.parent / "work"
        self.taken = {}  # processor time of each command, undisturbed, in s
        if not (folder / "taken.json").exists():
            shutil.rmtree(folder, ignore_errors=True)
            _write_music(self.music)
            for name, command in self.commands(self.records, self.run).items():
                process = child.Python("-m", *command)
                self.taken[name] = _watch(process.process.pid, process.process.is_alive)
                done = process.finish()
                assert done.returncode == 0, done.stderr
            (folder / "taken.json").write_text(json.dumps(self.taken))
        self.taken = json.loads((folder / "taken.json").read_text())

    def commands(self, records: Path, run: Path) -> dict[str, list[str]]:
        """The three commands, by name."""
        data = f"--data_dir={records}"
        config = [*_SMALL, f"--config.data_dir={records}", *_TRAINING, f"--workdir={run}"]
        prepare = ["mgc_jax.prepare", *_SMALL, f"--audio_dir={self.music}", data, "--workers=1"]
        return {
            "prepare": prepare,
            "train": ["mgc_jax.main", *config],
            "evaluate": ["mgc_jax.main", *config, "--mode=eval"],
        }

    def kills(self, todo: list[int]) -> Iterator[tuple[int, str]]:
        """Chains of kills of one command, each with its end."""
        while todo:
            chain = todo[:_A_CHAIN]
            todo = todo[_A_CHAIN:]
            rng = random.Random(f"{_SEED.value} kill {chain[0]}")
            name = rng.choices(["prepare", "train", "evaluate"], [2, 5, 1])[0]
            shutil.rmtree(self.work, ignore_errors=True)
            records = self.work / "records" if name == "prepare" else self.records
            if name == "evaluate":
                shutil.copytree(self.run, self.work / "run")
            command = self.commands(records, self.work / "run")[name]
            problems = {number: self._kill(command, name, rng) for number in chain}
            done = child.Python("-m", *command).finish()
            problem = _complaint(done.stderr, done.returncode, {0}) or self._differs(name)
            if problem and not any(problems.values()):
                problems[chain[-1]] = f"{name}, in the end: {problem}"
            yield from problems.items()

    def _kill(self, command: list[str], name: str, rng: random.Random) -> str:
        process = child.Python("-m", *command)
        pid = process.process.pid
        number = rng.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP])
        _watch(pid, process.process.is_alive, rng.random() * self.taken[name])
        with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
            os.kill(pid, number)
            if number == signal.SIGSTOP:
                time.sleep(rng.random())
                os.kill(pid, signal.SIGCONT)
        _watch(pid, process.process.is_alive)
        done = process.finish()
        # A signal that comes before the command listens ends it as it ends any process.
        codes = {signal.SIGKILL: {0, -9}, signal.SIGTERM: {0, 75, -15}, signal.SIGSTOP: {0}}
        problem = _complaint(done.stderr, done.returncode, codes[number])
        return problem and f"{name}, {signal.Signals(number).name}: {problem}"

    def _differs(self, name: str) -> str:
        """What is not as it is undisturbed, to the bit."""
        if name == "prepare":
            ours, theirs = (_records(root) for root in (self.work / "records", self.records))
            return ", ".join(key for key in theirs if ours.get(key) != theirs[key])
        pairs = [(self.work / "run", self.run)]
        for ours, theirs in pairs:
            if child.log_lines(ours) != child.log_lines(theirs):
                return "the log differs"
            for path in ("report/metrics.json", "report/predictions.csv", "calibration.json"):
                if (ours / path).read_bytes() != (theirs / path).read_bytes():
                    return f"{path} differs"
        return ""

    def mutations(self, todo: list[int]) -> Iterator[tuple[int, str]]:
        """Folders of mutated files, each for predict and prepare."""
        whole = [path.read_bytes() for path in sorted(self.music.rglob("*.*"))]
        names = [path.suffix for path in sorted(self.music.rglob("*.*"))]
        while todo:
            numbers = todo[:_A_PROCESS]
            todo = todo[_A_PROCESS:]
            shutil.rmtree(self.work, ignore_errors=True)
            mutated = self.work / "music" / "train" / "Rock"
            shutil.copytree(self.music, self.work / "music")
            paths = {}
            for number in numbers:
                rng = random.Random(f"{_SEED.value} mutation {number}")
                which = rng.randrange(len(whole))
                paths[number] = mutated / f"{number}{names[which]}"
                paths[number].write_bytes(_mutated(whole[which], rng))
            problems = self._predict(paths)
            command = ["mgc_jax.prepare", *_SMALL, f"--audio_dir={self.work / 'music'}"]
            command += [f"--data_dir={self.work / 'records'}", "--max_skipped=1", "--workers=1"]
            process = child.Python("-m", *command)
            hung = _watch(process.process.pid, process.process.is_alive) < 0
            done = process.finish()
            # A split may be left without a track, where all are damaged or copies.
            problem = "hangs" if hung else _complaint(done.stderr, done.returncode, {0, 1})
            if problem:
                problems[numbers[0]] = f"prepare of {numbers[0]} to {numbers[-1]}: {problem}"
            yield from problems.items()

    def _predict(self, paths: dict[int, Path]) -> dict[int, str]:
        command = ["mgc_jax.predict", f"--workdir={self.run}", "--format=json"]
        process = child.Python("-m", *command, *paths.values())
        hung = _watch(process.process.pid, process.process.is_alive) < 0
        done = process.finish()
        problem = "hangs" if hung else _complaint(done.stderr, done.returncode, {0, 1})
        answered = {json.loads(line)["path"] for line in done.stdout.splitlines()}
        problems = {
            number: "" if str(path) in answered else f"predict: no answer, {problem}"
            for number, path in paths.items()
        }
        if problem and not any(problems.values()):
            problems[min(paths)] = f"predict of {min(paths)} to {max(paths)}: {problem}"
        return problems

    def flips(self, todo: list[int]) -> Iterator[tuple[int, str]]:
        """Flips in processes of their own, as a cut file that is mapped ends a process."""
        while todo:
            shutil.rmtree(self.work, ignore_errors=True)
            self.work.mkdir()
            found = self.work / "found.jsonl"
            found.touch()
            numbers = todo[:_A_PROCESS]
            arguments = (str(self.folder), numbers, _SEED.value, str(found))
            process = child.CONTEXT.Process(target=_flip_all, args=arguments)
            process.start()
            lines = _Lines(found, process)
            hung = False
            while process.is_alive() and not hung:
                hung = _watch(process.pid, lines.is_waiting) < 0
                yield from lines.new()
            process.join()
            yield from lines.new()
            todo = todo[lines.seen :]
            if lines.seen < len(numbers):
                yield todo.pop(0), "hangs" if hung else f"a crash, exit code {process.exitcode}"


class _Lines:
    """The JSON lines that a process writes into a file."""

    def __init__(self, path: Path, process):
        self._path = path
        self._process = process
        self.seen = 0

    def is_waiting(self) -> bool:
        """Whether the process is alive, and has written nothing new."""
        return self._process.is_alive() and self._path.read_bytes().count(b"\n") <= self.seen

    def new(self) -> Iterator[tuple[int, str]]:
        """Those not read yet, without one that is not whole."""
        lines = self._path.read_text().split("\n")[:-1][self.seen :]
        self.seen += len(lines)
        return map(json.loads, lines)


def _write_music(folder: Path) -> None:
    """Two genres in three splits, in several formats, 5 s each."""
    rng = np.random.default_rng(0)
    for number, split in enumerate(("train", "train", "train", "validation", "test")):
        for genre, pitch in (("Folk", 220), ("Rock", 80)):
            ending = _MUSIC[number][0]
            path = folder / split / genre / f"{number}.{ending}"
            path.parent.mkdir(parents=True, exist_ok=True)
            t = np.arange(5 * 16000) / 16000
            sound = np.sin(2 * np.pi * pitch * t) * 0.3 + rng.normal(0, 0.05, len(t))
            soundfile.write(path, sound, 16000)


def _watch(pid: int, alive: Callable[[], bool], seconds: float = float("inf")) -> float:
    """Waits until a process ends or has used so much processor time; what it has used, in s.

    One that uses none for long is killed: -1.
    """
    used = waited = 0.0  # not by a clock, which goes on while all of this is stopped
    while alive() and used < seconds:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            break
        now = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        waited = 0.0 if now > used else waited + 0.01
        if waited > _HANGS:
            os.kill(pid, signal.SIGKILL)
            return -1.0
        used = now
        time.sleep(0.01)
    return used


def _complaint(said: str, code: int | None, expected: set[int]) -> str:
    """What is wrong with how a command ended."""
    last = said.strip().rpartition("\n")[2][:200]
    if "Traceback" in said:
        return f"a traceback: {last}"
    return "" if code in expected else f"exit code {code}: {last}"


def _records(root: Path) -> dict[str, bytes]:
    """What a preparation writes, but for the place of its source and times."""
    files = (path for path in root.rglob("*") if path.is_file() and "2.0.0" in path.parts)
    kept = {path.name: path.read_bytes() for path in files if path.suffix != ".npz"}
    return {name: content for name, content in kept.items() if not name.startswith(".")}


def _mutated(whole: bytes, rng: random.Random) -> bytes:
    """A file with up to four changes."""
    content = bytearray(whole)
    for _ in range(rng.randrange(1, 5)):
        # Headers are what decoders believe.
        end = min(len(content), 200) if rng.random() < 0.5 else len(content)
        place = rng.randrange(max(end, 1))
        size = min(rng.choice([1, 2, 4, 100, 5000]), len(content) - place)
        kind = rng.randrange(6)
        if kind == 0 and size:
            content[place : place + size] = rng.randbytes(size)
        elif kind == 1 and size:
            content[place] ^= 1 << rng.randrange(8)
        elif kind == 2:
            del content[place:]
        elif kind == 3:
            content[place:place] = content[: rng.randrange(5000)]
        elif kind == 4:
            content[place : place + size] = bytes(size)
        else:
            del content[place : place + size]
    return bytes(content)


def _flip_all(base: str, numbers: list[int], seed: int, found: str) -> None:
    """In a process of its own: one flip after another, each with a line in the file `found`."""
    doors = _Doors(Path(base))
    with open(found, "a") as file:
        for number in numbers:
            rng = random.Random(f"{seed} flip {number}")
            file.write(json.dumps([number, doors.flip(rng)]) + "\n")
            file.flush()


class _Doors:
    """What reads a run and records, with what it finds undisturbed."""

    def __init__(self, base: Path):
        from mgc_jax.data.input_pipeline import open_dataset
        from mgc_jax.results import comparison, files, plots
        from mgc_jax.training import loop
        from mgc_jax.training.claim import check_workdir
        from mgc_jax.training.network import load_run, with_defaults
        from mgc_jax.training.run_log import total_seconds

        self.work = base.parent / "work" / "flips"
        self.run = self.work / "run"
        self.records = self.work / "records"
        for source, copy in ((base / "run", self.run), (base / "records", self.records)):
            shutil.copytree(source, copy)
        config = with_defaults(files.read_config(self.run))
        config.data_dir = str(self.records)

        def answers() -> list:
            run = load_run(self.run)
            leaves = [np.asarray(x).tobytes() for x in _leaves(run.variables)]
            settings = run.network.config.to_dict()
            kept = {key: settings[key] for key in ("model", "audio", "mel", "dtype")}
            return [leaves, run.epoch, run.temperature, run.network.genres, kept]

        def state() -> list:
            return [loop.load_progress(self.run)]

        def report() -> list:
            (run,) = comparison.read_runs([self.run], least=1)
            return [run.metrics, run.facts, run.clips.log_probs.tobytes(), run.genres]

        def log() -> list:
            plots.curves_figure(files.read_log(self.run), 2)
            total_seconds(self.run)
            return []

        def mine() -> list:
            check_workdir(self.run, config, new=True)
            return []

        def clips() -> list:
            dataset = open_dataset(config, ("mel",))
            parts = [dataset.genres]
            for name, split in sorted(dataset.splits.items()):
                rows = split.gather(np.arange(len(split)))
                parts += [name, rows["mel"].tobytes(), rows["label"].tobytes()]
                parts += [values.tobytes() for values in split.labels.values()]
            return parts

        # What reads a file: by the first part of its path.
        self.readers = {
            "config.json": (answers, report, mine),
            "genres.json": (answers, report),
            "checkpoints": (answers, state),
            "metrics.jsonl": (log,),
            "report": (report,),
            "": (answers,),
            "records": (clips,),
        }
        self.expected = {read: read() for reads in self.readers.values() for read in reads}
        self.files = {root: _read_files(root) for root in (self.run, self.records)}
        self.warnings = collections.deque(maxlen=100)
        console.log.handlers = [_Kept(self.warnings)]

    def flip(self, rng: random.Random) -> str:
        """Damages a file and reads; what was wrong with that, empty if nothing."""
        root = rng.choice([self.run, self.records])
        path = rng.choice(self.files[root])
        first = path.relative_to(root).parts[0] if root == self.run else "records"
        whole = path.read_bytes()
        damaged = bytearray(whole)
        place = rng.randrange(max(len(whole), 1))
        how = "cut"
        if rng.random() < 0.25 or not whole:
            damaged = damaged[:place]
        else:
            how = "flipped"
            damaged[place] ^= 1 << rng.randrange(8)
        problem = ""
        written = path.stat()
        path.write_bytes(damaged)
        for read in self.readers.get(first, self.readers[""]):
            problem = problem or self._read(read)
        path.write_bytes(whole)
        os.utime(path, ns=(written.st_atime_ns, written.st_mtime_ns))
        for index in self.records.rglob("index-*.npz"):
            if index not in self.files[self.records]:
                index.unlink()
        return problem and f"{path.relative_to(self.work)} {how} at {place}: {problem}"

    def _read(self, read: Callable[[], list]) -> str:
        from mgc_jax.errors import InputError

        self.warnings.clear()
        try:
            found = read()
        except InputError as error:
            return f"several lines: {error}" if "\n" in str(error) else ""
        except Exception as error:
            return f"{read.__name__}: {type(error).__name__}: {error}"[:300]
        if found == self.expected[read] or self.warnings:
            return ""
        return f"{read.__name__}: another result without a word"


class _Kept(logging.Handler):
    """Keeps warnings."""

    def __init__(self, kept: collections.deque):
        super().__init__(level="WARNING")
        self._kept = kept

    def emit(self, record) -> None:
        self._kept.append(record.getMessage())


def _leaves(tree: dict) -> Iterator[np.ndarray]:
    for _, value in sorted(tree.items()):
        if isinstance(value, dict):
            yield from _leaves(value)
        else:
            yield value


def _read_files(root: Path) -> list[Path]:
    """The files that something is read from."""
    passed_over = ("events.out", "index.html", "README", ".lock")
    return sorted(
        path
        for path in root.rglob("*")
        if path.is_file() and path.suffix != ".png" and not path.name.startswith(passed_over)
    )


if __name__ == "__main__":
    cli.run_main(main)
