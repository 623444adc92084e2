"""An HTTP server on the very loop of the client that it serves: nothing here depends on threads.

A script is a generator function of one ``Peer``. Under a virtual clock it may ``yield sleep(60)``,
which costs nothing, and both sides of a connection take their turns in one fixed order.
"""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Callable, Generator
from typing import Any, TypeAlias

from coro.errors import StreamClosedError
from coro.gen import Task, coroutine
from coro.loop import IOLoop
from coro.stream import IOStream

Script: TypeAlias = "Callable[[Peer], Generator[Any, Any, Any]]"


# With the trailers, if there are any.
_LAST_CHUNK = rb"(?:^|\r\n)0\r\n(?:[^\r\n]+\r\n)*\r\n"


class Peer:
    """One connection of a client, for a script.

    Attributes:
        number: 1 for the server's first connection, 2 for the second, ...
        stream: a script that begins TLS puts the new stream here.
    """

    def __init__(self, stream: IOStream, number: int) -> None:
        self.stream = stream
        self.number = number

    def request(self) -> Generator[Any, Any, bytes]:
        """Read one request: its head, and the body if its length is announced or it is chunked."""
        head: bytes = yield self.stream.read_until(b"\r\n\r\n")
        length = re.search(rb"(?im)^content-length: (\d+)", head)
        if length:
            return head + (yield self.stream.read_bytes(int(length[1])))
        if b"\r\nTransfer-Encoding: chunked\r\n" in head:
            return head + (yield self.stream.read_until_regex(_LAST_CHUNK))
        return head

    def send(self, data: bytes) -> Any:
        """Send bytes."""
        return self.stream.write(data)

    def silence(self) -> Generator[Any, Any, None]:
        """Take everything and say nothing until the client leaves."""
        yield self.stream.read_until_close()

    def reset(self) -> None:
        """End the connection rudely, as a crashed server does."""
        if self.stream.closed():
            return
        # struct linger: on, no seconds.
        linger = (1).to_bytes(4, "little") + bytes(4)
        self.stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.stream.close()


class LoopServer:
    """Listens on a loopback port and runs ``script(peer)`` for each connection.

    Attributes:
        port: where it listens.
        connections: how many connections were accepted.
        requests, answers: for scripts that keep what they read, and have what to say.
    """

    def __init__(self, loop: IOLoop, script: Script) -> None:
        self.connections = 0
        self.requests: list[bytes] = []
        self.answers: list[Any] = []
        self._loop = loop
        self._script = script
        self._plays: dict[Peer, Task[None]] = {}
        self._errors: list[BaseException] = []
        self._listener = loop.network.bind_sockets(0, "127.0.0.1", backlog=512)[0]
        self.port: int = self._listener.getsockname()[1]
        loop.add_handler(self._listener, self._accept, loop.READ)

    def url(self, path: str = "/") -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    @property
    def open(self) -> int:
        """How many connections have a script that plays."""
        return len(self._plays)

    def close(self) -> None:
        """End every script; raise the first error that one of them raised."""
        if self._listener.fileno() >= 0:
            self._loop.remove_handler(self._listener)
            self._listener.close()
        for peer in list(self._plays):
            peer.stream.close()
        self._plays.clear()
        if self._errors:
            raise self._errors[0]

    def _accept(self, listener: socket.socket, _events: int) -> None:
        try:
            accepted, _ = listener.accept()
        except OSError:  # the client has left already
            return
        self.connections += 1
        stream = IOStream(accepted)
        # Else a small piece waits for the acknowledgement of the one before it, in real time.
        stream.set_nodelay(True)
        peer = Peer(stream, self.connections)
        play = self._play(peer)
        if not play.done():
            self._plays[peer] = play

    @coroutine
    def _play(self, peer: Peer) -> Generator[Any, Any, None]:
        try:
            yield from self._script(peer)
        except (StreamClosedError, ssl.SSLError):
            pass  # the client has left
        except Exception as error:
            self._errors.append(error)
        finally:
            peer.stream.close()
            self._plays.pop(peer, None)


def response(body: bytes = b"hello", *fields: str, status: str = "200 OK") -> bytes:
    """Return a response with a length."""
    lines = [f"HTTP/1.1 {status}", *fields, f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


def redirect(location: str, code: int = 302) -> bytes:
    """Return a redirect."""
    return response(b"elsewhere", f"Location: {location}", status=f"{code} Elsewhere")


def chunked(*chunks: bytes, fields: tuple[str, ...] = (), end: bytes = b"0\r\n\r\n") -> bytes:
    """Return a response in chunks."""
    lines = ["HTTP/1.1 200 OK", *fields, "Transfer-Encoding: chunked", "", ""]
    return b"".join(
        ["\r\n".join(lines).encode(), *(b"%x\r\n%b\r\n" % (len(c), c) for c in chunks), end]
    )


def fields_of(request: bytes) -> dict[str, str]:
    """Return the fields of a request as sent; one that is there twice fails the test."""
    head = request.partition(b"\r\n\r\n")[0].decode("latin-1")
    assert not re.search(r"(?<!\r)\n|\r(?!\n)", head), "a bare CR or LF"
    pairs = [line.partition(": ")[::2] for line in head.split("\r\n")[1:]]
    fields = dict(pairs)
    assert len(fields) == len(pairs), pairs
    return fields


def body_of(request: bytes) -> bytes:
    """Return what follows the head of a request."""
    return request.partition(b"\r\n\r\n")[2]
