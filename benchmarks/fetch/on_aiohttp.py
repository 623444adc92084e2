"""aiohttp's client, on asyncio's own loop or on uvloop."""

import asyncio
from argparse import Namespace

import aiohttp

from ..hosts import HOSTS, runner
from ..trial import Trial
from .subject import body, check, check_length, megabytes, parser


async def worker(session: aiohttp.ClientSession, options: Namespace, count: int) -> None:
    """Fetch ``count`` times, one after another."""
    sent = body(options)
    method = "GET" if sent is None else "POST"
    for _ in range(count):
        async with session.request(method, options.url, data=sent, ssl=False) as response:
            check(response.status, await response.read(), options.size)


async def stream(session: aiohttp.ClientSession, options: Namespace) -> None:
    """Read a body as its pieces come."""
    for headers, length in megabytes(options):
        received = 0
        async with session.get(options.url, headers=headers) as response:
            async for piece in response.content.iter_any():
                received += len(piece)
        check_length(received, length)


async def measure(options: Namespace) -> None:
    """Run a trial."""
    async with aiohttp.ClientSession() as session:
        if options.stream:
            await stream(session, options)
            return
        for count in Trial(options.seconds, unit=options.workers):
            share = count // options.workers
            await asyncio.gather(*(worker(session, options, share) for _ in range(options.workers)))


def main() -> None:
    """Run a trial on the loop that the command line names."""
    arguments = parser()
    arguments.add_argument("--loop", choices=HOSTS, default=HOSTS[0])
    options = arguments.parse_args()
    with runner(options.loop) as host:
        host.run(measure(options))


if __name__ == "__main__":
    main()
