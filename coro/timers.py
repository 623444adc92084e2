"""The deadline heap: O(log n) to add, O(1) to cancel. Pure: it knows no clock and calls nothing.

Most timers of a network program are time-outs that never fire: they are added, and cancelled when
the work they guard ends in time. So cancelling is one store (the timer's callback becomes None) and
the dead entry stays in the heap until it surfaces, or until the dead outnumber the living: then, at
the next addition or look, the heap is rebuilt without them, so that a million cancelled time-outs
of an hour do not occupy memory for an hour. The rebuild costs O(n) once per n cancellations, hence
O(1) each.

Entries are tuples ``(deadline, number, timer)``: the running number makes equal deadlines fire
first in, first out, and keeps ``heapq`` comparing floats and ints in C.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import Context
from heapq import heapify, heappop, heappush
from typing import Any

__all__ = ["Timer", "TimerHeap"]

_COMPACT_ABOVE = 64


class Timer:
    """A callback that is due at a deadline; the handle by which it is cancelled.

    Attributes:
        deadline: when it is due, in the clock's seconds.
        callback: what to call, or None once it has fired or was cancelled.
        args: positional arguments of the callback.
        context: the ``contextvars`` context that the callback runs in.
        in_heap: whether an entry of the heap still refers to it.
    """

    __slots__ = ("args", "callback", "context", "deadline", "in_heap")

    def __init__(
        self,
        deadline: float,
        callback: Callable[..., Any],
        args: tuple[Any, ...],
        context: Context,
    ) -> None:
        self.deadline = deadline
        self.callback: Callable[..., Any] | None = callback
        self.args = args
        self.context: Context | None = context
        self.in_heap = True

    def clear(self) -> None:
        """Drop the callback and all that it holds."""
        self.callback = None
        self.args = ()
        self.context = None

    def __repr__(self) -> str:
        state = "spent" if self.callback is None else f"calls {self.callback!r}"
        return f"<Timer at {self.deadline:.3f} {state}>"


class TimerHeap:
    """Timers ordered by deadline, equal deadlines in the order in which they were added."""

    __slots__ = ("_added", "_cancelled", "heap")

    def __init__(self) -> None:
        self.heap: list[tuple[float, int, Timer]] = []
        self._added = 0
        # Invariant: the number of entries of ``heap`` whose timer has no callback.
        self._cancelled = 0

    def __len__(self) -> int:
        """How many timers are waiting, cancelled ones not counted."""
        return len(self.heap) - self._cancelled

    def add(
        self,
        deadline: float,
        callback: Callable[..., Any],
        args: tuple[Any, ...],
        context: Context,
    ) -> Timer:
        """Take in a new timer and return it."""
        timer = Timer(deadline, callback, args, context)
        self._added = added = self._added + 1
        heappush(self.heap, (deadline, added, timer))
        if self._cancelled > _COMPACT_ABOVE:
            self._compact()
        return timer

    def cancel(self, timer: Timer) -> None:
        """Cancel a timer, also one that is due in this very turn and not in the heap any more."""
        held = timer.callback, timer.args, timer.context
        if held[0] is None:
            return
        # What the timer held dies when this call returns, not before: a destructor may cancel too.
        timer.callback = None
        timer.args = ()
        timer.context = None
        if timer.in_heap:
            self._cancelled += 1

    def _compact(self) -> None:
        """Drop the cancelled ones if they are more than half.

        Not in ``cancel``: who cancels many at once would pay for it again and again.
        """
        if self._cancelled * 2 > len(self.heap):
            # In place: a destructor can run in the middle of ``add``.
            self.heap[:] = [entry for entry in self.heap if entry[2].callback is not None]
            heapify(self.heap)
            self._cancelled = 0

    def next_deadline(self) -> float | None:
        """The earliest deadline of a timer that is not cancelled, or None."""
        if self._cancelled > _COMPACT_ABOVE:
            self._compact()
        heap = self.heap
        while heap:
            deadline, _, timer = heap[0]
            if timer.callback is not None:
                return deadline
            heappop(heap)
            self._cancelled -= 1
        return None

    def pop_due(self, now: float) -> list[Timer]:
        """Take out the timers whose deadline is not later than ``now``, in order."""
        heap = self.heap
        due: list[Timer] = []
        while heap and heap[0][0] <= now:
            timer = heappop(heap)[2]
            timer.in_heap = False
            if timer.callback is None:
                self._cancelled -= 1
            else:
                due.append(timer)
        return due

    def clear(self) -> None:
        """Cancel every timer."""
        for _, _, timer in self.heap:
            timer.clear()
        self.heap.clear()
        self._cancelled = 0
