"""Configures a video encoder: quality, color, threads; and tries whether it opens."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from fractions import Fraction

import av
from av.codec.context import CodecContext
from av.codec.context import Flags as CodecFlags
from av.video.codeccontext import VideoCodecContext

from srstream.config import EncodeConfig
from srstream.errors import RefusedError
from srstream.frame import PlaneLayout
from srstream.media.errors import ffmpeg_text
from srstream.media.output_checks import check_quality
from srstream.media.siting import LOCATION_NAMES, states_siting
from srstream.media.thread_priority import same_scheduling
from srstream.media.types import HdrMetadata, OutputVideo
from srstream.media.write.containers import canonical_codec

PACKED_FORMATS = frozenset({"rgb24", "bgr0", "bgra", "ya8"})
"""Packed formats that `srstream.media.write.encode` can fill besides libav's planar ones."""

HDR_TRANSFERS = (16, 18)
"""Code points of SMPTE ST 2084 (PQ) and ARIB STD-B67 (HLG)."""

DEFAULT_CRF = {
    "libx264": 18,
    "libx264rgb": 12,
    "libx265": 18,
    "libsvtav1": 28,
    "libvpx-vp9": 24,
    "libvpx": 10,
}
DEFAULT_PRESET = {
    "libx264": "veryfast",
    "libx264rgb": "veryfast",
    "libx265": "veryfast",
    "libsvtav1": "10",
    "h264_nvenc": "p5",
    "hevc_nvenc": "p5",
    "av1_nvenc": "p5",
}
DEFAULT_CQ = 19
"""NVENC's constant quality, in place of a CRF."""

QUANTIZER = 3
"""The quantizer of older MPEG-type codecs, which have no CRF and default to 200 kbit/s."""

_QUANTIZED = frozenset(
    {
        "mpeg1video", "mpeg2video", "mpeg4", "msmpeg4v2", "msmpeg4v3", "flv1", "h261", "h263",
        "h263p", "wmv1", "wmv2", "mjpeg", "rv10", "rv20",
    }
)  # fmt: skip
_QUANTIZERS_PER_LAMBDA = 118  # FF_QP2LAMBDA

HDR_KEEPERS = frozenset({"libx264", "libx265", "libsvtav1"})
"""Encoders that accept static HDR metadata, through options of their own."""

SIDE_LIMITS = {"libsvtav1": (16384, 8704), "libvpx-vp9": (65535, 65535)}
"""Largest (width, height) of encoders for which a test would take gigabytes of memory."""

_MAX_TRIAL_PIXELS = 1 << 21
_NVENC_TRIAL_SIDE = 256
"""NVENC refuses pictures under 145x49."""


def encoder_options(
    codec: str, layout: PlaneLayout, config: EncodeConfig, hdr: HdrMetadata
) -> dict[str, str]:
    """Return the encoder's own options for a configuration.

    Raises:
        RefusedError: crf or preset was given for a user-chosen encoder that does not have it.
    """
    known = private_options(codec)
    options: dict[str, str] = {}
    is_chosen = config.codec != "auto"  # An automatically chosen encoder ignores what it lacks.
    if is_chosen and config.crf is not None and not {"crf", "cq"} & known:
        raise RefusedError(f"{codec} has no --crf; leave it out or choose another --codec.")
    if is_chosen and config.preset is not None and "preset" not in known:
        raise RefusedError(f"{codec} has no --preset; leave it out or choose another --codec.")
    if is_chosen:
        check_quality(codec, config)
    if is_nvenc(codec):
        quality = DEFAULT_CQ if config.crf is None else config.crf
        options |= {"rc": "vbr", "cq": f"{quality:g}", "b": "0", "tune": "hq"}
    if "crf" in known:
        crf = DEFAULT_CRF.get(codec) if config.crf is None else config.crf
        if crf is not None:
            options["crf"] = f"{crf:g}"
    preset = config.preset or DEFAULT_PRESET.get(codec)
    if preset is not None and "preset" in known:
        options["preset"] = preset
    return options | _fixed_options(codec, layout, hdr)


