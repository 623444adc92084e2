"""hypercorn on uvloop, without a log."""

import asyncio
import socket
from argparse import Namespace

from hypercorn.asyncio import serve as run
from hypercorn.config import Config

from ..hosts import runner
from .application import application
from .subject import main


async def forever() -> None:
    await asyncio.Event().wait()


def serve(listener: socket.socket, options: Namespace) -> None:
    """Run the server."""
    config = Config()
    config.bind = [f"fd://{listener.detach()}"]
    config.keep_alive_timeout = 3600
    with runner("uvloop") as host:
        host.run(run(application, config, shutdown_trigger=forever))


if __name__ == "__main__":
    main(serve)
