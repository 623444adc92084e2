"""Streams and servers against socat, curl and asyncio's streams: plain, TLS, and unix sockets.

Bytes go there and back, both ends are closed one direction at a time, and connections are reset.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from coro.errors import StreamClosedError
from coro.gen import coroutine
from coro.loop import IOLoop
from coro.net import bind_unix_socket
from coro.process import Subprocess
from coro.stream import IOStream
from coro.tcp import connect
from coro.tcpserver import TCPServer
from tests.support.authority import Authority
from tests.support.hosting import new_loop
from tests.support.needs import needs_command

# Seconds; only a broken test waits so long.
PATIENCE = 20

# More than all buffers on the way hold.
MUCH = random.Random(7).randbytes(5_000_000)

KINDS = ["tcp", "tcp6", "unix", "tls"]


@pytest.fixture
def loop() -> Iterator[IOLoop]:
    loop = new_loop()
    yield loop
    left = loop.statistics()
    assert (left["handlers"], left["timers"], left["tasks"]) == (0, 0, 0)
    loop.close()
    IOLoop.clear_current()


@pytest.fixture
def socat() -> str:
    return needs_command("socat", "apt-get install socat")


@pytest.fixture
def curl() -> str:
    return needs_command("curl", "apt-get install curl")


class Mirror(TCPServer):
    """Sends back what comes, up to the client's end; then ends too."""

    @coroutine
    def handle_stream(self, stream: IOStream, address: Any) -> Any:
        try:
            while True:
                data = yield stream.read_bytes(65536, partial=True)
                yield stream.write(data)
        except StreamClosedError as error:
            self.real_error = error.real_error
        with contextlib.suppress(StreamClosedError):
            yield stream.send_eof()
        stream.close()


@pytest.fixture
def mirror(loop: IOLoop, ca: Authority, tmp_path: Path) -> Iterator[Callable[[str], Any]]:
    """``server, place = mirror(kind)``: a ``Mirror``, and where it is: a port or a path."""
    with contextlib.ExitStack() as stack:

        def start(kind: str) -> Any:
            server = Mirror(ca.server_context() if kind == "tls" else None, half_open=True)
            stack.callback(server.stop)
            if kind == "unix":
                path = str(tmp_path / "socket")
                server.add_socket(bind_unix_socket(path))
                return server, path
            server.listen(0, "::1" if kind == "tcp6" else "127.0.0.1")
            return server, server.sockets[0].getsockname()[1]

        yield start


def run(loop: IOLoop, body: Callable[[], Any]) -> Any:
    return loop.run_sync(coroutine(body), timeout=PATIENCE)


@contextlib.contextmanager
def running(*command: str) -> Iterator[Any]:
    """A program with streams to and from it, ended when the block is over."""
    pipe = Subprocess.STREAM
    program = Subprocess(command, stdin=pipe, stdout=pipe, stderr=pipe)
    try:
        yield program
    finally:
        program.proc.kill()
        program.proc.wait()
        for stream in (program.stdin, program.stdout, program.stderr):
            assert stream is not None
            stream.close()


def piped(*command: str, data: bytes = b"", ends: bool = True) -> Any:
    """``output = yield from piped(...)``: run a program on these bytes.

    Its input ends after them, and its output is read to the end; else up to as many bytes.
    """
    with running(*command) as program:
        reading = (
            program.stdout.read_until_close() if ends else program.stdout.read_bytes(len(data))
        )
        yield program.stdin.write(data)
        if ends:
            program.stdin.close()
        output = yield reading
        if ends:
            yield program.wait_for_exit()
    return output


# --- socat -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_socat_is_served(loop: IOLoop, socat: str, mirror: Any, ca: Authority, kind: str) -> None:
    """It closes one direction at its input's end, and waits for the rest."""
    server, place = mirror(kind)
    address = {
        "tcp": f"TCP4:127.0.0.1:{place}",
        "tcp6": f"TCP6:[::1]:{place}",
        "unix": f"UNIX-CONNECT:{place}",
        "tls": f"OPENSSL:127.0.0.1:{place},cafile={ca.pem},commonname=localhost",
    }[kind]

    def body() -> Any:
        # socat cannot close one direction of TLS: there it is to stay until all is back.
        return (
            yield from piped(
                socat, "-t", str(PATIENCE), "-", address, data=MUCH, ends=kind != "tls"
            )
        )

    assert run(loop, body) == MUCH
    run(loop, server.shutdown)


@pytest.mark.parametrize("kind", KINDS)
def test_socat_serves(loop: IOLoop, socat: str, ca: Authority, tmp_path: Path, kind: str) -> None:
    path = str(tmp_path / "socket")
    address = {
        "tcp": "TCP4-LISTEN:0,bind=127.0.0.1",
        "tcp6": "TCP6-LISTEN:0,bind=[::1]",
        "unix": f"UNIX-LISTEN:{path}",
        "tls": f"OPENSSL-LISTEN:0,bind=127.0.0.1,cert={ca.issue()},verify=0",
    }[kind]

    def body() -> Any:
        with running(socat, "-d", "-d", "-t", str(PATIENCE), address, "EXEC:cat") as program:
            line = yield program.stderr.read_until_regex(rb"listening on [^\n]*\n")
            port = re.search(rb":(\d+)\n", line)
            stream = yield connect(
                None if port is None else {"tcp6": "::1"}.get(kind, "127.0.0.1"),
                None if port is None else int(port[1]),
                unix_socket=path if kind == "unix" else None,
                ssl_options=ca.client_context() if kind == "tls" else None,
                server_hostname="localhost" if kind == "tls" else None,
                half_open=True,
            )
            writing = stream.write(MUCH)
            received = yield stream.read_bytes(len(MUCH))
            yield writing
            if kind != "tls":
                yield stream.send_eof()
                assert (yield stream.read_until_close()) == b""
                yield program.wait_for_exit()
            stream.close()
        return received

    assert run(loop, body) == MUCH


