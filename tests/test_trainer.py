"""Training runs: real ones, tiny, in processes of their own where they are killed."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from srstream.errors import ConfigError, UsageError, WeightsError
from srstream.models.checkpoint import load_weights
from srstream.models.table import MODELS, WEIGHTS_DIR, weights_path
from trainer.cli import evaluate
from trainer.config import TrainConfig, load_config
from trainer.data import PatchSampler, find_pictures, load_pairs, read_rgb
from trainer.degrade import bicubic_resize
from trainer.evaluate import load_test_set, score
from trainer.export import export, openvino_upscaler
from trainer.state import CHECKPOINT_NAME, load_state
from trainer.train import learning_rate, resumed_config, train

REPOSITORY = Path(__file__).parents[1]
DATA = Path(os.environ.get("SRSTREAM_DATA", REPOSITORY.parent / "shared" / "data"))

SET5_PSNR_DB = {"fast": 30.4}
"""What shipped weights must reach; bicubic reads 28.43."""

TINY_RUN = """
model = "fast"
seed = 7
[data]
patch_size = 12
batch_size = 2
[pixel]
iterations = {iterations}
[run]
num_threads = 1
checkpoint_iterations = 10
"""


def data_folder(name: str) -> Path:
    folder = DATA / name
    if not folder.is_dir():
        pytest.skip(f"{folder} isn't there; set SRSTREAM_DATA to the folder that holds {name}")
    return folder


@pytest.fixture
def pictures(tmp_path):
    """Two pictures with detail, in a group, and one that is too small for a patch."""
    folder = tmp_path / "pictures" / "made"
    folder.mkdir(parents=True)
    random = np.random.default_rng(4)
    for name, height, width in [("a", 96, 120), ("b", 101, 83), ("small", 40, 200)]:
        rough = random.uniform(0, 255, (height // 6 + 1, width // 6 + 1, 3))
        picture = np.clip(bicubic_resize(rough, height, width), 0, 255).astype(np.uint8)
        cv2.imwrite(str(folder / f"{name}.png"), picture)
    return folder.parent


def config_of(num_iterations: int) -> TrainConfig:
    return TrainConfig.model_validate(
        {
            "model": "fast",
            "data": {"patch_size": 12, "batch_size": 2},
            "pixel": {"iterations": num_iterations},
            "run": {"num_threads": 1},
        }
    )


def srtrain(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "trainer.cli", *map(str, arguments)]


def start(*arguments: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(srtrain(*arguments), cwd=REPOSITORY, stdout=subprocess.DEVNULL)


def test_a_run_resumed_after_sigkill_equals_an_uninterrupted_one(tmp_path, pictures):
    """Weights, averages, optimiser, random states: bit for bit."""
    config = tmp_path / "tiny.toml"
    config.write_text(TINY_RUN.format(iterations=50))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    arguments = ["train", config, "--data", pictures, "--run-dir"]
    train(load_config(config), pictures, whole)

    process = start(*arguments, killed)
    while not (killed / CHECKPOINT_NAME).exists():
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 0 < load_state(killed / CHECKPOINT_NAME)[1]["iteration"] < 50
    assert start(*arguments, killed, "--resume").wait(timeout=120) == 0

    expected, expected_metadata = load_state(whole / CHECKPOINT_NAME)
    tensors, metadata = load_state(killed / CHECKPOINT_NAME)
    assert metadata["iteration"] == expected_metadata["iteration"] == 50
    assert metadata["sampler"] == expected_metadata["sampler"]
    assert tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensors[name], tensor), name


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


def test_training_lowers_the_loss_and_exports(tmp_path, pictures):
    """By the clock, with validation; then the four files, measured and with the data's licence."""
    config = config_of(1)
    hours = config.pixel.model_copy(update={"iterations": None, "hours": 3 / 3600})
    config = config.model_copy(update={"pixel": hours})
    progress = train(config, pictures, tmp_path / "run", validation_dir=pictures / "made")
    assert 3.0 <= progress.elapsed_seconds < 6.0
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").open()]
    assert [line["event"] for line in lines] == ["start", "validate", "finish"]

    (pictures / "LICENSES.md").write_text(
        "| group | source | licence |\n|---|---|---|\n| made | this test | CC0-1.0 |\n"
    )
    output = tmp_path / "weights"
    scores = export(tmp_path / "run", pictures, [pictures / "made"], output)
    reached, bicubic = scores["made"]
    assert reached.psnr_db == pytest.approx(lines[1]["psnr_db"], abs=0.01)
    assert reached.num_pictures == 3
    assert bicubic.psnr_db > 20

    card = (output / "fast.md").read_text()
    assert "| made | 2 | this test | CC0-1.0 |" in card
    assert "unfinished" not in card
    assert f"{reached.psnr_db:.2f}" in card
    assert (output / "fast.onnx").is_file()
    assert load_weights(output / "fast.safetensors").recipe.startswith("pixel loss l1")
    listing = (output / "fast.pictures.txt").read_text().split()
    assert listing[1::2] == ["made/a.png", "made/b.png"]


