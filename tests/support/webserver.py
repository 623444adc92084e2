"""uvicorn, on the loop that runs."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn


@asynccontextmanager
async def under_uvicorn(app: Any, **options: Any) -> AsyncIterator[int]:
    """Serve an ASGI application for the length of the block; give the port on 127.0.0.1."""
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", **options))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            await serving
