"""WebSockets: opening, messages, closing, keeping alive; both sides, and each beside raw bytes."""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import json
import logging
import re
import sys
from collections.abc import Callable, Generator, Iterator
from typing import Any

import pytest

from coro.errors import (
    HTTPClosedError,
    HTTPConnectError,
    HTTPError,
    HTTPProtocolError,
    HTTPTimeoutError,
    StreamClosedError,
    WebSocketClosedError,
)
from coro.future import Future
from coro.gen import coroutine, moment, sleep
from coro.http import AsyncHTTPClient, HTTPServer, HTTPServerRequest, Router
from coro.http.handshake import accept_value
from coro.http.websocket import WebSocketConnection, WebSocketHandler, websocket_connect
from coro.locks import Event
from coro.loop import IOLoop
from coro.stream import IOStream
from coro.tcp import connect
from tests.http.serving import Peer
from tests.support.authority import Authority
from tests.support.frames import MASK, closing, frame
from tests.support.hosting import of_the_system
from tests.support.leaks import count_fds
from tests.support.virtual import closing_loop, step, turns

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
OPENING = (
    "GET /chat HTTP/1.1\r\nHost: a.example\r\n"
    "Upgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n"
    f"Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n"
)


@pytest.fixture
def loop() -> Iterator[IOLoop]:
    with closing_loop() as loop:
        yield loop
        AsyncHTTPClient().close()
        turns(loop, 5)
        left = loop.statistics()
        assert (left["handlers"], left["timers"], left["tasks"]) == (0, 0, 0)


@pytest.fixture
def listen(loop: IOLoop) -> Iterator[Callable[..., int]]:
    """``listen(handler)`` starts an ``HTTPServer`` on the loop, and gives its port."""
    servers: list[HTTPServer] = []

    def start(handler: Any, **options: Any) -> int:
        server = HTTPServer(handler, **options)
        server.listen(0, "127.0.0.1")
        servers.append(server)
        return int(server.sockets[0].getsockname()[1])

    start.servers = servers  # type: ignore[attr-defined]
    yield start
    for server in servers:
        loop.run_sync(functools.partial(server.shutdown, 0))


@coroutine
def echo(connection: WebSocketConnection) -> Generator[Any, Any, None]:
    while (message := (yield connection.read_message())) is not None:
        yield connection.write_message(message)


@coroutine
def hang(connection: WebSocketConnection) -> Generator[Any, Any, None]:
    yield Future()


class Raw:
    """A client that says what a test says, byte by byte."""

    def __init__(self, loop: IOLoop, port: int) -> None:
        self.loop = loop
        self.stream: IOStream = loop.run_sync(lambda: connect("127.0.0.1", port))

    def close(self) -> None:
        self.stream.close()

    def say(self, data: bytes | str) -> None:
        self.stream.write(data.encode() if isinstance(data, str) else data)

    def open(self, *fields: str, after: bytes = b"") -> bytes:
        """Ask for a WebSocket; return the head of the answer."""
        head = OPENING + "".join(f"{field}\r\n" for field in fields) + "\r\n"
        self.say(head.encode() + after)
        return self.head()

    def head(self) -> bytes:
        head: bytes = self.loop.run_sync(lambda: self.stream.read_until(b"\r\n\r\n"))
        return head

    def hear(self, data: bytes) -> None:
        """The very bytes that come next."""
        heard = self.loop.run_sync(lambda: self.stream.read_bytes(len(data)))
        assert heard == data

    def hear_all(self) -> bytes:
        heard: bytes = self.loop.run_sync(self.stream.read_until_close)
        return heard


@pytest.fixture
def raw(loop: IOLoop) -> Iterator[Callable[[int], Raw]]:
    with contextlib.ExitStack() as stack:
        yield lambda port: stack.enter_context(contextlib.closing(Raw(loop, port)))


def url(port: int, path: str = "/") -> str:
    return f"ws://127.0.0.1:{port}{path}"


Connect = Callable[..., WebSocketConnection]


@pytest.fixture
def dial(loop: IOLoop) -> Iterator[Connect]:
    """``dial(port, ...)`` runs the loop until a WebSocket is open."""
    opened: list[WebSocketConnection] = []

    def run(port: int, path: str = "/", **options: Any) -> WebSocketConnection:
        made: WebSocketConnection = loop.run_sync(
            lambda: websocket_connect(url(port, path), **options)
        )
        opened.append(made)
        return made

    yield run
    for each in opened:
        each.leave(1001)
    turns(loop, 5)


def f(opcode: int, payload: bytes = b"", **more: Any) -> bytes:
    return frame(opcode, payload, mask=MASK, **more)


def until(loop: IOLoop, what: Callable[[], Any]) -> None:
    """Run turns until something is so."""
    for _ in range(2000):
        if what():
            return
        turns(loop)
    raise AssertionError("it does not come to that")


