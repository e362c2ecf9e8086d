"""Cuts a picture into tiles and decides which part of each result is kept; pure geometry.

All tiles of a grid have one shape and lie wholly inside the picture; those at the right and bottom
are shifted inward. So the network pads with zeros exactly where the picture ends. No other border
lies within the receptive field of a kept pixel, so the result equals that of the whole picture,
bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass

PREFERRED_TILE_PIXELS = 540 * 960
"""Largest tile to use on a CPU. Measured with OpenVINO on two cores (`fast`), the time per pixel
hardly depends on the tile's shape from 64x64 to 1080x1920, so the tiles with the fewest halo pixels
are best; above this size the time starts to rise."""


@dataclass(frozen=True, slots=True)
class Rectangle:
    """A rectangle of a picture in input pixels, ends excluded."""

    top: int
    left: int
    bottom: int
    right: int

    def window(self, height: int, width: int, halo: int) -> Rectangle:
        """Return the input that the network needs for it: with the halo, cut to the picture."""
        return Rectangle(
            max(self.top - halo, 0),
            max(self.left - halo, 0),
            min(self.bottom + halo, height),
            min(self.right + halo, width),
        )

    @property
    def num_pixels(self) -> int:
        return (self.bottom - self.top) * (self.right - self.left)

    @property
    def slices(self) -> tuple[slice, slice]:
        return slice(self.top, self.bottom), slice(self.left, self.right)

    def scaled(self, scale: int, *, within: Rectangle | None = None) -> tuple[slice, slice]:
        """Return its place in the enlarged picture, or in the enlarged `within`."""
        top, left = (0, 0) if within is None else (within.top, within.left)
        return (
            slice((self.top - top) * scale, (self.bottom - top) * scale),
            slice((self.left - left) * scale, (self.right - left) * scale),
        )


@dataclass(frozen=True, slots=True)
class Tile:
    """A window of the picture and the part of it whose result is kept, in input pixels.

    `top` and `left` are the position of the window. `keep_*` are the bounds of the kept part in the
    picture, ends excluded.
    """

    top: int
    left: int
    keep_top: int
    keep_bottom: int
    keep_left: int
    keep_right: int

    @property
    def kept(self) -> Rectangle:
        """Return the kept part as a rectangle of the picture."""
        return Rectangle(self.keep_top, self.keep_left, self.keep_bottom, self.keep_right)

    def window(self, shape: tuple[int, int]) -> Rectangle:
        """Return the network's input, for tiles of this shape."""
        return Rectangle(self.top, self.left, self.top + shape[0], self.left + shape[1])

    def kept_in_picture(self, scale: int) -> tuple[slice, slice]:
        """Return the place of the kept part in the enlarged picture."""
        return (
            slice(self.keep_top * scale, self.keep_bottom * scale),
            slice(self.keep_left * scale, self.keep_right * scale),
        )

    def kept_in_result(self, scale: int) -> tuple[slice, slice]:
        """Return the place of the kept part in the tile's own result."""
        return (
            slice((self.keep_top - self.top) * scale, (self.keep_bottom - self.top) * scale),
            slice((self.keep_left - self.left) * scale, (self.keep_right - self.left) * scale),
        )


@dataclass(frozen=True, slots=True)
class TileGrid:
    """Tiles of `tile_rows` x `tile_cols` that cover `width` x `height`.

    A side that is longer than the picture's is cut to it. A shorter side must be longer than two
    halos.
    """

    width: int
    height: int
    tile_rows: int
    tile_cols: int
    halo: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "tile_rows", min(self.tile_rows, self.height))
        object.__setattr__(self, "tile_cols", min(self.tile_cols, self.width))
        for tile, picture in ((self.tile_rows, self.height), (self.tile_cols, self.width)):
            if picture < 1 or (tile < picture and tile <= 2 * self.halo):
                raise ValueError(f"a tile side of {tile} is halo only ({self.halo} a side)")

    @property
    def tile_shape(self) -> tuple[int, int]:
        """(rows, columns), as `Engine.open_session` takes it."""
        return self.tile_rows, self.tile_cols

    @property
    def is_whole_picture(self) -> bool:
        return self.tile_shape == (self.height, self.width)

    def tiles(self) -> list[Tile]:
        """Return the tiles in reading order. Their kept parts cover every pixel once."""
        rows = _spans(self.height, self.tile_rows, self.halo)
        columns = _spans(self.width, self.tile_cols, self.halo)
        return [
            Tile(top, left, keep_top, keep_bottom, keep_left, keep_right)
            for top, keep_top, keep_bottom in rows
            for left, keep_left, keep_right in columns
        ]


def _spans(length: int, tile: int, halo: int) -> list[tuple[int, int, int]]:
    """Return the tiles along one axis as (start, keep from, keep to)."""
    spans = []
    kept = 0
    while kept < length:
        start = min(max(kept - halo, 0), length - tile)
        end = start + tile
        keep_to = length if end == length else end - halo
        spans.append((start, kept, keep_to))
        kept = keep_to
    return spans


def choose_tiles(
    width: int,
    height: int,
    halo: int,
    activation_bytes_per_pixel: int,
    max_memory_bytes: int | None = None,
    max_side: int | None = None,
    preferred_pixels: int | None = None,
) -> TileGrid:
    """Choose a grid: the whole picture if it is small, otherwise few and nearly square tiles.

    `max_memory_bytes` bounds the working memory of *one* tile in the engine, `max_side` its rows
    and columns, and `preferred_pixels`, in place of `PREFERRED_TILE_PIXELS`, its size. If the
    bounds leave only the halo of a tile, the smallest tile with a kept part is used anyway.
    """
    most_pixels = preferred_pixels or PREFERRED_TILE_PIXELS
    if max_memory_bytes is not None:
        most_pixels = min(most_pixels, max_memory_bytes // activation_bytes_per_pixel)
    smallest = 4 * halo + 1
    rows, columns = height, width
    num_rows = num_columns = 1
    longest = max(smallest, max_side or max(rows, columns))
    while rows > longest:
        num_rows += 1
        rows = max(smallest, _tile_side(height, num_rows, halo))
    while columns > longest:
        num_columns += 1
        columns = max(smallest, _tile_side(width, num_columns, halo))
    while rows * columns > most_pixels and (rows > smallest or columns > smallest):
        if (columns >= rows and columns > smallest) or rows <= smallest:
            num_columns += 1
            columns = max(smallest, _tile_side(width, num_columns, halo))
        else:
            num_rows += 1
            rows = max(smallest, _tile_side(height, num_rows, halo))
    return TileGrid(width, height, min(rows, height), min(columns, width), halo)


def _tile_side(length: int, num_tiles: int, halo: int) -> int:
    """Return the shortest side with which `num_tiles` tiles cover `length`."""
    return -(-(length + 2 * halo * (num_tiles - 1)) // num_tiles)
