"""coro inside other people's asyncio programs: web servers and clients that nobody here wrote."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import Any

import aiohttp
import anyio
import fastapi
import httpx
import pytest

import coro
from coro.gen import coroutine
from coro.http import AsyncHTTPClient
from tests.support.nginx import SMALL, Nginx
from tests.support.webserver import under_uvicorn


@coroutine
def fetched(url: str, **options: Any) -> Generator[Any, Any, bytes]:
    response = yield coro.fetch(url, **options)
    return response.body


@pytest.mark.asyncio
async def test_fastapi_under_uvicorn_fetches_in_its_handlers(nginx: Nginx) -> None:
    app = fastapi.FastAPI()

    @app.get("/size")
    async def size() -> dict[str, int]:
        return {"size": len(await fetched(nginx.url()))}

    @app.get("/slow")
    async def slow() -> str:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await coro.sleep(60)
        return "over"

    async with under_uvicorn(app, lifespan="off") as port:
        url = f"http://127.0.0.1:{port}"
        # Not the client of the handlers: its places would be taken by who waits for them.
        client = AsyncHTTPClient(force_instance=True, max_clients=30)
        answers = await asyncio.gather(*(client.fetch(f"{url}/size") for _ in range(30)))
        assert {bytes(each.body) for each in answers} == {b'{"size":%d}' % len(SMALL)}
        assert (await client.fetch(f"{url}/slow")).body == b'"over"'
        client.close()


@pytest.mark.asyncio
async def test_asyncio_clients_in_a_coroutine(nginx: Nginx) -> None:
    """They ask for the current task, and cancel it when their time is over."""

    @coroutine
    def with_aiohttp(session: aiohttp.ClientSession) -> Generator[Any, Any, bytes]:
        response = yield session.get(nginx.url())
        try:
            return (yield response.read())
        finally:
            response.release()

    @coroutine
    def with_httpx(client: httpx.AsyncClient) -> Generator[Any, Any, bytes]:
        return (yield client.get(nginx.url())).content

    async with aiohttp.ClientSession() as session, httpx.AsyncClient() as client:
        assert await with_aiohttp(session) == SMALL
        assert await asyncio.gather(*(with_httpx(client) for _ in range(20))) == [SMALL] * 20


@pytest.mark.asyncio
async def test_anyios_scopes_reach_through() -> None:
    cleaned: list[str] = []

    @coroutine
    def works() -> Generator[Any, Any, None]:
        try:
            yield coro.sleep(60)
        finally:
            cleaned.append("up")

    async def bounded() -> bool:
        with anyio.move_on_after(0.01) as scope:
            await works()
        return scope.cancelled_caught

    @coroutine
    def main() -> Generator[Any, Any, bool]:
        return (yield bounded())

    assert await main() is True
    assert await bounded() is True
    assert cleaned == ["up", "up"]
    async with anyio.create_task_group() as group:
        group.start_soon(bounded)
    assert cleaned == ["up"] * 3


@pytest.mark.asyncio(loop_factories=["asyncio", "uvloop", "coro"])
async def test_anyios_scopes_in_a_coroutine() -> None:
    """Entered in a generator, whose task asyncio knows there."""

    @coroutine
    def bounded() -> Generator[Any, Any, bool]:
        with anyio.move_on_after(0.01) as scope:
            yield coro.sleep(60)
        return scope.cancelled_caught

    assert await asyncio.gather(bounded(), bounded()) == [True, True]
