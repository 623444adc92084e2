"""``HTTPServer``: requests, responses, bodies, limits of time and size, and the end."""

from __future__ import annotations

import contextlib
import functools
import gc
import logging
import re
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from typing import Any

import pytest

from coro.errors import StreamClosedError
from coro.future import Future
from coro.gen import coroutine, moment, sleep
from coro.http import AsyncHTTPClient, HTTPServer, HTTPServerRequest, Response, log_access
from coro.http import server as http_server
from coro.loop import IOLoop
from coro.stream import IOStream
from coro.tcp import connect
from tests.support.authority import Authority
from tests.support.virtual import LeapingPoller, closing_loop, step, turns

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
LAST = b"GET /last HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


@pytest.fixture
def loop() -> Iterator[IOLoop]:
    with closing_loop() as loop:
        yield loop
        turns(loop, 3)
        left = loop.statistics()
        assert (left["handlers"], left["timers"], left["tasks"]) == (0, 0, 0)


@pytest.fixture
def serve(loop: IOLoop) -> Iterator[Callable[..., HTTPServer]]:
    """``serve(handler, ...)`` starts a server on the loop."""
    servers: list[HTTPServer] = []

    def start(handler: Any, **options: Any) -> HTTPServer:
        server = HTTPServer(handler, **options)
        server.listen(0, "127.0.0.1")
        servers.append(server)
        return server

    yield start
    for server in servers:
        loop.run_sync(functools.partial(server.shutdown, 0))


def port_of(server: HTTPServer) -> int:
    return int(server.sockets[0].getsockname()[1])


class Client:
    """A connection that says what a test says; ``hear`` gives what the server has answered."""

    def __init__(self, loop: IOLoop, server: HTTPServer) -> None:
        self.loop = loop
        port = port_of(server)
        self.stream: IOStream = loop.run_sync(lambda: connect("127.0.0.1", port))
        self.stream.half_open = True

    def close(self) -> None:
        self.stream.close()

    def say(self, data: bytes) -> None:
        self.stream.write(data)

    def hear(self, end: bytes) -> bytes:
        """What comes up to and with the bytes ``end``."""
        heard: bytes = self.loop.run_sync(lambda: self.stream.read_until(end))
        return heard

    def hear_all(self) -> bytes:
        """What comes until the server closes."""
        heard: bytes = self.loop.run_sync(self.stream.read_until_close)
        return heard


@pytest.fixture
def talk(loop: IOLoop) -> Iterator[Callable[[HTTPServer], Client]]:
    with contextlib.ExitStack() as stack:
        yield lambda server: stack.enter_context(contextlib.closing(Client(loop, server)))


def hello(request: HTTPServerRequest) -> Response:
    return Response(f"hello {request.path}")


