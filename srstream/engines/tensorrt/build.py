"""Builds TensorRT's engine from a network with torch-tensorrt, which needs no GPU.

The module itself is in half precision: torch-tensorrt ignores `enabled_precisions` without a
warning and would build float32. `require_full_compilation` makes a layer that TensorRT does not
support an error, instead of letting PyTorch run it.

The batch size is one. Rows and columns are free between `MIN_SIDE` and the engine's longest side,
and the engine is tuned for the longest, so a new resolution never needs a new engine.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

import torch
from torch.export import Dim, ExportedProgram

from srstream.engines.cache import private_folder
from srstream.engines.faults import engine_error
from srstream.errors import EngineError, first_line
from srstream.installing import install_command
from srstream.models.flat_network import FlatNetwork
from srstream.models.networks import Network

logger = logging.getLogger(__name__)

MIN_SIDE = 8
"""Rows and columns of the smallest tile for which engines are built."""

TIMING_CACHE = "timing.cache"

TRACED_SHAPE = (24, 40)
"""Shape of the example with which the export is traced. The tracer treats some sides, such as 1,
specially; these are not among them."""


def import_torch_tensorrt() -> ModuleType:
    """Import torch-tensorrt, or raise `EngineError`: without a driver the import fails."""
    try:
        import torch_tensorrt
    except Exception as error:  # ImportError, OSError, RuntimeError, AssertionError occur
        raise EngineError(
            f"torch-tensorrt cannot be loaded ({first_line(error)}). It needs an NVIDIA driver "
            f"and {install_command('tensorrt')}"
        ) from error
    for name in ("torch_tensorrt", "torch.export"):
        logging.getLogger(name).setLevel(logging.ERROR)
    module: ModuleType = torch_tensorrt
    return module


def exported(network: Network | FlatNetwork, max_side: int) -> ExportedProgram:
    """Export the network in half precision as one graph with open rows and columns."""
    half = network.half().eval()
    planes = network.spec.form.num_input_planes
    device = next(half.parameters()).device
    example = torch.zeros(1, planes, *TRACED_SHAPE, dtype=torch.float16, device=device)
    rows = Dim("rows", min=MIN_SIDE, max=max_side)
    columns = Dim("columns", min=MIN_SIDE, max=max_side)
    with torch.no_grad():
        return torch.export.export(half, (example,), dynamic_shapes=({2: rows, 3: columns},))


def tensorrt_input(network: Network | FlatNetwork, max_side: int) -> Any:
    """Return the range of input shapes for which the engine is built."""
    planes = network.spec.form.num_input_planes
    return import_torch_tensorrt().Input(
        min_shape=(1, planes, MIN_SIDE, MIN_SIDE),
        opt_shape=(1, planes, max_side, max_side),
        max_shape=(1, planes, max_side, max_side),
        dtype=torch.float16,
    )


def build_engine(
    network: Network | FlatNetwork, max_side: int, folder: Path, *, refittable: bool = False
) -> bytes:
    """Build and serialize the engine, which takes seconds to minutes.

    Args:
        refittable: whether the engine can take other weights later. TensorRT then fuses less.
        folder: a folder that only this user can write to. TensorRT reads its measurements of
            kernels from there and adds to them. By default that is a file in the temporary folder,
            where anybody can put one.

    Raises:
        EngineMemoryError: there is too little memory to build it.
        EngineError: TensorRT does not support the whole network, or cannot build it.
    """
    torch_tensorrt = import_torch_tensorrt()
    try:
        with _private(folder) as private:
            built = torch_tensorrt.dynamo.convert_exported_program_to_serialized_trt_engine(
                exported(network, max_side),
                arg_inputs=[tensorrt_input(network, max_side)],
                require_full_compilation=True,
                immutable_weights=not refittable,
                timing_cache_path=str(private / TIMING_CACHE),
            )
    except Exception as error:  # torch-tensorrt raises any exception of its layers
        raise engine_error(
            f"TensorRT cannot build {network.spec.name!r} for tiles of up to {max_side}x{max_side}",
            error,
        ) from error
    # Older versions return the bytes, newer ones an object that holds them.
    engine = built if isinstance(built, bytes | bytearray) else built.serialized_engine
    return bytes(engine)


@contextmanager
def _private(folder: Path) -> Iterator[Path]:
    """Provide the folder, or one for this time only if others may write to it."""
    try:
        private_folder(folder)
    except OSError as error:
        logger.warning("%s: is not used (%s)", folder, error)
        with TemporaryDirectory(prefix="srstream-") as temporary:
            yield Path(temporary)
        return
    yield folder


def versions() -> dict[str, str]:
    """Return the versions of all libraries that determine an engine."""
    import_torch_tensorrt()
    import tensorrt
    import torch_tensorrt

    return {
        "torch": torch.__version__,
        "torch_tensorrt": torch_tensorrt.__version__,
        "tensorrt": tensorrt.__version__,
    }
