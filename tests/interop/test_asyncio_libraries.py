"""Libraries for asyncio, as they are, on coro's asyncio loop; and yield-style code beside them."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Generator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import fastapi
import httpx
import pytest
import pytest_asyncio
import redis.asyncio
import websockets
from aiohttp import web
from fastapi.responses import StreamingResponse

import coro.aio
from coro.gen import coroutine, sleep
from coro.http import AsyncHTTPClient, HTTPServer, Response
from coro.loop import IOLoop
from coro.queues import Queue
from tests.support.authority import Authority
from tests.support.databases import USER, Database
from tests.support.nginx import BIG_SIZE, SMALL, Nginx
from tests.support.webserver import under_uvicorn

pytestmark = pytest.mark.asyncio(loop_factories=["coro", "native"])

Coroutine = Generator[Any, Any, Any]

# Seconds. Only a broken test waits so long.
LIMIT = 30.0

BODY = bytes(range(256)) * 2000


async def test_it_is_coros_loop() -> None:
    assert isinstance(asyncio.get_running_loop(), coro.aio.EventLoop)


# --- aiohttp --------------------------------------------------------------------------------


@pytest_asyncio.fixture(params=[False, True], ids=["plain", "tls"])
async def site(
    request: pytest.FixtureRequest, ca: Authority, tmp_path: Path
) -> AsyncIterator[tuple[str, ssl.SSLContext | bool]]:
    """A server of aiohttp's: its URL, and what a client needs for it."""

    async def hello(request: web.Request) -> web.Response:
        return web.json_response({"hello": request.query["name"]})

    async def upload(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        async for piece in request.content.iter_any():
            await response.write(piece)
        await response.write_eof()
        return response

    async def slow(request: web.Request) -> web.Response:
        await asyncio.sleep(LIMIT)
        raise AssertionError

    async def echo(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            await socket.send_str(message.data.upper())
        return socket

    (tmp_path / "file").write_bytes(BODY)
    app = web.Application()
    app.router.add_get("/hello", hello)
    app.router.add_post("/upload", upload)
    app.router.add_get("/slow", slow)
    app.router.add_get("/echo", echo)
    # By sendfile.
    app.router.add_static("/files", tmp_path)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True)
    await runner.setup()
    context = ca.server_context() if request.param else None
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    port = runner.addresses[0][1]
    try:
        if request.param:
            yield f"https://localhost:{port}", ca.client_context()
        else:
            yield f"http://127.0.0.1:{port}", True
    finally:
        await runner.cleanup()


Site = tuple[str, "ssl.SSLContext | bool"]


class TestAiohttp:
    async def test_client_and_server(self, site: Site) -> None:
        url, tls = site

        async def hello(number: int) -> str:
            async with session.get(f"{url}/hello", params={"name": str(number)}) as response:
                return (await response.json())["hello"]  # type: ignore[no-any-return]

        async def pieces() -> AsyncIterator[bytes]:
            for start in range(0, len(BODY), 100_000):
                yield BODY[start : start + 100_000]
                await asyncio.sleep(0)

        connector = aiohttp.TCPConnector(ssl=tls, limit=10)
        async with aiohttp.ClientSession(connector=connector) as session:
            numbers = range(50)
            assert await asyncio.gather(*map(hello, numbers)) == [str(each) for each in numbers]
            async with session.post(f"{url}/upload", data=pieces()) as response:
                assert await response.read() == BODY
            async with session.get(f"{url}/files/file") as response:
                assert await response.read() == BODY
            async with session.ws_connect(f"{url}/echo") as socket:
                for word in ("one", "two"):
                    await socket.send_str(word)
                    assert (await socket.receive_str()) == word.upper()
            with pytest.raises(TimeoutError):
                await session.get(f"{url}/slow", timeout=aiohttp.ClientTimeout(total=0.05))

    async def test_beside_coros_own(self, site: Site) -> None:
        """Each one's client at the other one's server."""
        url, tls = site

        @coroutine
        def theirs(session: aiohttp.ClientSession, address: str) -> Coroutine:
            response = yield session.get(address)
            try:
                return (yield response.read())
            finally:
                response.release()

        @coroutine
        def ours(client: AsyncHTTPClient) -> Coroutine:
            options: dict[str, Any] = {} if tls is True else {"ssl_options": tls}
            response = yield client.fetch(f"{url}/files/file", **options)
            return response.body

        server = HTTPServer(lambda request: Response(BODY))
        server.listen(0, "127.0.0.1")
        address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        client = AsyncHTTPClient(force_instance=True)
        connector = aiohttp.TCPConnector(ssl=tls)
        async with aiohttp.ClientSession(connector=connector) as session:

            @coroutine
            def both() -> Coroutine:
                files = f"{url}/files/file"
                return (yield [ours(client), theirs(session, files), theirs(session, address)])

            got = await asyncio.gather(*(both() for _ in range(10)))
        assert got == [[BODY] * 3] * 10
        client.close()
        await server.shutdown(LIMIT)


# --- httpx ----------------------------------------------------------------------------------


class TestHttpx:
    async def test_client(self, nginx: Nginx, ca: Authority) -> None:
        async with httpx.AsyncClient(verify=ca.client_context()) as client:
            urls = [nginx.url(), nginx.url(tls=True)] * 10
            answers = await asyncio.gather(*map(client.get, urls))
            assert [each.content for each in answers] == [SMALL] * 20
            async with client.stream("GET", nginx.url("/big.bin", tls=True)) as response:
                size = 0
                async for piece in response.aiter_bytes():
                    size += len(piece)
                    if size > 5_000_000:
                        break
            assert 5_000_000 < size < BIG_SIZE
            with pytest.raises(httpx.ReadTimeout):
                await client.get(nginx.url("/drip/1k.txt"), timeout=0.05)

    async def test_beside_coros_own(self, nginx: Nginx) -> None:
        @coroutine
        def both(client: httpx.AsyncClient) -> Coroutine:
            theirs, ours = yield [client.get(nginx.url()), coro.fetch(nginx.url())]
            return theirs.content, ours.body

        async with httpx.AsyncClient() as client:
            got = await asyncio.gather(*(both(client) for _ in range(10)))
        assert got == [(SMALL, SMALL)] * 10


# --- uvicorn, FastAPI -----------------------------------------------------------------------


class TestUvicorn:
    @pytest.mark.parametrize("http", ["h11", "httptools"])
    async def test_fastapi(self, nginx: Nginx, http: str) -> None:
        events: list[str] = []

        async def lifespan(app: fastapi.FastAPI) -> AsyncIterator[None]:
            events.append("begun")
            yield
            await sleep(0)
            events.append("ended")

        async def connection() -> AsyncIterator[str]:
            yield "borrowed"
            await sleep(0)
            events.append("returned")

        app = fastapi.FastAPI(lifespan=asynccontextmanager(lifespan))

        @app.get("/fetched")
        async def fetched(what: str = fastapi.Depends(connection)) -> dict[str, Any]:
            """What a handler does: something of coro's."""
            response = await coro.fetch(nginx.url())
            return {"size": len(response.body), "connection": what}

        @app.get("/threaded")
        def threaded(later: fastapi.BackgroundTasks) -> str:
            later.add_task(events.append, "in the background")
            return "in a thread"

        @app.get("/stream")
        async def stream() -> StreamingResponse:
            async def pieces() -> AsyncIterator[bytes]:
                for start in range(0, len(BODY), 100_000):
                    yield BODY[start : start + 100_000]
                    await sleep(0)

            return StreamingResponse(pieces())

        @app.websocket("/echo")
        async def echo(socket: fastapi.WebSocket) -> None:
            await socket.accept()
            async for text in socket.iter_text():
                await socket.send_text(text.upper())

        async with under_uvicorn(app, http=http, ws="websockets-sansio") as port:
            url = f"http://127.0.0.1:{port}"
            async with httpx.AsyncClient() as client:
                answers = await asyncio.gather(
                    *(client.get(f"{url}/fetched") for _ in range(20)),
                    *(client.get(f"{url}/threaded") for _ in range(20)),
                )
            expected: list[Any] = [{"size": len(SMALL), "connection": "borrowed"}] * 20
            expected += ["in a thread"] * 20
            assert [each.json() for each in answers] == expected
            # A client of coro's on the same loop.
            own = AsyncHTTPClient(force_instance=True)
            assert (await own.fetch(f"{url}/stream")).body == BODY
            own.close()
            async with websockets.connect(f"ws://127.0.0.1:{port}/echo", proxy=None) as socket:
                await socket.send("word")
                assert await socket.recv() == "WORD"
        assert events[0] == "begun"
        assert events[-1] == "ended"
        assert events.count("returned") == events.count("in the background") == 20


# --- asyncpg --------------------------------------------------------------------------------


class TestAsyncpg:
    @pytest.fixture(params=["plain", "tls", "unix"])
    def where(
        self, request: pytest.FixtureRequest, postgres: Database, ca: Authority
    ) -> dict[str, Any]:
        where: dict[str, Any] = {"user": USER, "database": "postgres", "port": postgres.port}
        if request.param == "unix":
            return where | {"host": str(postgres.socket)}
        tls = ca.client_context() if request.param == "tls" else False
        return where | {"host": "localhost" if tls else "127.0.0.1", "ssl": tls}

    async def test_queries(self, where: dict[str, Any]) -> None:
        connection = await asyncpg.connect(**where)
        try:
            tls = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
            assert await connection.fetchval(tls) == bool(where.get("ssl"))
            await connection.execute("CREATE TEMP TABLE numbers (n int, words text)")
            rows = [(number, "words " * number) for number in range(500)]
            await connection.copy_records_to_table("numbers", records=rows)
            assert await connection.fetch("SELECT n, words FROM numbers ORDER BY n") == rows
            async with connection.transaction():
                cursor = connection.cursor("SELECT n FROM numbers ORDER BY n", prefetch=50)
                assert [row["n"] async for row in cursor] == list(range(500))
            with pytest.raises(KeyError):
                async with connection.transaction():
                    await connection.execute("DELETE FROM numbers")
                    raise KeyError
            assert await connection.fetchval("SELECT count(*) FROM numbers") == 500
            with pytest.raises(asyncpg.DivisionByZeroError):
                await connection.fetchval("SELECT 1 / 0")
        finally:
            await connection.close()

    async def test_a_query_is_cancelled(self, where: dict[str, Any]) -> None:
        """At the server, by a connection of its own; and the connection goes on."""
        connection = await asyncpg.connect(**where)
        try:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await connection.execute("SELECT pg_sleep(60)")
            # Waits until the server has confirmed it. A time limit of asyncpg's counts that in, and
            # closes the connection if it is not enough.
            assert await connection.fetchval("SELECT 5") == 5
            with pytest.raises(TimeoutError):
                await connection.execute("SELECT pg_sleep(60)", timeout=0.05)

            @coroutine
            def waits() -> Coroutine:
                yield connection.execute("SELECT pg_sleep(60)")

            with pytest.raises(coro.TimeoutError), coro.timeout(0.05):
                await waits()
            assert await connection.fetchval("SELECT 5") == 5
        finally:
            await connection.close()

    async def test_notifications(self, where: dict[str, Any]) -> None:
        """They arrive in a queue of coro's."""
        queue: Queue[str] = Queue()
        listening, telling = await asyncpg.connect(**where), await asyncpg.connect(**where)
        try:
            await listening.add_listener("news", lambda *args: queue.put_nowait(args[-1]))
            for number in range(3):
                await telling.execute(f"NOTIFY news, '{number}'")
            async with asyncio.timeout(LIMIT):
                assert [await queue.get() for _ in range(3)] == ["0", "1", "2"]
        finally:
            await listening.close()
            await telling.close()

    async def test_beside_coros_own(self, where: dict[str, Any], nginx: Nginx) -> None:
        """Yield-style code takes connections from a pool, each for a query and a fetch."""

        @coroutine
        def store(pool: asyncpg.Pool, number: int) -> Coroutine:
            connection = yield pool.acquire()
            try:
                response = yield coro.fetch(nginx.url())
                return (
                    yield connection.fetchval(
                        "SELECT $1::int + length($2::bytea)", number, response.body
                    )
                )
            finally:
                yield pool.release(connection)

        async with asyncpg.create_pool(**where, min_size=2, max_size=4) as pool:

            @coroutine
            def main() -> Coroutine:
                return (yield [store(pool, number) for number in range(20)])

            assert await main() == [len(SMALL) + number for number in range(20)]

    async def test_from_coro_to_the_end(self, postgres: Database) -> None:
        """``async with`` and errors, from a coroutine that is written with ``yield``."""

        @coroutine
        def main() -> Coroutine:
            connection = yield asyncpg.connect(
                user=USER, database="postgres", host="127.0.0.1", port=postgres.port, ssl=False
            )
            try:
                yield connection.fetchval("SELECT 1 / 0")
            except asyncpg.DivisionByZeroError as error:
                return str(error)
            finally:
                yield connection.close()

        assert await main() == "division by zero"


# --- redis ----------------------------------------------------------------------------------


class TestRedis:
    @pytest_asyncio.fixture(params=["plain", "tls", "unix"])
    async def client(
        self, request: pytest.FixtureRequest, redis_server: Database, ca: Authority
    ) -> AsyncIterator[redis.asyncio.Redis]:
        options: dict[str, dict[str, Any]] = {
            "plain": {"host": "127.0.0.1", "port": redis_server.port},
            "unix": {"unix_socket_path": str(redis_server.socket)},
            "tls": {
                "host": "localhost",
                "port": redis_server.tls_port,
                "ssl": True,
                "ssl_ca_certs": str(ca.pem),
            },
        }
        async with redis.asyncio.Redis(**options[request.param], decode_responses=True) as client:
            await client.flushall()
            yield client

    async def test_commands(self, client: Any) -> None:
        counts = await asyncio.gather(*(client.incr("count") for _ in range(20)))
        assert sorted(counts) == list(range(1, 21))
        async with client.pipeline(transaction=True) as pipe:
            assert await pipe.set("word", "x" * 100_000).get("word").execute() == [
                True,
                "x" * 100_000,
            ]
        assert sorted([key async for key in client.scan_iter("*")]) == ["count", "word"]
        with pytest.raises(redis.asyncio.ResponseError):
            await client.incr("word")

    async def test_blocking_and_cancelled(self, client: Any) -> None:
        popping = asyncio.create_task(client.blpop(["list"], timeout=60))
        await client.rpush("list", "item")
        assert list(await popping) == ["list", "item"]
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await client.blpop(["list"], timeout=60)
        assert await client.ping()

    async def test_subscriptions(self, client: Any) -> None:
        async with client.pubsub() as pubsub:
            await pubsub.subscribe("news")
            messages = pubsub.listen()
            assert (await anext(messages))["type"] == "subscribe"
            await client.publish("news", "today")
            assert (await anext(messages))["data"] == "today"
            await messages.aclose()

    async def test_beside_coros_own(self, client: Any) -> None:
        """A queue of Redis's between a producer and a consumer, both written with ``yield``."""

        @coroutine
        def produce() -> Coroutine:
            for number in range(20):
                yield client.rpush("jobs", number)
                yield sleep(0)
            yield client.rpush("jobs", "end")

        @coroutine
        def consume() -> Coroutine:
            got: list[int] = []
            while True:
                _, job = yield client.blpop(["jobs"], timeout=60)
                if job == "end":
                    return got
                got.append(int(job))

        @coroutine
        def main() -> Coroutine:
            _, got = yield [produce(), consume()]
            return got

        assert await main() == list(range(20))


# --- websockets -----------------------------------------------------------------------------


class TestWebsockets:
    @pytest_asyncio.fixture(params=[False, True], ids=["plain", "tls"])
    async def server(
        self, request: pytest.FixtureRequest, ca: Authority
    ) -> AsyncIterator[dict[str, Any]]:
        """An echo server; what ``connect`` takes to get there."""

        async def echo(socket: websockets.ServerConnection) -> None:
            async for message in socket:
                await socket.send(message)

        context = ca.server_context() if request.param else None
        async with websockets.serve(echo, "127.0.0.1", 0, ssl=context) as server:
            port = next(iter(server.sockets)).getsockname()[1]
            if request.param:
                uri = f"wss://localhost:{port}"
                yield {"uri": uri, "ssl": ca.client_context(), "proxy": None}
            else:
                yield {"uri": f"ws://127.0.0.1:{port}", "proxy": None}

    async def test_client_and_server(self, server: dict[str, Any]) -> None:
        async def talk(number: int) -> list[Any]:
            async with websockets.connect(**server, ping_interval=0.01) as socket:
                await socket.send(str(number))
                await socket.send(BODY)
                answers = [await socket.recv(), await socket.recv()]
                await (await socket.ping())
                return answers

        numbers = range(10)
        assert await asyncio.gather(*map(talk, numbers)) == [[str(each), BODY] for each in numbers]

    async def test_a_time_limit_loses_no_message(self, server: dict[str, Any]) -> None:
        async with websockets.connect(**server) as socket:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await socket.recv()
            await socket.send("late")
            assert await socket.recv() == "late"

    async def test_beside_coros_own(self, server: dict[str, Any]) -> None:
        @coroutine
        def talk(number: int) -> Coroutine:
            socket = yield websockets.connect(**server)
            try:
                yield socket.send(str(number))
                yield IOLoop.current().run_in_executor(None, int, "7")
                return (yield socket.recv())
            finally:
                yield socket.close()

        @coroutine
        def main() -> Coroutine:
            return (yield {number: talk(number) for number in range(10)})

        assert await main() == {number: str(number) for number in range(10)}
