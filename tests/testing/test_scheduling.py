"""The drawn order of a turn: what is kept under every seed, and what is not."""

from __future__ import annotations

import gc
import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from contextvars import ContextVar
from random import Random
from typing import Any

import pytest

from coro.errors import CancelledError
from coro.future import Future
from coro.gen import all_tasks, coroutine, moment, sleep, to_thread
from coro.locks import Condition, Event, Lock, Semaphore
from coro.loop import IOLoop
from coro.queues import Queue
from coro.task import MAX_DEPTH
from coro.testing.scheduling import SimLoop
from coro.threads import run_on_executor
from tests.support.virtual import Clock, VirtualNetwork

SEEDS = range(60)

Program = Callable[[list[Any]], Any]


def sim_loop(seed: int) -> SimLoop:
    clock = Clock()
    return SimLoop(clock=clock, network=VirtualNetwork(clock), random=Random(seed))


def outcomes(program: Program) -> list[tuple[Any, ...]]:
    """What the program, a coroutine function, leaves in its list, under each of the seeds."""
    found = []
    for seed in SEEDS:
        log: list[Any] = []
        loop = sim_loop(seed)
        try:
            loop.run_sync(lambda log=log: program(log))  # type: ignore[misc]
        finally:
            loop.close()
        found.append(tuple(log))
    return found


def assert_always(program: Program, *expected: Any) -> None:
    assert set(outcomes(program)) == {expected}


def assert_every_order(program: Program, *parts: Any) -> None:
    assert set(outcomes(program)) == set(itertools.permutations(parts))


@coroutine
def several(log: list[Any], count: int, wait: Callable[[int], Any]) -> Any:
    """So many tasks, begun in order, that write their number down after their wait."""

    @coroutine
    def one(number: int) -> Any:
        yield wait(number)
        log.append(number)

    yield [one(number) for number in range(count)]


class TestWhatIsIndependent:
    def test_tasks_that_wait_for_the_next_turn(self) -> None:
        assert_every_order(lambda log: several(log, 3, lambda _: moment), 0, 1, 2)

    def test_tasks_that_sleep_equally_long(self) -> None:
        assert_every_order(lambda log: several(log, 3, lambda _: sleep(1)), 0, 1, 2)

    def test_tasks_that_wait_for_different_futures(self) -> None:
        @coroutine
        def program(log: list[Any]) -> Any:
            waits: list[Future[None]] = [Future() for _ in range(3)]
            tasks = several(log, 3, waits.__getitem__)
            for future in waits:
                future.set_result(None)
            yield tasks

        assert_every_order(program, 0, 1, 2)

    def test_callbacks_of_different_futures(self) -> None:
        @coroutine
        def program(log: list[Any]) -> Any:
            waits: list[Future[None]] = [Future() for _ in range(3)]
            for number, future in enumerate(waits):
                future.add_done_callback(lambda _, number=number: log.append(number))  # type: ignore[misc]
            for future in waits:
                future.set_result(None)
            yield sleep(1)

        assert_every_order(program, 0, 1, 2)

    def test_callbacks_that_different_tasks_added(self) -> None:
        @coroutine
        def program(log: list[Any]) -> Any:
            added: list[str] = []

            @coroutine
            def add(name: str) -> Any:
                yield moment
                added.append(name)
                IOLoop.current().add_callback(log.append, name)

            yield [add("a"), add("b")]
            yield sleep(1)
            log[:] = ["as added" if log == added else "the other way round"]

        assert set(outcomes(program)) == {("as added",), ("the other way round",)}

    def test_a_timer_and_a_task(self) -> None:
        @coroutine
        def program(log: list[Any]) -> Any:
            loop = IOLoop.current()
            loop.call_later(0, log.append, "timer")
            yield moment
            log.append("task")
            yield moment

        assert_every_order(program, "timer", "task")


