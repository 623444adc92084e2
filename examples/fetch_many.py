"""Fetch many pages, some at a time: what a crawler begins as.

    python examples/fetch_many.py https://example.org/ https://example.com/
    python examples/fetch_many.py < urls.txt

The workers draw URLs from one iterator, so the list may be as long as it likes. A worker runs until
it meets a ``yield``; while it waits there, the others run. For a pipe that delivers slowly, see
``coro fetch --input -``.
"""

import sys
import time
from collections.abc import Generator, Iterator
from typing import Any

import coro
from coro.gen import coroutine
from coro.http import AsyncHTTPClient

WORKERS = 20


@coroutine
def worker(client: AsyncHTTPClient, urls: Iterator[str]) -> Generator[Any, Any, int]:
    """Fetch URL after URL until there are none; return how many pages came."""
    pages = 0
    for url in urls:
        try:
            response = yield client.fetch(url, raise_error=False, connect_timeout=10)
        except ValueError as error:  # not a URL
            print(error)
            continue
        if response.error:
            print(f"{url}: {response.error}")
        else:
            pages += 1
            print(f"{url}: {len(response.body)} bytes in {response.request_time * 1e3:.0f} ms")
    return pages


@coroutine
def main(urls: Iterator[str]) -> Generator[Any, Any, None]:
    """Run the workers side by side."""
    started = time.monotonic()
    client = AsyncHTTPClient(force_instance=True, max_clients=WORKERS)
    pages = yield [worker(client, urls) for _ in range(WORKERS)]
    print(f"{sum(pages)} pages in {time.monotonic() - started:.2f} s")


coro.run(main, iter(sys.argv[1:]) if sys.argv[1:] else map(str.strip, sys.stdin))
