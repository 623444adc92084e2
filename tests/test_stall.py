"""The stall watch: what it says, when, and that its thread ends."""

from __future__ import annotations

import functools
import gc
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from coro import stall
from coro.gen import coroutine, moment
from coro.loop import IOLoop
from coro.stall import StallWatch, is_user_code
from tests.support.documents import programs, run
from tests.support.virtual import closing_loop, turns

GENERAL = "coro.general"

# So short that a test need not wait; what is waited for is always the watch itself.
SHORT = 0.002


@pytest.fixture
def loop() -> Iterator[IOLoop]:
    with closing_loop() as loop:
        yield loop


@pytest.fixture(autouse=True)
def _thread_ends() -> Iterator[None]:
    yield
    thread = stall._watchdog._thread
    if thread is not None:
        thread.join(10)
    assert [t.name for t in threading.enumerate() if t.name == "coro-stall-watch"] == []


class Told(logging.Handler):
    """Sets an event when a record comes, and keeps the records."""

    def __init__(self, wanted: str) -> None:
        super().__init__()
        self.wanted = wanted
        self.records: list[logging.LogRecord] = []
        self.came = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)
        if self.wanted in record.getMessage():
            self.came.set()


@pytest.fixture
def told() -> Iterator[Callable[[str], Told]]:
    log = logging.getLogger(GENERAL)
    level = log.level
    handlers: list[Told] = []

    def listen(wanted: str) -> Told:
        handlers.append(Told(wanted))
        log.addHandler(handlers[-1])
        log.setLevel(logging.INFO)
        return handlers[-1]

    yield listen
    log.setLevel(level)
    for handler in handlers:
        log.removeHandler(handler)


def messages(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name == GENERAL and r.levelno == level]


