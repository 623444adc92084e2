"""What happened in a simulated world, in order."""

from __future__ import annotations

import hashlib
from typing import Any

from coro.testing.clock import SimClock

__all__ = ["Trace"]


class Trace:
    """A list of named events.

    Attributes:
        events: ``(seconds, kind, fields)`` of each.
        clock: who tells the time; the network that the trace is handed to sets it.
    """

    def __init__(self, clock: SimClock | None = None) -> None:
        self.clock = clock
        self.events: list[tuple[float, str, dict[str, Any]]] = []

    def add(self, kind: str, **fields: Any) -> None:
        """Note an event."""
        self.events.append((self.clock.now if self.clock else 0.0, kind, fields))

    def text(self) -> str:
        """Return the log: one line per event."""
        return "".join(
            " ".join([f"{at:.6f} {kind}", *(f"{name}={value}" for name, value in fields.items())])
            + "\n"
            for at, kind, fields in self.events
        )

    def digest(self) -> str:
        """Return a hash of the log."""
        return hashlib.sha256(self.text().encode()).hexdigest()
