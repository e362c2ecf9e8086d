"""The worker's real loop between a decoder, an engine and an encoder that keep to a schedule.

The decoder is a thread that sends over the real socket, with a process beside it that can die; the
engine repeats samples, in whatever order a schedule says; the encoder notes what it is given.
"""

from __future__ import annotations

import heapq
import itertools
import socket
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np
import zmq

from srstream.config import ReuseConfig, SourceConfig
from srstream.engines.contract import Capabilities
from srstream.enhancer.enhancer import Enhancer
from srstream.errors import EngineError, InterruptedJobError, MediaError, StalledError
from srstream.frame import ColorSpec, Frame, PlaneLayout
from srstream.jobs.encoder import Cut, EncoderThread
from srstream.jobs.segments import DecoderDiedError, SegmentCuts, Worker
from srstream.jobs.store import JobStore
from srstream.jobs.wakeup import Wakeup
from srstream.media.types import OutputVideo, TimeWindow, VideoInfo
from srstream.sandbox.child import Channel, Child
from srstream.sandbox.decoder import DecodeOutcome, DecodeRequest
from srstream.sandbox.transport import CREDIT, FrameSender, endpoint

WIDTH, HEIGHT, SCALE = 16, 12, 4
LAYOUT = PlaneLayout("yuv", 8, 1, 1)
COLOR = ColorSpec(1, 1, 1, False, 1)
TIME_BASE = Fraction(1, 25)
STALL_SECONDS = 20.0
"""Longer than a schedule takes on a machine however busy."""
VIDEO = VideoInfo(
    0, "raw", "raw", WIDTH, HEIGHT, LAYOUT, COLOR, TIME_BASE, Fraction(25), Fraction(1)
)
OUTPUT = OutputVideo(
    "raw", "raw", LAYOUT, SCALE * WIDTH, SCALE * HEIGHT, COLOR, TIME_BASE, None, Fraction(1), {}
)
FRAME_BYTES = WIDTH * HEIGHT * 3 // 2
HANGS = float("inf")


@dataclass(frozen=True)
class Schedule:
    """Lists are gone through again and again; delays are in milliseconds."""

    frames: list[str]
    """"same" as the one before, with a "dot" that changed, or "new"."""
    decoder: list[float] = field(default_factory=lambda: [0])
    tiles: list[float] = field(default_factory=lambda: [0])
    encoder: list[float] = field(default_factory=lambda: [0])
    cuts: set[int] = field(default_factory=set)
    window_frames: int = 2
    queue_items: int = 1
    num_streams: int = 1
    takes_any_shape: bool = True
    tile_side: int | None = None
    note_before: set[int] = field(default_factory=set)
    end: str = "end"
    stop_at: int | None = None
    """The number of the cut at which the job is to stop."""
    abort_ms: float | None = None
    failing_tile: int | None = None
    reuse: bool = True
    compute_ms: float = 0
    """For which every tile, and every frame in the encoder, keeps the processor busy."""

    def pictures(self) -> list[np.ndarray]:
        """Luma of each frame."""
        pictures: list[np.ndarray] = []
        for number, kind in enumerate(self.frames):
            if kind == "new" or not pictures:
                luma = np.random.default_rng(number).integers(80, 160, (HEIGHT, WIDTH), np.uint8)
            else:
                luma = pictures[-1].copy()
                if kind == "dot":
                    luma[number % HEIGHT, number * 5 % WIDTH] ^= 1
            pictures.append(luma)
        return pictures

    def starts(self) -> list[int]:
        """First frame of each segment."""
        return [0, *sorted(cut for cut in self.cuts if 0 < cut < len(self.frames))]


def compute(milliseconds: float) -> None:
    """Keep the processor busy."""
    end = time.monotonic() + milliseconds / 1000
    while time.monotonic() < end:
        pass


class TileLine:
    """Does tiles when their time has come, in an order of its own."""

    def __init__(self, schedule: Schedule) -> None:
        self._delays, self._failing = itertools.cycle(schedule.tiles), schedule.failing_tile
        self._compute_ms = schedule.compute_ms
        self._waiting: list[tuple[float, int, Tile]] = []
        self.num_tiles = 0
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="srstream-made", daemon=True)
        self._thread.start()

    def add(self, tile: Tile) -> None:
        with self._changed:
            number = self.num_tiles
            self.num_tiles += 1
            tile.fails = number == self._failing
            due = time.monotonic() + next(self._delays) / 1000
            heapq.heappush(self._waiting, (due, number, tile))
            self._changed.notify()

    def close(self) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                if self._is_closed:
                    return
                left = self._waiting[0][0] - time.monotonic() if self._waiting else HANGS
                if left > 0:
                    self._changed.wait(min(left, 60))
                    continue
                _, _, tile = heapq.heappop(self._waiting)
            compute(self._compute_ms)
            tile.finish()


