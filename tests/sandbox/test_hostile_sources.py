"""Sources that name other files or announce more than they hold: refused before it costs much."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import zlib
from fractions import Fraction
from pathlib import Path

import av
import pytest

from srstream.config import SourceConfig
from srstream.errors import MediaError, RefusedError, SrstreamError, UsageError
from srstream.jobs.store import JobStore, job_directory
from srstream.media.read.demux import NAMING_FORMATS, open_source
from srstream.media.read.probe import probe
from tests.support import clips

CONFIG = SourceConfig()
SIDE = 16000

LISTS = {
    "list.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{}\n#EXT-X-ENDLIST\n",
    "list.ffconcat": "ffconcat version 1.0\nfile '{}'\n",
    "session.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
    "m=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
    "titles.idx": "# VobSub index file, v7\nid: en, index: 0\n",
    "disguised.mp4": "\N{BYTE ORDER MARK}#EXTM3U\n#EXTINF:9,\n{}\n#EXT-X-ENDLIST\n",
}


def refusal(path: Path, config: SourceConfig = CONFIG) -> str:
    with pytest.raises(SrstreamError) as refused:
        probe(path, config)
    text = str(refused.value)
    assert "\n" not in text and len(text) < 400
    return text


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize("target", ["/etc/passwd", "clip.ts"])
def test_a_list_of_other_files_is_refused_in_one_sentence(
    name: str, target: str, tmp_path: Path
) -> None:
    clips.cfr(tmp_path / "clip.ts")
    (tmp_path / name).write_text(LISTS[name].format(target))
    text = refusal(tmp_path / name)
    assert text.startswith(f"{name}: is a list that names other files")


@pytest.mark.parametrize(
    "content", ["\n\n#EXTM3U\n/etc/passwd\n", "<?xml version='1.0'?><MPD><BaseURL>/etc/passwd"]
)
def test_what_looks_like_no_list_is_no_media_either(content: str, tmp_path: Path) -> None:
    (tmp_path / "in.m3u8").write_text(content)
    assert "cannot be read as media" in refusal(tmp_path / "in.m3u8")


def test_a_name_with_a_pattern_reads_no_sequence(tmp_path: Path) -> None:
    for number in (1, 2):
        with av.open(str(tmp_path / f"p{number}.bmp"), "w", format="image2") as container:
            stream = container.add_stream("bmp", rate=1)
            stream.width, stream.height, stream.pix_fmt = 16, 16, "bgr24"
            frame = av.VideoFrame(16, 16, "bgr24")
            container.mux(stream.encode(frame))
    with av.open(str(tmp_path / "p%d.bmp")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 2  # libav by itself would
    (tmp_path / "p%d.bmp").write_bytes((tmp_path / "p1.bmp").read_bytes())
    assert "cannot be read as media" in refusal(tmp_path / "p%d.bmp")


@pytest.mark.parametrize(
    "name",
    [
        "file:/etc/passwd",
        "concat:in.mp4|in.mp4",
        "subfile,,start,0,end,100,,:in.mp4",
        "data:video/mp4;base64,AAAA",
        "http://127.0.0.1:1/in.mp4",
        "pipe:0",
    ],
)
def test_names_are_files_and_never_protocols(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips.cfr(tmp_path / "in.mp4")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="no such file"):
        probe(Path(name), CONFIG)
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "in.mp4").rename(tmp_path / name)
    assert probe(Path(name), CONFIG).video.width == 64


def test_every_format_that_names_others_is_known_to_this_libav_or_absent() -> None:
    """A new libav may bring a demuxer that opens files; those of today are listed."""
    assert {"concat", "hls", "image2", "rtsp", "sdp", "vobsub"} <= NAMING_FORMATS
    suspicious = (
        "concat",
        "hls",
        "dash",
        "imf",
        "rtsp",
        "sdp",
        "sap",
        "manifest",
        "grab",
        "image2",
    )
    left = {
        name
        for name in av.formats_available - NAMING_FORMATS
        if any(word in name for word in suspicious)
    }
    assert left <= {"image2pipe"}  # many pictures in one file, none of them named


def with_external_data(path: Path, external: Path) -> None:
    """Make `path` a MOV without data whose track lies in another file (an alias record)."""
    data = bytearray(path.read_bytes())
    at = data.find(b"url ", data.find(b"dref")) - 4
    alias = b"alis" + bytes(4) + bytes(10) + b"\3vol".ljust(28, b"\0") + bytes(12)
    alias += bytes([len(external.name)]) + external.name.encode().ljust(63, b"\0") + bytes(16)
    alias += struct.pack(">HH", 1, 1) + bytes(16)
    name = str(external).encode()
    alias += struct.pack(">HH", 2, len(name)) + name + bytes(len(name) % 2) + b"\xff\xff\0\0"
    entry = struct.pack(">I", len(alias) + 4) + alias
    data[at : at + 12] = entry
    for box in (b"dref", b"dinf", b"minf", b"mdia", b"trak", b"moov"):
        begin = data.rfind(box, 0, at) - 4
        size = int.from_bytes(data[begin : begin + 4], "big") + len(entry) - 12
        data[begin : begin + 4] = size.to_bytes(4, "big")
    begin = data.find(b"mdat") + 4
    end = data.rfind(b"moov") - 4
    data[begin:end] = bytes(end - begin)
    path.write_bytes(data)


def test_a_movie_whose_data_lies_in_another_file_does_not_get_it(tmp_path: Path) -> None:
    external = clips.cfr(tmp_path / "other.mov", format="mov")
    path = clips.cfr(tmp_path / "in.mov", format="mov")
    with_external_data(path, external)
    options = {"enable_drefs": "1", "use_absolute_path": "1"}
    with av.open(str(path), options=options) as container:
        assert sum(1 for _ in container.decode(video=0)) == 12  # the file does lead there
    with pytest.raises(MediaError, match=r"^in\.mov: holds no video data behind its header"):
        probe(path, CONFIG)


def png(width: int, height: int) -> bytes:
    """A PNG that announces so many pixels and holds a few."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels)


