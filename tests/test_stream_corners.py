"""Corners of streams: orders of events, limits, sizes, and memory that is let go."""

from __future__ import annotations

import errno
import functools
import itertools
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import coro.stream
from coro.errors import StreamBufferFullError, StreamClosedError, UnsatisfiableReadError
from coro.gen import coroutine
from coro.loop import IOLoop
from coro.stream import IOStream
from tests.support.hosting import of_the_system
from tests.support.pairs import socket_pair, tcp_sockets
from tests.support.virtual import closing_loop

Pair = tuple[IOStream, IOStream]

# Turns that only a broken test waits.
PATIENCE = 10_000


@pytest.fixture
def loop() -> Iterator[IOLoop]:
    with closing_loop() as loop:
        yield loop
        left = loop.statistics()
        assert (left["handlers"], left["timers"], left["tasks"]) == (0, 0, 0)


@pytest.fixture(params=["tcp", "unix"])
def make(request: Any, loop: IOLoop) -> Iterator[Callable[..., Pair]]:
    """``make(**limits)``: two connected streams; the limits are the first one's."""
    made: list[IOStream] = []

    def make(**limits: Any) -> Pair:
        ours, theirs = socket_pair() if request.param == "unix" else tcp_sockets()
        pair = IOStream(ours, **limits), IOStream(theirs)
        made.extend(pair)
        return pair

    yield make
    for stream in made:
        stream.close()


def run(loop: IOLoop, body: Callable[[], Any]) -> Any:
    return loop.run_sync(coroutine(body))


def until(condition: Callable[[], Any]) -> Any:
    """Let turns pass until something holds; a test that is broken ends too."""
    for _ in range(PATIENCE):
        if condition():
            return
        yield
    pytest.fail("it does not come to pass")


# --- limits are checked ------------------------------------------------------------------------


@pytest.mark.parametrize("limit", ["max_buffer_size", "read_chunk_size", "max_write_buffer_size"])
def test_a_negative_limit_is_refused(loop: IOLoop, limit: str) -> None:
    ours, theirs = socket_pair()
    with ours, theirs, pytest.raises(ValueError, match="limit"):
        IOStream(ours, **dict[str, Any]({limit: -1}))


@pytest.mark.parametrize("partial", [False, True])
def test_a_negative_count_is_refused(loop: IOLoop, make: Any, partial: bool) -> None:
    reader, writer = make()

    def body() -> Any:
        with pytest.raises(ValueError, match="-1 bytes"):
            reader.read_bytes(-1, partial=partial)
        yield writer.write(b"ab")
        assert (yield reader.read_bytes(2)) == b"ab"

    run(loop, body)


def test_a_chunk_is_at_most_half_of_the_buffer(loop: IOLoop, make: Any) -> None:
    reader, _ = make(max_buffer_size=1000, read_chunk_size=1000)
    assert reader.read_chunk_size == 500
    reader, _ = make(max_buffer_size=1)
    assert reader.read_chunk_size == 1


# --- reading -----------------------------------------------------------------------------------


def test_partial_reads_respect_the_size(loop: IOLoop, make: Any) -> None:
    reader, writer = make()

    def body() -> Any:
        yield writer.write(b"abcdefgh")
        assert (yield reader.read_bytes(3, partial=True)) == b"abc"
        assert (yield reader.read_bytes(3, partial=True)) == b"def"
        assert (yield reader.read_bytes(100, partial=True)) == b"gh"
        reading = reader.read_bytes(2, partial=True)
        yield
        assert not reading.done()
        yield writer.write(b"ijk")
        assert (yield reading) == b"ij"
        assert (yield reader.read_bytes(1)) == b"k"

    run(loop, body)


