"""Requests to bytes, bytes to responses: whole, byte by byte, with a tail, and hostile.

Every case of a response is run through ``outcomes``: in one piece, byte by byte and cut in two at
every place; all must agree. llhttp, through httptools, is the referee for what both understand.
"""

from __future__ import annotations

import gc
from typing import Any

import httptools
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from coro.errors import HTTPInputError
from coro.http.codec import (
    MAX_HEADER_BYTES,
    MAX_HEADERS,
    MAX_INTERIM_RESPONSES,
    ResponseDecoder,
    ResponseHead,
    Truncation,
    encode_chunk,
    encode_fields,
    encode_last_chunk,
    encode_request,
    request_block,
)
from coro.http.framing import ChunkedDecoder, Section
from coro.http.headers import canonical_name
from tests.http.readings import REFUSED, split
from tests.http.readings import read_response as outcome

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
SIMPLE = OK + b"Content-Length: 5\r\n\r\nhello"


def outcomes(data: bytes, method: str = "GET", **limits: int) -> Any:
    """Feed the same bytes cut in every way of a kind; return the outcome, which is always one."""
    whole = outcome([data], method, **limits)
    assert outcome(split(data, *range(1, len(data))), method, **limits) == whole
    for cut in range(1, len(data), max(1, len(data) // 200)):
        assert outcome(split(data, cut), method, **limits) == whole
    return whole


# --- responses that are well formed --------------------------------------------------------


class TestResponse:
    def test_length(self):
        got = outcomes(SIMPLE)
        assert got["status"] == ("1.1", 200, "OK")
        assert got["headers"] == [("Content-Length", "5")]
        assert got["body"] == b"hello"
        assert got["complete"]
        assert got["reusable"]
        assert got["surplus"] == b""

    def test_tail_is_surplus(self):
        for tail in (b"x", b"\r\n", SIMPLE, b"\0\xff"):
            got = outcomes(SIMPLE + tail)
            assert got["body"] == b"hello"
            assert got["complete"]
            assert got["surplus"] == tail
            assert not got["reusable"]

    @pytest.mark.parametrize(
        "line", [b"Content-Length: 0", b"content-length:0 \t", b"cOntent-lengtH: 00"]
    )
    def test_length_zero(self, line):
        got = outcomes(OK + line + b"\r\n\r\n")
        assert got["complete"]
        assert got["reusable"]
        assert got["body"] == b""

    def test_chunks(self):
        got = outcomes(CHUNKED + b"5\r\nhello\r\n00A\r\n, world...\r\n0\r\n\r\n")
        assert got["body"] == b"hello, world..."
        assert got["complete"]
        assert got["reusable"]
        assert got["trailers"] == []

    def test_chunks_with_tail(self):
        for tail in (b"\r\n", b"x", b"0\r\n\r\n", SIMPLE):
            got = outcomes(CHUNKED + b"1\r\nx\r\n0\r\n\r\n" + tail)
            assert (got["body"], got["surplus"], got["reusable"]) == (b"x", tail, False)

    @pytest.mark.parametrize(
        "extension",
        [
            b";a",
            b";a=b",
            b" ; a = b",
            b';a="x;\\"y"',
            b";a=b;c;d=e",
            b';\ta="\xff"',
            b";a=" + b"b" * 900,
        ],
    )
    def test_chunk_extensions_are_ignored(self, extension):
        got = outcomes(CHUNKED + b"1%b\r\nx\r\n0%b\r\n\r\n" % (extension, extension))
        assert got["body"] == b"x"
        assert got["complete"]

    def test_trailers_are_kept_apart(self):
        data = CHUNKED + b"1\r\nx\r\n0\r\nX-Sum: 1\r\nx-sum:2 \r\nE:\r\n\r\n"
        got = outcomes(data)
        assert got["trailers"] == [("X-Sum", "1"), ("X-Sum", "2"), ("E", "")]
        assert got["headers"] == [("Transfer-Encoding", "chunked")]
        assert got["reusable"]
        assert outcomes(data + b"tail")["surplus"] == b"tail"

    def test_close_delimited(self):
        got = outcomes(OK + b"\r\nhello\r\n\r\nHTTP/1.1")
        assert got["body"] == b"hello\r\n\r\nHTTP/1.1"
        assert not got["complete"]  # Before the end came ...
        assert got["missing"] is None  # ... which completes it.
        assert not got["reusable"]

    @pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified", b"304 "])
    @pytest.mark.parametrize(
        "fields", [b"", b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n"]
    )
    def test_statuses_without_body(self, status, fields):
        head = b"HTTP/1.1 " + status + b"\r\n" + fields + b"\r\n"
        got = outcomes(head)
        assert got["complete"]
        assert got["body"] == b""
        assert got["reusable"]
        assert outcomes(head + b"hello")["surplus"] == b"hello"

    @pytest.mark.parametrize(
        "fields", [b"", b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n"]
    )
    def test_head_has_no_body(self, fields):
        got = outcomes(OK + fields + b"\r\n", "HEAD")
        assert got["complete"]
        assert got["reusable"]
        got = outcomes(OK + fields + b"\r\nhello", "HEAD")
        assert (got["body"], got["surplus"], got["reusable"]) == (b"", b"hello", False)

    def test_reason_may_be_missing_or_odd(self):
        for line, reason in (
            (b"200", ""),
            (b"200 ", ""),
            (b"200 Gr\xfc\xdf dich\t!", "Gr\xfc\xdf dich\t!"),
        ):
            data = b"HTTP/1.1 " + line + b"\r\nContent-Length: 0\r\n\r\n"
            assert outcomes(data)["status"] == ("1.1", 200, reason)

    @pytest.mark.parametrize("status", [200, 205, 299, 400, 599, 999])
    def test_other_statuses_have_a_body(self, status):
        got = outcomes(b"HTTP/1.1 %d X\r\nContent-Length: 2\r\n\r\nhi" % status)
        assert got["body"] == b"hi"

    @pytest.mark.parametrize(
        ("version", "connection", "reusable"),
        [
            (b"1.1", b"", True),
            (b"1.1", b"Connection: keep-alive\r\n", True),
            (b"1.1", b"Connection: Keep-Alive \r\n", True),
            (b"1.1", b"Connection: close\r\n", False),
            (b"1.1", b"connection: x, CLOSE\t,y\r\n", False),
            (b"1.1", b"Connection: x\r\nConnection: close\r\n", False),
            (b"1.1", b"Connection: closet, x-close\r\n", True),
            (b"1.1", b"Connection:\r\n", True),
            (b"1.1", b"Proxy-Connection: close\r\nX: close\r\n", True),
            (b"1.0", b"", False),
            (b"1.0", b"Connection: keep-alive\r\n", False),
        ],
    )
    def test_keep_alive(self, version, connection, reusable):
        data = b"HTTP/" + version + b" 200 OK\r\n" + connection + b"Content-Length: 1\r\n\r\nx"
        got = outcomes(data)
        assert got["complete"]
        assert got["reusable"] is reusable

    def test_one_response_after_the_other(self):
        decoder = ResponseDecoder()
        chunked = CHUNKED + b"1\r\nx\r\n0\r\nT: 1\r\n\r\n"
        for data, method, body in (
            (SIMPLE, "GET", b"hello"),
            (chunked, "GET", b"x"),
            (SIMPLE[:-5], "HEAD", b""),
            (SIMPLE, "POST", b"hello"),
        ):
            for pieces in ([data], split(data, *range(1, len(data)))):
                decoder.begin(method)
                assert decoder.head is None
                assert not decoder.reusable
                assert [decoder.feed(piece) for piece in pieces][-1] is True
                assert decoder.body == body
                assert len(decoder.trailers) == (data is chunked)
                assert decoder.reusable
                assert decoder.eof() is None

    def test_begin_only_at_the_end_of_a_response(self):
        decoder = ResponseDecoder()
        decoder.begin()
        with pytest.raises(RuntimeError):
            decoder.begin()
        decoder.feed(SIMPLE + b"x")
        with pytest.raises(RuntimeError):
            decoder.begin()
        unasked = ResponseDecoder()
        assert unasked.feed(SIMPLE)
        assert unasked.surplus == SIMPLE
        with pytest.raises(RuntimeError):
            unasked.begin()

    def test_empty_pieces_change_nothing(self):
        pieces = [b""]
        for piece in split(CHUNKED + b"1\r\nx\r\n0\r\n\r\n", 3, 20, 50):
            pieces += [piece, b""]
        assert outcome(pieces)["body"] == b"x"
        assert outcome([b""])["missing"] == Truncation("nothing", 0, None)

    def test_forget(self):
        decoder = ResponseDecoder()
        decoder.begin()
        decoder.feed(SIMPLE)
        decoder.forget()
        assert (decoder.head, decoder.body, decoder.reusable) == (None, b"", True)
        decoder.begin()

    def test_repr(self):
        decoder = ResponseDecoder()
        decoder.begin()
        assert repr(decoder) == "<ResponseDecoder read head, 0 bytes received>"
        decoder.feed(SIMPLE)
        assert repr(decoder) == f"<ResponseDecoder after end, {len(SIMPLE)} bytes received>"
        assert repr(decoder.head) == f"<ResponseHead 200 OK, {len(SIMPLE) - 5} bytes>"


class TestHead:
    def head(self, fields: bytes) -> ResponseHead:
        decoder = ResponseDecoder()
        decoder.begin("HEAD")
        assert decoder.feed(OK + fields + b"\r\n")
        assert decoder.head is not None
        return decoder.head

    def test_fields_of_interest(self):
        head = self.head(b"Set-Cookie: a\r\nCONTENT-ENCODING: gzip \r\nContent-Length: 7\r\n")
        assert head.has_cookies
        assert head.content_encoding == "gzip"
        assert head.content_length == 7
        assert not head.chunked
        assert head.keep_alive
        head = self.head(b"Content-Encoding: a\r\nContent-Encoding:b\r\nX: Set-Cookie: x\r\n")
        assert head.content_encoding == "a, b"
        assert not head.has_cookies
        assert head.content_length is None

    def test_names_that_only_resemble_them(self):
        head = self.head(b"X-Content-Length: 1\r\nContent-Lengthy: 2\r\nContent-Encodin: x\r\n")
        assert head.content_length is head.content_encoding is None
        assert len(head.headers) == 3

    def test_headers_belong_to_who_asks(self) -> None:
        head = ResponseHead(b"HTTP/1.1 200 OK\r\nA: 1\r\nA: 2\r\nB:\r\n\r\n")
        mine = head.headers
        mine["A"] = "changed"
        assert head.headers.get_list("A") == ["1", "2"]


class TestCallbacks:
    def test_an_error_of_a_callable_passes(self):
        decoder = ResponseDecoder()

        def on_interim(head):
            raise ZeroDivisionError

        decoder.begin(on_interim=on_interim)
        with pytest.raises(ZeroDivisionError):
            decoder.feed(b"HTTP/1.1 100 Continue\r\n\r\n")
        assert not decoder.reusable
        with pytest.raises(HTTPInputError):
            decoder.feed(b"x")

    def test_callables_are_let_go(self):
        class Listener:
            def __call__(self, head):
                pass

        gc.collect()
        decoder = ResponseDecoder()
        listener = Listener()
        decoder.begin(on_interim=listener)
        decoder.feed(SIMPLE)
        assert not [r for r in gc.get_referrers(listener) if isinstance(r, ResponseDecoder)]


class TestInterim:
    @pytest.mark.parametrize(
        "fields", [b"", b"Content-Length: 5\r\n", b"Link: x\r\n", b"Connection: close\r\n"]
    )
    def test_interim_responses_come_before(self, fields):
        got = outcomes(
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\n" + fields + b"\r\n" + SIMPLE
        )
        assert got["interim"] == [100, 103]
        assert got["status"] == ("1.1", 200, "OK")
        assert got["body"] == b"hello"
        assert got["reusable"]

    def test_limit(self):
        one = b"HTTP/1.1 102 Wait\r\n\r\n"
        got = outcomes(one * MAX_INTERIM_RESPONSES + SIMPLE)
        assert len(got["interim"]) == MAX_INTERIM_RESPONSES
        assert got["body"] == b"hello"
        assert outcomes(one * (MAX_INTERIM_RESPONSES + 1) + SIMPLE) == REFUSED

    def test_end_after_an_interim_response(self):
        got = outcomes(b"HTTP/1.1 100 Continue\r\n\r\n")
        assert got["missing"] == Truncation("head", 0, None)

    def test_switching_protocols(self):
        head = b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
        for tail in (b"", b"\x81\x05hello", b"\r\n"):
            got = outcomes(head + tail)
            assert got["status"] == ("1.1", 101, "Switching")
            assert (got["body"], got["surplus"]) == (b"", tail)
            assert got["complete"]
            assert got["upgraded"]
            assert not got["reusable"]

    def test_switching_to_nothing(self):
        assert outcomes(b"HTTP/1.1 101 Switching\r\n\r\nx") == REFUSED
        with pytest.raises(HTTPInputError, match="Upgrade field"):
            decoder = ResponseDecoder()
            decoder.begin()
            decoder.feed(b"HTTP/1.1 101 Switching\r\n\r\n")

    @pytest.mark.parametrize(
        "fields", [b"", b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n"]
    )
    def test_connect(self, fields):
        got = outcomes(OK + fields + b"\r\n\x16\x03", "CONNECT")
        assert (got["body"], got["surplus"], got["upgraded"]) == (b"", b"\x16\x03", True)
        assert not got["reusable"]
        got = outcomes(b"HTTP/1.1 407 Auth\r\nContent-Length: 2\r\n\r\nno", "CONNECT")
        assert (got["body"], got["upgraded"], got["reusable"]) == (b"no", False, True)


class TestTruncation:
    @pytest.mark.parametrize(
        ("data", "missing"),
        [
            (b"", Truncation("nothing", 0, None)),
            (b"H", Truncation("head", 0, None)),
            (OK + b"Content-Length: 5\r\n\r", Truncation("head", 0, None)),
            (OK + b"Content-Length: 5\r\n\r\n", Truncation("body", 0, 5)),
            (SIMPLE[:-1], Truncation("body", 4, 5)),
            (CHUNKED, Truncation("body", 0, None)),
            (CHUNKED + b"5", Truncation("body", 0, None)),
            (CHUNKED + b"5\r\nhel", Truncation("body", 3, None)),
            (CHUNKED + b"5\r\nhello", Truncation("body", 5, None)),
            (CHUNKED + b"5\r\nhello\r\n", Truncation("body", 5, None)),
            (CHUNKED + b"5\r\nhello\r\n0\r", Truncation("body", 5, None)),
            (CHUNKED + b"5\r\nhello\r\n0\r\n", Truncation("trailers", 5, None)),
            (CHUNKED + b"5\r\nhello\r\n0\r\n\r", Truncation("trailers", 5, None)),
            (CHUNKED + b"5\r\nhello\r\n0\r\nA: 1\r\n", Truncation("trailers", 5, None)),
        ],
    )
    def test_what_is_missing(self, data, missing):
        got = outcomes(data)
        assert got["missing"] == missing
        assert got["body_bytes"] == len(got["body"]) == missing.received
        assert not got["complete"]
        assert not got["reusable"]

    def test_texts(self):
        assert str(Truncation("nothing", 0, None)).endswith("before the response began")
        assert str(Truncation("head", 0, None)).endswith("in the head of the response")
        assert str(Truncation("body", 4, 5)).endswith("body of the response, after 4 of 5 bytes")
        assert str(Truncation("body", 4, None)).endswith("after 4 bytes")


# --- limits --------------------------------------------------------------------------------


class TestLimits:
    def test_head_bytes(self):
        start, end = OK + b"Content-Length: 0\r\nX: ", b"\r\n\r\n"
        fits = start + b"x" * (MAX_HEADER_BYTES - len(start) - len(end)) + end
        beyond = start + b"x" * (MAX_HEADER_BYTES - len(start) - len(end) + 1) + end
        for cuts in ((), (1,), (40_000,), tuple(range(0, MAX_HEADER_BYTES, 100))):
            assert outcome(split(fits, *cuts))["complete"]
            assert outcome(split(beyond, *cuts)) == REFUSED

    def test_head_bytes_of_choice(self):
        size = len(SIMPLE) - 5
        assert outcomes(SIMPLE, max_header_bytes=size)["body"] == b"hello"
        assert outcomes(SIMPLE, max_header_bytes=size - 1) == REFUSED

    def test_head_without_end(self):
        assert outcome([OK + b"X: " + b"x" * MAX_HEADER_BYTES]) == REFUSED

    def test_error_names_limit_and_size(self):
        decoder = ResponseDecoder(max_header_bytes=20)
        decoder.begin()
        with pytest.raises(HTTPInputError, match=r"response head of 38 bytes .* limit is 20 bytes"):
            decoder.feed(SIMPLE)

    @pytest.mark.parametrize("field", [b"a:\r\n", b"some-name: some value\r\n"])
    def test_header_count(self, field):
        fits = OK + field * (MAX_HEADERS - 1) + b"Content-Length: 0\r\n\r\n"
        beyond = OK + field * MAX_HEADERS + b"Content-Length: 0\r\n\r\n"
        for cuts in ((), (100,), range(0, len(fits), 50)):
            assert outcome(split(fits, *cuts))["complete"]
            assert outcome(split(beyond, *cuts)) == REFUSED

    def test_trailers(self):
        def body(block):
            return CHUNKED + b"0\r\n" + block + b"\r\n"

        fits, beyond = b"A: " + b"x" * 93 + b"\r\n", b"A: " + b"x" * 94 + b"\r\n"
        assert len(outcomes(body(fits), max_header_bytes=100)["trailers"]) == 1
        assert outcomes(body(beyond), max_header_bytes=100) == REFUSED
        assert outcomes(body(b"a:\r\n" * 3), max_headers=3)["complete"]
        assert outcomes(body(b"a:\r\n" * 4), max_headers=3) == REFUSED

    def test_line_of_a_chunk(self):
        # The limit of 1024 counts the CRLF before the line and the one that ends it.
        fits = b"1;" + b"a" * (1024 - 4 - 2)
        for line, complete in ((fits, True), (fits + b"a", False)):
            data = CHUNKED + line + b"\r\nx\r\n0\r\n\r\n"
            assert (outcomes(data) != REFUSED) is complete

    @pytest.mark.parametrize(
        ("size", "fine"),
        [
            (b"f" * 15, True),
            (b"1" + b"0" * 15, False),
            (b"0" * 14 + b"1", True),
            (b"0" * 16, False),
        ],
    )
    def test_size_of_a_chunk(self, size, fine):
        assert (outcomes(CHUNKED + size + b"\r\nx") != REFUSED) is fine

    @pytest.mark.parametrize(
        ("length", "fine"),
        [
            (b"9" * 18, True),
            (b"1" + b"0" * 19, False),
            (b"0" * 18 + b"5", True),
            (b"0" * 5000 + b"5", False),
        ],
    )
    def test_size_of_a_length(self, length, fine):
        got = outcome([OK + b"Content-Length: " + length + b"\r\n\r\nhello"])
        assert (got != REFUSED) is fine

    def test_byte_by_byte_is_linear(self):
        class Counting(bytearray):
            scanned = 0

            def find(self, wanted, start=0):  # type: ignore[override]
                self.scanned += len(self) - start
                return super().find(wanted, start)

        section = Section("head", 100_000)
        section.seen = Counting()
        for _ in range(50_000):
            assert section.feed(b"x") is None
        assert section.seen.scanned <= 4 * 50_000

    def test_flood_of_tiny_chunks_makes_few_objects(self):
        decoder = ResponseDecoder()
        decoder.begin()
        decoder.feed(CHUNKED)
        decoder.feed(b"2\r\nxy\r\n" * 10_000)
        assert decoder.take_pieces() == [b"xy" * 10_000]


# --- hostile responses ---------------------------------------------------------------------

BAD_START = [
    b"HTTP/2.0 200 OK\r\n\r\n",
    b"HTTP/0.9 200 OK\r\n\r\n",
    b"HTTP/1.2 200 OK\r\n\r\n",
    b"HTTP/11 200 OK\r\n\r\n",
    b"http/1.1 200 OK\r\n\r\n",
    b"RTSP/1.0 200 OK\r\n\r\n",
    b"ICE/1.0 200 OK\r\n\r\n",
    b"ICY 200 OK\r\n\r\n",
    b"HTTP/1.1 099 OK\r\n\r\n",
    b"HTTP/1.1 99 OK\r\n\r\n",
    b"HTTP/1.1 1000 OK\r\n\r\n",
    b"HTTP/1.1 2e2 OK\r\n\r\n",
    b"HTTP/1.1 +20 OK\r\n\r\n",
    b"HTTP/1.1  200 OK\r\n\r\n",
    b"HTTP/1.1\t200 OK\r\n\r\n",
    b"HTTP/1.1 200OK\r\n\r\n",
    b"HTTP/1.1 200\tOK\r\n\r\n",
    b"HTTP/1.1 \r\n\r\n",
    b"HTTP/1.1 200 O\0K\r\n\r\n",
    b"HTTP/1.1 200 O\x01K\r\n\r\n",
    b"HTTP/1.1 200 O\x7fK\r\n\r\n",
    b"HTTP/1.1 200 O\rK\r\n\r\n",
    b"HTTP/1.1 200 OK\nA: b\r\n\r\n",
    b"HTTP/1.1 200\nA: b\r\n\r\n",
    b"\r\n" + SIMPLE,
    b"\r\n\r\n" + SIMPLE,
    b" " + SIMPLE,
    b"\xef\xbb\xbf" + SIMPLE,
    b"\0" + SIMPLE,
    b"220 mail.example.com ESMTP\r\n",
    b"SSH-2.0-OpenSSH_9.6\r\n",
    b"\x15\x03\x01\0\x02\x02",
    b"<html>",
]

BAD_FIELDS = [
    b"A: b\nC: d\r\n",
    b"A: b\rC: d\r\n",
    b"A: b\r\n c\r\n",
    b"A: b\r\n\tc\r\n",
    b"A:\r\n b\r\n",
    b" A: b\r\n",
    b"A : b\r\n",
    b"A\t: b\r\n",
    b": b\r\n",
    b"A\r\n",
    b"A b: c\r\n",
    b"A: b\0c\r\n",
    b"A: b\x01c\r\n",
    b"A: b\x7fc\r\n",
    b"A\0: b\r\n",
    b"\xc3\xa4: b\r\n",
    b"A(: b\r\n",
    b"Content-Length: 5\r\nContent-Length: 5\r\n",
    b"Content-Length: 5\r\ncontent-length: 6\r\n",
    b"Content-Length: 5, 5\r\n",
    b"Content-Length: +5\r\n",
    b"Content-Length: -5\r\n",
    b"Content-Length: 0x5\r\n",
    b"Content-Length: 5 5\r\n",
    b"Content-Length: 5_0\r\n",
    b"Content-Length: 5.0\r\n",
    b"Content-Length: \xb2\r\n",
    b"Content-Length: \r\n",
    b"Content-Length:\r\nA: 5\r\n",
    b"Content-Length: 18446744073709551616\r\n",
    b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: gzip\r\n",
    b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: gzip, chunked\r\n",
    b"Transfer-Encoding: chunked, gzip\r\n",
    b"Transfer-Encoding: chunked, chunked\r\n",
    b"Transfer-Encoding: chunked,\r\n",
    b"Transfer-Encoding: gzip\r\n",
    b"Transfer-Encoding: identity\r\n",
    b"Transfer-Encoding: xchunked\r\n",
    b"Transfer-Encoding: chunked;x=1\r\n",
    b"Transfer-Encoding: \x0bchunked\r\n",
    b"Transfer-Encoding: chun\xc2\xa0ked\r\n",
    b'Transfer-Encoding: "chunked"\r\n',
    b"Transfer-Encoding:\r\n",
]

BAD_CHUNKS = [
    b"5 \r\nhello\r\n0\r\n\r\n",
    b" 5\r\nhello\r\n0\r\n\r\n",
    b"\t5\r\nhello\r\n0\r\n\r\n",
    b"+5\r\nhello\r\n0\r\n\r\n",
    b"-5\r\nhello\r\n0\r\n\r\n",
    b"0x5\r\nhello\r\n0\r\n\r\n",
    b"5_0\r\nhello\r\n",
    b"g\r\n",
    b"\xb2\r\nhi\r\n",
    b"\r\nhello\r\n0\r\n\r\n",
    b";a\r\nhello",
    b"5\nhello\r\n0\r\n\r\n",
    b"5\rhello\r\n0\r\n\r\n",
    b"5\r\r\nhello\r\n0\r\n\r\n",
    b"5\r\nhello\n0\r\n\r\n",
    b"5\r\nhello\r0\r\n\r\n",
    b"5\r\nhello0\r\n\r\n",
    b"5\r\nhello!\r\n0\r\n\r\n",
    b"5\r\nhello\r\n\r\n0\r\n\r\n",
    b"5;\r\nhello\r\n0\r\n\r\n",
    b"5;;a\r\nhello\r\n0\r\n\r\n",
    b"5;a=\r\nhello\r\n0\r\n\r\n",
    b"5;a b\r\nhello\r\n0\r\n\r\n",
    b'5;a="b\r\nhello\r\n0\r\n\r\n',
    b"5;a=\0\r\nhello\r\n0\r\n\r\n",
    b"5;a\nb\r\nhello\r\n0\r\n\r\n",
    b"5;a\rb\r\nhello\r\n0\r\n\r\n",
    b"5,a\r\nhello\r\n0\r\n\r\n",
    b"FFFFFFFFFFFFFFFFF\r\n",
    b"0\r\nA\r\n\r\n",
    b"0\r\nA : b\r\n\r\n",
    b"0\r\nA: b\nC: d\r\n\r\n",
    b"0\r\nA: b\r\n c\r\n\r\n",
    b"0\r\nA: b\0\r\n\r\n",
    b"0\r\n: b\r\n\r\n",
    b"0\r\nContent-Length: 5\r\n\r\nhello",
    b"0\r\ntransfer-encoding: chunked\r\n\r\n",
    b"0\r\nA: 1\r\nHOST: x\r\n\r\n",
    b"0\r\nTrailer: x\r\n\r\n",
]


class TestHostile:
    @pytest.mark.parametrize("data", BAD_START)
    def test_start(self, data):
        assert outcomes(data) == REFUSED

    @pytest.mark.parametrize("fields", BAD_FIELDS)
    @pytest.mark.parametrize("method", ["GET", "HEAD", "CONNECT"])
    def test_fields(self, fields, method):
        assert outcomes(OK + fields + b"\r\n0\r\n\r\n", method) == REFUSED
        assert outcomes(OK + b"X: y\r\n" + fields + b"Z: z\r\n\r\n", method) == REFUSED

    @pytest.mark.parametrize("body", BAD_CHUNKS)
    def test_chunks(self, body):
        assert outcomes(CHUNKED + body) == REFUSED
        assert outcomes(CHUNKED + b"1\r\nx\r\n" + body) == REFUSED

    def test_transfer_encoding_in_old_version(self):
        data = b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        assert outcomes(data) == REFUSED

    @pytest.mark.parametrize(
        "start", [b"SSH", b"\r", b"HTTP/1.2", b"HTTP/1.1 2 ", b"HTTP/1.1 200 OK\n"]
    )
    def test_refused_as_soon_as_it_can_be_told(self, start):
        decoder = ResponseDecoder()
        decoder.begin()
        with pytest.raises(HTTPInputError):
            decoder.feed(start)

    def test_header_injected_by_surplus_is_no_response(self):
        got = outcomes(SIMPLE + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
        assert got["body"] == b"hello"
        assert not got["reusable"]


# --- whatever comes ------------------------------------------------------------------------

FRAGMENTS = st.sampled_from(
    [
        OK,
        CHUNKED,
        SIMPLE,
        b"HTTP/1.0 200 OK\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 101 S\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\n",
        b"Content-Length: 5\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Connection: close\r\n",
        b"A: b\r\n",
        b"\r\n",
        b"\r\n\r\n",
        b"5\r\nhello\r\n",
        b"1;a=b\r\nx\r\n",
        b"0\r\n",
        b"hello",
        b"\n",
        b"\r",
        b" ",
        b":",
        b"\0",
    ]
)
STREAMS = st.lists(FRAGMENTS | st.binary(max_size=3), max_size=8).map(b"".join)
METHODS = st.sampled_from(["GET", "HEAD", "CONNECT"])


@settings(max_examples=600)
@given(data=STREAMS, method=METHODS, cuts=st.lists(st.integers(0, 400)))
@example(data=CHUNKED + b"0\r\n\r\n", method="GET", cuts=[46, 47, 48, 49, 50])
def test_cutting_never_changes_the_outcome(data, method, cuts):
    whole = outcome([data], method)
    assert outcome(split(data, *(c for c in cuts if c <= len(data))), method) == whole
    assert outcome(split(data, *range(1, len(data))), method) == whole


@settings(max_examples=300)
@given(fields=st.lists(FRAGMENTS | st.binary(max_size=4), max_size=6).map(b"".join))
@example(fields=b"A:\r\nB: \r\nC:\t d \r\n")
def test_llhttp_sees_the_same_fields(fields):
    """What HTTPHeaders makes of a head is what llhttp's own callbacks tell about it."""
    data = OK + fields + b"\r\n\r\n"
    decoder = ResponseDecoder()
    decoder.begin("HEAD")
    try:
        decoder.feed(data)
    except HTTPInputError:
        return
    if decoder.head is None:
        return
    seen = Referee(decoder.head.raw)
    assert seen.headers_complete
    ours = decoder.head.headers
    assert sorted(ours.get_all()) == sorted(
        (canonical_name(name.decode()), value.decode("latin-1").strip(" \t"))
        for name, value in seen.fields
    )


@settings(max_examples=300)
@given(
    body=st.lists(
        st.sampled_from(
            [b"5\r\nhello\r\n", b"1;a=b\r\nx\r\n", b"0\r\n", b"\r\n", b"A: b\r\n", b"2\r\n", b"hi"]
        )
        | st.binary(max_size=2),
        max_size=7,
    ).map(b"".join)
)
@example(body=b"5\r\nhello\r\n0\r\nA: b\r\n\r\n")
def test_llhttp_sees_the_same_chunks(body):
    """A chunked body that is complete here is complete for llhttp, and is the same."""
    decoder = ChunkedDecoder()
    try:
        ours = decoder.feed(body)
    except HTTPInputError:
        return
    if decoder.done:
        seen = Referee(CHUNKED + body[: len(body) - len(decoder.surplus)])
        assert seen.message_complete
        assert b"".join(seen.body) == ours


class Referee:
    """What llhttp tells about a response, by way of callbacks."""

    def __init__(self, data: bytes) -> None:
        self.fields: list[tuple[bytes, bytes]] = []
        self.body: list[bytes] = []
        self.headers_complete = self.message_complete = False
        self.on_body = self.body.append
        httptools.HttpResponseParser(self).feed_data(data)

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.headers_complete:
            self.fields.append((name, value))

    def on_headers_complete(self) -> None:
        self.headers_complete = True

    def on_message_complete(self) -> None:
        self.message_complete = True


# --- requests ------------------------------------------------------------------------------

BLOCK = request_block("example.com", "coro", "gzip")


class TestEncodeRequest:
    def test_get(self):
        assert encode_request("GET", "/a?b=c", BLOCK) == (
            b"GET /a?b=c HTTP/1.1\r\n"
            b"Host: example.com\r\nUser-Agent: coro\r\nAccept-Encoding: gzip\r\n\r\n"
        )

    def test_further_fields(self):
        block = request_block("h:1", None, None)
        head = encode_request(
            "POST", "/", block, [("a-B", "1"), ("c", "caf\xe9\tx"), ("d", "")], content_length=0
        )
        assert head == (
            b"POST / HTTP/1.1\r\nHost: h:1\r\n"
            b"a-B: 1\r\nc: caf\xe9\tx\r\nd: \r\nContent-Length: 0\r\n\r\n"
        )
        head = encode_request("POST", "/", block, chunked=True)
        assert head == b"POST / HTTP/1.1\r\nHost: h:1\r\nTransfer-Encoding: chunked\r\n\r\n"

    @pytest.mark.parametrize("target", ["*", "host:443", "http://h/x", "/%E2%82%AC?#[]|^"])
    def test_targets(self, target):
        assert encode_request("M", target, BLOCK).startswith(f"M {target} HTTP/1.1\r\n".encode())

    @pytest.mark.parametrize(
        "target",
        [
            "",
            "/a b",
            "/a\tb",
            "/a\r\nX: y",
            "/a\nb",
            "/\0",
            "/\x7f",
            "/ä",
            "/\u010a",
            "/\u0120",
            "/日本",
        ],
    )
    def test_bad_targets(self, target):
        with pytest.raises(ValueError, match="target"):
            encode_request("GET", target, BLOCK)

    @pytest.mark.parametrize(
        "method", ["", "GET ", "G T", "GET\r\n", "GÉT", "GET\u010a", "G:T", "\0"]
    )
    def test_bad_methods(self, method):
        with pytest.raises(ValueError, match="method"):
            encode_request(method, "/", BLOCK)

    @pytest.mark.parametrize(
        "host",
        ["a b", "a\r\nX: y", "a/b", "a\0", "ä", "a\u010ab", "user@host", "a?b", "a#b", 'a"b'],
    )
    def test_bad_hosts(self, host):
        with pytest.raises(ValueError, match="Host"):
            request_block(host, None, None)

    @pytest.mark.parametrize(
        "host", ["", "h", "h:80", "[::1]:80", "[fe80::1%25eth0]", "xn--bcher-kva.de"]
    )
    def test_good_hosts(self, host):
        assert request_block(host, None, None) == f"Host: {host}\r\n".encode()

    @pytest.mark.parametrize(
        "bad", ["a\r\nX: y", "a\rb", "a\nb", "a\0b", "a\x01b", "\u010a", "\u0120", "日"]
    )
    def test_bad_characters(self, bad):
        for attempt in (
            lambda: encode_request("GET", "/", BLOCK, [("X", bad)]),
            lambda: encode_request("GET", "/", BLOCK, [(bad, "x")]),
            lambda: encode_fields([("X", bad)]),
            lambda: encode_last_chunk([("X", bad)]),
            lambda: request_block("h", bad, None),
            lambda: request_block("h", None, bad),
        ):
            with pytest.raises(ValueError, match="invalid"):
                attempt()

    @pytest.mark.parametrize("name", ["Host", "content-length", "TRANSFER-ENCODING"])
    def test_fields_that_are_the_encoders_own(self, name):
        with pytest.raises(ValueError, match="encoder"):
            encode_request("GET", "/", BLOCK, [(name, "5")])

    def test_contradictory_framing(self):
        with pytest.raises(ValueError, match="either"):
            encode_request("POST", "/", BLOCK, content_length=5, chunked=True)
        with pytest.raises(ValueError, match="negative"):
            encode_request("POST", "/", BLOCK, content_length=-1)

    @given(
        method=st.text(max_size=5),
        target=st.text(max_size=8),
        name=st.text(max_size=5),
        value=st.text(max_size=8),
    )
    def test_a_request_is_one_request(self, method, target, name, value):
        """Whatever is accepted is one request, with the fields that were given and no more."""
        try:
            head = encode_request(method, target, b"Host: h\r\n", [(name, value)])
        except ValueError:
            return
        assert head.count(b"\r\n") == 4
        lines = head.split(b"\r\n")
        assert lines[0] == f"{method} {target} HTTP/1.1".encode("latin-1")
        assert lines[2] == f"{name}: {value}".encode("latin-1")
        assert b"\n" not in head.replace(b"\r\n", b"")


class TestEncodeChunks:
    @pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
    def test_chunk(self, kind):
        assert encode_chunk(kind(b"x" * 26)) == b"1a\r\n" + b"x" * 26 + b"\r\n"
        assert encode_chunk(kind(b"")) == b""

    def test_memoryview_of_larger_items(self):
        assert encode_chunk(memoryview(bytes(8)).cast("Q")) == b"8\r\n" + bytes(8) + b"\r\n"

    def test_last_chunk(self):
        assert encode_last_chunk() == b"0\r\n\r\n"
        assert encode_last_chunk([("T", "1")]) == b"0\r\nT: 1\r\n\r\n"
        for name in ("Content-Length", "transfer-encoding", "HOST", "trailer"):
            with pytest.raises(ValueError, match="trailers"):
                encode_last_chunk([(name, "1")])

    @given(st.lists(st.binary(max_size=20), max_size=5), st.lists(st.integers(0, 100)))
    def test_decoder_undoes_it(self, pieces, cuts):
        data = b"".join([*map(encode_chunk, pieces), encode_last_chunk([("T", "1")])])
        decoder = ChunkedDecoder()
        got = [decoder.feed(piece) for piece in split(data, *(c for c in cuts if c <= len(data)))]
        assert b"".join(got) == b"".join(pieces)
        assert decoder.done
        assert decoder.trailers == b"T: 1\r\n"
        assert decoder.surplus == b""


class TestRepeatedHead:
    """A head that equals the one before it on the connection is not read again."""

    ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"

    def test_same_head_other_body(self) -> None:
        decoder = ResponseDecoder()
        for body in (b"ab", b"cd"):
            decoder.begin("GET")
            assert decoder.feed(self.ANSWER + body)
            assert decoder.body == body
            assert decoder.reusable

    def test_same_head_other_method(self) -> None:
        decoder = ResponseDecoder()
        decoder.begin("GET")
        assert decoder.feed(self.ANSWER + b"ab")
        decoder.begin("HEAD")
        assert decoder.feed(self.ANSWER)
        assert decoder.body == b""
        assert decoder.reusable

    def test_interim_heads_are_counted_anew(self) -> None:
        decoder = ResponseDecoder()
        for _ in range(3):
            decoder.begin("GET")
            interim = b"HTTP/1.1 103 Early Hints\r\n\r\n" * 16
            assert decoder.feed(interim + self.ANSWER + b"ab")

    def test_pieces_are_given_once(self) -> None:
        decoder = ResponseDecoder()
        decoder.begin("GET")
        decoder.feed(self.ANSWER + b"a")
        assert decoder.take_pieces() == [b"a"]
        assert decoder.take_pieces() == []
        decoder.feed(b"b")
        assert decoder.take_pieces() == [b"b"]


# --- anything in any pieces ------------------------------------------------------------------

# Words of the protocol, so that chance comes farther than to the first byte.
WORDS = [
    *(b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.0 204 \r\n", b"\r\n"),
    *(b"Content-Length: 5\r\n", b"Content-Length: 5, 5\r\n", b"Transfer-Encoding: chunked\r\n"),
    *(b"Connection: close\r\n", b"5\r\nhello\r\n", b"0\r\n\r\n", b"ffffffffffffffff\r\n"),
    *(b"hello", b'5;x="y"\r\n', b" folded\r\n", b"A: b\r\n", b"\n", b"\r", b"\0", b"X:\xff\r\n"),
]


@given(
    st.lists(st.one_of(st.sampled_from(WORDS), st.binary(max_size=8)), max_size=12).map(b"".join),
    st.lists(st.integers(0, 400), max_size=8),
    st.sampled_from(["GET", "HEAD", "CONNECT"]),
)
@settings(max_examples=600, deadline=None)
def test_anything_in_any_pieces(data: bytes, cuts: list[int], method: str) -> None:
    """It is a response, or the beginning of one, or refused; how it is cut changes nothing."""
    whole = outcome([data], method)
    assert outcome(split(data, *(cut for cut in cuts if cut <= len(data))), method) == whole
    assert outcome(split(data, *range(1, len(data))), method) == whole