def test_evaluate_measures_an_onnx_file_and_refuses_others(tmp_path, pictures, capsys):
    evaluate(str(weights_path("fast")), [pictures / "made"])
    table = capsys.readouterr().out
    assert "fast, on luma" in table
    assert "made" in table
    with pytest.raises(UsageError, match="no such file"):
        evaluate(str(tmp_path / "absent.onnx"), [pictures / "made"])
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not ONNX")
    with pytest.raises(WeightsError, match="not an ONNX file"):
        evaluate(str(broken), [pictures / "made"])
    broken.write_bytes(b"")
    with pytest.raises(WeightsError, match="not one that srtrain exported"):
        evaluate(str(broken), [pictures / "made"])


def test_a_checkpoint_is_not_overwritten_by_a_new_run(tmp_path, pictures):
    train(config_of(1), pictures, tmp_path)
    with pytest.raises(UsageError, match="--resume"):
        train(config_of(1), pictures, tmp_path)
    with pytest.raises(UsageError, match="another model, seed"):
        train(config_of(2).model_copy(update={"seed": 5}), pictures, tmp_path, resume=True)
    (pictures / "made" / "a.png").unlink()
    with pytest.raises(UsageError, match="no longer holds"):
        train(config_of(2), pictures, tmp_path, resume=True)


def test_a_resumed_run_may_be_longer_and_keeps_its_length_by_default():
    begun = config_of(100)
    assert resumed_config(config_of(200), begun).pixel.iterations == 200
    unsaid = begun.model_copy(update={"pixel": begun.pixel.model_copy(update={"iterations": None})})
    assert resumed_config(unsaid, begun) == begun


def test_a_foreign_checkpoint_is_refused(tmp_path):
    path = tmp_path / CHECKPOINT_NAME
    torch.save({"state": {}}, path)
    with pytest.raises(WeightsError, match="not a training checkpoint"):
        load_state(path)


