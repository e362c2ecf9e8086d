"""The pictures that training takes, and the patches that it cuts from them."""

import pytest
import torch

from srstream.errors import UsageError
from srstream.models.table import MODELS
from trainer.config import DataSection
from trainer.data.pairs import PatchSampler, find_pictures, load_pairs


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
