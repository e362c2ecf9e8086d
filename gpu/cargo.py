"""Makes what travels to a machine with a GPU for training, in calls of bounded size.

    python gpu/cargo.py --data DATA --output build/gpu-train [--state FOLDER] [--base NAME=FILE...]

DATA has `train/` (pictures), `test/Set5/` and `weights/vgg16_imagenet/`. `--state` is a folder
with what came back from there last time. `--base` names other weights for a model to start from
than those that ship. The output is `call-1/`, `call-2/`, …: each is carried with one call and
copied over the others into one folder there, the `--in` of `gpu/train.py`.

The clips of the restore runs are encoded here, once, and kept in the output's `clips/`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from srstream.errors import SrstreamError, UsageError
from srstream.terminal import show, tell
from trainer.config import load_config
from trainer.console import reporting
from trainer.data.clips import degraded_frames_of
from trainer.data.pairs import find_pictures
from trainer.parts import Digest

PICTURES, VALIDATION, CLIPS, BASES = "pictures", "validation", "clips", "base"

CALL_BYTES = 36 << 20
"""A call may carry 64 MiB, of which the checkout takes 24.5."""

FEATURES = "weights/vgg16_imagenet/vgg16_conv_fp16.npz"

STATE = "runs.tar"
"""The runs so far, in parts."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--state", type=Path)
    parser.add_argument("--base", action="append", default=[], metavar="NAME=FILE")
    parser.add_argument("--without-clips", action="store_true", help="encode nothing")
    given = parser.parse_args()
    try:
        files = cargo_files(given)
        for folder, names, num_bytes in write_calls(files, given.output):
            show(f"{folder}: {len(names)} files, {num_bytes / (1 << 20):.1f} MiB")
    except SrstreamError as error:
        tell(f"gpu/cargo.py: {error}")
        raise SystemExit(error.exit_code) from error


def cargo_files(given: argparse.Namespace) -> dict[str, Path]:
    """Return all files that travel, by their names there."""
    pictures, features = given.data / "train", given.data / FEATURES
    files = {
        f"{PICTURES}/{path.relative_to(pictures).as_posix()}": path
        for path in find_pictures(pictures)
    }
    test_set = given.data / "test" / "Set5"
    files |= {f"{VALIDATION}/{path.name}": path for path in find_pictures(test_set)}
    if features.is_file():
        files[features.name] = features
    else:
        tell(f"{features}: not there, so the crisp run cannot begin")
    for base in given.base:
        name, _, path = base.partition("=")
        files[f"{BASES}/{name}.safetensors"] = Path(path)
    if not given.without_clips:
        for path in clips(pictures, given.output / CLIPS):
            files[f"{CLIPS}/{path.name}"] = path
    if given.state is not None:
        state = sorted(given.state.glob(f"{STATE}.*"))
        if not state:
            raise UsageError(f"{given.state}: no {STATE}.json there, which gpu/train.py wrote")
        files |= {path.name: path for path in state}
    return files


def clips(pictures: Path, folder: Path) -> list[Path]:
    """Encode the damaged clips of the runs that need them, unless they are in the folder."""
    with reporting() as reporter:
        for path in sorted((REPOSITORY / "configs").glob("*_restore_gpu.toml")):
            config = load_config(path)
            assert config.degradation is not None
            degraded_frames_of(
                pictures,
                config.degradation,
                patch_size=config.data.patch_size,
                seed=config.seed,
                num_pictures=config.data.num_pictures,
                cache_dir=folder,
                reporter=reporter,
            )
    return sorted(folder.iterdir())


def write_calls(files: dict[str, Path], output: Path) -> list[tuple[Path, list[str], int]]:
    """Copy the files into as few folders as their sizes allow; return each, its files and size."""
    for old in output.glob("call-*"):
        shutil.rmtree(old)
    calls: list[tuple[list[str], int]] = []
    by_size = sorted(files, key=lambda name: (-files[name].stat().st_size, name))
    for name in by_size:
        num_bytes = files[name].stat().st_size
        if num_bytes > CALL_BYTES:
            raise UsageError(f"{files[name]}: {num_bytes} bytes are more than a call carries")
        for number, (names, taken) in enumerate(calls):
            if taken + num_bytes <= CALL_BYTES:
                calls[number] = [*names, name], taken + num_bytes
                break
        else:
            calls.append(([name], num_bytes))
    written = []
    for number, (names, num_bytes) in enumerate(calls, start=1):
        folder = output / f"call-{number}"
        digests = {}
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            content = files[name].read_bytes()
            (folder / name).write_bytes(content)
            digests[name] = Digest.of(content).model_dump()
        told = {"number": number, "of": len(calls), "files": digests}
        (folder / f"call-{number}.json").write_text(json.dumps(told))
        written.append((folder, names, num_bytes))
    return written


def check_cargo(folder: Path) -> None:
    """Raise `UsageError` if a call did not arrive, or a file is not the one that was sent."""
    lists = sorted(folder.glob("call-*.json"))
    if not lists:
        raise UsageError(f"{folder}: no call-1.json there; copy what `make gpu-train` made into it")
    calls = [json.loads(path.read_text()) for path in lists]
    missing = set(range(1, calls[0]["of"] + 1)) - {call["number"] for call in calls}
    if missing:
        numbers = ", ".join(map(str, sorted(missing)))
        raise UsageError(f"{folder}: call {numbers} of {calls[0]['of']} has not arrived; carry it")
    for call in calls:
        for name, digest in call["files"].items():
            path = folder / name
            if not path.is_file() or Digest.of(path.read_bytes()) != Digest(**digest):
                raise UsageError(f"{path}: missing or damaged; carry call {call['number']} again")


if __name__ == "__main__":
    main()
