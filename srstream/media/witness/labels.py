"""Compares the two files' descriptions of the video, and their chapters."""

from __future__ import annotations

from fractions import Fraction

from srstream.media.receipt import PictureReceipt
from srstream.media.witness.animations import ANIMATED
from srstream.media.witness.likeness import Crop
from srstream.media.witness.pictures import Label, chroma_place
from srstream.media.witness.streams import CLOCKS, SILENT, Placing
from srstream.media.witness.survey import Survey

DEPTHS = {"h264": 10, "hevc": 12, "av1": 10, "vp9": 8, "ffv1": 16, "prores": 10}
"""Maximum bit depth of each codec's encoders."""

FIXED_MATRICES = {"vp8": 5, "mjpeg": 5}
"""Code points of BT.601, for codecs that know no other (RFC 6386, 9.2; JFIF)."""

WITH_ALPHA = frozenset({"ffv1"})
WITH_HDR = frozenset({"hevc", "h264", "av1"})
WITH_SITING = frozenset({"h264", "hevc"})
"""Codecs that state the chroma siting, and only for 4:2:0 (ITU-T H.264, E.2.1)."""

UNSPECIFIED, BT2020 = 2, 9
"""Code points of matrices and primaries (ITU-T H.273)."""

_Chapters = list[tuple[Fraction, Fraction, str]]


def compare_labels(
    before: Label,
    now: Label,
    codec: str,
    *,
    brand: str,
    is_seen_through: bool,
    has_hdr: bool | None,
) -> tuple[list[str], list[str]]:
    """Return (problems, losses) of the description of the video.

    Args:
        codec: the output's codec.
        is_seen_through: part of the source's alpha was not opaque.
        brand: the output's container.
        has_hdr: whether the plan says that HDR metadata is kept; None without a plan.
    """
    if brand in ANIMATED:
        return _compare_to_animation(before, now, is_seen_through=is_seen_through)
    problems: list[str] = []
    losses: list[str] = []
    for name in ("primaries", "transfer", "matrix"):
        old, new = getattr(before, name), getattr(now, name)
        became_yuv = name == "matrix" and before.is_rgb != now.is_rgb
        if old != new and not became_yuv:
            is_fixed = name == "matrix" and new == FIXED_MATRICES.get(codec)
            message = f"color {name} became {new}, the source says {old}"
            (losses if is_fixed else problems).append(message)
    if before.is_rgb and not now.is_rgb and not now.is_gray:
        problems += _problems_of_new_yuv(now)
    if before.is_full != now.is_full and not before.is_rgb:
        problems.append(
            f"the range became {_range(now.is_full)}, the source's is {_range(before.is_full)}"
        )
    if not _same_siting(before, now):
        message = f"chroma siting became {now.siting}, the source says {before.siting}"
        is_stated = codec in WITH_SITING and "420" in now.pix_fmt
        (problems if is_stated else losses).append(message)
    if abs(before.aspect / now.aspect - 1) >= Fraction(1, 1000):
        problems.append(
            f"the pixel aspect became {_say(now.aspect)}, the source's is {_say(before.aspect)}"
        )
    if before.turn != now.turn:
        words = f"{now.rotation}, the source's is {before.rotation}"
        if before.rotation == now.rotation:
            words = f"that of {now.turn}, the source's is {before.turn}"
        (losses if brand in SILENT else problems).append(f"the rotation became {words}")
    if now.bits < before.bits:
        message = f"{before.bits} bits became {now.bits}"
        (losses if now.bits >= DEPTHS.get(codec, 8) else problems).append(message)
    if is_seen_through and not now.has_alpha:
        (problems if codec in WITH_ALPHA else losses).append("the alpha plane is not there")
    for name, label in (
        ("mastering", "HDR mastering metadata"),
        ("light", "HDR light levels"),
    ):
        if getattr(before, name) and getattr(before, name) != getattr(now, name):
            is_held = codec in WITH_HDR if has_hdr is None else has_hdr
            (problems if is_held else losses).append(f"{label} changed or are not there")
    return problems, losses


def _problems_of_new_yuv(now: Label) -> list[str]:
    """Check how YUV made of RGB is described; that it was made so, the pictures show."""
    if now.matrix == UNSPECIFIED:
        return ["the source is RGB, and the output does not say its matrix"]
    if (now.matrix == BT2020) != (now.primaries == BT2020):
        return [f"color matrix {now.matrix} does not go with primaries {now.primaries}"]
    return []


