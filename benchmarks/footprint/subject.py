"""What the footprint subjects share: how many they make, and how they tell what that took."""

import gc
import json
import os
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence

from ..memory import memory_of

FIRST = 1000
"""So many are made before, so that what all share is there."""

COUNT = 50_000


def options(cases: Sequence[str], loops: Sequence[str] = ("own",)) -> Namespace:
    """What the command line says; ``loops`` are the event loops to choose from."""
    parser = ArgumentParser()
    parser.add_argument("case", choices=cases)
    parser.add_argument("--loop", choices=loops, default=loops[0])
    return parser.parse_args()


def used() -> int:
    """Return the bytes of memory that this process has in use."""
    gc.collect()
    return memory_of([os.getpid()])


def tell(before: int) -> None:
    """Print by how much the process grew since ``used`` gave ``before``."""
    print(json.dumps({"operations": COUNT, "kept": used() - before}), flush=True)
