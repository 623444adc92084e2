"""Blocking functions in threads. They are held and let go by events."""

from __future__ import annotations

import contextvars
import gc
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import pytest

from coro.errors import CancelledError
from coro.gen import coroutine, moment, run, to_thread
from coro.loop import IOLoop
from coro.threads import dummy_executor, run_on_executor, submit
from tests.support.virtual import closing_loop, turns

# Seconds. Only a broken test waits so long.
LIMIT = 30.0


@pytest.fixture
def loop() -> Iterator[IOLoop]:
    with closing_loop() as loop:
        yield loop


@pytest.fixture
def pool() -> Iterator[futures.Executor]:
    """One thread."""
    with futures.ThreadPoolExecutor(1) as pool:
        yield pool


class Held:
    """A function that says when it has begun, and ends when it is let go."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.begun = threading.Event()
        self.go = threading.Event()
        self.error = error

    def __call__(self) -> str:
        self.begun.set()
        assert self.go.wait(LIMIT)
        if self.error is not None:
            raise self.error
        return "result"

    def __repr__(self) -> str:
        return "Held()"


class TestToThread:
    def test_results_and_arguments(self, loop: IOLoop) -> None:
        def work(*args: Any, **kwargs: Any) -> Any:
            return args, kwargs, threading.get_ident()

        @coroutine
        def yields() -> Any:
            return (yield to_thread(work, 1, 2, func=3, self=4))

        async def awaits() -> Any:
            return await to_thread(work, 1, 2, func=3, self=4)

        for main in (yields, awaits):
            args, kwargs, thread = loop.run_sync(main)
            assert (args, kwargs) == ((1, 2), {"func": 3, "self": 4})
            assert thread != threading.get_ident()

    def test_they_run_side_by_side(self, loop: IOLoop) -> None:
        barrier = threading.Barrier(3, timeout=LIMIT)

        def meet(number: int) -> int:
            barrier.wait()
            return number

        @coroutine
        def main() -> Any:
            return (yield [to_thread(meet, number) for number in range(3)])

        assert loop.run_sync(main) == [0, 1, 2]

    def test_each_gets_a_copy_of_the_context(self, loop: IOLoop) -> None:
        var: contextvars.ContextVar[str] = contextvars.ContextVar("var", default="unset")

        def work() -> str:
            seen = var.get()
            var.set("thread")
            return seen

        @coroutine
        def main() -> Any:
            var.set("set")
            return (yield [to_thread(work), to_thread(work)]), var.get()

        assert loop.run_sync(main) == (["set", "set"], "set")

    @pytest.mark.parametrize("kind", [ZeroDivisionError, futures.CancelledError, CancelledError])
    def test_errors_come_out(self, loop: IOLoop, kind: type[BaseException]) -> None:
        def work() -> None:
            raise kind

        @coroutine
        def main() -> Any:
            try:
                yield to_thread(work)
            except kind:
                return "caught"

        assert loop.run_sync(main) == "caught"

    def test_a_stop_iteration_is_an_error(self, loop: IOLoop) -> None:
        with pytest.raises(RuntimeError, match="StopIteration"):
            loop.run_sync(lambda: to_thread(next, iter([])))

    def test_an_exit_in_a_thread_is_raised_where_it_is_waited_for(self, loop: IOLoop) -> None:
        @coroutine
        def main() -> Any:
            try:
                yield to_thread(sys.exit, 3)
            except SystemExit as error:
                return error.code

        assert loop.run_sync(main) == 3

        @coroutine
        def careless() -> Any:
            yield to_thread(sys.exit, 3)

        with pytest.raises(SystemExit):
            loop.run_sync(careless)

    def test_an_error_that_nobody_looks_at_is_logged(
        self, loop: IOLoop, caplog: pytest.LogCaptureFixture
    ) -> None:
        @coroutine
        def main() -> Any:
            to_thread(sys.exit, 3)
            yield moment

        run(main)
        (record,) = caplog.records
        assert record.exc_info is not None
        assert record.exc_info[0] is SystemExit

    def test_without_a_running_loop_it_belongs_to_the_current_one(self, loop: IOLoop) -> None:
        future = to_thread(int, "7")
        assert future.get_loop() is loop
        assert loop.run_sync(lambda: future) == 7

    def test_it_shares_the_executor_of_run_in_executor(self, loop: IOLoop) -> None:
        name: Callable[[], str] = lambda: threading.current_thread().name  # noqa: E731
        first = loop.run_sync(lambda: to_thread(name))
        assert first == loop.run_sync(lambda: loop.run_in_executor(None, name))
        assert first.startswith("coro-executor")

    def test_the_default_executor_is_what_was_set(
        self, loop: IOLoop, pool: futures.ThreadPoolExecutor
    ) -> None:
        loop.set_default_executor(pool)
        expected = pool.submit(threading.get_ident).result(LIMIT)
        assert loop.run_sync(lambda: to_thread(threading.get_ident)) == expected
        assert loop.run_sync(lambda: submit(loop, None, threading.get_ident)) == expected

    def test_says_what_it_waits_for(self, loop: IOLoop) -> None:
        held = Held()
        future = to_thread(held)
        assert "pending, Held() in a thread" in repr(future)
        held.go.set()
        loop.run_sync(lambda: future)
        assert "Held()" not in repr(future)

    def test_leaves_no_circle(self, loop: IOLoop, no_collector: None) -> None:
        @coroutine
        def main() -> Any:
            for _ in range(5):
                yield to_thread(int, "7")
                try:
                    yield to_thread(int, "x")
                except ValueError:
                    pass

        loop.run_sync(main)
        assert gc.collect() == 0


class TestCancelling:
    def test_the_future_is_given_up_at_once(
        self, loop: IOLoop, pool: futures.ThreadPoolExecutor, caplog: pytest.LogCaptureFixture
    ) -> None:
        loop.set_default_executor(pool)
        held = Held()

        @coroutine
        def waits() -> Any:
            yield to_thread(held)

        task = waits()
        assert held.begun.wait(LIMIT)
        task.cancel()
        turns(loop)
        assert task.cancelled()
        held.go.set()
        pool.shutdown(wait=True)
        turns(loop, 2)
        assert caplog.records == []

    @pytest.mark.parametrize("kind", [ZeroDivisionError, SystemExit])
    @pytest.mark.parametrize("closed", [False, True])
    def test_a_late_error_is_logged(
        self,
        pool: futures.ThreadPoolExecutor,
        caplog: pytest.LogCaptureFixture,
        kind: type[BaseException],
        closed: bool,
    ) -> None:
        held = Held(kind())
        with closing_loop() as loop:
            loop.set_default_executor(pool)
            future = to_thread(held)
            assert held.begun.wait(LIMIT)
            future.cancel()
            if closed:
                loop.close()
            held.go.set()
            pool.shutdown(wait=True)
            if not closed:
                turns(loop)
        (record,) = caplog.records
        assert record.name == "coro.application"
        assert record.getMessage().startswith("Exception in Held(), in a thread")
        assert record.exc_info is not None
        assert record.exc_info[0] is kind

    def test_one_cancelled_when_the_error_is_under_way_is_logged_too(
        self, loop: IOLoop, pool: futures.ThreadPoolExecutor, caplog: pytest.LogCaptureFixture
    ) -> None:
        loop.set_default_executor(pool)
        held = Held(ZeroDivisionError())
        future = to_thread(held)
        held.go.set()
        pool.shutdown(wait=True)
        assert future.cancel()
        turns(loop)
        (record,) = caplog.records
        assert "Held()" in record.getMessage()

    def test_what_has_not_begun_never_begins(
        self, loop: IOLoop, pool: futures.ThreadPoolExecutor, caplog: pytest.LogCaptureFixture
    ) -> None:
        loop.set_default_executor(pool)
        held, queued = Held(), Held(ZeroDivisionError())
        first, second = to_thread(held), to_thread(queued)
        assert held.begun.wait(LIMIT)
        assert second.cancel()
        assert not second.cancel()
        held.go.set()
        pool.shutdown(wait=True)
        assert loop.run_sync(lambda: first) == "result"
        assert not queued.begun.is_set()
        assert caplog.records == []

    def test_an_executor_that_drops_its_queue_cancels(
        self, loop: IOLoop, pool: futures.ThreadPoolExecutor
    ) -> None:
        loop.set_default_executor(pool)
        held = Held()
        first, second = to_thread(held), to_thread(int, "7")
        assert held.begun.wait(LIMIT)
        pool.shutdown(wait=False, cancel_futures=True)
        held.go.set()
        assert loop.run_sync(lambda: first) == "result"
        assert second.cancelled()

    def test_leaves_no_circle(
        self, loop: IOLoop, pool: futures.ThreadPoolExecutor, no_collector: None
    ) -> None:
        loop.set_default_executor(pool)
        held = Held()
        first, second = to_thread(held), to_thread(int, "7")
        assert held.begun.wait(LIMIT)
        first.cancel()
        second.cancel()
        held.go.set()
        pool.shutdown(wait=True)
        turns(loop, 2)
        del first, second, held
        assert gc.collect() == 0


class Service:
    """What ported code looks like."""

    def __init__(self, executor: futures.Executor) -> None:
        self.executor = self.other = executor

    @run_on_executor
    def bare(self, number: int, *, plus: int = 0) -> int:
        """Says what it is."""
        return number + plus

    @run_on_executor()
    def called(self, number: int) -> int:
        return number

    @run_on_executor(executor="other")
    def named(self, number: int) -> int:
        return number

    @run_on_executor
    def fails(self) -> None:
        raise ZeroDivisionError

    @run_on_executor
    def calls(self, func: Callable[[], Any]) -> Any:
        return func()


class TestRunOnExecutor:
    def test_the_ways_to_write_it(self, loop: IOLoop, pool: futures.Executor) -> None:
        service = Service(pool)

        @coroutine
        def yields() -> Any:
            return (yield [service.bare(1, plus=2), service.called(4), service.named(5)])

        async def awaits() -> Any:
            return await service.named(5)

        assert loop.run_sync(yields) == [3, 4, 5]
        assert loop.run_sync(awaits) == 5

    def test_the_named_executor_is_used(self, loop: IOLoop, pool: futures.Executor) -> None:
        service = Service(dummy_executor)
        service.other = pool
        assert service.called(5).done()
        del service.executor
        assert loop.run_sync(lambda: service.named(5)) == 5
        with pytest.raises(AttributeError):
            service.bare(5)

    def test_keeps_name_and_words(self) -> None:
        assert Service.bare.__name__ == "bare"
        assert Service.bare.__doc__ == "Says what it is."

    def test_errors_come_out(self, loop: IOLoop, pool: futures.Executor) -> None:
        with pytest.raises(ZeroDivisionError):
            loop.run_sync(Service(pool).fails)

    def test_no_context_is_copied(self, loop: IOLoop, pool: futures.Executor) -> None:
        var: contextvars.ContextVar[str] = contextvars.ContextVar("var", default="unset")
        var.set("set")
        assert loop.run_sync(lambda: Service(pool).calls(var.get)) == "unset"

    def test_cancelling_gives_it_up(
        self, loop: IOLoop, pool: futures.Executor, caplog: pytest.LogCaptureFixture
    ) -> None:
        held = Held(ZeroDivisionError())
        future = Service(pool).calls(held)
        assert held.begun.wait(LIMIT)
        assert future.cancel()
        held.go.set()
        pool.shutdown(wait=True)
        turns(loop)
        (record,) = caplog.records
        assert "Service.calls" in record.getMessage()

    def test_misuse_names_the_fix(self) -> None:
        with pytest.raises(TypeError, match=r'@run_on_executor\(executor="name"\)'):
            run_on_executor("other")  # type: ignore[call-overload]


class TestDummyExecutor:
    def test_runs_at_once_in_the_same_thread(self, loop: IOLoop) -> None:
        future = submit(loop, dummy_executor, threading.get_ident)
        assert future.result() == threading.get_ident()
        dummy_executor.shutdown()
        assert Service(dummy_executor).bare(1, plus=2).result() == 3

    def test_errors_are_in_the_future(self, loop: IOLoop) -> None:
        future = Service(dummy_executor).fails()
        with pytest.raises(ZeroDivisionError):
            future.result()

    def test_leaves_no_circle(self, loop: IOLoop, no_collector: None) -> None:
        try:
            Service(dummy_executor).fails().result()
        except ZeroDivisionError:
            pass
        assert gc.collect() == 0