def _compare_to_animation(
    before: Label, now: Label, *, is_seen_through: bool
) -> tuple[list[str], list[str]]:
    """Return (problems, losses) of an animated picture, which describes no color."""
    losses = []
    if before.bits > now.bits:
        losses.append(f"{before.bits} bits became {now.bits}")
    if before.primaries == 9 or before.mastering or before.light:
        losses.append("the description of wide color or HDR is not there")
    problems = ["the alpha plane is not there"] if is_seen_through and not now.has_alpha else []
    return problems, losses


def compare_shapes(
    before: Label, hidden: Crop, now: Label, still_hidden: Crop, aspect: Fraction
) -> list[str]:
    """Return the problem if the output's visible picture has a different shape than the source's.

    Args:
        aspect: the output's pixel aspect divided by the source's.
    """
    width, height = _shown(before, hidden)
    wide, high = _shown(now, still_hidden)
    stretch = Fraction(wide * height, high * width) * aspect
    # Sizes are rounded to the chroma grid.
    if abs(stretch - 1) <= Fraction(4, wide) + Fraction(4, high):
        return []
    if hidden and not still_hidden:
        whole = f"{before.width}x{before.height}"
        return [
            f"the crop is not there: the source shows {width}x{height} of {whole}, the output all"
        ]
    return [f"the picture's shape became {wide}x{high}, the source's is {width}x{height}"]


def compare_chapters(source: Survey, output: Survey, placing: Placing) -> list[str]:
    """Return the first difference in the chapters' number, titles or times."""
    wanted = _placed(source.chapters, placing)
    found = output.chapters
    if len(wanted) != len(found):
        return [f"{len(found)} chapters are there, the source has {len(wanted)}"]
    tolerance = Fraction(2, 1000) + CLOCKS.get(output.brand, Fraction(0))
    nexts: list[Fraction | None] = [None] * len(wanted)
    if output.brand in ("mp4", "mov"):
        nexts[:-1] = [first for first, _, _ in wanted[1:]]
    for (first, last, title), after, (start, end, name) in zip(wanted, nexts, found, strict=True):
        if title != name:
            return [f"chapter {title!r} was renamed, to {name!r}"]
        if abs(start - first) > tolerance:
            return [f"chapter {title!r} begins at {float(start):.3f} s, not at {float(first):.3f}"]
        # Chapters in MP4 are contiguous: each ends where the next begins.
        ends = [last] if after is None else [last, max(after, first)]
        if min(abs(end - allowed) for allowed in ends) > tolerance:
            return [f"chapter {title!r} ends at {float(end):.3f} s, not at {float(last):.3f}"]
    return []


def picture_receipt(label: Label) -> PictureReceipt:
    """Return a label in the receipt's form."""
    return PictureReceipt(
        width=label.width,
        height=label.height,
        pix_fmt=label.pix_fmt,
        bits=label.bits,
        has_alpha=label.has_alpha,
        primaries=label.primaries,
        transfer=label.transfer,
        matrix=label.matrix,
        full_range=label.full_range,
        chroma_location=label.siting,
        sample_aspect_ratio=_say(label.aspect),
        rotation_degrees=label.rotation,
        mastering_display=label.mastering,
        content_light_level=label.light,
    )


def _placed(chapters: _Chapters, placing: Placing) -> _Chapters:
    """Return the chapters cut to the processed part, in the output's seconds."""
    placed: _Chapters = []
    is_cut = placing.start is not None or placing.end is not None
    for first, last, title in chapters:
        if placing.start is not None:
            first = max(first, placing.start)
        if placing.end is not None:
            last = min(last, placing.end)
        if is_cut and first >= last:
            continue
        start, end = first - placing.shift, last - placing.shift
        if end >= 0 or not placed:
            placed.append((max(start, Fraction(0)), end, title))
    return placed


def _same_siting(before: Label, now: Label) -> bool:
    """Return whether the chroma siting is unchanged in the directions that are subsampled."""
    shapes = {"444": (1, 1), "422": (2, 1), "420": (2, 2), "411": (4, 1), "410": (4, 4)}
    step = next((s for name, s in shapes.items() if name in now.pix_fmt), (1, 1))
    if not before.siting or before.is_rgb or before.is_gray or step == (1, 1):
        return True
    if not now.siting:
        return False
    return chroma_place(before, step) == chroma_place(now, step)


def _shown(label: Label, crop: Crop) -> tuple[int, int]:
    return (
        label.width - crop.left - crop.right,
        label.height - crop.top - crop.bottom,
    )


def _range(full: bool) -> str:
    return "full" if full else "limited"


def _say(aspect: Fraction) -> str:
    return f"{aspect.numerator}:{aspect.denominator}"
