"""Streams, over TCP, over a unix socket pair and over TLS: one suite for all of them."""

from __future__ import annotations

import gc
import logging
import re
import socket
import ssl
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from coro.errors import (
    CancelledError,
    StreamBufferFullError,
    StreamClosedError,
    UnsatisfiableReadError,
)
from coro.gen import coroutine
from coro.loop import IOLoop
from coro.stream import IOStream
from tests.support.authority import Authority
from tests.support.hosting import of_the_system
from tests.support.leaks import count_fds
from tests.support.pairs import socket_pair, tcp_sockets
from tests.support.virtual import closing_loop, turns

Pair = tuple[IOStream, IOStream]


@pytest.fixture
def loop() -> Iterator[IOLoop]:
    with closing_loop() as loop:
        yield loop
        left = loop.statistics()
        assert (left["handlers"], left["timers"], left["tasks"]) == (0, 0, 0)


@pytest.fixture(params=["tcp", "unix", "tls"])
def make(request: Any, loop: IOLoop, ca: Authority) -> Iterator[Callable[..., Pair]]:
    """``make(**limits)``: two connected streams; the limits are the first one's."""
    made: list[IOStream] = []

    def make(**limits: Any) -> Pair:
        ours, theirs = socket_pair() if request.param == "unix" else tcp_sockets()
        one, other = IOStream(ours, **limits), IOStream(theirs)
        if request.param == "tls":

            @coroutine
            def secure() -> Any:
                return (
                    yield [
                        one.start_tls(False, ca.client_context(), "localhost"),
                        other.start_tls(True, ca.server_context("localhost")),
                    ]
                )

            one, other = loop.run_sync(secure)
        made.extend((one, other))
        return one, other

    yield make
    for stream in made:
        stream.close()


def run(loop: IOLoop, body: Callable[[], Any]) -> Any:
    return loop.run_sync(coroutine(body))


# --- reading -----------------------------------------------------------------------------------

MESSAGE = b"line one\r\nline two\r\n\r\nbody"


def feed_whole(stream: IOStream) -> Any:
    yield stream.write(MESSAGE)


def feed_bytes(stream: IOStream) -> Any:
    for at in range(len(MESSAGE)):
        yield stream.write(MESSAGE[at : at + 1])
        yield


def feed_pieces(stream: IOStream) -> Any:
    for piece in (MESSAGE[:13], MESSAGE[13:21], MESSAGE[21:]):
        yield stream.write(piece)
        yield


@pytest.mark.parametrize("feed", [feed_whole, feed_bytes, feed_pieces])
@pytest.mark.parametrize("chunk", [None, 1, 3])
def test_every_way_of_reading(loop: IOLoop, make: Any, feed: Any, chunk: Any) -> None:
    reader, writer = make(read_chunk_size=chunk)
    target = bytearray(3)

    def body() -> Any:
        feeding = coroutine(feed)(writer)
        assert (yield reader.read_until(b"\r\n")) == b"line one\r\n"
        assert (yield reader.read_bytes(5)) == b"line "
        assert (yield reader.read_until_regex(rb"t\w+\r\n")) == b"two\r\n"
        assert (yield reader.read_until_regex(rb"\n")) == b"\r\n"
        some = yield reader.read_bytes(2, partial=True)
        assert 1 <= len(some) <= 2
        rest = b"body"[len(some) :]
        assert (yield reader.read_into(target[: len(rest)])) == len(rest)
        yield feeding
        writer.close()
        assert (yield reader.read_until_close()) == b""

    run(loop, body)


def test_read_into_fills_the_caller_s_buffer(loop: IOLoop, make: Any) -> None:
    reader, writer = make()
    target = bytearray(b"........")

    def body() -> Any:
        yield writer.write(b"ab")
        assert (yield reader.read_bytes(1)) == b"a"
        filling = reader.read_into(target)
        assert target == b"b......." or not filling.done()
        yield writer.write(b"cdefghij")
        assert (yield filling) == 8
        assert target == b"bcdefghi"
        assert (yield reader.read_into(target, partial=True)) == 1
        assert target == b"jcdefghi"
        del target[:]  # no view was left on it
        assert (yield reader.read_into(bytearray())) == 0
        assert (yield reader.read_bytes(0)) == b""

    run(loop, body)


def test_items_larger_than_a_byte_are_counted_in_bytes(loop: IOLoop, make: Any) -> None:
    reader, writer = make()
    sent = memoryview(bytes(range(80))).cast("L")
    target = bytearray(80)

    def body() -> Any:
        yield writer.write(sent)
        assert (yield reader.read_into(memoryview(target).cast("L"))) == 80
        assert target == bytes(range(80))

    run(loop, body)


