"""A fake device that runs everything late and in as odd an order as allowed.

It holds the ring to the rules of CUDA graphs: each slot's network is captured once, for the
addresses of that slot's buffers, and afterwards nothing is allocated.

The fake keeps a queue for each stream and runs the queues in random order, as far as the events
allow. Data moves when an operation *runs*, so whatever is overwritten too early comes out wrong.
"""

from __future__ import annotations

import ctypes
from collections import deque

import numpy as np

from tests.support.gpu.ring import network


class Stream:
    def __init__(self):
        self.queue = deque()


class Event:
    """An event that counts how often it was recorded and how often it has happened."""

    def __init__(self):
        self.recorded = self.happened = 0
        self.error = None


class Failure(RuntimeError):
    pass


class LazyDevice:
    """A device that runs its streams only when it must, in random order."""

    def __init__(self, random, fail_at=frozenset(), fail_running=frozenset()):
        self.random = random
        self.streams = []
        self.fail_at, self.fail_running = fail_at, fail_running
        self.num_calls = self.num_run = 0
        self.num_failures = 0
        self.num_allocated = self.num_captured = 0
        self.is_sealed = False
        """Whether the ring is ready, and must not allocate any more."""

    # --- the protocol ----------------------------------------------------------------------

    def stream(self):
        self.allocate()
        self.streams.append(Stream())
        return self.streams[-1]

    def event(self):
        self.allocate()
        return Event()

    def pinned(self, shape, dtype):
        self.allocate()
        return np.zeros(shape, dtype)

    buffer = pinned

    def array(self, pinned):
        return pinned

    def copy(self, target, source, stream):
        self.put(stream, lambda: target.__setitem__(Ellipsis, source))

    def record(self, event, stream):
        self.put(stream, lambda: self.happen(event))
        event.recorded += 1

    def wait(self, stream, event):
        needed = event.recorded
        self.put(stream, lambda: None, ready=lambda: event.happened >= needed)

    def has_happened(self, event):
        self.run_some(int(self.random.integers(0, 4)))
        return event.happened >= event.recorded

    def synchronize(self, event):
        while event.happened < event.recorded:
            assert self.run_one(), "waiting for what will never happen"
        error, event.error = event.error, None
        if error is not None:
            raise error

    def synchronize_all(self, streams):
        assert set(streams) == set(self.streams)
        while any(stream.queue for stream in self.streams):
            self.run_one()
        return

    # --- behind it -------------------------------------------------------------------------

    def allocate(self):
        assert not self.is_sealed, "memory is allocated after the capture"
        self.num_allocated += 1

    def capture(self, inputs, outputs, stream):
        """A graph: it computes on the addresses that the buffers had when it was captured."""
        (device_in,), device_out = inputs, outputs
        assert not self.is_sealed, "a graph is captured after the ring was ready"
        self.num_captured += 1
        addresses = [buffer.ctypes.data for buffer in (device_in, *device_out)]
        given, *made = (as_memory(buffer) for buffer in (device_in, *device_out))

        def replay(parts):
            now = [buffer.ctypes.data for buffer in (device_in, *device_out)]
            assert now == addresses, "a slot's buffers have moved"

            def run():
                for buffer, planes in zip(made, network(given), strict=True):
                    buffer[...] = planes

            self.put(stream, run)

        return replay

    def happen(self, event):
        event.happened += 1
        event.error, self.pending = self.pending, None

    pending = None

    def put(self, stream, run, ready=lambda: True):
        self.num_calls += 1
        if self.num_calls in self.fail_at:
            self.num_failures += 1
            raise Failure(f"call {self.num_calls}")
        stream.queue.append((run, ready))
        self.run_some(int(self.random.integers(0, 3)))

    def run_some(self, count):
        for _ in range(count):
            if not self.run_one():
                return

    def run_one(self):
        able = [s for s in self.streams if s.queue and s.queue[0][1]()]
        if not able:
            assert not any(s.queue for s in self.streams), "a deadlock: nothing can run"
            return False
        stream = able[int(self.random.integers(len(able)))]
        stream.queue.popleft()[0]()
        self.num_run += 1
        return True


def as_memory(buffer):
    """An array at a buffer's address; what becomes of the buffer itself does not matter to it."""
    pointer = ctypes.cast(buffer.ctypes.data, ctypes.POINTER(ctypes.c_uint8))
    return np.ctypeslib.as_array(pointer, buffer.shape)
