"""Blocking functions in threads: ``to_thread``, and the lineage's ``run_on_executor``.

Nobody can stop a function that runs in a thread. So the future of such a call, when it is
cancelled, is given up at once: work that still stands in the executor's queue never begins; a
function that has begun goes on, and its result goes nowhere. An error goes to the log then: nobody
else would ever hear of it.

This room lies below ``loop`` and knows of a loop only that it takes callbacks from other threads.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from concurrent import futures
from contextvars import copy_context
from typing import Any, Concatenate, ParamSpec, TypeVar, overload

from coro.future import PENDING, Future, slot

__all__ = [
    "dummy_executor",
    "run_coroutine_threadsafe",
    "run_on_executor",
    "submit",
    "to_thread",
]

T = TypeVar("T")
S = TypeVar("S")
P = ParamSpec("P")

_app_log = logging.getLogger("coro.application")


class _Call(Future[Any]):
    """The result of a function that an executor runs. Cancelling it gives the call up."""

    __slots__ = ("_func", "_work")

    def __init__(self, loop: Any, func: Callable[..., Any], work: futures.Future[Any]) -> None:
        super().__init__(loop=loop)
        # Both until the function has ended: what has ended refers to its callbacks, and so to this.
        self._func: Callable[..., Any] | None = func
        self._work: futures.Future[Any] | None = work
        if work.done():
            self._take(work)
        else:
            work.add_done_callback(self._arrived)

    def _arrived(self, work: futures.Future[Any]) -> None:
        """In the executor's thread: hand the outcome to the loop, if it still stands."""
        if self._loop._closed:
            self._take_late(work)
        else:
            self._loop.add_callback(self._take, work)

    def _take(self, work: futures.Future[Any]) -> None:
        if self._state != PENDING:
            self._take_late(work)
            return
        self._func = self._work = None
        if work.cancelled():
            super().cancel()
        elif (error := work.exception()) is not None:
            self.set_exception(error)
        else:
            self.set_result(work.result())

    def _take_late(self, work: futures.Future[Any]) -> None:
        """Nobody waits any longer."""
        if not work.cancelled() and (error := work.exception()) is not None:
            _app_log.error(
                "Exception in %r, in a thread, when nobody waited for it any longer",
                self._func,
                exc_info=error,
            )
        self._func = self._work = None

    def cancel(self, msg: Any = None) -> bool:
        if not super().cancel(msg):
            return False
        if self._work is not None:
            self._work.cancel()
        return True

    def _describe(self) -> str:
        text = super()._describe()
        return f"{text}, {self._func!r} in a thread" if self._state == PENDING else text

    def _awaited(self) -> str:
        func, work = self._func, self._work
        begun = "running" if work is None or work.running() else "queued"
        return f"thread: {getattr(func, '__qualname__', None) or repr(func)}, {begun}"


def submit(
    loop: Any, executor: futures.Executor | None, func: Callable[..., T], *args: Any
) -> Future[T]:
    """Run a blocking function in an executor's thread, without a copy of the context.

    Arguments:
        loop: the loop of the future.
        executor: None for the loop's default one.
        func: called with the further arguments.
    Returns:
        a future of its result; its errors come out there, of whatever type they are.
    """
    return _Call(loop, func, _executor(loop, executor).submit(func, *args))


def _executor(loop: Any, wanted: futures.Executor | None) -> futures.Executor:
    """What runs a function that is meant for ``wanted`` (None: the default executor)."""
    executor: futures.Executor | None = loop._forced_executor or wanted or loop._executor
    if executor is None:
        executor = futures.ThreadPoolExecutor(thread_name_prefix="coro-executor")
        loop.set_default_executor(executor)
    return executor


