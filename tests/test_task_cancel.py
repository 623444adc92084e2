"""The engine: cancellation at every point, and what interrupts leave."""

from __future__ import annotations

import concurrent.futures
import functools
import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from coro.errors import CancelledError
from coro.future import Future
from coro.gen import (
    Task,
    all_tasks,
    coroutine,
    current_task,
    moment,
    shield,
    sleep,
    timeout,
    with_timeout,
)
from coro.loop import IOLoop
from tests.support.virtual import closing_loop, step, turns


@pytest.fixture
def loop() -> Iterator[IOLoop]:
    with closing_loop() as loop:
        yield loop


def nothing_left(loop: IOLoop) -> bool:
    counts = loop.statistics()
    return counts["tasks"] == counts["timers"] == 0


class Journal:
    """Counts what was entered and what its ``finally`` did, by name."""

    def __init__(self) -> None:
        self.entered: list[str] = []
        self.left: list[str] = []
        self.tidied: list[str] = []

    @coroutine
    def guarded(self, name: str, make: Callable[[], Any]) -> Any:
        """Wait for something; the clean-up yields, in three ways."""
        self.entered.append(name)
        try:
            return (yield make())
        finally:
            self.left.append(name)
            yield moment
            yield sleep(1)
            yield tidy()
            self.tidied.append(name)


@coroutine
def tidy() -> Any:
    yield moment
    yield sleep(1)


async def native(make: Callable[[], Any]) -> Any:
    return await make()


def later() -> Future[Any]:
    future: Future[Any] = Future()
    IOLoop.current().call_later(3, lambda: future.done() or future.set_result(None))
    return future


def concurrent_later() -> Any:
    future: concurrent.futures.Future[Any] = concurrent.futures.Future()
    IOLoop.current().call_later(3, lambda: future.done() or future.set_result(None))
    return future


@coroutine
def bounded(journal: Journal) -> Any:
    with timeout(100):
        yield journal.guarded("b", lambda: sleep(5))
    try:
        with timeout(2):
            yield journal.guarded("c", lambda: sleep(50))
    except TimeoutError:
        yield journal.guarded("d", lambda: moment)


PLANS: dict[str, Callable[[Journal], Any]] = {
    "moment": lambda j: j.guarded("a", lambda: moment),
    "sleep": lambda j: j.guarded("a", lambda: sleep(5)),
    "future": lambda j: j.guarded("a", later),
    "chain": lambda j: j.guarded(
        "a", lambda: j.guarded("b", lambda: j.guarded("c", lambda: sleep(5)))
    ),
    "list": lambda j: j.guarded(
        "a",
        lambda: [
            j.guarded("b", lambda: sleep(5)),
            j.guarded("c", lambda: moment),
            later(),
            moment,
            j.guarded("d", lambda: [j.guarded("e", lambda: sleep(2)), sleep(7)]),
        ],
    ),
    "dict": lambda j: j.guarded(
        "a", lambda: {"x": j.guarded("b", lambda: sleep(5)), "y": j.guarded("c", later)}
    ),
    "same child twice": lambda j: j.guarded("a", lambda: [j.guarded("b", later)] * 2),
    "native": lambda j: j.guarded("a", lambda: native(lambda: j.guarded("b", lambda: sleep(5)))),
    "timeouts": lambda j: j.guarded("a", functools.partial(bounded, j)),
    "executor": lambda j: j.guarded("a", concurrent_later),
}


