"""``explore``: which seed is told, what is shown, what is left."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from multiprocessing.resource_tracker import ensure_running
from pathlib import Path
from typing import Any

import pytest

from coro.gen import coroutine, moment
from coro.testing.exploration import explore
from coro.testing.faults import Fault, Faults
from coro.testing.simulation import simulate
from tests.testing import programs

ROOT = Path(__file__).parent.parent.parent

# Seconds. Only a broken test waits so long.
LIMIT = 30.0

both_ways = pytest.mark.parametrize("processes", [1, 3])


@pytest.fixture(autouse=True, scope="module")
def resource_tracker() -> None:
    """The standard library's helper of processes, which keeps a pipe from its first use on."""
    ensure_running()


def note_of(error: BaseException) -> str:
    return "\n".join(getattr(error, "__notes__", ()))


@both_ways
class TestOutcome:
    def test_how_many_seeds_ended_well(self, processes: int) -> None:
        assert explore(programs.ends_well, seeds=range(40), processes=processes) == 40
        assert explore(programs.ends_well, seeds=[], processes=processes) == 0

    def test_arguments_are_passed_on(self, processes: int) -> None:
        explore(programs.ends_well, "x", seeds=range(2), processes=processes)

    def test_the_first_seed_that_fails_is_told_whoever_is_faster(self, processes: int) -> None:
        for _ in range(2):
            with pytest.raises(LookupError, match="found at 37") as caught:
                explore(programs.fails_under, 37, 38, 39, 90, seeds=range(100), processes=processes)
            assert "simulate(fails_under, 37, 38, 39, 90, seed=37)" in note_of(caught.value)

    def test_first_in_the_order_of_the_seeds(self, processes: int) -> None:
        with pytest.raises(LookupError, match="found at 90"):
            explore(programs.fails_under, 37, 90, seeds=range(99, -1, -1), processes=processes)

    def test_nothing_behind_the_failure_is_asked_for(self, processes: int) -> None:
        # An endless supply would not end otherwise.
        with pytest.raises(LookupError, match="found at 3"):
            explore(programs.fails_under, 3, seeds=range(10**6), processes=processes)

    def test_the_failure_is_printed_with_its_replay(
        self, processes: int, capfd: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(LookupError):
            explore(programs.fails_under, 2, seeds=range(5), processes=processes)
        told = capfd.readouterr().err
        assert "seed 2 failed: LookupError: found at 2" in told
        assert "replay it with: simulate(fails_under, 2, seed=2)" in told

    def test_what_the_program_prints_is_shown_once(
        self, processes: int, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
    ) -> None:
        with pytest.raises(LookupError):
            explore(programs.talks_and_fails, seeds=range(3), processes=processes)
        assert capfd.readouterr().out.count("said by the program") == 1
        assert caplog.messages.count("logged by the program") == 1

    def test_faults_that_do_not_matter_are_left_out(
        self, processes: int, capfd: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(AssertionError) as caught:
            explore(
                programs.fails_after_a_reset,
                seeds=range(50),
                faults=Faults(8),
                processes=processes,
            )
        (line,) = re.findall(r"faults=\[(.*)\]\)$", note_of(caught.value))
        assert line.count("Fault(") == 1
        assert re.search(r"failed, with 1 of 8 faults: AssertionError", capfd.readouterr().err)
        # The line is what it says: Python that replays it.
        faults = eval(f"[{line}]", {"Fault": Fault})
        seed = int(re.findall(r"seed=(\d+)", note_of(caught.value))[0])
        with pytest.raises(AssertionError) as again:
            simulate(programs.fails_after_a_reset, seed=seed, faults=faults)
        assert str(again.value) == str(caught.value)


class TestProcesses:
    def test_a_program_that_nobody_else_can_import(self) -> None:
        @coroutine
        def local() -> Any:
            yield moment

        with pytest.raises(TypeError, match=r"top of a module.*processes=1"):
            explore(local, seeds=range(3), processes=2)
        assert explore(local, seeds=range(3), processes=1) == 3

    def test_a_run_that_fails_elsewhere_only(self) -> None:
        with pytest.raises(RuntimeError, match=r"(?s)seed 0 .*no seed draws.*in a worker"):
            explore(programs.fails_in_workers_only, seeds=range(3), processes=2)

    def test_a_worker_that_dies(self) -> None:
        with pytest.raises(RuntimeError, match="died with exit code 3"):
            explore(programs.dies, seeds=range(3), processes=2)

    def test_ctrl_c_ends_it_with_all_its_processes(self) -> None:
        program = (
            "from coro.testing import explore\n"
            "from tests.testing.programs import never_ends\n"
            "if __name__ == '__main__':\n"
            "    explore(never_ends, seeds=range(4), processes=2)\n"
        )
        with subprocess.Popen(
            [sys.executable, "-c", program],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "begun\n"
            os.killpg(process.pid, signal.SIGINT)
            # Its pipes are at their end only when its children have ended too.
            _, told = process.communicate(timeout=LIMIT)
        assert told.rstrip().endswith("KeyboardInterrupt")