def test_a_megabyte_each_way(loop: IOLoop, make: Any) -> None:
    one, other = make()
    data = bytes(range(256)) * 4096

    def body() -> Any:
        got = yield [
            one.write(data),
            other.write(data),
            one.read_bytes(len(data)),
            other.read_bytes(len(data)),
        ]
        assert got == [None, None, data, data]

    run(loop, body)


def test_one_read_at_a_time(loop: IOLoop, make: Any) -> None:
    reader, writer = make()

    def body() -> Any:
        first = reader.read_bytes(1)
        assert reader.reading()
        with pytest.raises(AssertionError, match="Already reading"):
            reader.read_bytes(1)
        yield writer.write(b"x")
        assert (yield first) == b"x"
        assert not reader.reading()

    run(loop, body)


@pytest.mark.parametrize("kind", ["bytes", "into", "until"])
def test_a_cancelled_read_takes_nothing(loop: IOLoop, make: Any, kind: str) -> None:
    reader, writer = make()
    target = bytearray(4)

    def body() -> Any:
        yield writer.write(b"ab")
        assert (yield reader.read_bytes(1)) == b"a"
        reading = {
            "bytes": lambda: reader.read_bytes(4),
            "into": lambda: reader.read_into(target),
            "until": lambda: reader.read_until(b"!"),
        }[kind]()
        yield
        reading.cancel()
        yield writer.write(b"cde")
        assert (yield reader.read_bytes(4)) == b"bcde"
        with pytest.raises(CancelledError):
            yield reading

    run(loop, body)


@pytest.mark.parametrize("data", [b"x" * 20, b"x" * 8 + b"\r\nabcdef"])
@pytest.mark.parametrize("early", [False, True])
def test_max_bytes(loop: IOLoop, make: Any, caplog: Any, data: bytes, early: bool) -> None:
    caplog.set_level(logging.INFO)
    for pattern in ("delimiter", "regex"):
        reader, writer = make()

        def body(reader: IOStream = reader, writer: IOStream = writer, p: str = pattern) -> Any:
            if early:
                yield writer.write(data)
                yield reader.read_bytes(1)
            read = reader.read_until if p == "delimiter" else reader.read_until_regex
            reading = read(b"\r\n", max_bytes=8)
            if not early:
                yield writer.write(data)
            with pytest.raises(StreamClosedError) as caught:
                yield reading
            assert isinstance(caught.value.real_error, UnsatisfiableReadError)
            assert reader.closed()

        run(loop, body)
    lines = [r for r in caplog.records if r.levelno == logging.INFO and r.name == "coro.general"]
    assert [r.getMessage().partition(":")[0] for r in lines] == [
        "Unsatisfiable read, closing connection"
    ] * 2


def test_max_bytes_that_just_suffice(loop: IOLoop, make: Any) -> None:
    reader, writer = make()

    def body() -> Any:
        yield writer.write(b"123456\r\nrest")
        assert (yield reader.read_until(b"\r\n", max_bytes=8)) == b"123456\r\n"
        assert (yield reader.read_bytes(4)) == b"rest"

    run(loop, body)


# --- limits and pressure -----------------------------------------------------------------------


def test_a_large_body_through_a_small_buffer(loop: IOLoop, make: Any) -> None:
    reader, writer = make(max_buffer_size=10_000)

    def body() -> Any:
        writing = writer.write(b"x" * 100_000)
        for _ in range(100):
            assert (yield reader.read_bytes(1000)) == b"x" * 1000
        yield writing

    run(loop, body)


def test_a_writer_waits_for_its_reader(loop: IOLoop, make: Any) -> None:
    reader, writer = make(max_buffer_size=500_000)
    size = 16_000_000

    def body() -> Any:
        writing = writer.write(bytes(size))
        yield reader.read_bytes(1)
        for _ in range(50):
            yield
        assert not writing.done()
        assert writer.writing()
        assert len(reader._received) <= 500_000
        left = size - 1
        while left:
            left -= len((yield reader.read_bytes(100_000, partial=True)))
        yield writing
        assert not writer.writing()

    run(loop, body)


def test_more_than_the_buffer_holds(loop: IOLoop, make: Any, caplog: Any) -> None:
    reader, writer = make(max_buffer_size=1000)

    def body() -> Any:
        reading = reader.read_until(b"!")
        yield writer.write(b"x" * 5000)
        with pytest.raises(StreamClosedError) as caught:
            yield reading
        assert isinstance(caught.value.real_error, StreamBufferFullError)
        assert reader.closed()

    run(loop, body)
    assert "Reached maximum read buffer size" in caplog.text


