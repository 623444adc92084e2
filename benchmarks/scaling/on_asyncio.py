"""asyncio on its own loop or on uvloop."""

import asyncio

from ..hosts import HOSTS, runner
from ..switching.subject import nothing
from ..trial import FIRST_COUNT, Trial
from .subject import batches, options, seconds


async def spin() -> None:
    """Yield to the loop for ever."""
    while True:  # noqa: ASYNC110, this is what is measured
        await asyncio.sleep(0)


async def coroutines(at: int, length: float) -> None:
    """Turn the loop: in each turn, every task yields once, this one too."""
    tasks = [asyncio.create_task(spin()) for _ in range(at - 1)]
    for count in Trial(length, unit=max(at, FIRST_COUNT)):
        for _ in range(count // at):
            await asyncio.sleep(0)
    for task in tasks:
        task.cancel()


async def waiting(at: int, length: float) -> None:
    """Add timers and cancel them, beside those that wait."""
    loop = asyncio.get_running_loop()
    others = [loop.call_later(seconds(number), nothing) for number in range(at)]
    for count in Trial(length):
        for batch in batches(count):
            added = [loop.call_later(seconds(number), nothing) for number in batch]
            for timer in added:
                timer.cancel()
            await asyncio.sleep(0)
    del others


if __name__ == "__main__":
    chosen = options(HOSTS)
    with runner(chosen.loop) as host:
        work = {"coroutines": coroutines, "waiting": waiting}[chosen.case]
        host.run(work(chosen.at, chosen.seconds))
