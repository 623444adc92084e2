"""Servers that mean no good, as data: what they send, and how a fetch from each has to end.

A plan is a sequence of steps: bytes are sent, a number is a pause in seconds, ``CLOSE`` and
``RESET`` end the connection, ``Endless`` sends bytes for ever. What is left open at the plan's end
stays open and silent. ``EARLY`` in front means: do not wait for the request.

An outcome is the type of the error, or ``(status, body)`` of the response. ``ANY_ERROR`` is for
plans that may fail in more than one way, with the kernel to decide in which.
"""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from typing import Any

import brotli

from coro.errors import (
    BodyTooLargeError,
    HTTPClosedError,
    HTTPError,
    HTTPProtocolError,
    HTTPTimeoutError,
    IncompleteBodyError,
    RequestError,
)
from tests.support.zstandard import zstd

__all__ = ["CLOSE", "EARLY", "RESET", "Case", "Endless", "cases"]

CLOSE, RESET, EARLY = "close", "reset", "early"

ANY_ERROR = RequestError

PROTOCOL, CLOSED, INCOMPLETE, TIMEOUT, TOO_LARGE = (
    HTTPProtocolError,
    HTTPClosedError,
    IncompleteBodyError,
    HTTPTimeoutError,
    BodyTooLargeError,
)


@dataclass(frozen=True)
class Endless:
    """Bytes that are sent again and again, until the client leaves."""

    piece: bytes


@dataclass(frozen=True)
class Case:
    """One server.

    Attributes:
        plan: what it does.
        outcome: how the fetch ends.
        options: of the fetch; ``max_body_size`` is the client's.
    """

    plan: tuple[Any, ...]
    outcome: Any
    options: dict[str, Any]


def cases() -> dict[str, Case]:
    """Return all of them by name."""
    found: dict[str, Case] = {}
    for family in (
        _status_lines,
        _fields,
        _framing,
        _lengths,
        _chunks,
        _trailers,
        _codings,
        _interim,
        _redirects,
        _slowness,
        _cookies_and_challenges,
    ):
        prefix = family.__name__.strip("_").replace("_", " ")
        for name, (plan, outcome, *options) in family().items():
            steps = plan if isinstance(plan, tuple) else (plan,)
            found[f"{prefix}: {name}"] = Case(steps, outcome, options[0] if options else {})
    return found


_OK = b"HTTP/1.1 200 OK\r\n"
_FIVE = b"Content-Length: 5\r\n\r\nhello"
_CHUNKED = _OK + b"Transfer-Encoding: chunked\r\n\r\n"
_HELLO = (200, b"hello")


