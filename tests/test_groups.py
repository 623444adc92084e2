"""``TaskGroup``, in both styles."""

from __future__ import annotations

import contextvars
import gc
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from coro.errors import BadYieldError, CancelledError, TimeoutError
from coro.future import Future
from coro.gen import TaskGroup, all_tasks, coroutine, current_task, moment, run, sleep, timeout
from coro.loop import IOLoop
from tests.support.virtual import closing_loop, turns


@pytest.fixture
def loop() -> Iterator[IOLoop]:
    with closing_loop() as loop:
        yield loop


class Log(list[tuple[str, float]]):
    """What happened, and when."""

    def __init__(self, loop: IOLoop) -> None:
        super().__init__()
        self._loop = loop
        self._began = loop.time()

    def add(self, what: str) -> None:
        self.append((what, self._loop.time() - self._began))


@pytest.fixture
def log(loop: IOLoop) -> Log:
    return Log(loop)


@coroutine
def works(log: Log, name: str, seconds: float, result: Any = None, tidies: float = 0) -> Any:
    """Wait; return, or raise a class of errors; if cancelled, tidy up for some time."""
    try:
        yield sleep(seconds)
    except CancelledError:
        yield sleep(tidies)
        log.add(f"{name} cancelled")
        raise
    log.add(name)
    if isinstance(result, type):
        raise result(name)
    return result


Body = Callable[[TaskGroup], Any]


@coroutine
def with_block(body: Body) -> Any:
    """The yield style."""
    with TaskGroup() as group:
        result = yield from body(group)
        yield group.join()
        return result


@coroutine
async def async_block(body: Body) -> Any:
    """The ``async def`` style."""

    @coroutine
    def run(group: TaskGroup) -> Any:
        return (yield from body(group))

    async with TaskGroup() as group:
        return await run(group)


both = pytest.mark.parametrize("block", [with_block, async_block])


def kinds(group: BaseException) -> list[type]:
    assert isinstance(group, BaseExceptionGroup)
    return [type(error) for error in group.exceptions]


