"""How fast this machine's processor multiplies matrices, by the library of the engines."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np

from srstream.engines.table import is_installed

GEMM_SIDE = 1536


def gemm_gflops(cores: int, repeats: int) -> float:
    """The float32 product of two 1536x1536 matrices, GFLOP/s, on the CPU.

    OpenVINO computes it, or PyTorch where that is the library of the engines that are installed.
    """
    product = (_openvino_product if is_installed("openvino") else _pytorch_product)(cores)
    seconds = []
    product()
    for _ in range(3 * repeats):
        start = time.perf_counter()
        product()
        seconds.append(time.perf_counter() - start)
    return 2 * GEMM_SIDE**3 / statistics.median(seconds) / 1e9


def _openvino_product(cores: int) -> Callable[[], object]:
    from srstream.engines.openvino.library import import_openvino, openvino_core

    openvino = import_openvino()
    from openvino import opset13 as ops

    sides = [GEMM_SIDE, GEMM_SIDE]
    left, right = (ops.parameter(sides, openvino.Type.f32) for _ in range(2))
    graph = openvino.Model([ops.result(ops.matmul(left, right, False, False))], [left, right])
    options = {"INFERENCE_NUM_THREADS": str(cores), "INFERENCE_PRECISION_HINT": "f32"}
    request = openvino_core().compile_model(graph, "CPU", options).create_infer_request()
    request.infer(list(np.random.default_rng(0).random((2, *sides), np.float32)))
    return lambda: request.infer()


def _pytorch_product(cores: int) -> Callable[[], object]:
    import torch

    left, right = torch.rand(2, GEMM_SIDE, GEMM_SIDE, generator=torch.Generator().manual_seed(0))

    def product() -> object:
        before = torch.get_num_threads()
        torch.set_num_threads(cores)
        try:
            return left @ right
        finally:
            torch.set_num_threads(before)

    return product
