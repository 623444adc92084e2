"""``explore``: one program under many seeds, on all processors.

Each worker is a process of its own that was begun from nothing (``spawn``): a copy of this one by
``fork`` would hold its threads' locks. So the program has to be something that another process can
import. Workers get chunks of seeds that take a fraction of a second; a worker ends its chunk at the
first failure.

Which seed is told does not depend on who was faster: after a failure nothing behind it is handed
out any more, but all that stands before it is finished, so it is the first of the seeds, in their
order, that fails.

That seed is run again in this process, which shows whether the program is deterministic, and with
fewer and fewer faults, as long as it fails with the same type of error: first without half of them,
then without a quarter, at last without single ones. What the program prints and logs is shown for
the last of these runs only, which raises its error here, where a debugger can look at it.
"""

from __future__ import annotations

import contextlib
import io
import logging
import multiprocessing
import pickle
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any, NamedTuple, Self

from coro.process import cpu_count
from coro.testing.faults import Fault, Faults
from coro.testing.simulation import World, how_to_replay

try:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
except ImportError:
    # Then a plain line has to do.
    Progress = None  # type: ignore[assignment,misc]

__all__ = ["explore"]

# Seconds that a chunk of seeds should take, and the most seeds in one.
_CHUNK_SECONDS = 0.2
_CHUNK_SEEDS = 500

# Runs that the search for a smaller set of faults may take.
_SHRINK_RUNS = 200


class _Job(NamedTuple):
    """What is run under each seed."""

    main: Callable[..., Any]
    args: tuple[Any, ...]
    network: Any
    faults: Faults | Sequence[Fault] | None
    timeout: float | None

    def world(self, seed: int, faults: Sequence[Fault] | None = None) -> World:
        """Make the world of a seed; with other faults, if some are given."""
        return World(seed, network=self.network, faults=self.faults if faults is None else faults)

    def attempt(self, seed: int, faults: Sequence[Fault] | None = None) -> _Failure | None:
        """Run it quietly; return what went wrong."""
        world = self.world(seed, faults)
        try:
            with _quietly():
                world.run(self.main, *self.args, timeout=self.timeout)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            name = f"{type(error).__module__}.{type(error).__qualname__}"
            first = str(error).partition("\n")[0]
            summary = f"{type(error).__name__}: {first}" if first else type(error).__name__
            text = "".join(traceback.format_exception(error))
            return _Failure(seed, name, summary, text, world.faults)
        finally:
            del world
        return None


class _Failure(NamedTuple):
    """How it failed under a seed."""

    seed: int
    # The type of the error, the error in a line, and with its traceback.
    name: str
    summary: str
    text: str
    # The faults that were drawn.
    faults: Sequence[Fault]


class _Report(NamedTuple):
    """What a worker has to say of a chunk: how many seeds it ran, the last of which may fail."""

    ran: int
    seconds: float
    failure: _Failure | None


def explore(
    main: Callable[..., Any],
    *args: Any,
    seeds: Iterable[int] = range(100),
    network: Any = None,
    faults: Faults | Sequence[Fault] | None = None,
    timeout: float | None = None,
    processes: int | None = None,
) -> int:
    """Simulate a program under many seeds, side by side; stop at the first that fails.

    Arguments:
        main: the coroutine function; importable, unless ``processes`` is 1.
        args: its arguments.
        seeds: the seeds, in order of preference.
        network: as for ``simulate``.
        faults: likewise.
        timeout: likewise: seconds of virtual time for each run.
        processes: how many; by default one for each processor. 1: this process alone.
    Returns:
        how many seeds were run, under each of which the program ended well.
    Raises:
        Exception: what the program raised under the first seed that failed, with a note that says
            how to replay it, with as few faults as were found to be needed.
        TypeError: another process cannot import the program.
        RuntimeError: a run failed, but not when it was repeated; or a worker died.
    """
    ordered = seeds if isinstance(seeds, Sequence) else list(seeds)
    if processes is None:
        processes = cpu_count()
    job = _Job(main, args, network, faults, timeout)
    with _display(len(ordered)) as advance:
        if processes == 1:
            failure = _alone(job, ordered, advance)
        else:
            failure = _spread(job, ordered, min(processes, len(ordered)), advance)
    if failure is None:
        _say(f"explored {len(ordered)} seeds of {_name(main)}: all ended well")
        return len(ordered)
    _raise(job, failure)
    raise AssertionError("unreachable")


def _alone(job: _Job, seeds: Sequence[int], advance: Callable[[int], None]) -> _Failure | None:
    for seed in seeds:
        failure = job.attempt(seed)
        if failure is not None:
            return failure
        advance(1)
    return None


# --- workers -------------------------------------------------------------------------------


class _Worker:
    """A process that runs chunks of seeds, and the seeds that it has now."""

    def __init__(self, context: Any, packed: bytes) -> None:
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, packed), daemon=True)
        self.process.start()
        theirs.close()
        # Where its chunk begins among all seeds.
        self.start = 0

    def give(self, start: int, seeds: Sequence[int]) -> None:
        """Let it run them."""
        self.start = start
        self.connection.send(seeds)

    def take(self) -> _Report:
        """Return what it has to say, which has arrived."""
        try:
            report = self.connection.recv()
        except EOFError:
            self.process.join()
            raise RuntimeError(
                f"a process that ran seeds died with exit code {self.process.exitcode}; "
                "explore(..., processes=1) runs them in this one"
            ) from None
        if isinstance(report, str):
            raise TypeError(f"a new process cannot load the program: {report}")
        assert isinstance(report, _Report)
        return report

    def end(self) -> None:
        """End it, whatever it does."""
        self.process.terminate()
        self.process.join()
        self.process.close()
        self.connection.close()


