"""Waiting for several things side by side."""

from __future__ import annotations

import gc
import logging
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import pytest

from coro.errors import BadYieldError, CancelledError
from coro.future import Future
from coro.gen import coroutine, moment, multi, multi_future, shield, sleep
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


class TestShapes:
    def test_lists_and_dicts_keep_their_kind_and_order(self, loop: IOLoop) -> None:
        @coroutine
        def main() -> Any:
            listed = yield [after(3, "a"), after(1, "b"), after(2, "c")]
            assert listed == ["a", "b", "c"]
            named = yield {"x": after(2, 1), "y": after(1, 2)}
            assert type(named) is dict
            assert list(named.items()) == [("x", 1), ("y", 2)]
            nested = yield {"l": [after(1, 1), {"d": after(2, 2)}], "m": moment}
            assert nested == {"l": [1, {"d": 2}], "m": None}

        loop.run_sync(main)

    def test_empty_ones_are_done_at_once(self, loop: IOLoop) -> None:
        @coroutine
        def main() -> Any:
            return [(yield []), (yield {}), (yield multi([])), (yield multi({}))]

        task = main()
        assert task.result() == [[], {}, [], {}]

    def test_run_side_by_side(self, loop: IOLoop) -> None:
        started = loop.time()
        loop.run_sync(lambda: [after(5), after(5), after(5)])
        assert loop.time() == pytest.approx(started + 5)

    def test_other_iterables_and_mappings(self, loop: IOLoop) -> None:
        @coroutine
        def main() -> Any:
            assert (yield multi(after(1, n) for n in range(3))) == [0, 1, 2]
            assert (yield multi((after(1, 1),))) == [1]
            assert (yield multi(OrderedDict(a=after(1, 1)))) == {"a": 1}
            assert (yield multi_future([after(1, 1)])) == [1]

        loop.run_sync(main)

    def test_what_may_stand_in_it(self, loop: IOLoop) -> None:
        import concurrent.futures

        async def native() -> int:
            await sleep(1)
            return 1

        done: concurrent.futures.Future[int] = concurrent.futures.Future()
        done.set_result(2)
        future: Future[int] = Future()
        future.set_result(3)
        assert loop.run_sync(lambda: [native(), done, future, None, moment]) == [
            1,
            2,
            3,
            None,
            None,
        ]

    def test_the_same_future_may_stand_in_it_often(self, loop: IOLoop) -> None:
        @coroutine
        def main() -> Any:
            future = after(1, "x")
            return (yield [future, future, [future], {"k": future}])

        assert loop.run_sync(main) == ["x", "x", ["x"], {"k": "x"}]

    @pytest.mark.parametrize("pending", [True, False])
    def test_two_thousand_moments_and_futures_cost_no_square(
        self, loop: IOLoop, pending: bool
    ) -> None:
        before = loop.statistics()["turns"]
        child = (lambda: after(1)) if pending else (lambda: moment)
        assert loop.run_sync(lambda: [child() for _ in range(2000)]) == [None] * 2000
        assert loop.statistics()["turns"] - before < 20

    def test_what_cannot_be_waited_for(self, loop: IOLoop) -> None:
        @coroutine
        def main() -> Any:
            for things in ([5], {"x": 5}, [moment, "text"]):
                with pytest.raises(BadYieldError):
                    yield things

        loop.run_sync(main)