class TestCancel:
    @pytest.mark.parametrize("plan", list(PLANS))
    def test_at_every_single_suspension_point(
        self, loop: IOLoop, plan: str, no_collector: None, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Cancelled after 0, 1, 2, ... turns; and once more a turn later, into the clean-up."""

        def turns_to_the_end() -> int:
            task = PLANS[plan](Journal())
            for count in range(1000):
                if task.done():
                    return count
                step(loop)
            raise AssertionError("it never ends")

        whole = turns_to_the_end()
        assert whole > 3
        for again in (False, True):
            for count in range(whole):
                journal = Journal()
                task = PLANS[plan](journal)
                for _ in range(count):
                    step(loop)
                undisturbed = not again and not journal.left
                assert task.cancel("why") is True
                if again:
                    step(loop)
                    task.cancel("again")
                while not task.done():
                    step(loop)
                assert task.cancelled()
                assert sorted(journal.left) == sorted(journal.entered)
                if undisturbed:
                    # One that comes into the clean-up would end the clean-up itself.
                    assert sorted(journal.tidied) == sorted(journal.entered)
                for _ in range(5):
                    step(loop)
                assert loop.statistics()["tasks"] == 0
                assert all_tasks() == set()
                del task
                while loop.statistics()["timers"]:  # those of later() are the test's own
                    step(loop)
        del journal
        assert gc.collect() == 0
        assert caplog.records == []

    def test_is_told_at_the_innermost_yield_and_comes_up(self, loop: IOLoop) -> None:
        order: list[Any] = []

        @coroutine
        def deep(level: int) -> Any:
            try:
                yield deep(level - 1) if level else sleep(5)
            except CancelledError as error:
                order.append((level, error.args))
                raise

        task = deep(3)
        task.cancel("why")
        turns(loop, 2)
        assert order == [(level, ("why",)) for level in range(4)]
        assert task.cancelled()
        assert task.cancel() is False
        assert nothing_left(loop)

    def test_may_be_caught(self, loop: IOLoop) -> None:
        @coroutine
        def stubborn() -> Any:
            for _ in range(3):
                try:
                    yield sleep(100)
                except CancelledError:
                    pass
            return "end"

        task = stubborn()
        for count in range(3):
            assert not task.done()
            assert task.cancelling() == count
            assert task.cancel() is True
            turns(loop, 2)
        assert task.result() == "end"
        assert not task.cancelled()

    def test_a_caught_one_is_not_told_again_nor_to_the_parent(self, loop: IOLoop) -> None:
        @coroutine
        def child() -> Any:
            try:
                yield sleep(100)
            except CancelledError:
                yield sleep(1)
                return "caught"

        @coroutine
        def parent() -> Any:
            return (yield child()), (yield sleep(1))

        task = parent()
        task.cancel()
        assert loop.run_sync(lambda: task) == ("caught", None)

    @pytest.mark.parametrize("where", ["before a yield", "after a yield", "plain", "native"])
    def test_a_coroutine_that_raises_it_is_cancelled_and_not_failed(
        self, loop: IOLoop, where: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        @coroutine
        def generator() -> Any:
            if where == "after a yield":
                yield moment
            raise CancelledError("own")

        @coroutine
        def plain() -> Any:
            raise CancelledError("own")

        @coroutine
        async def native() -> Any:
            raise CancelledError("own")

        task = {"plain": plain, "native": native}.get(where, generator)()
        turns(loop)
        assert task.cancelled()
        with pytest.raises(CancelledError, match="own"):
            task.result()
        del task
        assert caplog.records == []

    def test_a_cancelled_future_cancels_who_waits_for_it_unless_caught(self, loop: IOLoop) -> None:
        future: Future[Any] = Future()

        @coroutine
        def passes() -> Any:
            yield future

        @coroutine
        def catches() -> Any:
            try:
                yield future
            except CancelledError:
                return "caught"

        passing, catching = passes(), catches()
        future.cancel()
        turns(loop, 2)
        assert passing.cancelled()
        assert passing.cancelling() == 0
        assert catching.result() == "caught"

    @pytest.mark.parametrize("order", ["result first", "cancel first"])
    @pytest.mark.parametrize("outcome", ["result", "error"])
    def test_in_the_same_turn_as_the_result(
        self, loop: IOLoop, order: str, outcome: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Neither is the cancellation hidden nor the result: it stands in the future."""
        futures: list[Future[Any]] = [Future()]
        seen: list[str] = []

        @coroutine
        def waits(future: Future[Any]) -> Any:
            try:
                yield future
            except CancelledError:
                seen.append("cancelled")
                raise

        def settle() -> None:
            if outcome == "result":
                futures[0].set_result(5)
            else:
                futures[0].set_exception(ZeroDivisionError())

        # If the cancellation comes first, it must not reach the future.
        task = waits(futures[0] if order == "result first" else shield(futures[0]))
        acts: list[Callable[[], Any]] = [settle, task.cancel]
        for act in acts if order == "result first" else reversed(acts):
            act()
        turns(loop, 2)
        assert task.cancelled()
        assert seen == ["cancelled"]
        assert futures[0].done()
        assert not futures[0].cancelled()
        del task, acts, act
        futures.clear()
        turns(loop)
        assert ("ZeroDivisionError" in caplog.text) == (outcome == "error")

    def test_in_the_same_turn_as_the_end_of_a_child(self, loop: IOLoop) -> None:
        order: list[str] = []

        @coroutine
        def child() -> Any:
            yield moment
            parents[0].cancel()
            return "result"

        @coroutine
        def parent() -> Any:
            try:
                order.append((yield child()))
            finally:
                order.append("finally")

        parents = [parent()]
        turns(loop, 2)
        assert parents[0].cancelled()
        assert order == ["finally"]

    def test_requests_of_one_turn_are_told_once(self, loop: IOLoop) -> None:
        told: list[int] = []

        @coroutine
        def waits() -> Any:
            for number in range(2):
                try:
                    yield sleep(1)
                except CancelledError:
                    told.append(number)

        task = waits()
        task.cancel()
        task.cancel()
        assert task.cancelling() == 2
        loop.run_sync(lambda: task)
        assert told == [0]

    def test_of_itself_is_told_at_the_next_yield(self, loop: IOLoop) -> None:
        done: Future[None] = Future()
        done.set_result(None)
        things: list[Callable[[], Any]] = [
            lambda: sleep(100),
            lambda: moment,
            lambda: None,
            lambda: done,
            lambda: [sleep(100), sleep(100)],
            list,
            tidy,
            lambda: shield(sleep(1)),
            lambda: 5,
        ]
        for thing in things:

            @coroutine
            def main(late: bool, order: list[str]) -> Any:
                if late:
                    yield moment
                task = current_task()
                assert task is not None
                task.cancel("self")
                order.append("still running")
                try:
                    yield thing()  # noqa: B023
                finally:
                    order.append("told")

            for late in (False, True):
                order: list[str] = []
                task = main(late, order)
                turns(loop, 5)
                assert task.done()
                assert order == ["still running", "told"]
                assert task.cancelled()
        loop.run_sync(lambda: sleep(2))

    def test_of_itself_goes_to_the_child_it_yields_and_no_further(self, loop: IOLoop) -> None:
        @coroutine
        def catches() -> Any:
            try:
                yield sleep(100)
            except CancelledError:
                return "caught"

        @coroutine
        def main() -> Any:
            child = catches()
            task = current_task()
            assert task is not None
            task.cancel()
            return (yield child), (yield sleep(1))

        assert loop.run_sync(main) == ("caught", None)

    def test_of_itself_right_before_the_end_cancels_the_task(self, loop: IOLoop) -> None:
        @coroutine
        def main() -> Any:
            task = current_task()
            assert task is not None
            task.cancel("late")
            return "result"
            yield

        task = main()
        assert task.cancelled()

    def test_a_chain_of_ten_thousand(self, loop: IOLoop) -> None:
        left: list[int] = []

        @coroutine
        def deep(level: int) -> Any:
            try:
                yield deep(level - 1) if level else sleep(5)
            finally:
                yield moment
                left.append(level)

        task = deep(10_000)
        turns(loop)
        assert task.cancel() is True
        loop.run_sync(lambda: finished(task))
        assert task.cancelled()
        assert left == list(range(10_001))
        assert nothing_left(loop)

    def test_a_chain_of_ten_thousand_lists(self, loop: IOLoop) -> None:
        left: list[int] = []

        @coroutine
        def deep(level: int) -> Any:
            try:
                yield [deep(level - 1), sleep(9)] if level else [sleep(5)]
            finally:
                left.append(level)

        task = deep(10_000)
        while loop.statistics()["timers"] < 10_001:
            turns(loop)
        assert task.cancel() is True
        assert loop.statistics()["timers"] == 0
        loop.run_sync(lambda: finished(task))
        assert task.cancelled()
        assert left == list(range(10_001))

    def test_a_shared_task_is_cancelled_for_all(self, loop: IOLoop) -> None:
        @coroutine
        def work() -> Any:
            yield sleep(5)

        @coroutine
        def waits(on: Any) -> Any:
            yield on

        shared = work()
        first, second = waits(shared), waits(shared)
        first.cancel()
        turns(loop, 3)
        assert shared.cancelled()
        assert first.cancelled()
        assert second.cancelled()
        assert second.cancelling() == 0

    def test_a_shielded_one_goes_on(self, loop: IOLoop) -> None:
        @coroutine
        def work() -> Any:
            yield sleep(5)
            return "end"

        @coroutine
        def waits(on: Any) -> Any:
            return (yield shield(on))

        shared = work()
        first, second = waits(shared), waits(shared)
        first.cancel()
        turns(loop, 3)
        assert first.cancelled()
        assert not shared.done()
        assert loop.run_sync(lambda: second) == "end"
        assert shared.cancelling() == 0

    def test_does_not_pass_with_timeout(self, loop: IOLoop) -> None:
        @coroutine
        def work() -> Any:
            yield sleep(5)
            return "end"

        @coroutine
        def waits(on: Any) -> Any:
            return (yield with_timeout(loop.time() + 100, on))

        shared = work()
        task = waits(shared)
        task.cancel()
        turns(loop, 3)
        assert task.cancelled()
        assert loop.statistics()["timers"] == 1
        assert loop.run_sync(lambda: shared) == "end"

    @pytest.mark.parametrize("through_a_list", [True, False])
    def test_tasks_that_wait_for_each_other_can_be_cancelled(
        self, loop: IOLoop, through_a_list: bool
    ) -> None:
        tasks: list[Task[Any]] = []
        left: list[int] = []

        @coroutine
        def waits(number: int) -> Any:
            yield moment
            other = tasks[(number + 1) % 3]
            try:
                yield [other] if through_a_list else other
            finally:
                left.append(number)

        @coroutine
        def outside() -> Any:
            try:
                yield tasks[0]
            finally:
                left.append(3)

        tasks.extend(waits(number) for number in range(3))
        tasks.append(outside())
        turns(loop, 2)
        tasks[0].cancel()
        for _ in range(20):
            turns(loop)
        assert all(task.cancelled() for task in tasks)
        assert sorted(left) == [0, 1, 2, 3]
        assert nothing_left(loop)

    def test_uncancel_takes_a_request_back(self, loop: IOLoop) -> None:
        @coroutine
        def main() -> Any:
            task = current_task()
            assert task is not None
            task.cancel()
            task.cancel()
            assert task.uncancel() == 1
            assert task.uncancel() == 0
            assert task.uncancel() == 0
            yield sleep(1)
            return "not cancelled"

        assert loop.run_sync(main) == "not cancelled"

    def test_an_error_of_the_clean_up_replaces_it(self, loop: IOLoop) -> None:
        @coroutine
        def child() -> Any:
            try:
                yield sleep(5)
            finally:
                raise ZeroDivisionError

        @coroutine
        def parent() -> Any:
            yield child()

        task = parent()
        task.cancel()
        with pytest.raises(ZeroDivisionError) as caught:
            loop.run_sync(lambda: task)
        assert isinstance(caught.value.__context__, CancelledError)

    def test_while_it_waits_for_a_native_coroutine(self, loop: IOLoop) -> None:
        order: list[str] = []

        async def native() -> None:
            try:
                await sleep(5)
            finally:
                await sleep(1)
                order.append("native")

        @coroutine
        def parent() -> Any:
            try:
                yield native()
            finally:
                order.append("parent")

        task = parent()
        task.cancel()
        loop.run_sync(lambda: finished(task))
        assert task.cancelled()
        assert order == ["native", "parent"]


@coroutine
def finished(task: Task[Any]) -> Any:
    """Wait for the end of a task, whatever it is, without touching it."""
    while not task.done():
        yield sleep(0.5)


def test_a_task_that_cancels_itself_between_bare_yields_hears_it_at_the_next(loop: IOLoop) -> None:
    heard: list[str] = []

    @coroutine
    def main() -> Any:
        yield
        yield
        task = current_task()
        assert task is not None
        task.cancel("now")
        try:
            yield
        except CancelledError as error:
            heard.append(str(error))
        yield
        return "done"

    assert loop.run_sync(main) == "done"
    assert heard == ["now"]


class TestInterrupts:
    @pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
    def test_leave_start_and_reach_the_parent_afterwards(
        self, loop: IOLoop, kind: type[BaseException], caplog: pytest.LogCaptureFixture
    ) -> None:
        order: list[str] = []

        @coroutine
        def child() -> Any:
            yield moment
            raise kind

        @coroutine
        def parent() -> Any:
            try:
                yield child()
            except kind:
                order.append("parent heard")

        task = parent()
        with pytest.raises(kind):
            turns(loop)
        assert order == []
        assert not task.done()
        turns(loop)
        assert order == ["parent heard"]
        assert task.done()
        assert nothing_left(loop)
        del task
        gc.collect()
        assert caplog.records == []

    def test_in_the_first_step_leave_the_call(
        self, loop: IOLoop, caplog: pytest.LogCaptureFixture
    ) -> None:
        @coroutine
        def child() -> Any:
            raise KeyboardInterrupt
            yield

        @coroutine
        def parent() -> Any:
            yield child()

        with pytest.raises(KeyboardInterrupt):
            parent()
        assert current_task() is None
        assert loop._depth == 0
        assert nothing_left(loop)
        gc.collect()
        assert caplog.records == []
