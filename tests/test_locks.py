"""Locks, semaphores, events and conditions, on a clock that leaps."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import coro
from coro.errors import BadYieldError, WrongThreadError
from coro.gen import coroutine, current_task, multi, sleep, with_timeout
from coro.locks import BoundedSemaphore, Condition, Event, Line, Lock, Semaphore
from coro.loop import IOLoop
from tests.support.races import ORDERS, WAYS, came, outcome, race
from tests.support.virtual import closing_loop, turns

SECOND = timedelta(seconds=1)


@pytest.fixture
def loop() -> Iterator[IOLoop]:
    with closing_loop() as loop:
        yield loop


@coroutine
def wait_for(future: Any) -> Any:
    return (yield future)


def taken_lock() -> Lock:
    lock = Lock()
    lock.acquire()
    return lock


class TestCondition:
    def test_repr(self, loop: IOLoop) -> None:
        condition = Condition()
        assert repr(condition) == "<Condition>"
        condition.wait()
        assert repr(condition) == "<Condition waiters[1]>"

    def test_notify_wakes_in_order_of_arrival(self, loop: IOLoop) -> None:
        condition = Condition()
        woken: list[int] = []
        for n in range(6):
            condition.wait().add_done_callback(partial(lambda n, _future: woken.append(n), n))
        for count, expected in ((1, [0]), (3, [0, 1, 2, 3]), (5, [0, 1, 2, 3, 4, 5])):
            condition.notify(count)
            turns(loop)
            assert woken == expected

    def test_nobody_runs_inside_notify(self, loop: IOLoop) -> None:
        condition = Condition()
        task = wait_for(condition.wait())
        condition.notify()
        assert not task.done()
        turns(loop)
        assert task.result() is True

    def test_notify_all(self, loop: IOLoop) -> None:
        condition = Condition()
        futures = [condition.wait() for _ in range(3)]
        condition.notify_all()
        late = condition.wait()
        assert [future.done() for future in futures] == [True] * 3
        assert not late.done()

    def test_a_notification_without_waiters_is_not_kept(self, loop: IOLoop) -> None:
        condition = Condition()
        condition.notify()
        condition.notify_all()
        assert not condition.wait().done()

    def test_time_over_gives_false(self, loop: IOLoop) -> None:
        condition = Condition()
        for deadline in (SECOND, loop.time() + 1, timedelta(0), 0, -5.0):
            assert loop.run_sync(lambda: condition.wait(deadline)) is False  # noqa: B023
        assert loop.run_sync(lambda: condition.wait(timedelta(0))) is False
        assert repr(condition) == "<Condition>"

    def test_notified_in_time(self, loop: IOLoop) -> None:
        condition = Condition()
        future = condition.wait(timedelta(seconds=2))
        loop.call_later(1, condition.notify)
        loop.run_sync(lambda: sleep(3))
        assert future.result() is True
        assert loop.statistics()["timers"] == 0

    def test_who_gave_up_does_not_count(self, loop: IOLoop) -> None:
        condition = Condition()
        first, hasty, second, third = (
            condition.wait(),
            condition.wait(SECOND),
            condition.wait(),
            condition.wait(),
        )
        loop.run_sync(lambda: sleep(2))
        assert hasty.result() is False
        second.cancel()
        condition.notify(2)
        assert (first.done(), third.done()) == (True, True)

    def test_notify_from_a_callback_of_a_waiter(self, loop: IOLoop) -> None:
        condition = Condition()
        futures = [condition.wait() for _ in range(3)]
        futures[1].add_done_callback(lambda _future: condition.notify())
        condition.notify(2)
        turns(loop)
        assert all(future.done() for future in futures)

    def test_a_notification_of_who_was_cancelled_passes_on(self, loop: IOLoop) -> None:
        condition = Condition()
        first, second = wait_for(condition.wait()), condition.wait()
        condition.notify()
        first.cancel()
        turns(loop)
        assert first.cancelled()
        assert second.result() is True

    def test_to_all_is_to_those_who_waited_then(self, loop: IOLoop) -> None:
        condition = Condition()
        task = wait_for(condition.wait())
        condition.notify_all()
        late = condition.wait()
        task.cancel()
        turns(loop)
        assert task.cancelled()
        assert not late.done()

    def test_a_time_out_is_no_notification_to_pass_on(self, loop: IOLoop) -> None:
        condition = Condition()
        task = wait_for(condition.wait(SECOND))
        other = condition.wait()
        loop.call_later(1, task.cancel)
        loop.run_sync(lambda: sleep(2))
        assert task.cancelled()
        assert not other.done()


class TestEvent:
    def test_repr(self) -> None:
        event = Event()
        assert repr(event) == "<Event clear>"
        event.set()
        assert repr(event) == "<Event set>"

    def test_set_and_clear(self, loop: IOLoop) -> None:
        event = Event()
        before = event.wait()
        assert not event.is_set()
        event.set()
        event.set()
        assert event.is_set()
        meanwhile = event.wait()
        event.clear()
        after = event.wait()
        assert [before.done(), meanwhile.done(), after.done()] == [True, True, False]
        assert before.result() is None

    def test_clear_with_waiters(self, loop: IOLoop) -> None:
        event = Event()
        first = event.wait()
        event.clear()
        second = event.wait()
        event.set()
        assert first.done()
        assert second.done()

    def test_time_over(self, loop: IOLoop) -> None:
        event = Event()
        for deadline in (SECOND, loop.time() + 1, timedelta(0), 0):
            with pytest.raises(TimeoutError, match="Timeout"):
                loop.run_sync(lambda: event.wait(deadline))  # noqa: B023
        loop.call_later(1, event.set)
        assert loop.run_sync(lambda: event.wait(timedelta(seconds=5))) is None
        assert event.wait(0).done()
        assert loop.statistics()["timers"] == 0

    @pytest.mark.parametrize("order", ORDERS, ids="-".join)
    @pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
    def test_all_in_one_turn(self, loop: IOLoop, way: Any, order: Any) -> None:
        event = Event()
        other = event.wait()
        ended = race(loop, order, lambda deadline: way(event.wait, deadline), event.set)
        assert other.done() == event.is_set() == ("complete" in order)
        if order[0] == "complete" and "cancel" not in order and way.__name__ != "in_a_block":
            assert ended == "completed"


class TestSemaphore:
    def test_negative_value(self) -> None:
        with pytest.raises(ValueError, match="semaphore initial value must be >= 0"):
            Semaphore(value=-1)

    def test_repr(self, loop: IOLoop) -> None:
        semaphore = Semaphore(2)
        assert repr(semaphore) == "<Semaphore [unlocked,value:2]>"
        semaphore.acquire()
        semaphore.acquire()
        assert repr(semaphore) == "<Semaphore [locked]>"
        semaphore.acquire()
        semaphore.acquire()
        assert repr(semaphore) == "<Semaphore [locked,waiters:2]>"
        assert repr(BoundedSemaphore()) == "<BoundedSemaphore [unlocked,value:1]>"

    def test_first_come_first_served(self, loop: IOLoop) -> None:
        semaphore = Semaphore(0)
        futures = [semaphore.acquire() for _ in range(4)]
        futures[1].cancel()
        for expected in ([0], [0, 2], [0, 2, 3]):
            semaphore.release()
            assert [n for n, future in enumerate(futures) if came(future)] == expected
        semaphore.release()
        assert semaphore.acquire().done()

    def test_nobody_overtakes_who_was_served(self, loop: IOLoop) -> None:
        semaphore = Semaphore()
        semaphore.acquire()
        task = wait_for(semaphore.acquire())
        semaphore.release()
        assert not semaphore.acquire().done()
        turns(loop)
        assert task.done()

    def test_releases_without_acquiring_add_permits(self, loop: IOLoop) -> None:
        semaphore = Semaphore()
        semaphore.release()
        semaphore.release()
        assert [semaphore.acquire().done() for _ in range(4)] == [True, True, True, False]

    def test_time_over(self, loop: IOLoop) -> None:
        semaphore = Semaphore(0)
        for deadline in (SECOND, loop.time() + 1, timedelta(0), 0, -5):
            with pytest.raises(TimeoutError, match="Timeout"):
                loop.run_sync(lambda: semaphore.acquire(deadline))  # noqa: B023
        semaphore.release()
        assert semaphore.acquire(0).done()

    def test_in_time(self, loop: IOLoop) -> None:
        semaphore = Semaphore(0)
        future = semaphore.acquire(timedelta(seconds=2))
        loop.call_later(1, semaphore.release)
        loop.run_sync(lambda: sleep(3))
        assert came(future)
        assert loop.statistics()["timers"] == 0

    def test_a_bad_deadline_leaves_nobody_in_line(self, loop: IOLoop) -> None:
        semaphore = Semaphore(0)
        with pytest.raises(ValueError, match=r"loop\.time\(\)"):
            semaphore.acquire(1.7e9)
        with pytest.raises(TypeError, match="deadline is a number or a timedelta"):
            semaphore.acquire("soon")  # type: ignore[arg-type]
        assert repr(semaphore) == "<Semaphore [locked]>"

    def test_bounded(self, loop: IOLoop) -> None:
        semaphore = BoundedSemaphore()
        with pytest.raises(ValueError, match="Semaphore released too many times"):
            semaphore.release()
        semaphore.acquire()
        waiting = semaphore.acquire()
        semaphore.release()
        assert waiting.done()
        semaphore.release()
        with pytest.raises(ValueError, match="released too many times"):
            semaphore.release()

    def test_before_the_loop_runs(self) -> None:
        IOLoop.clear_current()
        semaphore = Semaphore()
        first, second = semaphore.acquire(), semaphore.acquire()

        @coroutine
        def main() -> Any:
            with (yield first):
                assert not second.done()
            with (yield second):
                return repr(semaphore)

        assert coro.run(main) == "<Semaphore [locked]>"
        assert repr(semaphore) == "<Semaphore [unlocked,value:1]>"

    def test_a_foreign_thread_is_refused_and_changes_nothing(self, loop: IOLoop) -> None:
        semaphore = Semaphore(0)
        task = wait_for(semaphore.acquire())

        @coroutine
        def main() -> Any:
            with pytest.raises(WrongThreadError, match="add_callback"):
                yield loop.run_in_executor(None, semaphore.release)
            assert repr(semaphore) == "<Semaphore [locked,waiters:1]>"
            semaphore.release()
            yield task

        loop.run_sync(main)

    def test_what_a_subclass_does_on_release_is_done(self, loop: IOLoop) -> None:
        class Counting(Semaphore):
            released = 0

            def release(self) -> None:
                self.released += 1
                super().release()

        semaphore = Counting()

        @coroutine
        def main() -> Any:
            with (yield semaphore.acquire()):
                pass

        async def native() -> None:
            async with semaphore:
                pass

        loop.run_sync(main)
        loop.run_sync(native)
        assert semaphore.released == 2


class TestLock:
    def test_repr(self, loop: IOLoop) -> None:
        lock = Lock()
        assert repr(lock) == "<Lock [unlocked]>"
        lock.acquire()
        lock.acquire()
        assert repr(lock) == "<Lock [locked,waiters:1]>"

    def test_acquire_and_release(self, loop: IOLoop) -> None:
        lock = Lock()
        assert lock.acquire().done()
        waiting = lock.acquire()
        assert not waiting.done()
        lock.release()
        assert waiting.done()

    def test_release_unlocked(self, loop: IOLoop) -> None:
        lock = Lock()
        with pytest.raises(RuntimeError, match="release unlocked lock"):
            lock.release()
        lock.acquire()
        lock.release()
        with pytest.raises(RuntimeError, match="release unlocked lock"):
            lock.release()

    def test_first_come_first_served(self, loop: IOLoop) -> None:
        lock = taken_lock()
        history: list[int] = []

        @coroutine
        def generator(n: int) -> Any:
            with (yield lock.acquire()):
                history.append(n)

        async def native(n: int) -> None:
            async with lock:
                history.append(n)

        tasks = [coroutine(native)(n) if n % 2 else generator(n) for n in range(6)]
        lock.release()
        loop.run_sync(lambda: tasks)
        assert history == list(range(6))
        assert repr(lock) == "<Lock [unlocked]>"

    def test_time_over(self, loop: IOLoop) -> None:
        lock = taken_lock()
        with pytest.raises(TimeoutError):
            loop.run_sync(lambda: lock.acquire(timeout=SECOND))
        assert not lock.acquire().done()


@pytest.mark.parametrize("kind", [Lock, Semaphore, BoundedSemaphore])
class TestBlock:
    def test_with_what_acquire_gave(self, loop: IOLoop, kind: Any) -> None:
        lock = kind()

        @coroutine
        def main() -> Any:
            with (yield lock.acquire()) as given:
                assert given is None
                assert not lock.acquire().done()

        loop.run_sync(main)

    def test_it_releases_after_an_error(self, loop: IOLoop, kind: Any) -> None:
        lock = kind()

        @coroutine
        def main() -> Any:
            with (yield lock.acquire(SECOND)):
                raise ZeroDivisionError

        async def native() -> None:
            async with lock as given:
                assert given is None
                raise ZeroDivisionError

        for body in (main, native):
            with pytest.raises(ZeroDivisionError):
                loop.run_sync(body)
        assert "[unlocked" in repr(lock)

    def test_it_is_not_entered_when_the_time_is_over(self, loop: IOLoop, kind: Any) -> None:
        lock = kind()
        lock.acquire()

        @coroutine
        def main() -> Any:
            with (yield lock.acquire(SECOND)):
                pytest.fail("it is not free")

        with pytest.raises(TimeoutError):
            loop.run_sync(main)
        assert "[locked]" in repr(lock)

    def test_contended(self, loop: IOLoop, kind: Any) -> None:
        lock = kind()
        history: list[str] = []

        @coroutine
        def enter(n: int) -> Any:
            with (yield lock.acquire()):
                history.append(f"enter {n}")
                yield sleep(1)
                history.append(f"leave {n}")

        loop.run_sync(lambda: [enter(0), enter(1)])
        assert history == ["enter 0", "leave 0", "enter 1", "leave 1"]

    def test_the_forgotten_yield(self, loop: IOLoop, kind: Any) -> None:
        name = kind.__name__.lower()
        with pytest.raises(RuntimeError) as caught, kind():
            pytest.fail("entered without waiting")
        assert f"with (yield {name}.acquire()):" in str(caught.value)
        assert f"async with {name}:" in str(caught.value)

    def test_the_forgotten_acquire(self, loop: IOLoop, kind: Any) -> None:
        @coroutine
        def main() -> Any:
            with (yield kind()):
                pass

        with pytest.raises(BadYieldError):
            loop.run_sync(main)

    def test_a_block_that_is_cancelled_releases(self, loop: IOLoop, kind: Any) -> None:
        lock = kind()

        @coroutine
        def generator() -> Any:
            with (yield lock.acquire()):
                yield sleep(10)

        @coroutine
        async def native() -> None:
            async with lock:
                await sleep(10)

        for body in (generator, native):
            # Before the lock, with the lock just given, and in the block.
            for count in range(4):
                lock.acquire()
                task: Any = body()
                turns(loop, 1)
                if count > 0:
                    lock.release()
                    turns(loop, count - 1)
                task.cancel()
                turns(loop, 2)
                assert task.cancelled()
                if count == 0:
                    lock.release()
                assert "[unlocked" in repr(lock)


@pytest.mark.parametrize("order", ORDERS, ids="-".join)
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("make", [taken_lock, lambda: Semaphore(0)], ids=["Lock", "Semaphore"])
class TestAllInOneTurn:
    def test_the_permit_is_somewhere(self, loop: IOLoop, make: Any, way: Any, order: Any) -> None:
        lock = make()
        asked: list[Any] = []

        def wait(deadline: Any) -> Any:
            asked.append(lock.acquire(deadline))
            return asked[-1]

        ended = race(loop, order, lambda deadline: way(wait, deadline), lock.release)
        # ``with_timeout`` leaves its input waiting: it may get the permit.
        abandoned = ended != "completed" and came(asked[0])
        free = "[unlocked" in repr(lock)
        assert (ended == "completed") + abandoned + free == ("complete" in order)
        assert loop.statistics()["timers"] <= 1
        first = next((name for name in order if name != "cancel"), None)
        if "cancel" not in order and way.__name__ != "in_a_block":
            assert ended == ("completed" if first == "complete" else "timed out")

    def test_or_with_the_next_in_line(self, loop: IOLoop, make: Any, way: Any, order: Any) -> None:
        lock = make()
        asked: list[Any] = []
        behind: list[Any] = []

        def wait(deadline: Any) -> Any:
            asked.append(lock.acquire(deadline))
            behind.append(wait_for(lock.acquire()))
            return asked[-1]

        ended = race(loop, order, lambda deadline: way(wait, deadline), lock.release)
        turns(loop, 2)
        abandoned = ended != "completed" and came(asked[0])
        assert "[locked" in repr(lock)
        assert (ended == "completed") + abandoned + behind[0].done() == ("complete" in order)


class TestTimedOutTwice:
    def test_in_two_places_of_a_list_it_is_one_error(
        self, loop: IOLoop, caplog: pytest.LogCaptureFixture
    ) -> None:
        future = taken_lock().acquire(SECOND)
        with pytest.raises(TimeoutError):
            loop.run_sync(lambda: [future, future])
        assert caplog.records == []
        with pytest.raises(TimeoutError, match="Timeout"):
            future.result()


class TestGivenBack:
    def test_one_future_of_several_who_wait(self, loop: IOLoop) -> None:
        for cancelled in ([0], [1], [0, 1]):
            lock = taken_lock()
            future = lock.acquire()
            tasks = [wait_for(future), wait_for(future)]
            lock.release()
            for n in cancelled:
                tasks[n].cancel()
            turns(loop, 2)
            assert [task.cancelled() for task in tasks] == [n in cancelled for n in (0, 1)]
            # Who was not cancelled holds it.
            assert repr(lock) == f"<Lock [{'unlocked' if len(cancelled) == 2 else 'locked'}]>"

    def test_what_went_back_is_not_found_in_the_future(self, loop: IOLoop) -> None:
        lock = taken_lock()
        future = lock.acquire()
        task = wait_for(future)
        lock.release()
        task.cancel()
        turns(loop)
        assert repr(lock) == "<Lock [unlocked]>"
        assert future.cancelled()

    @pytest.mark.parametrize("wrap", [multi, lambda inner: with_timeout(SECOND, inner[0])])
    def test_nor_in_what_was_built_on_it(self, loop: IOLoop, wrap: Any) -> None:
        lock = taken_lock()
        whole = wrap([lock.acquire()])
        task = wait_for(whole)
        lock.release()
        turns(loop)
        assert whole.done()
        task.cancel()
        turns(loop)
        assert repr(lock) == "<Lock [unlocked]>"
        assert whole.cancelled()

    def test_a_list_of_which_one_had_come(self, loop: IOLoop) -> None:
        lock, other = taken_lock(), taken_lock()
        task = wait_for([lock.acquire(), other.acquire()])
        lock.release()
        turns(loop, 3)
        task.cancel()
        turns(loop, 3)
        assert task.cancelled()
        assert repr(lock) == "<Lock [unlocked]>"
        assert repr(other) == "<Lock [locked]>"

    def test_what_was_free_at_once(self, loop: IOLoop) -> None:
        lock = Lock()

        @coroutine
        def main(wrap: Callable[[Any], Any]) -> Any:
            task = current_task()
            assert task is not None
            task.cancel()
            yield wrap(lock.acquire())

        for wrap in (lambda x: x, lambda x: [x], lambda x: with_timeout(SECOND, x)):
            task = main(wrap)
            turns(loop, 2)
            assert task.cancelled()
            assert repr(lock) == "<Lock [unlocked]>"

    def test_a_shared_future_with_a_callback_keeps_it(self, loop: IOLoop) -> None:
        lock = taken_lock()
        future = lock.acquire()
        seen: list[Any] = []
        future.add_done_callback(seen.append)
        task = wait_for(future)
        lock.release()
        task.cancel()
        turns(loop)
        assert seen == [future]
        assert came(future)
        assert repr(lock) == "<Lock [locked]>"


STEPS = st.lists(
    st.tuples(st.sampled_from(["start", "release", "cancel", "turn", "second"]), st.integers(0, 9)),
    max_size=60,
)


@given(STEPS, st.integers(0, 3), st.randoms(use_true_random=False))
@settings(max_examples=150, deadline=None)
def test_permits_are_conserved(steps: Any, value: int, random: Any) -> None:
    with closing_loop() as loop:
        semaphore = BoundedSemaphore(3)
        for _ in range(3 - value):
            semaphore.acquire()
        held = 3 - value
        tasks: list[Any] = []
        cancelled: set[Any] = set()

        @coroutine
        def user(way: Any, seconds: int) -> Any:
            nonlocal held
            yield way(semaphore.acquire, loop.time() + seconds)
            held += 1

        def free() -> int:
            if semaphore._waiters.count():
                assert semaphore._value == 0
            return semaphore._value

        for name, number in steps:
            if name == "start":
                # Not ``with_a_bound``: its input stays in line.
                ways = [way for way in WAYS if way.__name__ != "with_a_bound"]
                tasks.append(user(random.choice(ways), number % 3))
            elif name == "release" and held:
                held -= 1
                semaphore.release()
            elif name == "cancel" and tasks:
                task = tasks[number % len(tasks)]
                if task.cancel():
                    cancelled.add(task)
            elif name == "turn":
                turns(loop)
            elif name == "second":
                loop.time.now += 1  # type: ignore[attr-defined]
        turns(loop, 10)
        assert held + free() == 3
        loop.time.now += 10  # type: ignore[attr-defined]
        turns(loop, 10)
        assert held + free() == 3
        assert semaphore._waiters.count() == 0
        assert {task for task in tasks if task.cancelled()} == cancelled
        assert {outcome(task) for task in tasks} <= {"completed", "timed out", "cancelled"}
        assert loop.statistics()["timers"] == 0


class TestManyWaiters:
    """O(1), counted in steps over the line and not by the clock."""

    MANY = 100_000

    def test_all_are_served_in_order(self, loop: IOLoop) -> None:
        semaphore = Semaphore(0)
        futures = [semaphore.acquire() for _ in range(self.MANY)]
        for _ in range(self.MANY // 2):
            semaphore.release()
        assert [came(futures[n]) for n in (0, self.MANY // 2 - 1, self.MANY // 2)] == [
            True,
            True,
            False,
        ]

    @pytest.mark.parametrize("step", [1, -1, 7])
    def test_who_gives_up_costs_a_constant(self, loop: IOLoop, step: int) -> None:
        looks = 0

        class CountingLine(Line):
            def __getitem__(self, index: Any) -> Any:
                nonlocal looks
                looks += 1
                return super().__getitem__(index)

            def __iter__(self) -> Any:
                nonlocal looks
                looks += len(self)
                return super().__iter__()

        semaphore = Semaphore(0)
        line = semaphore._waiters = CountingLine()
        futures = [semaphore.acquire() for _ in range(self.MANY)]
        # From the front, from the back, from everywhere.
        for n in range(self.MANY - 1):
            futures[n * step % self.MANY].cancel()
        assert line.count() == 1
        assert len(line) < 40
        assert looks < 5 * self.MANY
        semaphore.release()
        (served,) = [future for future in futures if not future.cancelled()]
        assert came(served)


class TestNothingIsLeft:
    def test_of_whoever_gave_up(self, loop: IOLoop) -> None:
        class Local:
            pass

        semaphore = Semaphore(0)
        locals_: list[Any] = []

        @coroutine
        def waits(deadline: Any) -> Any:
            local = Local()
            locals_.append(weakref.ref(local))
            yield semaphore.acquire(deadline)

        @coroutine
        def main() -> Any:
            first = semaphore.acquire()
            tasks = [waits(SECOND), waits(None)]
            yield sleep(1)
            tasks[1].cancel()
            for task in tasks:
                with pytest.raises((TimeoutError, coro.gen.CancelledError)):
                    yield task
            tasks.clear()
            del task
            return first

        gc.disable()
        try:
            first = loop.run_sync(main)
            turns(loop)
            # ``first`` still stands in the line, before those who gave up.
            assert [local() for local in locals_] == [None, None]
        finally:
            gc.enable()
        semaphore.release()
        assert came(first) or first is None

    @pytest.mark.parametrize("make", [Lock, Semaphore, BoundedSemaphore])
    def test_of_locks(self, loop: IOLoop, make: Any) -> None:
        @coroutine
        def user(lock: Any, deadline: Any) -> Any:
            with (yield lock.acquire(deadline)):
                yield sleep(1)

        @coroutine
        def once() -> Any:
            lock = make()
            tasks = [
                user(lock, None),
                user(lock, None),
                user(lock, timedelta(0)),
                user(lock, SECOND),
            ]
            yield
            tasks[1].cancel()
            yield sleep(5)

        self.check(loop, once)

    def test_of_conditions_and_events(self, loop: IOLoop) -> None:
        @coroutine
        def user(thing: Any, deadline: Any) -> Any:
            yield thing.wait(deadline)

        @coroutine
        def once() -> Any:
            for thing in (Condition(), Event()):
                tasks = [user(thing, deadline) for deadline in (None, None, SECOND, SECOND * 3)]
                yield
                tasks[1].cancel()
                yield sleep(2)
                thing.notify_all() if isinstance(thing, Condition) else thing.set()
                tasks[3].cancel()
                yield sleep(5)

        self.check(loop, once)

    def check(self, loop: IOLoop, once: Any) -> None:
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
