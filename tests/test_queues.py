"""``Queue``, ``PriorityQueue``, ``LifoQueue``, on a clock that leaps."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import coro
from coro.errors import WrongThreadError
from coro.gen import coroutine, current_task, sleep, timeout, with_timeout
from coro.loop import IOLoop
from coro.queues import LifoQueue, PriorityQueue, Queue, QueueEmpty, QueueFull
from tests.support.races import ORDERS, WAYS, came, outcome, race
from tests.support.virtual import closing_loop, turns

SECOND = timedelta(seconds=1)

KINDS = [Queue, PriorityQueue, LifoQueue]


@pytest.fixture
def loop() -> Iterator[IOLoop]:
    with closing_loop() as loop:
        yield loop


@coroutine
def wait_for(future: Any) -> Any:
    return (yield future)


def filled(*items: Any, kind: Any = Queue, maxsize: int = 0) -> Any:
    queue = kind(maxsize)
    for item in items:
        queue.put_nowait(item)
    return queue


def drain(queue: Any) -> list[Any]:
    items = []
    while True:
        try:
            items.append(queue.get_nowait())
        except QueueEmpty:
            return items


class TestShape:
    def test_repr_and_str(self, loop: IOLoop) -> None:
        queue: Queue[Any] = Queue(maxsize=1)
        assert str(queue) == "<Queue maxsize=1>"
        assert repr(queue) == f"<Queue at {hex(id(queue))} maxsize=1>"
        queue.get()
        assert str(queue) == "<Queue maxsize=1 getters[1]>"
        for _ in range(3):
            queue.put(None)
        assert str(queue) == "<Queue maxsize=1 queue=deque([None]) putters[1] tasks=2>"
        assert str(filled(1, kind=LifoQueue)) == "<LifoQueue maxsize=0 queue=[1] tasks=1>"

    def test_maxsize(self, loop: IOLoop) -> None:
        with pytest.raises(TypeError, match="maxsize can't be None"):
            Queue(maxsize=None)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="maxsize can't be negative"):
            Queue(maxsize=-1)
        queue: Queue[int] = Queue(maxsize=2)
        assert (queue.empty(), queue.full(), queue.maxsize, queue.qsize()) == (True, False, 2, 0)
        assert queue.put(0).done()
        assert queue.put(1).done()
        assert (queue.empty(), queue.full(), queue.qsize()) == (False, True, 2)
        third = queue.put(2)
        assert not third.done()
        assert queue.get().result() == 0
        assert third.done()
        assert queue.full()

    def test_a_float_is_rounded_up(self, loop: IOLoop) -> None:
        queue: Queue[int] = Queue(maxsize=1.3)  # type: ignore[arg-type]
        queue.put_nowait(0)
        assert not queue.full()
        queue.put_nowait(1)
        assert queue.full()
        with pytest.raises(QueueFull):
            queue.put_nowait(2)

    @pytest.mark.parametrize(
        ("kind", "expected"),
        [(Queue, [1, 3, 2]), (PriorityQueue, [1, 2, 3]), (LifoQueue, [2, 3, 1])],
    )
    def test_order(self, loop: IOLoop, kind: Any, expected: list[int]) -> None:
        queue = filled(1, 3, 2, kind=kind)
        assert [queue.get().result() for _ in range(3)] == expected

    @pytest.mark.parametrize(
        ("kind", "expected"),
        [(Queue, [1, 0, 3, 2]), (PriorityQueue, [0, 1, 2, 3]), (LifoQueue, [3, 2, 0, 1])],
    )
    def test_order_with_putters_in_line(self, loop: IOLoop, kind: Any, expected: list[int]) -> None:
        queue = filled(1, 0, kind=kind, maxsize=2)
        queue.put(3)
        queue.put(2)
        assert [queue.get_nowait(), queue.get().result(), queue.get_nowait()] == expected[:3]
        assert queue.get().result() == expected[3]
        assert queue.empty()

    def test_an_order_of_ones_own(self, loop: IOLoop) -> None:
        class Unique(Queue[Any]):
            def _init(self) -> None:
                self._queue = set()

            def _put(self, item: Any) -> None:
                self._queue.add(item)

            def _get(self) -> Any:
                return self._queue.pop()

        queue: Queue[Any] = Unique()
        task = wait_for(queue.get())
        queue.put_nowait(1)
        task.cancel()
        turns(loop)
        queue.put_nowait(1)
        assert drain(queue) == [1]


class TestGet:
    def test_nowait(self, loop: IOLoop) -> None:
        queue = filled(0)
        assert queue.get_nowait() == 0
        with pytest.raises(QueueEmpty):
            queue.get_nowait()

    def test_getters_are_served_in_order(self, loop: IOLoop) -> None:
        queue: Queue[int] = Queue()
        getters = [queue.get() for _ in range(4)]
        getters[1].cancel()
        for n in range(3):
            queue.put_nowait(n)
        assert [getters[n].result() for n in (0, 2, 3)] == [0, 1, 2]

    def test_nobody_overtakes_a_getter_who_was_served(self, loop: IOLoop) -> None:
        queue: Queue[int] = Queue()
        task = wait_for(queue.get())
        queue.put_nowait(1)
        with pytest.raises(QueueEmpty):
            queue.get_nowait()
        turns(loop)
        assert task.result() == 1

    def test_time_over(self, loop: IOLoop) -> None:
        queue: Queue[int] = Queue()
        for deadline in (SECOND, loop.time() + 1, timedelta(0), 0):
            with pytest.raises(TimeoutError, match="Timeout"):
                loop.run_sync(lambda: queue.get(timeout=deadline))  # noqa: B023
        queue.put_nowait(1)
        assert queue.get(timeout=0).result() == 1
        assert loop.statistics()["timers"] == 0

    def test_who_timed_out_swallows_nothing(self, loop: IOLoop) -> None:
        queue: Queue[int] = Queue()
        hasty = [queue.get(SECOND) for _ in range(10)]
        patient = queue.get()
        loop.run_sync(lambda: sleep(2))
        assert str(queue) == "<Queue maxsize=0 getters[1]>"
        queue.put_nowait(0)
        assert patient.result() == 0
        for future in hasty:
            with pytest.raises(TimeoutError):
                future.result()

    def test_in_time(self, loop: IOLoop) -> None:
        queue: Queue[int] = Queue()
        future = queue.get(SECOND)
        queue.put(0)
        loop.run_sync(lambda: sleep(2))
        assert future.result() == 0

    def test_async_for(self, loop: IOLoop) -> None:
        queue: Queue[int] = Queue()
        loop.call_later(1, lambda: [queue.put_nowait(n) for n in range(5)])

        async def main() -> list[int]:
            found = []
            async for item in queue:
                found.append(item)
                if item == 4:
                    break
            return found

        assert loop.run_sync(main) == [0, 1, 2, 3, 4]

    def test_before_the_loop_runs(self) -> None:
        IOLoop.clear_current()
        queue: Queue[int] = Queue(1)
        getter = queue.get()
        puts = [queue.put(n) for n in range(3)]

        @coroutine
        def main() -> Any:
            first = yield getter
            second = yield queue.get()
            yield puts
            return [first, second, (yield queue.get())]

        assert coro.run(main) == [0, 1, 2]


class TestPut:
    def test_nowait(self, loop: IOLoop) -> None:
        queue = filled(0, maxsize=1)
        with pytest.raises(QueueFull):
            queue.put_nowait(1)
        assert drain(queue) == [0]

    def test_putters_are_admitted_in_order(self, loop: IOLoop) -> None:
        queue = filled(0, maxsize=1)
        putters = [queue.put(n) for n in range(1, 5)]
        putters[1].cancel()
        assert [queue.get_nowait() for _ in range(2)] == [0, 1]
        assert [came(putter) for putter in putters] == [True, False, True, False]
        assert drain(queue) == [3, 4]

    def test_nobody_overtakes_a_putter_in_line(self, loop: IOLoop) -> None:
        queue = filled(0, maxsize=1)
        queue.put(1)
        assert queue.get_nowait() == 0
        with pytest.raises(QueueFull):
            queue.put_nowait(2)

    def test_time_over(self, loop: IOLoop) -> None:
        queue = filled(0, maxsize=1)
        for deadline in (SECOND, loop.time() + 1, timedelta(0), 0):
            with pytest.raises(TimeoutError, match="Timeout"):
                loop.run_sync(lambda: queue.put(1, timeout=deadline))  # noqa: B023
        assert drain(queue) == [0]
        assert queue.put(2, timeout=0).done()
        assert loop.statistics()["timers"] == 0

    def test_who_timed_out_puts_nothing(self, loop: IOLoop) -> None:
        queue = filled(0, maxsize=1)
        hasty = [queue.put(n, SECOND) for n in range(10)]
        patient = queue.put(10)
        loop.run_sync(lambda: sleep(2))
        assert str(queue) == "<Queue maxsize=1 queue=deque([0]) putters[1] tasks=1>"
        assert drain(queue) == [0, 10]
        assert patient.done()
        for future in hasty:
            with pytest.raises(TimeoutError):
                future.result()

    def test_a_bad_deadline_puts_nobody_in_line(self, loop: IOLoop) -> None:
        queue = filled(0, maxsize=1)
        with pytest.raises(ValueError, match=r"loop\.time\(\)"):
            queue.put(1, 1.7e9)
        assert "putters" not in str(queue)

    def test_an_item_that_cannot_be_ordered(self, loop: IOLoop) -> None:
        queue = filled("a", kind=PriorityQueue, maxsize=1)
        putter = queue.put(1)
        with pytest.raises(TypeError):
            queue.get_nowait()
        assert putter.done()

    def test_a_foreign_thread_is_refused_and_changes_nothing(self, loop: IOLoop) -> None:
        queue: Queue[int] = Queue(1)

        @coroutine
        def main() -> Any:
            getter = queue.get()
            with pytest.raises(WrongThreadError, match="add_callback"):
                yield loop.run_in_executor(None, queue.put_nowait, 1)
            assert str(queue) == "<Queue maxsize=1 getters[1]>"
            queue.put_nowait(2)
            assert (yield getter) == 2
            putters = [queue.put(3), queue.put(4)]
            with pytest.raises(WrongThreadError, match="add_callback"):
                yield loop.run_in_executor(None, queue.get_nowait)
            assert str(queue) == "<Queue maxsize=1 queue=deque([3]) putters[1] tasks=2>"
            assert drain(queue) == [3, 4]
            yield putters

        loop.run_sync(main)


@pytest.mark.parametrize("kind", KINDS)
class TestJoin:
    def test_task_done_too_often(self, loop: IOLoop, kind: Any) -> None:
        queue = kind()
        with pytest.raises(ValueError, match=r"task_done\(\) called too many times"):
            queue.task_done()

    def test_of_an_empty_queue(self, loop: IOLoop, kind: Any) -> None:
        queue = kind()
        assert queue.join().done()
        assert queue.join(0).done()

    def test_it_ends_with_task_done_and_not_with_get(self, loop: IOLoop, kind: Any) -> None:
        queue = filled(0, 1, kind=kind)
        join = queue.join()
        drain(queue)
        queue.task_done()
        turns(loop)
        assert not join.done()
        queue.task_done()
        assert join.done()
        queue.put_nowait(2)
        assert not queue.join().done()

    def test_it_waits_for_ever_without(self, loop: IOLoop, kind: Any) -> None:
        queue = filled(0, kind=kind)
        join = queue.join()
        drain(queue)
        loop.run_sync(lambda: sleep(1e6))
        assert not join.done()

    def test_time_over(self, loop: IOLoop, kind: Any) -> None:
        queue = filled(0, kind=kind)
        for deadline in (SECOND, 0):
            with pytest.raises(TimeoutError):
                loop.run_sync(lambda: queue.join(timeout=deadline))  # noqa: B023
        assert loop.statistics()["timers"] == 0

    def test_workers(self, loop: IOLoop, kind: Any) -> None:
        queue = filled(*range(100), kind=kind)
        total = 0

        @coroutine
        def worker() -> Any:
            nonlocal total
            while True:
                item = yield queue.get()
                total += item
                yield sleep(item % 3)
                queue.task_done()

        @coroutine
        def main() -> Any:
            workers = [worker(), worker()]
            yield queue.join()
            for task in workers:
                task.cancel()

        loop.run_sync(main)
        assert total == sum(range(100))

    def test_an_item_that_came_back_is_counted_once(self, loop: IOLoop, kind: Any) -> None:
        queue = kind()
        task = wait_for(queue.get())
        queue.put_nowait(1)
        join = queue.join()
        task.cancel()
        turns(loop)
        assert task.cancelled()
        assert not join.done()
        assert queue.get_nowait() == 1
        queue.task_done()
        assert join.done()
        with pytest.raises(ValueError, match="too many times"):
            queue.task_done()


def test_producer_and_consumer(loop: IOLoop) -> None:
    queue: Queue[int] = Queue(maxsize=3)
    history: list[int] = []

    @coroutine
    def consumer() -> Any:
        while True:
            history.append((yield queue.get()))
            queue.task_done()

    @coroutine
    def producer() -> Any:
        for item in range(10):
            yield queue.put(item)

    @coroutine
    def main() -> Any:
        task = consumer()
        yield producer()
        yield queue.join()
        task.cancel()

    loop.run_sync(main)
    assert history == list(range(10))


@pytest.mark.parametrize("order", ORDERS, ids="-".join)
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
class TestAllInOneTurn:
    @pytest.mark.parametrize("kind", KINDS)
    def test_the_item_is_somewhere(self, loop: IOLoop, kind: Any, way: Any, order: Any) -> None:
        queue = kind()
        asked: list[Any] = []
        tasks: list[Any] = []

        def wait(deadline: Any) -> Any:
            asked.append(queue.get(deadline))
            return asked[-1]

        def start(deadline: float) -> Any:
            tasks.append(way(wait, deadline))
            return tasks[-1]

        ended = race(loop, order, start, lambda: queue.put_nowait("item"))
        found = drain(queue)
        if ended == "completed":
            found.append(tasks[0].result())
        elif came(asked[0]):
            # ``with_timeout`` leaves its input waiting: it may get the item.
            found.append(asked[0].result())
        assert found == ["item"] * ("complete" in order)
        if way.__name__ not in ("in_a_block", "with_a_bound") and "cancel" not in order:
            assert ended == ("completed" if order[0] == "complete" else "timed out")

    def test_or_with_the_next_getter(self, loop: IOLoop, way: Any, order: Any) -> None:
        queue: Queue[str] = Queue()
        asked: list[Any] = []
        behind: list[Any] = []

        def wait(deadline: Any) -> Any:
            asked.append(queue.get(deadline))
            behind.append(wait_for(queue.get()))
            return asked[-1]

        ended = race(loop, order, lambda deadline: way(wait, deadline), lambda: queue.put("item"))
        turns(loop, 2)
        abandoned = ended != "completed" and came(asked[0])
        assert drain(queue) == []
        assert (ended == "completed") + abandoned + behind[0].done() == ("complete" in order)

    def test_an_item_is_put_in_or_not(self, loop: IOLoop, way: Any, order: Any) -> None:
        queue = filled("old", maxsize=1)
        asked: list[Any] = []

        def wait(deadline: Any) -> Any:
            asked.append(queue.put("new", deadline))
            return asked[-1]

        ended = race(loop, order, lambda deadline: way(wait, deadline), queue.get_nowait)
        # The put's own future says whether it is in, whatever became of who waited for it.
        inside = drain(queue)
        assert inside == ["old"] * ("complete" not in order) + ["new"] * came(asked[0])
        assert queue._unfinished_tasks == 1 + ("new" in inside)
        if ended == "completed":
            assert inside == ["new"]
        assert "putters" not in str(queue)


class TestGivenBack:
    def test_in_order(self, loop: IOLoop) -> None:
        queue: Queue[int] = Queue()
        tasks = [wait_for(queue.get()) for _ in range(3)]
        for n in range(5):
            queue.put_nowait(n)
        for task in tasks:
            task.cancel()
        turns(loop)
        assert drain(queue) == [0, 1, 2, 3, 4]

    def test_in_order_with_takers_between(self, loop: IOLoop) -> None:
        queue: Queue[int] = Queue()
        tasks = [wait_for(queue.get()) for _ in range(3)]
        for n in range(5):
            queue.put_nowait(n)
        tasks[0].cancel()
        turns(loop)
        assert tasks[1].result() == 1
        assert queue.get_nowait() == 0
        tasks = [wait_for([queue.get(), queue.get()]), wait_for([queue.get(), queue.get()])]
        assert tasks[0].result() == [3, 4]
        queue.put_nowait(5)
        tasks[1].cancel()
        turns(loop, 3)
        assert drain(queue) == [5]

    def test_to_the_next_in_line(self, loop: IOLoop) -> None:
        queue: Queue[int] = Queue()
        first, second = wait_for(queue.get()), wait_for(queue.get())
        queue.put_nowait(1)
        first.cancel()
        turns(loop, 2)
        assert first.cancelled()
        assert second.result() == 1

    def test_before_a_putter_in_line(self, loop: IOLoop) -> None:
        queue: Queue[int] = Queue(1)
        task = wait_for(queue.get())
        queue.put_nowait(1)
        queue.put_nowait(2)
        putter = queue.put(3)
        task.cancel()
        turns(loop)
        # There are more than it should hold for a while; nobody more is let in.
        assert queue.full()
        assert not putter.done()
        assert drain(queue) == [1, 2, 3]
        assert putter.done()

    def test_what_was_there_at_once(self, loop: IOLoop) -> None:
        queue = filled(1, 2)

        @coroutine
        def main(wrap: Any) -> Any:
            task = current_task()
            assert task is not None
            task.cancel()
            yield wrap()

        for wrap in (
            queue.get,
            lambda: [queue.get(), queue.get()],
            lambda: with_timeout(SECOND, queue.get()),
        ):
            task = main(wrap)
            turns(loop, 2)
            assert task.cancelled()
            assert queue.qsize() == 2
        assert drain(queue) == [1, 2]

    @pytest.mark.parametrize("count", [0, 1])
    def test_through_with_timeout(self, loop: IOLoop, count: int) -> None:
        queue: Queue[int] = Queue()
        task = wait_for(with_timeout(SECOND, queue.get()))
        queue.put_nowait(1)
        turns(loop, count)  # 1: what with_timeout returned is done, and the task about to run
        task.cancel()
        turns(loop, 2)
        assert task.cancelled()
        assert drain(queue) == [1]
        assert loop.statistics()["timers"] == 0

    def test_a_getter_shared_by_two(self, loop: IOLoop) -> None:
        for cancelled in (0, 1):
            queue: Queue[int] = Queue()
            future = queue.get()
            tasks = [wait_for(future), wait_for(future)]
            queue.put_nowait(1)
            tasks[cancelled].cancel()
            turns(loop, 2)
            assert tasks[cancelled].cancelled()
            assert tasks[1 - cancelled].result() == 1
            assert queue.empty()

    def test_by_a_time_limit_around_the_block(self, loop: IOLoop) -> None:
        queue: Queue[int] = Queue()

        @coroutine
        def main() -> Any:
            loop.call_later(1, queue.put_nowait, 1)
            with pytest.raises(TimeoutError), timeout(1):
                yield queue.get()
            return (yield queue.get())

        assert loop.run_sync(main) == 1


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["get", "put", "put_nowait", "get_nowait", "cancel", "turn", "second"]),
        st.integers(0, 9),
    ),
    max_size=60,
)


@given(STEPS, st.sampled_from(KINDS), st.integers(0, 3), st.randoms(use_true_random=False))
@settings(max_examples=200, deadline=None)
def test_items_are_conserved(steps: Any, kind: Any, maxsize: int, random: Any) -> None:
    with closing_loop() as loop:
        queue: Any = kind(maxsize)
        entered: list[Any] = []  # futures of puts
        items = 0
        taken: list[int] = []
        tasks: list[Any] = []
        cancelled: set[Any] = set()
        # Not ``with_a_bound``: its input stays in line.
        ways = [way for way in WAYS if way.__name__ != "with_a_bound"]

        @coroutine
        def getter(way: Any, seconds: int) -> Any:
            taken.append((yield way(queue.get, loop.time() + seconds)))

        @coroutine
        def putter(way: Any, seconds: int, item: int) -> Any:
            def put(deadline: Any) -> Any:
                entered.append((item, queue.put(item, deadline)))
                return entered[-1][1]

            yield way(put, loop.time() + seconds)

        for name, number in steps:
            if name == "get":
                tasks.append(getter(random.choice(ways), number % 3))
            elif name == "put":
                tasks.append(putter(random.choice(ways), number % 3, items))
                items += 1
            elif name == "put_nowait":
                if queue._getters.count() or not queue.full():
                    done: Any = coro.gen.maybe_future(None)
                    entered.append((items, done))
                    queue.put_nowait(items)
                    items += 1
            elif name == "get_nowait" and not queue.empty():
                taken.append(queue.get_nowait())
            elif name == "cancel" and tasks:
                task = tasks[number % len(tasks)]
                if task.cancel():
                    cancelled.add(task)
            elif name == "turn":
                turns(loop)
            elif name == "second":
                loop.time.now += 1  # type: ignore[attr-defined]
            # Nobody waits to get what is there, nor to put where there is room.
            assert not (queue._getters.count() and not queue.empty())
            assert not (queue._putters.count() and not queue.full())
        turns(loop, 10)
        loop.time.now += 10  # type: ignore[attr-defined]
        turns(loop, 10)
        assert {task for task in tasks if task.cancelled()} == cancelled
        assert {outcome(task) for task in tasks} <= {"completed", "timed out", "cancelled"}
        inside = {item for item, future in entered if came(future)}
        assert queue._unfinished_tasks == len(inside)
        found = Counter(taken + drain(queue))
        assert found == Counter(inside)
        assert str(queue).startswith(f"<{kind.__name__} maxsize={maxsize}")
        assert "etters" not in str(queue)
        assert loop.statistics()["timers"] == 0


class TestManyWaiters:
    MANY = 100_000

    def test_getters_and_putters(self, loop: IOLoop) -> None:
        queue: Queue[int] = Queue(1)
        getters = [queue.get() for _ in range(self.MANY)]
        for getter in getters[: self.MANY // 2]:
            getter.cancel()
        for n in range(self.MANY // 2):
            queue.put_nowait(n)
        assert [getter.result() for getter in getters[self.MANY // 2 :]] == list(
            range(self.MANY // 2)
        )
        assert len(queue._getters) == 0
        putters = [queue.put(n) for n in range(self.MANY)]
        for putter in putters[self.MANY // 2 :]:
            putter.cancel()
        assert drain(queue) == list(range(self.MANY // 2))
        assert len(queue._putters) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_left(loop: IOLoop, kind: Any) -> None:
    @coroutine
    def getter(queue: Any, deadline: Any) -> Any:
        yield queue.get(deadline)

    @coroutine
    def putter(queue: Any, deadline: Any) -> Any:
        yield queue.put(1, deadline)

    @coroutine
    def once() -> Any:
        for user in (getter, putter):
            queue = filled(kind=kind, maxsize=1)
            if user is putter:
                queue.put_nowait(1)
            tasks = [user(queue, deadline) for deadline in (None, None, SECOND, SECOND * 3)]
            yield
            tasks[1].cancel()
            yield sleep(2)
            tasks[3].cancel()
            if user is getter:
                queue.put_nowait(1)
            else:
                queue.get_nowait()
            with pytest.raises(TimeoutError):
                yield queue.join(SECOND)
            yield sleep(5)

    loop.run_sync(once)
    gc.collect()
    gc.disable()
    try:
        for _ in range(20):
            loop.run_sync(once)
        turns(loop)
        assert gc.collect() == 0
    finally:
        gc.enable()
    assert loop.statistics()["timers"] == 0
    assert not coro.gen.all_tasks()
