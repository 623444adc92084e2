"""Tornado's ``TCPServer`` and ``IOStream``."""

import asyncio
import socket
import ssl
from argparse import Namespace
from typing import Any

from tornado.iostream import IOStream, StreamClosedError
from tornado.tcpserver import TCPServer

from .server import CHUNK, main


class EchoServer(TCPServer):
    """Writes back what it gets."""

    async def handle_stream(self, stream: IOStream, address: Any) -> None:
        """Echo one connection to its end."""
        stream.set_nodelay(True)
        while True:
            try:
                data = await stream.read_bytes(CHUNK, partial=True)
                await stream.write(data)
            except StreamClosedError:
                break


async def echo(listener: socket.socket, tls: ssl.SSLContext | None) -> None:
    """Accept until the process is ended."""
    server = EchoServer(ssl_options=tls)
    server.add_socket(listener)
    await asyncio.Event().wait()


def serve(listener: socket.socket, options: Namespace) -> None:
    """Run the server."""
    asyncio.run(echo(listener, options.tls))


if __name__ == "__main__":
    main(serve)
