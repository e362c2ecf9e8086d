"""Jobs of pictures: one file, a folder or a pattern; each is independent, none overwrites.

`shared.py` does one of the daemon's.
"""

from __future__ import annotations

import errno
import glob
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2

from srstream.config import JobConfig
from srstream.engines.contract import Engine, OnDone
from srstream.engines.table import choose_engine
from srstream.enhancer.enhancer import Enhancer
from srstream.errors import (
    DiskFullError,
    EncodeError,
    InterruptedJobError,
    MediaError,
    RefusedError,
    SrstreamError,
    UsageError,
)
from srstream.files import write_whole
from srstream.frame import ColorSpec, Frame, FrameForm, Plane, PlaneLayout
from srstream.jobs.events import SCHEMA, OnEvent, ignore
from srstream.jobs.job import enhance_file
from srstream.jobs.planning.size import output_size
from srstream.jobs.wakeup import Wakeup
from srstream.media.read.probe import probe
from srstream.media.write.containers import VIDEO_SUFFIXES
from srstream.media.write.output import plan_output
from srstream.memory import available_bytes
from srstream.models.registry import resolved
from srstream.models.table import model_spec
from srstream.naming import mark_of, marked
from srstream.pictures import files as picture_files
from srstream.pictures.files import SUFFIXES, Header, Samples
from srstream.pictures.inputs import expand_inputs, is_animated, is_picture

WORKING_BYTES_PER_PIXEL = 18
"""Bytes for each pixel of the output: 16-bit Y, U and V, one of them in float while it is
resampled, and RGB."""

_WAIT_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class PicturePlan:
    """The plan for one picture."""

    source: Path
    destination: Path
    header: Header
    width: int
    height: int
    """Columns and rows of the output."""

    @property
    def size(self) -> tuple[int, int]:
        """Return (width, height) of the source."""
        return self.header.width, self.header.height

    @property
    def output_size(self) -> tuple[int, int]:
        """Return (width, height) of the output."""
        return self.width, self.height

    def as_json(self) -> dict[str, Any]:
        """Return an entry of `srstream plan --json`."""
        return {
            "schema": "srstream.picture-plan/1",
            "input": str(self.source),
            "output": str(self.destination),
            "size": list(self.size),
            "output_size": list(self.output_size),
        }


@dataclass(frozen=True, slots=True)
class PictureResult:
    """The result of one picture: written, or the reason why not."""

    source: Path
    destination: Path | None
    error: SrstreamError | None = None

    def as_event(self) -> dict[str, Any]:
        """Return a line of `--json`."""
        return {
            "schema": SCHEMA,
            "event": "picture",
            "input": str(self.source),
            "output": None if self.destination is None else str(self.destination),
            "error": None if self.error is None else str(self.error),
        }


def enhance_pictures(
    source: Path,
    output: Path | None,
    config: JobConfig,
    *,
    overwrite: bool = False,
    on_event: OnEvent = ignore,
) -> Iterator[PictureResult]:
    """Enhance every picture of an input; one that fails doesn't stop the others.

    Args:
        output: a file for one picture, a folder for several. None: `<stem>_4x` next to one picture,
            the folder `<folder>_4x` next to the folder of several, with the same names; only videos
            from animated pictures get another suffix.
        on_event: called with events while an animated picture is enhanced.

    Raises:
        UsageError: the input means no picture, or `output` is a file and there are several.
        EngineError, WeightsError: no picture can be enhanced.
    """
    sources = expand_inputs(source)
    targets = _destinations(source, sources, output, config)
    model = resolved(config.model)
    config = config.model_copy(update={"model": model})
    engine, _ = choose_engine(config.engine, model, model_spec(model.name))
    try:
        for path, target in zip(sources, targets, strict=True):
            try:
                if is_animated(path):
                    target.parent.mkdir(parents=True, exist_ok=True)
                    enhance_file(path, target, config, overwrite=overwrite, on_event=on_event)
                    yield PictureResult(path, target)
                else:
                    yield enhance_picture(path, target, config, overwrite=overwrite, engine=engine)
            except InterruptedJobError:
                raise
            except SrstreamError as error:
                yield PictureResult(path, None, error)
    finally:
        engine.close()


