"""No client, whatever it sends, crashes the server, stalls others, or makes it remember much.

Each plan is played against a server on real sockets and in simulation: bytes are sent, a number is
a pause in seconds. It tells which answers come, by their statuses, before the server ends the
connection; while it lasts, and after it, an honest client is served at once.
"""

from __future__ import annotations

import contextlib
import logging
import re
import socket
import tracemalloc
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from coro.errors import StreamClosedError
from coro.gen import coroutine, sleep, with_timeout
from coro.http.request import HTTPServerRequest
from coro.http.response import Response
from coro.http.server import HTTPServer
from coro.loop import IOLoop
from coro.stream import IOStream
from coro.tcp import connect
from coro.testing import simulate
from tests.support.authority import Authority
from tests.support.virtual import closing_loop, virtual_loop

# Ways in which a plan ends: the client closes, resets, or says that it sends nothing more.
CLOSE, RESET, HALF = "close", "reset", "half"

# Virtual seconds that an honest client waits at most: it shares the loop, not the trouble.
SOON = 1.0

LIMITS: dict[str, Any] = {
    "max_body_size": 100_000,
    "header_timeout": 5.0,
    "body_timeout": 5.0,
    "write_timeout": 5.0,
    "idle_connection_timeout": 10.0,
}

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


@dataclass(frozen=True)
class Endless:
    """Bytes that are sent again and again, until the server ends the connection."""

    piece: bytes
    pause: float = 0.0


@dataclass(frozen=True)
class Case:
    """One client: what it does, and the statuses of the answers that it gets."""

    plan: tuple[Any, ...]
    statuses: list[int]
    # Whether it does not read what comes.
    deaf: bool = False
    # Bytes that the server takes of it before it has answered or cut it.
    most: int = 8_000_000


def post(fields: bytes, body: bytes = b"") -> bytes:
    return b"POST / HTTP/1.1\r\nHost: x\r\n" + fields + b"\r\n" + body


def chunks(data: bytes) -> bytes:
    return post(b"Transfer-Encoding: chunked\r\n", data)


def slowly(data: bytes, pause: float = 1.0) -> tuple[Any, ...]:
    """Return a plan that sends byte by byte."""
    return tuple(step for byte in data for step in (bytes([byte]), pause))


def refused(status: int, **requests: bytes) -> dict[str, Case]:
    return {name.replace("_", " "): Case((data,), [status]) for name, data in requests.items()}


def served(**requests: bytes) -> dict[str, Case]:
    return {name.replace("_", " "): Case((data, HALF), [200]) for name, data in requests.items()}


