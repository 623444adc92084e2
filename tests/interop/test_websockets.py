"""WebSockets with a peer that nobody here wrote: the library ``websockets``, on either side.

It runs in a thread of its own, so that the loop under test is the native one and none of asyncio's.
"""

from __future__ import annotations

import contextlib
import functools
import json
import random
import threading
from collections.abc import Callable, Generator, Iterator
from typing import Any

import pytest
from fastapi import FastAPI, WebSocket, WebSocketDisconnect, WebSocketException
from websockets.exceptions import ConnectionClosedError, ConnectionClosedOK, InvalidStatus
from websockets.extensions.permessage_deflate import (
    ClientPerMessageDeflateFactory,
    ServerPerMessageDeflateFactory,
)
from websockets.sync.client import connect as dial
from websockets.sync.server import ServerConnection, serve
from websockets.typing import Subprotocol

from coro.asgi import ASGIHandler
from coro.gen import coroutine, to_thread
from coro.http import AsyncHTTPClient, HTTPError, HTTPServer
from coro.http.websocket import WebSocketConnection, WebSocketHandler, websocket_connect
from coro.loop import IOLoop
from tests.support.authority import Authority
from tests.support.hosting import new_loop

MESSAGES: list[str | bytes] = [
    "hello",
    "",
    b"",
    "grüß€\U0001f600",
    b"\x00\xff" * 100,
    "x" * 126,
    b"y" * 65536,
    "z" * 300_000,
    random.Random(1).randbytes(200_000),
]


@pytest.fixture
def loop() -> Iterator[IOLoop]:
    loop = new_loop()
    yield loop
    AsyncHTTPClient().close()
    loop.close()
    IOLoop.clear_current()


@coroutine
def echo(connection: WebSocketConnection) -> Generator[Any, Any, None]:
    while (message := (yield connection.read_message())) is not None:
        yield connection.write_message(message)


def with_server(loop: IOLoop, handler: Any, scene: Callable[[int], Any], **options: Any) -> Any:
    """Play a scene in a thread, beside a server of coro's; return what it returns."""

    @coroutine
    def main() -> Generator[Any, Any, Any]:
        server = HTTPServer(handler, **options)
        server.listen(0, "127.0.0.1")
        try:
            return (yield to_thread(scene, server.sockets[0].getsockname()[1]))
        finally:
            yield server.shutdown(5)

    return loop.run_sync(main, timeout=30)


class TestTheirClient:
    @pytest.mark.parametrize(
        "deflate",
        [
            None,
            ClientPerMessageDeflateFactory(),
            ClientPerMessageDeflateFactory(
                server_no_context_takeover=True,
                client_no_context_takeover=True,
                server_max_window_bits=9,
                client_max_window_bits=9,
            ),
            ClientPerMessageDeflateFactory(server_max_window_bits=10, client_max_window_bits=True),
        ],
    )
    def test_messages(self, loop: IOLoop, deflate: Any) -> None:
        def scene(port: int) -> None:
            with dial(
                f"ws://127.0.0.1:{port}/",
                compression=None,
                extensions=None if deflate is None else [deflate],
                proxy=None,
            ) as peer:
                assert len(peer.protocol.extensions) == (deflate is not None)
                for message in MESSAGES * 2:
                    peer.send(message)
                    assert peer.recv() == message
                # In fragments, with a ping between them.
                peer.send(part for part in ("a", "", "bé", "c"))
                assert peer.recv() == "abéc"
                peer.send(part for part in (b"a", b"", b"c"))
                assert peer.recv() == b"ac"
                assert peer.ping().wait(5)
                peer.close(4000, "bye")
                assert (peer.close_code, peer.close_reason) == (4000, "bye")

        with_server(loop, WebSocketHandler(echo, compression_options={}), scene)

    def test_subprotocol_and_origin(self, loop: IOLoop) -> None:
        def scene(port: int) -> None:
            connect = functools.partial(dial, f"ws://127.0.0.1:{port}/", proxy=None)
            with connect(subprotocols=["x", "y"]) as peer:
                assert peer.subprotocol == "y"
            with pytest.raises(InvalidStatus, match="403"):
                connect(origin="https://evil.example")
            with connect(origin=f"http://127.0.0.1:{port}"):
                pass

        with_server(loop, WebSocketHandler(echo, subprotocols=["y"]), scene)

    def test_closed_by_the_server(self, loop: IOLoop) -> None:
        @WebSocketHandler
        @coroutine
        def handler(connection: WebSocketConnection) -> Generator[Any, Any, None]:
            connection.write_message("last")
            yield connection.close(3000, "enough")

        def scene(port: int) -> None:
            with dial(f"ws://127.0.0.1:{port}/", proxy=None) as peer:
                assert peer.recv() == "last"
                with pytest.raises(ConnectionClosedError) as caught:
                    peer.recv()
                assert caught.value.rcvd is not None
                assert (caught.value.rcvd.code, caught.value.rcvd.reason) == (3000, "enough")

        with_server(loop, handler, scene)

    def test_too_large(self, loop: IOLoop) -> None:
        def scene(port: int) -> None:
            for compression in (None, "deflate"):
                with dial(f"ws://127.0.0.1:{port}/", compression=compression, proxy=None) as peer:
                    with contextlib.suppress(ConnectionClosedError):
                        peer.send("x" * 2_000_000)
                    with pytest.raises(ConnectionClosedError) as caught:
                        peer.recv()
                    assert caught.value.rcvd is not None
                    assert caught.value.rcvd.code == 1009

        handler = WebSocketHandler(echo, max_message_size=1_000_000, compression_options={})
        with_server(loop, handler, scene)

    def test_a_server_that_stops(self, loop: IOLoop) -> None:
        def scene(port: int) -> None:
            with dial(f"ws://127.0.0.1:{port}/", proxy=None) as peer:
                loop.add_callback(lambda: servers[0].shutdown(5))
                with pytest.raises(ConnectionClosedOK) as caught:
                    peer.recv()
                assert caught.value.rcvd is not None
                assert caught.value.rcvd.code == 1001

        servers: list[HTTPServer] = []

        @coroutine
        def main() -> Generator[Any, Any, None]:
            server = HTTPServer(WebSocketHandler(echo))
            server.listen(0, "127.0.0.1")
            servers.append(server)
            yield to_thread(scene, server.sockets[0].getsockname()[1])
            yield server.shutdown(5)

        loop.run_sync(main, timeout=30)

    def test_tls(self, loop: IOLoop, ca: Authority) -> None:
        def scene(port: int) -> None:
            with dial(f"wss://127.0.0.1:{port}/", ssl=ca.client_context(), proxy=None) as peer:
                for message in MESSAGES:
                    peer.send(message)
                    assert peer.recv() == message

        with_server(loop, WebSocketHandler(echo), scene, ssl_options=ca.server_context())


