"""The simulated network does what the system's does: each scene is played on both.

A scene calls sockets, one at a time, and notes what each call gives: a value, or the name of the
error. Where it has to wait for the other side, it waits for a readiness that it names. What it
noted must be the same, on the system's loopback and under every seed.
"""

from __future__ import annotations

import errno
import select
import socket
from collections.abc import Callable, Generator
from typing import Any

import pytest

from coro.errors import StreamClosedError
from coro.gen import coroutine, sleep
from coro.loop import IOLoop
from coro.main import run
from coro.stream import IOStream
from coro.tcp import connect
from coro.tcpserver import TCPServer
from coro.testing import simulate

SEEDS = 20

READ, WRITE, ERR, HUP = select.EPOLLIN, select.EPOLLOUT, select.EPOLLERR, select.EPOLLHUP
NAMES = {READ: "read", WRITE: "write", ERR: "error", HUP: "hang-up"}

Steps = Generator[Any, Any, None]

SCENES: list[Callable[[Stage], Steps]] = []


def scene(play: Callable[[Stage], Steps]) -> Callable[[Stage], Steps]:
    SCENES.append(play)
    return play


class Stage:
    """What a scene has: sockets of the present loop's network, and a place for notes."""

    def __init__(self, family: int) -> None:
        self.family = family
        self.here = "127.0.0.1" if family == socket.AF_INET else "::1"
        self.notes: list[str] = []
        self._sockets: list[Any] = []

    def note(self, what: object) -> None:
        self.notes.append(str(what))

    def call(self, function: Callable[..., Any], *args: Any) -> None:
        """Note what a call gives."""
        try:
            result = function(*args)
        except OSError as error:
            assert error.errno is not None
            self.note(f"{function.__name__} {errno.errorcode[error.errno]}")
        else:
            self.note(f"{function.__name__} {result!r}")

    def socket(self) -> Any:
        made = IOLoop.current().network.socket(self.family)
        self._sockets.append(made)
        return made

    def keep(self, accepted: Any) -> None:
        accepted.setblocking(False)
        self._sockets.append(accepted)

    def listener(self, backlog: int = 10) -> Any:
        made = self.socket()
        made.bind((self.here, 0))
        made.listen(backlog)
        return made

    def pair(self, prepare: Callable[[Any], Any] | None = None) -> Generator[Any, Any, Any]:
        """Return a socket, and the other end that a listener accepted."""
        listener = self.listener()
        client = self.socket()
        if prepare is not None:
            prepare(client)
        client.connect_ex(listener.getsockname())
        yield from self.until(listener, READ)
        server, _ = listener.accept()
        self.keep(server)
        yield from self.until(client, WRITE)
        listener.close()
        return client, server

    def mask(self, sock: Any) -> int:
        if not isinstance(sock, socket.socket):
            found: int = sock.mask()
            return found
        poll = select.epoll()
        poll.register(sock.fileno(), READ | WRITE)
        events = poll.poll(0)
        poll.close()
        return events[0][1] if events else 0

    def until(self, sock: Any, bits: int) -> Steps:
        """Wait until all of these stand."""
        for _ in range(5000):
            if self.mask(sock) & bits == bits:
                return
            yield sleep(0.001)
        raise AssertionError(f"{self.events(sock)} after {self.notes}")

    def events(self, sock: Any) -> str:
        mask = self.mask(sock)
        return " ".join(name for bit, name in NAMES.items() if mask & bit) or "nothing"

    def close(self) -> None:
        for sock in self._sockets:
            sock.close()


# --- connections -------------------------------------------------------------------------------


@scene
def nobody_listens(stage: Stage) -> Steps:
    listener = stage.listener()
    address = listener.getsockname()
    listener.close()
    client = stage.socket()
    client.connect_ex(address)
    yield from stage.until(client, ERR)
    stage.note(stage.events(client))
    stage.call(client.getpeername)
    stage.call(client.getsockopt, socket.SOL_SOCKET, socket.SO_ERROR)
    stage.call(client.getsockopt, socket.SOL_SOCKET, socket.SO_ERROR)
    stage.call(client.recv, 10)


@scene
def a_new_socket(stage: Stage) -> Steps:
    sock = stage.socket()
    yield
    stage.call(sock.getpeername)
    stage.call(sock.recv, 10)
    stage.call(sock.send, b"x")
    stage.call(sock.shutdown, socket.SHUT_WR)
    stage.call(sock.accept)
    stage.note(stage.events(sock))
    stage.note(sock.getsockname()[1])
    sock.close()
    sock.close()
    for call, args in (
        (sock.recv, (1,)),
        (sock.send, (b"x",)),
        (sock.getsockname, ()),
        (sock.getpeername, ()),
        (sock.listen, ()),
        (sock.shutdown, (socket.SHUT_WR,)),
        (sock.connect, ((stage.here, 1),)),
    ):
        stage.call(call, *args)
    stage.note(sock.fileno())


