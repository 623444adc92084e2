"""The deadline heap, against a sorted list as its model."""

from __future__ import annotations

import weakref
from contextvars import Context

from hypothesis import given
from hypothesis import strategies as st

from coro.timers import CONTEXT, Timer, TimerHeap

COMPACT_ABOVE = 64


def nothing() -> None:
    """A callback."""


def add(heap: TimerHeap, *deadlines: float) -> list[Timer]:
    return [heap.add(deadline, nothing, (), Context()) for deadline in deadlines]


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
        assert heap.next_deadline() == 2
        assert heap.pop_due(9) == [second]

    def test_twice_counts_once(self) -> None:
        heap = TimerHeap()
        first, _second = add(heap, 1, 2)
        heap.cancel(first)
        heap.cancel(first)
        assert len(heap) == 1

    def test_after_it_surfaced_counts_once(self) -> None:
        heap = TimerHeap()
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


class TestCompaction:
    def test_starts_above_its_limit(self) -> None:
        heap = TimerHeap()
        timers = add(heap, *range(COMPACT_ABOVE + 1))
        for one in timers[:COMPACT_ABOVE]:
            heap.cancel(one)
        assert len(heap.heap) == COMPACT_ABOVE + 1
        assert len(heap) == 1
        heap.cancel(timers[-1])
        assert heap.next_deadline() is None
        assert len(heap.heap) == 0
        assert len(heap) == 0

    def test_waits_until_the_dead_outnumber_the_living(self) -> None:
        heap = TimerHeap()
        timers = add(heap, *range(400))
        for one in timers[200:]:
            heap.cancel(one)
        assert heap.next_deadline() == 0
        assert len(heap.heap) == 400
        heap.cancel(timers[199])
        assert heap.next_deadline() == 0
        assert len(heap.heap) == 199
        assert heap.pop_due(1000) == timers[:199]

    def test_cancelling_many_compacts_once(self) -> None:
        heap = TimerHeap()
        for one in add(heap, *range(1000)):
            heap.cancel(one)
        assert len(heap.heap) == 1000
        add(heap, 5)
        assert len(heap.heap) == 1

    def test_many_cancelled_time_outs_occupy_little(self) -> None:
        heap = TimerHeap()
        living = add(heap, *range(1000))
        largest = 0
        for number in range(200_000):
            (one,) = add(heap, 3600.0 + number)
            heap.cancel(one)
            largest = max(largest, len(heap.heap))
        assert largest <= 2 * len(living) + 3
        assert heap.pop_due(2000) == living

    def test_a_destructor_that_cancels_keeps_the_count_right(self) -> None:
        heap = TimerHeap()

        class Cancels:
            def __init__(self, others: list[Timer]) -> None:
                self.others = others

            def __call__(self) -> None:
                """Never called."""

            def __del__(self) -> None:
                for other in self.others:
                    heap.cancel(other)

        (survivor,) = add(heap, 1)
        others = add(heap, *range(2, 2 + 2 * COMPACT_ABOVE))
        outer = heap.add(0.5, Cancels(others), (), Context())
        heap.cancel(outer)
        assert len(heap) == 1
        assert sum(one.callback is None for one in heap.heap) == len(heap.heap) - 1
        assert heap.pop_due(1000) == [survivor]
        assert len(heap) == 0


Step = tuple[str, int]


@given(
    st.lists(
        st.tuples(st.sampled_from(["add", "add", "cancel", "cancel", "pop"]), st.integers(0, 50)),
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
        assert len(heap) == len(model)
        assert heap.next_deadline() == (model[0].deadline if model else None)


def test_repr_tells_the_state() -> None:
    (one,) = add(TimerHeap(), 12.5)
    assert repr(one) == f"<Timer at 12.500 calls {nothing!r}>"
    one.spend()
    assert repr(one) == "<Timer at 12.500 spent>"
