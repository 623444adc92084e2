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
from tests.support.authority import Authority

PORT = 8000

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
    "a black hole": lambda network: network.host("shop").ignore(PORT),
    "refused": lambda network: network.host("shop").refuse(PORT),
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
def in_trouble(trouble: str, action: str, ca: Authority | None) -> Any:
    """Fetch; get into trouble at some time; do something about it at another.

    Arguments:
        ca: who vouches for the server; None: no TLS.
    """
    network = current_world().network
    with network.on("shop"):
        context = None if ca is None else ca.server_context("shop")
        server = HTTPServer(slow, ssl_options=context)
        server.listen(PORT)
    with network.on("home"):
        client = AsyncHTTPClient(force_instance=True, max_clients=2)
        begun = IOLoop.current().time()
        url = f"{'http' if ca is None else 'https'}://shop:{PORT}/"
        trust: dict[str, Any] = {} if ca is None else {"ca_certs": str(ca.pem)}
        tasks = [client.fetch(url, **LIMITS, **trust) for _ in range(3)]
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
@pytest.mark.parametrize("tls", [False, True])
def test_trouble(trouble: str, action: str, tls: bool, ca: Authority) -> None:
    seen = set()
    for seed in range(8 if tls else 25):
        world = World(seed, faults=Faults(2, within=8))
        seen |= {*world.run(in_trouble, trouble, action, ca if tls else None, timeout=100)}
        assert world.left == [], seed
    # Not all of them fail, nor do all succeed.
    assert b"0123456789" * 4 in seen
    assert len(seen) > 1
