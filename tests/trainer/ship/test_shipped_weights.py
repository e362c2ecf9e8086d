"""The shipped weights reach what their cards say, on pictures that none was trained on."""

import hashlib
import re
from pathlib import Path

import pytest

from srstream.models.table import (
    WEIGHTS_DIR,
    available_models,
    available_sets,
    weights_path,
    weights_stem,
)
from tests.support.paths import REPOSITORY
from tests.support.training_data import data_folder
from trainer.data.codec import x264_at
from trainer.data.pairs import find_pictures, read_rgb
from trainer.judge.clipset import automatic_restore, load_test_clip
from trainer.judge.evaluate import bicubic_upscaler, load_test_set, score
from trainer.ship.methods import method_of

SET5_PSNR_DB = {"fast": 30.6, "balanced": 31.0, "srgan": 31.0}
"""What shipped weights must reach; bicubic reads 28.43."""


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
