"""coro on its own epoll loop."""

from collections.abc import Generator
from typing import Any

from coro.gen import coroutine, run
from coro.loop import IOLoop

from ..switching.subject import nothing
from ..trial import FIRST_COUNT, Trial
from .subject import batches, options, seconds

Coroutine = Generator[Any, Any, Any]


@coroutine
def spin() -> Coroutine:
    """Yield to the loop for ever."""
    while True:
        yield


@coroutine
def coroutines(at: int, length: float) -> Coroutine:
    """Turn the loop: in each turn, every coroutine yields once, this one too."""
    tasks = [spin() for _ in range(at - 1)]
    for count in Trial(length, unit=max(at, FIRST_COUNT)):
        for _ in range(count // at):
            yield
    for task in tasks:
        task.cancel()


@coroutine
def waiting(at: int, length: float) -> Coroutine:
    """Add timers and cancel them, beside those that wait."""
    loop = IOLoop.current()
    others = [loop.call_later(seconds(number), nothing) for number in range(at)]
    for count in Trial(length):
        for batch in batches(count):
            added = [loop.call_later(seconds(number), nothing) for number in batch]
            for timer in added:
                loop.remove_timeout(timer)
            yield
    del others


if __name__ == "__main__":
    chosen = options()
    run({"coroutines": coroutines, "waiting": waiting}[chosen.case], chosen.at, chosen.seconds)