def _status_lines() -> dict[str, Any]:
    bad = {
        "garbage": b"\x00\x01\x02\x03 nothing of this\r\n\r\n",
        "no version": b"200 OK\r\n\r\n",
        "no status": b"HTTP/1.1\r\n\r\n",
        "another protocol": b"SMTP/1.1 200 OK\r\n\r\n",
        "a greeting of ssh": b"SSH-2.0-OpenSSH_9.2\r\n",
        "shoutcast": b"ICY 200 OK\r\n\r\n",
        "rtsp": b"RTSP/1.0 200 OK\r\n\r\n",
        "lower case": b"http/1.1 200 OK\r\n" + _FIVE,
        "version 0.9": b"HTTP/0.9 200 OK\r\n" + _FIVE,
        "version 1.2": b"HTTP/1.2 200 OK\r\n" + _FIVE,
        "version 2": b"HTTP/2 200 OK\r\n" + _FIVE,
        "version 2.0": b"HTTP/2.0 200 OK\r\n" + _FIVE,
        "version 11": b"HTTP/11 200 OK\r\n" + _FIVE,
        "settings of HTTP/2": b"\x00\x00\x06\x04\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x64",
        "an alert of TLS": b"\x15\x03\x01\x00\x02\x02\x46",
        "status 99": b"HTTP/1.1 99 Low\r\n" + _FIVE,
        "status 000": b"HTTP/1.1 000 None\r\n" + _FIVE,
        "status 1000": b"HTTP/1.1 1000 High\r\n" + _FIVE,
        "status of 20 digits": b"HTTP/1.1 20000000000000000000 OK\r\n" + _FIVE,
        "status -20": b"HTTP/1.1 -20 OK\r\n" + _FIVE,
        "status in letters": b"HTTP/1.1 abc OK\r\n" + _FIVE,
        "status glued to the reason": b"HTTP/1.1 200OK\r\n" + _FIVE,
        "two spaces": b"HTTP/1.1  200 OK\r\n" + _FIVE,
        "a tab": b"HTTP/1.1\t200\tOK\r\n" + _FIVE,
        "a space before": b" HTTP/1.1 200 OK\r\n" + _FIVE,
        "a line before": b"\r\n\r\nHTTP/1.1 200 OK\r\n" + _FIVE,
        "a mark before": b"\xef\xbb\xbfHTTP/1.1 200 OK\r\n" + _FIVE,
        "a request": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        "nul in the reason": b"HTTP/1.1 200 O\x00K\r\n" + _FIVE,
        "a control character in the reason": b"HTTP/1.1 200 O\x1bK\r\n" + _FIVE,
        "cr in the reason": b"HTTP/1.1 200 O\rK\r\n" + _FIVE,
        "lf alone": b"HTTP/1.1 200 OK\nContent-Length: 5\n\nhello",
        "cr alone": b"HTTP/1.1 200 OK\rContent-Length: 5\r\rhello",
    }
    return {
        **{name: (data, PROTOCOL) for name, data in bad.items()},
        "endless reason": ((b"HTTP/1.1 200 ", Endless(b"O" * 8192)), PROTOCOL),
        "endless garbage": ((Endless(b"A" * 8192),), PROTOCOL),
        "endless empty lines": ((Endless(b"\r\n" * 4096),), PROTOCOL),
        "no reason": (b"HTTP/1.1 200 \r\n" + _FIVE, _HELLO),
        "no reason and no space": (b"HTTP/1.1 200\r\n" + _FIVE, _HELLO),
        "a reason beyond ascii": (b"HTTP/1.1 200 \xe9t\xe9\r\n" + _FIVE, _HELLO),
        "a status nobody knows": (b"HTTP/1.1 299 New\r\n" + _FIVE, (299, b"hello")),
        "cut": ((b"HTTP/1.1 20", CLOSE), CLOSED),
    }


def _fields() -> dict[str, Any]:
    bad = {
        "no colon": b"Name value\r\n",
        "no name": b": value\r\n",
        "a space before the colon": b"Name : value\r\n",
        "a tab before the colon": b"Name\t: value\r\n",
        "a space in the name": b"My Name: value\r\n",
        "nul in the name": b"Na\x00me: value\r\n",
        "a name beyond ascii": b"N\xe4me: value\r\n",
        "a quote in the name": b'"Name": value\r\n',
        "nul in the value": b"Name: val\x00ue\r\n",
        "cr in the value": b"Name: val\rue\r\n",
        "lf in the value": b"Name: val\nue\r\n",
        "a control character in the value": b"Name: val\x07ue\r\n",
        "a folded line": b"Name: value\r\n folded\r\n",
        "a folded first line": b" Name: value\r\n",
        "a line of spaces": b"  \r\n",
    }
    return {
        **{name: (_OK + line + _FIVE, PROTOCOL) for name, line in bad.items()},
        "an endless name": ((_OK, Endless(b"n" * 8192)), PROTOCOL),
        "an endless value": ((_OK + b"Name: ", Endless(b"v" * 8192)), PROTOCOL),
        "endless fields": ((_OK, Endless(b"Name: value\r\n" * 500)), PROTOCOL),
        "endless spaces": ((_OK + b"Name:", Endless(b" " * 8192)), PROTOCOL),
        "too many": (_OK + b"a: b\r\n" * 5000 + _FIVE, PROTOCOL),
        "an empty value": (_OK + b"Name:\r\n" + _FIVE, _HELLO),
        "a value beyond ascii": (_OK + b"Name: \xc3\xa9\xff\r\n" + _FIVE, _HELLO),
        "a thousand cookies too many": (_OK + b"Set-Cookie: a=b\r\n" * 5000 + _FIVE, PROTOCOL),
        "cut in a name": ((_OK + b"Conte", CLOSE), CLOSED),
        "cut in a value": ((_OK + b"Content-Length: 5", CLOSE), CLOSED),
        "cut before the empty line": ((_OK + b"Content-Length: 5\r\n", CLOSE), CLOSED),
        "reset in a value": ((_OK + b"Content-Le", RESET), CLOSED),
    }


