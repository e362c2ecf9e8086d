"""Trains the next weights on a machine with a GPU, one network after another, until a wall limit.

    python gpu/train.py --minutes 28 --in FOLDER --out FOLDER [--order NAME...] [--detached]
    python gpu/train.py --wait 500 --in FOLDER --out FOLDER

FOLDER of `--in` holds what `make gpu-train` made, its calls copied over each other; the runs lie
in its `runs/`. A finished run is left alone, another goes on where it stopped, and the next begins
when it ends, until 40 seconds before the limit. `--out` then holds what travels home: checkpoints
and logs of the runs as one file in parts, and the table as JSON.

`--detached` goes on in the background, since a command may be shorter than the lease; `--wait`
shows how far it is, and returns with it or after so many seconds (exit code 3).

Where there is no GPU, three tiny iterations of each run are made on the CPU, to see that it works.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

HERE = Path(__file__).resolve()
REPOSITORY = HERE.parents[1]
sys.path.insert(0, str(REPOSITORY))

import torch
from cargo import BASES, CLIPS, PICTURES, STATE, VALIDATION, check_cargo

from srstream.errors import SrstreamError, UsageError
from srstream.models.table import weights_path
from srstream.terminal import show, tell
from trainer.config import TrainConfig, load_config
from trainer.console import reporting
from trainer.loop.journal import LOG_NAME
from trainer.loop.recipe import fraction_done
from trainer.networks import weights_bytes
from trainer.parts import PART_BYTES, manifest_path, read_parts, write_parts
from trainer.run import CLIPS_DIR, start_run
from trainer.ship.export import load_run
from trainer.state import CHECKPOINT_NAME, load_state, state_bytes, write_atomically

STOP_SECONDS = 40.0
"""Before the limit, for the last checkpoint and for what travels home."""

LEAST_SECONDS = 30.0
"""No run begins with less left: it takes that long to load the pictures."""

KILL_SECONDS = 15.0
"""How long after its time a run is killed; its last checkpoint stays."""

MAX_HOME_BYTES = 4 * PART_BYTES
"""64 MiB may come back, in eight files, to be shared with others."""

RUNS, LOCK, OUTPUT, TABLE = "runs", "train.lock", "train.txt", "train.json"

GOING_ON = 3
"""Exit code of `--wait` when the training goes on."""


@dataclass(frozen=True)
class Work:
    """A run of the order of work."""

    model: str
    after: str | None = None
    """The run whose weights it starts from; None: those that ship, or those in the cargo."""


ORDER = {
    "srgan": Work("srgan"),
    "balanced": Work("balanced"),
    "fast": Work("fast"),
    # The video networks come here; there is none to train yet.
    "balanced_restore": Work("balanced", after="balanced"),
    "fast_restore": Work("fast", after="fast"),
    "srgan_crisp": Work("srgan", after="srgan"),
}


@dataclass
class Row:
    """What became of a run."""

    run: str
    state: str
    iteration: int = 0
    of: int = 0
    seconds: float = 0.0
    psnr_db: float | None = None
    """Of its last validation."""


def main() -> None:
    given = arguments()
    try:
        if given.only is not None:
            train_one(given.only, given.folder, given.until)
        elif given.wait is not None:
            wait(given)
        elif given.detached:
            start_detached(given)
        elif given.lock is not None:
            train_all(given)
        else:
            with locked(given.folder):
                train_all(given)
    except SrstreamError as error:
        tell(f"gpu/train.py: {error}")
        raise SystemExit(error.exit_code) from error


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, help="wall limit, from now on")
    parser.add_argument("--in", dest="folder", type=Path, required=True)
    parser.add_argument("--out", dest="home", type=Path)
    parser.add_argument("--order", nargs="+", choices=ORDER, default=list(ORDER), metavar="NAME")
    parser.add_argument("--detached", action="store_true")
    parser.add_argument("--wait", type=float, metavar="SECONDS")
    parser.add_argument("--only", choices=ORDER, help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--lock", type=int, help=argparse.SUPPRESS)  # the lock's descriptor
    given = parser.parse_args()
    given.folder = given.folder.resolve()
    if given.only is None and given.home is None:
        parser.error("--out is missing")
    if given.only is None and given.wait is None and given.minutes is None:
        parser.error("--minutes is missing")
    return given


# --- the whole order of work -------------------------------------------------------------------


def train_all(given: argparse.Namespace) -> None:
    """Train in order until the time is over; then write what travels home, whatever happened."""
    until = time.monotonic() + 60 * given.minutes - STOP_SECONDS
    folder: Path = given.folder
    check_cargo(folder)
    bring_back(folder)
    if not torch.cuda.is_available():
        show("no CUDA device: three tiny iterations of each run on the CPU, which trains nothing")
    problems: dict[str, str] = {}
    for name in given.order:
        if until - time.monotonic() < LEAST_SECONDS:
            break
        if not is_finished(folder, name):
            problem = run_in_a_process(name, folder, until)
            if problem is not None:
                problems[name] = problem
    rows = [row_of(folder, name, problems.get(name)) for name in given.order]
    given.home.mkdir(parents=True, exist_ok=True)
    reduced = take_home(folder, given.home)
    table = {"device": device_name(), "runs": [asdict(row) for row in rows], "reduced": reduced}
    (given.home / TABLE).write_text(json.dumps(table, indent=1))
    for row in rows:
        speed = f", {row.iteration / row.seconds:.1f} a second" if row.seconds else ""
        psnr = "" if row.psnr_db is None else f", {row.psnr_db:.2f} dB"
        show(f"{row.run}: {row.state}, {row.iteration:,} of {row.of:,} iterations{speed}{psnr}")
    for name in reduced:
        tell(f"{name}: its checkpoint does not fit; only the averaged weights come, which end it")
    if problems:
        raise UsageError(
            f"{len(problems)} of {len(given.order)} runs failed; what was said above tells why"
        )


def run_in_a_process(name: str, folder: Path, until: float) -> str | None:
    """Train one until it ends or the time is over; return what went wrong, if anything did."""
    command = [sys.executable, str(HERE), "--only", name, "--in", str(folder)]
    process = subprocess.Popen([*command, "--until", str(until)])
    try:
        code = process.wait(until - time.monotonic() + KILL_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return "did not stop in time and was killed; its last checkpoint stays"
    return None if code == 0 else f"ended with exit code {code}"


def bring_back(folder: Path) -> None:
    """Unpack the runs that came with the cargo, unless they are there."""
    if not manifest_path(folder, STATE).is_file() or (folder / RUNS).exists():
        return
    content = read_parts(folder, STATE)
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        archive.extractall(folder, filter="data")


def take_home(folder: Path, home: Path) -> list[str]:
    """Write checkpoints and logs as one file in parts; return the runs that could not go on.

    A finished run's checkpoint is reduced to its averaged weights, which is what an export reads.
    So is one that does not fit beside those that were trained after it.
    """
    checkpoints = [*folder.glob(f"{RUNS}/*/{CHECKPOINT_NAME}")]
    checkpoints.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    files = {path: averages_of(path) for path in checkpoints}
    reduced = []
    left = MAX_HOME_BYTES - (64 << 10) * (1 + len(files))  # tar's own blocks
    left -= sum(len(content) + log_of(path).stat().st_size for path, content in files.items())
    for path, averages in files.items():
        added = path.stat().st_size - len(averages)
        if is_finished(folder, path.parent.name):
            continue
        if added > left:
            reduced.append(path.parent.name)
            continue
        left -= added
        files[path] = path.read_bytes()
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as archive:
        for path, content in files.items():
            for name, part in ((path, content), (log_of(path), log_of(path).read_bytes())):
                entry = tarfile.TarInfo(name.relative_to(folder).as_posix())
                entry.size = len(part)
                archive.addfile(entry, io.BytesIO(part))
    write_parts(whole.getvalue(), home, STATE)
    return reduced


def averages_of(checkpoint: Path) -> bytes:
    """Return a checkpoint with nothing but the averaged weights and what is told of the run."""
    tensors, metadata = load_state(checkpoint)
    kept = {name: value for name, value in tensors.items() if name.startswith("average.")}
    return state_bytes(kept, metadata)


def log_of(checkpoint: Path) -> Path:
    return checkpoint.with_name(LOG_NAME)


def row_of(folder: Path, name: str, problem: str | None) -> Row:
    length = config_of(name).stages[0].iterations or 0
    run_dir = folder / RUNS / name
    if not (run_dir / CHECKPOINT_NAME).is_file():
        return Row(name, problem or "not begun", of=length)
    progress = load_run(run_dir).progress
    lines = [json.loads(line) for line in (run_dir / LOG_NAME).read_text().splitlines()]
    measured = [line["psnr_db"] for line in lines if line["event"] == "validate"]
    state = problem or ("finished" if is_finished(folder, name) else "stopped")
    psnr = measured[-1] if measured else None
    return Row(name, state, progress.iteration, length, progress.elapsed_seconds, psnr)


def is_finished(folder: Path, name: str) -> bool:
    run_dir = folder / RUNS / name
    if not (run_dir / CHECKPOINT_NAME).is_file():
        return False
    run = load_run(run_dir)
    return fraction_done(run.progress, run.config.stages[-1]) >= 1.0


def device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


# --- one run -----------------------------------------------------------------------------------


def train_one(name: str, folder: Path, until: float) -> None:
    """Begin or continue a run; it stops at `until`, as `time.monotonic` counts."""
    os.chdir(folder)  # where the config finds the weights of its feature network
    run_dir = folder / RUNS / name
    run_dir.mkdir(parents=True, exist_ok=True)
    if (folder / CLIPS).is_dir() and not (run_dir / CLIPS_DIR).exists():
        (run_dir / CLIPS_DIR).symlink_to(folder / CLIPS)
    with reporting() as reporter:
        reporter.say(f"--- {name}")
        start_run(
            config_of(name),
            folder / PICTURES,
            run_dir,
            base=base_of(name, folder),
            validation_dir=folder / VALIDATION,
            resume=True,
            until=until,
            reporter=reporter,
        )


def config_of(name: str) -> TrainConfig:
    """Return a run's config; where there is no GPU, with very little to do."""
    config = load_config(REPOSITORY / "configs" / f"{name}_gpu.toml")
    return config if torch.cuda.is_available() else tiny(config)


