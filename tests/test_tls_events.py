"""Which events a stream over TLS waits for, where reads have to write and bytes are hidden.

TLS itself is played by ``Scripted``, which says when it cannot go on and why.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from coro.errors import StreamClosedError
from coro.gen import coroutine
from coro.loop import IOLoop
from coro.net import READ, WRITE
from coro.stream import IOStream, SSLIOStream
from coro.tls import TLSPump
from tests.support.authority import Authority
from tests.support.leaks import count_fds
from tests.support.virtual import closing_loop, turns


@pytest.fixture
def loop() -> Iterator[IOLoop]:
    with closing_loop() as loop:
        yield loop
        left = loop.statistics()
        assert (left["handlers"], left["timers"], left["tasks"]) == (0, 0, 0)


class Scripted(TLSPump):
    """A plain socket that plays TLS: errors to raise first, bytes that the descriptor hides."""

    server_side = True  # type: ignore[assignment]

    def __init__(self, sock: socket.socket) -> None:
        self._below = sock
        self.on_recv: list[Exception] = []
        self.on_send: list[Exception] = []
        self.hidden: list[bytes] = []
        self.calls = 0

    def do_handshake(self) -> None:
        pass

    def unwrap(self) -> None:
        pass

    def pending(self) -> int:
        return len(self.hidden)

    def recv(self, size: int) -> bytes:
        self.calls += 1
        assert self.calls < 100, "it spins"
        if self.on_recv:
            raise self.on_recv.pop(0)
        if self.hidden:
            return self.hidden.pop(0)
        return self._below.recv(size)  # type: ignore[no-any-return]

    def send(self, data: Any) -> int:
        if self.on_send:
            raise self.on_send.pop(0)
        return self._below.send(data)  # type: ignore[no-any-return]


Pair = tuple[SSLIOStream, Scripted, socket.socket]


@pytest.fixture
def scripted(loop: IOLoop) -> Iterator[Pair]:
    ours, theirs = socket.socketpair()
    tls = Scripted(ours)
    with theirs:
        theirs.setblocking(False)
        stream = SSLIOStream(tls)
        turns(loop, 2)
        yield stream, tls, theirs
        stream.close()


def waits_for(stream: SSLIOStream) -> int:
    registration = stream._registration
    return 0 if registration is None else registration.events


def fill(sock: socket.socket) -> None:
    """Leave no room in what the socket has to send."""
    try:
        while True:
            sock.send(bytes(65536))
    except BlockingIOError:
        pass


def empty(sock: socket.socket) -> None:
    try:
        while sock.recv(65536):
            pass
    except BlockingIOError:
        pass


def test_a_read_that_has_to_write_first(loop: IOLoop, scripted: Pair) -> None:
    stream, tls, peer = scripted
    fill(tls._below)
    reading = stream.read_bytes(1)
    tls.on_recv = [ssl.SSLWantWriteError(3, "")]
    peer.send(b"x")
    turns(loop)
    assert waits_for(stream) == WRITE
    assert loop._poll(0) == []  # though there is something to read
    empty(peer)
    turns(loop)
    assert reading.result() == b"x"
    turns(loop)
    assert waits_for(stream) == READ


def test_a_write_that_has_to_read_first(loop: IOLoop, scripted: Pair) -> None:
    stream, tls, peer = scripted
    tls.on_send = [ssl.SSLWantReadError(2, "")] * 2  # when it is called, and when it may
    writing = stream.write(b"abc")
    turns(loop)
    assert waits_for(stream) == READ
    assert loop._poll(0) == []  # though there is room to write
    peer.send(b"x")
    turns(loop)
    assert writing.done()
    assert peer.recv(10) == b"abc"
    reading = stream.read_bytes(1)
    turns(loop)
    assert reading.result() == b"x"
    assert waits_for(stream) == READ


def test_a_read_that_waits_to_write_beside_a_write(loop: IOLoop, scripted: Pair) -> None:
    """The write's end does not end the read's waiting."""
    stream, tls, peer = scripted
    tls.on_recv = [ssl.SSLWantWriteError(3, "")] * 2
    tls.on_send = [ssl.SSLWantWriteError(3, "")]
    reading = stream.read_bytes(1)
    writing = stream.write(b"abc")
    peer.send(b"x")
    turns(loop)
    assert not reading.done()
    turns(loop)
    assert writing.done()
    assert waits_for(stream) & WRITE
    turns(loop)
    assert reading.result() == b"x"


def test_hidden_bytes_that_cannot_be_had_yet(loop: IOLoop, scripted: Pair) -> None:
    stream, tls, _ = scripted
    tls.hidden = [b"x"]
    tls.on_recv = [ssl.SSLWantWriteError(3, "")]
    reading = stream.read_bytes(1)
    assert waits_for(stream) == WRITE
    assert tls.calls == 1
    turns(loop)
    assert reading.result() == b"x"


@pytest.mark.parametrize("early", [True, False])
def test_a_hidden_end_is_noticed_without_a_reader(loop: IOLoop, early: bool) -> None:
    ours, theirs = socket.socketpair()
    tls = Scripted(ours)
    tls.hidden = [b"last", b""]
    told: list[str] = []
    with theirs:
        stream = SSLIOStream(tls)
        if early:
            stream.set_close_callback(lambda: told.append("closed"))
        turns(loop, 2)
        if not early:
            stream.set_close_callback(lambda: told.append("closed"))
        turns(loop, 2)
        # One chunk is taken, no more, as of any stream that nobody reads.
        assert tls.hidden == [b""]
        assert stream.read_bytes(4).result() == b"last"
        with pytest.raises(StreamClosedError):
            stream.read_bytes(1).result()
        turns(loop, 2)
        assert told == ["closed"]


def test_records_are_received_together(loop: IOLoop, scripted: Pair) -> None:
    """Full ones, as long as there are any, and not beyond what one event may receive."""
    stream, tls, _ = scripted
    record = bytes(16384)
    tls.hidden = [record, record, b"end", b"next"]
    assert stream.read_bytes(100_000, partial=True).result() == record + record + b"end"
    assert tls.hidden == [b"next"]
    tls.hidden = [record] * 5
    assert stream.read_bytes(100_000, partial=True).result() == record * 4
    assert stream.read_bytes(100_000, partial=True).result() == record


# --- the upgrade -------------------------------------------------------------------------------


def run(loop: IOLoop, body: Callable[[], Any]) -> Any:
    return loop.run_sync(coroutine(body))


def test_the_upgrade_of_a_connection_that_is_gone(loop: IOLoop, ca: Authority) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stream = IOStream(socket.create_connection(listener.getsockname()))
        peer, _ = listener.accept()
    before = count_fds()
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    peer.close()

    def body() -> Any:
        with pytest.raises(StreamClosedError) as caught:
            yield stream.start_tls(False, ca.client_context(), "localhost")
        assert isinstance(caught.value.real_error, OSError)

    run(loop, body)
    assert stream.closed()
    assert count_fds() == before - 2


def test_no_upgrade_after_the_end(loop: IOLoop, ca: Authority) -> None:
    ours, theirs = socket.socketpair()
    stream = IOStream(ours)
    with theirs:
        stream.send_eof()
        with pytest.raises(ValueError, match="not idle"):
            stream.start_tls(False, ca.client_context(), "localhost")
        stream.close()


@pytest.mark.parametrize("half_close", [False, True])
def test_an_error_names_the_peer(loop: IOLoop, ca: Authority, half_close: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = IOStream(socket.create_connection(listener.getsockname()))
        other = IOStream(listener.accept()[0])
        port = listener.getsockname()[1]

    def body() -> Any:
        other.start_tls(True, ca.server_context("localhost"))
        name = "other.test"
        with pytest.raises(ssl.SSLCertVerificationError) as caught:
            yield one.start_tls(False, ca.client_context(), name, half_close=half_close)
        assert "Hostname mismatch" in caught.value.verify_message
        assert str(caught.value).endswith(f"the peer is 'other.test' at 127.0.0.1:{port}")
        yield
        yield

    run(loop, body)