def test_more_than_may_wait_to_be_sent(loop: IOLoop, make: Any) -> None:
    writer, reader = make(max_write_buffer_size=1000)

    def body() -> Any:
        with pytest.raises(StreamBufferFullError):
            writer.write(bytes(50_000_000))
        assert not writer.closed()
        yield

    run(loop, body)
    assert not reader.reading()


@of_the_system  # Which of several that end in one turn goes on first.
def test_each_write_is_done_at_its_own_offset(loop: IOLoop, make: Any) -> None:
    reader, writer = make()
    done: list[int] = []

    def body() -> Any:
        first = writer.write(bytes(10_000_000))
        others = [writer.write(b"x" * 1000) for _ in range(100)]
        for number, future in enumerate(others):
            future.add_done_callback(lambda _, n=number: done.append(n))
        assert not writer.write(b"").done()
        yield reader.read_bytes(10_000_000)
        yield first
        yield reader.read_bytes(100_000)
        yield others

    run(loop, body)
    turns(loop, 2)
    assert done == list(range(100))


def test_a_cancelled_write_goes_out_all_the_same(loop: IOLoop, make: Any) -> None:
    reader, writer = make()

    def body() -> Any:
        writing = writer.write(bytes(5_000_000))
        writing.cancel()
        last = writer.write(b"end")
        assert (yield reader.read_bytes(5_000_003))[-3:] == b"end"
        yield last

    run(loop, body)


def test_no_events_are_polled_for_nobody(loop: IOLoop, make: Any) -> None:
    """A stream that holds something and is not read rests, also when its peer has hung up."""
    reader, writer = make()

    def body() -> Any:
        yield writer.write(b"a")
        yield reader.read_bytes(1)
        yield writer.write(b"bc")
        for _ in range(5):
            yield
        writer.close()
        for _ in range(5):
            yield
        polled = loop._poll(0)
        assert reader.fileno() not in [fd for fd, _ in polled]
        assert (yield reader.read_until_close()) == b"bc"

    run(loop, body)


# --- closing -----------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [None, 1, 2])
def test_what_came_before_the_end_stays_readable(loop: IOLoop, make: Any, chunk: Any) -> None:
    reader, writer = make(read_chunk_size=chunk)

    def body() -> Any:
        yield writer.write(b"one\ntwo\n")
        writer.close()
        assert (yield reader.read_until(b"\n")) == b"one\n"
        for _ in range(10):
            yield
        assert (yield reader.read_bytes(3)) == b"two"
        assert (yield reader.read_bytes(1)) == b"\n"
        with pytest.raises(StreamClosedError) as caught:
            yield reader.read_bytes(1)
        assert caught.value.real_error is None
        assert reader.closed()
        with pytest.raises(StreamClosedError):
            reader.read_bytes(1)  # at once: it is known by now
        with pytest.raises(StreamClosedError):
            reader.write(b"x")

    run(loop, body)


@pytest.mark.parametrize("pending", [False, True])
def test_the_close_callback(loop: IOLoop, make: Any, pending: bool) -> None:
    reader, writer = make()
    told: list[str] = []

    def body() -> Any:
        reader.set_close_callback(lambda: told.append("closed"))
        reading = reader.read_bytes(1) if pending else None
        yield
        writer.close()
        while not told:
            yield
        if reading is not None:
            with pytest.raises(StreamClosedError):
                yield reading
        for _ in range(3):
            yield

    run(loop, body)
    assert told == ["closed"]


@pytest.mark.parametrize("pending", [False, True])
def test_the_close_callback_when_the_rest_was_read(loop: IOLoop, make: Any, pending: bool) -> None:
    """The end came while bytes waited to be read, and is noticed when they are."""
    reader, writer = make()
    told: list[str] = []

    def body() -> Any:
        reader.set_close_callback(lambda: told.append("closed"))
        reading = reader.read_bytes(1) if pending else None
        yield writer.write(b"data")
        writer.close()
        # Until what there is has been read ahead, and perhaps the descriptor is not listened to.
        for _ in range(10):
            yield
        if reading is not None:
            assert (yield reading) == b"d"
        rest = b"data" if reading is None else b"ata"
        assert (yield reader.read_bytes(len(rest))) == rest
        while not told:
            yield
        assert reader.closed()

    run(loop, body)
    assert told == ["closed"]


