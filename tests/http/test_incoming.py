"""Bytes to requests: whole, cut in two at every place, byte by byte, and hostile.

Every case goes through ``outcomes``, which demands that how the bytes were cut changes nothing.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

import httptools
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coro.errors import HTTPInputError
from coro.http import incoming
from coro.http.incoming import RefusalError, RequestDecoder, RequestHead
from tests.http.readings import read_requests as outcome

SIMPLE = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


def request(*fields: str, line: str = "POST /p HTTP/1.1", body: bytes = b"") -> bytes:
    lines = [line, "Host: a", *fields, "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


def outcomes(data: bytes, **limits: int) -> Any:
    """The outcome of data in one piece, having checked that any other cut gives the same."""
    whole = outcome([data], **limits)
    assert outcome([data[i : i + 1] for i in range(len(data))], **limits) == whole
    for cut in range(1, len(data), max(1, len(data) // 200)):
        assert outcome([data[:cut], data[cut:]], **limits) == whole
    return whole


class TestRequests:
    def test_one(self) -> None:
        assert outcomes(SIMPLE) == ([("GET", "/", b"", {})], "between")

    def test_several_in_a_row(self) -> None:
        sent = SIMPLE + request("Content-Length: 3", body=b"abc") + SIMPLE
        assert outcomes(sent) == (
            [("GET", "/", b"", {}), ("POST", "/p", b"abc", {}), ("GET", "/", b"", {})],
            "between",
        )

    def test_the_same_head_again_is_the_same_object(self) -> None:
        decoder = RequestDecoder()
        first = decoder.feed(SIMPLE)
        assert decoder.feed(SIMPLE) is first

    def test_chunks_and_trailers(self) -> None:
        body = b"3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nX-Sum: 5\r\n\r\n"
        sent = request("Transfer-Encoding: chunked", body=body) + SIMPLE
        assert outcomes(sent) == (
            [("POST", "/p", b"abcde", {"X-Sum": "5"}), ("GET", "/", b"", {})],
            "between",
        )

    def test_a_body_that_is_not_complete(self) -> None:
        assert outcomes(request("Content-Length: 5", body=b"abc")) == ([], "within")

    def test_a_head_that_is_not_complete(self) -> None:
        assert outcomes(SIMPLE[:-1]) == ([], "within")

    def test_a_few_empty_lines_before_a_request(self) -> None:
        assert outcomes(b"\r\n\r\n" + SIMPLE)[1] == "between"

    @pytest.mark.parametrize(
        ("sent", "keeps"),
        [
            (SIMPLE, True),
            (request("Connection: close"), False),
            (request("Connection: x, Close"), False),
            (request("Connection: x", "Connection: close"), False),
            (b"GET / HTTP/1.0\r\n\r\n", False),
            (b"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", True),
        ],
    )
    def test_keep_alive(self, sent: bytes, keeps: bool) -> None:
        head = RequestDecoder().feed(sent)
        assert head is not None
        assert head.keep_alive is keeps

    @pytest.mark.parametrize(
        ("line", "host", "path", "query"),
        [
            ("GET /a/b?c=d?e HTTP/1.1", "a", "/a/b", "c=d?e"),
            ("GET http://other:81/x?y HTTP/1.1", "other:81", "/x", "y"),
            ("GET http://other HTTP/1.1", "other", "/", ""),
            ("GET http://u:p@other/ HTTP/1.1", "other", "/", ""),
            ("GET //evil/x HTTP/1.1", "a", "//evil/x", ""),
            ("OPTIONS * HTTP/1.1", "a", "*", ""),
            ("CONNECT other:443 HTTP/1.1", "a", "other:443", ""),
        ],
    )
    def test_targets(self, line: str, host: str, path: str, query: str) -> None:
        head = RequestDecoder().feed(request(line=line))
        assert head is not None
        assert (head.host, head.path, head.query) == (host, path, query)

    def test_upgrade_needs_both_fields(self) -> None:
        for fields, upgrade in [
            (("Upgrade: websocket", "Connection: keep-alive, Upgrade"), "websocket"),
            (("Upgrade: websocket",), None),
            (("Connection: upgrade",), None),
        ]:
            head = RequestDecoder().feed(request(*fields, line="GET / HTTP/1.1"))
            assert head is not None
            assert head.upgrade == upgrade

    def test_what_follows_an_upgrade_is_kept(self) -> None:
        decoder = RequestDecoder()
        fields = ("Upgrade: x", "Connection: upgrade")
        assert decoder.feed(request(*fields, line="GET / HTTP/1.1") + b"\x00\xff") is not None
        assert decoder.rest == b"\x00\xff"

    def test_expectation(self) -> None:
        head = RequestDecoder().feed(request("Expect: 100-Continue", "Content-Length: 1"))
        assert head is not None
        assert head.expects_continue


REFUSALS = {
    "no Host": (400, b"GET / HTTP/1.1\r\n\r\n"),
    "two Hosts": (400, request("Host: b")),
    "a Host with a space": (400, b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n"),
    "a Host with a path": (400, b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n"),
    "a Host with a name before it": (400, b"GET / HTTP/1.1\r\nHost: u@a\r\n\r\n"),
    "version 2.0": (505, request(line="GET / HTTP/2.0")),
    "version 1.2": (505, request(line="GET / HTTP/1.2")),
    "HTTP/2's preface": (505, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "an unknown method": (501, request(line="FROB / HTTP/1.1")),
    "a method in small letters": (501, request(line="get / HTTP/1.1")),
    "no version": (400, b"GET /\r\n\r\n"),
    "no target": (400, b"GET  HTTP/1.1\r\nHost: a\r\n\r\n"),
    "a target without a slash": (400, request(line="GET a HTTP/1.1")),
    "an asterisk for GET": (400, request(line="GET * HTTP/1.1")),
    "CONNECT to a path": (400, request(line="CONNECT /x HTTP/1.1")),
    "a raw byte in the target": (400, request(line="GET /\xe9 HTTP/1.1")),
    "two spaces": (400, request(line="GET  / HTTP/1.1")),
    "bare line feeds": (400, b"GET / HTTP/1.1\nHost: a\n\n"),
    "a bare LF in the head": (400, b"GET / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n"),
    "a bare CR in a value": (400, request("X: a\rb")),
    "NUL in a value": (400, request("X: a\0b")),
    "a space before the colon": (400, request("Content-Length : 3")),
    "a folded line": (400, request("X: a", " b")),
    "a line without a colon": (400, request("X")),
    "an empty name": (400, request(": x")),
    "two lengths": (400, request("Content-Length: 3", "Content-Length: 4")),
    "the same length twice": (400, request("Content-Length: 3", "Content-Length: 3")),
    "a list of lengths": (400, request("Content-Length: 3, 3")),
    "a length with a sign": (400, request("Content-Length: +3")),
    "a hexadecimal length": (400, request("Content-Length: 0x3")),
    "a length without end": (400, request("Content-Length: " + "9" * 30)),
    "length and chunks": (400, request("Content-Length: 3", "Transfer-Encoding: chunked")),
    "chunks and length": (400, request("Transfer-Encoding: chunked", "Content-Length: 3")),
    "chunked twice": (400, request("Transfer-Encoding: chunked", "Transfer-Encoding: chunked")),
    "chunked, chunked": (400, request("Transfer-Encoding: chunked, chunked")),
    "gzip, chunked": (501, request("Transfer-Encoding: gzip, chunked")),
    "chunked, gzip": (400, request("Transfer-Encoding: chunked, gzip")),
    "xchunked": (400, request("Transfer-Encoding: xchunked")),
    "identity": (400, request("Transfer-Encoding: identity")),
    "chunks in HTTP/1.0": (400, request("Transfer-Encoding: chunked", line="POST / HTTP/1.0")),
    "POST in HTTP/1.0 without a length": (411, request(line="POST / HTTP/1.0")),
    "an unknown expectation": (417, request("Expect: 200-ok", "Content-Length: 1")),
    "a TLS hello": (400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
    "garbage": (400, bytes(range(256))),
    "empty lines only": (400, b"\r\n" * 20),
    "a chunk's size that is no number": (
        400,
        request("Transfer-Encoding: chunked", body=b"x\r\nabc\r\n0\r\n\r\n"),
    ),
    "a chunk that is longer than it said": (
        400,
        request("Transfer-Encoding: chunked", body=b"1\r\nabc\r\n0\r\n\r\n"),
    ),
    "a chunk's line ended by LF": (
        400,
        request("Transfer-Encoding: chunked", body=b"3\nabc\r\n0\r\n\r\n"),
    ),
    "a length among the trailers": (
        400,
        request("Transfer-Encoding: chunked", body=b"0\r\nContent-Length: 3\r\n\r\n"),
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(name: str) -> None:
    status, sent = REFUSALS[name]
    assert outcomes(sent) == ([], status)


@pytest.mark.parametrize("name", REFUSALS)
def test_what_came_before_a_refusal_counts(name: str) -> None:
    status, sent = REFUSALS[name]
    if name == "empty lines only":
        return
    assert outcomes(SIMPLE + sent) == ([("GET", "/", b"", {})], status)


class TestLimits:
    def test_the_head(self) -> None:
        sent = request("X: " + "y" * 200)
        assert outcomes(sent, max_header_bytes=len(sent))[1] == "between"
        assert outcomes(sent, max_header_bytes=len(sent) - 1) == ([], 431)

    def test_the_number_of_fields(self) -> None:
        sent = request(*["X: y"] * 9)
        assert outcomes(sent, max_headers=10)[1] == "between"
        assert outcomes(sent, max_headers=9) == ([], 431)

    def test_the_target(self) -> None:
        sent = request(line=f"GET /{'x' * 100} HTTP/1.1")
        assert outcomes(sent, max_target_bytes=200)[1] == "between"
        assert outcomes(sent, max_target_bytes=100) == ([], 414)

    def test_a_target_without_end(self) -> None:
        decoder = RequestDecoder()
        with pytest.raises(RefusalError) as caught:
            for _ in range(1000):
                decoder.feed(b"GET /" if not decoder.begun else b"x" * 100)
        assert caught.value.status == 414

    def test_a_target_byte_by_byte_is_looked_at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Counting:
            looked = 0

            def __init__(self, pattern: re.Pattern[bytes]) -> None:
                self._pattern = pattern

            def fullmatch(self, seen: bytearray, start: int, end: int) -> Any:
                Counting.looked += min(len(seen), end) - start
                return self._pattern.fullmatch(seen, start, end)

        for name in ("_LINE_BEGUN", "_LINE_GOES_ON"):
            monkeypatch.setattr(incoming, name, Counting(getattr(incoming, name)))
        decoder = RequestDecoder()
        sent = request(line=f"GET /{'x' * 10_000}?a=b HTTP/1.1")
        for at in range(len(sent)):
            head = decoder.feed(sent[at : at + 1])
        assert head is not None
        assert len(head.target) == 10_005
        assert Counting.looked < 2 * 10_005


class Judge:
    """llhttp's own reading of requests."""

    def __init__(self) -> None:
        self.found: list[tuple[bytes, bytes]] = []
        self.url = self.body = b""

    def on_message_begin(self) -> None:
        self.url = self.body = b""

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.found.append((self.url, self.body))


