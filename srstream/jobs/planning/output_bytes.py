"""Estimates how much space an output takes, from its pixels alone."""

from __future__ import annotations

from srstream.media.types import OutputPlan

# Bits per output pixel that libx264 needs at its default quality: a static clip and a busy one.
_LOW_BITS_PER_PIXEL = 0.01
_TYPICAL_BITS_PER_PIXEL = 0.06
_LOSSLESS_BITS_PER_SAMPLE = 2.5
_LOSSLESS_CODECS = frozenset({"ffv1", "utvideo", "png", "qtrle"})
_ANIMATION_BITS_PER_PIXEL = {"gif": 2.5, "apng": 6.0, "webp": 1.2}
"""Halfway between a still clip and one that moves everywhere (0.1 to 4, 12 and 2 bits)."""


def low_bytes(plan: OutputPlan, num_frames: int) -> int:
    """Return the smallest expected size of the segments, in bytes."""
    return _estimate(plan, num_frames, _LOW_BITS_PER_PIXEL)


def typical_bytes(plan: OutputPlan, num_frames: int) -> int:
    """Return the approximate size of the segments, in bytes."""
    return _estimate(plan, num_frames, _TYPICAL_BITS_PER_PIXEL)


def output_bytes(plan: OutputPlan, num_frames: int) -> int:
    """Return the approximate size of the output, in bytes."""
    if not plan.is_animation:
        return typical_bytes(plan, num_frames)
    bits = _ANIMATION_BITS_PER_PIXEL[plan.container]
    return int(plan.size[0] * plan.size[1] * num_frames * bits / 8)


def _estimate(plan: OutputPlan, num_frames: int, bits_per_pixel: float) -> int:
    video = plan.video
    if video.codec in _LOSSLESS_CODECS:
        samples = video.layout.frame_bytes(video.width, video.height) * num_frames
        return int(samples * _LOSSLESS_BITS_PER_SAMPLE / 8)
    return int(video.width * video.height * num_frames * bits_per_pixel / 8)
