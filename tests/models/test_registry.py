"""The user's own models are added, listed, used and removed by name."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys

import av
import numpy as np
import pytest
from typer.testing import CliRunner

import srstream
from srstream.cli.main import app
from srstream.config import JobConfig, ModelConfig
from srstream.errors import UsageError, WeightsError
from srstream.models.checkpoint import Weights, load_weights, safetensors_bytes
from srstream.models.registry import (
    REGISTRY_VARIABLE,
    add_model,
    find_model,
    registered_models,
    remove_model,
    resolved,
)
from srstream.models.table import available_models, weights_path
from tests.support import clips
from tests.support.paths import REPOSITORY


@pytest.fixture(autouse=True)
def registry(tmp_path, monkeypatch):
    monkeypatch.setenv(REGISTRY_VARIABLE, str(tmp_path / "registry"))
    return tmp_path / "registry"


@pytest.fixture
def own_weights(tmp_path):
    """`fast` with an empty last layer: its output is each sample repeated 4 x 4 times."""
    weights = load_weights(weights_path("fast", ".safetensors"))
    last = f"convolutions.{len(weights.spec.network.widths)}"
    emptied = {f"{last}.{kind}": weights.tensors[f"{last}.{kind}"] for kind in ("weight", "bias")}
    tensors = weights.tensors | {name: np.zeros_like(tensor) for name, tensor in emptied.items()}
    path = tmp_path / "cam1.safetensors"
    path.write_bytes(safetensors_bytes(Weights(weights.spec, tensors, "emptied")))
    return path


def luma_of(path):
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray()[: frame.height] for frame in container.decode(video=0)])


def invoke(*arguments):
    return CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=True)


def test_added_weights_are_listed_shown_and_removed(own_weights, registry):
    assert "use them with --model cam1" in invoke("models", "add", own_weights).output
    listed = json.loads(invoke("models", "list", "--json").output)
    assert [entry["name"] for entry in listed] == [*available_models(), "cam1"]
    assert "cam1" in invoke("models", "list").output
    shown = json.loads(invoke("models", "show", "cam1", "--json").output)
    assert shown["network"] == "fast"
    assert shown["recipe"] == "emptied"
    assert shown["sets"] == ["own"]
    assert "emptied" in invoke("models", "show", "cam1").output
    assert "card" in invoke("models", "show", "fast").output
    assert invoke("models", "remove", "cam1").exit_code == 0
    assert list(registry.iterdir()) == []
    assert find_model("cam1") is None


def test_a_video_and_pictures_are_enhanced_by_a_registered_name(own_weights, tmp_path):
    import cv2

    add_model(own_weights)
    source = clips.cfr(tmp_path / "in.mp4", frames=3)
    picture = tmp_path / "picture.png"
    noise = np.random.default_rng(0).integers(40, 200, (24, 32), np.uint8)
    cv2.imwrite(str(picture), np.repeat(noise[..., None], 3, axis=2))
    made = {}
    for name in ("fast", "cam1"):
        output = tmp_path / f"{name}.mkv"
        config = JobConfig(
            model=ModelConfig(name=name, restore=0.0),
            encode={"codec": "ffv1"},
        )
        srstream.enhance(source, output, config=config)
        made[name] = luma_of(output)
        list(srstream.enhance_pictures(picture, tmp_path / f"{name}.png", config=config))
        made[name + " picture"] = cv2.imread(str(tmp_path / f"{name}.png"))
    repeated = luma_of(source).repeat(4, axis=1).repeat(4, axis=2)
    assert np.array_equal(made["cam1"], repeated)
    assert not np.array_equal(made["fast"], repeated)
    wanted = noise.repeat(4, axis=0).repeat(4, axis=1)[..., None].astype(int)
    assert np.abs(made["cam1 picture"] - wanted).max() <= 1
    assert np.abs(made["fast picture"] - wanted).max() > 10


def test_the_plan_takes_a_registered_name_and_knows_no_knobs_of_it(own_weights, tmp_path):
    add_model(own_weights)
    source = clips.cfr(tmp_path / "in.mp4", frames=3)
    assert "no knobs" in invoke("plan", source, "--model", "cam1", "--verbose").output
    refused = invoke("plan", source, "--model", "cam1", "--restore", "0.5")
    assert isinstance(refused.exception, UsageError)


@pytest.mark.parametrize("name", ["", "../cam", "Cam", "a" * 80, ".hidden"])
def test_odd_names_are_refused(own_weights, name):
    with pytest.raises(UsageError, match="cannot be a model's name"):
        add_model(own_weights, name)
    assert find_model(name) is None


def test_taken_names_are_refused(own_weights):
    with pytest.raises(UsageError, match="ships with srstream"):
        add_model(own_weights, "fast")
    add_model(own_weights)
    with pytest.raises(UsageError, match="registered already; use --replace"):
        add_model(own_weights)
    assert add_model(own_weights, replace=True).name == "cam1"
    assert [model.name for model in registered_models()] == ["cam1"]


def test_damaged_and_missing_files_are_refused(own_weights, tmp_path, registry):
    with pytest.raises(WeightsError, match="no such file"):
        add_model(tmp_path / "missing.safetensors")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(own_weights.read_bytes()[:-50])
    with pytest.raises(WeightsError, match=r"broken.safetensors: cannot be read"):
        add_model(broken)
    assert not registry.exists()


def test_a_half_removed_model_is_none(own_weights, registry):
    add_model(own_weights)
    (registry / "cam1.onnx").unlink()
    assert find_model("cam1") is None
    with pytest.raises(UsageError, match="no model 'cam1' is registered; there are: fast"):
        remove_model("cam1")
    (registry / "other.json").write_text("{")
    assert registered_models() == []


def test_an_unknown_name_says_what_there_is(own_weights):
    add_model(own_weights)
    with pytest.raises(UsageError, match=r"--model cam2: .* there are: fast.*, cam1"):
        resolved(ModelConfig(name="cam2"))
    with pytest.raises(UsageError, match="leave the others out"):
        resolved(ModelConfig(name="cam1", weights="x.onnx"))


def test_a_registry_that_cannot_be_written_is_said(own_weights, registry):
    registry.parent.mkdir(exist_ok=True)
    shutil.rmtree(registry, ignore_errors=True)
    registry.write_text("a file in the way")
    with pytest.raises(UsageError, match="the registry cannot be written"):
        add_model(own_weights)


@pytest.fixture
def without_onnx(tmp_path):
    """The environment of a process in which the package onnx cannot be imported."""
    blocker = tmp_path / "blocked"
    blocker.mkdir()
    (blocker / "sitecustomize.py").write_text(
        "import sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name.partition('.')[0] == 'onnx':\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Finder())\n"
    )
    return os.environ | {"PYTHONPATH": f"{blocker}:{REPOSITORY}"}


def added(path, environment):
    command = [sys.executable, "-m", "srstream", "models", "add", str(path)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_a_missing_package_is_named_with_a_command_that_installs_it(own_weights, without_onnx):
    done = added(own_weights, without_onnx)
    assert done.returncode == 2 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    said, _, command = line.partition("; install it with: ")
    assert said.endswith(
        "cam1.safetensors: adding a model needs the package onnx, which is not installed"
    )
    *words, package = shlex.split(command)
    assert words == [sys.executable, "-m", "pip", "install"]
    assert set(package.removeprefix("onnx").split(",")) == {">=1.18", "<2"}
    assert find_model("cam1") is None


@pytest.mark.parametrize("name", ["cam.onnx", "cam.pth"])
def test_other_kinds_of_weights_ask_for_no_package(name, tmp_path, without_onnx):
    (tmp_path / name).write_bytes(b"weights of some kind")
    done = added(tmp_path / name, without_onnx)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1 and "from a .safetensors file" in line and "pip" not in line
