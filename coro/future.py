"""``Future``: a result that comes later; and the thread's slot for the current loop.

A future is settled once: with a result, an error, or by being cancelled. Whoever waits is then put
into the ready queue of the loop, in order of arrival; nothing runs inside ``set_result``.

Two kinds wait. A task that yields the future stands in the single slot ``_waiter``, the usual case,
which costs one store. All others (callbacks, further tasks) stand in the list ``_others``. The
slot is only taken while the list is empty, so slot first and list after is the order of arrival.

A failure that nobody looks at is logged when the future dies. A ``__del__`` of the future itself
would cost every future; instead a failed one holds a small object whose only purpose is to die with
it, and which is disarmed by the first look.

Futures duck-type asyncio's protocol (``_asyncio_future_blocking``, ``get_loop``, callbacks with a
``context``), so that asyncio's tasks await them without a wrapper.
"""

from __future__ import annotations

import concurrent.futures
import logging
import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextvars import Context, copy_context
from threading import get_ident
from types import GenericAlias, TracebackType
from typing import Any, ClassVar, Generic, Protocol, cast

from typing_extensions import TypeVar

from coro.errors import CancelledError, InvalidStateError, WrongLoopError, WrongThreadError
from coro.timers import Timer

__all__ = ["Future", "Loop", "Slot", "chain_future", "is_future", "slot"]

T = TypeVar("T", default=Any)

PENDING, DONE, FAILED, CANCELLED = range(4)
_STATE_NAMES = ("pending", "done", "failed", "cancelled")

_log = logging.getLogger("coro.application")


class Runnable(Protocol):
    """What may stand in a ready queue besides ``(callback, args, context)``: a task."""

    def _run(self) -> object: ...


class Loop(Protocol):
    """As much of an ``IOLoop`` as a future needs to know."""

    _ready: deque[Any]
    _thread: int | None

    def add_callback(self, callback: Callable[..., Any], *args: Any) -> None: ...


class Slot(threading.local):
    """The current loop of a thread.

    Attributes:
        running: the loop that runs in this thread now, or None.
        current: the loop made current in this thread, or None.
    """

    running: Any = None
    current: Any = None

    @staticmethod
    def loop() -> Any:
        """The running loop, else the current one, else a new one; ``loop`` fills this in."""
        raise RuntimeError("no loop: import coro.loop")

    @staticmethod
    def hosted() -> Any:
        """The loop on the asyncio loop of this thread, or None; ``hosted`` fills this in."""
        return None

    def found(self) -> Any:
        """The running loop, also one that asyncio runs, else the current one, else None."""
        return self.running or self.hosted() or self.current


slot = Slot()


# What the log says of an error that was never retrieved.
UNRETRIEVED = "%s failed and nobody looked at its error"


class _Unretrieved:
    """Logs an error when it dies, unless it was disarmed: a failed future's last word."""

    __slots__ = ("error", "origin")

    def __init__(self, error: BaseException, origin: str) -> None:
        self.error: BaseException | None = error
        self.origin = origin

    def __del__(self) -> None:
        error = self.error
        if error is not None:
            _log.error(
                UNRETRIEVED,
                self.origin,
                exc_info=(type(error), error, error.__traceback__),
            )


# All classes of futures that exist: to look a type up costs less than ``isinstance``.
KINDS: set[type] = set()


