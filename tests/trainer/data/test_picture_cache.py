"""Pictures that memory does not hold: the same patches as from memory, whatever the disk does."""

from __future__ import annotations

import json
import os
import resource
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from srstream.errors import UsageError
from srstream.models.table import MODELS
from trainer.config import AugmentationSection, DataSection, TrainConfig
from trainer.data import picture_cache
from trainer.data.augment import Augmentation
from trainer.data.degrade import bicubic_resize
from trainer.data.pairs import PatchSampler, evenly_chosen, find_pictures, load_pairs, read_rgb
from trainer.data.picture_cache import CachedPairs, measured_pictures, planes_bytes
from trainer.run import PLANES_DIR, start_run

DATA = DataSection(patch_size=12, batch_size=6)


def detailed(height=160, width=200):
    random = np.random.default_rng(8)
    rough = random.uniform(0, 255, (height // 6 + 1, width // 6 + 1, 3))
    return np.clip(bicubic_resize(rough, height, width), 0, 255).astype(np.uint8)


@pytest.fixture
def folder(tmp_path):
    """Six pieces of a picture, three in a folder of their own, with sides that are cropped."""
    whole = detailed()
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    for n in range(6):
        piece = whole[7 * n : 7 * n + 90 + n, 11 * n : 11 * n + 110 - n]
        name = f"{n}.jpg" if n % 2 else f"more/{n}.png"
        cv2.imwrite(str(folder / name), piece)
    return folder


def cached(folder, cache_dir, model="fast", data=DATA, *, memory=0, disk=1 << 30, others=()):
    spec = MODELS[model]
    measured = [found for found in measured_pictures(find_pictures(folder), spec, data) if found]
    return CachedPairs(
        folder,
        measured,
        spec,
        data,
        cache_dir=cache_dir,
        max_memory_bytes=memory,
        max_disk_bytes=disk,
        others=others,
    )


def batches_of(pairs, model="fast", data=DATA, count=8, seed=3):
    section = data.augmentation
    augmentation = None if section is None else Augmentation(section, MODELS[model].color_form)
    sampler = PatchSampler(
        pairs,
        patch_size=data.patch_size,
        batch_size=data.batch_size,
        seed=seed,
        augmentation=augmentation,
    )
    return [sampler.next_batch() for _ in range(count)]


def assert_same(batches, expected):
    for batch, other in zip(batches, expected, strict=True):
        assert torch.equal(batch.lr_BCHW, other.lr_BCHW)
        for planes, others in zip(batch.hr, other.hr, strict=True):
            assert torch.equal(planes, others)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("augmentation", [None, AugmentationSection()], ids=["plain", "varied"])
def test_patches_are_those_of_pictures_in_memory(folder, tmp_path, model, augmentation):
    """From the pictures themselves, and once more from the files that were written then."""
    data = DATA.model_copy(update={"augmentation": augmentation, "subsampled_chroma": True})
    in_memory = load_pairs(folder, MODELS[model], data)
    expected = batches_of(in_memory, model, data)
    pairs = cached(folder, tmp_path / "planes", model, data)
    assert [outline.name for outline in pairs.outlines] == [pair.name for pair in in_memory]
    assert_same(batches_of(pairs, model, data), expected)
    assert len(list((tmp_path / "planes").glob("*/*.planes"))) == 6
    for path in find_pictures(folder):
        content = path.stat()
        path.write_bytes(b"x" * content.st_size)  # no picture any more: the cache must be read
        os.utime(path, ns=(content.st_atime_ns, content.st_mtime_ns))
    again = cached_like(pairs, tmp_path / "planes", folder, model, data)
    assert_same(batches_of(again, model, data), expected)


def cached_like(pairs, cache_dir, folder, model, data):
    """The same pictures by the sizes that were measured before."""
    scale = MODELS[model].scale
    names = [outline.name for outline in pairs.outlines]
    shapes = [tuple(scale * side for side in outline.shape) for outline in pairs.outlines]
    return CachedPairs(
        folder,
        [(folder / name, shape) for name, shape in zip(names, shapes, strict=True)],
        MODELS[model],
        data,
        cache_dir=cache_dir,
        max_memory_bytes=0,
        max_disk_bytes=1 << 30,
    )


@pytest.mark.parametrize("model", MODELS)
def test_the_size_of_planes_is_known_from_headers(folder, model):
    pairs = load_pairs(folder, MODELS[model], DATA)
    foreseen = planes_bytes(find_pictures(folder), MODELS[model], DATA)
    assert sum(pair.num_bytes for pair in pairs) == pytest.approx(foreseen, rel=0.15)


def test_memory_holds_no_more_than_its_bound(folder, tmp_path):
    one = max(pair.num_bytes for pair in load_pairs(folder, MODELS["fast"], DATA))
    pairs = cached(folder, tmp_path / "planes", memory=3 * one)
    batches_of(pairs)
    held = pairs._memory.values()
    assert 2 <= len(held) <= 4
    assert sum(pair.num_bytes for pair in held) == pairs._memory_bytes <= 3 * one


def test_a_damaged_file_is_told_and_made_again(folder, tmp_path, caplog):
    expected = batches_of(load_pairs(folder, MODELS["fast"], DATA))
    batches_of(cached(folder, tmp_path / "planes"))
    files = sorted((tmp_path / "planes").glob("*/*.planes"))
    before = [file.read_bytes() for file in files]
    flipped = bytearray(before[0])
    flipped[len(flipped) // 2] ^= 1
    files[0].write_bytes(flipped)
    files[1].write_bytes(before[1][:100])
    files[2].write_bytes(b"")
    assert_same(batches_of(cached(folder, tmp_path / "planes")), expected)
    assert [file.read_bytes() for file in files] == before
    for file in files[:3]:
        assert f"{file}: this file of the cache cannot be used" in caplog.text


@pytest.mark.parametrize("why", ["bound", "reserve", "write"])
def test_a_full_cache_is_one_sentence_and_the_patches_go_on(
    folder, tmp_path, caplog, monkeypatch, why
):
    expected = batches_of(load_pairs(folder, MODELS["fast"], DATA))
    disk, words = 1 << 30, r"are free on the disk"
    if why == "bound":
        disk, words = 30_000, "cache_gib allows"
    elif why == "reserve":
        monkeypatch.setattr(picture_cache, "RESERVE_BYTES", 1 << 60)
    pairs = cached(folder, tmp_path / "planes", disk=disk)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if why == "write":
        words = "File too large"
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        made = batches_of(pairs)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert_same(made, expected)
    assert caplog.text.count("the cache of pictures takes no more") == 1
    assert words in caplog.text
    files = list((tmp_path / "planes").glob("*/*"))
    assert sum(file.stat().st_size for file in files) <= (disk if why == "bound" else 0)
    assert bool(files) == (why == "bound")


def test_a_picture_that_goes_away_is_replaced_alike_after_a_resume(folder, tmp_path, caplog):
    pairs = cached(folder, tmp_path / "planes")
    sampler = PatchSampler(pairs, patch_size=12, batch_size=6, seed=1)
    (folder / "1.jpg").unlink()
    cv2.imwrite(str(folder / "3.jpg"), detailed()[:120, :64])
    states, batches = [], []
    for _ in range(10):
        states.append(sampler.state())
        batches.append(sampler.next_batch())
    assert caplog.text.count("other pictures are drawn in its place") == 2
    again = PatchSampler(
        cached_like(pairs, tmp_path / "other", folder, "fast", DATA),
        patch_size=12,
        batch_size=6,
        seed=1,
    )
    again.set_state(states[4])
    assert_same([again.next_batch() for _ in range(6)], batches[4:])
    shutil.rmtree(folder)
    with pytest.raises(UsageError, match="hardly any of the 6 pictures can be read"):
        batches_of(cached_like(pairs, tmp_path / "none", folder, "fast", DATA))


def test_a_turned_photograph_is_measured_as_it_is_read(tmp_path):
    from PIL import Image

    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((96, 128, 3), np.uint8)).save(path, exif=exif)
    (found,) = measured_pictures([path], MODELS["fast"], DATA)
    assert found == (path, read_rgb(path).shape[:2]) == (path, (128, 96))


def test_what_cannot_be_trained_on_is_left_out_with_a_word(tmp_path, caplog):
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    cv2.imwrite(str(tmp_path / "small.jpg"), np.zeros((40, 200, 3), np.uint8))
    paths = find_pictures(tmp_path)
    assert list(measured_pictures(paths, MODELS["fast"], DATA)) == [None] * 3
    assert "broken.jpg: cannot be decoded" in caplog.text
    assert "broken.png: cannot be decoded" in caplog.text
    assert "small.jpg: 200x40 is smaller than a patch of 48" in caplog.text
    with pytest.raises(UsageError, match="no picture is at least 48"):
        cached(tmp_path, tmp_path / "planes")


def test_pictures_are_chosen_evenly():
    names = [Path(name) for name in "abcdefghij"]
    assert "".join(map(str, evenly_chosen(names, 4))) == "acfh"
    assert evenly_chosen(names, 10) == evenly_chosen(names, None) == names
    assert evenly_chosen(names, 70) == names


@pytest.mark.parametrize("memory_mib", [0, 4096])
def test_a_run_takes_as_many_pictures_as_it_is_told(folder, tmp_path, memory_mib):
    config = TrainConfig.model_validate(
        {
            "model": "fast",
            "data": {"patch_size": 12, "batch_size": 2, "num_pictures": 3},
            "pixel": {"iterations": 6},
            "run": {"num_threads": 1, "memory_mib": memory_mib},
        }
    )
    start_run(config, folder, tmp_path / "run")
    first = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[0])
    assert first["num_pictures"] == 3
    files = list((tmp_path / "run" / PLANES_DIR).glob("*/*.planes"))
    assert bool(files) == (memory_mib == 0)
    assert len(files) <= 3
