"""Fetches that are cancelled, or whose client is closed, at every point of their way.

The points are counted in turns of the loop: something is done to a fetch after no turn, after one,
after two, ... until it ends before that. Server and client share the loop and its virtual clock, so
each count is one certain point of the way, the turn in which the awaited bytes arrive included.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from coro.errors import CancelledError, HTTPError
from coro.gen import Task, coroutine, sleep
from coro.hooks import Observer
from coro.http import AsyncHTTPClient
from coro.loop import IOLoop
from tests.http.serving import LoopServer, response
from tests.support.leaks import count_fds
from tests.support.virtual import turns

# No fetch here takes so many turns; one that never ends is cancelled this often.
MANY = 60


def settle(loop: IOLoop, server: LoopServer) -> None:
    """Let both sides notice what has happened."""
    for _ in range(200):
        turns(loop)
        if not server.open and not loop._ready:
            break
    turns(loop, 3)


def fixed(*steps: Any) -> Callable[[Any], Any]:
    """A script that reads a request, then does each step in a turn of its own."""

    def script(peer: Any) -> Any:
        yield from peer.request()
        for step in steps:
            yield None
            if isinstance(step, bytes):
                yield peer.send(step)
            elif step == "silence":
                yield from peer.silence()
            elif step == "reset":
                peer.reset()
            elif step == "again":
                yield from peer.request()

    return script


OK = response(b"0123456789")


class Rig:
    """Spoils one fetch after another, each one turn later, and looks what remains."""

    def __init__(self, loop: IOLoop, serve: Any) -> None:
        self.loop = loop
        self.good = serve(fixed(OK))
        turns(loop, 3)

    def left(self) -> dict[str, float]:
        """Count what is there."""
        counts = self.loop.statistics()
        return {key: counts[key] for key in ("tasks", "timers", "handlers")} | {"fds": count_fds()}

    def run(
        self,
        server: LoopServer,
        begin: Callable[[AsyncHTTPClient], Task[Any]],
        times: int = 1,
        at_turn_end: bool = False,
        most: int = MANY,
        linger: float = 0,
        **settings: Any,
    ) -> int:
        """Cancel it; return how many turns the fetch took (``most``: it never ended).

        Arguments:
            server: what is fetched from.
            begin: begins the fetch.
            times: how often to cancel it.
            at_turn_end: cancel when all that was ready in a turn has run. By default: when the
                turn's events were dispatched, and the tasks that they woke have not run.
            most: how often to try.
            linger: seconds until the server notices that a client has left.
            settings: of the client.
        """
        before = self.left()
        for count in range(most):
            client = AsyncHTTPClient(force_instance=True, **settings)
            ended_before = self.loop.run_sync(
                functools.partial(self._cancel_after, count, begin(client), times, at_turn_end)
            )
            settle(self.loop, server)
            self.check_slots(client)
            again = self.loop.run_sync(functools.partial(client.fetch, self.good.url()))
            assert again.body == b"0123456789"
            client.close()
            self.check_left(before, server, linger, f"cancelled after {count} turns")
            if ended_before:
                return count
        return most

    def run_closing(
        self,
        server: LoopServer,
        begin: Callable[[AsyncHTTPClient], Task[Any]],
        check: Callable[[Task[Any], float], None],
        most: int = MANY,
        linger: float = 0,
        **settings: Any,
    ) -> int:
        """Close the client; return how many turns the fetch took (``most``: it never ended).

        Arguments:
            check: called with the fetch when it has ended, and how many seconds it took.
        """
        before = self.left()
        for count in range(most):
            client = AsyncHTTPClient(force_instance=True, **settings)
            begun = self.loop.time()
            task = begin(client)
            ended_before = self.loop.run_sync(
                functools.partial(self._close_after, count, client, task)
            )
            check(task, self.loop.time() - begun)
            del task
            settle(self.loop, server)
            self.check_slots(client)
            self.check_left(before, server, linger, f"closed after {count} turns")
            if ended_before:
                return count
        return most

    def check_slots(self, client: AsyncHTTPClient) -> None:
        counts = client.statistics()
        assert (counts["active"], counts["waiting"]) == (0, 0)

    def check_left(
        self, before: dict[str, float], server: LoopServer, linger: float, what: str
    ) -> None:
        """Assert that no more is there than before, once both sides had their time."""
        if linger:
            self.loop.run_sync(lambda: sleep(linger))
        settle(self.loop, server)
        settle(self.loop, self.good)
        assert self.left() == before, what

    @coroutine
    def _close_after(self, count: int, client: AsyncHTTPClient, task: Task[Any]) -> Any:
        for _ in range(count):
            yield None
        ended_before = task.done()
        client.close()
        try:
            yield task
        except HTTPError:
            pass
        return ended_before

    @coroutine
    def _cancel_after(self, count: int, task: Task[Any], times: int, at_turn_end: bool) -> Any:
        for _ in range(count):
            yield None
        if at_turn_end:
            observer = AtTurnEnd(task, times)
            self.loop.add_observer(observer)
            while observer.ended_before is None:
                yield None
            ended_before = observer.ended_before
        else:
            ended_before = task.done()
            for _ in range(times):
                task.cancel()
        try:
            yield task
        except HTTPError:
            assert ended_before
        except CancelledError:
            assert task.cancelled()
            assert not ended_before
        else:
            assert ended_before
        return ended_before


class AtTurnEnd(Observer):
    """Cancels a task when the next turn is over."""

    def __init__(self, task: Task[Any], times: int) -> None:
        self.task = task
        self.times = times
        self.ended_before: bool | None = None

    def turn_ended(self, loop: IOLoop) -> None:
        loop.remove_observer(self)
        self.ended_before = self.task.done()
        for _ in range(self.times):
            self.task.cancel()
