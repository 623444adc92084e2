"""aiohttp's client, on asyncio's own loop or on uvloop."""

import asyncio
from argparse import Namespace

import aiohttp

from ..hosts import HOSTS, runner
from ..trial import Trial
from .subject import check, parser


async def worker(session: aiohttp.ClientSession, url: str, count: int) -> None:
    """GET ``count`` times, one after another."""
    for _ in range(count):
        async with session.get(url) as response:
            check(response.status, await response.read())


async def measure(options: Namespace) -> None:
    """Run a trial."""
    async with aiohttp.ClientSession() as session:
        for count in Trial(options.seconds):
            share = count // options.workers
            await asyncio.gather(
                *(worker(session, options.url, share) for _ in range(options.workers))
            )


def main() -> None:
    """Run a trial on the loop that the command line names."""
    arguments = parser()
    arguments.add_argument("--loop", choices=HOSTS, default=HOSTS[0])
    options = arguments.parse_args()
    with runner(options.loop) as host:
        host.run(measure(options))


if __name__ == "__main__":
    main()
