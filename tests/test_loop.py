"""``IOLoop``: turns, descriptors, timers, threads, signals. Every test runs on three pollers."""

from __future__ import annotations

import concurrent.futures
import contextvars
import gc
import logging
import os
import signal
import socket
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

from coro.errors import BadYieldError, CancelledError, WrongLoopError, WrongThreadError
from coro.future import Future
from coro.gen import coroutine, moment, sleep
from coro.hooks import Observer
from coro.loop import IOLoop
from coro.net import EpollPoller, Network
from tests.support.virtual import POLLERS, closing_loop, turns, virtual_loop

YEAR = 366 * 86400.0


@pytest.fixture(params=list(POLLERS))
def loop(request: pytest.FixtureRequest) -> Iterator[IOLoop]:
    with closing_loop(request.param) as loop:
        yield loop


@pytest.fixture
def no_collector(no_collector: None, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """With the collector off, and no log that keeps errors alive."""
    caplog.set_level(logging.CRITICAL + 1)
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def pipe_pair() -> tuple[socket.socket, socket.socket]:
    here, there = socket.socketpair()
    here.setblocking(False)
    there.setblocking(False)
    return here, there


def nothing() -> None:
    """A callback."""


class TestTurn:
    def test_callbacks_run_in_order_and_never_at_once(self, loop: IOLoop) -> None:
        order: list[int] = []
        for number in range(5):
            loop.add_callback(order.append, number)
        assert order == []
        turns(loop)
        assert order == [0, 1, 2, 3, 4]

    def test_what_callbacks_add_waits_for_the_next_turn(self, loop: IOLoop) -> None:
        order: list[str] = []

        def first() -> None:
            order.append("first")
            loop.add_callback(order.append, "added")

        loop.add_callback(first)
        loop.add_callback(order.append, "second")
        turns(loop)
        assert order == ["first", "second"]
        turns(loop)
        assert order == ["first", "second", "added"]

    def test_descriptors_then_callbacks_then_timers(self, loop: IOLoop) -> None:
        """Callbacks that events make ready run in this turn; due timers queue behind them."""
        order: list[str] = []
        here, there = pipe_pair()
        there.send(b"x")

        def on_readable(_fd: Any, _events: int) -> None:
            order.append("event")
            loop.add_callback(order.append, "callback of the event")
            loop.remove_handler(here)

        loop.add_callback(order.append, "callback")
        loop.call_at(loop.time(), order.append, "timer")
        loop.add_handler(here, on_readable, loop.READ)
        turns(loop)
        assert order == ["event", "callback", "callback of the event", "timer"]
        here.close()
        there.close()

    def test_a_callback_that_reschedules_itself_starves_nobody(self, loop: IOLoop) -> None:
        here, there = pipe_pair()
        seen: list[str] = []
        spins = 0

        def spin() -> None:
            nonlocal spins
            spins += 1
            if len(seen) < 2:
                loop.add_callback(spin)

        def on_readable(_fd: Any, _events: int) -> None:
            here.recv(10)
            seen.append("event")

        loop.add_handler(here, on_readable, loop.READ)
        loop.call_at(loop.time(), seen.append, "timer")
        there.send(b"x")
        loop.add_callback(spin)
        turns(loop, 2)
        assert sorted(seen) == ["event", "timer"]
        assert spins == 2
        loop.remove_handler(here)
        here.close()
        there.close()

    def test_an_error_is_logged_and_the_turn_goes_on(
        self, loop: IOLoop, caplog: pytest.LogCaptureFixture
    ) -> None:
        seen: list[int] = []

        def cancelled() -> None:
            raise CancelledError

        loop.add_callback(lambda: 1 / 0)
        loop.add_callback(cancelled)
        loop.call_at(loop.time(), lambda: 1 / 0)
        loop.add_callback(seen.append, 1)
        turns(loop)
        assert seen == [1]
        assert [record.name for record in caplog.records] == ["coro.application"] * 3
        assert all("Exception in callback" in record.getMessage() for record in caplog.records)
        assert caplog.text.count("Traceback") == 3

    @pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
    def test_an_interrupt_leaves_start_and_loses_no_callback(
        self, loop: IOLoop, kind: type[BaseException], caplog: pytest.LogCaptureFixture
    ) -> None:
        seen: list[str] = []

        def interrupt() -> None:
            raise kind

        loop.add_callback(seen.append, "before")
        loop.add_callback(interrupt)
        loop.add_callback(seen.append, "after")
        with pytest.raises(kind):
            loop.start()
        assert seen == ["before"]
        assert IOLoop.current(instance=False) is loop
        turns(loop)
        assert seen == ["before", "after"]
        assert caplog.records == []

    def test_an_interrupt_of_a_handler_leaves_start(self, loop: IOLoop) -> None:
        here, there = pipe_pair()
        there.send(b"x")

        def interrupt(_fd: Any, _events: int) -> None:
            raise KeyboardInterrupt

        loop.add_handler(here, interrupt, loop.READ)
        with pytest.raises(KeyboardInterrupt):
            loop.start()
        loop.remove_handler(here)
        here.close()
        there.close()

    def test_an_interrupt_of_a_task_settles_it_first(self, loop: IOLoop) -> None:
        @coroutine
        def interrupted() -> Any:
            yield moment
            raise KeyboardInterrupt

        task = interrupted()
        with pytest.raises(KeyboardInterrupt):
            loop.start()
        assert task.done()
        assert isinstance(task.exception(), KeyboardInterrupt)
        assert loop.statistics()["tasks"] == 0

    def test_stop_before_start_gives_one_turn(self, loop: IOLoop) -> None:
        seen: list[int] = []
        loop.stop()
        loop.add_callback(seen.append, 1)
        loop.start()
        assert seen == [1]
        assert loop.statistics()["turns"] == 1

    def test_stop_ends_after_the_present_turn(self, loop: IOLoop) -> None:
        seen: list[int] = []
        loop.add_callback(loop.stop)
        loop.add_callback(seen.append, 1)
        loop.start()
        assert seen == [1]
        assert loop.statistics()["turns"] == 1

    def test_statistics_count_what_there_is(self, loop: IOLoop) -> None:
        here, there = pipe_pair()
        assert loop.statistics() == {
            "turns": 0,
            "ready": 0,
            "tasks": 0,
            "timers": 0,
            "handlers": 0,
            "lag": 0.0,
            "max_lag": 0.0,
            "busy_ratio": 0.0,
        }
        loop.add_callback(int)
        loop.call_later(5, int)
        loop.add_handler(here, lambda *_: None, loop.READ)

        @coroutine
        def waits() -> Any:
            yield Future()

        waits()
        counts = loop.statistics()
        assert {name: counts[name] for name in ("ready", "tasks", "timers", "handlers")} == {
            "ready": 1,
            "tasks": 1,
            "timers": 1,
            "handlers": 1,
        }
        loop.close()
        assert loop.statistics()["handlers"] == 0
        here.close()
        there.close()

    def test_statistics_tell_how_late_timers_were(self, loop: IOLoop) -> None:
        clock: Any = loop.time
        loop.call_later(1, int)
        clock.now += 1.5
        turns(loop)
        figures = loop.statistics()
        assert figures["lag"] == figures["max_lag"] == pytest.approx(0.5)
        loop.call_later(1, int)
        clock.now += 1.25
        turns(loop)
        figures = loop.statistics()
        assert figures["lag"] == pytest.approx(0.25)
        assert figures["max_lag"] == pytest.approx(0.5)

    def test_statistics_tell_the_share_of_time_that_was_busy(self, loop: IOLoop) -> None:
        clock: Any = loop.time
        seen = []

        def work() -> None:
            clock.now += 1
            seen.append(loop.statistics()["busy_ratio"])
            loop.stop()

        loop.call_later(3, work)
        loop.start()
        assert seen == [pytest.approx(0.25)]
        assert loop.statistics()["busy_ratio"] == pytest.approx(0.25)

    def test_what_a_poll_waited_already_is_not_taken_for_work(
        self, loop: IOLoop, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        clock: Any = loop.time
        seen = []
        poll = loop._poll

        def long_poll(timeout: float | None) -> Any:
            clock.now += 3
            seen.append(loop.statistics()["busy_ratio"])
            loop.stop()
            return poll(0)

        monkeypatch.setattr(loop, "_poll", long_poll)
        loop.start()
        assert seen == [0.0]
        assert loop.statistics()["busy_ratio"] == 0.0

    def test_repr_tells_the_state(self, loop: IOLoop) -> None:
        assert "idle" in repr(loop)
        seen: list[str] = []
        loop.add_callback(lambda: seen.append(repr(loop)))
        turns(loop)
        assert "running" in seen[0]
        loop.close()
        assert "closed" in repr(loop)


class TestCallbackResults:
    def test_errors_of_awaitables_are_logged(
        self, loop: IOLoop, caplog: pytest.LogCaptureFixture
    ) -> None:
        @coroutine
        def yields() -> Any:
            yield moment
            raise ZeroDivisionError("yields")

        async def awaits() -> None:
            raise ZeroDivisionError("awaits")

        def hands_out() -> Future[None]:
            future: Future[None] = Future()
            future.set_exception(ZeroDivisionError("hands out"))
            return future

        loop.add_callback(yields)
        loop.add_callback(awaits)
        loop.add_callback(hands_out)
        loop.call_at(loop.time(), awaits)
        turns(loop, 5)
        assert [record.name for record in caplog.records] == ["coro.application"] * 4
        assert all("Exception in callback" in record.getMessage() for record in caplog.records)

    def test_cancellations_are_not(self, loop: IOLoop, caplog: pytest.LogCaptureFixture) -> None:
        def hands_out() -> Future[None]:
            future: Future[None] = Future()
            future.cancel()
            return future

        loop.add_callback(hands_out)
        turns(loop, 3)
        assert caplog.records == []

    def test_a_callback_that_fails_at_once_leaves_no_circle(
        self, loop: IOLoop, no_collector: None
    ) -> None:
        @coroutine
        def yields() -> Any:
            raise ZeroDivisionError
            yield

        async def awaits() -> None:
            raise ZeroDivisionError

        for _ in range(10):
            loop.add_callback(yields)
            loop.add_callback(awaits)
            turns(loop, 3)
        assert gc.collect() == 0

    @pytest.mark.parametrize("value", [{}, [], 5, "x", (), [1], {"a": 1}, object()])
    def test_other_values_are_ignored_and_keep_nothing_busy(
        self, loop: IOLoop, value: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        loop.add_callback(lambda: value)
        turns(loop, 3)
        assert loop.statistics()["ready"] == 0
        assert caplog.records == []

    def test_an_async_callback_sees_the_context_of_its_registration(self, loop: IOLoop) -> None:
        var: contextvars.ContextVar[str] = contextvars.ContextVar("var", default="unset")
        seen: list[str] = []

        async def look() -> None:
            seen.append(var.get())

        contextvars.copy_context().run(lambda: (var.set("set"), loop.add_callback(look)))
        contextvars.copy_context().run(lambda: (var.set("timer"), loop.call_at(loop.time(), look)))
        turns(loop, 2)
        assert seen == ["set", "timer"]


class TestTimers:
    def test_by_deadline_then_first_in_first_out(self, loop: IOLoop) -> None:
        order: list[str] = []
        loop.call_later(2, order.append, "late")
        loop.call_later(1, order.append, "first of equals")
        loop.call_at(loop.time() + 1, order.append, "second of equals")
        loop.add_timeout(loop.time() + 1, order.append, "third of equals")
        loop.add_timeout(timedelta(seconds=1), order.append, "fourth of equals")
        loop.call_later(0, order.append, "now")
        loop.call_later(-5, order.append, "before now")
        loop.call_later(3, loop.stop)
        started = loop.time()
        loop.start()
        assert order == [
            "before now",
            "now",
            "first of equals",
            "second of equals",
            "third of equals",
            "fourth of equals",
            "late",
        ]
        assert loop.time() == pytest.approx(started + 3)

    def test_arguments_and_handles(self, loop: IOLoop) -> None:
        seen: list[Any] = []

        def callback(*args: Any, **kwargs: Any) -> None:
            seen.append((args, kwargs))

        now = loop.time()
        handles = [
            loop.call_at(now, callback, 1, a=2),
            loop.call_later(0, callback, 1, a=2),
            loop.add_timeout(now, callback, 1, a=2),
            loop.add_timeout(timedelta(0), callback, 1, a=2),
        ]
        loop.add_callback(callback, 1, a=2)
        turns(loop)
        assert seen == [((1,), {"a": 2})] * 5
        assert all(handle is not None for handle in handles)
        for handle in handles:
            loop.remove_timeout(handle)

    def test_one_that_is_removed_by_another_of_the_same_turn_does_not_run(
        self, loop: IOLoop
    ) -> None:
        seen: list[str] = []
        handles: list[Any] = []

        def first() -> None:
            seen.append("first")
            loop.remove_timeout(handles[1])

        handles.append(loop.call_later(1, first))
        handles.append(loop.call_later(1, seen.append, "second"))
        handles.append(loop.call_later(1, seen.append, "third"))
        loop.call_later(2, loop.stop)
        loop.start()
        assert seen == ["first", "third"]

    def test_thousands_added_and_removed(self, loop: IOLoop) -> None:
        for _ in range(5000):
            loop.remove_timeout(loop.call_later(3600, int))
        assert loop.statistics()["timers"] == 0
        assert len(loop._timers.heap) < 200

    def test_a_timer_set_by_a_due_timer_waits_for_the_next_turn(self, loop: IOLoop) -> None:
        seen: list[int] = []
        loop.call_at(loop.time(), lambda: loop.call_at(loop.time() - 1, seen.append, 1))
        turns(loop)
        assert seen == []
        turns(loop)
        assert seen == [1]

    def test_a_wall_clock_deadline_is_refused(self, loop: IOLoop) -> None:
        for add in (loop.call_at, loop.add_timeout):
            with pytest.raises(ValueError, match=r"loop\.time\(\).*timedelta"):
                add(time.time(), int)
            with pytest.raises(ValueError, match="year"):
                add(loop.time() + YEAR + 1, int)
            with pytest.raises(ValueError, match="year"):
                add(float("inf"), int)
            with pytest.raises(ValueError, match="nan"):
                add(float("nan"), int)
        assert loop.statistics()["timers"] == 0

    def test_a_year_is_not_too_much_and_a_timedelta_may_say_more(self, loop: IOLoop) -> None:
        seen: list[float] = []
        started = loop.time()
        loop.call_at(started + YEAR, lambda: seen.append(loop.time()))
        loop.add_timeout(timedelta(days=1000), lambda: seen.append(loop.time()))
        loop.add_timeout(timedelta(days=1000), loop.stop)
        loop.start()
        assert seen == pytest.approx([started + YEAR, started + 1000 * 86400])

    def test_a_far_deadline_does_not_exceed_what_epoll_can_wait(self) -> None:
        """Its milliseconds are a C int: 24.8 days."""
        asked: list[float] = []

        class Poller(EpollPoller):
            def __init__(self) -> None:
                super().__init__()
                self.poll = self.look  # type: ignore[assignment]

            def look(self, timeout: float) -> list[tuple[int, int]]:
                asked.append(timeout)
                IOLoop.current().stop()
                assert timeout * 1000 < 2**31
                return []

        class Far(Network):
            def poller(self) -> Any:
                return Poller()

        loop = IOLoop(make_current=False, network=Far())
        loop.call_later(300 * 86400, int)
        loop.start()
        assert asked[0] > 3600
        loop.close()

    @pytest.mark.parametrize("deadline", ["5", None, 1j])
    def test_other_deadlines_are_type_errors(self, loop: IOLoop, deadline: Any) -> None:
        with pytest.raises(TypeError, match="timedelta"):
            loop.add_timeout(deadline, int)

    def test_keep_the_context(self, loop: IOLoop) -> None:
        var: contextvars.ContextVar[str] = contextvars.ContextVar("var", default="unset")
        seen: list[str] = []
        context = contextvars.copy_context()
        context.run(var.set, "set")
        context.run(loop.call_later, 0, lambda: seen.append(var.get()))
        loop.call_later(0, lambda: seen.append(var.get()))
        turns(loop)
        assert seen == ["set", "unset"]

    def test_a_fired_timer_holds_nothing(self, loop: IOLoop) -> None:
        class Held:
            """Dies at once if nothing holds it."""

        held = Held()
        seen = weakref.ref(held)
        handle = loop.call_later(0, lambda thing: None, held)
        del held
        assert seen() is not None
        turns(loop)
        assert seen() is None
        assert handle is not None


class TestDescriptors:
    def test_the_handler_gets_the_very_object_back(self, loop: IOLoop) -> None:
        here, there = pipe_pair()
        seen: list[Any] = []
        here.send(b"x")
        there.send(b"x")
        loop.add_handler(here, lambda fd, events: seen.append((fd, events)), loop.READ)
        loop.add_handler(there.fileno(), lambda fd, events: seen.append((fd, events)), loop.READ)
        turns(loop)
        assert sorted(seen, key=lambda entry: entry[0] is here) == [
            (there.fileno(), loop.READ),
            (here, loop.READ),
        ]
        loop.remove_handler(here.fileno())
        loop.remove_handler(there)
        assert loop.statistics()["handlers"] == 0
        turns(loop)
        assert len(seen) == 2
        here.close()
        there.close()

    def test_no_events_but_those_asked_for(self, loop: IOLoop) -> None:
        here, there = pipe_pair()
        seen: list[int] = []
        loop.add_handler(here, lambda _, events: seen.append(events), loop.READ)
        turns(loop)
        assert seen == []
        loop.update_handler(here, loop.READ | loop.WRITE)
        turns(loop)
        assert seen == [loop.WRITE]
        there.send(b"x")
        turns(loop)
        assert seen == [loop.WRITE, loop.READ | loop.WRITE]
        loop.update_handler(here, 0)
        turns(loop)
        assert len(seen) == 2
        loop.remove_handler(here)
        here.close()
        there.close()

    def test_twice_is_refused_even_as_number_and_object(self, loop: IOLoop) -> None:
        here, there = pipe_pair()
        loop.add_handler(here, int, loop.READ)
        for again in (here, here.fileno()):
            with pytest.raises(ValueError, match="registered already"):
                loop.add_handler(again, int, loop.READ)
        loop.remove_handler(here)
        loop.add_handler(here.fileno(), int, loop.READ)
        loop.remove_handler(here)
        here.close()
        there.close()

    def test_unknown_ones(self, loop: IOLoop) -> None:
        here, there = pipe_pair()
        loop.remove_handler(here)
        loop.remove_handler(99999)
        with pytest.raises(KeyError, match="not registered"):
            loop.update_handler(here, loop.READ)
        here.close()
        there.close()

    def test_an_error_is_logged_and_the_others_run(
        self, loop: IOLoop, caplog: pytest.LogCaptureFixture
    ) -> None:
        here, there = pipe_pair()
        here.send(b"x")
        there.send(b"x")
        seen: list[Any] = []

        def fail(fd: Any, _events: int) -> None:
            seen.append(fd)
            raise ZeroDivisionError

        loop.add_handler(here, fail, loop.READ)
        loop.add_handler(there, fail, loop.READ)
        turns(loop)
        assert set(seen) == {here, there}
        assert [record.name for record in caplog.records] == ["coro.application"] * 2
        loop.close(all_fds=True)

    def test_keep_the_context_of_the_registration(self, loop: IOLoop) -> None:
        var: contextvars.ContextVar[str] = contextvars.ContextVar("var", default="unset")
        here, there = pipe_pair()
        there.send(b"x")
        seen: list[str] = []
        context = contextvars.copy_context()
        context.run(var.set, "set")
        context.run(loop.add_handler, here, lambda *_: seen.append(var.get()), loop.READ)
        turns(loop)
        assert seen == ["set"]
        loop.close(all_fds=True)
        there.close()

    def test_removing_another_handler_drops_its_polled_event(self, loop: IOLoop) -> None:
        here, there = pipe_pair()
        here.send(b"x")
        there.send(b"x")
        seen: list[Any] = []

        def remove_other(fd: Any, _events: int) -> None:
            seen.append(fd)
            loop.remove_handler(there if fd is here else here)

        loop.add_handler(here, remove_other, loop.READ)
        loop.add_handler(there, remove_other, loop.READ)
        turns(loop)
        assert len(seen) == 1
        loop.close(all_fds=True)
        here.close()
        there.close()

    @pytest.mark.parametrize("registers_again", [True, False])
    def test_a_reused_number_gets_no_stale_event_and_loses_none(
        self, loop: IOLoop, registers_again: bool
    ) -> None:
        """Whichever of two runs first closes the other and makes a new one of its number."""
        pairs = [pipe_pair(), pipe_pair()]
        heres = [pair[0] for pair in pairs]
        for _, there in pairs:
            there.send(b"x")
        order: list[Any] = []
        fresh: list[socket.socket] = []

        def on_fresh(fd: Any, events: int) -> None:
            order.append("fresh")
            assert fd is fresh[0]
            assert fd.recv(10) == b"for the fresh one"

        def handler(fd: Any, _events: int) -> None:
            order.append(fd)
            (other,) = [here for here in heres if here is not fd]
            number = other.fileno()
            loop.remove_handler(other)
            other.close()
            new, far = pipe_pair()
            fresh.extend([new, far])
            if new.fileno() != number:
                os.dup2(new.fileno(), number)
                new.close()
                fresh[0] = socket.socket(fileno=number)
            assert fresh[0].fileno() == number
            fresh[0].setblocking(False)
            if registers_again:
                loop.add_handler(fresh[0], on_fresh, loop.READ)
            loop.remove_handler(fd)

        for here in heres:
            loop.add_handler(here, handler, loop.READ)
        turns(loop)
        assert len(order) == 1
        turns(loop)
        assert len(order) == 1
        fresh[1].send(b"for the fresh one")
        turns(loop)
        assert order[1:] == (["fresh"] if registers_again else [])
        for sock in [*fresh, *heres, *(pair[1] for pair in pairs)]:
            loop.remove_handler(sock)
            sock.close()

    def test_an_object_that_was_closed_first_can_still_be_removed(self, loop: IOLoop) -> None:
        here, there = pipe_pair()
        loop.add_handler(here, int, loop.READ)
        number = here.fileno()
        here.close()
        loop.remove_handler(here)
        assert loop.statistics()["handlers"] == 0
        reader, writer = os.pipe()
        os.dup2(reader, number)
        os.write(writer, b"x")
        seen: list[int] = []
        loop.add_handler(number, lambda fd, events: seen.append(fd), loop.READ)
        turns(loop)
        assert seen == [number]
        loop.remove_handler(number)
        for fd in {reader, writer, number}:
            os.close(fd)
        there.close()

    def test_close_closes_all_of_them_by_their_own_close(self) -> None:
        here, there = pipe_pair()
        reader, writer = os.pipe()

        class Wrapper:
            closed = 0

            def fileno(self) -> int:
                return there.fileno()

            def close(self) -> None:
                self.closed += 1
                there.close()

        wrapper = Wrapper()
        loop = virtual_loop(make_current=False)
        for fd in (here, wrapper, reader):
            loop.add_handler(fd, int, loop.READ)
        loop.close(all_fds=True)
        assert here.fileno() == -1
        assert wrapper.closed == 1
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(reader)
        os.close(writer)

    def test_close_leaves_them_alone_unless_told(self) -> None:
        here, there = pipe_pair()
        loop = virtual_loop(make_current=False)
        loop.add_handler(here, int, loop.READ)
        loop.close()
        assert here.fileno() != -1
        here.close()
        there.close()


class TestThreads:
    def test_add_callback_wakes_a_sleeping_loop(self, loop: IOLoop) -> None:
        seen: list[int] = []

        def called() -> None:
            seen.append(threading.get_ident())
            loop.stop()

        def other() -> None:
            while not loop._asleep:
                pass
            loop.add_callback(called)

        thread = threading.Thread(target=other)
        thread.start()
        loop.start()
        thread.join()
        assert seen == [threading.get_ident()]

    def test_no_wake_up_is_lost(self) -> None:
        """A ball thrown to and fro 2000 times: one lost wake-up and nothing moves any more."""
        loops = [virtual_loop(make_current=False), virtual_loop(make_current=False)]
        ball = 2000

        def throw(to: int) -> None:
            nonlocal ball
            ball -= 1
            if ball <= 0:
                for loop in loops:
                    loop.add_callback(loop.stop)
            else:
                loops[to].add_callback(throw, 1 - to)

        thread = threading.Thread(target=loops[1].start)
        loops[0].add_callback(throw, 1)
        thread.start()
        loops[0].start()
        thread.join()
        assert ball <= 0
        for loop in loops:
            loop.close()

    def test_add_callback_against_close(self, request: pytest.FixtureRequest) -> None:
        """Another thread that adds callbacks while the loop closes meets no error."""
        interval = sys.getswitchinterval()
        request.addfinalizer(lambda: sys.setswitchinterval(interval))
        sys.setswitchinterval(1e-6)
        for _ in range(100):
            loop = virtual_loop(make_current=False)
            begun, over = threading.Event(), threading.Event()
            errors: list[BaseException] = []

            def hammer() -> None:
                try:
                    while not over.is_set():  # noqa: B023
                        loop.add_callback(nothing)  # noqa: B023
                        begun.set()  # noqa: B023
                except BaseException as error:
                    errors.append(error)  # noqa: B023

            thread = threading.Thread(target=hammer)
            thread.start()
            begun.wait()
            turns(loop, 3)
            loop.close()
            over.set()
            thread.join()
            assert errors == []

    def test_dropped_on_a_closed_loop(self, loop: IOLoop) -> None:
        loop.close()
        loop.add_callback(int)
        assert loop.statistics()["ready"] == 0

    def test_loops_are_made_and_closed_in_many_threads_at_once(self) -> None:
        errors: list[BaseException] = []

        def work() -> None:
            try:
                for _ in range(10):
                    loop = IOLoop()
                    assert IOLoop.current() is loop
                    loop.add_callback(loop.stop)
                    loop.start()
                    loop.close()
                    assert IOLoop.current(instance=False) is None
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []

    CALLS: dict[str, Callable[[IOLoop], Any]] = {
        "stop": lambda loop: loop.stop(),
        "call_later": lambda loop: loop.call_later(1, int),
        "call_at": lambda loop: loop.call_at(loop.time(), int),
        "add_timeout": lambda loop: loop.add_timeout(timedelta(seconds=1), int),
        "remove_timeout": lambda loop: loop.remove_timeout(None),  # type: ignore[arg-type]
        "add_handler": lambda loop: loop.add_handler(0, int, loop.READ),
        "update_handler": lambda loop: loop.update_handler(0, loop.READ),
        "remove_handler": lambda loop: loop.remove_handler(0),
        "add_future": lambda loop: loop.add_future(Future(loop=loop), int),
        "run_in_executor": lambda loop: loop.run_in_executor(None, int),
        "set_default_executor": lambda loop: loop.set_default_executor(None),  # type: ignore[arg-type]
        "add_signal_handler": lambda loop: loop.add_signal_handler(signal.SIGUSR1, int),
        "remove_signal_handler": lambda loop: loop.remove_signal_handler(signal.SIGUSR1),
        "add_observer": lambda loop: loop.add_observer(Observer()),
        "remove_observer": lambda loop: loop.remove_observer(Observer()),
        "make_current": lambda loop: loop.make_current(),
        "close": lambda loop: loop.close(),
    }

    def test_all_other_calls_from_a_foreign_thread_raise_and_name_the_fix(
        self, loop: IOLoop
    ) -> None:
        results: dict[str, Any] = {}

        def other() -> None:
            for name, call in self.CALLS.items():
                try:
                    results[name] = call(loop)
                except BaseException as error:
                    results[name] = error
            for name in ("start", "run_sync"):
                try:
                    results[name] = loop.start() if name == "start" else loop.run_sync(int)  # type: ignore[func-returns-value]
                except BaseException as error:
                    results[name] = error
            results["exempt"] = (loop.time(), loop.statistics(), repr(loop))
            loop.add_callback(loop.stop)

        thread = threading.Thread(target=other)
        loop.add_callback(thread.start)
        loop.start()
        thread.join()
        for name in self.CALLS:
            error = results[name]
            assert isinstance(error, WrongThreadError), (name, error)
            assert "add_callback" in str(error)
            assert name in str(error) or name in ("call_later", "add_timeout")
        for name in ("start", "run_sync"):
            assert isinstance(results[name], RuntimeError), (name, results[name])
        assert results["exempt"][1]["timers"] == 0
        counts = loop.statistics()
        assert (counts["handlers"], counts["ready"]) == (0, 0)
        assert loop._hooks is None

    def test_a_loop_that_is_not_running_belongs_to_whoever_calls(self, loop: IOLoop) -> None:
        seen: list[Any] = []

        def other() -> None:
            try:
                loop.call_later(0, seen.append, 1)
                turns(loop)
            except BaseException as error:
                seen.append(error)

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert seen == [1]

    def test_a_task_cannot_be_cancelled_from_a_foreign_thread(self, loop: IOLoop) -> None:
        @coroutine
        def waits() -> Any:
            yield sleep(5)

        @coroutine
        def main() -> Any:
            errors: list[BaseException] = []
            tasks = [waits(), waits_a_turn()]

            def other() -> None:
                for task in tasks:
                    try:
                        task.cancel()
                    except BaseException as error:
                        errors.append(error)

            thread = threading.Thread(target=other)
            thread.start()
            thread.join()
            assert [type(error) for error in errors] == [WrongThreadError] * 2
            assert [task.cancelling() for task in tasks] == [0, 0]
            yield tasks

        @coroutine
        def waits_a_turn() -> Any:
            yield moment

        loop.run_sync(main)


@pytest.fixture
def restored_signal() -> Iterator[None]:
    previous = signal.getsignal(signal.SIGUSR1)
    yield
    signal.signal(signal.SIGUSR1, previous)


@pytest.mark.usefixtures("restored_signal")
class TestSignals:
    def kill_when_asleep(self, loop: IOLoop) -> threading.Thread:
        def other() -> None:
            while not loop._asleep:
                pass
            os.kill(os.getpid(), signal.SIGUSR1)

        thread = threading.Thread(target=other)
        thread.start()
        return thread

    def test_add_callback_in_a_handler_wakes_the_loop(self, loop: IOLoop) -> None:
        signal.signal(signal.SIGUSR1, lambda *_: loop.add_callback_from_signal(loop.stop))
        thread = self.kill_when_asleep(loop)
        loop.start()
        thread.join()

    def test_stop_in_a_handler_wakes_the_loop(self, loop: IOLoop) -> None:
        signal.signal(signal.SIGUSR1, lambda *_: loop.stop())
        thread = self.kill_when_asleep(loop)
        loop.start()
        thread.join()

    def test_add_signal_handler_calls_in_a_turn_with_the_context(self, loop: IOLoop) -> None:
        var: contextvars.ContextVar[str] = contextvars.ContextVar("var", default="unset")
        seen: list[Any] = []

        def called(*args: Any) -> None:
            seen.append((args, var.get(), loop._thread is not None))
            loop.stop()

        context = contextvars.copy_context()
        context.run(var.set, "set")
        context.run(loop.add_signal_handler, signal.SIGUSR1, called, 1)
        thread = self.kill_when_asleep(loop)
        loop.start()
        thread.join()
        assert seen == [((1,), "set", True)]

    def test_a_signal_inside_the_handling_of_a_signal(self, loop: IOLoop) -> None:
        seen: list[int] = []
        loop.add_signal_handler(signal.SIGUSR1, seen.append, 1)
        handler: Any = signal.getsignal(signal.SIGUSR1)

        class Interrupted(deque[Any]):
            interrupted = 0

            def append(self, item: Any) -> None:
                self.interrupted += 1
                if self.interrupted == 1:
                    handler(signal.SIGUSR1, None)
                super().append(item)

        loop._ready = Interrupted()
        handler(signal.SIGUSR1, None)
        turns(loop)
        assert seen == [1, 1]

    def test_remove_and_close_restore_what_was_before(self, loop: IOLoop) -> None:
        def before(*_: Any) -> None:
            """What the program had."""

        signal.signal(signal.SIGUSR1, before)
        assert loop.remove_signal_handler(signal.SIGUSR1) is False
        loop.add_signal_handler(signal.SIGUSR1, int)
        loop.add_signal_handler(signal.SIGUSR1, str)
        assert loop.remove_signal_handler(signal.SIGUSR1) is True
        assert signal.getsignal(signal.SIGUSR1) is before
        loop.add_signal_handler(signal.SIGUSR1, int)
        loop.close()
        assert signal.getsignal(signal.SIGUSR1) is before

    def test_the_wake_up_descriptor_is_restored(self, loop: IOLoop) -> None:
        before = signal.set_wakeup_fd(-1)
        signal.set_wakeup_fd(before)
        turns(loop)
        assert signal.set_wakeup_fd(before) == before


class TestCurrent:
    @pytest.fixture(autouse=True)
    def clean(self) -> Iterator[None]:
        IOLoop.clear_current()
        yield
        IOLoop.clear_current()

    def test_none_unless_one_is_made(self) -> None:
        assert IOLoop.current(instance=False) is None
        loop = IOLoop.current()
        assert isinstance(loop, IOLoop)
        assert IOLoop.current() is loop
        assert IOLoop.instance() is loop
        loop.close()
        assert IOLoop.current(instance=False) is None

    def test_made_current(self) -> None:
        first, second = IOLoop(), IOLoop()
        assert IOLoop.current() is second
        first.make_current()
        assert IOLoop.current() is first
        second.close()
        assert IOLoop.current() is first
        first.close()

    def test_not_made_current_is_current_while_it_runs_and_repeatedly(self) -> None:
        other, loop = IOLoop(), IOLoop(make_current=False)
        for _ in range(3):
            seen: list[Any] = []
            loop.add_callback(lambda: seen.append(IOLoop.current()))  # noqa: B023
            turns(loop)
            assert seen == [loop]
            assert IOLoop.current() is other
        other.close()
        loop.close()

    def test_clear_current_in_a_fresh_thread(self) -> None:
        seen: list[Any] = []

        def work() -> None:
            IOLoop.clear_current()
            seen.append(IOLoop.current(instance=False))

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert seen == [None]

    def test_each_thread_has_its_own(self, loop: IOLoop) -> None:
        loop.make_current()
        seen: list[Any] = []
        thread = threading.Thread(target=lambda: seen.append(IOLoop.current(instance=False)))
        thread.start()
        thread.join()
        assert seen == [None]


class TestStart:
    def test_inside_a_running_loop_raises(self, loop: IOLoop) -> None:
        other = virtual_loop(make_current=False)
        errors: list[BaseException] = []

        def nested() -> None:
            for inner in (loop, other):
                try:
                    inner.start()
                except BaseException as error:
                    errors.append(error)

        loop.add_callback(nested)
        turns(loop)
        assert [type(error) for error in errors] == [RuntimeError] * 2
        assert all("running" in str(error) for error in errors)
        turns(other)
        other.close()

    def test_on_a_closed_loop_raises(self, loop: IOLoop) -> None:
        loop.close()
        with pytest.raises(RuntimeError, match="closed"):
            loop.start()


class TestRunSync:
    def test_results(self, loop: IOLoop) -> None:
        future: Future[int] = Future()
        future.set_result(2)

        async def native() -> int:
            return 3

        assert loop.run_sync(coroutine(lambda: 1)) == 1
        assert loop.run_sync(lambda: future) == 2
        assert loop.run_sync(native) == 3
        assert loop.run_sync(lambda: None) is None
        assert loop.run_sync(lambda: [native(), future]) == [3, 2]

    def test_errors(self, loop: IOLoop) -> None:
        @coroutine
        def fails() -> Any:
            yield moment
            raise ZeroDivisionError

        def fails_outside() -> None:
            raise ZeroDivisionError

        for func in (fails, fails_outside):
            with pytest.raises(ZeroDivisionError):
                loop.run_sync(func)

    def test_what_cannot_be_waited_for(self, loop: IOLoop) -> None:
        with pytest.raises(BadYieldError):
            loop.run_sync(lambda: 42)

    def test_timeout_cancels_and_waits_for_the_clean_up(self, loop: IOLoop) -> None:
        order: list[str] = []

        @coroutine
        def main() -> Any:
            try:
                yield sleep(100)
            finally:
                yield sleep(1)
                order.append("cleaned up")

        started = loop.time()
        with pytest.raises(TimeoutError, match="after 5 seconds"):
            loop.run_sync(main, timeout=5)
        assert order == ["cleaned up"]
        assert loop.time() == pytest.approx(started + 6)
        with pytest.raises(TimeoutError):
            loop.run_sync(main, timeout=timedelta(seconds=5))
        assert loop.statistics()["timers"] == 0

    def test_timeout_that_is_not_needed_goes_away(self, loop: IOLoop) -> None:
        assert loop.run_sync(lambda: sleep(1), timeout=5) is None
        assert loop.statistics()["timers"] == 0

    def test_stop_before_the_end(self, loop: IOLoop) -> None:
        loop.add_callback(loop.stop)
        with pytest.raises(RuntimeError, match="Event loop stopped"):
            loop.run_sync(lambda: sleep(100), timeout=200)
        assert loop.statistics()["timers"] == 1  # that of the sleep

    def test_an_abandoned_run_does_not_stop_the_next_one(self, loop: IOLoop) -> None:
        loop.add_callback(loop.stop)
        with pytest.raises(RuntimeError, match="Event loop stopped"):
            loop.run_sync(lambda: sleep(1), timeout=2)
        assert loop.run_sync(lambda: sleep(10)) is None

    def test_inside_a_running_loop_raises_and_runs_nothing(self, loop: IOLoop) -> None:
        seen: list[Any] = []

        @coroutine
        def main() -> Any:
            for inner in (loop, other):
                with pytest.raises(RuntimeError, match="running"):
                    inner.run_sync(lambda: seen.append("ran"))
            yield sleep(1)
            return "end"

        other = virtual_loop(make_current=False)
        assert loop.run_sync(main) == "end"
        turns(other)
        assert seen == []
        other.close()

    def test_a_cancelled_end(self, loop: IOLoop) -> None:
        future: Future[Any] = Future()
        loop.call_later(1, future.cancel)
        with pytest.raises(CancelledError):
            loop.run_sync(lambda: future)

    def test_a_future_of_another_loop(self, loop: IOLoop) -> None:
        other = virtual_loop(make_current=False)
        with pytest.raises(WrongLoopError):
            loop.run_sync(lambda: Future(loop=other))
        other.close()

    @pytest.mark.parametrize("late", [True, False])
    def test_an_interrupt(self, loop: IOLoop, late: bool) -> None:
        @coroutine
        def main() -> Any:
            if late:
                yield moment
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            loop.run_sync(main, timeout=5)
        assert loop.statistics()["timers"] == 0
        assert loop.run_sync(lambda: sleep(1)) is None

    def test_leaves_no_circle(self, loop: IOLoop) -> None:
        @coroutine
        def fails() -> Any:
            yield moment
            raise ZeroDivisionError

        @coroutine
        def never() -> Any:
            yield sleep(100)

        gc.collect()
        gc.disable()
        try:
            for _ in range(3):
                loop.run_sync(lambda: sleep(1), timeout=5)
                for func, kind in ((fails, ZeroDivisionError), (never, TimeoutError)):
                    try:
                        loop.run_sync(func, timeout=5)
                    except kind:
                        pass
            assert gc.collect() == 0
        finally:
            gc.enable()


class TestFuturesAndExecutors:
    def test_add_future_calls_on_the_loop(self, loop: IOLoop) -> None:
        ours: Future[int] = Future()
        theirs: concurrent.futures.Future[int] = concurrent.futures.Future()
        done: concurrent.futures.Future[int] = concurrent.futures.Future()
        done.set_result(3)
        seen: list[Any] = []

        def called(future: Any) -> None:
            seen.append((future, threading.get_ident(), loop._thread is not None))
            if len(seen) == 3:
                loop.stop()

        for future in (ours, theirs, done):
            loop.add_future(future, called)
        assert seen == []
        ours.set_result(1)
        thread = threading.Thread(target=theirs.set_result, args=(2,))
        thread.start()
        loop.start()
        thread.join()
        assert {id(entry[0]) for entry in seen} == {id(ours), id(theirs), id(done)}
        assert {entry[1:] for entry in seen} == {(threading.get_ident(), True)}

    def test_add_future_of_another_loop_calls_on_this_one(self, loop: IOLoop) -> None:
        other = virtual_loop(make_current=False)
        future: Future[int] = Future(loop=other)
        seen: list[Any] = []
        loop.add_future(future, lambda _: seen.append(IOLoop.current()))
        future.set_result(1)
        turns(other)
        assert seen == []
        turns(loop)
        assert seen == [loop]
        other.close()

    def test_add_future_adopts_one_without_a_loop(self) -> None:
        IOLoop.clear_current()
        future: Future[int] = Future()
        loop = virtual_loop(make_current=False)
        seen: list[Any] = []
        loop.add_future(future, seen.append)
        future.set_result(1)
        turns(loop)
        assert seen == [future]
        loop.close()

    @pytest.mark.parametrize("concurrent_future", [True, False])
    def test_add_future_keeps_the_context(self, loop: IOLoop, concurrent_future: bool) -> None:
        var: contextvars.ContextVar[str] = contextvars.ContextVar("var", default="unset")
        future: Any = concurrent.futures.Future() if concurrent_future else Future()
        seen: list[str] = []
        context = contextvars.copy_context()
        context.run(var.set, "set")
        context.run(loop.add_future, future, lambda _: seen.append(var.get()))
        future.set_result(None)
        turns(loop)
        assert seen == ["set"]

    def test_run_in_executor_is_truly_parallel(self, loop: IOLoop) -> None:
        barrier = threading.Barrier(3, timeout=20)

        def meet(number: int) -> int:
            barrier.wait()
            return number

        @coroutine
        def main() -> Any:
            return (yield [loop.run_in_executor(None, meet, number) for number in range(3)])

        async def native() -> int:
            return await loop.run_in_executor(None, int, "7")

        assert loop.run_sync(main) == [0, 1, 2]
        assert loop.run_sync(native) == 7

    def test_run_in_executor_hands_errors_on(self, loop: IOLoop) -> None:
        with pytest.raises(ZeroDivisionError):
            loop.run_sync(lambda: loop.run_in_executor(None, lambda: 1 / 0))
        with pytest.raises(RuntimeError, match="StopIteration"):
            loop.run_sync(lambda: loop.run_in_executor(None, next, iter([])))

    def test_run_in_executor_leaves_no_circle(self, loop: IOLoop) -> None:
        @coroutine
        def main() -> Any:
            for _ in range(10):
                yield loop.run_in_executor(None, int, "7")
                try:
                    yield loop.run_in_executor(None, int, "x")
                except ValueError:
                    pass

        loop.run_sync(main)
        gc.collect()
        gc.disable()
        try:
            loop.run_sync(main)
            assert gc.collect() == 0
        finally:
            gc.enable()

    def test_run_in_executor_copies_no_context_and_the_caller_keeps_its_own(
        self, loop: IOLoop
    ) -> None:
        var: contextvars.ContextVar[str] = contextvars.ContextVar("var", default="unset")

        @coroutine
        def main() -> Any:
            var.set("set")
            seen = yield loop.run_in_executor(None, var.get)
            return seen, var.get()

        assert loop.run_sync(main) == ("unset", "set")

    def test_the_default_executor_is_what_was_set(self, loop: IOLoop) -> None:
        class Immediately(concurrent.futures.Executor):
            calls: list[Any] = []

            def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
                self.calls.append((fn, args))
                future: concurrent.futures.Future[Any] = concurrent.futures.Future()
                future.set_result(fn(*args))
                return future

        executor = Immediately()
        loop.set_default_executor(executor)
        assert loop.run_sync(lambda: loop.run_in_executor(None, int, "5")) == 5
        own = Immediately()
        assert loop.run_sync(lambda: loop.run_in_executor(own, int, "6")) == 6
        assert executor.calls == [(int, ("5",)), (int, ("6",))]


class TestClose:
    def test_one_that_is_collected_instead_warns(self) -> None:
        def abandon() -> None:
            loop = IOLoop(make_current=False)
            loop._poller.close()
            loop._waker.close()
            del loop
            gc.collect()

        with pytest.warns(ResourceWarning, match="unclosed IOLoop"):
            abandon()

    def test_twice_and_while_running(self, loop: IOLoop) -> None:
        errors: list[BaseException] = []

        def close() -> None:
            try:
                loop.close()
            except BaseException as error:
                errors.append(error)

        loop.add_callback(close)
        turns(loop)
        (error,) = errors
        assert isinstance(error, RuntimeError)
        assert "stop()" in str(error)
        loop.close()
        loop.close()

    def test_gives_back_every_descriptor(self) -> None:
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(10):
            loop = IOLoop()
            turns(loop)
            loop.close()
        assert len(os.listdir("/proc/self/fd")) == before

    def test_drops_what_it_held(self) -> None:
        class Held:
            """Dies with the loop."""

            def __call__(self, *_: Any) -> None:
                """Never called."""

        loop = virtual_loop(make_current=False)
        here, there = pipe_pair()
        held = [Held(), Held(), Held()]
        seen = [weakref.ref(each) for each in held]
        loop.add_callback(held[0])
        timer = loop.call_later(5, held[1])
        loop.add_handler(here, held[2], loop.READ)
        held.clear()
        assert all(each() is not None for each in seen)
        loop.close()
        assert all(each() is None for each in seen)
        assert timer.callback is None
        here.close()
        there.close()

    def test_runs_what_was_asked_to_run_then(
        self, loop: IOLoop, caplog: pytest.LogCaptureFixture
    ) -> None:
        seen: list[str] = []
        loop._call_on_close("a", lambda: seen.append("a"))
        loop._call_on_close("b", lambda: 1 / 0)
        loop._call_on_close("c", lambda: seen.append("c"))
        loop._call_on_close("d", lambda: seen.append("d"))
        loop._forget_on_close("c")
        loop._forget_on_close("unknown")
        loop.close()
        loop.close()
        assert seen == ["a", "d"]
        assert len(caplog.records) == 1

    def test_a_failing_close_of_a_descriptor_is_only_noted(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        here, there = pipe_pair()

        class Failing:
            def fileno(self) -> int:
                return here.fileno()

            def close(self) -> None:
                raise OSError("no")

        loop = virtual_loop(make_current=False)
        loop.add_handler(Failing(), int, loop.READ)
        loop.close(all_fds=True)
        assert [record.levelno for record in caplog.records] == [logging.DEBUG]
        here.close()
        there.close()

    def test_a_loop_whose_poller_fails_gives_back_what_it_had(self) -> None:
        closed: list[str] = []

        class Failing(Network):
            def waker(self) -> Any:
                raise OSError("no waker")

            def poller(self) -> Any:
                poller = EpollPoller()
                real = poller.close
                poller.close = lambda: (closed.append("poller"), real())  # type: ignore
                return poller

        with pytest.raises(OSError, match="no waker"):
            IOLoop(make_current=False, network=Failing())
        assert closed == ["poller"]

    def test_a_suspended_coroutine_can_be_collected_afterwards_and_runs_its_finally(self) -> None:
        for circular in (False, True):
            loop = virtual_loop()
            ran: list[str] = []

            @coroutine
            def suspended() -> Any:
                circle: list[Any] = []
                if circular:  # noqa: B023
                    circle.append(circle)
                    circle.append(futures[0])  # noqa: B023
                try:
                    yield futures[0]  # noqa: B023
                finally:
                    ran.append("finally")  # noqa: B023

            futures: list[Future[Any]] = [Future()]
            suspended()
            gc.collect()
            assert ran == []
            loop.close()
            futures.clear()
            gc.collect()
            assert ran == ["finally"]
            IOLoop.clear_current()
