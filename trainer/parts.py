"""Files that travel in parts: a folder takes files of a limited size only.

A manifest beside the parts, `NAME.json`, holds the size and the SHA-256 of the whole and of each
part.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from srstream.errors import UsageError

PART_BYTES = 15 << 20
"""A file that comes back from the machine with a GPU may have 16 MiB."""


class Digest(BaseModel):
    """What a file must be."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    num_bytes: int = Field(ge=0, description="its size")
    sha256: str = Field(description="of its content, hexadecimal")

    @classmethod
    def of(cls, content: bytes) -> Digest:
        return cls(num_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())


class Manifest(BaseModel):
    """A file and its parts, in order."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    whole: Digest
    parts: dict[str, Digest] = Field(description="by their names in the manifest's folder")


def manifest_path(folder: Path, name: str) -> Path:
    return folder / f"{name}.json"


def write_parts(
    content: bytes, folder: Path, name: str, *, part_bytes: int = PART_BYTES
) -> list[Path]:
    """Write `NAME.0`, `NAME.1`, … of at most `part_bytes`, then the manifest; return all paths.

    What another call left there under this name is removed first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    manifest_path(folder, name).unlink(missing_ok=True)
    for old in folder.glob(f"{name}.[0-9]*"):
        old.unlink()
    cut = [content[start : start + part_bytes] for start in range(0, len(content), part_bytes)]
    names = [f"{name}.{number}" for number in range(len(cut))]
    for part_name, part in zip(names, cut, strict=True):
        (folder / part_name).write_bytes(part)
    digests = {part_name: Digest.of(part) for part_name, part in zip(names, cut, strict=True)}
    manifest = Manifest(whole=Digest.of(content), parts=digests)
    path = manifest_path(folder, name)
    path.write_text(manifest.model_dump_json(indent=1))
    return [*(folder / part_name for part_name in names), path]


def read_parts(folder: Path, name: str) -> bytes:
    """Join the parts that a manifest names.

    Raises:
        UsageError: the manifest or a part is missing, or is not what was written.
    """
    path = manifest_path(folder, name)
    again = "bring it once more from where it was made"
    try:
        manifest = Manifest.model_validate(json.loads(path.read_text()))
    except (OSError, ValueError, ValidationError) as error:
        raise UsageError(f"{path}: cannot be read as a list of parts ({error}); {again}") from error
    content = b""
    for part_name, digest in manifest.parts.items():
        part_path = folder / Path(part_name).name
        if not part_path.is_file():
            raise UsageError(
                f"{part_path}: missing, one of the {len(manifest.parts)} parts of {name}; {again}"
            )
        part = part_path.read_bytes()
        if Digest.of(part) != digest:
            raise UsageError(
                f"{part_path}: damaged: {len(part)} bytes that are not the {digest.num_bytes} "
                f"written; {again}"
            )
        content += part
    if Digest.of(content) != manifest.whole:
        raise UsageError(f"{path}: its parts are not the whole of {name}; {again}")
    return content
