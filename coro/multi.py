"""Waiting for several things side by side: what ``yield [a, b]`` and ``yield {"x": a}`` do."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from coro.future import CANCELLED, DONE, FAILED, PENDING, Future, shortened, slot
from coro.task import cancel_with_inputs, convert_yielded

__all__ = ["Multi", "WaitIterator", "as_completed", "multi", "multi_future"]

_app_log = logging.getLogger("coro.application")

Quiet = type[BaseException] | tuple[type[BaseException], ...]


class _Multi(Future[Any]):
    """Settled when all children are: with their results, the first error, or as cancelled."""

    __slots__ = ("_cancel_asked", "_children", "_keys", "_quiet", "_unfinished")

    _passes_cancel = True

    def __init__(self, keys: list[Any] | None, children: list[Future[Any]], quiet: Quiet) -> None:
        super().__init__(loop=slot.running or slot.loop())
        self._keys = keys
        self._children = children
        self._quiet = quiet
        self._cancel_asked = False
        # One future may stand in several places, but is waited for once.
        pending = {id(child): child for child in children if child._state == PENDING}
        self._unfinished = len(pending)
        for child in pending.values():
            child._join(self._loop)
            child._call_when_done(self._child_done)
        if not pending:
            self._conclude()

    def _child_done(self, _child: Future[Any]) -> None:
        self._unfinished -= 1
        if self._unfinished == 0 and self._state == PENDING:
            self._conclude()

    def _conclude(self) -> None:
        children = self._children
        results = []
        first: BaseException | None = None
        failed: Future[Any] | None = None
        asked = self._cancel_asked
        for child in children:
            if child._state == DONE:
                results.append(child._value)
                continue
            error = child._take_error()
            if first is None:
                first = error
                failed = child
                if not asked:
                    continue
            elif error is first or child is failed:
                continue
            if child._state != CANCELLED and not isinstance(error, self._quiet):
                what = "Exception in cancelled" if asked else "Multiple exceptions in"
                _app_log.error("%s yield list", what, exc_info=error)
        if asked:
            self._unclaimed()
            super().cancel(self._value)
        elif first is not None:
            self.set_exception(first)
        else:
            self.set_result(
                results if self._keys is None else dict(zip(self._keys, results, strict=True))
            )

    def _unclaimed(self) -> None:
        given_back = False
        for child in {id(child): child for child in self._children}.values():
            if child._state == DONE:
                child._unclaimed()
                given_back |= child._state == CANCELLED
        if given_back and self._state == DONE:
            # What it gave is somebody else's now.
            self._state = CANCELLED
            self._value = None

    def cancel(self, msg: Any = None) -> bool:
        """Cancel every unfinished child; it is cancelled itself once all of them have ended."""
        if self._state != PENDING:
            return False
        self._check_thread()
        cancel_with_inputs(self, msg)
        return True

    def _pass_cancel(self, msg: Any) -> list[Future[Any]] | None:
        self._value = msg
        self._cancel_asked = True
        pending = [child for child in self._children if child._state == PENDING]
        if pending:
            return pending
        self._conclude()
        return None

    def _awaited(self) -> str:
        kind = "list" if self._keys is None else "dict"
        return f"{kind}, {len(self._inputs())} of {len(self._children)} unfinished"

    def _inputs(self) -> Sequence[tuple[str, Any]]:
        keys = range(len(self._children)) if self._keys is None else self._keys
        places = zip(keys, self._children, strict=True)
        return [(f"[{key!r}]", child) for key, child in places if child._state == PENDING]


class _FailFast(_Multi):
    """The first failure cancels the other children; it is told when all have ended."""

    __slots__ = ("_first",)

    def __init__(self, keys: list[Any] | None, children: list[Future[Any]], quiet: Quiet) -> None:
        # The child that failed first.
        self._first: Future[Any] | None = None
        for child in children:
            if child._state in (FAILED, CANCELLED):
                self._cancel_others(child, children)
                break
        super().__init__(keys, children, quiet)

    def _cancel_others(self, failed: Future[Any], children: list[Future[Any]]) -> None:
        self._first = failed
        for child in children:
            if child._state == PENDING:
                child.cancel()

    def _child_done(self, child: Future[Any]) -> None:
        if self._first is None and child._state != DONE and not self._cancel_asked:
            self._cancel_others(child, self._children)
        super()._child_done(child)

    def _conclude(self) -> None:
        first = self._first
        if first is None or self._cancel_asked:
            super()._conclude()
            return
        error = first._take_error()
        for child in {id(child): child for child in self._children}.values():
            if child._state == FAILED and child is not first:
                further = child._take_error()
                if further is not error:
                    error.add_note(f"side by side with it failed: {shortened(further)}")
        self._unclaimed()
        self.set_exception(error)


def multi(
    children: Iterable[Any] | Mapping[Any, Any],
    quiet_exceptions: Quiet = (),
    *,
    fail_fast: bool = False,
) -> Future[Any]:
    """Wait for several things side by side; the future's result has the shape of ``children``.

    If some fail, the future fails with the error of the first of them (in their order) once all
    have ended; the further errors are logged.

    Arguments:
        children: a list (or other iterable) or dict of things that can be yielded.
        quiet_exceptions: types of further errors that are not logged.
        fail_fast: cancel the others when one fails, and wait for their clean-up. The error is then
            that of the first in time; errors of the others are noted on it (``__notes__``).
    """
    kind = _FailFast if fail_fast else _Multi
    if isinstance(children, Mapping):
        return kind(
            list(children),
            [convert_yielded(child) for child in children.values()],
            quiet_exceptions,
        )
    return kind(None, [convert_yielded(child) for child in children], quiet_exceptions)


multi_future = Multi = multi

convert_yielded.register(list, multi)
convert_yielded.register(dict, multi)


class _Next(Future[Any]):
    """The next result of a ``WaitIterator``; one that nobody took is the next again."""

    __slots__ = ("_given", "_iterator")

    def __init__(self, iterator: WaitIterator) -> None:
        super().__init__(loop=slot.running or slot.loop())
        self._iterator: WaitIterator | None = iterator
        self._given: tuple[Future[Any], int | str] | None = None

    def cancel(self, msg: Any = None) -> bool:
        if not super().cancel(msg):
            return False
        iterator, self._iterator = self._iterator, None
        if iterator is not None and iterator._next is self:
            iterator._next = None
        return True

    def _unclaimed(self) -> None:
        iterator, self._iterator = self._iterator, None
        if iterator is not None and self._given is not None:
            iterator._take_back(*self._given)

    def _awaited(self) -> str:
        return f"the first of {len(self._inputs())}"

    def _inputs(self) -> Sequence[tuple[str, Any]]:
        iterator = self._iterator
        places = {} if iterator is None else iterator._places.copy()
        return [
            (f"[{key!r}]", future)
            for future, keys in places.items()
            if not future.done()
            for key in tuple(keys)
        ]


class WaitIterator:
    """Gives results in the order in which they come: ``while not it.done(): x = yield it.next()``.

    Arguments:
        args, kwargs: what to wait for; either positional (``current_index`` is then a number) or
            by keyword (it is then the keyword).

    Attributes:
        current_index: of what gave the last result; None before the first and after the last.
        current_future: its future, likewise.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if args and kwargs:
            raise ValueError("You must provide args or kwargs, not both")
        self.current_index: int | str | None = None
        self.current_future: Future[Any] | None = None
        # By future: the places where it stands and whose results were not given yet.
        self._places: dict[Future[Any], deque[int | str]] = {}
        self._ended: deque[Future[Any]] = deque()
        # Invariant: it is pending.
        self._next: _Next | None = None
        for place, item in kwargs.items() if kwargs else enumerate(args):
            future = convert_yielded(item)
            self._places.setdefault(future, deque()).append(place)
            future.add_done_callback(self._on_end)

    def done(self) -> bool:
        """Whether every result was given."""
        if self._places:
            return False
        self.current_index = self.current_future = None
        return True

    def next(self) -> Future[Any]:
        """Return a future of the next result, or of the next error."""
        following = _Next(self)
        self._next = following
        if self._ended:
            self._give(self._ended.popleft())
        return following

    def _on_end(self, future: Future[Any]) -> None:
        if self._next is not None:
            self._give(future)
        else:
            self._ended.append(future)

    def _give(self, future: Future[Any]) -> None:
        following, self._next = self._next, None
        assert following is not None
        places = self._places[future]
        self.current_future = future
        self.current_index = places.popleft()
        if not places:
            del self._places[future]
        following._given = (future, self.current_index)
        following._settle_as(future)

    def _take_back(self, future: Future[Any], place: int | str) -> None:
        self._places.setdefault(future, deque()).appendleft(place)
        self._ended.appendleft(future)
        if self._next is not None:
            self._give(self._ended.popleft())

    def __aiter__(self) -> WaitIterator:
        return self

    def __anext__(self) -> Future[Any]:
        if self.done():
            raise StopAsyncIteration
        return self.next()


def as_completed(children: Iterable[Any]) -> Iterator[Future[Any]]:
    """Iterate over futures of the results, in the order in which they come.

    ``for future in as_completed([a, b, c]): result = yield future``

    Arguments:
        children: things that can be yielded. All of them run from the start.
    """
    inputs = [convert_yielded(child) for child in children]
    results: list[Future[Any]] = [Future(loop=slot.running or slot.loop()) for _ in inputs]
    waiting = iter(results)

    def pass_on(ended: Future[Any]) -> None:
        for result in waiting:
            # One that was cancelled takes no result away from the others.
            if result._state == PENDING:
                result._settle_as(ended)
                break

    for future in inputs:
        future.add_done_callback(pass_on)
    return iter(results)
