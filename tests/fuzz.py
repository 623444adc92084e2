"""Bytes that nobody would send: ``python -m tests.fuzz [--seconds N] [--seed N] [--only TARGET]``.

What is received from the network is decoded by rooms that do no I/O: responses, requests, and
compressed bodies. Whatever comes, and in whatever pieces, it is one of two things: a message, or
refused by ``HTTPInputError``; and how it was cut never changes which, nor what is read.

Bytes are made in three ways. Some are drawn; some are put together by a grammar, most of whose
words belong where they stand; most are what was interesting before, changed a little: bytes are
flipped, cut out, doubled, numbers are replaced, lines change places, two messages are joined.
Interesting is what a decoder answered in a way that it had not answered in before: another error,
another combination of what was found. So the fuzzer finds its way to the inner states by itself.

It ends at the first failure, and says how to replay it: a seed draws the same bytes each time.
"""

from __future__ import annotations

import functools
import gzip
import itertools
import re
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import brotli
import click

from coro.errors import HTTPInputError
from coro.http.codec import ResponseDecoder
from coro.http.incoming import RequestDecoder
from tests.http.hostile import Endless
from tests.http.hostile import cases as hostile_cases
from tests.http.readings import read_coded, read_requests, read_response, split
from tests.support.zstandard import zstd

__all__ = ["TARGETS", "Failure", "Target", "fuzz"]

# Of what was interesting, so much is kept; and so long may it be.
MAX_CORPUS = 3000
MAX_BYTES = 2000

# Longer input is not fed byte by byte, which takes long.
MAX_BYTEWISE = 300


class Failure(Exception):
    """A decoder did something that it must not do."""


