"""What coro does, told with a gateway: ``make demo``, or

    python examples/demo.py

It starts ``demo_service.py``, five services in a process of their own, and puts ``gateway.py``
before them, on the loop of this very program, which is also the gateway's client. Then it looks at
one request, at many, and at requests that fail. It takes seconds, needs no network, and leaves
nothing behind.
"""

import argparse
import contextlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import textwrap
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

from gateway import Service, gateway

import coro
from coro.gen import coroutine
from coro.http import AsyncHTTPClient, HTTPError, HTTPServer

BUDGET = 0.5
"""Seconds that the gateway waits for its services; a busy machine may need more."""
WORKERS = 25
COLUMNS = shutil.get_terminal_size((100, 24)).columns
WIDTH = max(10, min(40, COLUMNS - 60))
"""Columns of a chart, beside which there is text."""
PATIENCE = 10.0
"""Seconds that the services may take to end."""

STATIONS = {
    "queue": "a free slot? (max_clients)",
    "dns": "name -> addresses",
    "connect": "epoll: it is connected",
    "tls": "handshake (https only)",
    "sent": "the request is written",
    "first_byte": "epoll: the answer begins",
    "body": "the rest of it is read",
}
"""The keys of ``response.time_info`` in their order, and what happens there; "body" is the rest."""

COLOURS = sys.stdout.isatty() and "NO_COLOR" not in os.environ


def tell(text: str = "") -> None:
    """Print an explanation."""
    print(
        textwrap.fill(text, min(88, COLUMNS), initial_indent="  ", subsequent_indent="  "),
        flush=True,
    )


def heading(text: str) -> None:
    """Begin a part."""
    print(f"\n\x1b[1;32m{text}\x1b[0m\n" if COLOURS else f"\n{text}\n", flush=True)


def bar(begin: float, end: float, whole: float) -> str:
    """Draw what lasted from ``begin`` to ``end`` on an axis that is ``whole`` long."""
    left, right = (min(WIDTH, round(at / whole * WIDTH)) for at in (begin, end))
    drawn = "█" * (right - left) if right > left else "▏" if end > begin else ""
    return (" " * min(left, WIDTH - 1) + drawn).ljust(WIDTH)


# --- the services, in a process of their own -----------------------------------------------


@contextlib.contextmanager
def services() -> Iterator[dict[str, str]]:
    """Run the services for the length of the block; gives their URLs by name."""
    with subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("demo_service.py"))],
        stdin=subprocess.PIPE,  # it ends when this closes, so it cannot outlive the demo
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a Ctrl-C is for the demo
    ) as process:
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            where = process.stdout.readline()
            if not where:
                sys.exit("the services did not start")
            yield json.loads(where)
            process.stdin.close()
            process.wait(PATIENCE)
        finally:
            process.kill()


