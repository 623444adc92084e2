"""Idle connections: ``python -m benchmarks.server.idle PORT PID``, bare sockets.

Each connection had one request, and is kept. Told is the memory by which the server, with its
workers, grew from the first ones, by which it loads what it needs, to the last.
"""

import json
import socket
from argparse import ArgumentParser

from ..memory import memory_of, raise_limit
from ..processes import family

FIRST = 100
COUNT = 4000
SPARE = 100
"""Descriptors that are not connections."""

REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\nUser-Agent: benchmarks\r\nAccept: */*\r\n\r\n"


def knock(port: int) -> socket.socket:
    """Open a connection and have one request answered."""
    sock = socket.create_connection(("127.0.0.1", port), timeout=10)
    sock.sendall(REQUEST)
    answer = b""
    while not answer.endswith(b"World!\n"):
        piece = sock.recv(65536)
        if not piece:
            raise ConnectionError("the server closed a connection")
        answer += piece
    return sock


def main() -> None:
    """Open the connections, and tell what they cost."""
    parser = ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("pid", type=int, help="the server's process")
    options = parser.parse_args()
    count = min(COUNT, raise_limit() - SPARE - FIRST)
    pids = family(options.pid)
    kept = [knock(options.port) for _ in range(FIRST)]
    before = memory_of(pids)
    kept += [knock(options.port) for _ in range(count)]
    print(json.dumps({"operations": count, "kept": memory_of(pids) - before}))


if __name__ == "__main__":
    main()