class Future(Generic[T]):
    """A result that comes later. Wait for it with ``yield`` (or ``await``).

    Arguments:
        loop: the loop it belongs to; by default the current one.
    """

    __slots__ = (
        "__weakref__",
        "_asyncio_future_blocking",
        "_birthplace",
        "_loop",
        "_others",
        "_state",
        "_traceback",
        "_unretrieved",
        "_value",
        "_waiter",
    )

    # Whether its end waits for the end of others, which are cancelled in its place.
    _passes_cancel: ClassVar[bool] = False

    # Where it was made, as text; set in debug mode only.
    _birthplace: object
    _traceback: TracebackType | None
    _unretrieved: _Unretrieved

    def __init__(self, *, loop: Any = None) -> None:
        self._loop: Any = loop if loop is not None else slot.running or slot.found()
        self._state = PENDING
        # The result, the error, or what is known of the cancellation: its error or its message.
        self._value: Any = None
        self._waiter: Runnable | None = None
        self._others: list[Runnable | tuple[Callable[..., Any], Context | None]] | None = None
        self._asyncio_future_blocking = False

    __class_getitem__: Any = classmethod(GenericAlias)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        KINDS.add(cls)

    # --- looking ---------------------------------------------------------------------------

    def done(self) -> bool:
        """Whether it is settled: has a result or an error, or was cancelled."""
        return self._state != PENDING

    def cancelled(self) -> bool:
        """Whether it was cancelled."""
        return self._state == CANCELLED

    def result(self) -> T:
        """Return the result, or raise the error.

        Raises:
            CancelledError: it was cancelled.
            InvalidStateError: it is still pending.
        """
        if self._state == DONE:
            return cast(T, self._value)
        if self._state == PENDING:
            raise InvalidStateError(f"Result is not ready: {self!r}")
        error = self._take_error()
        try:
            raise error
        finally:
            del error, self

    def exception(self) -> BaseException | None:
        """Return the error, or None if there is a result.

        Raises:
            CancelledError: it was cancelled.
            InvalidStateError: it is still pending.
        """
        if self._state == DONE:
            return None
        if self._state == PENDING:
            raise InvalidStateError(f"Exception is not set: {self!r}")
        error = self._take_error()
        if self._state == FAILED:
            return error
        try:
            raise error
        finally:
            del error, self

    def get_loop(self) -> Any:
        """Return the asyncio loop of the loop it belongs to; before that first ran, itself."""
        loop = self._require_loop()
        return loop._host or loop

    def _take_error(self) -> BaseException:
        """The error to raise now, with the traceback it had at first; it counts as looked at."""
        value = self._value
        if self._state == FAILED:
            self._retrieve()
            return cast(BaseException, value.with_traceback(self._traceback))
        if isinstance(value, CancelledError):
            # Handed out once, so that a frame that holds the future and caught its cancellation
            # makes no circle; who asks later gets a new one.
            self._value = value.args[0] if value.args else None
            return value
        return CancelledError() if value is None else CancelledError(value)

    # What asyncio's functions call on futures that were cancelled.

    _make_cancelled_error = _take_error

    @property
    def _cancel_message(self) -> Any:
        value = self._value
        if isinstance(value, CancelledError):
            return value.args[0] if value.args else None
        return value

    def _retrieve(self) -> None:
        try:
            self._unretrieved.error = None
        except AttributeError:
            pass

    # --- settling --------------------------------------------------------------------------

    def set_result(self, result: T) -> None:
        """Settle it with a result.

        Raises:
            InvalidStateError: it is settled already.
            WrongThreadError: its loop is running in another thread.
        """
        if self._state != PENDING:
            raise InvalidStateError(f"{self!r} is settled already")
        loop = self._loop
        if loop is not None and loop._thread != get_ident() and loop._thread is not None:
            self._refuse_thread()
        self._state = DONE
        self._value = result
        waiter = self._waiter
        if waiter is not None and self._others is None:
            # Who waits made sure that there is a loop.
            self._waiter = None
            loop._ready.append(waiter)
        elif waiter is not None or self._others is not None:
            self._wake()

    def set_exception(self, exception: type[BaseException] | BaseException) -> None:
        """Settle it with an error (an instance, or a class to make one of).

        Raises:
            InvalidStateError: it is settled already.
            WrongThreadError: its loop is running in another thread.
        """
        if self._state != PENDING:
            raise InvalidStateError(f"{self!r} is settled already")
        self._check_thread()
        error = exception() if isinstance(exception, type) else exception
        if isinstance(error, StopIteration):
            # Raised into a generator it would look like the generator's own end.
            cause = error
            error = RuntimeError("StopIteration cannot be raised into a coroutine")
            error.__cause__ = cause
        self._fail(error)

    def cancel(self, msg: Any = None) -> bool:
        """Settle it as cancelled; return False if it is settled already.

        Arguments:
            msg: the argument that the ``CancelledError`` of the waiters gets.
        """
        if self._state != PENDING:
            return False
        self._check_thread()
        self._state = CANCELLED
        self._value = msg
        if self._waiter is not None or self._others is not None:
            self._wake()
        return True

    def _check_thread(self) -> None:
        loop = self._loop
        if loop is not None and loop._thread is not None and loop._thread != get_ident():
            self._refuse_thread()

    def _refuse_thread(self) -> None:
        raise WrongThreadError(
            f"{self!r} cannot be settled in another thread than its loop's; "
            "there, write: loop.add_callback(future.set_result, ...)"
        )

    def _fail(self, error: BaseException) -> None:
        self._state = FAILED
        self._value = error
        self._traceback = error.__traceback__
        self._arm(error)
        if self._waiter is not None or self._others is not None:
            self._wake()

    def _settle(self, result: Any) -> None:
        """``set_result`` for coro's own code, in the loop's thread, on a pending future."""
        self._state = DONE
        self._value = result
        waiter = self._waiter
        if waiter is not None and self._others is None:
            self._waiter = None
            self._loop._ready.append(waiter)
        elif waiter is not None or self._others is not None:
            self._wake()

    def _fail_quietly(self, error: BaseException) -> None:
        """``set_exception`` where it does not matter whether anybody looks at the error."""
        self._state = FAILED
        self._value = error
        self._traceback = error.__traceback__
        if self._waiter is not None or self._others is not None:
            self._wake()

    def _arm(self, error: BaseException) -> None:
        """Let the error be logged when the future dies before anybody looked at it."""
        self._unretrieved = _Unretrieved(error, self._origin() + self._made_at())

    def _origin(self) -> str:
        """What to call it in the log when its error is never looked at."""
        return "A Future"

    def _made_at(self) -> str:
        try:
            return f", created at {self._birthplace}"
        except AttributeError:
            return ""

    # --- waiting ---------------------------------------------------------------------------

    def add_done_callback(
        self, fn: Callable[[Future[T]], Any], *, context: Context | None = None
    ) -> None:
        """Call ``fn(self)`` in a later turn of the loop, once it is settled.

        Arguments:
            fn: the callback.
            context: the ``contextvars`` context to call it in; by default a copy of the present
                one.
        """
        entry = (fn, copy_context() if context is None else context)
        if self._state != PENDING:
            self._require_loop()._ready.append((fn, (self,), entry[1]))
        elif self._others is None:
            self._others = [entry]
        else:
            self._others.append(entry)

    def remove_done_callback(self, fn: Callable[[Future[T]], Any]) -> int:
        """Remove every registration of a callback; return how many there were."""
        callbacks = self._others
        if callbacks is None:
            return 0
        kept = [entry for entry in callbacks if not (isinstance(entry, tuple) and entry[0] == fn)]
        removed = len(callbacks) - len(kept)
        self._others = kept or None
        return removed

    def _add_waiter(self, task: Runnable, loop: Any) -> None:
        """Let a task of ``loop`` wait for this pending future."""
        if self._loop is not loop:
            self._join(loop)
        if self._others is not None:
            self._others.append(task)
        elif self._waiter is not None:
            self._others = [task]
        else:
            self._waiter = task

    def _join(self, loop: Any) -> None:
        """Make sure that it belongs to the loop of who is about to wait for it."""
        if self._loop is None:
            self._loop = loop
        elif self._loop is not loop:
            raise WrongLoopError(
                f"{self!r} belongs to {self._loop!r} and cannot be waited for on {loop!r}"
            )

    def _settle_as(self, source: Future[Any]) -> None:
        """Settle it, which is pending, as another future was; that one's error is looked at."""
        if source._state == DONE:
            self.set_result(source._value)
        elif source._state == CANCELLED:
            # Not ``self.cancel``: a subclass may pass that on to the source.
            Future.cancel(self, *source._take_error().args)
        else:
            self.set_exception(source._take_error())

    def _unclaimed(self) -> None:
        """It has a result, but the task that would have taken it was cancelled before it could."""

    def _forget_waiter(self, task: Runnable) -> None:
        """Let a task wait no longer."""
        if self._waiter is task:
            self._waiter = None
        elif self._others is not None:
            self._others = [entry for entry in self._others if entry is not task] or None

    def _call_when_done(self, fn: Callable[[Any], Any]) -> None:
        """``add_done_callback`` for coro's own callbacks on a pending future: without a context."""
        if self._others is None:
            self._others = [(fn, None)]
        else:
            self._others.append((fn, None))

    def _wake(self) -> None:
        """Put all that wait into the ready queue."""
        ready = self._require_loop()._ready
        waiter = self._waiter
        if waiter is not None:
            self._waiter = None
            ready.append(waiter)
        callbacks = self._others
        if callbacks is not None:
            self._others = None
            for entry in callbacks:
                ready.append((entry[0], (self,), entry[1]) if type(entry) is tuple else entry)

    def _require_loop(self) -> Any:
        if self._loop is None:
            self._loop = slot.loop()
        return self._loop

    def __await__(self) -> Generator[Any, Any, T]:
        try:
            if self._state == PENDING:
                self._asyncio_future_blocking = True
                yield self
            return self.result()
        finally:
            # This frame stands in the traceback of an error that the future holds.
            del self

    __iter__ = __await__

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._describe()}{self._made_at()}>"

    def _describe(self) -> str:
        if self._state == DONE:
            return f"done: {shortened(self._value)}"
        if self._state == FAILED:
            return f"failed: {shortened(self._value)}"
        return _STATE_NAMES[self._state]

    # --- being dumped ----------------------------------------------------------------------

    # ``coro.stuck`` calls these, on pending futures, at any time and in any thread.

    def _awaited(self) -> str:
        """What who waits for it waits for, in one short line; "" if its inputs say it all."""
        return "" if self._inputs() else repr(self)

    def _inputs(self) -> Sequence[tuple[str, Any]]:
        """What has to end before it does, each with a label, which may be empty."""
        entries = [entry for entry in self._others or () if isinstance(entry, tuple)]
        owners = [getattr(callback, "__self__", None) for callback, _ in entries]
        return [("", owner.source) for owner in owners if isinstance(owner, _Backwards)]

    def _left(self, timer: Timer) -> str:
        """How far away the deadline of a timer of its loop is."""
        seconds = timer.deadline - self._loop.time()
        return f"{seconds:.1f} s left" if seconds >= 0 else f"due {-seconds:.1f} s ago"


