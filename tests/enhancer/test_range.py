"""Networks receive the values on which they were trained, whatever a file's range and depth."""

from __future__ import annotations

from fractions import Fraction

import cv2
import numpy as np
import pytest

from srstream.color import rgb_to_yuv_matrix
from srstream.config import EngineConfig, JobConfig, ModelConfig
from srstream.engines.contract import TileFormat
from srstream.engines.openvino.engine import OpenVinoEngine
from srstream.enhancer.enhancer import Enhancer
from srstream.frame import ColorSpec, Frame, FrameForm, PlaneLayout
from srstream.models.table import available_models, available_sets, model_spec
from srstream.pictures.job import enhance_pictures
from srstream.quality import psnr
from tests.support.training_data import data_folder
from trainer.data.degrade import bicubic_resize, downscale
from trainer.data.pairs import crop_to_multiple, read_rgb
from trainer.data.planes import yuv444
from trainer.judge.evaluate import load_test_set, score
from trainer.judge.perceptual import grid_energy
from trainer.ship.methods import method_of

BLACK, WHITE, GRAY = 16 / 255, 235 / 255, 128 / 255
KNOBS = {"faithful": {}, "restore": {"restore": 1.0}, "crisp": {"detail": 1.0}}
PARTS = {"dark": (0.0, 40 / 255), "bright": (0.8, 1.0), "whole": (0.0, 1.0)}
HEAVY = [name for name in available_models() if model_spec(name).kmac_per_pixel > 1000]
MODELS = [
    pytest.param(name, marks=pytest.mark.long if name in HEAVY else ())
    for name in available_models()
]
SETS = [
    pytest.param(name, weights, marks=pytest.mark.long if name in HEAVY else ())
    for name in available_models()
    for weights in available_sets(name)
]


@pytest.mark.parametrize(
    ("bits", "full_range", "black", "white", "gray", "one_up"),
    [
        (8, False, 16, 235, 128, 240),
        (8, True, 0, 255, 128, 128 + 127.5),
        (10, False, 64, 940, 512, 960),
        (10, True, 0, 1023, 512, 512 + 511.5),
        (16, False, 4096, 60160, 32768, 61440),
    ],
)
def test_black_and_white_are_those_of_8_bits_in_limited_range(
    bits, full_range, black, white, gray, one_up
):
    to_network = TileFormat(None, bits, full_range=full_range).to_network("yuv420")
    for codes, expected in [
        ((black, gray, gray), (BLACK, GRAY, GRAY)),
        ((white, one_up, gray), (WHITE, 240 / 255, GRAY)),
    ]:
        assert to_network.mix @ codes + to_network.offset == pytest.approx(expected, abs=1e-12)
    back = TileFormat(None, bits, full_range=full_range).from_network("yuv420")
    beyond = np.array([(1 << bits) - 1.0, 0.0, 1.0])  # nothing is clipped
    there = to_network.mix @ beyond + to_network.offset
    assert back.mix @ there + back.offset == pytest.approx(beyond, abs=1e-8)


def test_what_a_network_was_trained_on_is_only_scaled():
    to_network = TileFormat(None, 8).to_network("luma")
    assert to_network.mix.tolist() == [[1 / 255]]
    assert to_network.offset.tolist() == [0.0]


def enhanced(engine, planes, layout, color):
    """The planes of one enhanced frame."""
    height, width = planes[0].shape
    source = FrameForm(width, height, layout, color)
    enhancer = Enhancer(engine, source, source.scaled(4))
    frame = Frame(tuple(planes), layout, width, height, 0, Fraction(1), color=color)
    (made,) = [*enhancer.push(frame), *enhancer.drain()]
    enhancer.close()
    return made.planes