@pytest.mark.parametrize("split", [4, 11, 20])
@pytest.mark.parametrize("pattern", ["delimiter", "regex"])
def test_max_bytes_is_told_in_the_future_only(
    loop: IOLoop, make: Any, split: int, pattern: str
) -> None:
    """The delimiter ends at 12, beyond the limit of 11, wherever the pieces part."""
    reader, writer = make()
    data = b"0123456789\r\nrest...."

    def body() -> Any:
        yield writer.write(data[:split])
        yield
        find = reader.read_until if pattern == "delimiter" else reader.read_until_regex
        reading = find(b"\r\n", max_bytes=11)
        if split < len(data):
            yield writer.write(data[split:])
        with pytest.raises(StreamClosedError) as caught:
            yield reading
        assert isinstance(caught.value.real_error, UnsatisfiableReadError)
        assert reader.closed()

    run(loop, body)


@pytest.mark.parametrize("count", [11, 12])
def test_max_bytes_without_a_delimiter(loop: IOLoop, make: Any, count: int) -> None:
    """Exactly the limit may still be waited on; one byte more is too much."""
    reader, writer = make()

    def body() -> Any:
        reading = reader.read_until(b"\n", max_bytes=11)
        yield writer.write(b"x" * count)
        yield
        yield
        assert reading.done() == (count > 11)
        reader.close()
        with pytest.raises(StreamClosedError):
            yield reading

    run(loop, body)


def test_a_regex_over_the_seams_of_pieces(loop: IOLoop, make: Any) -> None:
    reader, writer = make()

    def body() -> Any:
        reading = reader.read_until_regex(rb"<(\w+)>.*?</\1>")
        for byte in b"...<ab>text</a></ab>rest":
            yield writer.write(bytes([byte]))
            yield
        assert (yield reading) == b"...<ab>text</a></ab>"
        assert (yield reader.read_bytes(4)) == b"rest"

    run(loop, body)


def test_a_delimiter_over_the_seams_of_pieces(loop: IOLoop, make: Any) -> None:
    reader, writer = make(read_chunk_size=2)

    def body() -> Any:
        reading = reader.read_until(b"\r\n\r\n")
        yield writer.write(b"a\r\n\r\r\n\r\nb")
        assert (yield reading) == b"a\r\n\r\r\n\r\n"
        assert (yield reader.read_bytes(1)) == b"b"

    run(loop, body)


def test_read_into_takes_from_buffer_and_socket(loop: IOLoop, make: Any) -> None:
    reader, writer = make()
    target = bytearray(10)

    def body() -> Any:
        yield writer.write(b"head\nabc")
        assert (yield reader.read_until(b"\n")) == b"head\n"
        reading = reader.read_into(target)
        assert target[:3] == b"abc"
        yield writer.write(b"defghijKLM")
        assert (yield reading) == 10
        assert target == b"abcdefghij"
        assert (yield reader.read_bytes(3)) == b"KLM"

    run(loop, body)


@pytest.mark.parametrize("ending", ["peer", "local", "error"])
def test_read_into_that_ends_early_gives_back(loop: IOLoop, make: Any, ending: str) -> None:
    reader, writer = make()
    target = bytearray(10)

    def body() -> Any:
        yield writer.write(b"abc")
        reading = reader.read_into(target)
        yield from until(lambda: target[:3] == b"abc")
        if ending == "peer":
            writer.close()
        else:
            reader.close(ValueError("x") if ending == "error" else False)
        with pytest.raises(StreamClosedError):
            yield reading
        target.extend(b"no view is left")
        assert (yield reader.read_bytes(3)) == b"abc"

    run(loop, body)


def test_linear_search_over_small_pieces(loop: IOLoop, monkeypatch: Any) -> None:
    """4 MB in 64-byte receives: each byte is searched once, give or take the delimiter."""
    ours, theirs = socket_pair()
    reader, writer = IOStream(ours, read_chunk_size=64), IOStream(theirs)
    size = 4_000_000
    searched = 0
    find = type(reader._buffer).find

    def counting(buffer: Any, delimiter: bytes) -> int:
        nonlocal searched
        before = buffer._searched if delimiter == buffer._delimiter else 0
        searched += len(buffer) - before
        return find(buffer, delimiter)

    monkeypatch.setattr(type(reader._buffer), "find", counting)

    def body() -> Any:
        writing = writer.write(b"x" * size + b"\r\n\r\n")
        assert len((yield reader.read_until(b"\r\n\r\n"))) == size + 4
        yield writing

    run(loop, body)
    assert searched < 1.2 * size
    reader.close()
    writer.close()


