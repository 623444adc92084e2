"""asyncio's own loop or uvloop, by name: what the asyncio subjects run on."""

import asyncio

HOSTS = ("asyncio", "uvloop")


def runner(host: str) -> asyncio.Runner:
    """An ``asyncio.Runner`` on the loop called ``host``, one of ``HOSTS``."""
    if host == "asyncio":
        return asyncio.Runner()
    import uvloop  # only here, so that asyncio's rows do without it

    return asyncio.Runner(loop_factory=uvloop.new_event_loop)
