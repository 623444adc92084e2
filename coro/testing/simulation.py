"""``simulate``: a program on a simulated loop, in a world that a seed decides.

All that the outside world decides in production is drawn here: the order of a turn, the delays and
the segments of the network, the faults. Each draws from a sequence of its own that begins with the
seed, so that a fault more or less does not change the order of the first turn.

Application code runs unchanged. What does not ask the loop for the time is not deceived
(``time.time()``); the ``random`` module's own generator begins with the seed too, and gets its
state back at the end. Functions for threads run on the loop, subprocesses cannot be started.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from random import Random
from typing import Any

from coro.future import slot
from coro.main import run_on
from coro.testing.clock import SimClock
from coro.testing.faults import Fault, Faults, arm
from coro.testing.network import SimNetwork
from coro.testing.scheduling import SimLoop
from coro.testing.trace import Trace

__all__ = ["World", "current_world", "how_to_replay", "simulate"]


class World:
    """A simulated world, in which one program runs once.

    Arguments:
        seed: decides everything that is left open.
        network: a function that gets the network before the program begins, to make its hosts.
        faults: faults that the seed draws; or a sequence of faults that happen.

    Attributes:
        seed: the seed.
        clock: the time, in seconds; it stands still while anything can run.
        network: the ``SimNetwork``: hosts, links, DNS.
        random: for the program's own draws; the simulation itself does not use it.
        trace: all that happened, as a log.
        faults: the faults, with the hosts that they hit.
        left: tasks and timers that were there when ``main`` ended, and descriptors that were open
            after all; a line for each.
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        network: Callable[[SimNetwork], Any] | None = None,
        faults: Faults | Sequence[Fault] | None = None,
    ) -> None:
        self.seed = seed
        self.random = self._draws("program")
        self.clock = SimClock()
        self.trace = Trace(self.clock)
        self.network = SimNetwork(self.clock, self._draws("network"), self.trace)
        self.faults: list[Fault] = []
        self.left: list[str] = []
        self._wanted_faults = faults
        self._wanted_network = network
        self._loop: SimLoop | None = None
        self._spent = False

    def _draws(self, purpose: str) -> Random:
        """A sequence that begins with the seed, and that nothing else draws from."""
        return Random(f"{self.seed} {purpose}")

    def __repr__(self) -> str:
        state = "running" if self._loop is not None else "ended" if self._spent else "new"
        return f"<World seed={self.seed} {state} at {self.clock():.3f} s>"

    def run(
        self,
        main: Callable[..., Any],
        *args: Any,
        timeout: float | timedelta | None = None,
    ) -> Any:
        """Run a coroutine function; cancel, await and close what is left, as ``coro.run`` does.

        Arguments:
            main: the coroutine function (``@coroutine`` or ``async def``).
            args: its arguments.
            timeout: seconds of virtual time after which it is cancelled.
        Returns:
            what ``main`` returns.
        Raises:
            DeadlockError: everything waits, and nothing is left that could happen.
            RuntimeError: the world is used already, or a loop is running in this thread.
        """
        if self._spent:
            raise RuntimeError(f"{self!r} was used already: a world is for one program")
        if slot.running is not None:
            raise RuntimeError(
                "a simulation cannot begin inside a running loop: the program that is to be "
                "simulated must begin in it"
            )
        if not callable(main):
            raise TypeError(
                f"simulate() takes a coroutine function and its arguments, not {main!r}: "
                "simulate(main, ..., seed=7)"
            )
        self._spent = True
        if self._wanted_network is not None:
            self._wanted_network(self.network)
        loop = self._loop = SimLoop(
            clock=self.clock, network=self.network, random=self._draws("order"), world=self
        )
        try:
            with _seeded(self._draws("random")):
                arm(self, self._wanted_faults, self._draws("faults"))
                return run_on(loop, functools.partial(main, *args), timeout, debug=False)
        except Exception as error:
            error.add_note(
                f"simulated with seed {self.seed}; to replay it: "
                + how_to_replay(main, args, self.seed, self._wanted_network, self.faults)
            )
            raise
        finally:
            self.left += loop.left
            self.left += [f"descriptor of {sock!r}" for sock in self.network.descriptors.values()]
            self.network.end()
            self._loop = None
            del loop


def simulate(
    main: Callable[..., Any],
    *args: Any,
    seed: int = 0,
    network: Callable[[SimNetwork], Any] | None = None,
    faults: Faults | Sequence[Fault] | None = None,
    timeout: float | timedelta | None = None,
) -> Any:
    """Run a program in a simulated world; the same seed gives the same run, to the byte.

    Inside of it ``current_world()`` gives the ``World``; to look at it afterwards, make it
    yourself: ``world = World(7)``, ``world.run(main)``, ``world.trace.text()``.

    Arguments:
        main: the coroutine function (``@coroutine`` or ``async def``).
        args: its arguments.
        seed: decides everything that is left open: orders, delays, faults.
        network: a function that gets the ``SimNetwork`` before the program begins.
        faults: faults that the seed draws (``Faults``); or a sequence of ``Fault`` that happen.
        timeout: seconds of virtual time after which it is cancelled.
    Returns:
        what ``main`` returns.
    Raises:
        DeadlockError: everything waits, and nothing is left that could happen.
        Exception: what ``main`` raises, with a note that says how to replay it.
    """
    return World(seed, network=network, faults=faults).run(main, *args, timeout=timeout)


def current_world() -> World:
    """Return the world of the simulation that runs in this thread.

    Raises:
        RuntimeError: there is none.
    """
    world = getattr(slot.running or slot.current, "world", None)
    if world is None:
        raise RuntimeError("nothing is simulated here: current_world() is for inside simulate()")
    return world  # type: ignore[no-any-return]


def how_to_replay(
    main: Callable[..., Any],
    args: tuple[Any, ...],
    seed: int,
    network: Callable[..., Any] | None,
    faults: Sequence[Fault],
) -> str:
    """The call that runs a program again as it ran."""
    parts = [_name(main), *map(repr, args), f"seed={seed}"]
    if network is not None:
        parts.append(f"network={_name(network)}")
    if faults:
        parts.append(f"faults={list(faults)!r}")
    return f"simulate({', '.join(parts)})"


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__qualname__", None) or repr(function)


@contextmanager
def _seeded(source: Random) -> Iterator[None]:
    """The ``random`` module draws what the seed says."""
    before = random.getstate()
    random.setstate(source.getstate())
    try:
        yield
    finally:
        random.setstate(before)