class TestMessages:
    @pytest.mark.parametrize("compression", [None, {}, {"compression_level": 1, "mem_level": 5}])
    def test_there_and_back(
        self, loop: IOLoop, listen: Any, dial: Connect, compression: Any
    ) -> None:
        port = listen(WebSocketHandler(echo, compression_options=compression))
        connection = dial(port, compression_options=compression)
        response = connection.response
        assert response is not None
        assert ("Sec-WebSocket-Extensions" in response.headers) == (compression is not None)

        @coroutine
        def main() -> Generator[Any, Any, None]:
            for message in ("hello", "grüß€\U0001f600", b"\x00\xff", "", b"", b"x" * 1_000_000):
                yield connection.write_message(message)
                assert (yield connection.read_message()) == message
            connection.write_message({"a": ["ä"]})
            assert json.loads((yield connection.read_message())) == {"a": ["ä"]}
            connection.write_message("text", binary=True)
            assert (yield connection.read_message()) == b"text"
            connection.write_message("grüß".encode(), binary=False)
            assert (yield connection.read_message()) == "grüß"
            connection.write_message(bytearray(b"ab"))
            assert (yield connection.read_message()) == b"ab"
            connection.write_message(memoryview(b"abcd")[::2])
            assert (yield connection.read_message()) == b"ac"
            yield connection.close()
            assert (yield connection.read_message()) is None

        loop.run_sync(main)

    def test_what_cannot_be_sent(self, listen: Any, dial: Connect) -> None:
        connection = dial(listen(WebSocketHandler(echo)))
        with pytest.raises(TypeError, match="a message is text"):
            connection.write_message(3)  # type: ignore[arg-type]
        with pytest.raises(ValueError):
            connection.write_message(b"\xff", binary=False)
        with pytest.raises(ValueError):
            connection.write_message("\ud800")
        with pytest.raises(TypeError):
            connection.write_message({"a": object()})

    def test_in_async_def(self, loop: IOLoop, listen: Any) -> None:
        @WebSocketHandler
        async def count(connection: WebSocketConnection) -> None:
            async for message in connection:
                assert isinstance(message, str)
                for n in range(int(message)):
                    await connection.write_message(str(n))
                break

        port = listen(count)

        async def main() -> list[Any]:
            async with await websocket_connect(url(port)) as connection:
                await connection.write_message("5")
                found = [message async for message in connection]
            assert (connection.close_code, connection.closed()) == (1000, True)
            return found

        assert loop.run_sync(main) == ["0", "1", "2", "3", "4"]

    def test_an_error_in_async_with_is_told_as_going_away(self, loop: IOLoop, listen: Any) -> None:
        told: list[Any] = []

        @WebSocketHandler
        @coroutine
        def handler(connection: WebSocketConnection) -> Generator[Any, Any, None]:
            assert (yield connection.read_message()) is None
            told.append(connection.close_code)

        port = listen(handler)

        async def main() -> None:
            async with await websocket_connect(url(port)):
                raise KeyError

        with pytest.raises(KeyError):
            loop.run_sync(main)
        assert told == [1001]

    def test_by_a_route(self, loop: IOLoop, listen: Any, dial: Connect) -> None:
        router = Router()

        @coroutine
        def room(connection: WebSocketConnection, name: str) -> Generator[Any, Any, None]:
            request = connection.request
            assert request is not None
            yield connection.write_message(f"{name} {request.query} {request.headers['X-Who']}")

        router.add("GET", "/rooms/{name}", WebSocketHandler(room))
        connection = dial(listen(router), "/rooms/caf%C3%A9?a=1", headers={"X-Who": "me"})
        assert loop.run_sync(connection.read_message) == "café a=1 me"
        assert loop.run_sync(connection.read_message) is None
        assert connection.close_code == 1000

    def test_a_function_that_is_none(self, loop: IOLoop, listen: Any, dial: Connect) -> None:
        said: list[str] = []

        def greet(connection: WebSocketConnection) -> None:
            said.append("hello")
            connection.write_message("hello")

        connection = dial(listen(WebSocketHandler(greet)))
        assert loop.run_sync(connection.read_message) == "hello"
        assert loop.run_sync(connection.read_message) is None

    def test_frames_that_come_with_the_handshake(
        self, loop: IOLoop, listen: Any, raw: Any, serve: Any, dial: Connect
    ) -> None:
        client = raw(listen(WebSocketHandler(echo)))
        client.open(after=f(1, b"early"))
        client.hear(frame(1, b"early"))

        def script(peer: Peer) -> Generator[Any, Any, None]:
            request = yield from peer.request()
            peer.send(answer(request) + frame(1, b"at once") + closing(1000))
            yield from peer.silence()

        connection = dial(serve(script).port)
        assert loop.run_sync(connection.read_message) == "at once"
        assert loop.run_sync(connection.read_message) is None

    def test_a_read_that_is_cancelled_takes_nothing(
        self, loop: IOLoop, listen: Any, dial: Connect
    ) -> None:
        connection = dial(listen(WebSocketHandler(echo)))
        reading = connection.read_message()
        turns(loop, 2)
        reading.cancel()
        turns(loop, 2)
        assert reading.cancelled()
        reading = connection.read_message()
        connection.write_message("a")
        # In the very turn in which the message has come.
        until(loop, lambda: connection._messages)
        reading.cancel()
        turns(loop, 3)
        taken = [] if reading.cancelled() else [reading.result()]
        if not taken:
            taken.append(loop.run_sync(connection.read_message))
        assert taken == ["a"]

    def test_one_reader_at_a_time(self, loop: IOLoop, listen: Any, dial: Connect) -> None:
        connection = dial(listen(WebSocketHandler(echo)))
        first = connection.read_message()
        with pytest.raises(RuntimeError, match="somebody is reading"):
            loop.run_sync(connection.read_message)
        connection.write_message("a")
        assert loop.run_sync(lambda: first) == "a"


def answer(request: bytes, *fields: str, accept: str | None = None) -> bytes:
    """A server's 101."""
    found = re.search(rb"(?i)sec-websocket-key: (\S+)", request)
    assert found
    lines = [
        "HTTP/1.1 101 Switching Protocols",
        "Upgrade: WebSocket",
        "Connection: upgrade",
        f"Sec-WebSocket-Accept: {accept or accept_value(found[1].decode())}",
        *fields,
        "",
        "",
    ]
    return "\r\n".join(lines).encode()