KINDS.add(Future)


def shortened(value: object) -> str:
    """Its repr, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def is_future(x: object) -> bool:
    """Whether ``x`` is a future of coro, of asyncio or of concurrent.futures."""
    if isinstance(x, Future | concurrent.futures.Future):
        return True
    # Asked of the class first: the class itself has the name too, and is no future.
    return (
        hasattr(type(x), "_asyncio_future_blocking")
        and getattr(x, "_asyncio_future_blocking") is not None  # noqa: B009
    )


class _Backwards:
    """Passes a cancellation of what follows a source on to the source."""

    __slots__ = ("_call", "source")

    def __init__(self, source: Any, call: Callable[[Callable[[Any], None], Any], None]) -> None:
        self.source = source
        self._call = call

    def target_ended(self, target: Any) -> None:
        self._call(self._pass_on, target)

    def _pass_on(self, target: Any) -> None:
        if target.cancelled() and not self.source.done():
            self.source.cancel()


def chain_future(a: Any, b: Any) -> None:
    """Settle ``b`` as ``a`` is settled, unless it is settled before; cancelling ``b`` cancels
    ``a``.

    Arguments:
        a: a future of coro, asyncio or concurrent.futures.
        b: likewise; where exactly one is of coro, all that happens to it happens on its loop.
    """
    loop = next((f._require_loop() for f in (b, a) if isinstance(f, Future)), None)

    def on_loop(fn: Callable[[Any], None], source: Any) -> None:
        # A concurrent future calls back in whatever thread settled it.
        if loop is not None and isinstance(source, concurrent.futures.Future):
            loop.add_callback(fn, source)
        else:
            fn(source)

    def copy(source: Any) -> None:
        if b.done():
            return
        if source.cancelled():
            b.cancel()
            return
        error = source.exception()
        if error is not None:
            b.set_exception(error)
        else:
            b.set_result(source.result())

    if a.done():
        copy(a)
        return
    a.add_done_callback(lambda source: on_loop(copy, source))
    b.add_done_callback(_Backwards(a, on_loop).target_ended)
