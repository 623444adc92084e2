"""A completion, a time limit and a cancellation that fall into one turn, in every order."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

from coro.errors import CancelledError
from coro.gen import coroutine, timeout_at, with_timeout
from coro.loop import IOLoop
from tests.support.virtual import turns

ORDERS = [
    order
    for count in (1, 2, 3)
    for order in itertools.permutations(("complete", "expire", "cancel"), count)
]

Wait = Callable[[float | timedelta | None], Any]


@coroutine
def directly(wait: Wait, deadline: float) -> Any:
    return (yield wait(deadline))


async def _natively(wait: Wait, deadline: float) -> Any:
    return await wait(deadline)


natively = coroutine(_natively)


@coroutine
def in_a_child(wait: Wait, deadline: float) -> Any:
    return (yield directly(wait, deadline))


@coroutine
def in_a_list(wait: Wait, deadline: float) -> Any:
    return (yield [wait(deadline)])[0]


@coroutine
def in_a_dict_of_lists(wait: Wait, deadline: float) -> Any:
    return (yield {"x": [wait(deadline)]})["x"][0]


@coroutine
def with_a_bound(wait: Wait, deadline: float) -> Any:
    return (yield with_timeout(deadline, wait(None)))


@coroutine
def in_a_block(wait: Wait, deadline: float) -> Any:
    with timeout_at(deadline):
        return (yield wait(None))


WAYS = [
    directly,
    natively,
    in_a_child,
    in_a_list,
    in_a_dict_of_lists,
    with_a_bound,
    in_a_block,
]


def race(
    loop: IOLoop,
    order: Sequence[str],
    start: Callable[[float], Any],
    complete: Callable[[], Any],
) -> str:
    """Let a task wait and what is to befall it happen in one turn; return how the task ended.

    A cancellation must win, whatever else happens in its turn.

    Arguments:
        order: of "complete", "expire" and "cancel".
        start: called with the deadline; starts the task that waits until then and returns it.
        complete: gives it what it waits for.
    """
    deadline = loop.time() + 1
    started: list[Any] = []

    def cancel() -> None:
        started[0].cancel()

    # Timers of one deadline fire in the order in which they were made.
    for name in order:
        if name == "expire":
            started.append(start(deadline))
        elif name == "complete":
            loop.call_at(deadline, complete)
        else:
            loop.call_at(deadline, cancel)
    if "expire" not in order:
        started.append(start(deadline + 100))
    loop.call_at(deadline, loop.stop)
    loop.start()
    turns(loop, 4)
    ended = outcome(started[0])
    assert (ended == "cancelled") == ("cancel" in order)
    return ended


def outcome(task: Any) -> str:
    """How a task ended, in a word."""
    try:
        task.result()
    except CancelledError:
        return "cancelled"
    except TimeoutError:
        return "timed out"
    return "completed"


def came(future: Any) -> bool:
    """Whether a future has a result."""
    return future.done() and not future.cancelled() and future.exception() is None
