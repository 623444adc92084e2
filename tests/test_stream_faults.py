"""Streams on something shaped as a socket that fails as it is told to."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from coro.errors import StreamClosedError
from coro.gen import coroutine
from coro.loop import IOLoop
from coro.stream import IOStream
from tests.support.leaks import count_fds
from tests.support.virtual import closing_loop

TRANSIENT = [errno.EAGAIN, errno.EINTR]
FATAL = [errno.ECONNRESET, errno.EPIPE]
ROUGH = [errno.ECONNRESET, errno.EPIPE, errno.ECONNABORTED, errno.ETIMEDOUT]


class FaultySocket:
    """A real socket whose calls fail when the test says so.

    ``faults[name]`` maps the number of a call of that name (from 0) to the errno it fails with;
    ``most`` bounds what one call sends. All calls are recorded.
    """

    def __init__(
        self, real: socket.socket, faults: dict[str, dict[int, int]], most: int | None = None
    ) -> None:
        self.real = real
        self.faults = faults
        self.most = most
        self.calls: list[str] = []
        self.family = real.family
        self.fileno = real.fileno
        self.setblocking = real.setblocking
        self.getpeername = real.getpeername
        self.setsockopt = real.setsockopt
        self.getsockopt = real.getsockopt
        self.shutdown = real.shutdown
        self.close = real.close

    def _call(self, name: str) -> None:
        number = self.calls.count(name)
        self.calls.append(name)
        code = self.faults.get(name, {}).get(number)
        if code is not None:
            raise OSError(code, os.strerror(code))

    def recv(self, size: int) -> bytes:
        self._call("recv")
        return self.real.recv(size)

    def recv_into(self, target: memoryview) -> int:
        self._call("recv")
        return self.real.recv_into(target)

    def send(self, data: Any) -> int:
        self._call("send")
        with memoryview(data) as view, view[: self.most] as first:
            return self.real.send(first)

    def sendmsg(self, pieces: Any) -> int:
        # Another way to send: counted with the others.
        self._call("send")
        return self.real.sendmsg([b"".join(pieces)[: self.most]])


@pytest.fixture
def loop() -> Iterator[IOLoop]:
    with closing_loop() as loop:
        yield loop
        left = loop.statistics()
        assert (left["handlers"], left["timers"], left["tasks"]) == (0, 0, 0)


Make = Callable[..., tuple[IOStream, IOStream, FaultySocket]]


@pytest.fixture
def make(loop: IOLoop) -> Iterator[Make]:
    """``make(recv={0: errno.EPIPE}, most=10)``: a stream that fails so, its peer, its socket."""
    before = count_fds()
    made: list[IOStream] = []

    def make(
        most: int | None = None, **faults: dict[int, int]
    ) -> tuple[IOStream, IOStream, FaultySocket]:
        ours, theirs = socket.socketpair()
        faulty = FaultySocket(ours, faults, most)
        stream, peer = IOStream(faulty), IOStream(theirs)  # type: ignore[arg-type]
        made.extend((stream, peer))
        return stream, peer, faulty

    yield make
    for stream in made:
        stream.close()
        assert not stream._writes
        assert stream._registration is None
    assert count_fds() == before


def run(loop: IOLoop, body: Callable[[], Any]) -> Any:
    return loop.run_sync(coroutine(body))


def reads(stream: IOStream, target: bytearray) -> dict[str, Callable[[], Any]]:
    return {
        "bytes": lambda: stream.read_bytes(6),
        "partial": lambda: stream.read_bytes(6, partial=True),
        "until": lambda: stream.read_until(b"f"),
        "regex": lambda: stream.read_until_regex(b"ef"),
        "into": lambda: stream.read_into(target),
        "close": stream.read_until_close,
    }


KINDS = ["bytes", "partial", "until", "regex", "into", "close"]


# --- receiving ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("code", TRANSIENT)
@pytest.mark.parametrize("calls", [(0,), (1,), (0, 1, 2)])
def test_a_read_survives_not_now(
    loop: IOLoop, make: Make, kind: str, code: int, calls: Any
) -> None:
    stream, peer, faulty = make(recv=dict.fromkeys(calls, code))
    target = bytearray(6)

    def body() -> Any:
        reading = reads(stream, target)[kind]()
        yield peer.write(b"abc")
        yield
        yield peer.write(b"def")
        peer.close()
        got = yield reading
        if kind == "into":
            assert (got, target) == (6, b"abcdef")
        else:
            assert b"abcdef".startswith(got) if kind == "partial" else got == b"abcdef"
        assert kind == "partial" or faulty.calls.count("recv") > 1

    run(loop, body)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("code", [*ROUGH, errno.EIO, errno.ENOBUFS])
@pytest.mark.parametrize("call", [0, 1])
def test_a_read_that_fails(
    loop: IOLoop, make: Make, caplog: Any, kind: str, code: int, call: int
) -> None:
    stream, peer, _ = make(recv={call: code})
    target = bytearray(6)
    told: list[str] = []

    def body() -> Any:
        stream.set_close_callback(lambda: told.append("closed"))
        writing = stream.write(bytes(5_000_000))
        reading = reads(stream, target)[kind]()
        yield peer.write(b"abc")
        yield
        if not stream.closed():
            yield peer.write(b"def")
        if kind == "partial" and call == 1:
            assert (yield reading) == b"abc"
            return
        if kind == "close" and code in ROUGH:
            assert (yield reading) == b"abc"[: 3 * call]
        else:
            with pytest.raises(StreamClosedError) as caught:
                yield reading
            assert caught.value.real_error is stream.error
        assert stream.closed()
        assert stream.error is not None
        assert getattr(stream.error, "errno") == code  # noqa: B009
        with pytest.raises(StreamClosedError):
            yield writing
        # What came before the error is not lost.
        if kind != "close" and call:
            assert (yield stream.read_bytes(3)) == b"abc"
        for _ in range(2):
            yield

    run(loop, body)
    if stream.closed():
        assert told == ["closed"]
        assert len(caplog.records) == (0 if code in ROUGH else 1)
    del target[:]


@pytest.mark.parametrize("code", [*TRANSIENT, *ROUGH])
def test_an_idle_stream_that_fails(loop: IOLoop, make: Make, code: int) -> None:
    """Nobody reads: the error waits for the next one who asks, and the close callback comes."""
    stream, peer, _ = make(recv={0: code})
    told: list[str] = []

    def body() -> Any:
        stream.set_close_callback(lambda: told.append("closed"))
        yield peer.write(b"abc")
        for _ in range(3):
            yield
        if code in TRANSIENT:
            assert (yield stream.read_bytes(3)) == b"abc"
            return
        assert stream.closed()
        with pytest.raises(StreamClosedError) as caught:
            stream.read_bytes(1)
        assert caught.value.real_error is stream.error

    run(loop, body)
    assert told == ([] if code in TRANSIENT else ["closed"])


# --- sending -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
@pytest.mark.parametrize("code", TRANSIENT)
@pytest.mark.parametrize("calls", [(0,), (1,), (2,), (0, 1, 2)])
def test_a_write_survives_not_now(
    loop: IOLoop, make: Make, kind: Any, code: int, calls: Any
) -> None:
    stream, peer, faulty = make(most=100, send=dict.fromkeys(calls, code))
    pieces = [b"%03d" % number * 20 for number in range(20)]

    def body() -> Any:
        writing = [stream.write(kind(piece)) for piece in pieces]
        assert (yield peer.read_bytes(1200)) == b"".join(pieces)
        yield writing
        assert not stream.writing()
        assert stream.unsent() == 0

    run(loop, body)
    assert faulty.calls.count("send") > 3


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
@pytest.mark.parametrize("code", [*FATAL, errno.EIO])
@pytest.mark.parametrize("call", [0, 1, 2])
def test_a_write_that_fails(
    loop: IOLoop, make: Make, caplog: Any, kind: Any, code: int, call: int
) -> None:
    stream, _, _ = make(most=100, send={call: code})
    data = bytearray(1000)

    def body() -> Any:
        reading = stream.read_bytes(1)
        first = stream.write(data if kind is bytearray else kind(bytes(data)))
        others = []
        if not stream.closed():
            others = [stream.write(b"x" * 50), stream.write(b"")]
        for future in [first, *others, reading]:
            with pytest.raises(StreamClosedError) as caught:
                yield future
            assert caught.value.real_error is stream.error
        assert getattr(stream.error, "errno") == code  # noqa: B009
        assert not stream.writing()
        with pytest.raises(StreamClosedError):
            stream.write(b"x")
        data.append(1)  # no view was left on it

    run(loop, body)
    assert len(caplog.records) == (0 if code in ROUGH else 1)


@pytest.mark.parametrize("call", [0, 1, 2])
def test_a_system_short_of_buffers_is_tried_again(loop: IOLoop, make: Make, call: int) -> None:
    """ENOBUFS passes, as EAGAIN does: nothing was sent and the connection stands."""
    stream, peer, _ = make(most=100, send={call: errno.ENOBUFS})
    pieces = [b"%03d" % number * 20 for number in range(20)]

    def body() -> Any:
        writing = [stream.write(piece) for piece in pieces]
        assert (yield peer.read_bytes(1200)) == b"".join(pieces)
        yield writing

    run(loop, body)


@pytest.mark.parametrize("code", FATAL)
def test_write_soon_that_fails_is_told_to_the_next_write(
    loop: IOLoop, make: Make, code: int
) -> None:
    stream, _, _ = make(send={0: code})

    def body() -> Any:
        stream.write_soon(b"first")
        # It sends what waits before it, so here the stream breaks.
        with pytest.raises(StreamClosedError) as caught:
            yield stream.write(b"second")
        assert caught.value.real_error is stream.error
        assert stream.closed()

    run(loop, body)


@pytest.mark.parametrize("code", [*TRANSIENT, *FATAL])
def test_write_soon_at_the_end_of_the_turn(loop: IOLoop, make: Make, code: int) -> None:
    stream, peer, _ = make(send={0: code})

    def body() -> Any:
        reading = stream.read_bytes(1)
        stream.write_soon(b"abc")
        yield
        if code in TRANSIENT:
            assert (yield peer.read_bytes(3)) == b"abc"
            stream.close()
        with pytest.raises(StreamClosedError):
            yield reading
        assert stream.unsent() == (0 if code in TRANSIENT else 3) or stream.error is not None

    run(loop, body)


# --- connecting --------------------------------------------------------------------------------


class RefusingSocket(FaultySocket):
    def connect(self, address: Any) -> None:
        self._call("connect")


@pytest.mark.parametrize("code", [errno.ENETUNREACH, errno.ECONNREFUSED, errno.EADDRNOTAVAIL])
def test_a_connect_that_fails_at_once(loop: IOLoop, code: int) -> None:
    before = count_fds()
    faulty = RefusingSocket(socket.socket(), {"connect": {0: code}})
    stream = IOStream(faulty)  # type: ignore[arg-type]

    def body() -> Any:
        with pytest.raises(StreamClosedError) as caught:
            yield stream.connect(("127.0.0.1", 9))
        assert getattr(caught.value.real_error, "errno") == code  # noqa: B009

    run(loop, body)
    assert count_fds() == before


def test_writes_while_connecting_fail_with_it(loop: IOLoop, refused_port: int) -> None:
    stream = IOStream(socket.socket())
    data = bytearray(100)

    def body() -> Any:
        connecting = stream.connect(("127.0.0.1", refused_port))
        futures = [connecting]
        if not stream.closed():
            futures += [stream.write(data), stream.write(b""), stream.read_bytes(1)]
        for future in futures:
            with pytest.raises(StreamClosedError) as caught:
                yield future
            assert isinstance(caught.value.real_error, ConnectionRefusedError)
        data.append(1)

    run(loop, body)