def test_a_closed_stream_has_no_descriptor(loop: IOLoop, make: Any) -> None:
    reader, _ = make()
    assert reader.fileno() >= 0
    reader.close()
    assert reader.fileno() == -1


def test_the_reason_of_a_close(loop: IOLoop, make: Any) -> None:
    """As the error itself, as what is being handled, and as ``sys.exc_info()`` says it."""
    streams = [stream for _ in range(2) for stream in make()]
    error = ValueError("why")
    try:
        raise error
    except ValueError:
        for stream, reason in zip(streams, (error, True, sys.exc_info(), False), strict=True):
            stream.close(reason)
    assert [stream.error for stream in streams] == [error, error, error, None]
    for stream in streams:
        stream.error = None


def test_a_local_close_ends_what_is_pending(loop: IOLoop, make: Any) -> None:
    reader, _ = make()
    reason = ValueError("enough")

    def body() -> Any:
        reading = reader.read_until_close()
        writing = reader.write(bytes(50_000_000))
        reader.close(reason)
        for future in (reading, writing):
            with pytest.raises(StreamClosedError) as caught:
                yield future
            assert caught.value.real_error is reason
        assert reader.error is reason

    run(loop, body)


def test_read_until_close_after_a_plain_local_close(loop: IOLoop, make: Any) -> None:
    reader, writer = make()

    def body() -> Any:
        yield writer.write(b"abc")
        assert (yield reader.read_bytes(1)) == b"a"
        reading = reader.read_until_close()
        reader.close()
        assert (yield reading) == b"bc"
        assert (yield reader.read_until_close()) == b""

    run(loop, body)


def test_the_caller_s_data_is_let_go_by_a_close(loop: IOLoop, make: Any) -> None:
    stream, _ = make()
    data = bytearray(20_000_000)

    def body() -> Any:
        writing = stream.write(data)
        assert stream.writing()
        stream.close()
        del data[:]
        with pytest.raises(StreamClosedError):
            yield writing

    run(loop, body)


def test_repr(loop: IOLoop, make: Any) -> None:
    reader, writer = make()

    def body() -> Any:
        yield writer.write(b"abc")
        yield reader.read_bytes(1)
        assert re.search(r"fd=\d+ open buffered=2", repr(reader))
        reading = reader.read_until(b"!")
        assert "read_until" in repr(reader)
        assert "read_until on" in repr(reading)
        reader.close(ValueError("x"))
        assert "closed" in repr(reader)
        assert "ValueError('x')" in repr(reader)

    run(loop, body)


def test_no_circles(loop: IOLoop, make: Any) -> None:
    gc.collect()
    gc.disable()
    try:
        for ending in ("peer", "own", "error"):
            reader, writer = make()

            def body(reader: IOStream = reader, writer: IOStream = writer, e: str = ending) -> Any:
                yield writer.write(b"abc")
                yield reader.read_bytes(1)
                reader.set_close_callback(lambda: None)
                reading = reader.read_until(b"!")
                if e == "peer":
                    writer.close()
                else:
                    reader.close(ValueError("x") if e == "error" else False)
                try:
                    yield reading
                except StreamClosedError:
                    pass
                finally:
                    del reading

            run(loop, body)
            del reader, writer, body
        turns(loop, 3)
        assert gc.collect() == 0
    finally:
        gc.enable()


# --- a reset, on TCP ---------------------------------------------------------------------------


def reset(stream: IOStream) -> None:
    stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    stream.close()


def test_a_reset_is_an_end_for_read_until_close(loop: IOLoop, caplog: Any) -> None:
    reader, writer = map(IOStream, tcp_sockets())

    def body() -> Any:
        yield writer.write(b"abc")
        reading = reader.read_until_close()
        yield
        yield
        reset(writer)
        assert (yield reading) == b"abc"
        assert isinstance(reader.error, ConnectionResetError)

    run(loop, body)
    assert caplog.records == []


def test_a_reset_is_the_reason_of_other_reads(loop: IOLoop) -> None:
    reader, writer = map(IOStream, tcp_sockets())

    def body() -> Any:
        reading = reader.read_bytes(1)
        reset(writer)
        with pytest.raises(StreamClosedError) as caught:
            yield reading
        assert isinstance(caught.value.real_error, ConnectionResetError)

    run(loop, body)


# --- connecting --------------------------------------------------------------------------------


