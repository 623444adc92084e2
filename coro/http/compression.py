"""Incremental decoders for compressed bodies (RFC 9110 section 8.4.1), pure and bounded.

One kilobyte of gzip can hold a megabyte of zeros. So no call gives more output than its caller
asked for; what could not be taken yet stays inside as compressed bytes, and ``pending`` says so:

    out = decoder.decompress(piece, 65536)
    while out:
        use(out)
        out = decoder.decompress(b"", 65536) if decoder.pending else b""
    ...
    decoder.finish()    # raises if the stream was cut short

The input is given to zlib in windows: zlib hands back what it did not consume as a new bytes
object in every call, which for a large piece and a small ``max_length`` would be quadratic.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Protocol

from coro.errors import HTTPInputError

__all__ = [
    "ContentDecoder",
    "DeflateDecoder",
    "GzipDecoder",
    "decoder_for",
    "supported_codings",
]

_WINDOW = 16384
_GZIP_WBITS = zlib.MAX_WBITS | 16
_GZIP_MAGIC = b"\x1f\x8b"


class ContentDecoder(Protocol):
    """Undoes one content coding, piece by piece."""

    @property
    def pending(self) -> bool:
        """Whether another call may give output without further input."""

    def decompress(self, data: bytes, max_length: int) -> bytes:
        """Take in compressed bytes and give at most ``max_length`` bytes of output.

        Raises:
            HTTPInputError: the data is not what the coding says.
            ValueError: ``max_length`` is not positive.
        """

    def finish(self) -> None:
        """State that the input has ended, and that all output was taken.

        Raises:
            HTTPInputError: the compressed stream was cut short.
        """


class _ZlibDecoder:
    """What gzip and deflate share: input that waits, output in portions.

    Invariant: between calls, _input[_position:] is exactly the input that zlib has not consumed.
    """

    __slots__ = ("_input", "_position", "_started", "_stream", "pending")

    coding = "zlib"

    def __init__(self) -> None:
        self._input = b""
        self._position = 0
        self._started = False
        self._stream: zlib._Decompress | None = None
        self.pending = False

    def decompress(self, data: bytes, max_length: int) -> bytes:
        """Take in compressed bytes and give at most ``max_length`` bytes of output."""
        if max_length <= 0:
            raise ValueError(f"max_length must be positive, not {max_length}")
        if data:
            self._started = True
            waiting = self._input[self._position :]
            self._input = waiting + data if waiting else data
            self._position = 0
        pieces = []
        room = max_length
        while room:
            stream = self._current_stream()
            if stream is None:
                self.pending = False
                break
            piece = self._portion(stream, room)
            pieces.append(piece)
            room -= len(piece)
            if not piece and not stream.eof and self._position >= len(self._input):
                self.pending = False
                break
        else:
            self.pending = True  # The room is used up: zlib may hold more than it gave.
        return b"".join(pieces)

    def _portion(self, stream: zlib._Decompress, room: int) -> bytes:
        """Give one window of input to zlib, and count what it consumed."""
        window = self._input[self._position : self._position + _WINDOW]
        try:
            piece = stream.decompress(window, room)
        except zlib.error as error:
            raise HTTPInputError(f"invalid {self.coding} data: {error}") from error
        left = stream.unused_data if stream.eof else stream.unconsumed_tail
        self._position += len(window) - len(left)
        return piece

    def _current_stream(self) -> zlib._Decompress | None:
        """Return the stream to go on with, or None if there is nothing to do for now."""
        raise NotImplementedError

    def finish(self) -> None:
        """State that the input has ended, and that all output was taken."""
        if self._started and (self._stream is None or not self._stream.eof):
            raise HTTPInputError(f"the {self.coding} data ends in the middle")


class GzipDecoder(_ZlibDecoder):
    """Decodes gzip (RFC 1952), also of several members; zeros after a member are padding."""

    __slots__ = ()

    coding = "gzip"

    def _current_stream(self) -> zlib._Decompress | None:
        if self._stream is None or (self._stream.eof and self._next_member()):
            if self._position >= len(self._input):
                return None
            self._stream = zlib.decompressobj(_GZIP_WBITS)
        return None if self._stream.eof else self._stream

    def _next_member(self) -> bool:
        """Skip padding; tell whether another member begins in the input.

        Raises:
            HTTPInputError: something follows that is neither padding nor a member.
        """
        rest = self._input[self._position :].lstrip(b"\0")
        self._input, self._position = rest, 0
        if not _GZIP_MAGIC.startswith(rest[:2]):
            raise HTTPInputError("invalid gzip data: there are other bytes after its end")
        return len(rest) >= len(_GZIP_MAGIC)

    def finish(self) -> None:
        """State that the input has ended, and that all output was taken."""
        super().finish()
        if self._position < len(self._input):
            raise HTTPInputError("the gzip data ends in the middle of a member's first bytes")


class DeflateDecoder(_ZlibDecoder):
    """Decodes deflate: with the zlib header that RFC 9110 section 8.4.1.2 asks for, or raw.

    Many servers have always sent raw deflate (RFC 1951). The first two bytes tell them apart: a
    raw stream that passes for a zlib header would have to begin with a stored block that has
    stray bits in its padding, which no encoder writes.
    """

    __slots__ = ()

    coding = "deflate"

    def _current_stream(self) -> zlib._Decompress | None:
        if self._stream is None:
            if len(self._input) < 2:
                return None
            first, second = self._input[0], self._input[1]
            zlib_header = first & 0x0F == zlib.DEFLATED and (first << 8 | second) % 31 == 0
            self._stream = zlib.decompressobj(zlib.MAX_WBITS if zlib_header else -zlib.MAX_WBITS)
        if not self._stream.eof:
            return self._stream
        if self._position < len(self._input):
            raise HTTPInputError("invalid deflate data: there are other bytes after its end")
        return None


_DECODERS: dict[str, Callable[[], ContentDecoder]] = {
    "gzip": GzipDecoder,
    "x-gzip": GzipDecoder,
    "deflate": DeflateDecoder,
}


def supported_codings() -> tuple[str, ...]:
    """Return the codings to name in ``Accept-Encoding``, in order of preference."""
    return tuple(coding for coding in _DECODERS if not coding.startswith("x-"))


def decoder_for(content_encoding: str) -> ContentDecoder | None:
    """Return a new decoder for the value of a ``Content-Encoding`` field.

    Returns:
        None if there is nothing to undo, or nothing that can be undone here: an unknown coding,
        or several codings on top of each other, of which nobody makes honest use.
    """
    make = _DECODERS.get(content_encoding.strip(" \t").lower())
    return None if make is None else make()