class TestOpeningOnTheServer:
    def test_the_example_of_the_standard(self, listen: Any, raw: Any) -> None:
        head = raw(listen(WebSocketHandler(echo))).open()
        assert head.startswith(b"HTTP/1.1 101 Switching Protocols\r\n")
        assert b"accept: s3pplmbitxaq9kygzzhzrbk+xoo=\r\n" in head.lower()
        assert b"content-length" not in head.lower()

    @pytest.mark.parametrize(
        ("request_", "status", "field"),
        [
            ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", 426, b"upgrade: websocket"),
            (OPENING.replace("Upgrade: websocket", "Upgrade: h2c") + "\r\n", 426, b"upgrade: "),
            (OPENING.replace("keep-alive, Upgrade", "keep-alive") + "\r\n", 426, b"upgrade: "),
            (OPENING.replace("Version: 13", "Version: 8") + "\r\n", 426, b"version: 13"),
            (OPENING.replace("Sec-WebSocket-Version: 13\r\n", "") + "\r\n", 426, b"version: 13"),
            (OPENING.replace(KEY, "c2hvcnQ=") + "\r\n", 400, b""),
            (OPENING.replace(KEY, "*" * 24) + "\r\n", 400, b""),
            (OPENING.replace(f"Sec-WebSocket-Key: {KEY}\r\n", "") + "\r\n", 400, b""),
            (OPENING.replace("GET", "PUT") + "Content-Length: 0\r\n\r\n", 400, b""),
            (OPENING + "Content-Length: 2\r\n\r\nab", 400, b""),
            (OPENING + "Origin: https://evil.example\r\n\r\n", 403, b""),
            (OPENING + "Origin: null\r\n\r\n", 403, b""),
            (OPENING + "Origin: http://a.example:81\r\n\r\n", 403, b""),
        ],
    )
    def test_refused(self, listen: Any, raw: Any, request_: str, status: int, field: bytes) -> None:
        client = raw(listen(WebSocketHandler(echo)))
        client.say(request_)
        head = client.head()
        assert head.startswith(b"HTTP/1.1 %d " % status)
        assert field in head.lower()
        # The connection goes on.
        length = int(re.search(rb"Content-Length: (\d+)", head)[1])  # type: ignore[index]
        client.loop.run_sync(lambda: client.stream.read_bytes(length))
        assert b" 101 " in client.open()

    def test_a_body_that_is_not_read(self, listen: Any, raw: Any) -> None:
        client = raw(listen(WebSocketHandler(echo), stream_body=True))
        client.say(OPENING + "Content-Length: 2\r\n\r\n")
        assert client.head().startswith(b"HTTP/1.1 400 ")

    @pytest.mark.parametrize(
        ("allowed", "origin"),
        [
            (None, "http://a.example"),
            (None, "http://A.example"),
            (None, "http://a.example:80"),
            (["https://Other.example"], "https://other.example"),
            ("*", "null"),
            ("*", "https://evil.example"),
        ],
    )
    def test_origins_that_may(self, listen: Any, raw: Any, allowed: Any, origin: str) -> None:
        client = raw(listen(WebSocketHandler(echo, allowed_origins=allowed)))
        assert b" 101 " in client.open(f"Origin: {origin}")

    def test_the_own_origin_is_not_among_those_listed(self, listen: Any, raw: Any) -> None:
        client = raw(listen(WebSocketHandler(echo, allowed_origins=["https://other.example"])))
        assert b" 403 " in client.open("Origin: http://a.example")

    def test_subprotocols(self, listen: Any, raw: Any) -> None:
        port = listen(WebSocketHandler(echo, subprotocols=["v2", "v1"]))
        assert b"protocol: v2\r\n" in raw(port).open("Sec-WebSocket-Protocol: v1, v2, v3").lower()
        assert b"protocol:" not in raw(port).open("Sec-WebSocket-Protocol: v3").lower()

    @pytest.mark.parametrize(
        ("offer", "agreed"),
        [
            ("permessage-deflate", "permessage-deflate"),
            ("permessage-deflate; client_max_window_bits", "permessage-deflate"),
            (
                "permessage-deflate; server_max_window_bits=10",
                "permessage-deflate; server_max_window_bits=10",
            ),
            (
                'permessage-deflate; server_no_context_takeover; server_max_window_bits="9"',
                "permessage-deflate; server_no_context_takeover; server_max_window_bits=9",
            ),
            (
                "permessage-deflate; client_no_context_takeover",
                "permessage-deflate; client_no_context_takeover",
            ),
            (
                "permessage-deflate; server_max_window_bits=8, permessage-deflate",
                "permessage-deflate",
            ),
            ('x-foo; a="b, c;", permessage-deflate', "permessage-deflate"),
            ("permessage-deflate; server_max_window_bits=8", None),
            ("permessage-deflate; server_max_window_bits", None),
            ("permessage-deflate; server_max_window_bits=16", None),
            ("permessage-deflate; client_max_window_bits=16", None),
            ("permessage-deflate; server_no_context_takeover=1", None),
            ("permessage-deflate; a; a", None),
            ("permessage-deflate; unknown", None),
            ("permessage-bzip2", None),
            ('permessage-deflate; "', None),
            (";;;", None),
        ],
    )
    def test_compression(self, listen: Any, raw: Any, offer: str, agreed: str | None) -> None:
        head = raw(listen(WebSocketHandler(echo, compression_options={}))).open(
            f"Sec-WebSocket-Extensions: {offer}"
        )
        found = re.search(r"(?i)sec-websocket-extensions: (.*)\r\n", head.decode())
        assert (found and found[1]) == agreed

    def test_no_compression_unless_asked_for(self, listen: Any, raw: Any) -> None:
        head = raw(listen(WebSocketHandler(echo))).open(
            "Sec-WebSocket-Extensions: permessage-deflate"
        )
        assert b"extensions" not in head.lower()


