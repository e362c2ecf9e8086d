"""The receipt as a witness: an output is broken in one respect after the other, each is named.

Broken are here the frames on their way, or the plan that the output is written by. What is expected
is known from what was broken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from srstream.config import EncodeConfig, JobConfig
from srstream.frame import Frame, PlaneLayout
from srstream.media.types import OutputPlan
from srstream.media.verify import verify
from tests.support import clips, nasty_clips
from tests.support.outputs import Change, make_output
from tests.support.witness import check

SAMPLES = [None, 4]


# The frames on their way


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 frames of 64x48 in which something moves, BT.709 in limited range."""
    folder = tmp_path_factory.mktemp("plain")
    return clips.write_clip(folder / "in.mp4", 24, gop=8, color=clips.BT709, noise=6)


def every(change: Callable[[Frame], Frame]) -> Change:
    return lambda number, frame: [change(frame)]


def one(number: int, change: Callable[[Frame], list[Frame]]) -> Change:
    return lambda n, frame: change(frame) if n == number else [frame]


def with_planes(frame: Frame, *planes: Any) -> Frame:
    made = [np.ascontiguousarray(plane, frame.layout.dtype) for plane in planes]
    return replace(frame, planes=tuple(made))


def swapped_frames() -> Change:
    """The pictures of frames 12 and 13 change places, their times do not."""
    held: list[Frame] = []

    def change(number: int, frame: Frame) -> Iterable[Frame]:
        if number == 12:
            held.append(frame)
            return []
        if number == 13:
            return [replace(held[0], planes=frame.planes), replace(frame, planes=held[0].planes)]
        return [frame]

    return change


def repeated_picture() -> Change:
    """Frame 13 shows what frame 12 shows."""
    held: list[Frame] = []

    def change(number: int, frame: Frame) -> Iterable[Frame]:
        if number == 12:
            held.append(frame)
        return [replace(frame, planes=held[0].planes) if number == 13 else frame]

    return change


def late_pictures() -> Change:
    """Each frame shows what the one before it should."""
    held: list[Frame] = []

    def change(number: int, frame: Frame) -> Iterable[Frame]:
        held.append(frame)
        return [replace(frame, planes=held[max(number - 1, 0)].planes)]

    return change


def rounded(frame: Frame) -> Frame:
    """Its time brought to thirtieths of a second."""
    seconds = Fraction(round(frame.pts * frame.time_base * 30), 30)
    return replace(frame, pts=round(seconds / frame.time_base))


def moved_colour(frame: Frame) -> Frame:
    """Chroma enlarged as if it lay in the middle: a quarter of the source's sample off."""
    luma, blue, red = frame.planes
    half = [(plane.astype(float) + np.roll(plane, -1, 1)) / 2 for plane in (blue, red)]
    return with_planes(frame, luma, *half)


def other_matrix(frame: Frame) -> Frame:
    """Codes of BT.601 where BT.709 is stated."""
    y, u, v = (plane.astype(float) for plane in frame.planes)
    y = (y - 16) / 219
    u, v = ((np.kron(plane - 128, np.ones((2, 2)))) / 224 for plane in (u, v))
    red, blue = y + 1.5748 * v, y + 1.8556 * u
    green = (y - 0.2126 * red - 0.0722 * blue) / 0.7152
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    small = [
        (128 + 224 * plane).reshape(48, 2, 64, 2).mean((1, 3))
        for plane in ((blue - luma) / 1.772, (red - luma) / 1.402)
    ]
    return with_planes(frame, np.clip(16 + 219 * luma, 0, 255), *np.clip(small, 0, 255))


def range_change(scale: float, offset: float) -> Callable[[Frame], Frame]:
    def change(frame: Frame) -> Frame:
        luma, *chroma = (plane.astype(float) for plane in frame.planes)
        spread = [128 + (plane - 128) * (224 / 255 if scale < 1 else 255 / 224) for plane in chroma]
        return with_planes(frame, np.clip(luma * scale + offset, 0, 255), *np.clip(spread, 0, 255))

    return change


