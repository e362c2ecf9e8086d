"""The worker's loop: no order of speeds of decoder, engine and encoder stops it or loses a frame.

The decoder is a thread that sends over the real socket, with a process beside it that can die; the
engine repeats samples, in whatever order a schedule says; the encoder notes what it is given.
"""

from __future__ import annotations

import heapq
import itertools
import os
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import zmq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from srstream.config import ReuseConfig, SourceConfig
from srstream.engines.contract import Capabilities
from srstream.enhancer.enhancer import Enhancer
from srstream.enhancer.fair_queue import STEP, Round, SharedStage
from srstream.errors import EngineError, InterruptedJobError, MediaError, StalledError
from srstream.frame import ColorSpec, Frame, PlaneLayout
from srstream.jobs import segments as module
from srstream.jobs.encoder import Cut, EncoderThread
from srstream.jobs.segments import DecoderDiedError, SegmentCuts, Worker
from srstream.jobs.store import JobStore
from srstream.jobs.wakeup import Wakeup
from srstream.media.types import OutputVideo, TimeWindow, VideoInfo
from srstream.sandbox.child import Channel, Child
from srstream.sandbox.decoder import DecodeOutcome, DecodeRequest
from srstream.sandbox.life import SignsOfLife
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


def check_frames(schedule: Schedule, made: Run, num_frames: int | None = None) -> None:
    """The frames that came out are the first ones, in order and whole; all, or `num_frames`."""
    pictures, starts = schedule.pictures(), schedule.starts()
    wanted = len(made.frames) if num_frames is None else num_frames
    assert [frame.pts for _, frame in made.frames] == list(range(wanted))
    for number, frame in made.frames:
        luma = pictures[frame.pts].repeat(SCALE, 0).repeat(SCALE, 1)
        assert np.array_equal(frame.planes[0], luma)
        assert number == sum(start <= frame.pts for start in starts) - 1
    place = 0
    for cut in (item for item in made.items if isinstance(item, Cut)):
        begin, end = starts[cut.number], [*starts, len(pictures)][cut.number + 1]
        place = made.items.index(cut)
        before = [item for item in made.items[:place] if not isinstance(item, Cut)]
        assert sum(number == cut.number for number, _ in before) == end - begin
        assert len(before) == end, "a cut stands behind the last frame of its segment"


def check(schedule: Schedule, made: Run) -> None:
    """What must hold of a run that ended, whatever its speeds were."""
    assert not isinstance(made.error, StalledError), made.error
    all_frames, cuts = len(schedule.frames), [i for i in made.items if isinstance(i, Cut)]
    if made.error is None:
        stops = schedule.stop_at is not None and schedule.stop_at < len(schedule.starts()) - 1
        if stops:
            assert made.outcome is None
            check_frames(schedule, made, schedule.starts()[schedule.stop_at + 1])
            assert len(cuts) == schedule.stop_at + 1
            return
        assert schedule.end == "end"
        assert schedule.failing_tile is None or schedule.failing_tile >= made.num_tiles
        assert made.outcome == DecodeOutcome(num_corrupt_packets=3)
        check_frames(schedule, made, all_frames)
        assert [cut.number for cut in cuts] == list(range(len(schedule.starts())))
        assert len(made.notes) == len([n for n in schedule.note_before if n < all_frames])
        return
    check_frames(schedule, made)
    if isinstance(made.error, InterruptedJobError):
        assert schedule.abort_ms is not None
    elif isinstance(made.error, EngineError):
        assert schedule.failing_tile is not None
    elif isinstance(made.error, MediaError):
        assert schedule.end == "error"
    else:
        assert schedule.end == "death"
        check_frames(schedule, made, all_frames)


DELAYS = st.lists(st.sampled_from([0, 0, 0, 0, 1, 3, 12]), min_size=1, max_size=6)
NUMBERS = st.sets(st.integers(0, 20), max_size=4)
SCHEDULES = st.builds(
    Schedule,
    frames=st.lists(st.sampled_from(["same", "same", "dot", "new"]), min_size=1, max_size=20),
    decoder=DELAYS,
    tiles=DELAYS,
    encoder=DELAYS,
    cuts=NUMBERS,
    window_frames=st.sampled_from([1, 2, 3, 4, 10]),
    queue_items=st.integers(1, 3),
    num_streams=st.integers(1, 3),
    takes_any_shape=st.booleans(),
    tile_side=st.sampled_from([None, 7]),
    note_before=NUMBERS,
    end=st.sampled_from(["end", "end", "end", "end", "error", "death"]),
    stop_at=st.sampled_from([None, None, None, 0, 1]),
    abort_ms=st.sampled_from([*[None] * 10, 10, 30]),
    failing_tile=st.sampled_from([*[None] * 8, 0, 5]),
    reuse=st.sampled_from([True, True, True, False]),
)


