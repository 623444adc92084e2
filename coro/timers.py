"""The waiting timers, ordered by deadline. Pure: the room knows no clock and calls nothing.

Most timers of a network program are time-outs that never fire: they are added, and cancelled when
the work they guard ends in time. What an addition and its cancellation cost, and the memory that
they leave, shall not depend on how many others wait.

So a timer stands in the set of all whose deadlines fall into one window of some seconds, and leaves
it when it is cancelled. For each window a mark stands in a heap; when that is due, the window's
timers go to the heap, where they are sorted. What falls due in a window that was opened already
goes to the heap at once. Cancelling a timer of the heap is one store (its callback becomes None),
and the dead entry stays until it surfaces, or until the dead outnumber the living: then, at the
next addition or look, the heap is rebuilt without them, at O(n) once per n cancellations.

A timer *is* its entry, the list ``[deadline, number, callback, args, context, window]``: one object
instead of two, and ``heapq`` compares lists in C. The running number makes equal deadlines fire
first in, first out, and no comparison goes beyond it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextvars import Context
from heapq import heapify, heappop, heappush
from math import inf, isnan
from operator import itemgetter
from typing import Any

__all__ = ["Timer", "TimerHeap"]

# So many cancelled timers, and marks, may stand in the heap before it is looked at for them.
_COMPACT_ABOVE = 64
_DROP_ABOVE = 1000

# Seconds of a window.
_WINDOW = 16.0

# Places in a timer.
DEADLINE, NUMBER, CALLBACK, ARGS, CONTEXT, WINDOW = range(6)

# The number of a timer that does not wait any more; and that of a mark, whose callback is the key
# of its window.
_OUT = -1
_MARK = 0


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
        self[CALLBACK:] = (None, (), None, None)

    def __repr__(self) -> str:
        callback = self[CALLBACK]
        state = "spent" if callback is None else f"calls {callback!r}"
        return f"<Timer at {self[DEADLINE]:.3f} {state}>"


class _Window(set[Timer]):
    """The timers whose deadlines fall into some seconds, until the first of these is due."""

    __slots__ = ("first",)

    # The deadline of its earliest mark.
    first: float


class TimerHeap:
    """Timers ordered by deadline, equal deadlines in the order in which they were added."""

    __slots__ = ("_added", "_cancelled", "_far", "_marks", "_most_marks", "_opened", "heap")

    def __init__(self) -> None:
        self.heap: list[Timer] = []
        self._added = 0
        # Invariant: so many timers in ``heap`` have no callback.
        self._cancelled = 0
        # Invariant: so many entries of ``heap`` are marks; and how many there may be before it is
        # looked which are of use.
        self._marks = 0
        self._most_marks = _DROP_ABOVE
        self._far: dict[float, _Window] = {}
        # What is due before stands in the heap.
        self._opened = -inf

    def __len__(self) -> int:
        """How many timers are waiting, cancelled ones not counted."""
        near = len(self.heap) - self._cancelled - self._marks
        return near + sum(map(len, self._far.values()))

    def __iter__(self) -> Iterator[Timer]:
        """Iterate over what waits, in no order; cancelled ones may be among them."""
        yield from (timer for timer in self.heap if timer[NUMBER] != _MARK)
        for window in self._far.values():
            yield from window

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
        if deadline >= self._opened:
            key = deadline // _WINDOW
            window = self._far.get(key)
            if window is None and not isnan(key):  # as it is of the infinite
                fresh = _Window()
                fresh.first = inf
                # A destructor can run whenever something is made, and add a timer.
                window = self._far.setdefault(key, fresh)
            if window is not None:
                timer = Timer((deadline, number, callback, args, context, window))
                window.add(timer)
                if deadline < window.first:
                    window.first = deadline
                    heappush(self.heap, Timer((deadline, _MARK, key, (), None, None)))
                    self._marks += 1
                    if self._marks > self._most_marks:
                        self._drop_marks()
                return timer
        timer = Timer((deadline, number, callback, args, context, None))
        heappush(self.heap, timer)
        if self._cancelled > _COMPACT_ABOVE:
            self._compact()
        return timer

    def cancel(self, timer: Timer) -> None:
        """Cancel a timer, also one that is due in this very turn and does not wait any more."""
        _, number, callback, args, context, window = timer
        if callback is None:
            return
        # What the timer held dies when this call returns, not before: a destructor may cancel too.
        timer[CALLBACK] = None
        timer[ARGS] = ()
        timer[CONTEXT] = None
        if window is not None:
            timer[WINDOW] = None
            window.remove(timer)
            if not window:
                # By itself a set keeps the room of the most that it ever held.
                window.clear()
        elif number != _OUT:
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

    def _drop_marks(self) -> None:
        """Drop all marks but the earliest of each window, and many windows without timers.

        Not each that becomes empty: the next timer is likely to fall into it again.
        """
        if len(self._far) > _DROP_ABOVE:
            self._far = {key: window for key, window in self._far.items() if window}
        firsts = {key: window.first for key, window in self._far.items()}
        self.heap[:] = [
            timer
            for timer in self.heap
            if timer[NUMBER] != _MARK or firsts.get(timer[CALLBACK]) == timer[DEADLINE]
        ]
        heapify(self.heap)
        self._marks = sum(timer[NUMBER] == _MARK for timer in self.heap)
        self._most_marks = 2 * self._marks + _DROP_ABOVE

    def next_deadline(self) -> float | None:
        """When to look for what is due; None if no timer waits.

        It is the earliest deadline, or, where the earliest of a window was cancelled, a moment
        before.
        """
        if self._cancelled > _COMPACT_ABOVE:
            self._compact()
        heap = self.heap
        while heap:
            timer = heap[0]
            if timer[NUMBER] == _MARK:
                key = timer[CALLBACK]
                if self._far.get(key):
                    return timer[DEADLINE]  # type: ignore[no-any-return]
                heappop(heap)
                self._marks -= 1
                self._far.pop(key, None)
            elif timer[CALLBACK] is not None:
                return timer[DEADLINE]  # type: ignore[no-any-return]
            else:
                self._pop()
        return None

    def pop_due(self, now: float) -> list[Timer]:
        """Take out the timers whose deadline is not later than ``now``, in order."""
        heap = self.heap
        due: list[Timer] = []
        while heap and heap[0][DEADLINE] <= now:
            if heap[0][NUMBER] == _MARK:
                self._open()
                continue
            timer = self._pop()
            if timer[CALLBACK] is not None:
                due.append(timer)
        return due

    def _open(self) -> None:
        """Let the timers of the window whose mark is the first go to the heap."""
        key = heappop(self.heap)[CALLBACK]
        self._marks -= 1
        self._opened = max(self._opened, (key + 1) * _WINDOW)
        # A destructor can run at any step, and cancel one of them.
        for timer in list(self._far.pop(key, ())):
            if timer[CALLBACK] is not None:
                timer[WINDOW] = None
                heappush(self.heap, timer)

    def _pop(self) -> Timer:
        timer = heappop(self.heap)
        timer[NUMBER] = _OUT
        if timer[CALLBACK] is None:
            self._cancelled -= 1
        return timer

    def clear(self) -> None:
        """Cancel every timer."""
        waiting = sorted(self, key=itemgetter(NUMBER))
        self.heap.clear()
        self._far.clear()
        self._cancelled = self._marks = 0
        for timer in waiting:
            timer[NUMBER] = _OUT
            timer[WINDOW] = None
        # What they hold may cancel others.
        for timer in waiting:
            timer.spend()
