"""``connect``: what it returns, what it says when it fails, and that it leaves nothing behind."""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import ssl
import threading
import weakref
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from coro.errors import (
    CancelledError,
    ConnectError,
    PhaseTimeoutError,
    ResolveError,
    StreamClosedError,
    TimeoutError,
)
from coro.future import Future
from coro.gen import convert_yielded, coroutine, moment, sleep
from coro.hooks import Observer
from coro.loop import IOLoop
from coro.net import AF_INET, AF_INET6
from coro.resolver import Addresses, Resolver
from coro.stream import IOStream, SSLIOStream
from coro.task import MAX_CONTINUATIONS
from coro.tcp import TCPClient, connect
from tests.conftest import RawServerFactory
from tests.support.authority import Authority
from tests.support.hosting import new_loop, of_the_system
from tests.support.leaks import count_fds
from tests.support.raw_server import read_exactly, stay_silent
from tests.support.virtual import closing_loop, step, turns


@pytest.fixture
def loop() -> Iterator[IOLoop]:
    loop = new_loop()
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
        place = f"127.0.0.1:{deaf_port}"
        tried = rf"{place}: abandoned \(5000 ms\)"
        with pytest.raises(TimeoutError, match=f"^Timeout while connecting to {place}: {tried}$"):
            loop.run_sync(lambda: connect("127.0.0.1", deaf_port, timeout=5))
        assert_nothing_left(loop)


def test_time_limit_in_the_handshake(raw_server: RawServerFactory) -> None:
    server = raw_server(stay_silent)
    with closing_loop() as loop:
        with pytest.raises(TimeoutError, match=f"TLS handshake with 127.0.0.1:{server.port}$"):
            loop.run_sync(lambda: connect("127.0.0.1", server.port, ssl_options=True, timeout=5))
        assert_nothing_left(loop)


class TestTimeLimits:
    """Of the phases, each for itself, on a clock that leaps."""

    LIMITS: dict[str, Any] = {
        "resolve_timeout": 3,
        "connect_timeout": timedelta(seconds=4),
        "tls_timeout": 5,
    }

    def expire(self, seconds: float, **arguments: Any) -> PhaseTimeoutError:
        with closing_loop() as loop:
            began = loop.time()
            with pytest.raises(PhaseTimeoutError) as caught:
                loop.run_sync(lambda: connect(**arguments))
            assert loop.time() - began == pytest.approx(seconds)
            assert_nothing_left(loop)
            return caught.value

    def test_resolving(self) -> None:
        error = self.expire(3, host="nowhere", port=80, resolver=Names(), **self.LIMITS)
        assert str(error) == "Timeout while resolving nowhere"
        assert error.phase == "dns"
        assert error.attempts == ()

    def test_connecting(self, deaf_port: int) -> None:
        deaf = (AF_INET, ("127.0.0.1", deaf_port))
        error = self.expire(
            4, host="host", port=80, resolver=Names(host=[deaf]), attempt_delay=2, **self.LIMITS
        )
        assert error.phase == "connect"
        assert [attempt.address for attempt in error.attempts] == [deaf[1]]
        assert "connecting to host:80: 127.0.0.1" in str(error)

    def test_connecting_counts_from_the_first_address(self, deaf_port: int) -> None:
        @coroutine
        def resolve(host: str, port: int, family: int) -> Any:
            yield sleep(2)
            return [(AF_INET, ("127.0.0.1", deaf_port))]

        late = Names()
        late.resolve = resolve  # type: ignore[assignment]
        error = self.expire(6, host="host", port=80, resolver=late, **self.LIMITS)
        assert error.phase == "connect"

    def test_the_handshake(self, raw_server: RawServerFactory) -> None:
        port = raw_server(stay_silent).port
        error = self.expire(5, host="127.0.0.1", port=port, ssl_options=True, **self.LIMITS)
        assert error.phase == "tls"
        assert str(error) == f"Timeout during TLS handshake with 127.0.0.1:{port}"
        assert [attempt.error for attempt in error.attempts] == [None]

    @pytest.mark.parametrize(("whole", "seconds"), [(1, 1), (9, 3)])
    def test_the_nearest_one_counts(self, whole: float, seconds: float) -> None:
        error = self.expire(
            seconds, host="nowhere", port=80, resolver=Names(), timeout=whole, **self.LIMITS
        )
        assert error.phase == "dns"

    def test_what_is_in_time_leaves_no_timer(
        self, loop: IOLoop, raw_server: RawServerFactory
    ) -> None:
        server = raw_server(echo_once)

        @coroutine
        def main() -> Any:
            stream = yield connect(*server.address, timeout=50, **self.LIMITS)
            assert loop.statistics()["timers"] == 0
            stream.close()

        loop.run_sync(main)

    def test_no_limit_makes_no_timer(self, loop: IOLoop, deaf_port: int) -> None:
        connecting = connect("127.0.0.1", deaf_port)
        assert loop.statistics()["timers"] == 0
        connecting.cancel()
        turns(loop, 2)


