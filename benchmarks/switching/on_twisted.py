"""Twisted's ``inlineCallbacks`` on its epoll reactor."""

from argparse import Namespace
from collections.abc import Callable, Generator
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults, inlineCallbacks
from twisted.internet.task import deferLater, react

from ..trial import Trial
from .subject import DEPTH, TASKS, main

Coroutine = Generator[Any, Any, Any]


@inlineCallbacks
def spin(turns: int) -> Coroutine:
    """Yield to the loop ``turns`` times."""
    for _ in range(turns):
        yield deferLater(reactor, 0)


@inlineCallbacks
def spinners(count: int) -> Coroutine:
    """Run the tasks of the case ``yield``."""
    yield gatherResults([spin(count // TASKS) for _ in range(TASKS)])


@inlineCallbacks
def at_once() -> Coroutine:
    """A coroutine that ends without suspending."""
    return 1
    yield


@inlineCallbacks
def children(count: int) -> Coroutine:
    """Wait for ``count`` children, one after another."""
    for _ in range(count):
        yield at_once()


@inlineCallbacks
def link(below: int) -> Coroutine:
    """One of a chain: waits for the next, or at the bottom for the loop."""
    if below:
        return (yield link(below - 1))
    yield deferLater(reactor, 0)
    return 1


@inlineCallbacks
def chains(count: int) -> Coroutine:
    """Walk down and up ``count`` chains."""
    for _ in range(count):
        yield link(DEPTH - 1)


@inlineCallbacks
def player(slots: list[Deferred[None]], me: int, turns: int) -> Coroutine:
    """Wait to be woken, then wake the other; ``turns`` times."""
    for _ in range(turns):
        yield slots[me]
        slots[me] = Deferred()
        slots[1 - me].callback(None)


@inlineCallbacks
def players(count: int) -> Coroutine:
    """Run the two tasks of the case ``wake``; the first finds itself woken."""
    slots: list[Deferred[None]] = [Deferred(), Deferred()]
    slots[0].callback(None)
    yield gatherResults([player(slots, me, count // 2) for me in range(2)])


def drive(work: Callable[[int], Any], trial: Trial, options: Namespace) -> None:
    """Yield each count's work on the reactor; ``react`` ends the process."""

    @inlineCallbacks
    def measure(reactor: object) -> Coroutine:
        for count in trial:
            yield work(count)

    react(measure)


if __name__ == "__main__":
    main({"yield": spinners, "child": children, "chain": chains, "wake": players}, drive)
