"""PSNR, SSIM and the evaluation protocol, pinned to the figures of the literature."""

import os
from pathlib import Path

import numpy as np
import pytest

from srstream.quality import luma_bt601, psnr, shave, ssim
from tests.support.paths import REPOSITORY
from trainer.data.degrade import bicubic_resize, downscale, resize_matrix
from trainer.judge.evaluate import bicubic_upscaler, load_test_set, score

DATA = Path(os.environ.get("SRSTREAM_DATA", REPOSITORY.parent / "shared" / "data"))


def set_folder(name: str) -> Path:
    folder = DATA / "test" / name
    if not folder.is_dir():
        pytest.skip(f"{folder} isn't there; set SRSTREAM_DATA to the folder that holds test/{name}")
    return folder


def random_plane(height: int = 40, width: int = 50) -> np.ndarray:
    return np.random.default_rng(1).uniform(0, 255, (height, width))


def test_luma_of_black_white_and_red():
    rgb = np.array([[[0, 0, 0], [255, 255, 255], [255, 0, 0]]], np.uint8)
    np.testing.assert_allclose(luma_bt601(rgb), [[16.0, 235.0, 81.481]])


def test_psnr_of_a_known_error():
    plane = random_plane()
    assert psnr(plane, plane) == float("inf")
    assert psnr(plane, plane + 1.0) == pytest.approx(48.1308, abs=1e-4)  # 20 log10(255)


def test_the_shaved_border_does_not_count():
    plane = random_plane()
    damaged = plane.copy()
    damaged[:4] = 0
    assert psnr(plane, damaged, border=4) == float("inf")
    assert shave(plane, 4).shape == (32, 42)
    assert shave(plane, 0).shape == plane.shape


def test_ssim_follows_its_formula():
    flat, brighter = np.full((20, 20), 100.0), np.full((20, 20), 110.0)
    c1 = (0.01 * 255) ** 2  # without variance, only the luminance term is left
    expected = (2 * 100 * 110 + c1) / (100**2 + 110**2 + c1)
    assert ssim(flat, brighter) == pytest.approx(expected, abs=1e-12)
    assert ssim(random_plane(), random_plane()) == pytest.approx(1.0)


def test_ssim_by_definition():
    """One window, computed directly from the paper's sums."""
    x, y = random_plane(11, 11), np.random.default_rng(2).uniform(0, 255, (11, 11))
    ramp = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window = np.outer(ramp, ramp) / ramp.sum() ** 2
    mean_x, mean_y = (window * x).sum(), (window * y).sum()
    var_x = (window * (x - mean_x) ** 2).sum()
    var_y = (window * (y - mean_y) ** 2).sum()
    covariance = (window * (x - mean_x) * (y - mean_y)).sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    expected = ((2 * mean_x * mean_y + c1) * (2 * covariance + c2)) / (
        (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
    )
    assert ssim(x, y) == pytest.approx(expected, abs=1e-9)


def test_pictures_of_different_shape_are_refused():
    with pytest.raises(ValueError, match="different shape"):
        psnr(random_plane(8, 8), random_plane(8, 9))


@pytest.mark.parametrize(("num_in", "num_out"), [(64, 16), (16, 64), (37, 9), (5, 5)])
def test_resizing_keeps_a_constant_and_is_symmetric(num_in, num_out):
    matrix = resize_matrix(num_in, num_out)
    np.testing.assert_allclose(matrix.sum(axis=1), 1.0)
    np.testing.assert_allclose(matrix, matrix[::-1, ::-1], atol=1e-12)


def test_resizing_to_the_same_size_changes_nothing():
    plane = random_plane()
    np.testing.assert_allclose(bicubic_resize(plane, *plane.shape), plane)


def test_downscaling_wants_multiples():
    with pytest.raises(ValueError, match="not a multiple"):
        downscale(np.zeros((10, 12, 3), np.uint8), 4)


@pytest.mark.needs_data
@pytest.mark.parametrize(
    ("name", "rounded_db", "float_db"),
    [("Set5", 28.426, 28.431), ("Set14", 26.087, 26.089), ("BSD100", 25.960, 25.963)],
)
def test_bicubic_reads_what_the_literature_reports(name, rounded_db, float_db):
    """28.42 to 28.43, 26.09 (gray `bridge` as limited-range luma) and 25.96 dB."""
    pictures = load_test_set(set_folder(name), 4)
    upscaled = [bicubic_upscaler(4)(picture.lr) for picture in pictures]
    as_float = [
        psnr(sr.y_HW, luma_bt601(picture.hr_HW3), 4)
        for sr, picture in zip(upscaled, pictures, strict=True)
    ]
    replayed = iter(upscaled)
    assert score(lambda _: next(replayed), pictures, 4).psnr_db == pytest.approx(
        rounded_db, abs=1e-3
    )
    assert float(np.mean(as_float)) == pytest.approx(float_db, abs=1e-3)
