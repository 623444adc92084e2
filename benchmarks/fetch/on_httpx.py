"""httpx's asynchronous client on asyncio, with its own limits.

By default it keeps 20 idle connections and so reconnects with 50 workers.  Allowed to keep all 50
it does less than half as much: what its pool does for a request grows with the connections kept.
"""

import asyncio
from argparse import Namespace

import httpx

from ..trial import Trial
from .subject import check, parser


async def worker(client: httpx.AsyncClient, url: str, count: int) -> None:
    """GET ``count`` times, one after another."""
    for _ in range(count):
        response = await client.get(url)
        check(response.status_code, response.content)


async def measure(options: Namespace) -> None:
    """Run a trial."""
    async with httpx.AsyncClient() as client:
        for count in Trial(options.seconds):
            share = count // options.workers
            await asyncio.gather(
                *(worker(client, options.url, share) for _ in range(options.workers))
            )


if __name__ == "__main__":
    asyncio.run(measure(parser().parse_args()))
