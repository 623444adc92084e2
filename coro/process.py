"""Processes: ``Subprocess`` with its pipes as streams, and workers that are forked in advance.

**Subprocess.** The end of a child is told by a descriptor (Linux's ``pidfd_open``), which the loop
watches like any other: no SIGCHLD, no thread, no number that may mean another process by now. Where
there is none, a thread waits. Either way the child is reaped whether anybody asks for it or not.

**Workers.** ``fork_processes`` forks, and the parent stays inside the call as supervisor: it waits
for signals and nothing else (``sigwait``), so nothing can come between a look and a wait. It passes
on what is meant to end the workers. Ctrl-C in a terminal they get by themselves: it goes to all
processes there, and a second one would mean "at once".
"""

from __future__ import annotations

import functools
import logging
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

from coro.future import PENDING, Future, slot
from coro.loop import IOLoop
from coro.net import READ
from coro.stream import PipeIOStream

__all__ = ["CalledProcessError", "Subprocess", "cpu_count", "fork_processes", "task_id"]

CalledProcessError = subprocess.CalledProcessError

_log = logging.getLogger("coro.general")

DEFAULT_RESTARTS = 100

# Seconds that workers have to end after they were told to.
GRACE = 30.0


def cpu_count() -> int:
    """Return how many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# --- workers -------------------------------------------------------------------------------

_task_id: int | None = None


def task_id() -> int | None:
    """Return this worker's number, as ``fork_processes`` did; None in any other process."""
    return _task_id


def fork_processes(
    num_processes: int | None,
    max_restarts: int | None = None,
    *,
    grace: float = GRACE,
    on_stop: Callable[[], Any] | None = None,
) -> int:
    """Fork workers, and supervise them; returns in the workers only.

    A worker that fails (an exit status other than 0, or a signal) is replaced by one of the same
    number. When all have ended by themselves, the parent leaves by ``SystemExit``. SIGTERM, SIGINT
    and SIGHUP to the parent are passed on, and then none is replaced any more; what still runs
    when the time is over is killed.

    Loops that exist already are opened anew in the workers, with their handlers, as long as none
    is running. The module ``random`` is seeded anew by Python itself.

    Arguments:
        num_processes: how many; None or 0: one for each processor.
        max_restarts: how many are replaced in all (default 100).
        grace: seconds that workers have to end after a signal.
        on_stop: called in the parent when workers are told to end: to close listening sockets, say,
            which the parent holds for workers to come, and where else clients would go on queueing.
    Returns:
        the worker's number, from 0.
    Raises:
        SystemExit: (in the parent) all have ended.
        RuntimeError: a loop is running; this is a worker already; or (in the parent) too many
            workers failed, and the others were told to end (SIGTERM).
    """
    running = slot.running or slot.hosted()
    if running is not None:
        raise RuntimeError(
            f"{running!r} is running and cannot be shared: fork_processes() comes before the "
            "loop: sockets = bind_sockets(port); fork_processes(n); coro.run(main, sockets)"
        )
    if _task_id is not None:
        raise RuntimeError(f"this is worker {_task_id} already: fork_processes() is called once")
    if num_processes is None or num_processes <= 0:
        num_processes = cpu_count()
    restarts = DEFAULT_RESTARTS if max_restarts is None else max_restarts
    supervisor = _Supervisor(restarts, grace, on_stop)
    worker = supervisor.run(num_processes)
    if worker is None:
        sys.exit(0)
    return worker


# What ends the workers.
STOPPING = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP})