def _destinations(
    source: Path, sources: list[Path], output: Path | None, config: JobConfig
) -> list[Path]:
    """Return the destination of each picture.

    Raises:
        UsageError: `output` does not suit the results, or two would be written to the same file.
    """
    several = source.is_dir() or (glob.has_magic(str(source)) and not source.exists())
    if several and output is not None and not output.is_dir():
        if output.suffix.lower() in VIDEO_SUFFIXES:
            raise UsageError(
                f"{output}: pictures become pictures in a folder, and no video; name a folder with "
                "-o, or make a video of them first and enhance that."
            )
        if output.exists() or is_picture(output):
            raise UsageError(f"{output}: there are several pictures; name a folder with -o.")
    targets = [_destination(path, output, config, several=several) for path in sources]
    for target, path in zip(targets, sources, strict=True):
        if targets.count(target) > 1:
            raise UsageError(
                f"{path}: another picture would become {target} too; enhance folder by folder, or "
                "rename one of them."
            )
    return targets


def _destination(path: Path, output: Path | None, config: JobConfig, *, several: bool) -> Path:
    if several:
        folder = path.resolve().parent
        name = Path(path.name)
        if is_animated(path):
            name = name.with_suffix(_video_suffix(path, config))
        return (output or folder.with_name(f"{folder.name}_{mark_of(config.scaling)}")) / name
    if output is None:
        return marked(path, config.scaling)
    return output / path.name if output.is_dir() else output


def _video_suffix(path: Path, config: JobConfig) -> str:
    """Return the suffix of the video that an animated picture becomes by default."""
    try:
        info = probe(path, config.source)
        return plan_output(info, config, None, (info.video.width, info.video.height)).path.suffix
    except SrstreamError:
        return ".mp4"  # The picture is refused when its turn comes.


def plan_picture(source: Path, destination: Path, config: JobConfig) -> PicturePlan:
    """Read the header and refuse what can't work, before anything is decoded.

    Raises:
        MediaError: the file can't be read or is not a picture.
        RefusedError: it is too large, animated, or does not fit the destination's format.
        UsageError: the destination's name is not a picture's, or it is the source itself.
    """
    if not is_picture(destination):
        raise UsageError(
            f"{destination}: {source.name} is a picture and becomes one; choose a name that ends "
            f"in {', '.join(SUFFIXES)}."
        )
    if destination.resolve() == source.resolve():
        raise UsageError(f"{source}: the output would be the input itself; choose another -o.")
    return plan_of(
        picture_files.read_header(source, picture_files.read_content(source)),
        source,
        destination,
        config,
    )


def plan_of(header: Header, source: Path, destination: Path, config: JobConfig) -> PicturePlan:
    """Plan a picture whose header has been read.

    Raises:
        RefusedError: it is too large, animated, or does not fit the destination's format.
    """
    if header.refusal:
        raise RefusedError(f"{source}: {header.refusal}.")
    if header.width * header.height > config.source.max_pixels:
        raise RefusedError(
            f"{source}: {header.width}x{header.height} are more than the "
            f"{config.source.max_pixels} pixels allowed."
        )
    scale = model_spec(resolved(config.model).name).scale
    form = FrameForm(header.width, header.height, PlaneLayout("rgb", 8), ColorSpec())
    width, height = output_size(form, config.scaling, scale)
    picture_files.check_holds(SUFFIXES[destination.suffix.lower()], width, height, False)
    needed = WORKING_BYTES_PER_PIXEL * header.width * header.height * scale * scale
    available = config.engine.max_memory_bytes or available_bytes()
    if available is not None and needed > available:
        raise RefusedError(
            f"{source}: enhancing {header.width}x{header.height} takes about {needed / 1e9:.1f} GB "
            f"of memory, {available / 1e9:.1f} GB may be used; crop the picture."
        )
    return PicturePlan(source, destination, header, width, height)


def enhance_picture(
    source: Path,
    destination: Path,
    config: JobConfig,
    *,
    overwrite: bool = False,
    engine: Engine | None = None,
) -> PictureResult:
    """Enhance one picture; the destination appears complete or not at all.

    Args:
        engine: None opens the one that `config` asks for.

    Raises:
        UsageError: the destination exists and `overwrite` is False.
        MediaError, RefusedError, EngineError, EncodeError: as their names say.
    """
    if destination.exists() and not overwrite:
        raise UsageError(f"{destination}: exists already; use --overwrite to replace it.")
    plan = plan_picture(source, destination, config)
    opened = engine
    if opened is None:
        model = resolved(config.model)
        opened, _ = choose_engine(config.engine, model, model_spec(model.name))
    try:
        content = picture_files.read_content(source)
        samples = picture_files.decode(source, content)
        pixels = _enhanced_pixels(plan, samples, config, opened)
        form = SUFFIXES[destination.suffix.lower()]
        data = picture_files.encode(pixels, form, content, plan.header, samples)
    finally:
        if engine is None:
            opened.close()
    _publish(destination, data, overwrite)
    return PictureResult(source, destination)


