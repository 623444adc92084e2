"""``FrameCodec``: the rules of RFC 6455 and RFC 7692, frame by frame, in the manner of Autobahn."""

from __future__ import annotations

import random
import tracemalloc
import zlib
from collections.abc import Callable
from typing import Any

import pytest

from coro.http.frames import Closing, Deflate, Fault, FrameCodec, Ping, Pong
from tests.support.frames import MASK, closing, frame

LIMIT = 100_000

KINDS: dict[str, Callable[[bytes], list[bytes]]] = {
    "whole": lambda data: [data],
    "byte by byte": lambda data: [data[i : i + 1] for i in range(len(data))],
    "in three": lambda data: [data[: len(data) // 3], data[len(data) // 3 :]],
}


def seen(codec: FrameCodec, data: bytes, kind: str = "whole") -> list[Any]:
    """What a codec makes of bytes; of faults and control frames, what can be compared."""
    found: list[Any] = []
    for piece in KINDS[kind](data):
        codec.feed(piece)
        for event in codec.events():
            if isinstance(event, Fault):
                found.append(("fault", event.code))
            elif isinstance(event, Ping | Pong):
                found.append((type(event).__name__.lower(), bytes(event.payload)))
            elif isinstance(event, Closing):
                found.append(("close", event.code, event.reason))
            else:
                found.append(event)
    return found


def server(deflate: Deflate | None = None, limit: int = LIMIT) -> FrameCodec:
    return FrameCodec(False, limit, deflate)


def client(deflate: Deflate | None = None, limit: int = LIMIT) -> FrameCodec:
    return FrameCodec(True, limit, deflate)


def f(opcode: int, payload: bytes = b"", **more: Any) -> bytes:
    return frame(opcode, payload, mask=MASK, **more)


def c(code: int, reason: bytes = b"") -> bytes:
    return closing(code, reason, MASK)


BROKEN = ("fault", 1002)
NO_UTF8 = ("fault", 1007)
TOO_BIG = ("fault", 1009)

SPLIT = "Hello-µ@ßöäüàá-UTF-8!!".encode()
BAD = b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xf4\x90\x80\x80\x65"


def cases(mask: bytes | None) -> dict[str, tuple[bytes, list[Any]]]:
    """What one side sends, a client if there is a mask, and what the other is to make of it."""

    def f(opcode: int, payload: bytes = b"", **more: Any) -> bytes:
        return frame(opcode, payload, mask=mask, **more)

    def c(code: int, reason: bytes = b"") -> bytes:
        return closing(code, reason, mask)

    return {
        # 1: sizes
        **{
            f"text of {n}": (f(1, b"*" * n), ["*" * n])
            for n in (0, 1, 125, 126, 127, 128, 65535, 65536)
        },
        **{
            f"binary of {n}": (f(2, b"\xfe" * n), [b"\xfe" * n])
            for n in (0, 125, 126, 127, 128, 65535, 65536)
        },
        # 2: pings and pongs
        "ping without payload": (f(9), [("ping", b"")]),
        "ping with payload": (f(9, b"\x00\xff\xfe"), [("ping", b"\x00\xff\xfe")]),
        "ping of 125 bytes": (f(9, b"\xfe" * 125), [("ping", b"\xfe" * 125)]),
        "ping of 126 bytes": (f(9, b"\xfe" * 126), [BROKEN]),
        "pong unasked for": (f(10, b"x"), [("pong", b"x")]),
        "ten pings": (
            b"".join(f(9, b"%d" % i) for i in range(10)),
            [("ping", b"%d" % i) for i in range(10)],
        ),
        # 3: reserved bits
        **{f"reserved bits {bits:03b}": (f(1, b"x", rsv=bits), [BROKEN]) for bits in range(1, 8)},
        "reserved bit of a ping": (f(9, b"x", rsv=4), [BROKEN]),
        "reserved bit of a close": (f(8, b"\x03\xe8", rsv=2), [BROKEN]),
        "reserved bit after a message": (f(1, b"a") + f(1, b"b", rsv=1), ["a", BROKEN]),
        # 4: opcodes
        **{
            f"opcode {code}": (f(code, b"x"), [BROKEN])
            for code in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)
        },
        # 5: fragments
        "ping in two": (f(9, b"a", fin=False) + f(0, b"b"), [BROKEN]),
        "pong in two": (f(10, b"a", fin=False) + f(0, b"b"), [BROKEN]),
        "close in two": (f(8, b"\x03\xe8", fin=False) + f(0), [BROKEN]),
        "text in two": (f(1, b"a", fin=False) + f(0, b"b"), ["ab"]),
        "binary in two": (f(2, b"a", fin=False) + f(0, b"b"), [b"ab"]),
        "text in empty ones": (f(1, fin=False) + f(0, fin=False) + f(0), [""]),
        "binary in empty ones": (f(2, fin=False) + f(0, b"x", fin=False) + f(0), [b"x"]),
        "a ping between fragments": (
            f(1, b"a", fin=False) + f(9, b"p") + f(0, b"b"),
            [("ping", b"p"), "ab"],
        ),
        "pings between many": (
            f(1, b"1", fin=False) + f(9, b"p") + f(0, b"2", fin=False) + f(10, b"q") + f(0, b"3"),
            [("ping", b"p"), ("pong", b"q"), "123"],
        ),
        "continuation of nothing": (f(0, b"x"), [BROKEN]),
        "continuation of nothing, unfinished": (f(0, b"x", fin=False) + f(1, b"y"), [BROKEN]),
        "continuation after a message": (f(1, b"a") + f(0, b"b"), ["a", BROKEN]),
        "text inside a text": (f(1, b"a", fin=False) + f(1, b"b"), [BROKEN]),
        "binary inside a text": (f(1, b"a", fin=False) + f(2, b"b"), [BROKEN]),
        # 6: UTF-8
        "text with all lengths of characters": (f(1, "aé€\U0001f600".encode()), ["aé€\U0001f600"]),
        "a character in two frames": (
            f(1, SPLIT[:7], fin=False) + f(0, SPLIT[7:]),
            [SPLIT.decode()],
        ),
        "each byte a frame": (
            f(1, SPLIT[:1], fin=False)
            + b"".join(f(0, SPLIT[i : i + 1], fin=False) for i in range(1, len(SPLIT)))
            + f(0),
            [SPLIT.decode()],
        ),
        "bad UTF-8": (f(1, BAD), [NO_UTF8]),
        "bad UTF-8 across frames": (f(1, BAD[:12], fin=False) + f(0, BAD[12:]), [NO_UTF8]),
        "bad UTF-8 before the end of the message": (f(1, BAD, fin=False), [NO_UTF8]),
        "a character cut off at the end": (f(1, "é".encode()[:1]), [NO_UTF8]),
        "cut off by an empty last frame": (f(1, b"\xe2\x82", fin=False) + f(0), [NO_UTF8]),
        "a surrogate": (f(1, b"\xed\xa0\x80"), [NO_UTF8]),
        "an overlong character": (f(1, b"\xc0\xaf"), [NO_UTF8]),
        "beyond Unicode": (f(1, b"\xf4\x90\x80\x80"), [NO_UTF8]),
        "line ends stay": (f(1, b"a\r\nb\r", fin=False) + f(0, b"\nc"), ["a\r\nb\r\nc"]),
        "binary need not be UTF-8": (f(2, BAD), [BAD]),
        # 7: closing
        "close": (f(8), [("close", 1005, "")]),
        "close with a code": (c(1000), [("close", 1000, "")]),
        "close with a reason": (c(1001, "grüß".encode()), [("close", 1001, "grüß")]),
        "close with the longest reason": (c(1000, b"*" * 123), [("close", 1000, "*" * 123)]),
        "close with one byte more": (c(1000, b"*" * 124), [BROKEN]),
        "close with one byte": (f(8, b"\x03"), [BROKEN]),
        "close with bad UTF-8": (c(1000, BAD), [NO_UTF8]),
        "frames after a close": (c(1000) + f(1, b"x") + f(9, b"p"), [("close", 1000, "")]),
        "a close inside a message": (f(1, b"a", fin=False) + c(1000), [("close", 1000, "")]),
        **{
            f"close with {code}": (c(code), [("close", code, "")])
            for code in (
                1000,
                1001,
                1002,
                1003,
                1007,
                1008,
                1009,
                1010,
                1011,
                3000,
                3999,
                4000,
                4999,
            )
        },
        **{
            f"close with {code}": (c(code), [BROKEN])
            for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535)
        },
        # masks and lengths
        "masked the other way": (frame(1, b"x", mask=None if mask else MASK), [BROKEN]),
        "length in two bytes where one would do": (f(1, b"x", form=2), [BROKEN]),
        "length in eight bytes where two would do": (f(1, b"x" * 200, form=8), [BROKEN]),
        "length of over 63 bits": (f(1, announced=1 << 63), [BROKEN]),
        # 9: limits
        "the longest message": (f(2, b"x" * LIMIT), [b"x" * LIMIT]),
        "one byte more": (f(2, b"x" * (LIMIT + 1)), [TOO_BIG]),
        "too long by its announcement": (f(2, announced=LIMIT + 1), [TOO_BIG]),
        "too long in fragments": (
            f(2, b"x" * LIMIT, fin=False) + f(0, fin=False) + f(0, announced=1),
            [TOO_BIG],
        ),
        "the longest one after the other": (f(1, b"x" * LIMIT) * 2, ["x" * LIMIT] * 2),
        "the longest one in fragments, with a ping": (
            f(1, b"x" * (LIMIT - 1), fin=False) + f(9, b"ping") + f(0, b"x"),
            [("ping", b"ping"), "x" * LIMIT],
        ),
    }