_bodies = st.one_of(
    st.just(("", b"")),
    st.binary(max_size=40).map(lambda body: (f"Content-Length: {len(body)}", body)),
    st.lists(st.binary(min_size=1, max_size=9), max_size=4).map(
        lambda pieces: (
            "Transfer-Encoding: chunked",
            b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in pieces) + b"0\r\n\r\n",
        )
    ),
)


@given(
    st.lists(_bodies, min_size=1, max_size=4),
    st.lists(st.integers(0, 400), max_size=4, unique=True),
)
@settings(max_examples=200, deadline=None)
def test_llhttp_reads_the_same(bodies: list[tuple[str, bytes]], cuts: list[int]) -> None:
    sent = b"".join(
        request(*[field] if field else [], line=f"POST /{i} HTTP/1.1", body=body)
        for i, (field, body) in enumerate(bodies)
    )
    judge = Judge()
    httptools.HttpRequestParser(judge).feed_data(sent)
    places = [0, *sorted(min(cut, len(sent)) for cut in cuts), len(sent)]
    found, state = outcome([sent[a:b] for a, b in pairwise(places)])
    assert state == "between"
    assert [(target.encode(), body) for _, target, body, _ in found] == judge.found


@given(st.lists(st.sampled_from([*SIMPLE.split(b" "), b"\r\n", b" ", b":", b"x", b"0", b"\0"])))
@settings(max_examples=300, deadline=None)
def test_any_bytes_in_any_pieces(pieces: list[bytes]) -> None:
    assert outcome(pieces) == outcome([b"".join(pieces)])


