"""Engines that several jobs share.

Each job leases the pool while it runs. Jobs that ask for the same engine with the same weights
share one.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from srstream.config import EngineConfig, ModelConfig
from srstream.engines.contract import Engine
from srstream.engines.table import choose_engine, cpu_engine_name, gpu_engine_name
from srstream.models.table import ModelSpec

MAX_OPEN_ENGINES = 4


class EnginePool:
    """The open engines, by their settings and model.

    Any number of threads may use a pool. It keeps up to `MAX_OPEN_ENGINES` of the most recently
    used engines open, so that the next job finds its weights loaded; an engine in use is never
    closed.

    Args:
        device: the device of the pool, such as `cpu` or `cuda:0`; with `auto`, each job's settings
            decide.
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self._lock = threading.Lock()
        self._open: OrderedDict[tuple[EngineConfig, ModelConfig], tuple[Engine, str]] = (
            OrderedDict()
        )
        self._users: dict[int, int] = {}

    @contextmanager
    def lease(self) -> Iterator[Lease]:
        """Lend engines to one job; those that it opens stay open until the job ends."""
        lease = Lease(self)
        try:
            yield lease
        finally:
            with self._lock:
                for engine in lease.engines:
                    self._users[id(engine)] -= 1
                self._close_unused()

    def open(self, config: EngineConfig, model: ModelConfig, spec: ModelSpec) -> tuple[Engine, str]:
        """Return the engine for a model and why it was chosen, and count one more user of it."""
        if config.name == "auto" and self._device != "auto":
            # A named device is mandatory: without its engine the worker does not start.
            name = (
                gpu_engine_name(config) or "cuda"
                if self._device.startswith("cuda")
                else cpu_engine_name(config, spec.name)
            )
            config = config.model_copy(update={"name": name})
        with self._lock:
            key = config, model
            if key not in self._open:
                self._open[key] = choose_engine(config, model, spec)
            self._open.move_to_end(key)
            engine, reason = self._open[key]
            self._users[id(engine)] = self._users.get(id(engine), 0) + 1
            return engine, reason

    def _close_unused(self) -> None:
        for key in list(self._open):
            engine = self._open[key][0]
            if len(self._open) > MAX_OPEN_ENGINES and not self._users.get(id(engine)):
                del self._open[key]
                self._users.pop(id(engine), None)
                engine.close()


@dataclass(slots=True)
class Lease:
    """The engines of a pool that one job uses."""

    pool: EnginePool
    engines: list[Engine] = field(default_factory=list)

    def open(self, config: EngineConfig, model: ModelConfig, spec: ModelSpec) -> tuple[Engine, str]:
        engine, reason = self.pool.open(config, model, spec)
        self.engines.append(engine)
        return engine, reason
