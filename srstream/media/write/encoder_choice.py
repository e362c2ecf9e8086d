"""Chooses the video encoder and the pixel format for a source: what keeps most, and is played."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from av.codec import Codec

from srstream.config import EncodeConfig
from srstream.errors import MediaError, RefusedError
from srstream.frame import PlaneLayout
from srstream.media.layouts import layout_of
from srstream.media.output_checks import no_encoder
from srstream.media.players import H264_MAX, HEVC_MAX, fits
from srstream.media.types import VideoInfo
from srstream.media.write.codecs import (
    HDR_TRANSFERS,
    PACKED_FORMATS,
    is_nvenc,
    nvenc_fault,
    private_options,
)
from srstream.media.write.containers import Container, canonical_codec

_ON_GPU = {"libx264": "h264_nvenc", "libx265": "hevc_nvenc"}
_DEVICE_CODECS = frozenset({"h264", "hevc", "av1", "vp9"})
_ALPHA_KEEPERS = frozenset({"ffv1", "prores_ks"})


@dataclass(frozen=True, slots=True)
class EncoderChoice:
    """An encoder, its input pixel format, and what that format loses."""

    codec: str
    pix_fmt: str
    layout: PlaneLayout
    losses: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def choose_encoder(
    video: VideoInfo,
    config: EncodeConfig,
    container: Container | None,
    size: tuple[int, int],
    *,
    on_gpu: bool = False,
) -> EncoderChoice:
    """Choose the encoder for a source; `container` is None if the user named none.

    `size` is the output's (width, height): `auto` takes what devices decode of that size.
    `on_gpu` means that the network runs on a GPU. x264 would then be the bottleneck, so `auto` uses
    NVENC instead where it opens.

    Raises:
        RefusedError: this FFmpeg lacks the encoder, or it cannot take such pictures.
    """
    codec = config.codec if config.codec != "auto" else _auto_codec(video, config, container, size)
    notes = _size_notes(codec, size) if config.codec == "auto" else []
    if on_gpu and config.codec == "auto" and codec in _ON_GPU and video.layout.bits == 8:
        there = _ON_GPU[codec]
        fault = nvenc_fault(there)
        if fault is None:
            notes.append(f"Encoded with {there}, on the GPU; --codec {codec} for the CPU.")
            codec = there
        else:
            notes.append(f"Encoded with {codec}: {fault}.")
    codec = _require_encoder(codec)
    wanted = _playable(video.layout, codec, config)
    if codec == "libx264" and wanted.kind == "rgb":
        codec = "libx264rgb"
        notes.append("Encoded with libx264rgb, since the source is RGB.")
    pix_fmt, layout = _nearest_format(codec, wanted)
    losses = []
    if wanted.has_alpha and not layout.has_alpha:
        losses.append(f"The alpha plane is left out: {codec} cannot keep it; ffv1 in .mkv can.")
    if layout.bits < wanted.bits:
        losses.append(f"{wanted.bits} bits become {layout.bits}: {codec} takes no more.")
    if _chroma_is_lost(video.layout, wanted):
        what = "RGB becomes YUV" if video.layout.kind == "rgb" else "Chroma becomes"
        fewer = _has_fewer_chroma_samples(video, wanted, size)
        (losses if fewer else notes).append(
            f"{what} 4:2:0, which devices play; --chroma keep keeps the source's."
        )
    if _chroma_is_lost(wanted, layout):
        losses.append(f"Chroma resolution is reduced to fit {codec} ({pix_fmt}).")
    if config.codec == "auto" and codec not in ("libx264", *_ON_GPU.values()):
        if not _size_notes(codec, size):
            notes.append(f"Encoded with {codec}, which keeps {_say(wanted, video)}.")
        notes += [
            f"{codec} has no --{name}; it is left out."
            for name in ("crf", "preset")
            if getattr(config, name) is not None and name not in private_options(codec)
        ]
    return EncoderChoice(codec, pix_fmt, layout, tuple(losses), tuple(notes))


def _auto_codec(
    video: VideoInfo, config: EncodeConfig, container: Container | None, size: tuple[int, int]
) -> str:
    layout = video.layout
    keeps_rgb = layout.kind == "rgb" and config.chroma == "keep"
    if container is not None and container.name == "webm":
        is_420 = layout.kind == "gray" or (layout.log2_chroma_w, layout.log2_chroma_h) == (1, 1)
        is_420 |= layout.kind == "rgb" and not keeps_rgb
        fits_av1 = is_420 and layout.bits in (8, 10)
        return "libsvtav1" if fits_av1 else "libvpx-vp9"
    ffv1_fits = container is None or container.name == "mkv"
    if layout.has_alpha and ffv1_fits:
        return "ffv1"
    if keeps_rgb:
        if layout.bits == 8:
            return "libx264rgb"
        return "libx265" if layout.bits in (10, 12) or not ffv1_fits else "ffv1"
    if layout.bits == 10 and video.color.transfer in HDR_TRANSFERS:
        return "libx265"
    if layout.bits in (8, 10):
        if not fits(size, HEVC_MAX):
            return "libsvtav1"
        # Devices decode 10 bits of HEVC, and of H.264 8 bits.
        return "libx264" if layout.bits == 8 and fits(size, H264_MAX) else "libx265"
    return "libx265" if layout.bits == 12 or not ffv1_fits else "ffv1"


def _size_notes(codec: str, size: tuple[int, int]) -> list[str]:
    """Say where the size decided on the encoder that `auto` takes."""
    if fits(size, H264_MAX) or codec not in ("libx265", "libsvtav1"):
        return []
    name, limit = ("HEVC", H264_MAX) if codec == "libx265" else ("AV1", HEVC_MAX)
    former = "H.264" if codec == "libx265" else "HEVC"
    most, now = (f"{width}x{height}" for width, height in (limit, size))
    return [f"Encoded as {name}: devices decode {former} up to {most}, the output has {now}."]


def _playable(layout: PlaneLayout, codec: str, config: EncodeConfig) -> PlaneLayout:
    """Return the layout to encode: 4:2:0 for codecs that devices decode, unless it is kept."""
    is_kept = config.chroma == "keep" or canonical_codec(codec) not in _DEVICE_CODECS
    if is_kept or layout.kind == "gray":
        return layout
    return replace(layout, kind="yuv", log2_chroma_w=1, log2_chroma_h=1)


def _has_fewer_chroma_samples(video: VideoInfo, layout: PlaneLayout, size: tuple[int, int]) -> bool:
    """Return whether the output has fewer chroma samples along a side than the source."""
    now = size[0] >> layout.log2_chroma_w, size[1] >> layout.log2_chroma_h
    before = video.width >> video.layout.log2_chroma_w, video.height >> video.layout.log2_chroma_h
    return now[0] < before[0] or now[1] < before[1]


def _require_encoder(codec: str) -> str:
    """Return the encoder's own name; `codec` may also be the name of a codec.

    Raises:
        RefusedError: there is none.
    """
    try:
        encoder = Codec(codec, "w")
    except ValueError:
        raise no_encoder(codec) from None
    if encoder.type != "video":
        raise RefusedError(f"{codec} is no video encoder; use libx264, for instance.")
    return str(encoder.name)


def _formats(codec: str) -> Iterator[tuple[str, PlaneLayout]]:
    """Yield the encoder's pixel formats that can be written plane by plane without swscale."""
    for fmt in Codec(codec, "w").video_formats or ():
        name = fmt.name
        is_planar = name.startswith(("yuv", "gbr", "gray")) and not name.startswith("yuvj")
        if name.endswith("be") or "f16" in name or "f32" in name or "msb" in name:
            continue
        if is_nvenc(codec) and name.endswith("16le"):
            continue  # 16 bits are taken, 10 are kept
        if not is_planar and name not in PACKED_FORMATS:
            continue
        try:
            yield name, layout_of(name)
        except MediaError:
            continue


