"""Locks for coroutines: ``Lock``, ``Semaphore``, ``BoundedSemaphore``, ``Event``, ``Condition``.

Waiters stand in a line in order of arrival (``Line``). What a waiter is given is his from the very
call of ``release`` or ``notify``, although his coroutine runs only in a later turn; nobody who
comes between can take it.

If that coroutine is cancelled before it runs, it never learns of the gift, and the gift goes back:
the engine tells the future (``_unclaimed``), and the future its giver (``_take_back``). The future
is then cancelled in hindsight, so that nobody finds in it what another has by now. Where several
wait for one future, only the last of them to be cancelled gives the gift back.
"""

from __future__ import annotations

from collections import deque
from datetime import timedelta
from threading import get_ident
from types import TracebackType
from typing import Any, ClassVar, Protocol, TypeAlias

from coro.errors import TimeoutError
from coro.future import CANCELLED, DONE, PENDING, Future, slot
from coro.timers import Timer

__all__ = [
    "BoundedSemaphore",
    "Condition",
    "Event",
    "Gift",
    "Line",
    "Lock",
    "Semaphore",
    "Waiter",
    "done",
]

Deadline: TypeAlias = float | timedelta | None


class Giver(Protocol):
    """Who wants back what could not be delivered."""

    def _take_back(self, gift: Any) -> None: ...


class Gift(Future[Any]):
    """A future that has its result from the start, in place of a wait that was not necessary."""

    __slots__ = ("_giver",)

    def __init__(self, gift: Any, giver: Giver | None) -> None:
        # ``Future.__init__`` spelt out: a call less in each operation.
        self._loop = None
        self._state = DONE
        self._value = gift
        self._waiter = None
        self._others = None
        self._asyncio_future_blocking = False
        self._giver = giver

    def _unclaimed(self) -> None:
        giver = self._giver
        if giver is not None:
            self._giver = None
            gift, self._value = self._value, None
            self._state = CANCELLED
            giver._take_back(gift)


def done() -> Gift:
    """A future that is done and gave nothing."""
    return Gift(None, None)


class Line(deque["Waiter"]):
    """Waiters, first come, first served.

    Whoever gives up stays where he is until he comes to the front, or until those who gave up are
    more than those who wait: so every operation is O(1) in the long run.
    """

    __slots__ = ("_gone",)

    def __init__(self) -> None:
        super().__init__()
        # Invariants: so many in the line have given up; the first has not.
        self._gone = 0

    def count(self) -> int:  # type: ignore[override]
        """How many wait."""
        return len(self) - self._gone

    def serve(self, gift: Any) -> None:
        """Give the first waiter, of whom there must be one, what he waits for."""
        waiter = self[0]
        loop = waiter._loop
        if loop is not None and loop._thread is not None and loop._thread != get_ident():
            waiter._refuse_thread()
        self.popleft()
        if self._gone:
            self._close_ranks()
        if waiter._timer is not None:
            waiter._stop_timer()
        # ``_settle`` spelt out.
        waiter._state = DONE
        waiter._value = gift
        task = waiter._waiter
        if waiter._others is not None:
            waiter._wake()
        elif task is not None:
            waiter._waiter = None
            loop._ready.append(task)

    def give_up(self) -> None:
        """Take note that somebody in the line does not wait any more."""
        self._gone += 1
        self._close_ranks()

    def _close_ranks(self) -> None:
        while self and self[0]._state != PENDING:
            self.popleft()
            self._gone -= 1
        if self._gone > 16 and self._gone * 2 > len(self):
            waiting = [waiter for waiter in self if waiter._state == PENDING]
            self.clear()
            self.extend(waiting)
            self._gone = 0


class Waiter(Future[Any]):
    """The future of somebody in a line, which he leaves when he is cancelled or his time is over.

    Arguments:
        line: where he stands until he is served.
        giver: who takes his gift back if it cannot be delivered.
        deadline: in terms of ``loop.time()``, or from now.
    """

    __slots__ = ("_claims", "_giver", "_line", "_timer")

    # What he does, for dumps: the words before the giver, who is told where he is known.
    _doing: ClassVar[str] = "acquire"

    # How many wait for what he is given and have not turned out to be cancelled. Set if it is not
    # the one task that stands in ``_waiter``.
    _claims: int

    def __init__(self, line: Line, giver: Giver | None, deadline: Deadline) -> None:
        # ``Future.__init__`` spelt out: a call less in each operation.
        self._loop = slot.running or slot.found()
        self._state = PENDING
        self._value = None
        self._waiter = None
        self._others = None
        self._asyncio_future_blocking = False
        self._giver = giver
        self._line = line
        self._timer: Timer | None = None
        if deadline is not None:
            self._timer = self._require_loop().add_timeout(deadline, self._expire)
        line.append(self)

    def cancel(self, msg: Any = None) -> bool:
        """Leave the line."""
        if not super().cancel(msg):
            return False
        self._leave()
        return True

    def _expire(self) -> None:
        if self._state == PENDING:
            self._time_out()
            self._leave()

    def _time_out(self) -> None:
        self.set_exception(TimeoutError("Timeout"))

    def _take_error(self) -> BaseException:
        error = super()._take_error()
        if type(error) is TimeoutError:
            # The line may keep this future for a while; but not the frames that the error has seen.
            self._value = TimeoutError(*error.args)
            self._traceback = None
        return error

    def _leave(self) -> None:
        self._line.give_up()
        if self._timer is not None:
            self._stop_timer()

    def _stop_timer(self) -> None:
        self._loop.remove_timeout(self._timer)
        self._timer = None

    def _wake(self) -> None:
        self._claims = (self._waiter is not None) + len(self._others or ())
        super()._wake()

    def _unclaimed(self) -> None:
        try:
            self._claims -= 1
            if self._claims > 0:
                return
        except AttributeError:
            pass
        giver = self._giver
        if giver is not None:
            self._giver = None
            gift, self._value = self._value, None
            self._state = CANCELLED
            giver._take_back(gift)

    def _awaited(self) -> str:
        giver, timer = self._giver, self._timer
        whose = f"{self._line.count()} in line" if giver is None else repr(giver)
        left = "" if timer is None else f", {self._left(timer)}"
        return f"{self._doing} {whose}{left}"


