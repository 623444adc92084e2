"""Programs in a simulated world: ``simulate`` with one seed, ``explore`` with many.

From below: ``clock``, ``trace``; ``network``; ``scheduling``, ``faults``; ``simulation``;
``exploration``. The names load when they are first used: what only times a test need not wait for
a network.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coro.testing.exploration import explore
    from coro.testing.faults import Fault, Faults
    from coro.testing.simulation import World, current_world, simulate

__all__ = ["Fault", "Faults", "World", "current_world", "explore", "simulate"]

_ROOMS = {
    "Fault": "faults",
    "Faults": "faults",
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