def announced(path: Path) -> Path:
    """A tiny file that announces 16000x16000 pixels, about the most that libav takes."""
    if path.suffix == ".y4m":
        path.write_bytes(f"YUV4MPEG2 W{SIDE} H{SIDE} F25:1 C420\nFRAME\n".encode() + bytes(5000))
    elif path.suffix == ".ivf":
        head = struct.pack("<4sHH4sHHIIII", b"DKIF", 0, 32, b"VP80", 16383, 16383, 25, 1, 3, 0)
        frame = bytes([0x10, 2, 0, 0x9D, 1, 0x2A, 0xFF, 0x3F, 0xFF, 0x3F]) + bytes(200)
        path.write_bytes(head + struct.pack("<IQ", len(frame), 0) + frame)
    elif path.suffix == ".png":
        path.write_bytes(png(SIDE, SIDE))
    else:
        with av.open(str(path), "w") as container:
            codec = "rawvideo" if path.suffix == ".mkv" else "png"  # Matroska takes no PNG
            stream = container.add_stream(codec, rate=25)
            stream.width, stream.height = SIDE, SIDE
            stream.pix_fmt = "yuv420p" if codec == "rawvideo" else "rgb24"
            for number in range(3):
                packet = av.Packet(png(SIDE, SIDE))
                packet.stream, packet.time_base = stream, Fraction(1, 25)
                packet.pts = packet.dts = number
                packet.is_keyframe = True
                container.mux(packet)
    assert path.stat().st_size < 20_000
    return path


@pytest.mark.parametrize("suffix", ["avi", "mkv", "mov", "nut", "ivf", "y4m", "png"])
def test_an_announced_giant_is_refused_before_memory_is_taken(suffix: str, tmp_path: Path) -> None:
    path = announced(tmp_path / f"giant.{suffix}")
    code = (
        "import json, resource, sys; from pathlib import Path\n"
        "from srstream.config import SourceConfig; from srstream.media.read.probe import probe\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak()\n"
        "try: probe(Path(sys.argv[1]), SourceConfig(max_pixels=4096 * 4096))\n"
        "except Exception as error: found = [type(error).__name__, str(error)]\n"
        "print(json.dumps([*found, peak() - before]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    kind, text, kilobytes = json.loads(done.stdout)
    side = 16383 if suffix == "ivf" else SIDE
    assert kind == "RefusedError" and f"{side}x{side}" in text and "16777216 pixels" in text
    assert kilobytes < 32 << 10


def test_the_second_giant_in_a_row_is_refused_like_the_first(tmp_path: Path) -> None:
    """libav logs the same sentence only once, and the size is read from there."""
    for name in ("one.mov", "two.mov", "three.nut"):
        text = refusal(announced(tmp_path / name), SourceConfig(max_pixels=4096 * 4096))
        assert f"{SIDE}x{SIDE}" in text


def test_too_many_streams_are_refused(tmp_path: Path) -> None:
    path = clips.cfr(tmp_path / "in.mkv", audio=4)
    assert len(probe(path, SourceConfig(max_streams=5)).streams) == 5
    for limit in (4, 2, 1):
        assert f"more than the {limit} streams" in refusal(path, SourceConfig(max_streams=limit))


@pytest.mark.parametrize("suffix", ["mp4", "ts", "avi"])
def test_too_many_streams_are_refused_in_other_containers(suffix: str, tmp_path: Path) -> None:
    path = clips.cfr(tmp_path / f"in.{suffix}", audio=4)
    for limit in (4, 1):
        assert f"more than the {limit} streams" in refusal(path, SourceConfig(max_streams=limit))


def test_a_video_that_lasts_too_long_is_refused(tmp_path: Path) -> None:
    path = clips.cfr(tmp_path / "in.mp4", frames=75)
    assert probe(path, SourceConfig(max_duration_seconds=3.5)).duration_seconds == 3
    assert "lasts 3 s, more than the 2 s" in refusal(path, SourceConfig(max_duration_seconds=2))


def test_the_whitelists_refuse_by_themselves(tmp_path: Path) -> None:
    """Also where no list is recognized by its first bytes."""
    path = tmp_path / "in.ts"
    path.write_text("#EXTM3U\n/etc/passwd\n")
    with pytest.raises(RefusedError):
        open_source(path, 1 << 20)
    with pytest.raises(MediaError):
        open_source(clips.cfr(tmp_path / "in.mp4"), 1 << 20, container="concat")


@pytest.mark.parametrize("target", ["folder", "absent", "file"])
def test_a_job_folder_that_is_a_link_is_refused(target: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    output = tmp_path / "out.mp4"
    job_directory(output).symlink_to(tmp_path / target)
    with pytest.raises(SrstreamError, match=r"\.srstream: this is a link or a file") as refused:
        JobStore(output)
    assert "\n" not in str(refused.value)
    assert not list((tmp_path / "folder").iterdir()) and not (tmp_path / "absent").exists()


def test_a_lock_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    output = tmp_path / "out.mp4"
    job_directory(output).mkdir()
    (job_directory(output) / "lock").symlink_to(tmp_path / "made")
    with pytest.raises(SrstreamError):
        JobStore(output)
    assert not (tmp_path / "made").exists()
