"""A clock that stands still while anything can run."""

from __future__ import annotations

__all__ = ["SimClock"]


class SimClock:
    """Seconds since a simulation began, to be handed to ``IOLoop(clock=...)``.

    Attributes:
        now: the time in seconds.
    """

    __slots__ = ("now",)

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def advance_to(self, when: float) -> None:
        """Jump ahead; never back."""
        self.now = max(self.now, when)
