"""What holds for every stream, whatever carries its bytes.

Each test runs on TCP, unix sockets, pipes, TLS, TLS by the memory pump, and TLS inside TLS; and
with the bytes fed whole, one by one, in odd pieces, and with a tail that belongs to nobody yet.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from coro.errors import StreamClosedError, UnsatisfiableReadError
from coro.gen import coroutine, moment
from coro.loop import IOLoop
from coro.stream import IOStream, PipeIOStream
from coro.tcp import connect as tcp_connect
from tests.support.authority import Authority
from tests.support.hosting import of_the_system
from tests.support.leaks import count_fds
from tests.support.virtual import closing_loop

Stream = Any
Pair = tuple[Stream, Stream]
Connect = Callable[[Authority], Any]


def tcp(_ca: Authority) -> Any:
    network = IOLoop.current().network
    (listener,) = network.bind_sockets(0, "127.0.0.1")
    try:
        client = yield tcp_connect("127.0.0.1", listener.getsockname()[1])
        server, _ = listener.accept()
    finally:
        listener.close()
    return client, IOStream(server)


def unix(_ca: Authority) -> Any:
    one, other = socket.socketpair()
    return IOStream(one), IOStream(other)
    yield


def pipes(_ca: Authority) -> Any:
    reader, writer = os.pipe()
    return PipeIOStream(writer), PipeIOStream(reader)
    yield


def tls_over(one: Stream, other: Stream, ca: Authority, half_close: bool = False) -> Any:
    pair = yield [
        one.start_tls(False, ca.client_context(), "localhost", half_close=half_close),
        other.start_tls(True, ca.server_context(), half_close=half_close),
    ]
    return tuple(pair)


def tls(ca: Authority) -> Any:
    one, other = yield from tcp(ca)
    return (yield from tls_over(one, other, ca))


def tls_pump(ca: Authority) -> Any:
    one, other = yield from tcp(ca)
    return (yield from tls_over(one, other, ca, half_close=True))


def tls_in_tls(ca: Authority) -> Any:
    one, other = yield from tls(ca)
    return (yield from tls_over(one, other, ca))


of_the_system(unix)
of_the_system(pipes)

ALL = [tcp, unix, pipes, tls, tls_pump, tls_in_tls]
TWO_WAYS = [connect for connect in ALL if connect is not pipes]


def whole(data: bytes) -> list[bytes]:
    return [data]


def single(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


def odd(data: bytes) -> list[bytes]:
    return [data[at : at + 7] for at in range(0, len(data), 7)]


FEEDS = [whole, single, odd]


@pytest.fixture(params=ALL, ids=lambda connect: connect.__name__)
def connect(request: Any) -> Connect:
    return request.param


@pytest.fixture(params=FEEDS, ids=lambda feed: feed.__name__)
def feed(request: Any) -> Callable[[bytes], list[bytes]]:
    return request.param


@pytest.fixture
def play(ca: Authority) -> Any:
    """``play(connect, body)``: run ``body(writer, reader)`` on two connected streams.

    Afterwards both are closed, and descriptors, handlers, timers and tasks are as before.
    """

    def play(connect: Connect, body: Callable[[Stream, Stream], Any]) -> Any:
        @coroutine
        def main() -> Any:
            writer, reader = yield from connect(ca)
            try:
                return (yield from body(writer, reader))
            finally:
                writer.close()
                reader.close()

        with closing_loop() as loop:
            before = count_fds()
            result = loop.run_sync(main)
            loop.run_sync(lambda: moment)
            left = loop.statistics()
            assert (left["handlers"], left["timers"], left["tasks"]) == (0, 0, 0)
            assert count_fds() == before
        return result

    return play


@coroutine
def send(writer: Stream, pieces: list[bytes], close: bool = False) -> Any:
    """Write the pieces so that each arrives by itself, as far as the transport lets it."""
    for piece in pieces:
        with suppress(StreamClosedError):
            yield writer.write(piece)
        yield moment
    if close:
        writer.close()


READS: list[tuple[str, Callable[[Stream], Any], bytes, bytes]] = [
    ("read_bytes", lambda s: s.read_bytes(10), b"0123456789", b"0123456789"),
    ("read_bytes of one", lambda s: s.read_bytes(1), b"0", b"0"),
    ("read_until", lambda s: s.read_until(b"\r\n"), b"a line\r\n", b"a line\r\n"),
    ("read_until, false start", lambda s: s.read_until(b"\r\n"), b"\r\r\r\n", b"\r\r\r\n"),
    ("read_until, at the limit", lambda s: s.read_until(b"\n", max_bytes=5), b"1234\n", b"1234\n"),
    ("regex", lambda s: s.read_until_regex(rb"\d+;"), b"abc123;", b"abc123;"),
    ("regex with a limit", lambda s: s.read_until_regex(b"b+c", max_bytes=6), b"aabbbc", b"aabbbc"),
]


@pytest.mark.parametrize(("name", "read", "data", "expected"), READS, ids=[r[0] for r in READS])
@pytest.mark.parametrize("tail", [b"", b"tail"])
def test_a_read_takes_what_it_asks_for_and_no_more(
    connect: Connect,
    feed: Any,
    play: Any,
    name: str,
    read: Any,
    data: bytes,
    expected: bytes,
    tail: bytes,
) -> None:
    def body(writer: Stream, reader: Stream) -> Any:
        sending = send(writer, feed(data + tail), close=True)
        assert (yield read(reader)) == expected
        assert (yield reader.read_until_close()) == tail
        with pytest.raises(StreamClosedError):
            yield reader.read_bytes(1)
        yield sending
        assert reader.closed()

    play(connect, body)


def test_partial_reads_get_what_there_is(connect: Connect, feed: Any, play: Any) -> None:
    data = bytes(range(100))

    def body(writer: Stream, reader: Stream) -> Any:
        sending = send(writer, feed(data))
        got = b""
        while len(got) < len(data):
            part = yield reader.read_bytes(9, partial=True)
            assert 1 <= len(part) <= 9
            got += part
        assert got == data
        yield sending

    play(connect, body)


def test_reads_of_all_kinds_in_turn(connect: Connect, feed: Any, play: Any) -> None:
    data = b"head\r\n" + b"x" * 20 + b"into it" + b"key=value;" + b"the rest"

    def body(writer: Stream, reader: Stream) -> Any:
        sending = send(writer, feed(data), close=True)
        assert (yield reader.read_until(b"\r\n")) == b"head\r\n"
        assert (yield reader.read_bytes(20)) == b"x" * 20
        target = bytearray(7)
        assert (yield reader.read_into(target)) == 7
        target.append(0)  # nobody holds it
        assert target == b"into it\0"
        assert (yield reader.read_until_regex(b"[^;]+;")) == b"key=value;"
        assert (yield reader.read_until_close()) == b"the rest"
        yield sending

    play(connect, body)


def test_zero_bytes_finish_at_once(connect: Connect, play: Any) -> None:
    def body(writer: Stream, reader: Stream) -> Any:
        assert reader.read_bytes(0).result() == b""
        assert reader.read_into(bytearray()).result() == 0
        yield writer.write(b"")
        assert not reader.closed()

    play(connect, body)


@pytest.mark.parametrize("over", ["missing", "beyond"])
def test_a_delimiter_that_does_not_come_in_time_closes_the_stream(
    connect: Connect, feed: Any, play: Any, over: str, caplog: Any
) -> None:
    data = b"x" * 30 if over == "missing" else b"123456\n" + b"x" * 20

    def body(writer: Stream, reader: Stream) -> Any:
        sending = send(writer, feed(data))
        with pytest.raises(StreamClosedError) as caught:
            yield reader.read_until(b"\n", max_bytes=6)
        assert isinstance(caught.value.real_error, UnsatisfiableReadError)
        assert reader.closed()
        yield sending

    play(connect, body)


MESSAGE = b"HEAD 5\r\n" + b"12345"


@pytest.mark.parametrize("length", range(len(MESSAGE)))
def test_an_end_at_each_byte_of_a_message(connect: Connect, play: Any, length: int) -> None:
    """What came before the end is readable; what did not come is told, and nothing is invented."""

    def body(writer: Stream, reader: Stream) -> Any:
        sending = send(writer, single(MESSAGE[:length]), close=True)
        with pytest.raises(StreamClosedError):
            head = yield reader.read_until(b"\r\n")
            assert head == b"HEAD 5\r\n"
            yield reader.read_bytes(5)
        assert reader.closed()
        yield sending

    play(connect, body)


@pytest.mark.parametrize("length", [0, 1, 7, 8, 12])
def test_an_abort_at_some_bytes_of_a_message(connect: Connect, play: Any, length: int) -> None:
    def body(writer: Stream, reader: Stream) -> Any:
        yield send(writer, single(MESSAGE[:length]))
        writer.abort()
        assert writer.closed()
        with pytest.raises(StreamClosedError):
            yield reader.read_until(b"\r\n")
            yield reader.read_bytes(5)
        assert reader.closed()

    play(connect, body)


def test_a_cancelled_read_takes_nothing(connect: Connect, feed: Any, play: Any) -> None:
    def body(writer: Stream, reader: Stream) -> Any:
        waiting = reader.read_bytes(10)
        yield send(writer, feed(b"01234"))
        waiting.cancel()
        assert not reader.reading()
        assert (yield reader.read_bytes(5)) == b"01234"

    play(connect, body)


def test_the_close_callback_comes_once_after_the_peers_end(connect: Connect, play: Any) -> None:
    def body(writer: Stream, reader: Stream) -> Any:
        told = []
        reader.set_close_callback(lambda: told.append(reader.closed()))
        yield writer.write(b"last words")
        writer.close()
        assert (yield reader.read_until_close()) == b"last words"
        for _ in range(5):
            yield moment
        assert told == [True]

    play(connect, body)


@of_the_system  # Which of two finished writes is told first is drawn in simulation.
def test_writes_of_many_each_at_its_own_time(connect: Connect, play: Any) -> None:
    """More than the system takes: futures are done in order, and nothing is lost or doubled."""
    pieces = [bytes([number]) * 50_000 for number in range(40)]

    def body(writer: Stream, reader: Stream) -> Any:
        done: list[int] = []
        futures = [writer.write(piece) for piece in pieces]
        for number, future in enumerate(futures):
            future.add_done_callback(lambda _, number=number: done.append(number))
        assert (yield reader.read_bytes(2_000_000)) == b"".join(pieces)
        yield futures
        yield moment
        assert done == list(range(40))
        assert not writer.writing()

    play(connect, body)


def test_a_writer_is_held_up_by_a_reader_who_does_not_read(connect: Connect, play: Any) -> None:
    """At its limit a reader takes no more in, and the writer's bytes wait on the writer's side."""
    total = 8 << 20

    def body(writer: Stream, reader: Stream) -> Any:
        reader.max_buffer_size = 100_000
        writing = writer.write(b"x" * total)
        assert (yield reader.read_bytes(1)) == b"x"
        for _ in range(200):
            yield moment
        assert not writing.done()
        assert writer.writing()
        got = 1
        while got < total:
            got += len((yield reader.read_bytes(50_000, partial=True)))
        yield writing

    play(connect, body)


def test_a_megabyte_of_noise_in_random_pieces(connect: Connect, play: Any) -> None:
    choose = random.Random(4)
    data = choose.randbytes(1 << 20)

    @coroutine
    def write_all(writer: Stream) -> Any:
        at = 0
        while at < len(data):
            size = choose.randrange(1, 70_000)
            yield writer.write(memoryview(data)[at : at + size])
            at += size
        writer.close()

    def body(writer: Stream, reader: Stream) -> Any:
        digest = hashlib.sha256()
        writing = write_all(writer)
        with suppress(StreamClosedError):
            while True:
                digest.update((yield reader.read_bytes(choose.randrange(1, 90_000), partial=True)))
        yield writing
        assert digest.digest() == hashlib.sha256(data).digest()

    play(connect, body)


@of_the_system  # It has a pair of unix sockets.
def test_both_ways_at_once(play: Any) -> None:
    data = bytes(range(256)) * 4000

    def body(one: Stream, other: Stream) -> Any:
        writes = [one.write(data), other.write(data[::-1])]
        got = yield [other.read_bytes(len(data)), one.read_bytes(len(data))]
        assert got == [data, data[::-1]]
        yield writes

    for connect in TWO_WAYS:
        play(connect, body)


@pytest.mark.parametrize("connect", [tcp, unix, tls_pump], ids=lambda connect: connect.__name__)
def test_a_half_close_leaves_the_other_way_open(connect: Connect, play: Any) -> None:
    def body(one: Stream, other: Stream) -> Any:
        yield one.write(b"question")
        yield one.send_eof()
        with pytest.raises(StreamClosedError):
            yield one.write(b"more")
        assert (yield other.read_bytes(8)) == b"question"
        yield other.write(b"answer")
        other.close()
        assert (yield one.read_until_close()) == b"answer"

    play(connect, body)


@pytest.mark.parametrize("connect", [tcp, unix, tls_pump], ids=lambda connect: connect.__name__)
def test_an_answer_after_the_whole_question(connect: Connect, play: Any) -> None:
    """The server reads to the end, and answers then: for that its stream stays half open."""
    answer = bytes(range(256)) * 8000

    def body(client: Stream, server: Stream) -> Any:
        server.half_open = True
        yield client.write(b"question")
        yield client.send_eof()
        assert (yield server.read_until_close()) == b"question"
        assert not server.closed()
        assert (yield server.read_until_close()) == b""
        with pytest.raises(StreamClosedError):
            yield server.read_bytes(1)
        writing = server.write(answer)
        assert (yield client.read_bytes(len(answer))) == answer
        yield writing
        yield server.send_eof()
        assert server.closed()
        assert (yield client.read_until_close()) == b""

    play(connect, body)


@pytest.mark.parametrize("connect", [tcp, unix], ids=lambda connect: connect.__name__)
def test_half_open_a_read_that_cannot_be_satisfied_ends(connect: Connect, play: Any) -> None:
    def body(client: Stream, server: Stream) -> Any:
        server.half_open = True
        waiting = server.read_bytes(10)
        yield client.write(b"short")
        yield client.send_eof()
        with pytest.raises(StreamClosedError):
            yield waiting
        assert (yield server.read_bytes(5)) == b"short"
        client.abort()
        with pytest.raises(StreamClosedError):
            while True:
                yield server.write(b"x" * 100_000)

    play(connect, body)


def test_repr_tells_class_and_state(connect: Connect, play: Any) -> None:
    def body(writer: Stream, reader: Stream) -> Any:
        yield writer.write(b"abc")
        yield reader.read_until_regex(b"a(?=bc)")
        assert re.fullmatch(r"<\w*IOStream fd=-?\d+ open buffered=2.*>", repr(reader))
        reader.close()
        assert "closed" in repr(reader)

    play(connect, body)


def test_the_loop_is_the_current_one(connect: Connect, play: Any) -> None:
    def body(writer: Stream, reader: Stream) -> Any:
        assert writer.io_loop is reader.io_loop is IOLoop.current()
        return
        yield

    play(connect, body)
