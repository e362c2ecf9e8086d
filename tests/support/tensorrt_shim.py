"""torch-tensorrt on a machine without a GPU: everything but loading and running an engine is real.

Its import asks the driver for the device. These answers let it go on: an Ampere device with memory,
and no C++ runtime, which links against the driver. Only tests use this.
"""

from __future__ import annotations

import os
from collections import Counter

import torch

SEEN: dict[str, Counter[str]] = {}
"""What the last network that was built consists of: `layers` by kind, `convolutions` by dtype."""


def install() -> None:
    """Makes torch-tensorrt importable, its runtime hand engines back unread, and records layers."""
    if torch.cuda.is_available():
        return
    torch.cuda.get_device_capability = lambda *args, **kwargs: (8, 6)
    torch.cuda.current_device = lambda: 0
    torch.cuda.mem_get_info = lambda *args, **kwargs: (8 << 30, 8 << 30)
    torch._C._CudaDeviceProperties = type("_CudaDeviceProperties", (), {})
    is_file = os.path.isfile
    os.path.isfile = lambda path: "libtorchtrt" not in str(path) and is_file(path)
    try:
        import torch_tensorrt  # noqa: F401
    finally:
        os.path.isfile = is_file
    import tensorrt

    tensorrt.Runtime = _Runtime
    _record_layers()


class _Engine:
    def __init__(self, content: bytes) -> None:
        self._content = bytes(content)

    def serialize(self) -> bytes:
        return self._content

    def get_aliased_input_tensor(self, name: str) -> None:
        return None


class _Runtime:
    """`tensorrt.Runtime` needs a driver when it is made."""

    def __init__(self, logger: object) -> None:
        pass

    def deserialize_cuda_engine(self, content: bytes) -> _Engine:
        return _Engine(content)


def _record_layers() -> None:
    from torch_tensorrt.dynamo.conversion._TRTInterpreter import TRTInterpreter

    construct = TRTInterpreter._construct_trt_network_def

    def and_look(self):
        construct(self)
        network = self.ctx.net
        layers = [network.get_layer(index) for index in range(network.num_layers)]
        kinds = [str(layer.type).rsplit(".", 1)[-1] for layer in layers]
        SEEN["layers"] = Counter(kinds)
        SEEN["convolutions"] = Counter(
            str(layer.get_output(0).dtype).rsplit(".", 1)[-1]
            for layer, kind in zip(layers, kinds, strict=True)
            if "CONVOLUTION" in kind
        )

    TRTInterpreter._construct_trt_network_def = and_look
