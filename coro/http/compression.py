"""Incremental decoders for compressed bodies (RFC 9110 section 8.4.1), pure and bounded.

One kilobyte of gzip can hold a megabyte of zeros, one of zstd thirty. So no call gives more output
than its caller asked for; what could not be taken yet stays inside as compressed bytes, and
``pending`` says so:

    out = decoder.decompress(piece, 65536)
    while out or decoder.pending:
        use(out)
        out = decoder.decompress(b"", 65536) if decoder.pending else b""
    ...
    decoder.finish()    # raises if the stream was cut short

Nor does a call work for long: thousands of parts that are all empty give no output, and cost time
nevertheless. A call that has done its share returns what it has, be it nothing, and is ``pending``.

The input is given to the libraries in windows: zlib hands back what it did not consume as a new
bytes object in every call, which for a large piece and a small ``max_length`` would be quadratic.

Brotli and zstd need a library each (``pip install 'coro-loop[compression]'``).
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable
from typing import Any, Protocol

from coro.errors import HTTPInputError

brotli: Any
try:
    import brotli
except ImportError:
    brotli = None
if not hasattr(getattr(brotli, "Decompressor", None), "can_accept_more_data"):
    # Before 1.2 it had no limit to its output.
    brotli = None

zstd: Any
try:
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
except ImportError:
    zstd = None

__all__ = [
    "BrotliDecoder",
    "ContentDecoder",
    "DeflateDecoder",
    "GzipDecoder",
    "StackedDecoder",
    "ZstdDecoder",
    "decoder_for",
    "supported_codings",
]

MAX_CODINGS = 5
"""How many codings may lie on top of each other."""

_WINDOW = 16384
# Windows, or ends of parts, that one call works on.
_STEPS = 64
_GZIP_WBITS = zlib.MAX_WBITS | 16
_GZIP_MAGIC = b"\x1f\x8b"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
# The first of these four has any second half (RFC 8878 section 3.1.2).
_ZSTD_SKIPPABLE_MAGIC = b"\x50\x2a\x4d\x18"
# The largest window that a receiver has to provide is 8 MB (RFC 9659 section 3).
_ZSTD_WINDOW_LOG = 23


class ContentDecoder(Protocol):
    """Undoes one content coding, piece by piece."""

    @property
    def pending(self) -> bool:
        """Whether another call may give output without further input."""

    def decompress(self, data: bytes, max_length: int) -> bytes:
        """Take in compressed bytes and give at most ``max_length`` bytes of output.

        Returns:
            b"" if there is nothing more for now, or, if there is something ``pending``, not yet.
        Raises:
            HTTPInputError: the data is not what the coding says.
            ValueError: ``max_length`` is not positive.
        """

    def finish(self) -> None:
        """State that the input has ended, and that all output was taken.

        Raises:
            HTTPInputError: the compressed stream was cut short.
        """


class _Decoder:
    """What the codings share: input that waits, output in portions.

    Invariant: between calls, _input[_position:] is exactly the input that no library holds.
    """

    __slots__ = ("_ended", "_input", "_position", "_started", "_stream", "pending")

    coding: str
    # What the library raises for data that it does not understand.
    error: type[Exception]

    def __init__(self) -> None:
        self._input = b""
        self._position = 0
        self._started = False
        # The library's object for the present part, and whether that part has come to its end.
        self._stream: Any = None
        self._ended = False
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
        self.pending = True  # Unless it turns out that there is nothing more.
        for _ in range(_STEPS):
            if not self._ready():
                self.pending = False
                break
            window = self._input[self._position : self._position + _WINDOW]
            try:
                piece = self._portion(window, room)
            except self.error as error:
                raise HTTPInputError(f"invalid {self.coding} data: {error}") from error
            pieces.append(piece)
            room -= len(piece)
            if not room:
                break
            if not piece and not self._ended and self._position >= len(self._input):
                self.pending = False
                break
        return b"".join(pieces)

    def _ready(self) -> bool:
        """Whether there is a stream to go on with; one is begun if there is input for it.

        Raises:
            HTTPInputError: something follows the end of the compressed data.
        """
        raise NotImplementedError

    def _portion(self, window: bytes, room: int) -> bytes:
        """Give the library what comes next; note how much of it was taken, and an end."""
        raise NotImplementedError

    def _refuse_more(self) -> None:
        if self._position < len(self._input):
            raise HTTPInputError(f"invalid {self.coding} data: there are other bytes after its end")

    def finish(self) -> None:
        """State that the input has ended, and that all output was taken."""
        if self._started and not self._ended:
            raise HTTPInputError(f"the {self.coding} data ends in the middle")


class _ZlibDecoder(_Decoder):
    """What gzip and deflate share: zlib."""

    __slots__ = ()

    error = zlib.error

    def _portion(self, window: bytes, room: int) -> bytes:
        stream: zlib._Decompress = self._stream
        piece = stream.decompress(window, room)
        self._ended = stream.eof
        left = stream.unused_data if stream.eof else stream.unconsumed_tail
        self._position += len(window) - len(left)
        return piece


class GzipDecoder(_ZlibDecoder):
    """Decodes gzip (RFC 1952), also of several members; zeros after a member are padding."""

    __slots__ = ()

    coding = "gzip"

    def _ready(self) -> bool:
        if self._stream is None or (self._ended and self._next_member()):
            if self._position >= len(self._input):
                return False
            self._stream = zlib.decompressobj(_GZIP_WBITS)
            self._ended = False
        return not self._ended

    def _next_member(self) -> bool:
        """Skip padding; tell whether another member begins in the input.

        Raises:
            HTTPInputError: something follows that is neither padding nor a member.
        """
        rest = self._input[self._position :].lstrip(b"\0")
        self._input, self._position = rest, 0
        if not _GZIP_MAGIC.startswith(rest[:2]):
            self._refuse_more()
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

    def _ready(self) -> bool:
        if self._stream is None:
            if len(self._input) < 2:
                return False
            first, second = self._input[0], self._input[1]
            zlib_header = first & 0x0F == zlib.DEFLATED and (first << 8 | second) % 31 == 0
            self._stream = zlib.decompressobj(zlib.MAX_WBITS if zlib_header else -zlib.MAX_WBITS)
        if self._ended:
            self._refuse_more()
        return not self._ended


class BrotliDecoder(_Decoder):
    """Decodes Brotli (RFC 7932), whose window is 16 MB at most.

    Its library gives output in blocks of 32 KB or more, whatever limit it is told.
    """

    __slots__ = ("_output",)

    coding = "br"
    error = Exception if brotli is None else brotli.error

    def __init__(self) -> None:
        super().__init__()
        self._stream = brotli.Decompressor()
        # What it gave beyond the room that there was.
        self._output = b""

    def _ready(self) -> bool:
        if self._ended and not self._output:
            self._refuse_more()
            return False
        return True

    def _portion(self, window: bytes, room: int) -> bytes:
        output = self._output
        if not output:
            stream = self._stream
            if not stream.can_accept_more_data():
                window = b""
            output = stream.process(window, output_buffer_limit=1)
            self._position += len(window)
            self._ended = stream.is_finished()
        self._output = output[room:]
        return output[:room]


class ZstdDecoder(_Decoder):
    """Decodes Zstandard (RFC 8878), also of several frames, of which some may be skippable."""

    __slots__ = ()

    coding = "zstd"
    error = Exception if zstd is None else zstd.ZstdError

    def _ready(self) -> bool:
        if self._stream is None or self._ended:
            # Longer than four bytes, it is the library's to judge.
            start = self._input[self._position : self._position + 4]
            if self._stream is not None and not _begins_frame(start):
                self._refuse_more()
            if not start:
                return False
            options = {zstd.DecompressionParameter.window_log_max: _ZSTD_WINDOW_LOG}
            self._stream = zstd.ZstdDecompressor(options=options)
            self._ended = False
        return True

    def _portion(self, window: bytes, room: int) -> bytes:
        stream = self._stream
        if not stream.needs_input:
            window = b""
        piece: bytes = stream.decompress(window, room)
        self._position += len(window)
        if stream.eof:
            self._ended = True
            # It has taken in what follows its frame, too, of this window or an earlier one.
            self._input = stream.unused_data + self._input[self._position :]
            self._position = 0
        return piece


def _begins_frame(start: bytes) -> bool:
    """Whether a frame of zstd, or a part of its first four bytes, is there."""
    return _ZSTD_MAGIC.startswith(start) or (
        start[0] & 0xF0 == _ZSTD_SKIPPABLE_MAGIC[0]
        and _ZSTD_SKIPPABLE_MAGIC.startswith(start[1:], 1)
    )


class StackedDecoder:
    """Undoes a coding that lies on another one.

    Arguments:
        outer: undoes the coding that was applied last.
        inner: undoes the one, or those, before it.
    """

    __slots__ = ("_inner", "_outer")

    def __init__(self, outer: ContentDecoder, inner: ContentDecoder) -> None:
        self._outer = outer
        self._inner = inner

    @property
    def pending(self) -> bool:
        """Whether another call may give output without further input."""
        return self._inner.pending or self._outer.pending

    def decompress(self, data: bytes, max_length: int) -> bytes:
        """Take in compressed bytes and give at most ``max_length`` bytes of output."""
        between = b""
        if data or not self._inner.pending:
            between = self._outer.decompress(data, _WINDOW)
        return self._inner.decompress(between, max_length)

    def finish(self) -> None:
        """State that the input has ended, and that all output was taken."""
        self._outer.finish()
        self._inner.finish()


_DECODERS: dict[str, Callable[[], ContentDecoder]] = {
    "gzip": GzipDecoder,
    "x-gzip": GzipDecoder,
    "deflate": DeflateDecoder,
}
if brotli is not None:
    _DECODERS["br"] = BrotliDecoder
if zstd is not None:
    _DECODERS["zstd"] = ZstdDecoder

_BY_EXTRA = frozenset({"br", "zstd"})


def supported_codings() -> tuple[str, ...]:
    """Return the codings to name in ``Accept-Encoding``, in order of preference."""
    return tuple(coding for coding in _DECODERS if not coding.startswith("x-"))


def decoder_for(content_encoding: str) -> ContentDecoder | None:
    """Return a new decoder for the value of a ``Content-Encoding`` field (RFC 9110 section 8.4).

    Returns:
        None if there is nothing to undo, or if one of the codings is unknown.
    Raises:
        HTTPInputError: more than ``MAX_CODINGS`` codings, or one whose library is missing.
    """
    codings = [coding.strip(" \t").lower() for coding in content_encoding.split(",")]
    codings = [coding for coding in codings if coding and coding != "identity"]
    if len(codings) > MAX_CODINGS:
        raise HTTPInputError(
            f"the body is encoded {len(codings)} times, more than {MAX_CODINGS}: "
            f"{content_encoding[:100]!r}"
        )
    decoder: ContentDecoder | None = None
    for coding in reversed(codings):
        make = _DECODERS.get(coding)
        if make is None:
            if coding in _BY_EXTRA:
                raise HTTPInputError(
                    f"the body is encoded as {coding!r}, which needs "
                    "pip install 'coro-loop[compression]'; "
                    "decompress_response=False takes it as it is"
                )
            return None
        decoder = make() if decoder is None else StackedDecoder(decoder, make())
    return decoder
