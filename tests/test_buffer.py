"""Bytes on their way: what comes out, what is looked at, and what is let go."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coro.buffer import ReadBuffer, WriteQueue


def filled(data: bytes) -> ReadBuffer:
    buffer = ReadBuffer()
    buffer.append(data)
    return buffer


def test_take() -> None:
    buffer = filled(b"hello world")
    assert buffer.take(5) == b"hello"
    assert len(buffer) == 6
    assert buffer.take(100) == b" world"
    assert buffer.take(1) == b""


def test_prepend_gives_back() -> None:
    buffer = filled(b"world")
    buffer.prepend(b"hello ")
    assert buffer.find(b"o w") == 7
    assert buffer.take(11) == b"hello world"


def test_take_into() -> None:
    buffer = filled(b"hello")
    target = bytearray(3)
    with memoryview(target) as view:
        assert buffer.take_into(view) == 3
    assert target == b"hel"
    with memoryview(target) as view:
        assert buffer.take_into(view) == 2
    assert target == b"lol"
    assert not buffer.data
    del target[:]  # no view was left on it


def test_find_goes_on_where_it_was() -> None:
    class Counting(bytearray):
        scanned = 0

        def find(self, wanted: bytes, start: int = 0) -> int:  # type: ignore[override]
            self.scanned += len(self) - start
            return super().find(wanted, start)

    buffer = ReadBuffer()
    data = buffer.data = Counting()
    for _ in range(10_000):
        buffer.append(b"x" * 100)
        assert buffer.find(b"\r\n") == -1
    assert data.scanned <= 2 * 1_000_000
    buffer.append(b"\r")
    assert buffer.find(b"\r\n") == -1
    buffer.append(b"\n")
    assert buffer.find(b"\r\n") == 1_000_002


def test_find_begins_anew_for_another_delimiter() -> None:
    buffer = filled(b"a,b;c,d")
    assert buffer.find(b";") == 4
    assert buffer.find(b",") == 2
    assert buffer.find(b"!") == -1
    assert buffer.find(b",") == 2


@given(
    pieces=st.lists(st.binary(max_size=4).map(lambda b: b.replace(b"\0", b"."))),
    delimiter=st.sampled_from([b".", b"..", b"a.", b"\xff"]),
    takes=st.lists(st.integers(0, 6)),
)
def test_find_is_find(pieces: list[bytes], delimiter: bytes, takes: list[int]) -> None:
    buffer = ReadBuffer()
    model = b""
    for number, piece in enumerate(pieces):
        buffer.append(piece)
        model += piece
        at = model.find(delimiter)
        assert buffer.find(delimiter) == (-1 if at < 0 else at + len(delimiter))
        if number < len(takes):
            assert buffer.take(takes[number]) == model[: takes[number]]
            model = model[takes[number] :]


def test_search() -> None:
    buffer = filled(b"one two")
    assert buffer.search(re.compile(rb"\s")) == 4
    assert buffer.search(re.compile(rb"\d")) == -1


def queued(*pieces: bytes) -> WriteQueue:
    queue = WriteQueue()
    for piece in pieces:
        queue.append(memoryview(piece))
    return queue


def test_peek_is_bounded_in_bytes_and_in_pieces() -> None:
    queue = queued(b"aaaa", b"bbbb", b"cccc", b"dddd")
    assert [bytes(v) for v in queue.peek(8, 10)] == [b"aaaa", b"bbbb"]
    assert [bytes(v) for v in queue.peek(7, 10)] == [b"aaaa"]
    assert [bytes(v) for v in queue.peek(100, 3)] == [b"aaaa", b"bbbb", b"cccc"]
    assert [bytes(v) for v in queue.peek(1, 1)] == [b"aaaa"]


@pytest.mark.parametrize("step", [1, 3, 4, 5, 8, 11])
def test_advance(step: int) -> None:
    queue = queued(b"aaaa", b"bbb", b"cccc")
    sent = b""
    while queue.size:
        chunk = b"".join(queue.peek(100, 100))[:step]
        sent += chunk
        queue.advance(len(chunk))
        assert queue.added - queue.size == len(sent)
    assert sent == b"aaaabbbcccc"


def test_what_was_sent_is_let_go() -> None:
    first, second = bytearray(b"first"), bytearray(b"second")
    queue = WriteQueue()
    queue.append(memoryview(first))
    queue.append(memoryview(second))
    queue.advance(7)
    del first[:]
    with pytest.raises(BufferError):
        del second[:]
    queue.clear()
    del second[:]
    assert queue.size == 0
