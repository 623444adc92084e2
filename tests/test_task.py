"""The engine: outcomes, order, depth, fairness, introspection; see also its sister files."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import gc
import io
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from coro import task as engine
from coro.errors import BadYieldError, CancelledError, InvalidStateError, WrongLoopError
from coro.future import Future
from coro.gen import (
    Return,
    Task,
    all_tasks,
    convert_yielded,
    coroutine,
    current_task,
    is_coroutine_function,
    moment,
    shield,
    sleep,
    with_timeout,
)
from coro.loop import IOLoop
from coro.task import MAX_CONTINUATIONS, MAX_DEPTH
from tests.support.virtual import closing_loop, turns, virtual_loop


@pytest.fixture
def loop() -> Iterator[IOLoop]:
    with closing_loop() as loop:
        yield loop


def nothing_left(loop: IOLoop) -> bool:
    counts = loop.statistics()
    return counts["tasks"] == counts["timers"] == 0


def bare() -> Any:
    yield moment


@coroutine
def decorated() -> Any:
    yield moment


async def native() -> None:
    pass


async def several() -> Any:
    yield 1


class TestOutcomes:
    def test_values(self, loop: IOLoop) -> None:
        @coroutine
        def returns() -> Any:
            yield moment
            return 1

        @coroutine
        def raises_return() -> Any:
            yield moment
            raise Return(2)

        @coroutine
        def returns_at_once() -> Any:
            return 3
            yield

        @coroutine
        def raises_return_at_once() -> Any:
            raise Return(4)
            yield

        @coroutine
        def plain() -> int:
            return 5

        @coroutine
        def plain_raises_return() -> Any:
            raise Return(6)

        @coroutine
        async def native() -> int:
            await moment
            return 7

        @coroutine
        def raises_empty_return() -> Any:
            raise Return
            yield

        @coroutine
        def falls_off() -> Any:
            yield moment

        @coroutine
        def hands_a_native_out() -> Any:
            async def inner() -> int:
                return 8

            return inner()

        functions = [
            returns,
            raises_return,
            returns_at_once,
            raises_return_at_once,
            plain,
            plain_raises_return,
            native,
            hands_a_native_out,
        ]
        assert [loop.run_sync(function) for function in functions] == list(range(1, 9))
        assert loop.run_sync(raises_empty_return) is None
        assert loop.run_sync(falls_off) is None

    def test_nothing_escapes_the_call(self, loop: IOLoop) -> None:
        @coroutine
        def before_the_first_yield() -> Any:
            raise ZeroDivisionError
            yield

        @coroutine
        def without_generator() -> Any:
            raise ZeroDivisionError

        @coroutine
        async def native() -> None:
            raise ZeroDivisionError

        for function in (before_the_first_yield, without_generator, native):
            task = function()
            assert task.done()
            assert isinstance(task.exception(), ZeroDivisionError)

    def test_wrong_arguments_end_in_the_task_as_well(self, loop: IOLoop) -> None:
        @coroutine
        def takes_one(x: Any) -> Any:
            yield x

        task = takes_one()  # type: ignore[call-arg]
        assert isinstance(task.exception(), TypeError)

    def test_stop_iteration_of_a_plain_function_reaches_whoever_waits(self, loop: IOLoop) -> None:
        @coroutine
        def stops() -> Any:
            raise StopIteration(5)

        @coroutine
        def waits(how: str) -> Any:
            yield stops() if how == "alone" else [stops()]

        for how in ("alone", "list"):
            with pytest.raises(RuntimeError, match="StopIteration"):
                loop.run_sync(lambda: waits(how))  # noqa: B023

    def test_is_a_future_settled_only_by_its_coroutine(self, loop: IOLoop) -> None:
        @coroutine
        def waits() -> Any:
            yield sleep(1)

        task = waits()
        assert isinstance(task, Task)
        assert isinstance(task, Future)
        with pytest.raises(RuntimeError, match="set_result"):
            task.set_result(1)
        with pytest.raises(RuntimeError, match="set_exception"):
            task.set_exception(ValueError())
        with pytest.raises(InvalidStateError):
            task.result()
        loop.run_sync(lambda: task)

    def test_an_error_may_be_caught_at_the_yield(self, loop: IOLoop) -> None:
        @coroutine
        def fails(late: bool) -> Any:
            if late:
                yield moment
            raise ZeroDivisionError

        @coroutine
        def main() -> Any:
            caught = 0
            for late in (True, False):
                try:
                    yield fails(late)
                except ZeroDivisionError:
                    caught += 1
            return caught

        assert loop.run_sync(main) == 2

    @pytest.mark.parametrize(
        ("thing", "meant"),
        [
            (bare, "@coroutine before def bare(...)"),
            (lambda: bare, "yield bare(...), and @coroutine before def bare(...)"),
            (lambda: decorated, "decorated was not called, write: yield decorated(...)"),
            (lambda: native, "native was not called, write: yield native(...)"),
            (lambda: (sleep(0) for _ in range(2)), "yield [... for ... in ...]"),
            (several, "async for x in several(...)"),
            (lambda: (moment, moment), "yield [a, b]"),
            (lambda: {1, 2}, "yield [a, b]"),
            (lambda: 5, "yield sleep(5)"),
            (lambda: 0.5, "yield sleep(0.5)"),
            (lambda: True, "return"),
            (lambda: "text", "return"),
            (lambda: Future, "yield Future(...)"),
            (object, "nothing to wait for"),
        ],
    )
    @pytest.mark.parametrize("late", [False, True])
    @pytest.mark.parametrize("listed", [False, True])
    def test_what_cannot_be_yielded_raises_at_the_yield_and_says_what_was_meant(
        self, loop: IOLoop, thing: Any, meant: str, late: bool, listed: bool
    ) -> None:
        @coroutine
        def main() -> Any:
            if late:
                yield moment
            try:
                yield [thing()] if listed else thing()  # this line
            except BadYieldError as error:
                return str(error), traceback.extract_tb(error.__traceback__)

        text, frames = loop.run_sync(main)
        assert text.startswith("yielded unknown object ")
        assert meant in text
        assert [frame.line for frame in frames] == [
            "yield [thing()] if listed else thing()  # this line"
        ]

    def test_of_a_long_thing_the_beginning_is_shown(self, loop: IOLoop) -> None:
        @coroutine
        def main() -> Any:
            yield "x" * 10_000

        with pytest.raises(BadYieldError) as caught:
            loop.run_sync(main)
        assert len(str(caught.value)) < 300

    def test_yield_of_itself_raises(self, loop: IOLoop) -> None:
        @coroutine
        def main() -> Any:
            yield moment
            with pytest.raises(RuntimeError, match="itself"):
                yield current_task()

        loop.run_sync(main)

    def test_one_future_may_be_waited_for_by_many_and_again(self, loop: IOLoop) -> None:
        future: Future[int] = Future()

        @coroutine
        def waits() -> Any:
            first = yield future
            second = yield future
            return first + second

        @coroutine
        def main() -> Any:
            tasks = [waits() for _ in range(5)]
            future.set_result(4)
            return (yield tasks)

        assert loop.run_sync(main) == [8] * 5

    def test_asyncio_sleep_zero_is_a_bare_yield(self, loop: IOLoop) -> None:
        @coroutine
        async def main() -> float:
            before = loop.statistics()["turns"]
            await asyncio.sleep(0)
            return loop.statistics()["turns"] - before

        assert loop.run_sync(main) == 1

    def test_concurrent_futures(self, loop: IOLoop, no_collector: None) -> None:
        @coroutine
        def main() -> Any:
            done: concurrent.futures.Future[int] = concurrent.futures.Future()
            done.set_result(1)
            later: concurrent.futures.Future[int] = concurrent.futures.Future()
            loop.add_callback(later.set_result, 2)
            failing: concurrent.futures.Future[int] = concurrent.futures.Future()
            loop.add_callback(failing.set_exception, ZeroDivisionError())
            with pytest.raises(ZeroDivisionError):
                yield failing
            del failing
            return [(yield done), (yield later)]

        assert loop.run_sync(main) == [1, 2]
        assert gc.collect() == 0

    def test_awaitables_of_other_kinds(self, loop: IOLoop) -> None:
        class Awaitable:
            def __await__(self) -> Any:
                yield from moment
                return (yield from sleep(1))

        @coroutine
        def main() -> Any:
            return (yield Awaitable())

        assert loop.run_sync(main) is None

    def test_types_of_ones_own_can_be_registered(self, loop: IOLoop) -> None:
        class Own:
            pass

        class Bad:
            pass

        @convert_yielded.register(Own)
        def _(own: Own) -> Future[Any]:
            future: Future[Any] = Future()
            future.set_result("own")
            return future

        @convert_yielded.register(Bad)
        def _(bad: Bad) -> Future[Any]:
            raise ZeroDivisionError

        @coroutine
        def main() -> Any:
            with pytest.raises(ZeroDivisionError):
                yield Bad()
            return (yield Own())

        assert loop.run_sync(main) == "own"


class TestOrder:
    def test_the_first_step_runs_in_the_call(self, loop: IOLoop) -> None:
        order: list[str] = []

        @coroutine
        def body() -> Any:
            order.append("first step")
            yield moment
            order.append("second step")

        body()
        order.append("after the call")
        turns(loop)
        assert order == ["first step", "after the call", "second step"]

    @pytest.mark.parametrize(
        ("first", "second", "expected"),
        [
            ("done", "done", "aaaaabbbbb"),
            ("moment", "moment", "ababababab"),
            ("none", "moment", "ababababab"),
            ("moment", "done", "abbbbbaaaa"),
            ("done", "moment", "aaaaabbbbb"),
            ("child", "child", "aaaaabbbbb"),
        ],
    )
    def test_done_things_go_on_at_once_and_moments_take_a_turn(
        self, loop: IOLoop, first: str, second: str, expected: str
    ) -> None:
        order: list[str] = []

        @coroutine
        def child() -> Any:
            return None
            yield

        def thing(kind: str) -> Any:
            if kind == "done":
                future: Future[None] = Future()
                future.set_result(None)
                return future
            return {"moment": moment, "none": None, "child": child()}[kind]

        @coroutine
        def repeats(name: str, kind: str) -> Any:
            for _ in range(5):
                order.append(name)
                yield thing(kind)

        loop.run_sync(lambda: [repeats("a", first), repeats("b", second)])
        assert "".join(order) == expected

    @pytest.mark.parametrize("thing", [moment, None])
    def test_a_moment_costs_exactly_one_turn(self, loop: IOLoop, thing: Any) -> None:
        @coroutine
        def main() -> Any:
            for _ in range(10):
                before = loop.statistics()["turns"]
                yield thing
                assert loop.statistics()["turns"] == before + 1

        loop.run_sync(main)

    def test_a_sole_waiting_parent_is_resumed_in_the_same_step(self, loop: IOLoop) -> None:
        order: list[str] = []

        @coroutine
        def child() -> Any:
            yield moment
            loop.add_callback(order.append, "callback")
            order.append("child")

        @coroutine
        def parent() -> Any:
            yield child()
            order.append("parent")

        @coroutine
        def grandparent() -> Any:
            yield parent()
            order.append("grandparent")

        loop.run_sync(grandparent)
        assert order[:3] == ["child", "parent", "grandparent"]

    def test_with_more_waiters_all_go_through_the_queue_in_order(self, loop: IOLoop) -> None:
        order: list[Any] = []

        @coroutine
        def child() -> Any:
            yield moment
            loop.add_callback(order.append, "callback")
            order.append("child")

        @coroutine
        def parent(name: str, of: Task[Any]) -> Any:
            yield of
            order.append(name)

        shared = child()
        parents = [parent("first", shared), parent("second", shared)]
        shared.add_done_callback(lambda _: order.append("done callback"))
        loop.run_sync(lambda: parents)
        assert order[:5] == ["child", "callback", "first", "second", "done callback"]

    def test_a_task_awaited_in_its_own_first_step_by_one_it_calls(self, loop: IOLoop) -> None:
        order: list[str] = []

        @coroutine
        def waits_for(task: Any) -> Any:
            yield task
            order.append("waiter")

        @coroutine
        def first() -> Any:
            waits_for(current_task())
            order.append("first")
            return None
            yield

        task = first()
        assert task.done()
        assert order == ["first", "waiter"]
        assert current_task() is None


class TestDepth:
    @pytest.mark.parametrize("suspends", [True, False])
    @pytest.mark.parametrize("fails", [True, False])
    def test_ten_thousand_levels(self, loop: IOLoop, suspends: bool, fails: bool) -> None:
        @coroutine
        def deep(level: int) -> Any:
            if level:
                return (yield deep(level - 1)) + 1
            if suspends:
                yield moment
            if fails:
                raise ZeroDivisionError
            return 0

        if fails:
            with pytest.raises(ZeroDivisionError):
                loop.run_sync(lambda: deep(10_000))
        else:
            assert loop.run_sync(lambda: deep(10_000)) == 10_000
        assert nothing_left(loop)

    def test_ten_thousand_levels_of_lists(self, loop: IOLoop) -> None:
        @coroutine
        def deep(level: int) -> Any:
            if not level:
                return 0
            (below,) = yield [deep(level - 1)]
            return below + 1

        assert loop.run_sync(lambda: deep(10_000)) == 10_000

    def test_ten_thousand_levels_of_awaits_of_decorated_natives(self, loop: IOLoop) -> None:
        @coroutine
        async def deep(level: int) -> int:
            return await deep(level - 1) + 1 if level else 0

        assert loop.run_sync(lambda: deep(10_000)) == 10_000

    def test_calls_nest_to_a_depth_and_start_later_beyond_it(self, loop: IOLoop) -> None:
        started: list[int] = []
        tasks: list[Task[Any]] = []

        @coroutine
        def nests(level: int) -> Any:
            started.append(level)
            if level < MAX_DEPTH + 5:
                tasks.append(nests(level + 1))
            return None
            yield

        tasks.append(nests(1))
        assert started == list(range(1, MAX_DEPTH + 1))
        (unstarted,) = [task for task in tasks if not task.done()]
        assert not unstarted.cancelled()
        turns(loop)
        assert started == list(range(1, MAX_DEPTH + 6))
        assert all(task.done() for task in tasks)

    def test_an_unstarted_one_starts_when_it_is_yielded(self, loop: IOLoop) -> None:
        order: list[str] = []

        @coroutine
        def innermost() -> Any:
            order.append("started")
            return 1
            yield

        @coroutine
        def nests(level: int) -> Any:
            if level < MAX_DEPTH:
                return (yield nests(level + 1))
            task = innermost()
            order.append("called")
            result = yield task
            order.append("resumed")
            return result

        task = nests(1)
        assert order == ["called", "started", "resumed"]
        assert task.result() == 1
        turns(loop, 2)
        assert order == ["called", "started", "resumed"]

    def test_an_unstarted_one_that_is_cancelled_never_starts(self, loop: IOLoop) -> None:
        order: list[str] = []

        @coroutine
        def innermost() -> Any:
            order.append("started")
            yield moment

        @coroutine
        def nests(level: int) -> Any:
            if level < MAX_DEPTH:
                nests(level + 1)
            else:
                found.append(innermost())
            return None
            yield

        found: list[Task[Any]] = []
        nests(1)
        assert found[0].cancel() is True
        turns(loop, 2)
        assert found[0].cancelled()
        assert order == []

    def test_a_wide_and_deep_tree(self, loop: IOLoop) -> None:
        @coroutine
        def tree(level: int) -> Any:
            if not level:
                yield moment
                return 1
            return sum((yield [tree(level - 1), tree(level - 1), tree(level - 1)]))

        assert loop.run_sync(lambda: tree(7)) == 3**7

    def test_a_dropped_chain_is_freed_without_recursion(self, loop: IOLoop) -> None:
        @coroutine
        def deep(level: int) -> Any:
            yield deep(level - 1) if level else Future()

        deep(10_000)
        turns(loop)
        assert loop.statistics()["tasks"] == 10_001
        loop.close()
        gc.collect()
        left = [each for each in gc.get_objects() if type(each) is Task and not each.done()]
        assert not [each for each in left if each.get_loop() is loop]

    def test_a_bare_yield_waits_for_nothing(self, loop: IOLoop) -> None:
        @coroutine
        def main() -> Any:
            yield
            yield

        task = main()
        for _ in range(2):
            assert "waits for" not in repr(task)
            assert task._fut_waiter is None
            turns(loop)
        assert task.done()

    def test_repr_of_a_chain_is_one_short_line(self, loop: IOLoop) -> None:
        @coroutine
        def deep(level: int) -> Any:
            yield deep(level - 1) if level else sleep(5)

        task = deep(10_000)
        turns(loop)
        text = repr(task)
        assert "pending" in text
        assert "waits for" in text
        assert len(text) < 300
        assert "\n" not in text
        loop.run_sync(lambda: task)
        assert "done: None" in repr(task)


class TestFairness:
    def test_a_million_finished_futures_starve_nobody(self, loop: IOLoop) -> None:
        """By counting: the timer fires after as many yields as one step may take, and no more."""
        done: Future[None] = Future()
        done.set_result(None)
        yields = 0
        fired_at: list[int] = []

        @coroutine
        def busy() -> Any:
            nonlocal yields
            for _ in range(1_000_000):
                yield done
                yields += 1

        @coroutine
        def main() -> Any:
            loop.call_later(0.0, lambda: fired_at.append(yields))
            yield busy()

        before = loop.statistics()["turns"]
        loop.run_sync(main)
        assert yields == 1_000_000
        assert 0 < fired_at[0] <= 2 * MAX_CONTINUATIONS
        assert loop.statistics()["turns"] - before >= 1_000_000 // MAX_CONTINUATIONS

    def test_children_that_return_at_once_count_too(self, loop: IOLoop) -> None:
        calls = 0
        fired_at: list[int] = []

        @coroutine
        def child() -> Any:
            nonlocal calls
            calls += 1
            return None
            yield

        @coroutine
        def main() -> Any:
            loop.call_later(0, lambda: fired_at.append(calls))
            for _ in range(10_000):
                yield child()

        loop.run_sync(main)
        assert calls == 10_000
        assert fired_at[0] <= 2 * MAX_CONTINUATIONS + 1

    def test_unwinding_a_long_chain_counts_too(self, loop: IOLoop) -> None:
        ended = 0
        fired_at: list[int] = []

        @coroutine
        def deep(level: int) -> Any:
            nonlocal ended
            if level:
                yield deep(level - 1)
            else:
                yield moment
                loop.add_callback(lambda: fired_at.append(ended))
            ended += 1

        loop.run_sync(lambda: deep(10_000))
        assert ended == 10_001
        assert fired_at[0] <= 2 * MAX_CONTINUATIONS + 1

    def test_an_error_at_the_bound_is_not_lost_when_a_cancellation_overtakes_it(
        self, loop: IOLoop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(engine, "MAX_CONTINUATIONS", 1)

        @coroutine
        def child() -> Any:
            yield moment
            raise ZeroDivisionError

        @coroutine
        def parent() -> Any:
            yield child()

        task = parent()
        turns(loop)
        assert not task.done()
        task.cancel()
        turns(loop)
        assert task.cancelled()
        del task
        assert "ZeroDivisionError" in caplog.text

    def test_such_an_error_that_arrives_is_not_logged(
        self, loop: IOLoop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(engine, "MAX_CONTINUATIONS", 1)

        @coroutine
        def child() -> Any:
            yield moment
            raise ZeroDivisionError

        @coroutine
        def parent() -> Any:
            with pytest.raises(ZeroDivisionError):
                yield child()

        loop.run_sync(parent)
        assert caplog.records == []


class TestIntrospection:
    def test_the_wrapper_looks_like_the_function(self) -> None:
        def documented(x: int) -> Any:
            """What it does."""
            yield x

        wrapper = coroutine(documented)
        assert wrapper.__wrapped__ is documented  # type: ignore[attr-defined]
        assert wrapper.__name__ == "documented"
        assert wrapper.__doc__ == "What it does."
        assert wrapper.__module__ == __name__
        assert is_coroutine_function(wrapper)
        assert not is_coroutine_function(documented)
        assert not is_coroutine_function(None)

    def test_decorates_callables_of_all_kinds(self, loop: IOLoop) -> None:
        class Various:
            def __call__(self, x: int) -> int:
                return x + 1

            @coroutine
            def method(self, x: int) -> Any:
                yield moment
                return x + 2

            @classmethod
            @coroutine
            def of_class(cls, x: int) -> Any:
                yield moment
                return x + 3

            @staticmethod
            @coroutine
            def static(x: int) -> Any:
                yield moment
                return x + 4

        one = Various()
        assert loop.run_sync(coroutine(functools.partial(one, 0))) == 1
        assert loop.run_sync(lambda: one.method(0)) == 2
        assert loop.run_sync(lambda: one.of_class(0)) == 3
        assert loop.run_sync(lambda: one.static(0)) == 4

    def test_names(self, loop: IOLoop) -> None:
        @coroutine
        def named() -> Any:
            yield sleep(1)

        task = named()
        assert task.get_name().endswith("named")
        assert task.get_coro().__name__ == "named"
        task.set_name("other")
        assert task.get_name() == "other"
        assert repr(task).startswith("<Task other pending, waits for <_Sleep sleep until ")
        loop.run_sync(lambda: task)
        assert repr(task) == "<Task other done: None>"

    def test_repr_of_one_that_is_to_end(self, loop: IOLoop) -> None:
        @coroutine
        def persistent() -> Any:
            try:
                yield Future()
            except CancelledError:
                yield Future()

        task = persistent()
        task.cancel()
        assert " cancelling, waits for " in repr(task)
        turns(loop)
        assert " cancelling, waits for " in repr(task)
        task.uncancel()
        assert " pending, waits for " in repr(task)

    @pytest.mark.parametrize("native", [False, True])
    def test_stacks(self, loop: IOLoop, native: bool) -> None:
        gate: Future[Any] = Future()

        async def waits_natively() -> Any:
            return await gate

        @coroutine
        def waits() -> Any:
            yield gate

        @coroutine
        def outer() -> Any:
            yield task

        task = convert_yielded(waits_natively()) if native else waits()
        assert isinstance(task, Task)
        above = outer()
        name = "waits_natively" if native else "waits"
        assert [frame.f_code.co_name for frame in task.get_stack()] == [name]
        assert task.get_stack(limit=0) == []
        text = io.StringIO()
        task.print_stack(file=text)
        assert text.getvalue().startswith(f"Stack of <Task {task.get_name()} pending")
        assert f'{__file__}", line' in text.getvalue()
        gate.set_exception(ZeroDivisionError())
        turns(loop)
        names = [frame.f_code.co_name for frame in above.get_stack()]
        assert names[:2] == ["outer", name]
        assert isinstance(above.exception(), ZeroDivisionError)
        assert above.get_stack(limit=1) == above.get_stack()[:1]

    def test_a_stack_of_one_that_is_done(self, loop: IOLoop) -> None:
        @coroutine
        def at_once() -> Any:
            return 1
            yield

        assert at_once().get_stack() == []

    def test_the_stack_of_one_that_runs(self, loop: IOLoop) -> None:
        @coroutine
        def runs() -> Any:
            task = current_task()
            assert task is not None
            return [frame.f_code.co_name for frame in task.get_stack(limit=2)]
            yield

        assert loop.run_sync(runs)[-1] == "runs"

    def test_a_callback_is_no_argument(self, loop: IOLoop) -> None:
        @coroutine
        def modern(number: int) -> Any:
            yield number

        @coroutine
        def with_one_of_its_own(callback: Any) -> Any:
            return callback
            yield

        with pytest.raises(TypeError, match=r"write: yield modern\(\.\.\.\)"):
            loop.run_sync(lambda: modern(1, callback=print))  # type: ignore[call-arg]
        assert loop.run_sync(lambda: with_one_of_its_own(callback=print)) is print

    def test_current_task(self, loop: IOLoop) -> None:
        seen: list[Any] = []

        @coroutine
        def child() -> Any:
            seen.append(current_task())
            yield moment
            seen.append(current_task())

        @coroutine
        def parent() -> Any:
            seen.append(current_task())
            task = child()
            seen.append(current_task())
            yield task
            seen.append(current_task())
            return task

        assert current_task() is None
        task = parent()
        assert current_task() is None
        loop.add_callback(lambda: seen.append(current_task()))
        turns(loop)
        inner = task.result()
        assert seen == [task, inner, task, inner, task, None]

    def test_current_task_without_any_loop(self) -> None:
        IOLoop.clear_current()
        assert current_task() is None
        assert all_tasks() == set()

    def test_all_tasks(self, loop: IOLoop) -> None:
        @coroutine
        def waits() -> Any:
            yield sleep(1)

        @coroutine
        def main() -> Any:
            tasks = {waits(), waits()}
            assert all_tasks() == {*tasks, current_task()}
            yield moment
            assert all_tasks() == {*tasks, current_task()}
            yield list(tasks)
            assert all_tasks() == {current_task()}

        loop.run_sync(main)
        assert all_tasks() == set()


class TestLoops:
    def test_a_task_of_another_loop_is_refused(self, loop: IOLoop) -> None:
        other = virtual_loop()

        @coroutine
        def waits() -> Any:
            yield Future()

        foreign = waits()
        things: list[Callable[[], Any]] = [
            lambda: foreign,
            lambda: [foreign],
            lambda: {"x": foreign},
            lambda: shield(foreign),
            lambda: with_timeout(5, foreign),
        ]

        @coroutine
        def main(make: Callable[[], Any]) -> Any:
            yield make()

        for make in things:
            with pytest.raises(WrongLoopError) as caught:
                loop.run_sync(lambda: main(make))  # noqa: B023
            assert f"{id(loop):#x}" in str(caught.value)
            assert f"{id(other):#x}" in str(caught.value)
            assert "\n" not in str(caught.value)
        assert not foreign.done()
        other.close()

    def test_a_call_outside_of_a_running_loop_belongs_to_the_current_one(
        self, loop: IOLoop
    ) -> None:
        @coroutine
        def waits() -> Any:
            yield moment
            return 1

        task = waits()
        assert task.get_loop() is loop
        assert loop.run_sync(lambda: task) == 1


def test_moment_belongs_to_no_loop() -> None:
    for _ in range(2):
        with closing_loop() as loop:
            assert loop.run_sync(lambda: moment) is None
            loop.add_callback(lambda: moment)
            turns(loop, 2)
