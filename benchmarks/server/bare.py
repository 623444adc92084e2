"""The floor: answers over ``select.epoll`` and non-blocking sockets, with no library.

It may do what a server may not: it takes whatever comes for one whole GET, knows its two paths by
their first bytes, and trusts that a response always fits the socket's buffer.
"""

import select
import socket
from argparse import Namespace

from .subject import HELLO, as_json, main, thing

CHUNK = 65536
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n%b"


def serve(listener: socket.socket, options: Namespace) -> None:
    """Accept and answer until the process is ended."""
    epoll = select.epoll()
    epoll.register(listener, select.EPOLLIN)
    accepting = listener.fileno()
    connections: dict[int, socket.socket] = {}
    while True:
        for fd, _ in epoll.poll():
            if fd == accepting:
                connection, _ = listener.accept()
                connection.setblocking(False)
                connections[connection.fileno()] = connection
                epoll.register(connection, select.EPOLLIN)
                continue
            connection = connections[fd]
            try:
                data = connection.recv(CHUNK)
            except ConnectionResetError:
                data = b""
            if not data:
                connections.pop(fd).close()
                continue
            if data.startswith(b"GET /json "):
                body, kind = as_json(thing()), b"application/json"
            else:
                body, kind = HELLO, b"text/plain"
            connection.send(HEAD % (kind, len(body), body))


if __name__ == "__main__":
    main(serve)