def to_thread(func: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
    """Run a blocking function in a thread of the current loop's default executor.

    It runs in a copy of the present ``contextvars`` context. Cancelling the future gives the call
    up: a function that has begun goes on in its thread, and its error, if there is one, is logged.

    Arguments:
        func: called with the further arguments.
    Returns:
        a future of its result; its errors come out there, of whatever type they are.
    """
    loop = slot.running or slot.loop()
    run: Callable[..., T] = copy_context().run
    return _Call(loop, func, _executor(loop, None).submit(run, func, *args, **kwargs))


class _Errand:
    """What another thread wants done on a loop, and the future that it holds."""

    def __init__(self, loop: Any, outcome: futures.Future[Any]) -> None:
        self._loop = loop
        self._outcome = outcome

    def begin(self, func: Callable[[], Any]) -> None:
        """On the loop: call the function, and follow what it returns."""
        outcome = self._outcome
        if outcome.cancelled():
            return
        future: Any = None
        try:
            future = self._loop.convert(func())
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            if outcome.set_running_or_notify_cancel():
                outcome.set_exception(error)
        else:
            future.add_done_callback(self._end)
            outcome.add_done_callback(functools.partial(self._pass_cancel, self._loop, future))
        finally:
            # This frame stands in the traceback of an error that the futures hold.
            del future, outcome, self

    def _end(self, future: Any) -> None:
        outcome = self._outcome
        try:
            if future.cancelled():
                outcome.cancel()
            # From here on the other thread cannot cancel it any more.
            if not outcome.set_running_or_notify_cancel():
                return
            error = future.exception()
            if error is None:
                outcome.set_result(future.result())
            else:
                outcome.set_exception(error)
        finally:
            error = None
            del outcome, future, self

    @staticmethod
    def _pass_cancel(loop: Any, future: Any, outcome: futures.Future[Any]) -> None:
        """In whatever thread settled it."""
        if outcome.cancelled():
            loop.add_callback(future.cancel)

    def __del__(self) -> None:
        # The loop was closed first: whoever waits in the other thread must not wait for ever.
        if not self._outcome.done():
            self._outcome.cancel()
            self._outcome.set_running_or_notify_cancel()


def run_coroutine_threadsafe(
    loop: Any, func: Callable[P, Any], /, *args: P.args, **kwargs: P.kwargs
) -> futures.Future[Any]:
    """Run a coroutine function on a loop that runs in another thread.

    It is called there, in a copy of the present ``contextvars`` context. Cancelling the future
    cancels what the function began, and the other way round.

    Arguments:
        loop: an ``IOLoop``, on its own or inside asyncio.
        func: a coroutine function, or any that returns something to wait for.
    Returns:
        a future whose ``result()`` blocks until there is one; it is cancelled if the loop is closed
        before.
    Raises:
        RuntimeError: the loop is closed.
    """
    if loop._closed:
        raise RuntimeError(f"{loop!r} is closed")
    outcome: futures.Future[Any] = futures.Future()
    loop.add_callback(_Errand(loop, outcome).begin, functools.partial(func, *args, **kwargs))
    return outcome


class _DummyExecutor(futures.Executor):
    """Runs each function at once, in the thread of the caller."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> futures.Future[T]:
        done: futures.Future[T] = futures.Future()
        try:
            done.set_result(fn(*args, **kwargs))
        except Exception as error:
            done.set_exception(error)
        try:
            return done
        finally:
            # This frame stands in the traceback of the function's error.
            del done


dummy_executor: futures.Executor = _DummyExecutor()


@overload
def run_on_executor(
    fn: Callable[Concatenate[S, P], T], /
) -> Callable[Concatenate[S, P], Future[T]]: ...
@overload
def run_on_executor(
    *, executor: str = ...
) -> Callable[[Callable[Concatenate[S, P], T]], Callable[Concatenate[S, P], Future[T]]]: ...
def run_on_executor(fn: Any = None, /, *, executor: str = "executor") -> Any:
    """Make a blocking method one that runs on the executor of its object and returns a future.

    Write ``@run_on_executor``, or ``@run_on_executor(executor="name")``. The method gets no copy of
    the context. Cancelling its future does what it does for ``to_thread``.

    Arguments:
        executor: name of the object's attribute that holds the executor.
    """
    if fn is None:
        return functools.partial(_on_executor, executor)
    if not callable(fn):
        raise TypeError(
            f"run_on_executor() decorates a method, not {fn!r}; "
            'to name the attribute: @run_on_executor(executor="name")'
        )
    return _on_executor(executor, fn)


def _on_executor(
    name: str, method: Callable[Concatenate[S, P], T]
) -> Callable[Concatenate[S, P], Future[T]]:
    @functools.wraps(method)
    def wrapper(self: S, /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        loop = slot.running or slot.loop()
        executor = _executor(loop, getattr(self, name))
        return _Call(loop, method, executor.submit(method, self, *args, **kwargs))

    return wrapper