def test_one_wake_up_receives_a_bounded_amount(loop: IOLoop, make: Any) -> None:
    reader, writer = make(read_chunk_size=1000)
    seen: list[int] = []

    def body() -> Any:
        yield writer.write(bytes(50_000))
        reading = reader.read_bytes(50_000)
        while not reading.done():
            seen.append(len(reader._received))
            yield
        assert len((yield reading)) == 50_000

    run(loop, body)
    steps = [after - before for before, after in itertools.pairwise(seen)]
    assert max(steps) <= 1000


def test_a_busy_stream_does_not_starve_others(loop: IOLoop, make: Any) -> None:
    """A turn that moves a flood leaves the loop to others after one bounded receive and send."""
    busy, feeder = make()
    quiet, friend = make()
    turns = 0

    def body() -> Any:
        nonlocal turns
        writing = feeder.write(bytes(20_000_000))
        reading = busy.read_bytes(20_000_000)
        yield friend.write(b"!")
        asking = quiet.read_bytes(1)
        while not asking.done():
            turns += 1
            yield
        assert not reading.done()
        yield reading
        yield writing

    run(loop, body)
    assert turns <= 3


# --- the end -----------------------------------------------------------------------------------


def rst(stream: IOStream) -> None:
    stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    stream.close()


@pytest.mark.parametrize("end", ["close", "reset"])
def test_read_until_close_takes_an_end_and_a_reset(loop: IOLoop, end: str) -> None:
    reader, writer = map(IOStream, tcp_sockets())

    def body() -> Any:
        reading = reader.read_until_close()
        yield writer.write(b"abc")
        yield from until(lambda: len(reader._received) == 3)
        if end == "close":
            writer.close()
        else:
            rst(writer)
        assert (yield reading) == b"abc"
        assert (yield reader.read_until_close()) == b""

    run(loop, body)


@pytest.mark.parametrize("error", [ValueError("x"), OSError(errno.ECONNRESET, "mine")])
def test_read_until_close_fails_with_a_local_error(loop: IOLoop, make: Any, error: Any) -> None:
    """An error that the user closes with is one, also if it looks like the peer's reset."""
    reader, writer = make()

    def body() -> Any:
        reading = reader.read_until_close()
        yield writer.write(b"abc")
        yield from until(lambda: len(reader._received) == 3)
        reader.close(error)
        with pytest.raises(StreamClosedError) as caught:
            yield reading
        assert caught.value.real_error is error

    run(loop, body)


def test_read_until_close_fails_when_the_buffer_overflows(loop: IOLoop, make: Any) -> None:
    reader, writer = make(max_buffer_size=1000)

    def body() -> Any:
        reading = reader.read_until_close()
        writing = writer.write(bytes(5000))
        with pytest.raises(StreamClosedError) as caught:
            yield reading
        assert isinstance(caught.value.real_error, StreamBufferFullError)
        if not writing.done():
            writer.close()

    run(loop, body)


@of_the_system  # Which of several that end in one turn goes on first.
def test_the_close_callback_comes_after_the_futures(loop: IOLoop, make: Any) -> None:
    """Whoever learns of the end by callback finds the futures settled, and their data taken."""
    reader, writer = make()
    order: list[str] = []

    def body() -> Any:
        reading = reader.read_until_close()
        writing = reader.write(bytes(50_000_000))
        reading.add_done_callback(lambda _: order.append("read"))
        writing.add_done_callback(lambda _: order.append("write"))
        reader.set_close_callback(lambda: order.append(f"closed {reading.done()} {writing.done()}"))
        yield
        writer.close()
        yield from until(lambda: len(order) == 3)
        with pytest.raises(StreamClosedError):
            yield writing

    run(loop, body)
    assert order == ["read", "write", "closed True True"]


