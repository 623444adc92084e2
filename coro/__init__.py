"""coro: generator coroutines on an epoll loop of their own.

The names below are what most programs need; the rooms have the rest. From below: ``errors``,
``timers``, ``buffer``, ``hooks``, ``stall``; ``future``, ``net``; ``threads``, ``periodic``;
``loop``, ``tls``; ``gen`` (with ``task``, ``multi``, ``scopes``, ``groups``, ``main``), ``debug``,
``stuck``, ``hosted``; ``locks``, ``queues``; ``stream``; ``resolver``; ``connector``; ``tcp``,
``cares``; ``http``; ``cli``. A room imports only from rooms below it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from coro import aio as aio  # they fill slots of IOLoop: its asyncio loop,
from coro import hosted as hosted  # and the one that asyncio runs
from coro.errors import CancelledError, TimeoutError
from coro.future import Future
from coro.gen import (
    Return,
    Task,
    TaskGroup,
    WaitIterator,
    all_tasks,
    as_completed,
    coroutine,
    current_task,
    moment,
    run,
    run_coroutine_threadsafe,
    shield,
    sleep,
    timeout,
    timeout_at,
    to_thread,
    with_timeout,
)
from coro.loop import IOLoop
from coro.stuck import dump

if TYPE_CHECKING:
    from coro import http
    from coro.http import fetch
    from coro.tcp import connect

__all__ = [
    "CancelledError",
    "Future",
    "IOLoop",
    "Return",
    "Task",
    "TaskGroup",
    "TimeoutError",
    "WaitIterator",
    "all_tasks",
    "as_completed",
    "connect",
    "coroutine",
    "current_task",
    "dump",
    "fetch",
    "http",
    "moment",
    "run",
    "run_coroutine_threadsafe",
    "shield",
    "sleep",
    "timeout",
    "timeout_at",
    "to_thread",
    "with_timeout",
]

__version__ = "0.1.0"

# Where the names come from that are loaded when they are first used: a program that opens no
# connection need not wait for TLS and HTTP.
_LAZY = {"connect": "coro.tcp", "fetch": "coro.http", "http": "coro.http"}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'coro' has no attribute {name!r}")
    module = importlib.import_module(_LAZY[name])
    value = module if _LAZY[name] == f"coro.{name}" else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