class TestOpeningOnTheClient:
    def test_what_is_asked(self, loop: IOLoop, serve: Any) -> None:
        requests: list[bytes] = []

        def script(peer: Peer) -> Generator[Any, Any, None]:
            request = yield from peer.request()
            requests.append(request)
            peer.send(answer(request, "Sec-WebSocket-Protocol: b") + closing(1000))
            yield from peer.silence()

        port = serve(script).port
        connection = loop.run_sync(
            lambda: websocket_connect(
                url(port, "/p?q=1"),
                subprotocols=["a", "b"],
                headers={"Origin": "http://here", "Cookie": "k=v"},
            )
        )
        assert connection.selected_subprotocol == "b"
        assert connection.response.code == 101
        head = requests[0].decode().lower()
        assert head.startswith("get /p?q=1 http/1.1\r\n")
        for line in (
            f"host: 127.0.0.1:{port}",
            "upgrade: websocket",
            "connection: upgrade",
            "sec-websocket-version: 13",
            "sec-websocket-protocol: a, b",
            "origin: http://here",
            "cookie: k=v",
        ):
            assert f"\r\n{line}\r\n" in head
        assert "extensions" not in head
        loop.run_sync(connection.close)

    @pytest.mark.parametrize(
        ("reply", "error", "text"),
        [
            (lambda r: answer(r, accept=accept_value(KEY)), HTTPProtocolError, "Accept"),
            (
                lambda r: answer(r).replace(b"WebSocket\r\n", b"h2c\r\n", 1),
                HTTPProtocolError,
                "another",
            ),
            (
                lambda r: answer(r).replace(b"Connection: upgrade\r\n", b""),
                HTTPProtocolError,
                "Conn",
            ),
            (lambda r: answer(r, "Sec-WebSocket-Protocol: z"), HTTPProtocolError, "not offered"),
            (lambda r: answer(r, "Sec-WebSocket-Extensions: x"), HTTPProtocolError, "not offered"),
            (
                lambda r: answer(r, "Sec-WebSocket-Extensions: permessage-deflate"),
                HTTPProtocolError,
                "not offered",
            ),
            (
                lambda r: b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi",
                HTTPError,
                "no WebSocket",
            ),
            (lambda r: b"HTTP/1.1 403 No\r\nContent-Length: 2\r\n\r\nhi", HTTPError, "403"),
            (lambda r: b"garbage\r\n\r\n", HTTPProtocolError, "HTTP"),
            (lambda r: b"HTTP/1.1 101", HTTPClosedError, "closed"),
        ],
    )
    def test_refused(
        self, loop: IOLoop, serve: Any, reply: Any, error: type[Exception], text: str
    ) -> None:
        def script(peer: Peer) -> Generator[Any, Any, None]:
            request = yield from peer.request()
            yield peer.send(reply(request))

        server = serve(script)
        with pytest.raises(error, match=text) as caught:
            loop.run_sync(lambda: websocket_connect(url(server.port)))
        if type(caught.value) is HTTPError:
            assert caught.value.response.body == b"hi"
        until(loop, lambda: server.open == 0)

    @pytest.mark.parametrize(
        "parameters",
        [
            "permessage-deflate; client_max_window_bits=8",
            "permessage-deflate; client_max_window_bits",
            "permessage-deflate; server_max_window_bits=16",
            "permessage-deflate; server_max_window_bits",
            "permessage-deflate; unknown",
            "permessage-deflate; server_no_context_takeover=1",
            "permessage-deflate; a=1; a=2",
            "permessage-deflate, permessage-deflate",
        ],
    )
    def test_compression_that_makes_no_sense(
        self, loop: IOLoop, serve: Any, parameters: str
    ) -> None:
        def script(peer: Peer) -> Generator[Any, Any, None]:
            request = yield from peer.request()
            peer.send(answer(request, f"Sec-WebSocket-Extensions: {parameters}"))
            yield from peer.silence()

        with pytest.raises(HTTPProtocolError, match="extension"):
            loop.run_sync(
                lambda: websocket_connect(url(serve(script).port), compression_options={})
            )

    def test_compression_as_the_server_wants_it(self, loop: IOLoop, serve: Any) -> None:
        def script(peer: Peer) -> Generator[Any, Any, None]:
            request = yield from peer.request()
            peer.send(
                answer(
                    request,
                    "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits=9;"
                    " server_max_window_bits=8; server_no_context_takeover;"
                    " client_no_context_takeover",
                )
            )
            yield peer.stream.read_bytes(6 + 7)
            peer.send(frame(1, bytes.fromhex("f248cdc9c90700"), rsv=4) * 2 + closing(1000))
            yield from peer.silence()

        connection = loop.run_sync(
            lambda: websocket_connect(url(serve(script).port), compression_options={})
        )
        connection.write_message("Hello")
        assert loop.run_sync(connection.read_message) == "Hello"
        assert loop.run_sync(connection.read_message) == "Hello"
        assert loop.run_sync(connection.read_message) is None
        loop.run_sync(connection.close)

    @pytest.mark.parametrize(
        ("where", "options"),
        [
            ("http://localhost/", {}),
            ("localhost", {}),
            ("ws://localhost/", {"subprotocols": ["a", "a"]}),
            ("ws://localhost/", {"subprotocols": ["a b"]}),
            ("ws://localhost/", {"subprotocols": "ab"}),
            ("ws://localhost/", {"method": "POST", "body": b""}),
        ],
    )
    def test_what_makes_no_sense(self, loop: IOLoop, where: str, options: Any) -> None:
        with pytest.raises(ValueError):
            loop.run_sync(lambda: websocket_connect(where, **options))

    @pytest.mark.parametrize(
        "options",
        [
            {"max_message_size": 0},
            {"ping_interval": 0},
            {"ping_timeout": 0},
            {"close_timeout": -1},
            {"compression_options": {"level": 1}},
        ],
    )
    def test_options_that_make_no_sense(self, options: Any) -> None:
        with pytest.raises(ValueError):
            WebSocketHandler(echo, **options)

    def test_a_server_that_says_nothing(self, loop: IOLoop, serve: Any) -> None:
        server = serve(lambda peer: peer.silence())
        began = loop.time()
        with pytest.raises(HTTPTimeoutError):
            loop.run_sync(lambda: websocket_connect(url(server.port), request_timeout=7))
        assert loop.time() - began == pytest.approx(7)
        until(loop, lambda: server.open == 0)

    def test_nobody_there(self, loop: IOLoop, refused_port: int) -> None:
        with pytest.raises(HTTPConnectError):
            loop.run_sync(lambda: websocket_connect(url(refused_port)))

    def test_a_redirect(self, loop: IOLoop, serve: Any, listen: Any, dial: Connect) -> None:
        port = listen(WebSocketHandler(echo))

        def script(peer: Peer) -> Generator[Any, Any, None]:
            yield from peer.request()
            place = f"Location: http://127.0.0.1:{port}/\r\nContent-Length: 0\r\n\r\n"
            peer.send(b"HTTP/1.1 302 Found\r\n" + place.encode())
            yield from peer.silence()

        connection = dial(serve(script).port)
        connection.write_message("a")
        assert loop.run_sync(connection.read_message) == "a"

    @of_the_system  # Counts descriptors.
    @pytest.mark.parametrize("after", range(12))
    def test_cancelled_at_any_time(self, loop: IOLoop, listen: Any, after: int) -> None:
        fds = count_fds()
        connecting = websocket_connect(url(listen(WebSocketHandler(echo))))
        turns(loop, after)
        if not connecting.cancel():
            loop.run_sync(connecting.result().close)
        until(loop, lambda: loop.statistics()["tasks"] == 0)
        AsyncHTTPClient().close()
        turns(loop, 3)
        assert count_fds() == fds + 1

    def test_cancelled_in_the_turn_in_which_it_opens(self, loop: IOLoop, listen: Any) -> None:
        """Who waits is cancelled when the connection stands, and has not been told yet."""
        closed: list[int] = []

        @WebSocketHandler
        @coroutine
        def handler(connection: WebSocketConnection) -> Generator[Any, Any, None]:
            assert (yield connection.read_message()) is None
            closed.append(connection.close_code or 0)

        connecting = websocket_connect(url(listen(handler)))

        @coroutine
        def wait() -> Generator[Any, Any, None]:
            yield connecting

        waiting = wait()
        until(loop, connecting.done)
        if not waiting.done():
            waiting.cancel()
            until(loop, lambda: closed)
            assert closed == [1000]
        else:
            loop.run_sync(connecting.result().close)


