"""Results in the order in which they come: ``WaitIterator`` and ``as_completed``."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from coro.errors import BadYieldError, CancelledError
from coro.future import Future
from coro.gen import WaitIterator, as_completed, coroutine, moment, sleep, timeout, with_timeout
from coro.loop import IOLoop
from coro.queues import Queue
from tests.support.virtual import closing_loop, turns


@pytest.fixture
def loop() -> Iterator[IOLoop]:
    with closing_loop() as loop:
        yield loop


@coroutine
def after(seconds: float, result: Any = None) -> Any:
    """Give a result, or raise one that is a class of errors, after some time."""
    yield sleep(seconds)
    if isinstance(result, type):
        raise result
    return result


def done(result: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(result)
    return future


@coroutine
def drain(iterator: WaitIterator) -> Any:
    """Collect ``(index, result)`` of all that is left."""
    found = []
    while not iterator.done():
        try:
            result = yield iterator.next()
        except ZeroDivisionError:
            result = "failed"
        found.append((iterator.current_index, result))
    return found


class TestWaitIterator:
    def test_gives_results_as_they_come(self, loop: IOLoop) -> None:
        iterator = WaitIterator(after(3, "c"), after(1, "a"), after(2, "b"))
        assert loop.run_sync(lambda: drain(iterator)) == [(1, "a"), (2, "b"), (0, "c")]

    def test_keywords_are_the_indices(self, loop: IOLoop) -> None:
        iterator = WaitIterator(slow=after(2, 1), fast=after(1, 2))
        assert loop.run_sync(lambda: drain(iterator)) == [("fast", 2), ("slow", 1)]

    def test_what_is_done_comes_in_the_order_given(self, loop: IOLoop) -> None:
        iterator = WaitIterator(done(24), done(42), done(84))
        assert loop.run_sync(lambda: drain(iterator)) == [(0, 24), (1, 42), (2, 84)]

    def test_either_positions_or_keywords(self, loop: IOLoop) -> None:
        with pytest.raises(ValueError, match="args or kwargs, not both"):
            WaitIterator(Future(), bar=Future())

    def test_of_nothing(self, loop: IOLoop) -> None:
        iterator = WaitIterator()
        assert iterator.done()
        assert iterator.current_index is None
        assert iterator.current_future is None

    def test_index_and_future_stand_from_the_first_to_the_last_result(self, loop: IOLoop) -> None:
        first, second = after(1, 1), after(2, 2)
        iterator = WaitIterator(first, second)
        assert (iterator.current_index, iterator.current_future) == (None, None)
        loop.run_sync(iterator.next)
        assert (iterator.current_index, iterator.current_future) == (0, first)
        assert not iterator.done()
        assert (iterator.current_index, iterator.current_future) == (0, first)
        loop.run_sync(iterator.next)
        assert (iterator.current_index, iterator.current_future) == (1, second)
        assert iterator.done()
        assert (iterator.current_index, iterator.current_future) == (None, None)

    def test_one_future_in_several_places(self, loop: IOLoop) -> None:
        for future in (done(1), after(1, 1)):
            iterator = WaitIterator(future, done(2), future)
            found = loop.run_sync(lambda: drain(iterator))  # noqa: B023
            assert sorted(found) == [(0, 1), (1, 2), (2, 1)]
        again = done(1)
        assert loop.run_sync(lambda: drain(WaitIterator(a=again, b=again))) == [("a", 1), ("b", 1)]

    def test_it_goes_on_after_an_error(self, loop: IOLoop) -> None:
        bad = after(1, ZeroDivisionError)
        iterator = WaitIterator(after(2, "end"), bad)

        @coroutine
        def main() -> Any:
            with pytest.raises(ZeroDivisionError):
                yield iterator.next()
            assert iterator.current_future is bad
            assert iterator.current_index == 1
            return (yield iterator.next())

        assert loop.run_sync(main) == "end"

    def test_async_for_also_a_second_time_on_the_same_object(self, loop: IOLoop) -> None:
        iterator = WaitIterator(after(1, 1), after(2, ZeroDivisionError), after(3, 3), after(4, 4))
        found: list[Any] = []

        async def main() -> None:
            with pytest.raises(ZeroDivisionError):
                async for result in iterator:
                    found.append((iterator.current_index, result))
            async for result in iterator:
                found.append((iterator.current_index, result))

        loop.run_sync(main)
        assert found == [(0, 1), (2, 3), (3, 4)]
        assert iterator.current_index is None

    def test_everything_that_can_be_yielded(self, loop: IOLoop) -> None:
        async def native() -> int:
            return 1

        iterator = WaitIterator(native(), [done(2)], None, moment)
        assert sorted(loop.run_sync(lambda: drain(iterator)), key=lambda pair: pair[0]) == [
            (0, 1),
            (1, [2]),
            (2, None),
            (3, None),
        ]
        with pytest.raises(BadYieldError):
            WaitIterator(5)

    def test_moment_serves_one_loop_after_the_other(self) -> None:
        for _ in range(2):
            with closing_loop() as loop:
                assert loop.run_sync(WaitIterator(None).next) is None

    def test_needs_no_other_reference(self, loop: IOLoop) -> None:
        loop.run_sync(lambda: with_timeout(timedelta(seconds=1), WaitIterator(sleep(0)).next()))

    def test_a_cancelled_input_is_a_cancelled_next(self, loop: IOLoop) -> None:
        source: Future[Any] = Future()
        iterator = WaitIterator(source)
        source.cancel("why")
        with pytest.raises(CancelledError, match="why"):
            loop.run_sync(iterator.next)
        assert iterator.done()


class TestCancelledWaitIterator:
    def test_leaves_the_inputs_alone(self, loop: IOLoop) -> None:
        task = after(2, "end")
        iterator = WaitIterator(task)

        @coroutine
        def main() -> Any:
            with pytest.raises(TimeoutError), timeout(1):
                yield iterator.next()
            assert not task.done()
            return (yield iterator.next())

        assert loop.run_sync(main) == "end"
        assert iterator.done()

    def test_a_result_of_the_same_turn_is_the_next_result(self, loop: IOLoop) -> None:
        first: Future[Any] = Future()
        second: Future[Any] = Future()
        iterator = WaitIterator(first, second)

        @coroutine
        def waits() -> Any:
            yield iterator.next()

        task = waits()
        first.set_result(1)
        second.set_result(2)
        turns(loop)  # the iterator learns of it, the task is about to run
        assert iterator.current_index == 0
        task.cancel()
        turns(loop)
        assert task.cancelled()
        assert loop.run_sync(lambda: drain(iterator)) == [(0, 1), (1, 2)]

    def test_who_asked_meanwhile_gets_it(self, loop: IOLoop) -> None:
        source: Future[Any] = Future()
        iterator = WaitIterator(source)

        @coroutine
        def waits() -> Any:
            return (yield iterator.next())

        task = waits()
        source.set_result(1)
        turns(loop)
        task.cancel()
        follower = iterator.next()
        turns(loop)
        assert task.cancelled()
        assert follower.result() == 1
        assert iterator.done()

    def test_no_item_of_a_queue_is_lost_with_it(self, loop: IOLoop) -> None:
        queue: Queue[int] = Queue()
        iterator = WaitIterator(queue.get())

        @coroutine
        def waits() -> Any:
            yield iterator.next()

        task = waits()
        task.cancel()
        turns(loop, 2)
        queue.put_nowait(1)
        assert loop.run_sync(iterator.next) == 1


class TestAsCompleted:
    def test_gives_results_as_they_come(self, loop: IOLoop) -> None:
        @coroutine
        def main() -> Any:
            found = []
            for future in as_completed([after(3, "c"), after(1, "a"), after(2, "b")]):
                found.append((yield future))
            return found

        assert loop.run_sync(main) == ["a", "b", "c"]

    def test_of_nothing(self, loop: IOLoop) -> None:
        assert list(as_completed([])) == []

    def test_all_run_from_the_start_and_may_be_taken_at_once(self, loop: IOLoop) -> None:
        futures = list(as_completed(after(1, n) for n in range(3)))
        started = loop.time()
        assert loop.run_sync(lambda: futures) == [0, 1, 2]
        assert loop.time() == pytest.approx(started + 1)

    def test_an_error_comes_in_its_place(self, loop: IOLoop) -> None:
        @coroutine
        def main() -> Any:
            found: list[Any] = []
            for future in as_completed([after(2, "end"), after(1, ZeroDivisionError)]):
                try:
                    found.append((yield future))
                except ZeroDivisionError:
                    found.append("failed")
            return found

        assert loop.run_sync(main) == ["failed", "end"]

    def test_one_given_up_takes_no_result_away(self, loop: IOLoop) -> None:
        @coroutine
        def main() -> Any:
            futures = as_completed([after(3, "b"), after(2, "a")])
            with pytest.raises(TimeoutError), timeout(1):
                yield next(futures)
            return (yield next(futures))

        assert loop.run_sync(main) == "a"
        turns(loop)
        loop.run_sync(lambda: sleep(5))


@pytest.mark.parametrize("cancelled", [False, True])
def test_nothing_is_left(loop: IOLoop, cancelled: bool) -> None:
    @coroutine
    def waits(iterator: Any) -> Any:
        try:
            yield iterator.next()
        finally:
            yield moment

    @coroutine
    def once() -> Any:
        tasks = [after(1, n) for n in range(3)]
        iterator = WaitIterator(*tasks)
        waiting = waits(iterator)
        futures = list(as_completed(tasks))
        if cancelled:
            yield
            waiting.cancel()
            futures[0].cancel()
        yield tasks
        yield sleep(1)
        yield drain(iterator)
        assert waiting.cancelled() is cancelled

    loop.run_sync(once)
    gc.collect()
    gc.disable()
    try:
        for _ in range(20):
            loop.run_sync(once)
        assert gc.collect() == 0
    finally:
        gc.enable()
    assert loop.statistics()["timers"] == 0
