"""Reading, writing and closing on something shaped as a socket, call by call."""

from __future__ import annotations

import errno
import gc
import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from coro.errors import CancelledError, StreamClosedError, UnsatisfiableReadError
from coro.gen import coroutine
from coro.loop import IOLoop
from coro.net import READ
from coro.stream import BaseIOStream, IOStream
from coro.transfer import READ_BUDGET, WRITE_BUDGET, WRITE_PIECES
from tests.support.hosting import of_the_system
from tests.support.leaks import count_fds
from tests.support.pairs import socket_pair
from tests.support.virtual import closing_loop, turns


@pytest.fixture
def loop() -> Iterator[IOLoop]:
    with closing_loop() as loop:
        yield loop
        left = loop.statistics()
        assert (left["handlers"], left["timers"], left["tasks"]) == (0, 0, 0)


def run(loop: IOLoop, body: Callable[[], Any]) -> Any:
    return loop.run_sync(coroutine(body))


class Gate:
    """A socket that takes as many bytes as there is ``room`` for, and records what it is asked."""

    def __init__(self, real: socket.socket) -> None:
        self.real = real
        self.room = 0
        self.sent = b""
        self.asked: list[int] = []
        self.pieces: list[int] = []
        self.fileno = real.fileno
        self.setblocking = real.setblocking
        self.recv = real.recv
        self.shutdown = real.shutdown
        self.close = real.close

    def send(self, data: Any) -> int:
        return self.sendmsg([data])

    def sendmsg(self, pieces: Any) -> int:
        data = b"".join(pieces)
        self.asked.append(len(data))
        self.pieces.append(len(pieces))
        if data and not self.room:
            raise BlockingIOError(errno.EAGAIN, "not now")
        taken = data[: self.room]
        self.room -= len(taken)
        self.sent += taken
        return len(taken)

    def recv_into(self, target: memoryview) -> int:
        self.asked.append(len(target))
        return self.real.recv_into(target)


@pytest.fixture
def gated(loop: IOLoop) -> Iterator[Callable[..., tuple[BaseIOStream, Gate, socket.socket]]]:
    """``gated(**limits)``: a stream on a gate, the gate, and the peer's bare socket."""
    made: list[Any] = []
    before = count_fds()

    def make(**limits: Any) -> tuple[BaseIOStream, Gate, socket.socket]:
        ours, theirs = socket_pair()
        gate = Gate(ours)
        stream = BaseIOStream(gate, **limits)
        made.extend((stream, theirs))
        return stream, gate, theirs

    yield make
    for each in made:
        each.close()
    assert count_fds() == before


@pytest.fixture
def pair(loop: IOLoop) -> Iterator[tuple[IOStream, IOStream]]:
    ours, theirs = map(IOStream, socket_pair())
    yield ours, theirs
    ours.close()
    theirs.close()


# --- when a write is done ----------------------------------------------------------------------


def let(loop: IOLoop, gate: Gate, room: int) -> None:
    gate.room += room
    turns(loop, 3)
    assert not gate.room


def done(futures: list[Any]) -> int:
    states = [future.done() for future in futures]
    assert states == sorted(states, reverse=True)
    return sum(states)


@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_each_write_is_done_when_its_last_byte_is_sent(loop: IOLoop, gated: Any, kind: Any) -> None:
    stream, gate, _ = gated()
    futures = [stream.write(kind(b"x" * size)) for size in (100, 50, 30)]
    for room, count in [(99, 0), (1, 1), (49, 1), (1, 2), (29, 2), (1, 3)]:
        let(loop, gate, room)
        assert done(futures) == count
    assert gate.sent == b"x" * 180
    assert not stream.writing()


def test_the_low_water_mark(loop: IOLoop, gated: Any) -> None:
    stream, gate, _ = gated(write_low_water=60)
    futures = [stream.write(b"x" * size) for size in (100, 50, 30)]
    for room, count in [(39, 0), (1, 1), (49, 1), (1, 2), (29, 2), (1, 3)]:
        let(loop, gate, room)
        assert done(futures) == count
    assert stream.unsent() == 60
    last = stream.write(b"y")
    assert not last.done()
    let(loop, gate, 60)
    assert stream.write(b"x" * 59).done()  # at most the mark waits: nobody has to
    let(loop, gate, 60)
    assert last.done()


