"""The cases of ``test_frames`` over connections, either side; two other implementations agree.

Autobahn's test suite runs on Python 2 only. These are its cases: what a peer may send and what not,
and what is to come of it. What coro answers is read by ``websockets`` and by ``wsproto``, which
judge it by rules of their own; and both are given the same bytes to say what they make of them.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import Any

import pytest
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import Protocol, State
from websockets.server import ServerProtocol
from websockets.uri import parse_uri
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, Pong, TextMessage

from coro.errors import StreamClosedError, WebSocketClosedError
from coro.gen import coroutine
from coro.http import HTTPServer
from coro.http.websocket import WebSocketConnection, WebSocketHandler, websocket_connect
from coro.loop import IOLoop
from coro.stream import IOStream
from coro.tcp import connect
from tests.http.serving import LoopServer, Peer
from tests.http.test_frames import BY_CLIENTS, BY_SERVERS, LIMIT
from tests.support.frames import MASK, closing
from tests.support.virtual import closing_loop

KEY, ACCEPT = "dGhlIHNhbXBsZSBub25jZQ==", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
OPENING = (
    "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    f"Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n\r\n"
).encode()

# Where the others do not judge as the standard does, or stop earlier.
NOT_AS_WEBSOCKETS = {
    "length in two bytes where one would do",
    "length in eight bytes where two would do",
    "length of over 63 bits",
    # Its limit counts control frames in.
    "the longest one in fragments, with a ping",
}
NOT_AS_WSPROTO = {
    # It knows no limits.
    "one byte more",
    "too long by its announcement",
    "too long in fragments",
}


# --- the others ------------------------------------------------------------------------------


def judged_by_websockets(side: Protocol, data: bytes) -> list[Any]:
    """What a side of ``websockets`` makes of bytes, in the words of ``test_frames``."""
    side.receive_data(data)
    found: list[Any] = []
    begun: list[Frame] = []
    for event in side.events_received():
        assert isinstance(event, Frame)
        if event.opcode is Opcode.PING:
            found.append(("ping", bytes(event.data)))
        elif event.opcode is Opcode.PONG:
            found.append(("pong", bytes(event.data)))
        elif event.opcode is not Opcode.CLOSE:
            begun.append(event)
            whole = b"".join(bytes(each.data) for each in begun)
            text = begun[0].opcode is Opcode.TEXT
            if text and not _is_text(whole, event.fin):
                # It leaves that to what stands on it.
                found.append(("fault", 1007))
                return found
            if event.fin:
                found.append(whole.decode() if text else whole)
                begun.clear()
    if side.close_rcvd is not None:
        found.append(("close", side.close_rcvd.code, side.close_rcvd.reason))
    elif side.close_sent is not None:
        found.append(("fault", side.close_sent.code))
    return found


def _is_text(data: bytes, whole: bool) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return not whole and error.reason == "unexpected end of data"
    return True


def judged_by_wsproto(side: Connection, data: bytes) -> list[Any]:
    """What a side of ``wsproto`` makes of bytes."""
    side.receive_data(data)
    found: list[Any] = []
    text, binary = "", b""
    for event in side.events():
        if isinstance(event, TextMessage):
            text += event.data
            if event.message_finished:
                found.append(text)
                text = ""
        elif isinstance(event, BytesMessage):
            binary += event.data
            if event.message_finished:
                found.append(binary)
                binary = b""
        elif isinstance(event, Ping | Pong):
            found.append((type(event).__name__.lower(), bytes(event.payload)))
        else:
            found.append(_closing_of(side, event))
    return found


def _closing_of(side: Connection, event: Event) -> Any:
    assert isinstance(event, CloseConnection)
    if side.state.name == "OPEN":
        return ("fault", int(event.code))
    return ("close", int(event.code), event.reason or "")


def a_server() -> ServerProtocol:
    return ServerProtocol(state=State.OPEN, max_size=LIMIT)


def a_client() -> ClientProtocol:
    return ClientProtocol(parse_uri("ws://a/"), state=State.OPEN, max_size=LIMIT)


@pytest.mark.parametrize("name", BY_CLIENTS)
def test_others_agree(name: str) -> None:
    for (data, expected), theirs, wire in (
        (BY_CLIENTS[name], a_server(), ConnectionType.SERVER),
        (BY_SERVERS[name], a_client(), ConnectionType.CLIENT),
    ):
        if name not in NOT_AS_WEBSOCKETS:
            assert judged_by_websockets(theirs, data) == expected
        if name not in NOT_AS_WSPROTO:
            assert judged_by_wsproto(Connection(wire), data) == expected


# --- over connections ------------------------------------------------------------------------


@pytest.fixture
def loop() -> Iterator[IOLoop]:
    with closing_loop() as loop:
        yield loop


@coroutine
def echo(connection: WebSocketConnection) -> Generator[Any, Any, None]:
    """Say everything again, as long as there is somebody to hear it."""
    try:
        while (message := (yield connection.read_message())) is not None:
            yield connection.write_message(message)
    except WebSocketClosedError:
        pass


def converse(
    stream: IOStream,
    data: bytes,
    expected: list[Any],
    reader: Callable[[], Protocol],
    mask: bytes | None,
) -> Generator[Any, Any, bytes]:
    """Say what a case says, and close when all was answered; return what was heard to the end."""
    stream.write(data)
    heard = b""
    answers = len([each for each in expected if each[:1] != ("pong",)])
    closes = not ends(expected)
    try:
        while True:
            if closes and len(judged_by_websockets(reader(), heard)) == answers:
                stream.write(closing(1000, mask=mask))
                closes = False
            heard += yield stream.read_bytes(65536, partial=True)
            if mask is None and has_closed(reader(), heard):
                return heard
    except StreamClosedError:
        return heard


def has_closed(side: Protocol, heard: bytes) -> bool:
    """Whether what was heard ends the connection, which is for a server to close then."""
    side.receive_data(heard)
    return side.close_rcvd is not None


def ends(expected: list[Any]) -> bool:
    """Whether the connection is over after a case."""
    return isinstance(expected[-1], tuple) and expected[-1][0] in ("fault", "close")


def check(heard: bytes, expected: list[Any], theirs: Protocol, wire: ConnectionType) -> None:
    """What an echo says to a case, as both others read it."""
    read = judged_by_websockets(theirs, heard)
    assert judged_by_wsproto(Connection(wire), heard) == read
    *said, last = read
    pings = [each[1] for each in expected if isinstance(each, tuple) and each[0] == "ping"]
    messages = [each for each in expected if not isinstance(each, tuple)]
    assert [each[1] for each in said if isinstance(each, tuple)] == pings
    echoed = [each for each in said if not isinstance(each, tuple)]
    if ends(expected):
        # What came just before it may find no time to be said again.
        assert echoed == messages[: len(echoed)]
        assert last[:2] == ("close", expected[-1][1])
    else:
        assert echoed == messages
        assert last[:2] == ("close", 1000)


@pytest.mark.parametrize("name", BY_CLIENTS)
def test_the_server(loop: IOLoop, name: str) -> None:
    data, expected = BY_CLIENTS[name]

    @coroutine
    def main() -> Generator[Any, Any, bytes]:
        server = HTTPServer(WebSocketHandler(echo, max_message_size=LIMIT))
        server.listen(0, "127.0.0.1")
        stream = yield connect("127.0.0.1", server.sockets[0].getsockname()[1])
        yield stream.write(OPENING)
        head = yield stream.read_until(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 ")
        assert ACCEPT.encode() in head
        heard = yield from converse(stream, data, expected, a_client, MASK)
        stream.close()
        yield server.shutdown(0)
        return heard  # type: ignore[no-any-return]

    check(loop.run_sync(main), expected, a_client(), ConnectionType.CLIENT)


@pytest.mark.parametrize("name", BY_SERVERS)
def test_the_client(loop: IOLoop, name: str) -> None:
    data, expected = BY_SERVERS[name]
    heard: list[bytes] = []

    def script(peer: Peer) -> Generator[Any, Any, None]:
        request = yield from peer.request()
        handshake = ServerProtocol()
        handshake.receive_data(request)
        (asked,) = handshake.events_received()
        assert isinstance(asked, Request)
        handshake.send_response(handshake.accept(asked))
        peer.send(b"".join(handshake.data_to_send()))
        heard.append((yield from converse(peer.stream, data, expected, a_server, None)))

    server = LoopServer(loop, script)

    @coroutine
    def main() -> Generator[Any, Any, None]:
        url = f"ws://127.0.0.1:{server.port}/"
        connection = yield websocket_connect(url, max_message_size=LIMIT)
        yield echo(connection)
        yield connection.close()

    loop.run_sync(main)
    server.close()
    check(heard[0], expected, a_server(), ConnectionType.SERVER)
