"""``simulate`` and ``World``: one seed, one run; how it ends; what it does not let out."""

from __future__ import annotations

import gc
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from coro.errors import DeadlockError, TimeoutError
from coro.future import Future
from coro.gen import coroutine, moment, sleep, to_thread
from coro.loop import IOLoop
from coro.main import run
from coro.process import Subprocess
from coro.testing.simulation import World, current_world, simulate

ROOT = Path(__file__).parent.parent.parent


class TestSimulate:
    def test_it_returns_what_main_returns(self) -> None:
        @coroutine
        def main(a: int, b: int) -> Any:
            yield sleep(1)
            return a + b

        async def native(a: int, b: int) -> int:
            await sleep(1)
            return a + b

        assert simulate(main, 1, 2) == simulate(native, 1, 2, seed=7) == 3

    def test_time_is_virtual(self) -> None:
        @coroutine
        def main() -> Any:
            loop = IOLoop.current()
            began = loop.time()
            yield sleep(86400)
            return loop.time() - began

        before = time.monotonic()
        assert simulate(main) == pytest.approx(86400)
        assert time.monotonic() - before < 3600

    def test_a_time_limit_is_virtual_too(self) -> None:
        @coroutine
        def main() -> Any:
            yield sleep(20)

        with pytest.raises(TimeoutError, match="10 seconds"):
            simulate(main, timeout=10)
        simulate(main, timeout=30)

    def test_an_error_comes_out_with_the_seed_and_the_replay(self) -> None:
        @coroutine
        def main(what: str) -> Any:
            yield moment
            raise LookupError(what)

        with pytest.raises(LookupError, match="x") as caught:
            simulate(main, "x", seed=12)
        (note,) = caught.value.__notes__
        assert "seed 12" in note
        assert "simulate(" in note
        assert note.endswith("main, 'x', seed=12)")

    def test_what_waits_for_ever_is_a_deadlock_with_a_dump(self) -> None:
        @coroutine
        def the_one_that_waits() -> Any:
            yield Future()

        @coroutine
        def main() -> Any:
            yield the_one_that_waits()

        with pytest.raises(DeadlockError) as caught:
            simulate(main, seed=3)
        assert "the_one_that_waits" in str(caught.value)
        assert "seed 3" in caught.value.__notes__[0]

    def test_nothing_stays_current(self) -> None:
        @coroutine
        def main() -> Any:
            yield moment

        simulate(main)
        assert IOLoop.current(instance=False) is None

    @pytest.mark.parametrize("start", [run, simulate])
    def test_not_inside_a_running_loop(self, start: Any) -> None:
        @coroutine
        def inner() -> Any:
            yield moment

        @coroutine
        def main() -> Any:
            simulate(inner)
            yield moment

        with pytest.raises(RuntimeError, match="inside a running loop"):
            start(main)

    def test_only_what_can_be_called(self) -> None:
        @coroutine
        def main() -> Any:
            yield moment

        with pytest.raises(TypeError, match=r"simulate\(main, \.\.\., seed=7\)"):
            simulate(42)  # type: ignore[arg-type]

    def test_a_signal_is_handled_in_a_turn(self) -> None:
        @coroutine
        def main() -> Any:
            arrived: Future[str] = Future()
            IOLoop.current().add_signal_handler(signal.SIGUSR1, arrived.set_result, "signal")
            yield sleep(1)
            signal.raise_signal(signal.SIGUSR1)
            return (yield arrived)

        assert simulate(main) == "signal"


class TestTheEnd:
    """What ``coro.run`` does, a simulation does."""

    def test_what_is_left_is_cancelled_and_awaited_in_one_order(self) -> None:
        def ended(seed: int) -> list[int]:
            log: list[int] = []

            @coroutine
            def left(number: int) -> Any:
                try:
                    yield Future()
                finally:
                    yield sleep(1)
                    log.append(number)

            @coroutine
            def main() -> Any:
                for number in range(10):
                    left(number)
                yield moment

            simulate(main, seed=seed)
            return log

        for seed in range(5):
            assert sorted(ended(seed)) == list(range(10))
            assert ended(seed) == ended(seed)
        assert len({tuple(ended(seed)) for seed in range(5)}) > 1

    def test_what_was_left_is_told(self) -> None:
        @coroutine
        def left_behind() -> Any:
            yield sleep(1000)

        @coroutine
        def main() -> Any:
            left_behind()
            IOLoop.current().call_later(500, print, "never")
            yield moment

        world = World()
        world.run(main)
        assert any("left_behind" in line for line in world.left)
        assert any("print" in line for line in world.left)

    def test_a_world_is_for_one_program(self) -> None:
        @coroutine
        def main() -> Any:
            yield moment

        world = World(1)
        assert repr(world) == "<World seed=1 new at 0.000 s>"
        world.run(main)
        assert "ended" in repr(world)
        with pytest.raises(RuntimeError, match="for one program"):
            world.run(main)

    def test_no_reference_circle_stays(self) -> None:
        @coroutine
        def main() -> Any:
            yield [sleep(1), to_thread(int)]

        gc.collect()
        gc.disable()
        try:
            simulate(main)
            assert gc.collect() == 0
        finally:
            gc.enable()


class TestTheWorld:
    def test_the_program_can_ask_for_it(self) -> None:
        @coroutine
        def main() -> Any:
            yield moment
            return current_world()

        world = World(5)
        assert world.run(main) is world
        assert world.seed == 5

    def test_outside_there_is_none(self) -> None:
        with pytest.raises(RuntimeError, match="nothing is simulated here"):
            current_world()

    def test_random_is_seeded_and_given_back(self) -> None:
        @coroutine
        def main() -> Any:
            yield moment
            return random.random(), current_world().random.random()

        random.seed(1)
        before = random.getstate()
        assert simulate(main, seed=1) == simulate(main, seed=1)
        assert simulate(main, seed=1) != simulate(main, seed=2)
        assert random.getstate() == before

    def test_a_subprocess_is_refused(self) -> None:
        @coroutine
        def main() -> Any:
            Subprocess(["true"], stdout=Subprocess.STREAM)
            yield moment

        with pytest.raises(RuntimeError, match="subprocess"):
            simulate(main)
