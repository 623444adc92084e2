"""The floor: non-blocking sockets over ``select.epoll``, and the least that can be called parsing.

It trusts the server in everything: a response has a ``Content-Length``, and nothing follows it.
"""

import select
import socket
from urllib.parse import urlsplit

from ..trial import Trial
from .subject import check, parser

CHUNK = 65536


class Bare:
    """Keep-alive connections to one server."""

    def __init__(self, url: str, workers: int) -> None:
        parts = urlsplit(url)
        self.request = f"GET {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\n\r\n".encode()
        self.epoll = select.epoll()
        self.sockets: dict[int, socket.socket] = {}
        for _ in range(workers):
            sock = socket.create_connection((parts.hostname, parts.port), timeout=10)
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.sockets[sock.fileno()] = sock
            self.epoll.register(sock, select.EPOLLIN)

    def fetch(self, count: int) -> None:
        """GET ``count`` times, spread over the connections."""
        unsent = count - len(self.sockets)
        pending = dict.fromkeys(self.sockets, b"")
        for sock in self.sockets.values():
            sock.send(self.request)
        while count:
            for fd, _ in self.epoll.poll():
                sock = self.sockets[fd]
                received = pending[fd] + sock.recv(CHUNK)
                response = parse(received)
                if response is None:
                    pending[fd] = received
                    continue
                check(*response)
                pending[fd] = b""
                count -= 1
                if unsent:
                    unsent -= 1
                    sock.send(self.request)


def parse(received: bytes) -> tuple[int, bytes] | None:
    """Status and body, or None while the response is not complete."""
    end = received.find(b"\r\n\r\n")
    if end < 0:
        return None
    at = received.index(b"Content-Length: ") + 16
    length = int(received[at : received.index(b"\r", at)])
    body = received[end + 4 :]
    return (int(received[9:12]), body) if len(body) >= length else None


def main() -> None:
    """Run a trial."""
    options = parser().parse_args()
    bare = Bare(options.url, options.workers)
    for count in Trial(options.seconds):
        bare.fetch(count)


if __name__ == "__main__":
    main()
