"""The floor: generators driven by ``send`` over a deque, with no library and no features."""

from argparse import Namespace
from collections import deque
from collections.abc import Callable, Generator
from typing import Any

from ..trial import Trial
from .subject import DEPTH, TASKS, main

Coroutine = Generator[Any, Any, Any]
Stack = list[Coroutine]

ready: deque[tuple[Stack, Any]] = deque()


class Slot:
    """The least that can pass for a future: one waiter."""

    __slots__ = ("done", "waiter")

    def __init__(self) -> None:
        self.done = False
        self.waiter: Stack | None = None

    def set(self) -> None:
        """Wake the waiter in the next step."""
        self.done = True
        if self.waiter is not None:
            ready.append((self.waiter, None))


def loop() -> None:
    """Run until nothing is ready.  A stack is a task: the coroutine on top waits for nobody."""
    while ready:
        stack, value = ready.popleft()
        while stack:
            try:
                yielded = stack[-1].send(value)
            except StopIteration as stop:
                stack.pop()
                value = stop.value
                continue
            value = None
            if yielded is None:
                ready.append((stack, None))
                break
            if type(yielded) is not Slot:
                stack.append(yielded)
            elif not yielded.done:
                yielded.waiter = stack
                break


def spin(turns: int) -> Coroutine:
    """Yield to the loop ``turns`` times."""
    for _ in range(turns):
        yield


def at_once() -> Coroutine:
    """A coroutine that ends without suspending."""
    return 1
    yield


def children(count: int) -> Coroutine:
    """Wait for ``count`` children, one after another."""
    for _ in range(count):
        yield at_once()


def link(below: int) -> Coroutine:
    """One of a chain: waits for the next, or at the bottom for the loop."""
    if below:
        return (yield link(below - 1))
    yield
    return 1


def chains(count: int) -> Coroutine:
    """Walk down and up ``count`` chains."""
    for _ in range(count):
        yield link(DEPTH - 1)


def player(slots: list[Slot], me: int, turns: int) -> Coroutine:
    """Wait to be woken, then wake the other; ``turns`` times."""
    for _ in range(turns):
        yield slots[me]
        slots[me] = Slot()
        slots[1 - me].set()


def spinners(count: int) -> list[Coroutine]:
    """The tasks of the case ``yield``."""
    return [spin(count // TASKS) for _ in range(TASKS)]


def players(count: int) -> list[Coroutine]:
    """The tasks of the case ``wake``; the first finds itself woken."""
    slots = [Slot(), Slot()]
    slots[0].set()
    return [player(slots, me, count // 2) for me in range(2)]


def drive(work: Callable[[int], list[Coroutine]], trial: Trial, options: Namespace) -> None:
    """Run the tasks of each count to their end."""
    for count in trial:
        ready.extend(([task], None) for task in work(count))
        loop()


if __name__ == "__main__":
    main(
        {
            "yield": spinners,
            "child": lambda count: [children(count)],
            "chain": lambda count: [chains(count)],
            "wake": players,
        },
        drive,
    )
