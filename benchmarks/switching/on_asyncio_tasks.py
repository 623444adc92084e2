"""asyncio with a task for each call, which can be held, cancelled and awaited by several."""

import asyncio

from ..hosts import HOSTS
from .on_asyncio import at_once, drive
from .subject import DEPTH, main


async def children(count: int) -> None:
    """Wait for ``count`` children, one after another."""
    for _ in range(count):
        await asyncio.create_task(at_once())


async def link(below: int) -> int:
    """One of a chain: waits for the next, or at the bottom for the loop."""
    if below:
        return await asyncio.create_task(link(below - 1))
    await asyncio.sleep(0)
    return 1


async def chains(count: int) -> None:
    """Walk down and up ``count`` chains."""
    for _ in range(count):
        await asyncio.create_task(link(DEPTH - 1))


if __name__ == "__main__":
    main({"child": children, "chain": chains}, drive, HOSTS)