@contextlib.contextmanager
def refusing_port() -> Iterator[int]:
    """Keep a port on which nobody listens, for the length of the block."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


# --- one request, and the breaker ----------------------------------------------------------


@coroutine
def show_one(client: AsyncHTTPClient, url: str, budget: float) -> Generator[Any, Any, None]:
    """Ask the gateway once, and draw what it did meanwhile."""
    response = yield client.fetch(url, raise_error=False)
    answers = json.loads(response.body)["services"]
    whole = max(budget, response.request_time)
    for name, answer in answers.items():
        seconds = answer["seconds"]
        said = json.dumps(answer["said"]) if "said" in answer else answer["error"]
        print(f"  {name:>9} {seconds * 1e3:4.0f} ms  {bar(0.0, seconds, whole)}  {said}")
    one_by_one = sum(answer["seconds"] for answer in answers.values())
    good = sum("said" in answer for answer in answers.values())
    print()
    tell(
        f"The gateway answered after {response.request_time * 1e3:.0f} ms, when its time budget of"
        f" {budget * 1e3:.0f} ms was used up, with what {good} of {len(answers)} services had said."
        f" They were asked side by side: one after the other, it would have taken"
        f" {one_by_one * 1e3:.0f} ms. This is the line that does it, in examples/gateway.py:"
    )
    source = Path(__file__).with_name("gateway.py").read_text()
    (line,) = (line.strip() for line in source.splitlines() if "= yield {" in line)
    print(f"\n      {line}")


@coroutine
def show_breaker(
    client: AsyncHTTPClient, url: str, budget: float, times: int
) -> Generator[Any, Any, float]:
    """Ask until the gateway leaves alone what fails; return how long it took then."""
    seconds = 0.0
    for number in range(2, times + 2):
        response = yield client.fetch(url, raise_error=False)
        seconds = response.request_time
        told = json.loads(response.body)
        errors = {name: told["services"][name]["error"] for name in told["missing"]}
        alone = sorted(name for name, error in errors.items() if "left alone" in error)
        remark = f"left alone: {', '.join(alone)}" if alone else f"without {', '.join(errors)}"
        print(f"  request {number} {seconds * 1e3:4.0f} ms  {bar(0.0, seconds, budget)}  {remark}")
    print()
    tell(
        "A service that failed five times in a row is not asked for a while: a circuit breaker."
        f" Nobody waits for it any longer, and the answer comes after {seconds * 1e3:.0f} ms."
    )
    return seconds


# --- many requests -------------------------------------------------------------------------


@coroutine
def worker(client: AsyncHTTPClient, urls: Iterator[str]) -> Generator[Any, Any, list[Any]]:
    """Fetch URL after URL. At each ``yield`` this worker waits, and the others run."""
    responses = []
    for url in urls:
        responses.append((yield client.fetch(url, raise_error=False)))
    return responses


@coroutine
def show_many(
    client: AsyncHTTPClient, upstream: AsyncHTTPClient, url: str, count: int
) -> Generator[Any, Any, str]:
    """Ask many times, some at a time; return a line of figures."""
    opened = upstream.statistics()["opened"]
    urls = iter([url] * count)
    started = time.perf_counter()
    found = yield [worker(client, urls) for _ in range(WORKERS)]
    seconds = time.perf_counter() - started
    responses = [response for some in found for response in some]
    cuts = statistics.quantiles([one.request_time * 1e3 for one in responses], n=100)
    waits = [
        [answer["seconds"] for answer in json.loads(one.body)["services"].values()]
        for one in responses
    ]
    asked = sum(seconds > 0 for some in waits for seconds in some)
    slowest = statistics.median(max(some) for some in waits)
    opened = upstream.statistics()["opened"] - opened
    for value, meaning in (
        (f"{count}", "requests to the gateway"),
        (f"{asked:,}", "requests of the gateway to its services"),
        (f"{opened}", "connections opened for them; all others went over one that was kept"),
        (f"{seconds * 1e3:.0f} ms", "in all"),
        (f"{(count + asked) / seconds:,.0f}", "requests/s, both kinds, in one thread"),
        (f"{cuts[49]:.1f} ms", "latency, p50: half of the answers took less"),
        (f"{slowest * 1e3:.1f} ms", "of that was the wait for the slowest service"),
        (f"{cuts[98]:.1f} ms", "latency, p99: 99 of 100 took less"),
    ):
        print(f"  {value:>10}  {meaning}")
    return (
        f"{count + asked:,} requests in {seconds * 1e3:.0f} ms, for which {opened} connections"
        " were opened"
    )


# --- one request, station by station -------------------------------------------------------


@coroutine
def show_stations(url: str) -> Generator[Any, Any, None]:
    """Ask a service twice: over a new connection, and over the one that was kept."""
    client = AsyncHTTPClient(force_instance=True)
    for title in ("over a new connection", "again: the connection was kept"):
        response = yield client.fetch(url)
        print(f"  {url}, {title}")
        draw(response.time_info)
        print()
    client.close()


def draw(time_info: dict[str, float]) -> None:
    """Draw the stations of a fetch as bars on one time axis."""
    times = dict(time_info)
    total = times.pop("total")
    times["body"] = max(0.0, total - sum(times.values()))
    passed = 0.0
    for station, seconds in times.items():
        begin, passed = passed, passed + seconds
        amount = f"{seconds * 1e3:.2f} ms" if seconds else "-"
        print(f"  {station:>10} {amount:>9}  {bar(begin, passed, total)}  {STATIONS[station]}")
    print(f"  {'total':>10} {total * 1e3:6.2f} ms", flush=True)


# --- what can go wrong ---------------------------------------------------------------------


@coroutine
def show_failures(where: dict[str, str], port: int) -> Generator[Any, Any, None]:
    """Fetch what cannot be fetched, and print what the caller's ``except`` gets."""
    client = AsyncHTTPClient(force_instance=True)
    fetches: list[tuple[str, str, dict[str, Any]]] = [
        ("nobody listens there", f"http://127.0.0.1:{port}/", {}),
        ("it does not answer in time", where["shipping"], {"request_timeout": 0.3}),
        ("no such page", f"{where['prices']}none", {}),
    ]
    for title, url, limits in fetches:
        try:
            yield client.fetch(url, **limits)
        except HTTPError as error:
            options = "".join(f", {name}={value}" for name, value in limits.items())
            print(f'  yield fetch("{url}"{options})    # {title}')
            print(f"  {type(error).__name__}: {error}\n", flush=True)
    client.close()


