"""The engines of made networks that the tests of the enhancer share."""

from __future__ import annotations

import pytest

from tests.support.enhancer import COLOR_SPECS, engine_of, repeating_engine
from tests.support.networks import made_network, nearest_network


@pytest.fixture(scope="package")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    return engine_of(made_network(folder / "made.onnx", layers=4), folder)


@pytest.fixture(scope="package")
def nearest(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nearest")
    return engine_of(nearest_network(folder / "nearest.onnx"), folder)


@pytest.fixture(scope="module", params=COLOR_SPECS)
def color_engine(request, tmp_path_factory):
    return repeating_engine(request.param, tmp_path_factory)