LOOKS = [name for name in RequestHead.__slots__ if name != "_pairs"]

TARGETS = ["/", "/p", "/other?x=1", "//host/p", "/%41", '/p"\\^`{|}']


def look(head: RequestHead | None) -> dict[str, Any]:
    """All that a head says of its request."""
    assert head is not None
    return {name: getattr(head, name) for name in LOOKS} | {
        "pairs": head.pairs,
        "path": head.path,
        "query": head.query,
        "headers": list(head.headers.get_all()),
    }


class TestAHeadLikeTheLast:
    """One that differs by its path alone is not judged anew: nobody can tell."""

    @pytest.mark.parametrize(
        "fields",
        [
            (),
            ("Content-Length: 0", "X-Long: " + "x" * 5000),
            ("Connection: close, Upgrade", "Upgrade: websocket"),
            ("Expect: 100-continue", "Cookie: a=b"),
        ],
    )
    def test_it_says_what_it_says_alone(self, fields: tuple[str, ...]) -> None:
        decoder = RequestDecoder()
        for version in ("1.1", "1.0"):
            for method in ("GET", "OPTIONS", "DELETE"):
                for target in [*TARGETS, "http://elsewhere/p", *TARGETS]:
                    data = request(*fields, line=f"{method} {target} HTTP/{version}")
                    assert look(decoder.feed(data)) == look(RequestDecoder().feed(data))

    def test_a_body_follows_as_before(self) -> None:
        decoder = RequestDecoder()
        for path, body in (("/a", b"one"), ("/b", b"two"), ("/b", b"six")):
            head = decoder.feed(request("Content-Length: 3", line=f"POST {path} HTTP/1.1"))
            assert head is not None
            assert (head.path, decoder.complete) == (path, False)
            assert (decoder.feed_body(body), decoder.complete) == (body, True)

    @pytest.mark.parametrize(
        ("line", "fields", "status"),
        [
            ("BREW / HTTP/1.1", (), 501),
            ("GET / HTTP/1.2", (), 505),
            ("GET p HTTP/1.1", (), 400),
            ("GET  / HTTP/1.1", (), 400),
            ("CONNECT / HTTP/1.1", (), 400),
            ("GET / HTTP/1.1", ("Host: b",), 400),
            ("GET / HTTP/1.1", ("a b: c",), 400),
        ],
    )
    def test_any_other_difference_is_judged(
        self, line: str, fields: tuple[str, ...], status: int
    ) -> None:
        decoder = RequestDecoder()
        decoder.feed(request(line="GET /p HTTP/1.1"))
        with pytest.raises(HTTPInputError) as caught:
            decoder.feed(request(*fields, line=line))
        error = caught.value
        assert (error.status if isinstance(error, RefusalError) else 400) == status

    def test_llhttp_takes_every_path_that_a_request_line_may_have(self) -> None:
        for character in sorted({*range(0x21, 0x7F)} - {ord("#")}):
            for path in ("/%c", "/%ca", "/a?%c", "/?b%ca", "/%c?%c", "/a/%c/?x=%c&?"):
                target = path.replace("%c", chr(character))
                for method in ("GET", "POST", "OPTIONS"):
                    data = request(line=f"{method} {target} HTTP/1.1")
                    httptools.HttpRequestParser(None).feed_data(data)
