"""What plays an output: the defaults that devices decode, and what a plan says of them.

Expected values: the levels of ITU-T H.264 and H.265, annex A, and what browsers document.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from srstream.config import EncodeConfig, JobConfig
from srstream.frame import PlaneLayout
from srstream.media.players import players_of, sentence
from tests.support import clips
from tests.support.encode import plan, source_info
from tests.support.ffmpeg import needs_ffmpeg, probe
from tests.support.jobs import run

YUV420, YUV444 = PlaneLayout("yuv", 8, 1, 1), PlaneLayout("yuv", 8)
TEN_BITS = PlaneLayout("yuv", 10, 1, 1)


@pytest.mark.parametrize(
    ("size", "codec"),
    [
        ((1920, 1080), "libx264"),
        ((4096, 2304), "libx264"),
        ((2304, 4096), "libx264"),  # a phone's portrait video
        ((4098, 2304), "libx265"),
        ((7680, 4320), "libx265"),
        ((8194, 4320), "libsvtav1"),
    ],
)
def test_the_default_encoder_is_one_that_devices_decode(size: tuple[int, int], codec: str) -> None:
    made = plan(source_info(), size=size)
    assert made.video.codec == codec
    assert any("devices decode" in note for note in made.notes) == (codec != "libx264")
    asked = plan(source_info(), size=(4098, 2304), config=_encode(codec="libx264"))
    assert asked.video.codec == "libx264"


@pytest.mark.parametrize("layout", [YUV444, PlaneLayout("yuv", 8, 1, 0)])
@pytest.mark.parametrize("codec", ["auto", "libx265"])
def test_chroma_becomes_420_unless_it_is_to_be_kept(layout: PlaneLayout, codec: str) -> None:
    source = source_info(layout=layout)
    made = plan(source, config=_encode(codec=codec))
    assert made.video.layout == YUV420
    # Four times the size: even 4:2:0 has more samples of color than the source.
    assert any("--chroma keep" in note for note in made.notes)
    assert not made.losses
    assert plan(source, config=_encode(codec=codec, chroma="keep")).video.layout == layout
    video = source.video
    same_size = plan(source, config=_encode(codec=codec), size=(video.width, video.height))
    assert any("--chroma keep" in loss for loss in same_size.losses)


def test_what_is_encoded_for_editing_keeps_its_chroma() -> None:
    made = plan(source_info(layout=YUV444), Path("o.mkv"), _encode(codec="ffv1"))
    assert made.video.layout == YUV444


def test_ten_bits_become_hevc() -> None:
    assert plan(source_info(layout=TEN_BITS)).video.codec == "libx265"


@pytest.mark.parametrize(
    ("container", "codec", "layout", "size", "audio", "said"),
    [
        ("mp4", "h264", YUV420, (1920, 1080), ["aac"], "plays in browsers and on phones and TVs"),
        ("mp4", "h264", YUV420, (1920, 1080), ["ac3"], "plays on phones and TVs, but not in"),
        (
            "mkv",
            "h264",
            YUV420,
            (1920, 1080),
            [],
            "plays on TVs, but not in browsers and on phones",
        ),
        ("mp4", "hevc", TEN_BITS, (7680, 4320), [], "plays on phones and TVs, but not in browsers"),
        ("mp4", "h264", TEN_BITS, (1920, 1080), [], "plays in VLC and mpv, but not"),
        ("mp4", "h264", YUV444, (1920, 1080), [], "plays in VLC and mpv, but not"),
        ("mp4", "h264", YUV420, (5120, 2880), [], "plays in browsers, but not on phones and TVs"),
        ("webm", "vp9", YUV420, (1920, 1080), ["opus"], "plays in browsers, but not on"),
        ("mkv", "ffv1", YUV420, (320, 180), [], "plays in VLC and mpv, but not"),
    ],
)
def test_what_plays_an_output(
    container: str,
    codec: str,
    layout: PlaneLayout,
    size: tuple[int, int],
    audio: list[str],
    said: str,
) -> None:
    assert sentence(players_of(container, codec, layout, size, audio)).startswith(said)


@needs_ffmpeg
def test_a_444_source_becomes_a_file_that_devices_play(tmp_path: Path) -> None:
    source = clips.cfr(tmp_path / "in.mkv", frames=2, pix_fmt="yuv444p")
    assert probe(source, "-show_streams")["streams"][0]["pix_fmt"] == "yuv444p"
    planned = run("plan", source, "-o", tmp_path / "out.mp4")
    assert "plays in browsers and on phones and TVs" in planned.stdout
    done = run("enhance", source, "-o", tmp_path / "out.mp4", "--preset", "ultrafast")
    assert done.returncode == 0, done.stderr
    video = probe(tmp_path / "out.mp4", "-show_streams")["streams"][0]
    assert (video["codec_name"], video["pix_fmt"]) == ("h264", "yuv420p")


def _encode(**settings: str) -> JobConfig:
    return JobConfig(encode=EncodeConfig.model_validate(settings))