def test_what_can_change_is_not_done_early(loop: IOLoop, gated: Any) -> None:
    stream, gate, _ = gated(write_low_water=60)
    data = bytearray(b"x" * 50)
    writing = stream.write(data)
    let(loop, gate, 49)
    assert not writing.done()
    let(loop, gate, 1)
    assert writing.done()
    del data[:]


def test_a_write_of_nothing_waits_for_all_before_it(loop: IOLoop, gated: Any) -> None:
    stream, gate, _ = gated(write_low_water=60)
    assert stream.write(b"").done()
    assert stream.write(b"x" * 50).done()
    flushed = stream.write(b"")
    assert not flushed.done()
    again = stream.write(b"")
    let(loop, gate, 49)
    assert not flushed.done()
    later = stream.write(b"y" * 100)
    let(loop, gate, 1)
    assert flushed.done()
    assert again.done()
    assert not later.done()
    let(loop, gate, 40)
    assert later.done()
    assert stream.unsent() == 60
    assert not stream.write(b"").done()
    later = stream.write(b"z" * 70)
    flushed = stream.write(b"")
    let(loop, gate, 129)
    assert later.done()
    assert not flushed.done()
    let(loop, gate, 1)
    assert flushed.done()


def test_a_write_of_nothing_is_cancelled_alone(loop: IOLoop, gated: Any) -> None:
    stream, gate, _ = gated()
    writes = [stream.write(data) for data in (b"x" * 50, b"", b"")]
    writes[1].cancel()
    assert [write.cancelled() for write in writes] == [False, True, False]
    let(loop, gate, 50)
    assert writes[0].result() is writes[2].result() is None
    cancelled = stream.write(b"x" * 50)
    cancelled.cancel()
    flushed = stream.write(b"")
    let(loop, gate, 50)
    assert flushed.result() is None


def test_what_waits_fails_with_the_stream(loop: IOLoop, gated: Any) -> None:
    stream, _, _ = gated()
    futures = [stream.write(b"x"), stream.write(bytearray(b"y")), stream.send_eof()]
    stream.close()
    for future in futures:
        assert isinstance(future.exception(), StreamClosedError)
    assert stream.unsent() == 2
    assert "eof" not in repr(stream)


# --- how much at once --------------------------------------------------------------------------


def test_one_call_sends_a_bounded_amount(loop: IOLoop, gated: Any) -> None:
    stream, gate, _ = gated()
    gate.room = 10**9
    writing = stream.write(bytes(WRITE_BUDGET * 5))
    assert not writing.done()
    for size in (10, WRITE_BUDGET, WRITE_BUDGET * 2, 20, 30):
        stream.write(bytes(size))
    while stream.writing():
        turns(loop)
    assert max(gate.asked) == WRITE_BUDGET
    assert len(gate.sent) == WRITE_BUDGET * 8 + 60


def test_several_pieces_leave_with_one_call(loop: IOLoop, gated: Any) -> None:
    stream, gate, _ = gated()
    for number in range(WRITE_PIECES + 10):
        stream.write(b"%03d" % number)
    gate.room = 10**9
    while stream.writing():
        turns(loop)
    assert gate.pieces[-2:] == [WRITE_PIECES, 10]
    assert gate.sent == b"".join(b"%03d" % number for number in range(WRITE_PIECES + 10))


def test_one_call_receives_a_bounded_amount(loop: IOLoop, gated: Any) -> None:
    stream, gate, peer = gated()

    def body() -> Any:
        filling = stream.read_into(bytearray(READ_BUDGET * 3), partial=True)
        peer.send(b"x")
        assert (yield filling) == 1

    run(loop, body)
    assert gate.asked == [READ_BUDGET]


# --- reads that cannot be ----------------------------------------------------------------------


def test_wrong_arguments_hurt_nothing(loop: IOLoop, pair: Any) -> None:
    stream, peer = pair
    for read in (
        lambda: stream.read_until("x"),
        lambda: stream.read_until_regex("x"),
        lambda: stream.read_bytes("1"),
        lambda: stream.read_into(b"readonly"),
        lambda: stream.read_into(memoryview(bytearray(10))[::2]),
        lambda: stream.write("x"),
        lambda: stream.write(memoryview(bytearray(10))[::2]),
    ):
        with pytest.raises(TypeError):
            read()
    with pytest.raises(ValueError, match="-1"):
        stream.read_bytes(-1)

    def body() -> Any:
        yield peer.write(b"x")
        assert (yield stream.read_until(b"x")) == b"x"

    run(loop, body)


