"""The nouns of the benchmark: suites have cases, cases have subjects, subjects get measured."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from statistics import median
from typing import Literal

Unit = Literal["us/op", "messages/s", "requests/s", "connections/s", "MB/s", "bytes", "ms"]
"""What a case's figures are shown in: a time, a speed, or the memory that one operation keeps."""


@dataclass(frozen=True)
class Subject:
    """One program under measurement: ``python -m MODULE ARGUMENTS...``."""

    name: str
    module: str
    arguments: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    """Modules that must be importable, or the row is skipped."""
    wanted: float | None = None
    """How many times this row's speed coro's is to be, where the project sets itself a mark."""
    rival: str | None = None
    """The row by which this one is measured instead: this row's speed is to be ``wanted`` times
    that one's."""
    most: float | None = None
    """The most that this row's own figure may be, in the case's unit, where such a mark is set."""


@dataclass(frozen=True)
class Case:
    """One kind of work, done by several subjects; the one named ``coro`` is the one compared."""

    name: str
    title: str
    unit: Unit
    subjects: Sequence[Subject]
    at: int | None = None
    """How many there are (connections, timers), where the case is one point of a curve: the cases
    of one curve have one name."""


@dataclass(frozen=True)
class Measurement:
    """One subject in one round: ``operations`` took ``wall`` and ``cpu`` seconds.

    In a case of memory, what they left allocated is ``kept``, in bytes, and times tell nothing.
    """

    operations: int
    wall: float = 0.0
    cpu: float = 0.0
    kept: int | None = None


class UnavailableError(Exception):
    """A subject cannot run here; the text says why and how to get what is missing."""


class SubjectError(Exception):
    """A subject ran and did not end with a measurement; the text is its last words."""


Measure = Callable[[Subject], Measurement]
"""Runs one subject once; raises UnavailableError or SubjectError."""


@dataclass(frozen=True)
class Suite:
    """Cases that share a set-up; ``prepare(case, seconds)`` holds it up while a case runs."""

    name: str
    cases: Sequence[Case]
    prepare: Callable[[Case, float], AbstractContextManager[Measure]]
    rounds: int | None = None
    """The most rounds that it takes part in, where it has many cases."""


@dataclass
class Row:
    """All rounds of one subject, or the reason why there are none."""

    subject: Subject
    rounds: list[Measurement]
    problem: str | None = None
    failed: bool = False

    @property
    def cost(self) -> float:
        """Median cost of one operation."""
        return median(self.costs)

    @property
    def cpu(self) -> float:
        """Median CPU seconds of one operation."""
        return median(self.cpus)

    @property
    def costs(self) -> list[float]:
        """What one operation costs, round by round: wall seconds, or bytes in a case of memory."""
        return [
            (each.wall if each.kept is None else each.kept) / each.operations
            for each in self.rounds
        ]

    @property
    def cpus(self) -> list[float]:
        """CPU seconds of one operation, round by round."""
        return [each.cpu / each.operations for each in self.rounds]

    @property
    def spread(self) -> float:
        """Dearest minus cheapest round, as a share of the median."""
        return (max(self.costs) - min(self.costs)) / self.cost


def ratio(numerators: list[float], denominators: list[float]) -> float:
    """Compare two rows round by round, as each round saw the machine in one state: the median."""
    return median(a / b for a, b in zip(numerators, denominators, strict=True))