FRAMES: dict[str, tuple[Change, str]] = {
    "a frame is dropped": (one(5, lambda f: []), "23 frames are there, the source has 24"),
    "the last is dropped": (one(23, lambda f: []), "23 frames are there, the source has 24"),
    "a frame is doubled": (
        one(5, lambda f: [f, replace(f, pts=f.pts + 200)]),
        "25 frames are there, the source has 24",
    ),
    "pictures are swapped": (swapped_frames(), "is that of the frame after it"),
    "a picture is repeated": (repeated_picture(), "is that of the frame before it"),
    "pictures are late": (late_pictures(), "is that of the frame before it"),
    "a time is moved": (one(5, lambda f: [replace(f, pts=f.pts + 3)]), "a frame is shown 0.2"),
    "times are moved by a frame": (
        lambda n, f: [replace(f, pts=f.pts + 512 * (n > 3))],
        "1 frames are not shown at their times, the first at 0.160 s",
    ),
    "times drift": (lambda n, f: [replace(f, pts=f.pts + n)], "a frame is shown 1.797 ms off"),
    "times are rounded": (every(rounded), "a frame is shown"),
    "black": (one(23, lambda f: [with_planes(f, f.planes[0] * 0 + 16, *f.planes[1:])]), "black"),
    "upside down": (every(lambda f: with_planes(f, *(p[::-1] for p in f.planes))), "upside down"),
    "mirrored": (every(lambda f: with_planes(f, *(p[:, ::-1] for p in f.planes))), "mirrored"),
    "turned": (
        every(lambda f: with_planes(f, *(p[::-1, ::-1] for p in f.planes))),
        "turned by 180 degrees",
    ),
    "moved by a column": (
        every(lambda f: with_planes(f, np.roll(f.planes[0], 1, 1), *f.planes[1:])),
        "the picture is moved by +0.5",
    ),
    "moved by a row": (
        every(lambda f: with_planes(f, np.roll(f.planes[0], -1, 0), *f.planes[1:])),
        "the picture is moved by",
    ),
    "colour off its siting": (every(moved_colour), "color is moved by -0.2"),
    "chroma planes swapped": (
        every(lambda f: with_planes(f, f.planes[0], f.planes[2], f.planes[1])),
        "has its color planes swapped",
    ),
    "no colour": (
        every(lambda f: with_planes(f, f.planes[0], *(p * 0 + 128 for p in f.planes[1:]))),
        "has no color",
    ),
    "another matrix": (every(other_matrix), "has the colors of another matrix"),
    "range squeezed": (every(range_change(219 / 255, 16)), "has its range squeezed"),
    "range stretched": (every(range_change(255 / 219, -16 * 255 / 219)), "range stretched"),
}


@pytest.mark.parametrize("name", FRAMES)
def test_broken_frames_are_named(tmp_path: Path, plain: Path, name: str) -> None:
    change, words = FRAMES[name]
    source = tmp_path / "in.mp4"
    source.symlink_to(plain)
    made = make_output(source, tmp_path / "out.mp4", change=change)
    check(source, made.path, words)


def test_an_unbroken_output_has_no_problem(tmp_path: Path, plain: Path) -> None:
    source = tmp_path / "in.mp4"
    source.symlink_to(plain)
    made = make_output(source, tmp_path / "out.mp4")
    for sample in SAMPLES:
        receipt = verify(source, made.path, sample=sample)
        assert receipt.problems == receipt.losses == []


# What is written about the picture


def altered(**video: Any) -> Callable[[OutputPlan], OutputPlan]:
    return lambda plan: replace(plan, video=replace(plan.video, **video))


def recoloured(**color: Any) -> Callable[[OutputPlan], OutputPlan]:
    def alter(plan: OutputPlan) -> OutputPlan:
        return altered(color=replace(plan.video.color, **color))(plan)

    return alter