class TestClosing:
    @pytest.mark.parametrize(("code", "reason"), [(1000, ""), (3001, "grüß"), (4999, "x" * 123)])
    def test_by_the_client(
        self, loop: IOLoop, listen: Any, dial: Connect, code: int, reason: str
    ) -> None:
        told: list[Any] = []

        @WebSocketHandler
        @coroutine
        def handler(connection: WebSocketConnection) -> Generator[Any, Any, None]:
            assert (yield connection.read_message()) is None
            told.append((connection.close_code, connection.close_reason))
            with pytest.raises(WebSocketClosedError, match=str(code)):
                connection.write_message("x")
            with pytest.raises(WebSocketClosedError):
                connection.ping()

        connection = dial(listen(handler))
        reading = connection.read_message()
        loop.run_sync(lambda: connection.close(code, reason))
        assert told == [(code, reason)]
        assert (connection.close_code, connection.close_reason) == (code, reason)
        assert loop.run_sync(lambda: reading) is None
        assert loop.run_sync(connection.read_message) is None
        assert loop.run_sync(connection.close) is None
        assert "closed code=" in repr(connection)

    def test_by_the_server(self, loop: IOLoop, listen: Any, dial: Connect) -> None:
        @WebSocketHandler
        @coroutine
        def handler(connection: WebSocketConnection) -> Generator[Any, Any, None]:
            connection.write_message("last")
            yield connection.close(4000, "enough")

        connection = dial(listen(handler))
        assert loop.run_sync(connection.read_message) == "last"
        assert loop.run_sync(connection.read_message) is None
        assert (connection.close_code, connection.close_reason) == (4000, "enough")

    def test_by_both_at_once(self, loop: IOLoop, listen: Any, dial: Connect) -> None:
        connections: list[WebSocketConnection] = []

        @WebSocketHandler
        @coroutine
        def handler(connection: WebSocketConnection) -> Generator[Any, Any, None]:
            connections.append(connection)
            yield connection.read_message()

        connection = dial(listen(handler))
        until(loop, lambda: connections)
        other = connections[0]
        closings = [connection.close(4001), other.close(4002)]
        loop.run_sync(lambda: closings)
        assert (connection.close_code, other.close_code) == (4002, 4001)

    def test_a_handler_that_fails(
        self, loop: IOLoop, listen: Any, dial: Connect, caplog: Any
    ) -> None:
        @WebSocketHandler
        @coroutine
        def handler(connection: WebSocketConnection) -> Generator[Any, Any, None]:
            yield connection.read_message()
            raise ZeroDivisionError

        connection = dial(listen(handler), "/where")
        connection.write_message("x")
        assert loop.run_sync(connection.read_message) is None
        assert connection.close_code == 1011
        (record,) = [r for r in caplog.records if r.name == "coro.application"]
        assert "/where" in record.getMessage()
        assert record.exc_info[0] is ZeroDivisionError

    def test_a_client_that_goes_is_no_failure(
        self, loop: IOLoop, listen: Any, dial: Connect, caplog: Any
    ) -> None:
        errors: list[Any] = []

        @WebSocketHandler
        @coroutine
        def handler(connection: WebSocketConnection) -> Generator[Any, Any, None]:
            try:
                while True:
                    yield connection.write_message("x" * 100_000)
                    yield moment
            except WebSocketClosedError as error:
                errors.append(error.code)
                raise

        connection = dial(listen(handler))
        connection._stream.abort()
        until(loop, lambda: errors)
        assert errors[0] == 1006
        turns(loop, 3)
        assert not [r for r in caplog.records if r.name == "coro.application"]

    @pytest.mark.parametrize(
        ("code", "reason"),
        [
            (999, ""),
            (1004, ""),
            (1005, ""),
            (1006, ""),
            (1014, ""),
            (1015, ""),
            (2999, ""),
            (5000, ""),
            (1000, "é" * 62),
        ],
    )
    def test_what_may_not_be_sent(
        self, loop: IOLoop, listen: Any, dial: Connect, code: int, reason: str
    ) -> None:
        connection = dial(listen(WebSocketHandler(echo)))
        with pytest.raises(ValueError):
            loop.run_sync(lambda: connection.close(code, reason))
        assert not connection.closed()

    def test_a_peer_that_does_not_answer(self, loop: IOLoop, listen: Any, raw: Any) -> None:
        ended: list[Any] = []

        @WebSocketHandler
        @coroutine
        def handler(connection: WebSocketConnection) -> Generator[Any, Any, None]:
            began = loop.time()
            yield connection.close(1001)
            ended.append((loop.time() - began, connection.close_code))

        client = raw(listen(handler))
        client.open()
        assert client.hear_all() == closing(1001)
        until(loop, lambda: ended)
        assert ended == [(pytest.approx(10), 1006)]

    def test_a_server_that_leaves_the_stream_open(
        self, loop: IOLoop, serve: Any, dial: Any
    ) -> None:
        def script(peer: Peer) -> Generator[Any, Any, None]:
            request = yield from peer.request()
            peer.send(answer(request))
            yield peer.stream.read_bytes(8)
            peer.send(closing(1000))
            yield from peer.silence()

        connection = dial(serve(script).port, close_timeout=3)
        began = loop.time()
        loop.run_sync(connection.close)
        assert loop.time() - began == pytest.approx(3)
        assert connection.close_code == 1000

    @pytest.mark.parametrize("rude", [False, True])
    def test_a_connection_that_is_lost(
        self, loop: IOLoop, listen: Any, raw: Any, rude: bool
    ) -> None:
        ended: list[Any] = []

        @WebSocketHandler
        @coroutine
        def handler(connection: WebSocketConnection) -> Generator[Any, Any, None]:
            assert (yield connection.read_message()) == "a"
            assert (yield connection.read_message()) is None
            ended.append((connection.close_code, connection.close_reason))

        client = raw(listen(handler))
        client.open(after=f(1, b"a"))
        if rude:
            client.stream.abort()
        else:
            client.close()
        until(loop, lambda: ended)
        ((code, reason),) = ended
        assert code == 1006
        assert ("reset" in reason) == rude

    @pytest.mark.parametrize(
        ("data", "code"),
        [(f(3), 1002), (frame(1, b"x"), 1002), (f(1, b"\xff"), 1007), (f(2, announced=2000), 1009)],
    )
    def test_a_peer_at_fault(
        self, loop: IOLoop, listen: Any, raw: Any, data: bytes, code: int
    ) -> None:
        ended: list[Any] = []

        @WebSocketHandler
        @coroutine
        def handler(connection: WebSocketConnection) -> Generator[Any, Any, None]:
            assert (yield connection.read_message()) is None
            ended.append(connection.close_code)

        client = raw(listen(WebSocketHandler(handler.function, max_message_size=1000)))
        client.open()
        # What it goes on to send does not keep it from hearing why.
        client.say(data + b"x" * 300_000)
        heard = client.hear_all()
        assert heard[0] == 0x88
        assert int.from_bytes(heard[2:4], "big") == code
        assert ended == [code]

    def test_the_peer_may_close_without_a_code(self, loop: IOLoop, listen: Any, raw: Any) -> None:
        client = raw(listen(WebSocketHandler(echo)))
        client.open(after=f(8))
        assert client.hear_all() == frame(8)

    def test_what_was_said_before_closing_is_read(
        self, loop: IOLoop, listen: Any, raw: Any
    ) -> None:
        client = raw(listen(WebSocketHandler(echo)))
        client.open(after=f(1, b"a") + f(1, b"b") + closing(1000, mask=MASK))
        assert client.hear_all().endswith(closing(1000))

    def test_no_more_is_sent_once_closing(self, loop: IOLoop, listen: Any, dial: Connect) -> None:
        connection = dial(listen(WebSocketHandler(echo)))
        closed = connection.close()
        with pytest.raises(WebSocketClosedError, match="this side is closing"):
            connection.write_message("x")
        assert issubclass(WebSocketClosedError, StreamClosedError)
        loop.run_sync(lambda: closed)

    def test_a_server_that_stops_says_so(self, loop: IOLoop, listen: Any, dial: Connect) -> None:
        connection = dial(listen(WebSocketHandler(echo)))
        (server,) = listen.servers
        began = loop.time()
        stopping = server.shutdown(60)
        assert loop.run_sync(connection.read_message) is None
        assert connection.close_code == 1001
        loop.run_sync(lambda: stopping)
        assert loop.time() - began < 1

    def test_one_that_opens_while_the_server_stops(
        self, loop: IOLoop, listen: Any, raw: Any
    ) -> None:
        client = raw(listen(WebSocketHandler(echo)))
        turns(loop, 2)
        stopping = listen.servers[0].shutdown(60)
        assert b" 101 " in client.open()
        assert client.loop.run_sync(lambda: client.stream.read_bytes(4))[:1] == b"\x88"
        client.say(closing(1001, mask=MASK))
        loop.run_sync(lambda: stopping)

    def test_a_handler_that_does_not_end_is_cancelled(
        self, loop: IOLoop, listen: Any, dial: Connect
    ) -> None:
        connection = dial(listen(WebSocketHandler(hang)))
        loop.run_sync(lambda: listen.servers[0].shutdown(5))
        assert loop.run_sync(connection.read_message) is None
        assert connection.close_code == 1001

    def test_the_time_limit_of_handlers_is_not_its(
        self, loop: IOLoop, listen: Any, dial: Connect
    ) -> None:
        @coroutine
        def late(request: HTTPServerRequest) -> Generator[Any, Any, Any]:
            yield sleep(1)
            return (yield WebSocketHandler(echo)(request))

        for handler in (WebSocketHandler(echo), late):
            connection = dial(listen(handler, handler_timeout=5))
            loop.run_sync(lambda: sleep(60))
            connection.write_message("still there")
            assert loop.run_sync(connection.read_message) == "still there"


