"""Training runs: real ones, tiny, in processes of their own where they are killed."""

import hashlib
import json
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

from research.sparse import load_sparse_config
from srstream.errors import ConfigError, UsageError, WeightsError
from srstream.models.checkpoint import load_weights
from srstream.models.networks import network_from_weights
from srstream.models.table import (
    MODELS,
    WEIGHTS_DIR,
    available_models,
    available_sets,
    weights_path,
    weights_stem,
)
from tests.support.paths import REPOSITORY
from tests.support.training_data import data_folder
from trainer.cli import evaluate
from trainer.config import DataSection, NetworkSection, PixelSection, TrainConfig, load_config
from trainer.data.codec import x264_at
from trainer.data.degrade import bicubic_resize
from trainer.data.pairs import PatchSampler, find_pictures, load_pairs, read_rgb
from trainer.judge.clipset import automatic_restore, load_test_clip
from trainer.judge.evaluate import bicubic_upscaler, load_test_set, score
from trainer.loop.guards import TrainingCollapsedError
from trainer.loop.train import BEST_NAME, rate_factor, resumed_config
from trainer.networks import load_base, new_network, spec_of
from trainer.run import start_run
from trainer.ship.export import export, load_run
from trainer.ship.methods import method_of
from trainer.state import CHECKPOINT_NAME, load_state

SET5_PSNR_DB = {"fast": 30.6, "balanced": 31.0, "srgan": 31.0}
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


