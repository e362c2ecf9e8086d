"""Splits the pictures of libav's pixel formats into planes of samples and names their layout.

Planar formats are copied plane by plane; the common packed and semi-planar ones are unpacked in
numpy. Only the rest (bit-packed RGB, palettes, float, Bayer) goes through swscale, into the
nearest format that holds everything.

Shape legend: H, W are rows and columns, C the interleaved samples of a pixel.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import av
import numpy as np
import numpy.typing as npt
from av.video.format import VideoFormat

from srstream.errors import MediaError
from srstream.frame import Plane, PlaneLayout

Samples = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class _Component:
    """Position of one output plane's samples in libav's: plane, first sample, step, in samples."""

    plane: int
    offset: int = 0
    step: int = 1


@dataclass(frozen=True, slots=True)
class _Recipe:
    """How a pixel format becomes planes: through `via` first if set, then component by component.

    `shift` is the number of unused low bits of a sample, `is_big_endian` the byte order.
    """

    layout: PlaneLayout
    components: tuple[_Component, ...]
    shift: int = 0
    is_big_endian: bool = False
    via: str | None = None


def _interleaved(plane: int, order: str, names: str) -> tuple[_Component, ...]:
    """Return components `order` of a pixel stored in the order `names`, e.g. GBR from "BGRA"."""
    return tuple(_Component(plane, names.index(name), len(names)) for name in order)


def _packed_recipes() -> dict[str, _Recipe]:
    table: dict[str, _Recipe] = {}
    rgb8, rgba8 = PlaneLayout("rgb", 8), PlaneLayout("rgb", 8, has_alpha=True)
    for names in ("rgb", "bgr", "rgba", "bgra", "argb", "abgr", "rgb0", "bgr0", "0rgb", "0bgr"):
        order = "gbra" if "a" in names else "gbr"
        name = f"{names}24" if len(names) == 3 else names
        table[name] = _Recipe(rgba8 if "a" in names else rgb8, _interleaved(0, order, names))
    for name, names in (("rgb48", "rgb"), ("bgr48", "bgr"), ("rgba64", "rgba"), ("bgra64", "bgra")):
        alpha = "a" in names
        recipe = _Recipe(
            PlaneLayout("rgb", 16, has_alpha=alpha), _interleaved(0, "gbra"[: len(names)], names)
        )
        table.update(_both_endians(name, recipe))
    table["ya8"] = _Recipe(PlaneLayout("gray", 8, has_alpha=True), _interleaved(0, "ya", "ya"))
    table.update(
        _both_endians(
            "ya16", _Recipe(PlaneLayout("gray", 16, has_alpha=True), _interleaved(0, "ya", "ya"))
        )
    )
    for name, (y, u, v) in (
        ("yuyv422", (0, 1, 3)),
        ("uyvy422", (1, 0, 2)),
        ("yvyu422", (0, 3, 1)),
    ):
        parts = (_Component(0, y, 2), _Component(0, u, 4), _Component(0, v, 4))
        table[name] = _Recipe(PlaneLayout("yuv", 8, 1, 0), parts)
    for bits in (10, 12, 16):
        parts = (_Component(0, 0, 2), _Component(0, 1, 4), _Component(0, 3, 4))
        recipe = _Recipe(PlaneLayout("yuv", bits, 1, 0), parts, shift=16 - bits)
        table.update(_both_endians(f"y2{bits}", recipe))
    for names in ("vuya", "vuyx", "ayuv", "uyva", "vyu"):
        alpha = "a" in names
        name = "vyu444" if names == "vyu" else names
        table[name] = _Recipe(
            PlaneLayout("yuv", 8, has_alpha=alpha), _interleaved(0, "yuva"[: 3 + alpha], names)
        )
    table.update(
        _both_endians(
            "ayuv64",
            _Recipe(PlaneLayout("yuv", 16, has_alpha=True), _interleaved(0, "yuva", "ayuv")),
        )
    )
    return table


def _semi_planar_recipes() -> dict[str, _Recipe]:
    table: dict[str, _Recipe] = {}
    u_first = (_Component(0), _Component(1, 0, 2), _Component(1, 1, 2))
    v_first = (_Component(0), _Component(1, 1, 2), _Component(1, 0, 2))
    for name, parts, chroma in (
        ("nv12", u_first, (1, 1)),
        ("nv21", v_first, (1, 1)),
        ("nv16", u_first, (1, 0)),
        ("nv24", u_first, (0, 0)),
        ("nv42", v_first, (0, 0)),
    ):
        table[name] = _Recipe(PlaneLayout("yuv", 8, *chroma), parts)
    table.update(_both_endians("nv20", _Recipe(PlaneLayout("yuv", 10, 1, 0), u_first)))
    for digit, chroma in (("0", (1, 1)), ("2", (1, 0)), ("4", (0, 0))):
        for bits in (10, 12, 16):
            layout = PlaneLayout("yuv", bits, *chroma)
            recipe = _Recipe(layout, u_first, shift=16 - bits)
            table.update(_both_endians(f"p{digit}{bits}", recipe))
    return table


def _both_endians(name: str, recipe: _Recipe) -> dict[str, _Recipe]:
    big = _Recipe(recipe.layout, recipe.components, recipe.shift, is_big_endian=True)
    return {f"{name}le": recipe, f"{name}be": big}


_TABLE = _packed_recipes() | _semi_planar_recipes()

_PLANAR = re.compile(r"(?:yuvj?a?\d{3}p|gbra?p|gray)(?:\d+(?:msb)?)?(?:le|be)?")

_DETOURS = (
    (r"pal8", "rgb24"),
    (r"mono.*", "gray"),
    (r"(?:rgb|bgr)(?:4|8|444|555|565)(?:_byte)?(?:le|be)?", "rgb24"),
    (r"x2(?:rgb|bgr)10(?:le|be)", "gbrp10le"),
    (r"bayer_.*8", "rgb24"),
    (r"bayer_.*16(?:le|be)", "rgb48le"),
    (r"xyz12(?:le|be)", "rgb48le"),
    (r"gbrapf.*", "gbrap16le"),
    (r"(?:rgba)f.*", "rgba64le"),
    (r"gbrpf.*|rgbf.*|rgb96.*", "gbrp16le"),
    (r"rgba128.*", "rgba64le"),
    (r"yaf.*", "ya16le"),
    (r"grayf.*|gray32.*", "gray16le"),
    (r"uyyvyy411", "yuv411p"),
    (r"xv30.*|v30x.*", "yuv444p10le"),
    (r"xv36.*", "yuv444p12le"),
    (r"xv48.*", "yuv444p16le"),
)
"""Formats that swscale has to convert, each with the nearest format that holds all its data."""


@lru_cache(maxsize=256)
def _recipe(pix_fmt: str) -> _Recipe:
    if pix_fmt in _TABLE:
        return _TABLE[pix_fmt]
    if _PLANAR.fullmatch(pix_fmt):
        return _planar_recipe(pix_fmt)
    for pattern, via in _DETOURS:
        if re.fullmatch(pattern, pix_fmt):
            inner = _recipe(via)
            return _Recipe(
                inner.layout, inner.components, inner.shift, inner.is_big_endian, via=via
            )
    raise MediaError(
        f"pixel format {pix_fmt}: srstream cannot read it. Convert the source to a plain one, "
        "such as yuv420p or rgb24."
    )


def _planar_recipe(pix_fmt: str) -> _Recipe:
    fmt = VideoFormat(pix_fmt)
    bits = fmt.components[0].bits
    alpha = any(component.is_alpha for component in fmt.components)
    log2_w = log2_h = 0
    if pix_fmt.startswith("gray"):
        layout = PlaneLayout("gray", bits)
    elif pix_fmt.startswith("gbr"):
        layout = PlaneLayout("rgb", bits, has_alpha=alpha)
    else:
        log2_w = 6 - (fmt.chroma_width(64).bit_length() - 1)
        log2_h = 6 - (fmt.chroma_height(64).bit_length() - 1)
        layout = PlaneLayout("yuv", bits, log2_w, log2_h, alpha)
    return _Recipe(
        layout,
        tuple(_Component(n) for n in range(layout.num_planes)),
        shift=16 - bits if "msb" in pix_fmt else 0,
        is_big_endian=pix_fmt.endswith("be"),
    )


def layout_of(pix_fmt: str, *, with_alpha: bool = False) -> PlaneLayout:
    """Return the layout in which frames of a libav pixel format are delivered.

    `with_alpha` asks for the alpha of a palette (pal8), which is ignored by default.

    Raises:
        MediaError: the format holds hardware surfaces or is unknown.
    """
    if pix_fmt == "pal8" and with_alpha:
        return _recipe("rgba").layout
    return _recipe(pix_fmt).layout


def is_full_range_name(pix_fmt: str) -> bool:
    """Return whether the format's name itself implies full range (libav's old yuvj formats)."""
    return pix_fmt.startswith("yuvj")


def has_transparent_palette(frame: av.VideoFrame) -> bool:
    """Return whether a pal8 picture's palette has an entry that is not opaque."""
    if frame.format.name != "pal8":
        return False
    palette = np.frombuffer(cast(Any, frame.planes[1]), dtype=np.uint32)
    return bool((palette >> 24 < 255).any())


