"""Programs that ``explore`` can import."""

from __future__ import annotations

import itertools
import logging
import multiprocessing
import os
import random
from typing import Any

from coro.gen import coroutine, moment, sleep
from coro.testing.simulation import current_world


@coroutine
def ends_well(result: Any = None) -> Any:
    yield sleep(1)
    return result


@coroutine
def fails_under(*seeds: int) -> Any:
    """The first of them takes longest."""
    seed = current_world().seed
    yield sleep(1)
    if seed in seeds:
        if seed == seeds[0]:
            for _ in range(300):
                yield moment
        raise LookupError(f"found at {seed}")


@coroutine
def talks_and_fails() -> Any:
    print("said by the program")
    logging.getLogger("program").error("logged by the program")
    yield moment
    raise LookupError("no")


@coroutine
def fails_in_workers_only() -> Any:
    yield moment
    assert multiprocessing.parent_process() is None, "in a worker"


@coroutine
def dies() -> Any:
    yield moment
    os._exit(3)


@coroutine
def never_ends() -> Any:
    os.write(1, b"begun\n")
    for _ in itertools.repeat(None):
        yield moment


@coroutine
def fails_after_a_reset() -> Any:
    """Under every seed that draws a reset, whatever else it draws."""
    world = current_world()
    world.network.host("a")
    world.network.host("b")
    yield sleep(100)
    kinds = [fault.kind for fault in world.faults if fault.hosts]
    assert "reset" not in kinds, f"{random.random()}"
