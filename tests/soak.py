"""Many seeds: ``python -m tests.soak [--seeds N]`` runs each simulated suite under so many.

The suites are those of stream, connector, HTTP client and server, as they stand among the tests; a
seed counts once for each test that it was tried on. After them come the programs of ``drawn``, and
a million fetches in a row over sockets, which must not make the process grow. It stops at the first
failure, and says how to replay it.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import resource
import subprocess
import sys
import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import click

import coro
from coro.http import AsyncHTTPClient, HTTPServer, Response
from coro.testing import explore
from tests.support.leaks import count_fds
from tests.testing import drawn

SUITES = {
    "stream": [
        f"tests/test_{name}.py"
        for name in ("stream", "stream_conformance", "stream_corners", "transfer")
    ],
    "connector": ["tests/test_connector.py", "tests/test_tcp.py"],
    "client": [
        "tests/http/test_connection.py",
        "tests/http/test_pool.py",
        *(
            f"tests/http/test_client{name}.py"
            for name in ("", "_bodies", "_failures", "_limits", "_redirects", "_requests", "_sizes")
        ),
    ],
    "server": [
        "tests/test_asgi.py",
        *(
            f"tests/http/test_{name}.py"
            for name in ("compressors", "events", "files", "server", "websocket")
        ),
    ],
}

# Seeds that one run of pytest tries on each test.
CHUNK = 20

LONGEST = 600
"""Seconds that one run of pytest may take."""

FETCHES = 1_000_000
SIDE_BY_SIDE = 50
GROWTH = 1024
"""KB by which the process may grow after the first tenth of the fetches."""


class Chunk(NamedTuple):
    """What came of some seeds."""

    passed: int
    problem: str | None


def run(files: list[str], start: int, stop: int) -> Chunk:
    """Run a suite under these seeds."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-k", "seed", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, *files],
        env={**os.environ, "CORO_SEEDS": f"{start}:{stop}"},
        capture_output=True,
        text=True,
        timeout=LONGEST,
        check=False,
    )
    found = re.search(r"(\d+) passed", done.stdout)
    passed = int(found[1]) if found else 0
    if done.returncode == 0 and passed:
        return Chunk(passed, None)
    again = f"CORO_SEEDS={start}:{stop} python {' '.join([*command[1:4], *files])}"
    report = done.stdout[done.stdout.find("\n=") :] + done.stderr
    return Chunk(passed, f"{report}\nreplay it with: {again}")


def soak(name: str, seeds: int, workers: ThreadPoolExecutor, side_by_side: int) -> int:
    """Run one suite until it has had so many seeds; return how many it had."""
    began = time.monotonic()
    count = given = 0
    busy: set[Future[Chunk]] = set()
    while count < seeds:
        while len(busy) < side_by_side:
            busy.add(workers.submit(run, SUITES[name], given, given + CHUNK))
            given += CHUNK
        done, busy = wait(busy, return_when=FIRST_COMPLETED)
        for each in done:
            chunk = each.result()
            count += chunk.passed
            if chunk.problem is not None:
                raise click.ClickException(chunk.problem)
        rate = count / (time.monotonic() - began)
        click.echo(f"\r{name}: {count:,} of {seeds:,} seeds, {rate:,.0f} a second", nl=False)
    # Those that are under way count as well.
    for each in busy:
        chunk = each.result()
        count += chunk.passed
        if chunk.problem is not None:
            raise click.ClickException(chunk.problem)
    seconds = time.monotonic() - began
    click.echo(f"\r{name}: {count:,} seeds in {seconds:,.0f} s, all passed".ljust(70))
    return count


def serve(tell: Connection) -> None:
    """Answer requests, in a process of its own, until it is terminated."""

    @coro.coroutine
    def main() -> Any:
        server = HTTPServer(lambda request: Response(body=b"x" * 1024))
        server.listen(0, "127.0.0.1")
        tell.send(server.sockets[0].getsockname()[1])
        yield coro.Future()

    coro.run(main)


@coro.coroutine
def fetch_on(client: AsyncHTTPClient, url: str, count: int) -> Any:
    """Fetch so often, one after another."""
    for _ in range(count):
        response = yield client.fetch(url)
        assert len(response.body) == 1024


@coro.coroutine
def fetch_all(url: str) -> Any:
    """Fetch in ten parts; after each, look at the memory and at the descriptors."""
    client = AsyncHTTPClient(force_instance=True, max_clients=SIDE_BY_SIDE)
    part = FETCHES // 10
    grown = held = 0
    began = time.monotonic()
    for number in range(1, 11):
        yield [fetch_on(client, url, part // SIDE_BY_SIDE) for _ in range(SIDE_BY_SIDE)]
        peak, descriptors = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, count_fds()
        rate = number * part / (time.monotonic() - began)
        click.echo(
            f"fetches: {number * part:,}, {rate:,.0f} a second; "
            f"{peak:,} KB at most, {descriptors} descriptors"
        )
        if number == 1:
            grown, held = peak + GROWTH, descriptors
        elif peak > grown or descriptors > held:
            raise click.ClickException("the process grew")
    client.close()


def soak_sockets() -> None:
    """Fetch a million times, one after another."""
    context = multiprocessing.get_context("spawn")
    told, tell = context.Pipe(duplex=False)
    server = context.Process(target=serve, args=(tell,), daemon=True)
    server.start()
    try:
        if not told.poll(30):
            raise click.ClickException("the server did not start")
        coro.run(fetch_all, f"http://127.0.0.1:{told.recv()}/")
    finally:
        server.terminate()
        server.join()


@click.command()
@click.option("--seeds", default=100_000, show_default=True, type=click.IntRange(1))
@click.option("--only", type=click.Choice([*SUITES, "drawn", "fetches"]), help="This suite alone.")
def main(seeds: int, only: str | None) -> None:
    """Simulate the suites under many seeds."""
    side_by_side = os.cpu_count() or 1
    with ThreadPoolExecutor(side_by_side) as workers:
        total = sum(
            soak(name, seeds, workers, side_by_side) for name in SUITES if only in (None, name)
        )
    for program in (drawn.streams, drawn.connections, drawn.fetches):
        if only in (None, "drawn"):
            total += explore(program, seeds=range(seeds))
    if total:
        click.echo(f"{total:,} seeds in all")
    if only in (None, "fetches"):
        soak_sockets()


if __name__ == "__main__":
    main()
