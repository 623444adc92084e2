"""Addresses to one connected stream: the race that RFC 8305 ("happy eyeballs") describes.

A host has several addresses of two families, and any of them may be dead without saying so. So the
families take turns (section 4), the first being that of the first answer; an attempt gets a quarter
of a second before the next is begun beside it (section 5); a failure begins the next one at once;
and the first to connect wins. The losers' sockets are closed, and every attempt is on record.

The look-ups of both families go on side by side (section 3). The race begins with the first answer;
if that is an IPv4 one, IPv6 gets another 50 ms to answer, because it would go first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import Any

from coro.errors import (
    Attempt,
    ConnectError,
    ResolveError,
    StreamClosedError,
    format_address,
)
from coro.future import Future
from coro.gen import Task, coroutine
from coro.loop import IOLoop
from coro.net import AF_INET, AF_INET6, SocketAddress
from coro.stream import IOStream

__all__ = ["ATTEMPT_DELAY", "RESOLUTION_DELAY", "connect_first"]

Address = tuple[int, SocketAddress]
Addresses = list[Address]

# Seconds, RFC 8305 section 8: between attempts (0.1 to 2), and for IPv6 addresses to come late.
ATTEMPT_DELAY = 0.25
RESOLUTION_DELAY = 0.05

_FAMILIES: dict[int, str] = {AF_INET: "IPv4", AF_INET6: "IPv6"}


@coroutine
def connect_first(
    host: str,
    lookups: dict[int, Future[Addresses]],
    begin: Callable[[Address], Task[IOStream]],
    on_resolved: Callable[[], Any],
    attempt_delay: float = ATTEMPT_DELAY,
) -> Generator[Any, Any, IOStream]:
    """Connect to the first of a host's addresses that answers.

    Arguments:
        host: its name, for errors.
        lookups: by family, futures of the host's addresses. The dict is used up: what is left in
            it when the race ends is cancelled, and it is empty then (an error that came from a
            look-up must not be referred to by a frame that it leads to).
        begin: begins one attempt; its task is cancelled if the attempt loses.
        on_resolved: called when the first addresses are known.
        attempt_delay: seconds between attempts.
    Returns:
        the connected stream; its ``attempts`` tell of every attempt.
    Raises:
        ResolveError: the host has no address.
        ConnectError: no attempt succeeded; its ``attempts`` list them.
    """
    race = _Race(host, lookups, begin, on_resolved, attempt_delay)
    try:
        return (yield from race.run())
    finally:
        race.close()


class _Wakeup(Future[None]):
    """Done when something happened that the race must look at."""

    __slots__ = ("race",)

    def __init__(self, race: _Race) -> None:
        super().__init__(loop=race._loop)
        self.race: _Race | None = race

    def _awaited(self) -> str:
        return "" if self.race is None else self.race.describe()

    def _inputs(self) -> Sequence[tuple[str, Any]]:
        return () if self.race is None else self.race.under_way()


class _Race:
    """The look-ups and the attempts of one connection."""

    def __init__(
        self,
        host: str,
        lookups: dict[int, Future[Addresses]],
        begin: Callable[[Address], Task[IOStream]],
        on_resolved: Callable[[], Any],
        attempt_delay: float,
    ) -> None:
        self._loop: IOLoop = IOLoop.current()
        self._host = host
        self._begin = begin
        self._on_resolved = on_resolved
        self._attempt_delay = attempt_delay
        self._lookups = lookups
        self._lookup_errors: list[BaseException] = []
        # Addresses that were not tried yet, by family; the families in order of their answers.
        self._untried: dict[int, deque[Address]] = {}
        self._seen: set[Address] = set()
        self._last_family: int | None = None
        # Attempts under way, and the time each began.
        self._running: dict[Task[IOStream], tuple[Address, float]] = {}
        self._attempts: list[Attempt] = []
        # When the next attempt may begin beside those under way.
        self._next_start = self._loop.time()
        self._wakeup = _Wakeup(self)
        for lookup in lookups.values():
            lookup.add_done_callback(self._wake)

    def run(self) -> Generator[Any, Any, IOStream]:
        """Begin attempts as their time comes until one succeeds or none is left."""
        while True:
            self._take_answers()
            stream = self._take_results()
            if stream is not None:
                stream.attempts = self._attempts
                return stream
            if not self._untried and not self._running and not self._lookups:
                raise self._failure()
            now = self._loop.time()
            if self._untried and now >= self._next_start:
                self._start_next(now)
            else:
                yield from self._wait()

    def close(self) -> None:
        """Give up look-ups and attempts; close what connected too late."""
        for lookup in self._lookups.values():
            lookup.cancel()
        for attempt in self._running:
            if not attempt.cancel() and not attempt.cancelled() and attempt.exception() is None:
                attempt.result().close()
        self._lookups.clear()
        self._lookup_errors.clear()
        self._running.clear()
        self._wakeup.race = None

    def describe(self) -> str:
        """Say how far it has come."""
        begun = len(self._attempts) + len(self._running)
        known = begun + sum(map(len, self._untried.values()))
        if not known:
            return f"look up {self._host}"
        return f"connect {self._host}, attempt {begun} of {known}"

    def under_way(self) -> Sequence[tuple[str, Any]]:
        """The look-ups and the attempts that have not ended."""
        lookups = [(_FAMILIES.get(family, ""), each) for family, each in self._lookups.items()]
        attempts = [
            (format_address(address[1]), attempt) for attempt, (address, _) in self._running.items()
        ]
        return [(label, future) for label, future in lookups + attempts if not future.done()]

    def _wake(self, _future: Future[Any]) -> None:
        if not self._wakeup.done():
            self._wakeup.set_result(None)

    def _wait(self) -> Generator[Any, Any, None]:
        """Wait for an answer, for the end of an attempt, or for the time of the next one."""
        timer = None
        if self._untried:
            timer = self._loop.call_at(self._next_start, self._wake, self._wakeup)
        try:
            yield self._wakeup
        finally:
            if timer is not None:
                self._loop.remove_timeout(timer)
        self._wakeup = _Wakeup(self)

    def _take_answers(self) -> None:
        """Take in the addresses of the look-ups that have ended."""
        for family, lookup in list(self._lookups.items()):
            if not lookup.done():
                continue
            del self._lookups[family]
            # Asked and not raised: a traceback through this frame would lead back to the future.
            error = lookup.exception()
            if error is not None:
                self._lookup_errors.append(error)
                continue
            addresses = lookup.result()
            first = not self._untried and not self._attempts and not self._running
            for address in addresses:
                if address not in self._seen:
                    self._seen.add(address)
                    self._untried.setdefault(address[0], deque()).append(address)
            if addresses and first:
                self._on_resolved()
                if family == AF_INET and AF_INET6 in self._lookups:
                    self._next_start = self._loop.time() + RESOLUTION_DELAY
            elif family == AF_INET6 and not self._attempts and not self._running:
                # IPv6 answered within the delay, and goes first.
                self._untried = {
                    family: self._untried[family] for family in sorted(self._untried, reverse=True)
                }
                self._next_start = self._loop.time()
        if not self._lookups and not self._running and not self._attempts:
            self._next_start = self._loop.time()

    def _start_next(self, now: float) -> None:
        """Begin the next attempt: of the other family than the last one, if it has an address."""
        families = list(self._untried)
        family = next((f for f in families if f != self._last_family), families[0])
        addresses = self._untried[family]
        address = addresses.popleft()
        if not addresses:
            del self._untried[family]
        self._last_family = family
        self._next_start = now + self._attempt_delay
        attempt = self._begin(address)
        self._running[attempt] = (address, now)
        attempt.add_done_callback(self._wake)

    def _take_results(self) -> IOStream | None:
        """Return the stream of an attempt that succeeded; record those that failed."""
        now = self._loop.time()
        for attempt in [attempt for attempt in self._running if attempt.done()]:
            address, started = self._running.pop(attempt)
            error = attempt.exception()
            if error is not None:
                reason = error.real_error if isinstance(error, StreamClosedError) else error
                self._attempts.append(Attempt(address[1], reason or error, now - started))
                self._next_start = now
                continue
            stream = attempt.result()
            self._attempts.append(Attempt(address[1], None, now - started))
            return stream
        return None

    def _failure(self) -> BaseException:
        """Say why nothing connected."""
        if self._attempts:
            tried = ", ".join(map(str, self._attempts))
            error = ConnectError(f"cannot connect to {self._host}: {tried}", self._attempts)
            error.__cause__ = self._attempts[0].error
            return error
        if self._lookup_errors:
            return self._lookup_errors[0]
        return ResolveError(0, "it has no address", self._host)
