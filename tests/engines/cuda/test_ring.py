"""The ring of slots on a device that does everything as late as it may (`lazy_device.py`)."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srstream.engines import faults
from srstream.engines.cuda.ring import NUM_SLOTS, BufferForm, Ring
from srstream.errors import DeviceFaultError, EngineError, EngineMemoryError
from tests.engines.cuda.lazy_device import Failure, LazyDevice
from tests.support.gpu.ring import (
    DTYPE,
    POISON,
    SHAPE_IN,
    SHAPES_OUT,
    Outcome,
    Stressed,
    is_right,
    run_schedule,
    stress,
    stress_host,
    tile,
)


def ring_on(device, num_slots=NUM_SLOTS, told=None):
    forms = [BufferForm(shape, DTYPE) for shape in (SHAPE_IN, *SHAPES_OUT)]
    ring = Ring(device, forms[:1], forms[1:], device.capture, num_slots, told)
    assert device.num_captured == num_slots
    device.is_sealed = True
    return ring


def check(planes, number):
    assert is_right(planes, number)


def drive(seed, num_slots, num_tiles, fail_at=frozenset()):
    """Submit and collect in random order; return the device, and what became of the tiles."""
    random = np.random.default_rng(seed)
    device, outcome = LazyDevice(random, fail_at), Outcome()
    ring = ring_on(device, num_slots)
    run_schedule(ring, random, range(num_tiles), outcome)
    ring.close()
    assert outcome.num_wrong == 0
    assert not any(stream.queue for stream in device.streams)
    return device, outcome


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 14))
def test_tiles_come_back_each_as_its_own_in_any_schedule(seed, num_slots, num_tiles):
    _, outcome = drive(seed, num_slots, num_tiles)
    assert outcome.num_refused == 0


@settings(max_examples=200, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 4),
    st.integers(2, 12),
    st.frozensets(st.integers(1, 90), max_size=6),
)
def test_failures_cost_their_own_tile_only(seed, num_slots, num_tiles, fail_at):
    device, outcome = drive(seed, num_slots, num_tiles, fail_at)
    assert outcome.num_refused == device.num_failures


@pytest.mark.long
def test_ten_thousand_schedules_with_failures():
    refused = 0
    for seed in range(10_000):
        random = np.random.default_rng([7, seed])
        fail_at = frozenset(random.integers(1, 90, random.integers(0, 4)).tolist())
        device, outcome = drive(
            seed, int(random.integers(1, 5)), int(random.integers(1, 12)), fail_at
        )
        assert outcome.num_refused == device.num_failures
        refused += outcome.num_refused
    assert refused > 1000


def test_three_tiles_are_under_way_at_once():
    _, outcome = drive(3, NUM_SLOTS, 40)
    assert outcome.most_under_way == NUM_SLOTS


def test_upload_compute_and_download_overlap():
    """If nothing is waited for, the next work of the three streams belongs to different tiles."""
    device = LazyDevice(np.random.default_rng(0))
    device.run_some = lambda count: None
    ring = ring_on(device)
    tickets = [ring.submit(tile(n)) for n in range(3)]
    assert all(len(stream.queue) >= 3 for stream in device.streams)
    for number, ticket in enumerate(tickets):
        check(ring.result(ticket), number)


@pytest.mark.parametrize("broken", ["up", "ran", "slot"])
def test_the_fake_finds_a_ring_that_forgets_an_event(broken, monkeypatch):
    """The test can fail: without one of its waits, some schedule breaks the ring's results."""
    if broken == "slot":
        monkeypatch.setattr(LazyDevice, "synchronize", lambda self, event: None)
    else:
        wait = LazyDevice.wait
        nth = {"up": 0, "ran": 1}[broken]
        calls = iter(range(10**9))
        monkeypatch.setattr(
            LazyDevice,
            "wait",
            lambda self, stream, event: (
                wait(self, stream, event) if next(calls) % 2 != nth else None
            ),
        )
    with pytest.raises(AssertionError):
        for seed in range(200):
            drive(seed, NUM_SLOTS, 12)


def stressed_lazily(forgets=None):
    """Poison and sleeps, as on a GPU, on the fake device, whose order is random anyway."""
    lazy = []

    def make():
        device = LazyDevice(np.random.default_rng(len(lazy)))
        lazy.append(device)
        return Stressed(
            device,
            lambda stream: None,
            lambda buffer, stream: device.put(stream, lambda: buffer.fill(POISON)),
            forgets,
        )

    return stress(make, [lambda: lazy[-1].capture], 200)


def test_the_stress_of_a_gpu_finds_nothing_wrong_with_the_ring():
    for outcome in (stressed_lazily(), stress_host(200)):
        assert outcome.num_tiles > 1000
        assert (outcome.num_wrong, outcome.num_refused) == (0, 0)
        assert outcome.most_under_way == 4


