"""A simulated network gets into trouble at any time: fetches end on time, and nothing remains.

The troubles are those of ``test_fault_matrix``, and what the seed draws beside them.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from coro.errors import CancelledError, HTTPError
from coro.gen import coroutine, sleep
from coro.http import AsyncHTTPClient, HTTPServer, HTTPServerRequest, Response
from coro.loop import IOLoop
from coro.testing import Faults, SimNetwork, World, current_world

LIMITS: dict[str, Any] = {
    "queue_timeout": 2,
    "connect_timeout": 5,
    "inactivity_timeout": 3,
    "request_timeout": 7,
}

TROUBLES: dict[str, Callable[[SimNetwork], Any]] = {
    "none": lambda network: None,
    "dns hangs": lambda network: network.hang_name("shop"),
    "dns fails": lambda network: network.fail_name("shop"),
    "a black hole": lambda network: network.host("shop").ignore(80),
    "refused": lambda network: network.host("shop").refuse(80),
    "reset": lambda network: network.reset("home", "shop"),
    "partition": lambda network: network.partition("home", "shop", 5),
    "crash": lambda network: network.crash("shop", 5),
}


def slow(request: HTTPServerRequest) -> Response:
    """Answer in pieces, each of which takes its time."""

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(4):
            await sleep(random.random())
            yield b"0123456789"

    return Response(pieces())


@coroutine
def in_trouble(trouble: str, action: str) -> Any:
    """Fetch; get into trouble at some time; do something about it at another."""
    network = current_world().network
    with network.on("shop"):
        server = HTTPServer(slow)
        server.listen(80)
    with network.on("home"):
        client = AsyncHTTPClient(force_instance=True, max_clients=2)
        begun = IOLoop.current().time()
        tasks = [client.fetch("http://shop/", **LIMITS) for _ in range(3)]
    yield sleep(random.random() * 4)
    TROUBLES[trouble](network)
    yield sleep(random.random() * 4)
    if action == "cancel":
        for task in tasks:
            task.cancel()
    elif action == "close":
        client.close()
    ended = []
    for task in tasks:
        try:
            ended.append((yield task).body)
        except (HTTPError, CancelledError) as error:
            ended.append(type(error))
    counts = client.statistics()
    assert (counts["active"], counts["waiting"]) == (0, 0)
    # Whoever waits for a slot does so for two seconds, and then has the seven of its request.
    assert IOLoop.current().time() - begun <= 7 + 2 + 0.001
    client.close()
    yield server.shutdown(0)
    return ended


@pytest.mark.parametrize("action", ["wait", "cancel", "close"])
@pytest.mark.parametrize("trouble", TROUBLES)
def test_trouble(trouble: str, action: str) -> None:
    seen = set()
    for seed in range(25):
        world = World(seed, faults=Faults(2, within=8))
        seen |= {*world.run(in_trouble, trouble, action, timeout=100)}
        assert world.left == [], seed
    assert len(seen) > 1
