"""Twisted's ``inlineCallbacks``, and its reactor's timers."""

from collections.abc import Generator
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.task import react

from .subject import COUNT, FIRST, options, tell, used

Coroutine = Generator[Any, Any, Any]


@inlineCallbacks
def wait(kept: list[Any]) -> Coroutine:
    """Wait for what never comes; somebody else has to keep that."""
    slot: Deferred[None] = Deferred()
    kept.append(slot)
    yield slot


def turn() -> Deferred[None]:
    """What fires in the next turn of the reactor."""
    soon: Deferred[None] = Deferred()
    reactor.callLater(0, soon.callback, None)  # type: ignore[attr-defined]
    return soon


@inlineCallbacks
def coroutines(_reactor: object) -> Coroutine:
    """Call coroutines, which suspend at once."""
    kept: list[Any] = []
    first = [wait(kept) for _ in range(FIRST)]
    yield turn()
    before = used()
    made = [wait(kept) for _ in range(COUNT)]
    yield turn()
    tell(before)
    del first, made


@inlineCallbacks
def timers(_reactor: object) -> Coroutine:
    """Add timers."""
    later = reactor.callLater  # type: ignore[attr-defined]
    first = [later(60, tell, number) for number in range(FIRST)]
    yield turn()
    before = used()
    made = [later(60, tell, number) for number in range(COUNT)]
    yield turn()
    tell(before)
    for timer in first + made:
        timer.cancel()


if __name__ == "__main__":
    react({"coroutine": coroutines, "timer": timers}[options(["coroutine", "timer"]).case])
