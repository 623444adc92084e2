"""``run``: what comes out, what is left behind, Ctrl-C."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent import futures
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from coro import main as main_room
from coro.errors import CancelledError
from coro.future import Future, slot
from coro.gen import all_tasks, coroutine, current_task, moment, run, sleep, to_thread
from coro.loop import IOLoop

ROOT = Path(__file__).parent.parent

# Seconds. Only a broken test waits so long.
LIMIT = 30.0


@pytest.fixture(autouse=True)
def nothing_stays() -> Iterator[None]:
    IOLoop.clear_current()
    hooks = sys.get_asyncgen_hooks()
    yield
    assert IOLoop.current(instance=False) is None
    assert slot.running is None
    assert sys.get_asyncgen_hooks() == hooks


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Python's own handler of SIGINT, whatever the test run was started with."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def press() -> None:
    """Ctrl-C, in the main thread: its handler has run when this returns."""
    signal.raise_signal(signal.SIGINT)


class TestRun:
    def test_runs_either_kind_of_coroutine_with_arguments(self) -> None:
        @coroutine
        def yields(a: int, b: int) -> Any:
            yield moment
            return a + b

        async def awaits(a: int, b: int) -> int:
            await moment
            return a + b

        assert run(yields, 1, 2) == 3
        assert run(awaits, 1, 2) == 3
        assert run(lambda: None) is None

    def test_errors_come_out(self) -> None:
        @coroutine
        def fails() -> Any:
            yield moment
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            run(fails)

    def test_misuse_names_the_fix(self) -> None:
        @coroutine
        def main() -> Any:
            with pytest.raises(RuntimeError, match=r"yield main\(\.\.\.\)"):
                run(main)
            yield moment

        run(main)
        with pytest.raises(TypeError, match=r"coro\.run\(main, \.\.\.\)"):
            run(5)  # type: ignore[arg-type]

    def test_what_is_left_is_cancelled_and_awaited(self) -> None:
        order: list[str] = []

        @coroutine
        def background(name: str) -> Any:
            try:
                yield sleep(1000)
            finally:
                yield moment
                order.append(name)
                born_late()

        @coroutine
        def born_late() -> Any:
            try:
                yield sleep(1000)
            finally:
                yield moment
                order.append("late")

        @coroutine
        def waits_for(task: Any) -> Any:
            yield task

        @coroutine
        def main() -> Any:
            waits_for(background("a"))
            background("b")
            yield moment
            return "result"

        assert run(main) == "result"
        assert sorted(order) == ["a", "b", "late", "late"]

    @pytest.mark.parametrize("kind", [ZeroDivisionError, KeyboardInterrupt, SystemExit])
    def test_also_after_an_error_or_an_interrupt(
        self, kind: type[BaseException], caplog: pytest.LogCaptureFixture
    ) -> None:
        order: list[str] = []

        @coroutine
        def background(name: str) -> Any:
            try:
                yield sleep(1000)
            finally:
                for _ in range(3):
                    yield moment
                order.append(name)

        @coroutine
        def interrupted() -> Any:
            yield moment
            raise kind

        @coroutine
        def main() -> Any:
            for name in "abc":
                background(name)
            try:
                yield interrupted()
            finally:
                yield moment
                order.append("main")

        with pytest.raises(kind):
            run(main)
        assert sorted(order) == ["a", "b", "c", "main"]
        gc.collect()
        assert caplog.records == []

    def test_an_error_of_what_is_left_is_logged_once(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        @coroutine
        def background() -> Any:
            try:
                yield sleep(1000)
            finally:
                raise ZeroDivisionError

        @coroutine
        def main() -> Any:
            background()
            yield moment

        run(main)
        gc.collect()
        (record,) = caplog.records
        assert record.name == "coro.application"
        assert "background" in record.getMessage()

    def test_timeout_cancels_main(self) -> None:
        order: list[str] = []

        @coroutine
        def main() -> Any:
            try:
                yield sleep(1000)
            finally:
                yield moment
                order.append("tidy")

        for limit in (0.001, timedelta(milliseconds=1)):
            with pytest.raises(TimeoutError):
                run(main, timeout=limit)
        assert order == ["tidy", "tidy"]

    def test_tasks_in_a_circle_do_not_keep_it(self) -> None:
        tasks: list[Any] = []

        @coroutine
        def waits(number: int) -> Any:
            yield moment
            yield tasks[1 - number]

        @coroutine
        def main() -> Any:
            tasks.extend([waits(0), waits(1)])
            yield moment
            yield moment

        run(main)
        assert [task.cancelled() for task in tasks] == [True, True]

    def test_leaves_no_circle(self, no_collector: None) -> None:
        @coroutine
        def fails() -> Any:
            yield moment
            raise ZeroDivisionError

        @coroutine
        def main() -> Any:
            sleep(100)
            task = fails()
            try:
                yield task
            except ZeroDivisionError:
                pass
            del task

        run(main)
        assert gc.collect() == 0

    @pytest.mark.parametrize("kind", ["settled", "early", "late"])
    def test_an_error_of_main_leaves_no_circle(self, no_collector: None, kind: str) -> None:
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

        main: Any = {"settled": settled, "early": early, "late": late}[kind]
        try:
            run(main)
        except ZeroDivisionError:
            pass
        assert gc.collect() == 0

    def test_the_current_loop_and_tasks_are_those_of_the_run(self) -> None:
        @coroutine
        def main() -> Any:
            task = current_task()
            assert task is not None
            assert IOLoop.current() is task._loop
            assert IOLoop.current().asyncio_loop is task.get_loop()
            assert all_tasks() == {task}
            yield moment

        run(main)
        assert all_tasks() == set()


class TestShutdown:
    def test_what_is_left_is_cancelled_in_the_order_in_which_it_began_to_wait(self) -> None:
        order: list[int] = []

        @coroutine
        def left(number: int) -> Any:
            try:
                yield Future()
            finally:
                order.append(number)

        @coroutine
        def main() -> Any:
            for number in range(100):
                left(number)
            yield moment

        run(main)
        assert order == list(range(100))

    def test_tasks_that_beget_tasks_are_given_up(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(main_room, "MAX_ROUNDS", 5)
        born: list[int] = []

        @coroutine
        def phoenix() -> Any:
            born.append(len(born))
            try:
                yield sleep(1000)
            except CancelledError:
                phoenix()
                raise

        @coroutine
        def main() -> Any:
            phoenix()
            yield moment
            return "result"

        assert run(main) == "result"
        (record,) = caplog.records
        assert "tasks were left after 5 times of cancelling all" in record.getMessage()
        assert "phoenix" in record.getMessage()
        assert len(born) == 6

    def test_a_task_that_outlives_its_cancellation_is_waited_for(self) -> None:
        order: list[str] = []

        @coroutine
        def stubborn() -> Any:
            for _ in range(3):
                try:
                    yield sleep(0.001 if order else 1000)
                except CancelledError:
                    order.append("no")
            order.append("end")

        @coroutine
        def main() -> Any:
            stubborn()
            yield moment

        run(main)
        assert order == ["no", "end"]

    def test_an_interrupt_of_what_is_left_ends_it_all(self) -> None:
        @coroutine
        def leaves() -> Any:
            try:
                yield sleep(1000)
            finally:
                raise SystemExit(3)

        @coroutine
        def main() -> Any:
            leaves()
            yield moment

        with pytest.raises(SystemExit):
            run(main)


class TestAsyncGenerators:
    @staticmethod
    def numbers(order: list[str]) -> AsyncIterator[int]:
        async def generate() -> AsyncIterator[int]:
            try:
                yield 1
                yield 2
            finally:
                await sleep(0)
                order.append("closed")

        return generate()

    def test_one_that_is_left_half_way_is_closed_at_the_end(self) -> None:
        order: list[str] = []
        numbers = self.numbers(order)

        async def main() -> None:
            async for _ in numbers:
                break
            order.append("main")

        run(main)
        assert order == ["main", "closed"]

    def test_several_are_closed_in_the_order_in_which_they_began(self) -> None:
        order: list[int] = []
        kept = []

        async def generate(number: int) -> AsyncIterator[int]:
            try:
                yield 1
            finally:
                order.append(number)

        async def main() -> None:
            for number in range(100):
                kept.append(generate(number))
                await anext(kept[-1])

        run(main)
        assert order == list(range(100))

    def test_one_that_nobody_refers_to_is_closed_at_once(self) -> None:
        order: list[str] = []

        async def main() -> None:
            async for _ in self.numbers(order):
                break
            for _ in range(3):
                await sleep(0)
            order.append("main")

        run(main)
        assert order == ["closed", "main"]

    def test_also_one_that_dies_with_main(self) -> None:
        order: list[str] = []

        async def main() -> None:
            async for _ in self.numbers(order):
                return

        run(main)
        assert order == ["closed"]

    def test_also_one_that_dies_with_a_task_that_is_left(self) -> None:
        order: list[str] = []

        async def half_way() -> None:
            numbers = self.numbers(order)
            async for _ in numbers:
                await sleep(1000)

        @coroutine
        def main() -> Any:
            coroutine(half_way)()
            yield moment

        run(main)
        assert order == ["closed"]

    def test_its_error_is_logged(self, caplog: pytest.LogCaptureFixture) -> None:
        async def generate() -> AsyncIterator[int]:
            try:
                yield 1
            finally:
                await sleep(0)
                raise ZeroDivisionError

        numbers = generate()

        async def main() -> str:
            async for _ in numbers:
                break
            return "result"

        assert run(main) == "result"
        gc.collect()
        (record,) = caplog.records
        assert record.exc_info is not None
        assert record.exc_info[0] is ZeroDivisionError


class TestThreads:
    def test_are_waited_for_and_their_outcomes_taken(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        begun, go = threading.Event(), threading.Event()
        order: list[str] = []

        def work() -> None:
            begun.set()
            assert go.wait(LIMIT)
            order.append("thread")
            raise ZeroDivisionError

        async def numbers() -> AsyncIterator[int]:
            try:
                yield 1
            finally:
                # When all else is over, and the threads alone are waited for.
                IOLoop.current().add_callback(go.set)

        kept = numbers()

        async def main() -> str:
            to_thread(work)
            assert begun.wait(LIMIT)
            async for _ in kept:
                break
            return "result"

        assert run(main) == "result"
        assert order == ["thread"]
        gc.collect()
        (record,) = caplog.records
        assert record.exc_info is not None
        assert record.exc_info[0] is ZeroDivisionError
        assert not [t for t in threading.enumerate() if t.name.startswith("coro-executor")]

    def test_what_follows_a_thread_is_cancelled_and_awaited_too(self) -> None:
        begun, go = threading.Event(), threading.Event()
        order: list[str] = []

        def work() -> None:
            begun.set()
            assert go.wait(LIMIT)

        @coroutine
        def follows(_done: Any) -> Any:
            try:
                yield sleep(1000)
            finally:
                order.append("cancelled")

        @coroutine
        def main() -> Any:
            future = to_thread(work)
            IOLoop.current().add_future(future, follows)
            assert begun.wait(LIMIT)
            yield moment
            go.set()

        run(main)
        assert order == ["cancelled"]

    def test_are_not_waited_for_when_the_time_is_over(self) -> None:
        release = threading.Event()
        begun: list[int] = []

        def work(number: int) -> None:
            begun.append(number)
            assert release.wait(LIMIT)

        executor = futures.ThreadPoolExecutor(1)

        @coroutine
        def main() -> Any:
            IOLoop.current().set_default_executor(executor)
            to_thread(work, 1)
            to_thread(work, 2)
            yield sleep(1000)

        try:
            with pytest.raises(TimeoutError):
                run(main, timeout=0.001)
        finally:
            release.set()
            executor.shutdown(wait=True)
        assert 2 not in begun


class TestCtrlC:
    """One process, one thread: ``press`` returns when the handler has run."""

    pytestmark = pytest.mark.usefixtures("ctrl_c")

    def test_the_first_cancels_main_and_is_raised_when_all_has_ended(self) -> None:
        order: list[str] = []

        @coroutine
        def background() -> Any:
            try:
                yield sleep(1000)
            finally:
                yield moment
                order.append("background")

        @coroutine
        def main() -> Any:
            background()
            yield moment
            press()
            order.append("step")
            try:
                yield sleep(1000)
            finally:
                yield sleep(0.001)
                order.append("main")

        with pytest.raises(KeyboardInterrupt) as caught:
            run(main)
        assert order == ["step", "main", "background"]
        assert isinstance(caught.value.__cause__, CancelledError)

    def test_an_async_def_too(self) -> None:
        async def main() -> None:
            press()
            await sleep(1000)

        with pytest.raises(KeyboardInterrupt):
            run(main)

    def test_main_may_have_the_last_word(self) -> None:
        @coroutine
        def swallows() -> Any:
            press()
            try:
                yield sleep(1000)
            except CancelledError:
                yield moment
                return "result"

        @coroutine
        def fails() -> Any:
            press()
            try:
                yield sleep(1000)
            finally:
                raise ZeroDivisionError

        assert run(swallows) == "result"
        with pytest.raises(ZeroDivisionError):
            run(fails)

    def test_in_the_last_step_of_main_it_is_not_lost(self) -> None:
        @coroutine
        def main() -> Any:
            yield moment
            press()
            return "result"

        with pytest.raises(KeyboardInterrupt):
            run(main)
        with pytest.raises(KeyboardInterrupt):
            run(press)

    def test_before_main_has_begun_it_does_not_begin(self, monkeypatch: pytest.MonkeyPatch) -> None:
        begun: list[str] = []
        started = IOLoop.start

        def start(loop: IOLoop) -> None:
            press()
            started(loop)

        monkeypatch.setattr(IOLoop, "start", start)
        with pytest.raises(KeyboardInterrupt):
            run(begun.append, "main")
        assert begun == []

    @pytest.mark.parametrize("first", ["ctrl_c", "time"])
    def test_it_comes_before_a_time_limit(self, first: str) -> None:
        @coroutine
        def main() -> Any:
            if first == "ctrl_c":
                press()
            try:
                yield sleep(1000)
            finally:
                if first == "time":
                    press()
                yield sleep(1000)

        with pytest.raises(KeyboardInterrupt):
            run(main, timeout=0.001)

    def test_the_time_limit_stays_what_it_is(self) -> None:
        @coroutine
        def main() -> Any:
            press()
            try:
                yield sleep(1000)
            except CancelledError:
                raise TimeoutError("of its own") from None

        with pytest.raises(TimeoutError, match="of its own"):
            run(main)

    def test_the_second_breaks_a_step_and_all_the_rest(self) -> None:
        order: list[str] = []

        @coroutine
        def background() -> Any:
            try:
                yield sleep(1000)
            except CancelledError:
                order.append("background")

        @coroutine
        def main() -> Any:
            background()
            yield moment
            press()
            try:
                press()
            except KeyboardInterrupt:
                order.append("second")
                raise

        with pytest.raises(KeyboardInterrupt):
            run(main)
        assert order == ["second"]

    def test_the_second_breaks_a_main_that_ignores_the_first(self) -> None:
        @coroutine
        def main() -> Any:
            press()
            while True:
                try:
                    yield sleep(1000)
                except CancelledError:
                    IOLoop.current().add_callback(press)

        with pytest.raises(KeyboardInterrupt):
            run(main)

    def test_one_breaks_the_wait_for_what_is_left(self) -> None:
        @coroutine
        def stubborn() -> Any:
            while True:
                try:
                    yield sleep(1000)
                except CancelledError:
                    IOLoop.current().call_later(0.001, press)

        @coroutine
        def main() -> Any:
            stubborn()
            yield moment
            return "result"

        with pytest.raises(KeyboardInterrupt):
            run(main)

    def test_the_second_breaks_the_wait_for_what_is_left(self) -> None:
        @coroutine
        def stubborn() -> Any:
            while True:
                try:
                    yield sleep(1000)
                except CancelledError:
                    IOLoop.current().call_later(0.001, press)

        @coroutine
        def main() -> Any:
            stubborn()
            press()
            yield sleep(1000)

        with pytest.raises(KeyboardInterrupt) as caught:
            run(main)
        assert isinstance(caught.value.__context__, KeyboardInterrupt)

    def test_a_handler_of_the_programs_own_is_left_alone(self) -> None:
        seen: list[int] = []

        def own(number: int, _frame: Any) -> None:
            seen.append(number)

        @coroutine
        def main() -> Any:
            press()
            yield moment
            return signal.getsignal(signal.SIGINT)

        signal.signal(signal.SIGINT, own)
        try:
            assert run(main) is own
            assert signal.getsignal(signal.SIGINT) is own
        finally:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        assert seen == [signal.SIGINT]

    def test_one_that_was_put_there_meanwhile_stays(self) -> None:
        def own(number: int, _frame: Any) -> None:
            pass

        @coroutine
        def main() -> Any:
            signal.signal(signal.SIGINT, own)
            yield moment

        run(main)
        assert signal.getsignal(signal.SIGINT) is own
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def test_one_of_the_loop_goes_with_the_loop(self) -> None:
        seen: list[str] = []

        @coroutine
        def main() -> Any:
            IOLoop.current().add_signal_handler(signal.SIGINT, seen.append, "signal")
            press()
            yield moment
            yield moment

        run(main)
        assert seen == ["signal"]

    def test_in_another_thread_no_signal_is_touched(self) -> None:
        @coroutine
        def main() -> Any:
            yield moment
            return signal.getsignal(signal.SIGINT)

        with futures.ThreadPoolExecutor(1) as pool:
            assert pool.submit(run, main).result(LIMIT) is signal.default_int_handler

    def test_a_sleeping_loop_is_woken(self) -> None:
        asleep = threading.Event()

        def other() -> None:
            assert asleep.wait(LIMIT)
            os.kill(os.getpid(), signal.SIGINT)

        thread = threading.Thread(target=other)
        thread.start()

        @coroutine
        def main() -> Any:
            asleep.set()
            yield Future()

        with pytest.raises(KeyboardInterrupt):
            run(main)
        thread.join()

    def test_threads_are_not_waited_for(self) -> None:
        release, ended = threading.Event(), threading.Event()

        def work() -> None:
            assert release.wait(LIMIT)
            ended.set()

        @coroutine
        def main() -> Any:
            press()
            yield to_thread(work)

        try:
            with pytest.raises(KeyboardInterrupt):
                run(main)
            assert not ended.is_set()
        finally:
            release.set()
        assert ended.wait(LIMIT)

    def test_one_breaks_the_wait_for_threads(self) -> None:
        begun, release = threading.Event(), threading.Event()

        def work() -> None:
            begun.set()
            assert release.wait(LIMIT)

        async def numbers() -> AsyncIterator[int]:
            try:
                yield 1
            finally:
                IOLoop.current().call_later(0.001, press)

        kept = numbers()

        async def main() -> None:
            to_thread(work)
            assert begun.wait(LIMIT)
            async for _ in kept:
                break

        try:
            with pytest.raises(KeyboardInterrupt):
                run(main)
        finally:
            release.set()

    @pytest.mark.parametrize("presses", [1, 2])
    def test_leaves_no_circle(self, no_collector: None, presses: int) -> None:
        @coroutine
        def main() -> Any:
            yield moment
            for _ in range(presses):
                press()
            yield sleep(1000)

        try:
            run(main)
        except KeyboardInterrupt:
            pass
        assert gc.collect() == 0


# What each script begins with: Python's own handler, whatever the test run was started with.
PREAMBLE = """
import signal
import sys
import coro
from coro.gen import *

