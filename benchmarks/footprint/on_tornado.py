"""Tornado's ``gen``."""

from collections.abc import Generator
from typing import Any

from tornado import gen
from tornado.concurrent import Future
from tornado.ioloop import IOLoop

from .subject import COUNT, FIRST, options, tell, used

Coroutine = Generator[Any, Any, Any]


@gen.coroutine
def wait(kept: list[Any]) -> Coroutine:
    """Wait for what never comes; somebody else has to keep that."""
    slot: Future[None] = Future()
    kept.append(slot)
    yield slot


@gen.coroutine
def coroutines() -> Coroutine:
    """Call coroutines, which suspend at once."""
    kept: list[Any] = []
    first = [wait(kept) for _ in range(FIRST)]
    yield gen.moment
    before = used()
    made = [wait(kept) for _ in range(COUNT)]
    yield gen.moment
    tell(before)
    del first, made


if __name__ == "__main__":
    options(["coroutine"])
    IOLoop.current().run_sync(coroutines)
