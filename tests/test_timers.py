"""The waiting timers, against a sorted list as their model."""

from __future__ import annotations

import math
import sys
import weakref
from collections.abc import Callable
from contextvars import Context

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coro import timers
from coro.timers import CONTEXT, Timer, TimerHeap

COMPACT_ABOVE = 64
DROP_ABOVE = 1000

WINDOW = 16


def nothing() -> None:
    """A callback."""


class Cancels:
    """A callback whose end cancels others."""

    def __init__(self, heap: TimerHeap, others: list[Timer]) -> None:
        self.heap = heap
        self.others = others

    def __call__(self) -> None:
        """Never called."""

    def __del__(self) -> None:
        for other in self.others:
            self.heap.cancel(other)


def add(heap: TimerHeap, *deadlines: float) -> list[Timer]:
    return [heap.add(deadline, nothing, (), Context()) for deadline in deadlines]


def opened() -> TimerHeap:
    """One whose first window has begun: timers due before ``WINDOW`` go to the heap at once."""
    heap = TimerHeap()
    add(heap, 0)
    heap.pop_due(0)
    return heap


def soon(count: int) -> list[float]:
    """So many deadlines in the first window."""
    return [WINDOW * number / count for number in range(count)]


class TestOrder:
    def test_by_deadline(self) -> None:
        heap = TimerHeap()
        late, early, middle = add(heap, 3, 1, 2)
        assert heap.next_deadline() == 1
        assert heap.pop_due(10) == [early, middle, late]

    def test_equal_deadlines_first_in_first_out(self) -> None:
        heap = TimerHeap()
        timers = add(heap, *[5.0] * 100)
        assert heap.pop_due(5) == timers

    def test_a_deadline_is_due_at_its_very_instant_and_not_before(self) -> None:
        heap = TimerHeap()
        first, second = add(heap, 1.0, 1.5)
        assert heap.pop_due(0.999) == []
        assert heap.pop_due(1.0) == [first]
        assert heap.next_deadline() == 1.5
        assert heap.pop_due(1.5) == [second]
        assert heap.next_deadline() is None
        assert len(heap) == 0


class TestCancel:
    def test_a_cancelled_timer_is_not_due(self) -> None:
        heap = TimerHeap()
        first, second = add(heap, 1, 2)
        heap.cancel(first)
        assert len(heap) == 1
        assert heap.pop_due(1) == []
        assert heap.next_deadline() == 2
        assert heap.pop_due(9) == [second]

    def test_twice_counts_once(self) -> None:
        heap = TimerHeap()
        first, _second = add(heap, 1, 2)
        heap.cancel(first)
        heap.cancel(first)
        assert len(heap) == 1

    def test_after_it_surfaced_counts_once(self) -> None:
        heap = opened()
        first, _second = add(heap, 1, 2)
        heap.cancel(first)
        assert heap.next_deadline() == 2
        heap.cancel(first)
        assert len(heap) == 1

    def test_a_timer_that_is_due_in_this_turn(self) -> None:
        heap = TimerHeap()
        first, second = add(heap, 1, 1)
        assert heap.pop_due(1) == [first, second]
        heap.cancel(second)
        assert second.callback is None
        assert len(heap) == 0
        add(heap, 3)
        assert len(heap) == 1

    def test_drops_what_the_timer_holds_at_once(self) -> None:
        class Callback:
            def __call__(self) -> None:
                """Never called."""

        callback = Callback()
        seen = weakref.ref(callback)
        heap = TimerHeap()
        held = heap.add(1, callback, (callback,), Context())
        heap.cancel(held)
        del callback
        assert seen() is None
        assert held[CONTEXT] is None

    def test_clear_bears_destructors_that_cancel(self) -> None:
        heap = opened()

        others: list[Timer] = []
        heap.add(1, Cancels(heap, others), (), Context())
        others += add(heap, 2, 3, 100, 101)
        heap.clear()
        assert len(heap) == 0
        assert all(one.callback is None for one in others)

    def test_clear_cancels_all(self) -> None:
        heap = TimerHeap()
        timers = add(heap, 1, 2, 3)
        heap.cancel(timers[0])
        heap.clear()
        assert len(heap) == 0
        assert heap.next_deadline() is None
        assert all(one.callback is None for one in timers)
        heap.cancel(timers[1])
        assert len(heap) == 0


