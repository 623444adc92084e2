"""coro's HTTP client on its own loop, or inside asyncio."""

from argparse import Namespace
from collections.abc import Generator
from typing import Any

from coro.gen import coroutine, run
from coro.http import AsyncHTTPClient

from ..hosts import LOOPS, runner
from ..trial import Trial
from .nginx import BODY
from .subject import body, check, check_length, megabytes, parser

Coroutine = Generator[Any, Any, Any]


@coroutine
def worker(
    client: AsyncHTTPClient, url: str, sent: bytes | None, count: int, size: int = len(BODY)
) -> Coroutine:
    """Fetch ``count`` times, one after another."""
    options: dict[str, Any] = {} if sent is None else {"method": "POST", "body": sent}
    if url.startswith("https"):
        options["validate_cert"] = False
    for _ in range(count):
        response = yield client.fetch(url, **options)
        check(response.code, response.body, size)


@coroutine
def measure(options: Namespace) -> Coroutine:
    """Run a trial."""
    client = AsyncHTTPClient(force_instance=True, max_clients=options.workers)
    if options.stream:
        for headers, length in megabytes(options):
            response = yield client.fetch(options.url, headers=headers, stream=True)
            received = 0
            while piece := (yield response.read(65536)):
                received += len(piece)
            check_length(received, length)
    else:
        sent = body(options)
        url, size = options.url, options.size
        for count in Trial(options.seconds, unit=options.workers):
            share = count // options.workers
            yield [worker(client, url, sent, share, size) for _ in range(options.workers)]
    client.close()


def main() -> None:
    """Run a trial on the loop that the command line names."""
    arguments = parser()
    arguments.add_argument("--loop", choices=LOOPS, default=LOOPS[0])
    options = arguments.parse_args()
    if options.loop == LOOPS[0]:
        run(measure, options)
        return

    async def as_guest() -> None:
        await measure(options)

    with runner(options.loop) as host:
        host.run(as_guest())


if __name__ == "__main__":
    main()
