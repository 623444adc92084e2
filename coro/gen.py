"""Coroutines: everything that yield-style code imports, and ``run``.

The parts live in ``task`` (the engine: ``coroutine``, ``Task``, what may be yielded), ``multi``
(several things side by side) and ``scopes`` (time limits, shielding).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from coro.errors import BadYieldError, CancelledError, TimeoutError
from coro.future import Future, slot
from coro.loop import IOLoop
from coro.multi import Multi, WaitIterator, as_completed, multi, multi_future
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
    "Multi",
    "Return",
    "Task",
    "Timeout",
    "TimeoutError",
    "WaitIterator",
    "all_tasks",
    "as_completed",
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
                left = list(loop._tasks)
                # Before the loop turns again: whoever waits for a task that was interrupted gets
                # this cancellation, and does not hear of the interrupt a second time.
                for task in left:
                    task.cancel()
                loop.run_sync(functools.partial(_all_ended, left))
        finally:
            loop.close()


@coroutine
def _all_ended(tasks: list[Task[Any]]) -> Any:
    """Wait until they have ended. An error that nobody else looks at logs itself."""
    for task in tasks:
        if not task.done():
            ended: Future[None] = Future()
            task.add_done_callback(functools.partial(_tell, ended))
            yield ended


def _tell(ended: Future[None], _task: Task[Any]) -> None:
    ended.set_result(None)
