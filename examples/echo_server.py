"""A TCP server that sends back whatever it gets, in yield style.

    python examples/echo_server.py --port 7007
    nc 127.0.0.1 7007

    python examples/echo_server.py --certificate server.pem        # TLS: certificate and key
    openssl s_client -connect 127.0.0.1:7007 -quiet

It ends in order on Ctrl-C or SIGTERM: no new connections, what was received is sent back (for five
seconds at most), and then the connections are closed.
"""

import argparse
import signal
from collections.abc import Generator
from typing import Any

import coro
from coro.errors import StreamClosedError
from coro.gen import Future, coroutine
from coro.loop import IOLoop
from coro.stream import IOStream
from coro.tcp import TCPServer

GRACE = 5.0


class EchoServer(TCPServer):
    """Serves each connection until its peer has said all."""

    stopping = False

    @coroutine
    def handle_stream(self, stream: IOStream, _address: Any) -> Generator[Any, Any, None]:
        """Serve one connection."""
        try:
            while not self.stopping:
                data = yield stream.read_bytes(65536, partial=True)
                # Waits until the peer has room: a slow one costs no memory.
                yield stream.write(data)
        except StreamClosedError:
            pass  # the peer has left, or end() closed the stream
        finally:
            stream.close()

    @coroutine
    def end(self) -> Generator[Any, Any, None]:
        """Accept no more; give those time that have not taken all that is theirs."""
        self.stopping = True
        self.stop()
        for stream in self.streams():
            if not stream.writing():  # it waits for its peer to say something
                stream.close()
        yield self.shutdown(GRACE)


@coroutine
def main(host: str, port: int, certificate: str | None) -> Generator[Any, Any, None]:
    """Serve until a signal comes."""
    loop = IOLoop.current()
    stopped: Future[int] = Future()

    def on_signal(number: int) -> None:
        if not stopped.done():
            stopped.set_result(number)

    tls = None if certificate is None else {"certfile": certificate}
    # Half open: who has said all still gets the rest of it back.
    server = EchoServer(tls, half_open=True)
    server.listen(port, host)
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal, number)
    for sock in server.sockets:
        print(f"listening on {sock.getsockname()[0]}:{sock.getsockname()[1]}", flush=True)
    number = yield stopped
    count = server.statistics()["connections"]
    print(f"{signal.Signals(number).name}: closing {count} connections", flush=True)
    yield server.end()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A TCP echo server.")
    parser.add_argument("--host", default="127.0.0.1", help='address ("" for all)')
    parser.add_argument("--port", type=int, default=7007, help="0: any free one (default 7007)")
    parser.add_argument("--certificate", help="serve TLS: PEM file with certificate and key")
    given = parser.parse_args()
    coro.run(main, given.host, given.port, given.certificate)
