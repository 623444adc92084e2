"""ASGI applications on ``HTTPServer``: bare ones, that show every message."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Generator, Iterator
from typing import Any

import pytest

from coro.asgi import ASGIHandler, Lifespan, LifespanError
from coro.future import Future
from coro.gen import coroutine, moment, sleep
from coro.http import AsyncHTTPClient, HTTPError
from coro.http.server import HTTPServer
from coro.http.websocket import websocket_connect
from coro.loop import IOLoop
from coro.tcp import connect
from tests.support.virtual import closing_loop, turns

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
LAST = b"GET /last HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


@pytest.fixture
def loop() -> Iterator[IOLoop]:
    with closing_loop() as loop:
        yield loop
        AsyncHTTPClient().close()
        turns(loop, 3)
        left = loop.statistics()
        assert (left["handlers"], left["timers"], left["tasks"]) == (0, 0, 0)


@pytest.fixture
def serve(loop: IOLoop) -> Iterator[Callable[..., HTTPServer]]:
    servers: list[HTTPServer] = []

    def start(app: Any, **options: Any) -> HTTPServer:
        server = HTTPServer(ASGIHandler(app, **options), stream_body=True)
        server.listen(0, "127.0.0.1")
        servers.append(server)
        return server

    yield start
    for server in servers:
        loop.run_sync(functools.partial(server.shutdown, 0))


@pytest.fixture
def talk(loop: IOLoop) -> Iterator[Callable[[HTTPServer], Any]]:
    with contextlib.ExitStack() as stack:

        def begin(server: HTTPServer) -> Any:
            port = server.sockets[0].getsockname()[1]
            stream = loop.run_sync(lambda: connect("127.0.0.1", port))
            stack.callback(stream.close)
            return stream

        yield begin


def hear_all(loop: IOLoop, stream: Any) -> bytes:
    heard: bytes = loop.run_sync(stream.read_until_close)
    return heard


async def start(send: Any, status: int = 200, *headers: tuple[bytes, bytes]) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [*headers]})


async def end(send: Any, body: bytes = b"") -> None:
    await send({"type": "http.response.body", "body": body})


def test_the_scope(loop: IOLoop, serve: Any, talk: Any) -> None:
    scopes: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scopes.append(scope)
        scope["state"]["changed"] = True
        await start(send, 204)
        await end(send)

    server = serve(app, root_path="/api", state={"db": 1})
    stream = talk(server)
    stream.write(
        b"GET /a%20b?c=%20 HTTP/1.1\r\nHost: a\r\nX-Some:  y \r\nConnection: close\r\n\r\n"
    )
    assert hear_all(loop, stream).startswith(b"HTTP/1.1 204 No Content\r\n")
    (scope,) = scopes
    assert scope.pop("client")[0] == "127.0.0.1"
    assert scope == {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": "/a b",
        "raw_path": b"/a%20b",
        "query_string": b"c=%20",
        "root_path": "/api",
        "headers": [(b"host", b"a"), (b"x-some", b"y"), (b"connection", b"close")],
        "server": server.sockets[0].getsockname(),
        "state": {"db": 1, "changed": True},
    }
    assert server.handler.state == {"db": 1}


@pytest.mark.parametrize("pause", [False, True])
def test_a_whole_response(loop: IOLoop, serve: Any, talk: Any, pause: bool) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if pause:
            await sleep(1)
        await start(send, 201, (b"content-type", b"text/plain"), (b"content-length", b"2"))
        await end(send, b"hi")

    stream = talk(serve(app))
    stream.write(GET + LAST)
    heard = hear_all(loop, stream)
    assert heard.count(b"HTTP/1.1 201 Created\r\ncontent-type: text/plain\r\n") == 2
    assert heard.count(b"Content-Length: 2\r\n\r\nhi") == 2


def test_a_streamed_response(loop: IOLoop, serve: Any, talk: Any) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await start(send)
        for piece in (b"one", b"two"):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            await moment
        await end(send)

    stream = talk(serve(app))
    stream.write(GET + LAST)
    assert hear_all(loop, stream).count(b"\r\n\r\n3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n") == 2


def test_a_streamed_response_of_known_length(loop: IOLoop, serve: Any, talk: Any) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await start(send, 200, (b"content-length", b"6"))
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        await end(send, b"two")

    stream = talk(serve(app))
    stream.write(LAST)
    assert hear_all(loop, stream).endswith(b"Content-Length: 6\r\n\r\nonetwo")


def test_a_request_body(loop: IOLoop, serve: Any, talk: Any) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            assert message["type"] == "http.request"
            body += message["body"]
            more = message["more_body"]
        await start(send)
        await end(send, body)

    stream = talk(serve(app))
    stream.write(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
    turns(loop, 5)
    stream.write(b"3\r\nabc\r\n")
    turns(loop, 5)
    stream.write(b"1\r\nd\r\n0\r\n\r\n" + LAST)
    heard = hear_all(loop, stream)
    assert b"\r\n\r\nabcdHTTP/1.1 200" in heard


def test_receive_tells_of_a_client_that_goes(loop: IOLoop, serve: Any, talk: Any) -> None:
    told: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        told.append(await receive())
        told.append(await receive())

    stream = talk(serve(app))
    stream.write(GET)
    turns(loop, 5)
    assert told == [{"type": "http.request", "body": b"", "more_body": False}]
    stream.close()
    turns(loop, 5)
    assert told[1:] == [{"type": "http.disconnect"}]


def test_receive_ends_with_the_response(loop: IOLoop, serve: Any, talk: Any) -> None:
    told: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        @coroutine
        def listen() -> Generator[Any, Any, None]:
            yield receive()
            told.append((yield receive()))

        listening = listen()
        await sleep(1)
        await start(send)
        await end(send)
        await listening

    stream = talk(serve(app))
    stream.write(LAST)
    assert hear_all(loop, stream).startswith(b"HTTP/1.1 200")
    turns(loop, 5)
    assert told == [{"type": "http.disconnect"}]


def test_work_after_the_response_holds_up_nobody(loop: IOLoop, serve: Any, talk: Any) -> None:
    blocked: Future[None] = Future()
    ended: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await start(send)
        await end(send)
        if scope["path"] == "/":
            await blocked
        ended.append(scope["path"])

    server = serve(app)
    stream = talk(server)
    stream.write(GET + LAST)
    assert hear_all(loop, stream).count(b"HTTP/1.1 200") == 2
    assert ended == ["/last"]
    assert len(server.handler.tasks) == 1
    blocked.set_result(None)
    turns(loop, 3)
    assert ended == ["/last", "/"]
    assert not server.handler.tasks


@pytest.mark.parametrize("pause", [False, True])
@pytest.mark.parametrize("fault", ["raises", "returns", "start only"])
def test_an_application_that_fails(
    loop: IOLoop,
    serve: Any,
    talk: Any,
    caplog: pytest.LogCaptureFixture,
    pause: bool,
    fault: str,
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if pause:
            await moment
        if fault == "raises":
            raise ValueError("mine")
        if fault == "start only":
            await start(send)

    stream = talk(serve(app))
    stream.write(GET + LAST)
    assert hear_all(loop, stream).count(b"HTTP/1.1 500") == 2
    assert ("ValueError: mine" if fault == "raises" else "without having completed") in caplog.text


def test_a_failure_after_the_response(
    loop: IOLoop, serve: Any, talk: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await start(send)
        await end(send)
        await moment
        raise ValueError("mine")

    stream = talk(serve(app))
    stream.write(LAST)
    assert hear_all(loop, stream).startswith(b"HTTP/1.1 200")
    turns(loop, 3)
    assert "Exception in the ASGI application" in caplog.text


def test_a_failure_in_the_middle_of_a_response(
    loop: IOLoop, serve: Any, talk: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await start(send)
        await send({"type": "http.response.body", "body": b"part", "more_body": True})
        raise ValueError("mine")

    stream = talk(serve(app))
    stream.write(LAST)
    assert not hear_all(loop, stream).endswith(b"0\r\n\r\n")
    assert "ValueError: mine" in caplog.text


@pytest.mark.parametrize(
    "field", [(b"x", b"a\r\nevil: 1"), (b"x y", b"z"), (b"x", b"\0"), (b"x\n", b"z")]
)
def test_fields_that_may_not_be_written_out(
    loop: IOLoop, serve: Any, talk: Any, caplog: pytest.LogCaptureFixture, field: Any
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await start(send, 200, field)
        await end(send)

    stream = talk(serve(app))
    stream.write(LAST)
    heard = hear_all(loop, stream)
    assert heard.startswith(b"HTTP/1.1 500")
    assert b"evil" not in heard


def test_a_stop_gives_the_application_up(loop: IOLoop, serve: Any, talk: Any) -> None:
    ended: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            await sleep(1000)
        finally:
            ended.append("cancelled")

    server = serve(app)
    talk(server).write(GET)
    turns(loop, 5)
    loop.run_sync(lambda: server.shutdown(1))
    assert ended == ["cancelled"]


class TestLifespan:
    def run(self, loop: IOLoop, app: Any) -> Any:
        lifespan = Lifespan(app)

        @coroutine
        def main() -> Generator[Any, Any, None]:
            yield lifespan.startup()
            yield lifespan.shutdown()

        loop.run_sync(main)
        return lifespan

    def test_both_ends(self, loop: IOLoop) -> None:
        seen: list[str] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            assert scope["type"] == "lifespan"
            for what in ("startup", "shutdown"):
                message = await receive()
                seen.append(message["type"])
                await moment
                scope["state"][what] = True
                await send({"type": f"lifespan.{what}.complete"})

        lifespan = self.run(loop, app)
        assert seen == ["lifespan.startup", "lifespan.shutdown"]
        assert lifespan.state == {"startup": True, "shutdown": True}

    def test_an_application_that_knows_none(self, loop: IOLoop) -> None:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            assert scope["type"] == "http"

        self.run(loop, app)

    @pytest.mark.parametrize("what", ["startup", "shutdown"])
    def test_failures(self, loop: IOLoop, what: str) -> None:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            for each in ("startup", "shutdown"):
                await receive()
                if each == what:
                    await send({"type": f"lifespan.{each}.failed", "message": "no database"})
                    return
                await send({"type": f"lifespan.{each}.complete"})

        with pytest.raises(LifespanError, match="no database"):
            self.run(loop, app)


class TestWebSockets:
    def dial(self, loop: IOLoop, server: HTTPServer, path: str = "/", **options: Any) -> Any:
        url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}{path}"
        return loop.run_sync(lambda: websocket_connect(url, **options))

    def test_there_and_back(self, loop: IOLoop, serve: Any) -> None:
        scopes: list[Any] = []
        told: list[Any] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            scopes.append(scope)
            assert await receive() == {"type": "websocket.connect"}
            await send(
                {
                    "type": "websocket.accept",
                    "subprotocol": "b",
                    "headers": [(b"x-one", b"1"), (b"set-cookie", b"a=1"), (b"set-cookie", b"b=2")],
                }
            )
            while (message := await receive())["type"] == "websocket.receive":
                told.append(message)
                await send(
                    {"type": "websocket.send", "text": None, "bytes": None}
                    | {key: message[key] for key in ("text", "bytes") if key in message}
                )
            told.append(message)
            assert await receive() == message
            with pytest.raises(OSError):
                await send({"type": "websocket.send", "text": "late"})

        server = serve(
            app, root_path="/api", state={"db": 1}, websocket_options={"compression_options": {}}
        )
        connection = self.dial(
            loop, server, "/a%20b?c=%20", subprotocols=["a", "b"], compression_options={}
        )
        assert connection.selected_subprotocol == "b"
        assert connection.response.headers["X-One"] == "1"
        assert connection.response.headers.get_list("Set-Cookie") == ["a=1", "b=2"]
        assert "Sec-WebSocket-Extensions" in connection.response.headers
        for sent in ("text", b"bytes", "", b""):
            connection.write_message(sent)
            assert loop.run_sync(connection.read_message) == sent
        loop.run_sync(lambda: connection.close(4000, "bye"))
        assert told == [
            {"type": "websocket.receive", "text": "text"},
            {"type": "websocket.receive", "bytes": b"bytes"},
            {"type": "websocket.receive", "text": ""},
            {"type": "websocket.receive", "bytes": b""},
            {"type": "websocket.disconnect", "code": 4000, "reason": "bye"},
        ]
        (scope,) = scopes
        for key in ("client", "headers"):
            assert scope.pop(key)
        assert scope == {
            "type": "websocket",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "scheme": "ws",
            "path": "/a b",
            "raw_path": b"/a%20b",
            "query_string": b"c=%20",
            "root_path": "/api",
            "server": server.sockets[0].getsockname(),
            "subprotocols": ["a", "b"],
            "state": {"db": 1},
            "extensions": {"websocket.http.response": {}},
        }

    @pytest.mark.parametrize("pause", [False, True])
    def test_closed_by_the_application(self, loop: IOLoop, serve: Any, pause: bool) -> None:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            await receive()
            if pause:
                await moment
            await send({"type": "websocket.accept"})
            await send({"type": "websocket.send", "text": "last"})
            await send({"type": "websocket.close", "code": 3000, "reason": "enough"})
            assert (await receive())["code"] == 3000

        connection = self.dial(loop, serve(app))
        assert loop.run_sync(connection.read_message) == "last"
        assert loop.run_sync(connection.read_message) is None
        assert (connection.close_code, connection.close_reason) == (3000, "enough")

    @pytest.mark.parametrize("returns", [False, True])
    def test_one_that_ends_without_closing(
        self, loop: IOLoop, serve: Any, returns: bool, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            await receive()
            await send({"type": "websocket.accept"})
            await moment
            if not returns:
                raise ValueError("mine")

        connection = self.dial(loop, serve(app))
        assert loop.run_sync(connection.read_message) is None
        assert connection.close_code == (1000 if returns else 1011)
        assert ("ValueError: mine" in caplog.text) == (not returns)

    def test_denied(self, loop: IOLoop, serve: Any) -> None:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            await receive()
            await send({"type": "websocket.close", "code": 4000})
            assert (await receive())["type"] == "websocket.disconnect"

        with pytest.raises(HTTPError) as caught:
            self.dial(loop, serve(app))
        assert caught.value.code == 403

    def test_denied_with_a_response(self, loop: IOLoop, serve: Any) -> None:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            await receive()
            start = {"type": "websocket.http.response.start", "status": 401}
            await send({**start, "headers": [(b"www-authenticate", b"Basic")]})
            body = {"type": "websocket.http.response.body"}
            await send({**body, "body": b"who ", "more_body": True})
            await send({**body, "body": b"are you"})

        with pytest.raises(HTTPError) as caught:
            self.dial(loop, serve(app))
        assert caught.value.code == 401
        assert caught.value.response.headers["WWW-Authenticate"] == "Basic"
        assert caught.value.response.body == b"who are you"

    @pytest.mark.parametrize("fault", ["raises", "returns", "sends first", "strange"])
    def test_one_that_fails_before(
        self, loop: IOLoop, serve: Any, fault: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            if fault == "raises":
                raise ValueError("mine")
            if fault == "sends first":
                await send({"type": "websocket.send", "text": "x"})
            if fault == "strange":
                await send({"type": "http.response.start"})

        with pytest.raises(HTTPError) as caught:
            self.dial(loop, serve(app))
        assert caught.value.code == 500
        assert caplog.records

    def test_not_a_handshake(self, loop: IOLoop, serve: Any, talk: Any) -> None:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            raise AssertionError

        stream = talk(serve(app))
        stream.write(GET[:-2] + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        head = loop.run_sync(lambda: stream.read_until(b"\r\n\r\n"))
        assert head.startswith(b"HTTP/1.1 426 ")

    @pytest.mark.parametrize(("allowed", "opens"), [("*", True), (None, False)])
    def test_origins(self, loop: IOLoop, serve: Any, allowed: Any, opens: bool) -> None:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "websocket.accept"})

        server = serve(app, allowed_origins=allowed)
        headers = {"Origin": "https://elsewhere.example"}
        if opens:
            loop.run_sync(self.dial(loop, server, headers=headers).close)
        else:
            with pytest.raises(HTTPError, match="403"):
                self.dial(loop, server, headers=headers)

    def test_a_stop(self, loop: IOLoop, serve: Any) -> None:
        told: list[Any] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await receive()
            await send({"type": "websocket.accept"})
            told.append(await receive())

        server = serve(app)
        connection = self.dial(loop, server)
        stopping = server.shutdown(60)
        assert loop.run_sync(connection.read_message) is None
        assert connection.close_code == 1001
        loop.run_sync(lambda: stopping)
        assert told[0]["type"] == "websocket.disconnect"
        assert told[0]["code"] == 1001

    def test_a_stop_that_an_application_ignores(self, loop: IOLoop, serve: Any) -> None:
        ended: list[str] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "websocket.accept"})
            try:
                await sleep(1000)
            finally:
                ended.append("cancelled")

        server = serve(app)
        connection = self.dial(loop, server)
        loop.run_sync(lambda: server.shutdown(1))
        assert ended == ["cancelled"]
        assert loop.run_sync(connection.read_message) is None
