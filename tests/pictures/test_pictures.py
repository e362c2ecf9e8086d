"""Picture files in and out: pixels, metadata, names, and what is refused."""

from __future__ import annotations

import errno
import os
import struct
import zlib

import cv2
import numpy as np
import pytest

from srstream.config import EngineConfig, JobConfig, ModelConfig, ScaleConfig, SourceConfig
from srstream.errors import MediaError, RefusedError, UsageError
from srstream.media.animations.header import PNG_SIGNATURE
from srstream.pictures import job as module
from srstream.pictures.files import read_header
from srstream.pictures.inputs import expand_inputs, is_picture_input
from srstream.pictures.job import enhance_picture, enhance_pictures, plan_picture
from tests.support.networks import nearest_network


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = nearest_network(tmp_path_factory.mktemp("network") / "nearest.onnx")
    return JobConfig(model=ModelConfig(weights=str(path)), engine=EngineConfig(threads=2))


def picture(shape, dtype=np.uint8):
    """Smooth, so that JPEG changes it little; (H, W) or (H, W, C)."""
    peak = np.iinfo(dtype).max
    noise = np.random.default_rng(0).random(shape).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 3)
    return np.rint((smooth - smooth.min()) / np.ptp(smooth) * peak).astype(dtype)


def write(path, pixels, *options):
    assert cv2.imwrite(str(path), pixels, list(options))
    return path


def enhanced(path, config, suffix=None, **options):
    target = path.with_name(f"out{suffix or path.suffix}")
    assert enhance_picture(path, target, config, **options).destination == target
    return cv2.imread(str(target), cv2.IMREAD_UNCHANGED), target


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".jpeg", ".webp", ".bmp"])
def test_every_format_comes_out_as_itself(suffix, tmp_path, config):
    options = [cv2.IMWRITE_WEBP_QUALITY, 101] if suffix == ".webp" else []
    path = write(tmp_path / f"in{suffix}", picture((30, 44, 3)), *options)
    before = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    after, target = enhanced(path, config)
    assert after.shape == (120, 176, 3)
    assert read_header(target, target.read_bytes()).format == suffix[1:].replace("jpg", "jpeg")
    small = cv2.resize(after, (44, 30), interpolation=cv2.INTER_AREA)
    assert np.abs(small.astype(int) - before).mean() <= 1


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_png_of_every_kind_is_kept(channels, dtype, tmp_path, config):
    pixels = picture((20, 32, channels) if channels > 1 else (20, 32), dtype)
    after, _ = enhanced(write(tmp_path / "in.png", pixels), config)
    assert after.dtype == dtype
    assert after.shape == (80, 128, *pixels.shape[2:])
    levels = np.iinfo(dtype).max / 255
    small = cv2.resize(after, (32, 20), interpolation=cv2.INTER_AREA)
    assert np.abs(small.astype(float) - pixels).mean() / levels <= 1


def png_chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_of(color_type, rows, *chunks):
    height, width = len(rows), len(rows[0]) // (2 if color_type == 4 else 1)
    header = struct.pack(">IIBBBBB", width, height, 8, color_type, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + bytes(row) for row in rows))
    parts = [(b"IHDR", header), *chunks, (b"IDAT", data), (b"IEND", b"")]
    return PNG_SIGNATURE + b"".join(png_chunk(*part) for part in parts)


def test_palette_and_grey_with_alpha(tmp_path, config):
    palette = bytes([255, 0, 0, 0, 255, 0])
    rows = [[0] * 8 + [1] * 8] * 12
    (tmp_path / "in.png").write_bytes(png_of(3, rows, (b"PLTE", palette)))
    after, _ = enhanced(tmp_path / "in.png", config)
    assert after.shape == (48, 64, 3)
    assert after[5, 5].tolist() == [0, 0, 255]
    assert after[5, 60].tolist() == [0, 255, 0]
    (tmp_path / "in.png").write_bytes(png_of(3, rows, (b"PLTE", palette), (b"tRNS", b"\x40\xff")))
    after, _ = enhanced(tmp_path / "in.png", config, overwrite=True)
    assert after[5, 5].tolist() == [0, 0, 255, 64]
    (tmp_path / "in.png").write_bytes(png_of(4, [[100, 30] * 16] * 12))
    after, _ = enhanced(tmp_path / "in.png", config, overwrite=True)
    assert after[20, 20].tolist() == [100, 100, 100, 30]


EXIF = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
"""One entry: orientation 6."""


