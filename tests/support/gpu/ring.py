"""Random schedules of the ring of slots, on any device.

Tests run them on a fake device and on the CPU, and `gpu/kit.py` on a GPU. Whatever the ring hands
over too early comes out wrong: buffers hold `POISON` while they hold nothing, and streams sleep.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from srstream.engines.cuda.device import CudaDevice, Recorder, queued
from srstream.engines.cuda.host import HostDevice
from srstream.engines.cuda.ring import BufferForm, Device, Prepare, Ring, Run
from srstream.errors import EngineError
from srstream.frame import Plane

SHAPE_IN, SHAPES_OUT = (2, 3, 4), ((1, 6, 8), (2, 3, 4))
DTYPE = np.dtype(np.uint8)
FORM_IN, *FORMS_OUT = (BufferForm(shape, DTYPE) for shape in (SHAPE_IN, *SHAPES_OUT))

POISON = 255
"""A code that `network` never returns."""

MAX_SLEEP_CYCLES = 60_000
"""Clock cycles of a GPU: some 30 microseconds, several times what a copy or a kernel here takes."""


def network(planes: Plane) -> list[Plane]:
    """Return the planes of a tile; every output sample depends on every input sample."""
    total = int(planes.astype(int).sum())
    return [
        ((np.arange(np.prod(shape)).reshape(shape) * 7 + total + planes.flat[0]) % 251).astype(
            DTYPE
        )
        for shape in SHAPES_OUT
    ]


class TorchNetwork:
    """The same as `network`, of buffers on a device."""

    def __init__(self, device: torch.device) -> None:
        self._ramps = [
            7 * torch.arange(int(np.prod(shape)), device=device).reshape(shape)
            for shape in SHAPES_OUT
        ]

    def __call__(self, codes: Tensor, outputs: Sequence[Tensor]) -> None:
        total = codes.to(torch.int64).sum() + codes.flatten()[0]
        for ramp, output in zip(self._ramps, outputs, strict=True):
            output.copy_((ramp + total) % 251)


def tile(number: int) -> Plane:
    return np.random.default_rng(number).integers(0, 255, SHAPE_IN, dtype=DTYPE)


@dataclass
class Outcome:
    """What became of the tiles of schedules."""

    num_tiles: int = 0
    num_refused: int = 0
    num_wrong: int = 0
    most_under_way: int = 0


def run_schedule(
    ring: Ring, random: np.random.Generator, numbers: Sequence[int], outcome: Outcome
) -> None:
    """Submit and collect tiles in random order."""
    waiting, following = [], list(numbers)
    while following or waiting:
        if following and (not waiting or random.random() < 0.6):
            number = following.pop(0)
            planes = [plane.copy() for plane in tile(number)]
            outcome.num_tiles += 1
            try:
                waiting.append((number, ring.submit(planes)))
            except EngineError:
                outcome.num_refused += 1
            for plane in planes:
                plane[:] = 0  # the planes belong to the caller again
            busy = sum(ticket.slot is not None for _, ticket in waiting)
            assert busy <= ring.num_slots
            outcome.most_under_way = max(outcome.most_under_way, busy)
        else:
            index = 0 if random.random() < 0.7 else int(random.integers(len(waiting)))
            number, ticket = waiting.pop(index)
            outcome.num_wrong += not is_right(ring.result(ticket), number)
            with contextlib.suppress(EngineError):
                ring.result(ticket)
                outcome.num_wrong += 1  # a tile is given out once


def is_right(planes: Sequence[Plane], number: int) -> bool:
    """Return whether these are the planes of the tile of this number."""
    expected = [plane for group in network(tile(number)) for plane in group]
    return len(planes) == len(expected) and all(map(np.array_equal, planes, expected))


class Stressed:
    """A device whose streams sleep, and whose buffers are poisoned before and after their use.

    Args:
        sleep: makes a stream wait for a random while.
        poison: queues filling a buffer with `POISON` in a stream.
        forgets: for a test of the test: the stream, by its place in the ring, whose waits for
            another stream do nothing.
    """

    def __init__(
        self,
        device: Device,
        sleep: Callable[[Any], None],
        poison: Callable[[Any, Any], None],
        forgets: int | None = None,
    ) -> None:
        self._device, self._sleep, self._poison, self._forgets = device, sleep, poison, forgets
        self._streams: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._device, name)

    def stream(self) -> Any:
        self._streams.append(self._device.stream())
        return self._streams[-1]

    def wait(self, stream: Any, event: Any) -> None:
        if self._forgets is None or stream is not self._streams[self._forgets]:
            self._device.wait(stream, event)

    def copy(self, target: Any, source: Any, stream: Any) -> None:
        self._poison(target, stream)
        self._sleep(stream)
        self._device.copy(target, source, stream)
        self._poison(source, stream)

    def prepared(self, prepare: Prepare) -> Prepare:
        """Return the same preparation of a network that sleeps first and poisons its input."""

        def prepare_stressed(inputs: Sequence[Any], outputs: Sequence[Any], stream: Any) -> Run:
            run = prepare(inputs, outputs, stream)

            def run_stressed(parts: Sequence[int] | None) -> None:
                for output in outputs:
                    self._poison(output, stream)
                self._sleep(stream)
                run(parts)
                for buffer in inputs:
                    self._poison(buffer, stream)

            return run_stressed

        return prepare_stressed


def prepared_by(record: Recorder, program: Callable[[Tensor, Sequence[Tensor]], None]) -> Prepare:
    """Return what makes a program ready for a slot."""

    def prepare(inputs: Sequence[Any], outputs: Sequence[Any], stream: Any) -> Run:
        replay = record(partial(program, inputs[0], outputs), stream)
        return lambda parts: replay()

    return prepare


def stress(
    device: Callable[[], Stressed],
    prepares: Sequence[Callable[[], Prepare]],
    num_schedules: int,
    seed: int = 0,
) -> Outcome:
    """Share schedules among rings of one to four slots, for each way to run the network.

    Args:
        device: makes a device for a ring.
        prepares: make what makes a network ready, for a ring each.
    """
    random, outcome, number = np.random.default_rng([1, seed]), Outcome(), 0
    rings = []
    for prepare in prepares:
        for num_slots in range(1, 5):
            own: Any = device()
            prepared = own.prepared(prepare())
            rings.append(Ring(own, [FORM_IN], FORMS_OUT, prepared, num_slots))
    for index in range(num_schedules):
        count = int(random.integers(1, 12))
        run_schedule(rings[index % len(rings)], random, range(number, number + count), outcome)
        number += count
    for ring in rings:
        ring.close()
    return outcome


def stress_host(num_schedules: int, seed: int = 0) -> Outcome:
    """Run schedules on the CPU in place of a GPU, where nothing sleeps."""
    device = HostDevice()
    program = TorchNetwork(device.device)

    def stressed() -> Stressed:
        return Stressed(device, lambda stream: None, lambda buffer, stream: buffer.fill_(POISON))

    prepares = [lambda: prepared_by(device.recorder(), program)]
    return stress(stressed, prepares, num_schedules, seed)


def stress_gpu(num_schedules: int, seed: int = 0, forgets: int | None = None) -> Outcome:
    """Run schedules on the current CUDA device, half of them with graphs."""
    device = CudaDevice(torch.cuda.current_device())
    random = np.random.default_rng(seed)
    poisons = {
        shape: torch.full(shape, POISON, dtype=torch.uint8, device=device.device)
        for shape in (SHAPE_IN, *SHAPES_OUT)
    }
    program = TorchNetwork(device.device)
    torch.cuda.synchronize()

    def sleep(stream: Any) -> None:
        if random.random() < 0.5:
            with torch.cuda.stream(stream):
                torch.cuda._sleep(int(random.integers(MAX_SLEEP_CYCLES)))

    def poison(buffer: Tensor, stream: Any) -> None:
        # Of pinned memory, only a copy to it is queued in a stream.
        with torch.cuda.stream(stream):
            buffer.copy_(poisons[tuple(buffer.shape)], non_blocking=True)

    return stress(
        lambda: Stressed(device, sleep, poison, forgets),
        [
            lambda: prepared_by(device.recorder(), program),
            lambda: prepared_by(queued, program),
        ],
        num_schedules,
        seed,
    )


class TimedDevice(CudaDevice):
    """A device whose copies take as long as the network, and that notes when each stream works.

    Sleeps of so many clock cycles stand for the work, so that nothing depends on the speeds of the
    card and the bus.
    """

    def __init__(self, index: int, cycles: int) -> None:
        super().__init__(index)
        self.cycles = cycles
        self.spans: list[tuple[Any, torch.cuda.Event, torch.cuda.Event]] = []

    def copy(self, target: Tensor, source: Tensor, stream: Any) -> None:
        self.sleep(stream)
        super().copy(target, source, stream)

    def sleep(self, stream: Any) -> None:
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        with torch.cuda.stream(stream):
            began.record()
            torch.cuda._sleep(self.cycles)
            ended.record()
        self.spans.append((stream, began, ended))


def overlap_on_gpu(num_tiles: int = 30) -> tuple[int, int]:
    """Return how many pieces of work overlap another stream's, and of how many.

    Events on each stream say when its pieces began and ended.
    """
    device = TimedDevice(torch.cuda.current_device(), cycles=5_000_000)

    def prepare(inputs: Sequence[Any], outputs: Sequence[Any], stream: Any) -> Run:
        return lambda parts: device.sleep(stream)

    start = torch.cuda.Event(enable_timing=True)
    start.record()
    torch.cuda.synchronize()
    ring = Ring(device, [FORM_IN], FORMS_OUT, prepare)
    for ticket in [ring.submit(list(tile(0))) for _ in range(num_tiles)]:
        ring.result(ticket)
    torch.cuda.synchronize()
    spans = [
        (stream, start.elapsed_time(began), start.elapsed_time(ended))
        for stream, began, ended in device.spans
    ]
    assert len({stream for stream, _, _ in spans}) == 3
    overlapping = sum(
        any(o is not s and b < (began + ended) / 2 < e for o, b, e in spans)
        for s, began, ended in spans
    )
    return overlapping, len(spans)