class TestWindows:
    def test_what_is_cancelled_leaves_nothing(self) -> None:
        heap = TimerHeap()
        living = add(heap, *range(0, 10_000, 10))
        marks = len(heap.heap)
        for number in range(10_000):
            (one,) = add(heap, number)
            heap.cancel(one)
            assert sys.getrefcount(one) == 2
        assert len(heap.heap) <= 2 * marks
        assert heap.pop_due(10_000) == living

    def test_equal_deadlines_before_and_after_a_window_began(self) -> None:
        heap = TimerHeap()
        before = add(heap, 17, 17.5, 17)
        assert heap.pop_due(17) == [before[0], before[2]]
        after = add(heap, 17.5, 17.25)
        assert heap.pop_due(20) == [after[1], before[1], after[0]]

    def test_one_that_was_cancelled_is_looked_for_at_most_once(self) -> None:
        heap = TimerHeap()
        first, _, last = add(heap, 33, 34, 35)
        heap.cancel(first)
        assert heap.next_deadline() == 33
        assert heap.pop_due(33) == []
        assert heap.next_deadline() == 34
        assert heap.pop_due(34.5) != []
        heap.cancel(last)
        assert heap.next_deadline() is None

    def test_a_window_without_timers_is_not_looked_for(self) -> None:
        heap = TimerHeap()
        first, second = add(heap, 33, 70)
        heap.cancel(first)
        assert heap.next_deadline() == 70
        heap.cancel(second)
        assert heap.next_deadline() is None
        assert not heap.heap
        assert heap.pop_due(100) == []

    def test_a_window_that_is_empty_keeps_no_room(self) -> None:
        heap = TimerHeap()
        timers = add(heap, *[100 + number / 1000 for number in range(10_000)])
        (window,) = heap._far.values()
        full = sys.getsizeof(window)
        for one in timers:
            heap.cancel(one)
        assert sys.getsizeof(window) < full / 100

    @pytest.mark.parametrize(
        "deadlines", [range(100_000, 0, -1), range(0, 10_000_000, 100)], ids=["earlier", "later"]
    )
    def test_marks_of_what_was_cancelled_do_not_pile_up(self, deadlines: range) -> None:
        heap = TimerHeap()
        (living,) = add(heap, 20_000_000)
        for deadline in deadlines:
            (one,) = add(heap, deadline)
            heap.cancel(one)
            assert len(heap.heap) <= 3 * DROP_ABOVE
            assert len(heap._far) <= 3 * DROP_ABOVE
        assert len(heap) == 1
        assert heap.pop_due(20_000_000) == [living]

    def test_earlier_and_earlier(self) -> None:
        heap = TimerHeap()
        timers = add(heap, *range(10_000, 0, -1))
        assert heap.next_deadline() == 1
        assert len(heap) == 10_000
        assert heap.pop_due(10_000) == timers[::-1]

    def test_a_destructor_that_adds_while_a_window_is_made(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        heap = TimerHeap()
        added: list[Timer] = []

        class Makes(timers._Window):
            __slots__ = ()

            def __init__(self) -> None:
                super().__init__()
                if not added:
                    added.append(Timer())
                    added[:] = add(heap, 100)

        monkeypatch.setattr(timers, "_Window", Makes)
        (late,) = add(heap, 101)
        assert len(heap) == 2
        assert heap.pop_due(200) == [*added, late]

    def test_iterates_over_all_that_wait(self) -> None:
        heap = opened()
        timers = add(heap, 1, 2, 30, 31, 99)
        assert {*heap} == {*timers}

    def test_what_was_always_due(self) -> None:
        heap = TimerHeap()
        later, always = add(heap, 5, -math.inf)
        assert heap.next_deadline() == -math.inf
        assert heap.pop_due(0) == [always]
        assert heap.pop_due(5) == [later]

    def test_what_will_never_be_due(self) -> None:
        heap = TimerHeap()
        never, other = add(heap, math.inf, math.inf)
        heap.cancel(never)
        assert len(heap) == 1
        assert heap.next_deadline() == other.deadline
        assert heap.pop_due(1e9) == []


class TestCompaction:
    def test_starts_above_its_limit(self) -> None:
        heap = opened()
        timers = add(heap, *soon(COMPACT_ABOVE + 1))
        for one in timers[:COMPACT_ABOVE]:
            heap.cancel(one)
        assert len(heap.heap) == COMPACT_ABOVE + 1
        assert len(heap) == 1
        heap.cancel(timers[-1])
        assert heap.next_deadline() is None
        assert len(heap.heap) == 0
        assert len(heap) == 0

    def test_waits_until_the_dead_outnumber_the_living(self) -> None:
        heap = opened()
        timers = add(heap, *soon(400))
        for one in timers[200:]:
            heap.cancel(one)
        assert heap.next_deadline() == 0
        assert len(heap.heap) == 400
        heap.cancel(timers[199])
        assert heap.next_deadline() == 0
        assert len(heap.heap) == 199
        assert heap.pop_due(1000) == timers[:199]

    def test_cancelling_many_compacts_once(self) -> None:
        heap = opened()
        for one in add(heap, *soon(1000)):
            heap.cancel(one)
        assert len(heap.heap) == 1000
        add(heap, 5)
        assert len(heap.heap) == 1

    def test_many_cancelled_time_outs_occupy_little(self) -> None:
        heap = opened()
        living = add(heap, *soon(1000))
        largest = 0
        for _ in range(200_000):
            (one,) = add(heap, WINDOW - 0.5)
            heap.cancel(one)
            largest = max(largest, len(heap.heap))
        assert largest <= 2 * len(living) + 3
        assert heap.pop_due(2000) == living

    @pytest.mark.parametrize("make", [opened, TimerHeap])
    def test_a_destructor_that_cancels_keeps_the_count_right(
        self, make: Callable[[], TimerHeap]
    ) -> None:
        heap = make()

        (survivor,) = add(heap, 1)
        others = add(heap, *soon(2 * COMPACT_ABOVE))
        outer = heap.add(0.5, Cancels(heap, others), (), Context())
        heap.cancel(outer)
        assert len(heap) == 1
        assert [one for one in heap if one.callback is not None] == [survivor]
        assert heap.pop_due(1000) == [survivor]
        assert len(heap) == 0


Step = tuple[str, int]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["add", "add", "cancel", "cancel", "pop", "look"]), st.integers(0, 100)
        ),
        max_size=400,
    )
)
def test_it_behaves_as_a_sorted_list(steps: list[Step]) -> None:
    heap = TimerHeap()
    known: list[Timer] = []
    model: list[Timer] = []
    for what, number in steps:
        if what == "add":
            (one,) = add(heap, number)
            known.append(one)
            model.append(one)
            model.sort(key=lambda each: each.deadline)
        elif what == "cancel" and known:
            one = known[-(number % len(known)) - 1]
            heap.cancel(one)
            model = [each for each in model if each is not one]
        elif what == "pop":
            assert heap.pop_due(number) == [each for each in model if each.deadline <= number]
            model = [each for each in model if each.deadline > number]
        elif what == "look":
            exact = model[0].deadline if model else None
            look = heap.next_deadline()
            while look is not None and exact is not None and look < exact:
                # The earliest of a window was cancelled: there is nothing yet.
                assert heap.pop_due(look) == []
                look = heap.next_deadline()
            assert look == exact
        assert len(heap) == len(model)


def test_repr_tells_the_state() -> None:
    (one,) = add(TimerHeap(), 12.5)
    assert repr(one) == f"<Timer at 12.500 calls {nothing!r}>"
    one.spend()
    assert repr(one) == "<Timer at 12.500 spent>"
