"""TensorRT's engines of one network: built, kept in the cache, and given other weights.

An engine is kept for all weights of its architecture, together with the names of its weights
(`weights.py`). Where TensorRT cannot exchange them, one is built and kept for each set of weights.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from srstream.engines.cache import EngineCache, Key
from srstream.engines.cuda.device import free_cached_memory
from srstream.engines.faults import engine_error
from srstream.engines.tensorrt.build import build_engine
from srstream.engines.tensorrt.runtime import deserialized, refit, refit_fault
from srstream.engines.tensorrt.weights import architecture_sha256, engine_tensors, weight_names
from srstream.errors import DeviceFaultError, EngineError, EngineMemoryError
from srstream.models.flat_network import FlatNetwork
from srstream.models.networks import Network

logger = logging.getLogger(__name__)

SHARE_TO_KEEP = 0.5
"""Share of the device's memory that must be free for a built engine to be kept. With less, TensorRT
leaves out kernels that it cannot try, and the engine would be slow for good."""


@dataclass(frozen=True, slots=True)
class BuiltEngine:
    """An engine as it is kept."""

    content: bytes
    """TensorRT's own form of it. Nothing: engines of this architecture cannot be refitted."""
    names: Mapping[str, str] = field(default_factory=dict)
    """The name of the network's tensor (`engine_tensors`) for each of its weights, by the weight's
    name in the engine. Nothing: it cannot take other weights."""

    def packed(self) -> bytes:
        """Return the engine as one block: a line of JSON and TensorRT's content."""
        return json.dumps(dict(self.names)).encode() + b"\n" + self.content

    @classmethod
    def unpacked(cls, block: bytes) -> BuiltEngine:
        """Return the engine in a block, which must be whole (`EngineCache` checks that)."""
        line, _, content = block.partition(b"\n")
        return cls(content, json.loads(line))


NOT_REFITTABLE = BuiltEngine(b"")
"""What is kept for an architecture whose engines cannot take other weights."""


@dataclass(frozen=True, slots=True)
class _OpenEngine:
    """TensorRT's engine on the device, and `BuiltEngine.names`."""

    engine: Any
    names: Mapping[str, str]


class _NotRefittableError(Exception):
    """No engine can be built that takes other weights."""

    def __init__(self, fault: str, is_lasting: bool) -> None:
        super().__init__(fault)
        self.is_lasting = is_lasting
        """Whether it would be so again. A lack of memory would not."""