def _nearest_format(codec: str, wanted: PlaneLayout) -> tuple[str, PlaneLayout]:
    """Return the format that loses least, then adds least; planar before packed."""
    best: tuple[tuple[int, ...], str, PlaneLayout] | None = None
    for name, layout in _formats(codec):
        gray_in_yuv = wanted.kind == "gray" and layout.kind == "yuv"
        if layout.kind != wanted.kind and not gray_in_yuv:
            continue
        if layout.has_alpha and not (wanted.has_alpha and codec in _ALPHA_KEEPERS):
            continue
        cost = (
            int(wanted.has_alpha and not layout.has_alpha),
            max(wanted.bits - layout.bits, 0),
            _chroma_is_lost(wanted, layout) and not gray_in_yuv,
            max(layout.bits - wanted.bits, 0),
            int(gray_in_yuv),
            -(layout.log2_chroma_w + layout.log2_chroma_h),
            int(name in PACKED_FORMATS),
        )
        if best is None or cost < best[0]:
            best = (cost, name, layout)
    if best is None:
        raise RefusedError(
            f"{codec} takes no {wanted.kind} pictures such as the source's; use --codec auto."
        )
    _, name, layout = best
    if layout.kind != wanted.kind:
        # The neutral chroma is added where the planes are packed.
        layout = PlaneLayout("gray", layout.bits)
    return name, layout


def _chroma_is_lost(wanted: PlaneLayout, layout: PlaneLayout) -> bool:
    return wanted.kind != "gray" and (
        layout.log2_chroma_w > wanted.log2_chroma_w or layout.log2_chroma_h > wanted.log2_chroma_h
    )


def _say(layout: PlaneLayout, video: VideoInfo) -> str:
    if layout.has_alpha:
        return "the alpha plane"
    if layout.kind == "rgb":
        return f"{layout.bits}-bit RGB"
    if video.color.transfer in HDR_TRANSFERS:
        return "HDR and its metadata"
    return f"{layout.bits} bits"
