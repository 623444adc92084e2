"""Proxies for tests, as scripts of a ``LoopServer``: they stand in the server's place, too.

No bytes are passed on to anywhere. A proxy that has granted a tunnel goes on as the server behind
it, so that one script tells the whole story of a connection.
"""

from __future__ import annotations

import ssl
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

from coro.errors import StreamClosedError
from tests.http.serving import Peer, response

GRANTED = b"HTTP/1.1 200 Connection established\r\n\r\n"


@dataclass
class FakeProxy:
    """An HTTP proxy.

    Attributes:
        tls: for TLS with the client.
        origin: for the server's TLS, inside the tunnel.
        connects: the answers to CONNECT, one after the other; the last one stays.
        answers: the server's answers, and the proxy's own to whole requests; likewise.
        asked: the CONNECT requests.
        requests: all others.
    """

    tls: ssl.SSLContext | None = None
    origin: ssl.SSLContext | None = None
    connects: list[bytes] = field(default_factory=lambda: [GRANTED])
    answers: list[bytes] = field(default_factory=lambda: [response()])
    asked: list[bytes] = field(default_factory=list)
    requests: list[bytes] = field(default_factory=list)

    def __call__(self, peer: Peer) -> Generator[Any, Any, None]:
        if self.tls is not None:
            yield from _enter_tls(peer, self.tls)
        while True:
            request = yield from peer.request()
            if request.startswith(b"CONNECT "):
                self.asked.append(request)
                answer = _next(self.connects)
                yield peer.send(answer)
                if answer.split()[1:2] == [b"200"] and self.origin is not None:
                    yield from _enter_tls(peer, self.origin)
            else:
                self.requests.append(request)
                yield peer.send(_next(self.answers))


def _enter_tls(peer: Peer, context: ssl.SSLContext) -> Generator[Any, Any, None]:
    if peer.stream.closed():
        raise StreamClosedError
    handshake: Any = peer.stream.start_tls(True, context)
    # At once: whoever closes the connection now has to close this stream.
    peer.stream = handshake.stream
    yield handshake


def _next(answers: list[bytes]) -> bytes:
    return answers.pop(0) if len(answers) > 1 else answers[0]


@dataclass
class FakeSocks:
    """A SOCKS proxy that says what it is told to, whatever it is asked.

    Attributes:
        steps: how many bytes to take, and what to answer, one after the other.
        origin: for the server's TLS.
        taken: what came.
        requests: what the server behind it was asked.
        pieces: send each answer byte by byte.
    """

    steps: list[tuple[int, bytes]]
    origin: ssl.SSLContext | None = None
    taken: list[bytes] = field(default_factory=list)
    requests: list[bytes] = field(default_factory=list)
    pieces: bool = False

    def __call__(self, peer: Peer) -> Generator[Any, Any, None]:
        for size, answer in self.steps:
            self.taken.append((yield peer.stream.read_bytes(size)))
            for start in range(len(answer)) if self.pieces else ():
                yield peer.send(answer[start : start + 1])
                yield None
            if not self.pieces and answer:
                yield peer.send(answer)
        if self.steps[-1][1]:
            if self.origin is not None:
                yield from _enter_tls(peer, self.origin)
            while True:
                self.requests.append((yield from peer.request()))
                yield peer.send(response())


def proxied(port: int, scheme: str = "http", credentials: str = "") -> str:
    """Return the URL of a proxy on a port of this machine."""
    return f"{scheme}://{credentials}127.0.0.1:{port}"
