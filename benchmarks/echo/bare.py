"""The floor: an echo server over ``select.epoll`` and non-blocking sockets, with no library.

TLS is an ``ssl.SSLSocket``.

It may do what a library may not: it trusts that a message of 1 KB always fits the socket's buffer.
"""

import select
import socket
import ssl
from argparse import Namespace

from .server import CHUNK, main


def serve(listener: socket.socket, options: Namespace) -> None:
    """Accept and echo until the process is ended."""
    epoll = select.epoll()
    epoll.register(listener, select.EPOLLIN)
    accepting = listener.fileno()
    connections: dict[int, socket.socket] = {}
    while True:
        for fd, _ in epoll.poll():
            if fd == accepting:
                connection, _ = listener.accept()
                if options.tls is not None:
                    connection.setblocking(True)
                    connection = options.tls.wrap_socket(connection, server_side=True)
                connection.setblocking(False)
                connections[connection.fileno()] = connection
                epoll.register(connection, select.EPOLLIN)
                continue
            connection = connections[fd]
            try:
                data = connection.recv(CHUNK)
            except ssl.SSLWantReadError:
                continue
            if data:
                connection.send(data)
            else:
                epoll.unregister(fd)
                connections.pop(fd).close()


if __name__ == "__main__":
    main(serve)
