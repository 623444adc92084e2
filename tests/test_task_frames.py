"""The engine: what its frames carry and hold: context, tracebacks, lifetimes."""

from __future__ import annotations

import contextvars
import gc
import traceback
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from coro.errors import BadYieldError, CancelledError
from coro.future import Future
from coro.gen import (
    coroutine,
    moment,
    shield,
    sleep,
    with_timeout,
)
from coro.hooks import Observer
from coro.loop import IOLoop
from coro.task import MAX_DEPTH
from tests.support.virtual import closing_loop, turns


@pytest.fixture
def loop() -> Iterator[IOLoop]:
    with closing_loop() as loop:
        yield loop


class Held:
    """Something a frame holds, to see when it dies."""


@coroutine
def tidy() -> Any:
    yield moment
    yield sleep(1)


async def native(make: Callable[[], Any]) -> Any:
    return await make()


class TestContext:
    var: contextvars.ContextVar[str] = contextvars.ContextVar("var", default="unset")

    def test_all_steps_run_in_one_copy(self, loop: IOLoop) -> None:
        var = self.var

        @coroutine
        def main() -> Any:
            token = var.set("main")
            for thing in (moment, sleep(1), None, tidy(), [tidy(), moment], native(tidy)):
                yield thing
                assert var.get() == "main"
            var.reset(token)
            return var.get()

        outer = var.set("caller")
        assert loop.run_sync(main) == "caller"
        assert var.get() == "caller"
        var.reset(outer)

    def test_the_caller_does_not_see_what_a_coroutine_sets(self, loop: IOLoop) -> None:
        var = self.var

        @coroutine
        def sets(value: str, late: bool) -> Any:
            assert var.get() == "parent"
            if late:
                yield moment
            var.set(value)
            yield moment
            return var.get()

        @coroutine
        def plain_sets() -> None:
            var.set("plain")

        @coroutine
        def main() -> Any:
            var.set("parent")
            values = yield [sets("a", True), sets("b", False), sets("c", True)]
            assert values == ["a", "b", "c"]
            yield plain_sets()
            assert (yield sets("d", False)) == "d"
            return var.get()

        assert loop.run_sync(main) == "parent"

    def test_a_value_set_before_the_first_yield_reaches_what_is_yielded(self, loop: IOLoop) -> None:
        var = self.var

        async def looks() -> str:
            await moment
            return var.get()

        class Awaitable:
            def __await__(self) -> Any:
                yield from moment
                return var.get()

        @coroutine
        def main() -> Any:
            var.set("set")
            seen = [(yield looks())]
            seen += yield [looks(), looks()]
            seen += (yield {"x": looks()}).values()
            seen.append((yield Awaitable()))
            seen.append((yield with_timeout(loop.time() + 5, looks())))
            seen.append((yield shield(looks())))
            return seen

        assert loop.run_sync(main) == ["set"] * 7

    def test_callbacks_timers_and_handlers_keep_it(self, loop: IOLoop) -> None:
        var = self.var
        seen: list[str] = []

        def look(*_: Any) -> None:
            seen.append(var.get())

        @coroutine
        def main() -> Any:
            var.set("set")
            loop.add_callback(look)
            loop.call_later(0, look)
            future: Future[None] = Future()
            future.add_done_callback(look)
            future.set_result(None)
            yield sleep(1)

        loop.run_sync(main)
        assert seen == ["set"] * 3

    def test_a_deep_call_sees_its_caller(self, loop: IOLoop) -> None:
        var = self.var

        @coroutine
        def deep(level: int) -> Any:
            var.set(f"{var.get()}x")
            return (yield deep(level - 1)) if level else len(var.get())

        token = var.set("")
        assert loop.run_sync(lambda: deep(2 * MAX_DEPTH)) == 2 * MAX_DEPTH + 1
        var.reset(token)

    def test_get_context(self, loop: IOLoop) -> None:
        var = self.var

        @coroutine
        def sets() -> Any:
            var.set("inside")
            yield moment

        task = sets()
        assert task.get_context()[var] == "inside"
        turns(loop)


def user_frames(error: BaseException | None) -> list[str]:
    assert error is not None
    return [frame.name for frame in traceback.extract_tb(error.__traceback__)]


