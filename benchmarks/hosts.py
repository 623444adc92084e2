"""asyncio's own loop, uvloop or coro's, by name: what asyncio subjects and guests run on."""

import asyncio

HOSTS = ("asyncio", "uvloop", "coro")
LOOPS = ("own", "asyncio", "uvloop")
"""What coro runs on: its own loop, or as a guest of another."""


def runner(host: str) -> asyncio.Runner:
    """An ``asyncio.Runner`` on the loop called ``host``, one of ``HOSTS``."""
    if host == "asyncio":
        return asyncio.Runner()
    if host == "coro":
        import coro.aio

        return asyncio.Runner(loop_factory=coro.aio.new_event_loop)
    import uvloop  # only here, so that asyncio's rows do without it

    return asyncio.Runner(loop_factory=uvloop.new_event_loop)
