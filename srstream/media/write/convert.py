"""Converts streams that the output container cannot carry unchanged: text subtitles and audio.

Text subtitles are rewritten packet by packet, or cue by cue where cues may not overlap. Audio is
decoded and encoded again.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterable
from fractions import Fraction
from typing import Any, Protocol

import av
from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.packet import Packet
from av.stream import Stream
from av.subtitles.stream import SubtitleStream

from srstream.errors import EncodeError
from srstream.media.subtitle_cues import Cue
from srstream.media.types import AudioForm, StreamPlan
from srstream.media.write.audio import configure_audio, encoder_form

_ASS_HEADER = b"""[Script Info]
ScriptType: v4.00+
[V4+ Styles]
Format: Name, Fontname, Fontsize, PrimaryColour, SecondaryColour, OutlineColour, BackColour, Bold, \
Italic, Underline, StrikeOut, ScaleX, ScaleY, Spacing, Angle, BorderStyle, Outline, Shadow, \
Alignment, MarginL, MarginR, MarginV, Encoding
Style: Default,Arial,16,&Hffffff,&Hffffff,&H0,&H0,0,0,0,0,100,100,0,0,1,1,0,2,10,10,10,0
[Events]
Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text
"""

_TIME_FIELDS_OF_ASS = 8
_HTML_TAGS = re.compile(r"</?(?:[bius]|font|c|v|lang|ruby|rt)(?:[ .][^>]*)?>|<\d[\d:.]*>")
_ASS_CODES = re.compile(r"\{[^}]*\}")
_ASS_DRAWINGS = re.compile(r"\{[^}]*\\p[1-9][^}]*\}.*?(?=\{[^}]*\\p0|$)", re.DOTALL)
"""Matches vector drawings, whose text means nothing to a reader."""

_OVERRIDES = re.compile(r"\{\\[^}]*\}")
"""Matches ASS codes that stray into other formats, where other braces are text."""

_WAVER = Fraction(5, 1000)
"""Seconds that an audio frame may deviate from the previous one's end and still be continuous."""

_MAX_TEXT_BYTES = 65535
"""The largest sample of mov_text, which has a 16-bit length field."""


class Converter(Protocol):
    """Turns the packets of one source stream into those of one output stream."""

    stream: Stream

    def push(self, packet: Packet[Stream]) -> list[Packet[Stream]]:
        """Return packets for the output, in its stream's time base or with their own."""

    def drain(self) -> list[Packet[Stream]]:
        """Return what is still held back, at the end."""


class TextConverter:
    """Converts text subtitles; drops empty ones, which only mark a gap.

    Styling that both formats write in the same way (bold, italic and underline in SubRip and
    WebVTT) is kept; other styling is not.
    """

    def __init__(self, output: OutputContainer, codec: str, target: str) -> None:
        self._read = _READERS[codec]
        self._write = _WRITERS[target]
        self.overlaps = target != "mov_text"
        """Whether the output can show several cues at a time; if not, use `cue` and `packet`."""
        if target == "mov_text":
            # The encoder is not used, but it creates the sample description that players expect.
            stream = output.add_stream("mov_text")
            assert isinstance(stream, SubtitleStream)
            stream.codec_context.subtitle_header = _ASS_HEADER
            self.stream: Stream = stream
        else:
            self.stream = output.add_mux_stream(target)

    def push(self, packet: Packet[Stream]) -> list[Packet[Stream]]:
        text = self._text(packet)
        if not text:
            return []
        converted: Packet[Stream] = av.Packet(self._write(text))
        converted.time_base = packet.time_base
        converted.pts, converted.dts = packet.pts, packet.dts
        converted.duration = packet.duration
        converted.is_keyframe = True
        converted.stream = self.stream
        return [converted]

    def drain(self) -> list[Packet[Stream]]:
        return []

    def cue(self, packet: Packet[Stream]) -> Cue | None:
        """Return the text and times of a source packet, in its time base; None without a time."""
        start = packet.pts if packet.pts is not None else packet.dts
        if start is None:
            return None
        end = start + packet.duration if packet.duration else None
        return Cue(start, end, self._text(packet))

    def packet(self, cue: Cue, time_base: Fraction) -> Packet[Stream]:
        """Return a packet for the output from a cue that has an end."""
        assert cue.end is not None
        made: Packet[Stream] = av.Packet(self._write(cue.text))
        made.time_base = time_base
        made.pts = made.dts = cue.start
        made.duration = cue.end - cue.start
        made.is_keyframe = True
        made.stream = self.stream
        return made

    def _text(self, packet: Packet[Stream]) -> str:
        """Return a packet's text, "" if there is none."""
        text = self._read(bytes(packet)).strip("\r\n")
        return text if text.strip() else ""


