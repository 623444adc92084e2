"""``Future``: settling, waiting, the order of arrival, and the last word of an error nobody saw."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import functools
import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from coro.errors import CancelledError, InvalidStateError, WrongLoopError, WrongThreadError
from coro.future import Future, chain_future, is_future, slot
from coro.gen import coroutine, moment
from coro.loop import IOLoop
from tests.support.virtual import closing_loop, turns, virtual_loop


@pytest.fixture
def loop() -> Iterator[IOLoop]:
    with closing_loop() as loop:
        yield loop


def in_thread(work: Callable[[], Any]) -> Any:
    """Run something in a thread of its own; give back its result or error."""
    outcome: concurrent.futures.Future[Any] = concurrent.futures.Future()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:
            outcome.set_exception(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return outcome.result()


def appends(order: list[int], number: int, _: Any) -> None:
    order.append(number)


def fails(_: Any) -> None:
    raise ZeroDivisionError


def settle_with_result(future: Future[Any]) -> None:
    future.set_result(1)


def settle_with_error(future: Future[Any]) -> None:
    future.set_exception(ZeroDivisionError("x"))
    future.exception()


def settle_by_cancelling(future: Future[Any]) -> None:
    assert future.cancel() is True


SETTLERS = [settle_with_result, settle_with_error, settle_by_cancelling]


class TestStates:
    def test_pending(self, loop: IOLoop) -> None:
        future: Future[int] = Future()
        assert not future.done()
        assert not future.cancelled()
        with pytest.raises(InvalidStateError, match="not ready"):
            future.result()
        with pytest.raises(InvalidStateError, match="not set"):
            future.exception()
        assert future.get_loop() is loop

    def test_result(self, loop: IOLoop) -> None:
        future: Future[int] = Future()
        future.set_result(5)
        assert future.done()
        assert not future.cancelled()
        assert future.result() == 5
        assert future.exception() is None

    def test_error(self, loop: IOLoop) -> None:
        future: Future[int] = Future()
        error = ZeroDivisionError("x")
        future.set_exception(error)
        assert future.done()
        assert not future.cancelled()
        assert future.exception() is error
        with pytest.raises(ZeroDivisionError) as caught:
            future.result()
        assert caught.value is error

    def test_error_given_as_a_class(self, loop: IOLoop) -> None:
        future: Future[int] = Future()
        future.set_exception(ZeroDivisionError)
        assert isinstance(future.exception(), ZeroDivisionError)

    def test_cancelled(self, loop: IOLoop) -> None:
        future: Future[int] = Future()
        assert future.cancel("why") is True
        assert future.done()
        assert future.cancelled()
        for look in (future.result, future.exception):
            with pytest.raises(CancelledError) as caught:
                look()
            assert caught.value.args == ("why",)

    def test_cancelled_without_message(self, loop: IOLoop) -> None:
        future: Future[int] = Future()
        future.cancel()
        with pytest.raises(CancelledError) as caught:
            future.result()
        assert caught.value.args == ()

    @pytest.mark.parametrize("settle", SETTLERS)
    def test_a_second_settling_raises_and_changes_nothing(
        self, loop: IOLoop, settle: Callable[[Future[Any]], None]
    ) -> None:
        future: Future[Any] = Future()
        settle(future)
        before = repr(future)
        with pytest.raises(InvalidStateError, match="settled already"):
            future.set_result(2)
        with pytest.raises(InvalidStateError, match="settled already"):
            future.set_exception(ValueError())
        assert future.cancel() is False
        assert repr(future) == before

    def test_stop_iteration_arrives_as_a_runtime_error(self, loop: IOLoop) -> None:
        future: Future[Any] = Future()
        future.set_exception(StopIteration(3))
        with pytest.raises(RuntimeError, match="StopIteration") as caught:
            future.result()
        assert isinstance(caught.value.__cause__, StopIteration)

    def test_repr_is_one_short_line(self, loop: IOLoop) -> None:
        future: Future[Any] = Future()
        assert repr(future) == "<Future pending>"
        future.set_result("x" * 1000)
        assert repr(future).startswith("<Future done: 'xxx")
        assert len(repr(future)) < 120
        failed: Future[Any] = Future()
        failed.set_exception(ZeroDivisionError("x"))
        failed.exception()
        assert repr(failed) == "<Future failed: ZeroDivisionError('x')>"
        cancelled: Future[Any] = Future()
        cancelled.cancel()
        assert repr(cancelled) == "<Future cancelled>"

    def test_subscripts_as_a_generic(self) -> None:
        assert Future[int].__args__ == (int,)  # type: ignore[attr-defined]

    def test_the_same_error_raised_often_keeps_its_traceback(self, loop: IOLoop) -> None:
        def fail() -> None:
            raise ZeroDivisionError

        future: Future[Any] = Future()
        try:
            fail()
        except ZeroDivisionError as error:
            future.set_exception(error)
        lengths = set()
        for _ in range(1000):
            try:
                future.result()
            except ZeroDivisionError as error:
                length, traceback = 0, error.__traceback__
                while traceback is not None:
                    length, traceback = length + 1, traceback.tb_next
                lengths.add(length)
        assert len(lengths) == 1


class TestCallbacks:
    @pytest.mark.parametrize("settle", SETTLERS)
    def test_never_inside_the_settling(
        self, loop: IOLoop, settle: Callable[[Future[Any]], None]
    ) -> None:
        future: Future[Any] = Future()
        called: list[Any] = []
        future.add_done_callback(called.append)
        settle(future)
        assert called == []
        turns(loop)
        assert called == [future]

    def test_on_a_settled_future_also_in_a_later_turn(self, loop: IOLoop) -> None:
        future: Future[Any] = Future()
        future.set_result(1)
        called: list[Any] = []
        future.add_done_callback(called.append)
        assert called == []
        turns(loop)
        assert called == [future]

    def test_waiters_and_callbacks_in_order_of_arrival(self, loop: IOLoop) -> None:
        """Every pattern of tasks and callbacks, since the first waiter has a slot of its own."""
        for pattern in range(2**5):
            future: Future[Any] = Future()
            order: list[int] = []

            @coroutine
            def waits(number: int) -> Any:
                yield future  # noqa: B023
                order.append(number)  # noqa: B023

            for number in range(5):
                if pattern >> number & 1:
                    waits(number)
                else:
                    future.add_done_callback(functools.partial(appends, order, number))
            future.set_result(None)
            assert order == []
            turns(loop)
            assert order == [0, 1, 2, 3, 4], pattern

    def test_remove_takes_all_of_one_callback_and_no_waiter(self, loop: IOLoop) -> None:
        future: Future[Any] = Future()
        called: list[str] = []

        def first(_: Any) -> None:
            called.append("first")

        def second(_: Any) -> None:
            called.append("second")

        @coroutine
        def waits() -> Any:
            yield future
            called.append("task")

        assert future.remove_done_callback(first) == 0
        future.add_done_callback(first)
        waits()
        future.add_done_callback(second)
        future.add_done_callback(first)
        assert future.remove_done_callback(first) == 2
        assert future.remove_done_callback(first) == 0
        future.set_result(None)
        turns(loop)
        assert called == ["task", "second"]

    def test_a_failing_callback_does_not_keep_the_others(
        self, loop: IOLoop, caplog: pytest.LogCaptureFixture
    ) -> None:
        future: Future[Any] = Future()
        called: list[Any] = []
        future.add_done_callback(fails)
        future.add_done_callback(called.append)
        future.set_result(None)
        turns(loop)
        assert called == [future]
        assert [record.name for record in caplog.records] == ["coro.application"]

    def test_keep_the_context_of_the_registration(self, loop: IOLoop) -> None:
        var: contextvars.ContextVar[str] = contextvars.ContextVar("var")
        seen: list[str] = []

        def look(_: Any) -> None:
            seen.append(var.get("unset"))

        future: Future[Any] = Future()
        context = contextvars.copy_context()
        context.run(var.set, "given")
        other = contextvars.copy_context()
        other.run(var.set, "present")
        future.add_done_callback(look, context=context)
        other.run(future.add_done_callback, look)
        future.add_done_callback(look)
        future.set_result(None)
        turns(loop)
        assert seen == ["given", "present", "unset"]


class TestAwaiting:
    def test_by_yield_from_and_await(self, loop: IOLoop) -> None:
        future: Future[int] = Future()

        @coroutine
        def by_yield() -> Any:
            return (yield future)

        @coroutine
        def by_yield_from() -> Any:
            return (yield from future)

        @coroutine
        async def by_await() -> Any:
            return await future

        @coroutine
        def main() -> Any:
            tasks = [by_yield(), by_yield_from(), by_await()]
            future.set_result(7)
            return (yield tasks)

        assert loop.run_sync(main) == [7, 7, 7]

    @pytest.mark.parametrize("settled_before", [True, False])
    def test_an_error_arrives(self, loop: IOLoop, settled_before: bool) -> None:
        future: Future[int] = Future()
        if settled_before:
            future.set_exception(ZeroDivisionError("x"))

        @coroutine
        def waits() -> Any:
            yield future

        task = waits()
        if not settled_before:
            future.set_exception(ZeroDivisionError("x"))
        with pytest.raises(ZeroDivisionError):
            loop.run_sync(lambda: task)

    def test_from_an_asyncio_task(self) -> None:
        """The duck type: asyncio's own task takes the future as it is."""

        class Ready:
            @staticmethod
            def append(item: Any) -> None:
                callback, args, context = item
                asyncio.get_running_loop().call_soon(callback, *args, context=context)

        class Face:
            """As much of an ``IOLoop`` as a future needs."""

            _thread = None
            _ready = Ready

        class OfAsyncio(Future[int]):
            def get_loop(self) -> Any:
                return asyncio.get_running_loop()

        async def main() -> int:
            future = OfAsyncio(loop=Face())
            asyncio.get_running_loop().call_soon(future.set_result, 5)
            return await future

        assert asyncio.run(main()) == 5


