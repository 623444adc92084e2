"""asyncio on its own loop or on uvloop: native coroutines that await one another."""

import asyncio
from argparse import Namespace
from collections.abc import Awaitable, Callable

from ..hosts import HOSTS, runner
from ..trial import Trial
from .subject import DEPTH, HOLDERS, TASKS, batches, main, nothing


async def spin(turns: int) -> None:
    """Yield to the loop ``turns`` times."""
    for _ in range(turns):
        await asyncio.sleep(0)


async def spinners(count: int) -> None:
    """Run the tasks of the case ``yield``."""
    await asyncio.gather(*(spin(count // TASKS) for _ in range(TASKS)))


async def at_once() -> int:
    """A coroutine that ends without suspending."""
    return 1


async def children(count: int) -> None:
    """Wait for ``count`` children, one after another."""
    for _ in range(count):
        await at_once()


async def link(below: int) -> int:
    """One of a chain: waits for the next, or at the bottom for the loop."""
    if below:
        return await link(below - 1)
    await asyncio.sleep(0)
    return 1


async def chains(count: int) -> None:
    """Walk down and up ``count`` chains."""
    for _ in range(count):
        await link(DEPTH - 1)


async def player(slots: list[asyncio.Future[None]], me: int, turns: int) -> None:
    """Wait to be woken, then wake the other; ``turns`` times."""
    loop = asyncio.get_running_loop()
    for _ in range(turns):
        await slots[me]
        slots[me] = loop.create_future()
        slots[1 - me].set_result(None)


async def players(count: int) -> None:
    """Run the two tasks of the case ``wake``; the first finds itself woken."""
    loop = asyncio.get_running_loop()
    slots = [loop.create_future(), loop.create_future()]
    slots[0].set_result(None)
    await asyncio.gather(*(player(slots, me, count // 2) for me in range(2)))


async def putter(queue: asyncio.Queue[int], count: int) -> None:
    """Put ``count`` items."""
    for number in range(count):
        await queue.put(number)


async def getter(queue: asyncio.Queue[int], count: int) -> None:
    """Get ``count`` items."""
    for _ in range(count):
        await queue.get()


async def queue(count: int) -> None:
    """Hand ``count`` items over by a queue that holds one."""
    between: asyncio.Queue[int] = asyncio.Queue(maxsize=1)
    await asyncio.gather(putter(between, count), getter(between, count))


async def holder(lock: asyncio.Lock, count: int) -> None:
    """Take the lock ``count`` times, each time for a turn of the loop."""
    for _ in range(count):
        async with lock:
            await asyncio.sleep(0)


async def locks(count: int) -> None:
    """Let several tasks hand a lock round."""
    lock = asyncio.Lock()
    await asyncio.gather(*(holder(lock, count // HOLDERS) for _ in range(HOLDERS)))


async def callbacks(count: int) -> None:
    """Keep some callbacks going, ``count`` calls in all."""
    loop = asyncio.get_running_loop()
    over = loop.create_future()
    left = count

    def call() -> None:
        nonlocal left
        left -= 1
        if left >= TASKS:
            loop.call_soon(call)
        elif not left:
            over.set_result(None)

    for _ in range(TASKS):
        loop.call_soon(call)
    await over


async def timers(count: int) -> None:
    """Add timers, and cancel them all."""
    loop = asyncio.get_running_loop()
    for batch in batches(count):
        added = [loop.call_later(60 + number % 7, nothing) for number in batch]
        for timer in added:
            timer.cancel()
        await asyncio.sleep(0)


def drive(work: Callable[[int], Awaitable[object]], trial: Trial, options: Namespace) -> None:
    """Await each count's work on the loop that the options name."""

    async def measure() -> None:
        for count in trial:
            await work(count)

    with runner(options.loop) as host:
        host.run(measure())


if __name__ == "__main__":
    main(
        {
            "yield": spinners,
            "child": children,
            "chain": chains,
            "wake": players,
            "queue": queue,
            "lock": locks,
            "call_soon": callbacks,
            "timers": timers,
        },
        drive,
        HOSTS,
    )
