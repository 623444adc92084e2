"""A clock that stands still while anything can run."""

from __future__ import annotations

__all__ = ["SimClock"]


class SimClock:
    """Seconds of simulated time, to be handed to ``IOLoop(clock=...)``.

    Attributes:
        now: the time in seconds.
    """

    def __init__(self, start: float = 1000.0) -> None:
        self.now = start

    def __call__(self) -> float:
        return self.now

    def advance_to(self, when: float) -> None:
        """Jump ahead; never back."""
        self.now = max(self.now, when)
