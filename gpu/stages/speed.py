"""Each model and size, run kernel by kernel, as a CUDA graph, and compiled.

The roofline is the least time for a frame's operations and bytes, at the rates that this card
reaches in matrix products and copies. The paper model is the one behind `srstream plan --device`.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpu.stages.facts import copy_rate, product_rate
from gpu.stages.report import Report, has_gpu, run_stage
from srstream.config import EngineConfig, ModelConfig
from srstream.engines.contract import TileFormat
from srstream.engines.cuda.device import CudaDevice, Recorder, Work, queued
from srstream.engines.cuda.engine import CudaEngine
from srstream.engines.cuda.frames import FrameProgram
from srstream.engines.cuda.half import TileProgram
from srstream.engines.tiles import TileGrid
from srstream.enhancer.composer import Composer
from srstream.frame import ColorSpec, Frame, FrameForm, PlaneLayout
from srstream.jobs.planning.gpu_model import DEVICES, activation_samples, predict
from srstream.models.table import ModelSpec, available_models, model_spec
from tests.support.gpu.parity import noise, tile_format

SIZES = ((320, 180), (960, 540), (1920, 1080))
SIZE_ON_CPU = (48, 32)
REPEATS = 20


def main(report: Report) -> None:
    for name in available_models():
        spec = model_spec(name)
        device = None if has_gpu() else torch.device("cpu")
        engine = CudaEngine(EngineConfig(), ModelConfig(name=name), spec, device)
        if has_gpu():
            on_gpu(report, engine, spec)
        elif name == "srgan":
            report.not_shown(name)
        else:
            on_host(report, engine, spec)
        engine.close()


# --- on a GPU ------------------------------------------------------------------------------------


KINDS = ("eager", "graph", "compiled")
"""Kernel by kernel, in a CUDA graph, and both compiled and in a graph."""


def on_gpu(report: Report, engine: CudaEngine, spec: ModelSpec) -> None:
    product = product_rate(torch.device("cuda"), torch.float16, 8192)
    copy = copy_rate()
    for width, height in SIZES:
        floor = roofline_seconds(spec, width * height, product, copy)
        paper = paper_seconds(spec, (width, height))
        for kind in KINDS:
            what = f"{spec.name}, {width}x{height}, {kind}"
            try:
                seconds = program_seconds(kind, engine, spec, tile_format(spec, (height, width)))
            except Exception as error:  # a compiler has many
                report.check(what, False, f"{type(error).__name__}: {str(error)[:200]}")
                continue
            value = f"{1000 * seconds:.3f} ms a frame, {floor / seconds:.0%} of the roofline"
            if paper is not None:
                value += f", {paper / seconds:.2f} of the paper model's speed"
            report.figure(what, value)
        device = CudaDevice(torch.cuda.current_device())
        seconds = timed(device, device.recorder(), around(engine, spec, (width, height)))
        what = f"{spec.name}, {width}x{height}, around the network"
        report.figure(what, f"{1000 * seconds:.3f} ms a frame, as a graph")


def program_seconds(kind: str, engine: CudaEngine, spec: ModelSpec, tile: TileFormat) -> float:
    """Return the median time of a tile on the device, between events on the compute stream."""
    device = CudaDevice(torch.cuda.current_device())
    codes, outputs = buffers(spec, tile, device.device)
    program = program_of(engine, tile)
    if kind == "compiled":
        compile_network(program, codes)
    record = queued if kind == "eager" else device.recorder()
    return timed(device, record, partial(program, codes, outputs))


def timed(device: CudaDevice, record: Recorder, work: Work) -> float:
    """Return the median time of a work on the device, between events on its stream."""
    stream = device.stream()
    torch.cuda.synchronize()
    run = record(work, stream)
    for _ in range(3):
        run()
    times = []
    for _ in range(REPEATS):
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record(stream)
        run()
        ended.record(stream)
        ended.synchronize()
        times.append(began.elapsed_time(ended) / 1000)
    return statistics.median(times)


def roofline_seconds(spec: ModelSpec, pixels: int, product: float, copy: float) -> float:
    """Return the least time of a frame: its operations, or every feature map written and read."""
    operations = 2e3 * spec.kmac_per_pixel * pixels
    traffic = 4.0 * activation_samples(spec) * pixels
    return max(operations / product, traffic / copy)


def paper_seconds(spec: ModelSpec, size: tuple[int, int]) -> float | None:
    """Return the paper model's time for the network alone; None for a card that it lacks."""
    words = torch.cuda.get_device_name().lower().replace("-", " ").split()
    device = next((device for key, device in DEVICES.items() if key in words), None)
    if device is None:
        return None
    larger = (spec.scale * size[0], spec.scale * size[1])
    limits = predict(device, spec, size, larger, cpu_encode_fps=1.0, cpu_copy_gbps=1.0).limits
    return 1 / min(limits[name] for name in ("compute", "memory bandwidth", "starting kernels"))


