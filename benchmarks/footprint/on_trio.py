"""trio: a task in a nursery for each coroutine."""

import trio

from .subject import COUNT, FIRST, options, tell, used


async def wait() -> None:
    """Wait for what never comes."""
    await trio.Event().wait()


async def coroutines() -> None:
    """Start tasks, which suspend in the next turn."""
    async with trio.open_nursery() as nursery:
        for _ in range(FIRST):
            nursery.start_soon(wait)
        await trio.sleep(0.01)
        before = used()
        for _ in range(COUNT):
            nursery.start_soon(wait)
        await trio.sleep(0.01)
        tell(before)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    options(["coroutine"])
    trio.run(coroutines)