@pytest.mark.parametrize("forgets", [1, 2])
def test_the_stress_of_a_gpu_finds_a_stream_that_does_not_wait(forgets):
    assert stressed_lazily(forgets).num_wrong > 10


def test_an_error_on_the_device_is_the_tile_s_own():
    device = LazyDevice(np.random.default_rng(1))
    ring = ring_on(device)
    first, second = ring.submit(tile(0)), ring.submit(tile(1))
    first.slot.down.error = Failure("an illegal address")
    device.happen = lambda event: setattr(event, "happened", event.happened + 1)
    with pytest.raises(EngineError, match="an illegal address"):
        ring.result(first)
    check(ring.result(second), 1)
    check(ring.result(ring.submit(tile(2))), 2)


def test_a_closed_ring_takes_and_gives_nothing():
    device = LazyDevice(np.random.default_rng(1))
    ring = ring_on(device)
    ticket = ring.submit(tile(0))
    ring.close()
    assert ticket.is_done()
    with pytest.raises(EngineError, match="closed"):
        ring.submit(tile(1))
    with pytest.raises(EngineError, match="closed"):
        ring.result(ticket)


class TimedEvent:
    """An event that happens when the test says so."""

    def __init__(self):
        self.happened = threading.Event()
        self.error = None


class TimedDevice(LazyDevice):
    """A device that does everything at once, but reports the end of a download later."""

    def __init__(self):
        super().__init__(np.random.default_rng(0))

    def event(self):
        return TimedEvent()

    def put(self, stream, run, ready=lambda: True):
        run()

    def record(self, event, stream):
        event.happened.clear()

    def wait(self, stream, event):
        pass

    def has_happened(self, event):
        if event.error is not None and event.happened.is_set():
            raise event.error
        return event.happened.is_set()

    def synchronize(self, event):
        assert event.happened.wait(20)
        error, event.error = event.error, None
        if error is not None:
            raise error


def test_every_tile_that_is_done_is_told_of_also_one_that_failed():
    """Nobody waits for the tiles, and each is done when the call comes."""
    device, told = TimedDevice(), threading.Semaphore(0)
    ring = ring_on(device, told=told.release)
    tickets = [ring.submit(tile(number)) for number in range(NUM_SLOTS)]
    assert not told.acquire(timeout=0.05)
    tickets[1].slot.down.error = Failure("an illegal address")
    for number, ticket in enumerate(tickets):
        assert not ticket.is_done()
        ticket.slot.down.happened.set()
        assert told.acquire(timeout=20) and ticket.is_done()
        if number == 1:
            with pytest.raises(EngineError, match="an illegal address"):
                ring.result(ticket)
        else:
            check(ring.result(ticket), number)
    ring.close()
    assert not told.acquire(timeout=0.05)


@pytest.fixture
def clean_record(monkeypatch):
    """Nothing that a test breaks is recorded as broken in this process."""
    monkeypatch.setattr(faults, "_fault", None)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("CUDA error: an illegal memory access was encountered", DeviceFaultError),
        ("CUDA error: device-side assert triggered", DeviceFaultError),
        ("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED", DeviceFaultError),
        ("CUDA error: out of memory", EngineMemoryError),
        ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", EngineMemoryError),
        ("TensorRT did not accept the tile", EngineError),
    ],
)
@pytest.mark.parametrize("when", ["submit", "result"])
def test_an_error_of_the_device_is_sorted(text, kind, when, clean_record):
    device = LazyDevice(np.random.default_rng(1))
    ring = ring_on(device)
    if when == "submit":
        device.put = lambda stream, run, ready=None: (_ for _ in ()).throw(RuntimeError(text))
        with pytest.raises(EngineError) as caught:
            ring.submit(tile(0))
    else:
        ticket = ring.submit(tile(0))
        ticket.slot.down.error = RuntimeError(text)
        device.happen = lambda event: setattr(event, "happened", event.happened + 1)
        with pytest.raises(EngineError) as caught:
            ring.result(ticket)
    assert type(caught.value) is kind
    assert text in str(caught.value)
    assert (faults.device_fault() is not None) == (kind is DeviceFaultError)


def test_a_fault_that_shows_when_the_device_is_asked_again_is_one(clean_record):
    """TensorRT says only that it did not accept a tile; the streams then say why."""
    device = LazyDevice(np.random.default_rng(1))
    ring = ring_on(device)
    device.put = lambda stream, run, ready=None: (_ for _ in ()).throw(RuntimeError("not accepted"))
    device.synchronize_all = lambda streams: RuntimeError("CUDA error: unspecified launch failure")
    with pytest.raises(DeviceFaultError, match="unspecified launch failure"):
        ring.submit(tile(0))


def test_is_done_raises_nothing_if_the_device_does():
    device = LazyDevice(np.random.default_rng(1))
    ring = ring_on(device)
    ticket = ring.submit(tile(0))

    def broken(event):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    device.has_happened = broken
    assert ticket.is_done()
