"""Time limits and shielding, on a clock that leaps."""

from __future__ import annotations

import concurrent.futures
import gc
import itertools
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

from coro.errors import CancelledError
from coro.future import Future
from coro.gen import (
    TaskGroup,
    coroutine,
    current_task,
    moment,
    shield,
    sleep,
    timeout,
    timeout_at,
    with_timeout,
)
from coro.loop import IOLoop
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


class TestSleep:
    @pytest.mark.parametrize("seconds", [5, 0.5, 0, -3])
    def test_is_done_after_its_time(self, loop: IOLoop, seconds: float) -> None:
        started = loop.time()
        assert loop.run_sync(lambda: sleep(seconds)) is None
        assert loop.time() == pytest.approx(started + max(0, seconds))

    def test_zero_takes_a_turn(self, loop: IOLoop) -> None:
        future = sleep(0)
        assert not future.done()
        turns(loop)
        assert future.done()

    def test_cancelled_it_leaves_no_timer(self, loop: IOLoop) -> None:
        future = sleep(5)
        assert loop.statistics()["timers"] == 1
        assert "sleep until 1005.000" in repr(future)
        future.cancel()
        assert loop.statistics()["timers"] == 0
        assert future.cancelled()
        assert future.cancel() is False

    def test_settled_by_hand_it_stays_so(
        self, loop: IOLoop, caplog: pytest.LogCaptureFixture
    ) -> None:
        future = sleep(1)
        future.set_result(None)
        loop.run_sync(lambda: sleep(2))
        assert caplog.records == []


