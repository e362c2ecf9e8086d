"""Opens a source and reads its video packets; shared by probe, scan and decode.

Returned times are exactly those of the file until its clock jumps back (a wrapped 33-bit counter,
two recordings in one file); from there `Clock` continues them without a gap, identically for
everyone who reads the packets in order.
"""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
from av.codec.context import CodecContext
from av.codec.hwaccel import HWAccel
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition, Stream
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream

from srstream.errors import MediaError, RefusedError, SrstreamError, UsageError
from srstream.media.animations.header import is_animated_webp
from srstream.media.animations.webp_reader import WebpAsPng
from srstream.media.errors import libav_errors, refuse_giant, sentence, shown_path
from srstream.media.read.packed_bitstream import Unpacker, may_be_packed
from srstream.media.refused_formats import NAMING_FORMATS as NAMING_FORMATS

CLOCK_WRAP = 1 << 33
"""MPEG-TS and -PS count 90 kHz in 33 bits (ISO/IEC 13818-1, 2.4.2)."""

MAX_REORDERED = 16
"""Maximum number of pictures decoded before one is shown (H.264, A.3.1)."""

MAX_FAULTS_IN_A_ROW = 8
"""Number of consecutive packets that cannot be read or decoded after which a job ends."""

MAX_STREAMS = 1000
"""Default for the most streams in one file; libav's own limit too."""

MAX_PIXELS = 16384 * 16384
"""Pixel limit for a reader that decodes nothing itself; libav still probes a few frames."""

_ALLOWED_FORMATS = ",".join(sorted(av.formats_available - NAMING_FORMATS))
_LISTS = (b"#EXTM3U", b"ffconcat ", b"v=0", b"SMXS", b"RTSP", b"# VobSub index file")

_AVFMT_NOTIMESTAMPS = 0x80
MAX_PIXELS_OF_LIBAV = (1 << 31) - 1


def open_source(
    path: Path,
    max_pixels: int,
    *,
    on_gpu: bool = False,
    container: str | None = None,
    max_streams: int = MAX_STREAMS,
) -> InputContainer:
    """Open a file for reading, and no other file that it may refer to.

    Args:
        on_gpu: decode its video with NVDEC, which must be available; see `open_decoder`.
        container: name of its format, which is then not guessed: libav also looks at the
            file's suffix, which a descriptor's path lacks.

    Raises:
        UsageError: the file is missing, is a directory, or may not be read.
        RefusedError: the file lists other files, has more than `max_streams` streams, or is an
            animated WebP of more than `max_pixels`.
        MediaError: the file is empty or not media.
    """
    if not path.exists():
        raise UsageError(f"{shown_path(path)}: there is no such file. Check the path.")
    if path.is_dir():
        raise UsageError(sentence(path, "is a directory, not a video", advice="Name a file."))
    if path.is_file() and path.stat().st_size == 0:
        raise MediaError(sentence(path, "is empty (0 bytes)", advice="Copy or record it again."))
    what, advice = "cannot be read as media", "Check that it is a video and complete."
    if _is_cut_off(path):
        what = "the file is cut off before its index (moov), without which nothing can be decoded"
        advice = "Copy or record it again; a repair tool needs an intact file of the same camera."
    _refuse_list(path)
    name, container = _opened_webp(path, max_pixels) or (str(path.absolute()), container)
    with libav_errors(path, what, advice=advice):
        # libavformat takes the `options` that it knows and passes the rest to the decoders that it
        # opens to find stream parameters.
        opened = _opened(
            name,
            on_gpu,
            format=None if container is None else container.split(",")[0],
            metadata_errors="replace",
            options={
                "max_pixels": str(min(max_pixels, MAX_PIXELS_OF_LIBAV)),
                "max_streams": str(max(max_streams, MAX_STREAMS) + 1),
                "protocol_whitelist": "file",
                "format_whitelist": _ALLOWED_FORMATS,
            },
        )
    if len(opened.streams) > max_streams:
        opened.close()
        raise RefusedError(
            sentence(
                path,
                f"holds more than the {max_streams} streams that are allowed",
                advice="Raise source.max_streams if you trust the file.",
            )
        )
    return opened


