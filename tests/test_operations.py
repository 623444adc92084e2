"""What is under way on a stream: how a read is answered, without a stream."""

from __future__ import annotations

import re
from typing import Any

import pytest

from coro.buffer import ReadBuffer
from coro.errors import UnsatisfiableReadError
from coro.loop import IOLoop
from coro.operations import (
    CONNECTING,
    DELIMITER,
    EXACT,
    HANDSHAKING,
    INTO,
    OPEN,
    PARTIAL,
    REGEX,
    UNTIL_CLOSE,
    Opening,
    Read,
    Write,
)


class Owner:
    """What an operation knows of its stream."""

    def __init__(self, loop: IOLoop) -> None:
        self.io_loop = loop
        self._fd = 7
        self._state = OPEN
        self._received = bytearray(b"abc")
        self.calls: list[Any] = []

    def __repr__(self) -> str:
        return "<stream>"

    def unsent(self) -> int:
        return 12

    def close(self) -> None:
        self.calls.append("close")

    def _unread(self, read: Read) -> None:
        self.calls.append(read)

    def _take_back(self, data: bytes) -> None:
        self.calls.append(data)

    def _where(self) -> str:
        return "fd 7"


@pytest.fixture
def owner() -> Any:
    loop = IOLoop(make_current=False)
    yield Owner(loop)
    loop.close()


def filled(data: bytes) -> ReadBuffer:
    buffer = ReadBuffer()
    buffer.append(data)
    return buffer


def search(owner: Owner, pattern: Any, limit: int | None = None) -> Read:
    read = Read().set_up(owner, DELIMITER if isinstance(pattern, bytes) else REGEX, -1)
    read.pattern = pattern
    read.limit = limit
    return read


def into(owner: Owner, target: bytearray, least: int) -> Read:
    read = Read().set_up(owner, INTO, len(target))
    read.target = memoryview(target)
    read.filled = 0
    read.limit = least
    return read


@pytest.mark.parametrize(
    ("kind", "size", "data", "answer", "left"),
    [
        (EXACT, 3, b"", None, b""),
        (EXACT, 3, b"ab", None, b"ab"),
        (EXACT, 3, b"abc", b"abc", b""),
        (EXACT, 3, b"abcd", b"abc", b"d"),
        (EXACT, 0, b"", b"", b""),
        (PARTIAL, 3, b"", None, b""),
        (PARTIAL, 3, b"ab", b"ab", b""),
        (PARTIAL, 3, b"abcd", b"abc", b"d"),
        (PARTIAL, 0, b"", b"", b""),
        (UNTIL_CLOSE, -1, b"abc", None, b"abc"),
    ],
)
def test_counts(owner: Owner, kind: int, size: int, data: bytes, answer: Any, left: bytes) -> None:
    buffer = filled(data)
    read = Read().set_up(owner, kind, size)
    assert read.match(buffer) is (answer is not None)
    assert read.done() is (answer is not None)
    if answer is not None:
        assert read.result() == answer
    assert buffer.data == left


@pytest.mark.parametrize("pattern", [b"\r\n", re.compile(rb"\r\n")])
@pytest.mark.parametrize(
    ("data", "limit", "answer"),
    [
        (b"ab\r", None, None),
        (b"ab\r\ncd", None, b"ab\r\n"),
        (b"ab\r\ncd", 4, b"ab\r\n"),
        (b"ab\r\ncd", 3, UnsatisfiableReadError),
        (b"abc", 3, None),
        (b"abcd", 3, UnsatisfiableReadError),
    ],
)
def test_searches(owner: Owner, pattern: Any, data: bytes, limit: int | None, answer: Any) -> None:
    buffer = filled(data)
    read = search(owner, pattern, limit)
    if answer is UnsatisfiableReadError:
        with pytest.raises(
            UnsatisfiableReadError, match=r"'\\\\?r\\\\?n' not found within 3 bytes"
        ):
            read.match(buffer)
        assert not read.done()
        assert buffer.data == data
    else:
        assert read.match(buffer) is (answer is not None)
        assert answer is None or read.result() == answer


@pytest.mark.parametrize("least", [1, 4])
def test_filling_the_caller_s_buffer(owner: Owner, least: int) -> None:
    target = bytearray(4)
    read = into(owner, target, least)
    assert not read.match(filled(b""))
    with pytest.raises(BufferError):
        target.append(0)  # it cannot be resized under a pending read
    buffer = filled(b"ab")
    assert read.match(buffer) is (least == 1)
    assert not buffer.data
    if least == 4:
        assert read.fill(lambda view: view.__setitem__(0, 99) or 1, 1) == 1
        assert read.match(filled(b"def"))
        assert target == b"abcd"
    assert read.result() == least if least == 4 else 2
    del target[:]


def test_what_a_source_may_write_is_bounded(owner: Owner) -> None:
    read = into(owner, bytearray(10), 10)
    sizes: list[int] = []
    for most in (4, 100):
        read.fill(lambda view: sizes.append(len(view)) or 3, most)
    assert sizes == [4, 7]
    assert read.filled == 6


def test_a_source_that_fails_leaves_no_view(owner: Owner) -> None:
    def fail(_view: memoryview) -> int:
        raise OSError

    target = bytearray(4)
    read = into(owner, target, 4)
    with pytest.raises(OSError) as caught:
        read.fill(fail, 4)
    read.give_back(ReadBuffer())
    del target[:]
    del caught


def test_giving_back(owner: Owner) -> None:
    target = bytearray(4)
    read = into(owner, target, 4)
    buffer = filled(b"ab")
    assert not read.match(buffer)
    buffer.append(b"cd")
    read.give_back(buffer)
    assert buffer.data == b"abcd"
    del target[:]
    Read().set_up(owner, EXACT, 3).give_back(buffer)
    assert buffer.data == b"abcd"


def test_cancelling(owner: Owner) -> None:
    read = Read().set_up(owner, EXACT, 3)
    assert read.cancel()
    assert not read.cancel()
    assert owner.calls == [read]
    owner.calls.clear()
    writing = Write(owner)
    assert writing.cancel()
    assert owner.calls == []
    opening = Opening(owner)
    assert opening.cancel()
    assert not opening.cancel()
    assert opening.cancelled()
    assert owner.calls == ["close"]


def test_what_they_say(owner: Owner) -> None:
    assert "read_bytes on <stream>" in repr(Read().set_up(owner, EXACT, 3))
    told = {
        "read_bytes 3": Read().set_up(owner, EXACT, 3),
        "read_bytes(partial) 3": Read().set_up(owner, PARTIAL, 3),
        "read_until b'!'": search(owner, b"!"),
        "read_until_regex b'x+'": search(owner, re.compile(rb"x+")),
        "read_into 0/4": into(owner, bytearray(4), 4),
        "read_until_close": Read().set_up(owner, UNTIL_CLOSE, -1),
    }
    for text, read in told.items():
        assert read._awaited() == f"{text} on fd 7, 3 bytes buffered"
    assert Write(owner)._awaited() == "write on fd 7, 12 bytes queued"
    opening = Opening(owner, ("127.0.0.1", 80))
    assert "opening of <stream>" in repr(opening)
    owner._state = CONNECTING
    assert opening._awaited() == "connect fd 7 to 127.0.0.1:80"
    owner._state = HANDSHAKING
    assert opening._awaited() == "TLS handshake on fd 7"
