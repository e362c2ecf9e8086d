"""OpenVINO in bfloat16 and in 8 bits: the stated accuracy, exact tiles, and refusals."""

from __future__ import annotations

import json
import shutil

import cv2
import numpy as np
import pytest

from srstream.config import EngineConfig, ModelConfig
from srstream.engines.contract import TileFormat
from srstream.engines.openvino.engine import OpenVinoEngine
from srstream.engines.openvino.int8 import ranges_of, ranges_path
from srstream.engines.table import choose_engine, open_engine
from srstream.errors import EngineError
from srstream.models.blend import blend_of
from srstream.models.table import available_models, available_sets, model_spec, weights_path
from srstream.quality import psnr
from tests.support.networks import model_network
from tests.support.training_data import data_folder
from trainer.judge.evaluate import load_test_set, score
from trainer.ship.calibrate import activation_ranges, calibrate
from trainer.ship.methods import method_of

MODELS = [name for name in available_models() if ranges_path(weights_path(name)).is_file()]
PRECISIONS = ["bfloat16", "int8"]
MIN_DB = {"bfloat16": 54.0, "int8": 46.0}
"""Bounds of the difference to float32 on a picture with edges, in levels of 255."""


def engine_of(name, precision, tmp_path, **model):
    config = EngineConfig(threads=1, precision=precision)
    try:
        return OpenVinoEngine(
            config, ModelConfig(name=name, **model), model_spec(name), cache_dir=tmp_path / "cache"
        )
    except EngineError as error:
        if "this processor does not" not in str(error):
            raise
        pytest.skip(str(error))


def picture(height, width, seed=0):
    random = np.random.default_rng(seed)
    planes = []
    for plane in range(3):
        shapes = np.full((height, width), 90 + 30 * plane, np.uint8)
        for _ in range(12):
            center = tuple(int(random.integers(0, n)) for n in (width, height))
            cv2.circle(
                shapes, center, int(random.integers(3, 20)), int(random.integers(20, 230)), -1
            )
        planes.append(cv2.GaussianBlur(shapes, (0, 0), 0.7 + plane))
    return planes


def through(engine, planes, bits=8):
    used = planes[: engine.capabilities.form.num_input_planes]
    session = engine.open_session(TileFormat(used[0].shape, bits))
    result = session.result(session.submit(used))
    session.close()
    return result


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_result_is_close_to_that_of_float32(name, precision, tmp_path):
    planes = picture(90, 120)
    made = through(engine_of(name, precision, tmp_path), planes)
    true = through(engine_of(name, "float32", tmp_path), planes)
    for one, other in zip(made, true, strict=True):
        assert not np.array_equal(one, other)
        assert psnr(one.astype(float), other.astype(float), 0) >= MIN_DB[precision]
        assert abs(one.mean() - other.mean()) < 0.2


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_flat_areas_stay_flat_within_a_level(name, precision, tmp_path):
    engine = engine_of(name, precision, tmp_path)
    for level in (16, 60, 128, 180, 235):
        planes = [np.full((48, 48), code, np.uint8) for code in (level, 128, 128)]
        middle = through(engine, planes)[0][64:128, 64:128]
        assert abs(middle.mean() - level) < 0.6
        assert middle.max() - middle.min() <= 2


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_tile_of_any_shape_has_the_bits_of_the_whole_picture(name, precision, tmp_path):
    engine = engine_of(name, precision, tmp_path)
    halo = engine.capabilities.halo
    planes = picture(64, 80)[: engine.capabilities.form.num_input_planes]
    whole = through(engine, planes)[0]
    session = engine.open_session(TileFormat(None, 8))
    for top, left, bottom, right in [(0, 0, 30, 41), (13, 7, 50, 60), (21, 33, 64, 80)]:
        tile = [plane[top:bottom, left:right] for plane in planes]
        (part, *_) = session.result(session.submit(tile))
        inside = [  # the part that sees no edge but the picture's
            slice(first + (halo if first else 0), last - (halo if last < length else 0))
            for first, last, length in ((top, bottom, 64), (left, right, 80))
        ]
        kept = part[
            tuple(
                slice(4 * (s.start - o), 4 * (s.stop - o))
                for s, o in zip(inside, (top, left), strict=True)
            )
        ]
        assert np.array_equal(kept, whole[tuple(slice(4 * s.start, 4 * s.stop) for s in inside)])


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("restore", [0.3, 1.0])
def test_blends_run_in_8_bits(name, restore, tmp_path):
    planes = picture(60, 70)
    made = through(engine_of(name, "int8", tmp_path, restore=restore), planes)
    true = through(engine_of(name, "float32", tmp_path, restore=restore), planes)
    assert psnr(made[0].astype(float), true[0].astype(float), 0) >= MIN_DB["int8"]