# --- on a CPU ------------------------------------------------------------------------------------


def on_host(report: Report, engine: CudaEngine, spec: ModelSpec) -> None:
    """Run the program, and the trace of it that a compiler would be given."""
    width, height = SIZE_ON_CPU
    tile = tile_format(spec, (height, width))
    what = f"{spec.name}, {width}x{height}"
    program = program_of(engine, tile)
    codes, outputs = buffers(spec, tile, torch.device("cpu"))
    program(codes, outputs)
    expected = [output.clone() for output in outputs]
    began = time.perf_counter()
    program(codes, outputs)
    seconds = time.perf_counter() - began
    report.figure(f"{what}, eager", f"{1000 * seconds:.1f} ms on the CPU in place of a GPU")
    for output in outputs:
        output.zero_()
    compile_network(program, codes, backend="eager")
    program(codes, outputs)
    is_same = all(map(torch.equal, outputs, expected))
    report.check(f"{what}, traced", is_same, "one graph, for a compiler, with the same result")
    work = around(engine, spec, SIZE_ON_CPU)
    began = time.perf_counter()
    work()
    seconds = time.perf_counter() - began
    report.figure(f"{what}, around the network", f"{1000 * seconds:.1f} ms on the CPU")
    report.not_shown(f"{what}, graph")
    report.not_shown(f"{what}, compiled")


# --- both ----------------------------------------------------------------------------------------


def program_of(engine: CudaEngine, tile: TileFormat) -> TileProgram:
    network = engine._networks.for_bits(tile.bits)
    return TileProgram(network, tile, engine.capabilities.color_form, engine._device.device)


def around(engine: CudaEngine, spec: ModelSpec, size: tuple[int, int]) -> Work:
    """Return all that is done on the device to a whole frame in 4:2:0, but for the network."""
    can, device = engine.capabilities, engine._device
    form = FrameForm(*size, PlaneLayout("yuv", 8, 1, 1), ColorSpec(1, 1, 1, False, 1))
    shapes = [form.layout.plane_shape(index, *size) for index in range(3)]
    planes = tuple(noise(shape, 1)[0] for shape in shapes)
    frame = Frame(planes, form.layout, *size, 0, Fraction(1, 25), color=form.color)
    composer = Composer(can, form, form.scaled(spec.scale), reuses_chroma=False)
    recipe = composer.frame_recipe(composer.picture_of(frame))
    assert recipe is not None
    width, height = (side + 2 * can.border for side in size)
    grid = TileGrid(width, height, height, width, can.halo)
    network = program_of(engine, replace(recipe.tile, shape=grid.tile_shape))
    program = FrameProgram(recipe, grid, can.border, can.form, network, device.device)
    given = [torch.from_numpy(plane)[None].to(device.device) for plane in planes]
    made = [
        torch.empty((1, *place.shape), dtype=torch.uint8, device=device.device)
        for place in recipe.places
    ]
    mean = torch.empty((1, 1, 1), device=device.device)

    def work() -> None:
        program.begin(given)
        program.end(given, [*made, mean])

    return work


def compile_network(program: TileProgram, codes: Tensor, backend: str = "inductor") -> None:
    """Replace the program's network with itself, compiled as one graph for tiles of this shape.

    It is exported first: the compiler would take for tensors the arrays of NumPy that describe a
    correction for flat pictures.
    """
    network: Any = program.network
    example = torch.rand((1, *codes.shape), device=codes.device)
    exported = torch.export.export(
        network, (example.contiguous(memory_format=torch.channels_last),)
    ).module()
    program.network = torch.compile(exported, fullgraph=True, dynamic=False, backend=backend)


def buffers(
    spec: ModelSpec, tile: TileFormat, device: torch.device
) -> tuple[Tensor, Sequence[Tensor]]:
    """Return a tile of noise and its outputs, of 8 bits."""
    assert tile.shape is not None and tile.bits == 8
    rows, columns = tile.shape
    codes = torch.from_numpy(np.stack(noise(tile.shape, spec.form.num_input_planes))).to(device)
    outputs = [
        torch.empty(
            (group.num_planes, group.scale * rows, group.scale * columns),
            dtype=torch.uint8,
            device=device,
        )
        for group in spec.form.outputs
    ]
    return codes, outputs


if __name__ == "__main__":
    run_stage(main)
