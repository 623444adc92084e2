"""Bounding and parting work: time limits, and what a cancellation does not pass through."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import timedelta
from types import TracebackType
from typing import Any, Self

from coro.errors import CancelledError, TimeoutError
from coro.future import CANCELLED, DONE, FAILED, PENDING, Future, slot
from coro.loop import IOLoop
from coro.task import convert_yielded, current_task_of
from coro.timers import Timer

__all__ = ["Timeout", "shield", "sleep", "timeout", "timeout_at", "with_timeout"]

_app_log = logging.getLogger("coro.application")

Quiet = type[BaseException] | tuple[type[BaseException], ...]


class _Sleep(Future[None]):
    """Settled by a timer; cancelling it removes the timer."""

    __slots__ = ("_timer",)

    def __init__(self, seconds: float) -> None:
        loop = slot.running or slot.loop()
        super().__init__(loop=loop)
        self._timer: Timer = loop.call_later(seconds, self._expire)

    def _expire(self) -> None:
        if self._state == PENDING:
            self.set_result(None)

    def cancel(self, msg: Any = None) -> bool:
        self._loop.remove_timeout(self._timer)
        return super().cancel(msg)

    def _describe(self) -> str:
        return f"sleep until {self._timer.deadline:.3f} {super()._describe()}"

    def _awaited(self) -> str:
        return f"sleep, {self._left(self._timer)}"


def sleep(duration: float) -> Future[None]:
    """Return a future that is done after ``duration`` seconds: ``yield sleep(0.5)``."""
    return _Sleep(duration)


class _Follower(Future[Any]):
    """Settled as its source is. Cancelling it leaves the source alone."""

    __slots__ = ("_source",)

    def __init__(self, source: Future[Any]) -> None:
        super().__init__(loop=slot.running or slot.loop())
        self._source: Future[Any] | None = source
        if source._state == PENDING:
            source._join(self._loop)
            source.add_done_callback(self._follow)
        else:
            self._follow(source)

    def _follow(self, source: Future[Any]) -> None:
        self._source = None
        if self._state == PENDING:
            self._settle_as(source)
        else:
            self._abandoned(source)

    def _abandoned(self, source: Future[Any]) -> None:
        """The source is settled when nobody waits any longer; its error logs itself."""

    def _awaited(self) -> str:
        return "shield"

    def _inputs(self) -> Sequence[tuple[str, Any]]:
        source = self._source
        return () if source is None else (("", source),)


class _Bounded(_Follower):
    """What ``with_timeout`` returns."""

    __slots__ = ("_message", "_quiet", "_timer")

    def __init__(
        self,
        deadline: float | timedelta,
        source: Future[Any],
        quiet: Quiet,
        message: str | Callable[[], str] | None,
    ) -> None:
        self._timer: Timer | None = None
        self._quiet = quiet
        self._message = message
        super().__init__(source)
        if self._state == PENDING:
            self._timer = self._loop.add_timeout(deadline, self._expire)

    def _expire(self) -> None:
        self._timer = None
        source = self._source
        # A source that is settled in this very turn came in time: its callback is under way.
        if self._state == PENDING and source is not None and source._state == PENDING:
            try:
                message = self._message() if callable(self._message) else self._message
            except Exception as error:
                self.set_exception(error)
            else:
                self.set_exception(TimeoutError("Timeout" if message is None else message))

    def _follow(self, source: Future[Any]) -> None:
        self._drop_timer()
        super()._follow(source)
        if self._state == DONE:
            self._source = source

    def _unclaimed(self) -> None:
        source = self._source
        if source is not None:
            source._unclaimed()
            if source._state == CANCELLED:
                # What it gave is somebody else's now.
                self._state = CANCELLED
                self._value = None

    def _abandoned(self, source: Future[Any]) -> None:
        if source._state == FAILED:
            error = source._take_error()
            if not isinstance(error, self._quiet):
                _app_log.error("Exception in Future %r after timeout", source, exc_info=error)

    def cancel(self, msg: Any = None) -> bool:
        self._drop_timer()
        if not super().cancel(msg):
            return False
        source = self._source
        if source is not None and source._state == DONE:
            # Settled in this very turn: nobody takes the result.
            source._unclaimed()
        return True

    def _drop_timer(self) -> None:
        if self._timer is not None:
            self._loop.remove_timeout(self._timer)
            self._timer = None

    def _awaited(self) -> str:
        timer = self._timer
        return "with_timeout" if timer is None else f"with_timeout, {self._left(timer)}"


def with_timeout(
    timeout: float | timedelta,
    future: Any,
    quiet_exceptions: Quiet = (),
    *,
    message: str | Callable[[], str] | None = None,
) -> Future[Any]:
    """Wait for something, but not longer than a deadline. What is waited for is not cancelled.

    Arguments:
        timeout: a deadline in terms of ``loop.time()``, or a ``timedelta`` from now.
        future: anything that can be yielded.
        quiet_exceptions: types of errors that are not logged if they come after the deadline.
        message: text of the ``TimeoutError``; a callable is called only if it is needed.
    Raises:
        TimeoutError: (in the returned future) the deadline came first.
    """
    return _Bounded(timeout, convert_yielded(future), quiet_exceptions, message)


def shield(future: Any) -> Future[Any]:
    """Wait for something without passing a cancellation on to it.

    Arguments:
        future: anything that can be yielded.
    """
    return _Follower(convert_yielded(future))


_CREATED, ACTIVE, _EXPIRING, _EXPIRED, _FINISHED = range(5)
_STATE_NAMES = ("created", "active", "expiring", "expired", "finished")


class Timeout:
    """A block whose work is cancelled when it runs over a deadline; see ``timeout``."""

    __slots__ = ("_cancelling", "_deadline", "_loop", "_state", "_task", "_timer")

    def __init__(self, when: float | None) -> None:
        self._deadline = when
        self._state = _CREATED
        self._timer: Timer | None = None

    # The task whose block it is (on a hosted loop it may be asyncio's), its loop, and how often it
    # was asked to cancel before; while active.
    _task: Any
    _loop: IOLoop
    _cancelling: int

    def __repr__(self) -> str:
        when = ""
        if self._state == ACTIVE:
            when = f" when={self._deadline if self._deadline is None else round(self._deadline, 3)}"
        return f"<Timeout [{_STATE_NAMES[self._state]}]{when}>"

    def when(self) -> float | None:
        """Return the deadline, in terms of ``loop.time()``; None if there is none."""
        return self._deadline

    def expired(self) -> bool:
        """Whether the deadline passed inside the block."""
        return self._state in (_EXPIRING, _EXPIRED)

    def reschedule(self, when: float | None) -> None:
        """Move the deadline (in terms of ``loop.time()``; None: none) while inside the block.

        Raises:
            RuntimeError: not inside the block, or it expired.
        """
        if self._state == _CREATED:
            raise RuntimeError("Timeout has not been entered")
        if self._state != ACTIVE:
            raise RuntimeError(f"Cannot change state of {_STATE_NAMES[self._state]} Timeout")
        self._deadline = when
        self._drop_timer()
        if when is not None:
            self._timer = self._loop.call_at(when, self.expire)

    def __enter__(self) -> Self:
        if self._state != _CREATED:
            raise RuntimeError("Timeout has already been entered: it serves for one block only")
        loop = slot.running or slot.found()
        task = current_task_of(loop)
        if task is None:
            raise RuntimeError(
                "Timeout should be used inside a task: in a coroutine, with timeout(5): yield ..."
            )
        self._state = ACTIVE
        self._task = task
        self._loop = loop
        self._cancelling = task.cancelling()
        if self._deadline is not None:
            self._timer = loop.call_at(self._deadline, self.expire)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._timer is not None:
            self._drop_timer()
        task = self._task
        del self._task, self._loop
        if self._state == ACTIVE:
            self._state = _FINISHED
            return
        self._state = _EXPIRED
        try:
            if task.uncancel() <= self._cancelling and error is not None:
                if isinstance(error, CancelledError):
                    raise TimeoutError("the block ran over its time limit") from error
                _tell_cause(error)
                if isinstance(error, ExceptionGroup):
                    for part in error.exceptions:
                        _tell_cause(part)
        finally:
            # The error refers to this frame, and the task may come to hold the error.
            task = error = part = None

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.__exit__(kind, error, traceback)

    def expire(self) -> None:
        """End the block now, as if its deadline had come."""
        self._drop_timer()
        if self._state == ACTIVE:
            self._state = _EXPIRING
            self._task.cancel()

    def _drop_timer(self) -> None:
        if self._timer is not None:
            self._loop.remove_timeout(self._timer)
            self._timer = None


def _tell_cause(error: BaseException) -> None:
    """Let an error that came in the wake of the limit's cancellation say that it was a limit."""
    while (context := error.__context__) is not None:
        if isinstance(context, CancelledError):
            cause = TimeoutError()
            cause.__cause__ = cause.__context__ = context
            error.__context__ = cause
            return
        error = context


def timeout(seconds: float | timedelta | None) -> Timeout:
    """Bound a block: ``with timeout(5): yield fetch(url)``.

    What the block waits for when the time is over is cancelled, its clean-up is waited for, and the
    block ends with ``TimeoutError``.

    Arguments:
        seconds: the limit, or None for no limit.
    """
    if seconds is None:
        return Timeout(None)
    if isinstance(seconds, timedelta):
        seconds = seconds.total_seconds()
    return Timeout((slot.running or slot.loop()).time() + seconds)


def timeout_at(deadline: float | None) -> Timeout:
    """Bound a block like ``timeout``, by a deadline in terms of ``loop.time()``."""
    return Timeout(deadline)
