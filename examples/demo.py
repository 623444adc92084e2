"""What coro does, shown on a small web site of its own: ``make demo``, or

    python examples/demo.py

It starts ``demo_service.py`` in a process of its own, fetches all its pages side by side, looks at
one fetch station by station, and shows three ways in which a fetch fails. It takes seconds, and
leaves nothing behind.
"""

import argparse
import contextlib
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import coro
from coro.gen import coroutine
from coro.http import AsyncHTTPClient, HTTPError, HTTPResponse

try:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.table import Table
except ModuleNotFoundError:
    sys.exit("the demo needs rich: pip install 'coro-loop[cli]', or run: make demo")

WORKERS = 50
PATIENCE = 10.0
"""Seconds that the service may take to end."""

console = Console(highlight=False)

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


# --- the service, in a process of its own --------------------------------------------------


@contextlib.contextmanager
def service(pages: int) -> Iterator[str]:
    """Run the web site for the length of the block; gives its address."""
    command = [sys.executable, str(Path(__file__).with_name("demo_service.py"))]
    with subprocess.Popen(
        [*command, "--pages", str(pages)],
        stdin=subprocess.PIPE,  # it ends when this closes, so it cannot outlive the demo
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a Ctrl-C is for the demo
    ) as process:
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            port = process.stdout.readline().strip()
            if not port:
                sys.exit("the web site did not start")
            yield f"http://127.0.0.1:{port}"
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


# --- many pages side by side ---------------------------------------------------------------


@coroutine
def worker(
    client: AsyncHTTPClient, urls: Iterator[str], responses: list[HTTPResponse], bar: Progress
) -> Generator[Any, Any, None]:
    """Fetch URL after URL. At each ``yield`` this worker waits, and the others run."""
    for url in urls:
        response = yield client.fetch(url)
        responses.append(response)
        bar.advance(bar.task_ids[0])


@coroutine
def fetch_all(site: str, pages: int) -> Generator[Any, Any, None]:
    """Fetch every page; tell how it went."""
    urls = iter([f"{site}/", *(f"{site}/pages/{n}" for n in range(1, pages + 1))])
    client = AsyncHTTPClient(force_instance=True, max_clients=WORKERS)
    responses: list[HTTPResponse] = []
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("pages"))
    with Progress(*columns, console=console) as bar:
        bar.add_task("", total=pages + 1)
        started = time.perf_counter()
        yield [worker(client, urls, responses, bar) for _ in range(WORKERS)]
        seconds = time.perf_counter() - started
    latencies = [response.request_time * 1e3 for response in responses if response.request_time]
    cuts = statistics.quantiles(latencies, n=100)
    table = Table(show_header=False, box=None, padding=(0, 2))
    table.add_column(style="bold", justify="right")
    for value, meaning in (
        (f"{len(responses)}", "pages"),
        (f"{sum(len(response.body) for response in responses):,}", "bytes"),
        (f"{seconds * 1e3:.0f} ms", "in all"),
        (f"{len(responses) / seconds:,.0f}", "requests/s"),
        (f"{cuts[49]:.1f} ms", "latency, p50: half of the pages took less"),
        (f"{cuts[98]:.1f} ms", "latency, p99: 99 of 100 took less"),
        (f"{client.statistics()['opened']}", "connections opened, and used again and again"),
    ):
        table.add_row(value, meaning)
    console.print(table)
    client.close()


# --- one fetch, station by station ---------------------------------------------------------


@coroutine
def show_one(site: str) -> Generator[Any, Any, None]:
    """Fetch one page twice: over a new connection, and over the one that was kept."""
    client = AsyncHTTPClient(force_instance=True)
    url = f"{site}/pages/1"
    for title in ("over a new connection", "again: the connection was kept"):
        response = yield client.fetch(url)
        console.print(f"[bold]{url}[/], {title}", soft_wrap=True)
        console.print(draw(response.time_info))
        console.print()
    client.close()


def draw(time_info: dict[str, float], width: int = 28) -> Table:
    """Draw the stations of a fetch as bars on one time axis."""
    times = dict(time_info)
    total = times.pop("total")
    times["body"] = max(0.0, total - sum(times.values()))
    table = Table(box=None, show_header=False, padding=(0, 1))
    table.add_column(style="bold")
    table.add_column(justify="right", no_wrap=True)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(style="dim")
    passed = 0.0
    for station, seconds in times.items():
        begin, passed = passed, passed + seconds
        left, right = round(begin / total * width), round(passed / total * width)
        bar = " " * left + "█" * (right - left)
        if seconds and left == right:
            bar = " " * min(left, width - 1) + "▏"
        amount = f"{seconds * 1e3:.2f} ms" if seconds else "-"
        table.add_row(station, amount, bar.ljust(width), STATIONS[station])
    table.add_row("total", f"{total * 1e3:.2f} ms", "", "")
    return table


# --- what can go wrong ---------------------------------------------------------------------


@coroutine
def show_failures(site: str, port: int) -> Generator[Any, Any, None]:
    """Fetch what cannot be fetched, and print what the caller's ``except`` gets."""
    client = AsyncHTTPClient(force_instance=True)
    fetches: list[tuple[str, str, dict[str, Any]]] = [
        ("nobody listens there", f"http://127.0.0.1:{port}/", {}),
        ("it never answers", f"{site}/slow", {"request_timeout": 0.5}),
        ("no such page", f"{site}/pages/none", {}),
    ]
    for title, url, limits in fetches:
        try:
            yield client.fetch(url, **limits)
        except HTTPError as error:
            options = "".join(f", {name}={value}" for name, value in limits.items())
            console.print(f'  yield fetch("{url}"{options})    [dim]# {title}[/]', soft_wrap=True)
            console.print(f"  [red]{type(error).__name__}: {error}[/]\n", soft_wrap=True)
    client.close()


# --- all of it -----------------------------------------------------------------------------


@coroutine
def main(site: str, pages: int, port: int) -> Generator[Any, Any, None]:
    """Show everything, one after the other."""
    heading(f"1. {pages + 1} pages from {site}/, {WORKERS} at a time")
    yield fetch_all(site, pages)
    heading("2. One fetch, station by station (response.time_info)")
    yield show_one(site)
    heading("3. Three failures, as your program sees them")
    yield show_failures(site, port)


def heading(text: str) -> None:
    """Begin a part."""
    console.print(f"\n[bold green]{text}[/]\n", soft_wrap=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="See coro at work.")
    parser.add_argument("--pages", type=int, default=600, help="how many (default 600)")
    arguments = parser.parse_args()
    try:
        with service(arguments.pages) as address, refusing_port() as nobodys_port:
            coro.run(main, address, arguments.pages, nobodys_port)
    except KeyboardInterrupt:
        sys.exit(130)
    console.print("The web site has ended too. Next: examples/tiny_coro.py shows how it works,")
    console.print("examples/fetch_many.py is where your program begins.")