BY_CLIENTS, BY_SERVERS = cases(MASK), cases(None)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", BY_CLIENTS)
@pytest.mark.parametrize("receiver", ["server", "client"])
def test_what_is_sent(receiver: str, name: str, kind: str) -> None:
    codec, told, mask = (
        (server(), BY_CLIENTS, MASK) if receiver == "server" else (client(), BY_SERVERS, None)
    )
    data, expected = told[name]
    if kind == "byte by byte" and len(data) > 3000:
        kind = "in three"
    assert seen(codec, data, kind) == expected
    last = expected[-1]
    assert codec.ended == (isinstance(last, tuple) and last[0] in ("fault", "close"))
    assert seen(codec, frame(1, b"more", mask=mask)) == ([] if codec.ended else ["more"])


def test_a_mask_of_zeros() -> None:
    assert seen(server(), frame(1, b"hello", mask=bytes(4))) == ["hello"]


@pytest.mark.parametrize("receiver", ["server", "client"])
def test_a_fault_is_told_before_its_frame_has_come(receiver: str) -> None:
    """As soon as it is plain: the rest may be megabytes (Autobahn's cases 6.4)."""
    codec, mask = (server(), MASK) if receiver == "server" else (client(), None)
    data = frame(1, BAD, mask=mask, announced=50_000)
    # The third byte of the code point that is none makes it plain.
    plain = len(data) - len(BAD) + BAD.index(b"\x90") + 1
    assert seen(codec, data[: plain - 1]) == []
    assert seen(codec, data[plain - 1 : plain]) == [NO_UTF8]


