"""The sessions that an enhancer keeps open with its engine."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, TypeVar

from srstream.engines.contract import Engine, OnDone, Session, TileFormat
from srstream.engines.tiles import TileGrid
from srstream.engines.whole_frames import FrameEngine, FrameRecipe, FrameSession

MAX_OPEN_SESSIONS = 4
"""Sessions kept open for a stream whose frames change their size back and forth."""

_S = TypeVar("_S", bound=Session | FrameSession)


class OpenSessions:
    """The most recently used sessions of an engine, by what they were opened for.

    Args:
        on_done: see `Engine.open_session`.
        finish: called before a session is closed; it collects all that is in the engine.
    """

    def __init__(self, engine: Engine, on_done: OnDone | None, collect: Callable[[], None]) -> None:
        self._engine, self._on_done, self._collect = engine, on_done, collect
        self._open: OrderedDict[object, Session | FrameSession] = OrderedDict()

    def tiles(self, tile: TileFormat) -> Session:
        """Return a session for tiles.

        Raises:
            EngineMemoryError: the device has too little memory for another one.
        """
        return self._opened(tile, lambda: self._engine.open_session(tile, self._on_done))

    def frames(self, recipe: FrameRecipe, grid: TileGrid) -> FrameSession:
        """Return a session for whole frames, of an engine that makes them.

        Raises:
            EngineMemoryError: the device has too little memory for another one.
        """
        engine = self._engine
        assert isinstance(engine, FrameEngine)
        return self._opened((recipe, grid), lambda: engine.open_frames(recipe, grid, self._on_done))

    def __len__(self) -> int:
        return len(self._open)

    def close(self) -> None:
        """Close all sessions. What is in the engine is dropped."""
        while self._open:
            self._open.popitem()[1].close()

    def _opened(self, key: object, open_now: Callable[[], _S]) -> _S:
        if key not in self._open:
            if len(self._open) >= MAX_OPEN_SESSIONS:
                self._collect()
                self._open.popitem(last=False)[1].close()
            self._open[key] = open_now()
        self._open.move_to_end(key)
        found: Any = self._open[key]
        session: _S = found
        return session
