"""Where is everything stuck: every live task of a loop, as a tree.

    main  12.3 s  app.py:40 in main
    └─ list, 2 of 3 unfinished
       ├─ [0] titles  12.3 s  app.py:21 in titles
       │  └─ read_until b'\\r\\n' on fd 9 peer 10.0.0.1:80, 0 bytes buffered
       └─ [2] sleep, 3.1 s left

Nothing is recorded while the program runs: all of it is read off, when it is asked for, from what
the tasks refer to anyway. A task knows the future it waits for, a suspended generator its line, and
each kind of future tells by ``_awaited`` what it is and by ``_inputs`` what has to end before it.
Looking changes nothing: nobody is woken, no error counts as looked at.

The picture is taken first, whole, and written afterwards. That is what makes it safe to look from
another thread while the loop goes on: the picture may mix two moments, but what is written has an
end. Both passes are loops and not recursions: chains of tasks have no limit.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import threading
import traceback
import types
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import Any, NamedTuple, TextIO

from coro import future as future_room
from coro import task as task_room
from coro.future import PENDING, Future, slot
from coro.loop import IOLoop
from coro.task import Task, running_tasks

__all__ = ["dump", "dump_on", "format_dump"]

_log = logging.getLogger("coro.general")

# Beyond this depth lines are no longer indented, they say how deep they are.
MAX_INDENT = 16

# Characters of a line, without its indentation; of it, before the place; and of a task's name.
MAX_LINE = 200
MAX_HEAD = 120
MAX_NAME = 80

# Frames of one task: beyond that, those in the middle are left out.
MAX_FRAMES = 40

# Circles that are spelt out at the top, and how many tasks are named of each.
MAX_CIRCLES = 10
MAX_NAMES = 10

# How often to look where another thread changes what is looked at.
ATTEMPTS = 10

# Frames of these are ours, not the program's.
_ENGINE = frozenset({__file__, future_room.__file__, task_room.__file__})

_PACKAGE = os.path.dirname(__file__) + os.sep

# What may stand between a coroutine and the one that it awaits, and does not tell which that is.
_WRAPPERS = frozenset(
    {"anext_awaitable", "async_generator_asend", "async_generator_athrow", "coroutine_wrapper"}
)


def dump(*, loop: IOLoop | None = None, file: TextIO | None = None) -> None:
    """Print where every live task stands, from any place and any thread.

    Arguments:
        loop: by default the thread's current one; if there is none, all that run in other threads.
        file: by default ``sys.stderr``.
    """
    _print(format_dump(loop) + "\n", file)


def format_dump(loop: IOLoop | None = None) -> str:
    """Return what ``dump`` prints, without the last line's end.

    Arguments:
        loop: as for ``dump``.
    """
    loops = _loops() if loop is None else [loop]
    if not loops:
        return "No loop: none is current in this thread, and none runs in another."
    return "\n\n".join(_text_of(each) for each in loops)


def dump_on(
    number: int, *, loop: IOLoop | None = None, file: TextIO | None = None
) -> Callable[[], None]:
    """Dump when a signal arrives, with the stack of the main thread: ``dump_on(signal.SIGUSR1)``.

    It works also while the main thread is blocked: in Python code, or in a system call that a
    signal interrupts.

    Arguments:
        number: the signal.
        loop: as for ``dump``, at the time of the signal.
        file: by default ``sys.stderr``.
    Returns:
        a function that takes it back: what handled the signal before does so again.
    Raises:
        ValueError: this is not the main thread.
    """

    def on_signal(_number: int, frame: FrameType | None) -> None:
        try:
            stack = "".join(traceback.format_stack(frame)).rstrip()
            _print(f"{format_dump(loop)}\n\nStack of the main thread:\n{stack}\n", file)
        except Exception:
            # Whoever looks must not hurt what is looked at.
            _log.exception("The dump on signal %d failed", number)

    previous = signal.signal(number, on_signal)

    def take_back() -> None:
        # None: it was not set from Python, and cannot be set again.
        if signal.getsignal(number) is on_signal:
            signal.signal(number, signal.SIG_DFL if previous is None else previous)

    return take_back


def _print(text: str, file: TextIO | None) -> None:
    if file is None:
        file = sys.stderr
    try:
        file.write(text)
        file.flush()
    except RuntimeError:
        # A signal came while the thread was writing to the same file.
        os.write(file.fileno(), text.encode(errors="replace"))


def _text_of(loop: IOLoop) -> str:
    """Look at a loop; again if its thread changed, meanwhile, what was being looked at."""
    reason = ""
    for _ in range(ATTEMPTS):
        try:
            return _Picture(loop).text()
        except Exception as error:
            reason = repr(error)
    return f"{type(loop).__name__} at {id(loop):#x} cannot be looked at now: {reason}"


def _loops() -> list[Any]:
    here = slot.found()
    if here is not None:
        return [here]
    found = []
    for frame in sys._current_frames().values():
        at: FrameType | None = frame
        while at is not None:
            if at.f_code is IOLoop.start.__code__:
                found.append(at.f_locals["self"])
                break
            at = at.f_back
    return found


class _Entry(NamedTuple):
    """What is known of a future.

    Attributes:
        head: what it is.
        places: the lines where a task stands, outermost first.
        inputs: what it waits for, each with a label.
    """

    head: str
    places: list[str]
    inputs: list[tuple[str, Any]]


class _Visit(NamedTuple):
    """A future whose turn it is to be written.

    Attributes:
        node: the future; of any library, but only those of coro have an entry.
        label: what the future above it calls it.
        prefix: the branches of the tree to its left.
        twig: its own branch.
        depth: how many stand above it.
        leaving: whether it, and all below it, has been written.
    """

    node: Any
    label: str = ""
    prefix: str = ""
    twig: str = ""
    depth: int = 0
    leaving: bool = False


class _Picture:
    """One loop, its tasks, and what they wait for, as found at one time.

    Arguments:
        loop: it need not run, nor in this thread.
    """

    def __init__(self, loop: IOLoop) -> None:
        self._loop = loop
        self._now = loop.time()
        self._directory = _directory()
        # By task whose step is running: where it stands.
        self._running: dict[Any, list[str]] = {}
        # By such a task: the one that it called, which is in its first step.
        self._called: dict[Any, Any] = {}
        # Where the loop's callback stands that is running, outside of tasks.
        self._callback: list[str] = []
        self._look_at_stack()
        live = {*loop._live_tasks(), *self._running}
        self._tasks: list[Any] = sorted(
            (task for task in live if task._state == PENDING),
            key=lambda task: (task._since(), task.get_name()),
        )
        self._entries: dict[Any, _Entry] = {}
        # How many wait for it.
        self._waiters: dict[Any, int] = {}
        self._look_at_futures()
        # What is written more than once, by name only from the second time on, has a number.
        self._numbers: dict[Any, str] = {}
        self._written: set[Any] = set()
        self._circles: list[str] = []

    # --- looking ---------------------------------------------------------------------------

    def _look_at_stack(self) -> None:
        """Find out what is running on the stack of the loop's thread."""
        loop = self._loop
        thread = loop._thread
        if loop._asleep:
            return
        # Our own frame must not stay in a local of it, in a circle: the walk below leads out of it.
        frame: FrameType | None
        if thread is None or thread == threading.get_ident():
            frame = sys._getframe()
        else:
            frame = sys._current_frames().get(thread)
        try:
            running = [task for task in running_tasks(frame) if task._loop is loop]
        except KeyError:
            # In another thread, or before a signal: a frame has only begun and lacks its locals.
            running = []
        self._running = {task: self._suspended_at(task) for task in running}
        self._called = dict(zip(running[1:], running, strict=False))
        bodies = {_frame_and_next(task._body)[0]: task for task in running}
        places: list[str] = []
        while frame is not None and frame.f_code is not IOLoop._run_turns.__code__:
            if frame.f_code.co_filename not in _ENGINE:
                places.append(self._place(frame))
            if frame in bodies:
                self._running[bodies[frame]] = places[::-1]
                places = []
            frame = frame.f_back
        if thread is not None and not running:
            self._callback = places[::-1]

    def _look_at_futures(self) -> None:
        """Follow the tasks down to all that they wait for."""
        todo: list[Any] = list(self._tasks)
        while todo:
            node = todo.pop()
            if node in self._entries:
                continue
            inputs = [(label, _behind(each)) for label, each in _inputs(node)]
            if node in self._called:
                inputs.append(("calls", self._called[node]))
            if isinstance(node, Task):
                self._entries[node] = self._task_entry(node, inputs)
            else:
                self._entries[node] = _Entry(_text(node), [], inputs)
            for _, each in inputs:
                if isinstance(each, Future):
                    self._waiters[each] = self._waiters.get(each, 0) + 1
                    todo.append(each)

    def _task_entry(self, task: Task[Any], inputs: list[tuple[str, Any]]) -> _Entry:
        places = self._running.get(task)
        if places is not None:
            state = "running"
        else:
            places = self._suspended_at(task)
            state = task._awaited() or ("cancelled" if task._cancel_requests else "")
        name = _clip(_safely(task.get_name), MAX_NAME)
        about = f" [{state}]" if state else ""
        return _Entry(f"{name}{about}  {self._now - task._since():.1f} s", places, inputs)

    def _suspended_at(self, task: Task[Any]) -> list[str]:
        """The places of a task that does not run, outermost first."""
        places = []
        part: Any = task._body
        while part is not None:
            frame, part = _frame_and_next(part)
            if frame is not None and frame.f_code.co_filename not in _ENGINE:
                places.append(self._place(frame))
        return places

    def _place(self, frame: FrameType) -> str:
        code = frame.f_code
        name = code.co_filename
        if name.startswith(_PACKAGE):
            name = f"coro{os.sep}{name.removeprefix(_PACKAGE)}"
        return f"{name.removeprefix(self._directory)}:{frame.f_lineno} in {code.co_name}"

    # --- writing ---------------------------------------------------------------------------

    def text(self) -> str:
        """Write it."""
        lines: list[str] = []
        for task in self._tasks:
            if task not in self._waiters:
                lines.extend(self._tree(task))
        # What is left waits for itself.
        for task in self._tasks:
            if task not in self._written:
                lines.extend(self._tree(task))
        return "\n".join([*self._summary(), *lines])

    def _summary(self) -> Iterator[str]:
        loop = self._loop
        state = (
            "closed"
            if loop._closed
            else "not running"
            if loop._thread is None
            else "waiting for events"
            if loop._asleep
            else "running"
        )
        handlers = len(loop._handlers) - (loop._waker.fileno() in loop._handlers)
        yield (
            f"{type(loop).__name__} at {id(loop):#x} {state}, {_count(len(self._tasks), 'task')}, "
            f"{_count(len(loop._timers), 'timer')}, {_count(handlers, 'descriptor')}"
        )
        if self._callback:
            yield f"callback  {self._callback[0]}"
            for place in _bounded(self._callback[1:]):
                yield f"          {place}"
        for circle in self._circles[:MAX_CIRCLES]:
            yield f"circle: {circle}"
        if len(self._circles) > MAX_CIRCLES:
            yield f"circle: and {len(self._circles) - MAX_CIRCLES} more"

    def _tree(self, root: Any) -> Iterator[str]:
        """Write a future and all that it waits for."""
        if root in self._waiters:
            self._number(root)
        # From the root to the future that is being written.
        path: dict[Any, None] = {}
        todo = [_Visit(root)]
        while todo:
            visit = todo.pop()
            node = visit.node
            if visit.leaving:
                del path[node]
                continue
            label = f"{visit.label} " if visit.label else ""
            if visit.depth > MAX_INDENT:
                label = f"({visit.depth} deep) {label}"
            entry = self._entries.get(node)
            if entry is None:
                yield f"{visit.prefix}{visit.twig}{_clip(label + _text(node))}"
                continue
            number = self._numbers.get(node, "")
            if node in path:
                self._circles.append(_circle(path, node))
                yield f"{visit.prefix}{visit.twig}{_clip(f'{label}{number}{_name(node)}: circle')}"
                continue
            if node in self._written:
                what = f"{label}{number}{_name(node)}: see above"
                yield f"{visit.prefix}{visit.twig}{_clip(what)}"
                continue
            if entry.inputs or isinstance(node, Task):
                # Else it is short, and written as often as somebody waits for it.
                self._written.add(node)
                if self._waiters.get(node, 0) > 1:
                    number = self._number(node)
            below = visit.prefix
            if visit.depth < MAX_INDENT:
                below += {"": "", "├─ ": "│  ", "└─ ": "   "}[visit.twig]
            yield from _entry_lines(visit, f"{label}{number}{entry.head}", entry, below)
            path[node] = None
            todo.append(visit._replace(leaving=True))
            todo.extend(_branches(entry.inputs, below, visit.depth + 1))

    def _number(self, node: Any) -> str:
        """Give it a number, unless it has one."""
        return self._numbers.setdefault(node, f"#{len(self._numbers) + 1} ")


