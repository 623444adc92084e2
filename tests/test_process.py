"""Subprocesses, and workers that are forked in advance (each in a program of its own)."""

from __future__ import annotations

import errno
import gc
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from coro import process
from coro.errors import CancelledError
from coro.gen import coroutine, moment
from coro.loop import IOLoop
from coro.process import CalledProcessError, Subprocess, cpu_count, fork_processes, task_id
from coro.stuck import format_dump
from tests.support.leaks import count_fds

# Seconds. Only a broken test waits so long.
LIMIT = 30.0

ROOT = Path(__file__).parent.parent


@pytest.fixture
def loop() -> Iterator[IOLoop]:
    loop = IOLoop()
    yield loop
    left = loop.statistics()
    assert (left["handlers"], left["timers"], left["tasks"]) == (0, 0, 0)
    loop.close()


@pytest.fixture(params=["pidfd", "thread"])
def watched(request: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to hear of the end of a process."""
    if request.param == "thread":

        def pidfd_open(_pid: int) -> int:
            raise OSError("not here")

        monkeypatch.setattr(os, "pidfd_open", pidfd_open)
    return str(request.param)


def run(loop: IOLoop, body: Any) -> Any:
    return loop.run_sync(coroutine(body), timeout=LIMIT)


def shell(script: str, **kwargs: Any) -> Any:
    return Subprocess(["/bin/sh", "-c", script], **kwargs)


@pytest.mark.usefixtures("watched")
class TestExit:
    @pytest.mark.parametrize(("script", "code"), [("exit 0", 0), ("exit 7", 7), ("kill $$", -15)])
    def test_status(self, loop: IOLoop, script: str, code: int) -> None:
        process = shell(script)

        def main() -> Any:
            assert (yield process.wait_for_exit(raise_error=False)) == code
            assert process.returncode == code
            # Also when it is known.
            assert (yield process.wait_for_exit(raise_error=False)) == code

        run(loop, main)
        with pytest.raises(ChildProcessError):
            os.waitpid(process.pid, os.WNOHANG)

    def test_a_failure_is_an_error(self, loop: IOLoop) -> None:
        process = shell("exit 3")

        def main() -> Any:
            for _ in range(2):
                with pytest.raises(CalledProcessError) as caught:
                    yield process.wait_for_exit()
                assert caught.value.returncode == 3
                assert caught.value.cmd == ["/bin/sh", "-c", "exit 3"]

        run(loop, main)

    def test_callback(self, loop: IOLoop) -> None:
        codes: list[int] = []
        process = shell("exit 4")

        def main() -> Any:
            process.set_exit_callback(codes.append)
            yield process.wait_for_exit(raise_error=False)
            while not codes:
                yield moment
            process.set_exit_callback(codes.append)
            assert codes == [4]
            while len(codes) < 2:
                yield moment

        run(loop, main)
        assert codes == [4, 4]

    def test_it_is_reaped_though_nobody_asks(self, loop: IOLoop) -> None:
        asked, silent = shell("exec cat", stdin=Subprocess.STREAM), shell("exit 0")

        def main() -> Any:
            while silent.returncode is None:
                yield moment
            asked.stdin.close()
            yield asked.wait_for_exit()

        run(loop, main)
        with pytest.raises(ChildProcessError):
            os.waitpid(silent.pid, os.WNOHANG)

    def test_cancelling_the_wait_leaves_the_process_alone(self, loop: IOLoop) -> None:
        process = shell("read line; exit $line", stdin=Subprocess.STREAM)

        def main() -> Any:
            task = waiting()
            other = process.wait_for_exit(raise_error=False)
            yield moment
            task.cancel()
            with pytest.raises(CancelledError):
                yield task
            assert process.returncode is None
            assert process._waiting == [other]
            yield process.stdin.write(b"5\n")
            assert (yield other) == 5
            process.stdin.close()

        @coroutine
        def waiting() -> Any:
            yield process.wait_for_exit()

        run(loop, main)

    def test_repr_and_dump(self, loop: IOLoop) -> None:
        process = shell("read line", stdin=Subprocess.STREAM)
        assert repr(process) == (
            f"<Subprocess {process.pid} running: ['/bin/sh', '-c', 'read line']>"
        )

        @coroutine
        def waiting() -> Any:
            yield process.wait_for_exit()

        def main() -> Any:
            task = waiting()
            yield moment
            assert f"exit of process {process.pid}" in format_dump()
            yield process.stdin.write(b"\n")
            process.stdin.close()
            yield task
            assert repr(process).startswith(f"<Subprocess {process.pid} ended 0: ")

        run(loop, main)


class TestDescriptors:
    def test_counted(self, loop: IOLoop) -> None:
        before = count_fds()
        process = shell("exec cat", stdin=Subprocess.STREAM, stdout=Subprocess.STREAM)
        # Two pipes' ends and the process's own.
        assert count_fds() == before + 3

        def main() -> Any:
            process.stdin.close()
            assert (yield process.stdout.read_until_close()) == b""
            yield process.wait_for_exit()

        run(loop, main)
        process.stdout.close()
        assert count_fds() == before

    def test_a_program_that_is_not_there_leaves_none(self, loop: IOLoop) -> None:
        before = count_fds()
        with pytest.raises(FileNotFoundError):
            Subprocess(
                ["/nowhere/program"],
                stdin=Subprocess.STREAM,
                stdout=Subprocess.STREAM,
                stderr=Subprocess.STREAM,
            )
        assert count_fds() == before

    def test_no_pipe_is_left_when_the_next_cannot_be_made(
        self, loop: IOLoop, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = count_fds()
        real, left = os.pipe, [1, 2]
        monkeypatch.setattr(os, "pipe", lambda: left.pop() and real())
        with pytest.raises(IndexError):
            shell(
                "exit 0",
                stdin=Subprocess.STREAM,
                stdout=Subprocess.STREAM,
                stderr=Subprocess.STREAM,
            )
        assert count_fds() == before

    def test_the_loop_may_close_before_the_end(self) -> None:
        before = count_fds()
        loop = IOLoop()
        process = shell("read line", stdin=Subprocess.STREAM)
        loop.close(all_fds=True)
        process.stdin.close()
        process.proc.wait()
        assert count_fds() == before

    def test_nothing_is_kept_alive(self, loop: IOLoop) -> None:
        def use() -> None:
            process = shell("exit 1")

            def main() -> Any:
                with pytest.raises(CalledProcessError):
                    yield process.wait_for_exit()

            run(loop, main)

        use()
        gc.collect()
        gc.disable()
        try:
            use()
            assert gc.collect() == 0
        finally:
            gc.enable()


class TestStreams:
    def test_there_and_back(self, loop: IOLoop) -> None:
        """More than any pipe holds."""
        process = shell(
            "cat; echo done >&2",
            stdin=Subprocess.STREAM,
            stdout=Subprocess.STREAM,
            stderr=Subprocess.STREAM,
        )
        payload = os.urandom(1_000_000)

        @coroutine
        def feed() -> Any:
            yield process.stdin.write(payload)
            process.stdin.close()

        def main() -> Any:
            return (
                yield [
                    process.stdout.read_until_close(),
                    process.stderr.read_until_close(),
                    feed(),
                    process.wait_for_exit(),
                ]
            )

        out, errors, _, code = run(loop, main)
        assert (out == payload, errors, code) == (True, b"done\n", 0)

    def test_popens_own_ways_stay(self, loop: IOLoop) -> None:
        process = shell("cat; exit 2", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        assert process.stdin is process.stdout is process.stderr is None
        run(loop, lambda: (yield process.wait_for_exit(raise_error=False)))
        assert process.proc.stdout is not None
        assert process.proc.stdout.read() == b""
        process.proc.stdout.close()
        assert process.returncode == 2

    def test_the_names_of_old(self) -> None:
        Subprocess.initialize()
        Subprocess.uninitialize()


def test_a_poller_that_is_full_costs_no_descriptor(
    loop: IOLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def register(_fd: int, _events: int) -> None:
        raise OSError(errno.ENOSPC, "no more watches")

    with monkeypatch.context() as patch:
        patch.setattr(loop._poller, "register", register)
        process = shell("exit 3")
    assert run(loop, lambda: (yield process.wait_for_exit(raise_error=False))) == 3


def test_the_thread_that_waits_is_a_daemon(loop: IOLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    """It must not hold up the end of the program."""
    monkeypatch.delattr(os, "pidfd_open")
    process = shell("read line", stdin=Subprocess.STREAM)
    (thread,) = [each for each in threading.enumerate() if each.name.startswith("coro-wait")]
    assert thread.daemon

    def main() -> Any:
        process.stdin.close()
        yield process.wait_for_exit(raise_error=False)

    run(loop, main)
    thread.join(LIMIT)


def test_cpu_count_is_what_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {1, 5, 9})
    assert cpu_count() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 17)
    assert cpu_count() == 17


# --- workers -----------------------------------------------------------------------------------


@contextmanager
def program(source: str) -> Iterator[subprocess.Popen[str]]:
    """Run a program beside the block. What it has forked ends with its standard input."""
    with subprocess.Popen(
        [sys.executable, "-X", "dev", "-W", "error", "-c", PRELUDE + textwrap.dedent(source)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        try:
            yield running
        finally:
            running.kill()


PRELUDE = """
import logging, os, random, signal, sys
import coro
from coro.process import fork_processes, task_id
logging.basicConfig(format="%(levelname)s %(message)s", level=logging.INFO)

def say(*what):
    os.write(1, (" ".join(map(str, what)) + "\\n").encode())

def wait():
    '''Until the test ends.'''
    os.read(0, 1)
    os._exit(9)
"""


def end(running: subprocess.Popen[str]) -> tuple[int, list[str], str]:
    """Wait for the end; return status, lines that are still to be read, and the log."""
    out, errors = running.communicate(timeout=LIMIT)
    return running.returncode, out.splitlines(), errors


def lines(running: subprocess.Popen[str], count: int) -> list[str]:
    assert running.stdout is not None
    return [running.stdout.readline().strip() for _ in range(count)]


class TestForkProcesses:
    def test_each_worker_has_its_number_and_its_own_randomness(self) -> None:
        source = """
        assert task_id() is None
        number = fork_processes(3)
        assert task_id() == number
        assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set()
        say(number, random.random())
        """
        with program(source) as running:
            status, out, errors = end(running)
        assert status == 0, errors
        assert sorted(line.split()[0] for line in out) == ["0", "1", "2"]
        assert len({line.split()[1] for line in out}) == 3

    def test_those_that_fail_are_replaced(self, tmp_path: Path) -> None:
        """By one of the same number; until all have ended well."""
        source = f"""
        number = fork_processes(2)
        marks = {str(tmp_path)!r}
        before = len([name for name in os.listdir(marks) if name.startswith(str(number))])
        open(f"{{marks}}/{{number}}-{{before}}", "w").close()
        say(number, before)
        if number == 1 and before == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        if number == 1 and before == 1:
            sys.exit(3)
        """
        with program(source) as running:
            status, out, errors = end(running)
        assert status == 0, errors
        assert sorted(out) == ["0 0", "1 0", "1 1", "1 2"]
        assert "WARNING worker 1 (process" in errors
        assert "ended by SIGKILL; starting it again" in errors
        assert "ended with status 3; starting it again" in errors

    def test_too_many_failures_end_the_others(self) -> None:
        source = """
        if fork_processes(2, max_restarts=2) == 0:
            sys.exit(5)
        wait()
        """
        with program(source) as running:
            # Before its standard input ends, which would end the other worker.
            running.wait(LIMIT)
            status, _, errors = end(running)
        assert status == 1
        assert "RuntimeError: too many workers failed; worker 0 ended with status 5" in errors
        assert errors.count("starting it again") == 2
        assert "ended by SIGTERM" in errors

    @pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
    def test_signals_end_the_workers_in_order(self, name: str) -> None:
        source = f"""
        def main():
            stopped = coro.Future()
            loop = coro.IOLoop.current()
            loop.add_signal_handler(signal.{name}, stopped.set_result, None)
            say("ready")
            yield stopped
            say("ended")

        fork_processes(2)
        coro.run(coro.coroutine(main))
        """
        with program(source) as running:
            assert lines(running, 2) == ["ready", "ready"]
            running.send_signal(signal.Signals[name])
            status, out, errors = end(running)
        assert (status, out) == (0, ["ended", "ended"]), errors
        assert f"INFO {name}: ending 2 workers" in errors

    def test_who_does_not_end_in_time_is_killed(self) -> None:
        source = """
        if fork_processes(2, grace=0) == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        say("ready")
        wait()
        """
        with program(source) as running:
            assert lines(running, 2) == ["ready", "ready"]
            running.send_signal(signal.SIGTERM)
            running.wait(LIMIT)
            status, _, errors = end(running)
        assert status == 0, errors
        assert "did not end" in errors
        assert "ended by SIGKILL" in errors

    def test_ctrl_c_in_a_terminal_reaches_workers_once(self) -> None:
        """There it goes to every process of the group; the parent does not send it again."""
        source = """
        import fcntl, pty, termios
        pid, master = pty.fork()
        if pid:
            said = b""
            while said.count(b"ready") < 2:
                said += os.read(master, 100)
            os.write(master, b"\\x03")
            try:
                while True:
                    said += os.read(master, 100)
            except OSError:
                pass
            assert os.waitpid(pid, 0)[1] == 0, said
            assert said.count(b"once") == 2, said
            assert said.count(b"twice") == 0, said
            say("fine")
            sys.exit()
        fork_processes(2)
        # Blocked, they wait until somebody asks for them: none comes too early.
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGTERM])
        say("ready")
        signal.sigwait([signal.SIGINT])
        say("once")
        if signal.sigtimedwait([signal.SIGINT, signal.SIGTERM], 0.2):
            say("twice")
        """
        with program(source) as running:
            status, out, errors = end(running)
        assert (status, out) == (0, ["fine"]), errors

    def test_refusals(self, monkeypatch: pytest.MonkeyPatch) -> None:
        loop = IOLoop()

        @coroutine
        def main() -> Any:
            yield moment
            with pytest.raises(RuntimeError, match="comes before the loop"):
                fork_processes(2)

        loop.run_sync(main)
        loop.close()
        monkeypatch.setattr(process, "_task_id", 4)
        assert task_id() == 4
        with pytest.raises(RuntimeError, match="this is worker 4 already"):
            fork_processes(2)


SERVER = """
from coro.tcp import TCPServer

