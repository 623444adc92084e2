"""The measured side: how much to work, what it took, and the line that tells the parent.

A subject is a loop over a ``Trial``, so that the timed piece is the body of a ``for``, whatever
kind of coroutine it stands in::

    for count in trial:
        await work(count)
"""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator

FIRST_COUNT = 100
"""The first piece of work, as a rule; all are multiples of it, so that work divides evenly."""

ENOUGH = 0.2
"""A piece that took this share of the wanted time is long enough to predict the last one from."""


LONGEST = 120
"""Seconds after which a measurement is given up."""

FIXED = "CORO_BENCHMARK_OPERATIONS"
"""The environment variable that tells how many operations to do, whatever time they take."""


class Trial:
    """Hands out growing counts until one predicts the wanted time; that last one is measured.

    The smaller pieces before it are the warm-up.  When the last piece is done, the measurement is
    printed as one JSON line.
    """

    def __init__(
        self,
        seconds: float,
        cpu_clock: Callable[[], float] = time.process_time,
        *,
        unit: int = FIRST_COUNT,
    ) -> None:
        """Plan for a measured piece of ``seconds``.

        Arguments:
            seconds: how long.
            cpu_clock: says whose CPU time counts.
            unit: the first count; all are multiples of it.
        """
        signal.alarm(LONGEST + 10)  # nobody waits any more: this process was left behind
        self.seconds = seconds
        self.cpu_clock = cpu_clock
        self.unit = unit

    def __iter__(self) -> Iterator[int]:
        """Give each count, for the loop's body to do."""
        count = unit = self.unit
        fixed = os.environ.get(FIXED)
        last = False
        while True:
            cpu, wall = self.cpu_clock(), time.perf_counter()
            yield count
            wall, cpu = time.perf_counter() - wall, self.cpu_clock() - cpu
            if last:
                break
            if fixed is not None:
                count, last = int(fixed), True
                continue
            last = wall >= self.seconds * ENOUGH
            wanted = self.seconds / wall if last else min(10.0, 0.5 * self.seconds / wall)
            count = max(1, round(count * max(wanted, 1.0) / unit)) * unit
        print(json.dumps({"operations": count, "wall": wall, "cpu": cpu}), flush=True)
