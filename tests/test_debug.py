"""Debug mode: what it tells, and that nothing of it is there when it is off."""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
import socket
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import coro
from coro import debug
from coro.debug import disable, enable
from coro.future import Future
from coro.gen import (
    CancelledError,
    Return,
    WaitIterator,
    as_completed,
    coroutine,
    maybe_future,
    moment,
    multi,
    shield,
    sleep,
    with_timeout,
)
from coro.hooks import Observer
from coro.locks import Condition, Lock
from coro.loop import IOLoop
from coro.stream import IOStream
from coro.task import Task
from tests.support.documents import programs, run
from tests.support.virtual import Clock, closing_loop, turns, virtual_loop

REPLACED = [
    (Future, "__init__"),
    (Future, "_value"),
    (Future, "done"),
    (Future, "cancelled"),
    (Future, "exception"),
    (Future, "add_done_callback"),
    (Task, "__init__"),
]
PLAIN = [vars(kind)[name] for kind, name in REPLACED]


def is_plain() -> bool:
    return [vars(kind)[name] for kind, name in REPLACED] == PLAIN


@pytest.fixture
def loop() -> Iterator[IOLoop]:
    with closing_loop() as loop:
        yield loop


@pytest.fixture
def debugged(loop: IOLoop) -> IOLoop:
    enable(loop)
    return loop


@pytest.fixture(autouse=True)
def _nothing_stays() -> Iterator[None]:
    assert is_plain()
    yield
    assert is_plain()


def clock_of(loop: IOLoop) -> Clock:
    clock: Any = loop.time
    return clock  # type: ignore[no-any-return]


def line_of(func: Any, offset: int) -> str:
    """The place ``offset`` lines below the ``def`` (or its decorator)."""
    code = getattr(func, "__wrapped__", func).__code__
    return f"{__file__}:{code.co_firstlineno + offset}"


def said(caplog: pytest.LogCaptureFixture, what: str) -> list[str]:
    """The messages that hold ``what``."""
    texts = [record.getMessage() for record in caplog.records]
    return [text for text in texts if what in text]


class Ticket(Future[Any]):
    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@coroutine
def at_once() -> Any:
    return 5
    yield


@coroutine
def later() -> Any:
    yield moment
    return 5


@coroutine
def never() -> Any:
    yield Future()


@coroutine
def fails() -> Any:
    yield moment
    raise ZeroDivisionError


