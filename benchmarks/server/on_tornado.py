"""Tornado's ``HTTPServer`` and ``Application``, without its log."""

import asyncio
import logging
import socket
from argparse import Namespace

from tornado.httpserver import HTTPServer
from tornado.web import Application, RequestHandler

from .subject import HELLO, main, thing


class Hello(RequestHandler):
    """Answers ``/``."""

    async def get(self) -> None:
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.write(HELLO)


class Thing(RequestHandler):
    """Answers ``/json``."""

    async def get(self) -> None:
        self.write(thing())


async def forever(listener: socket.socket) -> None:
    """Serve until the process is ended."""
    logging.getLogger("tornado.access").setLevel(logging.CRITICAL)
    server = HTTPServer(Application([("/", Hello), ("/json", Thing)]))
    server.add_socket(listener)
    await asyncio.Event().wait()


def serve(listener: socket.socket, options: Namespace) -> None:
    """Run the server."""
    asyncio.run(forever(listener))


if __name__ == "__main__":
    main(serve)