def check_encoder(video: OutputVideo) -> None:
    """Open the encoder for the planned output, and close it.

    Raises:
        RefusedError: the encoder rejects the size, format, time base or options.
    """
    size = f"{video.width}x{video.height}"
    limit = SIDE_LIMITS.get(video.codec)
    trial = video
    if limit is not None:
        if video.width > limit[0] or video.height > limit[1]:
            raise RefusedError(
                f"{video.codec} holds at most {limit[0]}x{limit[1]}, the output would be {size}; "
                "use --scale or --height for a smaller one, or another --codec."
            )
        if video.width * video.height > _MAX_TRIAL_PIXELS:
            trial = replace(video, width=1280, height=720)
    context = CodecContext.create(video.codec, "w")
    assert isinstance(context, VideoCodecContext)
    try:
        configure(context, trial, threads=1, deterministic=True)
        with same_scheduling():
            context.open()
    except (av.FFmpegError, ValueError, OverflowError) as error:
        fault = nvenc_fault(video.codec) if is_nvenc(video.codec) else None
        if fault is not None:
            raise RefusedError(f"{fault}; use --codec auto or libx264.") from error
        raise RefusedError(
            f"{video.codec} refuses {size} {video.pix_fmt} with {_show(video.options)} "
            f"(FFmpeg: {ffmpeg_text(error)}); use --scale or --height for another size, or another "
            "--codec, --crf or --preset."
        ) from error


def is_nvenc(codec: str) -> bool:
    """Return whether an encoder runs on NVIDIA hardware."""
    return codec.endswith("_nvenc")


def nvenc_fault(codec: str) -> str | None:
    """Return why NVIDIA's encoder cannot be used here; None if it opens.

    Every build of libav includes it and says "operation not permitted" without a driver.
    """
    try:
        context = CodecContext.create(codec, "w")
        assert isinstance(context, VideoCodecContext)
        context.width, context.height, context.pix_fmt = (
            _NVENC_TRIAL_SIDE,
            _NVENC_TRIAL_SIDE,
            "yuv420p",
        )
        context.time_base = Fraction(1, 25)
        context.open()
    except (av.FFmpegError, ValueError) as error:
        reason = (
            "no NVIDIA driver or no GPU with NVENC"
            if isinstance(error, PermissionError)
            else f"FFmpeg: {ffmpeg_text(error)}"
            if isinstance(error, av.FFmpegError)
            else str(error)
        )
        return f"{codec} cannot be opened on this machine ({reason})"
    return None


def configure(
    context: VideoCodecContext, video: OutputVideo, *, threads: int, deterministic: bool
) -> None:
    """Set all parameters of an encoder before it is opened."""
    threads = 1 if deterministic else threads
    context.width, context.height, context.pix_fmt = video.width, video.height, video.pix_fmt
    context.time_base = video.time_base
    context.framerate = nominal_rate(video.frame_rate)
    context.sample_aspect_ratio = video.sample_aspect_ratio
    color = video.color
    context.color_primaries, context.color_trc = color.primaries, color.transfer
    context.colorspace = 0 if video.layout.kind == "rgb" else color.matrix
    context.color_range = {None: 0, False: 1, True: 2}[color.full_range]
    context.gop_size = min(max(round(5 * nominal_rate(video.frame_rate)), 25), 300)
    context.thread_count = threads
    context.flags |= CodecFlags.closed_gop | (CodecFlags.bitexact if deterministic else 0)
    options = dict(video.options)
    codec = canonical_codec(video.codec)
    if color.chroma_location and states_siting(codec, video.layout, color.chroma_location):
        options["chroma_sample_location"] = LOCATION_NAMES[color.chroma_location]
    context.options = options | _thread_options(video.codec, options, threads, deterministic)


def nominal_rate(rate: Fraction | None) -> Fraction:
    """Return a frame rate that rate control can handle; estimates run into the thousands."""
    if rate is None or rate <= 0:
        return Fraction(25)
    return min(max(Fraction(rate), Fraction(1)), Fraction(240)).limit_denominator(1001)


