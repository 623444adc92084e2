"""Streams, connecting and fetches against a model, whatever a seed draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from coro.testing import World
from tests.testing import drawn

# Seeds of each program; ``python -m tests.soak`` tries more.
SEEDS = 500


def run(program: Callable[[], Any], seed: int) -> None:
    world = World(seed)
    world.run(program)
    assert world.left == []


# Under these something was found: an empty write shared the future of another one, and was
# cancelled with it.
FOUND = [(drawn.streams, 32), (drawn.streams, 52)]


@pytest.mark.parametrize(("program", "seed"), FOUND)
def test_what_was_found_stays_away(program: Callable[[], Any], seed: int) -> None:
    run(program, seed)


@pytest.mark.parametrize("program", [drawn.streams, drawn.connections, drawn.fetches])
def test_it_agrees_with_its_model(program: Callable[[], Any]) -> None:
    for seed in range(SEEDS):
        run(program, seed)
