"""Connections that are kept for the next request, and the limit on requests under way.

The two are counted apart. A request takes a *slot* first, or waits for one: the origins that wait
take turns, so that a thousand requests to one do not keep the only one to another waiting; those
to the same origin are served in the order in which they came. Then it takes an idle connection of
its origin if there is one. The most recently used connection is taken first, so that those not
needed for the present load grow old and are closed.

An idle connection is watched: when its peer closes it, or sends what nobody asked for, it is closed
and leaves the pool at once. A program that kept its loop busy has noticed neither; so the system is
asked before a connection is used again, unless it was used just now.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Generator, Hashable
from typing import Any

from coro.future import Future
from coro.http.connection import HTTPConnection
from coro.http.urls import Origin, format_origin
from coro.timers import Timer

__all__ = ["ConnectionPool"]

# A crawler of many hosts must not run out of descriptors, of which 1024 are usual.
MAX_IDLE = 100

# Seconds after its last exchange for which a connection is taken to be what it was: asking the
# system costs a call, and one request after the other would pay for it.
JUST_NOW = 0.01

# Origins of whose connections, closed meanwhile, the counts are kept.
MAX_ORIGINS = 1000


class _Turn(Future[None]):
    """Done when a request has its slot."""

    __slots__ = ("pool",)

    def __init__(self, pool: ConnectionPool) -> None:
        super().__init__(loop=pool._loop)
        self.pool = pool

    def _awaited(self) -> str:
        pool = self.pool
        return (
            f"queue for a request slot, {pool.active} of {pool.max_active} busy, "
            f"{pool.waiting} queued"
        )


class ConnectionPool:
    """The idle connections and the request slots of one client.

    Arguments:
        loop: the client's loop.
        max_active: how many requests may be under way at once.
        idle_seconds: how long a connection may stay unused before it is closed.
        max_idle: how many connections may stay unused beside a new one.
        max_per_origin: how many requests to one origin may be under way at once; None: all.
        lifetime: seconds after which a connection serves no further request; None: no limit.
    """

    def __init__(
        self,
        loop: Any,
        max_active: int,
        idle_seconds: float = 60.0,
        max_idle: int = MAX_IDLE,
        max_per_origin: int | None = None,
        lifetime: float | None = None,
    ) -> None:
        self._loop = loop
        self.max_active = max_active
        self.idle_seconds = idle_seconds
        self.max_idle = max(max_idle, max_active)
        # Invariant: slots that were given out and not given back; at most max_active.
        self.active = 0
        self.max_per_origin = max_per_origin
        self.lifetime = lifetime
        # Of those slots, how many each origin has; kept only if an origin has a limit.
        self._busy: Counter[Hashable] = Counter()
        # Requests that wait for a slot, in order, by origin; the origin whose turn it is comes
        # first. While there are any, no slot is free, or none that their origins may have.
        self._waiters: OrderedDict[Hashable, OrderedDict[_Turn, None]] = OrderedDict()
        # Idle connections by origin (and TLS options), the last used one last. A list that has
        # become empty stays while its connections are busy, which come back to it as a rule.
        self._idle: dict[Hashable, list[HTTPConnection]] = {}
        # Those that were opened and, as far as is known, not closed; and how many were opened, in
        # all, and to each origin, with the requests that reused those that are closed.
        self._open: dict[HTTPConnection, None] = {}
        self.opened_count = 0
        self._history: OrderedDict[Origin, list[int]] = OrderedDict()
        self._sweeper: Timer | None = None

    def __repr__(self) -> str:
        return (
            f"<ConnectionPool active={self.active}/{self.max_active} "
            f"waiting={self.waiting} idle={self.idle}>"
        )

    @property
    def waiting(self) -> int:
        """How many requests wait for a slot."""
        return sum(map(len, self._waiters.values()))

    @property
    def idle(self) -> int:
        """How many connections wait for a request."""
        return sum(map(len, self._idle.values()))

    def statistics(self) -> dict[str, int]:
        """Count what the pool holds now."""
        return {"active": self.active, "waiting": self.waiting, "idle": self.idle}

    def statistics_by_origin(self) -> dict[str, dict[str, int]]:
        """Count what belongs to each origin; see ``AsyncHTTPClient``."""
        names = ("open", "idle", "busy", "waiting", "opened", "reused")
        counts: dict[Any, dict[str, int]] = {}
        for origin, (opened, reused) in self._history.items():
            counts[origin] = {**dict.fromkeys(names, 0), "opened": opened, "reused": reused}
        for waited_for, queue in self._waiters.items():
            counts.setdefault(waited_for, dict.fromkeys(names, 0))["waiting"] = len(queue)
        idle = {connection for each in self._idle.values() for connection in each}
        for connection in self._open:
            count = counts.setdefault(connection.origin, dict.fromkeys(names, 0))
            count["reused"] += max(0, connection.exchanges - 1)
            if not connection.stream.closed():
                count["open"] += 1
                count["idle" if connection in idle else "busy"] += 1
        return {format_origin(origin): count for origin, count in counts.items()}

    # --- slots -----------------------------------------------------------------------------

    def try_acquire(self, origin: Hashable = None) -> bool:
        """Take a slot if one is free.

        Arguments:
            origin: where the request goes.
        """
        if self.active >= self.max_active:
            return False
        if self.max_per_origin is not None:
            if self._busy[origin] >= self.max_per_origin:
                return False
            self._busy[origin] += 1
        self.active += 1
        return True

    def acquire(self, origin: Hashable = None) -> Generator[Any, Any, None]:
        """Wait for a slot: ``yield from pool.acquire(origin)``."""
        waiter = _Turn(self)
        self._waiters.setdefault(origin, OrderedDict())[waiter] = None
        try:
            yield waiter
        except BaseException:
            # The slot may have been handed over in the very turn of the cancellation.
            queue = self._waiters.get(origin)
            if queue is not None and waiter in queue:
                del queue[waiter]
                if not queue:
                    del self._waiters[origin]
            elif not waiter.cancelled():
                self.release(origin)
            raise

    def release(self, origin: Hashable = None) -> None:
        """Give the slot of a request to ``origin`` back: to the one whose turn it is, if any."""
        if self.max_per_origin is not None:
            self._busy[origin] -= 1
            if not self._busy[origin]:
                del self._busy[origin]
        if not (self._waiters and self._hand_over()):
            self.active -= 1

    def _hand_over(self) -> bool:
        """Give a slot to the first that waits for an origin which may have one more."""
        for origin in list(self._waiters):
            if self.max_per_origin is not None and self._busy[origin] >= self.max_per_origin:
                continue
            queue = self._waiters.pop(origin)
            while queue:
                waiter, _ = queue.popitem(last=False)
                if not waiter.done():
                    if queue:
                        self._waiters[origin] = queue
                    if self.max_per_origin is not None:
                        self._busy[origin] += 1
                    waiter.set_result(None)
                    return True
        return False

    # --- connections -----------------------------------------------------------------------

    def opened(self, connection: HTTPConnection) -> HTTPConnection:
        """Take note of a new connection; return it."""
        self.opened_count += 1
        self._open[connection] = None
        connection.on_close = self.forget
        history = self._history
        history.setdefault(connection.origin, [0, 0])[0] += 1
        history.move_to_end(connection.origin)
        if len(history) > MAX_ORIGINS:
            history.popitem(last=False)
        return connection

    def take(self, key: Hashable, now: float) -> HTTPConnection | None:
        """Take an idle connection out of the pool; None if there is none that can be used.

        Arguments:
            key: what the connection must have in common with the request.
            now: the loop's time.
        """
        connections = self._idle.get(key)
        if connections is None:
            return None
        oldest = now - self.idle_seconds
        while connections:
            connection = connections.pop()
            if (
                connection.idle_since >= oldest
                and (self.lifetime is None or now - connection.opened < self.lifetime)
                and (
                    not connection.stream.closed()
                    if now - connection.idle_since < JUST_NOW
                    else connection.stream.still_idle()
                )
            ):
                return connection
            connection.close()
        return None

    def put(self, connection: HTTPConnection, now: float) -> None:
        """Keep a connection for the next request.

        Arguments:
            connection: it has just ended an exchange.
            now: the loop's time.
        """
        connection.idle_since = now
        connections = self._idle.get(connection.key)
        if connections is None:
            connections = self._idle[connection.key] = []
        connections.append(connection)
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(self.idle_seconds, self._sweep)

    def make_room(self) -> None:
        """Close what was idle for longest if there is no room for a connection to be opened."""
        if self.idle >= self.max_idle:
            firsts = (each[0] for each in self._idle.values() if each)
            oldest = min(firsts, key=lambda c: c.idle_since)
            self.forget(oldest)
            oldest.close()

    def forget(self, connection: HTTPConnection) -> None:
        """Take out a connection that is closed, or about to be."""
        if connection in self._open:
            del self._open[connection]
            count = self._history.get(connection.origin)
            if count is not None:
                count[1] += max(0, connection.exchanges - 1)
        connections = self._idle.get(connection.key)
        if connections is not None:
            if connection in connections:
                connections.remove(connection)
            if not connections:
                del self._idle[connection.key]

    def close(self) -> None:
        """Close every idle connection."""
        if self._sweeper is not None:
            self._loop.remove_timeout(self._sweeper)
            self._sweeper = None
        idle, self._idle = self._idle, {}
        for connections in idle.values():
            for connection in connections:
                connection.close()

    def _sweep(self) -> None:
        """Close what has been idle for too long."""
        self._sweeper = None
        oldest = self._loop.time() - self.idle_seconds
        for connections in list(self._idle.values()):
            for connection in [c for c in connections if c.idle_since <= oldest]:
                self.forget(connection)
                connection.close()
        if self._idle:
            self._sweeper = self._loop.call_later(self.idle_seconds, self._sweep)