def tiny(config: TrainConfig) -> TrainConfig:
    """Return a config of the same kind for three iterations on a CPU."""
    small = config.model_dump()
    small["data"] |= {"patch_size": 24, "batch_size": 2, "num_pictures": 2}
    small["run"] |= {"num_threads": 1, "precision": "32-true", "tensorboard": False}
    for stage in ("pixel", "adversarial"):
        if small[stage] is not None:
            small[stage]["iterations"] = 3
    if small["adversarial"] is not None:
        small["adversarial"]["perceptual"] = "random_vgg"
    if small["degradation"] is not None:
        small["degradation"] |= {"codecs": ("libx264",), "clips_per_picture": 1, "window": 256}
    return TrainConfig.model_validate(small)


def base_of(name: str, folder: Path) -> Path:
    """Return the weights that a run starts from.

    Raises:
        UsageError: they are those of a run that is not finished.
    """
    work = ORDER[name]
    if work.after is None:
        brought = folder / BASES / f"{work.model}.safetensors"
        return brought if brought.is_file() else weights_path(work.model, ".safetensors")
    if not is_finished(folder, work.after):
        raise UsageError(f"{name} starts from the weights of {work.after}, which are not finished")
    run_dir = folder / RUNS / work.after
    run, path = load_run(run_dir), run_dir / "final.safetensors"
    write_atomically(path, weights_bytes(run.network, run.recipe()))
    return path


# --- in the background -------------------------------------------------------------------------


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[IO[str]]:
    """Hold the folder's lock, so that one training goes on there at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"{folder}: a training goes on there; see --wait") from None
        yield file


def start_detached(given: argparse.Namespace) -> None:
    """Start the same in a session of its own, which outlives this command and holds the lock."""
    command = [argument for argument in sys.argv[1:] if argument != "--detached"]
    with locked(given.folder) as lock, (given.folder / OUTPUT).open("w") as output:
        subprocess.Popen(
            [sys.executable, str(HERE), *command, "--lock", str(lock.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=[lock.fileno()],
        )
    show(f"going on in the background; {given.folder / OUTPUT} is what it says")


def wait(given: argparse.Namespace) -> None:
    """Wait for the training in the background, and show the end of what it says."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    deadline = time.monotonic() + given.wait
    is_over = False
    while not is_over and time.monotonic() < deadline:
        time.sleep(0.5)
        with contextlib.suppress(UsageError), locked(given.folder):
            is_over = True
    output = given.folder / OUTPUT
    show(*(output.read_text().splitlines()[-15:] if output.is_file() else ["nothing was said"]))
    if not is_over:
        raise SystemExit(GOING_ON)


if __name__ == "__main__":
    main()