@of_the_system  # What is sent is there at once.
@pytest.mark.parametrize(
    "limit", ["max_buffer_size", "read_chunk_size", "max_write_buffer_size", "write_low_water"]
)
def test_a_refused_limit_leaves_the_socket(loop: IOLoop, limit: str) -> None:
    ours, theirs = socket_pair()
    with ours, theirs:
        with pytest.raises(ValueError, match="negative"):
            IOStream(ours, **{limit: -1})  # type: ignore[arg-type]
        theirs.send(b"x")
        assert ours.recv(1) == b"x"


@pytest.mark.parametrize("ending", ["done", "cancelled", "closed", "refused"])
def test_the_caller_s_buffer_is_held_while_it_is_filled(
    loop: IOLoop, pair: Any, ending: str
) -> None:
    stream, peer = pair
    target = bytearray(4)

    def body() -> Any:
        if ending == "refused":
            other = stream.read_bytes(1)
            with pytest.raises(AssertionError) as caught:
                stream.read_into(target)
            del target[:]
            other.cancel()
            del caught
            return
        filling = stream.read_into(target)
        yield peer.write(b"ab")
        yield
        with pytest.raises(BufferError):
            target.extend(b"more")
        if ending == "done":
            yield peer.write(b"cd")
            assert (yield filling) == 4
        elif ending == "cancelled":
            filling.cancel()
            assert (yield stream.read_bytes(2)) == b"ab"
        else:
            stream.close()
            assert filling.exception() is not None
        del target[:]

    run(loop, body)


@pytest.mark.parametrize("read", ["read_until", "read_until_regex"])
def test_a_search_that_fails_on_a_closed_stream(loop: IOLoop, pair: Any, read: str) -> None:
    stream, peer = pair

    def body() -> Any:
        yield peer.write(b"abcdef!")
        peer.close()
        assert (yield stream.read_bytes(1)) == b"a"
        while not stream.closed():
            with pytest.raises(StreamClosedError):
                yield stream.read_bytes(100)
        with pytest.raises(StreamClosedError) as caught:
            yield getattr(stream, read)(b"!", max_bytes=3)
        assert isinstance(caught.value.real_error, UnsatisfiableReadError)
        assert (yield stream.read_until_close()) == b"bcdef!"

    run(loop, body)


# --- a peer that answers and goes --------------------------------------------------------------


READS: dict[str, Callable[[IOStream], Any]] = {
    "bytes": lambda stream: stream.read_bytes(5),
    "until": lambda stream: stream.read_until(b"y"),
    "close": lambda stream: stream.read_until_close(),
}


@of_the_system  # Writes to a bare descriptor.
@pytest.mark.parametrize("kind", READS)
@pytest.mark.parametrize("pending", [False, True])
def test_an_answer_outlives_the_write_that_breaks(
    loop: IOLoop, pair: Any, kind: str, pending: bool, caplog: Any
) -> None:
    stream, peer = pair
    stream.read_chunk_size = 2

    def body() -> Any:
        reading = READS[kind](stream) if pending else None
        os.write(peer.fileno(), b"reply")
        peer.close()
        writing = stream.write(b"a long upload")
        assert stream.closed()
        with pytest.raises(StreamClosedError) as caught:
            yield writing
        assert isinstance(caught.value.real_error, BrokenPipeError)
        assert (yield reading if reading is not None else READS[kind](stream)) == b"reply"
        with pytest.raises(StreamClosedError):
            stream.read_bytes(1)

    run(loop, body)
    assert caplog.records == []


@of_the_system  # Writes to a bare descriptor.
def test_an_answer_that_does_not_fit_the_read(loop: IOLoop, pair: Any, caplog: Any) -> None:
    caplog.set_level(logging.INFO)
    stream, peer = pair

    def body() -> Any:
        reading = stream.read_until(b"!", max_bytes=3)
        os.write(peer.fileno(), b"reply")
        peer.close()
        assert stream.write(b"a long upload").exception() is not None
        with pytest.raises(StreamClosedError) as caught:
            yield reading
        assert isinstance(caught.value.real_error, UnsatisfiableReadError)

    run(loop, body)
    assert len(caplog.records) == 1


@of_the_system  # What is sent is there at once.
def test_an_answer_is_taken_in_up_to_the_limit(loop: IOLoop) -> None:
    ours, theirs = socket_pair()
    stream = IOStream(ours, max_buffer_size=100)
    with theirs:
        theirs.send(b"x" * 10_000)
    assert stream.write(b"upload").exception() is not None
    assert 100 < len(stream._received) <= 150