class _Supervisor:
    """The parent of forked workers, until they have ended.

    Arguments:
        restarts: how many workers may be replaced.
        grace: seconds from the first signal until workers are killed.
        on_stop: called when they are told to end.
    """

    def __init__(
        self, restarts: int, grace: float, on_stop: Callable[[], Any] | None = None
    ) -> None:
        self._restarts = restarts
        self._grace = grace
        self._on_stop = on_stop
        self._workers: dict[int, int] = {}
        # When workers are killed; infinite while they are not told to end.
        self._deadline = math.inf
        self._error: RuntimeError | None = None
        # Not those that are ignored, as under nohup.
        self._wanted = {each for each in STOPPING if signal.getsignal(each) != signal.SIG_IGN}
        self._wanted.add(signal.SIGCHLD)

    def run(self, count: int) -> int | None:
        """Fork and supervise: return a worker's number in the worker, in the parent None."""
        _log.info("starting %d workers", count)
        # While they are blocked, signals wait to be taken one by one.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, self._wanted)
        try:
            for number in range(count):
                if self._fork(number):
                    return number
            while self._workers:
                self._take_signal()
                for number in self._reap():
                    if self._fork(number):
                        return number
            if self._error is not None:
                raise self._error
            return None
        except BaseException:
            # Nothing goes on running behind an error.
            self._send(signal.SIGKILL)
            for pid in self._workers:
                os.waitpid(pid, 0)
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def _fork(self, number: int) -> bool:
        """Begin a worker; True in the worker."""
        global _task_id
        pid = os.fork()
        if pid:
            self._workers[pid] = number
            return False
        _task_id = number
        self._workers.clear()
        return True

    def _take_signal(self) -> None:
        """Wait for a signal, and do what it asks for."""
        if self._deadline == math.inf:
            taken = signal.sigwaitinfo(self._wanted)
        else:
            left = max(0.0, self._deadline - time.monotonic())
            found = signal.sigtimedwait(self._wanted, left)
            if found is None:
                _log.warning("killing %d workers that did not end", len(self._workers))
                self._send(signal.SIGKILL)
                self._deadline = math.inf
                return
            taken = found
        number = taken.si_signo
        if number != signal.SIGCHLD:
            _log.info("%s: ending %d workers", signal.Signals(number).name, len(self._workers))
            # From the kernel: a terminal, which has sent it to the workers as well.
            self._end(number if taken.si_code <= 0 else None)

    def _end(self, number: int | None) -> None:
        """Replace no worker any more, and tell those that there are to end."""
        self._restarts = -1
        if self._deadline == math.inf:
            self._deadline = time.monotonic() + self._grace
        if number is not None:
            self._send(number)
        on_stop, self._on_stop = self._on_stop, None
        if on_stop is not None:
            on_stop()

    def _send(self, number: int) -> None:
        for pid in self._workers:
            os.kill(pid, number)

    def _reap(self) -> list[int]:
        """Take those that have ended; return the numbers of those to be replaced."""
        failed: list[int] = []
        for pid in list(self._workers):
            found, status = os.waitpid(pid, os.WNOHANG)
            if not found:
                continue
            number = self._workers.pop(pid)
            code = os.waitstatus_to_exitcode(status)
            how = f"by {signal.Signals(-code).name}" if code < 0 else f"with status {code}"
            if code == 0 or self._restarts < 0:
                _log.info("worker %d (process %d) ended %s", number, pid, how)
                continue
            if self._restarts == 0:
                self._error = RuntimeError(f"too many workers failed; worker {number} ended {how}")
                self._end(signal.SIGTERM)
                return []
            self._restarts -= 1
            _log.warning("worker %d (process %d) ended %s; starting it again", number, pid, how)
            failed.append(number)
        return failed


# --- subprocesses --------------------------------------------------------------------------


