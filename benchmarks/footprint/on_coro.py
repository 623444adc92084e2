"""coro on its own epoll loop."""

from collections.abc import Generator
from typing import Any

from coro.future import Future
from coro.gen import coroutine, run
from coro.loop import IOLoop

from .subject import COUNT, FIRST, options, tell, used

Coroutine = Generator[Any, Any, Any]


@coroutine
def wait() -> Coroutine:
    """Wait for what never comes."""
    yield Future()


@coroutine
def coroutines() -> Coroutine:
    """Call coroutines, which suspend at once."""
    first = [wait() for _ in range(FIRST)]
    yield
    before = used()
    made = [wait() for _ in range(COUNT)]
    yield
    tell(before)
    for task in first + made:
        task.cancel()


@coroutine
def timers() -> Coroutine:
    """Add timers."""
    loop = IOLoop.current()
    first = [loop.call_later(60, tell, number) for number in range(FIRST)]
    yield
    before = used()
    made = [loop.call_later(60, tell, number) for number in range(COUNT)]
    yield
    tell(before)
    del first, made


if __name__ == "__main__":
    run({"coroutine": coroutines, "timer": timers}[options(["coroutine", "timer"]).case])
