"""Compressed responses: who gets one, of what, and that it comes piece by piece."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from coro.gen import coroutine
from coro.http import AsyncHTTPClient, HTTPResponse, HTTPServer, Response, StaticFiles
from coro.http.compression import decoder_for
from coro.http.compressors import CODINGS, choose_coding, compress
from coro.loop import IOLoop
from coro.tcp import connect

TEXT = "all work and no play\n" * 1000
DATA = TEXT.encode()


@pytest.fixture
def loop() -> Iterator[IOLoop]:
    loop = IOLoop()
    yield loop
    loop.close()
    IOLoop.clear_current()


Ask = Callable[..., HTTPResponse]


@pytest.fixture
def serve(loop: IOLoop) -> Iterator[Callable[[Any], int]]:
    """``serve(handler)`` gives the port of a server that compresses."""
    servers: list[HTTPServer] = []

    def start(handler: Any) -> int:
        server = HTTPServer(handler, compress_response=True)
        server.listen(0, "127.0.0.1")
        servers.append(server)
        port: int = server.sockets[0].getsockname()[1]
        return port

    yield start
    for server in servers:
        loop.run_sync(functools.partial(server.shutdown, 0))


@pytest.fixture
def ask(loop: IOLoop, serve: Callable[[Any], int]) -> Iterator[Ask]:
    """``ask(handler, accept_encoding, ...)``: what it answers, as it was sent."""
    client = AsyncHTTPClient(force_instance=True)

    def ask(handler: Any, accepted: str | None = "gzip", **options: Any) -> HTTPResponse:
        headers = {} if accepted is None else {"Accept-Encoding": accepted}
        headers |= options.pop("headers", {})
        fetch = functools.partial(
            client.fetch,
            f"http://127.0.0.1:{serve(handler)}/{options.pop('path', '')}",
            headers=headers,
            decompress_response=False,
            raise_error=False,
            **options,
        )
        got: HTTPResponse = loop.run_sync(fetch)
        return got

    yield ask
    client.close()


def decode(response: HTTPResponse) -> bytes:
    """The body as it was before it was compressed."""
    decoder = decoder_for(response.headers["Content-Encoding"])
    assert decoder is not None
    body = decoder.decompress(response.body, 10**9)
    decoder.finish()
    return body


class TestChoice:
    @pytest.mark.parametrize(
        ("accepted", "chosen"),
        [
            (None, None),
            ("", None),
            ("gzip", "gzip"),
            ("GZip", "gzip"),
            ("gzip, deflate, br, zstd", "zstd"),
            ("gzip, br", "br"),
            ("br;q=0.5, gzip", "gzip"),
            ("br;q=0.5, gzip; q = 0.4", "br"),
            ("gzip;q=0", None),
            ("*", "zstd"),
            ("*;q=0.1, gzip;q=0", "zstd"),
            ("*;q=0, gzip", "gzip"),
            ("identity", None),
            ("identity, gzip;q=0.5", None),
            ("identity;q=0.5, gzip", "gzip"),
            ("deflate", None),
            ("gzip;q=2", None),
            ("gzip;q=nan", None),
            ("gzip;level=9", None),
            (",,;q=1,", None),
        ],
    )
    def test_it_is_the_clients(self, accepted: str | None, chosen: str | None) -> None:
        assert choose_coding(accepted) == chosen


class TestResponses:
    @pytest.mark.parametrize("coding", CODINGS)
    @pytest.mark.parametrize("data", [DATA, DATA * 20], ids=["small", "in a thread"])
    def test_of_bytes(self, ask: Ask, coding: str, data: bytes) -> None:
        got = ask(lambda request: Response(data, content_type="text/css"), coding)
        assert decode(got) == data
        assert len(got.body) < len(data) / 10
        assert got.headers["Content-Length"] == str(len(got.body))
        assert got.headers["Vary"] == "Accept-Encoding"

    @pytest.mark.parametrize("coding", CODINGS)
    def test_of_pieces(self, ask: Ask, coding: str) -> None:
        def pieces(request: Any) -> Response:
            return Response((DATA[at : at + 100] for at in range(0, len(DATA), 100)), headers=html)

        html = {"Content-Type": "text/html"}
        got = ask(pieces, coding)
        assert decode(got) == DATA
        assert got.headers["Transfer-Encoding"] == "chunked"

    def test_of_a_writer_with_a_length(self, ask: Ask) -> None:
        @coroutine
        def handler(request: Any) -> Any:
            fields = {"Content-Type": "text/plain", "Content-Length": str(len(DATA))}
            writer = request.respond(200, fields)
            yield writer.write(DATA[:5])
            yield writer.write(b"")
            yield writer.write(DATA[5:])

        got = ask(handler)
        assert decode(got) == DATA
        assert "Content-Length" not in got.headers
        assert ask(handler, None).body == DATA

    def test_each_piece_arrives_when_it_is_written(
        self, loop: IOLoop, serve: Callable[[Any], int]
    ) -> None:
        """As events do, of which the next one may be long in coming."""

        @coroutine
        def handler(request: Any) -> Any:
            writer = request.respond(200, {"Content-Type": "text/event-stream"})
            yield writer.write(b"data: 1\n\n")
            # The end of the request is the client's.
            yield request.disconnected()

        @coroutine
        def main() -> Any:
            stream = yield connect("127.0.0.1", port)
            yield stream.write(b"GET / HTTP/1.1\r\nHost: a\r\nAccept-Encoding: gzip\r\n\r\n")
            yield stream.read_until(b"\r\n\r\n")
            size = int((yield stream.read_until(b"\r\n")), 16)
            piece = yield stream.read_bytes(size)
            stream.close()
            return zlib.decompressobj(31).decompress(piece)

        port = serve(handler)
        assert loop.run_sync(main) == b"data: 1\n\n"

    def test_to_head_too(self, ask: Ask) -> None:
        for body in (DATA, iter([DATA])):
            got = ask(
                lambda request, body=body: Response(body, content_type="text/css"), method="HEAD"
            )
            assert got.body == b""
            assert got.headers["Content-Encoding"] == "gzip"
            assert got.headers.get("Content-Length") != str(len(DATA))

    def test_a_tag_becomes_weak(self, ask: Ask) -> None:
        def handler(request: Any) -> Response:
            return Response(TEXT, headers={"ETag": '"a"', "Vary": "Cookie"})

        got = ask(handler)
        assert (got.headers["ETag"], got.headers["Vary"]) == ('W/"a"', "Cookie, Accept-Encoding")
        got = ask(handler, None)
        assert (got.headers["ETag"], got.headers["Vary"]) == ('"a"', "Cookie, Accept-Encoding")

    def test_files(self, ask: Ask, tmp_path: Path) -> None:
        (tmp_path / "big.txt").write_bytes(DATA * 20)
        (tmp_path / "big.png").write_bytes(DATA * 20)
        files = StaticFiles(tmp_path)
        got = ask(files, path="big.txt")
        assert decode(got) == DATA * 20
        tag = got.headers["ETag"]
        assert ask(files, path="big.txt", headers={"If-None-Match": tag}).code == 304
        assert ask(files, path="big.png").body == DATA * 20
        part = ask(files, path="big.txt", headers={"Range": "bytes=1-2000"})
        assert (part.code, part.body) == (206, (DATA * 20)[1:2001])


@pytest.mark.parametrize(
    "response",
    [
        Response("short"),
        Response(DATA, content_type="image/png"),
        Response(DATA),
        Response(DATA, headers={"Content-Type": "text/plain", "Content-Encoding": "x"}),
        Response(DATA, headers={"Content-Type": "text/plain", "Content-Range": "bytes 0-1/2"}),
        Response(TEXT, headers={"Cache-Control": "private, No-Transform"}),
        Response(TEXT, status=206),
        Response.encoded(DATA, 200, b"Content-Type: text/plain\r\n"),
    ],
    ids=range(8),
)
def test_what_is_sent_as_it_is(ask: Ask, response: Response) -> None:
    assert ask(lambda request: response).body == response.body


def test_what_has_no_body(ask: Ask) -> None:
    assert ask(lambda request: Response(status=204)).code == 204


def test_a_response_that_is_kept_is_not_changed(ask: Ask) -> None:
    """Or else all would get what one of them takes."""
    response = Response(DATA, headers={"Content-Type": "text/plain"})
    for _ in range(2):
        assert decode(ask(lambda request: response)) == DATA
        assert ask(lambda request: response, None).body == DATA


@pytest.mark.parametrize("coding", CODINGS)
def test_a_whole_body(coding: str) -> None:
    decoder = decoder_for(coding)
    assert decoder is not None
    assert decoder.decompress(compress(CODINGS[coding](), DATA), 10**9) == DATA
    decoder.finish()
