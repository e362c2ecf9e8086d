"""OpenVINO on the CPU: integer planes in, integer planes out, no float arithmetic in Python.

Measured on two cores with a network of 8 layers of 16 at 320x180: two streams of one thread each
are 1.05 to 1.2 times as fast as one stream of two.
"""

from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import Any

from platformdirs import user_cache_dir

from srstream.config import EngineConfig, ModelConfig, Precision
from srstream.engines.cache import EngineCache, Key
from srstream.engines.contract import Capabilities, OnDone, TileFormat
from srstream.engines.openvino.flat import tensors_of
from srstream.engines.openvino.graph import (
    blended_network,
    constants_of,
    engine_network,
    integer_graph,
)
from srstream.engines.openvino.int8 import ranges_of
from srstream.engines.openvino.library import import_openvino, last_line, openvino_core
from srstream.engines.openvino.session import OpenVinoSession
from srstream.engines.threads import available_threads
from srstream.errors import EngineError, WeightsError
from srstream.models.blend import blend_of
from srstream.models.edges import border_of_graph
from srstream.models.table import ModelSpec

logger = logging.getLogger(__name__)

GRAPH_FORMAT = 6
"""Version of the graph around the network. Raise it with every change, so that old cached graphs
are no longer used."""

HINTS: dict[Precision, str] = {"float32": "f32", "bfloat16": "bf16", "int8": "f32"}
"""OpenVINO's names of the precisions. Layers that int8 does not quantize run in float32."""

LIVE_ACTIVATIONS = 4
"""Maximum number of feature maps at once: input, output, quantized codes, and slack."""


class OpenVinoEngine:
    """The model's network in OpenVINO, on all cores or on `config.threads` of them.

    Raises:
        EngineError: OpenVINO doesn't load.
        WeightsError: the weights are missing or cannot be read.
    """

    capabilities: Capabilities

    def __init__(
        self,
        config: EngineConfig,
        model: ModelConfig,
        spec: ModelSpec,
        cache_dir: Path | None = None,
    ) -> None:
        self.blend, self.spec = blend_of(model, spec), spec
        self.weights = self.blend.path
        try:
            self.openvino = import_openvino()
            self.core = openvino_core()
            device = str(self.core.get_property("CPU", "FULL_DEVICE_NAME"))
        except (ImportError, RuntimeError) as error:
            raise EngineError(f"OpenVINO cannot be loaded ({last_line(error)})") from error
        self.precision = config.precision
        self.ranges = ranges_of(self.blend) if config.precision == "int8" else None
        if config.precision not in self._precisions():
            raise EngineError(
                f"this processor does not compute in {config.precision}; leave --precision out"
            )
        tensors = tensors_of(spec, constants_of(blended_network(self.core, self.blend)))
        folder = cache_dir or Path(user_cache_dir("srstream")) / "openvino"
        self._cache = EngineCache(folder, log_level=logging.INFO)
        num_threads = config.threads or available_threads()
        self.capabilities = Capabilities(
            name="openvino",
            device=device.strip(),
            weights=self.weights,
            weights_sha256=self.blend.sha256,
            color_form=spec.color_form,
            scale=spec.scale,
            halo=spec.halo,
            border=0 if tensors is None else border_of_graph(spec, tensors),
            mixes_sets=self.blend.mixes_sets,
            activation_bytes_per_pixel=4
            * max(spec.network.activation_channels, 16)
            * LIVE_ACTIVATIONS,
            num_streams=num_threads,
            num_threads=num_threads,
            precision=config.precision,
            # An RGB network's 9x9 convolutions add up in an order that depends on the shape.
            takes_any_shape=spec.color_form != "rgb",
        )

    def open_session(self, tile: TileFormat, on_done: OnDone | None = None) -> OpenVinoSession:
        """See `Engine.open_session`. It takes 0.2 s the first time and 0.05 s from the cache."""
        can = self.capabilities
        if not can.min_bits <= tile.bits <= can.max_bits or min(tile.shape or (1,)) < 1:
            raise EngineError(
                f"no session can be opened for tiles {tile.shape} of {tile.bits} bits"
            )
        options = {
            "PERFORMANCE_HINT": "THROUGHPUT",
            "NUM_STREAMS": str(can.num_streams),
            "INFERENCE_NUM_THREADS": str(can.num_threads),
            "INFERENCE_PRECISION_HINT": HINTS[self.precision],
        }
        key: Key = {
            "model": self.spec.name,
            "graph": GRAPH_FORMAT,
            "openvino": self.openvino.__version__,
            "device": can.device,
            "planes": can.color_form,
            "weights_sha256": can.weights_sha256,
            "int8_ranges": repr(self.ranges),
            "tile": repr(tile),
            **options,
        }
        compiled = self._from_cache(key, options)
        if compiled is None:
            compiled = self._compile(tile, options)
            self._to_cache(key, compiled)
        return OpenVinoSession(compiled, tile, can, on_done)

    def close(self) -> None:
        """Do nothing: the object itself holds all memory."""

    def _precisions(self) -> set[str]:
        """Return the precisions in which the processor computes at full speed."""
        names = {"FP32": "float32", "BF16": "bfloat16", "INT8": "int8"}
        can = self.core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        return {names[name] for name in can if name in names}

    def _compile(self, tile: TileFormat, options: dict[str, str]) -> Any:
        network = engine_network(self.core, self.blend, self.spec, self.ranges)
        try:
            graph = integer_graph(self.openvino, network, tile, self.capabilities.color_form)
        except (RuntimeError, IndexError, AttributeError) as error:
            raise WeightsError(
                f"{self.weights}: not a {self.capabilities.scale}x network on "
                f"{self.capabilities.color_form} ({last_line(error)})"
            ) from error
        try:
            return self.core.compile_model(graph, "CPU", options)
        except RuntimeError as error:
            shape = "any shape" if tile.shape is None else f"{tile.shape[1]}x{tile.shape[0]}"
            raise EngineError(
                f"OpenVINO cannot compile {self.weights.name} for tiles of {shape} "
                f"({last_line(error)})"
            ) from error

    def _from_cache(self, key: Key, options: dict[str, str]) -> Any | None:
        """Return the compiled graph; None if there is none that OpenVINO accepts."""
        content = self._cache.load(key)
        if content is None:
            return None
        try:
            return self.core.import_model(io.BytesIO(content), "CPU", options)
        except RuntimeError as error:
            logger.warning(
                "%s: OpenVINO rejects it (%s); the engine is built anew",
                self._cache.path(key),
                last_line(error),
            )
            return None

    def _to_cache(self, key: Key, compiled: Any) -> None:
        try:
            content = compiled.export_model().getvalue()
        except RuntimeError as error:
            logger.info("a compiled graph cannot be exported (%s)", last_line(error))
            return
        self._cache.save(key, content)