def extract_planes(
    frame: av.VideoFrame, *, with_alpha: bool = False
) -> tuple[PlaneLayout, tuple[Plane, ...]]:
    """Return a frame's layout and its planes as separate contiguous copies in native byte order.

    Raises:
        MediaError: as in `layout_of`.
    """
    name = frame.format.name
    if any(plane.line_size < 0 for plane in frame.planes if plane.line_size):
        return _extract_upside_down(frame, with_alpha)
    recipe = _recipe(name)
    if recipe.via is not None:
        via = "rgba" if name == "pal8" and with_alpha else recipe.via
        # With threads, swscale 8.1 occasionally writes a wrong row in some formats.
        frame = frame.reformat(format=via, interpolation="POINT", threads=1)
        recipe = _recipe(via)
    layout = recipe.layout
    planes = tuple(
        _samples(frame, recipe, part, layout.plane_shape(index, frame.width, frame.height))
        for index, part in enumerate(recipe.components)
    )
    return layout, planes


def _samples(
    frame: av.VideoFrame, recipe: _Recipe, part: _Component, shape: tuple[int, int]
) -> Plane:
    rows, columns = shape
    source = frame.planes[part.plane]
    itemsize = recipe.layout.dtype.itemsize
    bytes_HW = np.frombuffer(cast(Any, source), dtype=np.uint8)
    bytes_HW = bytes_HW[: rows * source.line_size].reshape(rows, source.line_size)
    used = ((columns - 1) * part.step + part.offset + 1) * itemsize
    if itemsize == 1:
        return cast(Plane, bytes_HW[:, part.offset : used : part.step].copy())
    samples_HW: Samples = bytes_HW[:, :used]
    if not samples_HW.flags.c_contiguous and source.line_size % itemsize:
        samples_HW = samples_HW.copy()
    samples_HW = samples_HW.view(np.dtype(">u2" if recipe.is_big_endian else "<u2"))
    samples_HW = samples_HW[:, part.offset :: part.step]
    if recipe.shift:
        return cast(Plane, np.right_shift(samples_HW, recipe.shift, dtype=np.uint16))
    if recipe.is_big_endian or sys.byteorder == "big":
        return cast(Plane, samples_HW.astype(np.uint16))
    return cast(Plane, samples_HW.copy().view(np.uint16))


def _extract_upside_down(
    frame: av.VideoFrame, with_alpha: bool
) -> tuple[PlaneLayout, tuple[Plane, ...]]:
    """Extract the planes of a picture that a decoder stored bottom row first.

    PyAV cannot read its negative line size. libavfilter's vflip only negates that size again;
    the rows are put back in order here.
    """
    graph = av.filter.Graph()
    time_base = frame.time_base or "1/1000"
    source = graph.add(
        "buffer",
        video_size=f"{frame.width}x{frame.height}",
        pix_fmt=frame.format.name,
        time_base=str(time_base),
    )
    graph.link_nodes(source, graph.add("vflip"), graph.add("buffersink")).configure()
    graph.vpush(frame)
    layout, planes = extract_planes(graph.vpull(), with_alpha=with_alpha)
    return layout, tuple(plane[::-1].copy() for plane in planes)
