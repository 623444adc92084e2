"""The load generator: ``python -m benchmarks.echo.load PORT PID``, bare epoll, no library.

Every connection sends its next message when the last one has come back whole.  The CPU time told is
that of the server, whose process id it is given.

It trusts that a message always fits the buffer of a socket that has nothing else to send.
"""

import select
import socket
import ssl
import time
from argparse import ArgumentParser
from functools import partial

from ..trial import Trial

CONNECTIONS = 50
SEND_BUFFER = 200_000
"""Bytes that a socket is to take; twice that is what Linux allows for them and its own."""


class Load:
    """Connections to one echo server."""

    def __init__(self, port: int, size: int, tls: bool) -> None:
        self.message = bytes(range(256)) * (size // 256)
        self.epoll = select.epoll()
        self.sockets = [
            socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(CONNECTIONS)
        ]
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            self.sockets = [context.wrap_socket(sock) for sock in self.sockets]
        for sock in self.sockets:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
            self.epoll.register(sock, select.EPOLLIN)
        self.calls = {sock.fileno(): (sock.recv_into, sock.send) for sock in self.sockets}

    def exchange(self, count: int) -> None:
        """Send ``count`` messages, spread over the connections, and read their echoes."""
        poll, calls, message = self.epoll.poll, self.calls, self.message
        size = len(message)
        buffer = bytearray(size)
        missing = dict.fromkeys(calls, size)
        to_send = count - CONNECTIONS
        to_come = count
        for sock in self.sockets:
            sock.send(message)
        while to_come:
            for fd, _ in poll():
                recv_into, send = calls[fd]
                try:
                    got = recv_into(buffer)
                except ssl.SSLWantReadError:
                    continue
                if not got:
                    raise ConnectionError("the server closed a connection")
                if got != missing[fd]:
                    missing[fd] -= got
                    continue
                missing[fd] = size
                to_come -= 1
                if to_send:
                    to_send -= 1
                    if send(message) != size:
                        raise BufferError("a message does not fit a socket's buffer")
        if buffer[:got] != message[-got:]:
            raise ValueError("the echo is not what was sent")


def main() -> None:
    """Run a trial against the server on the given port."""
    options = parser().parse_args()
    load = Load(options.port, options.size, options.tls)
    for count in Trial(options.seconds, partial(time.clock_gettime, cpu_clock(options.pid))):
        load.exchange(count)


def parser() -> ArgumentParser:
    """The command line of a load generator."""
    made = ArgumentParser()
    made.add_argument("port", type=int)
    made.add_argument("pid", type=int, help="the server's process")
    made.add_argument("--seconds", type=float, default=0.5)
    made.add_argument("--size", type=int, default=1024, help="bytes of a message")
    made.add_argument("--tls", action="store_true")
    return made


def cpu_clock(pid: int) -> int:
    """The id of a process's CPU clock, as clock_getcpuclockid(3) makes it on Linux."""
    return (~pid << 3) | 2


if __name__ == "__main__":
    main()