class TestLoops:
    def test_made_without_a_loop_belongs_to_the_first_that_waits(self) -> None:
        IOLoop.clear_current()
        future: Future[int] = Future()
        with closing_loop() as loop:

            @coroutine
            def waits() -> Any:
                return (yield future)

            task = waits()
            assert future.get_loop() is loop
            future.set_result(3)
            assert loop.run_sync(lambda: task) == 3

    def test_of_another_loop_is_refused_in_one_line_that_names_both(self, loop: IOLoop) -> None:
        other = virtual_loop(make_current=False)
        future: Future[Any] = Future(loop=other)

        @coroutine
        def waits() -> Any:
            yield future

        with pytest.raises(WrongLoopError) as caught:
            loop.run_sync(waits)
        text = str(caught.value)
        assert repr(other) in text
        assert f"{id(loop):#x}" in text
        assert "\n" not in text
        other.close()

    def test_settling_from_a_foreign_thread_is_refused_and_changes_nothing(
        self, loop: IOLoop
    ) -> None:
        settlers: list[Callable[[Future[Any]], Any]] = [
            lambda future: future.set_result(1),
            lambda future: future.set_exception(ZeroDivisionError()),
            lambda future: future.cancel(),
        ]

        @coroutine
        def main() -> Any:
            for settle in settlers:
                for waited_for in (True, False):
                    future: Future[Any] = Future()
                    if waited_for:
                        future.add_done_callback(lambda _: None)
                    with pytest.raises(WrongThreadError, match="add_callback"):
                        in_thread(lambda: settle(future))  # noqa: B023
                    assert not future.done()
                    future.set_result(2)
                    assert (yield future) == 2

        loop.run_sync(main)

    def test_of_a_loop_that_is_not_running_any_thread_may_settle(self, loop: IOLoop) -> None:
        future: Future[Any] = Future()
        called: list[Any] = []
        future.add_done_callback(called.append)
        in_thread(lambda: future.set_result(1))
        turns(loop)
        assert called == [future]

    def test_slot_gives_the_loop(self, loop: IOLoop) -> None:
        assert slot.loop() is loop
        assert slot.running is None
        assert slot.current is loop


