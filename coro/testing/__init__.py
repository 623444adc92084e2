"""Programs in a simulated world: ``simulate`` with one seed, ``explore`` with many.

From below: ``clock``; ``trace``, ``links``; ``sockets``, ``leftovers``; ``network``,
``scheduling``, ``faults``; ``simulation``; ``exploration``; ``plugin`` (of pytest). The names load
when they are first used: what only times a test need not wait for a network.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coro.testing.clock import SimClock
    from coro.testing.exploration import explore
    from coro.testing.faults import Fault, Faults
    from coro.testing.links import Link
    from coro.testing.network import Host, SimNetwork
    from coro.testing.simulation import World, current_world, simulate

__all__ = [
    "Fault",
    "Faults",
    "Host",
    "Link",
    "SimClock",
    "SimNetwork",
    "World",
    "current_world",
    "explore",
    "simulate",
]

_ROOMS = {
    "Fault": "faults",
    "Faults": "faults",
    "Host": "network",
    "Link": "links",
    "SimClock": "clock",
    "SimNetwork": "network",
    "World": "simulation",
    "current_world": "simulation",
    "explore": "exploration",
    "simulate": "simulation",
}


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module 'coro.testing' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"coro.testing.{_ROOMS[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
