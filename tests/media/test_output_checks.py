"""What is refused without libav is what libav would refuse."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import pytest
from av.codec.context import CodecContext
from av.video.codeccontext import VideoCodecContext

from srstream.config import EncodeConfig
from srstream.errors import RefusedError
from srstream.media.output_checks import (
    CRF_RANGES,
    PRESETS,
    check_quality,
    output_tables,
)


def opens(codec: str, **options: str) -> bool:
    context = CodecContext.create(codec, "w")
    assert isinstance(context, VideoCodecContext)
    context.width, context.height = 320, 180
    context.pix_fmt = "rgb24" if codec == "libx264rgb" else "yuv420p"
    context.time_base, context.options = Fraction(1, 25), options
    try:
        context.open()
    except (av.FFmpegError, ValueError):
        return False
    return True


def is_allowed(codec: str, **options: str) -> bool:
    try:
        check_quality(codec, EncodeConfig.model_validate({"codec": codec, **options}))
    except RefusedError as error:
        assert str(error).startswith(codec)
        return False
    return True


@pytest.mark.parametrize("codec", CRF_RANGES)
def test_a_crf_is_allowed_where_the_encoder_opens(codec: str) -> None:
    for crf in ("0", "1", "2", "3", "4", "51", "52", "63"):
        assert is_allowed(codec, crf=crf) == opens(codec, crf=crf), crf


@pytest.mark.parametrize("codec", PRESETS)
def test_a_preset_is_allowed_where_the_encoder_opens(codec: str) -> None:
    tried = {name for names in PRESETS.values() for name in names} | {"14", "-3", "p5", "quick"}
    for preset in sorted(tried):
        assert is_allowed(codec, preset=preset) == opens(codec, preset=preset), preset


@pytest.mark.parametrize(
    ("name", "codec", "fits"),
    [
        ("a.mp4", "libx264", True),
        ("a.MP4", "libx265", True),
        ("a.webm", "libvpx-vp9", True),
        ("a.webm", "libx264", False),
        ("a.mkv", "ffv1", True),
        ("a.mp4", "ffv1", False),
        ("a.ts", "libx264", True),
        ("a.ts", "libsvtav1", False),
        ("a.mov", "prores_ks", True),
    ],
)
def test_a_container_takes_what_its_table_says(name: str, codec: str, fits: bool) -> None:
    tables = output_tables()
    assert tables.model_validate_json(tables.model_dump_json()) == tables
    if fits:
        tables.check(Path(name), EncodeConfig(codec=codec))
        return
    with pytest.raises(RefusedError, match="cannot carry"):
        tables.check(Path(name), EncodeConfig(codec=codec))
