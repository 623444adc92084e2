"""Server-Sent Events: what is sent, what is read, and that neither outlives the client."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coro.errors import HTTPProtocolError, StreamClosedError
from coro.future import Future
from coro.gen import coroutine, sleep
from coro.http import AsyncHTTPClient, HTTPServer, Response
from coro.http.events import Event, EventStream, read_events
from coro.loop import IOLoop
from coro.tcp import connect
from tests.support.virtual import closing_loop, turns


@pytest.fixture
def loop() -> Iterator[IOLoop]:
    with closing_loop() as loop:
        yield loop
        turns(loop, 3)
        left = loop.statistics()
        assert (left["handlers"], left["timers"], left["tasks"]) == (0, 0, 0)


@pytest.fixture
def serve(loop: IOLoop) -> Iterator[Callable[[Any], int]]:
    """``serve(handler)`` gives the port of a server."""
    servers: list[HTTPServer] = []

    def start(handler: Any) -> int:
        server = HTTPServer(handler)
        server.listen(0, "127.0.0.1")
        servers.append(server)
        port: int = server.sockets[0].getsockname()[1]
        return port

    yield start
    for server in servers:
        loop.run_sync(functools.partial(server.shutdown, 0))


class Pieces:
    """A streamed response, of pieces that are given."""

    def __init__(self, pieces: list[bytes], kind: str = "text/event-stream") -> None:
        self.headers = {"Content-Type": kind}
        self._pieces = [piece for piece in pieces if piece]

    async def read(self) -> bytes:
        return self._pieces.pop(0) if self._pieces else b""


def read(loop: IOLoop, *pieces: bytes, **options: Any) -> list[Event]:
    async def main() -> list[Event]:
        return [event async for event in read_events(Pieces([*pieces]), **options)]

    events: Any = loop.run_sync(main)
    return events  # type: ignore[no-any-return]


class TestEncoding:
    @pytest.mark.parametrize(
        ("event", "sent"),
        [
            (Event("hello"), b"data: hello\n\n"),
            (Event(""), b"data: \n\n"),
            (Event("a\nb\r\nc\rd"), b"data: a\ndata: b\ndata: c\ndata: d\n\n"),
            (Event("x", "tick", "7", 3000), b"event: tick\nid: 7\nretry: 3000\ndata: x\n\n"),
            (Event("x", id=""), b"id: \ndata: x\n\n"),
            (Event("ä"), "data: ä\n\n".encode()),
        ],
    )
    def test_events(self, event: Event, sent: bytes) -> None:
        assert event.encode() == sent

    @pytest.mark.parametrize(
        "event", [Event(event="a\nb"), Event(event="a\rb"), Event(id="1\n"), Event(id="\0")]
    )
    def test_what_would_end_it_early(self, event: Event) -> None:
        with pytest.raises(ValueError, match="may not have"):
            event.encode()


class TestReading:
    @pytest.mark.parametrize(
        ("text", "events"),
        [
            (b"data: a\n\n", [Event("a")]),
            (b"data:a\n\n", [Event("a")]),
            (b"data:  a\n\n", [Event(" a")]),
            (b"data\n\n", [Event("")]),
            (b"data: a\r\ndata: b\r\r\n\n", [Event("a\nb")]),
            (b": comment\n\nevent: x\n\ndata: a\n\n", [Event("a")]),
            (
                b"event: x\nid: 1\ndata: a\n\ndata: b\n\n",
                [Event("a", "x", "1"), Event("b", id="1")],
            ),
            (b"id: 1\ndata: a\n\nid\ndata: b\n\n", [Event("a", id="1"), Event("b", id="")]),
            (b"id: a\0b\nretry: 1x\nretry: 10\ndata: a\n\n", [Event("a", retry=10)]),
            (b"unknown: a\ndata: a\n\n", [Event("a")]),
            (b"\xef\xbb\xbfdata: a\n\n", [Event("a")]),
            (b"data: a\n\ndata: cut short\n", [Event("a")]),
            (b"data: \xff\n\n", [Event("\ufffd")]),
        ],
    )
    def test_lines(self, loop: IOLoop, text: bytes, events: list[Event]) -> None:
        assert read(loop, text) == events
        assert read(loop, *(text[at : at + 1] for at in range(len(text)))) == events

    # It runs on each kind of loop.
    @settings(suppress_health_check=[HealthCheck.differing_executors])
    @given(
        events=st.lists(st.builds(Event, st.text(), st.text("abc", min_size=1), st.text("123"))),
        cuts=st.lists(st.integers(0, 1000)),
    )
    def test_what_was_sent_is_read(self, events: list[Event], cuts: list[int]) -> None:
        sent = b"".join(event.encode() for event in events)
        edges = [0, *sorted(cut for cut in cuts if cut < len(sent)), len(sent)]
        pieces = [sent[a:b] for a, b in itertools.pairwise(edges)]
        with closing_loop() as loop:
            got = read(loop, *pieces)
        wanted = [each.data.replace("\r\n", "\n").replace("\r", "\n") for each in events]
        assert [each.data for each in got] == wanted
        assert [each.event for each in got] == [each.event for each in events]

    @pytest.mark.parametrize("text", [b"data: " + b"x" * 200, b"data: x\n" * 20 + b"\n"])
    def test_what_is_too_large(self, loop: IOLoop, text: bytes) -> None:
        with pytest.raises(HTTPProtocolError, match="over 100 bytes"):
            read(loop, text, max_event_size=100)
        with pytest.raises(HTTPProtocolError, match="over 100 bytes"):
            read(loop, *(text[at : at + 7] for at in range(0, len(text), 7)), max_event_size=100)

    def test_another_media_type(self, loop: IOLoop) -> None:
        async def main() -> None:
            async for _ in read_events(Pieces([], "text/html")):
                pass

        with pytest.raises(HTTPProtocolError, match="text/html is not text/event-stream"):
            loop.run_sync(main)


class TestServing:
    def test_from_one_side_to_the_other(self, loop: IOLoop, serve: Any) -> None:
        @coroutine
        def handler(request: Any) -> Any:
            with EventStream(request, headers={"X-A": "b"}) as events:
                began = int(events.last_event_id or 0)
                for number in range(began, began + 3):
                    yield events.send(Event(f"{number}", "tick", f"{number}"))
                yield events.send("bye")

        async def main() -> list[Event]:
            client = AsyncHTTPClient(force_instance=True)
            headers = {"Last-Event-ID": "5"}
            response = await client.fetch(url, headers=headers, stream=True)
            assert response.headers["X-A"] == "b"
            assert response.headers["Cache-Control"] == "no-store"
            events = [event async for event in read_events(response)]
            client.close()
            return events

        url = f"http://127.0.0.1:{serve(handler)}/"
        got: Any = loop.run_sync(main)
        assert [(event.data, event.event) for event in got] == [
            ("5", "tick"),
            ("6", "tick"),
            ("7", "tick"),
            ("bye", "message"),
        ]

    def test_comments_keep_it_alive(self, loop: IOLoop, serve: Any) -> None:
        ends: Future[None] = Future()

        @coroutine
        def handler(request: Any) -> Any:
            with EventStream(request, keep_alive=10) as events:
                yield events.send("begin")
                yield ends

        port = serve(handler)
        stream: Any = loop.run_sync(lambda: connect("127.0.0.1", port))
        stream.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        loop.run_sync(lambda: stream.read_until(b"begin\n\n"))
        began = loop.time()
        for _ in range(3):
            loop.run_sync(lambda: stream.read_until(b":\n\n"))
        assert 30 <= loop.time() - began < 31
        ends.set_result(None)
        loop.run_sync(lambda: stream.read_until(b"0\r\n\r\n"))
        stream.close()

    def test_a_client_that_goes_ends_the_handler(self, loop: IOLoop, serve: Any) -> None:
        ended: Future[str] = Future()

        @coroutine
        def handler(request: Any) -> Any:
            try:
                with EventStream(request) as events:
                    while True:
                        yield events.send("x" * 10_000)
            except StreamClosedError:
                ended.set_result("told")
                raise

        port = serve(handler)
        stream: Any = loop.run_sync(lambda: connect("127.0.0.1", port))
        stream.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        loop.run_sync(lambda: stream.read_until(b"data: "))
        stream.abort()
        assert loop.run_sync(lambda: ended) == "told"

    def test_the_comments_end_with_a_client_that_went_in_silence(
        self, loop: IOLoop, serve: Any
    ) -> None:
        @coroutine
        def handler(request: Any) -> Any:
            with EventStream(request, keep_alive=1):
                yield request.disconnected()
                yield Future()

        port = serve(handler)
        stream: Any = loop.run_sync(lambda: connect("127.0.0.1", port))
        stream.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        loop.run_sync(lambda: stream.read_until(b"\r\n\r\n"))
        stream.close()
        loop.run_sync(lambda: sleep(5))

    def test_arguments_that_make_no_sense(self, loop: IOLoop, serve: Any) -> None:
        def handler(request: Any) -> Response:
            with pytest.raises(ValueError, match="keep_alive"):
                EventStream(request, keep_alive=0)
            return Response("told")

        url = f"http://127.0.0.1:{serve(handler)}/"
        client = AsyncHTTPClient(force_instance=True)
        got: Any = loop.run_sync(lambda: client.fetch(url))
        assert got.body == b"told"
        client.close()