class TestTracebacks:
    @pytest.mark.parametrize("late", [True, False])
    def test_across_five_coroutines_exactly_five_frames(self, loop: IOLoop, late: bool) -> None:
        @coroutine
        def five() -> Any:
            if late:
                yield moment
            raise ZeroDivisionError

        @coroutine
        def four() -> Any:
            yield five()

        @coroutine
        def three() -> Any:
            yield four()

        @coroutine
        async def two() -> Any:
            await three()

        @coroutine
        def one() -> Any:
            yield two()

        task = one()
        turns(loop)
        frames = user_frames(task.exception())
        # An ``await`` passes through the ``__await__`` of the future: two frames of two files.
        assert [name for name in frames if name not in ("__await__", "result")] == [
            "one",
            "two",
            "three",
            "four",
            "five",
        ]

    @pytest.mark.parametrize("late", [True, False])
    def test_of_generators_nothing_else(self, loop: IOLoop, late: bool) -> None:
        @coroutine
        def deep(level: int) -> Any:
            if level:
                yield deep(level - 1)
            if late:
                yield moment
            raise ZeroDivisionError

        task = deep(4)
        turns(loop)
        assert user_frames(task.exception()) == ["deep"] * 5

    def test_beyond_the_depth_of_nesting_too(self, loop: IOLoop) -> None:
        @coroutine
        def deep(level: int) -> Any:
            if level:
                yield deep(level - 1)
            raise ZeroDivisionError

        task = deep(2 * MAX_DEPTH)
        turns(loop)
        assert user_frames(task.exception()) == ["deep"] * (2 * MAX_DEPTH + 1)

    def test_of_a_plain_function_only_its_own(self, loop: IOLoop) -> None:
        @coroutine
        def plain() -> Any:
            raise ZeroDivisionError

        assert user_frames(plain().exception()) == ["plain"]

    def test_a_thousand_raises_do_not_lengthen_it(self, loop: IOLoop) -> None:
        @coroutine
        def fails() -> Any:
            yield moment
            raise ZeroDivisionError

        @coroutine
        def retries() -> Any:
            task = fails()
            lengths = set()
            for _ in range(1000):
                try:
                    yield task
                except ZeroDivisionError as error:
                    lengths.add(tuple(user_frames(error)))
            return lengths

        assert loop.run_sync(retries) == {("retries", "fails")}

    def test_waiters_of_one_failure_do_not_lengthen_each_others(self, loop: IOLoop) -> None:
        future: Future[Any] = Future()
        found: list[list[str]] = []

        @coroutine
        def waits() -> Any:
            try:
                yield future
            except ZeroDivisionError as error:
                found.append(user_frames(error))

        tasks = [waits() for _ in range(100)]
        future.set_exception(ZeroDivisionError())
        loop.run_sync(lambda: tasks)
        assert found == [["waits"]] * 100

    def test_no_foreign_context(self, loop: IOLoop) -> None:
        @coroutine
        def fails(kind: type[Exception], late: bool) -> Any:
            if late:
                yield moment
            raise kind

        @coroutine
        def main() -> Any:
            contexts = []
            for late in (True, False):
                for kind in (ZeroDivisionError, KeyError, ValueError):
                    try:
                        yield fails(kind, late)
                    except Exception as error:
                        contexts.append(error.__context__)
                try:
                    yield 5
                except BadYieldError as error:
                    contexts.append(error.__context__)
                try:
                    yield [fails(ZeroDivisionError, late), moment]
                except ZeroDivisionError as error:
                    contexts.append(error.__context__)
            return contexts

        assert loop.run_sync(main) == [None] * 10

    def test_a_context_of_the_users_own_stays(self, loop: IOLoop) -> None:
        @coroutine
        def main() -> Any:
            try:
                try:
                    yield moment
                    raise ZeroDivisionError
                except ZeroDivisionError:
                    yield moment
                    raise KeyError  # noqa: B904
            except KeyError as error:
                return error.__context__

        assert isinstance(loop.run_sync(main), ZeroDivisionError)

    def test_a_refused_yield_shows_where_it_was(self, loop: IOLoop) -> None:
        @coroutine
        def main() -> Any:
            yield 5

        task = main()
        frames = user_frames(task.exception())
        assert frames[0] == "main"
        assert "_run" not in frames