def test_a_server_does_not_mask() -> None:
    assert seen(client(), frame(1, b"x")) == ["x"]
    assert seen(client(), frame(1, b"x", mask=MASK)) == [BROKEN]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("deflate", [None, Deflate(), Deflate(9, True, True)])
def test_what_one_side_sends_the_other_understands(deflate: Deflate | None, kind: str) -> None:
    here, there = client(deflate), server(deflate)
    for message in ("hello", "hello", b"\x00\xff", "", "grüß€\U0001f600", b"x" * 2000, b"ends"):
        assert seen(there, here.encode(message), kind) == [message]
        assert seen(here, there.encode(message), kind) == [message]
    assert seen(there, here.ping(b"p"), kind) == [("ping", b"p")]
    assert seen(here, there.pong(b"p"), kind) == [("pong", b"p")]
    assert seen(there, here.close(1001, "gone"), kind) == [("close", 1001, "gone")]
    assert seen(here, there.close(1001, "gone"), kind) == [("close", 1001, "gone")]


def test_a_client_masks_each_frame_differently() -> None:
    codec = client()
    keys = {codec.encode(b"x" * 10)[2:6] for _ in range(20)}
    assert len(keys) == 20
    assert codec.encode(b"x")[1] & 0x80
    assert not server().encode(b"x")[1] & 0x80


# --- compression ---------------------------------------------------------------------------


def deflated(data: bytes, *, last: bool = False) -> bytes:
    """A compressed message (RFC 7692 section 7.2.1); or one whose block says it is the last."""
    compressor = zlib.compressobj(wbits=-15)
    if last:
        return compressor.compress(data) + compressor.flush() + b"\x00"
    return (compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]


PLAIN = "hello, hello, hello " * 20
HELLO = deflated(PLAIN.encode())