class TensorRtEngines:
    """The engines of one network on the current CUDA device, by the longest side of their tiles.

    Args:
        network: in half precision, on the device.
        weights_sha256: SHA-256 of everything that determines its weights.
        key: everything else that determines an engine, but for the network and the tiles.
        folder: the folder of kept engines.
    """

    def __init__(
        self, network: Network | FlatNetwork, weights_sha256: str, key: Key, folder: Path
    ) -> None:
        self._network, self._weights_sha256 = network, weights_sha256
        self._key, self._cache = dict(key), EngineCache(folder)
        self._open: dict[int, _OpenEngine] = {}

    def for_side(self, side: int) -> Any:
        """Build or load TensorRT's engine for tiles of up to `side` x `side`.

        Raises:
            EngineMemoryError: there is too little memory to build it.
            EngineError: TensorRT cannot build it.
        """
        if side not in self._open:
            self._open[side] = self._kept_or_built(side)
        return self._open[side].engine

    def can_take(self, network: Network | FlatNetwork) -> bool:
        """Return whether `refit` can put a network's weights into all engines that are open."""
        return architecture_sha256(network) == architecture_sha256(self._network) and all(
            is_open.names for is_open in self._open.values()
        )

    def refit(self, network: Network | FlatNetwork, weights_sha256: str) -> None:
        """Exchange the weights in all open engines, none of which may be running.

        Raises:
            EngineError: TensorRT does not take them; the old ones stay.
            DeviceFaultError: nor does it take the old ones again.
        """
        try:
            self._put(engine_tensors(network))
        except Exception:
            try:
                self._put(engine_tensors(self._network))
            except Exception as error:
                fault = DeviceFaultError(str(error))
                raise engine_error("the weights are half exchanged", fault) from error
            raise
        self._network, self._weights_sha256 = network, weights_sha256

    def close(self) -> None:
        """Drop the engines. Their contexts keep what they need."""
        self._open.clear()

    def _put(self, tensors: Mapping[str, Tensor]) -> None:
        for is_open in self._open.values():
            refit(is_open.engine, is_open.names, tensors)

    def _kept_or_built(self, side: int) -> _OpenEngine:
        architecture = architecture_sha256(self._network)
        key: Key = {**self._key, "architecture": architecture, "max_side": side}
        kept = self._cache.load(key)
        if kept is not None:
            built = BuiltEngine.unpacked(kept)
            if built == NOT_REFITTABLE:
                return self._fixed(side)
            is_open = self._opened(built)
            if is_open is not None:
                return is_open
            self._cache.forget(key)
        try:
            return self._refittable(key, side)
        except _NotRefittableError as error:
            logger.warning(
                "TensorRT's engine of %s is built for these weights alone, and again for others: "
                "%s",
                self._network.spec.name,
                error,
            )
            fixed = self._fixed(side)
            if error.is_lasting:
                self._cache.save(key, NOT_REFITTABLE.packed())
            return fixed

    def _refittable(self, key: Key, side: int) -> _OpenEngine:
        """Build and keep an engine that can take other weights."""
        try:
            names = weight_names(self._network, side)
            content, is_to_keep = self._built_now(side, refittable=True)
        except DeviceFaultError:
            raise
        except EngineError as error:
            is_lasting = not isinstance(error, EngineMemoryError)
            raise _NotRefittableError(str(error), is_lasting) from error
        engine = _accepted(content)
        fault = refit_fault(engine, names)
        if fault is not None:
            raise _NotRefittableError(fault, True)
        built = BuiltEngine(content, {name: source for name, source in names.items() if source})
        if is_to_keep:
            self._cache.save(key, built.packed())
        return _OpenEngine(engine, built.names)

    def _fixed(self, side: int) -> _OpenEngine:
        """Return an engine of these weights alone."""
        key: Key = {**self._key, "weights_sha256": self._weights_sha256, "max_side": side}
        kept = self._cache.load(key)
        if kept is not None:
            is_open = self._opened(BuiltEngine.unpacked(kept))
            if is_open is not None:
                return is_open
            self._cache.forget(key)
        content, is_to_keep = self._built_now(side, refittable=False)
        if is_to_keep:
            self._cache.save(key, BuiltEngine(content).packed())
        return _OpenEngine(_accepted(content), {})

    def _opened(self, built: BuiltEngine) -> _OpenEngine | None:
        """Load a kept engine with the network's weights; None if this driver rejects it."""
        engine = deserialized(built.content)
        if engine is None:  # although the key is right
            return None
        if built.names:
            try:
                refit(engine, built.names, engine_tensors(self._network))
            except EngineError as error:
                logger.warning(
                    "the kept engine of %s is built anew: %s", self._network.spec.name, error
                )
                return None
        return _OpenEngine(engine, built.names)

    def _built_now(self, side: int, *, refittable: bool) -> tuple[bytes, bool]:
        """Build an engine. The second value is False if the device's memory was short."""
        free_cached_memory()
        free, total = torch.cuda.mem_get_info()
        content = build_engine(self._network, side, self._cache.folder, refittable=refittable)
        is_to_keep = free >= SHARE_TO_KEEP * total
        if not is_to_keep:
            logger.warning(
                "the GPU had %.1f of %.1f GiB free, so the engine may be slow and is not kept",
                free / 2**30,
                total / 2**30,
            )
        return content, is_to_keep


def _accepted(content: bytes) -> Any:
    engine = deserialized(content)
    if engine is None:
        raise EngineError("TensorRT rejects the engine that it has just built")
    return engine