class Server(TCPServer):
    @coro.coroutine
    def handle_stream(self, stream, address):
        yield stream.write(f"{task_id()}\\n".encode())
        stream.close()

server = Server()
"""


class TestServers:
    @pytest.mark.parametrize("reuse_port", [False, True])
    def test_bind_and_start(self, reuse_port: bool) -> None:
        source = f"""
        server.bind(0, "127.0.0.1", reuse_port={reuse_port})
        say(server._bound[0][0].getsockname()[1])
        loop = coro.IOLoop.current()
        server.start(2)
        (sock,) = server.sockets
        loop.add_signal_handler(signal.SIGTERM, loop.stop)
        say(task_id(), os.fstat(sock.fileno()).st_ino)
        loop.start()
        server.stop()
        """
        with program(SERVER + textwrap.dedent(source)) as running:
            port, one, other = lines(running, 3)
            sockets = dict([one.split(), other.split()])
            assert sorted(sockets) == ["0", "1"]
            # Their own sockets, or the parent's.
            assert len(set(sockets.values())) == (2 if reuse_port else 1)
            seen = set()
            for _ in range(100):
                with socket.create_connection(("127.0.0.1", int(port)), timeout=LIMIT) as sock:
                    seen.add(sock.recv(10))
            assert seen <= {b"0\n", b"1\n"}
            if reuse_port:
                # The kernel spreads them by their ports.
                assert len(seen) == 2
            running.send_signal(signal.SIGTERM)
            status, _, errors = end(running)
        assert status == 0, errors
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", int(port))) != 0

    def test_a_shared_unix_socket_goes_with_the_parent(self, tmp_path: Path) -> None:
        path = tmp_path / "socket"
        source = f"""
        from coro.net import bind_unix_socket
        with bind_unix_socket({str(path)!r}) as sock:
            fork_processes(1)
            loop = coro.IOLoop.current()
            server.add_socket(sock)
            loop.add_signal_handler(signal.SIGTERM, loop.stop)
            say("ready")
            loop.start()
            server.stop()
            say(os.path.exists({str(path)!r}))
        """
        with program(SERVER + textwrap.dedent(source)) as running:
            assert lines(running, 1) == ["ready"]
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(LIMIT)
                sock.connect(str(path))
                assert sock.recv(10) == b"0\n"
            running.send_signal(signal.SIGTERM)
            status, out, errors = end(running)
        assert (status, out) == (0, ["True"]), errors
        assert not path.exists()

    def test_out_of_descriptors(self) -> None:
        """At a limit of 64 with 200 clients: no spinning; all are served when there is room."""
        source = """
        import resource
        from coro.gen import sleep
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        kept = []
        server.handle_stream = lambda stream, address: kept.append(stream)
        def main():
            server.listen(0, "127.0.0.1", backlog=256)
            say(server.sockets[0].getsockname()[1])
            served = 0
            loop = coro.IOLoop.current()
            while server.statistics()["failed_accepts"] == 0:
                yield sleep(0.01)
            turns = loop.statistics()["turns"]
            while server.statistics()["failed_accepts"] < 4:
                yield sleep(0.01)
            # 0.35 seconds; a loop that spins makes tens of thousands.
            say("full", len(kept) > 40, loop.statistics()["turns"] - turns < 500)
            while served < 200:
                while kept:
                    stream = kept.pop()
                    yield stream.write(b"x")
                    stream.close()
                    served += 1
                yield sleep(0.01)
            yield server.shutdown(5)
        coro.run(coro.coroutine(main))
        """
        with program(SERVER + textwrap.dedent(source)) as running:
            (port,) = lines(running, 1)
            clients = [
                socket.create_connection(("127.0.0.1", int(port)), timeout=LIMIT)
                for _ in range(200)
            ]
            assert lines(running, 1) == ["full True True"]
            for client in clients:
                assert client.recv(10) == b"x"
                client.close()
            status, _, errors = end(running)
        assert status == 0, errors
        told = [line for line in errors.splitlines() if "Errno 24" in line]
        # One for each time that descriptors were used up, not for each try.
        assert len(told) == errors.count("pauses") <= 5, errors
        assert "ERROR" not in errors