class AudioConverter:
    """Re-encodes audio, at the source's rate and channels if the encoder can.

    Raises:
        EncodeError: the encoder accepts no suitable format.
    """

    def __init__(
        self,
        output: OutputContainer,
        source: AudioStream,
        target: str,
        form: AudioForm | None = None,
    ) -> None:
        context = source.codec_context
        if form is None:
            form = encoder_form(target, context.sample_rate, context.layout.name)
        if form is None:
            raise EncodeError(f"Stream {source.index}: {target} takes no audio such as this.")
        stream = output.add_stream(target, rate=form.rate)
        assert isinstance(stream, AudioStream)
        configure_audio(stream.codec_context, target, form)
        self.stream: Stream = stream
        self._encoder = stream
        self._decoder = context
        self._form = form
        self._resampler = av.AudioResampler(form.sample_format, form.layout, form.rate)
        self._kind: tuple[str, str, int] | None = None
        self._end: Fraction | None = None
        self._last_dts: int | None = None

    def push(self, packet: Packet[Stream]) -> list[Packet[Stream]]:
        try:
            frames = self._decoder.decode(packet)
        except av.FFmpegError:
            frames = self._silence(packet)
        return self._encode(frames)

    def _silence(self, packet: Packet[Stream]) -> list[av.AudioFrame]:
        """Return silence for a packet that cannot be decoded, so that the rest keeps its time."""
        if self._kind is None or packet.pts is None or not packet.duration:
            return []
        name, layout, rate = self._kind
        base = Fraction(packet.time_base)
        frame = av.AudioFrame(name, layout, max(round(packet.duration * base * rate), 1))
        for plane in frame.planes:
            plane.update(bytes([0x80 if name.startswith("u8") else 0]) * plane.buffer_size)
        frame.sample_rate, frame.time_base, frame.pts = rate, base, packet.pts
        return [frame]

    def drain(self) -> list[Packet[Stream]]:
        try:
            packets = self._encode(self._decoder.decode(None))
        except av.FFmpegError:
            packets = []
        return [*packets, *self._flush(), *self._rising(self._encoder.encode(None))]

    def _encode(self, frames: list[av.AudioFrame]) -> list[Packet[Stream]]:
        packets: list[Packet[Stream]] = []
        for frame in frames:
            if not self._place(frame):
                continue
            kind = frame.format.name, frame.layout.name, frame.sample_rate
            if kind != self._kind:
                # A broadcast may switch between stereo and 5.1; the output keeps its layout.
                if self._kind is not None:
                    packets += self._flush()
                    form = self._form
                    self._resampler = av.AudioResampler(form.sample_format, form.layout, form.rate)
                self._kind = kind
            for resampled in self._resampler.resample(frame):
                packets += self._rising(self._encoder.encode(resampled))
        return packets

    def _place(self, frame: av.AudioFrame) -> bool:
        """Set a frame's time so that it follows the last one; False if it ends before that.

        Deviations by rounding count as continuous; gaps stay gaps. Muxers reject times that go
        backwards.
        """
        base = Fraction(frame.time_base or 0)
        if not base or not frame.sample_rate:
            return True
        length = Fraction(frame.samples, frame.sample_rate)
        if frame.pts is None and self._end is None:
            return True
        moment = self._end if frame.pts is None else frame.pts * base
        assert moment is not None
        if self._end is not None:
            if moment + length <= self._end - _WAVER:
                return False
            if moment <= self._end + _WAVER and moment != self._end:
                moment = self._end
        # The unit is samples, so that times in milliseconds stay exact.
        frame.time_base = Fraction(1, frame.sample_rate)
        frame.pts = round(moment * frame.sample_rate)
        self._end = moment + length
        return True

    def _flush(self) -> list[Packet[Stream]]:
        """Encode what the resampler still holds."""
        packets: list[Packet[Stream]] = []
        for frame in self._resampler.resample(None):
            packets += self._rising(self._encoder.encode(frame))
        return packets

    def _rising(self, packets: Iterable[Packet[Any]]) -> list[Packet[Stream]]:
        ready = []
        for packet in packets:
            if packet.dts is not None:
                if self._last_dts is not None and packet.dts <= self._last_dts:
                    packet.pts = packet.dts = self._last_dts + 1
                self._last_dts = packet.dts
            ready.append(packet)
        return ready


