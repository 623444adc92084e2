"""``ResponseWriter``: a response whose body is written piece by piece, with its framing."""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Generator, Iterable
from typing import Any

from coro.future import Future
from coro.http.compressors import Compressor
from coro.http.encode import encode_chunk, encode_last_chunk
from coro.stream import IOStream

__all__ = ["ResponseWriter", "pour"]


class ResponseWriter:
    """Writes the body of a response that ``request.respond()`` began.

    Attributes:
        status: the response's.
        sent: bytes of the body that were written, before they are compressed.
    """

    __slots__ = (
        "_compressor",
        "_finished",
        "_framing",
        "_head",
        "_on_waiting",
        "_skips",
        "_stream",
        "keep",
        "sent",
        "status",
    )

    def __init__(
        self,
        stream: IOStream,
        on_waiting: Callable[[], None],
        head: bytes,
        status: int,
        keep: bool,
        length: int | None,
        chunked: bool,
        skips: bool,
        compressor: Compressor | None = None,
    ) -> None:
        self._stream = stream
        # Called when a piece could not be sent at once.
        self._on_waiting = on_waiting
        # Leaves with the first piece of the body, or else at the end of this turn.
        self._head = head
        stream.io_loop._at_turn_end.append(self._send_head)
        self.status = status
        # Whether the connection may carry another request afterwards.
        self.keep = keep
        # The bytes that are to come; None: in chunks; -1: up to the close.
        self._framing = length if length is not None else None if chunked else -1
        # Whether nothing of the body is sent, as after HEAD.
        self._skips = skips
        self._compressor = compressor
        self.sent = 0
        self._finished: Future[None] | None = None

    def _send_head(self) -> None:
        head, self._head = self._head, b""
        if head and not self._stream.closed():
            self._stream.write(head)

    def write(self, data: bytes) -> Future[None]:
        """Send a piece of the body.

        Returns:
            A future to wait for before the next piece: done when few bytes wait to be sent.
        Raises:
            StreamClosedError: the client has gone.
            ValueError: more than the announced ``Content-Length``.
            RuntimeError: the response was finished.
        """
        if self._finished is not None:
            raise RuntimeError("write() after finish()")
        framing = self._framing
        size = memoryview(data).nbytes
        if framing is not None and framing >= 0 and self.sent + size > framing:
            raise ValueError(f"more than the announced Content-Length of {framing} bytes")
        self.sent += size
        if self._compressor is not None and size and not self._skips:
            data = self._compressor.compress(data)
        return self._write(encode_chunk(data) if framing is None else data)

    def _write(self, data: bytes) -> Future[None]:
        if self._skips:
            data = b""
        if self._head:
            data = self._head + data
            self._head = b""
        future = self._stream.write(data)
        if not future.done():
            self._on_waiting()
        return future

    def finish(self, trailers: Iterable[tuple[str, str]] = ()) -> Future[None]:
        """End the response.

        Arguments:
            trailers: fields to send after the body, if it is sent in chunks (RFC 9110 section 6.5).
        Returns:
            A future that is done when all was handed to the system.
        Raises:
            StreamClosedError: the client has gone.
            ValueError: the body is shorter than its announced length, or a field is not allowed.
        """
        if self._finished is None:
            framing = self._framing
            if self._compressor is not None and not self._skips:
                end = self._compressor.finish()
                self._write(encode_chunk(end) if framing is None else end)
            if framing is None:
                end = encode_last_chunk(trailers)
            elif framing > self.sent and not self._skips:
                raise ValueError(f"{framing - self.sent} bytes less than the announced length")
            else:
                end = b""
            self._write(end)
            # That of no bytes is done when nothing waits any more.
            self._finished = self._write(b"")
        return self._finished


def pour(
    body: Iterable[bytes] | AsyncIterable[bytes], writer: ResponseWriter
) -> Generator[Any, Any, None]:
    """Send the pieces of a body as they come."""
    if isinstance(body, AsyncIterable):
        pieces = aiter(body)
        try:
            while True:
                try:
                    piece = yield anext(pieces)
                except StopAsyncIteration:
                    break
                yield writer.write(piece)
        finally:
            if hasattr(pieces, "aclose"):
                yield pieces.aclose()
        return
    iterator = iter(body)
    try:
        for piece in iterator:
            yield writer.write(piece)
    finally:
        if hasattr(iterator, "close"):
            iterator.close()