@both
class TestBoth:
    def test_waits_for_all(self, loop: IOLoop, log: Log, block: Any) -> None:
        def body(group: TaskGroup) -> Any:
            one = group.create_task(works, log, "one", 2, result=1)
            two = group.create_task(works(log, "two", 1, result=2), name="named")
            assert two.get_name() == "named"
            yield moment
            return [one, two]

        one, two = loop.run_sync(lambda: block(body))
        assert [one.result(), two.result()] == [1, 2]
        assert log == [("two", 1), ("one", 2)]

    def test_without_tasks_it_is_nothing(self, loop: IOLoop, block: Any) -> None:
        def body(group: TaskGroup) -> Any:
            return 5
            yield

        assert loop.run_sync(lambda: block(body)) == 5

    def test_the_first_failure_cancels_the_others_and_waits_for_them(
        self, loop: IOLoop, log: Log, block: Any
    ) -> None:
        def body(group: TaskGroup) -> Any:
            group.create_task(works, log, "slow", 100, tidies=3)
            group.create_task(works, log, "bad", 1, KeyError)
            group.create_task(works, log, "late", 2, ValueError)
            yield moment

        with pytest.raises(ExceptionGroup, match="unhandled errors in a TaskGroup") as caught:
            loop.run_sync(lambda: block(body))
        assert kinds(caught.value) == [KeyError]
        assert log == [("bad", 1), ("late cancelled", 1), ("slow cancelled", 4)]
        assert loop.statistics()["tasks"] == loop.statistics()["timers"] == 0

    def test_errors_of_clean_ups_are_told_too(self, loop: IOLoop, block: Any) -> None:
        @coroutine
        def untidy() -> Any:
            try:
                yield sleep(100)
            finally:
                raise ZeroDivisionError

        @coroutine
        def bad() -> Any:
            yield sleep(1)
            raise KeyError

        def body(group: TaskGroup) -> Any:
            group.create_task(untidy)
            group.create_task(bad)
            yield moment

        with pytest.raises(ExceptionGroup) as caught:
            loop.run_sync(lambda: block(body))
        assert kinds(caught.value) == [KeyError, ZeroDivisionError]

    def test_a_failure_interrupts_the_block(self, loop: IOLoop, log: Log, block: Any) -> None:
        def body(group: TaskGroup) -> Any:
            group.create_task(works, log, "bad", 1, KeyError)
            try:
                yield sleep(100)
            finally:
                log.add("block")

        @coroutine
        def main() -> Any:
            with pytest.raises(ExceptionGroup) as caught:
                yield block(body)
            task = current_task()
            assert task is not None
            # The cancellation was the group's own, and is over.
            assert task.cancelling() == 0
            yield sleep(1)
            return kinds(caught.value)

        assert loop.run_sync(main) == [KeyError]
        assert log == [("bad", 1), ("block", 1)]

    def test_a_task_that_fails_at_once(self, loop: IOLoop, block: Any) -> None:
        @coroutine
        def bad() -> Any:
            raise KeyError
            yield

        def body(group: TaskGroup) -> Any:
            group.create_task(bad)
            with pytest.raises(RuntimeError, match="shutting down"):
                group.create_task(bad)
            yield sleep(100)

        began = loop.time()
        with pytest.raises(ExceptionGroup) as caught:
            loop.run_sync(lambda: block(body))
        assert kinds(caught.value) == [KeyError]
        assert loop.time() == began

    def test_a_task_cancelled_by_itself_is_no_failure(
        self, loop: IOLoop, log: Log, block: Any
    ) -> None:
        def body(group: TaskGroup) -> Any:
            task = group.create_task(works, log, "one", 100)
            group.create_task(works, log, "two", 2)
            loop.call_later(1, task.cancel)
            yield moment

        loop.run_sync(lambda: block(body))
        assert log == [("one cancelled", 1), ("two", 2)]

    def test_tasks_may_create_further_ones(self, loop: IOLoop, log: Log, block: Any) -> None:
        @coroutine
        def parent(group: TaskGroup, depth: int) -> Any:
            yield sleep(1)
            log.add(str(depth))
            if depth:
                group.create_task(parent, group, depth - 1)

        def body(group: TaskGroup) -> Any:
            group.create_task(parent, group, 3)
            yield moment

        loop.run_sync(lambda: block(body))
        assert log == [("3", 1), ("2", 2), ("1", 3), ("0", 4)]

    def test_a_cancellation_from_outside_ends_all_and_goes_on(
        self, loop: IOLoop, log: Log, block: Any
    ) -> None:
        for at_the_end in (False, True):
            log.clear()

            def body(group: TaskGroup) -> Any:
                group.create_task(works, log, "task", 100, tidies=2)
                yield sleep(0 if at_the_end else 50)  # noqa: B023

            task = block(body)
            loop.call_later(1, task.cancel)
            with pytest.raises(CancelledError):
                loop.run_sync(lambda: task)  # noqa: B023
            assert task.cancelled()
            loop.run_sync(lambda: sleep(2))
            assert [what for what, _ in log] == ["task cancelled"]
            assert loop.statistics()["tasks"] == 0

    def test_an_error_has_priority_over_a_cancellation_which_comes_next(
        self, loop: IOLoop, block: Any
    ) -> None:
        @coroutine
        def untidy() -> Any:
            try:
                yield sleep(100)
            finally:
                raise KeyError

        def body(group: TaskGroup) -> Any:
            group.create_task(untidy)
            yield moment

        @coroutine
        def main() -> Any:
            with pytest.raises(ExceptionGroup) as caught:
                yield from inline(body)
            told = kinds(caught.value)
            with pytest.raises(CancelledError):
                yield sleep(100)
            return told

        @coroutine
        async def native_main() -> Any:
            with pytest.raises(ExceptionGroup) as caught:
                async with TaskGroup() as group:
                    group.create_task(untidy)
            with pytest.raises(CancelledError):
                await sleep(100)
            return kinds(caught.value)

        def inline(body: Body) -> Any:
            with TaskGroup() as group:
                yield from body(group)
                yield group.join()

        task = main() if block is with_block else native_main()
        loop.call_later(1, task.cancel)
        assert loop.run_sync(lambda: task) == [KeyError]

    def test_an_error_of_the_block_is_told_with_those_of_the_tasks(
        self, loop: IOLoop, log: Log, block: Any
    ) -> None:
        def body(group: TaskGroup) -> Any:
            group.create_task(works, log, "task", 100)
            yield sleep(1)
            raise ValueError

        with pytest.raises(ExceptionGroup) as caught:
            loop.run_sync(lambda: block(body))
        assert kinds(caught.value) == [ValueError]
        loop.run_sync(lambda: moment)
        assert log == [("task cancelled", 1)]

    @pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
    @pytest.mark.parametrize("where", ["block", "task"])
    def test_interrupts_pass_bare(
        self, block: Any, interrupt: type[BaseException], where: str
    ) -> None:
        ended = []

        @coroutine
        def waits() -> Any:
            try:
                yield Future()
            finally:
                ended.append("waits")

        @coroutine
        def interrupts() -> Any:
            yield moment
            raise interrupt

        def body(group: TaskGroup) -> Any:
            group.create_task(waits)
            if where == "task":
                group.create_task(interrupts)
                yield Future()
            yield moment
            raise interrupt

        with pytest.raises(interrupt):
            run(block, body)
        assert ended == ["waits"]

    def test_inside_a_time_limit(self, loop: IOLoop, log: Log, block: Any) -> None:
        def body(group: TaskGroup) -> Any:
            group.create_task(works, log, "task", 100, tidies=1)
            yield moment

        @coroutine
        def main() -> Any:
            with pytest.raises(TimeoutError), timeout(2):
                yield block(body)
            return loop.time()

        loop.run_sync(main)
        assert log == [("task cancelled", 3)]

    def test_nested_ones(self, loop: IOLoop, log: Log, block: Any) -> None:
        def inner(group: TaskGroup) -> Any:
            group.create_task(works, log, "inner", 100)
            group.create_task(works, log, "bad", 1, KeyError)
            yield moment

        def outer(group: TaskGroup) -> Any:
            group.create_task(works, log, "outer", 100)
            yield block(inner)

        with pytest.raises(ExceptionGroup) as caught:
            loop.run_sync(lambda: block(outer))
        (wrapped,) = caught.value.exceptions
        assert kinds(wrapped) == [KeyError]
        loop.run_sync(lambda: moment)
        assert sorted(what for what, _ in log) == ["bad", "inner cancelled", "outer cancelled"]

    def test_ten_thousand(self, loop: IOLoop, block: Any) -> None:
        done = 0

        @coroutine
        def one(seconds: int) -> Any:
            nonlocal done
            yield sleep(seconds)
            done += 1

        def body(group: TaskGroup) -> Any:
            for number in range(10_000):
                group.create_task(one, number % 7)
            yield moment

        loop.run_sync(lambda: block(body))
        assert done == 10_000

    def test_leaves_no_circle(self, loop: IOLoop, log: Log, block: Any, no_collector: None) -> None:
        def body(group: TaskGroup) -> Any:
            group.create_task(works, log, "slow", 100)
            group.create_task(works, log, "bad", 1, KeyError)
            yield sleep(50)

        def fine(group: TaskGroup) -> Any:
            group.create_task(works, log, "fine", 1)
            yield moment

        @coroutine
        def main() -> Any:
            for _ in range(50):
                yield block(fine)
                try:
                    yield block(body)
                except ExceptionGroup:
                    pass

        loop.run_sync(main)
        loop.run_sync(lambda: moment)
        assert gc.collect() == 0


