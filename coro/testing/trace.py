"""What happened in a simulated world, in order."""

from __future__ import annotations

import hashlib
from collections import deque

from coro.testing.clock import SimClock

__all__ = ["Trace"]

# Lines that are kept; the digest is of all.
KEPT = 100_000


class Trace:
    """A log: lines of a time in seconds, a kind of event, and what is to be said of it.

    Attributes:
        count: how many events there were.
    """

    def __init__(self, clock: SimClock) -> None:
        self._clock = clock
        self._lines: deque[str] = deque(maxlen=KEPT)
        self._hash = hashlib.sha256()
        self.count = 0

    def add(self, kind: str, text: str) -> None:
        """Note an event."""
        line = f"{self._clock.now:.6f} {kind} {text}\n"
        self._lines.append(line)
        self._hash.update(line.encode())
        self.count += 1

    def text(self) -> str:
        """Return the log, of which the oldest lines may be left out."""
        dropped = self.count - len(self._lines)
        return (f"... {dropped} lines ...\n" if dropped else "") + "".join(self._lines)

    def digest(self) -> str:
        """Return a hash of the whole log: equal for equal runs."""
        return self._hash.hexdigest()