# --- the end of writing, and of all ------------------------------------------------------------


def test_a_cancelled_send_eof_is_sent_all_the_same(loop: IOLoop, gated: Any) -> None:
    stream, gate, peer = gated()
    stream.write(b"x" * 10)
    ending = stream.send_eof()
    assert stream.send_eof() is ending
    assert "unsent=10 sending eof" in repr(stream)
    assert not stream.idle()
    ending.cancel()
    let(loop, gate, 10)
    peer.setblocking(False)
    assert peer.recv(1) == b""
    assert "sent eof" in repr(stream)
    assert not stream.idle()
    assert stream._registration is None


@of_the_system  # What is sent is there at once.
@pytest.mark.parametrize("code", [errno.EAGAIN, errno.ENOTCONN, errno.EPIPE])
def test_an_end_that_cannot_be_sent(loop: IOLoop, gated: Any, code: int, caplog: Any) -> None:
    stream, gate, peer = gated()
    calls: list[int] = []

    def shutdown(how: int) -> None:
        calls.append(how)
        if len(calls) == 1:
            raise OSError(code, os.strerror(code))
        gate.real.shutdown(how)

    gate.shutdown = shutdown
    peer.send(b"abc")
    ending = stream.send_eof()
    turns(loop, 3)
    if code == errno.EAGAIN:
        assert ending.result() is None
        assert peer.recv(1) == b""
    else:
        assert isinstance(ending.exception(), StreamClosedError)
        assert isinstance(stream.error, BrokenPipeError)
        assert stream.read_bytes(3).result() == b"abc"
    assert caplog.records == []


def test_abort(loop: IOLoop, pair: Any) -> None:
    stream, peer = pair

    def body() -> Any:
        yield peer.write(b"abc")
        assert (yield stream.read_bytes(1)) == b"a"
        reading = stream.read_until_close()
        stream.abort()
        stream.abort()
        with pytest.raises(StreamClosedError, match="aborted") as caught:
            yield reading
        assert isinstance(caught.value.real_error, ConnectionAbortedError)
        with pytest.raises(StreamClosedError):
            stream.read_until_close()

    run(loop, body)
    peer.close()
    peer.abort()
    assert peer.error is None


@of_the_system  # A unix socket.
def test_a_full_queue_of_a_unix_listener_is_a_failure(loop: IOLoop, tmp_path: Any) -> None:
    where = os.fspath(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(where)
        listener.listen(0)
        made = [IOStream(socket.socket(socket.AF_UNIX)) for _ in range(3)]
        connecting = [stream.connect(where) for stream in made]
        turns(loop, 3)
        error = connecting[-1].exception()
        assert isinstance(error, StreamClosedError)
        assert isinstance(error.real_error, BlockingIOError)
        for stream in made:
            stream.close()


def test_no_circles_through_what_fails(loop: IOLoop) -> None:
    gc.collect()
    gc.disable()
    try:
        for ending in ("write", "search", "refused", "eof", "abort"):
            ours, theirs = map(IOStream, socket_pair())

            def body(ours: IOStream = ours, theirs: IOStream = theirs, e: str = ending) -> Any:
                yield theirs.write(b"abc")
                reading: Any
                if e == "search":
                    reading = ours.read_until(b"!", max_bytes=2)
                elif e == "refused":
                    reading = ours.read_into(bytearray(10))
                    with suppress(AssertionError):
                        ours.read_into(bytearray(10))
                    ours.close()
                else:
                    reading = ours.read_bytes(10)
                if e == "abort":
                    ours.abort()
                elif e in ("write", "eof"):
                    theirs.close()
                    if e == "eof":
                        ours.send_eof()
                    else:
                        ours.write(b"x")
                try:
                    yield reading
                except StreamClosedError:
                    pass
                finally:
                    del reading

            run(loop, body)
            ours.close()
            theirs.close()
            del ours, theirs, body
        turns(loop, 3)
        assert gc.collect() == 0
    finally:
        gc.enable()


def test_a_stream_that_only_writes_listens_to_nothing(loop: IOLoop, pair: Any) -> None:
    stream, _ = pair
    writing = stream.write(b"x")
    assert writing.done()
    registration: Any = stream._registration
    assert registration is None
    reading = stream.read_bytes(1)
    registration = stream._registration
    assert registration.events == READ
    reading.cancel()
    with pytest.raises(CancelledError):
        reading.result()