def _entry_lines(visit: _Visit, head: str, entry: _Entry, below: str) -> Iterator[str]:
    """Write one entry: its places stand in a column."""
    head = _clip(head, MAX_HEAD) if entry.places else head
    first, *more = _bounded(entry.places) or [""]
    yield f"{visit.prefix}{visit.twig}{_clip(f'{head}  {first}' if first else head)}"
    bar = "│" if entry.inputs else " "
    column = len(visit.prefix + visit.twig + head) + 2
    for place in more:
        yield f"{f'{below}{bar}':<{column}}{_clip(place)}"


def _branches(inputs: list[tuple[str, Any]], prefix: str, depth: int) -> Iterator[_Visit]:
    """The visits of what an entry waits for, the last one first."""
    twig = "└─ "
    for label, node in reversed(inputs):
        yield _Visit(node, label, prefix, twig, depth)
        twig = "├─ "


def _circle(path: Iterable[Any], node: Any) -> str:
    """Name those who wait for each other, from ``node`` along a path and back to it."""
    nodes = list(path)
    nodes = nodes[nodes.index(node) :]
    tasks = [each for each in nodes if isinstance(each, Task)]
    names = _bounded([_name(each) for each in tasks or nodes], MAX_NAMES)
    return " -> ".join([*names, names[0]])


