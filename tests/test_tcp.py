"""``connect``: what it returns, what it says when it fails, and that it leaves nothing behind."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from coro.errors import CancelledError, ConnectError, ResolveError, TimeoutError
from coro.future import Future
from coro.gen import coroutine, sleep
from coro.loop import IOLoop
from coro.net import AF_INET, AF_INET6
from coro.resolver import Addresses, Resolver
from coro.stream import SSLIOStream
from coro.tcp import TCPClient, connect
from tests.conftest import RawServerFactory
from tests.support.authority import Authority
from tests.support.leaks import count_fds
from tests.support.raw_server import read_exactly, stay_silent
from tests.support.virtual import closing_loop, step


@pytest.fixture
def loop() -> Iterator[IOLoop]:
    loop = IOLoop()
    yield loop
    assert_nothing_left(loop)
    loop.close()


def assert_nothing_left(loop: IOLoop) -> None:
    left = loop.statistics()
    assert left["timers"] == 0
    assert left["handlers"] == 0
    assert left["tasks"] == 0


def echo_once(conn: socket.socket) -> None:
    conn.sendall(read_exactly(conn, 4))


class Names(Resolver):
    """Answers from a table; what is not in it never gets an answer."""

    def __init__(self, **table: Addresses) -> None:
        self.table = table
        self.asked: list[tuple[str, int]] = []

    @coroutine
    def resolve(self, host: str, port: int, family: int = 0) -> Any:
        self.asked.append((host, family))
        if host not in self.table:
            yield Future()
        found = [entry for entry in self.table[host] if entry[0] == family]
        if not found:
            raise ResolveError(-5, "no address of that family", host)
        return found


def test_connect_to_a_literal(loop: IOLoop, raw_server: RawServerFactory) -> None:
    server = raw_server(echo_once)

    @coroutine
    def main() -> Any:
        stream = yield connect("127.0.0.1", server.port)
        try:
            assert stream.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert [attempt.error for attempt in stream.attempts] == [None]
            yield stream.write(b"ping")
            return (yield stream.read_bytes(4))
        finally:
            stream.close()

    assert loop.run_sync(main) == b"ping"


def test_the_families_are_asked_side_by_side(loop: IOLoop, raw_server: RawServerFactory) -> None:
    server = raw_server(echo_once)
    names = Names(host=[(AF_INET, server.address)])

    @coroutine
    def main() -> Any:
        stream = yield connect("host", server.port, resolver=names)
        stream.close()

    loop.run_sync(main)
    assert sorted(names.asked) == sorted([("host", AF_INET6), ("host", AF_INET)])


def test_a_family_may_be_demanded(loop: IOLoop, raw_server: RawServerFactory) -> None:
    server = raw_server(echo_once)
    names = Names(host=[(AF_INET, server.address)])

    @coroutine
    def main() -> Any:
        stream = yield connect("host", server.port, af=AF_INET, resolver=names)
        stream.close()
        with pytest.raises(ResolveError):
            yield connect("host", server.port, af=AF_INET6, resolver=names)

    loop.run_sync(main)
    assert names.asked == [("host", AF_INET), ("host", AF_INET6)]


def test_the_next_address_serves_if_the_first_refuses(
    loop: IOLoop, raw_server: RawServerFactory, refused_port: int
) -> None:
    server = raw_server(echo_once)
    names = Names(host=[(AF_INET, ("127.0.0.1", refused_port)), (AF_INET, server.address)])

    @coroutine
    def main() -> Any:
        stream = yield connect("host", 80, resolver=names)
        stream.close()
        return stream.attempts

    refused, won = loop.run_sync(main)
    assert isinstance(refused.error, ConnectionRefusedError)
    assert won.error is None


def test_refused(loop: IOLoop, refused_port: int) -> None:
    with pytest.raises(ConnectError) as caught:
        loop.run_sync(lambda: connect("127.0.0.1", refused_port))
    assert isinstance(caught.value.__cause__, ConnectionRefusedError)
    assert f"127.0.0.1:{refused_port}" in str(caught.value)
    assert "refused" in str(caught.value)
    assert len(caught.value.attempts) == 1


def test_from_an_address_and_a_port(loop: IOLoop, raw_server: RawServerFactory) -> None:
    server = raw_server(echo_once)
    with socket.socket() as free:
        free.bind(("127.0.0.2", 0))
        port = free.getsockname()[1]

    @coroutine
    def main() -> Any:
        stream = yield connect("127.0.0.1", server.port, source_ip="127.0.0.2", source_port=port)
        try:
            return stream.socket.getsockname()
        finally:
            stream.close()

    assert loop.run_sync(main) == ("127.0.0.2", port)


def test_from_an_address_that_is_not_ours(loop: IOLoop, raw_server: RawServerFactory) -> None:
    server = raw_server(echo_once)
    with pytest.raises(ConnectError):
        loop.run_sync(lambda: connect("127.0.0.1", server.port, source_ip="192.0.2.1"))


def test_tls(loop: IOLoop, raw_server: RawServerFactory, ca: Authority) -> None:
    server = raw_server(echo_once, tls=ca.server_context("localhost"))
    names = Names(localhost=[(AF_INET, server.address)])

    @coroutine
    def main() -> Any:
        stream = yield connect(
            "localhost", server.port, ssl_options=ca.client_context(), resolver=names
        )
        try:
            assert isinstance(stream, SSLIOStream)
            assert len(stream.attempts) == 1
            yield stream.write(b"ping")
            return (yield stream.read_bytes(4))
        finally:
            stream.close()

    assert loop.run_sync(main) == b"ping"


@pytest.mark.parametrize("options", [True, {}])
def test_a_certificate_that_nobody_trusts(
    loop: IOLoop, raw_server: RawServerFactory, ca: Authority, options: Any
) -> None:
    server = raw_server(echo_once, tls=ca.server_context("127.0.0.1"))
    with pytest.raises(ssl.SSLCertVerificationError):
        loop.run_sync(lambda: connect("127.0.0.1", server.port, ssl_options=options))


def test_a_certificate_of_another_host(
    loop: IOLoop, raw_server: RawServerFactory, ca: Authority
) -> None:
    server = raw_server(echo_once, tls=ca.server_context("localhost"))
    with pytest.raises(ssl.SSLCertVerificationError, match=r"doesn't match|mismatch"):
        loop.run_sync(lambda: connect("127.0.0.1", server.port, ssl_options=ca.client_context()))


def test_a_name_to_check_may_be_given(
    loop: IOLoop, raw_server: RawServerFactory, ca: Authority
) -> None:
    server = raw_server(echo_once, tls=ca.server_context("localhost"))

    @coroutine
    def main() -> Any:
        stream = yield connect(
            "127.0.0.1",
            server.port,
            ssl_options=ca.client_context(),
            server_hostname="localhost",
        )
        stream.close()

    loop.run_sync(main)


def test_options_that_make_no_sense_close_the_socket(
    loop: IOLoop, raw_server: RawServerFactory
) -> None:
    server = raw_server(echo_once)
    before = count_fds()
    with pytest.raises(TypeError):
        loop.run_sync(lambda: connect("127.0.0.1", server.port, ssl_options={"x": 1}))
    assert count_fds() <= before + 1  # the server's side may still be open


@pytest.mark.parametrize("timeout", [5.0, timedelta(seconds=5)])
def test_time_limit_while_resolving(timeout: Any) -> None:
    with closing_loop() as loop:
        with pytest.raises(TimeoutError, match=r"^Timeout while resolving nowhere$"):
            loop.run_sync(lambda: connect("nowhere", 80, resolver=Names(), timeout=timeout))
        assert_nothing_left(loop)


def test_time_limit_while_connecting(deaf_port: int) -> None:
    with closing_loop() as loop:
        with pytest.raises(TimeoutError, match=f"connecting to 127.0.0.1:{deaf_port}$"):
            loop.run_sync(lambda: connect("127.0.0.1", deaf_port, timeout=5))
        assert_nothing_left(loop)


def test_time_limit_in_the_handshake(raw_server: RawServerFactory) -> None:
    server = raw_server(stay_silent)
    with closing_loop() as loop:
        with pytest.raises(TimeoutError, match=f"TLS handshake with 127.0.0.1:{server.port}$"):
            loop.run_sync(lambda: connect("127.0.0.1", server.port, ssl_options=True, timeout=5))
        assert_nothing_left(loop)


@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize("wait", range(14))
def test_cancelled_at_every_turn(
    raw_server: RawServerFactory, ca: Authority, wait: int, secure: bool
) -> None:
    server = raw_server(stay_silent, tls=ca.server_context("127.0.0.1") if secure else None)
    names = Names(host=[(AF_INET, server.address)])
    before = count_fds()
    with closing_loop() as loop:
        own = count_fds()
        options = ca.client_context() if secure else None

        @coroutine
        def main() -> Any:
            yield sleep(0.01)
            return (
                yield connect(
                    "host",
                    server.port,
                    resolver=names,
                    ssl_options=options,
                    server_hostname="127.0.0.1",
                )
            )

        task = main()
        for _ in range(wait):
            if not task.done():
                step(loop)
        if task.done():
            task.result().close()
        else:
            task.cancel()
            with pytest.raises(CancelledError):
                loop.run_sync(lambda: task)
        assert_nothing_left(loop)
        server.close()
        assert count_fds() < own
    assert count_fds() < before


def test_the_older_name_and_its_arguments(loop: IOLoop, raw_server: RawServerFactory) -> None:
    server = raw_server(echo_once)
    client = TCPClient(resolver=Names(host=[(AF_INET, server.address)]))

    @coroutine
    def main() -> Any:
        stream = yield client.connect(
            "host", 80, AF_INET, max_buffer_size=1000, timeout=timedelta(seconds=5)
        )
        try:
            assert stream.max_buffer_size == 1000
        finally:
            stream.close()

    loop.run_sync(main)
    client.close()
