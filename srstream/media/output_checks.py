"""Checks what is asked of an output, without its source and without libav.

What libav can write is a table. A process that loads libav makes it, so that one that must not, the
daemon's supervisor, can refuse a request at once.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from srstream.config import EncodeConfig
from srstream.errors import RefusedError
from srstream.naming import PICTURE_SUFFIXES

_ANIMATION_ENDINGS = frozenset({".gif", ".webp", ".apng", ".png"})

CRF_RANGES = {
    "libx264": (0, 63),
    "libx264rgb": (0, 63),
    "libx265": (0, 51),
    "libsvtav1": (0, 63),
    "libvpx-vp9": (0, 63),
    "libvpx": (4, 63),
}
"""Smallest and largest crf that an encoder opens with."""

_NAMED_PRESETS = (
    *("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower"),
    *("veryslow", "placebo"),
    *"0123456789",
)
PRESETS = {
    "libx264": _NAMED_PRESETS,
    "libx264rgb": _NAMED_PRESETS,
    "libx265": _NAMED_PRESETS,
    "libsvtav1": tuple(str(number) for number in range(-2, 14)),
}
"""Presets of the encoders that have few. x264 and x265 have names and numbers for them."""


class OutputTables(BaseModel):
    """What can be written on this machine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    labels: dict[str, str]
    """The name of the container that each extension stands for."""
    carried: dict[str, frozenset[str]]
    """The codecs that a container takes, by its name; animated pictures give no choice."""
    encoders: dict[str, str]
    """The codec of each encoder; a codec's own name stands for itself."""

    def check(self, output: Path, encode: EncodeConfig, source: Path | None = None) -> None:
        """Check the ending of an output, its codec, and the codec's settings.

        Args:
            source: its name tells whether it may be an animation, which can become a PNG.

        Raises:
            RefusedError: the job would be refused for it, whatever its source is.
        """
        may_move = source is not None and source.suffix.lower() in _ANIMATION_ENDINGS
        is_still = output.suffix.lower() == ".png" and not may_move
        check_ending(output, [end for end in self.labels if end != ".png" or not is_still])
        if encode.codec == "auto":
            return
        codec = self.encoders.get(encode.codec)
        if codec is None:
            raise no_encoder(encode.codec)
        label = self.labels[output.suffix.lower()]
        if label not in self.carried:
            raise no_choice("codec", label)
        if codec not in self.carried[label]:
            raise not_carried(label, codec, fits_matroska=codec in self.carried["Matroska"])
        check_quality(encode.codec, encode)


def output_tables() -> OutputTables:
    """Ask libav what it can write here."""
    import av
    from av.codec import Codec

    from srstream.media.animations.formats import ANIMATIONS
    from srstream.media.write.containers import CONTAINERS, carried_codecs

    encoders = {}
    for name in av.codecs_available:
        try:
            encoder = Codec(name, "w")
        except ValueError:
            continue
        if encoder.type == "video":
            encoders[name] = encoders[encoder.name] = encoder.canonical_name
    containers = CONTAINERS.values()
    videos = {end: container.label for container in containers for end in container.extensions}
    animations = {end: form.label for form in ANIMATIONS.values() for end in form.extensions}
    return OutputTables(
        labels=videos | animations,
        carried={container.label: carried_codecs(container) for container in containers},
        encoders=encoders,
    )


def check_ending(path: Path, extensions: Iterable[str]) -> None:
    """Check that an output's extension names a container that can be written.

    Raises:
        RefusedError: it does not.
    """
    known = tuple(extensions)
    suffix = path.suffix.lower()
    if suffix in known:
        return
    what = f"cannot write {path.suffix}" if path.suffix else "its name has no extension"
    if suffix in PICTURE_SUFFIXES:
        what = "a video becomes a video and no picture"
    videos = ", ".join(end for end in known if end not in _ANIMATION_ENDINGS)
    raise RefusedError(
        f"{path.name}: {what}; name an output that ends in one of {videos}, or in .gif, .webp or "
        ".apng for an animation."
    )


def check_quality(codec: str, encode: EncodeConfig) -> None:
    """Check crf and preset against what an encoder takes, where that is known.

    Raises:
        RefusedError: the encoder would not open with them.
    """
    low, high = CRF_RANGES.get(codec, (0, 63))
    if encode.crf is not None and not low <= encode.crf <= high:
        raise RefusedError(f"{codec} takes a --crf from {low} to {high}, not {encode.crf:g}.")
    presets = PRESETS.get(codec)
    if encode.preset is None or presets is None or encode.preset in presets:
        return
    raise RefusedError(
        f"{codec} has no --preset {encode.preset!r}; there are {', '.join(presets)}."
    )


def no_choice(option: str, label: str) -> RefusedError:
    """Return the error for an option of video encoders that an animated picture does not have."""
    return RefusedError(
        f"--{option} cannot be chosen for {label}; leave it out, or name a video with -o."
    )


def no_encoder(codec: str) -> RefusedError:
    """Return the error for an encoder that is not there."""
    return RefusedError(
        f"This FFmpeg has no encoder {codec!r}; use libx264, libx265, libsvtav1, ffv1 or prores_ks."
    )


def not_carried(label: str, codec: str, *, fits_matroska: bool) -> RefusedError:
    """Return the error for a container that does not take a codec."""
    advice = "name an output that ends in .mkv or " if fits_matroska else ""
    return RefusedError(f"{label} cannot carry {codec} video; {advice}choose another --codec.")
