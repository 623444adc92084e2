"""Where the URLs come from and where the lines go: files and pipes, waited for by the loop.

Standard input and output may be pipes whose other end is slow. The loop waits for them as it waits
for sockets, so they stop no fetch under way. They stay in blocking mode (which belongs to all who
share the pipe): a read follows only when the loop says "readable", and a write is no longer than
what a pipe that is "writable" is bound to take.
"""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Generator, Iterable
from select import PIPE_BUF  # noqa: TID251  (a number; who polls is the loop)
from typing import Any

from coro.future import Future
from coro.gen import Task, coroutine
from coro.loop import IOLoop

__all__ = ["Abort", "Output", "Source"]

LONGEST_URL = 65536
"""Bytes; a longer line of the input is an error."""

CHUNK = 65536
"""Bytes of the input that are read at once."""

STATUS_PIPE_CLOSED = 128 + signal.SIGPIPE


class Abort(Exception):
    """Nothing more can be done: what to say (None: nothing), and the exit status."""

    def __init__(self, message: str | None, status: int = 1) -> None:
        super().__init__(message)
        self.message = message
        self.status = status


def _until(fd: int, event: int) -> Future[None]:
    """Return a future that is done when a descriptor is ready; a file on a disk always is."""
    loop = IOLoop.current()
    future: Future[None] = Future()

    def on_event(_fd: int, _events: int) -> None:
        loop.remove_handler(fd)
        if not future.done():
            future.set_result(None)

    try:
        loop.add_handler(fd, on_event, event)
    except PermissionError:  # what epoll says of files on a disk
        future.set_result(None)
    return future


class Source:
    """URLs one by one: those of the command line, then the lines of the input.

    Arguments:
        urls: those of the command line.
        fd: the input; None if there is none.
    Attributes:
        drawn: how many URLs were drawn.
        ended: nothing more will be read.
    """

    def __init__(self, urls: Iterable[str], fd: int | None) -> None:
        self.drawn = 0
        self.ended = fd is None
        self._fd = fd
        self._urls = deque(urls)
        # The beginning of a line whose end was not read yet, cut off where it is too long anyway.
        self._partial = b""
        # All workers that find no URL wait for the one reading.
        self._reading: Task[None] | None = None

    @property
    def total(self) -> int | None:
        """How many URLs there are in all; None while nobody knows."""
        return self.drawn + len(self._urls) if self.ended else None

    def draw(self) -> Generator[Any, Any, str | None]:
        """Return the next URL, None at the end: ``url = yield from source.draw()``."""
        while not self._urls:
            if self.ended:
                return None
            if self._reading is None or self._reading.done():
                self._reading = self._read()
            yield self._reading
        self.drawn += 1
        return self._urls.popleft()

    @coroutine
    def _read(self) -> Generator[Any, Any, None]:
        """Read one chunk; keep the URLs that are whole."""
        assert self._fd is not None
        yield _until(self._fd, IOLoop.READ)
        try:
            chunk = os.read(self._fd, CHUNK)
        except BlockingIOError:  # another process was faster
            return
        except OSError as error:
            raise Abort(f"cannot read the list of URLs: {error.strerror}") from error
        *lines, self._partial = (self._partial + chunk).split(b"\n")
        self._partial = self._partial[: LONGEST_URL + 1]
        if not chunk:
            self.ended = True
            lines.append(self._partial)
        for line in lines:
            # Some editors begin a file with the mark U+FEFF. What is not UTF-8 fails as a URL.
            url = line.decode(errors="surrogateescape").strip().removeprefix("\ufeff")
            if url and not url.startswith("#"):
                self._urls.append(url)


class Output:
    """Standard output; ``yield output.write(data)`` waits until it has taken all."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._waiting = bytearray()
        self._flushing: Task[None] | None = None

    def write(self, data: bytes) -> Task[None]:
        """Write in the order of the calls."""
        self._waiting += data
        if self._flushing is None or self._flushing.done():
            self._flushing = self._flush()
        return self._flushing

    @coroutine
    def _flush(self) -> Generator[Any, Any, None]:
        while self._waiting:
            yield _until(self._fd, IOLoop.WRITE)
            try:
                written = os.write(self._fd, self._waiting[:PIPE_BUF])
            except BlockingIOError:  # somebody made it non-blocking, and filled it meanwhile
                continue
            except BrokenPipeError as error:
                raise Abort(None, STATUS_PIPE_CLOSED) from error
            except OSError as error:
                raise Abort(f"cannot write to standard output: {error.strerror}") from error
            del self._waiting[:written]
