"""Streams on pipes, FIFOs and terminals, and the adapter under them."""

from __future__ import annotations

import errno
import gc
import io
import os
import pty
import socket
import termios
import tty
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from coro.errors import StreamClosedError
from coro.gen import coroutine
from coro.loop import IOLoop
from coro.net import PipeSocket
from coro.stream import PipeIOStream
from tests.support.leaks import count_fds
from tests.support.virtual import closing_loop, turns

Pair = tuple[PipeIOStream, PipeIOStream]


@pytest.fixture(params=["epoll", "poll", "select"])
def loop(request: Any) -> Iterator[IOLoop]:
    with closing_loop(request.param) as loop:
        yield loop
        left = loop.statistics()
        assert (left["handlers"], left["timers"], left["tasks"]) == (0, 0, 0)


def run(loop: IOLoop, body: Callable[[], Any]) -> Any:
    return loop.run_sync(coroutine(body))


def raw_terminal() -> tuple[int, int]:
    """A pseudo-terminal that passes bytes as they are: its slave and its master."""
    master, slave = pty.openpty()
    tty.setraw(slave, termios.TCSANOW)
    return slave, master


def fifo(directory: Path) -> tuple[int, int]:
    path = directory / "fifo"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    return reader, os.open(path, os.O_WRONLY)


@pytest.fixture(params=["pipe", "fifo", "socket", "terminal"])
def make(request: Any, loop: IOLoop, tmp_path: Path) -> Iterator[Callable[..., Pair]]:
    """``make(**limits)``: a reading and a writing stream; the limits are the reader's."""
    made: list[PipeIOStream] = []

    def make(**limits: Any) -> Pair:
        if request.param == "pipe":
            ours, theirs = os.pipe()
        elif request.param == "fifo":
            ours, theirs = fifo(tmp_path)
        elif request.param == "socket":
            ours, theirs = (end.detach() for end in socket.socketpair())
        else:
            ours, theirs = raw_terminal()
        pair = PipeIOStream(ours, **limits), PipeIOStream(theirs)
        made.extend(pair)
        return pair

    yield make
    for stream in made:
        stream.close()


@pytest.fixture
def pipe(loop: IOLoop) -> Iterator[Pair]:
    ours, theirs = os.pipe()
    pair = PipeIOStream(ours), PipeIOStream(theirs)
    yield pair
    for stream in pair:
        stream.close()


# --- the same reads and writes as on sockets ---------------------------------------------------


@pytest.mark.parametrize("chunk", [None, 1, 3])
def test_every_way_of_reading(loop: IOLoop, make: Any, chunk: Any) -> None:
    reader, writer = make(read_chunk_size=chunk)
    target = bytearray(4)

    def body() -> Any:
        yield writer.write(b"line one\r\nline two\r\n\r\nbody and ")
        assert (yield reader.read_until(b"\r\n")) == b"line one\r\n"
        assert (yield reader.read_bytes(5)) == b"line "
        assert (yield reader.read_until_regex(rb"o\r\n\r\n")) == b"two\r\n\r\n"
        assert (yield reader.read_into(target)) == 4
        assert target == b"body"
        some = yield reader.read_bytes(100, partial=True)
        reading = reader.read_bytes(9 - len(some))
        yield writer.write(b"rest")
        assert some + (yield reading) == b" and rest"
        assert (yield reader.read_bytes(0)) == b""
        yield writer.write(b"")
        del target[:]

    run(loop, body)


def test_a_megabyte_in_pieces(loop: IOLoop, make: Any) -> None:
    """Far more than a pipe or a terminal holds; several pieces leave with one call."""
    reader, writer = make()
    pieces = [bytes([number]) * 8192 for number in range(128)]

    def body() -> Any:
        writing = [writer.write(bytearray(piece)) for piece in pieces]
        assert writer.writing()
        assert (yield reader.read_bytes(8192 * 128)) == b"".join(pieces)
        yield writing
        assert not writer.writing()

    run(loop, body)


def test_a_large_body_through_a_small_buffer(loop: IOLoop, make: Any) -> None:
    reader, writer = make(max_buffer_size=10_000)

    def body() -> Any:
        writing = writer.write(b"x" * 100_000)
        for _ in range(100):
            assert (yield reader.read_bytes(1000)) == b"x" * 1000
            assert len(reader._received) <= 10_000
        yield writing

    run(loop, body)