class TestCreate:
    def test_what_can_be_created(self, loop: IOLoop) -> None:
        async def native(number: int) -> int:
            return number

        def plain(number: int) -> Future[int]:
            future: Future[int] = Future()
            future.set_result(number)
            return future

        @coroutine
        def generator(number: int, *, add: int = 0) -> Any:
            yield moment
            return number + add

        @coroutine
        def main() -> Any:
            with TaskGroup() as group:
                tasks = [
                    group.create_task(native, 1),
                    group.create_task(native(2)),
                    group.create_task(plain, 3),
                    group.create_task(plain(4)),
                    group.create_task(generator, 5, add=1),
                ]
                yield group.join()
            return [task.result() for task in tasks]

        assert loop.run_sync(main) == [1, 2, 3, 4, 6]

    def test_what_can_not(self, loop: IOLoop) -> None:
        def bare() -> Any:
            yield moment

        @coroutine
        def main() -> Any:
            with TaskGroup() as group:
                with pytest.raises(BadYieldError, match="@coroutine before def bare"):
                    group.create_task(bare)
                with pytest.raises(TypeError, match="not called"):
                    group.create_task(sleep(0), 5)
                yield group.join()

        loop.run_sync(main)

    def test_outside_of_the_block(self, loop: IOLoop) -> None:
        async def native() -> None:
            raise AssertionError

        @coroutine
        def main() -> Any:
            group = TaskGroup()
            with pytest.raises(RuntimeError, match="has not been entered"):
                group.create_task(native())
            with pytest.raises(RuntimeError, match="inside the block"):
                yield group.join()
            with group:
                with pytest.raises(RuntimeError, match="already"):
                    group.__enter__()
                yield group.join()
            with pytest.raises(RuntimeError, match="is finished"):
                group.create_task(native())

        loop.run_sync(main)
        with pytest.raises(RuntimeError, match="inside a coroutine"):
            TaskGroup().__enter__()

    def test_context(self, loop: IOLoop) -> None:
        variable = contextvars.ContextVar("variable", default=0)

        @coroutine
        def generator() -> Any:
            yield moment
            return variable.get()

        async def native() -> int:
            variable.set(variable.get() + 1)
            return variable.get()

        @coroutine
        def main() -> Any:
            context = contextvars.copy_context()
            context.run(variable.set, 5)
            with TaskGroup() as group:
                tasks = [
                    group.create_task(generator),
                    group.create_task(generator, context=context),
                    group.create_task(native(), context=context),
                ]
                yield group.join()
            return [task.result() for task in tasks], context[variable]

        assert loop.run_sync(main) == ([0, 5, 6], 6)

    def test_repr(self, loop: IOLoop) -> None:
        @coroutine
        def main() -> Any:
            group = TaskGroup()
            texts = [repr(group)]
            with group:
                group.create_task(sleep, 1)
                texts.append(repr(group))
                yield group.join()
            return texts

        before, inside = loop.run_sync(main)
        assert "not entered" in before
        assert "tasks=1" in inside


