"""Bodies of requests that are not simply bytes: files, iterables, forms, JSON."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterable, Callable, Generator, Iterable, Mapping
from functools import partial
from typing import Any, TypeAlias
from urllib.parse import urlencode

from coro.gen import coroutine

__all__ = ["FORM", "JSON", "Producer", "encode_form", "encode_json", "in_pieces", "producer_for"]

# Writes a body through the function that it is given.
Producer: TypeAlias = "Callable[[Callable[[bytes], Any]], Any]"

FORM = "application/x-www-form-urlencoded"
JSON = "application/json"

# Bytes of a file that are read at once.
PIECE = 64 * 1024

# Iterable, but not in pieces of a body; a mapping is likely a form under the wrong name.
_NOT_PIECES = (str, bytes, bytearray, memoryview, Mapping)


def encode_form(fields: Any) -> bytes:
    """Encode a form: a mapping or pairs; a value that is a list gives one field for each item."""
    return urlencode(fields, doseq=True).encode()


def encode_json(value: Any) -> bytes:
    """Encode a value as JSON (RFC 8259)."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def producer_for(source: Any) -> tuple[Producer, int | None] | None:
    """Return what writes a body piece by piece, and its length in bytes if that is known.

    Arguments:
        source: a file opened for reading bytes, an iterable or an async iterable of bytes.
    Returns:
        None if it is none of these.
    """
    if hasattr(source, "read"):
        return _file_producer(source)
    if isinstance(source, AsyncIterable):
        return _once(source, _write_async), None
    if isinstance(source, Iterable) and not isinstance(source, _NOT_PIECES):
        return _once(source, _write_each), None
    return None


def in_pieces(*pieces: bytes) -> Producer:
    """Return what writes a body whose bytes are known."""
    return partial(_write_each, pieces)


def _file_producer(file: Any) -> tuple[Producer, int | None]:
    """Send a file from where it is now, each time."""
    if not file.seekable():
        return _once(iter(lambda: file.read(PIECE), b""), _write_each), None
    start = file.tell()
    length = file.seek(0, os.SEEK_END) - start
    file.seek(start)

    def produce(write: Callable[[bytes], Any]) -> Any:
        file.seek(start)
        return _write_each(iter(lambda: file.read(PIECE), b""), write)

    return produce, length


def _once(source: Any, send: Callable[[Any, Callable[[bytes], Any]], Any]) -> Producer:
    """Refuse to send a second time what can be iterated only once."""
    spent = False

    def produce(write: Callable[[bytes], Any]) -> Any:
        nonlocal spent
        if spent:
            raise ValueError(f"the body cannot be sent again: {type(source).__name__} is used up")
        spent = hasattr(source, "__next__") or hasattr(source, "__anext__")
        return send(source, write)

    return produce


@coroutine
def _write_each(
    pieces: Iterable[bytes], write: Callable[[bytes], Any]
) -> Generator[Any, Any, None]:
    for piece in pieces:
        if piece:  # An empty chunk would be the last one.
            yield write(piece)


async def _write_async(pieces: AsyncIterable[bytes], write: Callable[[bytes], Any]) -> None:
    async for piece in pieces:
        if piece:
            await write(piece)