class TestWhatIsKept:
    def test_callbacks_of_one_future(self) -> None:
        @coroutine
        def program(log: list[Any]) -> Any:
            future: Future[None] = Future()
            for number in range(4):
                future.add_done_callback(lambda _, number=number: log.append(number))  # type: ignore[misc]
            future.set_result(None)
            future.add_done_callback(lambda _: log.append("late"))
            yield sleep(1)

        assert_always(program, 0, 1, 2, 3, "late")

    def test_tasks_and_callbacks_that_wait_for_one_future(self) -> None:
        @coroutine
        def program(log: list[Any]) -> Any:
            future: Future[None] = Future()
            tasks = [several(log, 1, lambda _: future)]
            future.add_done_callback(lambda _: log.append("callback"))
            tasks.append(several(log, 1, lambda _: future))
            future.set_result(None)
            yield tasks

        assert_always(program, 0, "callback", 0)

    def test_callbacks_that_one_task_adds(self) -> None:
        @coroutine
        def program(log: list[Any]) -> Any:
            for number in range(4):
                IOLoop.current().add_callback(log.append, number)
            yield sleep(1)

        assert_always(program, 0, 1, 2, 3)

    def test_also_where_one_gets_a_future_that_is_done(self) -> None:
        @coroutine
        def program(log: list[Any]) -> Any:
            loop = IOLoop.current()
            for _ in range(3):
                loop.add_callback(log.append, loop.nothing)
                loop.add_callback(log.append, "next")
            yield sleep(1)
            log[:] = [each if each == "next" else "future" for each in log]

        assert_always(program, *["future", "next"] * 3)

    def test_callbacks_that_one_task_adds_in_two_steps_of_one_turn(self) -> None:
        # The child ends in the turn in which its parent stepped, and resumes it.
        @coroutine
        def program(log: list[Any]) -> Any:
            loop = IOLoop.current()

            @coroutine
            def child() -> Any:
                yield moment

            @coroutine
            def parent() -> Any:
                running = child()
                loop.add_callback(log.append, "first")
                yield running
                loop.add_callback(log.append, "second")
                yield moment

            yield parent()
            yield sleep(1)

        assert_always(program, "first", "second")

    def test_callbacks_that_one_step_adds_through_calls(self) -> None:
        @coroutine
        def program(log: list[Any]) -> Any:
            loop = IOLoop.current()

            @coroutine
            def called() -> Any:
                loop.add_callback(log.append, "called")
                return
                yield

            loop.add_callback(log.append, "before")
            yield called()
            loop.add_callback(log.append, "after")
            yield sleep(1)

        assert_always(program, "before", "called", "after")

    def test_callbacks_that_one_callback_adds(self) -> None:
        @coroutine
        def program(log: list[Any]) -> Any:
            loop = IOLoop.current()

            def several() -> None:
                for number in range(4):
                    loop.add_callback(log.append, number)

            loop.add_callback(several)
            yield sleep(1)

        assert_always(program, 0, 1, 2, 3)

    def test_a_task_goes_on_after_the_callbacks_that_it_added(self) -> None:
        @coroutine
        def program(log: list[Any]) -> Any:
            for number in range(3):
                IOLoop.current().add_callback(log.append, number)
                yield moment
                log.append("task")

        assert_always(program, 0, "task", 1, "task", 2, "task")

    def test_timers_that_are_due_at_once(self) -> None:
        @coroutine
        def program(log: list[Any]) -> Any:
            loop = IOLoop.current()
            now = loop.time()
            for number, ago in enumerate((1, 2, 3, 2)):
                loop.call_at(now - ago, log.append, number)
            yield sleep(1)

        assert_always(program, 2, 1, 3, 0)

    def test_tasks_begun_at_too_great_a_depth(self) -> None:
        @coroutine
        def program(log: list[Any]) -> Any:
            @coroutine
            def late(name: str) -> Any:
                log.append(name)
                return
                yield

            @coroutine
            def nested(depth: int) -> Any:
                if depth:
                    yield nested(depth - 1)
                else:
                    late("a")
                    late("b")
                    yield sleep(1)

            # Less the program's own call, and so that ``late`` is one too deep.
            yield nested(MAX_DEPTH - 2)

        assert_always(program, "a", "b")