class Tile:
    """A tile on its way: the ticket."""

    def __init__(self, luma: np.ndarray, on_done) -> None:
        self.luma, self.on_done = luma, on_done
        self.done = threading.Event()
        self.fails = False

    def finish(self) -> None:
        self.done.set()
        if self.on_done is not None:
            self.on_done()

    def is_done(self) -> bool:
        return self.done.is_set()


class Session:
    def __init__(self, line: TileLine, tile_format, num_in_flight: int, on_done) -> None:
        self.format, self.num_in_flight = tile_format, num_in_flight
        self._line, self._on_done = line, on_done

    def submit(self, tile) -> Tile:
        ticket = Tile(tile[0].copy(), self._on_done)
        self._line.add(ticket)
        return ticket

    def result(self, ticket: Tile) -> tuple[np.ndarray, ...]:
        assert ticket.done.is_set(), "the loop waits for a tile and for nothing else"
        if ticket.fails:
            raise EngineError("this tile was to fail")
        return (ticket.luma.repeat(SCALE, 0).repeat(SCALE, 1),)

    def close(self) -> None: ...


class Engine:
    """Repeats every sample."""

    def __init__(self, schedule: Schedule) -> None:
        self.line = TileLine(schedule)
        self.capabilities = Capabilities(
            name="made",
            device="none",
            weights=Path("none"),
            weights_sha256="",
            color_form="luma",
            scale=SCALE,
            halo=1,
            activation_bytes_per_pixel=4,
            num_streams=schedule.num_streams,
            num_threads=1,
            takes_any_shape=schedule.takes_any_shape,
            max_tile_side=schedule.tile_side,
        )

    def open_session(self, tile_format, on_done=None) -> Session:
        in_flight = self.capabilities.num_streams + 1
        return Session(self.line, tile_format, in_flight, on_done)


class NotingEncoder(EncoderThread):
    """Takes its time, and keeps what it was given."""

    def __init__(self, schedule: Schedule, store: JobStore, wakeup: Wakeup) -> None:
        super().__init__(
            store,
            OUTPUT,
            threads=1,
            deterministic=True,
            queue_items=schedule.queue_items,
            on_segment=lambda record: None,
            on_progress=wakeup.wake,
        )
        self._delays, self._compute_ms = itertools.cycle(schedule.encoder), schedule.compute_ms
        self.items: list[tuple[int, Frame] | Cut] = []

    def _do(self, item) -> None:
        delay = next(self._delays)
        while delay == HANGS and not self._is_abandoned:
            time.sleep(0.01)
        time.sleep(0 if delay == HANGS else delay / 1000)
        compute(self._compute_ms)
        self.items.append(item)

    @property
    def frames(self) -> list[tuple[int, Frame]]:
        return [item for item in self.items if not isinstance(item, Cut)]


class Decoder:
    """Sends frames from a thread as the child would, until its process is killed."""

    def __init__(self, schedule: Schedule, command: list[str]) -> None:
        self.schedule, self.command = schedule, command
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, request: DecodeRequest, log) -> Child:
        self.process = subprocess.Popen(self.command)
        address = endpoint(request.directory_descriptor)
        self.thread = threading.Thread(target=self._send, args=(address,), daemon=True)
        self.thread.start()
        return Child(self.process, Channel(socket.socket()))

    def _send(self, address: str) -> None:
        assert self.process is not None
        sender = _MortalSender(address, self.process)
        delays = itertools.cycle(self.schedule.decoder)
        try:
            for number, luma in enumerate(self.schedule.pictures()):
                time.sleep(next(delays) / 1000)
                if number in self.schedule.note_before:
                    sender.note(f"before {number}")
                sender.send(source_frame(number, luma))
            time.sleep(next(delays) / 1000)
            if self.schedule.end == "end":
                sender.end(
                    {"num_corrupt_packets": 3, "num_concealed": 0, "stopped_at_seconds": None}
                )
            elif self.schedule.end == "error":
                sender.fail(MediaError("it was to fail"))
        except _DeadError:
            return
        finally:
            sender.close()
            if self.schedule.end != "silence":
                self.process.kill()


class _DeadError(Exception):
    """The decoder's process has been killed."""


class _MortalSender(FrameSender):
    """Does not outlive the process that it stands for."""

    def __init__(self, address: str, process: subprocess.Popen[bytes]) -> None:
        super().__init__(address)
        self._process = process
        self._socket.setsockopt(zmq.LINGER, 200)

    def _take_credit(self, *, block: bool) -> None:
        while block and not self._socket.poll(10):
            if self._process.returncode is not None:
                raise _DeadError
        while self._socket.poll(0):
            kind, amount = self._socket.recv_multipart()
            assert kind == CREDIT
            self._credit_bytes += int(amount)