@of_the_system  # Makes its own sockets.
def test_connect_and_write_at_once(loop: IOLoop) -> None:
    order: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stream = IOStream(socket.socket())

        def body() -> Any:
            connecting = stream.connect(listener.getsockname())
            writing = stream.write(b"hello")
            connecting.add_done_callback(lambda _: order.append("connected"))
            writing.add_done_callback(lambda _: order.append("written"))
            assert "connecting" in repr(stream)
            assert (yield connecting) is stream
            yield writing
            yield

        run(loop, body)
        server, _ = listener.accept()
        with server:
            assert server.recv(10) == b"hello"
    stream.close()
    assert order == ["connected", "written"]


@of_the_system  # Makes its own sockets.
def test_connect_refused(loop: IOLoop, refused_port: int) -> None:
    stream = IOStream(socket.socket())

    def body() -> Any:
        with pytest.raises(StreamClosedError) as caught:
            yield stream.connect(("127.0.0.1", refused_port))
        assert isinstance(caught.value.real_error, ConnectionRefusedError)
        assert stream.error is caught.value.real_error
        assert stream.closed()

    run(loop, body)


@of_the_system  # Makes its own sockets.
def test_a_cancelled_connect_closes_its_socket(loop: IOLoop, deaf_port: int) -> None:
    before = count_fds()
    stream = IOStream(socket.socket())

    def body() -> Any:
        connecting = stream.connect(("127.0.0.1", deaf_port))
        yield
        connecting.cancel()
        with pytest.raises(CancelledError):
            yield connecting

    run(loop, body)
    assert stream.closed()
    assert count_fds() == before


# --- TLS ---------------------------------------------------------------------------------------


@pytest.fixture
def plain(loop: IOLoop) -> Iterator[Pair]:
    pair = tuple(map(IOStream, tcp_sockets()))
    yield pair  # type: ignore[misc]
    for stream in pair:
        stream.close()


def test_start_tls_refuses_bytes_from_before(loop: IOLoop, plain: Pair, ca: Authority) -> None:
    one, other = plain

    def body() -> Any:
        yield other.write(b"ab")
        yield one.read_bytes(1)
        with pytest.raises(ValueError, match="not idle"):
            one.start_tls(False, ca.client_context(), "localhost")
        assert (yield one.read_bytes(1)) == b"b"

    run(loop, body)


@pytest.mark.parametrize("name", ["localhost", "other.test"])
def test_an_untrusted_certificate(
    loop: IOLoop, plain: Pair, ca: Authority, name: str, caplog: Any
) -> None:
    one, other = plain
    options = None if name == "localhost" else ca.client_context()

    def body() -> Any:
        serving = other.start_tls(True, ca.server_context("localhost"))
        with pytest.raises(ssl.SSLCertVerificationError):
            yield one.start_tls(False, options, name)
        with pytest.raises((ssl.SSLError, StreamClosedError)):
            yield serving

    run(loop, body)
    assert len([r for r in caplog.records if r.getMessage().startswith("SSL Error")]) in (1, 2)


@of_the_system  # Counts descriptors.
def test_a_silent_peer_and_a_cancelled_handshake(loop: IOLoop, plain: Pair, ca: Authority) -> None:
    one, _ = plain
    before = count_fds()

    def body() -> Any:
        handshake = one.start_tls(False, ca.client_context(), "localhost")
        for _ in range(3):
            yield
        handshake.cancel()
        with pytest.raises(CancelledError):
            yield handshake

    run(loop, body)
    assert count_fds() == before - 1


def test_the_handshake_is_waited_for_once(loop: IOLoop, plain: Pair, ca: Authority) -> None:
    one, other = plain

    def body() -> Any:
        ours = one.start_tls(False, ca.client_context(), "localhost")
        theirs = other.start_tls(True, ca.server_context("localhost"))
        with pytest.raises(RuntimeError):
            ours.stream.wait_for_handshake()  # type: ignore[attr-defined]
        first, second = yield [ours, theirs]
        assert (yield first.wait_for_handshake()) is first
        first.close()
        second.close()

    run(loop, body)


@of_the_system  # TLS on the socket itself.
def test_an_end_without_close_notify_is_told_apart(
    loop: IOLoop, plain: Pair, ca: Authority
) -> None:
    one, other = plain

    def body() -> Any:
        first, second = yield [
            one.start_tls(False, ca.client_context(), "localhost"),
            other.start_tls(True, ca.server_context("localhost")),
        ]
        yield second.write(b"abc")
        assert (yield first.read_bytes(3)) == b"abc"
        reading = first.read_bytes(1)
        second.socket.shutdown(socket.SHUT_RDWR)
        second.close()
        with pytest.raises(StreamClosedError) as caught:
            yield reading
        assert isinstance(caught.value.real_error, ssl.SSLEOFError)

    run(loop, body)