def test_data_stays_readable_after_the_close_callback(loop: IOLoop, make: Any) -> None:
    reader, writer = make()
    told: list[bytes] = []

    def body() -> Any:
        yield writer.write(b"first rest")
        assert (yield reader.read_bytes(6)) == b"first "

        def closed() -> None:
            told.append(reader.read_bytes(4).result())

        reader.set_close_callback(closed)
        reader.close()
        yield from until(lambda: told)

    run(loop, body)
    assert told == [b"rest"]


def test_the_close_callback_with_data_still_buffered(loop: IOLoop, make: Any) -> None:
    """The end is told when the bytes before it are used up, not sooner, and without a reader."""
    reader, writer = make()
    told: list[str] = []

    def body() -> Any:
        yield writer.write(b"abcd")
        assert (yield reader.read_bytes(1)) == b"a"
        reader.set_close_callback(lambda: told.append("closed"))
        writer.close()
        for _ in range(5):
            yield
        assert not told
        assert (yield reader.read_bytes(3)) == b"bcd"
        with pytest.raises(StreamClosedError):
            yield reader.read_bytes(1)
        yield from until(lambda: told)

    run(loop, body)
    assert told == ["closed"]


@pytest.mark.parametrize("closed", [False, True])
def test_nothing_is_read_at_once(loop: IOLoop, make: Any, closed: bool) -> None:
    reader, _ = make()
    if closed:
        reader.close()
    assert reader.read_bytes(0).result() == b""
    assert reader.read_bytes(0, partial=True).result() == b""
    assert reader.read_into(bytearray()).result() == 0


# --- writing -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_writes_of_nothing(loop: IOLoop, make: Any, kind: Any) -> None:
    writer, reader = make()

    def body() -> Any:
        assert writer.write(kind(b"")).done()
        large = writer.write(bytes(10_000_000))
        nothing = writer.write(kind(b""))
        assert not nothing.done()
        yield reader.read_bytes(10_000_000)
        yield [large, nothing]
        writer.close()
        with pytest.raises(StreamClosedError):
            writer.write(kind(b""))

    run(loop, body)


@of_the_system  # Makes its own sockets.
def test_writes_while_connecting_go_in_order(loop: IOLoop) -> None:
    order: list[str] = []

    def note(what: str, _: Any) -> None:
        order.append(what)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        stream = IOStream(socket.socket())

        def body() -> Any:
            connecting = stream.connect(listener.getsockname())
            connecting.add_done_callback(functools.partial(note, "connected"))
            writes = [stream.write(b"a" * 10), stream.write(b""), stream.write(bytearray(b"b"))]
            for number, write in enumerate(writes):
                write.add_done_callback(functools.partial(note, str(number)))
            assert order == []
            assert stream.unsent() == 11
            yield writes
            assert (yield connecting) is stream
            yield

        run(loop, body)
        server, _ = listener.accept()
        with server:
            assert server.recv(100) == b"a" * 10 + b"b"
    stream.close()
    assert order[0] == "connected"
    assert sorted(order[1:]) == ["0", "1", "2"]


@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_a_write_beyond_the_limit_sends_nothing(loop: IOLoop, make: Any, kind: Any) -> None:
    """All or nothing: the connection would be of no use after an unknown part."""
    writer, reader = make(max_write_buffer_size=1000)

    def body() -> Any:
        with pytest.raises(StreamBufferFullError):
            writer.write(kind(50_000_000))
        yield writer.write(b"next")
        assert (yield reader.read_bytes(4)) == b"next"

    run(loop, body)


def test_the_write_limit_on_both_sides(loop: IOLoop, make: Any) -> None:
    writer, reader = make(max_write_buffer_size=1_000)

    def body() -> Any:
        connected = 0
        while not writer.writing():
            yield writer.write(b"x" * 1000) if connected > 1e7 else None
            future = writer.write(b"x" * 1000)
            connected += 1000
        room = 1000 - writer.unsent()
        with pytest.raises(StreamBufferFullError):
            writer.write(bytes(room + 1))
        last = writer.write(bytes(room))
        assert writer.unsent() == 1000
        yield reader.read_bytes(connected + room)
        yield [future, last]

    run(loop, body)


