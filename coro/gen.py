"""Coroutines: everything that yield-style code imports.

The parts live in ``task`` (the engine: ``coroutine``, ``Task``, what may be yielded), ``multi``
(several things side by side), ``scopes`` (time limits, shielding), ``threads`` (blocking functions)
and ``main`` (``run``).
"""

from __future__ import annotations

from typing import Any

from coro.errors import BadYieldError, CancelledError, TimeoutError
from coro.future import Future
from coro.groups import TaskGroup
from coro.main import run
from coro.multi import Multi, WaitIterator, as_completed, multi, multi_future
from coro.scopes import Timeout, shield, sleep, timeout, timeout_at, with_timeout
from coro.task import (
    Return,
    Task,
    all_tasks,
    convert_yielded,
    coroutine,
    current_task,
    is_coroutine_function,
    moment,
)
from coro.threads import run_coroutine_threadsafe, to_thread

__all__ = [
    "BadYieldError",
    "CancelledError",
    "Future",
    "Multi",
    "Return",
    "Task",
    "TaskGroup",
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
    "run_coroutine_threadsafe",
    "shield",
    "sleep",
    "timeout",
    "timeout_at",
    "to_thread",
    "with_timeout",
]


def maybe_future(x: Any) -> Future[Any]:
    """Return ``x`` if it is a future, else a future that is done with ``x``."""
    if isinstance(x, Future):
        return x
    future: Future[Any] = Future()
    future.set_result(x)
    return future
