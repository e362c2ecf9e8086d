"""Chroma siting: where chroma samples lie relative to luma, and which formats can state it.

Only subsampled chroma has a siting. H.264 and HEVC state it for 4:2:0 only (ITU-T H.264, E.2.1:
`chroma_loc_info_present_flag` is to be 0 for any other format), AV1 two of the six positions, the
other codecs none; Matroska's ChromaSiting elements reach neither encoder nor decoder here. What a
decoder reports in those cases is its own default and does not count as a change.
"""

from __future__ import annotations

from srstream.frame import PlaneLayout

LOCATION_NAMES = ("unspecified", "left", "center", "topleft", "top", "bottomleft", "bottom")
"""Names of the AVChromaLocation values, by number, as libav's encoders take them."""

_ANY = frozenset(range(1, 7))
_STATED_FOR_420 = {"h264": _ANY, "hevc": _ANY, "av1": frozenset({1, 3})}
_FIXED = {"mpeg1video": 2, "mpeg2video": 1, "mpeg4": 1}
"""Codecs that allow only one siting for 4:2:0 chroma."""

_PLACES = {1: (0, 1), 2: (1, 1), 3: (0, 0), 4: (1, 0), 5: (0, 2), 6: (1, 2)}
"""(right, down) from the luma sample above and to the left, in halves of a luma sample."""


def states_siting(codec: str, layout: PlaneLayout, location: int) -> bool:
    """Return whether a stream of `codec` (canonical name) can state this chroma location."""
    if not _is_subsampled(layout) or (layout.log2_chroma_w, layout.log2_chroma_h) != (1, 1):
        return False
    return location in _STATED_FOR_420.get(codec, ()) or location == _FIXED.get(codec)


def same_siting(before: int, now: int, layout: PlaneLayout) -> bool:
    """Return whether two of libav's chroma locations are the same in a format.

    An unspecified `before` matches anything. Where only columns are subsampled, rows cannot shift:
    left, topleft and bottomleft are the same.
    """
    if not _is_subsampled(layout) or before not in _PLACES or before == now:
        return True
    if now not in _PLACES:
        return False
    across = not layout.log2_chroma_w or _PLACES[before][0] == _PLACES[now][0]
    down = not layout.log2_chroma_h or _PLACES[before][1] == _PLACES[now][1]
    return across and down


def siting_in(codec: str, layout: PlaneLayout, location: int, *, full_range: bool) -> int:
    """Return where chroma has to lie in an output whose source has it at `location`.

    That is `location` where the format can state it, else where players will assume it: the only
    position that the format knows, or, unstated, left in limited range and center in full range.
    """
    if not _is_subsampled(layout) or not location or states_siting(codec, layout, location):
        return location
    assumed = _FIXED.get(codec) or (2 if full_range and codec != "h264" else 1)
    return location if same_siting(location, assumed, layout) else assumed


def siting_note(codec: str, layout: PlaneLayout, before: int, now: int) -> str | None:
    """Return the note for the user if chroma moves; None if it stays."""
    if before == now or not _is_subsampled(layout):
        return None
    return (
        f"{_name_of(layout)} chroma is moved from {LOCATION_NAMES[before]} to "
        f"{LOCATION_NAMES[now]}, where players look for it: {codec} cannot state another place."
    )


def _is_subsampled(layout: PlaneLayout) -> bool:
    return layout.kind == "yuv" and bool(layout.log2_chroma_w or layout.log2_chroma_h)


def _name_of(layout: PlaneLayout) -> str:
    names = {(1, 1): "4:2:0", (1, 0): "4:2:2", (2, 0): "4:1:1", (2, 2): "4:1:0", (0, 1): "4:4:0"}
    return names.get((layout.log2_chroma_w, layout.log2_chroma_h), "such")
