"""Responses whose body is pulled piece by piece: ``fetch(url, stream=True)``.

The fetch goes on in a task of its own, which hands pieces over one at a time and waits until each
was taken; so whoever reads slowly slows down the server, by way of TCP. The task ends with the
body. If nobody wants the rest, closing the response cancels the task, and with it the connection.
"""

from __future__ import annotations

import warnings
from collections.abc import Generator
from types import TracebackType
from typing import Any, Self

from coro.errors import CancelledError, StreamClosedError
from coro.future import Future
from coro.gen import coroutine, moment
from coro.http.headers import HTTPHeaders
from coro.http.messages import HTTPResponse

__all__ = ["Pieces", "StreamedResponse"]


class Pieces:
    """What a fetch hands over to whom reads its response.

    Attributes:
        opened: done with the response when its head has come; failed if the fetch has. None
            afterwards.
        closed: nobody will read the rest; a fetch that has more to say ends in the next turn.
    """

    def __init__(self) -> None:
        self.opened: Future[HTTPResponse] | None = Future()
        self.closed = False
        # The fetch, as long as it lasts.
        self.task: Any = None
        # What was handed over and not taken yet; who waits for more, and for it to be taken.
        self._rest = b""
        # Why there is no more; once it was told, the stream is closed like any other.
        self._error: BaseException | None = None
        self._ended = self._failed = False
        # Whether the reader has taken leave; the fetch needs a turn to end.
        self.closed = False
        # What came after the body.
        self.trailers: HTTPHeaders | None = None
        self._reader: Future[None] | None = None
        self._writer: Future[None] | None = None

    # --- the fetch's side ------------------------------------------------------------------

    def take(self, piece: bytes) -> Generator[Any, Any, None]:
        """Hand a piece over; wait until all of it was read."""
        self._rest = piece
        self._wake()
        self._writer = Future()
        yield self._writer

    def open(self, response: HTTPResponse) -> None:
        """The head has come."""
        opened, self.opened = self.opened, None
        if opened is None:
            return
        if opened.done():
            # Whoever waited was cancelled in this very turn, and has yet to take leave.
            self.closed = True
        else:
            opened.set_result(response)

    def end(self, task: Any) -> None:
        """The fetch is over: as it should be, or not."""
        self._ended = True
        self.task = None
        error = StreamClosedError() if task.cancelled() else task.exception()
        self._failed = error is not None
        opened, self.opened = self.opened, None
        if opened is None:
            self._error = error
        elif not opened.done():
            opened.set_exception(CancelledError() if task.cancelled() else error)
        self._wake()

    def _wake(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None and not reader.done():
            reader.set_result(None)

    # --- the reader's side -----------------------------------------------------------------

    def read(self, max_bytes: int) -> Generator[Any, Any, bytes]:
        """Return some bytes; b"" at the end."""
        while not self._rest and not self._ended:
            if self._reader is not None:
                raise RuntimeError("somebody is reading this response already")
            self._reader = Future()
            try:
                yield self._reader
            finally:
                self._reader = None
        if not self._rest and self._failed:
            error, self._error = self._error, None
            try:
                raise StreamClosedError if error is None else error
            finally:
                # Its traceback refers to this frame.
                del error
        piece, self._rest = self._rest[:max_bytes], self._rest[max_bytes:]
        if not self._rest:
            writer, self._writer = self._writer, None
            if writer is not None and not writer.done():
                writer.set_result(None)
        return piece

    @property
    def at_end(self) -> bool:
        """Whether the fetch is over, and all was read."""
        return self._ended and not self._rest

    def close(self) -> None:
        """Nobody will read the rest."""
        self.closed = True
        self._rest = b""
        self.closed = True
        if self.task is not None:
            self.task.cancel()


class StreamedResponse(HTTPResponse):
    """A response whose head has come; ``body`` stays empty, ``read`` gives what follows.

    ``async for piece in response`` reads all of it, and ``async with`` closes it in the end.
    """

    __slots__ = ("_pieces",)

    _pieces: Pieces

    @property
    def trailers(self) -> HTTPHeaders:
        """The fields that came after the body; they are there when all of it was read."""
        return self._pieces.trailers or HTTPHeaders()

    @coroutine
    def read(self, max_bytes: int = 65536) -> Generator[Any, Any, bytes]:
        """Read some of the body.

        Arguments:
            max_bytes: at most so many.
        Returns:
            What there is, as soon as there is something; b"" at the end.
        Raises:
            RequestError: the body broke off, or a time limit ran out.
            StreamClosedError: the response was closed.
        """
        if max_bytes < 1:
            raise ValueError(f"max_bytes is at least 1, not {max_bytes!r}")
        return (yield from self._pieces.read(max_bytes))

    @coroutine
    def read_all(self, max_bytes: int = 100 * 1024 * 1024) -> Generator[Any, Any, bytes]:
        """Read all that is left of the body.

        Raises:
            ValueError: it is more than ``max_bytes``; the response is closed.
        """
        found = []
        left = max_bytes
        while piece := (yield from self._pieces.read(left + 1)):
            found.append(piece)
            left -= len(piece)
            if left < 0:
                self.close()
                raise ValueError(f"the body is larger than {max_bytes} bytes")
        return b"".join(found)

    def close(self) -> None:
        """Read no more; a connection that has more to say is closed."""
        self._pieces.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
        # The connection is closed in the next turn.
        await moment

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        piece = await self.read()
        if not piece:
            raise StopAsyncIteration
        return piece

    def __del__(self) -> None:
        pieces = getattr(self, "_pieces", None)
        if pieces is not None and not (pieces.at_end or pieces.closed):
            warnings.warn(f"unclosed {self!r}", ResourceWarning, stacklevel=2, source=self)
            pieces.close()

    def __repr__(self) -> str:
        pieces = self._pieces
        state = "closed" if pieces.closed else "read" if pieces.at_end else "open"
        return f"<StreamedResponse {self.code} {self.reason} {state}, {self.effective_url}>"
