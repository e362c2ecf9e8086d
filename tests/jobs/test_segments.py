"""The worker's loop: no order of speeds of decoder, engine and encoder stops it or loses a frame.

Its decoder, engine and encoder are those of `tests/support/segments.py`.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from srstream.enhancer.fair_queue import STEP, Round, SharedStage
from srstream.errors import EngineError, InterruptedJobError, MediaError, StalledError
from srstream.frame import Frame
from srstream.jobs import segments as module
from srstream.jobs.encoder import Cut
from srstream.jobs.segments import DecoderDiedError
from srstream.jobs.wakeup import Wakeup
from srstream.sandbox.decoder import DecodeOutcome
from srstream.sandbox.life import SignsOfLife
from tests.support.segments import (
    HANGS,
    HEIGHT,
    SCALE,
    STALL_SECONDS,
    WIDTH,
    Run,
    Schedule,
    run,
    source_frame,
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


@pytest.mark.long
def test_a_decoder_that_computes_for_long_is_waited_for(tmp_path: Path) -> None:
    schedule = Schedule(["new"] * 2, decoder=[3000])
    made = run(schedule, tmp_path, stall_seconds=1.0, command=BUSY)
    assert made.error is None
    check_frames(schedule, made, 2)
    assert made.num_alive > 5


@pytest.mark.long
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