def _enhanced_pixels(plan: PicturePlan, samples: Samples, config: JobConfig, engine: Engine) -> Any:
    frame = frame_of(plan, samples.pixels)
    with Wakeup() as wakeup:
        enhancer = open_enhancer(plan, frame, config, engine, wakeup.wake)
        try:
            made = enhancer.push(frame)
            while not made:
                # A signal, as Ctrl-C, is answered in this wait, but not in one of the engine's.
                wakeup.wait((), _WAIT_SECONDS)
                made = enhancer.collect()
        except InterruptedJobError:
            raise
        except SrstreamError as error:
            raise type(error)(f"{plan.source}: {error}") from error
        finally:
            enhancer.close()
    return interleaved(made[0])


def open_enhancer(
    plan: PicturePlan,
    frame: Frame,
    config: JobConfig,
    engine: Engine,
    on_done: OnDone | None = None,
) -> Enhancer:
    """Return the stage that enlarges a picture to the plan's size.

    Raises:
        RefusedError: the destination's format holds no such picture.
    """
    form = SUFFIXES[plan.destination.suffix.lower()]
    picture_files.check_holds(form, plan.width, plan.height, frame.layout.has_alpha)
    bits = min(frame.layout.bits, picture_files.MAX_BITS[form])
    layout = PlaneLayout(frame.layout.kind, bits, has_alpha=frame.layout.has_alpha)
    output = FrameForm(plan.width, plan.height, layout, frame.color)
    source = FrameForm(frame.width, frame.height, frame.layout, frame.color)
    max_memory_bytes = config.engine.max_memory_bytes
    return Enhancer(engine, source, output, max_memory_bytes=max_memory_bytes, on_done=on_done)


def frame_of(plan: PicturePlan, pixels: Any) -> Frame:
    """Return pixels in OpenCV's order as a frame.

    Raises:
        MediaError: there are more or fewer than the header says.
    """
    height, width = pixels.shape[:2]
    if (width, height) != (plan.header.width, plan.header.height):
        raise MediaError(
            f"{plan.source}: its header says {plan.header.width}x{plan.header.height}, it holds "
            f"{width}x{height}."
        )
    bits = 8 * pixels.dtype.itemsize
    planes: tuple[Plane, ...]
    if pixels.ndim == 2:
        layout, planes = PlaneLayout("gray", bits), (pixels,)
    else:
        blue, green, red, *alpha = cv2.split(pixels)
        if plan.header.is_grey and alpha:
            planes = (blue, *alpha)
            layout = PlaneLayout("gray", bits, has_alpha=True)
        else:
            planes = (green, blue, red, *alpha)
            layout = PlaneLayout("rgb", bits, has_alpha=bool(alpha))
    color = ColorSpec(full_range=True)
    return Frame(planes, layout, width, height, 0, Fraction(1), color=color)


def interleaved(frame: Frame) -> Any:
    """Return (H, W), (H, W, 3) BGR or (H, W, 4) BGRA for OpenCV, which has no gray with alpha."""
    if frame.layout.kind == "rgb":
        green, blue, red, *alpha = frame.planes
        return cv2.merge([blue, green, red, *alpha])
    grey, *alpha = frame.planes
    return cv2.merge([grey, grey, grey, *alpha]) if alpha else grey


def _publish(destination: Path, data: bytes, overwrite: bool) -> None:
    """Write the picture under its name; an existing file is replaced only with `overwrite`."""
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        write_whole(destination, data, overwrite=overwrite)
    except FileExistsError as error:
        raise UsageError(
            f"{destination}: exists already; use --overwrite to replace it."
        ) from error
    except OSError as error:
        kind = DiskFullError if error.errno == errno.ENOSPC else EncodeError
        raise kind(f"{destination}: cannot be written ({error.strerror}).") from error
