"""``TCPServer``: listening, accepting, handlers, limits, TLS, the end."""

from __future__ import annotations

import contextvars
import errno
import gc
import logging
import os
import socket
import ssl
from collections.abc import Callable, Generator, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from coro import tcpserver
from coro.errors import CancelledError, StreamClosedError, TimeoutError
from coro.future import Future
from coro.gen import coroutine, moment, sleep
from coro.loop import IOLoop
from coro.net import bind_sockets, bind_unix_socket
from coro.stream import IOStream, SSLIOStream
from coro.tcp import TCPServer, connect
from tests.support.authority import Authority
from tests.support.virtual import closing_loop, step, turns


@pytest.fixture
def loop() -> Iterator[IOLoop]:
    with closing_loop() as loop:
        yield loop
        left = loop.statistics()
        assert (left["handlers"], left["timers"], left["tasks"]) == (0, 0, 0)


class Echo(TCPServer):
    """Sends back what it gets, and knows who came."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.came: list[Any] = []

    @coroutine
    def handle_stream(self, stream: IOStream, address: Any) -> Generator[Any, Any, None]:
        self.came.append(address)
        try:
            while True:
                data = yield stream.read_bytes(1024, partial=True)
                yield stream.write(data)
        except StreamClosedError:
            pass
        finally:
            stream.close()


class Plain(TCPServer):
    """Its handler is any function."""

    def __init__(self, handler: Callable[[IOStream, Any], Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.handler = handler

    def handle_stream(self, stream: IOStream, address: Any) -> Any:
        return self.handler(stream, address)


def port_of(server: TCPServer) -> int:
    return int(server.sockets[0].getsockname()[1])


def client_of(server: TCPServer) -> socket.socket:
    """A connected client that does not block."""
    sock = socket.create_connection(("127.0.0.1", port_of(server)))
    sock.setblocking(False)
    return sock


def turn_until(loop: IOLoop, done: Callable[[], Any], turn: Callable[..., Any] = turns) -> None:
    """Turn the loop until something holds; with ``turn=step``, time passes."""
    for _ in range(100_000):
        if done():
            return
        turn(loop)
    raise AssertionError("it does not come to hold")


def ended(sock: socket.socket) -> bool:
    """Whether the server has closed the connection."""
    try:
        return sock.recv(1024) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


def run(loop: IOLoop, body: Callable[[], Any]) -> Any:
    return loop.run_sync(coroutine(body))


@coroutine
def exchange(stream: IOStream, data: bytes) -> Generator[Any, Any, bytes]:
    yield stream.write(data)
    return (yield stream.read_bytes(len(data)))


class TestListening:
    def test_ipv4_and_ipv6_on_one_free_port(self, loop: IOLoop) -> None:
        server = Echo()
        server.listen(0)
        assert {sock.family for sock in server.sockets} == {socket.AF_INET, socket.AF_INET6}
        port = port_of(server)
        assert {sock.getsockname()[1] for sock in server.sockets} == {port}

        def main() -> Any:
            for host in ("127.0.0.1", "::1"):
                stream = yield connect(host, port)
                assert (yield exchange(stream, b"hello")) == b"hello"
                stream.close()
            yield server.shutdown()

        run(loop, main)
        assert [address[0] for address in server.came] == ["127.0.0.1", "::1"]
        assert server.statistics() == {
            "connections": 0,
            "accepted": 2,
            "failed_handshakes": 0,
            "failed_accepts": 0,
            "listeners": 0,
        }

    def test_several_ports_and_sockets(self, loop: IOLoop) -> None:
        server = Echo()
        server.listen(0, "127.0.0.1")
        server.listen(0, "127.0.0.1", family=socket.AF_INET, backlog=5)
        server.add_sockets(bind_sockets(0, "127.0.0.1"))
        server.add_socket(socket.create_server(("127.0.0.1", 0)))
        ports = [sock.getsockname()[1] for sock in server.sockets]
        assert len(set(ports)) == 4

        def main() -> Any:
            for port in ports:
                stream = yield connect("127.0.0.1", port)
                yield exchange(stream, b"x")
                stream.close()
            yield server.shutdown()

        run(loop, main)

    @pytest.mark.parametrize("abstract", [False, True])
    def test_unix_sockets(self, loop: IOLoop, tmp_path: Path, abstract: bool) -> None:
        path = f"\0coro-test-{os.getpid()}" if abstract else str(tmp_path / "socket")
        server = Echo()
        server.add_socket(bind_unix_socket(path))

        def main() -> Any:
            stream = yield connect(unix_socket=path)
            assert (yield exchange(stream, b"hello")) == b"hello"
            stream.close()
            yield server.shutdown()

        run(loop, main)
        assert not os.path.lexists(tmp_path / "socket")
        assert server.came == [""]

    def test_a_port_in_use_is_refused(self, loop: IOLoop) -> None:
        server, other = Echo(), Echo()
        server.listen(0, "127.0.0.1")
        with pytest.raises(OSError, match=r"cannot listen on 127.0.0.1:.* in use"):
            other.listen(port_of(server), "127.0.0.1")
        assert other.sockets == []
        server.stop()

    def test_stop_and_listen_again(self, loop: IOLoop) -> None:
        server = Echo()
        server.stop()
        server.listen(0, "127.0.0.1")
        port = port_of(server)
        with client_of(server) as client:
            turn_until(loop, lambda: server.came)
            server.stop()
            server.stop()
            with socket.socket() as sock:
                assert sock.connect_ex(("127.0.0.1", port)) == errno.ECONNREFUSED
            # Connections go on.
            client.send(b"hello")
            turn_until(loop, lambda: loop.statistics()["handlers"] == 1)
            server.listen(port, "127.0.0.1")
            with client_of(server):
                turn_until(loop, lambda: len(server.came) == 2)
        turn_until(loop, lambda: not server.statistics()["connections"])
        server.stop()

    @pytest.mark.parametrize("reuse_port", [False, True])
    def test_bind_and_start(self, loop: IOLoop, reuse_port: bool) -> None:
        server = Echo()
        server.bind(0, "127.0.0.1", reuse_port=reuse_port)
        assert server.sockets == []
        server.start()
        with client_of(server):
            turn_until(loop, lambda: server.came)
        turn_until(loop, lambda: not server.statistics()["connections"])
        server.stop()

    def test_what_was_bound_and_never_started_is_closed(self, loop: IOLoop) -> None:
        server = Echo()
        server.bind(0, "127.0.0.1")
        server.stop()

    def test_workers_do_not_come_from_a_running_loop(self, loop: IOLoop) -> None:
        server = Echo()

        def main() -> Any:
            yield moment
            server.bind(0, "127.0.0.1")
            with pytest.raises(RuntimeError, match=r"fork_processes.* comes before the loop"):
                server.start(2)

        run(loop, main)

    def test_the_loop_closes_what_still_listens(self) -> None:
        server = Echo()
        with closing_loop():
            server.listen(0, "127.0.0.1")
            (sock,) = server.sockets
        assert sock.fileno() == -1
        assert server.sockets == []

    def test_nothing_is_kept_alive(self, loop: IOLoop, no_collector: None) -> None:
        def use() -> None:
            server = Echo()
            server.listen(0, "127.0.0.1")
            with client_of(server):
                turn_until(loop, lambda: server.came)
            turn_until(loop, lambda: not server.statistics()["connections"])
            server.stop()

        use()
        assert gc.collect() == 0

    def test_repr(self, loop: IOLoop, monkeypatch: pytest.MonkeyPatch) -> None:
        server = Echo(max_connections=1)
        assert repr(server) == "<Echo not listening connections=0/1>"
        server.listen(0, "127.0.0.1")
        port = port_of(server)
        with client_of(server):
            turn_until(loop, lambda: server.came)
            text = f"<Echo listening on 127.0.0.1:{port} connections=1/1 full>"
            assert repr(server) == text
        turn_until(loop, lambda: not server.statistics()["connections"])
        server.stop()

    def test_options_that_make_no_sense(self) -> None:
        with pytest.raises(ValueError, match="certificate"):
            TCPServer(ssl_options={})
        with pytest.raises(ValueError, match="at least 1"):
            TCPServer(max_connections=0)


class TestHandlers:
    def test_limits_reach_the_stream(self, loop: IOLoop) -> None:
        seen: list[IOStream] = []

        def handler(stream: IOStream, _address: Any) -> None:
            seen.append(stream)
            stream.close()

        server = Plain(handler, max_buffer_size=10_000, read_chunk_size=100)
        server.listen(0, "127.0.0.1")
        with client_of(server):
            turn_until(loop, lambda: seen)
        assert (seen[0].max_buffer_size, seen[0].read_chunk_size) == (10_000, 100)
        server.stop()

    def test_async_def_and_callbacks_serve_too(self, loop: IOLoop) -> None:
        async def native(stream: IOStream, _address: Any) -> None:
            await stream.write(await stream.read_bytes(5))
            stream.close()

        kept: list[IOStream] = []

        def callbacks(stream: IOStream, _address: Any) -> None:
            def arrived(future: Future[bytes]) -> None:
                stream.write(future.result())
                stream.close()

            kept.append(stream)
            loop.add_future(stream.read_bytes(5), arrived)

        for handler in (native, callbacks):
            server = Plain(handler)
            server.listen(0, "127.0.0.1")

            def main(server: TCPServer = server) -> Any:
                stream = yield connect("127.0.0.1", port_of(server))
                assert (yield exchange(stream, b"hello")) == b"hello"
                stream.close()
                yield server.shutdown()

            run(loop, main)

    def test_a_server_without_one_says_so(
        self, loop: IOLoop, caplog: pytest.LogCaptureFixture
    ) -> None:
        server = TCPServer()
        server.listen(0, "127.0.0.1")
        with client_of(server) as client:
            turn_until(loop, lambda: ended(client))
        assert "TCPServer defines no handle_stream" in caplog.text
        server.stop()

    @pytest.mark.parametrize("how", ["at once", "later", "async def", "bad result"])
    def test_errors_are_logged_and_the_connection_closed(
        self, loop: IOLoop, caplog: pytest.LogCaptureFixture, no_collector: None, how: str
    ) -> None:
        def at_once(_stream: IOStream, _address: Any) -> None:
            raise ZeroDivisionError

        @coroutine
        def later(stream: IOStream, _address: Any) -> Any:
            yield stream.read_bytes(1)
            raise ZeroDivisionError

        async def native(stream: IOStream, _address: Any) -> None:
            await stream.read_bytes(1)
            raise ZeroDivisionError

        handlers = {"at once": at_once, "later": later, "async def": native}
        server: Any = Plain(handlers.get(how, lambda *_: 17))
        server.listen(0, "127.0.0.1")
        with client_of(server) as client:
            client.send(b"x")
            turn_until(loop, lambda: ended(client))
        (record,) = [each for each in caplog.records if each.levelno >= logging.ERROR]
        assert record.name == "coro.application"
        assert record.message.startswith(
            "Exception in callback <bound method"
            if how in ("later", "async def")
            else "Error in connection callback"
        )
        assert server.statistics()["connections"] == 0
        caplog.clear()
        server.stop()
        del server, record, handlers, at_once, later, native
        assert gc.collect() == 0

    def test_a_handler_that_runs_on_holds_its_connection(self, loop: IOLoop) -> None:
        go: Future[None] = Future()

        @coroutine
        def handler(stream: IOStream, _address: Any) -> Any:
            stream.close()
            yield go

        server = Plain(handler)
        server.listen(0, "127.0.0.1")
        with client_of(server) as client:
            turn_until(loop, lambda: ended(client))
        assert server.statistics()["connections"] == 1
        go.set_result(None)
        turn_until(loop, lambda: not server.statistics()["connections"])
        server.stop()

    def test_a_stream_that_is_handed_on_holds_its_connection(self, loop: IOLoop) -> None:
        kept: list[IOStream] = []
        server = Plain(lambda stream, _address: kept.append(stream))
        server.listen(0, "127.0.0.1")
        with client_of(server):
            turn_until(loop, lambda: kept)
            turns(loop, 3)
            assert server.statistics()["connections"] == 1
            assert server.streams() == kept
            kept[0].close()
            assert server.statistics()["connections"] == 0
            assert server.streams() == []
        server.stop()

    def test_a_stream_that_everybody_forgot_holds_nothing(self, loop: IOLoop) -> None:
        server = Plain(lambda _stream, _address: None)
        server.listen(0, "127.0.0.1")
        with client_of(server), pytest.warns(ResourceWarning):
            turn_until(loop, lambda: server.statistics()["accepted"])
        assert server.statistics()["connections"] == 0
        server.stop()

    def test_both_ends_may_stay_half_open(self, loop: IOLoop) -> None:
        @coroutine
        def handler(stream: IOStream, address: Any) -> Generator[Any, Any, None]:
            with pytest.raises(StreamClosedError):
                yield stream.read_until(b"never")
            yield stream.write(b"answer")
            stream.send_eof()
            # What this one still hears, the client said after it had heard all.
            stream.close()

        server = Plain(handler, half_open=True)
        server.listen(0, "127.0.0.1")

        @coroutine
        def main() -> Generator[Any, Any, None]:
            stream = yield connect("127.0.0.1", port_of(server), half_open=True)
            assert stream.half_open
            yield stream.write(b"question")
            stream.send_eof()
            assert (yield stream.read_bytes(6)) == b"answer"
            stream.close()

        loop.run_sync(main)
        loop.run_sync(server.shutdown)

    def test_start_tls_in_the_middle(self, loop: IOLoop, ca: Authority) -> None:
        context = ca.server_context()

        @coroutine
        def handler(stream: IOStream, _address: Any) -> Any:
            assert (yield stream.read_until(b"\n")) == b"STARTTLS\n"
            secured = yield stream.start_tls(True, context)
            yield secured.write((yield secured.read_bytes(5)))
            assert server.streams() == [secured]
            assert server.statistics()["connections"] == 1
            secured.close()

        server = Plain(handler)
        server.listen(0, "127.0.0.1")

        def main() -> Any:
            stream = yield connect("127.0.0.1", port_of(server))
            yield stream.write(b"STARTTLS\n")
            secured = yield stream.start_tls(False, ca.client_context(), "localhost")
            assert (yield exchange(secured, b"hello")) == b"hello"
            secured.close()
            yield server.shutdown()

        run(loop, main)
        assert server.statistics()["connections"] == 0

    def test_context(self, loop: IOLoop) -> None:
        """Of who made the server listen, also after it rested; each coroutine in its own copy."""
        variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="none")
        seen: list[str] = []

        @coroutine
        def handler(stream: IOStream, _address: Any) -> Any:
            seen.append(variable.get())
            variable.set("a handler's")
            yield stream.read_until_close()
            stream.close()

        server = Plain(handler, max_connections=1)
        variable.set("listener's")
        server.listen(0, "127.0.0.1")
        variable.set("later")
        for _ in range(3):
            with client_of(server):
                turn_until(loop, lambda: server.statistics()["connections"])
            turn_until(loop, lambda: not server.statistics()["connections"])
        assert seen == ["listener's"] * 3
        server.stop()


class TestLimits:
    def test_at_the_limit_nothing_is_accepted(self, loop: IOLoop) -> None:
        server = Echo(max_connections=2)
        server.listen(0)
        clients = [client_of(server) for _ in range(4)]
        turn_until(loop, lambda: len(server.came) == 2)
        turns(loop, 5)
        assert len(server.came) == 2
        # Neither of the two listeners is watched.
        assert loop.statistics()["handlers"] == 2
        for count, client in zip((3, 4, 4, 4), clients, strict=True):
            client.close()
            while len(server.came) < count:
                turns(loop)
        turn_until(loop, lambda: not server.statistics()["connections"])
        assert loop.statistics()["handlers"] == 2
        server.stop()

    def test_one_wakeup_accepts_a_bounded_number(
        self, loop: IOLoop, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tcpserver, "ACCEPT_BATCH", 3)
        server = Echo()
        server.listen(0, "127.0.0.1")
        clients = [client_of(server) for _ in range(7)]
        counts = []
        for _ in range(3):
            turns(loop)
            counts.append(len(server.came))
        assert counts == [3, 6, 7]
        for client in clients:
            client.close()
        turn_until(loop, lambda: not server.statistics()["connections"])
        server.stop()

    def test_a_handler_may_stop_the_server(self, loop: IOLoop) -> None:
        seen = []

        def handler(stream: IOStream, _address: Any) -> None:
            seen.append(stream)
            server.stop()
            stream.close()

        server = Plain(handler)
        server.listen(0, "127.0.0.1")
        with client_of(server), client_of(server) as other:
            turn_until(loop, lambda: ended(other))
        assert len(seen) == 1


class FailingListener(socket.socket):
    """Its ``accept`` fails as it is told."""

    errors: list[int]
    tries = 0

    def accept(self) -> tuple[socket.socket, Any]:
        self.tries += 1
        # 0: none this time.
        if self.errors and (number := self.errors.pop(0)):
            raise OSError(number, os.strerror(number))
        return super().accept()


@pytest.fixture
def failing(loop: IOLoop) -> Iterator[Callable[..., tuple[Echo, FailingListener]]]:
    """``failing(*numbers)``: a server, and its listener, whose next accepts fail with these."""
    servers = []

    def make(*numbers: int) -> tuple[Echo, FailingListener]:
        listener = FailingListener(socket.AF_INET)
        listener.errors = list(numbers)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        server = Echo()
        server.add_socket(listener)
        servers.append(server)
        return server, listener

    yield make
    for server in servers:
        server.stop()


class TestErrorsOfAccept:
    @pytest.mark.parametrize(
        "number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM], ids=errno.errorcode.get
    )
    def test_want_of_descriptors_or_memory_pauses(
        self,
        loop: IOLoop,
        failing: Callable[..., tuple[Echo, FailingListener]],
        caplog: pytest.LogCaptureFixture,
        number: int,
    ) -> None:
        caplog.set_level(logging.INFO)
        server, listener = failing(*[number] * 8)
        began = loop.time()
        with client_of(server):
            turns(loop)
            assert (listener.tries, loop.statistics()["handlers"]) == (1, 0)
            assert "out of descriptors or memory" in repr(server)
            turn_until(loop, lambda: server.came, step)
            # 0.05, 0.1, 0.2, 0.4, 0.8, and then a second each.
            assert loop.time() - began == pytest.approx(4.55)
            assert listener.tries in (9, 10)
            assert server.statistics()["failed_accepts"] == 8
            assert "out of descriptors" not in repr(server)
            where = f"accepting on 127.0.0.1:{port_of(server)}"
            assert [record.message for record in caplog.records] == [
                f"{where} pauses: [Errno {number}] {os.strerror(number)}",
                f"{where} goes on",
            ]
            # The next pause begins anew.
            listener.errors = [number]
            began = loop.time()
            with client_of(server):
                turn_until(loop, lambda: len(server.came) == 2, step)
            assert loop.time() - began == pytest.approx(0.05)
        turn_until(loop, lambda: not server.statistics()["connections"])

    def test_at_the_limit_it_is_told_once(
        self,
        loop: IOLoop,
        failing: Callable[..., tuple[Echo, FailingListener]],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """One is accepted now and then, while others wait."""
        caplog.set_level(logging.INFO)
        server, listener = failing()
        clients = []
        for count in range(5):
            listener.errors = [0, errno.EMFILE]
            clients += [client_of(server), client_of(server)]
            while server.statistics()["failed_accepts"] == count:
                step(loop)
        assert [record.levelno for record in caplog.records] == [logging.WARNING]
        turn_until(loop, lambda: len(server.came) == 10, step)
        assert [record.levelno for record in caplog.records] == [logging.WARNING, logging.INFO]
        for client in clients:
            client.close()
        turn_until(loop, lambda: not server.statistics()["connections"])

    def test_a_pausing_server_can_stop(
        self, loop: IOLoop, failing: Callable[..., tuple[Echo, FailingListener]]
    ) -> None:
        server, _ = failing(errno.EMFILE)
        with client_of(server) as client:
            turns(loop)
            assert loop.statistics()["timers"] == 1
            server.stop()
            assert ended(client)

    def test_a_pause_that_ends_at_the_limit(
        self, loop: IOLoop, failing: Callable[..., tuple[Echo, FailingListener]]
    ) -> None:
        """Each of two reasons to rest holds by itself."""
        server, listener = failing()
        server.max_connections = 1
        other = socket.create_server(("127.0.0.1", 0))
        server.add_socket(other)
        listener.errors = [errno.EMFILE]
        with client_of(server), socket.create_connection(other.getsockname()) as first:
            turns(loop)
            assert (len(server.came), loop.statistics()["timers"]) == (1, 1)
            turn_until(loop, lambda: not loop.statistics()["timers"], step)
            turns(loop)
            assert len(server.came) == 1
            first.close()
            turn_until(loop, lambda: len(server.came) == 2)
        turn_until(loop, lambda: not server.statistics()["connections"])

    def test_a_pause_is_not_ended_by_room_for_a_connection(
        self, loop: IOLoop, failing: Callable[..., tuple[Echo, FailingListener]]
    ) -> None:
        server, listener = failing(errno.EMFILE)
        server.max_connections = 1
        other = socket.create_server(("127.0.0.1", 0))
        server.add_socket(other)
        with client_of(server), socket.create_connection(other.getsockname()) as first:
            turn_until(loop, lambda: server.came)
            first.close()
            turn_until(loop, lambda: not server.streams())
            turns(loop, 3)
            assert (listener.tries, len(server.came)) == (1, 1)
            turn_until(loop, lambda: len(server.came) == 2, step)
        turn_until(loop, lambda: not server.statistics()["connections"])

    def test_an_aborted_connection_is_passed_over(
        self,
        loop: IOLoop,
        failing: Callable[..., tuple[Echo, FailingListener]],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        server, _ = failing(errno.ECONNABORTED, errno.EPROTO, errno.EPERM)
        with client_of(server):
            turns(loop)
            assert len(server.came) == 1
        turn_until(loop, lambda: not server.statistics()["connections"])
        assert caplog.text == ""

    def test_a_broken_listener_is_told_once(
        self,
        loop: IOLoop,
        failing: Callable[..., tuple[Echo, FailingListener]],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        server, listener = failing(*[errno.EINVAL] * 10)
        with client_of(server):
            turns(loop, 5)
        assert listener.tries == 1
        assert "does not listen any longer" in caplog.text


class TestTLS:
    def test_handlers_get_the_stream_after_the_handshake(self, loop: IOLoop, ca: Authority) -> None:
        seen: list[Any] = []

        @coroutine
        def handler(stream: Any, _address: Any) -> Any:
            assert (yield stream.wait_for_handshake()) is stream
            seen.append(stream.socket.version())
            yield stream.write((yield stream.read_bytes(5)))
            stream.close()

        server = Plain(handler, ssl_options=ca.server_context())
        server.listen(0)

        def main() -> Any:
            stream = yield connect("127.0.0.1", port_of(server), ssl_options=ca.client_context())
            assert isinstance(stream, SSLIOStream)
            assert (yield exchange(stream, b"hello")) == b"hello"
            stream.close()
            yield server.shutdown()

        run(loop, main)
        assert seen == ["TLSv1.3"]

    def test_a_dict_of_options(self, loop: IOLoop, ca: Authority) -> None:
        server = Echo(ssl_options={"certfile": str(ca.issue("localhost"))})
        server.listen(0, "127.0.0.1")

        def main() -> Any:
            stream = yield connect(
                "127.0.0.1",
                port_of(server),
                ssl_options=ca.client_context(),
                server_hostname="localhost",
            )
            assert (yield exchange(stream, b"hello")) == b"hello"
            stream.close()
            yield server.shutdown()

        run(loop, main)

    def test_a_silent_client_does_not_hold_its_slot(
        self, loop: IOLoop, ca: Authority, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG, "coro.general")
        server = Echo(ssl_options=ca.server_context(), max_connections=1, handshake_timeout=7)
        server.listen(0, "127.0.0.1")
        began = loop.time()
        with client_of(server) as silent:
            turn_until(loop, lambda: server.statistics()["connections"])
            assert server.streams() == []
            turn_until(loop, lambda: ended(silent), step)
            assert loop.time() - began == pytest.approx(7)
        turn_until(loop, lambda: not server.statistics()["connections"])
        assert (server.came, server.statistics()["failed_handshakes"]) == ([], 1)
        (record,) = [each for each in caplog.records if "TLS handshake with 127" in each.message]
        assert record.levelno == logging.DEBUG
        server.stop()

    @pytest.mark.parametrize("how", ["garbage", "leaves", "resets"])
    def test_failed_handshakes_are_counted(self, loop: IOLoop, ca: Authority, how: str) -> None:
        server = Echo(ssl_options=ca.server_context())
        server.listen(0, "127.0.0.1")
        with client_of(server) as client:
            turn_until(loop, lambda: server.statistics()["connections"])
            if how == "garbage":
                client.send(b"GET / HTTP/1.1\r\n\r\n")
                turn_until(loop, lambda: not server.statistics()["connections"])
            elif how == "resets":
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        turn_until(loop, lambda: not server.statistics()["connections"])
        assert (server.came, server.statistics()["failed_handshakes"]) == ([], 1)
        server.stop()

    def test_client_certificates(self, loop: IOLoop, ca: Authority) -> None:
        context = ca.server_context()
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(ca.pem)
        # In TLS 1.3 a client learns only later that its certificate was wanted.
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        server = Echo(ssl_options=context)
        server.listen(0)

        def main() -> Any:
            with pytest.raises(OSError):
                yield connect("127.0.0.1", port_of(server), ssl_options=ca.client_context())
            mine = ca.client_context()
            mine.load_cert_chain(ca.issue("client.example"))
            stream = yield connect("127.0.0.1", port_of(server), ssl_options=mine)
            assert (yield exchange(stream, b"hello")) == b"hello"
            stream.close()
            yield server.shutdown()

        run(loop, main)
        assert server.statistics()["failed_handshakes"] == 1


class TestShutdown:
    def test_it_waits_for_handlers_and_streams(self, loop: IOLoop) -> None:
        kept: list[IOStream] = []
        server = Plain(lambda stream, _address: kept.append(stream))
        server.listen(0, "127.0.0.1")

        @coroutine
        def close_later() -> Any:
            yield sleep(3)
            kept[0].close()

        with client_of(server):
            turn_until(loop, lambda: kept)

            def main() -> Any:
                began = loop.time()
                closing = close_later()
                yield [server.shutdown(), server.shutdown(timedelta(seconds=100))]
                assert loop.time() - began == pytest.approx(3)
                yield closing

            run(loop, main)
        assert server.sockets == []

    def test_without_connections_it_is_over_at_once(self, loop: IOLoop) -> None:
        server = Echo()
        server.listen(0, "127.0.0.1")
        assert server.shutdown().done()

    def test_who_waits_to_be_accepted_is_served(self, loop: IOLoop) -> None:
        server = Echo()
        server.listen(0, "127.0.0.1")
        clients = [client_of(server) for _ in range(100)]
        for client in clients:
            client.send(b"hello")
            client.shutdown(socket.SHUT_WR)
        loop.run_sync(server.shutdown)
        for client in clients:
            assert client.recv(10) == b"hello"
            client.close()
        assert len(server.came) == 100

    def test_who_has_no_place_yet_waits_for_it(self, loop: IOLoop) -> None:
        server = Echo(max_connections=2)
        server.listen(0, "127.0.0.1")
        first = [client_of(server) for _ in range(2)]
        turn_until(loop, lambda: len(server.came) == 2)
        queued = [client_of(server) for _ in range(3)]
        stopping = server.shutdown()
        assert len(server.sockets) == 1
        # Who comes now need not be waited for; whether he is taken is up to the queue.
        late = client_of(server)
        for client in (*first, *queued):
            client.send(b"hello")
            client.shutdown(socket.SHUT_WR)
        turn_until(loop, stopping.done)
        assert server.sockets == []
        for client in (*first, *queued):
            assert client.recv(10) == b"hello"
            client.close()
        assert len(server.came) == 5
        assert ended(late)
        late.close()

    def test_a_full_server_that_nobody_waits_for_listens_no_longer(self, loop: IOLoop) -> None:
        server = Echo(max_connections=1)
        server.listen(0, "127.0.0.1")
        with client_of(server):
            turn_until(loop, lambda: server.came)
            stopping = server.shutdown()
            assert server.sockets == []
            assert not stopping.done()
        turn_until(loop, stopping.done)

    def test_a_pause_for_want_of_descriptors_comes_first(
        self, loop: IOLoop, failing: Callable[..., tuple[Echo, FailingListener]]
    ) -> None:
        server, _ = failing(errno.EMFILE)
        with client_of(server) as client:
            client.send(b"hello")
            client.shutdown(socket.SHUT_WR)
            loop.run_sync(server.shutdown)
            assert client.recv(10) == b"hello"
        assert server.statistics()["failed_accepts"] == 1

    def test_a_listener_that_breaks_is_not_waited_for(
        self, loop: IOLoop, failing: Callable[..., tuple[Echo, FailingListener]]
    ) -> None:
        server, _ = failing(errno.EINVAL)
        loop.run_sync(server.shutdown)
        assert server.sockets == []

    def test_grace_ends_also_for_who_has_no_place(self, loop: IOLoop) -> None:
        server = Echo(max_connections=1)
        server.listen(0, "127.0.0.1")
        with client_of(server), client_of(server) as queued:
            turn_until(loop, lambda: server.came)
            loop.run_sync(lambda: server.shutdown(3))
            assert server.sockets == []
            assert ended(queued)

    @pytest.mark.parametrize("tls", [False, True])
    def test_what_does_not_end_in_time_is_cut(
        self, loop: IOLoop, ca: Authority, caplog: pytest.LogCaptureFixture, tls: bool
    ) -> None:
        ends: list[Any] = []

        @coroutine
        def handler(stream: IOStream, _address: Any) -> Any:
            try:
                yield stream.read_bytes(1000)
            except BaseException as error:
                ends.append(type(error))
                raise
            finally:
                # A clean-up may take its time; it is waited for.
                yield sleep(2)
                ends.append("cleaned up")

        server = Plain(handler, ssl_options=ca.server_context() if tls else None)
        server.listen(0)

        def main() -> Any:
            options = ca.client_context() if tls else None
            stream = yield connect("127.0.0.1", port_of(server), ssl_options=options)
            while not server.streams():
                yield moment
            began = loop.time()
            yield server.shutdown(5)
            assert loop.time() - began == pytest.approx(7)
            with pytest.raises(StreamClosedError):
                yield stream.read_bytes(1)

        run(loop, main)
        assert ends == [CancelledError, "cleaned up"]
        assert [record.levelno for record in caplog.records] == [logging.WARNING]
        assert "connections=1: cutting" not in caplog.text
        assert "cutting what did not end within 5 s" in caplog.text

    def test_callbacks_are_cut_by_closing(self, loop: IOLoop) -> None:
        kept: list[IOStream] = []
        server = Plain(lambda stream, _address: kept.append(stream))
        server.listen(0, "127.0.0.1")
        with client_of(server):
            turn_until(loop, lambda: kept)
            loop.run_sync(lambda: server.shutdown(0))
        assert kept[0].closed()

    def test_a_handshake_is_cut_too(self, loop: IOLoop, ca: Authority) -> None:
        server = Echo(ssl_options=ca.server_context(), handshake_timeout=None)
        server.listen(0, "127.0.0.1")
        with client_of(server) as silent:
            turn_until(loop, lambda: server.statistics()["connections"])
            loop.run_sync(lambda: server.shutdown(1))
            assert ended(silent)

    def test_cancelling_it_cuts_nothing(self, loop: IOLoop) -> None:
        server = Echo()
        server.listen(0, "127.0.0.1")
        with client_of(server):
            turn_until(loop, lambda: server.came)

            def main() -> Any:
                task = server.shutdown(5)
                yield moment
                task.cancel()
                with pytest.raises(CancelledError):
                    yield task

            run(loop, main)
            assert len(server.streams()) == 1
        turn_until(loop, lambda: not server.statistics()["connections"])

    def test_a_time_limit_of_the_callers_is_not_its_own(self, loop: IOLoop) -> None:
        server = Echo()
        server.listen(0, "127.0.0.1")
        with client_of(server):
            turn_until(loop, lambda: server.came)
            with pytest.raises(TimeoutError):
                loop.run_sync(lambda: server.shutdown(5), timeout=1)
            assert len(server.streams()) == 1
        turn_until(loop, lambda: not server.statistics()["connections"])
