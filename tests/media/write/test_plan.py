"""The choice of an output: its name, its container, what is lost, and what is refused."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest

from srstream.config import EncodeConfig, JobConfig, ScaleConfig, SourceConfig
from srstream.errors import RefusedError
from srstream.frame import PlaneLayout
from srstream.media.read.probe import probe
from srstream.media.types import StreamInfo
from tests.support import clips
from tests.support.encode import plan, source_info

KEEPS_CHROMA = JobConfig(encode=EncodeConfig(chroma="keep"))


def test_subsampling_without_an_encoder_of_its_own_loses_no_chroma() -> None:
    for log2_w, log2_h, expected in ((2, 0, (1, 0)), (2, 2, (1, 1)), (0, 1, (0, 0))):
        source = source_info(layout=PlaneLayout("yuv", 8, log2_w, log2_h))
        output = plan(source, config=KEEPS_CHROMA)
        layout = output.video.layout
        assert (layout.log2_chroma_w, layout.log2_chroma_h) == expected
        assert output.losses == ()


def test_default_names() -> None:
    assert plan(source_info()).path.name == "in_4x.mp4"
    small = JobConfig(scaling=ScaleConfig(scale=2))
    assert plan(source_info(), config=small, size=(320, 240)).path.name == "in_2x.mp4"
    height = JobConfig(scaling=ScaleConfig(height=240))
    assert plan(source_info(), config=height, size=(320, 240)).path.name == "in_240p.mp4"


@pytest.mark.parametrize(
    ("name", "container", "expected"),
    [
        ("a.mov", "mov,mp4,m4a,3gp,3g2,mj2", ".mov"),
        ("a.3gp", "mov,mp4,m4a,3gp,3g2,mj2", ".mp4"),
        ("a.mkv", "matroska,webm", ".mkv"),
        ("a.webm", "matroska,webm", ".mkv"),
        ("a.ts", "mpegts", ".mp4"),
        ("a.avi", "avi", ".mp4"),
        ("a.h264", "h264", ".mp4"),
    ],
)
def test_container_follows_the_source(name: str, container: str, expected: str) -> None:
    output = plan(source_info(name, container))
    assert output.path.suffix == expected
    said = " ".join(output.notes)
    assert (output.path.suffix == Path(name).suffix) or "Written as" in said


def test_matroska_where_mp4_cannot_carry_a_stream() -> None:
    subtitle = StreamInfo(1, "subtitle", "hdmv_pgs_subtitle", "ger")
    output = plan(source_info("a.ts", "mpegts", streams=(subtitle,)))
    assert output.path.suffix == ".mkv"
    assert output.losses == ()
    assert "hdmv_pgs_subtitle" in " ".join(output.notes)


def test_named_container_is_honoured_and_losses_are_said() -> None:
    streams = (
        StreamInfo(1, "audio", "vorbis"),
        StreamInfo(2, "subtitle", "hdmv_pgs_subtitle", "ger"),
        StreamInfo(3, "subtitle", "subrip", "eng"),
        StreamInfo(4, "attachment", "unknown", title="font.ttf"),
    )
    output = plan(source_info("a.mkv", "matroska,webm", streams=streams), Path("b.mp4"))
    actions = [(s.action, s.output_codec) for s in output.streams]
    assert actions[1:] == [
        ("convert", "aac"), ("drop", None), ("convert", "mov_text"), ("drop", None),
    ]  # fmt: skip
    said = "\n".join(output.losses)
    assert "Stream 1" in said
    assert "Stream 2" in said
    assert "Stream 3" not in said
    assert "Stream 4" in said


def test_alpha_is_kept_or_its_loss_is_said() -> None:
    layout = PlaneLayout("yuv", 8, 1, 1, has_alpha=True)
    kept = plan(source_info(layout=layout))
    assert (kept.video.codec, kept.path.suffix, kept.losses) == ("ffv1", ".mkv", ())
    lost = plan(source_info(layout=layout), config=JobConfig(encode=EncodeConfig(codec="libx264")))
    assert lost.video.pix_fmt == "yuv420p"
    assert "alpha" in lost.losses[0]


@pytest.mark.parametrize(
    ("output", "encode_config", "size", "says"),
    [
        ("o.avi", {}, (64, 48), "cannot write .avi"),
        ("o", {}, (64, 48), "no extension"),
        ("o.webm", {"codec": "libx264"}, (64, 48), "WebM cannot carry h264"),
        ("o.mp4", {"codec": "libx999"}, (64, 48), "no encoder"),
        ("o.mp4", {"codec": "aac"}, (64, 48), "no video encoder"),
        ("o.mp4", {"preset": "quick"}, (64, 48), "preset"),
        ("o.mkv", {"codec": "ffv1", "crf": 20}, (64, 48), "no --crf"),
        ("o.mp4", {}, (20000, 1000), "20000x1000"),
        ("o.mp4", {"codec": "libx264"}, (20000, 1000), "20000x1000"),
        ("o.mp4", {"codec": "libx265"}, (16386, 16), "16386x16"),
        ("o.mp4", {"codec": "libsvtav1"}, (16384, 9000), "16384x8704"),
        ("o.mkv", {"codec": "ffv1"}, (65536, 65536), "65536x65536"),
    ],
)
def test_what_cannot_work_is_refused(
    output: str, encode_config: dict[str, object], size: tuple[int, int], says: str
) -> None:
    config = JobConfig(encode=EncodeConfig.model_validate(encode_config))
    with pytest.raises(RefusedError, match=says):
        plan(source_info(), Path(output), config, size)


def test_odd_sizes_go_to_the_chroma_grid() -> None:
    video = plan(source_info(), size=(161, 91)).video
    assert (video.width, video.height) == (160, 90)
    full = source_info(layout=PlaneLayout("yuv", 8, 0, 0))
    video = plan(full, size=(161, 91), config=KEEPS_CHROMA).video
    assert (video.width, video.height) == (161, 91)


def test_rounding_in_matroska_is_said() -> None:
    assert any("1 ms" in note for note in plan(source_info(), Path("o.mkv")).notes)
    exact = source_info("a.mkv", "matroska,webm", time_base=Fraction(1, 1000))
    assert not any("1 ms" in note for note in plan(exact).notes)


def test_a_real_clip_is_planned_as_it_is(tmp_path: Path) -> None:
    info = probe(clips.many_streams(tmp_path / "in.mkv"), SourceConfig())
    output = plan(info, size=(256, 192))
    assert output.path == tmp_path / "in_4x.mkv"
    assert {s.action for s in output.streams} == {"enhance", "copy"}
    assert output.losses == ()
