"""The pytest plugin, in a pytest of its own."""

from __future__ import annotations

import gc
import os
import textwrap
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

# A pytest inside of this one forgets what it imports, but ``coro.testing`` keeps its names.
import coro.testing.simulation  # noqa: F401

pytest_plugins = ["pytester"]

HEAD = """
import asyncio
import socket

import pytest

from coro import IOLoop, coroutine, current_task, dump, fetch, moment, sleep
from coro.future import Future
from coro.testing import current_world

"""

# Where coro is installed, its entry point loads the plugin; and it must not be loaded twice.
PLUGIN = () if entry_points(group="pytest11", name="coro") else ("-p", "coro.testing.plugin")

Run = Callable[..., Any]


@pytest.fixture
def run(pytester: pytest.Pytester) -> Run:
    """``run(tests, *options)``: the outcome of a pytest of these tests."""
    pytester.makeini("[pytest]\nasyncio_default_fixture_loop_scope = function\n")
    # What other tests left for the collector must not die in those that begin now.
    gc.collect()

    def start(tests: str, *options: str) -> Any:
        pytester.makepyfile(HEAD + textwrap.dedent(tests))
        return pytester.runpytest_inprocess(*PLUGIN, "-p", "no:cacheprovider", *options)

    return start


def test_kinds_of_tests(run: Run) -> None:
    result = run("""
        @coroutine
        def test_yields():
            yield moment
            assert IOLoop.current().asyncio_loop is current_task().get_loop()

        @pytest.mark.coro
        async def test_marked():
            await sleep(0)
            assert current_task() is not None

        async def test_with_a_fixture(coro_loop):
            await sleep(0)
            assert IOLoop.current() is coro_loop

        class TestMethods:
            @coroutine
            def test_yields(self, tmp_path):
                yield moment
                assert tmp_path.exists()

            @pytest.mark.parametrize("number", [1, 2])
            @coroutine
            def test_parametrised(self, number):
                yield moment
                assert number in (1, 2)

        @coroutine
        def test_that_fails():
            yield moment
            assert 1 == 2

        def test_plain():
            pass

        def test_plain_with_a_loop(coro_loop):
            assert coro_loop.run_sync(lambda: sleep(0)) is None
        """)
    result.assert_outcomes(passed=8, failed=1)
    result.stdout.fnmatch_lines(["*assert 1 == 2*"])


def test_async_def_is_left_alone(run: Run) -> None:
    tests = """
        async def test_of_nobody():
            assert False
        """
    result = run(tests, "-p", "no:asyncio", "-p", "no:anyio")
    # pytest says that it cannot run it; the plugin does not.
    assert "coro" not in "".join(result.outlines[result.outlines.index("") :]) or result.ret != 0
    result.stdout.fnmatch_lines(["*async def*not natively supported*"])


def test_auto_mode(run: Run) -> None:
    result = run(
        """
        async def test_of_nobody():
            assert current_task() is not None

        @pytest.mark.asyncio
        async def test_of_somebody_else():
            assert asyncio.current_task() is not None
            await asyncio.sleep(0)
        """,
        "-o",
        "coro_mode=auto",
    )
    result.assert_outcomes(passed=2)


@pytest.mark.parametrize("mode", ["strict", "auto"])
def test_beside_pytest_asyncio(run: Run, mode: str) -> None:
    result = run(
        """
        @coroutine
        def test_ours():
            yield moment

        @pytest.mark.coro
        async def test_ours_too():
            await sleep(0)
            assert IOLoop.current().time() > 0
            assert current_task() is not None
            assert asyncio.get_running_loop() is IOLoop.current().asyncio_loop

        async def test_ours_three(coro_world):
            await sleep(1000)

        @pytest.mark.asyncio
        async def test_theirs():
            await asyncio.sleep(0)
            asyncio.get_running_loop()
        """,
        "-o",
        f"asyncio_mode={mode}",
        "--coro-seeds=2",
    )
    result.assert_outcomes(passed=5)


