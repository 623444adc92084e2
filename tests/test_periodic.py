"""``PeriodicCallback`` on a virtual clock."""

from __future__ import annotations

import gc
import logging
import random
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from coro.errors import CancelledError
from coro.future import Future
from coro.gen import coroutine, moment, sleep
from coro.loop import IOLoop, PeriodicCallback
from tests.support.virtual import Clock, closing_loop, step, turns


@pytest.fixture
def loop() -> Iterator[IOLoop]:
    with closing_loop() as loop:
        yield loop


@pytest.fixture
def no_collector(no_collector: None) -> Iterator[None]:
    """With the collector off, and no log that keeps errors alive."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def nothing() -> None:
    pass


def times_of_calls(periodic: PeriodicCallback, durations: list[float]) -> list[float]:
    """When the calls are made if they last so many seconds (negative: the clock is set back)."""
    now = periodic._next_timeout = 1000.0
    times = []
    for duration in durations:
        periodic._update_next(now)
        times.append(periodic._next_timeout)
        now = periodic._next_timeout + duration
    return times


class TestGrid:
    def test_calls_that_take_no_time(self) -> None:
        periodic = PeriodicCallback(nothing, 10_000)
        assert times_of_calls(periodic, [0] * 4) == [1010, 1020, 1030, 1040]
        assert periodic.skipped == 0

    @pytest.mark.parametrize(
        ("seconds", "following", "skipped"),
        [(9, 1020, 0), (9.9, 1020, 0), (10, 1030, 1), (11, 1030, 1), (20, 1040, 2), (35, 1050, 3)],
    )
    def test_a_call_that_runs_over_leaves_whole_periods_out(
        self, seconds: float, following: float, skipped: int
    ) -> None:
        periodic = PeriodicCallback(nothing, 10_000)
        times = times_of_calls(periodic, [seconds, 0, 0])
        assert times == [1010, following, following + 10]
        assert periodic.skipped == skipped

    def test_what_is_left_out_adds_up(self) -> None:
        periodic = PeriodicCallback(nothing, 10_000)
        assert times_of_calls(periodic, [11, 20, 35, 0]) == [1010, 1030, 1060, 1100]
        assert periodic.skipped == 6

    @pytest.mark.parametrize("step_back", [-1, -9, -10, -100])
    def test_a_clock_that_is_set_back_is_ignored(self, step_back: float) -> None:
        periodic = PeriodicCallback(nothing, 10_000)
        assert times_of_calls(periodic, [step_back, 0, 0]) == [1010, 1020, 1030]
        assert periodic.skipped == 0

    def test_jitter_is_spread_around_the_period(self, monkeypatch: pytest.MonkeyPatch) -> None:
        drawn = iter([0.5, 1, 0, 0.75])
        monkeypatch.setattr(random, "random", lambda: next(drawn))
        periodic = PeriodicCallback(nothing, 10_000, jitter=0.5)
        assert times_of_calls(periodic, [0] * 4) == [1010, 1022.5, 1030, 1041.25]

    def test_without_jitter_nothing_is_drawn(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(random, "random", None)
        assert times_of_calls(PeriodicCallback(nothing, 10_000), [0, 0]) == [1010, 1020]


class TestArguments:
    def test_a_timedelta(self) -> None:
        periodic = PeriodicCallback(nothing, timedelta(minutes=1, seconds=23))
        assert periodic.callback_time == 83_000

    @pytest.mark.parametrize("period", [0, -1, float("nan"), timedelta(0), timedelta(seconds=-1)])
    def test_a_period_is_positive(self, period: Any) -> None:
        with pytest.raises(ValueError, match="positive"):
            PeriodicCallback(nothing, period)

    @pytest.mark.parametrize("jitter", [-0.1, 1.1, float("nan")])
    def test_jitter_is_a_fraction(self, jitter: float) -> None:
        with pytest.raises(ValueError, match="fraction"):
            PeriodicCallback(nothing, 10, jitter)
        PeriodicCallback(nothing, 10, 0)
        PeriodicCallback(nothing, 10, 1)


class Recorder:
    """Notes the seconds since the test began at which it is called."""

    def __init__(self, loop: IOLoop) -> None:
        self.loop = loop
        self.began = loop.time()
        self.times: list[float] = []

    def __call__(self) -> None:
        self.times.append(self.loop.time() - self.began)


def spend(loop: IOLoop, seconds: float) -> None:
    """Let time pass without a turn of the loop: somebody blocks it."""
    clock = loop.time
    assert isinstance(clock, Clock)
    clock.now += seconds


class TestCalls:
    def test_the_first_comes_after_one_period(self, loop: IOLoop) -> None:
        calls = Recorder(loop)
        periodic = PeriodicCallback(calls, 2000)
        assert not periodic.is_running()
        periodic.start()
        assert periodic.is_running()
        for _ in range(3):
            step(loop)
        periodic.stop()
        assert not periodic.is_running()
        assert calls.times == [2, 4, 6]
        assert loop.statistics()["timers"] == 0

    def test_it_runs_on_the_loop_that_is_current_at_the_start(self, loop: IOLoop) -> None:
        periodic = PeriodicCallback(nothing, 2000)
        with closing_loop() as other:
            periodic.start()
            assert periodic.io_loop is other
            periodic.stop()

    def test_a_blocked_loop_leaves_periods_out(self, loop: IOLoop) -> None:
        calls = Recorder(loop)
        periodic = PeriodicCallback(calls, 2000)
        periodic.start()
        spend(loop, 7)
        step(loop)
        step(loop)
        assert calls.times == [7, 8]
        assert periodic.skipped == 2
        periodic.stop()

    def test_stop_inside_the_callback(self, loop: IOLoop) -> None:
        calls = Recorder(loop)

        def callback() -> None:
            calls()
            periodic.stop()

        periodic = PeriodicCallback(callback, 2000)
        periodic.start()
        step(loop)
        assert loop.statistics()["timers"] == 0
        assert calls.times == [2]

    def test_stop_before_the_start_and_twice(self, loop: IOLoop) -> None:
        periodic = PeriodicCallback(nothing, 2000)
        periodic.stop()
        periodic.start()
        periodic.stop()
        periodic.stop()
        assert loop.statistics()["timers"] == 0

    def test_start_again_begins_a_new_grid(self, loop: IOLoop) -> None:
        calls = Recorder(loop)
        periodic = PeriodicCallback(calls, 2000)
        periodic.start()
        spend(loop, 5)
        step(loop)
        assert periodic.skipped == 1
        periodic.start()
        assert periodic.skipped == 0
        assert loop.statistics()["timers"] == 1
        step(loop)
        assert calls.times == [5, 7]
        periodic.stop()

    def test_start_again_inside_the_callback(self, loop: IOLoop) -> None:
        calls = Recorder(loop)

        def callback() -> None:
            calls()
            spend(loop, 0.5)
            periodic.stop()
            periodic.start()

        periodic = PeriodicCallback(callback, 2000)
        periodic.start()
        step(loop)
        assert loop.statistics()["timers"] == 1
        step(loop)
        assert calls.times == [2, 4.5]
        periodic.stop()

    @pytest.mark.parametrize("result", [5, "text", [], {}, ()])
    def test_what_is_nothing_to_wait_for_is_ignored(
        self, loop: IOLoop, result: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        calls = Recorder(loop)
        periodic = PeriodicCallback(lambda: (calls(), result)[1], 2000)
        periodic.start()
        step(loop)
        step(loop)
        periodic.stop()
        assert calls.times == [2, 4]
        assert caplog.records == []

    def test_says_what_it_is(self, loop: IOLoop) -> None:
        periodic = PeriodicCallback(nothing, 2000)
        assert "stopped every 2000 ms skipped=0" in repr(periodic)
        periodic.start()
        assert "running" in repr(periodic)
        periodic.stop()


class TestCoroutines:
    @pytest.mark.parametrize("kind", ["yield", "await", "future"])
    def test_the_next_call_waits_for_the_end(self, loop: IOLoop, kind: str) -> None:
        calls = Recorder(loop)

        @coroutine
        def yields() -> Any:
            calls()
            yield sleep(5)

        async def awaits() -> None:
            calls()
            await sleep(5)

        def future() -> Any:
            calls()
            return sleep(5)

        periodic = PeriodicCallback(
            {"yield": yields, "await": awaits, "future": future}[kind], 2000
        )
        periodic.start()
        loop.call_later(21, loop.stop)
        loop.start()
        periodic.stop()
        assert calls.times == [2, 8, 14, 20]
        assert periodic.skipped == 6

    def test_one_that_ends_in_time_keeps_the_grid(self, loop: IOLoop) -> None:
        calls = Recorder(loop)

        @coroutine
        def callback() -> Any:
            calls()
            yield sleep(1)

        periodic = PeriodicCallback(callback, 2000)
        periodic.start()
        loop.call_later(7, loop.stop)
        loop.start()
        periodic.stop()
        assert calls.times == [2, 4, 6]

    def test_stopped_meanwhile_it_goes_on_to_its_end(self, loop: IOLoop) -> None:
        order: list[str] = []

        @coroutine
        def callback() -> Any:
            order.append("begin")
            yield sleep(5)
            order.append("end")

        periodic = PeriodicCallback(callback, 2000)
        periodic.start()
        step(loop)
        periodic.stop()
        step(loop)
        turns(loop, 3)
        assert order == ["begin", "end"]
        assert loop.statistics()["timers"] == 0

    def test_started_again_meanwhile_it_is_still_one_at_a_time(self, loop: IOLoop) -> None:
        calls = Recorder(loop)

        @coroutine
        def callback() -> Any:
            calls()
            yield sleep(5)

        periodic = PeriodicCallback(callback, 2000)
        periodic.start()
        loop.call_later(3, periodic.stop)
        loop.call_later(3.5, periodic.start)
        loop.call_later(16, loop.stop)
        loop.start()
        periodic.stop()
        assert calls.times == [2, 7.5, 13.5]

    def test_an_unfinished_call_on_a_loop_that_is_gone_hinders_nobody(self) -> None:
        never: Any = None

        @coroutine
        def callback() -> Any:
            if never is not None:
                yield never

        periodic = PeriodicCallback(callback, 2000)
        with closing_loop() as loop:
            never = Future()
            periodic.start()
            step(loop)
            periodic.stop()
        never = None
        with closing_loop() as loop:
            periodic.start()
            step(loop)
            turns(loop)
            assert loop.statistics()["timers"] == 1
            periodic.stop()

    def test_a_call_that_ends_on_the_loop_of_before_schedules_nothing(self, loop: IOLoop) -> None:
        held: Any = Future()
        periodic = PeriodicCallback(lambda: held, 2000)
        periodic.start()
        step(loop)
        periodic.stop()
        with closing_loop() as other:
            periodic.start()
            held.set_result(None)
            turns(loop)
            assert other.statistics()["timers"] == 1
            assert loop.statistics()["timers"] == 0
            periodic.stop()
            assert other.statistics()["timers"] == 0


class TestErrors:
    @pytest.mark.parametrize("kind", ["plain", "early", "late"])
    def test_are_logged_and_it_goes_on(
        self, loop: IOLoop, kind: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        calls = Recorder(loop)

        def plain() -> None:
            calls()
            raise ZeroDivisionError

        @coroutine
        def early() -> Any:
            calls()
            raise ZeroDivisionError
            yield

        @coroutine
        def late() -> Any:
            calls()
            yield moment
            raise ZeroDivisionError

        callback: Any = {"plain": plain, "early": early, "late": late}[kind]
        periodic = PeriodicCallback(callback, 2000)
        periodic.start()
        loop.call_later(5, loop.stop)
        loop.start()
        periodic.stop()
        assert calls.times == [2, 4]
        assert [record.name for record in caplog.records] == ["coro.application"] * 2
        for record in caplog.records:
            assert record.getMessage().startswith("Exception in callback <function")
            assert record.exc_info is not None
            assert record.exc_info[0] is ZeroDivisionError

    def test_a_cancelled_call_is_the_end_of_that_call_only(
        self, loop: IOLoop, caplog: pytest.LogCaptureFixture
    ) -> None:
        calls = Recorder(loop)
        tasks: list[Any] = []

        def callback() -> Any:
            calls()
            tasks.append(sleep(1000))
            return tasks[-1]

        periodic = PeriodicCallback(callback, 2000)
        periodic.start()
        step(loop)
        tasks[0].cancel()
        turns(loop)
        step(loop)
        periodic.stop()
        assert calls.times == [2, 4]
        assert caplog.records == []

    def test_a_cancellation_out_of_the_blue_does_not_end_it(
        self, loop: IOLoop, caplog: pytest.LogCaptureFixture
    ) -> None:
        def callback() -> None:
            raise CancelledError

        periodic = PeriodicCallback(callback, 2000)
        periodic.start()
        step(loop)
        assert loop.statistics()["timers"] == 1
        (record,) = caplog.records
        assert record.getMessage() == f"Exception in callback {callback!r}"
        periodic.stop()

    @pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
    def test_an_interrupt_leaves_the_loop(self, loop: IOLoop, kind: type[BaseException]) -> None:
        def callback() -> None:
            raise kind

        periodic = PeriodicCallback(callback, 2000)
        periodic.start()
        with pytest.raises(kind):
            loop.start()
        assert loop.statistics()["timers"] == 1
        periodic.stop()

    @pytest.mark.parametrize("kind", ["plain", "settled", "early", "late"])
    def test_leave_no_circle(self, loop: IOLoop, no_collector: None, kind: str) -> None:
        def plain() -> None:
            raise ZeroDivisionError

        @coroutine
        def settled() -> Any:
            raise ZeroDivisionError

        @coroutine
        def early() -> Any:
            raise ZeroDivisionError
            yield

        @coroutine
        def late() -> Any:
            yield moment
            raise ZeroDivisionError

        callback: Any = {"plain": plain, "settled": settled, "early": early, "late": late}[kind]
        periodic = PeriodicCallback(callback, 2000)
        periodic.start()
        step(loop)
        turns(loop, 3)
        periodic.stop()
        assert gc.collect() == 0
