"""A clock that leaps: where the loop would sleep until its next timer, time passes at once.

Descriptors, wakers and pollers are the real ones, so a test sees the loop as it is; only waiting
costs nothing. A loop that would sleep for ever, with nothing in this process to wake it, fails the
test instead of hanging it.
"""

from __future__ import annotations

import selectors
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from coro.loop import IOLoop
from coro.net import EpollPoller, Network, Poller, SelectorPoller
from coro.testing.clock import SimClock
from tests.support.hosting import GuestLoop, hosting, simulated_loop

# Only a broken test waits so long.
_PATIENCE = 5.0

POLLERS: dict[str, Callable[[], Poller]] = {
    "epoll": EpollPoller,
    "poll": lambda: SelectorPoller(selectors.PollSelector()),
    "select": lambda: SelectorPoller(selectors.SelectSelector()),
}


class Clock:
    """Seconds that pass only when they are told to."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class LeapingPoller:
    """A poller that moves the clock instead of waiting."""

    def __init__(self, poller: Poller, clock: Clock) -> None:
        self._poller = poller
        self._clock = clock
        self.register = poller.register
        self.modify = poller.modify
        self.unregister = poller.unregister
        self.close = poller.close
        self.fileno = poller.fileno

    def poll(self, timeout: float | None) -> list[tuple[int, int]]:
        if timeout is None:
            events = self._poller.poll(_PATIENCE)
            assert events, "the loop would sleep for ever"
            return events
        events = self._poller.poll(0)
        if not events:
            self._clock.now += timeout
        return events


class VirtualNetwork(Network):
    """The real network under a poller that leaps."""

    def __init__(self, clock: Clock, poller: str = "epoll") -> None:
        self._clock = clock
        self._make = POLLERS[poller]

    def poller(self) -> Poller:
        return LeapingPoller(self._make(), self._clock)


def virtual_loop(poller: str = "epoll", *, make_current: bool = True) -> IOLoop:
    """Make a loop whose time is virtual."""
    if hosting.seed is not None:
        return simulated_loop(hosting.seed, make_current=make_current)
    clock = Clock()
    if hosting.host is not None:
        return GuestLoop(hosting.host, clock, make_current=make_current)
    return IOLoop(make_current, clock=clock, network=VirtualNetwork(clock, poller))


@contextmanager
def closing_loop(poller: str = "epoll") -> Iterator[IOLoop]:
    """A current virtual loop for the length of a test."""
    loop = virtual_loop(poller)
    try:
        yield loop
    finally:
        loop.close()
        IOLoop.clear_current()


def turns(loop: IOLoop, count: int = 1) -> None:
    """Run so many turns of a loop that is not running; none of them sleeps."""
    for _ in range(count):
        loop.stop()
        loop.start()


def step(loop: IOLoop) -> None:
    """Run one turn of a loop that is not running; if nothing is ready, at its next deadline."""
    deadline = loop._timers.next_deadline()
    if not loop._ready and deadline is not None:
        clock = loop.time
        assert isinstance(clock, Clock | SimClock)
        clock.now = max(clock.now, deadline)
    turns(loop)