def without_hdr(plan: OutputPlan) -> OutputPlan:
    kept = [p for p in plan.video.options["x265-params"].split(":") if not p.startswith("max-cll")]
    options = plan.video.options | {"x265-params": ":".join(kept)}
    return altered(options=options)(plan)


def without_mastering(plan: OutputPlan) -> OutputPlan:
    params = plan.video.options["x265-params"].split(":")
    kept = [p for p in params if not p.startswith("master-display")]
    return altered(options=plan.video.options | {"x265-params": ":".join(kept)})(plan)


MIRRORED: tuple[int, ...] = (-65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)

LABELS: dict[str, tuple[Callable[[Path], Path], Callable[[OutputPlan], OutputPlan], str]] = {
    "primaries": (
        lambda p: clips.cfr(p, color=clips.BT709),
        recoloured(primaries=9),
        "color primaries became 9, the source says 1",
    ),
    "transfer": (
        lambda p: clips.cfr(p, color=clips.BT709),
        recoloured(transfer=13),
        "color transfer became 13, the source says 1",
    ),
    "matrix": (
        lambda p: clips.cfr(p, color=clips.BT709),
        recoloured(matrix=6),
        "color matrix became 6, the source says 1",
    ),
    "range": (
        lambda p: clips.cfr(p, color=clips.BT709),
        recoloured(full_range=True),
        "the range became full, the source's is limited",
    ),
    "siting": (clips.cfr, recoloured(chroma_location=3), "chroma siting became 3"),
    "pixel aspect": (
        nasty_clips.sar_and_rotation,
        altered(sample_aspect_ratio=Fraction(1)),
        "the pixel aspect became 1:1, the source's is 4:3",
    ),
    "rotation": (
        nasty_clips.sar_and_rotation,
        altered(display_matrix=None),
        "the rotation became 0",
    ),
    "mirroring": (clips.cfr, altered(display_matrix=MIRRORED), "the rotation became"),
    "HDR mastering": (nasty_clips.hdr10, without_mastering, "HDR mastering metadata changed"),
    "HDR light level": (nasty_clips.hdr10, without_hdr, "HDR light levels changed"),
}


@pytest.mark.parametrize("name", LABELS)
def test_a_broken_description_is_named(tmp_path: Path, name: str) -> None:
    make, alter, words = LABELS[name]
    source = make(tmp_path / "in.mp4")
    config = JobConfig(encode=EncodeConfig(preset="ultrafast"))
    good = make_output(source, tmp_path / "good.mp4", config=config)
    assert verify(source, good.path, sample=2).problems == []
    made = make_output(source, tmp_path / "out.mp4", config=config, alter=alter)
    check(source, made.path, words, sample=2)


def test_a_lost_alpha_plane_is_named(tmp_path: Path) -> None:
    source = nasty_clips.alpha_ffv1(tmp_path / "in.mkv")
    good = make_output(source, tmp_path / "good.mkv")
    assert verify(source, good.path).problems == []
    layout = PlaneLayout("yuv", 8, 1, 1)
    made = make_output(
        source, tmp_path / "lost.mkv", alter=altered(layout=layout, pix_fmt="yuv420p")
    )
    check(source, made.path, "the alpha plane is not there")

    def opaque(number: int, frame: Frame) -> Iterable[Frame]:
        return [replace(frame, planes=(*frame.planes[:3], np.full_like(frame.planes[3], 255)))]

    made = make_output(source, tmp_path / "opaque.mkv", change=opaque)
    check(source, made.path, "mean of a color plane changes")


def test_a_lost_depth_is_named(tmp_path: Path) -> None:
    deep = clips.write_clip(tmp_path / "deep.mkv", 6, pix_fmt="yuv420p10le")
    flat = clips.write_clip(tmp_path / "flat.mkv", 6)
    assert verify(deep, make_output(deep, tmp_path / "good.mkv").path).problems == []
    check(deep, make_output(flat, tmp_path / "out.mkv").path, "10 bits became 8")