class TestHandOver:
    def test_a_lock(self) -> None:
        @coroutine
        def program(log: list[Any]) -> Any:
            lock = Lock()

            @coroutine
            def one(number: int) -> Any:
                with (yield lock.acquire()):
                    log.append(number)
                    yield moment

            yield [one(number) for number in range(4)]

        assert_always(program, 0, 1, 2, 3)

    def test_permits_that_several_release_in_one_turn(self) -> None:
        @coroutine
        def program(log: list[Any]) -> Any:
            semaphore = Semaphore(0)
            tasks = several(log, 4, lambda _: semaphore.acquire())
            for _ in range(4):
                IOLoop.current().add_callback(semaphore.release)
            yield tasks

        assert_always(program, 0, 1, 2, 3)

    @pytest.mark.parametrize("make", [Event, Condition])
    def test_all_that_are_woken_at_once(self, make: Any) -> None:
        @coroutine
        def program(log: list[Any]) -> Any:
            what = make()
            tasks = several(log, 4, lambda _: what.wait())
            (what.set if make is Event else what.notify_all)()
            yield tasks

        assert_always(program, 0, 1, 2, 3)

    def test_items_of_a_queue(self) -> None:
        @coroutine
        def program(log: list[Any]) -> Any:
            queue: Queue[str] = Queue()

            @coroutine
            def getter(number: int) -> Any:
                log.append((number, (yield queue.get())))

            tasks = [getter(number) for number in range(3)]
            for item in "abc":
                queue.put_nowait(item)
            yield tasks

        assert_always(program, (0, "a"), (1, "b"), (2, "c"))

    def test_two_locks_are_independent(self) -> None:
        @coroutine
        def program(log: list[Any]) -> Any:
            locks = [Semaphore(0) for _ in range(3)]
            tasks = several(log, 3, lambda number: locks[number].acquire())
            for lock in locks:
                lock.release()
            yield tasks

        assert_every_order(program, 0, 1, 2)


class TestTheQueue:
    def test_one_seed_one_order(self) -> None:
        first = outcomes(lambda log: several(log, 20, lambda _: moment))
        assert outcomes(lambda log: several(log, 20, lambda _: moment)) == first
        assert len(set(first)) == len(first)

    def test_what_a_turn_adds_waits_for_the_next(self) -> None:
        @coroutine
        def program(log: list[Any]) -> Any:
            loop = IOLoop.current()

            def add(depth: int) -> None:
                log.append(depth)
                if depth < 3:
                    loop.add_callback(add, depth + 1)
                    loop.add_callback(add, depth + 1)

            loop.add_callback(add, 0)
            yield sleep(1)

        assert_always(program, 0, 1, 1, *[2] * 4, *[3] * 8)

    def test_an_interrupt_in_the_middle_of_a_turn_loses_nothing(self) -> None:
        for seed in SEEDS:
            loop = sim_loop(seed)
            log: list[Any] = []
            futures: list[Future[None]] = [Future(loop=loop) for _ in range(5)]

            def run(number: int, log: list[Any] = log) -> None:
                log.append(number)
                if number == 2:
                    raise KeyboardInterrupt

            for number, future in enumerate(futures):
                future.add_done_callback(lambda _, number=number: run(number))  # type: ignore[misc]
                future.set_result(None)
            with pytest.raises(KeyboardInterrupt):
                loop.start()
            loop.stop()
            loop.start()
            assert sorted(log) == [0, 1, 2, 3, 4]
            loop.close()

    def test_a_production_loop_has_a_plain_queue(self) -> None:
        loop = IOLoop(make_current=False)
        assert type(loop._ready).__name__ == "deque"
        loop.close()

    def test_to_look_at_the_tasks_changes_nothing(self) -> None:
        def program(look: Callable[[], Any]) -> Program:
            @coroutine
            def looks(log: list[Any]) -> Any:
                tasks = several(log, 5, lambda _: moment)
                look()
                yield tasks

            return looks

        assert outcomes(program(all_tasks)) == outcomes(program(int))

    def test_a_task_that_only_the_queue_holds_is_alive(self) -> None:
        @coroutine
        def program(log: list[Any]) -> Any:
            @coroutine
            def child() -> Any:
                yield sleep(0)

            @coroutine
            def parent(running: Any) -> Any:
                yield running

            running = child()
            waiting = parent(running)
            # A second that waits: so the parent is queued when the child ends.
            running.add_done_callback(lambda _: None)
            while not waiting.done():
                log.append(waiting in all_tasks())
                yield moment

        assert {alive for log in outcomes(program) for alive in log} == {True}