# --- all of it -----------------------------------------------------------------------------


@coroutine
def main(
    where: dict[str, str], requests: int, budget: float, port: int
) -> Generator[Any, Any, str]:
    """Show everything, one after the other; return the figures to remember."""
    upstream = AsyncHTTPClient(force_instance=True, max_clients=1000)
    behind = [Service(name, url, upstream) for name, url in where.items()]
    server = HTTPServer(gateway(behind, budget))
    server.listen(0, "127.0.0.1")
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    client = AsyncHTTPClient(force_instance=True, max_clients=WORKERS)

    tell(
        f"A gateway asks {len(where)} services for each request that it gets, and answers with what"
        " they say. Gateway and services run on coro's server, all requests are made by coro's"
        " client. Everything happens on this machine, in two processes, and takes some seconds."
    )
    heading(f"1. One request to {url}: a gateway that asks {len(where)} services")
    yield show_one(client, url, budget)
    heading("2. The same again: two of them never answer well")
    alone = yield show_breaker(client, url, budget, 6)
    heading(f"3. {requests} requests, {WORKERS} at a time")
    figures = yield show_many(client, upstream, url, requests)
    heading("4. One fetch, station by station (response.time_info)")
    yield show_stations(where["prices"])
    heading("5. Three failures, as your program sees them")
    yield show_failures(where, port)

    client.close()
    yield server.shutdown(PATIENCE)
    upstream.close()
    return (
        f"{figures}. A slow service cost the first answers the whole budget of"
        f" {budget * 1e3:.0f} ms; then it was left alone, as was one that failed, and an answer"
        f" took {alone * 1e3:.0f} ms."
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="See coro at work.")
    parser.add_argument("--requests", type=int, default=400, help="how many (default 400)")
    parser.add_argument(
        "--budget", type=float, default=BUDGET, help=f"of the gateway, in seconds ({BUDGET})"
    )
    arguments = parser.parse_args()
    requests, budget = max(2, arguments.requests), arguments.budget
    try:
        with services() as addresses, refusing_port() as nobodys_port:
            summary = coro.run(main, addresses, requests, budget, nobodys_port)
    except KeyboardInterrupt:
        sys.exit(130)
    heading("In short")
    tell(summary)
    print()
    tell("Gateway and services have ended too, and nothing is left behind.")
    tell(
        "Next: examples/gateway.py is the gateway, examples/fetch_many.py where a program that"
        " fetches begins, docs/services.md where one that serves does; examples/tiny_coro.py shows"
        " how it all works, in one page."
    )