class TestPressure:
    def test_a_peer_that_does_not_read(self, loop: IOLoop, listen: Any, raw: Any) -> None:
        sent: list[int] = []

        @WebSocketHandler
        @coroutine
        def handler(connection: WebSocketConnection) -> Generator[Any, Any, None]:
            for n in range(1000):
                yield connection.write_message(b"x" * 100_000)
                sent.append(n)

        client = raw(listen(handler))
        client.open()
        turns(loop, 300)
        stuck = len(sent)
        assert stuck < 900
        client.loop.run_sync(lambda: client.stream.read_bytes(30_000_000))
        assert len(sent) > stuck

    def test_messages_that_nobody_takes(self, loop: IOLoop, listen: Any, dial: Connect) -> None:
        take = Event()
        taken: list[Any] = []
        held: list[WebSocketConnection] = []

        @WebSocketHandler
        @coroutine
        def handler(connection: WebSocketConnection) -> Generator[Any, Any, None]:
            held.append(connection)
            yield take.wait()
            while (message := (yield connection.read_message())) is not None:
                taken.append(message)

        connection = dial(listen(handler), ping_interval=None)
        messages = [b"%d" % n + b"x" * 50_000 for n in range(1000)]
        writes = [connection.write_message(message) for message in messages]
        turns(loop, 300)
        # As much as may be held, one more, and what the system keeps on its way.
        assert len(held[0]._messages) == 2
        assert not writes[-1].done()
        # Minutes in which the client seems silent, because nothing is read.
        loop.run_sync(lambda: sleep(300))
        take.set()
        loop.run_sync(lambda: writes[-1])
        loop.run_sync(connection.close)
        assert taken == messages

    def test_small_messages_weigh_too(self, loop: IOLoop, listen: Any, raw: Any) -> None:
        held: list[WebSocketConnection] = []

        @WebSocketHandler
        @coroutine
        def handler(connection: WebSocketConnection) -> Generator[Any, Any, None]:
            held.append(connection)
            yield Future()

        client = raw(listen(handler))
        client.open(after=f(1) * 60_000)
        turns(loop, 300)
        assert 100 < len(held[0]._messages) < 600

    def test_pings_of_a_peer_that_does_not_read(self, loop: IOLoop, listen: Any, raw: Any) -> None:
        held: list[WebSocketConnection] = []

        @WebSocketHandler
        @coroutine
        def handler(connection: WebSocketConnection) -> Generator[Any, Any, None]:
            held.append(connection)
            yield connection.read_message()

        client = raw(listen(handler))
        client.open()
        pings = f(9, b"x" * 125) * 1000
        worst = 0
        for _ in range(300):
            if not client.stream.writing():
                client.say(pings)
            turns(loop)
            worst = max(worst, held[0]._stream.unsent())
        assert client.stream.writing()
        assert worst < 500_000
        # It is given up: nothing of it goes on.
        until_closed(loop, held[0])
        assert held[0].close_code == 1006

    def test_others_get_their_turn(self, loop: IOLoop, listen: Any, raw: Any) -> None:
        """A chunk of ten thousand frames is not dealt with in one go."""
        client = raw(listen(WebSocketHandler(echo)))
        client.open()
        client.say(f(10) * 9000)
        client.say(f(1, b"end"))
        began = loop.statistics()["turns"]
        client.hear(frame(1, b"end"))
        assert loop.statistics()["turns"] - began > 100


