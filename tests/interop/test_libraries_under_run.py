"""Libraries for asyncio under ``coro.run``, where nobody chose a loop for them."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import aiohttp
import asyncpg
import fastapi
import httpx
import redis.asyncio
import websockets
from aiohttp import web

import coro
from coro.gen import coroutine, multi
from tests.support.databases import USER, Database
from tests.support.nginx import SMALL, Nginx
from tests.support.webserver import under_uvicorn

Coroutine = Generator[Any, Any, Any]

# Seconds. Only a broken test waits so long.
LIMIT = 30.0


def run(main: Any) -> Any:
    return coro.run(main, timeout=LIMIT)


def test_aiohttp() -> None:
    async def hello(request: web.Request) -> web.Response:
        return web.Response(text=request.query["name"])

    @coroutine
    def ask(session: aiohttp.ClientSession, url: str, number: int) -> Coroutine:
        response = yield session.get(url, params={"name": str(number)})
        try:
            return (yield response.text())
        finally:
            response.release()

    @coroutine
    def main() -> Coroutine:
        app = web.Application()
        app.router.add_get("/", hello)
        runner = web.AppRunner(app, access_log=None)
        yield runner.setup()
        yield web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}/"
        session = aiohttp.ClientSession()
        try:
            got = yield [ask(session, url, number) for number in range(20)]
            own = yield coro.fetch(f"{url}?name=own")
        finally:
            yield session.close()
            yield runner.cleanup()
        return got, own.body

    assert run(main) == ([str(number) for number in range(20)], b"own")


def test_httpx(nginx: Nginx) -> None:
    @coroutine
    def main() -> Coroutine:
        client = httpx.AsyncClient()
        try:
            answers = yield [client.get(nginx.url()) for _ in range(20)]
            assert [each.content for each in answers] == [SMALL] * 20
            try:
                yield client.get(nginx.url("/drip/1k.txt"), timeout=0.05)
            except httpx.ReadTimeout:
                return (yield begin(client))
        finally:
            yield client.aclose()

    async def begin(client: httpx.AsyncClient) -> int:
        """Leave a generator of the library's in the middle."""
        async with client.stream("GET", nginx.url("/big.bin")) as response:
            async for piece in response.aiter_bytes():
                return len(piece)
        raise AssertionError

    assert run(main) > 0


def test_fastapi_under_uvicorn(nginx: Nginx) -> None:
    app = fastapi.FastAPI()

    @app.get("/fetched")
    async def fetched() -> int:
        return len((await coro.fetch(nginx.url())).body)

    @app.get("/threaded")
    def threaded() -> str:
        return "in a thread"

    async def main() -> list[bytes]:
        async with under_uvicorn(app) as port:
            url = f"http://127.0.0.1:{port}"
            asked = [coro.fetch(f"{url}/{path}") for path in ("fetched", "threaded")]
            return [got.body for got in await multi(asked)]

    assert run(main) == [b"%d" % len(SMALL), b'"in a thread"']


def test_asyncpg(postgres: Database) -> None:
    where = {"user": USER, "database": "postgres", "host": "127.0.0.1", "port": postgres.port}

    @coroutine
    def ask(pool: asyncpg.Pool, number: int) -> Coroutine:
        connection = yield pool.acquire()
        try:
            with coro.timeout(LIMIT):
                return (yield connection.fetchval("SELECT $1::int * 2", number))
        finally:
            yield pool.release(connection)

    @coroutine
    def main() -> Coroutine:
        pool = yield asyncpg.create_pool(**where, ssl=False, min_size=2, max_size=4)
        try:
            numbers = yield [ask(pool, number) for number in range(20)]
            try:
                with coro.timeout(0.05):
                    yield pool.execute("SELECT pg_sleep(60)")
            except coro.TimeoutError:
                numbers.append((yield ask(pool, 20)))
            return numbers
        finally:
            yield pool.close()

    assert run(main) == [2 * number for number in range(21)]


def test_redis(redis_server: Database) -> None:
    @coroutine
    def produce(client: Any) -> Coroutine:
        for number in range(10):
            yield client.rpush("work", number)

    @coroutine
    def consume(client: Any) -> Coroutine:
        got: list[int] = []
        while len(got) < 10:
            got.append(int((yield client.blpop(["work"], timeout=LIMIT))[1]))
        return got

    @coroutine
    def main() -> Coroutine:
        client = redis.asyncio.Redis(host="127.0.0.1", port=redis_server.port)
        try:
            _, got = yield [produce(client), consume(client)]
            return got
        finally:
            yield client.aclose()

    assert run(main) == list(range(10))


def test_websockets() -> None:
    async def echo(socket: websockets.ServerConnection) -> None:
        async for message in socket:
            await socket.send(message)

    @coroutine
    def talk(uri: str, number: int) -> Coroutine:
        socket = yield websockets.connect(uri, proxy=None)
        try:
            yield socket.send(str(number))
            return (yield socket.recv())
        finally:
            yield socket.close()

    @coroutine
    def main() -> Coroutine:
        server = yield websockets.serve(echo, "127.0.0.1", 0)
        try:
            (listening,) = server.sockets
            uri = f"ws://127.0.0.1:{listening.getsockname()[1]}"
            return (yield [talk(uri, number) for number in range(10)])
        finally:
            server.close()
            yield server.wait_closed()

    assert run(main) == [str(number) for number in range(10)]
