"""The detector detects: each planted bug is found, and where it is removed nothing is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from coro.errors import DeadlockError
from coro.testing.exploration import explore
from coro.testing.simulation import simulate
from tests.support.virtual import virtual_loop
from tests.testing import planted


class Bug(NamedTuple):
    """A program with a bug, and how many seeds may be needed to find it.

    ``shows`` is what the program says when the bug shows.
    """

    program: Callable[..., Any]
    seeds: int
    error: type[Exception]
    shows: str


BUGS = [
    Bug(planted.lost_wake_up, 10, DeadlockError, "take"),
    Bug(planted.double_release, 10, AssertionError, "3 hold one of 2 permits"),
    Bug(planted.swallowed_cancellation, 10, AssertionError, "goes on after it was cancelled"),
    Bug(planted.surplus_bytes, 50, AssertionError, "answer to another question"),
]

# With the bug removed, so many seeds pass.
CLEAN = 300

each = pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.program.__name__)


@each
def test_an_ordinary_test_misses_it(bug: Bug) -> None:
    loop = virtual_loop()
    try:
        loop.run_sync(lambda: bug.program(True))
    finally:
        loop.close()


@each
def test_it_is_found_and_found_again(bug: Bug) -> None:
    with pytest.raises(bug.error, match=bug.shows) as caught:
        explore(bug.program, True, seeds=range(bug.seeds), processes=1)
    (note,) = caught.value.__notes__
    seed = int(note.partition("seed ")[2].partition(";")[0])
    with pytest.raises(bug.error) as again:
        simulate(bug.program, True, seed=seed)
    assert str(again.value) == str(caught.value)


@each
def test_without_the_bug_every_seed_passes(bug: Bug) -> None:
    assert explore(bug.program, False, seeds=range(CLEAN), processes=1) == CLEAN