def test_the_end_comes_after_the_data(loop: IOLoop, pipe: Pair) -> None:
    reader, writer = pipe

    def body() -> Any:
        yield writer.write(b"one\ntwo")
        writer.close()
        assert (yield reader.read_until(b"\n")) == b"one\n"
        assert (yield reader.read_until_close()) == b"two"
        assert reader.closed()
        assert reader.error is None
        with pytest.raises(StreamClosedError):
            reader.read_bytes(1)

    run(loop, body)


# --- the ends ----------------------------------------------------------------------------------


def test_a_writer_learns_that_nobody_reads(loop: IOLoop, pipe: Pair, caplog: Any) -> None:
    reader, writer = pipe

    def body() -> Any:
        writing = writer.write(bytes(1_000_000))
        yield
        reader.close()
        with pytest.raises(StreamClosedError) as caught:
            yield writing
        assert isinstance(caught.value.real_error, BrokenPipeError)

    run(loop, body)
    assert writer.closed()
    assert caplog.records == []


def test_an_idle_writer_learns_it_too(loop: IOLoop, pipe: Pair, caplog: Any) -> None:
    reader, writer = pipe
    told: list[BaseException | None] = []

    def body() -> Any:
        writer.set_close_callback(lambda: told.append(writer.error))
        yield
        reader.close()
        for _ in range(5):
            yield

    run(loop, body)
    assert len(told) == 1
    assert isinstance(told[0], BrokenPipeError)
    assert caplog.records == []


def test_a_terminal_that_is_hung_up_ends(loop: IOLoop) -> None:
    """The master reads EIO where a pipe reads nothing."""
    slave, master = raw_terminal()
    reader = PipeIOStream(master)

    def body() -> Any:
        os.write(slave, b"bye")
        assert (yield reader.read_bytes(1)) == b"b"
        os.close(slave)
        assert (yield reader.read_until_close()) == b"ye"
        assert reader.error is None

    run(loop, body)
    assert reader.closed()


def test_send_eof_closes_a_write_end(loop: IOLoop, pipe: Pair) -> None:
    reader, writer = pipe

    def body() -> Any:
        writing = writer.write(bytes(300_000))
        ending = writer.send_eof()
        assert not ending.done()
        assert len((yield reader.read_until_close())) == 300_000
        yield writing
        yield ending
        with pytest.raises((StreamClosedError, OSError)):
            yield writer.write(b"x")

    run(loop, body)
    assert writer.closed()


def test_send_eof_on_what_can_be_read_from(loop: IOLoop) -> None:
    """A terminal goes on: it has no half to close. A read end has never been writable."""
    slave, master = raw_terminal()
    stream = PipeIOStream(master)

    def body() -> Any:
        with pytest.raises(io.UnsupportedOperation):
            stream.send_eof()
        yield stream.write(b"still open")
        assert os.read(slave, 100) == b"still open"

    run(loop, body)
    stream.close()
    os.close(slave)


def test_the_wrong_direction(loop: IOLoop, pipe: Pair) -> None:
    """It is refused, and the stream goes on."""
    reader, writer = pipe

    def body() -> Any:
        with pytest.raises(io.UnsupportedOperation):
            reader.write(b"x")
        with pytest.raises(io.UnsupportedOperation):
            writer.read_bytes(1)
        with pytest.raises(io.UnsupportedOperation):
            reader.send_eof()
        yield writer.write(b"ab")
        assert (yield reader.read_bytes(2)) == b"ab"

    run(loop, body)


def test_abort_drops_what_waits(loop: IOLoop, pipe: Pair) -> None:
    reader, writer = pipe

    def body() -> Any:
        writing = writer.write(bytes(1_000_000))
        writer.abort()
        assert writer.closed()
        with pytest.raises(StreamClosedError):
            yield writing
        assert len((yield reader.read_until_close())) < 1_000_000

    run(loop, body)


# --- ownership ---------------------------------------------------------------------------------