def until_closed(loop: IOLoop, connection: WebSocketConnection) -> None:
    for _ in range(2000):
        if connection._task is None:
            return
        step(loop)
    raise AssertionError(f"still open: {connection!r}")


class TestKeepingAlive:
    def test_a_ping_is_answered_though_nobody_reads(
        self, loop: IOLoop, listen: Any, raw: Any
    ) -> None:
        client = raw(listen(WebSocketHandler(hang)))
        client.open(after=f(9, b"are you there"))
        client.hear(frame(10, b"are you there"))

    def test_the_time_of_a_ping(self, loop: IOLoop, listen: Any, dial: Connect) -> None:
        connection = dial(listen(WebSocketHandler(echo)))
        pings = [connection.ping(), connection.ping("two"), connection.ping(b"three")]
        assert all(0 <= seconds < 1 for seconds in loop.run_sync(lambda: pings))
        connection.ping("same")
        with pytest.raises(ValueError):
            connection.ping("same")
        with pytest.raises(ValueError):
            connection.ping(b"x" * 126)

    def test_a_pong_answers_the_pings_before_it(self, loop: IOLoop, serve: Any, dial: Any) -> None:
        def script(peer: Peer) -> Generator[Any, Any, None]:
            request = yield from peer.request()
            peer.send(answer(request) + frame(10, b"unasked"))
            yield peer.stream.read_bytes(3 * 7)
            peer.send(frame(10, b"2"))
            yield from peer.silence()

        connection = dial(serve(script).port)
        pings = [connection.ping(str(n)) for n in (1, 2, 3)]
        loop.run_sync(lambda: pings[1])
        assert [ping.done() for ping in pings] == [True, True, False]
        connection.leave(1000)
        with pytest.raises(WebSocketClosedError):
            loop.run_sync(lambda: pings[2])

    def test_a_peer_that_has_vanished(self, loop: IOLoop, listen: Any, raw: Any) -> None:
        ended: list[Any] = []

        @WebSocketHandler
        @coroutine
        def handler(connection: WebSocketConnection) -> Generator[Any, Any, None]:
            began = loop.time()
            assert (yield connection.read_message()) is None
            ended.append((loop.time() - began, connection.close_code, connection.close_reason))

        client = raw(listen(handler))
        client.open()
        assert client.hear_all() == frame(9)
        until(loop, lambda: ended)
        assert ended == [(pytest.approx(40), 1006, "no sign of the peer for 40 s")]

    def test_signs_of_life(self, loop: IOLoop, listen: Any, raw: Any) -> None:
        """Whatever comes is a sign, and then no ping is needed."""
        client = raw(listen(WebSocketHandler(hang)))
        client.open()
        for _ in range(10):
            loop.run_sync(lambda: sleep(15))
            client.say(f(1, b"x"))
        loop.run_sync(lambda: sleep(25))
        client.hear(frame(9))
        client.say(f(10))
        loop.run_sync(lambda: sleep(25))
        client.hear(frame(9))

    def test_two_that_say_nothing_stay(self, loop: IOLoop, listen: Any, dial: Connect) -> None:
        connection = dial(listen(WebSocketHandler(echo)))
        loop.run_sync(lambda: sleep(3600))
        connection.write_message("x")
        assert loop.run_sync(connection.read_message) == "x"

    def test_without_pings_nothing_is_sent(self, loop: IOLoop, listen: Any, raw: Any) -> None:
        client = raw(listen(WebSocketHandler(echo, ping_interval=None)))
        client.open()
        loop.run_sync(lambda: sleep(3600))
        client.say(f(1, b"x"))
        client.hear(frame(1, b"x"))


