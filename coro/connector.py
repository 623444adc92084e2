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
from coro.loop import IOLoop
from coro.net import AF_INET, AF_INET6, SocketAddress
from coro.stream import IOStream

__all__ = ["ATTEMPT_DELAY", "RESOLUTION_DELAY", "connect_first"]

Address = tuple[int, SocketAddress]
Addresses = list[Address]

# Seconds, RFC 8305 section 8: between attempts, and for IPv6 addresses to come late.
ATTEMPT_DELAY = 0.25
RESOLUTION_DELAY = 0.05

_FAMILIES: dict[int, str] = {AF_INET: "IPv4", AF_INET6: "IPv6"}


def connect_first(
    host: str,
    lookups: dict[int, Future[Addresses]],
    begin: Callable[[Address], Future[IOStream]],
    on_resolved: Callable[[], Any],
    attempts: list[Attempt],
    attempt_delay: float = ATTEMPT_DELAY,
    first_family_count: int = 1,
) -> Generator[Any, Any, IOStream]:
    """Connect to the first of a host's addresses that answers: ``yield from connect_first(...)``.

    Arguments:
        host: its name, for errors.
        lookups: by family, futures of the host's addresses. The dict is used up: what is left in
            it when the race ends is cancelled, and it is empty then (an error that came from a
            look-up must not be referred to by a frame that it leads to).
        begin: begins one attempt; its future is cancelled if the attempt loses.
        on_resolved: called when the first addresses are known.
        attempts: gets a record of every attempt, also when the race is lost or given up: the one
            that won is the last.
        attempt_delay: seconds between attempts, 0.01 to 2.
        first_family_count: how many addresses of the first family go before one of the other.
    Returns:
        the connected stream.
    Raises:
        ResolveError: the host has no address.
        ConnectError: no attempt succeeded; its ``attempts`` list them.
        ValueError: a setting is out of its bounds.
    """
    race = _Race(host, lookups, begin, on_resolved, attempts, attempt_delay, first_family_count)
    try:
        stream = yield from race.run()
    finally:
        race.close()
    stream.attempts = attempts
    return stream


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
        begin: Callable[[Address], Future[IOStream]],
        on_resolved: Callable[[], Any],
        attempts: list[Attempt],
        attempt_delay: float,
        first_family_count: int,
    ) -> None:
        self._loop: IOLoop = IOLoop.current()
        self._host = host
        self._begin = begin
        self._on_resolved = on_resolved
        self._attempt_delay = attempt_delay
        self._first_family_count = first_family_count
        self._lookups = lookups
        self._lookup_errors: list[BaseException] = []
        # Addresses that were not tried yet, by family; the families in order of their answers.
        self._untried: dict[int, deque[Address]] = {}
        self._seen: set[Address] = set()
        self._last_family: int | None = None
        # Attempts: how many were begun; those under way, and the time each began; those that
        # ended; and the one that won.
        self._begun = 0
        self._running: dict[Future[IOStream], tuple[Address, float]] = {}
        self._attempts = attempts
        self._won: Attempt | None = None
        # When the next attempt may begin beside those under way.
        self._next_start = self._loop.time()
        self._wakeup = _Wakeup(self)
        for lookup in lookups.values():
            if not lookup.done():
                lookup.add_done_callback(self._wake)

    def run(self) -> Generator[Any, Any, IOStream]:
        """Begin attempts as their time comes until one succeeds or none is left."""
        # RFC 8305 section 5.
        if not 0.01 <= self._attempt_delay <= 2:
            raise ValueError(f"attempt_delay is 0.01 to 2 seconds, not {self._attempt_delay!r}")
        if self._first_family_count < 1:
            raise ValueError(f"first_family_count is 1 or more, not {self._first_family_count!r}")
        while True:
            self._take_answers()
            stream = self._take_results()
            if stream is not None:
                return stream
            if not self._untried and not self._running and not self._lookups:
                raise self._failure()
            now = self._loop.time()
            if self._untried and now >= self._next_start:
                self._start_next(now)
            else:
                yield from self._wait()

    def close(self) -> None:
        """Give up look-ups and attempts; close what connected too late; complete the record."""
        for lookup in self._lookups.values():
            lookup.cancel()
        now = self._loop.time()
        for attempt, (address, started) in self._running.items():
            if not attempt.cancel() and not attempt.cancelled() and attempt.exception() is None:
                attempt.result().close()
            self._attempts.append(Attempt(address[1], None, now - started))
        if self._won is not None:
            self._attempts.append(self._won)
        self._lookups.clear()
        self._lookup_errors.clear()
        self._running.clear()
        self._wakeup.race = None

    def describe(self) -> str:
        """Say how far it has come."""
        known = self._begun + sum(map(len, self._untried.values()))
        if not known:
            return f"look up {self._host}"
        return f"connect {self._host}, attempt {self._begun} of {known}"

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
            first = not self._untried and not self._begun
            for address in addresses:
                if address not in self._seen:
                    self._seen.add(address)
                    self._untried.setdefault(address[0], deque()).append(address)
            if addresses and first:
                self._on_resolved()
                if family == AF_INET and AF_INET6 in self._lookups:
                    self._next_start = self._loop.time() + RESOLUTION_DELAY
            elif family == AF_INET6 and not self._begun:
                # IPv6 answered within the delay, and goes first.
                self._untried = {
                    family: self._untried[family] for family in sorted(self._untried, reverse=True)
                }
                self._next_start = self._loop.time()
        if not self._lookups and not self._begun:
            self._next_start = self._loop.time()

    def _start_next(self, now: float) -> None:
        """Begin the next attempt.

        It is of the other family than the last one, if that has an address; but as many as asked
        for are of the first family first.
        """
        last = self._last_family
        if last not in self._untried or self._begun >= self._first_family_count:
            last = next((each for each in self._untried if each != last), last)
        assert last is not None
        self._last_family = last
        addresses = self._untried[last]
        address = addresses.popleft()
        if not addresses:
            del self._untried[last]
        self._begun += 1
        self._next_start = now + self._attempt_delay
        try:
            attempt = self._begin(address)
        except OSError as error:
            self._fail(address, error.with_traceback(None), now)
            return
        self._running[attempt] = (address, now)
        if not attempt.done():
            attempt.add_done_callback(self._wake)

    def _fail(self, address: Address, error: BaseException, started: float) -> None:
        """Record that an attempt failed; the next one may begin at once."""
        now = self._loop.time()
        self._attempts.append(Attempt(address[1], error, now - started))
        self._next_start = now

    def _take_results(self) -> IOStream | None:
        """Return the stream of an attempt that succeeded; record those that failed."""
        for attempt in [attempt for attempt in self._running if attempt.done()]:
            address, started = self._running.pop(attempt)
            error = attempt.exception()
            if error is None:
                self._won = Attempt(address[1], None, self._loop.time() - started)
                return attempt.result()
            reason = error.real_error if isinstance(error, StreamClosedError) else None
            self._fail(address, reason or error, started)
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
