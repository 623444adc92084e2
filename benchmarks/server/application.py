"""The ASGI application, with no framework: what is measured is the server."""

from typing import Any

from .subject import HELLO, as_json, thing


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Answer ``/`` and ``/json``."""
    if scope["path"] == "/json":
        body, kind = as_json(thing()), b"application/json"
    else:
        body, kind = HELLO, b"text/plain; charset=utf-8"
    fields = [(b"content-type", kind), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": fields})
    await send({"type": "http.response.body", "body": body})
