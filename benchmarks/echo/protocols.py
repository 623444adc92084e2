"""asyncio's protocols, callbacks without coroutines, on asyncio's own loop or on uvloop."""

import asyncio
import socket
import ssl
from argparse import Namespace
from typing import cast

from ..hosts import HOSTS, runner
from .server import main


class Echo(asyncio.Protocol):
    """Writes back what it gets."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport to write to."""
        self.transport = cast(asyncio.Transport, transport)  # uvloop's does not derive from it

    def data_received(self, data: bytes) -> None:
        """Echo."""
        self.transport.write(data)


async def echo(listener: socket.socket, tls: ssl.SSLContext | None) -> None:
    """Accept until the process is ended."""
    server = await asyncio.get_running_loop().create_server(Echo, sock=listener, ssl=tls)
    await server.serve_forever()


def serve(listener: socket.socket, options: Namespace) -> None:
    """Run the server on the loop that the options name."""
    with runner(options.loop) as host:
        host.run(echo(listener, options.tls))


if __name__ == "__main__":
    main(serve, HOSTS)