@of_the_system
class TestUnixSockets:
    @pytest.fixture(params=["path", "bytes", "Path", "abstract"])
    def name(self, request: pytest.FixtureRequest, tmp_path: Path) -> Any:
        path = tmp_path / "x.sock"
        return {
            "path": str(path),
            "bytes": bytes(path),
            "Path": path,
            "abstract": f"\0coro-test-{os.getpid()}",
        }[request.param]

    @pytest.fixture
    def listener(self, name: Any) -> Iterator[socket.socket]:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(os.fspath(name))
            listener.listen()
            listener.settimeout(10)
            yield listener

    def test_connect(self, loop: IOLoop, name: Any, listener: socket.socket) -> None:
        @coroutine
        def main() -> Any:
            stream = yield connect(unix_socket=name)
            peer, _ = listener.accept()
            with peer:
                yield stream.write(b"ping")
                assert read_exactly(peer, 4) == b"ping"
            stream.close()
            (won,) = stream.attempts
            assert won.error is None
            assert won.address == os.fsdecode(name)

        loop.run_sync(main)

    def test_nobody_is_there(self, loop: IOLoop, name: Any) -> None:
        with pytest.raises(ConnectError) as caught:
            loop.run_sync(lambda: connect(unix_socket=name))
        error = caught.value
        assert isinstance(error.__cause__, FileNotFoundError | ConnectionRefusedError)
        place = os.fsdecode(name).replace("\0", "@")
        assert str(error).startswith(f"cannot connect to {place}: ")
        assert len(error.attempts) == 1

    def test_a_full_queue_is_waited_for(self, name: Any, listener: socket.socket) -> None:
        listener.listen(0)
        with closing_loop() as loop, contextlib.ExitStack() as stack:
            while True:
                filler = stack.enter_context(socket.socket(socket.AF_UNIX))
                filler.setblocking(False)
                try:
                    filler.connect(os.fspath(name))
                except BlockingIOError:
                    break
            connecting = connect(unix_socket=name)
            for _ in range(10):
                step(loop)
            assert not connecting.done()
            stack.enter_context(listener.accept()[0])
            stream = loop.run_sync(lambda: connecting)
            stream.close()
            with pytest.raises(PhaseTimeoutError, match="Timeout while connecting to "):
                loop.run_sync(lambda: connect(unix_socket=name, connect_timeout=5))
            assert_nothing_left(loop)

    def test_tls(self, loop: IOLoop, ca: Authority, name: Any, listener: socket.socket) -> None:
        def serve() -> None:
            conn, _ = listener.accept()
            with ca.server_context("service.test").wrap_socket(conn, server_side=True) as tls:
                echo_once(tls)

        server = threading.Thread(target=serve)
        server.start()

        @coroutine
        def main() -> Any:
            stream = yield connect(
                "service.test", unix_socket=name, ssl_options=ca.client_context()
            )
            yield stream.write(b"ping")
            assert (yield stream.read_bytes(4)) == b"ping"
            stream.close()

        loop.run_sync(main)
        server.join(10)

    def test_tls_needs_a_name(self, loop: IOLoop) -> None:
        with pytest.raises(ValueError, match="server_hostname"):
            loop.run_sync(lambda: connect(unix_socket="/nowhere", ssl_options=True))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "a host and a port, or a unix_socket"),
        ({"host": "host"}, "a host and a port, or a unix_socket"),
        ({"port": 80}, "a host and a port, or a unix_socket"),
        ({"host": "host", "port": 80, "unix_socket": "/x"}, "not to both"),
        ({"unix_socket": "/x", "source_ip": "127.0.0.1"}, "no source_ip"),
        ({"unix_socket": "/x", "source_port": 1}, "no source_ip"),
        (
            {"host": "127.0.0.1", "port": 80, "source_ip": "eth0"},
            "address of this host, not 'eth0'",
        ),
        ({"host": "127.0.0.1", "port": 80, "attempt_delay": 0}, "attempt_delay"),
        ({"host": "127.0.0.1", "port": 80, "first_family_count": 0}, "first_family_count"),
    ],
)
def test_arguments_that_do_not_go_together(
    loop: IOLoop, arguments: dict[str, Any], message: str
) -> None:
    connecting = connect(**arguments)
    with pytest.raises(ValueError, match=message):
        loop.run_sync(lambda: connecting)