class TestSamples:
    """One sample after the other, at times that the test gives."""

    @pytest.fixture(autouse=True)
    def _levels(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, GENERAL)

    def stuck(self, loop: IOLoop, *calls: Callable[[], Any]) -> None:
        """Make the calls from inside one callback of the loop."""
        for call in calls:
            loop.add_callback(call)
        turns(loop)

    def test_a_stall_is_told_once_with_the_line_and_the_stack(
        self, loop: IOLoop, caplog: pytest.LogCaptureFixture
    ) -> None:
        watch = StallWatch(loop, 1.0)

        def handler() -> None:
            assert watch.sample(10.0)
            assert watch.sample(10.5)
            assert caplog.records == []
            assert watch.sample(11.0)
            assert watch.sample(11.5)

        self.stuck(loop, handler)
        (text,) = messages(caplog, logging.WARNING)
        first = text.splitlines()[0]
        line = handler.__code__.co_firstlineno + 4
        assert f"{__file__}:{line} (handler)" in first
        assert "1.000 s" in first
        assert repr(loop).split()[0] in first
        assert "assert watch.sample(11.0)" in text
        assert "in start" in text

    def test_its_end_is_told_with_how_long_it_took(
        self, loop: IOLoop, caplog: pytest.LogCaptureFixture
    ) -> None:
        watch = StallWatch(loop, 1.0)
        self.stuck(loop, lambda: watch.sample(10.0), lambda: watch.sample(11.0))
        assert messages(caplog, logging.INFO) == []
        watch.sample(12.5)
        watch.sample(13.0)
        (text,) = messages(caplog, logging.INFO)
        assert "goes on" in text
        assert "2.500 s" in text
        assert len(messages(caplog, logging.WARNING)) == 1

    def test_its_end_is_told_also_when_the_watch_ends(
        self, loop: IOLoop, caplog: pytest.LogCaptureFixture
    ) -> None:
        watch = StallWatch(loop, 1.0)
        self.stuck(loop, lambda: watch.sample(10.0), lambda: watch.sample(11.0), watch.end)
        assert messages(caplog, logging.INFO) == []
        watch.end()
        watch.end()
        assert len(messages(caplog, logging.INFO)) == 1

    def test_a_short_turn_is_no_stall(self, loop: IOLoop, caplog: pytest.LogCaptureFixture) -> None:
        watch = StallWatch(loop, 1.0)
        self.stuck(loop, lambda: watch.sample(10.0), lambda: watch.sample(10.99))
        watch.sample(20.0)
        assert caplog.records == []

    def test_many_busy_turns_are_no_stall(
        self, loop: IOLoop, caplog: pytest.LogCaptureFixture
    ) -> None:
        watch = StallWatch(loop, 1.0)
        for now in range(20):
            self.stuck(loop, functools.partial(watch.sample, now))
        assert caplog.records == []

    def test_every_stall_is_told(self, loop: IOLoop, caplog: pytest.LogCaptureFixture) -> None:
        watch = StallWatch(loop, 1.0)
        self.stuck(loop, lambda: watch.sample(10.0), lambda: watch.sample(11.0))
        self.stuck(loop, lambda: watch.sample(12.0), lambda: watch.sample(13.0))
        assert len(messages(caplog, logging.WARNING)) == 2
        assert len(messages(caplog, logging.INFO)) == 1

    def test_sleeping_is_no_stall(
        self, loop: IOLoop, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        watch = StallWatch(loop, 1.0)
        poll = loop._poll

        slept: list[float | None] = []

        def watched_poll(timeout: float | None) -> Any:
            if timeout:
                slept.append(timeout)
                watch.sample(10.0)
                watch.sample(20.0)
            return poll(timeout)

        monkeypatch.setattr(loop, "_poll", watched_poll)
        loop.call_later(5, loop.stop)
        loop.start()
        assert slept == [5]
        assert caplog.records == []

    def test_not_running_is_no_stall(self, loop: IOLoop, caplog: pytest.LogCaptureFixture) -> None:
        watch = StallWatch(loop, 1.0)
        watch.sample(10.0)
        turns(loop)
        watch.sample(20.0)
        watch.sample(30.0)
        assert caplog.records == []

    def test_a_turn_that_ends_while_its_stack_is_taken_is_not_told(
        self, loop: IOLoop, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        watch = StallWatch(loop, 1.0)
        taken = stall._stack_of

        def overtaken(thread: int) -> Any:
            stack = taken(thread)
            loop._turns += 1
            return stack

        monkeypatch.setattr(stall, "_stack_of", overtaken)
        self.stuck(loop, lambda: watch.sample(10.0), lambda: watch.sample(11.0))
        assert caplog.records == []

    def test_the_line_is_the_users_also_when_others_stand_inside_it(
        self, loop: IOLoop, caplog: pytest.LogCaptureFixture
    ) -> None:
        watch = StallWatch(loop, 1.0)

        def handler() -> None:
            watch.sample(10.0)
            # Through a function of the standard library.
            threading.Thread.run(threading.Thread(target=watch.sample, args=(11.0,)))

        self.stuck(loop, handler)
        (text,) = messages(caplog, logging.WARNING)
        assert "(handler)" in text.splitlines()[0]
        assert "threading.py" in text

    def test_a_loop_that_is_gone_ends_it(self) -> None:
        loop = IOLoop(make_current=False)
        watch = StallWatch(loop, 1.0)
        loop.close()
        assert watch.sample(1.0)
        del loop
        gc.collect()
        assert not watch.sample(2.0)

    def test_a_thread_that_is_unknown_has_no_stack(self) -> None:
        assert not stall._stack_of(-1)


class TestThread:
    def test_it_tells_while_the_loop_is_still_blocked(
        self, loop: IOLoop, told: Callable[[str], Told]
    ) -> None:
        stuck, over = told("is stuck"), told("goes on")

        def block() -> None:
            # Nothing but the warning itself ends it.
            assert stuck.came.wait(10)

        loop.set_stall_threshold(SHORT)
        loop.add_callback(block)
        turns(loop)
        assert over.came.wait(10)
        assert len([r for r in stuck.records if r.levelno == logging.WARNING]) == 1
        (warning,) = [r for r in stuck.records if r.levelno == logging.WARNING]
        assert warning.name == GENERAL
        assert f"{__file__}:{block.__code__.co_firstlineno + 2} (block)" in warning.getMessage()

    def test_a_coroutine_too(self, loop: IOLoop, told: Callable[[str], Told]) -> None:
        stuck = told("is stuck")

        @coroutine
        def blocking() -> Any:
            yield moment
            assert stuck.came.wait(10)

        loop.set_stall_threshold(SHORT)
        loop.run_sync(blocking)
        assert "(blocking)" in stuck.records[0].getMessage().splitlines()[0]

    def test_time_sleep_by_its_line(self, told: Callable[[str], Told]) -> None:
        stuck = told("is stuck")
        loop = IOLoop(make_current=False)

        @coroutine
        def sleepy() -> Any:
            while not stuck.came.is_set():
                time.sleep(0.05)
            yield moment

        loop.set_stall_threshold(0.02)
        try:
            loop.run_sync(sleepy)
        finally:
            loop.close()
        assert "(sleepy)" in stuck.records[0].getMessage().splitlines()[0]

    def test_nobody_watches_no_thread(self, loop: IOLoop) -> None:
        assert stall._watchdog._thread is None
        loop.set_stall_threshold(100)
        thread = stall._watchdog._thread
        assert thread is not None
        assert thread.daemon
        loop.set_stall_threshold(None)
        thread.join(10)
        assert not thread.is_alive()
        assert stall._watchdog._thread is None

    def test_close_ends_it(self) -> None:
        loop = IOLoop(make_current=False)
        loop.set_stall_threshold(100)
        thread = stall._watchdog._thread
        assert thread is not None
        loop.close()
        thread.join(10)
        assert not thread.is_alive()

    def test_one_thread_for_all_loops(self) -> None:
        loops = [IOLoop(make_current=False) for _ in range(3)]
        for loop in loops:
            loop.set_stall_threshold(100)
        names = [thread.name for thread in threading.enumerate()]
        assert names.count("coro-stall-watch") == 1
        for loop in loops:
            loop.close()

    def test_a_new_threshold_takes_the_place_of_the_old_one(
        self, loop: IOLoop, told: Callable[[str], Told]
    ) -> None:
        stuck = told("is stuck")
        loop.set_stall_threshold(1000)
        loop.set_stall_threshold(SHORT)
        assert len(stall._watchdog._watches) == 1
        loop.add_callback(lambda: stuck.came.wait(10))
        turns(loop)
        assert stuck.came.is_set()
        assert len(stuck.records) <= 2

    def test_a_loop_that_is_collected_ends_it(self, loop: IOLoop) -> None:
        gone = IOLoop(make_current=False)
        gone.set_stall_threshold(SHORT)
        thread = stall._watchdog._thread
        assert thread is not None
        # Without ``close``, but with its descriptors given back.
        gone._poller.close()
        gone._waker.close()
        gone._unclosed.detach()
        dead = weakref.ref(gone)
        del gone
        gc.collect()
        thread.join(10)
        assert dead() is None
        assert not thread.is_alive()

    def test_a_watch_that_fails_ends_and_the_others_go_on(
        self, loop: IOLoop, told: Callable[[str], Told], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        failed, stuck = told("failed"), told("is stuck")
        other = IOLoop(make_current=False)
        other.set_stall_threshold(SHORT)
        (broken,) = stall._watchdog._watches

        def fail(now: float) -> bool:
            raise ZeroDivisionError

        monkeypatch.setattr(broken, "sample", fail)
        assert failed.came.wait(10)
        loop.set_stall_threshold(SHORT)
        loop.add_callback(lambda: stuck.came.wait(10))
        turns(loop)
        assert stuck.came.is_set()
        other.close()

    def test_it_leaves_no_circle(self, loop: IOLoop) -> None:
        gc.collect()
        gc.disable()
        try:
            other = IOLoop(make_current=False)
            other.set_stall_threshold(1000)
            other.close()
            gone = weakref.ref(other)
            thread = stall._watchdog._thread
            if thread is not None:
                thread.join(10)
            del other
            assert gone() is None
        finally:
            gc.enable()

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
    @pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
    def test_a_forked_child_watches_only_when_it_asks(self, loop: IOLoop) -> None:
        loop.set_stall_threshold(1000)
        child = os.fork()
        if child == 0:
            verdict = 1
            try:
                assert stall._watchdog._thread is None
                assert not stall._watchdog._watches
                loop.set_stall_threshold(1000)
                assert stall._watchdog._thread is not None
                loop.set_stall_threshold(None)
                verdict = 0
            finally:
                os._exit(verdict)
        assert os.waitpid(child, 0)[1] == 0
        assert len(stall._watchdog._watches) == 1


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_thresholds_are_more_than_nothing(loop: IOLoop, seconds: float) -> None:
    with pytest.raises(ValueError, match="more than 0"):
        loop.set_stall_threshold(seconds)
    assert stall._watchdog._thread is None


def test_a_closed_loop_is_not_watched() -> None:
    loop = IOLoop(make_current=False)
    loop.close()
    with pytest.raises(RuntimeError, match="closed"):
        loop.set_stall_threshold(1)
    assert stall._watchdog._thread is None


def test_user_code() -> None:
    assert is_user_code(__file__)
    assert is_user_code("<stdin>")
    assert is_user_code(pytest.__file__)  # installed beside the standard library, but not of it
    assert not is_user_code(stall.__file__)
    assert not is_user_code(threading.__file__)
    assert not is_user_code("<frozen importlib._bootstrap>")


def test_the_documents_program_logs_what_is_said_there() -> None:
    (program,) = [p for p in programs("docs/debugging.md") if "set_stall" in p.source]
    printed = run(program.source)
    assert printed.count("WARNING:coro.general:") == printed.count("Stack of its thread:") == 1
    assert "in <string>:16 (main)\n" in printed
    assert "INFO:coro.general:" in printed