def private_options(codec: str) -> set[str]:
    options = CodecContext.create(codec, "w").supported_options.private
    return {option.name for option in options}


def _fixed_options(codec: str, layout: PlaneLayout, hdr: HdrMetadata) -> dict[str, str]:
    """Return the options that the pipeline requires: closed GOPs, no log output, HDR."""
    if codec in ("libx264", "libx264rgb"):
        # x264 quantizes full-resolution chroma more coarsely (QP + 6), and flat color then drifts
        # by more than a level from frame to frame.
        offset = ":chroma-qp-offset=-12" if _is_444(layout) else ""
        return {"x264-params": f"open-gop=0{offset}{_hdr_options(codec, hdr)}"}
    if codec == "libx265":
        return {"x265-params": f"open-gop=0:info=0:log-level=none{_hdr_options(codec, hdr)}"}
    if codec == "libsvtav1":
        # No leading colon; thread options are appended when the encoder is opened.
        params = _hdr_options(codec, hdr).removeprefix(":")
        return {"svtav1-params": params} if params else {}
    if codec == "libvpx-vp9":
        return {"b": "0", "row-mt": "1", "deadline": "good", "cpu-used": "5"}
    if codec == "libvpx":
        # Its CRF is capped by the bit rate, which is set too high to be reached.
        return {"b": "1G", "deadline": "good", "cpu-used": "5"}
    if codec == "ffv1":
        return {"level": "3", "slicecrc": "1", "g": "1"}
    if canonical_codec(codec) in _QUANTIZED:
        quality = str(QUANTIZER * _QUANTIZERS_PER_LAMBDA)
        # These encoders close their GOPs only without scene change detection.
        return {"flags": "+qscale", "global_quality": quality, "sc_threshold": "1000000000"}
    return {}


def _hdr_options(codec: str, hdr: HdrMetadata) -> str:
    """Return static HDR metadata as `:name=value` for each part that is present."""
    display, light = hdr.mastering_display, hdr.content_light_level
    names = {
        "libx264": ("mastering-display", "cll"),
        "libx265": ("hdr10=1:master-display", "max-cll"),
        "libsvtav1": ("mastering-display", "content-light"),
    }
    if codec not in names:
        return ""
    if display and codec == "libsvtav1":
        display = _in_nits(display)
    parts = [f":{names[codec][0]}={display}" if display else ""]
    parts += [":{}={},{}".format(names[codec][1], *light) if light else ""]
    return "".join(parts)


def _in_nits(display: str) -> str:
    """Convert x265's integers (units of 0.00002 and 0.0001 cd/m2) to SVT-AV1's decimals."""

    def scaled(found: re.Match[str]) -> str:
        unit = 10_000 if found[1] == "L" else 50_000
        return f"{found[1]}({int(found[2]) / unit:.8g},{int(found[3]) / unit:.8g})"

    return re.sub(r"(WP|[GBRL])\((\d+),(\d+)\)", scaled, display)


def _is_444(layout: PlaneLayout) -> bool:
    return layout.kind == "yuv" and not (layout.log2_chroma_w or layout.log2_chroma_h)


def _thread_options(
    codec: str, options: dict[str, str], threads: int, deterministic: bool
) -> dict[str, str]:
    """Return thread options for encoders that ignore the codec context's thread count."""
    if codec == "libx265":
        frame_threads = ":frame-threads=1" if deterministic else ""
        pools = f":pools={threads}" if threads > 1 else ":pools=none" if threads == 1 else ""
        return {"x265-params": options.get("x265-params", "") + pools + frame_threads}
    if codec == "libsvtav1":
        # SVT-AV1 writes pages of settings to stderr unless this variable forbids it.
        os.environ.setdefault("SVT_LOG", "1")
        params = [options.get("svtav1-params", ""), f"lp={threads}" if threads else ""]
        params = [part for part in params if part]
        return {"svtav1-params": ":".join(params)} if params else {}
    return {}


def _show(options: dict[str, str]) -> str:
    return " ".join(f"{key}={value}" for key, value in options.items()) or "its defaults"
