"""What the switching subjects share: their sizes and their command line."""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

from ..trial import Trial

TASKS = 100
"""How many tasks the case ``yield`` runs side by side."""

DEPTH = 10
"""How many coroutines stand in the chain of the case ``chain``."""

HOLDERS = 10
"""How many tasks the case ``lock`` lets compete."""

TIMERS = 100_000
"""How many timers the case ``timers`` has waiting at once."""

Work = TypeVar("Work", bound=Callable[..., object])


def batches(count: int) -> Iterator[range]:
    """Part ``count`` timers into so many as may wait at once."""
    for begin in range(0, count, TIMERS):
        yield range(begin, min(begin + TIMERS, count))


def nothing() -> None:
    """What a timer calls that never fires."""


def main(
    works: Mapping[str, Work],
    drive: Callable[[Work, Trial, Namespace], object],
    loops: Sequence[str] = ("own",),
) -> None:
    """Find the work that the command line names and ``drive`` it through a trial.

    ``works`` maps a case's name to a coroutine function that takes the number of operations;
    ``loops`` are the event loops to choose from, the first is the one used by default.
    """
    parser = ArgumentParser()
    parser.add_argument("case", choices=list(works))
    parser.add_argument("--seconds", type=float, default=0.5)
    parser.add_argument("--loop", choices=loops, default=loops[0])
    options = parser.parse_args()
    drive(works[options.case], Trial(options.seconds), options)
