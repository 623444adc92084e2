"""Programs that do what a seed draws, and compare what they see with a model.

What ``test_drawn`` explores. The draws of the operations come from ``current_world().random``; the
order, the network and its faults draw from sequences of their own.
"""

from __future__ import annotations

from typing import Any

from coro.errors import CancelledError, ConnectError, HTTPError, StreamClosedError, TimeoutError
from coro.future import Future
from coro.gen import Task, coroutine, moment, sleep
from coro.http import AsyncHTTPClient
from coro.stream import IOStream
from coro.tcp import connect
from coro.tcpserver import TCPServer
from coro.testing import current_world

SIZES = (0, 1, 2, 10, 100, 1460, 10_000, 70_000, 300_000)

# Seconds whose sums are exact.
TICK = 1 / 64


def pick(choices: Any) -> Any:
    """Draw one of some choices."""
    return choices[int(current_world().random.random() * len(choices))]


def check_nothing_open() -> None:
    """Every socket of the simulated network has been closed."""
    assert not current_world().network.descriptors, current_world().network.descriptors


class Accepting(TCPServer):
    """Hands its connections to those who ask for them."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.accepted: Future[IOStream] = Future()
        self.ended: Future[None] = Future()

    @coroutine
    def handle_stream(self, stream: IOStream, address: Any) -> Any:
        self.accepted.set_result(stream)
        yield self.ended


# --- streams -------------------------------------------------------------------------------


class Direction:
    """One direction of a connection: what was handed in at one end, and came out at the other.

    Attributes:
        whole: whether the writer has ended it in order, having been told so.
    """

    def __init__(self) -> None:
        self.sent = bytearray()
        self.received = bytearray()
        self.whole = False

    def take(self, data: Any) -> None:
        """Note what a read returned: it must be what comes next."""
        at = len(self.received)
        assert self.sent[at : at + len(data)] == data, f"other bytes than were sent, from {at} on"
        self.received += data


@coroutine
def write_what_is_drawn(stream: IOStream, way: Direction) -> Any:
    """Write pieces of all sizes; wait for some, cancel others; end in one of all ways."""
    try:
        for _ in range(pick((1, 3, 10))):
            size = pick(SIZES)
            begin = len(way.sent)
            # No stretch looks like another one, so that a byte too many or too few is seen.
            data = bytearray((begin + at) * 7919 >> 8 & 0xFF for at in range(min(size, 2000)))
            data *= max(1, size // 2000)
            way.sent += data
            writing = stream.write(data)
            action = pick(("wait", "wait", "go on", "cancel", "sleep"))
            if action == "wait":
                yield writing
            elif action == "cancel":
                yield pick((moment, sleep(0.001)))
                writing.cancel()
            elif action == "sleep":
                yield sleep(pick((0, 0.001, 1)))
        end = pick(("send_eof", "send_eof", "send_eof", "close", "abort"))
        if end == "send_eof":
            yield stream.send_eof()
            way.whole = True
        elif end == "close":
            stream.close()
        else:
            stream.abort()
    except StreamClosedError:
        pass


def begin_read(stream: IOStream, target: bytearray) -> Any:
    """Begin a read that is drawn; return its future, and what it says that it got."""
    size = pick(SIZES)
    kind = pick(("bytes", "partial", "into", "some into", "until", "regex"))
    if kind == "bytes":
        return stream.read_bytes(size), bytes
    if kind == "partial":
        return stream.read_bytes(max(1, size), partial=True), bytes
    if kind in ("into", "some into"):
        target[:] = bytes(max(1, size))
        reading = stream.read_into(target, partial=kind == "some into")
        return reading, lambda count: bytes(target[:count])
    if kind == "until":
        return stream.read_until(pick((b"\n", b"\x00", b"\x01\x01"))), bytes
    return stream.read_until_regex(rb"[\x10-\x20][\x00-\xff]"), bytes


@coroutine
def read_what_is_drawn(stream: IOStream, way: Direction) -> Any:
    """Read in all ways, with cancellations, to the end; what is left over at last of all."""
    try:
        while True:
            target = bytearray()
            reading, data_of = begin_read(stream, target)
            if pick((True, False, False)):
                yield pick((moment, sleep(0.001), sleep(0.5)))
                reading.cancel()
            try:
                way.take(data_of((yield reading)))
            except CancelledError:
                pass
            if pick((True, False, False, False)):
                yield sleep(pick((0, 0.01, 1)))
    except StreamClosedError:
        pass
    try:
        while True:
            way.take((yield stream.read_bytes(10_000, partial=True)))
    except StreamClosedError:
        pass


@coroutine
def streams() -> Any:
    """Two streams, each written and read at once."""
    world = current_world()
    world.network.link(
        "client", "server", loss=pick((0, 0, 0.1)), bandwidth=pick((None, None, 1e6))
    )
    server = Accepting(half_open=True)
    with world.network.on("server"):
        server.listen(80)
    with world.network.on("client"):
        ours = yield connect("server", 80, half_open=True)
    theirs = yield server.accepted
    there, back = Direction(), Direction()
    yield [
        write_what_is_drawn(ours, there),
        write_what_is_drawn(theirs, back),
        read_what_is_drawn(theirs, there),
        read_what_is_drawn(ours, back),
    ]
    if there.whole and back.whole:
        for way in (there, back):
            assert way.received == way.sent, f"{len(way.received)} bytes of {len(way.sent)}"
    for stream in (ours, theirs):
        stream.close()
    server.ended.set_result(None)
    server.stop()
    yield sleep(1000)
    check_nothing_open()


# --- connecting ----------------------------------------------------------------------------


@coroutine
def connections() -> Any:
    """A name with addresses that listen, refuse or are silent, and callers who lose patience."""
    world = current_world()
    network = world.network
    # In whole ticks, several things happen in one turn.
    ticks = pick((True, False))
    network.dns_delay = (TICK, TICK) if ticks else pick(((0.001, 0.01), (0.01, 3.0)))
    servers: list[Accepting] = []
    good = []
    addresses = []
    for number in range(pick((1, 2, 3, 5))):
        host = network.host(f"host{number}")
        if ticks:
            delay = TICK * pick((1, 2, 3))
            network.link("localhost", host.name, delay=(delay, delay))
        what = pick(("listens", "listens", "refuses", "is silent"))
        if what == "is silent":
            host.ignore()
        elif what == "listens":
            server = Accepting()
            with network.on(host):
                server.listen(80)
            servers.append(server)
            good.append(host)
        addresses += pick((host.addresses, host.addresses[:1], host.addresses[1:]))
    network.set_name("all", *addresses)
    patience = pick((None, None, 0.001, 0.1, 1))
    connecting = connect("all", 80, timeout=patience, attempt_delay=TICK if ticks else 0.25)
    if pick((True, False, False)):
        yield sleep(pick((0, 0.001, 0.01, 2 * TICK, 3 * TICK, 4 * TICK, 1)))
        connecting.cancel()
    reachable = any(address in host.addresses for host in good for address in addresses)
    try:
        stream = yield connecting
    except CancelledError:
        pass
    except TimeoutError:
        assert patience is not None or not reachable
    except ConnectError:
        assert not reachable
    else:
        assert reachable
        yield stream.write(b"hello")
        stream.close()
    for server in servers:
        if server.accepted.done():
            server.accepted.result().close()
        server.ended.set_result(None)
        server.stop()
    yield sleep(1000)
    check_nothing_open()


# --- the client ----------------------------------------------------------------------------


class Moody(TCPServer):
    """Answers ``GET /n`` with ``answer n``, or fails in a way that is drawn."""

    @coroutine
    def handle_stream(self, stream: IOStream, address: Any) -> Any:
        try:
            while True:
                head = yield stream.read_until(b"\r\n\r\n", max_bytes=10_000)
                body = b"answer " + head.split()[1]
                answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body
                mood = pick(("good",) * 6 + ("slow", "cut", "reset", "surplus", "closes", "mute"))
                if mood == "surplus":
                    yield stream.write(answer)
                    yield sleep(pick((0, 0.001, 0.01, 1)))
                    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwrong"
                elif mood == "closes":
                    answer = answer.replace(b"\r\n", b"\r\nConnection: close\r\n", 1)
                elif mood in ("cut", "reset"):
                    answer = answer[: pick(range(len(answer)))]
                elif mood == "mute":
                    answer = b""
                if mood == "slow":
                    for at in range(0, len(answer), 10):
                        yield stream.write(answer[at : at + 10])
                        yield sleep(pick((0, 0.01, 2)))
                elif answer:
                    yield stream.write(answer)
                if mood == "reset":
                    stream.abort()
                if mood in ("cut", "reset", "closes"):
                    return
        except StreamClosedError:
            pass
        finally:
            stream.close()


@coroutine
def fetch_one(client: AsyncHTTPClient, path: str, *, quiet: bool = False) -> Any:
    """Fetch, perhaps cancelled meanwhile; an answer is the one to this question.

    Arguments:
        quiet: all that was under way has arrived. Where it has not, nobody can tell surplus bytes
            from the answer to a question that was asked in the meantime.
    """
    fetching: Task[Any] = client.fetch(
        f"http://server{path}", request_timeout=pick((0.005, 1, 20)), connect_timeout=5
    )
    if pick((True, False, False, False)):
        yield sleep(pick((0, 0.002, 0.01, 1)))
        fetching.cancel()
    try:
        response = yield fetching
    except CancelledError:
        pass
    except HTTPError as error:
        assert error.code == 599, error
    else:
        assert not quiet or response.body == b"answer " + path.encode(), response.body


@coroutine
def fetches() -> Any:
    """Many fetches by few connections, from a server that is not to be relied on."""
    world = current_world()
    server = Moody()
    with world.network.on("server"):
        server.listen(80)
    limit = pick((1, 2, 5))
    client = AsyncHTTPClient(force_instance=True, max_clients=limit)
    for round_ in range(3):
        yield fetch_one(client, f"/{round_}", quiet=True)
        yield sleep(30)
        yield fetch_one(client, f"/{round_}/again", quiet=True)
        yield [fetch_one(client, f"/{round_}/{number}") for number in range(10)]
        yield sleep(30)
    client.close()
    server.stop()
    yield sleep(1000)
    check_nothing_open()