signal.signal(signal.SIGINT, signal.default_int_handler)

def tell(text):
    print(text, flush=True)

def tell_of_signals():
    "Tell of each signal when its handler has run."
    handler = signal.getsignal(signal.SIGINT)
    def chained(number, frame):
        try:
            handler(number, frame)
        finally:
            tell("signal")
    signal.signal(signal.SIGINT, chained)
"""


@contextmanager
def program(body: str) -> Iterator[Any]:
    """A script in a Python of its own, which has said that it is ready."""
    process = subprocess.Popen(
        [sys.executable, "-c", PREAMBLE + body],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def interrupted(process: Any) -> str:
    """Wait until the program has died of Ctrl-C; return what it said since."""
    said, complaints = process.communicate(timeout=LIMIT)
    assert complaints.endswith("KeyboardInterrupt\n")
    assert process.returncode == -signal.SIGINT
    return str(said)


class TestCtrlCInAProgram:
    def test_it_ends_in_order(self) -> None:
        body = """
@coroutine
def main():
    tell("ready")
    try:
        yield sleep(1000)
    finally:
        yield sleep(0.001)
        tell("tidy")

coro.run(main)
"""
        with program(body) as process:
            process.send_signal(signal.SIGINT)
            assert interrupted(process) == "tidy\n"

    def test_a_long_step_hears_of_it_at_its_end(self) -> None:
        body = """