class TestWithTimeout:
    def test_in_time(self, loop: IOLoop) -> None:
        for deadline in (loop.time() + 5, timedelta(seconds=5)):
            assert loop.run_sync(lambda: with_timeout(deadline, after(1, "in time"))) == "in time"  # noqa: B023
            with pytest.raises(ZeroDivisionError):
                loop.run_sync(lambda: with_timeout(deadline, after(1, ZeroDivisionError)))  # noqa: B023
            assert loop.statistics()["timers"] == 0

    def test_too_late_leaves_the_input_running(self, loop: IOLoop) -> None:
        task = after(5, "end")
        started = loop.time()
        with pytest.raises(TimeoutError, match=r"^Timeout$"):
            loop.run_sync(lambda: with_timeout(timedelta(seconds=1), task))
        assert loop.time() == pytest.approx(started + 1)
        assert not task.done()
        assert task.cancelling() == 0
        assert loop.run_sync(lambda: task) == "end"

    def test_a_past_deadline(self, loop: IOLoop) -> None:
        done: Future[int] = Future()
        done.set_result(1)
        assert loop.run_sync(lambda: with_timeout(loop.time() - 5, done)) == 1
        with pytest.raises(TimeoutError):
            loop.run_sync(lambda: with_timeout(timedelta(0), Future()))

    def test_a_wall_clock_deadline_is_refused(self, loop: IOLoop) -> None:
        with pytest.raises(ValueError, match=r"loop\.time\(\)"):
            with_timeout(1.7e9, Future())
        assert loop.run_sync(lambda: with_timeout(timedelta(days=4000), after(1, 1))) == 1

    def test_concurrent_futures_and_natives(self, loop: IOLoop) -> None:
        async def native() -> int:
            await sleep(1)
            return 1

        done: concurrent.futures.Future[int] = concurrent.futures.Future()
        done.set_result(2)
        later: concurrent.futures.Future[int] = concurrent.futures.Future()
        loop.call_later(1, later.set_result, 3)
        limit = timedelta(seconds=10)
        for thing, result in ((native(), 1), (done, 2), (later, 3), ([native()], [1])):
            assert loop.run_sync(lambda: with_timeout(limit, thing)) == result  # noqa: B023

    def test_messages(self, loop: IOLoop) -> None:
        asked: list[int] = []

        def message() -> str:
            asked.append(1)
            return "made to measure"

        limit = timedelta(seconds=1)
        assert loop.run_sync(lambda: with_timeout(limit, after(0, 1), message=message)) == 1
        assert asked == []
        for given, text in ((message, "made to measure"), ("text", "text"), ("", "")):
            with pytest.raises(TimeoutError) as caught:
                loop.run_sync(lambda: with_timeout(limit, Future(), message=given))  # noqa: B023
            assert str(caught.value) == text
        assert asked == [1]

    def test_a_message_that_fails_arrives_as_the_error(self, loop: IOLoop) -> None:
        with pytest.raises(ZeroDivisionError):
            loop.run_sync(lambda: with_timeout(timedelta(0), Future(), message=lambda: str(1 / 0)))

    def test_a_cancelled_input_cancels_the_result(self, loop: IOLoop) -> None:
        source: Future[Any] = Future()
        bounded = with_timeout(timedelta(seconds=5), source)
        source.cancel("why")
        turns(loop, 2)
        assert bounded.cancelled()
        with pytest.raises(CancelledError, match="why"):
            bounded.result()
        assert loop.statistics()["timers"] == 0
        assert with_timeout(timedelta(seconds=5), source).cancelled()

    def test_cancelling_the_result_leaves_the_input_alone(self, loop: IOLoop) -> None:
        source: Future[Any] = Future()
        bounded = with_timeout(timedelta(seconds=5), source)
        assert bounded.cancel() is True
        assert bounded.cancel() is False
        assert loop.statistics()["timers"] == 0
        assert not source.done()
        source.set_result(1)
        turns(loop, 2)
        assert bounded.cancelled()

    @pytest.mark.parametrize("quiet", [(), ZeroDivisionError, (KeyError, ZeroDivisionError)])
    def test_an_error_after_the_deadline_is_logged_unless_quiet(
        self, loop: IOLoop, quiet: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        tasks = [after(5, ZeroDivisionError)]
        with pytest.raises(TimeoutError):
            loop.run_sync(lambda: with_timeout(timedelta(seconds=1), tasks[0], quiet))
        loop.run_sync(lambda: sleep(10))
        tasks.clear()
        gc.collect()
        assert len(caplog.records) == (1 if quiet == () else 0)
        if quiet == ():
            assert caplog.records[0].name == "coro.application"
            assert "after timeout" in caplog.records[0].getMessage()

    def test_leaves_no_circle(self, loop: IOLoop) -> None:
        @coroutine
        def main() -> Any:
            for _ in range(100):
                yield with_timeout(timedelta(seconds=5), after(1))
                for thing in (after(5), after(1, KeyError)):
                    try:
                        yield with_timeout(timedelta(seconds=2), thing)
                    except (TimeoutError, KeyError):
                        pass
                del thing
            yield sleep(10)

        gc.collect()
        gc.disable()
        try:
            loop.run_sync(main)
            assert gc.collect() == 0
        finally:
            gc.enable()


class TestShield:
    def test_hands_results_and_errors_on(self, loop: IOLoop) -> None:
        done: Future[int] = Future()
        done.set_result(1)
        assert shield(done).result() == 1
        assert loop.run_sync(lambda: shield(after(1, 2))) == 2
        with pytest.raises(ZeroDivisionError):
            loop.run_sync(lambda: shield(after(1, ZeroDivisionError)))
        cancelled: Future[Any] = Future()
        follower = shield(cancelled)
        cancelled.cancel()
        turns(loop, 2)
        assert follower.cancelled()

    def test_an_error_that_comes_after_the_cancellation_logs_itself(
        self, loop: IOLoop, caplog: pytest.LogCaptureFixture
    ) -> None:
        follower = shield(after(1, ZeroDivisionError))
        follower.cancel()
        loop.run_sync(lambda: sleep(2))
        (record,) = caplog.records
        assert "nobody looked" in record.getMessage()


class TestTimeout:
    def test_in_time(self, loop: IOLoop) -> None:
        @coroutine
        def main() -> Any:
            with timeout(5) as limit:
                result = yield after(1, "in time")
            assert not limit.expired()
            with timeout(timedelta(seconds=5)):
                yield after(1)
            return result

        assert loop.run_sync(main) == "in time"
        assert loop.statistics()["timers"] == 0

    def test_cancels_what_runs_over_and_waits_for_its_clean_up(self, loop: IOLoop) -> None:
        order: list[str] = []

        @coroutine
        def child() -> Any:
            try:
                yield sleep(100)
            finally:
                yield sleep(2)
                order.append("tidy")

        @coroutine
        def main() -> Any:
            with pytest.raises(TimeoutError) as caught, timeout(5) as limit:
                yield child()
            order.append("after")
            assert limit.expired()
            assert isinstance(caught.value.__cause__, CancelledError)
            task = current_task()
            assert task is not None
            assert task.cancelling() == 0
            yield sleep(1)

        started = loop.time()
        loop.run_sync(main)
        assert order == ["tidy", "after"]
        assert loop.time() == pytest.approx(started + 8)

    def test_none_is_no_limit(self, loop: IOLoop) -> None:
        @coroutine
        def main() -> Any:
            for block in (timeout(None), timeout_at(None)):
                with block:
                    yield sleep(1e6)

        loop.run_sync(main)

    def test_zero_expires_at_the_first_suspension(self, loop: IOLoop) -> None:
        @coroutine
        def main() -> Any:
            done: Future[int] = Future()
            done.set_result(1)
            with timeout(0):
                assert (yield done) == 1
            with pytest.raises(TimeoutError), timeout(0):
                yield sleep(0.001)
            with pytest.raises(TimeoutError), timeout_at(loop.time() - 1):
                yield Future()

        loop.run_sync(main)

    def test_other_errors_pass(self, loop: IOLoop) -> None:
        @coroutine
        def main() -> Any:
            with pytest.raises(ZeroDivisionError), timeout(5):
                yield after(1, ZeroDivisionError)
            with pytest.raises(KeyError), timeout(1):
                try:
                    yield sleep(5)
                finally:
                    raise KeyError
            yield sleep(1)

        loop.run_sync(main)

    def test_a_caught_one_does_not_come_again(self, loop: IOLoop) -> None:
        @coroutine
        def main() -> Any:
            with timeout(1) as limit:
                try:
                    yield sleep(5)
                except CancelledError:
                    pass
                yield sleep(5)
            assert limit.expired()
            yield sleep(1)

        loop.run_sync(main)

    @pytest.mark.parametrize(("outer", "inner"), [(1, 5), (5, 1)])
    def test_nested_ones_tell_whose_it_was(self, loop: IOLoop, outer: int, inner: int) -> None:
        seen: list[str] = []

        @coroutine
        def main() -> Any:
            try:
                with timeout(outer):
                    try:
                        with timeout(inner):
                            yield sleep(100)
                    except TimeoutError:
                        seen.append("inner")
                        raise KeyError from None
            except TimeoutError:
                seen.append("outer")
            except KeyError:
                pass

        loop.run_sync(main)
        assert seen == ["outer" if outer < inner else "inner"]

    def test_inside_a_child_it_does_not_end_the_parent(self, loop: IOLoop) -> None:
        @coroutine
        def child() -> Any:
            with timeout(1):
                yield sleep(100)

        @coroutine
        def main() -> Any:
            with timeout(50):
                with pytest.raises(TimeoutError):
                    yield child()
                with pytest.raises(TimeoutError):
                    yield [child(), after(2)]
                yield sleep(1)

        loop.run_sync(main)

    def test_all_orders_of_result_timeout_and_cancellation_in_one_turn(self, loop: IOLoop) -> None:
        """Whatever the order: the cancellation is never swallowed, the result never lost."""
        names = ("result", "timeout", "cancel")
        for order in itertools.permutations(names):
            future: Future[str] = Future()
            seen: list[str] = []

            @coroutine
            def main() -> Any:
                try:
                    with timeout(100) as limit:
                        limits.append(limit)  # noqa: B023
                        yield shield(future)  # noqa: B023
                except TimeoutError:
                    seen.append("TimeoutError")  # noqa: B023
                    yield moment
                except CancelledError:
                    seen.append("CancelledError")  # noqa: B023
                    raise

            limits: list[Any] = []
            task = main()
            acts: dict[str, Callable[[], Any]] = {
                "result": lambda: future.set_result("kept"),  # noqa: B023
                "timeout": lambda: limits[0].expire(),  # noqa: B023, PLW0108
                "cancel": task.cancel,
            }
            for name in order:
                loop.add_callback(acts[name])
            turns(loop, 4)
            assert task.cancelled(), order
            assert seen == ["CancelledError"], order
            assert future.result() == "kept"
            assert loop.statistics()["timers"] == 0

    @pytest.mark.parametrize("first", ["result", "timeout"])
    def test_result_and_timeout_in_one_turn(self, loop: IOLoop, first: str) -> None:
        future: Future[str] = Future()
        limits: list[Any] = []

        @coroutine
        def main() -> Any:
            with timeout(100) as limit:
                limits.append(limit)
                return (yield shield(future))

        task = main()
        acts: list[Callable[[], Any]] = [
            lambda: future.set_result("kept"),
            lambda: limits[0].expire(),  # noqa: PLW0108
        ]
        for act in acts if first == "result" else reversed(acts):
            loop.add_callback(act)
        turns(loop, 4)
        assert isinstance(task.exception(), TimeoutError)
        assert future.result() == "kept"

    def test_expire_ends_the_block_now_and_only_once(self, loop: IOLoop) -> None:
        told: list[int] = []

        @coroutine
        def main() -> Any:
            with pytest.raises(TimeoutError), timeout(5) as limit:
                loop.call_later(1, limit.expire)
                loop.call_later(1.5, limit.expire)
                try:
                    yield sleep(100)
                finally:
                    told.append(1)
                    yield sleep(20)
                    told.append(2)
            assert loop.statistics()["timers"] == 0
            limit.expire()
            yield sleep(10)

        loop.run_sync(main)
        assert told == [1, 2]

    def test_reschedule(self, loop: IOLoop) -> None:
        @coroutine
        def main() -> Any:
            started = loop.time()
            with pytest.raises(TimeoutError), timeout(5) as limit:
                limit.reschedule(started + 10)
                assert limit.when() == started + 10
                yield sleep(100)
            assert loop.time() == pytest.approx(started + 10)
            with timeout(5) as limit:
                limit.reschedule(None)
                yield sleep(100)
            with pytest.raises(RuntimeError, match="finished"):
                limit.reschedule(loop.time() + 1)
            with pytest.raises(RuntimeError, match="not been entered"):
                timeout(5).reschedule(loop.time() + 1)
            with pytest.raises(TimeoutError), timeout(5) as limit:
                limit.expire()
                with pytest.raises(RuntimeError, match="expiring"):
                    limit.reschedule(loop.time() + 1)
                yield sleep(1)

        loop.run_sync(main)
        assert loop.statistics()["timers"] == 0

    def test_misuse(self, loop: IOLoop) -> None:
        with pytest.raises(RuntimeError, match="inside a task"), timeout(5):
            pass

        @coroutine
        def main() -> Any:
            block = timeout(5)
            with block:
                with pytest.raises(RuntimeError, match="already been entered"), block:
                    pass
                yield moment
            with pytest.raises(RuntimeError, match="already been entered"), block:
                pass

        loop.run_sync(main)

    def test_repr_tells_its_state(self, loop: IOLoop) -> None:
        @coroutine
        def main() -> Any:
            limit = timeout_at(loop.time() + 5)
            texts = [repr(limit)]
            with limit:
                texts.append(repr(limit))
                yield moment
            texts.append(repr(limit))
            with pytest.raises(TimeoutError), timeout(0) as short:
                try:
                    yield sleep(1)
                finally:
                    texts.append(repr(short))
            texts.append(repr(short))
            with timeout(None) as endless:
                texts.append(repr(endless))
            return texts

        assert loop.run_sync(main) == [
            "<Timeout [created]>",
            f"<Timeout [active] when={round(loop.time() + 5, 3)}>",
            "<Timeout [finished]>",
            "<Timeout [expiring]>",
            "<Timeout [expired]>",
            "<Timeout [active] when=None>",
        ]

    def test_another_error_in_its_wake_tells_of_the_limit(self, loop: IOLoop) -> None:
        @coroutine
        def fails() -> Any:
            try:
                yield sleep(10)
            finally:
                raise KeyError("clean-up")

        @coroutine
        def main(grouped: bool) -> Any:
            with timeout(1):
                if grouped:
                    with TaskGroup() as group:
                        group.create_task(fails)
                        yield group.join()
                else:
                    yield fails()

        with pytest.raises(KeyError) as bare:
            loop.run_sync(lambda: main(False))
        with pytest.raises(ExceptionGroup) as grouped:
            loop.run_sync(lambda: main(True))
        for error in (bare.value, grouped.value.exceptions[0]):
            cause = error.__context__
            assert isinstance(cause, TimeoutError)
            assert isinstance(cause.__cause__, CancelledError)

    def test_in_native_coroutines(self, loop: IOLoop) -> None:
        async def main() -> str:
            with pytest.raises(TimeoutError), timeout(1):
                await sleep(5)
            async with timeout(5):
                await sleep(1)
            with pytest.raises(TimeoutError):
                async with timeout(1):
                    await sleep(5)
            return "end"

        assert loop.run_sync(main) == "end"

    def test_leaves_no_circle(self, loop: IOLoop) -> None:
        @coroutine
        def main() -> Any:
            for seconds in (1, 5) * 50:
                try:
                    with timeout(3):
                        yield after(seconds)
                except TimeoutError:
                    pass

        gc.collect()
        gc.disable()
        try:
            loop.run_sync(main)
            assert gc.collect() == 0
        finally:
            gc.enable()
