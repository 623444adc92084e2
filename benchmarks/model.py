"""The nouns of the benchmark: suites have cases, cases have subjects, subjects get measured."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from statistics import median
from typing import Literal

Unit = Literal["us/op", "messages/s", "requests/s", "connections/s", "MB/s"]
"""What a case's figures are shown in."""


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


@dataclass(frozen=True)
class Case:
    """One kind of work, done by several subjects; the one named ``coro`` is the one compared."""

    name: str
    title: str
    unit: Unit
    subjects: Sequence[Subject]


@dataclass(frozen=True)
class Measurement:
    """One subject in one round: ``operations`` took ``wall`` and ``cpu`` seconds."""

    operations: int
    wall: float
    cpu: float


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


@dataclass
class Row:
    """All rounds of one subject, or the reason why there are none."""

    subject: Subject
    rounds: list[Measurement]
    problem: str | None = None
    failed: bool = False

    @property
    def wall(self) -> float:
        """Median wall seconds of one operation."""
        return median(self.walls)

    @property
    def cpu(self) -> float:
        """Median CPU seconds of one operation."""
        return median(self.cpus)

    @property
    def walls(self) -> list[float]:
        """Wall seconds of one operation, round by round."""
        return [each.wall / each.operations for each in self.rounds]

    @property
    def cpus(self) -> list[float]:
        """CPU seconds of one operation, round by round."""
        return [each.cpu / each.operations for each in self.rounds]

    @property
    def spread(self) -> float:
        """Slowest minus fastest round, as a share of the median."""
        return (max(self.walls) - min(self.walls)) / self.wall


def ratio(numerators: list[float], denominators: list[float]) -> float:
    """Compare two rows round by round, as each round saw the machine in one state: the median."""
    return median(a / b for a, b in zip(numerators, denominators, strict=True))