def _opened_webp(path: Path, max_pixels: int) -> tuple[str | WebpAsPng, str | None] | None:
    """Return what libav reads of an animated WebP, and its format; None for all other files."""
    if not is_animated_webp(path):
        return None
    opened = WebpAsPng(path)
    try:
        refuse_giant(path, opened.animation.width, opened.animation.height, max_pixels)
    except RefusedError:
        opened.close()
        raise
    return opened, "apng"


def _is_cut_off(path: Path) -> bool:
    try:
        return cut_off_index(path)
    except PermissionError as error:
        raise UsageError(f"{shown_path(path)}: you may not read this file.") from error


def _refuse_list(path: Path) -> None:
    """Raise a clear error for known kinds of lists; libav's whitelist refuses the others."""
    try:
        with path.open("rb") as file:
            head = file.read(32)
    except OSError:
        return  # libav's own message says why
    if head.removeprefix(b"\xef\xbb\xbf").startswith(_LISTS):
        raise RefusedError(
            sentence(
                path,
                "is a list that names other files or streams, which srstream does not follow",
                advice="Give the video itself.",
            )
        )


def nvdec_fault(path: Path, max_pixels: int, max_streams: int) -> str | None:
    """Return why NVIDIA's decoder cannot decode this file here; None if it can.

    Every build of libav includes it and says "operation not permitted" without a driver; a codec
    that the GPU does not support fails only at the first frame.
    """
    try:
        with open_source(path, max_pixels, on_gpu=True, max_streams=max_streams) as container:
            stream = container.streams.video[0]
            context = open_decoder(stream, max_pixels, on_gpu=True)
            next((True for packet in container.demux(stream) if context.decode(packet)), None)
    except (SrstreamError, av.FFmpegError, RuntimeError, NotImplementedError) as error:
        cause = error.__cause__ if isinstance(error, SrstreamError) else error
        if isinstance(cause, PermissionError):
            return "NVDEC cannot be opened on this machine (no NVIDIA driver or no GPU)"
        return f"NVDEC does not decode this video ({cause or error})"
    return None


def cut_off_index(path: Path) -> bool:
    """Return whether a file is an MP4 or MOV that ends before its moov box."""
    boxes = [name for name, _, _ in top_level_boxes(path)]
    return bool(boxes) and boxes[0] in (b"ftyp", b"wide", b"mdat") and b"moov" not in boxes


def top_level_boxes(path: Path, limit: int = 100_000) -> Iterator[tuple[bytes, int, int]]:
    """Yield (type, start, end) of an MP4's outermost boxes, as long as they look like boxes.

    `end` may exceed the end of the file (ISO/IEC 14496-12, 4.2).
    """
    size = path.stat().st_size
    at = 0
    with path.open("rb") as file:
        for _ in range(limit):
            file.seek(at)
            head = file.read(16)
            if len(head) < 8 or not (head[4:8].isalnum() or head[4:8].strip().isalnum()):
                return
            length = int.from_bytes(head[:4], "big")
            if length == 1 and len(head) == 16:
                length = int.from_bytes(head[8:16], "big")
            end = size if length == 0 else at + length
            yield head[4:8], at, end
            if 0 < length < 8 or end >= size:
                return
            at = end


def is_picture(stream: Stream) -> bool:
    """Return whether a video stream is a cover or thumbnails rather than the main video."""
    return bool(stream.disposition & (Disposition.attached_pic | Disposition.timed_thumbnails))


def has_timestamps(container: InputContainer) -> bool:
    """Return whether packets carry display times of their own.

    They do not in raw streams, nor in AVI with H.264 or HEVC: AVI counts packets as they are
    decoded, and libav's guess at B frames is wrong. Both have a constant frame rate.
    """
    if container.format.name == "avi":
        codecs = {stream.codec_context.name for stream in container.streams.video}
        return not codecs & {"h264", "hevc"}
    return not container.format.flags & _AVFMT_NOTIMESTAMPS