CASES: dict[str, Case] = {
    **refused(
        400,
        garbage=b"\x00\x01\x02\x03\r\n\r\n",
        a_handshake_of_tls=b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
        no_version=b"GET /\r\n\r\n",
        a_bare_lf=b"GET / HTTP/1.1\nHost: x\n\n",
        a_bare_cr=b"GET / HTTP/1.1\rHost: x\r\r",
        two_spaces=b"GET  / HTTP/1.1\r\nHost: x\r\n\r\n",
        a_tab=b"GET\t/ HTTP/1.1\r\nHost: x\r\n\r\n",
        a_space_in_the_target=b"GET /a b HTTP/1.1\r\nHost: x\r\n\r\n",
        nul_in_the_target=b"GET /\x00 HTTP/1.1\r\nHost: x\r\n\r\n",
        a_target_beyond_ascii=b"GET /\xe4 HTTP/1.1\r\nHost: x\r\n\r\n",
        a_fragment=b"GET /#a HTTP/1.1\r\nHost: x\r\n\r\n",
        a_target_without_a_slash=b"GET a HTTP/1.1\r\nHost: x\r\n\r\n",
        no_host=b"GET / HTTP/1.1\r\n\r\n",
        two_hosts=b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
        a_host_with_a_path=b"GET / HTTP/1.1\r\nHost: x/y\r\n\r\n",
        a_host_with_a_user=b"GET / HTTP/1.1\r\nHost: a@x\r\n\r\n",
        a_folded_line=b"GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n",
        a_folded_first_line=b"GET / HTTP/1.1\r\n Host: x\r\n\r\n",
        no_colon=b"GET / HTTP/1.1\r\nHost: x\r\nName\r\n\r\n",
        no_name=b"GET / HTTP/1.1\r\nHost: x\r\n: b\r\n\r\n",
        a_space_before_the_colon=b"GET / HTTP/1.1\r\nHost : x\r\n\r\n",
        nul_in_a_value=b"GET / HTTP/1.1\r\nHost: x\r\nA: \x00\r\n\r\n",
        cr_in_a_value=b"GET / HTTP/1.1\r\nHost: x\r\nA: b\rc\r\n\r\n",
        lf_in_a_value=b"GET / HTTP/1.1\r\nHost: x\r\nA: b\nc: d\r\n\r\n",
        two_hosts_alike=b"GET / HTTP/1.1\r\nHost: x\r\nHOST: x\r\n\r\n",
        two_hosts_in_1_0=b"GET / HTTP/1.0\r\nHost: x\r\nHost: y\r\n\r\n",
        a_list_of_hosts=b"GET / HTTP/1.1\r\nHost: x, y\r\n\r\n",
        nul_in_the_host=b"GET / HTTP/1.1\r\nHost: x\x00\r\n\r\n",
        a_host_beyond_ascii=b"GET / HTTP/1.1\r\nHost: \xc3\xa4\r\n\r\n",
        a_port_in_letters=b"GET / HTTP/1.1\r\nHost: x:y\r\n\r\n",
        a_url_without_a_host=b"GET http:///p HTTP/1.1\r\nHost: x\r\n\r\n",
        a_path_to_connect_to=b"CONNECT / HTTP/1.1\r\nHost: x:80\r\n\r\n",
        a_star_that_is_no_option=b"GET * HTTP/1.1\r\nHost: x\r\n\r\n",
        a_version_in_small_letters=b"GET / http/1.1\r\nHost: x\r\n\r\n",
        a_version_without_a_point=b"GET / HTTP/11\r\nHost: x\r\n\r\n",
        a_version_of_two_digits=b"GET / HTTP/1.10\r\nHost: x\r\n\r\n",
        a_space_after_the_version=b"GET / HTTP/1.1 \r\nHost: x\r\n\r\n",
        a_space_before_the_method=b" GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        a_lf_before_the_method=b"\nGET / HTTP/1.1\r\nHost: x\r\n\r\n",
        two_crs_at_a_lines_end=b"GET / HTTP/1.1\r\nHost: x\r\r\n\r\n",
        a_cr_before_the_empty_line=b"GET / HTTP/1.1\r\nHost: x\r\n\r\r\n",
        a_line_folded_by_a_tab=b"GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n\tc\r\n\r\n",
        a_name_beyond_ascii=b"GET / HTTP/1.1\r\nHost: x\r\n\xc3\xa4: b\r\n\r\n",
        a_name_in_brackets=b"GET / HTTP/1.1\r\nHost: x\r\n(a): b\r\n\r\n",
        nul_in_a_name=b"GET / HTTP/1.1\r\nHost: x\r\nA\x00: b\r\n\r\n",
        a_control_character_in_a_value=b"GET / HTTP/1.1\r\nHost: x\r\nA: \x01\r\n\r\n",
        # Smuggling: two readers of the same bytes must not see two different requests.
        length_and_chunks=post(
            b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n"
        ),
        chunks_and_length=post(
            b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", b"0\r\n\r\n"
        ),
        two_lengths=post(b"Content-Length: 5\r\nContent-Length: 6\r\n", b"hello!"),
        a_list_of_lengths=post(b"Content-Length: 5, 5\r\n", b"hello"),
        a_length_with_a_sign=post(b"Content-Length: +5\r\n", b"hello"),
        a_negative_length=post(b"Content-Length: -5\r\n", b"hello"),
        a_hexadecimal_length=post(b"Content-Length: 0x5\r\n", b"hello"),
        a_length_with_an_underscore=post(b"Content-Length: 1_0\r\n", b"hello"),
        a_length_of_30_digits=post(b"Content-Length: " + b"9" * 30 + b"\r\n", b"hello"),
        an_empty_length=post(b"Content-Length: \r\n", b"hello"),
        a_coding_after_chunked=post(b"Transfer-Encoding: chunked, gzip\r\n", b"0\r\n\r\n"),
        chunked_twice=post(b"Transfer-Encoding: chunked, chunked\r\n", b"0\r\n\r\n"),
        chunked_on_two_lines=post(b"Transfer-Encoding: chunked\r\n" * 2, b"0\r\n\r\n"),
        a_strange_space_before_chunked=post(b"Transfer-Encoding: \x0bchunked\r\n", b"0\r\n\r\n"),
        not_quite_chunked=post(b"Transfer-Encoding: xchunked\r\n", b"0\r\n\r\n"),
        chunked_in_quotes=post(b'Transfer-Encoding: "chunked"\r\n', b"0\r\n\r\n"),
        chunked_with_a_parameter=post(b"Transfer-Encoding: chunked;a=b\r\n", b"0\r\n\r\n"),
        chunked_and_a_comma=post(b"Transfer-Encoding: chunked,\r\n", b"0\r\n\r\n"),
        chunked_with_a_kelvin_sign=post(
            "Transfer-Encoding: chun\u212aed\r\n".encode(), b"0\r\n\r\n"
        ),
        chunked_on_a_folded_line=post(b"Transfer-Encoding:\r\n chunked\r\n", b"0\r\n\r\n"),
        an_empty_coding=post(b"Transfer-Encoding:\r\n", b"0\r\n\r\n"),
        a_space_after_the_codings_name=post(b"Transfer-Encoding : chunked\r\n", b"0\r\n\r\n"),
        nul_in_the_codings_name=post(b"Transfer-Encoding\x00: chunked\r\n", b"0\r\n\r\n"),
        a_length_in_wide_digits=post("Content-Length: \uff15\r\n".encode(), b"hello"),
        a_length_after_a_strange_space=post(b"Content-Length: \x0b5\r\n", b"hello"),
        a_length_with_a_point=post(b"Content-Length: 5.0\r\n", b"hello"),
        a_length_of_two_words=post(b"Content-Length: 1 5\r\n", b"hello"),
        the_same_length_twice=post(b"Content-Length: 5\r\n" * 2, b"hello"),
        a_length_that_wraps_around=post(b"Content-Length: 18446744073709551621\r\n", b"hello"),
        a_length_of_5000_zeros=post(b"Content-Length: " + b"0" * 5000 + b"5\r\n", b"hello"),
        identity=post(b"Transfer-Encoding: identity\r\n", b"hello"),
        chunks_in_1_0=b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        a_chunk_of_minus_one=chunks(b"-1\r\nx\r\n0\r\n\r\n"),
        a_chunk_with_0x=chunks(b"0x1\r\nx\r\n0\r\n\r\n"),
        a_chunk_in_letters=chunks(b"one\r\nx\r\n0\r\n\r\n"),
        a_chunk_of_16_fs=chunks(b"ffffffffffffffff\r\nx"),
        a_space_before_a_chunks_size=chunks(b" 1\r\nx\r\n0\r\n\r\n"),
        a_space_after_a_chunks_size=chunks(b"1 \r\nx\r\n0\r\n\r\n"),
        a_chunk_with_a_plus=chunks(b"+1\r\nx\r\n0\r\n\r\n"),
        a_chunk_with_an_underscore=chunks(b"0_1\r\nx\r\n0\r\n\r\n"),
        a_chunk_without_a_size=chunks(b"\r\nx\r\n0\r\n\r\n"),
        cr_in_an_extension=chunks(b"1;a\rb\r\nx\r\n0\r\n\r\n"),
        lf_after_the_last_chunk=chunks(b"0\n\r\n"),
        lf_after_a_trailer=chunks(b"0\r\nA: b\n\r\n\r\n"),
        a_coding_in_the_trailers=chunks(b"0\r\nTransfer-Encoding: chunked\r\n\r\n"),
        a_host_in_the_trailers=chunks(b"0\r\nHost: y\r\n\r\n"),
        no_colon_in_a_trailer=chunks(b"0\r\nName\r\n\r\n"),
        many_trailers=chunks(b"0\r\n" + b"a: b\r\n" * 300 + b"\r\n"),
        lf_after_a_chunks_size=chunks(b"1\nx\r\n0\r\n\r\n"),
        lf_after_a_chunk=chunks(b"1\r\nx\n0\r\n\r\n"),
        more_than_the_chunks_size=chunks(b"1\r\nxy\r\n0\r\n\r\n"),
        lf_in_an_extension=chunks(b"1;a\nb\r\nx\r\n0\r\n\r\n"),
        a_length_in_the_trailers=chunks(b"0\r\nContent-Length: 5\r\n\r\n"),
        a_folded_trailer=chunks(b"0\r\nA: b\r\n c\r\n\r\n"),
        many_empty_lines=b"\r\n" * 1000 + GET,
    ),
    **refused(411, no_length_in_1_0=b"POST / HTTP/1.0\r\n\r\nhello"),
    **refused(
        413,
        a_length_beyond_the_limit=post(b"Content-Length: 100001\r\n"),
        a_length_of_terabytes=post(b"Content-Length: 9999999999999\r\n"),
        it_in_spite_of_an_expectation=post(b"Content-Length: 100001\r\nExpect: 100-continue\r\n"),
        a_chunk_beyond_the_limit=chunks(b"186a1\r\n" + bytes(100_001)),
    ),
    **refused(414, a_long_target=b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n"),
    **refused(417, a_strange_expectation=post(b"Expect: miracles\r\nContent-Length: 0\r\n")),
    **refused(
        431,
        a_long_value=b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"v" * 70_000 + b"\r\n\r\n",
        a_long_name=b"GET / HTTP/1.1\r\nHost: x\r\n" + b"n" * 70_000 + b": v\r\n\r\n",
        one_field_too_many=b"GET / HTTP/1.1\r\nHost: x\r\n" + b"a: b\r\n" * 256 + b"\r\n",
        many_fields=b"GET / HTTP/1.1\r\nHost: x\r\n" + b"a: b\r\n" * 3000 + b"\r\n",
    ),
    **refused(
        501,
        another_coding=post(b"Transfer-Encoding: gzip, chunked\r\n", b"0\r\n\r\n"),
        nothing_and_chunked=post(b"Transfer-Encoding: ,chunked\r\n", b"0\r\n\r\n"),
        identity_and_chunked=post(b"Transfer-Encoding: identity, chunked\r\n", b"0\r\n\r\n"),
        a_method_in_small_letters=b"get / HTTP/1.1\r\nHost: x\r\n\r\n",
        a_method_of_100_letters=b"M" * 100 + b" / HTTP/1.1\r\nHost: x\r\n\r\n",
        a_method_nobody_knows=b"BREW / HTTP/1.1\r\nHost: x\r\n\r\n",
    ),
    **refused(
        505,
        version_2=b"GET / HTTP/2.0\r\nHost: x\r\n\r\n",
        version_1_2=b"GET / HTTP/1.2\r\nHost: x\r\n\r\n",
        version_3=b"GET / HTTP/3.0\r\nHost: x\r\n\r\n",
        version_0_9=b"GET / HTTP/0.9\r\nHost: x\r\n\r\n",
        the_preface_of_HTTP_2=b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ),
    # --- without an end
    "an endless method": Case((Endless(b"A" * 8192),), [501]),
    "an endless target": Case((b"GET /", Endless(b"x" * 8192)), [414]),
    "an endless value": Case((b"GET / HTTP/1.1\r\nA: ", Endless(b"x" * 8192)), [431]),
    "endless fields": Case((b"GET / HTTP/1.1\r\n", Endless(b"a: b\r\n" * 1000)), [431]),
    "endless empty lines": Case((Endless(b"\r\n" * 4096),), [400]),
    "endless chunks": Case((chunks(b""), Endless(b"1\r\nx\r\n" * 1000)), [413]),
    "an endless body": Case(
        (post(b"Content-Length: 9999999999999\r\n"), Endless(bytes(65536))), [413], most=30_000_000
    ),
    "an endless chunk": Case((chunks(b"fffffff\r\n"), Endless(bytes(8192))), [413]),
    "an endless size of a chunk": Case((chunks(b""), Endless(b"0" * 8192)), [400]),
    "an endless extension": Case((chunks(b"1;"), Endless(b"a" * 8192)), [400]),
    "more extensions than data": Case(
        (chunks(b""), Endless((b"1;" + b"e" * 500 + b"\r\nx\r\n") * 20)), [400]
    ),
    "endless trailers": Case((chunks(b"0\r\n"), Endless(b"a: b\r\n" * 1000)), [400]),
    "many requests at once": Case((GET * 2000, HALF), [200] * 2000),
    # The server takes no more requests than it can get rid of answers.
    "a flood of requests": Case((Endless(GET * 100),), [], deaf=True),
    "a flood of requests, and a reset": Case((GET * 2000, RESET), [], deaf=True),
    "more after the end was told": Case(
        (b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", Endless(GET * 100)), [200]
    ),
    # --- odd, and yet right
    **served(
        an_empty_line_before_it=b"\r\n" + GET,
        an_empty_host=b"GET / HTTP/1.1\r\nHost:\r\n\r\n",
        no_host_in_1_0=b"GET / HTTP/1.0\r\n\r\n",
        a_url=b"GET http://y/p HTTP/1.1\r\nHost: x\r\n\r\n",
        as_many_fields_as_may_be=(b"GET / HTTP/1.1\r\nHost: x\r\n" + b"a: b\r\n" * 255 + b"\r\n"),
        a_value_beyond_ascii=b"GET / HTTP/1.1\r\nHost: x\r\nA: \xff\r\n\r\n",
        a_target_that_climbs=b"GET /../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n",
        a_body_of_get=b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello",
        a_length_with_zeros=post(b"Content-Length: 0005\r\n", b"hello"),
        no_body_of_post=post(b""),
        a_coding_after_a_tab=post(b"Transfer-Encoding:\tCHUNKED\r\n", b"0\r\n\r\n"),
        an_underscore_in_the_name=post(b"Transfer_Encoding: x\r\n"),
        a_chunk_with_zeros=chunks(b"000000000000001\r\nx\r\n0\r\n\r\n"),
        chunks_of_one_byte=chunks(b"1\r\nx\r\n" * 50_000 + b"0\r\n\r\n"),
        extensions=chunks(b'1;a;b=c;d="e\\"f"\r\nx\r\n' * 100 + b"0;a\r\n\r\n"),
        trailers=chunks(b"0\r\n" + b"a: b\r\n" * 200 + b"\r\n"),
        as_much_as_may_be=post(b"Content-Length: 100000\r\n", bytes(100_000)),
        another_protocol=(
            b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
        ),
    ),
    "requests in one piece with bodies": Case(
        ((post(b"Content-Length: 5\r\n", b"hello") + chunks(b"1\r\nx\r\n0\r\n\r\n")) * 200, HALF),
        [200] * 400,
    ),
    "requests cut in odd places": Case(
        (*((GET * 30)[at : at + 7] for at in range(0, 30 * len(GET), 7)), HALF), [200] * 30
    ),
    # --- slowly
    "nothing": Case((), []),
    "a slow request line": Case(slowly(b"GET /a/long/target HTTP/1.1\r\n"), [408]),
    "slow fields": Case((b"GET / HTTP/1.1\r\n", Endless(b"a: b\r\n", 1.0)), [408]),
    "slow empty lines": Case((Endless(b"\r\n", 1.0),), [400]),
    "silence in the request line": Case((b"GE",), [408]),
    "silence in the fields": Case((b"GET / HTTP/1.1\r\nHost",), [408]),
    "silence before the body": Case((post(b"Content-Length: 5\r\n"),), [408]),
    "silence in the body": Case((post(b"Content-Length: 5\r\n", b"he"),), [408]),
    "silence in a chunk": Case((chunks(b"5\r\nhe"),), [408]),
    "silence in the trailers": Case((chunks(b"0\r\nA"),), [408]),
    "silence after an expectation": Case(
        (post(b"Content-Length: 5\r\nExpect: 100-continue\r\n"),), [100, 408]
    ),
    "a slow body": Case((post(b"Content-Length: 100\r\n"), *slowly(bytes(100))), [408]),
    "slow chunks": Case((chunks(b""), Endless(b"1\r\nx\r\n", 1.0)), [408]),
    "requests now and then, then none": Case((GET, 5.0, GET, 5.0, GET), [200, 200, 200]),
    "a request byte by byte": Case((*slowly(GET, 0.1), CLOSE), [200]),
    "a body byte by byte": Case(
        (post(b"Content-Length: 5\r\nConnection: close\r\n"), *slowly(b"hello", 0.1)), [200]
    ),
    # --- gone
    "the end at once": Case((CLOSE,), []),
    "a reset at once": Case((RESET,), []),
    "the end in the request line": Case((b"GET", CLOSE), []),
    "the end in the fields": Case((b"GET / HTTP/1.1\r\nHost", CLOSE), []),
    "a reset in the fields": Case((b"GET / HTTP/1.1\r\nHost", RESET), []),
    "the end in the body": Case((post(b"Content-Length: 5\r\n", b"he"), CLOSE), []),
    "a reset in the body": Case((post(b"Content-Length: 5\r\n", b"he"), RESET), []),
    "the end in a chunk": Case((chunks(b"5\r\nhe"), CLOSE), []),
    "half a request, and no more": Case((b"GET / HTTP/1.1\r\nHost", HALF), []),
    "half a body, and no more": Case((post(b"Content-Length: 5\r\n", b"he"), HALF), []),
    "a request, and no more": Case((GET, HALF), [200]),
    "three requests, and no more": Case((GET * 3, HALF), [200, 200, 200]),
    "a request, and away": Case((GET, RESET), []),
    "an end in the middle of pipelined requests": Case((GET * 3 + GET[:9], HALF), [200] * 3),
    "the end in the trailers": Case((chunks(b"0\r\nA: b\r\n"), HALF), []),
    "the end instead of what was expected": Case(
        (post(b"Content-Length: 5\r\nExpect: 100-continue\r\n"), 1.0, HALF), [100]
    ),
    "a good request before a bad one": Case((GET + b"garbage\r\n\r\n",), [200, 400]),
    "a good request before a long one": Case(
        (GET + post(b"Content-Length: 100001\r\n"),), [200, 413]
    ),
    "a hidden request": Case(
        (post(b"Content-Length: 0\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n" + GET),), [400]
    ),
}


@coroutine
def answer(request: HTTPServerRequest) -> Generator[Any, Any, Response]:
    """Say how long the body was."""
    yield
    return Response(b"%d bytes" % len(request.body))


class Client:
    """Plays a plan.

    Attributes:
        received: all that came back.
        sent: how many bytes were sent.
    """

    def __init__(self, stream: IOStream) -> None:
        self._stream = stream
        self.received = bytearray()
        self.sent = 0

    @coroutine
    def play(self, plan: tuple[Any, ...], reads: bool) -> Generator[Any, Any, None]:
        """Send, and read what comes until the server ends the connection."""
        reading = self._read() if reads else None
        try:
            for step in plan:
                yield from self._do(step)
        except StreamClosedError:
            pass
        if reading is not None:
            yield reading
        self._stream.close()

    def _do(self, step: Any) -> Generator[Any, Any, None]:
        stream = self._stream
        if step == CLOSE:
            stream.close()
        elif step == RESET:
            stream.abort()
        elif step == HALF:
            yield stream.send_eof()
        elif isinstance(step, bytes):
            yield stream.write(step)
            self.sent += len(step)
        elif isinstance(step, Endless):
            while True:
                yield from self._do(step.piece)
                if step.pause:
                    yield sleep(step.pause)
        else:
            yield sleep(step)

    @coroutine
    def _read(self) -> Generator[Any, Any, None]:
        try:
            while True:
                self.received += yield self._stream.read_bytes(65536, partial=True)
        except StreamClosedError:
            pass

    def statuses(self) -> list[int]:
        """Return the statuses of the answers."""
        found = re.findall(rb"HTTP/1\.1 (\d+) ", bytes(self.received))
        return [int(each) for each in found]


def ask(port: int, **how: Any) -> Generator[Any, Any, None]:
    """Be served as an honest client."""
    stream = yield connect("127.0.0.1", port, **how)
    yield stream.write(GET)
    head = yield stream.read_until(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    stream.close()


@coroutine
def attack(case: Case, ca: Authority | None = None) -> Generator[Any, Any, Client]:
    """Return the client when its connection is over; honest ones came meanwhile and after it.

    With an authority, they speak TLS.
    """
    how: dict[str, Any] = {}
    tls = None
    if ca is not None:
        tls = ca.server_context()
        how = {"ssl_options": ca.client_context(), "server_hostname": "localhost"}
    server = HTTPServer(answer, ssl_options=tls, **LIMITS)
    server.listen(0, "127.0.0.1")
    (listening,) = server.sockets
    port = listening.getsockname()[1]
    buffers: dict[str, Any] = {}
    if isinstance(listening, socket.socket):
        # What the system takes for the server is not to be counted: it may be ten megabytes.
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        buffers["socket_options"] = [(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)]
    stream = yield connect("127.0.0.1", port, half_open=True, tls_half_close=True, **how, **buffers)
    client = Client(stream)
    playing = client.play(case.plan, not case.deaf)
    try:
        for _ in range(3):
            yield with_timeout(timeout_of(SOON), coroutine(ask)(port, **how))
        yield playing
        yield with_timeout(timeout_of(SOON), coroutine(ask)(port, **how))
    finally:
        yield server.shutdown(5)
    assert server.statistics()["connections"] == 0
    assert client.sent < case.most
    return client


def timeout_of(seconds: float) -> float:
    return IOLoop.current().time() + seconds


def check(case: Case, client: Client) -> None:
    assert client.statuses() == case.statuses, bytes(client.received[:500])


@pytest.fixture
def loop() -> Iterator[IOLoop]:
    loop = virtual_loop()
    yield loop
    left = loop.statistics()
    assert (left["handlers"], left["timers"], left["tasks"]) == (0, 0, 0)
    loop.close()
    IOLoop.clear_current()


@pytest.mark.parametrize("name", CASES)
def test_on_sockets(loop: IOLoop, name: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    case = CASES[name]
    check(case, loop.run_sync(lambda: attack(case)))
    assert len(caplog.records) <= 1
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


@pytest.mark.parametrize("name", CASES)
def test_over_tls(name: str, ca: Authority, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    case = CASES[name]
    with closing_loop() as loop:
        check(case, loop.run_sync(lambda: attack(case, ca)))
    assert len(caplog.records) <= 1
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


@contextlib.contextmanager
def at_most(size: int) -> Iterator[None]:
    """The memory that the block takes meanwhile, in bytes."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < size


@pytest.mark.parametrize("name", CASES)
def test_memory(name: str) -> None:
    """That of the client is in it: what it sends, and what it receives."""
    case = CASES[name]
    with closing_loop() as loop, at_most(2_000_000):
        loop.run_sync(lambda: attack(case))


@coroutine
def crowd(count: int) -> Generator[Any, Any, None]:
    """Very many who only hold a connection, each at another point, stand in nobody's way."""
    server = HTTPServer(answer, **LIMITS)
    server.listen(0, "127.0.0.1", backlog=count)
    port = server.sockets[0].getsockname()[1]
    streams = []
    begun = (b"", b"GET / HT", GET, post(b"Content-Length: 5\r\n", b"he"), chunks(b"5\r\nhe"))
    for number in range(count):
        stream = yield connect("127.0.0.1", port)
        yield stream.write(begun[number % len(begun)])
        streams.append(stream)
    while server.statistics()["requests"] < count * 3 // 5:
        yield sleep(0.01)
    assert server.statistics()["connections"] == count
    for _ in range(3):
        yield with_timeout(timeout_of(SOON), coroutine(ask)(port))
    # In time each is over, and nothing is left of it.
    yield sleep(2 * LIMITS["idle_connection_timeout"])
    assert server.statistics()["connections"] == 0
    for stream in streams:
        stream.close()
    yield server.shutdown(5)


def test_a_crowd_on_sockets(loop: IOLoop) -> None:
    with at_most(400 * 15_000):
        loop.run_sync(lambda: crowd(400))


def test_a_crowd_in_simulation() -> None:
    simulate(crowd, 3000, timeout=1000)


@pytest.mark.parametrize("name", CASES)
def test_in_simulation(name: str) -> None:
    case = CASES[name]
    for seed in range(3):
        check(case, simulate(attack, case, seed=seed, timeout=1000))
