"""An ``IOLoop`` that an asyncio loop runs, with the ways of a native one: for tests of both kinds.

A hosted loop cannot be started; here it can: ``start``, ``stop``, ``run_sync`` and ``close`` run
its host, iteration by iteration. So a test that is written for a native loop, its clock virtual or
not, shows that what it tests does the same inside asyncio.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import Context, copy_context
from random import Random
from threading import get_ident
from typing import Any

import uvloop

from coro.future import slot
from coro.hosted import HostedLoop
from coro.loop import IOLoop
from coro.testing.clock import SimClock
from coro.testing.links import Link
from coro.testing.network import SimNetwork
from coro.testing.scheduling import SimLoop
from coro.timers import Timer, TimerHeap

# Iterations of a host in which nothing happens, before it is thought to be idle.
_QUIET = 3


class _Alarm:
    """What ``call_at`` of a virtual host returns."""

    def __init__(self, timers: TimerHeap, timer: Timer) -> None:
        self._timers = timers
        self._timer = timer

    def cancel(self) -> None:
        self._timers.cancel(self._timer)

    def cancelled(self) -> bool:
        return self._timer.callback is None

    def when(self) -> float:
        return self._timer.deadline


class _Virtual:
    """What makes a host's time virtual: timers of its own, and the clock that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.timers = TimerHeap()

    def time(self) -> float:
        raise AssertionError("an instance has a clock")

    def call_at(
        self, when: float, callback: Any, *args: Any, context: Context | None = None
    ) -> _Alarm:
        timer = self.timers.add(when, callback, args, context or copy_context())
        return _Alarm(self.timers, timer)

    def call_later(self, delay: float, callback: Any, *args: Any, **kwargs: Any) -> _Alarm:
        return self.call_at(self.time() + delay, callback, *args, **kwargs)


_REAL: dict[str, Callable[[], Any]] = {
    "asyncio": asyncio.SelectorEventLoop,
    "uvloop": uvloop.new_event_loop,
}
_VIRTUAL: dict[str, Callable[[], Any]] = {
    name: type(f"Virtual_{name}", (_Virtual, base), {})
    for name, base in (("asyncio", asyncio.SelectorEventLoop), ("uvloop", uvloop.Loop))
}

HOSTS = tuple(_REAL)

# The first one opens two descriptors that belong to the process.
uvloop.new_event_loop().close()


class _Hosting:
    """By whom the loops of the present test are hosted: one of ``HOSTS``, or None.

    Or whether they are simulated, under which seed, and how long bytes are on their way: so short
    that tests may count seconds, and yet none as long as another.
    """

    host: str | None = None
    seed: int | None = None
    delay = DELAY = (1e-9, 1e-7)


hosting = _Hosting()


def new_loop() -> IOLoop:
    """Make a current loop in real time, of the kind that the present test is for."""
    if hosting.seed is not None:
        return simulated_loop(hosting.seed)
    return IOLoop() if hosting.host is None else GuestLoop(hosting.host)


def of_the_system(thing: Any) -> Any:
    """Mark a test, or a value of its parameters, as one for real networks only."""
    thing.of_the_system = True
    return thing


def simulated_loop(seed: int, *, make_current: bool = True) -> IOLoop:
    """Make a loop in a simulated network."""
    clock = SimClock()
    network = SimNetwork(clock, Random(f"{seed} network"))
    network.default_link = Link(delay=hosting.delay)
    network.dns_delay = hosting.delay
    loop = SimLoop(clock=clock, network=network, random=Random(f"{seed} order"))
    if make_current:
        loop.make_current()
    return loop


class GuestLoop(HostedLoop):
    """A hosted loop that can be started.

    Arguments:
        host: the name of the kind of asyncio loop, one of ``HOSTS``.
        clock: a virtual clock, or None for real time.
    """

    # Whether the host may wait, for the next turn.
    _sleeping = False
    # Whether ``stop`` was called, and whether a turn of this loop was put off until the next start.
    _halting = False
    _put_off = False
    # How many turns there had been when it was started.
    _first = 0

    def __init__(self, host: str, clock: Any = None, *, make_current: bool = True) -> None:
        made = (_REAL if clock is None else _VIRTUAL)[host]()
        self._virtual = clock
        if clock is not None:
            made.time = clock
        super().__init__(made)
        self._thread = None
        if make_current:
            slot.current = self

    run_sync = IOLoop.run_sync

    def make_current(self) -> None:
        slot.current = self

    def _check_startable(self) -> None:
        if self._closed:
            raise RuntimeError(f"{self!r} is closed")
        if slot.running is not None or self._thread is not None:
            raise RuntimeError(f"cannot start {self!r}: {slot.running!r} is running in this thread")

    def start(self) -> None:
        self._check_startable()
        self._thread = get_ident()
        self._first = self._turns
        quiet = 0
        if self._put_off:
            self._put_off = False
            self._host.call_soon(self._turn, context=self._context)
        try:
            while True:
                turns = self._turns
                self._iterate()
                if self._halting:
                    break
                if self._turns != turns or self._asked:
                    quiet = 0
                elif quiet < _QUIET:
                    quiet += 1
                else:
                    quiet = 0
                    self._wait()
        finally:
            self._halting = False
            self._thread = None
            slot.running = None

    def stop(self) -> None:
        self._halting = True
        if self._sleeping:
            self._host.stop()

    def _iterate(self) -> None:
        """Run the host once, without waiting."""
        host = self._host
        if self._virtual is not None:
            for timer in host.timers.pop_due(host.time()):
                _, _, callback, args, context, _ = timer
                host.call_soon(callback, *args, context=context)
        host.call_soon(host.stop)
        host.run_forever()

    def _wait(self) -> None:
        """Nothing can go on now: let the clock leap, or wait for what others do."""
        if self._virtual is not None:
            deadline = self._host.timers.next_deadline()
            if deadline is not None:
                self._virtual.now = max(self._virtual.now, deadline)
                return
        self._sleeping = True
        self._host.run_forever()
        self._sleeping = False

    def _turn(self) -> None:
        if self._halting and self._turns > self._first:
            # As ``stop`` says: no turn after this one.
            self._put_off = self._asked
            return
        super()._turn()
        if self._sleeping:
            self._host.stop()

    def close(self, all_fds: bool = False) -> None:
        if self._closed:
            return
        if all_fds:
            self._close_subjects()
        if slot.current is self:
            slot.current = None
        self._shut_down()
        self._iterate()
        self._host.close()