_ASPECT_BOXES = {"mov": b"pasp", "avi": b"vprp"}
_WITHOUT_ASPECT = {"mpegts", "mpeg", "mpegvideo", "m4v", "h264", "hevc", "vvc", "flv", "dv"}
_MAX_INDEX_BYTES = 64 << 20


def states_aspect(path: Path, container: InputContainer) -> bool:
    """Return whether the container states a pixel aspect, which then applies to all pictures.

    Otherwise each picture states its own. MP4, MOV and AVI may or may not state one.
    """
    names = container.format.name.split(",")
    if _WITHOUT_ASPECT.intersection(names):
        return False
    box = next((_ASPECT_BOXES[name] for name in names if name in _ASPECT_BOXES), None)
    if box is None:
        return True
    start, end = 0, _MAX_INDEX_BYTES >> 10
    if box == b"pasp":
        moov = [(a, b) for name, a, b in top_level_boxes(path) if name == b"moov"]
        start, end = moov[0] if moov else (0, 0)
    with path.open("rb") as file:
        file.seek(start)
        return box in file.read(min(end - start, _MAX_INDEX_BYTES))


def has_webm_alpha(stream: Stream) -> bool:
    """Return whether a VP8 or VP9 stream has alpha in its block additions (WebM's alpha_mode)."""
    return any(
        key.lower() == "alpha_mode" and value.strip() not in ("", "0")
        for key, value in stream.metadata.items()
    )


def _opened(name: str | WebpAsPng, on_gpu: bool, **options: Any) -> InputContainer:
    """Open a file, with decoders on the GPU if the usual ones for its codecs can work there."""
    if on_gpu:
        with contextlib.suppress(RuntimeError):
            return av.open(name, mode="r", hwaccel=_nvdec(), **options)
    return av.open(name, mode="r", **options)


def _nvdec() -> HWAccel:
    return HWAccel("cuda", allow_software_fallback=False)


def open_decoder(
    stream: VideoStream,
    max_pixels: int,
    threads: int = 1,
    *,
    export_quantizers: bool = False,
    on_gpu: bool = False,
) -> VideoCodecContext:
    """Return an open decoder for `stream`, limited to `max_pixels`.

    Threads share one picture (slices) and never work on several, so the output is the same for any
    number of threads, even where packets are damaged. Only libvpx decodes alpha in WebM, and only
    libav's own decoder decodes AV1 on a GPU.

    Raises:
        RuntimeError: `on_gpu`, and there is no such decoder.
    """
    context = stream.codec_context
    name = {"vp8": "libvpx", "vp9": "libvpx-vp9"}.get(context.codec.name)
    if name and name in av.codecs_available and has_webm_alpha(stream):
        context = _other_decoder(context, name)
    if on_gpu and not context.is_hwaccel:
        if context.codec.name != "libdav1d":
            raise RuntimeError(f"there is no decoder of {context.codec.name} for GPUs")
        context = _other_decoder(context, "av1", _nvdec())
    context.options = {"max_pixels": str(min(max_pixels, MAX_PIXELS_OF_LIBAV))}
    if export_quantizers:
        context.options = {**context.options, "export_side_data": "venc_params"}
    context.thread_type = "SLICE"
    context.thread_count = threads
    return context


def _other_decoder(
    context: VideoCodecContext, name: str, hwaccel: HWAccel | None = None
) -> VideoCodecContext:
    """Return a decoder of this name for the same stream."""
    other = CodecContext.create(name, "r", hwaccel=hwaccel)
    assert isinstance(other, VideoCodecContext)
    if context.extradata:
        other.extradata = context.extradata
    return other