def test_a_reset_by_socat(loop: IOLoop, socat: str, mirror: Any) -> None:
    server, port = mirror("tcp")

    def body() -> Any:
        with running(socat, "-", f"TCP4:127.0.0.1:{port},so-linger=0") as program:
            yield program.stdin.write(b"word")
            assert (yield program.stdout.read_bytes(4)) == b"word"
        yield server.shutdown()

    run(loop, body)
    assert isinstance(server.real_error, ConnectionResetError)


# --- curl --------------------------------------------------------------------------------------


def test_curl_speaks_telnet(loop: IOLoop, curl: str, mirror: Any) -> None:
    """Lines, in which telnet finds nothing of its own.

    Told to upload ".", curl waits for its input and the network at once; else for its input alone,
    after each piece from the network, and so for ever if that was not the last piece.
    """
    server, port = mirror("tcp")
    data = b"".join(b"line %d\n" % number for number in range(10_000))

    def body() -> Any:
        return (
            yield from piped(
                curl,
                "--no-progress-meter",
                "--no-buffer",
                "--upload-file",
                ".",
                f"telnet://127.0.0.1:{port}",
                data=data,
                ends=False,
            )
        )

    assert run(loop, body) == data
    run(loop, server.shutdown)


@pytest.mark.parametrize("kind", ["tcp", "tls"])
def test_curl_asks_by_gopher(loop: IOLoop, curl: str, ca: Authority, kind: str) -> None:
    """One line, and the answer is what comes until the end."""

    class Gopher(TCPServer):
        @coroutine
        def handle_stream(self, stream: IOStream, address: Any) -> Any:
            line = yield stream.read_until(b"\r\n", max_bytes=1000)
            assert line == b"/all\r\n"
            yield stream.write(MUCH)
            stream.close()

    server = Gopher(ca.server_context() if kind == "tls" else None)
    server.listen(0, "127.0.0.1")
    port = server.sockets[0].getsockname()[1]
    scheme = "gophers" if kind == "tls" else "gopher"

    def body() -> Any:
        output = yield from piped(
            curl,
            "--no-progress-meter",
            "--cacert",
            str(ca.pem),
            "--resolve",
            f"localhost:{port}:127.0.0.1",
            f"{scheme}://localhost:{port}/1/all",
        )
        yield server.shutdown()
        return output

    assert run(loop, body) == MUCH


# --- asyncio -----------------------------------------------------------------------------------


@contextlib.contextmanager
def asyncio_server(handle: Any, tls: ssl.SSLContext | None = None) -> Iterator[int]:
    """A server of asyncio's streams in a thread of its own; yields its port."""
    begun: Any = threading.Event()
    place: list[Any] = []

    async def serve() -> None:
        stopping = asyncio.Event()
        server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=tls)
        place[:] = [
            server.sockets[0].getsockname()[1],
            asyncio.get_running_loop(),
            stopping,
        ]
        begun.set()
        async with server:
            await asyncio.wait_for(stopping.wait(), 3 * PATIENCE)

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        assert begun.wait(PATIENCE)
        yield place[0]
    finally:
        place[1].call_soon_threadsafe(place[2].set)
        thread.join()


async def mirrored(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send back what comes, up to the end."""
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_asyncio_serves(loop: IOLoop, ca: Authority, tls: bool) -> None:
    def body() -> Any:
        options: dict[str, Any] = (
            {"ssl_options": ca.client_context(), "server_hostname": "localhost"} if tls else {}
        )
        stream = yield connect("127.0.0.1", port, half_open=True, **options)
        writing = stream.write(MUCH)
        received = yield stream.read_bytes(len(MUCH))
        yield writing
        yield stream.write(b"a line\nmore")
        assert (yield stream.read_until(b"\n")) == b"a line\n"
        if not tls:
            yield stream.send_eof()
            assert (yield stream.read_until_close()) == b"more"
        stream.close()
        return received

    with asyncio_server(mirrored, ca.server_context() if tls else None) as port:
        assert run(loop, body) == MUCH


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_asyncio_is_served(loop: IOLoop, mirror: Any, ca: Authority, tls: bool) -> None:
    server, port = mirror("tls" if tls else "tcp")

    async def talk() -> bytes:
        options: dict[str, Any] = (
            {"ssl": ca.client_context(), "server_hostname": "localhost"} if tls else {}
        )
        reader, writer = await asyncio.open_connection("127.0.0.1", port, **options)
        writer.write(MUCH)
        received = await reader.readexactly(len(MUCH))
        if not tls:
            writer.write_eof()
            assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()
        return received

    def body() -> Any:
        received = yield IOLoop.current().run_in_executor(None, asyncio.run, talk())
        yield server.shutdown()
        return received

    assert run(loop, body) == MUCH


def test_asyncio_resets(loop: IOLoop) -> None:
    async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(4)
        writer.transport.abort()

    def body() -> Any:
        stream = yield connect("127.0.0.1", port)
        # What it has not read when it is cut makes a reset of its end.
        yield stream.write(b"word" + bytes(200_000))
        with pytest.raises(StreamClosedError) as caught:
            yield stream.read_until(b"\n")
        assert isinstance(caught.value.real_error, ConnectionResetError)
        assert stream.closed()

    with asyncio_server(reset) as port:
        run(loop, body)