def test_a_caller_s_bytearray_is_free_once_it_is_sent(loop: IOLoop, make: Any) -> None:
    writer, reader = make()
    small, large = bytearray(b"abc"), bytearray(10_000_000)

    def body() -> Any:
        yield writer.write(small)
        small.extend(b"more")  # resizable: no view is left
        writing = writer.write(large)
        yield reader.read_bytes(10_000_003)
        yield writing
        large.clear()

    run(loop, body)


@pytest.mark.parametrize("ending", ["close", "error", "reset", "refused"])
def test_a_caller_s_bytearray_is_free_after_a_failure(loop: IOLoop, make: Any, ending: str) -> None:
    limit = 1000 if ending == "refused" else None
    writer, reader = make(max_write_buffer_size=limit)
    data = bytearray(50_000_000)

    def body() -> Any:
        if ending == "refused":
            with pytest.raises(StreamBufferFullError):
                writer.write(data)
            data.clear()
            yield
            return
        writing = writer.write(data)
        yield
        if ending == "reset":
            rst(reader)
        else:
            writer.close(ValueError("x") if ending == "error" else False)
        with pytest.raises(StreamClosedError):
            yield writing
        data.clear()

    run(loop, body)


def test_ten_megabytes_to_a_reader_with_room_for_five(loop: IOLoop, make: Any) -> None:
    reader, writer = make(max_buffer_size=5 << 20)

    def body() -> Any:
        writing = writer.write(bytes(10 << 20))
        for _ in range(10):
            assert len((yield reader.read_bytes(1 << 20))) == 1 << 20
            assert len(reader._received) <= 5 << 20
        yield writing

    run(loop, body)


def test_many_pieces_leave_with_few_calls(loop: IOLoop, make: Any) -> None:
    writer, reader = make()
    calls: list[int] = []
    send_views = writer._send_views

    def counting(views: Any) -> int:
        sent: int = send_views(views)
        calls.append(sent)
        return sent

    writer._send_views = counting
    plug = 10_000_000

    def body() -> Any:
        first = writer.write(bytes(plug))
        pieces = [writer.write(b"%04d" % number) for number in range(1000)]
        yield reader.read_bytes(plug)
        rest = yield reader.read_bytes(4000)
        assert rest == b"".join(b"%04d" % number for number in range(1000))
        yield [first, *pieces]

    run(loop, body)
    small = [sent for sent in calls if sent <= 64 * 4]
    assert len(small) <= 20
    assert max(calls) <= 256 * 1024


# --- the end of writing ------------------------------------------------------------------------


def all_of(peer: socket.socket, size: int) -> Any:
    """Receive on a bare socket until its end, which a stream would close at."""
    got = bytearray()
    while len(got) <= size:
        try:
            chunk = peer.recv(1 << 20)
        except BlockingIOError:
            yield
            continue
        if not chunk:
            return bytes(got)
        got += chunk
    pytest.fail("more than was written")


@pytest.fixture(params=["tcp", "unix"])
def half(request: Any, loop: IOLoop) -> Iterator[tuple[IOStream, socket.socket]]:
    """A stream, and a bare non-blocking socket at its other end."""
    ours, theirs = socket_pair() if request.param == "unix" else tcp_sockets()
    theirs.setblocking(False)
    stream = IOStream(ours)
    with theirs:
        yield stream, theirs
    stream.close()


@pytest.mark.parametrize("size", [0, 10, 10_000_000])
def test_reading_goes_on_after_send_eof(loop: IOLoop, half: Any, size: int) -> None:
    stream, peer = half
    data = bytes(size)

    def body() -> Any:
        writing = stream.write(data)
        ended = stream.send_eof()
        assert ended.done() == (not stream.writing())
        assert stream.send_eof() is ended
        assert (yield from all_of(peer, size)) == data
        yield [writing, ended]
        assert not stream.closed()
        peer.send(b"reply")
        assert (yield stream.read_bytes(5)) == b"reply"
        peer.shutdown(socket.SHUT_WR)
        assert (yield stream.read_until_close()) == b""

    run(loop, body)
    assert stream.closed()
    assert stream.error is None