def test_fastapi(loop: IOLoop) -> None:
    """An application of FastAPI on coro's server."""
    app = FastAPI()

    @app.websocket("/rooms/{name}")
    async def room(socket: WebSocket, name: str) -> None:
        if name == "secret":
            raise WebSocketException(1008)
        await socket.accept("chat")
        try:
            while True:
                await socket.send_json({"room": name, "said": await socket.receive_text()})
        except WebSocketDisconnect as gone:
            told.append(gone.code)

    told: list[int] = []

    def scene(port: int) -> None:
        url = f"ws://127.0.0.1:{port}/rooms"
        with dial(f"{url}/a", subprotocols=[Subprotocol("chat")], proxy=None) as peer:
            peer.send("hello")
            assert json.loads(peer.recv()) == {"room": "a", "said": "hello"}
            peer.close(4000)
        with pytest.raises(InvalidStatus, match="403"):
            dial(f"{url}/secret", proxy=None)

    with_server(loop, ASGIHandler(app), scene, stream_body=True)
    assert told == [4000]


@contextlib.contextmanager
def their_server(handler: Callable[[ServerConnection], None], **options: Any) -> Iterator[int]:
    """A server of ``websockets`` in a thread; its port."""
    with serve(handler, "127.0.0.1", 0, **options) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.socket.getsockname()[1]
        finally:
            server.shutdown()
            thread.join()


def their_echo(peer: ServerConnection) -> None:
    for message in peer:
        peer.send(message)


class TestTheirServer:
    @pytest.mark.parametrize(
        ("deflate", "compression"),
        [
            (None, None),
            (None, {}),
            (ServerPerMessageDeflateFactory(), {}),
            (
                ServerPerMessageDeflateFactory(
                    server_no_context_takeover=True,
                    client_no_context_takeover=True,
                    server_max_window_bits=9,
                    client_max_window_bits=9,
                ),
                {"compression_level": 9, "mem_level": 9},
            ),
        ],
    )
    def test_messages(self, loop: IOLoop, deflate: Any, compression: Any) -> None:
        @coroutine
        def main(port: int) -> Generator[Any, Any, None]:
            connection = yield websocket_connect(
                f"ws://127.0.0.1:{port}/", compression_options=compression
            )
            agreed = "Sec-WebSocket-Extensions" in connection.response.headers
            assert agreed == (deflate is not None)
            for message in MESSAGES * 2:
                yield connection.write_message(message)
                assert (yield connection.read_message()) == message
            assert (yield connection.ping()) < 5
            yield connection.close(4000, "bye")
            assert (connection.close_code, connection.close_reason) == (4000, "bye")

        options = {"compression": None, "extensions": [deflate] if deflate else None}
        with their_server(their_echo, **options) as port:
            loop.run_sync(functools.partial(main, port), timeout=30)

    def test_fragments_and_closing(self, loop: IOLoop) -> None:
        def handler(peer: ServerConnection) -> None:
            peer.send(part for part in ("a", "", "bé"))
            peer.close(3001, "enough")

        @coroutine
        def main(port: int) -> Generator[Any, Any, None]:
            connection = yield websocket_connect(f"ws://127.0.0.1:{port}/", subprotocols=["s"])
            assert connection.selected_subprotocol == "s"
            assert (yield connection.read_message()) == "abé"
            assert (yield connection.read_message()) is None
            assert (connection.close_code, connection.close_reason) == (3001, "enough")
            yield connection.close()

        with their_server(handler, subprotocols=["s"]) as port:
            loop.run_sync(functools.partial(main, port), timeout=30)

    def test_refused(self, loop: IOLoop) -> None:
        def refuse(peer: ServerConnection, request: Any) -> Any:
            return peer.respond(418, "no coffee\n")

        @coroutine
        def main(port: int) -> Generator[Any, Any, None]:
            with pytest.raises(HTTPError, match="418") as caught:
                yield websocket_connect(f"ws://127.0.0.1:{port}/")
            assert caught.value.response.body == b"no coffee\n"

        with their_server(their_echo, process_request=refuse) as port:
            loop.run_sync(functools.partial(main, port), timeout=30)

    def test_tls(self, loop: IOLoop, ca: Authority) -> None:
        @coroutine
        def main(port: int) -> Generator[Any, Any, None]:
            connection = yield websocket_connect(
                f"wss://127.0.0.1:{port}/", ssl_options=ca.client_context()
            )
            connection.write_message("hello")
            assert (yield connection.read_message()) == "hello"
            yield connection.close()

        with their_server(their_echo, ssl=ca.server_context()) as port:
            loop.run_sync(functools.partial(main, port), timeout=30)