def _framing() -> dict[str, Any]:
    both = b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
    bad = {
        "length and chunks": both,
        "chunks and length": b"Transfer-Encoding: chunked\r\n" + _FIVE,
        "two lengths": b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        "the same length twice": b"Content-Length: 5\r\n" + _FIVE,
        "a list of lengths": b"Content-Length: 5, 6\r\n\r\nhello",
        "a list of the same length": b"Content-Length: 5, 5\r\n\r\nhello",
        "a negative length": b"Content-Length: -5\r\n\r\nhello",
        "a length with a sign": b"Content-Length: +5\r\n\r\nhello",
        "a hexadecimal length": b"Content-Length: 0x5\r\n\r\nhello",
        "a length with a comma": b"Content-Length: 5,\r\n\r\nhello",
        "a length with a fraction": b"Content-Length: 5.0\r\n\r\nhello",
        "a length with a space": b"Content-Length: 5 5\r\n\r\nhello",
        "an empty length": b"Content-Length: \r\n\r\nhello",
        "a length in letters": b"Content-Length: five\r\n\r\nhello",
        "a length of 30 digits": b"Content-Length: " + b"9" * 30 + b"\r\n\r\nhello",
        "a length with an underscore": b"Content-Length: 1_0\r\n\r\nhello",
        "another coding": b"Transfer-Encoding: gzip\r\n\r\nhello",
        "identity": b"Transfer-Encoding: identity\r\n\r\nhello",
        "chunked twice": b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
        "chunked on two lines": b"Transfer-Encoding: chunked\r\n" * 2 + b"\r\n0\r\n\r\n",
        "chunked, then another": b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
        "another, then chunked": b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "not quite chunked": b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        "chunked with a parameter": b"Transfer-Encoding: chunked;q=1\r\n\r\n0\r\n\r\n",
        "chunked with a strange space": b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
        "an empty coding": b"Transfer-Encoding: \r\n\r\nhello",
    }
    return {
        **{name: (_OK + data, PROTOCOL) for name, data in bad.items()},
        "chunks in HTTP/1.0": (
            b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            PROTOCOL,
        ),
        "chunked in capitals": (
            _OK + b"TRANSFER-ENCODING: CHUNKED\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            _HELLO,
        ),
        "spaces around the length": (_OK + b"Content-Length: \t 5 \t\r\n\r\nhello", _HELLO),
        "zeros before the length": (_OK + b"Content-Length: 0005\r\n\r\nhello", _HELLO),
    }