def codes_of(yuv, bits, full_range, least, largest):
    """Float codes (H.273) of Y in [0, 1], U, V in [-0.5, 0.5], with luma between two values."""
    peak, unit = (1 << bits) - 1, 1 << (bits - 8)
    zero, span, chroma_span = (0, peak, peak) if full_range else (16 * unit, 219 * unit, 224 * unit)
    share = largest - least
    luma = zero + span * (least + share * yuv[0])
    chroma = [128 * unit + chroma_span * share * plane for plane in yuv[1:]]
    return np.stack([luma, *chroma])


NOT_YET = {("srgan", "faithful", "dark")}
"""Sets that have not learned the low contrast of dark 8-bit 4:2:0: 2 % worse than bicubic."""


@pytest.mark.needs_data
@pytest.mark.parametrize(("name", "weights"), SETS)
@pytest.mark.parametrize("part", PARTS)
def test_dark_bright_and_whole_in_both_ranges_and_depths(name, weights, part, tmp_path):
    """Results are no worse than bicubic, without a grid, and in full range as good as in limited.

    Weights that repair compression smooth out what is as faint as its damage, so on clean pictures
    only the last is required of them.
    """
    side = 128 if name in HEAVY else 256
    rgb = read_rgb(data_folder("test/Set5") / "bird.png")[:side, :side]
    yuv = np.einsum("oi,hwi->ohw", rgb_to_yuv_matrix(6), rgb / 255.0)
    engine = OpenVinoEngine(
        EngineConfig(threads=1),
        ModelConfig(name=name, **KNOBS[weights]),
        model_spec(name),
        tmp_path,
    )
    errors = {}
    for bits in (8, 10):
        for full_range in (False, True):
            true = codes_of(yuv, bits, full_range, *PARTS[part])
            unit, peak = 1 << (bits - 8), (1 << bits) - 1
            dtype = np.uint8 if bits == 8 else np.uint16
            small = [bicubic_resize(plane, side // 4, side // 4) for plane in true]
            codes = [np.clip(np.round(plane), 0, peak).astype(dtype) for plane in small]
            layout, color = PlaneLayout("yuv", bits), ColorSpec(1, 1, 6, full_range, 1)
            made = enhanced(engine, codes, layout, color)[0].astype(float)
            bicubic = np.clip(np.round(bicubic_resize(codes[0].astype(float), side, side)), 0, peak)
            inner = np.s_[4:-4, 4:-4]
            error, usual = (
                np.sqrt(np.mean((plane - true[0])[inner] ** 2)) / unit for plane in (made, bicubic)
            )
            if (name, weights, part) in NOT_YET:
                assert error <= 1.03 * usual
            elif weights == "faithful":
                assert error <= usual
            pattern = grid_energy(made / unit, true[0] / unit, 4)
            assert pattern <= 0.2 + grid_energy(bicubic / unit, true[0] / unit, 4)
            errors[bits, full_range] = error / (255 if full_range else 219)
        assert errors[bits, True] <= 1.05 * errors[bits, False]


def luma_psnr(made_path, original):
    """PSNR on luma as in `docs/evaluation.md`."""
    made = cv2.imread(str(made_path))[..., ::-1]
    return psnr(np.round(yuv444(made)[0]), yuv444(original)[0], 4)


@pytest.mark.needs_data
@pytest.mark.parametrize("name", MODELS)
def test_set5_through_the_command_is_what_the_evaluation_says(name, tmp_path):
    folder = data_folder("test/Set5")
    originals = {path.stem: crop_to_multiple(read_rgb(path), 4) for path in folder.glob("*.png")}
    (tmp_path / "in").mkdir()
    for stem, rgb in originals.items():
        cv2.imwrite(str(tmp_path / "in" / f"{stem}.png"), downscale(rgb, 4)[..., ::-1])
    config = JobConfig(model=ModelConfig(name=name))
    results = list(enhance_pictures(tmp_path / "in", tmp_path / "out", config))
    assert len(results) == len(originals) == 5
    reached = [luma_psnr(result.destination, originals[result.source.stem]) for result in results]
    stated = score(method_of(name).upscale, load_test_set(folder, 4), 4).psnr_db
    assert np.mean(reached) == pytest.approx(stated, abs=0.05)
