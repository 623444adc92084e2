"""Coroutines: everything that yield-style code imports, and ``run``.

The parts live in ``task`` (the engine: ``coroutine``, ``Task``, what may be yielded), ``multi``
(several things side by side) and ``scopes`` (time limits, shielding).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from coro.errors import BadYieldError, CancelledError, TimeoutError
from coro.future import Future, slot
from coro.loop import IOLoop
from coro.multi import multi, multi_future
from coro.scopes import Timeout, shield, sleep, timeout, timeout_at, with_timeout
from coro.task import (
    Return,
    Task,
    convert_yielded,
    coroutine,
    current_task,
    is_coroutine_function,
    moment,
)

__all__ = [
    "BadYieldError",
    "CancelledError",
    "Future",
    "Return",
    "Task",
    "Timeout",
    "TimeoutError",
    "all_tasks",
    "convert_yielded",
    "coroutine",
    "current_task",
    "is_coroutine_function",
    "maybe_future",
    "moment",
    "multi",
    "multi_future",
    "run",
    "shield",
    "sleep",
    "timeout",
    "timeout_at",
    "with_timeout",
]

_app_log = logging.getLogger("coro.application")


def maybe_future(x: Any) -> Future[Any]:
    """Return ``x`` if it is a future, else a future that is done with ``x``."""
    if isinstance(x, Future):
        return x
    future: Future[Any] = Future()
    future.set_result(x)
    return future


def all_tasks() -> set[Task[Any]]:
    """Return the tasks of the current loop that have not ended."""
    loop = IOLoop.current(instance=False)
    if loop is None:
        return set()
    tasks: set[Task[Any]] = set(loop._tasks)
    if loop._current_task is not None:
        tasks.add(loop._current_task)
    return tasks


def run(main: Callable[..., Any], *args: Any, timeout: float | timedelta | None = None) -> Any:
    """Make a loop, run a coroutine function on it, cancel and await what is left, close it.

    Arguments:
        main: the coroutine function (``@coroutine`` or ``async def``).
        args: its arguments.
        timeout: seconds after which it is cancelled.
    Returns:
        what ``main`` returns.
    Raises:
        TimeoutError: it did not end in time.
        RuntimeError: a loop is running in this thread already.
    """
    if slot.running is not None:
        raise RuntimeError(
            "coro.run() was called inside a running loop; there, write: yield main(...)"
        )
    if not callable(main):
        raise TypeError(
            f"coro.run() takes a coroutine function and its arguments, not {main!r}: "
            "coro.run(main, ...)"
        )
    loop = IOLoop(make_current=False)
    try:
        return loop.run_sync(lambda: main(*args), timeout)
    finally:
        try:
            while loop._tasks:
                loop.run_sync(lambda: _wind_up(loop))
        finally:
            loop.close()


@coroutine
def _wind_up(loop: IOLoop) -> Any:
    """Cancel every task of the loop, wait until they have ended, and log their errors."""
    me = current_task()
    tasks = [task for task in loop._tasks if task is not me]
    for task in tasks:
        task.cancel()
    for task in tasks:
        try:
            yield task
        except CancelledError:
            pass
        except Exception:
            _app_log.exception("Exception in %r while its loop was wound up", task)