# --- what is fuzzed ------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """A decoder.

    Attributes:
        read: reads pieces, with options; equal results are equal.
        options: draws options for it.
        explain: returns what the decoder says to the whole, in words.
        seeds: to begin with.
        words: to build from: lists of alternatives for each place, in order; a list that is named
            "*" may be drawn from several times, or not at all.
    """

    read: Callable[..., Any]
    options: Callable[[Random], dict[str, Any]]
    explain: Callable[..., str]
    seeds: Sequence[bytes]
    words: Sequence[tuple[str, Sequence[bytes]]]


_FIELDS = [
    *(b"Content-Length: 5\r\n", b"Content-Length: 0\r\n", b"content-length:\t3 \r\n"),
    *(b"Content-Length: 5, 5\r\n", b"Content-Length: +5\r\n", b"Content-Length: 0x5\r\n"),
    *(b"Content-Length: 99999999999999999999\r\n", b"Content-Length: \r\n"),
    *(b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: gzip, chunked\r\n"),
    *(b"Transfer-Encoding: Chunked \r\n", b"Transfer-Encoding: \x0bchunked\r\n"),
    *(b"Connection: close\r\n", b"Connection: keep-alive\r\n", b"Connection: upgrade\r\n"),
    *(b"Upgrade: x\r\n", b"Content-Encoding: gzip\r\n", b"Set-Cookie: a=b\r\n"),
    *(b"A: b\r\n", b"A:\r\n", b"A : b\r\n", b" folded\r\n", b"no colon\r\n", b": no name\r\n"),
    *(b"X: \xff\xfe\r\n", b"X: a\x00b\r\n", b"X: a\rb\r\n", b"X: a\nb\r\n", b"Trailer: A\r\n"),
]
_ENDS = [b"\r\n"] * 8 + [b"\n", b"\r", b"", b"\r\n\r\n", b" \r\n"]
_BODIES = [
    *(b"hello", b"", b"hel", b"hellohello", b"5\r\nhello\r\n", b"5\r\nhello\r\n0\r\n\r\n"),
    *(
        b"0\r\n\r\n",
        b"0\r\nA: b\r\n\r\n",
        b"0\r\nContent-Length: 1\r\n\r\n",
        b'5;x="a;b"\r\nhello\r\n',
    ),
    *(b"5;x\r\nhello\r\n", b"5 ;x\r\nhello\r\n", b"05\r\nhello\r\n", b"fffffffffffffff\r\n"),
    *(
        b"10000000000000000\r\n",
        b"-1\r\n",
        b"5\nhello\n",
        b"5\r\nhelloX\r\n",
        b"0\r\nA: b\n\n",
        b"\r\n",
    ),
]


def _in_words(error: HTTPInputError) -> str:
    """Say what is wrong, but not with which bytes."""
    return re.sub("b?['\"].*", "", str(error))


def _limits(random: Random) -> dict[str, Any]:
    """As they are, mostly; or so small that they are met."""
    if random.random() < 0.7:
        return {}
    name = random.choice(("max_header_bytes", "max_headers"))
    return {name: random.randint(1, 150) if name == "max_header_bytes" else random.randint(1, 4)}


def _response_options(random: Random) -> dict[str, Any]:
    return {"method": random.choice(("GET", "GET", "GET", "HEAD", "CONNECT")), **_limits(random)}


def _explain_response(data: bytes, method: str, **limits: int) -> str:
    decoder = ResponseDecoder(**limits)
    decoder.begin(method)
    try:
        decoder.feed(data)
    except HTTPInputError as error:
        return _in_words(error)
    head = decoder.head
    kind = head and (head.status // 100, head.http_version, head.chunked, head.content_length)
    found = bool(decoder.body), bool(decoder.surplus), bool(len(decoder.trailers))
    return f"{decoder!r} {kind} {found} {decoder.interim} {decoder.reusable} {decoder.upgraded}"


def _request_options(random: Random) -> dict[str, Any]:
    if random.random() < 0.1:
        return {"max_target_bytes": random.randint(1, 60)}
    return _limits(random)


_POST = b"POST /p HTTP/1.1\r\nHost: a\r\n"
_METHODS = ("GET", "HEAD", "POST", "PUT", "OPTIONS", "CONNECT")


def _explain_request(data: bytes, **limits: int) -> str:
    decoder = RequestDecoder(**limits)
    try:
        head = decoder.feed(data)
        if head is not None:
            body = decoder.feed_body(b"") if not decoder.complete else b""
            kind = head.method in _METHODS, head.http_version, head.content_length, head.chunked
            return f"{decoder!r} {kind} {bool(body)} {bool(decoder.rest)}"
    except HTTPInputError as error:
        return _in_words(error)
    return f"{decoder!r} {decoder.begun}"


_CODINGS = ("gzip", "deflate", "br", "zstd", "gzip, gzip", "zstd, gzip")


def _coded_options(random: Random) -> dict[str, Any]:
    return {"coding": random.choice(_CODINGS), "step": random.choice((1, 7, 1000, 65536))}


def _explain_coded(data: bytes, coding: str, step: int) -> str:
    found = read_coded([data], coding, step)
    return f"{coding} {found if isinstance(found, str) else len(found).bit_length()}"


_TEXT = b"Generators all the way down. " * 9

TARGETS: dict[str, Target] = {
    "responses": Target(
        read_response,
        _response_options,
        _explain_response,
        [
            b"".join(step.piece if isinstance(step, Endless) else step for step in each)[:MAX_BYTES]
            for each in (
                [step for step in case.plan if isinstance(step, bytes | Endless)]
                for case in hostile_cases().values()
            )
        ],
        [
            (
                "*",
                [
                    b"HTTP/1.1 100 Continue\r\n\r\n",
                    b"HTTP/1.1 103 Hints\r\nLink: x\r\n\r\n",
                    b"\r\n",
                ],
            ),
            (
                "start",
                [
                    *[b"HTTP/1.1 200 OK\r\n"] * 6,
                    *(b"HTTP/1.0 200 OK\r\n", b"HTTP/1.1 204 \r\n", b"HTTP/1.1 304 Not\r\n"),
                    *(b"HTTP/1.1 101 S\r\n", b"HTTP/1.1 200\r\n", b"HTTP/2.0 200 OK\r\n"),
                    *(
                        b"HTTP/1.1 099 \r\n",
                        b"http/1.1 200 OK\r\n",
                        b"HTTP/1.1  200 OK\r\n",
                        b"ICY 200\r\n",
                    ),
                ],
            ),
            ("*", _FIELDS),
            ("end", _ENDS),
            ("*", _BODIES),
        ],
    ),
    "requests": Target(
        read_requests,
        _request_options,
        _explain_request,
        [
            b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 2,
            _POST + b"Content-Length: 5\r\n\r\nhelloGET / HTTP/1.0\r\n\r\n",
            _POST + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nA: b\r\n\r\n",
            _POST + b"Connection: upgrade\r\nUpgrade: websocket\r\n\r\n\x81\x05hello",
            b"OPTIONS * HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n\r\n",
            b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n\x16\x03\x01",
        ],
        [
            ("*", [b"\r\n", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"\n"]),
            (
                "start",
                [
                    *(b"GET / HTTP/1.1\r\n", b"POST /p?q HTTP/1.1\r\n", b"PUT /p HTTP/1.1\r\n"),
                    *(
                        b"HEAD / HTTP/1.0\r\n",
                        b"OPTIONS * HTTP/1.1\r\n",
                        b"CONNECT a:1 HTTP/1.1\r\n",
                    ),
                    *(b"GET http://a/ HTTP/1.1\r\n", b"get / HTTP/1.1\r\n", b"GET  / HTTP/1.1\r\n"),
                    *(
                        b"GET / HTTP/2.0\r\n",
                        b"GET /\r\n",
                        b"GET /\xff HTTP/1.1\r\n",
                        b"GET / HTTP/1.1 \r\n",
                    ),
                    *(
                        b"BREW / HTTP/1.1\r\n",
                        b"GET #x HTTP/1.1\r\n",
                        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
                    ),
                ],
            ),
            (
                "host",
                [
                    *[b"Host: a\r\n"] * 9,
                    b"",
                    b"Host: a\r\nHost: a\r\n",
                    b"Host: a b\r\n",
                    b"host:\r\n",
                ],
            ),
            ("*", [*_FIELDS, b"Expect: 100-continue\r\n", b"Expect: x\r\n"]),
            ("end", _ENDS),
            ("*", _BODIES),
        ],
    ),
    "codings": Target(
        read_coded,
        _coded_options,
        _explain_coded,
        [
            gzip.compress(_TEXT, mtime=0),
            gzip.compress(b"", mtime=0) * 3 + gzip.compress(b"a", mtime=0),
            zlib.compress(_TEXT),
            zlib.compress(_TEXT, wbits=-15),
            brotli.compress(_TEXT),
            zstd.compress(_TEXT) * 2,
            gzip.compress(gzip.compress(_TEXT, mtime=0), mtime=0),
            gzip.compress(zstd.compress(_TEXT), mtime=0),
            gzip.compress(bytes(100_000), mtime=0),
        ],
        [
            (
                "*",
                [
                    b"\x1f\x8b\x08",
                    b"\x78\x9c",
                    b"\x28\xb5\x2f\xfd",
                    b"\x50\x2a\x4d\x18",
                    bytes(8),
                    b"a",
                ],
            )
        ],
    ),
}


# --- how bytes are made --------------------------------------------------------------------


def _build(target: Target, random: Random) -> bytes:
    """Put words together in the order of the grammar; now and then in another."""
    parts: list[bytes] = []
    for name, words in target.words:
        count = random.choice((0, 1, 1, 2, 3, 6)) if name == "*" else 1
        parts += [random.choice(words) for _ in range(count)]
    if random.random() < 0.1:
        random.shuffle(parts)
    return b"".join(parts)


_NUMBERS = (b"0", b"1", b"4", b"5", b"6", b"15", b"16", b"200", b"999", b"4294967296", b"1" * 20)
_BYTES = b'\r\n\t :;,"\\=\x00\x0b\x7f\x80\xff09afAFgG-+%.'


def _mutate(data: bytes, target: Target, corpus: Sequence[bytes], random: Random) -> bytes:
    """Change something."""
    at, to = sorted(random.randrange(len(data) + 1) for _ in range(2))
    to = min(to, at + random.choice((1, 2, 8, 60)))
    match random.randrange(10):
        case 0:
            return data[:at] + bytes([random.randrange(256)]) + data[at + 1 :]
        case 1:
            return data[:at] + bytes([random.choice(_BYTES)]) + data[at + random.randrange(2) :]
        case 2:
            return data[:at] + data[to:]
        case 3:
            return data[:to] + data[at:to] * random.choice((1, 1, 2, 40)) + data[to:]
        case 4:
            other = random.choice(corpus)
            return data[:at] + other[random.randrange(len(other) + 1) :]
        case 5:
            words = random.choice(target.words)[1]
            return data[:at] + random.choice(words) + data[at:]
        case 6:
            lines = data.split(b"\r\n")
            one, other_one = (random.randrange(len(lines)) for _ in range(2))
            lines[one], lines[other_one] = lines[other_one], lines[one]
            return b"\r\n".join(lines)
        case 7:
            numbers = list(re.finditer(rb"[0-9a-fA-F]+", data))
            if not numbers:
                return data + b"0"
            found = random.choice(numbers)
            return data[: found.start()] + random.choice(_NUMBERS) + data[found.end() :]
        case 8:
            return data[:at] + data[at:to].swapcase() + data[to:]
        case _:
            return data[:at] + random.randbytes(random.choice((1, 2, 5, 30))) + data[to:]


def _draw(target: Target, corpus: Sequence[bytes], random: Random) -> bytes:
    chance = random.random()
    if chance < 0.05:
        return random.randbytes(random.randrange(60))
    data = _build(target, random) if chance < 0.3 else random.choice(corpus)
    for _ in range(random.choice((0, 1, 1, 2, 4))):
        data = _mutate(data, target, corpus, random)
    return data[:MAX_BYTES]


def _cuts(data: bytes, random: Random) -> Iterable[Sequence[int]]:
    """Say how to cut: anywhere, at the ends of lines and beside them, and byte by byte."""
    places = range(1, len(data))
    yield random.sample(places, min(len(places), random.choice((1, 1, 2, 3, 9))))
    ends = {at for each in re.finditer(rb"[\r\n]", data) for at in (each.start(), each.end())}
    yield [at for at in sorted(ends) if at in places and random.random() < 0.7]
    if len(data) <= MAX_BYTEWISE:
        yield places


# --- the fuzzer ----------------------------------------------------------------------------


def _check(target: Target, data: bytes, options: dict[str, Any], random: Random) -> str:
    """Read bytes in one piece and in several; return in what way the decoder answered."""
    cuts: Sequence[int] = ()
    try:
        whole = target.read([data], **options)
        for cuts in _cuts(data, random):
            if target.read(split(data, *cuts), **options) != whole:
                raise Failure("it depends on the pieces what is read")
        cuts = ()
        said = target.explain(data, **options)
    except Exception as error:
        what = str(error) if isinstance(error, Failure) else f"{type(error).__name__}: {error}"
        raise Failure(
            f"{what}\ndata = {data!r}\ncuts = {list(cuts)}\noptions = {options}"
        ) from error
    return re.sub("[0-9]+", "_", said)


def fuzz(target: Target, seed: int, enough: Callable[[int], bool]) -> tuple[int, int]:
    """Try one input after another.

    Arguments:
        seed: of all that is drawn.
        enough: whether so many inputs are enough.
    Returns:
        How many there were, and in how many ways they were answered.
    Raises:
        Failure: the decoder failed.
    """
    random = Random(seed)
    corpus = list(target.seeds)
    known: set[str] = set()
    for count in itertools.count():
        if count < len(target.seeds):
            data = target.seeds[count]
        elif enough(count):
            return count, len(known)
        else:
            data = _draw(target, corpus, random)
        answered = _check(target, data, target.options(random), random)
        if answered not in known:
            known.add(answered)
            if len(corpus) < MAX_CORPUS:
                corpus.append(data)
    raise AssertionError("counting does not end")


def _is_past(end: float, _count: int) -> bool:
    return time.monotonic() > end


@click.command()
@click.option("--seconds", default=60.0, show_default=True, help="For all targets together.")
@click.option("--seed", type=int, help="Draw what was drawn before. By default: something new.")
@click.option("--only", type=click.Choice([*TARGETS]), help="This target alone.")
def main(seconds: float, seed: int | None, only: str | None) -> None:
    """Feed the decoders with bytes that nobody would send."""
    names = [name for name in TARGETS if only in (None, name)]
    seed = time.time_ns() % 1_000_000_000 if seed is None else seed
    for name in names:
        end = time.monotonic() + seconds / len(names)
        try:
            count, ways = fuzz(TARGETS[name], seed, functools.partial(_is_past, end))
        except Failure as failure:
            again = f"python -m tests.fuzz --only {name} --seed {seed}"
            raise click.ClickException(f"{failure}\nreplay it with: {again}") from failure
        click.echo(f"{name}: {count:,} inputs, answered in {ways:,} ways, seed {seed}: all is well")


if __name__ == "__main__":
    main()