class TestWithoutJoin:
    """What only the ``with`` style can get wrong."""

    def test_leaving_while_tasks_run_names_what_is_missing(self, loop: IOLoop, log: Log) -> None:
        @coroutine
        def main() -> Any:
            with TaskGroup() as group:
                group.create_task(works, log, "one", 100)
                group.create_task(works, log, "two", 100)
                yield sleep(1)

        with pytest.raises(RuntimeError, match=r"2 of its tasks ran.*yield group\.join\(\)"):
            loop.run_sync(main)
        turns(loop, 3)
        assert log == [("one cancelled", 1), ("two cancelled", 1)]
        assert not all_tasks()

    def test_if_none_runs_nothing_is_missing(self, loop: IOLoop, log: Log) -> None:
        @coroutine
        def main() -> Any:
            with TaskGroup() as group:
                group.create_task(works, log, "one", 1)
                yield sleep(2)

        loop.run_sync(main)

    def test_a_failure_is_told_in_its_place(self, loop: IOLoop, log: Log) -> None:
        @coroutine
        def bad() -> Any:
            raise KeyError
            yield

        @coroutine
        def main() -> Any:
            with pytest.raises(ExceptionGroup) as caught, TaskGroup() as group:
                group.create_task(works, log, "one", 100)
                group.create_task(bad)
            # Its own cancellation of this task is taken back before it is told.
            yield sleep(1)
            return kinds(caught.value)

        assert loop.run_sync(main) == [KeyError]
        assert log == [("one cancelled", 0)]

    def test_an_error_that_comes_after_the_block_is_logged(
        self, loop: IOLoop, caplog: pytest.LogCaptureFixture
    ) -> None:
        @coroutine
        def untidy() -> Any:
            try:
                yield sleep(100)
            finally:
                raise ZeroDivisionError("late")

        @coroutine
        def main() -> Any:
            try:
                with TaskGroup() as group:
                    group.create_task(untidy)
                    yield sleep(1)
                    raise ValueError
            except ExceptionGroup as group_error:
                return kinds(group_error)

        with caplog.at_level(logging.ERROR, "coro.application"):
            assert loop.run_sync(main) == [ValueError]
            turns(loop, 3)
        assert "late" in caplog.text

    def test_going_on_after_join(self, loop: IOLoop, log: Log) -> None:
        @coroutine
        def main() -> Any:
            with TaskGroup() as group:
                group.create_task(works, log, "one", 1)
                yield group.join()
                group.create_task(works, log, "two", 1)
                yield group.join()

        loop.run_sync(main)
        assert log == [("one", 1), ("two", 2)]

    def test_catching_what_join_raised(self, loop: IOLoop, log: Log) -> None:
        @coroutine
        def main() -> Any:
            with TaskGroup() as group:
                group.create_task(works, log, "one", 1, KeyError)
                try:
                    yield group.join()
                except ExceptionGroup as error:
                    told = kinds(error)
            return told

        assert loop.run_sync(main) == [KeyError]
