"""TensorRT's own runtime: a built engine, its weights, and a context for tiles of one shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from srstream.errors import EngineError, EngineMemoryError


def deserialized(content: bytes) -> Any | None:
    """Load TensorRT's engine; None if it belongs to another version or device."""
    import tensorrt

    runtime = tensorrt.Runtime(tensorrt.Logger(tensorrt.Logger.ERROR))
    return runtime.deserialize_cuda_engine(content)


def refit_fault(engine: Any, names: Mapping[str, str | None]) -> str | None:
    """Return why the engine cannot take other weights; None if it can take all of them.

    A builder may fold weights into others, and then does not list them. TensorRT 11.3 drops some
    biases of refittable engines without listing them ("Known Issues" of its release notes).

    Args:
        names: see `weights.weight_names`.
    """
    import tensorrt

    if not engine.refittable:
        return "TensorRT says that it is not refittable"
    refitter = _refitter(engine)
    listed = set(refitter.get_all_weights())
    if lost := sorted(name for name, source in names.items() if source and name not in listed):
        return f"TensorRT does not list {len(lost)} of its weights, such as {lost[0]!r}"
    for name in sorted(listed - names.keys()):  # integers are shapes and indices
        if refitter.get_weights_prototype(name).dtype == tensorrt.DataType.HALF:
            return f"TensorRT lists weights that the network does not have, such as {name!r}"
    return None


def refit(engine: Any, names: Mapping[str, str], tensors: Mapping[str, Tensor]) -> None:
    """Exchange an engine's weights. Its contexts stay valid, but none may be running.

    Args:
        names: the name in `tensors` of each of the engine's weights, by its name in the engine.

    Raises:
        EngineError: TensorRT does not take them. Some may have been exchanged already.
    """
    import tensorrt

    refitter = _refitter(engine)
    held = {}  # TensorRT reads the numbers as late as in `refit_cuda_engine`
    for name, source in names.items():
        held[name] = tensors[source].detach().half().cpu().contiguous()
        weights = tensorrt.Weights(
            tensorrt.DataType.HALF, held[name].data_ptr(), held[name].numel()
        )
        if not refitter.set_named_weights(name, weights):
            raise EngineError(f"TensorRT does not take {source!r} as {name!r}")
    if missing := refitter.get_missing_weights():
        raise EngineError(f"TensorRT asks for {len(missing)} more weights, such as {missing[0]!r}")
    if not refitter.refit_cuda_engine():
        raise EngineError("TensorRT cannot exchange the engine's weights")


def _refitter(engine: Any) -> Any:
    import tensorrt

    return tensorrt.Refitter(engine, tensorrt.Logger(tensorrt.Logger.ERROR))


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
