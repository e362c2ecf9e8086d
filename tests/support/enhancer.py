"""Frames for the enhancer, engines that it can be checked with, and a picture in any layout."""

from __future__ import annotations

from fractions import Fraction

import cv2
import numpy as np

from srstream.color import code_range, is_full_range, rgb_to_yuv_matrix
from srstream.config import EngineConfig, ModelConfig
from srstream.engines.openvino.engine import OpenVinoEngine
from srstream.enhancer.enhancer import Enhancer
from srstream.frame import ColorSpec, Frame, FrameForm, PlaneLayout
from srstream.models.table import ModelSpec, Stack, model_spec
from tests.support.networks import repeating_network

TIME_BASE = Fraction(1, 1000)
WIDTH, HEIGHT = 96, 56
YUV420 = PlaneLayout("yuv", 8, 1, 1)
LIMITED = ColorSpec(1, 1, 1, False, 1)


FAST = model_spec("fast")


def engine_of(path, folder, threads=2, spec=FAST):
    return OpenVinoEngine(
        EngineConfig(threads=threads),
        ModelConfig(weights=str(path)),
        spec,
        cache_dir=folder / "cache",
    )


COLOR_SPECS = {
    "yuv420": ModelSpec("balanced", "yuv420", Stack((6, 6))),
    "rgb": ModelSpec("srgan", "rgb", Stack((6, 6))),
}


def repeating_engine(name, tmp_path_factory):
    """An engine for several planes whose output is its input, repeated."""
    folder, spec = tmp_path_factory.mktemp(name), COLOR_SPECS[name]
    return engine_of(repeating_network(folder / "made.onnx", spec), folder, spec=spec)


def video(layout, color=LIMITED, width=WIDTH, height=HEIGHT):
    return FrameForm(width, height, layout, color)


def output(layout, color=LIMITED, width=4 * WIDTH, height=4 * HEIGHT):
    return FrameForm(width, height, layout, color)


def frame_of(planes, layout, color=LIMITED, pts=0):
    height, width = planes[0].shape
    return Frame(tuple(planes), layout, width, height, pts, TIME_BASE, color=color)


def noise_frame(layout, color=LIMITED, width=WIDTH, height=HEIGHT, pts=0):
    rng = np.random.default_rng(pts)
    planes = [
        cv2.GaussianBlur(
            rng.integers(0, 1 << layout.bits, layout.plane_shape(i, width, height)).astype(
                layout.dtype
            ),
            (5, 5),
            0,
        )
        for i in range(layout.num_planes)
    ]
    return frame_of(planes, layout, color, pts)


def enhance(engine, frame, out, source=None):
    enhancer = Enhancer(engine, source or video(frame.layout, frame.color, *size(frame)), out)
    (enhanced,) = [*enhancer.push(frame), *enhancer.drain()]
    enhancer.close()
    assert (enhanced.width, enhanced.height) == (out.width, out.height)
    assert enhanced.layout == out.layout
    assert enhanced.color == out.color
    for index, plane in enumerate(enhanced.planes):
        assert plane.shape == out.layout.plane_shape(index, out.width, out.height)
        assert plane.dtype == out.layout.dtype
        assert plane.flags.c_contiguous
        assert int(plane.max()) < 1 << out.layout.bits
    return enhanced


def size(frame):
    return frame.width, frame.height


def color_bars(width=448, height=64):
    """R'G'B' in [0, 1], (H, W, 3), with a gray ramp over eight bars of 75 %."""
    picture = np.zeros((height, width, 3))
    picture[: height // 2] = np.linspace(0, 1, width)[None, :, None]
    for bar in range(8):
        columns = slice(bar * width // 8, (bar + 1) * width // 8)
        picture[height // 2 :, columns] = [0.75 * (bar >> n & 1) for n in (2, 1, 0)]
    return picture


def planes_of(picture, layout, color):
    """The picture's codes; chroma, sited in the center, is the mean of its luma samples."""
    full = is_full_range(color, layout)
    luma = code_range(layout.bits, full)
    chroma = code_range(layout.bits, full, is_chroma=True)

    def codes(values, scale):
        return np.clip(np.rint(values * scale.span + scale.zero), 0, scale.peak).astype(
            layout.dtype
        )

    if layout.kind == "rgb":
        planes = [codes(picture[..., n], luma) for n in (1, 2, 0)]
    elif layout.kind == "gray":
        planes = [codes(picture @ rgb_to_yuv_matrix(1)[0], luma)]
    else:
        yuv = picture @ rgb_to_yuv_matrix(color.matrix).T
        shape = layout.plane_shape(1, picture.shape[1], picture.shape[0])
        small = [
            cv2.resize(np.ascontiguousarray(yuv[..., n]), shape[::-1], interpolation=cv2.INTER_AREA)
            for n in (1, 2)
        ]
        planes = [codes(yuv[..., 0], luma), *(codes(plane, chroma) for plane in small)]
    if layout.has_alpha:
        planes.append(np.tile(codes(np.linspace(0, 1, picture.shape[1]), luma), (len(picture), 1)))
    return planes


def smaller(plane, shape):
    return cv2.resize(plane.astype(np.float32), shape[::-1], interpolation=cv2.INTER_AREA)