class TestErrors:
    def test_the_first_in_order_wins_once_all_have_ended(
        self, loop: IOLoop, caplog: pytest.LogCaptureFixture
    ) -> None:
        order: list[str] = []

        @coroutine
        def slow() -> Any:
            yield sleep(5)
            order.append("slow ended")

        @coroutine
        def main() -> Any:
            with pytest.raises(ZeroDivisionError):
                yield [moment, after(2, ZeroDivisionError), after(1, KeyError), slow()]
            assert order == ["slow ended"]

        loop.run_sync(main)
        (record,) = caplog.records
        assert record.name == "coro.application"
        assert "Multiple exceptions in yield list" in record.getMessage()
        assert record.exc_info is not None
        assert record.exc_info[0] is KeyError

    def test_a_single_error_logs_nothing(
        self, loop: IOLoop, caplog: pytest.LogCaptureFixture
    ) -> None:
        @coroutine
        def main() -> Any:
            for things in ([after(1, KeyError)], {"x": after(1, KeyError), "y": after(2)}):
                with pytest.raises(KeyError):
                    yield things
            shared = after(1, KeyError)
            with pytest.raises(KeyError):
                yield [shared, shared]

        loop.run_sync(main)
        gc.collect()
        assert caplog.records == []

    def test_quiet_ones_log_nothing(self, loop: IOLoop, caplog: pytest.LogCaptureFixture) -> None:
        @coroutine
        def main() -> Any:
            for quiet in (KeyError, (KeyError, ValueError)):
                with pytest.raises(ZeroDivisionError):
                    yield multi(
                        [after(1, ZeroDivisionError), after(1, KeyError)], quiet_exceptions=quiet
                    )
            assert caplog.records == []
            with pytest.raises(ZeroDivisionError):
                yield multi([after(1, ZeroDivisionError), after(1, KeyError)], ValueError)

        loop.run_sync(main)
        assert len(caplog.records) == 1

    @pytest.mark.parametrize("pending", [True, False])
    def test_a_cancelled_child_raises_without_cancelling_the_whole(
        self, loop: IOLoop, pending: bool, caplog: pytest.LogCaptureFixture
    ) -> None:
        @coroutine
        def main() -> Any:
            child: Future[Any] = Future()
            if not pending:
                child.cancel()
            whole = multi([child, after(1)])
            if pending:
                child.cancel()
            try:
                yield whole
            except CancelledError:
                pass
            assert whole.done()
            assert not whole.cancelled()
            assert isinstance(whole.exception(), CancelledError)

        loop.run_sync(main)
        assert caplog.records == []

    def test_cancellations_after_the_first_error_are_not_logged(
        self, loop: IOLoop, caplog: pytest.LogCaptureFixture
    ) -> None:
        cancelled: Future[Any] = Future()
        cancelled.cancel()

        @coroutine
        def main() -> Any:
            with pytest.raises(KeyError):
                yield [after(1, KeyError), cancelled, cancelled]

        loop.run_sync(main)
        assert caplog.records == []

    def test_errors_are_looked_at_also_when_nobody_waits_for_the_whole(
        self, loop: IOLoop, caplog: pytest.LogCaptureFixture
    ) -> None:
        whole = multi([after(1, KeyError), after(2)])
        loop.run_sync(lambda: sleep(3))
        assert whole.done()
        assert caplog.records == []
        del whole
        assert len(caplog.records) == 1
        assert "nobody looked" in caplog.records[0].getMessage()


class TestCancel:
    def test_reaches_every_unfinished_child_and_waits_for_their_clean_up(
        self, loop: IOLoop
    ) -> None:
        order: list[str] = []

        @coroutine
        def child(name: str, seconds: float) -> Any:
            try:
                yield sleep(100)
            except CancelledError as error:
                order.append(f"{name} {error.args[0]}")
                yield sleep(seconds)
                order.append(f"{name} tidy")
                raise

        done = after(0, "done")
        loop.run_sync(lambda: done)
        whole = multi([child("a", 2), done, {"x": child("b", 1)}, sleep(50)])
        assert whole.cancel("why") is True
        turns(loop, 3)
        assert order == ["a why", "b why"]
        assert not whole.done()
        loop.run_sync(lambda: sleep(3))
        assert order[2:] == ["b tidy", "a tidy"]
        assert whole.cancelled()
        assert whole.cancel() is False
        with pytest.raises(CancelledError, match="why"):
            whole.result()
        assert loop.statistics()["timers"] == 0
        assert done.result() == "done"

    def test_wins_also_if_the_children_survive_it(self, loop: IOLoop) -> None:
        @coroutine
        def survives() -> Any:
            try:
                yield sleep(100)
            except CancelledError:
                return "survived"

        child = survives()
        whole = multi([child])
        whole.cancel()
        turns(loop, 3)
        assert whole.cancelled()
        assert child.result() == "survived"

    def test_when_all_children_ended_in_this_turn(self, loop: IOLoop) -> None:
        child: Future[int] = Future()
        whole = multi([child])
        child.set_result(1)
        assert whole.cancel() is True
        turns(loop, 2)
        assert whole.cancelled()
        assert child.result() == 1

    def test_a_child_that_stands_twice_is_asked_once(self, loop: IOLoop) -> None:
        @coroutine
        def child() -> Any:
            yield sleep(100)

        task = child()
        multi([task, task, [task]]).cancel()
        assert task.cancelling() == 1
        turns(loop, 3)
        assert task.cancelled()

    def test_shielded_children_go_on(self, loop: IOLoop) -> None:
        task = after(5, "end")
        whole = multi([shield(task), sleep(100)])
        whole.cancel()
        turns(loop, 3)
        assert whole.cancelled()
        assert loop.run_sync(lambda: task) == "end"

    def test_an_error_of_a_clean_up_is_logged_and_not_lost(
        self, loop: IOLoop, caplog: pytest.LogCaptureFixture
    ) -> None:
        @coroutine
        def child() -> Any:
            try:
                yield sleep(100)
            finally:
                raise ZeroDivisionError

        whole = multi([child(), sleep(100)])
        whole.cancel()
        turns(loop, 3)
        assert whole.cancelled()
        (record,) = caplog.records
        assert record.levelno == logging.ERROR
        assert record.exc_info is not None
        assert record.exc_info[0] is ZeroDivisionError

    def test_leaves_no_circle(self, loop: IOLoop) -> None:
        gc.collect()
        gc.disable()
        try:
            for _ in range(100):
                whole = multi([sleep(5), {"x": after(5)}])
                whole.cancel()
                turns(loop, 3)
                assert whole.cancelled()
            del whole
            assert gc.collect() == 0
        finally:
            gc.enable()


