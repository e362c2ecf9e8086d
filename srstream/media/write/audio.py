"""Finds the encoder's supported audio format nearest to the source's by opening the encoder."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import av
from av.audio.codeccontext import AudioCodecContext
from av.codec import Codec
from av.codec.context import CodecContext

from srstream.media.types import AudioForm

BITS_PER_CHANNEL = {"aac": 96_000, "libopus": 64_000, "ac3": 96_000, "mp2": 128_000}
"""Bits per second per channel; encoders that are not listed are lossless."""

DEEP_FORMATS = ("s32", "s32p", "s24", "s24p", "flt", "fltp", "dbl", "dblp")
"""Sample formats with more than 16 bits."""

_USUAL_LAYOUTS = {
    1: ("mono",), 2: ("stereo",), 3: ("2.1", "3.0"), 4: ("4.0", "quad"), 5: ("5.0",), 6: ("5.1",),
    7: ("6.1",), 8: ("7.1",), 16: ("hexadecagonal",),
}  # fmt: skip
"""Layouts by number of channels, for sources that state only the number and for encoders that
support no other layout."""

_DEEP_CODECS = ("pcm_s24", "pcm_s32", "pcm_f32", "pcm_f64", "pcm_s64", "pcm_u24", "pcm_u32")
_LOSSLESS = frozenset({"flac", "alac", "tta", "wavpack", "truehd", "mlp", "ape", "tak", "mp4als"})

_COMMON_RATES = (48000, 44100, 96000, 32000, 24000, 22050, 16000, 11025, 8000)
_MIXES = ("7.1", "6.1", "5.1", "5.0", "quad", "3.0", "stereo", "mono")


@lru_cache(maxsize=256)
def encoder_form(encoder: str, rate: int, layout: str, deep: bool = False) -> AudioForm | None:
    """Return the format nearest to a source's in which `encoder` opens; None if there is none.

    Keeping all channels takes priority over the rate; the next higher rate comes before lower ones.

    Args:
        deep: the source's samples have more than 16 bits, which are kept if possible.
    """
    formats = _formats(encoder, deep)
    for wanted in _layouts(layout):
        for hertz in _rates(encoder, rate):
            for sample_format in formats:
                if _opens(encoder, hertz, wanted, sample_format):
                    return AudioForm(hertz, wanted, sample_format)
    return None


def is_deep(codec: str, sample_format: str) -> bool:
    """Return whether a source's samples have more than 16 significant bits.

    Decoders of lossy codecs produce floats, too, but those do not count.
    """
    return codec.startswith(_DEEP_CODECS) or (codec in _LOSSLESS and sample_format in DEEP_FORMATS)


def num_channels(layout: str) -> int:
    """Return how many channels a layout has; 0 for an unknown layout."""
    try:
        return av.AudioLayout(layout).nb_channels
    except ValueError:
        number, _, word = layout.partition(" ")
        return int(number) if word == "channels" and number.isdigit() else 0


def configure_audio(context: AudioCodecContext, encoder: str, form: AudioForm) -> None:
    """Set the parameters of an encoder before it is opened."""
    context.sample_rate = form.rate
    context.layout = form.layout
    context.format = form.sample_format
    per_channel = BITS_PER_CHANNEL.get(encoder, 0)
    if per_channel:
        context.bit_rate = per_channel * num_channels(form.layout)


def _opens(encoder: str, rate: int, layout: str, sample_format: str) -> bool:
    try:
        context = CodecContext.create(encoder, "w")
        assert isinstance(context, AudioCodecContext)
        configure_audio(context, encoder, AudioForm(rate, layout, sample_format))
        context.open()
    except (av.FFmpegError, ValueError):
        return False
    return True


def _layouts(layout: str) -> Iterator[str]:
    """Yield the layout, the usual one with as many channels, and possible downmixes."""
    count = num_channels(layout)
    if "channel" not in layout:
        yield layout
    yield from (usual for usual in _USUAL_LAYOUTS.get(count, ()) if usual != layout)
    yield from (mix for mix in _MIXES if num_channels(mix) < count and mix != layout)


def _rates(encoder: str, rate: int) -> list[int]:
    known = Codec(encoder, "w").audio_rates
    if known is None:
        return [rate, *(hertz for hertz in _COMMON_RATES if hertz != rate)]
    higher = sorted(hertz for hertz in known if hertz >= rate)
    return higher + sorted((hertz for hertz in known if hertz < rate), reverse=True)


def _formats(encoder: str, are_deep: bool) -> list[str]:
    codec = Codec(encoder, "w")
    names = [fmt.name for fmt in getattr(codec, "audio_formats", None) or ()] or ["s16"]
    deep = [name for name in names if name in DEEP_FORMATS]
    shallow = [name for name in names if name not in DEEP_FORMATS]
    return deep + shallow if are_deep else shallow + deep