def statuses(heard: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 ([0-9]{3}) ", heard)]


class TestRequests:
    def test_the_names_of_a_request(self, loop: IOLoop, serve: Any, talk: Any) -> None:
        seen: dict[str, Any] = {}

        def handler(request: HTTPServerRequest) -> Response:
            names = (
                *("method", "uri", "path", "query", "version", "host", "host_name", "remote_ip"),
                *("protocol", "body", "arguments", "query_arguments", "body_arguments"),
            )
            seen.update({name: getattr(request, name) for name in names})
            seen["url"] = request.full_url()
            seen["x"] = request.headers["x-some"]
            seen["cookie"] = request.cookies["k"].value
            return Response(status=204)

        client = talk(serve(handler))
        client.say(
            b"POST /p%20q?a=1&a=%ff&e= HTTP/1.1\r\nHost: Example.com:81\r\nX-Some: y\r\n"
            b"Cookie: k=v\r\n"
            b"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 5\r\n\r\nb=2+3"
        )
        head = client.hear(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 204 No Content\r\n")
        assert b"Content-Length" not in head
        query = {"a": [b"1", b"\xff"], "e": [b""]}
        assert seen == {
            "method": "POST",
            "uri": "/p%20q?a=1&a=%ff&e=",
            "path": "/p%20q",
            "query": "a=1&a=%ff&e=",
            "version": "HTTP/1.1",
            "host": "Example.com:81",
            "host_name": "example.com",
            "remote_ip": "127.0.0.1",
            "protocol": "http",
            "body": b"b=2+3",
            "arguments": {**query, "b": [b"2 3"]},
            "query_arguments": query,
            "body_arguments": {"b": [b"2 3"]},
            "url": "http://Example.com:81/p%20q?a=1&a=%ff&e=",
            "x": "y",
            "cookie": "v",
        }

    def test_one_after_the_other(self, serve: Any, talk: Any) -> None:
        server = serve(hello)
        client = talk(server)
        for path in (b"/a", b"/b"):
            client.say(b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n" % path)
            assert client.hear(path).endswith(b"\r\n\r\nhello " + path)
        assert server.statistics()["requests"] == 2
        assert server.statistics()["accepted"] == 1

    def test_pipelined_are_answered_in_order(self, loop: IOLoop, serve: Any, talk: Any) -> None:
        waiting: list[Future[None]] = []

        @coroutine
        def handler(request: HTTPServerRequest) -> Generator[Any, Any, Response]:
            if request.path == "/":
                waiting.append(Future())
                yield waiting[-1]
            return Response(request.path)

        client = talk(serve(handler))
        client.say(GET + LAST)
        turns(loop, 10)
        assert len(waiting) == 1
        waiting[0].set_result(None)
        heard = client.hear_all()
        assert statuses(heard) == [200, 200]
        assert heard.index(b"\r\n\r\n/") < heard.index(b"/last")

    def test_a_flood_of_pipelined_requests_lets_others_in(
        self, loop: IOLoop, serve: Any, talk: Any
    ) -> None:
        paths: list[str] = []

        def handler(request: HTTPServerRequest) -> Response:
            paths.append(request.path)
            return Response(b"")

        server = serve(handler)
        flood, other = talk(server), talk(server)
        flood.say(GET * 200)
        other.say(LAST)
        assert statuses(other.hear_all()) == [200]
        assert paths.index("/last") < 100
        for _ in range(200):
            flood.hear(b"\r\n\r\n")

    def test_head_has_no_body_but_its_length(self, serve: Any, talk: Any) -> None:
        client = talk(serve(hello))
        client.say(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n" + LAST)
        heard = client.hear_all()
        assert b"Content-Length: 7\r\n\r\nHTTP/1.1 200 OK" in heard

    def test_http_1_0(self, serve: Any, talk: Any) -> None:
        client = talk(serve(hello))
        client.say(b"GET /x HTTP/1.0\r\n\r\n")
        heard = client.hear_all()
        assert b"\r\nConnection: close\r\n" in heard
        assert heard.endswith(b"hello /x")

    def test_http_1_0_keep_alive(self, serve: Any, talk: Any) -> None:
        client = talk(serve(hello))
        client.say(b"GET /x HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        assert b"\r\nConnection: Keep-Alive\r\n" in client.hear(b"hello /x")
        client.say(b"GET /y HTTP/1.0\r\n\r\n")
        assert client.hear_all().endswith(b"hello /y")

    def test_no_keep_alive(self, serve: Any, talk: Any) -> None:
        client = talk(serve(hello, no_keep_alive=True))
        client.say(GET + GET)
        assert statuses(client.hear_all()) == [200]

    def test_a_client_that_ends_its_side_gets_its_response(
        self, loop: IOLoop, serve: Any, talk: Any
    ) -> None:
        @coroutine
        def handler(request: HTTPServerRequest) -> Generator[Any, Any, Response]:
            yield sleep(5)
            return Response(b"late")

        client = talk(serve(handler))
        client.say(GET)
        client.stream.send_eof()
        assert client.hear_all().endswith(b"late")

    def test_forwarded_is_believed_only_on_request(self, serve: Any, talk: Any) -> None:
        def handler(request: HTTPServerRequest) -> Response:
            return Response(f"{request.remote_ip} {request.protocol}")

        sent = LAST.replace(
            b"\r\n\r\n",
            b"\r\nX-Forwarded-For: 9.9.9.9, 8.8.8.8\r\nX-Forwarded-Proto: https\r\n\r\n",
        )
        for options, expected in (
            ({}, b"127.0.0.1 http"),
            ({"xheaders": True}, b"8.8.8.8 https"),
            ({"xheaders": True, "trusted_downstream": ["8.8.8.8"]}, b"9.9.9.9 https"),
        ):
            client = talk(serve(handler, **options))
            client.say(sent)
            assert client.hear_all().endswith(b"\r\n\r\n" + expected)


class TestResponses:
    def test_the_fields_of_a_response(self, serve: Any, talk: Any) -> None:
        def handler(request: HTTPServerRequest) -> Response:
            return Response.json({"a": [1, None]}, 201, {"X-Some": "y", "Set-Cookie": "a=b"})

        client = talk(serve(handler))
        client.say(LAST)
        lines = client.hear_all().split(b"\r\n")
        assert lines[0] == b"HTTP/1.1 201 Created"
        assert lines[-1] == b'{"a":[1,null]}'
        fields = dict(line.split(b": ", 1) for line in lines[1:-2])
        assert fields.pop(b"Date").endswith(b"GMT")
        assert fields == {
            b"Content-Type": b"application/json",
            b"X-Some": b"y",
            b"Set-Cookie": b"a=b",
            b"Connection": b"close",
            b"Content-Length": b"14",
        }

    @pytest.mark.parametrize("kind", ["coroutine", "async def", "future", "function"])
    def test_kinds_of_handlers(self, serve: Any, talk: Any, kind: str) -> None:
        @coroutine
        def yielding(request: HTTPServerRequest) -> Generator[Any, Any, Response]:
            yield moment
            return Response(b"well")

        async def native(request: HTTPServerRequest) -> Response:
            await yielding(request)
            return Response(b"well")

        def future(request: HTTPServerRequest) -> Future[Response]:
            done: Future[Response] = Future()
            done.set_result(Response(b"well"))
            return done

        handler = {
            "coroutine": yielding,
            "async def": native,
            "future": future,
            "function": lambda request: Response(b"well"),
        }[kind]
        client = talk(serve(handler))
        client.say(LAST)
        assert client.hear_all().endswith(b"well")

    def test_a_handler_that_fails(
        self, serve: Any, talk: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        def handler(request: HTTPServerRequest) -> Response:
            raise ValueError("private")

        client = talk(serve(handler))
        client.say(GET + LAST)
        heard = client.hear_all()
        assert statuses(heard) == [500, 500]
        assert b"private" not in heard
        assert [record.name for record in caplog.records] == ["coro.application"] * 2
        assert "handler of GET / from 127.0.0.1" in caplog.text

    @pytest.mark.parametrize("result", [None, 5, "text"])
    def test_a_handler_that_returns_nothing_of_use(
        self, serve: Any, talk: Any, caplog: pytest.LogCaptureFixture, result: Any
    ) -> None:
        client = talk(serve(lambda request: result))
        client.say(LAST)
        assert statuses(client.hear_all()) == [500]
        assert "handler" in caplog.text

    def test_what_may_not_be_written_out(
        self, serve: Any, talk: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        def handler(request: HTTPServerRequest) -> Response:
            return Response(b"", headers={"X": "a\r\nSet-Cookie: evil=1"})

        client = talk(serve(handler))
        client.say(LAST)
        heard = client.hear_all()
        assert statuses(heard) == [500]
        assert b"evil" not in heard

    def test_a_large_body_to_a_slow_client(self, loop: IOLoop, serve: Any, talk: Any) -> None:
        body = bytes(range(256)) * 40_000
        client = talk(serve(lambda request: Response(body)))
        client.say(LAST)
        turns(loop, 20)
        assert client.hear_all().endswith(b"\r\n\r\n" + body)

    def test_streams(self, serve: Any, talk: Any) -> None:
        @coroutine
        def handler(request: HTTPServerRequest) -> Generator[Any, Any, None]:
            writer = request.respond(200, {"X": "y", "Trailer": "X-Sum"})
            for piece in (b"one", b"", b"two"):
                yield writer.write(piece)
                yield moment
            yield writer.finish([("X-Sum", "2")])

        client = talk(serve(handler))
        client.say(LAST)
        heard = client.hear_all()
        assert heard.endswith(b"\r\n\r\n3\r\none\r\n3\r\ntwo\r\n0\r\nX-Sum: 2\r\n\r\n")
        assert b"Transfer-Encoding: chunked\r\n" in heard

    def test_streams_end_with_their_handler(self, serve: Any, talk: Any) -> None:
        def handler(request: HTTPServerRequest) -> None:
            request.respond().write(b"all")

        client = talk(serve(handler))
        client.say(GET + LAST)
        assert client.hear_all().count(b"3\r\nall\r\n0\r\n\r\n") == 2

    def test_streams_of_a_given_length(self, serve: Any, talk: Any) -> None:
        def handler(request: HTTPServerRequest) -> None:
            writer = request.respond(200, {"Content-Length": "3"})
            with pytest.raises(ValueError, match="Content-Length of 3"):
                writer.write(b"four")
            writer.write(b"all")

        client = talk(serve(handler))
        client.say(LAST)
        assert client.hear_all().endswith(b"Content-Length: 3\r\n\r\nall")

    def test_a_stream_that_is_too_short_is_cut(
        self, serve: Any, talk: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        def handler(request: HTTPServerRequest) -> None:
            request.respond(200, {"Content-Length": "9"}).write(b"all")

        client = talk(serve(handler))
        client.say(GET + LAST)
        heard = client.hear_all()
        assert statuses(heard) in ([], [200])
        assert "less than the announced" in caplog.text

    def test_a_stream_to_http_1_0_ends_with_the_connection(self, serve: Any, talk: Any) -> None:
        def handler(request: HTTPServerRequest) -> None:
            request.respond().write(b"all")

        client = talk(serve(handler))
        client.say(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        heard = client.hear_all()
        assert b"\r\nConnection: close\r\n" in heard
        assert heard.endswith(b"\r\n\r\nall")

    def test_iterables(self, serve: Any, talk: Any) -> None:
        closed: list[str] = []

        def pieces() -> Iterator[bytes]:
            try:
                yield b"a"
                yield b"b"
            finally:
                closed.append("iterator")

        async def more() -> AsyncIterator[bytes]:
            try:
                yield b"a"
                await sleep(1)
                yield b"b"
            finally:
                closed.append("async")

        def handler(request: HTTPServerRequest) -> Response:
            return Response(more() if request.path == "/last" else pieces())

        client = talk(serve(handler))
        client.say(GET + LAST)
        assert client.hear_all().count(b"1\r\na\r\n1\r\nb\r\n0\r\n\r\n") == 2
        assert closed == ["iterator", "async"]

    def test_an_iterable_that_fails_is_cut(
        self, serve: Any, talk: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        def pieces() -> Iterator[bytes]:
            yield b"a"
            raise ValueError("mine")

        client = talk(serve(lambda request: Response(pieces())))
        client.say(LAST)
        assert not client.hear_all().endswith(b"0\r\n\r\n")
        assert "ValueError: mine" in caplog.text

    def test_back_pressure_on_a_stream(self, loop: IOLoop, serve: Any, talk: Any) -> None:
        written = 0

        @coroutine
        def handler(request: HTTPServerRequest) -> Generator[Any, Any, None]:
            nonlocal written
            writer = request.respond()
            for _ in range(1000):
                yield writer.write(bytes(100_000))
                written += 1

        client = talk(serve(handler, write_timeout=1e6))
        client.say(LAST)
        turns(loop, 3000)
        assert written < 200
        client.hear_all()
        assert written == 1000

    def test_answering_twice(self, serve: Any, talk: Any) -> None:
        def handler(request: HTTPServerRequest) -> None:
            request.respond().write(b"one")
            with pytest.raises(RuntimeError, match="answered already"):
                request.respond()

        client = talk(serve(handler))
        client.say(LAST)
        assert statuses(client.hear_all()) == [200]

    def test_upgrade(self, serve: Any, talk: Any) -> None:
        @coroutine
        def handler(request: HTTPServerRequest) -> Generator[Any, Any, None]:
            stream = request.upgrade(101, {"Upgrade": "echo", "Connection": "upgrade"})
            data = yield stream.read_bytes(5)
            yield stream.write(data[::-1])
            stream.close()

        client = talk(serve(handler))
        fields = b"\r\nUpgrade: echo\r\nConnection: upgrade\r\n\r\n"
        client.say(GET.replace(b"\r\n\r\n", fields) + b"abc")
        assert client.hear(b"\r\n\r\n").startswith(b"HTTP/1.1 101 Switching Protocols\r\n")
        client.say(b"de")
        assert client.hear_all() == b"edcba"


class TestBodies:
    def test_100_is_sent_when_the_body_is_wanted(self, serve: Any, talk: Any) -> None:
        client = talk(serve(lambda request: Response(request.body)))
        client.say(
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\n"
            b"Connection: close\r\n\r\n"
        )
        assert client.hear(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.say(b"abc")
        assert client.hear_all().endswith(b"\r\n\r\nabc")

    def test_no_100_for_a_body_that_is_too_large(self, serve: Any, talk: Any) -> None:
        client = talk(serve(hello, max_body_size=10))
        client.say(
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 11\r\nExpect: 100-continue\r\n\r\n"
        )
        assert statuses(client.hear_all()) == [413]

    def test_too_many_chunks(self, serve: Any, talk: Any) -> None:
        client = talk(serve(hello, max_body_size=10))
        client.say(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        client.say(b"6\r\nabcdef\r\n" * 2)
        assert statuses(client.hear_all()) == [413]

    def test_a_streamed_body(self, serve: Any, talk: Any) -> None:
        pieces: list[bytes] = []

        @coroutine
        def handler(request: HTTPServerRequest) -> Generator[Any, Any, Response]:
            assert request.body == b""
            while True:
                piece = yield request.read(4)
                if not piece:
                    return Response(request.trailers.get("X-Sum", "none"))
                pieces.append(piece)

        client = talk(serve(handler, stream_body=True))
        client.say(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        client.say(b"6\r\nabcdef\r\n")
        client.say(b"0\r\nX-Sum: 6\r\n\r\n")
        assert client.hear(b"6").startswith(b"HTTP/1.1 200 OK")
        assert b"".join(pieces) == b"abcdef"
        assert max(map(len, pieces)) <= 4
        client.say(LAST)
        assert client.hear_all().endswith(b"none")

    def test_async_for_over_a_body(self, serve: Any, talk: Any) -> None:
        async def handler(request: HTTPServerRequest) -> Response:
            return Response(b"".join([piece async for piece in request]))

        client = talk(serve(handler, stream_body=lambda request: request.method == "POST"))
        client.say(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc" + LAST)
        assert b"\r\n\r\nabcHTTP/1.1" in client.hear_all()

    def test_a_body_that_nobody_reads_ends_the_connection(self, serve: Any, talk: Any) -> None:
        client = talk(serve(hello, stream_body=True))
        client.say(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 300000\r\n\r\n" + bytes(100_000))
        heard = client.hear_all()
        assert statuses(heard) == [200]
        assert b"Connection: close\r\n" in heard

    def test_a_client_that_goes_in_the_middle(self, loop: IOLoop, serve: Any, talk: Any) -> None:
        errors: list[BaseException] = []

        @coroutine
        def handler(request: HTTPServerRequest) -> Generator[Any, Any, Response]:
            try:
                yield request.read()
                yield request.read()
            except StreamClosedError as error:
                errors.append(error)
                raise
            return Response(b"")

        server = serve(handler, stream_body=True)
        client = talk(server)
        client.say(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nabc")
        turns(loop, 10)
        client.stream.close()
        turns(loop, 10)
        assert len(errors) == 1
        assert server.statistics()["connections"] == 0

    def test_disconnected(self, loop: IOLoop, serve: Any, talk: Any) -> None:
        noticed: list[str] = []

        @coroutine
        def handler(request: HTTPServerRequest) -> Generator[Any, Any, Response]:
            yield request.disconnected()
            noticed.append(request.path)
            return Response(b"")

        client = talk(serve(handler))
        client.say(GET)
        turns(loop, 10)
        assert noticed == []
        client.stream.close()
        turns(loop, 10)
        assert noticed == ["/"]

    def test_who_is_not_gone_may_go_on(self, loop: IOLoop, serve: Any, talk: Any) -> None:
        watches: list[Future[None]] = []

        @coroutine
        def handler(request: HTTPServerRequest) -> Generator[Any, Any, Response]:
            watches.append(request.disconnected())
            yield sleep(1)
            return Response(request.path)

        client = talk(serve(handler))
        client.say(GET)
        assert client.hear(b"\r\n\r\n/")
        client.say(GET)
        turns(loop, 10)
        # This one stands before the next request while its own is under way.
        client.say(LAST)
        assert statuses(client.hear_all()) == [200, 200]
        turns(loop, 3)
        assert [watch.cancelled() for watch in watches] == [True] * 3

    def test_a_request_that_is_over(self, loop: IOLoop, serve: Any, talk: Any) -> None:
        old: list[HTTPServerRequest] = []

        @coroutine
        def handler(request: HTTPServerRequest) -> Generator[Any, Any, Response]:
            if old:
                for use in (old[0].respond, old[0].upgrade, old[0].disconnected):
                    with pytest.raises(RuntimeError, match="is over"):
                        use()
                with pytest.raises(RuntimeError, match="is over"):
                    yield old[0].read()
            old.append(request)
            return Response((yield request.read(2)))

        client = talk(serve(handler, stream_body=True))
        client.say(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc")
        assert client.hear(b"\r\n\r\nab")
        client.say(LAST)
        assert client.hear_all().endswith(b"\r\n\r\n")


class TestTimeLimits:
    @pytest.mark.parametrize(
        ("sent", "limit", "status"),
        [
            (b"", "idle_connection_timeout", []),
            (b"GET / HT", "header_timeout", [408]),
            (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nab", "body_timeout", [408]),
        ],
    )
    def test_silence(
        self, loop: IOLoop, serve: Any, talk: Any, sent: bytes, limit: str, status: list[int]
    ) -> None:
        client = talk(serve(hello, **{limit: 7.0}))
        client.say(sent)
        turns(loop, 5)
        began = loop.time()
        assert statuses(client.hear_all()) == status
        assert loop.time() - began == pytest.approx(7.0, abs=0.1)

    @pytest.mark.parametrize(
        "begun",
        [b"G", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9999\r\n\r\n"],
        ids=["head", "body"],
    )
    def test_drip_feeding_does_not_help(
        self, loop: IOLoop, serve: Any, talk: Any, begun: bytes
    ) -> None:
        client = talk(serve(hello, header_timeout=7.0, body_timeout=7.0))

        @coroutine
        def drip() -> Generator[Any, Any, None]:
            client.say(begun)
            for _ in range(6):
                yield sleep(2)
                with contextlib.suppress(StreamClosedError):
                    yield client.stream.write(b"x")

        dripping = drip()
        began = loop.time()
        assert statuses(client.hear_all()) in ([408], [400])
        assert loop.time() - began < 10
        loop.run_sync(lambda: dripping)

    def test_a_handler_that_takes_too_long(
        self, loop: IOLoop, serve: Any, talk: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        ended: list[str] = []

        @coroutine
        def handler(request: HTTPServerRequest) -> Generator[Any, Any, Response]:
            try:
                yield sleep(1000)
            finally:
                ended.append("cancelled")
            return Response(b"")

        client = talk(serve(handler, handler_timeout=5))
        client.say(GET + LAST)
        assert statuses(client.hear_all()) == [503, 503]
        assert ended == ["cancelled", "cancelled"]

    def test_a_client_that_does_not_receive(self, loop: IOLoop, serve: Any, talk: Any) -> None:
        server = serve(lambda request: Response(bytes(30_000_000)), write_timeout=5.0)
        client = talk(server)
        client.say(GET)
        turns(loop, 200)
        assert server.statistics()["connections"] == 1
        began = loop.time()
        while server.statistics()["connections"]:
            step(loop)
        assert loop.time() - began == pytest.approx(5.0, abs=0.5)
        client.stream.close()


class TestTheEnd:
    def test_idle_connections_are_closed(self, loop: IOLoop, serve: Any, talk: Any) -> None:
        server = serve(hello)
        client = talk(server)
        client.say(GET)
        client.hear(b"hello /")
        began = loop.time()
        loop.run_sync(server.shutdown)
        assert loop.time() - began < 3
        assert client.hear_all() == b""

    def test_requests_under_way_are_answered(self, loop: IOLoop, serve: Any, talk: Any) -> None:
        @coroutine
        def handler(request: HTTPServerRequest) -> Generator[Any, Any, Response]:
            yield sleep(10)
            return Response(b"well")

        server = serve(handler)
        client = talk(server)
        client.say(GET)
        turns(loop, 5)
        loop.run_sync(server.shutdown)
        heard = client.hear_all()
        assert heard.endswith(b"well")
        assert b"Connection: close\r\n" in heard

    def test_requests_that_wait_are_answered(self, loop: IOLoop, serve: Any, talk: Any) -> None:
        server = serve(hello)
        kept, fresh = talk(server), talk(server)
        kept.say(GET)
        kept.hear(b"hello /")
        # Neither has been looked at when the stop begins: the one is in a receive queue, the
        # other in the accept queue as well.
        for client in (kept, fresh):
            client.stream.socket.send(LAST)
        loop.run_sync(server.shutdown)
        assert statuses(kept.hear_all()) == [200]
        assert statuses(fresh.hear_all()) == [200]

    def test_pipelined_requests_are_answered(self, loop: IOLoop, serve: Any, talk: Any) -> None:
        """Those that were received, and those that wait in the receive queue; the last one ends."""

        @coroutine
        def handler(request: HTTPServerRequest) -> Generator[Any, Any, Response]:
            yield sleep(10)
            return Response(b"well")

        server = serve(handler)
        early, late = talk(server), talk(server)
        early.say(GET * 3)
        late.say(GET)
        turns(loop, 5)
        late.say(GET * 2)
        loop.run_sync(server.shutdown)
        for client in (early, late):
            heard = client.hear_all()
            assert statuses(heard) == [200, 200, 200]
            assert heard.count(b"Connection: close\r\n") == 1
            assert b"Connection: close\r\n" in heard.rpartition(b"HTTP/1.1 ")[2]

    def test_a_request_that_has_begun_is_answered(
        self, loop: IOLoop, serve: Any, talk: Any
    ) -> None:
        server = serve(hello)
        fresh, pipelining = talk(server), talk(server)
        fresh.say(LAST[:5])
        pipelining.say(GET + LAST[:5])
        pipelining.hear(b"hello /")

        @coroutine
        def main() -> Generator[Any, Any, None]:
            stopping = server.shutdown()
            yield sleep(15)
            for client in (fresh, pipelining):
                client.say(LAST[5:])
            yield stopping

        loop.run_sync(main)
        assert statuses(fresh.hear_all()) == statuses(pipelining.hear_all()) == [200]

    def test_requests_that_the_poller_does_not_tell_of_in_time(
        self, loop: IOLoop, serve: Any, talk: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It tells of a bounded number at once, and looks are short."""
        server = serve(hello)
        clients = [talk(server) for _ in range(8)]
        for client in clients:
            client.say(GET)
            client.hear(b"hello /")
        poll = LeapingPoller.poll
        monkeypatch.setattr(LeapingPoller, "poll", lambda self, limit: poll(self, limit)[:1])
        monkeypatch.setattr(http_server, "LAST_LOOK", 0.0)
        for client in clients:
            client.stream.socket.send(GET)
        loop.run_sync(server.shutdown)
        for client in clients:
            assert statuses(client.hear_all()) == [200]

    def test_who_has_no_place_yet_is_answered(self, loop: IOLoop, serve: Any, talk: Any) -> None:
        server = serve(hello, max_connections=1)
        clients = [talk(server) for _ in range(4)]
        for client in clients:
            client.stream.socket.send(GET)
        loop.run_sync(server.shutdown)
        for client in clients:
            assert statuses(client.hear_all()) == [200]

    def test_grace_ends(self, loop: IOLoop, serve: Any, talk: Any) -> None:
        ended: list[str] = []

        @coroutine
        def handler(request: HTTPServerRequest) -> Generator[Any, Any, Response]:
            try:
                yield sleep(1000)
            finally:
                ended.append(request.path)
            return Response(b"")

        server = serve(handler)
        client = talk(server)
        client.say(GET)
        turns(loop, 5)
        began = loop.time()
        loop.run_sync(lambda: server.shutdown(3))
        assert loop.time() - began == pytest.approx(3, abs=0.5)
        assert ended == ["/"]


def test_with_the_client(loop: IOLoop, serve: Any) -> None:
    server = serve(lambda request: Response(request.body[::-1]))
    client = AsyncHTTPClient(force_instance=True)
    url = f"http://127.0.0.1:{port_of(server)}/"

    @coroutine
    def main() -> Generator[Any, Any, None]:
        for _ in range(3):
            response = yield client.fetch(url, method="POST", body=b"abc")
            assert response.body == b"cba"

    loop.run_sync(main)
    assert server.statistics()["accepted"] == 1
    client.close()


def test_a_form_with_files(loop: IOLoop, serve: Any) -> None:
    def handler(request: HTTPServerRequest) -> Response:
        (file,) = request.files["photo"]
        assert request.files is request.files
        assert request.arguments == {"q": [b"1"], "title": [b"Beach"]}
        return Response(f"{file.filename} {file.content_type} {len(file.body)}")

    url = f"http://127.0.0.1:{port_of(serve(handler))}/?q=1"
    client = AsyncHTTPClient(force_instance=True)
    options: Any = {
        "data": {"title": "Beach"},
        "files": {"photo": ("a.png", bytes(1000), "image/png")},
    }
    got = loop.run_sync(lambda: client.fetch(url, method="POST", **options))
    assert got.body == b"a.png image/png 1000"
    # What is no form is a request at fault, not a handler.
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    options = {"headers": headers, "body": b"nothing of a form", "raise_error": False}
    assert loop.run_sync(lambda: client.fetch(url, method="POST", **options)).code == 400
    client.close()


def test_tls(loop: IOLoop, serve: Any, ca: Authority) -> None:
    server = serve(lambda request: Response(request.protocol), ssl_options=ca.server_context())
    client = AsyncHTTPClient(force_instance=True)
    url = f"https://127.0.0.1:{port_of(server)}/"
    response = loop.run_sync(lambda: client.fetch(url, ca_certs=str(ca.pem)))
    assert response.body == b"https"
    client.close()


def test_access_log(loop: IOLoop, serve: Any, talk: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "coro.access")
    client = talk(serve(hello, on_request_end=log_access))
    client.say(LAST)
    client.hear_all()
    (record,) = [record for record in caplog.records if record.name == "coro.access"]
    assert record.getMessage().startswith("200 GET /last (127.0.0.1) 11 bytes ")


def test_no_circles(loop: IOLoop, serve: Any, talk: Any, no_collector: None) -> None:
    def handler(request: HTTPServerRequest) -> Response:
        if request.path == "/last":
            return Response(b"")
        raise ValueError("mine")

    server = serve(handler)
    logging.getLogger("coro.application").disabled = True
    try:
        for _ in range(5):
            with contextlib.closing(Client(loop, server)) as client:
                client.say(GET + LAST)
                client.hear_all()
            del client
        turns(loop, 5)
    finally:
        logging.getLogger("coro.application").disabled = False
    assert gc.collect() == 0