def test_tls(loop: IOLoop, listen: Any, ca: Authority) -> None:
    port = listen(WebSocketHandler(echo), ssl_options=ca.server_context())

    @coroutine
    def main() -> Generator[Any, Any, None]:
        connection = yield websocket_connect(
            f"wss://127.0.0.1:{port}/", ssl_options=ca.client_context()
        )
        for message in ("hello", b"x" * 300_000):
            connection.write_message(message)
            assert (yield connection.read_message()) == message
        yield connection.close()
        assert connection.close_code == 1000
        # A fault is told on TLS too.
        connection = yield websocket_connect(
            f"wss://127.0.0.1:{port}/", ssl_options=ca.client_context()
        )
        connection._stream.write(f(3))
        assert (yield connection.read_message()) is None
        assert connection.close_code == 1002
        yield connection.close()

    loop.run_sync(main)


@pytest.mark.usefixtures("no_collector")
def test_nothing_stays(loop: IOLoop, listen: Any, caplog: Any) -> None:
    """With the collector off: connections that end in all manners leave no circle, and no task."""
    caplog.set_level(logging.CRITICAL)

    @WebSocketHandler
    @coroutine
    def handler(connection: WebSocketConnection) -> Generator[Any, Any, None]:
        while (message := (yield connection.read_message())) is not None:
            if message == "fail":
                raise ZeroDivisionError
            if message == "abort":
                connection._stream.abort()
            yield connection.write_message(message)

    port = listen(handler)

    @coroutine
    def one(kind: str) -> Generator[Any, Any, None]:
        connection = yield websocket_connect(url(port))
        if kind == "fault":
            connection._stream.write(f(3))
        elif kind == "ping":
            yield connection.ping()
            connection.ping()
        elif kind != "close":
            connection.write_message(kind)
            yield connection.read_message()
        yield connection.close()

    @coroutine
    def refused() -> Generator[Any, Any, None]:
        try:
            yield websocket_connect(url(port), headers={"Origin": "http://evil.example"})
        except HTTPError:
            pass

    def all_kinds() -> None:
        for kind in ("close", "echo", "fail", "abort", "fault", "ping"):
            loop.run_sync(functools.partial(one, kind))
        loop.run_sync(refused)
        turns(loop, 5)

    all_kinds()
    gc.collect()
    for _ in range(3):
        all_kinds()
    assert gc.collect() == 0


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import coro.http.frames

    monkeypatch.setitem(sys.modules, "wsproto.connection", None)
    with pytest.raises(ImportError, match=re.escape("pip install 'coro-loop[websocket]'")):
        importlib.reload(coro.http.frames)
