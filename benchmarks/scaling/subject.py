"""What the subjects that run alone share: their command line, and the pieces of their work."""

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence

BATCH = 100
"""So many timers are added before they are cancelled."""


def options(loops: Sequence[str] = ("own",)) -> Namespace:
    """What the command line says; ``loops`` are the event loops to choose from."""
    parser = ArgumentParser()
    parser.add_argument("case", choices=["coroutines", "waiting"])
    parser.add_argument("at", type=int, help="how many there are")
    parser.add_argument("--seconds", type=float, default=0.5)
    parser.add_argument("--loop", choices=loops, default=loops[0])
    return parser.parse_args()


def batches(count: int) -> Iterator[range]:
    """Part ``count`` timers into batches."""
    for begin in range(0, count, BATCH):
        yield range(begin, min(begin + BATCH, count))


def seconds(number: int) -> float:
    """When a timer that never fires is due: not in the order in which they are added."""
    return 600 + number * 7919 % 10007