class TestOff:
    def test_nothing_is_installed(self, loop: IOLoop) -> None:
        assert is_plain()
        assert loop._hooks is None
        assert not hasattr(Future(), "_birthplace")
        assert "created" not in repr(Future())

    def test_run_installs_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("CORO_DEBUG", raising=False)

        @coroutine
        def main() -> Any:
            yield moment
            return is_plain(), IOLoop.current()._hooks

        assert coro.run(main) == (True, None)

    def test_disable_puts_all_back(self, debugged: IOLoop) -> None:
        assert not is_plain()
        disable(debugged)
        assert is_plain()
        assert debugged._hooks is None
        disable(debugged)
        assert is_plain()

    def test_close_puts_all_back(self) -> None:
        loop = IOLoop(make_current=False)
        enable(loop)
        loop.close()
        assert is_plain()

    def test_the_last_loop_puts_all_back(self) -> None:
        loops = [IOLoop(make_current=False) for _ in range(2)]
        for loop in loops:
            enable(loop)
        # Noted once, however many loops there are.
        assert vars(Future)["__init__"].__wrapped__ is PLAIN[0]
        loops[0].close()
        assert not is_plain()
        loops[1].close()
        assert is_plain()

    def test_a_loop_that_is_collected_puts_all_back_and_is_told(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        def abandon() -> None:
            loop = IOLoop(make_current=False)
            enable(loop)
            loop._poller.close()
            loop._waker.close()
            loop._unclosed.detach()

        abandon()
        gc.collect()
        assert is_plain()
        (text,) = said(caplog, "never closed")
        assert line_of(abandon, 2) in text

    def test_enabling_twice_is_enabling_once(self, debugged: IOLoop) -> None:
        observer = enable(debugged, slow=3)
        assert observer is enable(debugged, slow=2)
        assert observer.slow == 2
        assert debugged._hooks is not None
        assert debugged._hooks.observers == [observer]

    def test_the_current_loop_is_the_default(self, loop: IOLoop) -> None:
        enable()
        assert loop._hooks is not None
        disable()
        assert loop._hooks is None


class TestRun:
    @coroutine
    def main(self) -> Any:
        yield moment
        return not is_plain()

    def test_by_argument(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("CORO_DEBUG", raising=False)
        assert coro.run(self.main, debug=True)
        assert not coro.run(self.main, debug=False)

    @pytest.mark.parametrize(
        ("value", "on"), [("1", True), ("yes", True), ("0", False), ("", False)]
    )
    def test_by_environment(self, monkeypatch: pytest.MonkeyPatch, value: str, on: bool) -> None:
        monkeypatch.setenv("CORO_DEBUG", value)
        assert coro.run(self.main) == on

    def test_the_argument_outdoes_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CORO_DEBUG", "1")
        assert not coro.run(self.main, debug=False)

    def test_by_the_debug_mode_of_asyncio(self, loop: IOLoop) -> None:
        face = loop.asyncio_loop
        for _ in range(2):
            face.set_debug(True)
            assert debug._observer(loop) is not None
            face.set_debug(False)
            assert debug._observer(loop) is None
        # Who put it on by another way is not disturbed.
        enable(loop)
        face.set_debug(False)
        assert debug._observer(loop) is not None
        disable(loop)

    @pytest.mark.parametrize("on", [False, True])
    def test_by_that_of_the_host(self, on: bool) -> None:
        async def main() -> bool:
            return debug._observer(IOLoop.current()) is not None

        assert asyncio.run(main(), debug=on) is on

    def test_what_still_runs_and_was_never_yielded_is_told_once(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        @coroutine
        def main() -> Any:
            never()
            held = later()
            yield held

        coro.run(main, debug=True)
        (text,) = said(caplog, "never yielded")
        assert "'never'" in text
        assert line_of(main, 2) in text


class TestBirthplaces:
    def test_of_a_future(self, debugged: IOLoop) -> None:
        def make() -> Future[Any]:
            return Future()

        future = make()
        here = f"{__file__}:{make.__code__.co_firstlineno + 3}"
        assert f"created at {line_of(make, 1)} in make, called from {here}" in repr(future)
        future.set_result(1)
        assert line_of(make, 1) in repr(future)

    def test_of_a_task_also_when_it_starts_later(self, debugged: IOLoop) -> None:
        places: list[str] = []

        @coroutine
        def deep(level: int) -> Any:
            task = deep(level - 1) if level else moment
            places.append(repr(task))
            yield task

        debugged.run_sync(lambda: deep(100))
        tasks = [place for place in places if "Task" in place]
        assert len(tasks) == 100
        assert all(f"created at {line_of(deep, 2)} in deep" in place for place in tasks)

    def test_of_what_coro_makes_it_is_the_users_line(self, debugged: IOLoop) -> None:
        assert f"created at {__file__}" in repr(sleep(1))
        assert f"created at {__file__}" in repr(Condition().wait())
        assert f"created at {__file__}" in repr(multi([Future()]))
        debugged._timers.clear()

    def test_of_what_coro_makes_by_itself_it_is_the_line_there(self, debugged: IOLoop) -> None:
        seen = []
        debugged.add_callback(functools.partial(maybe_future, 1))
        follow = debugged._follow

        def see(callback: Any, result: Any, context: Any) -> None:
            seen.append(repr(result))
            follow(callback, result, context)

        debugged._follow = see
        turns(debugged)
        del debugged._follow
        assert "gen.py" in seen[0]
        assert __file__ not in seen[0]

    def test_of_a_class_with_an_init_of_its_own_it_is_the_call(self, debugged: IOLoop) -> None:
        def make() -> Future[Any]:
            return Ticket(7)

        assert f"created at {line_of(make, 1)} in make, called" in repr(make())

    def test_a_class_made_later(self, debugged: IOLoop) -> None:
        class Mine(Future[Any]):
            def __init__(self) -> None:
                super().__init__()

        assert "created at" in repr(Mine())

    def test_a_failure_that_nobody_looked_at(
        self, debugged: IOLoop, caplog: pytest.LogCaptureFixture
    ) -> None:
        def forget() -> None:
            Future().set_exception(ZeroDivisionError())

        forget()
        (text,) = said(caplog, "nobody looked")
        assert f"A Future, created at {line_of(forget, 1)} in forget" in text

    def test_a_task_that_failed_and_nobody_looked_at(
        self, debugged: IOLoop, caplog: pytest.LogCaptureFixture
    ) -> None:
        def forget() -> None:
            fails()

        forget()
        turns(debugged, 2)
        (text,) = said(caplog, "nobody looked")
        assert f"Task 'fails', created at {line_of(forget, 1)} in forget" in text
        assert said(caplog, "never yielded") == []

    def test_without_debug_mode_the_log_is_as_ever(
        self, loop: IOLoop, caplog: pytest.LogCaptureFixture
    ) -> None:
        Future().set_exception(ZeroDivisionError())
        (text,) = said(caplog, "nobody looked")
        assert text == "A Future failed and nobody looked at its error"


class TestSlow:
    def test_a_step_with_where_it_began_and_ended(
        self, debugged: IOLoop, caplog: pytest.LogCaptureFixture
    ) -> None:
        clock = clock_of(debugged)

        @coroutine
        def slow() -> Any:
            yield moment
            clock.now += 0.25
            yield moment

        debugged.run_sync(slow)
        (text,) = said(caplog, "Slow")
        assert "0.250 s" in text
        assert "slow'" in text
        assert f"from {line_of(slow, 2)} to {line_of(slow, 4)}" in text
        assert caplog.records[0].name == "coro.general"
        assert caplog.records[0].levelno == logging.WARNING

    def test_the_last_step(self, debugged: IOLoop, caplog: pytest.LogCaptureFixture) -> None:
        @coroutine
        def slow() -> Any:
            yield moment
            clock_of(debugged).now += 1

        debugged.run_sync(slow)
        (text,) = said(caplog, "Slow step")
        assert text.endswith("to its end")

    def test_the_line_inside_what_it_delegates_to(
        self, debugged: IOLoop, caplog: pytest.LogCaptureFixture
    ) -> None:
        def part() -> Any:
            yield moment
            clock_of(debugged).now += 1
            yield moment

        @coroutine
        def whole() -> Any:
            yield from part()

        debugged.run_sync(whole)
        (text,) = said(caplog, "Slow step")
        assert f"from {line_of(part, 1)} to {line_of(part, 3)}" in text

    def test_of_an_async_def(self, debugged: IOLoop, caplog: pytest.LogCaptureFixture) -> None:
        async def inner() -> None:
            await sleep(0)
            clock_of(debugged).now += 1
            await sleep(0)

        async def outer() -> None:
            await inner()

        debugged.run_sync(outer)
        (text,) = said(caplog, "Slow step")
        assert f"from {line_of(inner, 1)} to {line_of(inner, 3)}" in text

    def test_the_callee_is_slow_and_not_its_caller(
        self, debugged: IOLoop, caplog: pytest.LogCaptureFixture
    ) -> None:
        @coroutine
        def callee() -> Any:
            clock_of(debugged).now += 1
            yield moment

        @coroutine
        def caller() -> Any:
            yield callee()

        debugged.run_sync(caller)
        (text,) = said(caplog, "Slow")
        assert "callee" in text

    def test_neither_quick_steps_nor_sleep_are_slow(
        self, debugged: IOLoop, caplog: pytest.LogCaptureFixture
    ) -> None:
        @coroutine
        def quick() -> Any:
            yield sleep(100)
            clock_of(debugged).now += 0.09
            yield moment

        debugged.run_sync(quick)
        assert caplog.records == []

    def test_a_limit_of_ones_own(self, loop: IOLoop, caplog: pytest.LogCaptureFixture) -> None:
        enable(loop, slow=5)

        @coroutine
        def slow() -> Any:
            clock_of(loop).now += 4
            yield moment
            clock_of(loop).now += 6

        loop.run_sync(slow)
        (text,) = said(caplog, "Slow")
        assert "6.000 s" in text

    @pytest.mark.parametrize("how", ["callback", "timer", "handler"])
    def test_a_turn_by_its_callbacks(
        self, debugged: IOLoop, caplog: pytest.LogCaptureFixture, how: str
    ) -> None:
        clock = clock_of(debugged)
        here, there = socket.socketpair()

        def slow(*_: Any) -> None:
            clock.now += 0.5
            here.recv(1)

        there.send(b"x")
        if how == "callback":
            debugged.add_callback(slow)
        elif how == "timer":
            debugged.call_later(0, slow)
        else:
            debugged.add_handler(here, slow, debugged.READ)
        turns(debugged)
        if how == "handler":
            debugged.remove_handler(here)
        turns(debugged)
        here.close()
        there.close()
        (text,) = said(caplog, "Slow turn")
        assert "0.500 s" in text

    def test_steps_do_not_count_twice(
        self, debugged: IOLoop, caplog: pytest.LogCaptureFixture
    ) -> None:
        clock = clock_of(debugged)

        @coroutine
        def slow() -> Any:
            yield moment
            clock.now += 1

        def callback() -> None:
            clock.now += 0.05

        debugged.add_callback(callback)
        debugged.run_sync(slow)
        assert len(said(caplog, "Slow step")) == 1
        assert said(caplog, "Slow turn") == []

    def test_a_step_that_ended_by_an_error_leaves_nothing(self, debugged: IOLoop) -> None:
        observer = enable(debugged)

        @coroutine
        def main() -> Any:
            with pytest.raises(ZeroDivisionError):
                yield fails()
            yield moment

        debugged.run_sync(main)
        assert observer._steps == []

    @pytest.mark.parametrize("watched", [False, True])
    def test_switched_on_inside_a_step(
        self, loop: IOLoop, caplog: pytest.LogCaptureFixture, watched: bool
    ) -> None:
        observers = []
        if watched:
            # So that the end of the step is told, whose start was before debug mode.
            loop.add_observer(Observer())

        @coroutine
        def main() -> Any:
            observers.append(enable(loop))
            yield later()
            disable(loop)
            yield moment
            observers.append(enable(loop))
            yield moment

        loop.run_sync(main)
        assert caplog.records == []
        assert observers[1]._steps == []


def yields() -> Any:
    @coroutine
    def main(call: Callable[[], Any]) -> Any:
        yield call()

    return main


def in_a_list() -> Any:
    @coroutine
    def main(call: Callable[[], Any]) -> Any:
        yield [call(), call()]

    return main


def in_a_dict() -> Any:
    @coroutine
    def main(call: Callable[[], Any]) -> Any:
        yield {"x": call()}

    return main


def yields_afterwards() -> Any:
    @coroutine
    def main(call: Callable[[], Any]) -> Any:
        task = call()
        yield sleep(1)
        yield task

    return main


def asks_for_the_result() -> Any:
    @coroutine
    def main(call: Callable[[], Any]) -> Any:
        task = call()
        yield sleep(1)
        task.result()

    return main


def asks_for_the_error() -> Any:
    @coroutine
    def main(call: Callable[[], Any]) -> Any:
        task = call()
        yield sleep(1)
        task.exception()

    return main


def asks_whether_it_is_done() -> Any:
    @coroutine
    def main(call: Callable[[], Any]) -> Any:
        task = call()
        while not task.done():
            yield moment

    return main


def adds_a_callback() -> Any:
    @coroutine
    def main(call: Callable[[], Any]) -> Any:
        call().add_done_callback(lambda _: None)
        yield sleep(1)

    return main


def bounds_it() -> Any:
    @coroutine
    def main(call: Callable[[], Any]) -> Any:
        yield with_timeout(IOLoop.current().time() + 5, call())

    return main


def shields_it() -> Any:
    @coroutine
    def main(call: Callable[[], Any]) -> Any:
        yield shield(call())

    return main


def iterates() -> Any:
    @coroutine
    def main(call: Callable[[], Any]) -> Any:
        results = WaitIterator(call(), call())
        while not results.done():
            yield results.next()

    return main


def iterates_as_completed() -> Any:
    @coroutine
    def main(call: Callable[[], Any]) -> Any:
        first, second = as_completed([call(), call()])
        yield first
        yield second

    return main


def spawns() -> Any:
    @coroutine
    def main(call: Callable[[], Any]) -> Any:
        IOLoop.current().spawn_callback(call)
        IOLoop.current().call_later(0, call)
        yield sleep(1)

    return main


def cancels() -> Any:
    @coroutine
    def main(call: Callable[[], Any]) -> Any:
        task = call()
        yield moment
        task.cancel()
        yield sleep(1)

    return main


def awaits() -> Any:
    async def main(call: Callable[[], Any]) -> None:
        await call()

    return main


def returns_it() -> Any:
    @coroutine
    def pass_on(call: Callable[[], Any]) -> Any:
        raise Return(call())
        yield

    @coroutine
    def main(call: Callable[[], Any]) -> Any:
        yield (yield pass_on(call))

    return main


PROPER = [
    yields,
    in_a_list,
    in_a_dict,
    yields_afterwards,
    asks_for_the_result,
    asks_for_the_error,
    asks_whether_it_is_done,
    adds_a_callback,
    bounds_it,
    shields_it,
    iterates,
    iterates_as_completed,
    spawns,
    awaits,
    returns_it,
]


class TestNeverYielded:
    @pytest.mark.parametrize("make", PROPER)
    @pytest.mark.parametrize("called", [at_once, later])
    def test_who_looks_is_not_told(
        self,
        debugged: IOLoop,
        caplog: pytest.LogCaptureFixture,
        make: Callable[[], Any],
        called: Any,
    ) -> None:
        main = make()
        # The call has a line of the user's own, for otherwise it would not count anyway.
        debugged.run_sync(lambda: main(lambda: called()))  # noqa: PLW0108
        gc.collect()
        debugged.close()
        assert caplog.records == []

    def test_nor_who_cancels(self, debugged: IOLoop, caplog: pytest.LogCaptureFixture) -> None:
        main = cancels()
        debugged.run_sync(lambda: main(lambda: never()))  # noqa: PLW0108
        debugged.close()
        assert caplog.records == []

    @pytest.mark.parametrize("called", [at_once, later])
    def test_who_does_not_is_told_when_the_task_dies(
        self, debugged: IOLoop, caplog: pytest.LogCaptureFixture, no_collector: None, called: Any
    ) -> None:
        @coroutine
        def main() -> Any:
            called()
            yield sleep(1)

        debugged.run_sync(main)
        (text,) = said(caplog, "never yielded")
        assert f"coroutine {called.__qualname__!r} was called at {line_of(main, 2)} in main" in text
        assert "spawn_callback" in text
        assert caplog.records[0].name == "coro.application"
        debugged.close()
        assert len(caplog.records) == 1

    def test_not_while_somebody_may_still_look(
        self, debugged: IOLoop, caplog: pytest.LogCaptureFixture
    ) -> None:
        task = at_once()
        turns(debugged, 3)
        assert caplog.records == []
        assert task.result() == 5
        del task
        assert caplog.records == []

    def test_a_function_without_a_yield(
        self, debugged: IOLoop, caplog: pytest.LogCaptureFixture
    ) -> None:
        @coroutine
        def plain() -> int:
            return 1

        def forget() -> None:
            plain()

        forget()
        (text,) = said(caplog, "never yielded")
        assert line_of(forget, 1) in text

    def test_that_still_runs_when_the_loop_closes(
        self, debugged: IOLoop, caplog: pytest.LogCaptureFixture
    ) -> None:
        def forget() -> None:
            never()

        forget()
        turns(debugged)
        debugged.close()
        (text,) = said(caplog, "never yielded")
        assert f"'never' was called at {line_of(forget, 1)}" in text

    def test_of_a_chain_that_still_runs_only_the_first(
        self, debugged: IOLoop, caplog: pytest.LogCaptureFixture
    ) -> None:
        @coroutine
        def waits() -> Any:
            yield never()

        waits()
        debugged.close()
        (text,) = said(caplog, "never yielded")
        assert "waits" in text

    def test_what_coro_calls_is_its_own_affair(
        self, debugged: IOLoop, caplog: pytest.LogCaptureFixture
    ) -> None:
        here, there = socket.socketpair()
        there.send(b"x")

        @coroutine
        def handler(_fd: Any, _events: int) -> Any:
            debugged.remove_handler(here)
            return
            yield

        debugged.add_handler(here, handler, debugged.READ)
        turns(debugged, 2)
        here.close()
        there.close()
        assert caplog.records == []

    def test_flow_control_is_no_coroutine(
        self, debugged: IOLoop, caplog: pytest.LogCaptureFixture
    ) -> None:
        here, there = socket.socketpair()
        stream = IOStream(here)
        stream.write(b"x")
        turns(debugged)
        stream.close()
        there.close()
        debugged.close()
        assert caplog.records == []

    def test_after_debug_mode_nothing_is_told(
        self, debugged: IOLoop, caplog: pytest.LogCaptureFixture
    ) -> None:
        task = at_once()
        disable(debugged)
        del task
        assert caplog.records == []


class TestNeverClosed:
    def test_a_stream_that_is_collected(
        self, debugged: IOLoop, caplog: pytest.LogCaptureFixture, no_collector: None
    ) -> None:
        here, there = socket.socketpair()

        def forget() -> None:
            IOStream(here)

        forget()
        (text,) = said(caplog, "never closed")
        assert f"IOStream opened at {line_of(forget, 1)} in forget" in text
        assert caplog.records[0].name == "coro.general"
        here.close()
        there.close()
        debugged.close()
        assert len(caplog.records) == 1

    def test_a_stream_that_is_open_when_the_loop_closes(
        self, debugged: IOLoop, caplog: pytest.LogCaptureFixture
    ) -> None:
        here, there = socket.socketpair()
        stream = IOStream(here)
        debugged.close()
        assert len(said(caplog, "never closed")) == 1
        stream.close()
        del stream
        there.close()
        assert len(caplog.records) == 1

    def test_not_what_was_closed(self, debugged: IOLoop, caplog: pytest.LogCaptureFixture) -> None:
        here, there = socket.socketpair()
        stream = IOStream(here)
        stream.close()
        stream.close()
        there.close()
        del stream
        debugged.close()
        assert caplog.records == []

    def test_nor_what_is_closed_with_the_loop(
        self, debugged: IOLoop, caplog: pytest.LogCaptureFixture
    ) -> None:
        here, there = socket.socketpair()
        stream = IOStream(here)
        debugged._call_on_close(stream, stream.close)
        debugged.close()
        there.close()
        assert caplog.records == []

    def test_a_stream_of_before(self, loop: IOLoop, caplog: pytest.LogCaptureFixture) -> None:
        here, there = socket.socketpair()
        stream = IOStream(here)
        enable(loop)
        stream.close()
        there.close()
        loop.close()
        assert caplog.records == []

    def test_after_debug_mode_nothing_is_told(
        self, debugged: IOLoop, caplog: pytest.LogCaptureFixture
    ) -> None:
        here, there = socket.socketpair()
        stream = IOStream(here)
        disable(debugged)
        del stream
        here.close()
        there.close()
        assert caplog.records == []


class TestLifetimes:
    def test_a_loop_in_debug_mode_is_no_circle(self, no_collector: None) -> None:
        loop = virtual_loop(make_current=False)
        enable(loop)
        loop.run_sync(later)
        observer = weakref.ref(enable(loop))
        gone = weakref.ref(loop)
        loop.close()
        del loop
        assert gone() is None
        assert observer() is None

    @pytest.mark.parametrize("called", [at_once, later, fails])
    def test_nor_are_tasks(self, debugged: IOLoop, no_collector: None, called: Any) -> None:
        seen = []

        @coroutine
        def main() -> Any:
            task = called()
            seen.append(weakref.ref(task))
            try:
                yield task
            except ZeroDivisionError:
                pass
            finally:
                del task

        debugged.run_sync(main)
        assert seen[0]() is None


# --- the same program, with and without ----------------------------------------------------------


@coroutine
def errands() -> Any:
    """A bit of everything; returns what happened."""
    loop = IOLoop.current()
    log: list[Any] = []
    log.append((yield [later(), at_once(), sleep(0.5)]))
    log.append((yield {"a": later()}))
    for failing in (fails(), multi([fails(), later()])):
        try:
            yield failing
        except ZeroDivisionError as error:
            log.append(type(error))
    try:
        yield with_timeout(loop.time() + 1, Future())
    except Exception as error:
        log.append(str(error))
    task = never()
    yield moment
    task.cancel()
    try:
        yield task
    except CancelledError:
        log.append("cancelled")
    lock = Lock()
    with (yield lock.acquire()):
        log.append(lock.acquire().done())
    with pytest.raises(Exception, match="is settled already"):
        future = maybe_future(3)
        future.set_result(4)
    log.append((yield future))
    try:
        yield 5
    except Exception as error:
        log.append(type(error))
    ones = []
    for each in as_completed([later() for _ in range(3)]):
        ones.append((yield each))
    log.append(ones)
    log.append(loop.time())
    log.append(loop.statistics()["tasks"])
    raise Return(log)


def test_debug_mode_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    outcomes = []
    for on in (False, True, True):
        with closing_loop() as loop:
            if on:
                enable(loop)
            outcomes.append((loop.run_sync(errands), loop.statistics()["turns"]))
    assert outcomes[0] == outcomes[1] == outcomes[2]
    assert said(caplog, "never") == []
    assert debug._stand_ins._users == 0


def test_the_documents_program_logs_what_is_said_there() -> None:
    (program,) = [p for p in programs("docs/debugging.md") if "debug=True" in p.source]
    first, second = run(program.source).splitlines()
    assert first.startswith("coro.application: coroutine 'save' was called at <string>:18 in main")
    assert second.startswith("coro.general: Slow step of 'main'")
    assert second.endswith("from <string>:19 to <string>:21")