def test_writes_after_send_eof(loop: IOLoop, half: Any) -> None:
    stream, peer = half

    def body() -> Any:
        for _ in ("while it is pending", "when it is done"):
            yield stream.send_eof()
            with pytest.raises(StreamClosedError) as caught:
                stream.write(b"x")
            assert "send_eof" in str(caught.value)
            with pytest.raises(StreamClosedError):
                stream.write_soon(b"x")
        assert not stream.closed()
        peer.send(b"still read")
        assert (yield stream.read_bytes(10)) == b"still read"
        stream.close()
        with pytest.raises(StreamClosedError):
            stream.send_eof()

    run(loop, body)


def test_send_eof_sends_what_waits_for_the_end_of_the_turn(loop: IOLoop, half: Any) -> None:
    stream, peer = half

    def body() -> Any:
        stream.write_soon(b"last words")
        yield stream.send_eof()
        assert (yield from all_of(peer, 100)) == b"last words"

    run(loop, body)


@of_the_system  # Makes its own sockets.
def test_send_eof_while_connecting(loop: IOLoop) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stream = IOStream(socket.socket())

        def body() -> Any:
            connecting = stream.connect(listener.getsockname())
            writing = stream.write(b"abc")
            ended = stream.send_eof()
            assert not ended.done()
            yield [connecting, writing, ended]

        run(loop, body)
        server, _ = listener.accept()
        with server:
            assert server.recv(100) == b"abc"
            assert server.recv(100) == b""
    stream.close()


@pytest.mark.parametrize("ending", ["close", "abort", "reset"])
def test_a_pending_send_eof_ends_with_the_stream(loop: IOLoop, ending: str) -> None:
    writer, reader = map(IOStream, tcp_sockets())

    def body() -> Any:
        writing = writer.write(bytes(50_000_000))
        ended = writer.send_eof()
        assert not ended.done()
        if ending == "reset":
            rst(reader)
        else:
            getattr(writer, ending)()
        for future in (writing, ended):
            with pytest.raises(StreamClosedError):
                yield future

    run(loop, body)
    reader.close()


def test_an_echo_of_half_closed_streams(loop: IOLoop) -> None:
    """The peer answers at the end of the question, as ``nc -N`` and many old protocols do."""
    asking, bare = tcp_sockets()
    stream = IOStream(asking)
    question = bytes(range(256)) * 4096

    def body() -> Any:
        bare.setblocking(False)
        yield stream.write(b"")
        stream.write(question)
        ended = stream.send_eof()
        got = yield from all_of(bare, len(question))
        yield ended
        answering = IOStream(bare)
        answer = answering.write(got)
        reading = stream.read_until_close()
        yield answer
        answering.close()
        assert (yield reading) == question

    run(loop, body)
    stream.close()


# --- cutting off -------------------------------------------------------------------------------


def test_abort_resets_a_tcp_connection(loop: IOLoop) -> None:
    writer, reader = map(IOStream, tcp_sockets())
    data = bytearray(50_000_000)

    def body() -> Any:
        writing = writer.write(data)
        reading = writer.read_until_close()
        writer.abort()
        assert writer.closed()
        data.clear()
        for future in (writing, reading):
            with pytest.raises(StreamClosedError):
                yield future
        with pytest.raises(StreamClosedError) as caught:
            while True:
                yield reader.read_bytes(1 << 20, partial=True)
        assert isinstance(caught.value.real_error, ConnectionResetError)
        writer.abort()

    run(loop, body)


@of_the_system  # Makes its own sockets.
def test_abort_while_connecting(loop: IOLoop, deaf_port: int) -> None:
    stream = IOStream(socket.socket())

    def body() -> Any:
        connecting = stream.connect(("127.0.0.1", deaf_port))
        yield
        stream.abort()
        with pytest.raises(StreamClosedError):
            yield connecting

    run(loop, body)


