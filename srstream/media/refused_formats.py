"""libav formats that srstream never opens."""

from __future__ import annotations

NAMING_FORMATS = frozenset(
    {
        *("concat", "dash", "hds", "hls", "image2", "imf", "smoothstreaming", "vobsub"),
        *("webm_dash_manifest", "avisynth", "vapoursynth", "dvdvideo", "mlv"),
        *("rtp", "rtsp", "sap", "sdp", "whip"),
        *("alsa", "fbdev", "kmsgrab", "lavfi", "oss", "v4l2", "video4linux2,v4l2", "x11grab"),
    }
)
"""Formats whose content names other files, hosts or devices that libav would open."""
