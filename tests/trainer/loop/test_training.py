"""Training runs: real ones, tiny, in processes of their own where they are killed."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from srstream.errors import UsageError, WeightsError
from srstream.models.checkpoint import load_weights
from srstream.models.networks import network_from_weights
from srstream.models.table import MODELS, weights_path
from tests.support.paths import REPOSITORY
from tests.support.training import KNOB, TINY_RUN, config_of, generator_config
from trainer.cli import evaluate
from trainer.config import PixelSection, load_config
from trainer.judge.evaluate import load_test_set
from trainer.loop.guards import TrainingCollapsedError
from trainer.loop.train import BEST_NAME
from trainer.networks import load_base, new_network, spec_of
from trainer.run import start_run
from trainer.ship.export import export, load_run
from trainer.ship.methods import method_of
from trainer.state import CHECKPOINT_NAME, load_state

TWO_STAGES = """
[adversarial]
iterations = {iterations}
discriminator_width = 4
perceptual = "random_vgg"
pixel_weight = 0.1
ldl_weight = 1.0
steadiness_weight = 0.1
ramp = 0.5
"""

DEVICE = 'crops = "device"\nread_iterations = 7\n[data.augmentation]\n'


def srtrain(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "trainer.cli", *map(str, arguments)]


def start(*arguments: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(srtrain(*arguments), cwd=REPOSITORY, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize(
    ("text", "killed_at", "base"),
    [
        # The second stage has begun: its discriminator and both optimizers must come back.
        (TINY_RUN.format(iterations=6) + TWO_STAGES.format(iterations=30), 20, None),
        pytest.param(TINY_RUN.format(iterations=50), 10, None, marks=pytest.mark.long),
        # Patches are drawn ahead there, and losses looked at later.
        (TINY_RUN.format(iterations=50) + DEVICE, 10, None),
        # The weights that it is mixed with must come back, and they aren't given again.
        pytest.param(
            TINY_RUN.format(iterations=50).replace("[run]", KNOB + "[run]"),
            10,
            "fast",
            marks=pytest.mark.long,
        ),
        # No picture stays in memory: half of the run reads them from the killed one's cache.
        pytest.param(
            TINY_RUN.format(iterations=50) + "memory_mib = 0\n", 10, None, marks=pytest.mark.long
        ),
    ],
    ids=["adversarial", "pixel", "device", "knob", "cache"],
)
def test_a_run_resumed_after_sigkill_equals_an_uninterrupted_one(
    tmp_path, pictures, text, killed_at, base
):
    """Weights, averages, optimizers, random states: bit for bit."""
    config = tmp_path / "tiny.toml"
    config.write_text(text)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    arguments = ["train", config, "--data", pictures, "--run-dir"]
    given = None if base is None else weights_path(base, ".safetensors")
    last = start_run(load_config(config), pictures, whole, base=given).iteration

    process = start(*arguments, killed, *([] if given is None else ["--base", given]))
    while iteration_in(killed) < killed_at:
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert killed_at <= iteration_in(killed) < last
    assert start(*arguments, killed, "--resume").wait(timeout=120) == 0

    expected, expected_metadata = load_state(whole / CHECKPOINT_NAME)
    tensors, metadata = load_state(killed / CHECKPOINT_NAME)
    assert metadata["iteration"] == expected_metadata["iteration"] == last
    assert metadata["samplers"] == expected_metadata["samplers"]
    assert tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensors[name], tensor), name


def iteration_in(run_dir: Path) -> int:
    path = run_dir / CHECKPOINT_NAME
    return load_state(path)[1]["iteration"] if path.exists() else 0


def test_a_collapse_stops_the_run_and_leaves_the_last_good_state(tmp_path, pictures, monkeypatch):
    """A rate that is far too high: the sentence says so, and what is on disk is finite."""
    monkeypatch.setattr("trainer.loop.guards.WINDOW", 5)
    config = config_of(400)
    pixel = config.pixel.model_copy(update={"learning_rate": 1.0, "clip_norm": 0.0, "ema": 0.0})
    run = config.run.model_copy(update={"checkpoint_iterations": 1})
    config = config.model_copy(update={"pixel": pixel, "run": run})
    with pytest.raises(TrainingCollapsedError, match="holds the last good state"):
        start_run(config, pictures, tmp_path / "run")
    tensors, metadata = load_state(tmp_path / "run" / CHECKPOINT_NAME)
    assert 0 < metadata["iteration"] < 400
    assert all(bool(t.isfinite().all()) for t in tensors.values() if t.is_floating_point())


@pytest.mark.long
def test_two_processes_train_one_network(tmp_path, pictures):
    """As `torchrun` starts them: they see different patches, and both go on after a resume."""
    config = tmp_path / "tiny.toml"
    config.write_text(TINY_RUN.format(iterations=4))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    arguments = ["-m", *srtrain("train", config, "--data", pictures, "--run-dir")[2:]]
    for name, extra in [("run", []), ("run", ["--resume"])]:
        command = [*torchrun, *arguments, str(tmp_path / name), *extra]
        subprocess.run(command, cwd=REPOSITORY, check=True, timeout=100, capture_output=True)
        config.write_text(TINY_RUN.format(iterations=6))
    metadata = load_state(tmp_path / "run" / CHECKPOINT_NAME)[1]
    assert metadata["iteration"] == 6
    assert len(set(metadata["samplers"])) == 2
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").open()]
    assert [line["event"] for line in lines] == ["start", "finish"] * 2


def test_sigterm_leaves_a_checkpoint_and_success(tmp_path, pictures):
    config = tmp_path / "long.toml"
    config.write_text(TINY_RUN.format(iterations=10**9))
    process = start("train", config, "--data", pictures, "--run-dir", tmp_path / "run")
    while not (tmp_path / "run" / CHECKPOINT_NAME).exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.terminate()
    assert process.wait(timeout=60) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").open()]
    assert [line["event"] for line in lines] == ["start", "stop"]
    assert load_state(tmp_path / "run" / CHECKPOINT_NAME)[1]["iteration"] == lines[-1]["iteration"]


def test_a_stretch_ends_at_its_time_and_the_next_goes_on(tmp_path, pictures):
    """At once, as the deadline has passed: a stop with a checkpoint, and nothing is lost."""
    config = tmp_path / "tiny.toml"
    config.write_text(TINY_RUN.format(iterations=4))
    arguments = ["train", config, "--data", pictures, "--run-dir", tmp_path / "run", "--resume"]
    assert start(*arguments, "--minutes", 0).wait(timeout=120) == 0
    assert load_state(tmp_path / "run" / CHECKPOINT_NAME)[1]["iteration"] == 0
    assert start(*arguments, "--minutes", 60).wait(timeout=120) == 0
    assert load_state(tmp_path / "run" / CHECKPOINT_NAME)[1]["iteration"] == 4
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").open()]
    assert [line["event"] for line in lines] == ["start", "stop", "start", "finish"]


def test_training_lowers_the_loss_and_exports(tmp_path, pictures, validation_pictures):
    """By the clock, with validation; then the four files, measured and with the data's license."""
    config = config_of(1)
    hours = config.pixel.model_copy(update={"iterations": None, "hours": 3 / 3600})
    config = config.model_copy(update={"pixel": hours})
    run_dir = tmp_path / "run"
    progress = start_run(config, pictures, run_dir, validation_dir=validation_pictures)
    assert 3.0 <= progress.elapsed_seconds < 6.0
    lines = [json.loads(line) for line in (run_dir / "log.jsonl").open()]
    assert [line["event"] for line in lines] == ["start", "validate", "finish"]
    best = load_weights(run_dir / BEST_NAME)
    assert best.spec == MODELS["fast"]
    assert best.recipe.startswith(f"pixel loss l1, {progress.iteration} iterations in 0.00 h")
    (panel,) = (run_dir / "panels").iterdir()
    assert cv2.imread(str(panel)).shape == (3 * 256, 3 * 256, 3)
    assert list((run_dir / "tensorboard").iterdir())

    (pictures / "LICENSES.md").write_text(
        "| group | source | licence |\n|---|---|---|\n| made | this test | CC0-1.0 |\n"
    )
    output = tmp_path / "weights"
    scores = export(run_dir, pictures, [validation_pictures], output)
    reached, bicubic = scores["validation"]
    assert reached.psnr_db == pytest.approx(lines[1]["psnr_db"], abs=0.01)
    assert reached.num_pictures == 3
    assert bicubic.psnr_db > 20

    card = (output / "fast.md").read_text()
    assert "| made | 2 | this test | CC0-1.0 |" in card
    assert "unfinished" not in card
    assert f"{reached.psnr_db:.2f}" in card
    assert (output / "fast.onnx").is_file()
    weights = load_weights(output / "fast.safetensors")
    assert weights.recipe.startswith("pixel loss l1")
    own, other = weights.tensors, load_weights(weights_path("fast", ".safetensors")).tensors
    both = tmp_path / "both"
    shipped = weights_path("fast", ".safetensors")
    export(run_dir, pictures, [], both, "crisp", mix=shipped, mix_share=0.25)
    made = load_weights(both / "fast.crisp.safetensors")
    for name, tensor in made.tensors.items():
        np.testing.assert_allclose(tensor, 0.75 * own[name] + 0.25 * other[name], atol=1e-6)
    assert made.recipe.startswith("0.25 of (") and ") and 0.75 of (pixel loss l1" in made.recipe
    listing = (output / "fast.pictures.txt").read_text().split()
    assert listing[1::2] == ["made/a.png", "made/b.png"]


