"""A forward proxy for TLS (CONNECT), with limits.

    python examples/proxy.py --port 3128
    curl --proxy http://127.0.0.1:3128 https://example.org/

A client asks for a tunnel to a host and a port; the proxy connects, and passes bytes on in both
directions until both have ended, or nothing moved in either for a while. It connects to the ports
that it is told to, to addresses that are not private unless it is told to, and has so many tunnels
at a time.
"""

import argparse
import logging
import signal
import socket
from collections.abc import Generator
from ipaddress import ip_address
from typing import Any

from coro import IOLoop, coroutine, run
from coro.errors import ResolveError, StreamClosedError, TimeoutError
from coro.gen import sleep, timeout
from coro.http import HTTPServer, HTTPServerRequest, Response
from coro.locks import Event
from coro.resolver import Addresses, Resolver, ThreadedResolver
from coro.stream import IOStream
from coro.tcp import connect

log = logging.getLogger("proxy")

GRACE = 5.0
"""Seconds that tunnels have when the proxy stops."""


class Known(Resolver):
    """Answers with addresses that were looked up, and looked at, before."""

    def __init__(self, addresses: Addresses) -> None:
        self._addresses = addresses

    @coroutine
    def resolve(
        self, host: str, port: int, family: int = socket.AF_UNSPEC
    ) -> Generator[Any, Any, Addresses]:
        """Return those of a family."""
        found = [each for each in self._addresses if family in (socket.AF_UNSPEC, each[0])]
        if not found:
            raise ResolveError(socket.EAI_NONAME, "no such address", host)
        return found
        yield


class Proxy:
    """Answers CONNECT.

    Arguments:
        ports: to which it connects.
        private: whether also to addresses of private networks and of this machine.
        idle: seconds after which a tunnel is closed in which nothing moves.
    """

    def __init__(self, ports: set[int], private: bool, idle: float) -> None:
        self.ports = {str(port) for port in ports}
        self.private = private
        self.idle = idle
        self._resolver = ThreadedResolver()

    @coroutine
    def __call__(self, request: HTTPServerRequest) -> Generator[Any, Any, Response | None]:
        """Answer a request: with a tunnel, if it may be."""
        if request.method != "CONNECT":
            return Response("this proxy makes tunnels: CONNECT\n", 405, {"Allow": "CONNECT"})
        host, _, port = request.uri.rpartition(":")
        host = host.strip("[]")
        # As many digits as a client likes: they are compared as they are.
        if port not in self.ports:
            return Response(f"not to port {port[:9]}\n", 403)
        try:
            there = yield self._open(host, int(port))
        except PermissionError as error:
            return Response(f"{error}\n", 403)
        except OSError as error:
            return Response(f"{error}\n", 504 if isinstance(error, TimeoutError) else 502)
        here = request.upgrade(200)
        log.info("%s -> %s", request.remote_ip, request.uri)
        yield Tunnel(here, there, self.idle).join()
        return None

    @coroutine
    def _open(self, host: str, port: int) -> Generator[Any, Any, IOStream]:
        """Connect to a host: to the very addresses that were looked at."""
        with timeout(10):
            found = yield self._resolver.resolve(host, port)
            for _, address in found:
                if not self.private and not ip_address(address[0]).is_global:
                    raise PermissionError(f"{host} is at {address[0]}, a private address")
            stream: IOStream = yield connect(host, port, resolver=Known(found), half_open=True)
            return stream


class Tunnel:
    """Two streams that are joined.

    Arguments:
        here, there: the streams.
        idle: seconds after which both are closed if nothing moves in either direction.
    """

    def __init__(self, here: IOStream, there: IOStream, idle: float) -> None:
        self.here = here
        self.there = there
        self.idle = idle
        self._moved = here.io_loop.time()

    @coroutine
    def join(self) -> Generator[Any, Any, None]:
        """Pass bytes on in both directions, until both have ended."""
        watching = self._watch()
        try:
            yield [self._pass(self.here, self.there), self._pass(self.there, self.here)]
        finally:
            watching.cancel()
            self._close()

    def _close(self) -> None:
        self.here.close()
        self.there.close()

    @coroutine
    def _watch(self) -> Generator[Any, Any, None]:
        time = self.here.io_loop.time
        while (left := self._moved + self.idle - time()) > 0:
            yield sleep(left)
        self._close()

    @coroutine
    def _pass(self, source: IOStream, target: IOStream) -> Generator[Any, Any, None]:
        """Pass bytes on, at the pace of whoever takes them; then their end."""
        time = source.io_loop.time
        try:
            while True:
                data = yield source.read_bytes(65536, partial=True)
                self._moved = time()
                yield target.write(data)
                self._moved = time()
        except StreamClosedError:
            if not target.closed():
                yield target.send_eof()


@coroutine
def main(proxy: Proxy, port: int, tunnels: int) -> Generator[Any, Any, None]:
    """Serve until SIGTERM or Ctrl-C."""
    server = HTTPServer(proxy, max_connections=tunnels)
    server.listen(port, "127.0.0.1")
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    stopped = Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        IOLoop.current().add_signal_handler(number, stopped.set)
    yield stopped.wait()
    yield server.shutdown(GRACE)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A forward proxy for TLS.")
    parser.add_argument("--port", type=int, default=3128, help="0: a free one")
    parser.add_argument("--to", type=int, action="append", help="a port to connect to (443)")
    parser.add_argument("--private", action="store_true", help="connect to private addresses too")
    parser.add_argument("--idle", type=float, default=60.0, help="seconds of silence")
    parser.add_argument("--tunnels", type=int, default=200, help="how many at a time")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    made = Proxy(set(options.to or [443]), options.private, options.idle)
    run(main, made, options.port, options.tunnels)
