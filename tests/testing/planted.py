"""Small programs with a bug behind a switch, for the simulation to find.

Each ends well in the order in which things become ready, so a test on a real loop misses it.
"""

from __future__ import annotations

import itertools
from collections import deque
from types import TracebackType
from typing import Any

from coro.errors import CancelledError, StreamClosedError, TimeoutError
from coro.future import Future
from coro.gen import Task, coroutine, moment, sleep
from coro.locks import BoundedSemaphore
from coro.loop import IOLoop
from coro.scopes import Timeout
from coro.stream import IOStream
from coro.tcp import connect
from coro.tcpserver import TCPServer

# --- a lost wake-up ------------------------------------------------------------------------


class Mailbox:
    """One takes what others put. The bug: between the look and the wait the loop may turn."""

    def __init__(self, bug: bool) -> None:
        self._bug = bug
        self._letters: deque[int] = deque()
        self._waiter: Future[None] | None = None

    def put(self, letter: int) -> None:
        self._letters.append(letter)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    @coroutine
    def take(self) -> Any:
        while not self._letters:
            if self._bug:
                yield self._make_room()
            self._waiter = Future()
            yield self._waiter
        return self._letters.popleft()

    @coroutine
    def _make_room(self) -> Any:
        yield moment


@coroutine
def lost_wake_up(bug: bool) -> Any:
    mailbox = Mailbox(bug)

    @coroutine
    def taker() -> Any:
        for expected in range(5):
            assert (yield mailbox.take()) == expected

    @coroutine
    def putter() -> Any:
        for letter in range(5):
            mailbox.put(letter)
            # Until the taker, who is ahead in production, has looked again and waits.
            yield moment
            yield moment

    yield [taker(), putter()]


# --- a double release ----------------------------------------------------------------------


@coroutine
def double_release(bug: bool) -> Any:
    permits = BoundedSemaphore(2)
    inside = 0

    @coroutine
    def work() -> Any:
        nonlocal inside
        yield permits.acquire()
        inside += 1
        assert inside <= 2, f"{inside} hold one of 2 permits"
        try:
            yield sleep(1)
        except CancelledError:
            if bug:
                # Who is cancelled must not keep it; but ``finally`` says the same.
                permits.release()
            raise
        finally:
            inside -= 1
            permits.release()

    tasks = [work() for _ in range(6)]
    yield sleep(1)
    # In production it has just ended.
    tasks[0].cancel()
    for task in tasks:
        try:
            yield task
        except CancelledError:
            pass


# --- a cancellation swallowed by a time-out ------------------------------------------------


class GreedyTimeout(Timeout):
    """The bug: whatever cancels the block once the time is over is taken for the time-out's."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        task = self._task
        try:
            expired = self.expired()
            super().__exit__(kind, error, traceback)
        except TimeoutError:
            raise
        else:
            if expired and isinstance(error, CancelledError):
                while task.uncancel():
                    pass
                raise TimeoutError("the block ran over its time limit") from error
        finally:
            del task, error


@coroutine
def swallowed_cancellation(bug: bool) -> Any:
    kind = GreedyTimeout if bug else Timeout
    polls = 0

    @coroutine
    def poll_for_ever() -> Any:
        nonlocal polls
        loop = IOLoop.current()
        while True:
            polls += 1
            assert polls < 100, "it goes on after it was cancelled"
            try:
                with kind(loop.time() + 1):
                    yield Future()
            except TimeoutError:
                # Nothing came: look again.
                pass

    task: Task[Any] = poll_for_ever()
    for _ in range(5):
        yield sleep(1)
    # In production it has just begun to look again.
    task.cancel()
    try:
        yield task
    except CancelledError:
        pass


# --- a pooled connection reused after surplus bytes ----------------------------------------


class Answers(TCPServer):
    """Answers each line. After every third answer it says more than it was asked."""

    @coroutine
    def handle_stream(self, stream: IOStream, address: Any) -> Any:
        try:
            for number in itertools.count(1):
                question = yield stream.read_until(b"\n", max_bytes=100)
                surplus = b"by the way\n" if number % 3 == 0 else b""
                yield stream.write(b"re: " + question + surplus)
        except StreamClosedError:
            pass
        finally:
            stream.close()


class Pool:
    """Connections that are kept. The bug: whether one is still fit is asked too early only."""

    def __init__(self, port: int, bug: bool) -> None:
        self._port = port
        self._bug = bug
        self._idle: list[IOStream] = []

    @coroutine
    def ask(self, question: bytes) -> Any:
        stream = self._take()
        if stream is None:
            stream = yield connect("127.0.0.1", self._port)
        yield stream.write(question)
        answer = yield stream.read_until(b"\n", max_bytes=100)
        if stream.idle():
            stream.watch()
            self._idle.append(stream)
        else:
            stream.close()
        return answer

    def _take(self) -> IOStream | None:
        while self._idle:
            stream = self._idle.pop()
            if self._bug or stream.idle():
                return stream
            stream.close()
        return None

    def close(self) -> None:
        for stream in self._idle:
            stream.close()


@coroutine
def surplus_bytes(bug: bool) -> Any:
    server = Answers()
    server.listen(0, "127.0.0.1")
    pool = Pool(server.sockets[0].getsockname()[1], bug)
    for number in range(10):
        question = b"%d\n" % number
        answer = yield pool.ask(question)
        assert answer == b"re: " + question, f"{answer!r}: answer to another question"
        # What is under way arrives.
        yield sleep(10)
    pool.close()
    yield server.shutdown(1)