@pytest.fixture
def validation_pictures(tmp_path):
    """Three others."""
    folder = tmp_path / "validation"
    folder.mkdir()
    random = np.random.default_rng(5)
    for name, height, width in [("c", 96, 120), ("d", 101, 83), ("e", 60, 204)]:
        rough = random.uniform(0, 255, (height // 6 + 1, width // 6 + 1, 3))
        picture = np.clip(bicubic_resize(rough, height, width), 0, 255).astype(np.uint8)
        cv2.imwrite(str(folder / f"{name}.png"), picture)
    return folder


KNOB = """
sample_knob = true
[network]
flat = true
[degradation]
codecs = ["libx264"]
clips_per_picture = 1
frames_per_clip = 4
[data.augmentation]
"""

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


@pytest.mark.parametrize(
    ("text", "killed_at", "base"),
    [
        (TINY_RUN.format(iterations=50), 10, None),
        # The second stage has begun: its discriminator and both optimizers must come back.
        (TINY_RUN.format(iterations=6) + TWO_STAGES.format(iterations=30), 20, None),
        # The weights that it is mixed with must come back, and they aren't given again.
        (TINY_RUN.format(iterations=50).replace("[run]", KNOB + "[run]"), 10, "fast"),
    ],
    ids=["pixel", "adversarial", "knob"],
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
    with pytest.raises(WeightsError, match="not one that srtrain exported"):
        evaluate([str(broken)], [pictures / "made"])


def generator_config(num_blocks: int, *, thin_tail: bool = False) -> TrainConfig:
    return TrainConfig.model_validate(
        {
            "model": "srgan",
            "network": {"num_blocks": num_blocks, "thin_tail": thin_tail},
            "data": {"patch_size": 12, "batch_size": 1},
            "pixel": {"iterations": 2},
            "run": {"num_threads": 1},
        }
    )


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


def test_a_knob_without_damage_or_without_another_end_is_refused(tmp_path, pictures):
    with pytest.raises(ValueError, match="needs a"):
        TrainConfig(model="fast", pixel=PixelSection(iterations=1, sample_knob=True))
    path = tmp_path / "knob.toml"
    path.write_text(TINY_RUN.format(iterations=1).replace("[run]", KNOB + "[run]"))
    with pytest.raises(UsageError, match="use --base"):
        start_run(load_config(path), pictures, tmp_path / "run")


def test_a_generator_cannot_be_flat(tmp_path, pictures):
    config = generator_config(1)
    config = config.model_copy(update={"network": NetworkSection(num_blocks=1, flat=True)})
    with pytest.raises(ConfigError, match="has no anchor"):
        start_run(config, pictures, tmp_path / "run")


def test_without_a_length_no_run_starts(tmp_path, pictures):
    with pytest.raises(UsageError, match="--hours"):
        start_run(TrainConfig(model="fast", pixel=PixelSection()), pictures, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_learning_rate_rises_and_falls_once():
    stage = config_of(1).pixel
    rates = [stage.learning_rate * rate_factor(done, stage) for done in np.linspace(0, 1, 1001)]
    peak = int(np.argmax(rates))
    assert peak == pytest.approx(1000 * stage.warmup, abs=1)
    assert rates[peak] == pytest.approx(stage.learning_rate)
    assert rates[-1] == pytest.approx(stage.final_learning_rate)
    assert all(np.diff(rates[:peak]) > 0)
    assert all(np.diff(rates[peak:]) <= 0)


@pytest.mark.parametrize("name", MODELS)
def test_patches_are_aligned_and_repeat_from_a_saved_state(pictures, name, caplog):
    pairs = load_pairs(pictures, MODELS[name], DataSection(patch_size=12))
    assert [pair.name for pair in pairs] == ["made/a.png", "made/b.png"]
    assert "small.png: 200x40 is smaller than a patch of 48" in caplog.text
    sampler = PatchSampler(pairs, patch_size=12, batch_size=64, seed=0)
    state = sampler.state()
    batch = sampler.next_batch()
    form = MODELS[name].form
    assert batch.lr_BCHW.shape == (64, form.num_input_planes, 12, 12)
    first = 0
    for planes, group in zip(batch.hr, form.outputs, strict=True):
        assert planes.shape == (64, group.num_planes, 12 * group.scale, 12 * group.scale)
        box = torch.nn.functional.avg_pool2d(planes, group.scale)
        lr = batch.lr_BCHW[:, first : first + group.num_planes]
        # A smooth picture: misaligned by a pixel, the mean is off by 0.05 and more.
        assert (box - lr).abs().mean() < (0.05 if group.scale == 2 else 0.01)
        first += group.num_planes
    sampler.set_state(state)
    assert torch.equal(sampler.next_batch().lr_BCHW, batch.lr_BCHW)


@pytest.mark.parametrize("name", MODELS)
def test_shifted_crops_show_the_same_places(pictures, name):
    pairs = load_pairs(pictures, MODELS[name], DataSection(patch_size=16))
    sampler = PatchSampler(pairs, patch_size=16, batch_size=4, seed=0, shifts=True)
    offsets = set()
    for _ in range(30):
        batch = sampler.next_batch()
        lr, (rows, columns) = batch.shifted
        offsets.add((rows, columns))
        assert lr.shape == (4, MODELS[name].form.num_input_planes, 15, 15)
        original = batch.hr[0][:, :, rows : rows + 60, columns : columns + 60]
        box = torch.nn.functional.avg_pool2d(original, 4)
        num_planes = MODELS[name].form.outputs[0].num_planes
        assert (box - lr[:, :num_planes])[:, :, 2:-2, 2:-2].abs().max() < 0.04
    steps = {0, 2} if name == "balanced" else {0, 1, 2, 3}
    assert {rows for rows, _ in offsets} == {columns for _, columns in offsets} == steps


def test_all_eight_orientations_occur(pictures):
    pairs = load_pairs(pictures, MODELS["fast"], DataSection(patch_size=20))[1:]
    sampler = PatchSampler(pairs, patch_size=20, batch_size=256, seed=0)
    lr_B1HW = sampler.next_batch().lr_BCHW
    ((_, lr_1HW),) = pairs[0].lr  # 96x80 in high resolution: one column
    assert lr_1HW.shape == (1, 24, 20)
    seen = torch.stack([patch[0] for patch in lr_B1HW])
    for top in range(5):
        lr_HW = torch.from_numpy(lr_1HW[0, top : top + 20]).float() / 255
        turned = [torch.rot90(lr_HW, quarter) for quarter in range(4)]
        for orientation in turned + [patch.fliplr() for patch in turned]:
            assert (seen == orientation).all((1, 2)).any()


def test_a_folder_without_usable_pictures_is_refused(tmp_path, caplog):
    with pytest.raises(UsageError, match="no such folder"):
        find_pictures(tmp_path / "absent")
    with pytest.raises(UsageError, match="holds no pictures"):
        find_pictures(tmp_path)
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    with pytest.raises(UsageError, match="no picture is at least 48"):
        load_pairs(tmp_path, MODELS["fast"], DataSection(patch_size=12))
    assert "broken.png: cannot be decoded" in caplog.text


TRAINING_CONFIGS = sorted(
    path for path in (REPOSITORY / "configs").rglob("*.toml") if path.stem != "srstream"
)


@pytest.mark.parametrize("path", TRAINING_CONFIGS, ids=lambda path: path.stem)
def test_shipped_training_configs_are_valid(path):
    if path.stem == "sparse":
        load_sparse_config(path)
    else:
        spec_of(load_config(path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model = 'fast'\nmodle = 1\n[pixel]", "modle: Extra inputs"),
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


SHIPPED = [(name, weight_set) for name in available_models() for weight_set in available_sets(name)]


@pytest.mark.needs_data
@pytest.mark.parametrize(("name", "weight_set"), SHIPPED)
def test_no_test_picture_was_trained_on(name, weight_set):
    """Neither as a file nor decoded; and the listing is that of the pictures at hand."""
    listing = dict(
        reversed(line.split("  ", 1))
        for line in (WEIGHTS_DIR / f"{weights_stem(name, weight_set)}.pictures.txt")
        .read_text()
        .splitlines()
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
@pytest.mark.parametrize(("name", "weight_set"), SHIPPED)
def test_shipped_weights_reach_what_their_card_says(name, weight_set):
    card = (WEIGHTS_DIR / f"{weights_stem(name, weight_set)}.md").read_text()
    stated = re.search(r"\| Set5 \| 5 \| ([\d.]+) \| ([\d.]+) \|", card)
    assert stated
    method = method_of(str(weights_path(name, weight_set=weight_set)))
    reached = score(method.upscale, load_test_set(data_folder("test/Set5"), 4), 4)
    assert reached.psnr_db == pytest.approx(float(stated[1]), abs=0.01)
    assert reached.ssim == pytest.approx(float(stated[2]), abs=0.001)
    if weight_set == "faithful":
        assert reached.psnr_db >= SET5_PSNR_DB[name]


@pytest.mark.parametrize("name", [name for name, weight_set in SHIPPED if weight_set == "restore"])
def test_auto_mends_what_needs_it_and_is_never_under_bicubic(name):
    """On the repository's own clip: better than the faithful weights where it was harmed."""
    sample = REPOSITORY / "samples" / "nasa_13013.mp4"
    for crf, is_harmed in [(18.0, False), (36.0, True)]:
        clip = load_test_clip(sample, x264_at(crf), 8)
        frames = clip.pictures[::4]
        chosen = automatic_restore(clip.encoded, name)
        faithful, auto = (
            score(method_of(name, restore=value, strength=strength).upscale, frames, 4).psnr_db
            for value, strength in ((0.0, 1.0), (chosen.restore, chosen.strength))
        )
        bicubic = score(bicubic_upscaler(4), frames, 4).psnr_db
        assert auto >= bicubic
        assert auto >= faithful + (0.1 if is_harmed else -0.05)