@contextmanager
def without_polling(schedule: Schedule) -> Iterator[None]:
    """The loop sleeps until it is woken, so that a call that is missing is a stall.

    Requests to abort, and time in which a dead decoder says nothing, are looked for now and then.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_DEATH_SECONDS", 0.3)
        if schedule.abort_ms is None and schedule.end != "death":
            patch.setattr(module, "POLL_SECONDS", 2 * STALL_SECONDS)
        yield


def settings_for(num_schedules: int) -> settings:
    return settings(
        max_examples=num_schedules,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


def any_schedule(schedule: Schedule) -> None:
    # Where a journal's writes cost nothing: it is not what is tried here.
    place = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(prefix="srstream-test-", dir=place) as folder:
        with without_polling(schedule):
            made = run(schedule, Path(folder))
        check(schedule, made)


test_any_schedule_ends_complete_and_in_order = settings_for(60)(given(SCHEDULES)(any_schedule))

test_a_thousand_schedules_end_complete_and_in_order = pytest.mark.long(
    pytest.mark.timeout(900)(settings_for(1000)(given(SCHEDULES)(any_schedule)))
)


def test_a_slow_encoder_holds_up_the_engine_not_the_memory(tmp_path: Path) -> None:
    """The engine could do all ten frames of credit before the first is encoded."""
    schedule = Schedule(["new"] * 12, encoder=[40], window_frames=10)
    made = run(schedule, tmp_path)
    check(schedule, made)
    assert made.most_pictures <= 3


def stalled(schedule: Schedule, folder: Path) -> str:
    made = run(schedule, folder, stall_seconds=1.0)
    assert isinstance(made.error, StalledError), made
    check_frames(schedule, made)
    assert 1.0 <= made.seconds < 20
    return str(made.error)


def test_an_engine_that_hangs_is_named(tmp_path: Path) -> None:
    """Four frames of credit; the engine takes two and has done the first one."""
    schedule = Schedule(["new"] * 9, tiles=[0, HANGS], window_frames=4)
    text = stalled(schedule, tmp_path)
    assert "nothing has moved for 1 s" in text and "again to go on" in text
    assert "the decoder waits for credit" in text
    assert "2 frames wait for the engine, the engine holds 2 frames and finishes none" in text
    assert "0 frames wait for the encoder, the encoder waits for one" in text


def test_an_encoder_that_hangs_is_named(tmp_path: Path) -> None:
    """One frame is being encoded, one waits in its queue, the others before it."""
    text = stalled(Schedule(["new"] * 9, encoder=[HANGS], window_frames=4), tmp_path)
    assert "the decoder waits for credit" in text and "the engine holds none" in text
    assert "the encoder holds 2 frames and takes no other" in text


def test_an_engine_that_hangs_behind_the_end_is_named(tmp_path: Path) -> None:
    text = stalled(Schedule(["new"], tiles=[HANGS]), tmp_path)
    assert "the decoder has ended" in text and "the engine holds 1 frame and" in text


def test_a_decoder_that_does_nothing_is_ended(tmp_path: Path) -> None:
    schedule = Schedule(["new"] * 3, end="silence")
    made = run(schedule, tmp_path, stall_seconds=1.0)
    assert isinstance(made.error, DecoderDiedError)
    assert "did nothing for 1 s" in str(made.error)
    check_frames(schedule, made, 3)


BUSY = ["sh", "-c", "while :; do :; done"]


def test_a_decoder_that_computes_for_ever_is_ended(tmp_path: Path) -> None:
    made = run(Schedule(["new"], end="silence"), tmp_path, stall_seconds=0.3, command=BUSY)
    assert isinstance(made.error, DecoderDiedError)
    assert made.seconds > 9 * 0.3, "ten times as long as one that does nothing"


def test_a_decoder_that_computes_for_long_is_waited_for(tmp_path: Path) -> None:
    schedule = Schedule(["new"] * 2, decoder=[3000])
    made = run(schedule, tmp_path, stall_seconds=1.0, command=BUSY)
    assert made.error is None
    check_frames(schedule, made, 2)
    assert made.num_alive > 5


def test_an_engine_and_an_encoder_that_take_long_are_waited_for(tmp_path: Path) -> None:
    """A tile or a frame of three times the limit, in which the processor is used."""
    schedule = Schedule(["new"] * 2, compute_ms=3000)
    made = run(schedule, tmp_path, stall_seconds=1.0)
    assert made.error is None
    check_frames(schedule, made, 2)
    assert made.num_alive > 10


class OneAtATime:
    """A stage that computes one frame at a time, each in 4 ms or whenever it is looked at."""

    def __init__(self) -> None:
        self.spent_seconds = 0.0
        self._began_at = 0.0
        self._is_busy = False

    def has_room(self) -> bool:
        return not self._is_busy

    def push(self, frame: Frame) -> list[Frame]:
        assert not self._is_busy
        self._is_busy, self._began_at = True, time.monotonic()
        return []

    def collect(self) -> list[Frame]:
        spent = time.monotonic() - self._began_at
        if self._is_busy and spent >= 0.004:
            self._is_busy = False
            self.spent_seconds += spent
        return []

    def forget(self) -> None: ...


def test_jobs_that_wait_for_many_things_share_an_engine_by_weight() -> None:
    """Beside one that only waits for its turn, as clients of raw frames do."""
    turns = Round()
    stages = {priority: OneAtATime() for priority in (0, 2)}
    members = {priority: turns.join(priority) for priority in stages}
    frame = source_frame(0, np.zeros((HEIGHT, WIDTH), np.uint8))
    end = time.monotonic() + 2.0
    blocking, blocking_seconds = turns.join(0), 0.0

    def work(priority: int) -> None:
        with Wakeup() as wakeup:
            stage = SharedStage(stages[priority], members[priority], wakeup.wake)
            while time.monotonic() < end:
                stage.collect()
                if stage.has_room():
                    stage.push(frame)
                wakeup.wait([], 0.001 if stages[priority].has_room() is False else 1.0)
        members[priority].close()

    threads = [threading.Thread(target=work, args=(priority,)) for priority in stages]
    for thread in threads:
        thread.start()
    while time.monotonic() < end:
        with blocking.turn():
            began = time.monotonic()
            time.sleep(0.004)
            blocking_seconds += time.monotonic() - began
    blocking.close()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    spent = {priority: stage.spent_seconds for priority, stage in stages.items()}
    assert spent[2] / spent[0] == pytest.approx(STEP**2, rel=0.35)
    assert blocking_seconds / spent[0] == pytest.approx(1, rel=0.35)


def test_who_leaves_in_the_middle_of_a_turn_hands_it_on() -> None:
    turns = Round()
    called = threading.Event()
    first, second, third = (turns.join(0) for _ in range(3))
    second.call = called.set
    assert first.try_turn() and first.try_turn(), "it holds the engine"
    assert not second.try_turn() and not third.try_turn()
    first.close()
    assert called.is_set(), "the next in line is called"
    assert not third.try_turn() and second.try_turn()
    second.end_turn()
    assert third.try_turn()


def test_a_wakeup_is_not_lost_and_may_come_too_late() -> None:
    with Wakeup() as wakeup:
        wakeup.wake()
        wakeup.wake()
        started = time.monotonic()
        assert wakeup.wait([], 10) and time.monotonic() - started < 5
        assert not wakeup.wait([], 0.01), "two calls are one"
        threading.Timer(0.1, wakeup.wake).start()
        assert wakeup.wait([], 10) and time.monotonic() - started < 5
    wakeup.wake()


def test_a_child_that_computes_lives_for_a_while_and_one_that_sleeps_does_not() -> None:
    children = [subprocess.Popen(command) for command in (BUSY, ["sleep", "60"])]
    try:
        time.sleep(1.0)
        busy, idle = (SignsOfLife(child.pid, computing_seconds=3.0) for child in children)
        time.sleep(0.8)
        assert busy.are_new() and not idle.are_new()
        time.sleep(3.5)
        assert not busy.are_new(), "it computes still, and has read nothing"
    finally:
        for child in children:
            child.kill()
            child.wait()
    assert [child.returncode for child in children] == [-9, -9]