def test_evaluate_measures_an_onnx_file_and_refuses_others(tmp_path, pictures, capsys):
    evaluate([str(weights_path("fast"))], [pictures / "made"])
    table = capsys.readouterr().out
    assert "### made" in table
    assert "| fast |" in table
    with pytest.raises(UsageError, match="neither a model"):
        evaluate([str(tmp_path / "absent.onnx")], [pictures / "made"])
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not ONNX")
    with pytest.raises(WeightsError, match="not an ONNX file"):
        evaluate([str(broken)], [pictures / "made"])
    broken.write_bytes(b"")
    with pytest.raises(WeightsError, match="not an ONNX file"):
        evaluate([str(broken)], [pictures / "made"])


def test_a_generator_s_body_is_trained_first_and_then_grown(
    tmp_path, pictures, validation_pictures
):
    """With a thin tail, then with its own, then with more blocks, which change nothing at first."""
    thin, whole = tmp_path / "thin", tmp_path / "whole"
    config = generator_config(1, thin_tail=True)
    start_run(config, pictures, thin, validation_dir=validation_pictures)
    config = generator_config(1)
    start_run(config, pictures, whole, base=thin / BEST_NAME, validation_dir=validation_pictures)

    before = new_network(spec_of(config)).state_dict()
    body, taken = (load_base(run / BEST_NAME, spec_of(config)).tensors for run in (thin, whole))
    np.testing.assert_allclose(
        body["blocks.0.first.weight"], taken["blocks.0.first.weight"], atol=2e-3
    )
    assert (
        np.abs(body["blocks.0.first.weight"] - before["blocks.0.first.weight"].numpy()).max() > 0.01
    )

    grown = load_base(whole / BEST_NAME, spec_of(generator_config(3)))
    assert "grown from 1 to 3 blocks" in grown.recipe
    assert grown.recipe.count("pixel loss l1, 2 iterations") == 2  # the thin one's are told too
    small = load_base(whole / BEST_NAME, spec_of(config))
    lr = torch.rand(1, 3, 9, 7)
    with torch.no_grad():
        (made,), (same,) = (network_from_weights(weights)(lr) for weights in (grown, small))
    assert torch.equal(made, same)

    (lr_picture, *_) = load_test_set(validation_pictures, 4)
    for run in (thin, whole):
        made = method_of(str(run)).upscale(lr_picture.lr)
        assert made.rgb_HW3().shape == lr_picture.hr_HW3.shape
    longer = config.model_copy(update={"pixel": PixelSection(iterations=3)})
    best = load_base(whole / BEST_NAME, spec_of(config))
    with (whole / "log.jsonl").open("a") as log:
        log.write('{"event": "validate", "iteration": 2, "score": 99.0}\n{"event": "val')
    start_run(longer, pictures, whole, validation_dir=validation_pictures, resume=True)
    assert load_base(whole / BEST_NAME, spec_of(config)).recipe == best.recipe  # 99 was better
    resumed = load_run(whole)
    assert resumed.progress.iteration == 3
    assert "going on from (pixel loss l1, 2 iter" in resumed.recipe()

    with pytest.raises(UsageError, match="num_blocks, thin_tail is for comparisons"):
        export(thin, pictures, [], tmp_path / "weights")
    with pytest.raises(UsageError, match="num_blocks"):
        export(whole, pictures, [], tmp_path / "weights")


