"""The two knobs: sets of weights are mixed exactly when they are loaded, or refused."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from srstream.config import EngineConfig, ModelConfig
from srstream.engines.contract import TileFormat
from srstream.engines.openvino.engine import OpenVinoEngine
from srstream.errors import UsageError, WeightsError
from srstream.models import table
from srstream.models.blend import blend_of
from srstream.models.table import ModelSpec, ResidualGenerator, Stack
from tests.support.networks import model_network

SPECS = {
    "fast": ModelSpec("fast", "luma", Stack((6, 6))),
    "balanced": ModelSpec("balanced", "yuv420", Stack((6, 6))),
    "srgan": ModelSpec("srgan", "rgb", ResidualGenerator(channels=8, num_blocks=1)),
}
KNOBS = {"restore": 0.5, "detail": 0.25}
SHARES = (0.25, 0.5, 0.25)


@pytest.fixture(params=SPECS)
def spec(request, tmp_path, monkeypatch):
    """A model that has all three sets of weights."""
    made = SPECS[request.param]
    monkeypatch.setattr(table, "WEIGHTS_DIR", tmp_path)
    for seed, suffix in enumerate(["", ".restore", ".crisp"]):
        model_network(tmp_path / f"{made.name}{suffix}.onnx", made, seed=seed)
    return made


def engine_of(spec, cache_dir, **model):
    config = ModelConfig(name=spec.name, **model)
    return OpenVinoEngine(EngineConfig(threads=2), config, spec, cache_dir=cache_dir)


def planes_out(engine, seed=7):
    form = engine.capabilities.form
    tile = np.random.default_rng(seed).integers(0, 256, (form.num_input_planes, 20, 24), np.uint8)
    matrix = 1 if engine.capabilities.color_form == "rgb" else None
    session = engine.open_session(TileFormat((20, 24), 8, matrix))
    return session.result(session.submit(tile))


def mixed_by_hand(folder, name):
    graphs = [onnx.load(folder / f"{name}{suffix}.onnx") for suffix in ("", ".restore", ".crisp")]
    for constants in zip(*(graph.graph.initializer for graph in graphs), strict=True):
        arrays = [numpy_helper.to_array(constant) for constant in constants]
        mixed = sum(s * a.astype(np.float64) for s, a in zip(SHARES, arrays, strict=True))
        mixed = np.asarray(mixed, arrays[0].dtype)
        constants[0].CopyFrom(numpy_helper.from_array(mixed, constants[0].name))
    path = folder / "by_hand.onnx"
    onnx.save(graphs[0], path)
    return path


def test_a_blend_is_the_weighted_mean_of_the_sets(spec, tmp_path):
    by_hand = mixed_by_hand(tmp_path, spec.name)
    expected = planes_out(engine_of(spec, tmp_path, weights=str(by_hand)))
    made = planes_out(engine_of(spec, tmp_path, **KNOBS))
    for one, other in zip(made, expected, strict=True):
        assert np.abs(one.astype(int) - other).max() <= 1
    alone = planes_out(engine_of(spec, tmp_path))
    assert np.abs(alone[0].astype(int) - expected[0]).max() > 5


@pytest.mark.parametrize(("model", "file"), [({}, ""), ({"restore": 1.0}, ".restore")])
def test_the_ends_are_the_sets_themselves(spec, tmp_path, model, file):
    path = tmp_path / f"{spec.name}{file}.onnx"
    expected = planes_out(engine_of(spec, tmp_path, weights=str(path)))
    for one, other in zip(planes_out(engine_of(spec, tmp_path, **model)), expected, strict=True):
        assert np.abs(one.astype(int) - other).max() <= 1


def test_knobs_tell_blends_apart(spec, tmp_path):
    """The cache of compiled graphs and the fingerprint of a resumed job depend on the knobs."""
    shas = {
        engine_of(spec, tmp_path, **model).capabilities.weights_sha256
        for model in ({}, {"restore": 0.5}, {"restore": 0.6}, {"detail": 0.5}, KNOBS)
    }
    assert len(shas) == 5
    first = planes_out(engine_of(spec, tmp_path, restore=0.5))
    again = planes_out(engine_of(spec, tmp_path, restore=0.5))
    assert np.array_equal(first[0], again[0])


def test_only_the_faithful_file_is_read_while_no_knob_is_turned(spec, tmp_path):
    (tmp_path / f"{spec.name}.restore.onnx").unlink()
    assert len(blend_of(ModelConfig(name=spec.name), spec).files) == 1
    with pytest.raises(
        UsageError, match=r"--restore 0\.5: .* has no restore weights, only faithful"
    ):
        blend_of(ModelConfig(name=spec.name, restore=0.5), spec)


def test_other_weights_have_no_knobs(spec, tmp_path):
    path = str(tmp_path / f"{spec.name}.onnx")
    with pytest.raises(UsageError, match="with other weights"):
        blend_of(ModelConfig(name=spec.name, weights=path, detail=0.1), spec)


def test_sets_of_different_networks_are_refused(tmp_path, monkeypatch):
    spec = SPECS["fast"]
    monkeypatch.setattr(table, "WEIGHTS_DIR", tmp_path)
    model_network(tmp_path / "fast.onnx", spec)
    model_network(tmp_path / "fast.crisp.onnx", ModelSpec("fast", "luma", Stack((6, 7))))
    with pytest.raises(WeightsError, match=r"fast\.crisp\.onnx: belongs to another network"):
        planes_out(engine_of(spec, tmp_path, detail=0.5))
    model_network(tmp_path / "fast.crisp.onnx", ModelSpec("fast", "luma", Stack((6, 6, 6))))
    with pytest.raises(WeightsError, match=r"fast\.crisp\.onnx: belongs to another network"):
        planes_out(engine_of(spec, tmp_path, detail=0.5))


def test_a_reference_evaluator_agrees(tmp_path, monkeypatch):
    """The comparison does not rest on OpenVINO alone."""
    spec = SPECS["fast"]
    monkeypatch.setattr(table, "WEIGHTS_DIR", tmp_path)
    for seed, suffix in enumerate(["", ".restore", ".crisp"]):
        model_network(tmp_path / f"fast{suffix}.onnx", spec, seed=seed)
    tile = np.random.default_rng(7).integers(0, 256, (1, 20, 24), np.uint8)
    graph = onnx.load(mixed_by_hand(tmp_path, "fast"))
    (sr,) = ReferenceEvaluator(graph).run(None, {"y": (tile[None] / 255).astype("f4")})
    (made,) = planes_out(engine_of(spec, tmp_path, **KNOBS))
    assert np.abs(made - np.clip(sr[0, 0] * 255.0, 0, 255)).max() <= 0.51