def _name(node: Any) -> str:
    return _clip(_safely(node.get_name) if isinstance(node, Task) else _text(node), MAX_NAME)


def _text(node: Any) -> str:
    """What a future that is not a task is, in one line."""
    text = _safely(node._awaited) if isinstance(node, Future) else ""
    return _clip(" ".join((text or _safely(repr, node)).split()))


def _inputs(node: Any) -> list[tuple[str, Any]]:
    try:
        return list(node._inputs())
    except Exception:
        # In another thread it may be halfway between two states.
        return []


def _behind(node: Any) -> Any:
    """What a future stands for that merely follows another."""
    seen = set()
    while isinstance(node, Future) and not isinstance(node, Task) and node not in seen:
        seen.add(node)
        inputs = _inputs(node)
        if len(inputs) != 1 or _safely(node._awaited):
            break
        node = inputs[0][1]
    return node


def _frame_and_next(part: Any) -> tuple[FrameType | None, Any]:
    """The frame of a suspended generator or coroutine, and what it is delegating to."""
    if isinstance(part, types.GeneratorType):
        return part.gi_frame, part.gi_yieldfrom
    if isinstance(part, types.CoroutineType):
        return part.cr_frame, part.cr_await
    if isinstance(part, types.AsyncGeneratorType):
        return part.ag_frame, part.ag_await
    if type(part).__name__ in _WRAPPERS:
        return None, next(filter(_is_part, gc.get_referents(part)), None)
    return None, None


def _is_part(each: Any) -> bool:
    return (
        isinstance(each, types.GeneratorType | types.CoroutineType | types.AsyncGeneratorType)
        or type(each).__name__ in _WRAPPERS
    )


def _safely(look: Callable[..., str], *args: Any) -> str:
    """Ask something of the program's, which may fail, or be halfway between two states."""
    try:
        return look(*args)
    except Exception as error:
        return f"({getattr(look, '__qualname__', look)} failed: {type(error).__name__})"


def _bounded(lines: list[str], limit: int = MAX_FRAMES) -> list[str]:
    if len(lines) <= limit:
        return lines
    half = limit // 2
    return [*lines[:half], f"... {len(lines) - 2 * half} more ...", *lines[-half:]]


def _clip(text: str, limit: int = MAX_LINE) -> str:
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _directory() -> str:
    try:
        return os.getcwd() + os.sep
    except OSError:
        return ""
