"""Faults: what goes wrong in a simulated network, as data.

A seed draws a set of them; the set can be printed, given back to replay the run, and made smaller
while the run still fails. A fault is drawn without a host, since the program may make its hosts
when it likes: which of them it hits is decided when it happens, and is noted then.

All of a set is drawn before the program begins, from a sequence of its own. So one that is left
out changes nothing about the others.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

__all__ = ["KINDS", "Fault", "Faults"]

# What each kind does, and how many hosts it is about.
KINDS = {
    # Nothing passes between two hosts, and nobody is told.
    "partition": 2,
    # Every connection between two hosts is reset.
    "reset": 2,
    # A host and all its connections are gone without a word; it comes back without them.
    "crash": 1,
    # A host refuses connections.
    "refuse": 1,
}


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong.

    Arguments:
        kind: "partition", "reset", "crash" or "refuse".
        at: when, in seconds since the begin.
        hosts: names of those whom it hits; none: it found nobody.
        seconds: how long, where it lasts.
    """

    kind: str
    at: float
    hosts: tuple[str, ...] = ()
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"unknown kind of fault {self.kind!r}: it is one of {[*KINDS]}")

    def __repr__(self) -> str:
        lasts = f", {self.seconds!r}" if self.seconds else ""
        return f"Fault({self.kind!r}, {self.at!r}, {self.hosts!r}{lasts})"


@dataclass(frozen=True, slots=True)
class Faults:
    """A number of faults for a seed to draw.

    Arguments:
        count: how many.
        within: in the first so many seconds.
        kinds: of which kinds.
        longest: how long one lasts at most, in seconds.
    """

    count: int
    within: float = 10.0
    kinds: Sequence[str] = tuple(KINDS)
    longest: float = 2.0

    def draw(self, random: Random) -> list[Drawn]:
        """Draw them, in order of time."""
        drawn = []
        for _ in range(self.count):
            kind = self.kinds[int(random.random() * len(self.kinds))]
            at = round(random.random() * self.within, 6)
            seconds = 0.0 if kind == "reset" else round(random.random() * self.longest, 6)
            drawn.append(Drawn(kind, at, seconds, (random.random(), random.random())))
        return sorted(drawn, key=lambda each: each.at)


@dataclass(frozen=True, slots=True)
class Drawn:
    """A fault that has not found its hosts: numbers from 0 to 1 choose among those that are."""

    kind: str
    at: float
    seconds: float
    picks: tuple[float, float]

    def find(self, names: list[str]) -> Fault:
        """Choose its hosts, all different; none if there are not enough."""
        left = sorted(names)
        wanted = KINDS[self.kind]
        found = []
        if len(left) >= wanted:
            for pick in self.picks[:wanted]:
                found.append(left.pop(int(pick * len(left))))
        return Fault(self.kind, self.at, tuple(found), self.seconds)


def arm(world: Any, wanted: Faults | Sequence[Fault] | None, random: Random) -> None:
    """Let faults happen in a world, and be noted in its list."""
    if wanted is None:
        return
    drawn: list[Fault | Drawn] = []
    drawn += wanted.draw(random) if isinstance(wanted, Faults) else wanted
    for at, each in enumerate(drawn):
        world.faults.append(each if isinstance(each, Fault) else each.find([]))
        world.network.after(each.at, functools.partial(_happen, world, at, each))


def _happen(world: Any, at: int, what: Fault | Drawn) -> None:
    network = world.network
    fault = what if isinstance(what, Fault) else what.find(list(network.hosts))
    world.faults[at] = fault
    if len(fault.hosts) < KINDS[fault.kind]:
        return
    if fault.kind == "partition":
        network.partition(*fault.hosts, fault.seconds)
    elif fault.kind == "reset":
        network.reset(*fault.hosts)
    elif fault.kind == "crash":
        network.crash(*fault.hosts, fault.seconds)
    else:
        network.hosts[fault.hosts[0]].refuse(seconds=fault.seconds)