def _lengths() -> dict[str, Any]:
    second = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"
    return {
        "too short": ((_OK + b"Content-Length: 9\r\n\r\nhello", CLOSE), INCOMPLETE),
        "reset in the middle": ((_OK + b"Content-Length: 9\r\n\r\nhello", RESET), INCOMPLETE),
        "nothing of it": ((_OK + b"Content-Length: 9\r\n\r\n", CLOSE), INCOMPLETE),
        "larger than the limit": (
            _OK + b"Content-Length: 1001\r\n\r\n",
            TOO_LARGE,
            {"max_body_size": 1000},
        ),
        "far larger than anything": (_OK + b"Content-Length: 9999999999999\r\n\r\n", TOO_LARGE),
        "surplus bytes": (_OK + _FIVE + b"surplus", _HELLO),
        "a second response at once": (_OK + _FIVE + second, _HELLO),
        "a second response a little later": ((_OK + _FIVE, 0.01, second), _HELLO),
        "a second response, then the end": ((_OK + _FIVE + second, CLOSE), _HELLO),
        "endless surplus": ((_OK + _FIVE, Endless(second)), _HELLO),
        "a body after 204": (b"HTTP/1.1 204 None\r\n\r\n" + second, (204, b"")),
        "a length of 204": (b"HTTP/1.1 204 None\r\nContent-Length: 5\r\n\r\nhello", (204, b"")),
        "a body after 304": (b"HTTP/1.1 304 Same\r\n" + _FIVE, (304, b"")),
        "a body after HEAD": (_OK + _FIVE, (200, b""), {"method": "HEAD"}),
        "chunks after HEAD": (
            _CHUNKED + b"5\r\nhello\r\n0\r\n\r\n",
            (200, b""),
            {"method": "HEAD"},
        ),
        "byte by byte": (tuple(bytes([each]) for each in _OK + _FIVE), _HELLO),
        "up to the end": ((_OK + b"\r\nhello", CLOSE), _HELLO),
        "up to a reset": ((_OK + b"\r\nhello", RESET), INCOMPLETE),
        "without an end": (
            (_OK + b"\r\n", Endless(b"x" * 8192)),
            TOO_LARGE,
            {"max_body_size": 100_000},
        ),
        "HTTP/1.0 up to the end": ((b"HTTP/1.0 200 OK\r\n\r\nhello", CLOSE), _HELLO),
        "kept open in HTTP/1.0": (b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n" + _FIVE, _HELLO),
        "closed, and then more": ((_OK + b"Connection: close\r\n" + _FIVE, second), _HELLO),
    }


def _chunks() -> dict[str, Any]:
    bad = {
        "no size": b"\r\nhello\r\n0\r\n\r\n",
        "a size in letters": b"five\r\nhello\r\n0\r\n\r\n",
        "a negative size": b"-5\r\nhello\r\n0\r\n\r\n",
        "a size with a sign": b"+5\r\nhello\r\n0\r\n\r\n",
        "a size with 0x": b"0x5\r\nhello\r\n0\r\n\r\n",
        "a size with an underscore": b"1_0\r\nhello\r\n0\r\n\r\n",
        "a space before the size": b" 5\r\nhello\r\n0\r\n\r\n",
        "a space in the size": b"5 5\r\nhello\r\n0\r\n\r\n",
        "a size of 17 digits": b"00000000000000005\r\nhello\r\n0\r\n\r\n",
        "a size of 16 fs": b"ffffffffffffffff\r\nhello",
        "a size of 100 digits": b"1" * 100 + b"\r\nhello",
        "lf after the size": b"5\nhello\r\n0\r\n\r\n",
        "cr after the size": b"5\rhello\r\n0\r\n\r\n",
        "lf after the data": b"5\r\nhello\n0\r\n\r\n",
        "nothing after the data": b"5\r\nhello0\r\n\r\n",
        "more data than size": b"5\r\nhello!\r\n0\r\n\r\n",
        "less data than size": b"6\r\nhello\r\n0\r\n\r\n",
        "two empty lines after the data": b"5\r\nhello\r\n\r\n0\r\n\r\n",
        "lf in an extension": b"5;a\nb\r\nhello\r\n0\r\n\r\n",
        "nul in an extension": b"5;a\x00b\r\nhello\r\n0\r\n\r\n",
        "an extension without a size": b";a=b\r\nhello\r\n0\r\n\r\n",
        "a size with a full stop": b"5.0\r\nhello\r\n0\r\n\r\n",
        "garbage": b"\x00\x00\x00\x05hello",
    }
    return {
        **{name: (_CHUNKED + data, PROTOCOL) for name, data in bad.items()},
        "an endless size": ((_CHUNKED, Endless(b"0" * 8192)), PROTOCOL),
        "an endless extension": ((_CHUNKED + b"5;", Endless(b"a" * 8192)), PROTOCOL),
        "endless small chunks": (
            (_CHUNKED, Endless(b"1\r\nx\r\n" * 1000)),
            TOO_LARGE,
            {"max_body_size": 10_000},
        ),
        "more lines than data": (
            (_CHUNKED, Endless((b"1;" + b"e" * 200 + b"\r\nx\r\n") * 100)),
            PROTOCOL,
            {"max_body_size": 1_000_000},
        ),
        "larger than the limit": (
            _CHUNKED + b"fffff\r\n" + bytes(1001),
            TOO_LARGE,
            {"max_body_size": 1000},
        ),
        "cut in a size": ((_CHUNKED + b"5", CLOSE), INCOMPLETE),
        "cut in a chunk": ((_CHUNKED + b"5\r\nhe", CLOSE), INCOMPLETE),
        "cut after a chunk": ((_CHUNKED + b"5\r\nhello\r\n", CLOSE), INCOMPLETE),
        "cut before the last line": ((_CHUNKED + b"5\r\nhello\r\n0\r\n", CLOSE), INCOMPLETE),
        "reset in a chunk": ((_CHUNKED + b"5\r\nhe", RESET), INCOMPLETE),
        "surplus bytes": (_CHUNKED + b"5\r\nhello\r\n0\r\n\r\nsurplus", _HELLO),
        "an extension": (_CHUNKED + b"5;a=b\r\nhello\r\n0;c\r\n\r\n", _HELLO),
        "a quoted extension": (_CHUNKED + b'5;a="b;c"\r\nhello\r\n0\r\n\r\n', _HELLO),
        "capital digits": (_CHUNKED + b"A\r\nhellohello\r\n0\r\n\r\n", (200, b"hellohello")),
        "byte by byte": (
            tuple(bytes([each]) for each in _CHUNKED + b"5\r\nhello\r\n0\r\n\r\n"),
            _HELLO,
        ),
    }


def _trailers() -> dict[str, Any]:
    begin = _CHUNKED + b"5\r\nhello\r\n0\r\n"
    bad = {
        "no colon": b"Name value\r\n\r\n",
        "a space before the colon": b"Name : value\r\n\r\n",
        "folded": b"Name: value\r\n more\r\n\r\n",
        "nul": b"Name: va\x00lue\r\n\r\n",
        "cr": b"Name: va\rlue\r\n\r\n",
        "a length": b"Content-Length: 5\r\n\r\n",
        "a transfer coding": b"Transfer-Encoding: chunked\r\n\r\n",
        "too many": b"a: b\r\n" * 5000 + b"\r\n",
    }
    return {
        **{name: (begin + data, PROTOCOL) for name, data in bad.items()},
        "endless": ((begin, Endless(b"Name: value\r\n" * 500)), PROTOCOL),
        "an endless value": ((begin + b"Name: ", Endless(b"v" * 8192)), PROTOCOL),
        "lf alone": (begin + b"Name: value\n\n", TIMEOUT),
        "cut": ((begin + b"Name: val", CLOSE), INCOMPLETE),
        "good": (begin + b"Name: value\r\n\r\n", _HELLO),
        "surplus bytes": (begin + b"Name: value\r\n\r\nsurplus", _HELLO),
    }


def _codings() -> dict[str, Any]:
    def packed(data: bytes, coding: str = "gzip") -> bytes:
        head = f"Content-Encoding: {coding}\r\nContent-Length: {len(data)}\r\n\r\n"
        return _OK + head.encode() + data

    good = gzip.compress(b"hello")
    zeros = bytes(20_000_000)
    bomb = gzip.compress(zeros)
    limited = {"max_body_size": 1_000_000}
    return {
        "gzip": (packed(good), _HELLO),
        "gzip that is none": (packed(b"hello"), ANY_ERROR),
        "gzip cut": (packed(good[:-6]), ANY_ERROR),
        "gzip with a wrong sum": (packed(good[:-8] + bytes(8)), ANY_ERROR),
        "an empty body": (packed(b""), (200, b"")),
        "a bomb": (packed(bomb), TOO_LARGE, limited),
        "a bomb of br": (packed(brotli.compress(zeros, quality=1), "br"), TOO_LARGE, limited),
        "a bomb of zstd": (packed(zstd.compress(zeros), "zstd"), TOO_LARGE, limited),
        "a bomb in a bomb": (packed(gzip.compress(bomb), "gzip, gzip"), TOO_LARGE, limited),
        "nothing, again and again": (
            packed(zstd.compress(gzip.compress(b"") * 10_000), "gzip, zstd"),
            (200, b""),
        ),
        "six codings": (packed(good, ", ".join(["gzip"] * 6)), PROTOCOL),
        "br that is none": (packed(b"hello", "br"), PROTOCOL),
        "zstd that is none": (packed(b"hello", "zstd"), PROTOCOL),
        "zstd with a window of a gigabyte": (
            packed(bytes.fromhex("28b52ffd 00 a0 290000 68656c6c6f"), "zstd"),
            PROTOCOL,
        ),
        "zstd and more": (packed(zstd.compress(b"hello") + b"hello", "zstd"), PROTOCOL),
        "deflate that is none": (packed(b"hello", "deflate"), ANY_ERROR),
        "deflate": (packed(zlib.compress(b"hello"), "deflate"), _HELLO),
        "a coding nobody knows": (packed(b"hello", "x-secret"), _HELLO),
    }


def _interim() -> dict[str, Any]:
    go_on = b"HTTP/1.1 100 Continue\r\n\r\n"
    upgrade = b"HTTP/1.1 101 Other\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"
    return {
        "one": (go_on + _OK + _FIVE, _HELLO),
        "hints": (b"HTTP/1.1 103 Hints\r\nLink: </a>\r\n\r\n" + _OK + _FIVE, _HELLO),
        "one that nobody knows": (b"HTTP/1.1 199 Odd\r\n\r\n" + _OK + _FIVE, _HELLO),
        "a hundred": (go_on * 100 + _OK + _FIVE, PROTOCOL),
        "endless": ((Endless(go_on * 100),), PROTOCOL),
        "endless and slow": ((*([go_on, 0.3] * 40),), ANY_ERROR),
        "with endless fields": ((b"HTTP/1.1 103 Hints\r\n", Endless(b"a: b\r\n" * 999)), PROTOCOL),
        "and the end": ((go_on, CLOSE), CLOSED),
        "and a reset": ((go_on, RESET), CLOSED),
        "and garbage": (go_on + b"garbage\r\n\r\n", PROTOCOL),
        "and silence": (go_on, TIMEOUT),
        "an upgrade that nobody asked for": (upgrade, (101, b"")),
        "an upgrade to nothing": (b"HTTP/1.1 101 Other\r\n\r\n", PROTOCOL),
    }


def _redirects() -> dict[str, Any]:
    def to(location: bytes) -> bytes:
        return b"HTTP/1.1 302 Found\r\nLocation: " + location + b"\r\nContent-Length: 0\r\n\r\n"

    return {
        "to ftp": (to(b"ftp://127.0.0.1/"), HTTPError),
        "to a file": (to(b"file:///etc/passwd"), HTTPError),
        "to a script": (to(b"javascript:alert(1)"), HTTPError),
        "to data": (to(b"data:text/plain,hello"), HTTPError),
        "to a bad port": (to(b"http://127.0.0.1:99999/"), HTTPError),
        "to a bad address": (to(b"http://[::1/"), HTTPError),
        "to a bad name": (to(b"http://a b/"), HTTPError),
        "to no host": (to(b"http:///"), HTTPError),
        "round and round": (to(b"/hostile"), HTTPError),
        "without a place": (b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n", HTTPError),
        "with a body that never ends": (
            (b"HTTP/1.1 302 Found\r\nLocation: /honest\r\n\r\n", Endless(b"x" * 8192)),
            (200, b"honest"),
        ),
        "with a body that never comes": (
            b"HTTP/1.1 302 Found\r\nLocation: /honest\r\nContent-Length: 1000000\r\n\r\n",
            (200, b"honest"),
        ),
        "with a place of 60,000 bytes": (to(b"/" + b"x" * 60_000), HTTPError),
    }


def _slowness() -> dict[str, Any]:
    head = _OK + _FIVE
    slowly: list[Any] = []
    for each in _OK + b"Content-Length: 1000\r\n\r\n" + b"x" * 1000:
        slowly += [bytes([each]), 0.5]
    return {
        "nothing": ((), TIMEOUT),
        "the end at once": ((CLOSE,), CLOSED),
        "a reset at once": ((RESET,), CLOSED),
        "the end before the request": ((EARLY, CLOSE), CLOSED),
        "a reset before the request": ((EARLY, RESET), ANY_ERROR),
        "an answer before the request": ((EARLY, head), None),
        "garbage before the request": ((EARLY, b"garbage\r\n\r\n"), ANY_ERROR),
        "a drop now and then": (tuple(slowly), TIMEOUT),
        "silence in the status line": (b"HTTP/1.1 2", TIMEOUT),
        "silence in the head": (_OK + b"Content-", TIMEOUT),
        "silence before the body": (_OK + b"Content-Length: 5\r\n\r\n", TIMEOUT),
        "silence in the body": (_OK + b"Content-Length: 5\r\n\r\nhe", TIMEOUT),
        "silence in a chunk": (_CHUNKED + b"5\r\nhe", TIMEOUT),
        "silence in the trailers": (_CHUNKED + b"0\r\nName:", TIMEOUT),
        "silence up to the end": (_OK + b"\r\nhello", TIMEOUT),
        "a pause": ((head[:20], 1.0, head[20:]), _HELLO),
        "the end a moment later": ((head, 0.001, CLOSE), _HELLO),
        "a reset a moment later": ((head, 0.001, RESET), _HELLO),
    }


def _cookies_and_challenges() -> dict[str, Any]:
    def challenge(value: bytes) -> bytes:
        return b"HTTP/1.1 401 No\r\nWWW-Authenticate: " + value + b"\r\nContent-Length: 2\r\n\r\nno"

    login = {"auth_username": "user", "auth_password": "pass", "auth_mode": "digest"}
    refused = (401, b"no")
    return {
        "a challenge without a scheme": (challenge(b""), refused, login),
        "a challenge of commas": (challenge(b"," * 2000), refused, login),
        "a digest without a nonce": (challenge(b'Digest realm="x"'), refused, login),
        "a digest of an algorithm nobody knows": (
            challenge(b'Digest realm="x", nonce="y", algorithm=ROT13'),
            refused,
            login,
        ),
        "an open quote": (challenge(b'Digest realm="x, nonce="y'), refused, login),
        "a challenge again and again": (
            challenge(b'Digest realm="x", nonce="y", qop="auth"'),
            refused,
            login,
        ),
        "a name of another line": (
            challenge(b'Digest realm="\\\r\\\nX: y", nonce="z"'),
            PROTOCOL,
            login,
        ),
    }