class Clock:
    """Continues a stream's times without a gap where the file's clock jumps back.

    `correct` takes the packets of one stream in file order. Decode times rise in a sound stream; a
    fall by more than a quarter of a second, or a jump by half of a 33-bit clock, is a
    discontinuity.
    """

    def __init__(self, time_base: Fraction) -> None:
        self.offset = 0
        self._limit = max(int(Fraction(1, 4) / time_base), 1)
        self._reorder_limit = max(int(2 / time_base), 1)
        self._wraps = time_base == Fraction(1, 90000)
        self._last: int | None = None
        self._last_is_dts = False
        self._step = 0

    def correct(self, packet: Packet[Stream]) -> None:
        """Replace the packet's times with the unwrapped ones."""
        stamp = packet.dts if packet.dts is not None else packet.pts
        if stamp is None:
            return
        moment = stamp + self.offset
        is_dts = packet.dts is not None
        if self._last is not None:
            # A display time may precede the last one by the reorder depth, and so may the first
            # decode time, which Matroska does not state before that packet.
            limit = self._limit
            if not (is_dts and self._last_is_dts):
                step = max(self._step, packet.duration or 0)
                limit = max(self._reorder_limit, MAX_REORDERED * step)
            jump = moment - self._last
            if jump < -limit or (self._wraps and jump > CLOCK_WRAP // 2):
                self._leap(jump)
                moment = stamp + self.offset
            self._step = packet.duration or max(moment - self._last, 0) or self._step
        is_first = self._last is None or (is_dts and not self._last_is_dts)
        self._last = moment if is_first else max(cast(int, self._last), moment)
        self._last_is_dts = is_dts
        if self.offset:
            if packet.pts is not None:
                packet.pts += self.offset
            if packet.dts is not None:
                packet.dts += self.offset

    def _leap(self, jump: int) -> None:
        if self._wraps and abs(jump + CLOCK_WRAP) < 900_000:
            self.offset += CLOCK_WRAP
        else:
            self.offset += self._step - jump


def strictly_rising(last: int | None, pts: int) -> int:
    """Return `pts`, or the next tick after `last` where a time occurs twice."""
    return pts if last is None or pts > last else last + 1


@dataclass(frozen=True, slots=True)
class ReadFault:
    """A read from the container failed."""

    error: av.FFmpegError


def read_packets(
    container: InputContainer, *streams: Stream, deadline: float | None = None
) -> Iterator[Packet[Stream] | ReadFault]:
    """Yield the packets of `streams` (default all) in file order; a failed read is retried.

    Ends at the end of the file or after eight failures in a row, the last of which is yielded too.
    Empty packets, which a decoder would take for the end, are left out; packed MPEG-4 is unpacked.
    `deadline` is a `time.monotonic()` value after which reading stops.
    """
    faults = 0
    unpackers = {s.index: Unpacker(s) for s in streams or container.streams if may_be_packed(s)}
    while faults < MAX_FAULTS_IN_A_ROW:
        try:
            for packet in container.demux(*streams):
                if packet.size:
                    faults = 0
                    unpacker = unpackers.get(packet.stream_index)
                    yield from [packet] if unpacker is None else unpacker.push(packet)
                if deadline is not None and time.monotonic() > deadline:
                    return
            for unpacker in unpackers.values():
                yield from unpacker.drain()
            return
        except av.FFmpegError as error:
            if error.errno == errno.EAGAIN:
                continue
            faults += 1
            yield ReadFault(error)


def is_shown(packet: Packet[Stream], codec: str) -> bool:
    """Return whether a packet holds a visible picture: not cut by an edit list, not hidden.

    Some files store the hidden reference pictures of VP8 and VP9 in separate packets.
    """
    if packet.is_discard:
        return False
    if codec == "vp8" and packet.size:
        return bool(memoryview(packet)[0] & 0x10)  # RFC 6386, 9.1
    if codec == "vp9" and packet.size:
        return _is_shown_vp9(memoryview(packet))
    return True


def _is_shown_vp9(data: memoryview) -> bool:
    """See the VP9 bitstream specification, 6.2 (uncompressed header) and Annex B (superframes)."""
    if data[-1] & 0xE0 == 0xC0:
        return True
    head = data[0]
    if head & 0x30 == 0x30:
        head <<= 1
    return bool(head & 0x08 or head & 0x02)


ProgressCallback = Callable[[int, int], None]
"""Called with (bytes done, total bytes)."""
