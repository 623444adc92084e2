"""TLS with OpenSSL's own programs, which do on demand what the ssl module has no name for.

A line that begins with a letter of theirs is a command: they change keys (TLS 1.3) or negotiate
anew (TLS 1.2). All other lines go to the peer, whose bytes they print.
"""

from __future__ import annotations

import io
import os
import socket
import ssl
import subprocess
import termios
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from coro.errors import StreamClosedError
from coro.future import Future
from coro.gen import coroutine
from coro.loop import IOLoop
from coro.stream import IOStream, PipeIOStream
from coro.tcp import connect
from tests.support.authority import Authority
from tests.support.hosting import new_loop
from tests.support.needs import needs_command

# Seconds; only a broken test waits so long.
PATIENCE = 20

VERSIONS = {"1.2": ("-tls1_2",), "1.3": ("-tls1_3",)}

versions = pytest.mark.parametrize("version", VERSIONS.values(), ids=list(VERSIONS))


@pytest.fixture
def loop() -> Iterator[IOLoop]:
    loop = new_loop()
    yield loop
    left = loop.statistics()
    assert (left["handlers"], left["timers"], left["tasks"]) == (0, 0, 0)
    loop.close()
    IOLoop.clear_current()


@pytest.fixture(params=[False, True], ids=["socket", "pump"])
def half_close(request: Any) -> bool:
    """Which of the two makes TLS on coro's side."""
    return bool(request.param)


class Program:
    """One of OpenSSL's programs, running.

    Attributes:
        output: what it prints, as a stream.
    """

    def __init__(self, *command: str) -> None:
        # A terminal hands over one line at a time: a program that reads several at once takes
        # the first for a command, and all of them for that command's.
        self._keyboard, terminal = os.openpty()
        mode = termios.tcgetattr(terminal)
        mode[3] &= ~termios.ECHO
        termios.tcsetattr(terminal, termios.TCSANOW, mode)
        reading, writing = os.pipe()
        try:
            self._process = subprocess.Popen(
                command, stdin=terminal, stdout=writing, stderr=writing
            )
        finally:
            os.close(terminal)
            os.close(writing)
        self.output = PipeIOStream(reading)

    def say(self, line: bytes) -> None:
        """Type a line: a command, or bytes for the peer."""
        os.write(self._keyboard, line + b"\n")

    def kill(self) -> None:
        """End it as it stands."""
        self._process.kill()
        self._process.wait()

    def expect(self, pattern: bytes) -> Future[bytes]:
        """Read what it prints up to the first match of a pattern."""
        return self.output.read_until_regex(pattern)

    def close(self) -> None:
        """End it, whatever it does."""
        self.kill()
        os.close(self._keyboard)
        self.output.close()


@pytest.fixture
def stack(loop: IOLoop) -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def start(stack: ExitStack) -> Callable[..., Program]:
    """``program = start(*arguments)``: run ``openssl`` until the test is over."""
    openssl = needs_command("openssl", "apt-get install openssl")

    def start(*arguments: str) -> Program:
        program = Program(openssl, *arguments)
        stack.callback(program.close)
        return program

    return start


@pytest.fixture
def server(start: Any, ca: Authority) -> Callable[..., Any]:
    """``program, port = yield from server(*options)``: a running ``openssl s_server``."""
    certificate = str(ca.issue())

    def serve(*options: str) -> Any:
        program = start("s_server", "-accept", "127.0.0.1:0", "-cert", certificate, *options)
        where = yield program.expect(rb"ACCEPT [\d.]+:\d+\n")
        return program, int(where.rpartition(b":")[2])

    return serve


@pytest.fixture
def reach(stack: ExitStack, ca: Authority, half_close: bool) -> Callable[..., Any]:
    """``stream = yield from reach(port)``: connect with TLS, trusting the authority."""

    def reach(port: int, context: ssl.SSLContext | None = None) -> Any:
        stream = yield connect(
            "127.0.0.1",
            port,
            ssl_options=context or ca.client_context(),
            server_hostname="localhost",
            tls_half_close=half_close,
        )
        stack.callback(stream.close)
        return stream

    return reach


