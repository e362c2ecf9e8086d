"""Pictures that are too many for memory: each is read when a patch of it is drawn.

Its planes at both resolutions are then kept in memory, as far as a bound allows, and in a file of
the cache folder. Each file says its own checksum; a damaged one is made again from the picture.
A full disk ends the writing, never the run.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
import threading
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import overload

import numpy as np
from PIL import Image
from safetensors import SafetensorError
from safetensors.numpy import load, save

from srstream.errors import UsageError
from srstream.files import write_whole
from trainer.config import DataSection
from trainer.data.pairs import (
    Outline,
    Pair,
    clean_pair,
    crop_to_multiple,
    is_large_enough,
    none_is_large_enough,
    read_rgb,
)
from trainer.data.planes import Codes, InputCodes, input_shares
from trainer.networks import TrainedSpec

log = logging.getLogger(__name__)

RESERVE_BYTES = 2 << 30
"""Free space that the cache leaves on the disk: checkpoints need it more."""

JPEG_SUFFIXES = {".jpg", ".jpeg"}
EXIF_ORIENTATION = 0x0112

UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
"""What Pillow raises of headers that it cannot read."""


class CachedPairs(Sequence[Pair]):
    """The pairs of a folder's pictures, made when they are asked for; `others` follow them.

    Any thread may ask. What a picture becomes depends on its file alone, so a run that was resumed
    sees the same whether memory or disk holds it, or neither.
    """

    def __init__(
        self,
        folder: Path,
        pictures: Sequence[tuple[Path, tuple[int, int]]],
        spec: TrainedSpec,
        data: DataSection,
        *,
        cache_dir: Path,
        max_memory_bytes: int,
        max_disk_bytes: int,
        others: Sequence[Pair] = (),
    ) -> None:
        """`pictures` are paths with (H, W), as `measured_pictures` returns them.

        Raises:
            UsageError: there are none.
        """
        if not pictures and not others:
            raise none_is_large_enough(folder, spec, data)
        self._folder, self._spec, self._data, self._others = folder, spec, data, others
        self._paths = [path for path, _ in pictures]
        shares = input_shares(spec.color_form, subsampled=data.subsampled_chroma)
        self.outlines = [
            Outline(path.relative_to(folder).as_posix(), _low_shape(shape, spec), shares, 0.0)
            for path, shape in pictures
        ] + [pair.outline for pair in others]
        self._memory: OrderedDict[int, Pair] = OrderedDict()
        self._memory_bytes, self._max_memory_bytes = 0, max_memory_bytes
        self._lock = threading.Lock()
        self._disk = PlaneFiles(cache_dir, max_disk_bytes)
        self._threads = ThreadPoolExecutor(len(os.sched_getaffinity(0)), "pictures")
        self._unreadable: set[int] = set()

    def __len__(self) -> int:
        return len(self.outlines)

    @overload
    def __getitem__(self, index: int) -> Pair: ...
    @overload
    def __getitem__(self, index: slice) -> list[Pair]: ...
    def __getitem__(self, index: int | slice) -> Pair | list[Pair]:
        """The pair, from memory, from the cache, or from its picture.

        Raises:
            UsageError: the picture cannot be read, or is another one than when the run began.
        """
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if index >= len(self._paths):
            return self._others[index - len(self._paths)]
        with self._lock:
            if index in self._memory:
                self._memory.move_to_end(index)
                return self._memory[index]
        pair = self._made(index)
        self._keep(index, pair)
        return pair

    def several(self, indices: Sequence[int]) -> list[Pair | None]:
        """Pairs read at the same time; None, and a line in the log, where that fails."""
        return list(self._threads.map(self._or_none, indices))

    def _or_none(self, index: int) -> Pair | None:
        try:
            return self[index]
        except UsageError as error:
            if index not in self._unreadable:
                log.warning("%s; other pictures are drawn in its place", error)
            self._unreadable.add(index)
            return None

    def _made(self, index: int) -> Pair:
        path, outline = self._paths[index], self.outlines[index]
        key = _key(path, self._spec, self._data)
        pair = None if key is None else self._disk.read(key, outline)
        if pair is None:
            rgb = crop_to_multiple(read_rgb(path), 2 * self._spec.scale)
            pair = clean_pair(outline.name, rgb, self._spec, self._data)
            if key is not None:
                self._disk.write(key, pair)
        if pair.shape != outline.shape:
            raise UsageError(f"{path}: another picture than when the run began, of another size")
        return pair

    def _keep(self, index: int, pair: Pair) -> None:
        with self._lock:
            if index in self._memory:
                return
            self._memory[index] = pair
            self._memory_bytes += pair.num_bytes
            while self._memory_bytes > self._max_memory_bytes and len(self._memory) > 1:
                _, oldest = self._memory.popitem(last=False)
                self._memory_bytes -= oldest.num_bytes


class PlaneFiles:
    """Pairs in files of a folder, within a bound of bytes; the folder may be deleted at any time.

    A file that is damaged, or that cannot be written, costs a line in the log and nothing else.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder, self._max_bytes = folder, max_bytes
        self._num_bytes = sum(file.stat().st_size for file in folder.glob("*/*.planes"))
        for partial in folder.glob("*/.srstream-*"):  # a kill left it behind
            partial.unlink(missing_ok=True)
        self._is_full = False
        self._lock = threading.Lock()

    def read(self, key: str, outline: Outline) -> Pair | None:
        """The pair of this key; None where there is none, or it is damaged."""
        path = self._path(key)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            self._damaged(path, error.strerror or str(error))
            return None
        if zlib.crc32(content[4:]) != int.from_bytes(content[:4], "little"):
            self._damaged(path, "its checksum is wrong")
            return None
        try:
            tensors = load(content[4:])
        except SafetensorError as error:
            self._damaged(path, str(error))
            return None
        lr = _numbered(tensors, "lr")
        shares = outline.shares
        return Pair(outline.name, tuple(zip(shares, lr, strict=True)), _numbered(tensors, "hr"))

    def write(self, key: str, pair: Pair) -> None:
        """Keep the pair, unless the bound or the disk is reached."""
        if self._is_full:
            return
        tensors = {f"lr{n}": np.ascontiguousarray(planes) for n, (_, planes) in enumerate(pair.lr)}
        tensors |= {f"hr{n}": np.ascontiguousarray(planes) for n, planes in enumerate(pair.hr)}
        saved = save(tensors)
        content = zlib.crc32(saved).to_bytes(4, "little") + saved
        path = self._path(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(path.parent).free
            if free - len(content) < RESERVE_BYTES:
                self._full(f"{free >> 20} MiB are free on the disk")
                return
            with self._lock:
                if self._num_bytes + len(content) > self._max_bytes:
                    self._full(f"[run] cache_gib allows {self._max_bytes / (1 << 30):g} GiB")
                    return
                self._num_bytes += len(content)
            write_whole(path, content)
        except OSError as error:
            is_disk = error.errno in (errno.ENOSPC, errno.EDQUOT)
            self._full("the disk is full" if is_disk else error.strerror or str(error))

    def _path(self, key: str) -> Path:
        return self._folder / key[:2] / f"{key[2:]}.planes"

    def _damaged(self, path: Path, why: str) -> None:
        log.warning("%s: this file of the cache cannot be used (%s); making it again", path, why)

    def _full(self, why: str) -> None:
        if not self._is_full:
            log.warning(
                "%s: the cache of pictures takes no more (%s); the rest are read again each time, "
                "which is slower",
                self._folder, why,
            )  # fmt: skip
        self._is_full = True


def measured_pictures(
    paths: Sequence[Path], spec: TrainedSpec, data: DataSection
) -> Iterator[tuple[Path, tuple[int, int]] | None]:
    """Each picture with its (H, W), in order; None, and a line in the log, for those left out.

    Of a JPEG file only the header is read.
    """
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        shapes = threads.map(_shape_or_why_not, paths)
        for path, shape in zip(paths, shapes, strict=True):
            if isinstance(shape, str):
                log.warning("%s; left out", shape)
                yield None
            else:
                yield (path, shape) if is_large_enough(path, shape, spec, data) else None


def planes_bytes(paths: Sequence[Path], spec: TrainedSpec, data: DataSection) -> int:
    """Return about how much memory the pairs of these pictures take, from their headers."""
    shares = input_shares(spec.color_form, subsampled=data.subsampled_chroma)
    bytes_each = 1 if data.augmentation is None else 2
    low = len(shares) * spec.form.num_input_planes * bytes_each
    high = sum(group.num_planes * group.scale**2 for group in spec.form.outputs)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        num_pixels = sum(threads.map(_num_pixels, paths))
    return num_pixels * (low + high) // spec.scale**2


def _low_shape(shape: tuple[int, int], spec: TrainedSpec) -> tuple[int, int]:
    """(H, W) of a picture's low resolution, after it was cropped."""
    height, width = (side // (2 * spec.scale) * 2 for side in shape)
    return height, width


def _num_pixels(path: Path) -> int:
    try:
        with Image.open(path) as picture:
            return picture.width * picture.height
    except UNREADABLE:
        return 0


def _shape_or_why_not(path: Path) -> tuple[int, int] | str:
    """(H, W) as `read_rgb` gives it, or a sentence."""
    try:
        if path.suffix.lower() not in JPEG_SUFFIXES:
            height, width = read_rgb(path).shape[:2]
            return height, width
        with Image.open(path) as picture:
            is_turned = picture.getexif().get(EXIF_ORIENTATION, 1) >= 5
            width, height = picture.size
            return (width, height) if is_turned else (height, width)
    except UsageError as error:
        return str(error)
    except UNREADABLE:
        return f"{path}: cannot be decoded as a picture"


def _key(path: Path, spec: TrainedSpec, data: DataSection) -> str | None:
    """Return a digest of everything that decides the planes; None where the file is gone."""
    try:
        status = path.stat()
    except OSError:
        return None
    exact = data.augmentation is not None
    how = [spec.color_form, spec.scale, data.subsampled_chroma, exact]
    what = [str(path.resolve()), status.st_size, status.st_mtime_ns, *how]
    return hashlib.sha256(json.dumps(what).encode(errors="surrogateescape")).hexdigest()[:34]


def _numbered(tensors: dict[str, Codes], prefix: str) -> tuple[InputCodes, ...]:
    names = sorted((name for name in tensors if name.startswith(prefix)), key=lambda n: int(n[2:]))
    return tuple(tensors[name] for name in names)