@scene
def connected(stage: Stage) -> Steps:
    client, server = yield from stage.pair()
    stage.note(stage.events(client))
    stage.note(stage.events(server))
    stage.note(client.getpeername() == server.getsockname())
    stage.note(server.getpeername() == client.getsockname())
    stage.note(len(client.getpeername()))
    stage.note(client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
    stage.call(client.connect, server.getsockname())
    stage.call(client.connect, server.getsockname())
    stage.call(client.recv, 10)
    stage.call(client.accept)


@scene
def addresses_in_use(stage: Stage) -> Steps:
    listener = stage.listener()
    yield
    address = listener.getsockname()
    sock = stage.socket()
    stage.call(sock.bind, address)
    sock.bind((stage.here, 0))
    stage.call(sock.bind, (stage.here, 0))
    foreign = "192.0.2.7" if stage.family == socket.AF_INET else "2001:db8::7"
    stage.call(stage.socket().bind, (foreign, 0))
    stage.call(listener.accept)
    listener.close()
    again = stage.socket()
    again.bind(address)
    again.listen(1)
    stage.note(again.getsockname() == address)


@scene
def a_listener_that_closes(stage: Stage) -> Steps:
    listener = stage.listener()
    client = stage.socket()
    client.connect_ex(listener.getsockname())
    yield from stage.until(listener, READ)
    yield from stage.until(client, WRITE)
    listener.close()
    yield from stage.until(client, ERR)
    stage.call(client.recv, 10)


@scene
def a_full_queue(stage: Stage) -> Steps:
    listener = stage.listener(1)
    clients = [stage.socket() for _ in range(3)]
    for client in clients[:2]:
        client.connect_ex(listener.getsockname())
        yield from stage.until(client, WRITE)
    clients[2].connect_ex(listener.getsockname())
    stage.note(stage.events(clients[2]))
    for _ in clients:
        yield from stage.until(listener, READ)
        stage.keep(listener.accept()[0])
    yield from stage.until(clients[2], WRITE)
    stage.note(stage.events(clients[2]))


@scene
def a_connect_that_is_given_up(stage: Stage) -> Steps:
    listener = stage.listener()
    client = stage.socket()
    client.connect_ex(listener.getsockname())
    yield from stage.until(client, WRITE)
    client.close()
    yield from stage.until(listener, READ)
    server, _ = listener.accept()
    yield from stage.until(server, READ)
    stage.call(server.recv, 10)
    server.close()


# --- bytes -------------------------------------------------------------------------------------


@scene
def some_bytes(stage: Stage) -> Steps:
    client, server = yield from stage.pair()
    stage.call(client.send, b"hello")
    while len(server.recv(10, socket.MSG_PEEK) if stage.mask(server) & READ else b"") < 5:
        yield sleep(0.001)
    stage.note(stage.events(server))
    stage.call(server.recv, 2)
    buffer = bytearray(10)
    stage.call(server.recv_into, buffer)
    stage.note(bytes(buffer))
    stage.call(server.recv, 10)
    stage.call(server.sendmsg, [b"a", memoryview(b"bc"), bytearray(b"d")])
    while len(client.recv(10, socket.MSG_PEEK) if stage.mask(client) & READ else b"") < 4:
        yield sleep(0.001)
    stage.call(client.recv, 100)


@scene
def more_than_fits(stage: Stage) -> Steps:
    client, server = yield from stage.pair()
    sent = 0
    data = bytes(range(256)) * 1000
    while True:
        try:
            sent += client.send(data)
        except BlockingIOError:
            # What has arrived at the other end makes room once more.
            yield sleep(0.01)
            if not stage.mask(client) & WRITE:
                break
    stage.note(stage.events(client))
    stage.call(client.send, b"x")
    received = 0
    while received < sent:
        yield from stage.until(server, READ)
        received += len(server.recv(1_000_000))
    yield from stage.until(client, WRITE)
    stage.note(received == sent)
    stage.call(client.send, b"x")


# --- the end -----------------------------------------------------------------------------------


@scene
def close_after_bytes(stage: Stage) -> Steps:
    client, server = yield from stage.pair()
    server.send(b"bye")
    server.close()
    received = b""
    while True:
        yield from stage.until(client, READ)
        piece = client.recv(10)
        if not piece:
            break
        received += piece
    stage.note(received)
    stage.note(stage.events(client))
    stage.call(client.recv, 10)
    stage.call(client.getsockopt, socket.SOL_SOCKET, socket.SO_ERROR)


@scene
def send_to_one_who_closed(stage: Stage) -> Steps:
    client, server = yield from stage.pair()
    server.close()
    yield from stage.until(client, READ)
    stage.call(client.send, b"anybody?")
    yield from stage.until(client, ERR)
    stage.note(stage.events(client))
    stage.call(client.send, b"anybody?")
    stage.call(client.send, b"anybody?")
    stage.call(client.recv, 10)
    stage.call(client.getpeername)


@scene
def close_with_unread_bytes(stage: Stage) -> Steps:
    client, server = yield from stage.pair()
    client.send(b"never read")
    yield from stage.until(server, READ)
    server.close()
    yield from stage.until(client, ERR)
    stage.note(stage.events(client))
    stage.call(client.recv, 10)
    stage.call(client.recv, 10)
    stage.call(client.send, b"x")
    stage.call(client.getpeername)
    stage.call(client.shutdown, socket.SHUT_WR)


@scene
def a_reset_after_bytes(stage: Stage) -> Steps:
    client, server = yield from stage.pair()
    server.send(b"last words")
    while len(client.recv(99, socket.MSG_PEEK) if stage.mask(client) & READ else b"") < 10:
        yield sleep(0.001)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, (1).to_bytes(4, "little") + bytes(4))
    server.close()
    yield from stage.until(client, ERR)
    stage.note(stage.events(client))
    stage.call(client.recv, 4)
    stage.call(client.recv, 100)
    stage.call(client.recv, 100)
    stage.call(client.recv, 100)
    stage.call(client.send, b"x")


