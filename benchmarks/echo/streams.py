"""asyncio's streams, on asyncio's own loop or on uvloop."""

import asyncio
import socket
import ssl
from argparse import Namespace

from ..hosts import HOSTS, runner
from .server import CHUNK, main


async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Echo one connection to its end."""
    while data := await reader.read(CHUNK):
        writer.write(data)
        await writer.drain()
    writer.close()


async def echo(listener: socket.socket, tls: ssl.SSLContext | None) -> None:
    """Accept until the process is ended."""
    server = await asyncio.start_server(handle, sock=listener, ssl=tls)
    await server.serve_forever()


def serve(listener: socket.socket, options: Namespace) -> None:
    """Run the server on the loop that the options name."""
    with runner(options.loop) as host:
        host.run(echo(listener, options.tls))


if __name__ == "__main__":
    main(serve, HOSTS)
