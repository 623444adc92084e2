"""Names to addresses.

``getaddrinfo`` blocks, and nobody can stop it. So look-ups run in daemon threads of this room's
own: they are few (a flood of names must not become a flood of threads), they are never the user's
executor (which may be busy for hours), and as daemons they do not hold up the end of the process.
A look-up that is given up is abandoned: its thread may hang on, but its answer goes nowhere.

Literal addresses need no thread: they are recognised by ``getaddrinfo`` itself, without a query.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Generator
from typing import Any

from coro.errors import ResolveError
from coro.future import Future
from coro.gen import coroutine
from coro.loop import IOLoop
from coro.net import AF_UNSPEC, GAIError, Network, SocketAddress

__all__ = ["Addresses", "Resolver", "ThreadedResolver"]

Addresses = list[tuple[int, SocketAddress]]

MAX_THREADS = 16
IDLE_SECONDS = 10.0


class _Answer(Future[Addresses]):
    """The answer to a look-up in a thread."""

    __slots__ = ("host",)

    def __init__(self, loop: IOLoop, host: str) -> None:
        super().__init__(loop=loop)
        self.host = host

    def _awaited(self) -> str:
        return f"resolve {self.host} in a thread"


class Resolver:
    """The interface of resolvers: override ``resolve``."""

    @coroutine
    def resolve(
        self, host: str, port: int, family: int = AF_UNSPEC
    ) -> Generator[Any, Any, Addresses]:
        """Look a host up.

        Arguments:
            host: a name or a literal address.
            port: put into each address.
            family: ``socket.AF_INET``, ``socket.AF_INET6``, or ``socket.AF_UNSPEC`` for both.
        Returns:
            ``(family, address)`` pairs, the preferred one first.
        Raises:
            ResolveError: the host has no such address.
        """
        raise NotImplementedError
        yield

    def close(self) -> None:
        """Give back what the resolver holds."""


class ThreadedResolver(Resolver):
    """The system's resolver, asked in threads.

    Arguments:
        max_threads: how many look-ups may be under way at once; further ones wait their turn.
    """

    def __init__(self, max_threads: int = MAX_THREADS) -> None:
        self._workers = _Workers(max_threads)

    @coroutine
    def resolve(
        self, host: str, port: int, family: int = AF_UNSPEC
    ) -> Generator[Any, Any, Addresses]:
        """Look a host up; a literal address at once."""
        loop = IOLoop.current()
        literal = resolve_literal(loop.network, host, port, family)
        if literal is not None:
            return literal
        found: Addresses = yield self._look_up(loop, host, port, family)
        return found

    def _look_up(self, loop: IOLoop, host: str, port: int, family: int) -> Future[Addresses]:
        """Have a thread look a name up; return the future of its answer."""
        answer = _Answer(loop, host)

        def look_up() -> None:
            try:
                found = loop.network.getaddrinfo(host, port, family, numeric=False)
                loop.add_callback(_answer, answer, found, None)
            except (OSError, UnicodeError) as error:
                loop.add_callback(_answer, answer, None, _resolve_error(error, host))

        self._workers.submit(look_up, answer)
        return answer


def resolve_literal(network: Network, host: str, port: int, family: int) -> Addresses | None:
    """Return the address that a literal stands for, or None if the host is a name.

    Raises:
        ResolveError: the host is neither.
    """
    if not host or "\0" in host:
        raise ResolveError(0, "not a host name", host)
    try:
        return network.getaddrinfo(host, port, family, numeric=True)
    except GAIError:
        return None
    except UnicodeError as error:
        raise _resolve_error(error, host) from error


def _resolve_error(error: Exception, host: str) -> ResolveError:
    if isinstance(error, OSError):
        resolved = ResolveError(error.errno or 0, error.strerror or str(error), host)
    else:
        resolved = ResolveError(0, "not a host name", host)
    # Without the traceback, which leads through the look-up's frame to the future it is for.
    resolved.__cause__ = error.with_traceback(None)
    return resolved


def _answer(future: Future[Addresses], found: Addresses | None, error: Exception | None) -> None:
    """Settle a look-up on its loop, unless it was given up."""
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        assert found is not None
        future.set_result(found)


class _Workers:
    """A few daemon threads that look names up, started when needed; idle ones end."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._reset()

    def _reset(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._arrived = threading.Condition(self._lock)
        # Invariant, under the lock: _idle threads are waiting for _jobs, of _threads in all.
        self._jobs: deque[tuple[Callable[[], None], Future[Any]]] = deque()
        self._idle = 0
        self._threads = 0

    def submit(self, job: Callable[[], None], answer: Future[Any]) -> None:
        """Run a job in a thread, unless its answer is settled before its turn comes."""
        if self._process != os.getpid():
            # A fork copies the counts, but not the threads.
            self._reset()
        with self._lock:
            self._jobs.append((job, answer))
            if self._idle >= len(self._jobs):
                self._arrived.notify()
            elif self._threads < self._limit:
                self._threads += 1
                threading.Thread(target=self._work, name="coro-resolver", daemon=True).start()

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._jobs:
                    self._idle += 1
                    self._arrived.wait(IDLE_SECONDS)
                    self._idle -= 1
                if not self._jobs:
                    self._threads -= 1
                    return
                job, answer = self._jobs.popleft()
            if not answer.done():
                job()
            del job, answer
