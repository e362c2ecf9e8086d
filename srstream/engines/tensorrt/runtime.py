"""TensorRT's own runtime: a built engine, and a context that runs it for tiles of one shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from srstream.errors import EngineError, EngineMemoryError


def deserialized(content: bytes) -> Any | None:
    """Load TensorRT's engine; None if it belongs to another version or device."""
    import tensorrt

    runtime = tensorrt.Runtime(tensorrt.Logger(tensorrt.Logger.ERROR))
    return runtime.deserialize_cuda_engine(content)


class BuiltNetwork:
    """A `TileNetwork`: TensorRT's engine with a context for tiles of one shape.

    It runs on PyTorch's current stream. The next call overwrites its outputs. The context works in
    memory of PyTorch's that is as large as this shape needs; TensorRT would take as much as the
    engine's largest shape needs.

    Raises:
        EngineMemoryError: TensorRT has no memory for the context.
        EngineError: the engine does not take tiles of this shape.
    """

    def __init__(self, engine: Any, shape: tuple[int, int], device: torch.device) -> None:
        import tensorrt

        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        inputs = [n for n in names if engine.get_tensor_mode(n) == tensorrt.TensorIOMode.INPUT]
        (self._input,) = inputs
        self._engine = engine
        self._context = engine.create_execution_context(
            tensorrt.ExecutionContextAllocationStrategy.USER_MANAGED
        )
        if self._context is None:
            raise EngineMemoryError("TensorRT has no memory for its context")
        planes = engine.get_tensor_shape(self._input)[1]
        if not self._context.set_input_shape(self._input, (1, planes, *shape)):
            raise EngineError(f"TensorRT's engine does not take tiles of {shape[0]}x{shape[1]}")
        num_bytes = self._context.update_device_memory_size_for_shapes()
        self._memory = torch.empty(max(1, num_bytes), dtype=torch.uint8, device=device)
        self._context.set_device_memory(self._memory.data_ptr(), num_bytes)
        self._outputs = {
            name: torch.empty(
                tuple(self._context.get_tensor_shape(name)), dtype=torch.float16, device=device
            )
            for name in names
            if name != self._input
        }
        for name, output in self._outputs.items():
            self._context.set_tensor_address(name, output.data_ptr())

    def __call__(self, lr_1CHW: Tensor) -> Sequence[Tensor]:
        given = lr_1CHW.half().contiguous(memory_format=torch.contiguous_format)
        self._context.set_tensor_address(self._input, given.data_ptr())
        if not self._context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
            raise RuntimeError("TensorRT did not accept the tile")
        return list(self._outputs.values())
