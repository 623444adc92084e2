"""Tornado's HTTP clients: the simple one, and the one over libcurl."""

import asyncio
from argparse import Namespace

from tornado.httpclient import AsyncHTTPClient

from ..trial import Trial
from .subject import check, parser

CLIENTS = {
    "simple": "tornado.simple_httpclient.SimpleAsyncHTTPClient",
    "curl": "tornado.curl_httpclient.CurlAsyncHTTPClient",
}


async def worker(client: AsyncHTTPClient, url: str, count: int) -> None:
    """GET ``count`` times, one after another."""
    for _ in range(count):
        response = await client.fetch(url)
        check(response.code, response.body)


async def measure(options: Namespace) -> None:
    """Run a trial."""
    AsyncHTTPClient.configure(CLIENTS[options.client], max_clients=options.workers)
    client = AsyncHTTPClient()
    for count in Trial(options.seconds):
        share = count // options.workers
        await asyncio.gather(*(worker(client, options.url, share) for _ in range(options.workers)))


def main() -> None:
    """Run a trial with the client that the command line names."""
    arguments = parser()
    arguments.add_argument("--client", choices=list(CLIENTS), default="simple")
    asyncio.run(measure(arguments.parse_args()))


if __name__ == "__main__":
    main()