class _Notified(Waiter):
    """Who waits for a condition learns by the result that his time was over."""

    __slots__ = ()

    _doing = "wait for"

    def _time_out(self) -> None:
        self._giver = None
        self.set_result(False)


class Condition:
    """Coroutines wait until they are notified. It needs no lock: turns do not overlap."""

    def __init__(self) -> None:
        self._waiters = Line()

    def __repr__(self) -> str:
        waiting = f" waiters[{self._waiters.count()}]" if self._waiters else ""
        return f"<{type(self).__name__}{waiting}>"

    def wait(self, timeout: Deadline = None) -> Future[bool]:
        """Wait to be notified; the result is True, or False if the time was over before.

        Arguments:
            timeout: a deadline in terms of ``loop.time()``, or a ``timedelta`` from now.
        """
        return _Notified(self._waiters, self, timeout)

    def notify(self, n: int = 1) -> None:
        """Wake the first ``n`` waiters."""
        waiters = self._waiters
        for _ in range(min(n, waiters.count())):
            waiters.serve(True)

    def notify_all(self) -> None:
        """Wake all waiters."""
        waiters = self._waiters
        while waiters:
            # Nobody was passed over for his sake.
            waiters[0]._giver = None
            waiters.serve(True)

    def _take_back(self, _gift: object) -> None:
        self.notify()


class _Flagged(Waiter):
    """Who waits for an event."""

    __slots__ = ()

    _doing = "wait for an Event,"


class Event:
    """A flag that coroutines wait for."""

    def __init__(self) -> None:
        self._value = False
        self._waiters = Line()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {'set' if self._value else 'clear'}>"

    def is_set(self) -> bool:
        """Whether it is set."""
        return self._value

    def set(self) -> None:
        """Set it: all waiters go on, and later ones do not wait."""
        waiters = self._waiters
        while waiters:
            waiters.serve(None)
        self._value = True

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
        return done() if self._value else _Flagged(self._waiters, None, timeout)


class _Permit:
    """What ``acquire`` gives: a ``with`` block that releases at its end."""

    __slots__ = ("_giver",)

    def __init__(self, giver: _Permits) -> None:
        self._giver = giver

    def __enter__(self) -> None:
        """The permit is held already."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._giver.release()


class _Permits:
    """What a lock and a semaphore have in common: a number of permits, and a line for them."""

    def __init__(self, value: int) -> None:
        # Invariant: while anybody stands in line, no permit is free.
        self._value = value
        self._waiters = Line()

    def __repr__(self) -> str:
        waiting = f",waiters:{self._waiters.count()}" if self._waiters else ""
        return f"<{type(self).__name__} [{self._state()}{waiting}]>"

    def _state(self) -> str:
        return "unlocked" if self._value else "locked"

    def acquire(self, timeout: Deadline = None) -> Future[_Permit]:
        """Wait for a permit: ``with (yield x.acquire()): ...``.

        Arguments:
            timeout: a deadline in terms of ``loop.time()``, or a ``timedelta`` from now.
        Raises:
            TimeoutError: (in the future) the time was over before.
        """
        if self._value == 0:
            return Waiter(self._waiters, self, timeout)
        self._value -= 1
        return Gift(_Permit(self), self)

    def release(self) -> None:
        """Give a permit back: to the first in line, if there is one."""
        if self._waiters:
            self._waiters.serve(_Permit(self))
        else:
            self._value += 1

    def _take_back(self, _permit: _Permit) -> None:
        self.release()

    def __enter__(self) -> None:
        name = type(self).__name__.lower()
        raise RuntimeError(
            f"use 'with (yield {name}.acquire()):' or 'async with {name}:'; "
            f"'with {name}:' alone cannot wait"
        )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Never reached."""

    async def __aenter__(self) -> None:
        await self.acquire()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()


class Semaphore(_Permits):
    """At most ``value`` coroutines at once: ``with (yield semaphore.acquire()): ...``.

    Arguments:
        value: how many.
    """

    def __init__(self, value: int = 1) -> None:
        if value < 0:
            raise ValueError("semaphore initial value must be >= 0")
        super().__init__(value)

    def _state(self) -> str:
        return f"unlocked,value:{self._value}" if self._value else "locked"


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


class Lock(_Permits):
    """One coroutine at a time: ``with (yield lock.acquire()): ...``."""

    def __init__(self) -> None:
        super().__init__(1)

    def release(self) -> None:
        """Unlock: the first in line gets it.

        Raises:
            RuntimeError: it is not locked.
        """
        if self._waiters:
            self._waiters.serve(_Permit(self))
        elif self._value:
            raise RuntimeError("release unlocked lock")
        else:
            self._value = 1