def test_png_metadata_is_moved_byte_for_byte(tmp_path, config):
    chunks = [
        (b"gAMA", struct.pack(">I", 45455)),
        (b"iCCP", b"profile\0\0" + zlib.compress(b"x" * 200)),
        (b"pHYs", struct.pack(">IIB", 11811, 11811, 1)),
        (b"eXIf", EXIF[6:]),
        (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0<x:xmpmeta/>"),
        (b"tEXt", b"Author\0nobody"),
    ]
    (tmp_path / "in.png").write_bytes(png_of(0, [[7] * 24] * 16, *chunks))
    after, target = enhanced(tmp_path / "in.png", config)
    assert after.shape == (64, 96)  # the orientation is a tag still, the pixels aren't turned
    content = target.read_bytes()
    for kind, body in chunks:
        assert content.count(png_chunk(kind, body)) == 1


def test_jpeg_metadata_is_moved_byte_for_byte(tmp_path, config):
    segments = [(0xE1, EXIF), (0xE1, b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta/>")]
    segments += [(0xE2, b"ICC_PROFILE\0\x01\x02" + b"a" * 60000)]
    segments += [(0xE2, b"ICC_PROFILE\0\x02\x02" + b"b" * 500), (0xFE, b"a comment")]
    data = bytes(cv2.imencode(".jpg", picture((24, 40, 3)))[1])
    extra = b"".join(bytes([0xFF, m]) + struct.pack(">H", len(b) + 2) + b for m, b in segments)
    app0 = 20
    data = data[:13] + b"\x01\x01\x2c\x01\x2c" + data[18:app0] + extra + data[app0:]
    (tmp_path / "in.jpg").write_bytes(data)
    after, target = enhanced(tmp_path / "in.jpg", config)
    assert after.shape == (96, 160, 3)
    content = target.read_bytes()
    assert content.count(extra) == 1
    assert content[13:18] == b"\x01\x01\x2c\x01\x2c"  # 300 dots per inch


def test_webp_metadata_is_kept(tmp_path, config):
    pixels = picture((24, 40, 4))
    types = np.array([0, 1])
    metadata = [np.frombuffer(EXIF[6:], np.uint8), np.frombuffer(b"<x:xmpmeta/>", np.uint8)]
    cv2.imwriteWithMetadata(str(tmp_path / "in.webp"), pixels, types, metadata)
    after, target = enhanced(tmp_path / "in.webp", config)
    assert after.shape == (96, 160, 4)
    assert EXIF[6:] in target.read_bytes()
    assert b"<x:xmpmeta/>" in target.read_bytes()


def test_another_format_on_request_carries_depth_and_metadata_it_can(tmp_path, config):
    path = write(tmp_path / "in.png", picture((20, 32, 3), np.uint16))
    after, _ = enhanced(path, config, suffix=".jpg")
    assert (after.dtype, after.shape) == (np.uint8, (80, 128, 3))
    clear = write(tmp_path / "clear.png", picture((20, 32, 4)))
    with pytest.raises(RefusedError, match="no transparency"):
        enhance_picture(clear, tmp_path / "clear.jpg", config)
    assert enhanced(clear, config, suffix=".webp")[0].shape == (80, 128, 4)
    with pytest.raises(UsageError, match="ends in"):
        enhance_picture(path, tmp_path / "in.heic", config)


def test_smaller_scale(tmp_path, config):
    path = write(tmp_path / "in.png", picture((20, 32, 3)))
    half = config.model_copy(update={"scaling": ScaleConfig(scale=2)})
    assert enhanced(path, half)[0].shape == (40, 64, 3)
    (result,) = enhance_pictures(path, None, half)
    assert result.destination == tmp_path / "in_2x.png"


def test_nothing_is_overwritten_unasked_nor_left_half_written(tmp_path, config):
    path = write(tmp_path / "in.png", picture((10, 12, 3)))
    (tmp_path / "out.png").write_bytes(b"precious")
    with pytest.raises(UsageError, match="--overwrite"):
        enhanced(path, config)
    assert (tmp_path / "out.png").read_bytes() == b"precious"
    with pytest.raises(UsageError, match="input itself"):
        enhance_picture(path, path, config, overwrite=True)
    assert enhanced(path, config, overwrite=True)[0].shape == (40, 48, 3)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.png", "out.png"]


def test_a_picture_is_written_where_there_are_no_hard_links(tmp_path, config, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    path = write(tmp_path / "in.png", picture((10, 12)))
    enhanced(path, config)
    with pytest.raises(UsageError, match="--overwrite"):
        module._publish(tmp_path / "out.png", b"new", overwrite=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.png", "out.png"]


def test_a_file_that_appears_meanwhile_wins(tmp_path):
    (tmp_path / "out.png").write_bytes(b"precious")
    with pytest.raises(UsageError, match="exists already"):
        module._publish(tmp_path / "out.png", b"new", overwrite=False)
    assert (tmp_path / "out.png").read_bytes() == b"precious"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_folder_goes_on_after_a_bad_file(tmp_path, config):
    folder = tmp_path / "holiday"
    folder.mkdir()
    for name in ("a.png", "c.jpg"):
        write(folder / name, picture((10, 12, 3)))
    (folder / "b.png").write_bytes(b"no picture")
    (folder / "notes.txt").write_text("no picture either")
    results = list(enhance_pictures(folder, None, config))
    assert [result.source.name for result in results] == ["a.png", "b.png", "c.jpg"]
    assert [result.error is None for result in results] == [True, False, True]
    assert "b.png: is no PNG" in str(results[1].error)
    assert results[1].as_event()["error"]
    assert sorted(p.name for p in (tmp_path / "holiday_4x").iterdir()) == ["a.png", "c.jpg"]


def test_patterns_and_what_counts_as_pictures(tmp_path, config):
    write(tmp_path / "x1.png", picture((10, 12, 3)))
    write(tmp_path / "x2.jpg", picture((10, 12, 3)))
    (tmp_path / "x3.mp4").write_bytes(b"")
    assert [path.name for path in expand_inputs(tmp_path / "x*")] == ["x1.png", "x2.jpg"]
    assert is_picture_input(tmp_path / "x*")
    assert is_picture_input(tmp_path)
    assert is_picture_input(tmp_path / "x1.png")
    assert not is_picture_input(tmp_path / "x3.mp4")
    assert not is_picture_input(tmp_path / "*.mp4")
    results = list(enhance_pictures(tmp_path / "x*.png", tmp_path / "new" / "deep", config))
    assert results[0].destination == tmp_path / "new" / "deep" / "x1.png"
    assert results[0].destination.is_file()
    with pytest.raises(UsageError, match="no picture has such a name"):
        expand_inputs(tmp_path / "y*.png")
    with pytest.raises(UsageError, match="no such file"):
        expand_inputs(tmp_path / "y.png")
    with pytest.raises(UsageError, match="holds no picture"):
        expand_inputs(tmp_path / "new")
    with pytest.raises(UsageError, match="name a folder"):
        list(enhance_pictures(tmp_path, tmp_path / "x1.png", config))


def giant_png(width, height):
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return PNG_SIGNATURE + png_chunk(b"IHDR", header) + png_chunk(b"IEND", b"")


def test_giants_are_refused_from_their_header(tmp_path, config, monkeypatch):
    monkeypatch.setattr(module.picture_files, "decode", lambda *_: pytest.fail("was decoded"))  # type: ignore[attr-defined]
    path = tmp_path / "in.png"
    path.write_bytes(giant_png(100_000, 100_000))
    with pytest.raises(RefusedError, match="100000x100000 are more than"):
        enhanced(path, config)
    path.write_bytes(giant_png(16_000, 16_000))
    with pytest.raises(RefusedError, match="GB of memory"):
        enhanced(path, config)
    path.write_bytes(giant_png(5000, 20))
    with pytest.raises(RefusedError, match="too large for webp"):
        plan_picture(path, tmp_path / "out.webp", config)
    small = config.model_copy(update={"source": SourceConfig(max_pixels=100)})
    path.write_bytes(giant_png(11, 10))
    with pytest.raises(RefusedError, match="100 pixels"):
        enhanced(path, small)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".bmp"])
def test_cut_off_and_damaged_pictures_are_refused(suffix, tmp_path, config):
    path = write(tmp_path / f"in{suffix}", picture((60, 80, 3)))
    whole = path.read_bytes()
    for length in (1, 12, 20, 30, len(whole) // 2, len(whole) - 20):
        path.write_bytes(whole[:length])
        with pytest.raises(MediaError, match=f"in{suffix}") as caught:
            enhanced(path, config)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / f"out{suffix}").exists()


def test_animations_are_refused(tmp_path, config):
    path = tmp_path / "in.png"
    path.write_bytes(png_of(0, [[7] * 24] * 16, (b"acTL", struct.pack(">II", 2, 0))))
    with pytest.raises(RefusedError, match="animated PNG"):
        enhanced(path, config)
