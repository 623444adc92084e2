"""The deadline heap: O(log n) to add, O(1) to cancel. Pure: it knows no clock and calls nothing.

Most timers of a network program are time-outs that never fire: they are added, and cancelled when
the work they guard ends in time. So cancelling is one store (the timer's callback becomes None) and
the dead entry stays in the heap until it surfaces, or until the dead outnumber the living: then, at
the next addition or look, the heap is rebuilt without them, so that a million cancelled time-outs
of an hour do not occupy memory for an hour. The rebuild costs O(n) once per n cancellations, hence
O(1) each.

A timer *is* its entry in the heap, the list ``[deadline, number, callback, args, context]``: one
object instead of two, and ``heapq`` compares lists in C. The running number makes equal deadlines
fire first in, first out, and no comparison goes beyond it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import Context
from heapq import heapify, heappop, heappush
from typing import Any

__all__ = ["Timer", "TimerHeap"]

_COMPACT_ABOVE = 64

# Places in a timer.
DEADLINE, NUMBER, CALLBACK, ARGS, CONTEXT = range(5)

# The number of a timer that is not in the heap any more.
_OUT = -1


class Timer(list[Any]):
    """A callback that is due at a deadline; the handle by which it is cancelled."""

    __slots__ = ()

    __eq__ = object.__eq__
    __hash__ = object.__hash__  # type: ignore[assignment]

    @property
    def deadline(self) -> float:
        """When it is due, in the clock's seconds."""
        return self[DEADLINE]  # type: ignore[no-any-return]

    @property
    def callback(self) -> Callable[..., Any] | None:
        """What is called, or None once it has fired or was cancelled."""
        return self[CALLBACK]  # type: ignore[no-any-return]

    def spend(self) -> None:
        """Drop the callback and all that it holds."""
        self[CALLBACK:] = (None, (), None)

    def __repr__(self) -> str:
        callback = self[CALLBACK]
        state = "spent" if callback is None else f"calls {callback!r}"
        return f"<Timer at {self[DEADLINE]:.3f} {state}>"


class TimerHeap:
    """Timers ordered by deadline, equal deadlines in the order in which they were added."""

    __slots__ = ("_added", "_cancelled", "heap")

    def __init__(self) -> None:
        self.heap: list[Timer] = []
        self._added = 0
        # Invariant: the number of timers in ``heap`` that have no callback.
        self._cancelled = 0

    def __len__(self) -> int:
        """How many timers are waiting, cancelled ones not counted."""
        return len(self.heap) - self._cancelled

    def add(
        self,
        deadline: float,
        callback: Callable[..., Any],
        args: tuple[Any, ...],
        context: Context | None,
    ) -> Timer:
        """Take in a new timer and return it.

        Arguments:
            deadline: when it is due, in the clock's seconds.
            callback: what to call, with ``args``, in ``context``.
        """
        self._added = number = self._added + 1
        timer = Timer((deadline, number, callback, args, context))
        heappush(self.heap, timer)
        if self._cancelled > _COMPACT_ABOVE:
            self._compact()
        return timer

    def cancel(self, timer: Timer) -> None:
        """Cancel a timer, also one that is due in this very turn and not in the heap any more."""
        _, number, callback, args, context = timer
        if callback is None:
            return
        # What the timer held dies when this call returns, not before: a destructor may cancel too.
        timer[CALLBACK] = None
        timer[ARGS] = ()
        timer[CONTEXT] = None
        if number != _OUT:
            self._cancelled += 1
        del args, context

    def _compact(self) -> None:
        """Drop the cancelled ones if they are more than half.

        Not in ``cancel``: who cancels many at once would pay for it again and again.
        """
        if self._cancelled * 2 > len(self.heap):
            # In place: a destructor can run in the middle of ``add``.
            self.heap[:] = [timer for timer in self.heap if timer[CALLBACK] is not None]
            heapify(self.heap)
            self._cancelled = 0

    def next_deadline(self) -> float | None:
        """The earliest deadline of a timer that is not cancelled, or None."""
        if self._cancelled > _COMPACT_ABOVE:
            self._compact()
        heap = self.heap
        while heap:
            timer = heap[0]
            if timer[CALLBACK] is not None:
                return timer[DEADLINE]  # type: ignore[no-any-return]
            self._pop()
        return None

    def pop_due(self, now: float) -> list[Timer]:
        """Take out the timers whose deadline is not later than ``now``, in order."""
        heap = self.heap
        due: list[Timer] = []
        while heap and heap[0][DEADLINE] <= now:
            timer = self._pop()
            if timer[CALLBACK] is not None:
                due.append(timer)
        return due

    def _pop(self) -> Timer:
        timer = heappop(self.heap)
        timer[NUMBER] = _OUT
        if timer[CALLBACK] is None:
            self._cancelled -= 1
        return timer

    def clear(self) -> None:
        """Cancel every timer."""
        for timer in self.heap:
            timer[NUMBER] = _OUT
            timer.spend()
        self.heap.clear()
        self._cancelled = 0