class Subprocess:
    """A child process: ``subprocess.Popen`` with streams, and a future of its end.

    The arguments are those of ``subprocess.Popen``. Where ``stdin``, ``stdout`` or ``stderr`` is
    ``Subprocess.STREAM``, the attribute of that name is a ``PipeIOStream``, the caller's to close.
    It belongs to the loop that is current when it is made.

    Attributes:
        proc: the ``subprocess.Popen``.
        pid: the process's number.
        returncode: its exit status, negative for a signal; None while it runs.
    Raises:
        OSError: it cannot be started. No descriptor stays open.
    """

    STREAM: ClassVar[object] = object()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._loop: IOLoop = slot.running or slot.loop()
        self.stdin: PipeIOStream | None = None
        self.stdout: PipeIOStream | None = None
        self.stderr: PipeIOStream | None = None
        self.returncode: int | None = None
        self._waiting: list[_Exit] = []
        # Where the loop hears of the end.
        self._pidfd: int | None = None
        ours: dict[str, int] = {}
        theirs: list[int] = []
        try:
            for name in ("stdin", "stdout", "stderr"):
                if kwargs.get(name) is Subprocess.STREAM:
                    reader, writer = os.pipe()
                    kwargs[name], ours[name] = (
                        (reader, writer) if name == "stdin" else (writer, reader)
                    )
                    theirs.append(kwargs[name])
            self.proc: subprocess.Popen[Any] = self._loop.network.popen(*args, **kwargs)
        except BaseException:
            _close_all(ours.values())
            raise
        finally:
            _close_all(theirs)
        self.pid = self.proc.pid
        for name, fd in ours.items():
            setattr(self, name, PipeIOStream(fd))
        self._watch()

    def __repr__(self) -> str:
        code = self.returncode
        state = "running" if code is None else f"ended {code}"
        return f"<Subprocess {self.pid} {state}: {self.proc.args!r}>"

    def set_exit_callback(self, callback: Callable[[int], Any]) -> None:
        """Call ``callback(returncode)``, in a turn of the loop, when the process has ended."""
        self._loop.add_future(
            self.wait_for_exit(raise_error=False), lambda future: callback(future.result())
        )

    def wait_for_exit(self, raise_error: bool = True) -> Future[int]:
        """Return a future of the exit status. Cancelling it leaves the process alone.

        Arguments:
            raise_error: fail if the status is not 0.
        Raises:
            CalledProcessError: (in the future) it is not 0.
        """
        future = _Exit(self, raise_error)
        if self.returncode is None:
            self._waiting.append(future)
        else:
            future.tell(self.returncode)
        return future

    @classmethod
    def initialize(cls) -> None:
        """Do nothing: no signal handler is needed."""

    @classmethod
    def uninitialize(cls) -> None:
        """Do nothing."""

    def _watch(self) -> None:
        """Have the loop, or else a thread, wait for the end."""
        try:
            pidfd = os.pidfd_open(self.pid)
            try:
                self._loop._register(pidfd, self, self._on_exit, READ)
            except BaseException:
                os.close(pidfd)
                raise
        except (AttributeError, OSError):
            # A thread: not Linux, forbidden, nothing left of something, or reaped by somebody else.
            wait = functools.partial(_wait_in_thread, self.proc, self._loop, self._on_exit)
            threading.Thread(target=wait, name=f"coro-wait-{self.pid}", daemon=True).start()
        else:
            self._pidfd = pidfd
            self._loop._call_on_close(self, self._close_pidfd)

    def _close_pidfd(self) -> None:
        if self._pidfd is not None:
            self._loop._forget_on_close(self)
            self._loop._unregister(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None

    def _on_exit(self, _events: int = 0) -> None:
        self._close_pidfd()
        # It has ended: this reaps it, and does not block.
        self.returncode = self.proc.wait()
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.tell(self.returncode)


def _wait_in_thread(
    proc: subprocess.Popen[Any], loop: IOLoop, callback: Callable[[], None]
) -> None:
    proc.wait()
    loop.add_callback(callback)


def _close_all(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)


class _Exit(Future[int]):
    """The end of a subprocess."""

    __slots__ = ("_process", "_raises")

    def __init__(self, process: Subprocess, raises: bool) -> None:
        super().__init__(loop=process._loop)
        self._process = process
        self._raises = raises

    def tell(self, code: int) -> None:
        """Settle it with the exit status."""
        if code and self._raises:
            self.set_exception(CalledProcessError(code, self._process.proc.args))
        else:
            self.set_result(code)

    def cancel(self, msg: Any = None) -> bool:
        if self._state == PENDING:
            self._process._waiting.remove(self)
        return super().cancel(msg)

    def _awaited(self) -> str:
        return f"exit of process {self._process.pid}"