@coroutine
def main():
    tell_of_signals()
    tell("ready")
    sys.stdin.readline()
    tell("step")
    try:
        yield sleep(1000)
    finally:
        tell("tidy")

coro.run(main)
"""
        with program(body) as process:
            process.send_signal(signal.SIGINT)
            assert process.stdout.readline() == "signal\n"
            process.stdin.write("go on\n")
            process.stdin.flush()
            assert interrupted(process) == "step\ntidy\n"

    def test_two_break_a_step_that_never_ends(self) -> None:
        body = """
@coroutine
def main():
    tell_of_signals()
    tell("ready")
    while True:
        pass

coro.run(main)
"""
        with program(body) as process:
            process.send_signal(signal.SIGINT)
            assert process.stdout.readline() == "signal\n"
            process.send_signal(signal.SIGINT)
            assert interrupted(process) == "signal\n"

    def test_two_break_a_tidying_that_never_ends(self) -> None:
        body = """
@coroutine
def main():
    tell("ready")
    try:
        yield sleep(1000)
    finally:
        tell("tidying")
        yield sleep(1000)

coro.run(main)
"""
        with program(body) as process:
            process.send_signal(signal.SIGINT)
            assert process.stdout.readline() == "tidying\n"
            process.send_signal(signal.SIGINT)
            said, complaints = process.communicate(timeout=LIMIT)
            assert said == ""
            assert "\nKeyboardInterrupt\n" in complaints
            assert process.returncode == -signal.SIGINT