@pytest.fixture
def client(stack: ExitStack, start: Any, ca: Authority, half_close: bool) -> Callable[..., Any]:
    """``program, accept = client(*options)``: a running ``openssl s_client``.

    ``stream = yield from accept()`` is the other end of its connection.
    """
    listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    where = f"127.0.0.1:{listener.getsockname()[1]}"
    trust = ("-CAfile", str(ca.pem), "-verify_return_error", "-verify_hostname", "localhost")

    def call(*options: str) -> Any:
        program = start("s_client", "-connect", where, *trust, *options)

        def accept(context: Any = None) -> Any:
            plain = IOStream(listener.accept()[0])
            stream = yield plain.start_tls(
                True, context or ca.server_context(), half_close=half_close
            )
            stack.callback(stream.close)
            return stream

        return program, accept

    return call


def run(loop: IOLoop, body: Callable[[], Any]) -> Any:
    return loop.run_sync(coroutine(body), timeout=PATIENCE)


# --- as a client -------------------------------------------------------------------------------


@versions
def test_lines_each_way(loop: IOLoop, server: Any, reach: Any, version: tuple[str, ...]) -> None:

    def body() -> Any:
        program, port = yield from server(*version)
        stream = yield from reach(port)
        yield stream.write(b"from coro\n")
        yield program.expect(b"from coro\n")
        program.say(b"from openssl")
        assert (yield stream.read_until(b"\n")) == b"from openssl\n"
        stream.close()
        yield program.expect(b"DONE|shutting down SSL|CONNECTION CLOSED")

    run(loop, body)


@pytest.mark.parametrize("command", [b"k", b"K"], ids=["its keys", "both keys"])
def test_the_server_changes_keys(loop: IOLoop, server: Any, reach: Any, command: bytes) -> None:

    def body() -> Any:
        program, port = yield from server("-tls1_3")
        stream = yield from reach(port)
        for word in (b"one", b"two", b"three"):
            program.say(command)
            program.say(b"word " + word)
            assert (yield stream.read_until(b"\n")) == b"word " + word + b"\n"
            yield stream.write(b"answer " + word + b"\n")
            yield program.expect(b"answer " + word + b"\n")
        stream.close()

    run(loop, body)


def test_keys_change_while_much_is_on_its_way(loop: IOLoop, server: Any, reach: Any) -> None:
    """The answer to a change has to get past what waits to be sent."""
    size = 4_000_000

    def body() -> Any:
        program, port = yield from server("-tls1_3")
        stream = yield from reach(port)
        writing = stream.write(b"x" * size + b"end\n")
        for word in (b"one", b"two", b"three"):
            program.say(b"K")
            program.say(b"word " + word)
        assert not writing.done()
        reading = stream.read_until(b"three\n")
        # It prints what it receives, and lines of its own in between; who reads that lets it go on.
        yield [writing, program.expect(rb"end\n")]
        assert (yield reading) == b"word one\nword two\nword three\n"
        stream.close()

    run(loop, body)


def test_the_server_negotiates_anew(loop: IOLoop, server: Any, reach: Any) -> None:

    def body() -> Any:
        program, port = yield from server("-tls1_2")
        stream = yield from reach(port)
        for word in (b"one", b"two"):
            reading = stream.read_until(b"\n")
            program.say(b"r")
            program.say(b"word " + word)
            assert (yield reading) == b"word " + word + b"\n"
            yield stream.write(b"answer " + word + b"\n")
            yield program.expect(b"answer " + word + b"\n")
        stream.close()

    run(loop, body)


@versions
def test_a_session_is_gone_on_with(
    loop: IOLoop, server: Any, reach: Any, ca: Authority, version: tuple[str, ...]
) -> None:
    context = ca.client_context()

    def body() -> Any:
        program, port = yield from server(*version)
        for reused in (False, True, True):
            stream = yield from reach(port, context)
            assert stream.socket.session_reused is reused
            program.say(b"word")
            assert (yield stream.read_until(b"\n")) == b"word\n"
            stream.close()
            yield program.expect(b"DONE|shutting down SSL|CONNECTION CLOSED")

    run(loop, body)


@versions
def test_a_certificate_and_a_protocol(
    loop: IOLoop, server: Any, reach: Any, ca: Authority, version: tuple[str, ...]
) -> None:
    context = ca.client_context()
    context.load_cert_chain(str(ca.issue("client.test")))
    context.set_alpn_protocols(["x", "y"])

    def body() -> Any:
        program, port = yield from server(
            *version, "-Verify", "1", "-verify_return_error", "-CAfile", str(ca.pem), "-alpn", "y,x"
        )
        stream = yield from reach(port, context)
        assert stream.socket.selected_alpn_protocol() == "y"
        yield stream.write(b"hello\n")
        yield program.expect(b"Client certificate")
        yield program.expect(b"hello\n")
        stream.close()

    run(loop, body)