def test_socket_options(loop: IOLoop, raw_server: RawServerFactory) -> None:
    server = raw_server(echo_once)
    keepalive = (socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    idle = (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)

    @coroutine
    def main() -> Any:
        options = [(*keepalive, 1), (*idle, 77)]
        stream = yield connect(*server.address, socket_options=options, nodelay=False)
        try:
            assert stream.socket.getsockopt(*keepalive)
            assert stream.socket.getsockopt(*idle) == 77
            assert not stream.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        finally:
            stream.close()

    loop.run_sync(main)


@pytest.mark.parametrize(
    ("option", "error"), [((socket.SOL_SOCKET, 9999, 1), ConnectError), ("x", TypeError)]
)
def test_a_socket_option_that_is_none(
    loop: IOLoop, refused_port: int, option: Any, error: type[Exception]
) -> None:
    with pytest.raises(error):
        loop.run_sync(lambda: connect("127.0.0.1", refused_port, socket_options=[option]))


def test_several_attempts_from_one_port(
    loop: IOLoop, raw_server: RawServerFactory, deaf_port: int
) -> None:
    server = raw_server(echo_once)
    names = Names(host=[(AF_INET, ("127.0.0.1", deaf_port)), (AF_INET, server.address)])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    @coroutine
    def main() -> Any:
        stream = yield connect(
            "host",
            80,
            resolver=names,
            source_ip="127.0.0.1",
            source_port=port,
            attempt_delay=0.01,
        )
        try:
            return stream.socket.getsockname(), [each.error for each in stream.attempts]
        finally:
            stream.close()

    assert loop.run_sync(main) == (("127.0.0.1", port), [None, None])


class TestOverrides:
    @pytest.mark.parametrize("exact", [False, True])
    def test_tls_still_speaks_of_the_host(
        self, loop: IOLoop, raw_server: RawServerFactory, ca: Authority, exact: bool
    ) -> None:
        context = ca.server_context("service.test")
        spoken: list[Any] = []
        context.sni_callback = lambda _tls, name, _context: spoken.append(name)
        server = raw_server(echo_once, tls=context)
        key = ("service.test", 443) if exact else "service.test"
        instead = server.address if exact else "127.0.0.1"

        @coroutine
        def main() -> Any:
            stream = yield connect(
                "service.test",
                443 if exact else server.port,
                ssl_options=ca.client_context(),
                overrides={key: instead},
            )
            stream.close()

        loop.run_sync(main)
        assert spoken == ["service.test"]

    def test_a_resolver_answers_for_the_rest(
        self, loop: IOLoop, raw_server: RawServerFactory
    ) -> None:
        server = raw_server(echo_once)
        names = Names(host=[(AF_INET, server.address)])

        @coroutine
        def main() -> Any:
            overrides = {"other": "127.0.0.1"}
            stream = yield connect("host", 80, resolver=names, overrides=overrides)
            stream.close()

        loop.run_sync(main)
        assert len(names.asked) == 2

    def test_a_literal_may_be_put_elsewhere(
        self, loop: IOLoop, raw_server: RawServerFactory
    ) -> None:
        server = raw_server(echo_once)

        @coroutine
        def main() -> Any:
            overrides = {("192.0.2.1", 80): server.address}
            stream = yield connect("192.0.2.1", 80, overrides=overrides)
            stream.close()

        loop.run_sync(main)


@pytest.mark.parametrize(
    ("host", "certified"),
    [
        ("service.test.", "service.test"),
        ("faß.test", "xn--fa-hia.test"),
        ("Bücher.test", "xn--bcher-kva.test"),
    ],
)
def test_names_as_tls_has_them(
    loop: IOLoop, raw_server: RawServerFactory, ca: Authority, host: str, certified: str
) -> None:
    server = raw_server(echo_once, tls=ca.server_context(certified))
    table: dict[str, Addresses] = {host: [(AF_INET, server.address)]}
    names = Names(**table)

    @coroutine
    def main() -> Any:
        stream = yield connect(
            host,
            server.port,
            ssl_options=ca.client_context(),
            resolver=names,
        )
        stream.close()

    loop.run_sync(main)


def test_an_error_of_the_handshake_says_where_it_was(
    loop: IOLoop, raw_server: RawServerFactory, ca: Authority
) -> None:
    server = raw_server(lambda conn: read_exactly(conn, 1))
    with pytest.raises(StreamClosedError) as caught:
        loop.run_sync(lambda: connect(*server.address, ssl_options=ca.client_context()))
    assert caught.value.__notes__ == [f"in the TLS handshake with 127.0.0.1:{server.port}"]


def test_half_close_is_passed_on(
    loop: IOLoop, raw_server: RawServerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def start_tls(stream: IOStream, *args: Any, **options: Any) -> Any:
        asked.append(options)
        raise ZeroDivisionError

    monkeypatch.setattr(IOStream, "start_tls", start_tls)
    server = raw_server(echo_once)
    for half_close in (False, True):
        with pytest.raises(ZeroDivisionError):
            loop.run_sync(
                lambda: connect(
                    *server.address,
                    ssl_options=True,
                    tls_half_close=half_close,  # noqa: B023
                )
            )
    assert asked == [{}, {"half_close": True}]


WAYS: dict[str, dict[str, Any]] = {
    "plain": {"host": "host"},
    "tls": {"host": "host", "server_hostname": "127.0.0.1"},
    "overridden": {"host": "away", "overrides": {"away": "host"}},
    "unix": {"unix_socket": ""},
    "unix and tls": {"unix_socket": "", "server_hostname": "127.0.0.1"},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("wait", range(14))
def test_cancelled_at_every_turn(
    raw_server: RawServerFactory, ca: Authority, tmp_path: Path, wait: int, way: str
) -> None:
    secure = "server_hostname" in WAYS[way]
    server = raw_server(stay_silent, tls=ca.server_context("127.0.0.1") if secure else None)
    names = Names(host=[(AF_INET, server.address)])
    arguments = {**WAYS[way], "timeout": 50, "connect_timeout": 40}
    if secure:
        arguments["ssl_options"] = ca.client_context()
    if "unix_socket" in arguments:
        arguments["unix_socket"] = str(tmp_path / "x.sock")
    else:
        arguments.update(resolver=names, port=server.port)
    before = count_fds()
    with closing_loop() as loop, socket.socket(socket.AF_UNIX) as listener:
        if "unix_socket" in arguments:
            listener.bind(arguments["unix_socket"])
            listener.listen()
        own = count_fds()

        @coroutine
        def main() -> Any:
            yield moment
            return (yield connect(**arguments))

        task = main()
        for _ in range(wait):
            if not task.done():
                turns(loop)
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


class TestUnclaimed:
    """A stream that stands, but does not reach the one who asked for it."""

    @pytest.fixture
    def opened(self, loop: IOLoop) -> list[IOStream]:
        streams: list[IOStream] = []

        class Watch(Observer):
            def resource_opened(self, resource: Any) -> None:
                streams.append(resource)

        loop.add_observer(Watch())
        return streams

    @pytest.mark.parametrize("in_list", [False, True])
    def test_the_caller_is_about_to_go_on(
        self,
        loop: IOLoop,
        raw_server: RawServerFactory,
        opened: list[IOStream],
        in_list: bool,
    ) -> None:
        server = raw_server(stay_silent)
        connecting: list[Any] = []

        @coroutine
        def main() -> Any:
            connecting.append(connect(*server.address))
            yield connecting if in_list else connecting[0]

        task = main()
        while not connecting[0].done():
            turns(loop)
        assert not task.done()
        task.cancel()
        turns(loop, 3)
        assert task.cancelled()
        assert connecting[0].cancelled()
        assert [stream.closed() for stream in opened] == [True]

    def test_the_callers_step_is_at_its_bound(
        self, loop: IOLoop, raw_server: RawServerFactory, opened: list[IOStream]
    ) -> None:
        """He asks for what is there already, but may not go on in this step."""
        server = raw_server(stay_silent)

        @coroutine
        def main(spent: int, connecting: Any) -> Any:
            for _ in range(spent):
                yield loop.nothing
            return (yield connecting)

        unclaimed = 0
        for spent in range(MAX_CONTINUATIONS - 3, MAX_CONTINUATIONS + 3):
            connecting = connect(*server.address)
            loop.run_sync(partial(convert_yielded, connecting))
            task = main(spent, connecting)
            task.cancel()
            turns(loop, 2)
            if connecting.cancelled():
                unclaimed += 1
            else:
                connecting.result().close()
        assert unclaimed == 1
        assert all(stream.closed() for stream in opened)

    def test_one_of_two_callers_gives_up(
        self, loop: IOLoop, raw_server: RawServerFactory, opened: list[IOStream]
    ) -> None:
        server = raw_server(stay_silent)
        connecting = connect(*server.address)

        @coroutine
        def take() -> Any:
            return (yield connecting)

        first, second = take(), take()
        loop.add_future(connecting, lambda _: first.cancel())
        stream = loop.run_sync(lambda: second)
        assert not stream.closed()
        stream.close()

    def test_a_failure_in_the_turn_of_the_cancellation_is_not_logged(
        self, loop: IOLoop, refused_port: int, caplog: pytest.LogCaptureFixture
    ) -> None:
        for wait in range(6):
            task = connect("127.0.0.1", refused_port)
            turns(loop, wait)
            task.cancel()
            turns(loop, 3)
            if not task.cancelled():
                task.exception()
            del task
        assert caplog.records == []

    def test_a_connection_that_ended_cannot_be_cancelled(
        self, loop: IOLoop, raw_server: RawServerFactory
    ) -> None:
        connecting = connect(*raw_server(stay_silent).address)
        stream = loop.run_sync(lambda: connecting)
        assert not connecting.cancel()
        assert not stream.closed()
        stream.close()


@pytest.mark.parametrize("ends", ["refused", "resolved to nothing", "late", "cancelled", "made"])
def test_what_ended_leaves_no_circle(
    raw_server: RawServerFactory, refused_port: int, deaf_port: int, ends: str
) -> None:
    server = raw_server(stay_silent)
    port = {"refused": refused_port, "made": server.port}.get(ends, deaf_port)
    host = "host" if ends == "resolved to nothing" else "127.0.0.1"
    with closing_loop() as loop:
        gc.collect()
        gc.disable()
        try:
            resolver = Names(host=[]) if host == "host" else None
            connecting = connect(host, port, timeout=9, resolver=resolver)
            if ends == "cancelled":
                connecting.cancel()
            while not connecting.done():
                (step if ends == "late" else turns)(loop)
            if ends == "made":
                connecting.result().close()
            turns(loop, 2)
            died = weakref.ref(connecting)
            if not connecting.cancelled():
                connecting.exception()
            del connecting
            assert died() is None
            assert gc.collect() == 0
        finally:
            gc.enable()


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