def make_converter(output: OutputContainer, source: Stream, plan: StreamPlan) -> Converter:
    """Return a converter that adds its stream to `output`.

    Raises:
        EncodeError: there is no such conversion.
    """
    codec, target = plan.codec, plan.output_codec or ""
    if isinstance(source, AudioStream):
        return AudioConverter(output, source, target, plan.form)
    if codec in _READERS and target in _WRITERS:
        return TextConverter(output, codec, target)
    raise EncodeError(f"Stream {source.index}: srstream cannot convert {codec} to {target}.")


# Reading: packet to lines of text with SubRip tags


def _read_plain(data: bytes) -> str:
    return data.decode("utf-8", "replace").replace("\r\n", "\n")


def _read_mov_text(data: bytes) -> str:
    """Parse 3GPP TS 26.245: 16-bit length, UTF-8 (or UTF-16 after a BOM), then style boxes."""
    length = int.from_bytes(data[:2], "big")
    text = data[2 : 2 + length]
    if text[:2] in (b"\xfe\xff", b"\xff\xfe"):
        return text.decode("utf-16", "replace").replace("\r", "\n")
    return text.decode("utf-8", "replace").replace("\r\n", "\n").replace("\r", "\n")


def _read_ass(data: bytes) -> str:
    """Parse Matroska's form of an ASS event: nine fields, the last of which is the text."""
    fields = data.decode("utf-8", "replace").split(",", _TIME_FIELDS_OF_ASS)
    text = _ASS_CODES.sub("", _ASS_DRAWINGS.sub("", fields[-1]))
    return text.replace(r"\N", "\n").replace(r"\n", "\n").replace(r"\h", "\u00a0")


def _read_webvtt(data: bytes) -> str:
    text = re.sub(r"</?(?:c|v|lang|ruby|rt)(?:[ .][^>]*)?>|<\d[\d:.]*>", "", _read_plain(data))
    return html.unescape(text)


# Writing


def _write_subrip(text: str) -> bytes:
    return text.replace("\n", "\r\n").encode()


def _write_mov_text(text: str) -> bytes:
    plain = _OVERRIDES.sub("", _HTML_TAGS.sub("", text)).encode()
    if len(plain) > _MAX_TEXT_BYTES:
        plain = plain[:_MAX_TEXT_BYTES].decode(errors="ignore").encode()
    return len(plain).to_bytes(2, "big") + plain


def _write_webvtt(text: str) -> bytes:
    escaped = text.replace("&", "&amp;")
    return _OVERRIDES.sub("", re.sub(r"</?font[^>]*>", "", escaped)).encode()


_READERS: dict[str, Callable[[bytes], str]] = {
    "subrip": _read_plain,
    "text": _read_plain,
    "mov_text": _read_mov_text,
    "ass": _read_ass,
    "ssa": _read_ass,
    "webvtt": _read_webvtt,
}

_WRITERS: dict[str, Callable[[str], bytes]] = {
    "subrip": _write_subrip,
    "mov_text": _write_mov_text,
    "webvtt": _write_webvtt,
}