@versions
def test_the_server_says_goodbye(
    loop: IOLoop, server: Any, reach: Any, version: tuple[str, ...]
) -> None:
    def body() -> Any:
        _, port = yield from server(*version, "-rev")
        stream = yield from reach(port)
        yield stream.write(b"123\nCLOSE\n")
        assert (yield stream.read_until_close()) == b"321\n"
        assert stream.error is None

    run(loop, body)


@versions
def test_the_server_is_killed(
    loop: IOLoop, server: Any, reach: Any, version: tuple[str, ...]
) -> None:
    """That is no end of what it had to say."""

    def body() -> Any:
        program, port = yield from server(*version)
        stream = yield from reach(port)
        program.say(b"last words")
        assert (yield stream.read_until(b"words")) == b"last words"
        program.kill()
        with pytest.raises(StreamClosedError) as caught:
            yield stream.read_until_close()
        assert isinstance(caught.value.real_error, ssl.SSLEOFError)

    run(loop, body)


# --- as a server -------------------------------------------------------------------------------


@versions
def test_a_client(loop: IOLoop, client: Any, version: tuple[str, ...]) -> None:
    program, accept = client(*version)

    def body() -> Any:
        stream = yield from accept()
        program.say(b"hello")
        assert (yield stream.read_until(b"\n")) == b"hello\n"
        yield stream.write(b"good day\n")
        yield program.expect(b"good day\n")
        stream.close()
        assert b"closed" in (yield program.output.read_until_close())

    run(loop, body)


@pytest.mark.parametrize("command", [b"k", b"K"], ids=["its keys", "both keys"])
def test_the_client_changes_keys(loop: IOLoop, client: Any, command: bytes) -> None:
    program, accept = client("-tls1_3")

    def body() -> Any:
        stream = yield from accept()
        for word in (b"one", b"two", b"three"):
            program.say(command)
            yield program.expect(b"KEYUPDATE\n")
            program.say(b"word " + word)
            assert (yield stream.read_until(b"\n")) == b"word " + word + b"\n"
            yield stream.write(b"answer " + word + b"\n")
            yield program.expect(b"answer " + word + b"\n")
        stream.close()

    run(loop, body)


def test_the_client_asks_to_negotiate_anew(loop: IOLoop, client: Any, ca: Authority) -> None:
    """Which costs a server far more than it costs a client; it is refused."""
    program, accept = client("-tls1_2")

    def body() -> Any:
        stream = yield from accept({"certfile": str(ca.issue())})
        program.say(b"hello")
        assert (yield stream.read_until(b"\n")) == b"hello\n"
        reading = stream.read_until(b"\n")
        program.say(b"R")
        yield program.expect(b"RENEGOTIATING\n")
        # The program gives up when it is refused.
        with pytest.raises(StreamClosedError):
            yield reading
        assert b"no renegotiation" in (yield program.output.read_until_close())

    run(loop, body)


@versions
def test_a_client_connects_again(
    loop: IOLoop, client: Any, ca: Authority, version: tuple[str, ...]
) -> None:
    """The program does so five times, each time with the session of the last."""
    _, accept = client(*version, "-reconnect")
    context = ca.server_context()

    def body() -> Any:
        reused = []
        for _ in range(6):
            stream = yield from accept(context)
            reused.append(stream.socket.session_reused)
            yield stream.write(b"")
        return reused

    assert run(loop, body) == [False] + 5 * [version == VERSIONS["1.2"]]


def test_half_close(loop: IOLoop, client: Any, half_close: bool) -> None:
    """The program, told of the end of what it reads, ends; coro's side still reads its answer."""
    program, accept = client("-tls1_3")

    def body() -> Any:
        stream = yield from accept()
        if not half_close:
            with pytest.raises(io.UnsupportedOperation, match="tls_half_close=True"):
                stream.send_eof()
            stream.close()
            return
        program.say(b"hello")
        assert (yield stream.read_until(b"\n")) == b"hello\n"
        yield stream.write(b"good day\n")
        yield stream.send_eof()
        assert (yield stream.read_until_close()) == b""
        assert stream.error is None
        assert b"good day\n" in (yield program.output.read_until_close())

    run(loop, body)
