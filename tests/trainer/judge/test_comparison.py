"""Who judges: the perceptual distance, the grid, steadiness, and the table made of them."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from research.sparse import (
    SparseConfig,
    learn_dictionaries,
    load_dictionaries,
    save_dictionaries,
    sparse_upscaler,
)
from srstream.errors import UsageError, WeightsError
from srstream.models.table import available_models
from srstream.quality import static_flicker, warping_error
from tests.support import clips as made_clips
from tests.test_quality import set_folder
from trainer.cli import app
from trainer.data.degrade import bicubic_resize
from trainer.judge import evaluate
from trainer.judge.comparison import PUBLISHED, Comparison, Method
from trainer.judge.evaluate import (
    LowResolution,
    bicubic_upscaler,
    load_test_set,
)
from trainer.judge.perceptual import PerceptualDistance, color_shift, grid_energy
from trainer.run import compare
from trainer.ship.methods import method_of


def photograph(height=160, width=192, seed=0):
    random = np.random.default_rng(seed)
    picture = random.integers(0, 255, (height, width, 3), dtype=np.uint8)
    picture = cv2.GaussianBlur(picture, (0, 0), 1.5)
    return cv2.normalize(picture, None, 0, 255, cv2.NORM_MINMAX)


def moving(num_frames, step=1, still=False):
    wide = photograph(96, 96 + 8 * num_frames)[..., 0].astype(float)
    return [wide[:, (0 if still else step * n) :][:, :96] for n in range(num_frames)]


@pytest.fixture(scope="module")
def judge():
    return PerceptualDistance()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "set").mkdir()
    for seed in range(3):
        cv2.imwrite(str(tmp_path / "set" / f"{seed}.png"), photograph(seed=seed))
    return tmp_path / "set"


def test_the_distance_is_zero_for_equal_pictures_and_grows_with_damage(judge):
    picture = photograph()
    assert judge(picture, picture) == 0.0
    blurred = [cv2.GaussianBlur(picture, (0, 0), sigma) for sigma in (0.6, 1.2, 2.4)]
    distances = [judge(b, picture) for b in blurred]
    assert distances == sorted(distances)
    assert distances[0] > 0
    assert judge(picture, blurred[1]) == pytest.approx(distances[1], rel=1e-5)
    with pytest.raises(ValueError, match="one size"):
        judge(picture, picture[:-1])


@pytest.mark.needs_data
def test_the_distance_of_bicubic_on_set5_is_pinned(judge):
    """Of real weights: 0.423, and 2.2 times that of Gaussian noise of 5 levels."""
    pictures = load_test_set(set_folder("Set5"), 4)
    random = np.random.default_rng(0)
    bicubic = [judge(bicubic_upscaler(4)(p.lr).rgb_HW3(), p.hr_HW3) for p in pictures]
    noisy = [
        np.clip(p.hr_HW3 + random.normal(0, 5, p.hr_HW3.shape), 0, 255).round().astype(np.uint8)
        for p in pictures
    ]
    noise = [judge(n, p.hr_HW3) for n, p in zip(noisy, pictures, strict=True)]
    assert np.mean(bicubic) == pytest.approx(0.423, abs=0.002)
    assert np.mean(bicubic) / np.mean(noise) == pytest.approx(2.17, abs=0.05)


def test_a_grid_is_found_and_noise_and_blur_are_none():
    true = photograph(256, 256)[..., 0].astype(float)
    random = np.random.default_rng(0)
    assert grid_energy(true, true, 4) == 0.0
    assert grid_energy(true + random.normal(0, 3, true.shape), true, 4) < 0.2
    assert grid_energy(cv2.GaussianBlur(true, (0, 0), 1.0), true, 4) < 0.3
    pattern = np.tile(random.normal(0, 1, (4, 4)), (64, 64))
    pattern -= pattern.mean()
    found = grid_energy(true + pattern, true, 4)
    assert found == pytest.approx(pattern.std(), rel=0.02)
    assert grid_energy(true + np.tile(pattern[:2, :2], (128, 128)), true, 4) > 0.3


def test_a_color_shift_is_the_worst_channel_s():
    picture = photograph()
    shifted = np.clip(picture + np.array([0, 2, -1]), 0, 255).astype(np.uint8)
    assert color_shift(shifted, picture) == pytest.approx(2.0, abs=0.05)


def test_flicker_is_counted_where_the_original_stands_still():
    true = moving(6, still=True)
    random = np.random.default_rng(1)
    assert static_flicker(true, true) == 0.0
    noisy = [frame + random.normal(0, 4, frame.shape) for frame in true]
    assert static_flicker(noisy, true) == pytest.approx(4 * 2 / np.sqrt(np.pi), rel=0.03)
    assert np.isnan(static_flicker(noisy, moving(6, step=4)))


def test_warping_error_ignores_motion_and_sees_flicker():
    true = moving(6, step=2)
    assert warping_error(true, true) < 3.0
    random = np.random.default_rng(1)
    noisy = [frame + random.normal(0, 8, frame.shape) for frame in true]
    assert 8.0 < warping_error(noisy, true) < 12.0
    changed = [frame + 20 * (n % 2) for n, frame in enumerate(true)]
    assert warping_error(changed, true) == pytest.approx(20.0, abs=1.5)


def test_a_comparison_measures_every_method_on_everything(folder, tmp_path):
    clip = made_clips.cfr(tmp_path / "clip.mp4")
    comparison = compare(["fast"], [folder], [clip], [None, 30.0], num_frames=3)
    materials = ["set", "clip, not encoded", "clip, CRF 30"]
    assert [(r.method, r.material) for r in comparison.rows] == [
        (method, material) for material in materials for method in ("bicubic", "fast")
    ]
    assert comparison.row("fast", "set").num_pictures == 3
    assert comparison.row("fast", "set").flicker is None
    assert comparison.row("fast", "clip, CRF 30").warping_error >= 0
    fast, bicubic = (comparison.row(name, "set") for name in ("fast", "bicubic"))
    assert fast.psnr_db > bicubic.psnr_db
    assert fast.distance is None
    clean, lossy = (comparison.row("bicubic", name).psnr_db for name in materials[1:])
    assert clean > lossy
    with pytest.raises(KeyError):
        comparison.row("fast", "another")


def test_the_whole_picture_s_figures_are_those_of_the_protocol(folder):
    picture = load_test_set(folder, 4)[0]
    perfect = Method("perfect", lambda lr: bicubic_upscaler(4)(lr))
    comparison = Comparison([perfect])
    comparison.add("one", [picture], 4, None)
    luma = bicubic_resize(picture.lr.yuv_3HW[0], *picture.hr_HW3.shape[:2])
    assert np.allclose(bicubic_upscaler(4)(picture.lr).y_HW, luma)
    assert comparison.row("perfect", "one").colour_shift < 1.0


def test_subsampled_sets_hurt_chroma_and_not_luma(folder):
    whole, halved = (load_test_set(folder, 4, subsampled=s) for s in (False, True))
    for a, b in zip(whole, halved, strict=True):
        assert np.abs(a.lr.yuv_3HW[0] - b.lr.yuv_3HW[0]).max() <= 0.5
        assert np.abs(a.lr.yuv_3HW[1:] - b.lr.yuv_3HW[1:]).max() > 1
        assert b.lr.input_of("yuv420").shape == (1, 3, 40, 48)
        assert np.array_equal(b.lr.yuv_3HW[1:], b.lr.subsampled_2HW)


def test_the_table_is_written_for_people_and_for_programs(folder, tmp_path):
    outputs = [tmp_path / "table.md", tmp_path / "table.json"]
    saves = [argument for path in outputs for argument in ("--save", str(path))]
    arguments = ["evaluate", "fast", "--test-set", str(folder), *saves]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    text = outputs[0].read_text()
    assert text.strip() in result.output
    assert "| bicubic |" in text
    assert "EfficientNet-lite0 distance" in text
    content = json.loads(outputs[1].read_text())
    assert {row["method"] for row in content["rows"]} == {"bicubic", "fast"}
    assert all(row["distance"] > 0 for row in content["rows"])
    assert content["methods"][1]["num_parameters"] > 10_000
    assert len(content["published"]) == len(PUBLISHED)


def test_published_figures_stand_beside_the_measured_ones():
    picture = photograph(64, 64)
    small = LowResolution.of_picture(picture[::4, ::4].copy())
    comparison = Comparison([Method("bicubic", bicubic_upscaler(4))])
    comparison.add("Set5", [evaluate.TestPicture("one", small, picture)], 4, None)
    assert "| SRGAN | 29.40 | 0.8472 | Ledig et al., CVPR 2017" in comparison.markdown()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "fast"], "nothing to measure on"),
        (["evaluate", "nothing", "--test-set", "."], "nothing: neither a model"),
        (["evaluate", "fast", "--restore", "2", "--test-set", "."], "takes 0 to 1, or auto"),
        (["evaluate", "fast", "--clip", "missing.mp4"], "missing.mp4"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_a_sentence(arguments, message):
    result = CliRunner().invoke(app, arguments)
    assert result.exception is not None
    assert message in str(result.exception)


def test_every_model_that_ships_is_a_method():
    for name in available_models():
        method = method_of(name)
        assert method.num_parameters > 1000
        assert method.how


def test_sparse_coding_beats_bicubic_on_what_it_has_learned(folder, tmp_path):
    config = SparseConfig(
        num_atoms=16, num_patches=4000, num_dictionary_patches=1000, num_neighbours=256
    )
    dictionaries = learn_dictionaries(config, folder)
    path = tmp_path / "sparse.npz"
    save_dictionaries(dictionaries, path)
    loaded = load_dictionaries(path)
    assert np.array_equal(loaded.maps, dictionaries.maps)
    assert method_of(str(path)).how == dictionaries.recipe
    comparison = Comparison(
        [
            Method("bicubic", bicubic_upscaler(4)),
            Method("sparse", sparse_upscaler(loaded), loaded.num_parameters),
        ]
    )
    comparison.add("set", load_test_set(folder, 4), 4, None)
    gained = comparison.row("sparse", "set").psnr_db - comparison.row("bicubic", "set").psnr_db
    assert gained > 0.3
    path.write_bytes(b"nothing")
    with pytest.raises(WeightsError, match="holds no dictionaries"):
        load_dictionaries(path)
    with pytest.raises(UsageError, match="num_neighbours"):
        learn_dictionaries(config.model_copy(update={"num_neighbours": 9000}), folder)
