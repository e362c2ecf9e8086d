"""srstream: small, old or compressed video in; the same video at four times the size out.

    import srstream

    result = srstream.enhance("input.mp4")
    print(result.output, result.receipt)

`plan` says beforehand what will happen, `verify` afterwards whether everything is there; `Client`
speaks to a running daemon. All errors derive from `srstream.errors.SrstreamError`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srstream.config import JobConfig

if TYPE_CHECKING:
    from srstream.client.frames import FrameStream
    from srstream.client.jobs import Client
    from srstream.jobs.events import OnEvent
    from srstream.jobs.job import Result
    from srstream.jobs.planning.summary import PlanSummary
    from srstream.media.verify import Receipt
    from srstream.pictures.job import PictureResult

__all__ = [
    "Client",
    "FrameStream",
    "JobConfig",
    "enhance",
    "enhance_pictures",
    "plan",
    "verify",
]

PathLike = str | os.PathLike[str]


def enhance(
    source: PathLike,
    output: PathLike | None = None,
    *,
    config: JobConfig | None = None,
    overwrite: bool = False,
    restart: bool = False,
    on_event: OnEvent | None = None,
) -> Result:
    """Enhance a video file; an unfinished job of the same output is resumed.

    Args:
        source: the video.
        output: name of the result; `INPUT_4x` beside the source if None.
        config: model, engine, size, codec and what is taken of the source.
        overwrite: replace an existing output, at the very end.
        restart: discard an unfinished job instead of resuming it.
        on_event: called with every event of `srstream.jobs.events`.

    Returns:
        Where the output is, its number of frames, the exit code (0, or 4 for a part) and the
        fidelity receipt.

    Raises:
        srstream.errors.SrstreamError: in one sentence, what went wrong and what to do.
    """
    from srstream.errors import UsageError
    from srstream.jobs.events import ignore
    from srstream.jobs.job import enhance_file
    from srstream.pictures.inputs import is_picture_input

    if is_picture_input(Path(source)):
        raise UsageError(f"{source}: this is a picture or a folder; use enhance_pictures.")
    return enhance_file(
        Path(source),
        None if output is None else Path(output),
        config,
        overwrite=overwrite,
        restart=restart,
        on_event=on_event or ignore,
    )


def enhance_pictures(
    source: PathLike,
    output: PathLike | None = None,
    *,
    config: JobConfig | None = None,
    overwrite: bool = False,
) -> list[PictureResult]:
    """Enhance a picture, a folder or a pattern of pictures.

    Args:
        source: PNG, JPEG, WebP or BMP; a folder or a pattern stands for all pictures in it.
        output: a name for one picture, a folder for several; `_4x` beside the source if None.

    Returns:
        One result for each picture; one that failed holds its error and stops no other.

    Raises:
        srstream.errors.SrstreamError: nothing could be enhanced at all.
    """
    from srstream.pictures.job import enhance_pictures as enhance_all

    return list(
        enhance_all(
            Path(source),
            None if output is None else Path(output),
            config or JobConfig(),
            overwrite=overwrite,
        )
    )


def plan(
    source: PathLike, output: PathLike | None = None, *, config: JobConfig | None = None
) -> PlanSummary:
    """What `enhance` would do: streams, sizes, losses, time. Takes one to two seconds.

    Raises:
        srstream.errors.SrstreamError: the job cannot work, and why.
    """
    from srstream.jobs.planning.summary import plan_summary

    return plan_summary(
        Path(source), None if output is None else Path(output), config or JobConfig()
    )


def verify(
    source: PathLike,
    output: PathLike,
    *,
    start_seconds: float | None = None,
    end_seconds: float | None = None,
    sample: int | None = None,
) -> Receipt:
    """Compare an output with its source; `sample` limits the frames whose pixels are compared.

    Raises:
        srstream.errors.MediaError: one of the two cannot be read.
    """
    from srstream.jobs.excerpt import verify_excerpt

    return verify_excerpt(
        Path(source),
        Path(output),
        start_seconds=start_seconds,
        end_seconds=end_seconds,
        sample=sample,
    )


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from srstream.installing import own_version

        return own_version()
    if name == "Client":
        from srstream.client.jobs import Client

        return Client
    if name == "FrameStream":
        from srstream.client.frames import FrameStream

        return FrameStream
    raise AttributeError(name)