@pytest.mark.parametrize("name", MODELS)
def test_every_shipped_set_has_ranges_of_its_own_weights(name):
    for weight_set in available_sets(name):
        knob = {"restore": {"restore": 1.0}, "crisp": {"detail": 1.0}}.get(weight_set, {})
        ranges = ranges_of(blend_of(ModelConfig(name=name, **knob), model_spec(name)))
        assert len(ranges) == len(model_spec(name).network.widths)
        assert all(low < 0 < high for low, high in ranges.values())


def test_ranges_that_are_missing_damaged_or_of_other_weights(tmp_path):
    spec = model_spec("fast")
    shutil.copy(weights_path("fast"), tmp_path / "own.onnx")
    model = ModelConfig(weights=str(tmp_path / "own.onnx"))

    def opened():
        return open_engine("openvino", EngineConfig(threads=1, precision="int8"), model, spec)

    with pytest.raises(EngineError, match=r"no int8 ranges \(own\.int8\.json\).*srtrain calibrate"):
        opened()
    path = tmp_path / "own.int8.json"
    shutil.copy(ranges_path(weights_path("fast")), path)
    opened()
    for damage, said in [
        ({"onnx_sha256": "0" * 64}, "belong to other weights"),
        ({"activations": {"convolutions.1": 3}}, "cannot be read"),
        ({"activations": None}, "cannot be read"),
    ]:
        good = json.loads(path.read_text())
        path.write_text(json.dumps(good | damage))
        with pytest.raises(EngineError, match=said):
            opened()
        path.write_text(json.dumps(good))


def test_the_plan_says_what_is_computed_in():
    config = EngineConfig(threads=1, precision="int8")
    engine, reason = choose_engine(config, ModelConfig(name="fast"), model_spec("fast"))
    assert engine.capabilities.precision == "int8"
    assert reason.endswith("1 thread in 1 stream, in int8")


def test_other_engines_refuse_another_precision():
    config = EngineConfig(threads=1, precision="int8")
    with pytest.raises(EngineError, match="--precision int8 works with openvino only"):
        open_engine("pytorch", config, ModelConfig(name="fast"), model_spec("fast"))


def test_calibration_sees_what_comes_into_each_convolution(tmp_path):
    import torch

    spec = model_spec("fast")
    path = model_network(tmp_path / "made.onnx", spec)
    folder = tmp_path / "pictures"
    folder.mkdir()
    for seed in range(3):
        rgb = np.dstack(picture(200, 240, seed))
        cv2.imwrite(str(folder / f"{seed}.png"), rgb)
    written = json.loads(calibrate(path.with_suffix(".safetensors"), folder).read_text())
    assert written["num_pictures"] == 3
    from srstream.models.checkpoint import load_weights
    from srstream.models.networks import network_from_weights

    network = network_from_weights(load_weights(path.with_suffix(".safetensors")))
    gray = np.full((64, 64, 3), 200, np.uint8)
    ranges = activation_ranges(network, [gray])
    x = torch.full((1, 1, 16, 16), float((16 + 200 * 219 / 255) / 255))
    with torch.no_grad():
        first = network.activations[0](network.convolutions[0](x))
    low, high = ranges["convolutions.1"]
    assert low == pytest.approx(min(float(first.min()), 0.0), abs=1e-3)
    assert high == pytest.approx(max(float(first.max()), 0.0), abs=1e-3)
    model = ModelConfig(weights=str(path))
    made, true = (
        through(
            OpenVinoEngine(
                EngineConfig(threads=1, precision=precision), model, spec, cache_dir=tmp_path / "c"
            ),
            picture(40, 50),
        )[0].astype(float)
        for precision in ("int8", "float32")
    )
    assert psnr(made, true, 0) > 35


@pytest.mark.needs_data
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_it_costs_less_than_a_tenth_of_a_decibel(name, precision):
    pictures = load_test_set(data_folder("test/Set5"), 4)
    made, exact = (
        score(method_of(name, precision=p).upscale, pictures, 4).psnr_db
        for p in (precision, "float32")
    )
    print(f"{name} {precision}: {made - exact:+.3f} dB")
    assert made > exact - 0.1
