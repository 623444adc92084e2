"""coro: generator coroutines on an epoll loop of their own.

The rooms, from below: ``errors``, ``timers``, ``buffer``, ``hooks``; ``future``, ``net``; ``loop``,
``tls``; ``gen`` (with ``task``, ``multi``, ``scopes``); ``stream``; ``resolver``; ``connector``;
``tcp``; ``http``; ``cli``. A room imports only from rooms below it.
"""

from __future__ import annotations

from coro.gen import run

__all__ = ["run"]

__version__ = "0.1.0"