@pytest.mark.usefixtures("no_collector")
class TestNeverRetrieved:
    def test_logged_once_when_the_future_dies(
        self, loop: IOLoop, caplog: pytest.LogCaptureFixture
    ) -> None:
        future: Future[Any] = Future()
        future.set_exception(ZeroDivisionError("lost"))
        assert caplog.records == []
        del future
        (record,) = caplog.records
        assert record.name == "coro.application"
        assert "nobody looked" in record.getMessage()
        assert record.exc_info is not None
        assert record.exc_info[0] is ZeroDivisionError

    def test_a_task_is_named(self, loop: IOLoop, caplog: pytest.LogCaptureFixture) -> None:
        @coroutine
        def fails_at_once() -> Any:
            raise ZeroDivisionError
            yield

        @coroutine
        def fails_late() -> Any:
            yield moment
            raise ZeroDivisionError

        @coroutine
        def fails_without_generator() -> Any:
            raise ZeroDivisionError

        fails_at_once()
        fails_late()
        turns(loop)
        fails_without_generator()
        messages = [record.getMessage() for record in caplog.records]
        assert len(messages) == 3
        for message, name in zip(
            messages, ["fails_at_once", "fails_late", "fails_without_generator"], strict=True
        ):
            assert name in message

    def test_the_log_shows_where_it_came_from(
        self, loop: IOLoop, caplog: pytest.LogCaptureFixture
    ) -> None:
        @coroutine
        def inner_of_all() -> Any:
            yield moment
            raise ZeroDivisionError

        @coroutine
        def outer() -> Any:
            yield inner_of_all()

        outer()
        turns(loop)
        assert "in inner_of_all" in caplog.text
        assert "in outer" in caplog.text
        assert "in _run" not in caplog.text

    @pytest.mark.parametrize("look", ["result", "exception", "yield", "await", "list", "callback"])
    def test_not_logged_when_somebody_looked(
        self, loop: IOLoop, caplog: pytest.LogCaptureFixture, look: str
    ) -> None:
        @coroutine
        def main() -> Any:
            future: Future[Any] = Future()
            future.set_exception(ZeroDivisionError("seen"))
            try:
                if look == "result":
                    future.result()
                elif look == "exception":
                    future.exception()
                elif look == "yield":
                    yield future
                elif look == "list":
                    yield [future]
                elif look == "await":
                    yield awaits(future)
                else:
                    future.add_done_callback(Future.exception)
                    yield moment
                    yield moment
            except ZeroDivisionError:
                pass

        async def awaits(future: Future[Any]) -> None:
            await future

        loop.run_sync(main)
        gc.collect()
        assert caplog.records == []

    def test_a_cancellation_is_not_an_error(
        self, loop: IOLoop, caplog: pytest.LogCaptureFixture
    ) -> None:
        future: Future[Any] = Future()
        future.cancel()
        del future
        assert caplog.records == []

    def test_no_circle_between_future_and_error(self, loop: IOLoop) -> None:
        class Held:
            """Dies at once if nothing circular holds it."""

        def fail(held: Held) -> None:
            raise ZeroDivisionError

        held = Held()
        seen = weakref.ref(held)
        future: Future[Any] = Future()
        try:
            fail(held)
        except ZeroDivisionError as error:
            future.set_exception(error)
        try:
            future.result()
        except ZeroDivisionError:
            pass
        del held, future
        assert seen() is None