def test_hours_on_a_core_are_not_those_by_the_clock(tmp_path, pictures):
    config = config_of(1)
    hours = config.pixel.model_copy(update={"iterations": None, "hours": 1 / 3600})
    run = config.run.model_copy(update={"clock": "cpu"})
    config = config.model_copy(update={"pixel": hours, "run": run})
    began, used = time.monotonic(), time.process_time()
    progress = start_run(config, pictures, tmp_path / "run")
    used, lasted = time.process_time() - used, time.monotonic() - began
    assert 1.0 <= progress.elapsed_seconds <= used
    assert used <= 1.5 * lasted + 1.0


def test_a_checkpoint_is_not_overwritten_by_a_new_run(tmp_path, pictures):
    run_dir = tmp_path / "run"
    start_run(config_of(1), pictures, run_dir)
    with pytest.raises(UsageError, match="--resume"):
        start_run(config_of(1), pictures, run_dir)
    with pytest.raises(UsageError, match="another model, seed"):
        start_run(config_of(2).model_copy(update={"seed": 5}), pictures, run_dir, resume=True)
    (pictures / "made" / "a.png").unlink()
    with pytest.raises(UsageError, match="no longer those"):
        start_run(config_of(2), pictures, run_dir, resume=True)


def test_a_finished_run_may_be_made_longer(tmp_path, pictures):
    start_run(config_of(2), pictures, tmp_path / "run")
    progress = start_run(config_of(5), pictures, tmp_path / "run", resume=True)
    assert (progress.iteration, progress.stage) == (5, 0)


def test_a_foreign_checkpoint_is_refused(tmp_path):
    path = tmp_path / CHECKPOINT_NAME
    torch.save({"state": {}}, path)
    with pytest.raises(WeightsError, match="not a training checkpoint"):
        load_state(path)
