"""Locks for coroutines: ``Lock``, ``Semaphore``, ``BoundedSemaphore``, ``Event``, ``Condition``.

Waiters stand in line in order of arrival. What a waiter is given is his from the very call of
``release`` or ``notify``, although his coroutine runs only in a later turn; nobody who comes
between can take it. If that coroutine is cancelled before it runs, it never learns of the gift,
and the gift goes back (``Waiter._unclaimed``).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeAlias

from coro.errors import TimeoutError
from coro.future import PENDING, Future, slot
from coro.timers import Timer

__all__ = ["BoundedSemaphore", "Condition", "Event", "Line", "Lock", "Semaphore", "Waiter"]

Deadline: TypeAlias = float | timedelta | None


class Waiter(Future[Any]):
    """The future of somebody in a line. He leaves it when he is cancelled or his time is over."""

    __slots__ = ("_line", "_timer", "item")

    def __init__(self, line: Line, deadline: Deadline = None, item: Any = None) -> None:
        super().__init__(loop=slot.running or slot.loop())
        self._line = line
        # What he brings along: the item for which a full queue has no room yet.
        self.item = item
        self._timer: Timer | None = None
        if deadline is not None:
            self._timer = self._loop.add_timeout(deadline, self._expire)

    def _expire(self) -> None:
        self._timer = None
        if self._state == PENDING:
            self._line.remove(self)
            self._line.on_timeout(self)

    def serve(self, result: Any) -> None:
        """Give him what he waits for; he stands in no line any more."""
        self._stop_timer()
        self.set_result(result)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._loop.remove_timeout(self._timer)
            self._timer = None

    def cancel(self, msg: Any = None) -> bool:
        """Leave the line."""
        if self._state != PENDING:
            return False
        self._stop_timer()
        self._line.remove(self)
        return super().cancel(msg)

    def _unclaimed(self) -> None:
        self._line.on_unclaimed(self)


def _raise_timeout(waiter: Waiter) -> None:
    waiter.set_exception(TimeoutError("Timeout"))


def _nothing(_waiter: Waiter) -> None:
    """What was given is of no use to others."""


class Line:
    """Waiters, first come, first served; to leave is O(1) wherever one stands.

    Arguments:
        on_timeout: called with a waiter whose time is over, out of the line already.
        on_unclaimed: called with one who was served, and cancelled before he could know.
    """

    __slots__ = ("_waiters", "on_timeout", "on_unclaimed")

    def __init__(
        self,
        on_timeout: Callable[[Waiter], Any] = _raise_timeout,
        on_unclaimed: Callable[[Waiter], Any] = _nothing,
    ) -> None:
        self._waiters: OrderedDict[Waiter, None] = OrderedDict()
        self.on_timeout = on_timeout
        self.on_unclaimed = on_unclaimed

    def __len__(self) -> int:
        return len(self._waiters)

    def join(self, deadline: Deadline = None, item: Any = None) -> Waiter:
        """Stand in line until served, or until a deadline (loop's time, or from now)."""
        waiter = Waiter(self, deadline, item)
        self._waiters[waiter] = None
        return waiter

    def pass_through(self, result: Any) -> Waiter:
        """Be served at once."""
        waiter = Waiter(self)
        waiter.set_result(result)
        return waiter

    def remove(self, waiter: Waiter) -> None:
        """Let a waiter leave."""
        self._waiters.pop(waiter, None)

    def pop(self) -> Waiter:
        """Take the first waiter out of the line, to be served."""
        return self._waiters.popitem(last=False)[0]


class Condition:
    """Coroutines wait until they are notified. It needs no lock: turns do not overlap."""

    def __init__(self) -> None:
        self._line = Line(on_timeout=_time_out_with_false, on_unclaimed=self._pass_on)

    def __repr__(self) -> str:
        waiting = f" waiters[{len(self._line)}]" if len(self._line) else ""
        return f"<{type(self).__name__}{waiting}>"

    def wait(self, timeout: Deadline = None) -> Future[bool]:
        """Wait to be notified; the result is True, or False if the time was over before.

        Arguments:
            timeout: a deadline in terms of ``loop.time()``, or a ``timedelta`` from now.
        """
        return self._line.join(timeout)

    def notify(self, n: int = 1) -> None:
        """Wake the first ``n`` waiters."""
        for _ in range(min(n, len(self._line))):
            self._line.pop().serve(True)

    def notify_all(self) -> None:
        """Wake all waiters."""
        self.notify(len(self._line))

    def _pass_on(self, waiter: Waiter) -> None:
        if waiter.result():
            self.notify()


def _time_out_with_false(waiter: Waiter) -> None:
    waiter.set_result(False)


class Event:
    """A flag that coroutines wait for."""

    def __init__(self) -> None:
        self._value = False
        self._line = Line()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {'set' if self._value else 'clear'}>"

    def is_set(self) -> bool:
        """Whether it is set."""
        return self._value

    def set(self) -> None:
        """Set it: all waiters go on, and later ones do not wait."""
        self._value = True
        while len(self._line):
            self._line.pop().serve(None)

    def clear(self) -> None:
        """Clear it: from now on ``wait`` waits."""
        self._value = False

    def wait(self, timeout: Deadline = None) -> Future[None]:
        """Wait until it is set.

        Arguments:
            timeout: a deadline in terms of ``loop.time()``, or a ``timedelta`` from now.
        Raises:
            TimeoutError: (in the future) the time was over before.
        """
        return self._line.pass_through(None) if self._value else self._line.join(timeout)


class _Permit:
    """What ``acquire`` gives: a ``with`` block that releases at its end."""

    __slots__ = ("_semaphore",)

    def __init__(self, semaphore: Semaphore) -> None:
        self._semaphore = semaphore

    def __enter__(self) -> None:
        """The permit is held already."""

    def __exit__(self, *_error: object) -> None:
        self._semaphore.release()


class Semaphore:
    """At most ``value`` coroutines at once: ``with (yield semaphore.acquire()): ...``.

    Arguments:
        value: how many.
    """

    def __init__(self, value: int = 1) -> None:
        if value < 0:
            raise ValueError("semaphore initial value must be >= 0")
        # Invariant: while anybody stands in line, no permit is free.
        self._value = value
        self._line = Line(on_unclaimed=self._take_back)

    def __repr__(self) -> str:
        state = f"unlocked,value:{self._value}" if self._value else "locked"
        waiting = f",waiters:{len(self._line)}" if len(self._line) else ""
        return f"<{type(self).__name__} [{state}{waiting}]>"

    def acquire(self, timeout: Deadline = None) -> Future[_Permit]:
        """Wait for a permit.

        Arguments:
            timeout: a deadline in terms of ``loop.time()``, or a ``timedelta`` from now.
        Raises:
            TimeoutError: (in the future) the time was over before.
        """
        if self._value == 0:
            return self._line.join(timeout)
        self._value -= 1
        return self._line.pass_through(_Permit(self))

    def release(self) -> None:
        """Give a permit back: to the first in line, if there is one."""
        if len(self._line):
            self._line.pop().serve(_Permit(self))
        else:
            self._value += 1

    def _take_back(self, _waiter: Waiter) -> None:
        self.release()

    def __enter__(self) -> None:
        name = type(self).__name__
        raise RuntimeError(
            f"use 'with (yield {name.lower()}.acquire()):' or 'async with {name.lower()}:'; "
            f"'with {name.lower()}:' alone cannot wait"
        )

    def __exit__(self, *_error: object) -> None:
        self.__enter__()

    async def __aenter__(self) -> None:
        await self.acquire()

    async def __aexit__(self, *_error: object) -> None:
        self.release()


class BoundedSemaphore(Semaphore):
    """A semaphore that refuses to be released more often than it was acquired.

    Arguments:
        value: how many permits there are.
    """

    def __init__(self, value: int = 1) -> None:
        super().__init__(value)
        self._initial_value = value

    def release(self) -> None:
        """Give a permit back.

        Raises:
            ValueError: none was taken.
        """
        if self._value >= self._initial_value:
            raise ValueError("Semaphore released too many times")
        super().release()


class Lock:
    """One coroutine at a time: ``with (yield lock.acquire()): ...``."""

    def __init__(self) -> None:
        self._block = BoundedSemaphore(1)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} _block={self._block}>"

    def acquire(self, timeout: Deadline = None) -> Future[_Permit]:
        """Wait for the lock.

        Arguments:
            timeout: a deadline in terms of ``loop.time()``, or a ``timedelta`` from now.
        Raises:
            TimeoutError: (in the future) the time was over before.
        """
        return self._block.acquire(timeout)

    def release(self) -> None:
        """Unlock: the first in line gets it.

        Raises:
            RuntimeError: it is not locked.
        """
        try:
            self._block.release()
        except ValueError:
            raise RuntimeError("release unlocked lock") from None

    def __enter__(self) -> None:
        raise RuntimeError(
            "use 'with (yield lock.acquire()):' or 'async with lock:'; "
            "'with lock:' alone cannot wait"
        )

    def __exit__(self, *_error: object) -> None:
        self.__enter__()

    async def __aenter__(self) -> None:
        await self.acquire()

    async def __aexit__(self, *_error: object) -> None:
        self.release()