# --- a proxy -----------------------------------------------------------------------------------


def test_a_proxy_to_a_slow_reader_holds_little(loop: IOLoop, make: Any) -> None:
    """64 MB from a fast source: what waits in the proxy stays below four times its limit."""
    limit = 256 * 1024
    total = 64 << 20
    inward, source = make(max_buffer_size=limit)
    outward, sink = make(max_write_buffer_size=limit)
    sink.max_buffer_size = limit
    most = 0

    @coroutine
    def feed() -> Any:
        piece = bytes(1 << 20)
        for _ in range(64):
            yield source.write(piece)
        source.close()

    @coroutine
    def proxy() -> Any:
        nonlocal most
        try:
            while True:
                piece = yield inward.read_bytes(limit // 2, partial=True)
                sending = outward.write(piece)
                most = max(most, len(inward._received) + outward.unsent() + len(piece))
                yield sending
        except StreamClosedError:
            outward.close()

    def body() -> Any:
        nonlocal most
        feeding, proxying = feed(), proxy()
        got = 0
        while got < total:
            for _ in range(3):  # the reader takes its time; the others may run meanwhile
                yield
            most = max(most, len(inward._received) + outward.unsent())
            got += len((yield sink.read_bytes(limit, partial=True)))
        yield [feeding, proxying]
        assert got == total

    run(loop, body)
    assert 0 < most < 4 * limit


@of_the_system
@pytest.mark.parametrize("kind", ["exact", "partial", "until"])
def test_what_comes_in_the_turn_of_a_cancellation_is_the_next_readers(
    loop: IOLoop, make: Callable[..., Pair], kind: str
) -> None:
    """Also if that one reads already."""
    here, there = make()
    reads: dict[str, Callable[[], Any]] = {
        "exact": lambda: here.read_bytes(3),
        "partial": lambda: here.read_bytes(100, partial=True),
        "until": lambda: here.read_until(b"c"),
    }

    @coroutine
    def reader() -> Any:
        yield reads[kind]()

    def main() -> Any:
        for begins_before in (True, False):
            task = reader()
            read = task._waiting
            assert read is not None
            there.write(b"abc")
            # In that turn this one comes first, where no order is drawn.
            yield from until(read.done)
            assert not task.done()
            task.cancel()
            following = here.read_bytes(3) if begins_before else None
            yield from until(task.done)
            assert task.cancelled()
            assert (yield following or here.read_bytes(3)) == b"abc"

    run(loop, main)


CALLED_BACK: list[tuple[str, tuple[Any, ...]]] = [
    ("read_bytes", (3,)),
    ("read_until", (b"x",)),
    ("read_until_regex", (b"x",)),
    ("read_until_close", ()),
    ("write", (b"x",)),
    ("connect", (("127.0.0.1", 9),)),
]


@pytest.mark.parametrize(("name", "arguments"), CALLED_BACK)
@pytest.mark.parametrize("named", [False, True])
def test_who_hands_over_a_callback_is_shown_the_yield(
    make: Callable[..., Pair], name: str, arguments: tuple[Any, ...], named: bool
) -> None:
    stream, peer = make()
    method: Any = getattr(stream, name)
    with pytest.raises(TypeError, match=rf"write: .*yield stream\.{name}\("):
        if named:
            method(*arguments, callback=print)
        else:
            method(*arguments, print)
    # Nothing was begun.
    assert not stream.reading()
    assert not stream.writing()
    peer.write(b"abc")
    assert run_read(stream) == b"abc"


def run_read(stream: IOStream) -> Any:
    return stream.io_loop.run_sync(lambda: stream.read_bytes(3))


def test_the_errors_are_named_beside_the_streams() -> None:
    names = {"StreamBufferFullError", "StreamClosedError", "UnsatisfiableReadError"}
    assert names < set(coro.stream.__all__)
    assert coro.stream.StreamClosedError is StreamClosedError
