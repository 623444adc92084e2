"""trio: checkpoints, native coroutines that await one another, and ``trio.Event`` to wake."""

from argparse import Namespace
from collections.abc import Awaitable, Callable

import trio

from ..trial import Trial
from .subject import DEPTH, TASKS, main


async def spin(turns: int) -> None:
    """Yield to the loop ``turns`` times."""
    for _ in range(turns):
        await trio.lowlevel.checkpoint()


async def spinners(count: int) -> None:
    """Run the tasks of the case ``yield``."""
    async with trio.open_nursery() as nursery:
        for _ in range(TASKS):
            nursery.start_soon(spin, count // TASKS)


async def link(below: int) -> int:
    """One of a chain: waits for the next, or at the bottom for the loop."""
    if below:
        return await link(below - 1)
    await trio.lowlevel.checkpoint()
    return 1


async def chains(count: int) -> None:
    """Walk down and up ``count`` chains."""
    for _ in range(count):
        await link(DEPTH - 1)


async def player(slots: list[trio.Event], me: int, turns: int) -> None:
    """Wait to be woken, then wake the other; ``turns`` times."""
    for _ in range(turns):
        await slots[me].wait()
        slots[me] = trio.Event()
        slots[1 - me].set()


async def players(count: int) -> None:
    """Run the two tasks of the case ``wake``; the first finds itself woken."""
    slots = [trio.Event(), trio.Event()]
    slots[0].set()
    async with trio.open_nursery() as nursery:
        for me in range(2):
            nursery.start_soon(player, slots, me, count // 2)


def drive(work: Callable[[int], Awaitable[object]], trial: Trial, options: Namespace) -> None:
    """Await each count's work inside ``trio.run``."""

    async def measure() -> None:
        for count in trial:
            await work(count)

    trio.run(measure)


if __name__ == "__main__":
    main({"yield": spinners, "chain": chains, "wake": players}, drive)
