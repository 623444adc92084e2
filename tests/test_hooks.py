"""Observers: what they see, and that a broken one cannot hurt."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from coro.gen import coroutine, moment, sleep
from coro.hooks import Observer
from coro.loop import IOLoop
from coro.stream import IOStream
from tests.support.virtual import closing_loop, turns


@pytest.fixture
def loop() -> Iterator[IOLoop]:
    with closing_loop() as loop:
        yield loop


class Recorder(Observer):
    """Writes down every event, with the name of the task."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def turn_started(self, loop: Any) -> None:
        self.events.append("turn started")

    def turn_ended(self, loop: Any) -> None:
        self.events.append("turn ended")

    def step_started(self, task: Any) -> None:
        self.events.append(f"{task.get_coro().__name__} started")

    def step_ended(self, task: Any) -> None:
        self.events.append(f"{task.get_coro().__name__} stopped")

    def task_ended(self, task: Any) -> None:
        self.events.append(f"{task.get_coro().__name__} ended")
        assert task.done()


@coroutine
def child() -> Any:
    yield moment
    return 1


@coroutine
def parent() -> Any:
    return (yield child())


def test_turns_and_steps_in_order(loop: IOLoop) -> None:
    recorder = Recorder()
    loop.add_observer(recorder)
    task = parent()
    turns(loop, 2)
    assert task.result() == 1
    assert recorder.events == [
        "parent started",
        "child started",
        "child stopped",
        "parent stopped",
        "turn started",
        "child started",
        "child stopped",
        "child ended",
        "parent started",
        "parent stopped",
        "parent ended",
        "turn ended",
        "turn started",
        "turn ended",
    ]


def test_every_started_step_stops_also_when_it_fails_or_is_cancelled(loop: IOLoop) -> None:
    recorder = Recorder()
    loop.add_observer(recorder)

    @coroutine
    def failing() -> Any:
        yield moment
        raise ZeroDivisionError

    @coroutine
    def cancelled() -> Any:
        yield sleep(5)

    @coroutine
    def unyieldable() -> Any:
        try:
            yield 5
        except Exception:
            pass

    @coroutine
    def main() -> Any:
        try:
            yield failing()
        except ZeroDivisionError:
            pass
        task = cancelled()
        task.cancel()
        yield unyieldable()
        yield moment

    loop.run_sync(main)
    for name in ("failing", "cancelled", "unyieldable", "main"):
        events = [event for event in recorder.events if event.startswith(f"{name} ")]
        assert events.count(f"{name} started") == events.count(f"{name} stopped") > 0
        assert events.count(f"{name} ended") == 1
        assert events[-1] == f"{name} ended"


def test_deep_calls_start_and_stop_in_pairs(loop: IOLoop) -> None:
    recorder = Recorder()
    loop.add_observer(recorder)

    @coroutine
    def deep(levels: int) -> Any:
        if levels:
            yield deep(levels - 1)
        else:
            yield moment

    loop.run_sync(lambda: deep(200))
    assert recorder.events.count("deep started") == recorder.events.count("deep stopped") == 402
    assert recorder.events.count("deep ended") == 201


def test_no_observer_no_hooks(loop: IOLoop) -> None:
    first, second = Recorder(), Recorder()
    loop.add_observer(first)
    loop.add_observer(second)
    loop.remove_observer(first)
    loop.run_sync(parent)
    assert first.events == []
    assert second.events
    loop.remove_observer(second)
    loop.remove_observer(second)
    seen = len(second.events)
    loop.run_sync(parent)
    assert len(second.events) == seen
    assert loop._hooks is None


def test_observers_are_told_in_the_order_they_came(loop: IOLoop) -> None:
    told = []

    class Named(Observer):
        def __init__(self, name: str) -> None:
            self.name = name

        def turn_started(self, loop: Any) -> None:
            told.append(self.name)

    for name in "abc":
        loop.add_observer(Named(name))
    turns(loop)
    assert told == ["a", "b", "c"]


@coroutine
def at_once() -> Any:
    return 1
    yield


@coroutine
def fails_at_once() -> Any:
    raise ZeroDivisionError
    yield


