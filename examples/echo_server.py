"""A TCP server that sends back whatever it gets, in yield style.

    python examples/echo_server.py --port 7007
    nc 127.0.0.1 7007

It ends in order on Ctrl-C or SIGTERM: no new connections, what was received is sent back (for five
seconds at most), and then the connections are closed.
"""

import argparse
import signal
import socket
from collections.abc import Generator
from datetime import timedelta
from typing import Any

import coro
from coro.errors import StreamClosedError, TimeoutError
from coro.gen import Future, coroutine, with_timeout
from coro.loop import IOLoop
from coro.stream import IOStream

PATIENCE = timedelta(seconds=5)


@coroutine
def echo(stream: IOStream, stopped: Future[int]) -> Generator[Any, Any, None]:
    """Serve one connection."""
    try:
        while not stopped.done():
            data = yield stream.read_bytes(65536, partial=True)
            yield stream.write(data)  # waits until the peer has room: a slow one costs no memory
    except StreamClosedError:
        pass  # the peer has left, or main() closed the stream
    finally:
        stream.close()


@coroutine
def main(port: int) -> Generator[Any, Any, None]:
    """Accept connections until a signal comes."""
    loop = IOLoop.current()
    connections: dict[IOStream, Any] = {}
    stopped: Future[int] = Future()

    def on_connection(listener: socket.socket, _events: int) -> None:
        try:
            accepted, _ = listener.accept()
        except BlockingIOError:
            return  # it left before we came
        stream = IOStream(accepted)
        connections[stream] = task = echo(
            stream, stopped
        )  # runs from here on, without anybody waiting
        task.add_done_callback(lambda _: connections.pop(stream, None))

    def on_signal(number: int) -> None:
        if not stopped.done():
            stopped.set_result(number)

    with socket.create_server(("127.0.0.1", port), backlog=512) as listener:
        listener.setblocking(False)
        loop.add_handler(listener, on_connection, IOLoop.READ)
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, on_signal, number)
        print(f"listening on 127.0.0.1:{listener.getsockname()[1]}", flush=True)
        number = yield stopped
        loop.remove_handler(listener)

    print(f"{signal.Signals(number).name}: closing {len(connections)} connections", flush=True)
    for stream in list(connections):
        if not stream.writing():  # it waits for its peer to say something
            stream.close()
    try:
        yield with_timeout(PATIENCE, list(connections.values()))
    except TimeoutError:
        print("some did not take what was to be sent back")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A TCP echo server.")
    parser.add_argument("--port", type=int, default=7007, help="0: any free one (default 7007)")
    coro.run(main, parser.parse_args().port)
