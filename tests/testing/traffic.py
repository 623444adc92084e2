"""Much traffic between many hosts, with faults: ``python -m tests.testing.traffic``.

Each host serves HTTP, and now and then fetches from another. Whatever fails is tried again by the
next fetch; what arrives must be what was asked for.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Generator
from typing import Any

import click

from coro.errors import HTTPError
from coro.gen import coroutine, sleep
from coro.http import AsyncHTTPClient
from coro.http.request import HTTPServerRequest
from coro.http.response import Response
from coro.http.server import HTTPServer
from coro.testing import Faults, World, current_world

PORT = 80

# Seconds between two fetches of a host, on average.
PAUSE = 2.0


@coroutine
def answer(request: HTTPServerRequest) -> Generator[Any, Any, Response]:
    """Take a moment, and say what was asked for."""
    yield sleep(current_world().random.random() * 0.1)
    return Response(f"you asked for {request.path}")


@coroutine
def live(name: str, names: list[str], seconds: float, seen: Counter[str]) -> Any:
    """Be one of the hosts."""
    world = current_world()
    draw = world.random.random
    server = HTTPServer(answer)
    with world.network.on(name):
        server.listen(PORT)
    client = AsyncHTTPClient(force_instance=True)
    number = 0
    try:
        while world.clock.now < seconds:
            yield sleep(draw() * 2 * PAUSE)
            other = names[int(draw() * len(names))]
            number += 1
            path = f"/{name}/{number}"
            try:
                response = yield client.fetch(f"http://{other}{path}", request_timeout=10)
            except HTTPError as error:
                seen[type(error).__name__] += 1
            else:
                assert response.body == f"you asked for {path}".encode()
                seen["fetched"] += 1
    finally:
        client.close()
        yield server.shutdown(5)


@coroutine
def main(hosts: int, seconds: float) -> Generator[Any, Any, Counter[str]]:
    """Return how many fetches ended how."""
    network = current_world().network
    names = [f"host{number}" for number in range(hosts)]
    seen: Counter[str] = Counter()
    living = []
    for name in names:
        with network.on(name):
            living.append(live(name, names, seconds, seen))
    yield living
    return seen


def run(hosts: int, seconds: float, seed: int) -> tuple[World, Counter[str]]:
    """Simulate so much traffic."""
    world = World(seed, faults=Faults(int(seconds / 30), within=seconds, longest=20.0))
    return world, world.run(main, hosts, seconds)


@click.command()
@click.option("--hosts", default=50, show_default=True)
@click.option("--seconds", default=3600.0, show_default=True, help="Of virtual time.")
@click.option("--seed", default=0, show_default=True)
def command(hosts: int, seconds: float, seed: int) -> None:
    """Simulate, and print how long it took."""
    began = time.process_time()
    world, seen = run(hosts, seconds, seed)
    took = time.process_time() - began
    total = sum(seen.values())
    click.echo(
        f"{seconds:g} s between {hosts} hosts, {len(world.faults)} faults: {total:,} fetches"
    )
    click.echo(", ".join(f"{name} {count:,}" for name, count in seen.most_common()))
    click.echo(f"{world.trace.count:,} events, digest {world.trace.digest()[:16]}")
    click.echo(f"{took:.1f} s of CPU")


if __name__ == "__main__":
    command()