def test_a_coroutine_that_ends_at_once_starts_and_stops_too(loop: IOLoop) -> None:
    recorder = Recorder()
    loop.add_observer(recorder)
    at_once()
    assert recorder.events == ["at_once started", "at_once stopped", "at_once ended"]
    recorder.events.clear()
    fails_at_once().exception()
    assert recorder.events == [
        "fails_at_once started",
        "fails_at_once stopped",
        "fails_at_once ended",
    ]


def test_every_task_is_started_once_before_its_first_step(loop: IOLoop) -> None:
    events: list[tuple[str, Any]] = []

    class Watcher(Observer):
        def task_started(self, task: Any) -> None:
            events.append(("started", task))

        def step_started(self, task: Any) -> None:
            events.append(("step", task))

    @coroutine
    def deep(level: int) -> Any:
        yield deep(level - 1) if level else moment
        yield moment

    loop.add_observer(Watcher())
    loop.run_sync(lambda: deep(100))
    starts = [task for event, task in events if event == "started"]
    assert len(starts) == len(set(starts)) == 101
    for task in starts:
        assert [event for event, of in events if of is task][:2] == ["started", "step"]


def test_streams_and_the_loops_close(loop: IOLoop) -> None:
    events: list[tuple[str, Any]] = []

    class Watcher(Observer):
        def resource_opened(self, resource: Any) -> None:
            events.append(("opened", resource))

        def resource_closed(self, resource: Any) -> None:
            events.append(("closed", resource))

        def loop_closed(self, loop: Any) -> None:
            events.append(("loop closed", loop))

    loop.add_observer(Watcher())
    here, there = socket.socketpair()
    stream, other = IOStream(here), IOStream(there)
    stream.close()
    stream.close()
    # What depends on the loop is closed before the loop says so.
    loop._call_on_close(other, other.close)
    loop.close()
    assert events == [
        ("opened", stream),
        ("opened", other),
        ("closed", stream),
        ("closed", other),
        ("loop closed", loop),
    ]


EVENTS = [
    "turn_started",
    "turn_ended",
    "step_started",
    "step_ended",
    "task_started",
    "task_ended",
]


def broken(event: str) -> Observer:
    class Broken(Observer):
        calls = 0

    def fail(self: Any, subject: Any) -> None:
        Broken.calls += 1
        raise ZeroDivisionError(event)

    setattr(Broken, event, fail)
    return Broken()


@pytest.mark.parametrize("event", EVENTS)
def test_a_broken_observer_is_unplugged_and_logged(
    loop: IOLoop, event: str, caplog: pytest.LogCaptureFixture
) -> None:
    faulty, recorder = broken(event), Recorder()
    loop.add_observer(faulty)
    loop.add_observer(recorder)
    assert loop.run_sync(parent) == 1
    assert loop.run_sync(parent) == 1
    assert faulty.calls == 1  # type: ignore[attr-defined]
    (record,) = caplog.records
    assert record.name == "coro.general"
    assert record.levelno == logging.ERROR
    assert event in record.getMessage()
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError
    assert recorder.events.count("parent ended") == 2


def test_an_observer_may_unplug_itself_and_fail(
    loop: IOLoop, caplog: pytest.LogCaptureFixture
) -> None:
    class Leaves(Observer):
        def turn_started(self, loop: Any) -> None:
            loop.remove_observer(self)
            raise ZeroDivisionError

    loop.add_observer(Leaves())
    assert loop.run_sync(parent) == 1
    assert len(caplog.records) == 1


def test_an_observer_that_fails_again_inside_its_failure(
    loop: IOLoop, caplog: pytest.LogCaptureFixture
) -> None:
    @coroutine
    def watched_too() -> Any:
        return
        yield

    class StartsCoroutines(Observer):
        depth = 0

        def step_started(self, task: Any) -> None:
            if StartsCoroutines.depth < 2:
                StartsCoroutines.depth += 1
                watched_too()
            raise ZeroDivisionError

    loop.add_observer(StartsCoroutines())
    assert loop.run_sync(parent) == 1
    assert caplog.records


def test_the_base_observer_does_nothing(loop: IOLoop, caplog: pytest.LogCaptureFixture) -> None:
    loop.add_observer(Observer())
    assert loop.run_sync(parent) == 1
    assert caplog.records == []
    assert loop._hooks is not None
