"""aiohttp's server on uvloop, without an access log."""

import asyncio
import socket
from argparse import Namespace

from aiohttp import web

from ..hosts import runner
from .subject import HELLO, main, thing


async def hello(request: web.Request) -> web.Response:
    """Answer ``/``."""
    return web.Response(body=HELLO, content_type="text/plain", charset="utf-8")


async def as_json(request: web.Request) -> web.Response:
    """Answer ``/json``."""
    return web.json_response(thing())


async def forever(listener: socket.socket) -> None:
    """Serve until the process is ended."""
    application = web.Application()
    application.add_routes([web.get("/", hello), web.get("/json", as_json)])
    running = web.AppRunner(application, access_log=None, keepalive_timeout=3600)
    await running.setup()
    await web.SockSite(running, listener).start()
    await asyncio.Event().wait()


def serve(listener: socket.socket, options: Namespace) -> None:
    """Run the server."""
    with runner("uvloop") as host:
        host.run(forever(listener))


if __name__ == "__main__":
    main(serve)