def test_worlds(run: Run) -> None:
    tests = """
        seeds = []

        @coroutine
        def test_in_a_world(coro_world):
            assert current_world() is coro_world
            yield sleep(100_000)
            seeds.append(coro_world.seed)
            assert coro_world.seed != 5, "found"

        def test_plain(coro_world):
            @coroutine
            def main():
                yield sleep(100_000)
                return 7
            assert coro_world.run(main) == 7

        def test_all_seeds():
            assert sorted(seeds) == list(range(8))
        """
    result = run(tests, "--coro-seeds=8")
    result.assert_outcomes(passed=16, failed=1)
    result.stdout.fnmatch_lines(["*found*", "*seed 5*pytest --coro-seed=5 '*test_in_a_world*"])
    again = run(tests, "--coro-seed=5", "-k", "in_a_world")
    again.assert_outcomes(failed=1, deselected=2)


def test_a_time_limit_shows_what_waits(run: Run) -> None:
    result = run(
        """
        @coroutine
        def the_one_that_waits():
            yield Future()

        @coroutine
        def test_too_long():
            yield the_one_that_waits()

        @pytest.mark.coro(timeout=0.05)
        @coroutine
        def test_a_limit_of_its_own():
            yield sleep(100)

        @pytest.mark.coro(timeout=5)
        @coroutine
        def test_virtual_seconds(coro_world):
            yield sleep(100)

        @coroutine
        def test_deadlock(coro_world):
            yield the_one_that_waits()
        """,
        "-o",
        "coro_timeout=0.2",
        "--coro-seeds=1",
    )
    result.assert_outcomes(failed=4)
    result.stdout.fnmatch_lines(
        [
            "*took more than 0.2 s*",
            "*the_one_that_waits*",
            "*took more than 0.05 s*",
            "*TimeoutError*5*",
            "*DeadlockError*",
            "*the_one_that_waits*",
        ]
    )


LEAKS = {
    "task": "sleep_for_ever()",
    "timer": "IOLoop.current().call_later(1000, print)",
    "error": "fail()",
}


@pytest.mark.parametrize("world", ["", "coro_world"], ids=["native", "simulated"])
@pytest.mark.parametrize("kind", LEAKS)
def test_what_is_left_is_told(run: Run, kind: str, world: str) -> None:
    result = run(
        f"""
        @coroutine
        def sleep_for_ever():
            yield Future()

        @coroutine
        def fail():
            yield moment
            raise LookupError("nobody looks")

        @coroutine
        def test_leaves_it({world}):
            {LEAKS[kind]}
            yield sleep(0.01)

        @pytest.mark.coro(allow_leaks="{kind}")
        @coroutine
        def test_on_purpose({world}):
            {LEAKS[kind]}
            yield sleep(0.01)
        """,
        "--coro-seeds=1",
    )
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["*left behind*", f"*{kind} *", "*allow_leaks*"])


def test_descriptors_are_counted(run: Run) -> None:
    result = run(
        """
        held = []

        @coroutine
        def test_leaves_it():
            yield moment
            held.append(socket.socket())

        @pytest.mark.coro(allow_leaks=["descriptor"])
        @coroutine
        def test_on_purpose():
            yield moment
            held.append(socket.socket())

        @coroutine
        def test_in_a_world(coro_world):
            yield moment
            held.append(coro_world.network.socket(socket.AF_INET))

        def test_close():
            for sock in held:
                sock.close()
        """,
        "--coro-seeds=1",
    )
    result.assert_outcomes(passed=4, errors=2)
    result.stdout.fnmatch_lines(["*left behind*", "*descriptor*socket*"])


def test_what_closes_with_the_loop_is_no_leak(run: Run) -> None:
    result = run("""
        from coro.http.response import Response
        from coro.http.server import HTTPServer

        @coroutine
        def test_fetch(coro_socket):
            server = HTTPServer(lambda request: Response("hello"))
            sock = coro_socket()
            port = sock.getsockname()[1]
            server.add_socket(sock)
            response = yield fetch(f"http://127.0.0.1:{port}/")
            assert response.body == b"hello"
            yield server.shutdown(1)
        """)
    result.assert_outcomes(passed=1)


@pytest.mark.parametrize(
    "options",
    [
        ["-o", "coro_mode=both"],
        ["-o", "coro_timeout=soon"],
        ["--coro-seeds=0"],
    ],
)
def test_bad_options(run: Run, options: list[str]) -> None:
    assert run("def test_nothing(): pass", *options).ret == pytest.ExitCode.USAGE_ERROR