class TestChain:
    KINDS: dict[str, Callable[[], Any]] = {
        "coro": Future,
        "concurrent": concurrent.futures.Future,
    }
    PAIRS = [("coro", "coro"), ("coro", "concurrent"), ("concurrent", "coro")]

    @pytest.mark.parametrize("pair", PAIRS)
    @pytest.mark.parametrize("settled_before", [True, False])
    def test_results_errors_and_cancellations_arrive(
        self, loop: IOLoop, pair: tuple[str, str], settled_before: bool
    ) -> None:
        error = ZeroDivisionError("x")
        acts: list[Callable[[Any], Any]] = [
            lambda a: a.set_result(3),
            lambda a: a.set_exception(error),
            lambda a: a.cancel(),
        ]
        for act in acts:
            a, b = (self.KINDS[kind]() for kind in pair)
            if settled_before:
                act(a)
                chain_future(a, b)
            else:
                chain_future(a, b)
                act(a)
            turns(loop, 3)
            assert b.done()
            assert b.cancelled() == a.cancelled()
            if not a.cancelled():
                assert b.exception() is a.exception()
                if a.exception() is None:
                    assert b.result() == 3

    @pytest.mark.parametrize("pair", PAIRS)
    def test_cancelling_the_second_cancels_the_first(
        self, loop: IOLoop, pair: tuple[str, str]
    ) -> None:
        a, b = (self.KINDS[kind]() for kind in pair)
        chain_future(a, b)
        b.cancel()
        turns(loop, 3)
        assert a.cancelled()

    @pytest.mark.parametrize("pair", PAIRS)
    def test_a_second_that_is_settled_stays_as_it_is(
        self, loop: IOLoop, pair: tuple[str, str], caplog: pytest.LogCaptureFixture
    ) -> None:
        a, b = (self.KINDS[kind]() for kind in pair)
        chain_future(a, b)
        b.set_result("own")
        a.set_result("late")
        turns(loop, 3)
        assert b.result() == "own"
        assert caplog.records == []

    def test_a_concurrent_future_settled_in_another_thread(self, loop: IOLoop) -> None:
        source: concurrent.futures.Future[int] = concurrent.futures.Future()
        target: Future[int] = Future()
        chain_future(source, target)
        threads: list[int] = []
        target.add_done_callback(lambda _: threads.append(threading.get_ident()))

        @coroutine
        def main() -> Any:
            thread = threading.Thread(target=source.set_result, args=(4,))
            thread.start()
            result = yield target
            thread.join()
            return result

        assert loop.run_sync(main) == 4
        assert threads == [threading.get_ident()]

    def test_stop_iteration_of_a_thread_settles_too(self, loop: IOLoop) -> None:
        source: concurrent.futures.Future[int] = concurrent.futures.Future()
        target: Future[int] = Future()
        chain_future(source, target)
        source.set_exception(StopIteration())
        turns(loop, 2)
        with pytest.raises(RuntimeError, match="StopIteration"):
            target.result()

    def test_leaves_no_circle(self, loop: IOLoop) -> None:
        gc.collect()
        gc.disable()
        try:
            for pair in self.PAIRS:
                a, b = (self.KINDS[kind]() for kind in pair)
                chain_future(a, b)
                a.set_result(1)
                turns(loop, 3)
                assert b.result() == 1
                del a, b
            assert gc.collect() == 0
        finally:
            gc.enable()


def test_is_future() -> None:
    with closing_loop():
        assert is_future(Future())
        assert is_future(coroutine(lambda: 1)())
    assert is_future(concurrent.futures.Future())
    other = asyncio.new_event_loop()
    assert is_future(other.create_future())
    other.close()
    for thing in (None, 1, [], "x", Future, object()):
        assert not is_future(thing)