def blocking(log: list[Any], what: str) -> str:
    log.append((what, threading.current_thread() is threading.main_thread()))
    return what


class TestThreads:
    """There are none."""

    @pytest.fixture
    def pool(self) -> Iterator[futures.ThreadPoolExecutor]:
        with futures.ThreadPoolExecutor(1) as pool:
            yield pool

    def test_whatever_way_a_function_is_handed_over(self, pool: futures.Executor) -> None:
        class Worker:
            executor = pool

            @run_on_executor
            def work(self, log: list[Any]) -> str:
                return blocking(log, "run_on_executor")

        @coroutine
        def program(log: list[Any]) -> Any:
            loop = IOLoop.current()
            loop.set_default_executor(pool)
            assert (yield to_thread(blocking, log, "to_thread")) == "to_thread"
            yield loop.run_in_executor(None, blocking, log, "default")
            yield loop.run_in_executor(pool, blocking, log, "pool")
            yield Worker().work(log)

        assert_always(
            program,
            ("to_thread", True),
            ("default", True),
            ("pool", True),
            ("run_on_executor", True),
        )

    def test_the_loop_goes_on_meanwhile(self) -> None:
        @coroutine
        def program(log: list[Any]) -> Any:
            waiting = to_thread(log.append, "function")
            log.append("caller")
            yield moment
            assert not waiting.done()
            yield waiting

        assert_always(program, "caller", "function")

    def test_two_functions_come_in_either_order(self) -> None:
        @coroutine
        def program(log: list[Any]) -> Any:
            yield [to_thread(log.append, name) for name in "abc"]

        assert_every_order(program, *"abc")

    def test_errors_and_contexts(self) -> None:
        variable: ContextVar[str] = ContextVar("variable", default="none")

        def fails() -> None:
            raise LookupError("no")

        @coroutine
        def program(log: list[Any]) -> Any:
            variable.set("caller")
            log.append((yield to_thread(variable.get)))
            log.append((yield IOLoop.current().run_in_executor(None, variable.get)))
            try:
                yield to_thread(fails)
            except LookupError as error:
                log.append(str(error))

        assert_always(program, "caller", "none", "no")

    def test_one_that_is_cancelled_before_it_begins_never_begins(self) -> None:
        @coroutine
        def program(log: list[Any]) -> Any:
            waiting = to_thread(log.append, "function")
            waiting.cancel()
            try:
                yield waiting
            except CancelledError:
                log.append("cancelled")
            yield sleep(1)

        assert_always(program, "cancelled")

    def test_no_reference_circle_outlives_the_loop(self) -> None:
        @coroutine
        def program(log: list[Any]) -> Any:
            yield to_thread(int)
            to_thread(int)

        gc.collect()
        gc.disable()
        try:
            outcomes(program)
            assert gc.collect() == 0
        finally:
            gc.enable()
