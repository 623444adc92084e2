"""httpx's asynchronous client on asyncio, with its own limits.

By default it keeps 20 idle connections and so reconnects with 50 workers.  Allowed to keep all 50
it does less than half as much: what its pool does for a request grows with the connections kept.
"""

import asyncio
from argparse import Namespace

import httpx

from ..trial import Trial
from .subject import body, check, check_length, megabytes, parser


async def worker(client: httpx.AsyncClient, options: Namespace, count: int) -> None:
    """Fetch ``count`` times, one after another."""
    sent = body(options)
    method = "GET" if sent is None else "POST"
    for _ in range(count):
        response = await client.request(method, options.url, content=sent)
        check(response.status_code, response.content)


async def stream(client: httpx.AsyncClient, options: Namespace) -> None:
    """Read a body as its pieces come."""
    for headers, length in megabytes(options):
        received = 0
        async with client.stream("GET", options.url, headers=headers) as response:
            async for piece in response.aiter_raw():
                received += len(piece)
        check_length(received, length)


async def measure(options: Namespace) -> None:
    """Run a trial."""
    async with httpx.AsyncClient(verify=False) as client:
        if options.stream:
            await stream(client, options)
            return
        for count in Trial(options.seconds):
            share = count // options.workers
            await asyncio.gather(*(worker(client, options, share) for _ in range(options.workers)))


if __name__ == "__main__":
    asyncio.run(measure(parser().parse_args()))
