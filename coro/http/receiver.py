"""What becomes of a response's body that is not simply collected as it comes."""

from __future__ import annotations

from collections.abc import Callable, Generator
from itertools import count
from typing import Any

from coro.errors import BodyTooLargeError
from coro.http.compression import ContentDecoder

__all__ = ["Receiver"]

# Bytes that are decompressed at once: what a bomb can occupy before it is measured.
DECODE_STEP = 64 * 1024
# After so many of them others get a turn, the clock among them: a piece may hold a gigabyte.
STEPS_AT_ONCE = 16


class Receiver:
    """Takes a response's body: decompresses it, bounds it, hands it on or collects it.

    Arguments:
        callback: what to hand the pieces to; None: collect them.
        coding: undoes the compression, if there is one.
        limit: bytes after decompression; None: no limit.
        taker: takes the pieces, at its own pace.
    """

    __slots__ = ("_callback", "_coding", "_limit", "_pieces", "_size", "_taker")

    def __init__(
        self,
        callback: Callable[[bytes], Any] | None,
        coding: ContentDecoder | None,
        limit: int | None,
        taker: Callable[[bytes], Generator[Any, Any, None]] | None = None,
    ) -> None:
        self._callback = callback
        self._taker = taker
        self._coding = coding
        self._limit = limit
        self._pieces: list[bytes] = []
        self._size = 0

    @property
    def decompresses(self) -> bool:
        """Whether the body arrives in another coding than it is handed on in."""
        return self._coding is not None

    def take(self, piece: bytes) -> Generator[Any, Any, None]:
        """Take a piece of the body as received; what the callback returns is waited for."""
        coding = self._coding
        if coding is None:
            yield from self._hand_on(piece)
            return
        decoded = coding.decompress(piece, DECODE_STEP)
        for step in count(1):
            if decoded:
                yield from self._hand_on(decoded)
            if not coding.pending:
                break
            if step % STEPS_AT_ONCE == 0:
                yield None
            decoded = coding.decompress(b"", DECODE_STEP)

    def _hand_on(self, piece: bytes) -> Generator[Any, Any, None]:
        self._size += len(piece)
        if self._limit is not None and self._size > self._limit:
            raise BodyTooLargeError(f"the body is larger than {self._limit} bytes")
        if self._taker is not None:
            yield from self._taker(piece)
            return
        if self._callback is None:
            self._pieces.append(piece)
            return
        waiting = self._callback(piece)
        if waiting is not None:
            try:
                yield waiting
            finally:
                del waiting  # Its error, if it has one, will hold this frame.

    def finish(self) -> None:
        """The response is complete: so must be what was compressed in it."""
        if self._coding is not None:
            self._coding.finish()

    def body(self) -> bytes:
        """Return what was collected."""
        return b"".join(self._pieces)