class TestFailFast:
    def test_the_first_failure_in_time_cancels_the_others_and_waits_for_their_clean_up(
        self, loop: IOLoop
    ) -> None:
        ends: list[tuple[str, float]] = []
        began = loop.time()

        @coroutine
        def slow(name: str) -> Any:
            try:
                yield sleep(100)
            finally:
                yield sleep(2)
                ends.append((name, loop.time() - began))

        @coroutine
        def main() -> Any:
            with pytest.raises(KeyError):
                yield multi([slow("a"), after(9, ValueError), after(1, KeyError)], fail_fast=True)
            ends.append(("main", loop.time() - began))
            with pytest.raises(KeyError):
                yield multi({"x": slow("b"), "y": after(1, KeyError)}, fail_fast=True)

        loop.run_sync(main)
        assert ends == [("a", 3), ("main", 3), ("b", 6)]
        assert loop.statistics()["timers"] == 0

    def test_if_all_go_well_it_is_a_plain_multi(self, loop: IOLoop) -> None:
        result = loop.run_sync(lambda: multi([after(2, "a"), after(1, "b")], fail_fast=True))
        assert result == ["a", "b"]
        assert loop.run_sync(lambda: multi({}, fail_fast=True)) == {}

    def test_errors_of_the_others_are_noted_and_not_logged(
        self, loop: IOLoop, caplog: pytest.LogCaptureFixture
    ) -> None:
        @coroutine
        def fails_when_cancelled() -> Any:
            try:
                yield sleep(100)
            finally:
                raise ZeroDivisionError("in the clean-up")

        @coroutine
        def main() -> Any:
            yield multi([fails_when_cancelled(), after(1, KeyError)], fail_fast=True)

        with pytest.raises(KeyError) as caught:
            loop.run_sync(main)
        (note,) = caught.value.__notes__
        assert "ZeroDivisionError('in the clean-up')" in note
        assert not caplog.records

    def test_an_error_that_several_share_is_not_noted_on_itself(self, loop: IOLoop) -> None:
        error = KeyError("shared")
        futures: list[Future[Any]] = [Future(), Future()]

        @coroutine
        def main() -> Any:
            for future in futures:
                future.set_exception(error)
            yield multi(futures, fail_fast=True)

        with pytest.raises(KeyError) as caught:
            loop.run_sync(main)
        assert caught.value is error
        assert not hasattr(error, "__notes__")

    def test_what_failed_before_cancels_the_others_at_once(self, loop: IOLoop) -> None:
        @coroutine
        def main() -> Any:
            failed: Future[Any] = Future()
            failed.set_exception(KeyError())
            other = after(100)
            with pytest.raises(KeyError):
                yield multi([other, failed], fail_fast=True)
            return other.cancelled()

        began = loop.time()
        assert loop.run_sync(main)
        assert loop.time() == began

    def test_a_cancelled_child_is_a_failure(self, loop: IOLoop) -> None:
        @coroutine
        def main() -> Any:
            children = [after(100), after(100)]
            loop.call_later(1, children[1].cancel)
            whole = multi(children, fail_fast=True)
            with pytest.raises(CancelledError):
                yield whole
            return [child.cancelled() for child in children], whole.cancelled()

        assert loop.run_sync(main) == ([True, True], False)

    def test_cancelled_from_outside_it_is_cancelled(self, loop: IOLoop) -> None:
        children = [after(100), after(100)]
        whole = multi(children, fail_fast=True)
        loop.call_later(1, whole.cancel)
        with pytest.raises(CancelledError):
            loop.run_sync(lambda: whole)
        assert whole.cancelled()
        assert all(child.cancelled() for child in children)

    def test_leaves_no_circle(self, loop: IOLoop) -> None:
        @coroutine
        def main() -> Any:
            for _ in range(100):
                try:
                    yield multi([after(100), after(1, KeyError)], fail_fast=True)
                except KeyError:
                    pass

        gc.collect()
        gc.disable()
        try:
            loop.run_sync(main)
            assert gc.collect() == 0
        finally:
            gc.enable()