def _work(connection: Connection, packed: bytes) -> None:
    """What a worker does, until it is ended."""
    # Ctrl-C is for the process that asked for all this.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        job: _Job = pickle.loads(packed)
    except BaseException as error:
        connection.send(f"{type(error).__name__}: {error}")
        return
    while True:
        try:
            seeds = connection.recv()
        except EOFError:
            return
        began = time.perf_counter()
        count = 0
        failure = None
        for seed in seeds:
            count += 1
            failure = job.attempt(seed)
            if failure is not None:
                break
        connection.send(_Report(count, time.perf_counter() - began, failure))


def _pack(job: _Job) -> bytes:
    try:
        return pickle.dumps(job)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise TypeError(
            f"explore() runs {_name(job.main)} in other processes, which cannot import it or what "
            f"it is given ({error}): define it at the top of a module, or write: "
            "explore(..., processes=1)"
        ) from error


def _spread(
    job: _Job, seeds: Sequence[int], processes: int, advance: Callable[[int], None]
) -> _Failure | None:
    """Run all seeds in so many processes; return the failure of the first that fails."""
    packed = _pack(job)
    context = multiprocessing.get_context("spawn")
    workers: list[_Worker] = []
    busy: dict[Any, _Worker] = {}
    # Seeds before ``given`` are handed out; those from ``end`` on are of no interest.
    given, end = 0, len(seeds)
    size = 1
    failure: _Failure | None = None
    try:
        while True:
            idle = [worker for worker in workers if worker.connection not in busy]
            while given < end and (idle or len(workers) < processes):
                if not idle:
                    workers.append(_Worker(context, packed))
                    idle.append(workers[-1])
                worker = idle.pop()
                chunk = seeds[given : given + size]
                worker.give(given, chunk)
                busy[worker.connection] = worker
                given += len(chunk)
            if not any(worker.start < end for worker in busy.values()):
                return failure
            for connection in wait(list(busy)):
                worker = busy.pop(connection)
                report = worker.take()
                advance(report.ran)
                at = worker.start + report.ran - 1
                if report.failure is not None and at < end:
                    end, failure = at, report.failure
                each = report.seconds / report.ran
                size = max(1, min(_CHUNK_SEEDS, int(_CHUNK_SECONDS / max(each, 1e-6))))
    finally:
        for worker in workers:
            worker.end()


# --- a failure -----------------------------------------------------------------------------


def _raise(job: _Job, failure: _Failure) -> None:
    """Raise the error of a run that failed, with as few faults as it takes."""
    seed = failure.seed
    again = job.attempt(seed)
    if again is None or again.name != failure.name:
        raise RuntimeError(
            f"seed {seed} failed, but not in the same way when it was repeated: something that no "
            "seed draws has a part in the program (the time of day, an order of a set, a thread)."
            f" The failure was:\n{failure.text}"
        )
    faults = _shrunk(job, failure)
    drawn = len(failure.faults)
    fewer = f", with {len(faults)} of {drawn} faults" if len(faults) < drawn else ""
    _say(f"seed {seed} failed{fewer}: {failure.summary}")
    _say(f"replay it with: {how_to_replay(job.main, job.args, seed, job.network, faults)}")
    job.world(seed, faults).run(job.main, *job.args, timeout=job.timeout)
    raise RuntimeError(f"seed {seed} failed three times and then no more")


def _shrunk(job: _Job, failure: _Failure) -> list[Fault]:
    """The fewest faults that were found with which the seed still fails."""
    faults = list(failure.faults)
    runs = 0
    size = len(faults)
    while size >= 1:
        start = 0
        while start < len(faults) and runs < _SHRINK_RUNS:
            fewer = faults[:start] + faults[start + size :]
            runs += 1
            again = job.attempt(failure.seed, fewer)
            if again is not None and again.name == failure.name:
                faults = fewer
            else:
                start += size
        size //= 2
    return faults


# --- the terminal --------------------------------------------------------------------------


def _name(main: Callable[..., Any]) -> str:
    return getattr(main, "__qualname__", None) or repr(main)


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


@contextlib.contextmanager
def _display(total: int) -> Iterator[Callable[[int], None]]:
    """A bar that grows, where somebody can see it."""
    if Progress is None or not sys.stderr.isatty():
        yield lambda _count: None
        return
    columns = (
        TextColumn("seeds"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("seeds", total=total)
        yield lambda count: progress.advance(task, count)


class _quietly:  # noqa: N801
    """A block whose output and log go nowhere."""

    def __enter__(self) -> Self:
        self._stdout, sys.stdout = sys.stdout, io.StringIO()
        self._disabled = logging.root.manager.disable
        logging.disable(logging.CRITICAL)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        sys.stdout = self._stdout
        logging.disable(self._disabled)
