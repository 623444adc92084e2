"""asyncio on its own loop or on uvloop: a task for each coroutine."""

import asyncio

from ..hosts import HOSTS, runner
from .subject import COUNT, FIRST, options, tell, used


async def wait() -> None:
    """Wait for what never comes."""
    await asyncio.get_running_loop().create_future()


async def coroutines() -> None:
    """Start tasks, which suspend in the next turn."""
    first = [asyncio.create_task(wait()) for _ in range(FIRST)]
    await asyncio.sleep(0)
    before = used()
    made = [asyncio.create_task(wait()) for _ in range(COUNT)]
    await asyncio.sleep(0)
    tell(before)
    for task in first + made:
        task.cancel()


async def timers() -> None:
    """Add timers."""
    loop = asyncio.get_running_loop()
    first = [loop.call_later(60, tell, number) for number in range(FIRST)]
    await asyncio.sleep(0)
    before = used()
    made = [loop.call_later(60, tell, number) for number in range(COUNT)]
    await asyncio.sleep(0)
    tell(before)
    del first, made


if __name__ == "__main__":
    chosen = options(["coroutine", "timer"], HOSTS)
    with runner(chosen.loop) as host:
        host.run({"coroutine": coroutines, "timer": timers}[chosen.case]())