class TestLifetimes:
    @pytest.mark.parametrize("late", [True, False])
    @pytest.mark.parametrize("how", ["ok", "fails", "cancelled", "list", "native", "plain"])
    def test_ten_thousand_nests_leave_no_circle(
        self, loop: IOLoop, no_collector: None, late: bool, how: str
    ) -> None:
        @coroutine
        def inner() -> Any:
            held = Held()
            if late:
                yield moment
            if how == "cancelled":
                raise CancelledError
            if how != "ok":
                raise ZeroDivisionError
            return held

        @coroutine
        def plain() -> Any:
            raise ZeroDivisionError

        @coroutine
        async def native() -> Any:
            await inner()

        @coroutine
        def middle() -> Any:
            if how == "list":
                yield [inner(), moment]
            elif how == "native":
                yield native()
            elif how == "plain":
                yield plain()
            else:
                yield inner()

        @coroutine
        def main() -> Any:
            for _ in range(10_000):
                try:
                    yield middle()
                except (ZeroDivisionError, CancelledError):
                    pass

        loop.run_sync(main)
        assert gc.collect() == 0

    def test_ten_thousand_cancelled_from_outside_leave_no_circle(
        self, loop: IOLoop, no_collector: None
    ) -> None:
        @coroutine
        def inner() -> Any:
            try:
                yield sleep(100)
            finally:
                yield moment

        @coroutine
        def outer(how: int) -> Any:
            yield [inner(), {"x": inner()}] if how else inner()

        @coroutine
        def main() -> Any:
            for number in range(10_000):
                task = outer(number % 2)
                task.cancel()
                try:
                    yield task
                except CancelledError:
                    pass

        loop.run_sync(main)
        assert gc.collect() == 0

    @pytest.mark.parametrize("late", [True, False])
    @pytest.mark.parametrize("kind", [ZeroDivisionError, CancelledError, None])
    def test_locals_of_an_ended_inner_coroutine_die_at_once(
        self, loop: IOLoop, no_collector: None, late: bool, kind: type[BaseException] | None
    ) -> None:
        seen: list[weakref.ref[Held]] = []

        @coroutine
        def inner() -> Any:
            held = Held()
            seen.append(weakref.ref(held))
            if late:
                yield moment
            if kind is not None:
                raise kind

        @coroutine
        def middle() -> Any:
            yield inner()

        @coroutine
        def main() -> Any:
            try:
                yield middle()
            except BaseException as error:
                assert type(error) is kind
            yield moment
            return seen[0]()

        assert loop.run_sync(main) is None

    def test_of_a_cancelled_one_too(self, loop: IOLoop, no_collector: None) -> None:
        seen: list[weakref.ref[Held]] = []

        @coroutine
        def inner() -> Any:
            held = Held()
            seen.append(weakref.ref(held))
            yield sleep(100)

        task = inner()
        task.cancel()
        turns(loop)
        assert task.cancelled()
        del task
        assert seen[0]() is None

    def test_of_one_that_was_interrupted_while_observed(
        self, loop: IOLoop, no_collector: None
    ) -> None:
        seen: list[weakref.ref[Held]] = []

        @coroutine
        def main() -> Any:
            held = Held()
            seen.append(weakref.ref(held))
            raise KeyboardInterrupt
            yield

        loop.add_observer(Observer())
        with pytest.raises(KeyboardInterrupt):
            main()
        assert seen[0]() is None

    @pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
    def test_of_one_that_was_interrupted_after_bare_yields(
        self, loop: IOLoop, no_collector: None, kind: type[BaseException]
    ) -> None:
        seen: list[weakref.ref[Held]] = []

        @coroutine
        def main() -> Any:
            held = Held()
            seen.append(weakref.ref(held))
            yield
            yield
            raise kind

        task = main()
        with pytest.raises(kind):
            turns(loop, 3)
        assert type(task.exception()) is kind
        del task
        assert seen[0]() is None

    def test_the_loop_holds_running_tasks(self, loop: IOLoop) -> None:
        ended: list[int] = []

        @coroutine
        def forgotten(number: int) -> Any:
            future: Future[None] = Future()
            loop.call_later(1, future.set_result, None)
            yield future
            ended.append(number)

        @coroutine
        def waits_for_nothing_else_held() -> Any:
            yield Future()

        for number in range(10):
            forgotten(number)
        reference = weakref.ref(waits_for_nothing_else_held())
        gc.collect()
        loop.run_sync(lambda: sleep(2))
        gc.collect()
        assert ended == list(range(10))
        assert reference() is not None

    def test_the_loop_lets_ended_tasks_go(self, loop: IOLoop, no_collector: None) -> None:
        @coroutine
        def ends() -> Any:
            yield sleep(1)

        reference = weakref.ref(ends())
        assert reference() is not None
        loop.run_sync(lambda: sleep(2))
        assert reference() is None

    def test_a_frame_that_keeps_its_own_failed_future_is_the_users_circle(
        self, loop: IOLoop, no_collector: None
    ) -> None:
        """The detector itself is tested: here it must find something."""

        @coroutine
        def main() -> Any:
            future: Future[Any] = Future()
            future.set_exception(ZeroDivisionError())
            yield future

        with pytest.raises(ZeroDivisionError):
            loop.run_sync(main)
        assert gc.collect() > 0
