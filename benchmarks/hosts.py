"""asyncio's own loop or uvloop, by name: what asyncio subjects run on, and coro as their guest."""

import asyncio

HOSTS = ("asyncio", "uvloop")
LOOPS = ("own", *HOSTS)
"""What coro runs on: its own loop, or as a guest of another."""


def runner(host: str) -> asyncio.Runner:
    """An ``asyncio.Runner`` on the loop called ``host``, one of ``HOSTS``."""
    if host == "asyncio":
        return asyncio.Runner()
    import uvloop  # only here, so that asyncio's rows do without it

    return asyncio.Runner(loop_factory=uvloop.new_event_loop)