@scene
def a_reset_that_is_asked_for(stage: Stage) -> Steps:
    client, server = yield from stage.pair()
    client.send(b"never read")
    yield from stage.until(server, READ)
    server.close()
    yield from stage.until(client, ERR)
    stage.call(client.getsockopt, socket.SOL_SOCKET, socket.SO_ERROR)
    stage.call(client.getsockopt, socket.SOL_SOCKET, socket.SO_ERROR)
    stage.note(stage.events(client))
    stage.call(client.recv, 10)
    stage.call(client.send, b"x")


@scene
def half_a_close(stage: Stage) -> Steps:
    client, server = yield from stage.pair()
    client.send(b"question")
    stage.call(client.shutdown, socket.SHUT_WR)
    stage.call(client.shutdown, socket.SHUT_WR)
    stage.call(client.send, b"more")
    received = b""
    while True:
        yield from stage.until(server, READ)
        piece = server.recv(3)
        if not piece:
            break
        received += piece
    stage.note(received)
    stage.note(stage.events(server))
    stage.note(stage.events(client))
    stage.call(server.send, b"answer")
    while len(client.recv(9, socket.MSG_PEEK) if stage.mask(client) & READ else b"") < 6:
        yield sleep(0.001)
    stage.call(client.recv, 9)
    stage.call(server.shutdown, socket.SHUT_WR)
    yield from stage.until(client, HUP)
    stage.note(stage.events(client))
    stage.call(client.recv, 9)
    stage.note(stage.events(server))


@scene
def one_does_not_want_to_read(stage: Stage) -> Steps:
    client, _ = yield from stage.pair()
    stage.call(client.shutdown, socket.SHUT_RD)
    stage.note(stage.events(client))
    stage.call(client.recv, 10)
    stage.call(client.send, b"x")


# --- streams on them ---------------------------------------------------------------------------


@scene
def streams(stage: Stage) -> Steps:
    class Server(TCPServer):
        @coroutine
        def handle_stream(self, stream: IOStream, address: Any) -> Any:
            line = yield stream.read_until(b"\n")
            yield stream.write(b"you said " + line + b"and more")
            stream.close()

    server = Server()
    server.listen(0, stage.here)
    stream = yield connect(stage.here, server.sockets[0].getsockname()[1])
    yield stream.write(b"hello\n")
    stage.note((yield stream.read_until(b"\n")))
    stage.note((yield stream.read_until_close()))
    stage.note(stream.closed())
    try:
        yield stream.read_bytes(1)
    except StreamClosedError as error:
        stage.note(repr(error.real_error))
    yield server.shutdown(5)


@scene
def a_stream_that_is_reset(stage: Stage) -> Steps:
    class Server(TCPServer):
        @coroutine
        def handle_stream(self, stream: IOStream, address: Any) -> Any:
            yield stream.read_until(b"\n")
            stream.abort()

    server = Server()
    server.listen(0, stage.here)
    stream = yield connect(stage.here, server.sockets[0].getsockname()[1])
    yield stream.write(b"hello\n")
    try:
        yield stream.read_until(b"\n")
    except StreamClosedError as error:
        stage.note(type(error.real_error).__name__)
    stage.note(stream.closed())
    yield server.shutdown(5)


# --- both --------------------------------------------------------------------------------------


@coroutine
def play(number: int, family: int) -> Generator[Any, Any, list[str]]:
    stage = Stage(family)
    try:
        yield from SCENES[number](stage)
    finally:
        stage.close()
    return stage.notes


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("number", range(len(SCENES)), ids=[each.__name__ for each in SCENES])
def test_it_is_the_same(number: int, family: int) -> None:
    on_the_system = run(play, number, family)
    assert on_the_system
    for seed in range(SEEDS):
        assert simulate(play, number, family, seed=seed, timeout=1000) == on_the_system