class MeasuredStage:
    """The enhancer, and the most that ever waited in front of the encoder."""

    def __init__(self, enhancer: Enhancer, in_flight: int) -> None:
        self._enhancer, self._in_flight = enhancer, in_flight
        self.num_pushed = 0
        self.returned: list[Frame] = []
        self.num_handed_over = 0
        self.most_held = self.most_pictures = 0
        self.has_room, self.forget = enhancer.has_room, enhancer.forget

    def push(self, frame: Frame) -> list[Frame]:
        assert self._enhancer.has_room(), "a frame was pushed that the engine has no room for"
        self.num_pushed += 1
        return self._seen(self._enhancer.push(frame))

    def collect(self) -> list[Frame]:
        return self._seen(self._enhancer.collect())

    def handed_over(self) -> None:
        self.num_handed_over += 1

    def _seen(self, frames: list[Frame]) -> list[Frame]:
        self.returned += frames
        waiting = self.returned[self.num_handed_over :]
        self.most_held = max(self.most_held, self.num_pushed - self.num_handed_over)
        pictures = {id(frame.planes[0]) for frame in waiting}
        self.most_pictures = max(self.most_pictures, len(pictures))
        return frames


def source_frame(number: int, luma: np.ndarray) -> Frame:
    chroma = np.full((HEIGHT // 2, WIDTH // 2), 128, np.uint8)
    planes = luma, chroma, chroma
    return Frame(planes, LAYOUT, WIDTH, HEIGHT, number, TIME_BASE, duration=1, color=COLOR)


@dataclass
class Run:
    """What became of a schedule."""

    outcome: DecodeOutcome | None = None
    error: Exception | None = None
    frames: list[tuple[int, Frame]] = field(default_factory=list)
    items: list[tuple[int, Frame] | Cut] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    num_alive: int = 0
    num_tiles: int = 0
    most_pictures: int = 0
    seconds: float = 0.0


def run(
    schedule: Schedule,
    folder: Path,
    stall_seconds: float = STALL_SECONDS,
    command: Sequence[str] = ("sleep", "600"),
) -> Run:
    """Drive the real worker through a schedule, and check what holds for every one."""
    made = Run()
    store = JobStore(folder / "out.mp4")
    engine, decoder = Engine(schedule), Decoder(schedule, list(command))
    asked = itertools.count()
    started = time.monotonic()

    def alive() -> None:
        made.num_alive += 1

    with Wakeup() as wakeup:
        encoder = NotingEncoder(schedule, store, wakeup)
        enhancer = Enhancer(
            engine,  # type: ignore[arg-type]
            VIDEO.form,
            OUTPUT.form,
            reuse=ReuseConfig(enabled=schedule.reuse),
            on_done=wakeup.wake,
        )
        stage = MeasuredStage(enhancer, schedule.num_streams + 1)
        worker = Worker(
            store,
            SegmentCuts(tuple(schedule.starts())),
            stage,
            encoder,
            wakeup,
            window_bytes=schedule.window_frames * FRAME_BYTES,
            on_note=made.notes.append,
            on_frame=stage.handed_over,
            should_stop=lambda: next(asked) == schedule.stop_at,
            is_aborted=lambda: (
                schedule.abort_ms is not None
                and time.monotonic() - started > schedule.abort_ms / 1000
            ),
            on_alive=alive,
            stall_seconds=stall_seconds,
            start=decoder.start,
        )
        encoder.start()
        try:
            made.outcome = worker.run(request(), first_number=0)
        except (EngineError, InterruptedJobError, MediaError, StalledError, DecoderDiedError) as e:
            made.error = e
        made.seconds = time.monotonic() - started
        decoder.thread.join(5)
        encoder.join(5)
        engine.line.close()
    store.close()
    assert not encoder.is_alive() and not decoder.thread.is_alive()
    assert decoder.process is not None and decoder.process.returncode is not None
    made.frames, made.items = encoder.frames, encoder.items
    made.num_tiles, made.most_pictures = engine.line.num_tiles, stage.most_pictures
    # Input frames: what credit allows, which one frame may go over. Enlarged ones: what the engine
    # has in flight, and one that was begun while another finished.
    assert stage.most_held <= schedule.window_frames + 1
    assert stage.most_pictures <= schedule.num_streams + 2
    return made


def request() -> DecodeRequest:
    return DecodeRequest(
        path_hex=bytes(Path(__file__)).hex(),
        video=VIDEO,
        config=SourceConfig(),
        window=TimeWindow(),
        directory_descriptor=-1,
    )