def test_without_a_length_no_run_starts(tmp_path, pictures):
    with pytest.raises(UsageError, match="--hours"):
        train(TrainConfig(model="fast"), pictures, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_learning_rate_rises_and_falls_once():
    stage = config_of(1).pixel
    rates = [learning_rate(done, stage) for done in np.linspace(0, 1, 1001)]
    peak = int(np.argmax(rates))
    assert peak == pytest.approx(1000 * stage.warmup, abs=1)
    assert rates[peak] == pytest.approx(stage.learning_rate)
    assert rates[-1] == pytest.approx(stage.final_learning_rate)
    assert all(np.diff(rates[:peak]) > 0)
    assert all(np.diff(rates[peak:]) <= 0)


def test_patches_are_aligned_and_repeat_from_a_saved_state(pictures, caplog):
    pairs = load_pairs(pictures, scale=4, patch_size=12)
    assert [pair.path.stem for pair in pairs] == ["a", "b"]
    assert "small.png: 200x40 is smaller than a patch of 48" in caplog.text
    sampler = PatchSampler(pairs, scale=4, patch_size=12, batch_size=64, seed=0)
    state = sampler.state()
    lr_B1HW, hr_B1HW = sampler.next_batch()
    assert (lr_B1HW.shape, hr_B1HW.shape) == ((64, 1, 12, 12), (64, 1, 48, 48))
    box = torch.nn.functional.avg_pool2d(hr_B1HW, 4)
    assert (box - lr_B1HW).abs().max() < 0.05  # a smooth picture: misaligned, it is off by 0.3
    sampler.set_state(state)
    assert torch.equal(sampler.next_batch()[0], lr_B1HW)


def test_all_eight_orientations_occur(pictures):
    pairs = load_pairs(pictures, scale=4, patch_size=20)[1:]  # 101x83: one column of positions
    sampler = PatchSampler(pairs, scale=4, patch_size=20, batch_size=256, seed=0)
    lr_B1HW, _ = sampler.next_batch()
    lr_HW = torch.from_numpy(pairs[0].lr_HW[:20, :20]).float() / 255
    turned = [torch.rot90(lr_HW, quarter) for quarter in range(4)]
    for orientation in turned + [patch.fliplr() for patch in turned]:
        assert any(torch.equal(orientation, patch[0]) for patch in lr_B1HW)


def test_a_folder_without_usable_pictures_is_refused(tmp_path, caplog):
    with pytest.raises(UsageError, match="no such folder"):
        find_pictures(tmp_path / "absent")
    with pytest.raises(UsageError, match="holds no pictures"):
        find_pictures(tmp_path)
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    with pytest.raises(UsageError, match="no picture is at least 48"):
        load_pairs(tmp_path, scale=4, patch_size=12)
    assert "broken.png: cannot be decoded" in caplog.text


@pytest.mark.parametrize("path", sorted((REPOSITORY / "configs").glob("fast*.toml")))
def test_shipped_training_configs_are_valid(path):
    assert load_config(path).model in MODELS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model = 'fast'\nmodle = 1", "modle: Extra inputs"),
        ("model = 'fast'\n[data]\npatch_size = 1", "data.patch_size: .*greater than or equal to 8"),
        ("model = 'fast'\n[pixel]\nhours = 1\niterations = 1", "hours or iterations, not both"),
        ("model = ", "not valid TOML"),
    ],
)
def test_a_wrong_config_is_refused_by_field(tmp_path, text, message):
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(path)


@pytest.mark.needs_data
@pytest.mark.parametrize("name", MODELS)
def test_no_test_picture_was_trained_on(name):
    """Neither as a file nor decoded; and the listing is that of the pictures at hand."""
    listing = dict(
        reversed(line.split("  ", 1))
        for line in (WEIGHTS_DIR / f"{name}.pictures.txt").read_text().splitlines()
    )
    test_pictures = find_pictures(data_folder("test"))
    assert len(test_pictures) == 119
    test_hashes = {hashlib.sha256(path.read_bytes()).hexdigest() for path in test_pictures}
    assert not test_hashes & set(listing.values())

    train_folder = data_folder("train")
    trained = [train_folder / picture for picture in listing]
    for path, digest in zip(trained, listing.values(), strict=True):
        assert hashlib.sha256(path.read_bytes()).hexdigest() == digest
    test_pixels = {decoded_hash(path) for path in test_pictures}
    assert not test_pixels & {decoded_hash(path) for path in trained}


def decoded_hash(path: Path) -> str:
    rgb = read_rgb(path)
    return hashlib.sha256(repr(rgb.shape).encode() + rgb.tobytes()).hexdigest()


@pytest.mark.needs_data
@pytest.mark.parametrize("name", MODELS)
def test_shipped_weights_reach_what_their_card_says(name):
    card = (WEIGHTS_DIR / f"{name}.md").read_text()
    stated = re.search(r"\| Set5 \| 5 \| ([\d.]+) \| ([\d.]+) \|", card)
    assert stated
    upscale = openvino_upscaler(weights_path(name).read_bytes())
    reached = score(upscale, load_test_set(data_folder("test/Set5"), 4), 4)
    assert reached.psnr_db == pytest.approx(float(stated[1]), abs=0.01)
    assert reached.psnr_db >= SET5_PSNR_DB[name]
    assert reached.ssim == pytest.approx(float(stated[2]), abs=0.001)
