"""What becomes of a response's body that is not simply collected as it comes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator
from itertools import count
from typing import Any

from coro.errors import BodyTooLargeError, CancelledError
from coro.gen import current_task
from coro.http.compression import ContentDecoder

__all__ = ["CallbackError", "Receiver", "blame"]

_app_log = logging.getLogger("coro.application")

# Bytes that are decompressed at once: what a bomb can occupy before it is measured.
DECODE_STEP = 64 * 1024
# After so many of them others get a turn, the clock among them: a piece may hold a gigabyte.
STEPS_AT_ONCE = 16


class CallbackError(Exception):
    """A callback of the caller's failed: its error, which was logged, is the cause."""


def blame(name: str, error: BaseException) -> CallbackError:
    """Log what a callback raised; return what ends the fetch."""
    _app_log.error("Uncaught exception in %s", name, exc_info=error)
    failure = CallbackError(f"{name} raised {error!r}")
    failure.__cause__ = error
    try:
        return failure
    finally:
        # Their tracebacks refer to this frame, or will.
        del error, failure


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
        waiting = None
        try:
            waiting = self._callback(piece)
            if waiting is not None:
                yield waiting
        except (Exception, CancelledError) as error:
            if isinstance(error, CancelledError) and _is_cancelled():
                raise
            raise blame("streaming_callback", error) from error
        finally:
            del waiting  # Its error, if it has one, will hold this frame.

    def finish(self) -> None:
        """The response is complete: so must be what was compressed in it."""
        if self._coding is not None:
            self._coding.finish()

    def body(self) -> bytes:
        """Return what was collected."""
        return b"".join(self._pieces)


def _is_cancelled() -> bool:
    """Whether it is this task that is to end, and not what it waited for that was cancelled."""
    task = current_task()
    return task is not None and task.cancelling() > 0
