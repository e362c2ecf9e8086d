"""Runs the kit here as on the machine: only what is carried, only the packages that it has.

    python gpu/rehearse.py FOLDER CARRIED STAGE... [--out FOLDER]

It copies the tree that git knows and CARRIED, which `gpu/pack.sh` made for the Python that runs
this, into a new FOLDER, makes there an environment of those of its packages that `machine.txt`
names, and runs `kit.py` in it. That Python must have what tests need.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from importlib import metadata
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path, help="a new folder")
    parser.add_argument("carried", type=Path, help="what gpu/pack.sh made")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="those of kit.py")
    given = parser.parse_args()
    given.folder = given.folder.resolve()
    given.folder.mkdir(parents=True)
    tree = copy_tree(given.folder / "tree")
    shutil.copytree(given.carried, tree / "build" / "gpu-kit")
    python = make_environment(given.folder / "machine")
    command = [python, "gpu/kit.py", "--work", str(given.folder / "work"), *given.arguments]
    # Nothing of this environment's own: no variable of Python's, and a home that is empty. On few
    # cores several threads of PyTorch wait for each other longer than they compute.
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ}
    own = {"HOME": str(given.folder), "OMP_NUM_THREADS": "1"}
    sys.exit(subprocess.run(command, cwd=tree, env={**kept, **own}).returncode)


def copy_tree(target: Path) -> Path:
    """Copy the files that git does not ignore, which are those that travel."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=REPOSITORY, check=True, capture_output=True).stdout
    for name in os.fsdecode(names).split("\0")[:-1]:
        source, place = REPOSITORY / name, target / name
        if source.is_file():  # one that was deleted is listed still
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, place)
    return target


def make_environment(folder: Path) -> str:
    """Make an environment of the packages that the machine has and return its Python."""
    venv.create(folder, symlinks=True, with_pip=False)
    python = folder / "bin" / "python"
    asked = "import sysconfig; print(sysconfig.get_path('purelib'))"
    ran = subprocess.run([python, "-c", asked], check=True, capture_output=True, text=True)
    target = Path(ran.stdout.strip())
    source = Path(sysconfig.get_path("purelib"))
    has = names_in(Path(__file__).parent / "machine.txt")
    for distribution in metadata.distributions(path=[str(source)]):
        if normal(distribution.name) in has:
            _link(distribution, source, target)
    return str(python)


def names_in(path: Path) -> set[str]:
    """Return the names of packages that a file lists, one a line."""
    lines = (line.partition("#")[0].strip() for line in path.read_text().splitlines())
    return {normal(line) for line in lines if line}


def normal(name: str) -> str:
    """Return a package's name as PyPI compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _link(distribution: metadata.Distribution, source: Path, target: Path) -> None:
    """Link a package's files. Links to names would lead out of what the sandbox grants."""
    for file in distribution.files or ():
        if ".." in file.parts or not (source / file).is_file():
            continue
        place = target / file
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source / file, place)
        except FileExistsError:
            continue
        except OSError:  # another file system
            shutil.copy2(source / file, place)


if __name__ == "__main__":
    main()
