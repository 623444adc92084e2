"""The floor: generators that were begun, each in a list of one that stands for a task."""

from collections.abc import Generator
from typing import Any

from .subject import COUNT, FIRST, options, tell, used


def wait(slot: list[Any]) -> Generator[Any, Any, None]:
    """Wait for what never comes."""
    yield slot


def begin() -> list[Generator[Any, Any, None]]:
    """Make one, and run it to its ``yield``."""
    body = wait([])
    body.send(None)
    return [body]


if __name__ == "__main__":
    options(["coroutine"])
    first = [begin() for _ in range(FIRST)]
    before = used()
    made = [begin() for _ in range(COUNT)]
    tell(before)