def test_bad_markers(run: Run) -> None:
    result = run("""
        @pytest.mark.coro(seconds=5)
        @coroutine
        def test_an_option_that_is_none():
            yield moment

        @pytest.mark.coro(allow_leaks=["tasks"])
        @coroutine
        def test_a_kind_that_is_none():
            yield moment
        """)
    result.assert_outcomes(errors=2)
    result.stdout.fnmatch_lines(["*takes timeout, allow_leaks*", "*allow_leaks is some of*"])


def test_help(run: Run) -> None:
    result = run("", "--help")
    result.stdout.fnmatch_lines(["*--coro-seeds=N*", "*coro_timeout*"])


def test_fixtures_share_the_loop_of_the_test(run: Run) -> None:
    result = run("""
        @pytest.fixture
        def background(coro_loop):
            assert IOLoop.current() is coro_loop
            @coroutine
            def waits():
                yield Future()
            timer = coro_loop.call_later(1000, print)
            task = waits()
            yield coro_loop
            task.cancel()
            coro_loop.remove_timeout(timer)
            coro_loop.run_sync(lambda: moment)

        @coroutine
        def test_it(background):
            yield moment
            assert IOLoop.current() is background

        def test_nothing_stays():
            assert IOLoop.current(instance=False) is None
        """)
    result.assert_outcomes(passed=2)


def test_what_fixtures_give_back_is_not_left(run: Run) -> None:
    result = run("""
        @coroutine
        def test_sockets_of_a_fixture(coro_socket):
            assert coro_socket().getsockname() != coro_socket().getsockname()
            yield moment

        @coroutine
        def waits():
            try:
                yield Future()
            finally:
                yield moment

        @coroutine
        def test_what_has_only_to_notice_its_end():
            task = waits()
            yield moment
            task.cancel()
        """)
    result.assert_outcomes(passed=2)


def test_plain_functions_are_checked_too(run: Run) -> None:
    result = run(
        """
        @coroutine
        def leaves_a_task():
            @coroutine
            def waits():
                yield Future()
            waits()
            yield moment

        def test_on_a_loop(coro_loop):
            coro_loop.run_sync(leaves_a_task)
            coro_loop.run_sync(lambda: moment)

        def test_in_a_world(coro_world):
            coro_world.run(leaves_a_task)
        """,
        "--coro-seeds=1",
    )
    result.assert_outcomes(passed=2, errors=2)
    result.stdout.fnmatch_lines(["*task *waits*", "*task *waits*"])


def test_after_a_failure_nothing_else_is_told(run: Run) -> None:
    result = run("""
        @coroutine
        def test_fails():
            IOLoop.current().call_later(1000, print)
            yield moment
            assert [1, 2] == [1, 3], "so it is"
        """)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*so it is*", "*At index 1 diff: 2 != 3*"])
    result.stdout.no_fnmatch_line("*left behind*")


def test_a_seed_for_ever_and_a_world_as_marked(run: Run) -> None:
    result = run("""
        from coro.testing import Faults

        def hosts(network):
            network.host("db")

        @pytest.mark.parametrize("coro_world", [17, 40], indirect=True)
        @pytest.mark.coro(network=hosts, faults=Faults(3))
        async def test_it(coro_world):
            await sleep(60)
            assert "db" in coro_world.network.hosts
            assert len(coro_world.faults) == 3
            assert coro_world.seed != 40
        """)
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*seed 40; faults: ?Fault(*"])


def test_a_world_has_its_own_loop(run: Run) -> None:
    result = run("def test_it(coro_world, coro_loop): pass", "--coro-seeds=1")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*leave out coro_loop*"])


def test_no_simulation_before_a_test_asks_for_one(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent.parent), os.pathsep)
    pytester.makepyfile("""
        import sys

        def test_it():
            assert "coro.testing.plugin" in sys.modules
            assert not {"coro.testing.simulation", "coro.tls", "coro.http"} & set(sys.modules)
        """)
    without = ("-p", "no:asyncio", "-p", "no:anyio", "-p", "no:cacheprovider")
    pytester.runpytest_subprocess(*PLUGIN, *without).assert_outcomes(passed=1)