COMPRESSED: dict[str, tuple[bytes, list[Any]]] = {
    "one frame": (f(1, HELLO, rsv=4), [PLAIN]),
    "the RFC's own": (f(1, bytes.fromhex("f248cdc9c90700"), rsv=4), ["Hello"]),
    "the RFC's in two frames": (
        f(1, bytes.fromhex("f248cd"), rsv=4, fin=False) + f(0, bytes.fromhex("c9c90700")),
        ["Hello"],
    ),
    "the RFC's with the window kept": (
        f(1, bytes.fromhex("f248cdc9c90700"), rsv=4) + f(1, bytes.fromhex("f200110000"), rsv=4),
        ["Hello", "Hello"],
    ),
    "the RFC's stored": (f(1, bytes.fromhex("000500faff48656c6c6f00"), rsv=4), ["Hello"]),
    "the RFC's with an end": (f(1, bytes.fromhex("f348cdc9c9070000"), rsv=4), ["Hello"]),
    "the RFC's in two blocks": (
        f(1, bytes.fromhex("f248050000 00ffffcac9c90700".replace(" ", "")), rsv=4),
        ["Hello"],
    ),
    "ends, message after message": (
        f(1, deflated(b"a" * 50, last=True), rsv=4) + f(1, deflated(b"b" * 50, last=True), rsv=4),
        ["a" * 50, "b" * 50],
    ),
    "two ends in one message": (
        f(1, deflated(b"a", last=True)[:-1] + deflated(b"b", last=True), rsv=4),
        [NO_UTF8],
    ),
    "an empty one": (f(1, b"\x00", rsv=4), [""]),
    "not compressed, though it might be": (f(1, b"plain"), ["plain"]),
    "both kinds in turn": (
        f(1, b"a") + f(1, HELLO, rsv=4) + f(2, b"b") + f(1, HELLO, rsv=4),
        ["a", PLAIN, b"b", PLAIN],
    ),
    "a ping between its fragments": (
        f(1, HELLO[:5], rsv=4, fin=False) + f(9, b"p") + f(0, HELLO[5:]),
        [("ping", b"p"), PLAIN],
    ),
    "the bit on a continuation": (
        f(1, HELLO[:5], rsv=4, fin=False) + f(0, HELLO[5:], rsv=4),
        [BROKEN],
    ),
    "the bit on a ping": (f(9, b"p", rsv=4), [BROKEN]),
    "another bit": (f(1, HELLO, rsv=2), [BROKEN]),
    "no deflate at all": (f(1, b"\xff\xff\xff", rsv=4), [NO_UTF8]),
    "bad UTF-8 when inflated": (f(1, deflated(BAD), rsv=4), [NO_UTF8]),
    "as long as may be": (f(2, deflated(b"x" * LIMIT), rsv=4), [b"x" * LIMIT]),
    "one byte more": (f(2, deflated(b"x" * (LIMIT + 1)), rsv=4), [TOO_BIG]),
    "too long in fragments": (
        f(2, deflated(b"x" * (LIMIT + 1))[:20], rsv=4, fin=False)
        + f(0, deflated(b"x" * (LIMIT + 1))[20:]),
        [TOO_BIG],
    ),
    "incompressible, as long as may be": (
        f(2, deflated(random.Random(1).randbytes(LIMIT)), rsv=4),
        [random.Random(1).randbytes(LIMIT)],
    ),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", COMPRESSED)
def test_what_a_client_sends_compressed(name: str, kind: str) -> None:
    data, expected = COMPRESSED[name]
    if kind == "byte by byte" and len(data) > 3000:
        kind = "in three"
    assert seen(server(Deflate()), data, kind) == expected


def test_the_bit_of_compression_where_none_was_agreed_on() -> None:
    assert seen(server(), f(1, HELLO, rsv=4)) == [BROKEN]


def test_a_bomb_is_not_inflated() -> None:
    bomb = deflated(bytes(200_000_000))
    data = f(2, bomb, rsv=4)
    codec = server(Deflate(), 1_000_000)
    tracemalloc.start()
    try:
        assert seen(codec, data) == [TOO_BIG]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 10_000_000, peak


def test_many_small_fragments_take_no_more_memory_than_their_bytes() -> None:
    pieces = 10_000
    for opcode, expected in ((1, "xy" * pieces), (2, b"xy" * pieces)):
        codec = server()
        data = f(opcode, b"xy", fin=False) + f(0, b"xy", fin=False) * (pieces - 2)
        assert seen(codec, data[: len(data) // 2]) == []
        tracemalloc.start()
        try:
            assert seen(codec, data[len(data) // 2 :]) == []
            grown = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
        assert grown < 20 * pieces, grown
        assert seen(codec, f(0, b"xy")) == [expected]
