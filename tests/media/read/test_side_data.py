"""Side data of a kind that PyAV has no name for stops no file: EXIF, for instance."""

from __future__ import annotations

import struct
from pathlib import Path

import av
import pytest
from av.sidedata.sidedata import Type as SideDataType

from srstream.media.side_data import side_data_of
from tests.support.ffmpeg import convert, needs_ffmpeg
from tests.support.jobs import run


def test_kinds_without_a_name_get_one() -> None:
    listed = max(kind.value for kind in SideDataType)
    assert SideDataType(listed + 90).name == f"KIND_{listed + 90}"
    assert SideDataType(listed).name != f"KIND_{listed}"
    with pytest.raises(ValueError, match="EXIF"):
        SideDataType("EXIF")


@needs_ffmpeg
def test_a_motion_jpeg_with_exif_is_enhanced(tmp_path: Path, sample_clip: Path) -> None:
    """A camera's: each picture is a JPEG with EXIF data (the smallest: one field)."""
    jpeg = convert(sample_clip, tmp_path / "one.jpg", "-frames:v", "1", "-s", "64x48").read_bytes()
    field = struct.pack("<HHIHH", 0x010F, 2, 4, 0, 0)  # the maker: four characters
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 1) + field + bytes(4)
    segment = b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif
    pictures = tmp_path / "pictures.mjpeg"
    pictures.write_bytes(3 * (jpeg[:2] + segment + jpeg[2:]))
    source = convert(pictures, tmp_path / "in.avi", "-c", "copy")
    with av.open(str(source)) as container:
        kinds = {data.type.name for f in container.decode(video=0) for data in side_data_of(f)}
    assert any(kind.startswith("KIND_") for kind in kinds), kinds
    done = run("enhance", source, "-o", tmp_path / "out.mp4", "--preset", "ultrafast")
    assert done.returncode == 0, done.stderr