def test_it_owns_the_descriptor(loop: IOLoop) -> None:
    before = count_fds()
    ours, theirs = os.pipe()
    reader = PipeIOStream(ours)
    assert reader.fileno() == ours
    assert not os.get_blocking(ours)
    assert os.get_blocking(theirs)
    os.close(theirs)
    reader.close()
    reader.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(ours)
    assert count_fds() == before


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_what_cannot_be_waited_for_is_refused(loop: IOLoop, tmp_path: Path, kind: str) -> None:
    path = tmp_path if kind == "directory" else tmp_path / "file"
    if kind == "file":
        path.write_bytes(b"x")
    fd = os.open(path, os.O_RDONLY)
    with pytest.raises(ValueError, match="neither a pipe, a socket nor a character device"):
        PipeIOStream(fd)
    os.close(fd)  # it is still the caller's


def test_a_closed_descriptor_is_refused(loop: IOLoop) -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    os.close(theirs)
    with pytest.raises(OSError, match="Bad file descriptor"):
        PipeIOStream(ours)


def test_repr_and_place(loop: IOLoop, pipe: Pair) -> None:
    reader, _ = pipe
    assert repr(reader).startswith(f"<PipeIOStream fd={reader.fileno()} open")
    assert reader._where() == f"fd {reader.fileno()}"


# --- the adapter -------------------------------------------------------------------------------


class TestPipeSocket:
    @pytest.fixture
    def ends(self) -> Iterator[tuple[PipeSocket, PipeSocket]]:
        ours, theirs = os.pipe()
        pair = PipeSocket(ours), PipeSocket(theirs)
        for end in pair:
            end.setblocking(False)
        yield pair
        for end in pair:
            end.close()

    def test_directions(self, ends: Any) -> None:
        reader, writer = ends
        assert (reader.readable, reader.writable) == (True, False)
        assert (writer.readable, writer.writable) == (False, True)
        slave, master = map(PipeSocket, raw_terminal())
        assert (master.readable, master.writable) == (True, True)
        slave.close()
        master.close()

    def test_bytes(self, ends: Any) -> None:
        reader, writer = ends
        target = bytearray(4)
        with pytest.raises(BlockingIOError):
            reader.recv(1)
        with memoryview(target) as view, pytest.raises(BlockingIOError):
            reader.recv_into(view)
        assert writer.send(memoryview(b"abc")) == 3
        assert writer.sendmsg([b"de", memoryview(b"fg")]) == 4
        assert reader.recv(2) == b"ab"
        with memoryview(target) as view:
            assert reader.recv_into(view[1:]) == 3
        assert target == b"\0cde"
        writer.close()
        assert reader.recv(100) == b"fg"
        assert reader.recv(100) == b""
        with memoryview(target) as view:
            assert reader.recv_into(view) == 0

    def test_a_full_pipe(self, ends: Any) -> None:
        _, writer = ends
        taken = writer.send(bytes(10_000_000))
        assert 0 < taken < 10_000_000
        with pytest.raises(BlockingIOError):
            writer.send(b"x" * 10_000)
        with pytest.raises(BlockingIOError):
            writer.sendmsg([b"x" * 10_000, b"y"])

    def test_no_reader(self, ends: Any) -> None:
        reader, writer = ends
        reader.close()
        with pytest.raises(BrokenPipeError):
            writer.send(b"x")
        with pytest.raises(BrokenPipeError):
            writer.recv(1)

    def test_no_address(self, ends: Any) -> None:
        with pytest.raises(OSError) as caught:
            ends[0].getpeername()
        assert caught.value.errno == errno.ENOTSOCK

    def test_errors_of_reads_pass(self, ends: Any) -> None:
        reader, _ = ends
        reader.close()
        assert reader.fileno() == -1
        with pytest.raises(OSError, match="Bad file descriptor"):
            reader.recv(1)

    def test_a_forgotten_one_is_closed_with_a_warning(self) -> None:
        before = count_fds()
        ours, theirs = os.pipe()
        os.close(theirs)
        forgotten = PipeSocket(ours)
        with pytest.warns(ResourceWarning):
            del forgotten
        assert count_fds() == before


def test_no_circles(loop: IOLoop) -> None:
    gc.collect()
    gc.disable()
    try:
        ours, theirs = os.pipe()
        pair = [PipeIOStream(ours), PipeIOStream(theirs)]

        def body() -> Any:
            writing = pair[1].write(bytes(1_000_000))
            yield pair[0].read_bytes(1)
            pair[0].close()
            with suppress(StreamClosedError):
                yield writing
            del writing

        run(loop, body)
        pair.clear()
        del body
        turns(loop, 3)
        assert gc.collect() == 0
    finally:
        gc.enable()
