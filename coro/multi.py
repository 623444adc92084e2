"""Waiting for several things side by side: what ``yield [a, b]`` and ``yield {"x": a}`` do."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from coro.future import CANCELLED, DONE, PENDING, Future, slot
from coro.task import cancel_with_inputs, convert_yielded

__all__ = ["multi", "multi_future"]

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
        asked = self._cancel_asked
        for child in children:
            if child._state == DONE:
                results.append(child._value)
                continue
            error = child._take_error()
            if first is None:
                first = error
                if not asked:
                    continue
            elif error is first:
                continue
            if child._state != CANCELLED and not isinstance(error, self._quiet):
                what = "Exception in cancelled" if asked else "Multiple exceptions in"
                _app_log.error("%s yield list", what, exc_info=error)
        self._children = []
        if asked:
            super().cancel(self._value)
        elif first is not None:
            self.set_exception(first)
        else:
            self.set_result(
                results if self._keys is None else dict(zip(self._keys, results, strict=True))
            )

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


def multi(children: Iterable[Any] | Mapping[Any, Any], quiet_exceptions: Quiet = ()) -> Future[Any]:
    """Wait for several things side by side; the future's result has the shape of ``children``.

    If some fail, the future fails with the error of the first of them (in their order) once all
    have ended; the further errors are logged.

    Arguments:
        children: a list (or other iterable) or dict of things that can be yielded.
        quiet_exceptions: types of further errors that are not logged.
    """
    if isinstance(children, Mapping):
        return _Multi(
            list(children),
            [convert_yielded(child) for child in children.values()],
            quiet_exceptions,
        )
    return _Multi(None, [convert_yielded(child) for child in children], quiet_exceptions)


multi_future = multi

convert_yielded.register(list, multi)
convert_yielded.register(dict, multi)
