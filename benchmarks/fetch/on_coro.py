"""coro's HTTP client on its own loop."""

from argparse import Namespace
from collections.abc import Generator
from typing import Any

from coro.gen import coroutine, run
from coro.http import AsyncHTTPClient

from ..trial import Trial
from .subject import check, parser

Coroutine = Generator[Any, Any, Any]


@coroutine
def worker(client: AsyncHTTPClient, url: str, count: int) -> Coroutine:
    """GET ``count`` times, one after another."""
    for _ in range(count):
        response = yield client.fetch(url)
        check(response.code, response.body)


@coroutine
def measure(options: Namespace) -> Coroutine:
    """Run a trial."""
    client = AsyncHTTPClient(force_instance=True, max_clients=options.workers)
    for count in Trial(options.seconds):
        share = count // options.workers
        yield [worker(client, options.url, share) for _ in range(options.workers)]
    client.close()


if __name__ == "__main__":
    run(measure, parser().parse_args())
