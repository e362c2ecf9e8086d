"""Codecs as a degradation: every frame comes back, in its place, and worse the harder they are."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from srstream.errors import EncodeError
from srstream.quality import psnr
from trainer.data.codec import CONTAINERS, CodecSettings, encode_decode, random_settings
from trainer.data.planes import LEFT_SITED, halve, round_to_codes, yuv444


def moving_frames(num_frames=8, height=96, width=128):
    random = np.random.default_rng(0)
    picture = random.integers(0, 255, (height + 40, width + 60, 3), dtype=np.uint8)
    picture = cv2.normalize(cv2.GaussianBlur(picture, (0, 0), 2), None, 0, 255, cv2.NORM_MINMAX)
    frames = []
    for n in range(num_frames):
        yuv = yuv444(picture[2 * n : 2 * n + height, 4 * n : 4 * n + width])
        chroma = [round_to_codes(halve(plane, LEFT_SITED)) for plane in yuv[1:]]
        frames.append((round_to_codes(yuv[0]), *chroma))
    return frames


def settings_of(codec, crf, **changes):
    presets = {"libx264": "medium", "libx265": "ultrafast", "mpeg2video": "", "libvpx-vp9": "8"}
    values = {"preset": presets[codec], "gop": 50, "b_frames": 2} | changes
    return CodecSettings(codec, crf, **values)


@pytest.mark.parametrize("codec", CONTAINERS)
def test_frames_come_back_in_place_and_worse_the_harder(codec):
    frames = moving_frames()
    quality = []
    for crf in (18, 27, 36):
        decoded = encode_decode(frames, settings_of(codec, crf))
        assert len(decoded) == len(frames)
        for number, (made, true) in enumerate(zip(decoded, frames, strict=True)):
            assert [p.shape for p in made.planes] == [p.shape for p in true]
            right = psnr(made.planes[0], true[0])
            for other in {number - 1, number + 1} & set(range(len(frames))):
                assert right > psnr(made.planes[0], frames[other][0]) + 5
        pairs = zip(decoded, frames, strict=True)
        quality.append(np.mean([psnr(made.planes[0], true[0]) for made, true in pairs]))
        types = {frame.picture_type for frame in decoded}
        assert "I" in types
        assert "P" in types
    assert quality[0] > quality[1] + 2 > quality[2] + 4


def test_b_frames_occur_and_can_be_left_out():
    frames = moving_frames(12)
    types = {d.picture_type for d in encode_decode(frames, settings_of("libx264", 28))}
    assert types == {"I", "P", "B"}
    decoded = encode_decode(frames, settings_of("libx264", 28, b_frames=0, gop=4))
    assert [d.picture_type for d in decoded] == ["I", "P", "P", "P"] * 3


def test_the_same_settings_give_the_same_frames():
    frames = moving_frames()
    for codec in ("libx264", "mpeg2video"):
        once, again = (encode_decode(frames, settings_of(codec, 30)) for _ in range(2))
        for a, b in zip(once, again, strict=True):
            assert all(np.array_equal(p, q) for p, q in zip(a.planes, b.planes, strict=True))


def test_a_refused_setting_is_an_error_and_no_clean_pair():
    with pytest.raises(EncodeError, match=r"libx264 nonsense crf20 .*failed"):
        encode_decode(moving_frames(2), settings_of("libx264", 20, preset="nonsense"))


def test_pictures_too_small_for_x265_are_refused_before_it_crashes():
    with pytest.raises(EncodeError, match="needs pictures of at least 96, these have 48"):
        encode_decode(moving_frames(2, 48, 96), settings_of("libx265", 20))


def test_settings_are_drawn_from_all_there_are():
    random = np.random.default_rng(0)
    drawn = [random_settings(random, tuple(CONTAINERS), 18, 36) for _ in range(200)]
    assert {s.codec for s in drawn} == set(CONTAINERS)
    assert len({(s.codec, s.preset) for s in drawn}) == 4 + 3 + 1 + 3
    assert min(s.crf for s in drawn) >= 18
    assert max(s.crf for s in drawn) <= 36
    assert {s.b_frames for s in drawn} == {0, 2, 3}
    assert {s.gop for s in drawn} == {4, 8, 12, 50, 250}
