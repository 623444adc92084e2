"""``run``: from a plain program into a coroutine, and back out of it in order.

The end is the difficult part. When ``main`` has ended, other tasks may still run; asynchronous
generators may stand half-way; threads may be at work. In this order: the tasks are cancelled and
waited for, over and over while they bring forth new ones; the generators are closed; the threads
are waited for, if ``main`` ended by itself; then the loop is closed.

Ctrl-C. The handler runs between any two instructions of the main thread, so also in the middle of
one of the loop's own operations. Therefore it cancels nothing itself, it has a callback do so in
the loop's next turn. Somebody who presses it again, or while all is ended anyway, wants no order
but an end: then the handler raises ``KeyboardInterrupt`` wherever the program stands, the loop is
closed at once, and what still ran is dropped.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import signal
import sys
import threading
import weakref
from collections.abc import AsyncGenerator, Callable
from concurrent import futures
from datetime import timedelta
from types import FrameType, TracebackType
from typing import Any, Self

from coro.debug import enable, wanted
from coro.errors import CancelledError, TimeoutError
from coro.future import Future, slot
from coro.loop import IOLoop
from coro.task import Task, coroutine

__all__ = ["run", "run_on"]

_app_log = logging.getLogger("coro.application")

# How often what is left is cancelled; more often only where tasks beget tasks without end.
MAX_ROUNDS = 100


def run(
    main: Callable[..., Any],
    *args: Any,
    timeout: float | timedelta | None = None,
    debug: bool | None = None,
) -> Any:
    """Make a loop, run a coroutine function on it, cancel and await what is left, close it.

    Ctrl-C cancels ``main``, if it is not handled otherwise by the program: ``finally`` blocks may
    ``yield``, and ``KeyboardInterrupt`` is raised when all has ended. A ``main`` that catches the
    cancellation and goes on has the last word. The second Ctrl-C ends everything at once.

    A task that catches its cancellation and goes on is waited for. So are functions in threads of
    the default executor, unless ``main`` was cancelled: then those that have begun go on alone, and
    the others never begin.

    Arguments:
        main: the coroutine function (``@coroutine`` or ``async def``).
        args: its arguments.
        timeout: seconds after which it is cancelled.
        debug: whether to run it in debug mode (see ``coro.debug``); by default only if the
            environment says so: ``CORO_DEBUG=1``.
    Returns:
        what ``main`` returns.
    Raises:
        TimeoutError: it did not end in time.
        KeyboardInterrupt: Ctrl-C was pressed.
        RuntimeError: a loop is running in this thread already.
    """
    if slot.running is not None or slot.hosted() is not None:
        raise RuntimeError(
            "coro.run() was called inside a running loop; there, write: yield main(...), "
            "or in async def: await main(...)"
        )
    if not callable(main):
        raise TypeError(
            f"coro.run() takes a coroutine function and its arguments, not {main!r}: "
            "coro.run(main, ...)"
        )
    return run_on(IOLoop(make_current=False), functools.partial(main, *args), timeout, debug)


def run_on(
    loop: IOLoop,
    main: Callable[[], Any],
    timeout: float | timedelta | None = None,
    debug: bool | None = None,
) -> Any:
    """Do what ``run`` does on a loop that is given, which is closed at the end."""
    observer = enable(loop) if (wanted() if debug is None else debug) else None
    with _Job(loop, main) as job, _Generators(loop) as generators:
        try:
            return job.run(timeout)
        finally:
            try:
                if not job.broken:
                    if observer is not None:
                        observer.check(loop)
                    _end_all(loop, job, generators, threads=job.ended_by_itself())
            finally:
                _close(loop)


class _Job:
    """``main`` on its loop, and Ctrl-C for as long as the block lasts."""

    def __init__(self, loop: IOLoop, main: Callable[[], Any]) -> None:
        self._loop = loop
        self._main = main
        self._future: Any = None
        # Whether Ctrl-C was pressed, and whether ``main`` was told.
        self._asked = False
        self._told = False
        self._running = True
        # Whether Ctrl-C asked for an end without order.
        self.broken = False

    def __enter__(self) -> Self:
        if (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        ):
            signal.signal(signal.SIGINT, self._on_signal)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGINT) == self._on_signal
        ):
            signal.signal(signal.SIGINT, signal.default_int_handler)
        # The frame of ``run`` stands in the traceback of the error that the future holds.
        self._future = None

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        # A closed loop: this is a child that was forked meanwhile.
        if self._asked or not self._running or self._loop._closed:
            self.broken = True
            raise KeyboardInterrupt
        self._asked = True
        self._loop.add_callback(self._cancel)

    def _cancel(self) -> None:
        if self._future is not None:
            self._told = self._future.cancel()

    def run(self, timeout: float | timedelta | None) -> Any:
        """Run ``main``; return its result."""
        try:
            result = self._loop.run_sync(self._begin, timeout)
        except (CancelledError, TimeoutError) as error:
            if self._asked and not self.ended_by_itself():
                raise KeyboardInterrupt from error
            raise
        finally:
            self._running = False
        if self._asked and not self._told:
            # It came too late to be told to ``main``, and must not be lost.
            raise KeyboardInterrupt
        return result

    def _begin(self) -> Any:
        if self._asked:
            raise CancelledError
        result = self._main()
        try:
            self._future = self._loop.nothing if result is None else IOLoop.convert(result)
            return self._future
        finally:
            # This frame is reachable from the traceback of an error of the result.
            del result

    def ended_by_itself(self) -> bool:
        """Whether ``main`` has a result or an error, and was not cancelled."""
        future = self._future
        return future is not None and future.done() and not future.cancelled()


class _Generators:
    """The asynchronous generators that were begun and not run to their end, in this thread."""

    def __init__(self, loop: IOLoop) -> None:
        self._loop = loop
        # A dict for its order: they are closed in the same order each time.
        self._open: weakref.WeakKeyDictionary[AsyncGenerator[Any, Any], None] = (
            weakref.WeakKeyDictionary()
        )
        # Whether any was begun since they were closed last.
        self.any_begun = False
        # The tasks that close those that nobody refers to; they are not to be cancelled.
        self.closing: set[Future[Any]] = set()

    def __enter__(self) -> Self:
        self._previous = sys.get_asyncgen_hooks()
        sys.set_asyncgen_hooks(firstiter=self._add, finalizer=self._abandoned)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        sys.set_asyncgen_hooks(*self._previous)

    def _add(self, generator: AsyncGenerator[Any, Any]) -> None:
        self._open[generator] = None
        self.any_begun = True

    def _abandoned(self, generator: AsyncGenerator[Any, Any]) -> None:
        """Nobody refers to it any longer: close it. In any thread, for so the collector runs."""
        self._open.pop(generator, None)
        self._loop.add_callback(self._close_one, generator)

    def _close_one(self, generator: AsyncGenerator[Any, Any]) -> None:
        task = IOLoop.convert(generator.aclose())
        self.closing.add(task)
        task.add_done_callback(self.closing.discard)

    @coroutine
    def close(self) -> Any:
        """Close them; their errors log themselves."""
        self.any_begun = False
        yield _all_ended([IOLoop.convert(generator.aclose()) for generator in list(self._open)])


def _end_all(loop: IOLoop, job: _Job, generators: _Generators, *, threads: bool) -> None:
    """End what ``main`` left behind.

    Arguments:
        threads: wait for the functions that run in the default executor.
    """
    interrupt: BaseException | None = None
    for _ in range(MAX_ROUNDS):
        left = [*loop._live_tasks(), *asyncio.all_tasks(loop.asyncio_loop)]
        try:
            if left:
                # Before the loop turns again: whoever waits for a task that was interrupted gets
                # this cancellation, and does not hear of the interrupt a second time.
                for task in left:
                    if task not in generators.closing:
                        task.cancel()
                loop.run_sync(functools.partial(_all_ended, left))
            elif generators.any_begun:
                loop.run_sync(generators.close)
            elif threads and loop._executor is not None:
                threads = False
                loop.run_sync(functools.partial(_threads_ended, loop, loop._executor))
            else:
                break
        except (KeyboardInterrupt, SystemExit) as error:
            if job.broken:
                raise
            # A task raised it, not somebody at the keyboard: the others have to end all the same.
            interrupt = error
    else:
        _app_log.error(
            "coro.run() gave up: tasks were left after %d times of cancelling all: %r",
            MAX_ROUNDS,
            left,
        )
    try:
        if interrupt is not None:
            raise interrupt
    finally:
        del interrupt


def _close(loop: IOLoop) -> None:
    """Close it. What stands in the queue of its executor never begins."""
    try:
        if loop._executor is not None:
            loop._executor.shutdown(wait=False, cancel_futures=True)
    finally:
        loop.close()


@coroutine
def _all_ended(tasks: list[Any]) -> Any:
    """Wait until they have ended. An error that nobody else looks at logs itself."""
    for task in tasks:
        if not task.done():
            ended: Future[None] = Future()
            task.add_done_callback(functools.partial(_tell, ended))
            yield ended


def _tell(ended: Future[None], _task: Task[Any]) -> None:
    ended.set_result(None)


def _threads_ended(loop: IOLoop, executor: futures.Executor) -> Future[None]:
    """Shut an executor down, in a thread: the loop takes the outcomes meanwhile."""
    ended: Future[None] = Future(loop=loop)

    def shut_down() -> None:
        try:
            executor.shutdown(wait=True)
        finally:
            loop.add_callback(ended.set_result, None)

    # A daemon: after Ctrl-C nobody waits for it.
    threading.Thread(target=shut_down, name="coro-executor-shutdown", daemon=True).start()
    return ended
