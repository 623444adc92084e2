"""Loops in a forked child. Each test is a program of its own: pytest's process has threads."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

# Seconds. Only a broken test waits so long.
LIMIT = 30.0

ROOT = Path(__file__).parent.parent

PRELUDE = """
import errno, gc, logging, os, signal, socket, sys, threading
import coro
from coro.gen import coroutine, moment, sleep
from coro.loop import IOLoop
from coro.stream import IOStream
logging.basicConfig(format="%(levelname)s %(message)s")
# How long a step takes is the machine's affair.
logging.root.handlers[0].addFilter(lambda record: not record.msg.startswith("Slow "))

def in_child(body):
    '''Fork, and run ``body`` in the child alone; return its exit status.'''
    pid = os.fork()
    if pid == 0:
        try:
            body()
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def refuses(call, *args):
    try:
        call(*args)
    except RuntimeError as error:
        assert "was running when this process was forked" in str(error), error
    else:
        raise AssertionError(f"{call} did not refuse")

def descriptors():
    return len(os.listdir("/proc/self/fd"))
"""


def program(source: str) -> str:
    """Run a program to its end; warnings are errors; return what it printed."""
    # Except that it may leave its own sockets to Python.
    options = ["-X", "dev", "-W", "error", "-W", "ignore:unclosed <socket:ResourceWarning"]
    ran = subprocess.run(
        [sys.executable, *options, "-c", PRELUDE + textwrap.dedent(source)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT,
    )
    assert (ran.returncode, ran.stderr) == (0, ""), ran.stderr
    return ran.stdout


class TestIdleLoop:
    def test_the_child_has_a_poller_of_its_own_with_the_handlers(self) -> None:
        program("""
        loop = IOLoop()
        here, there = socket.socketpair()
        seen = []
        def on_event(sock, events):
            seen.append(sock.recv(10))
            loop.stop()
        loop.add_handler(here, on_event, IOLoop.READ)

        def child():
            assert loop.statistics()["handlers"] == 1
            there.send(b"child")
            loop.start()
            assert seen == [b"child"]
            # Neither of these reaches the parent's poller.
            loop.update_handler(here, IOLoop.WRITE)
            loop.remove_handler(here)
            loop.close()

        before = descriptors()
        assert in_child(child) == 0
        assert descriptors() == before
        there.send(b"parent")
        loop.start()
        assert seen == [b"parent"]
        loop.close()
        """)

    def test_unregistering_first_of_all(self) -> None:
        """A first use that is none of ``start``."""
        program("""
        loop = IOLoop()
        pairs = [socket.socketpair() for _ in range(3)]
        seen = []
        for here, _ in pairs:
            loop.add_handler(here, lambda sock, _: (seen.append(sock.recv(9)), loop.stop()), 1)

        def child():
            loop.remove_handler(pairs[0][0])
            pairs[1][0].close()
            loop.remove_handler(pairs[1][0])
            pairs[0][1].send(b"unseen")
            pairs[2][1].send(b"child")
            loop.start()
            assert seen == [b"child"]
            pairs[0][0].recv(9)
            loop.add_handler(pairs[0][0], on_again, IOLoop.READ)
            pairs[0][1].send(b"again")
            loop.start()
            assert seen == [b"child", b"again"]
            loop.close(all_fds=True)

        def on_again(sock, _):
            seen.append(sock.recv(9))
            loop.stop()

        assert in_child(child) == 0
        for _, there in pairs:
            there.send(b"parent")
            loop.start()
        assert seen == [b"parent"] * 3, seen
        loop.close()
        """)

    def test_descriptors_are_opened_when_they_are_needed(self) -> None:
        program("""
        loop = IOLoop()
        before = descriptors()

        def child():
            assert descriptors() == before - 3
            loop.add_callback(loop.stop)
            loop.call_later(100, print)
            assert descriptors() == before - 3
            loop.start()
            assert descriptors() == before
            loop.close()
            assert descriptors() == before - 3

        def unused():
            loop.close()
            assert descriptors() == before - 3

        assert in_child(child) == 0
        assert in_child(unused) == 0
        loop.close()
        """)

    def test_what_stood_in_the_queue_runs_in_both(self) -> None:
        printed = program("""
        loop = IOLoop()
        def say():
            os.write(1, b"said\\n")
            loop.stop()
        loop.add_callback(say)
        assert in_child(loop.start) == 0
        loop.start()
        loop.close()
        """)
        assert printed == "said\n" * 2

    def test_wakers_are_not_shared(self) -> None:
        """A wake-up by a thread and by a signal, in the child, both while it sleeps."""
        program("""
        loop = IOLoop()

        def child():
            waker = loop._waker
            loop.call_later(0, threading.Thread(target=loop.add_callback, args=[loop.stop]).start)
            loop.start()
            assert loop._waker is not waker
            loop.add_signal_handler(signal.SIGUSR1, loop.stop)
            loop.call_later(0, os.kill, os.getpid(), signal.SIGUSR1)
            loop.start()
            loop.close()

        assert in_child(child) == 0
        # The parent's has not been written to.
        assert loop._poller.poll(0) == []
        loop.close()
        """)

    def test_a_child_of_a_child(self) -> None:
        program("""
        loop = IOLoop()
        here, there = socket.socketpair()
        seen = []
        loop.add_handler(here, lambda sock, _: (seen.append(sock.recv(9)), loop.stop()), 1)

        def serve():
            there.send(b"x")
            loop.start()
            assert seen == [b"x"]

        def child():
            # Before it was used here, and after.
            assert in_child(serve) == 0
            serve()
            seen.clear()
            assert in_child(serve) == 0
            assert in_child(loop.close) == 0

        assert in_child(child) == 0
        serve()
        loop.close()
        """)

    def test_threads_stay_with_the_parent(self) -> None:
        program("""
        from concurrent import futures
        import warnings
        loop = IOLoop()
        assert loop.run_sync(lambda: coro.to_thread(str, 1)) == "1"
        loop.set_stall_threshold(60)

        def child():
            assert loop.run_sync(lambda: coro.to_thread(threading.get_ident)) != 0
            assert len(threading.enumerate()) == 2
            loop.set_stall_threshold(None)
            loop.set_stall_threshold(60)
            assert len(threading.enumerate()) == 3
            executor = loop._executor
            loop.close()
            executor.shutdown()

        with warnings.catch_warnings():
            # That forking a process with threads is dangerous.
            warnings.simplefilter("ignore", DeprecationWarning)
            assert in_child(child) == 0
        assert loop.run_sync(lambda: coro.to_thread(str, 2)) == "2"
        executor = loop._executor
        loop.close()
        executor.shutdown()
        """)

    def test_a_stream(self) -> None:
        """One that waits for bytes when the fork comes; either process may close it."""
        program("""
        loop = IOLoop()
        here, there = socket.socketpair()
        stream = IOStream(here)
        reading = stream.read_bytes(5)

        def child():
            there.send(b"child")
            assert loop.run_sync(lambda: reading) == b"child"
            stream.close()
            loop.close()

        assert in_child(child) == 0
        there.send(b"paren")
        assert loop.run_sync(lambda: reading) == b"paren"
        stream.close()
        loop.close()
        """)


class TestRunningLoop:
    def test_the_child_is_told_whatever_it_touches(self) -> None:
        program("""
        loop = IOLoop()
        here, there = socket.socketpair()

        def child():
            assert IOLoop.current(instance=False) is None
            assert "left behind by a fork" in repr(loop)
            for call, *args in [
                (loop.start,),
                (loop.run_sync, moment),
                (loop.stop,),
                (loop.make_current,),
                (loop.add_callback, print),
                (loop.spawn_callback, print),
                (loop.add_callback_from_signal, print),
                (loop.call_later, 1, print),
                (loop.call_at, loop.time(), print),
                (loop.add_handler, here, print, 1),
                (loop.update_handler, here, 1),
                (loop.remove_handler, here),
                (loop.add_signal_handler, signal.SIGUSR1, print),
                (loop.run_in_executor, None, print),
            ]:
                refuses(call, *args)
            loop.close()
            loop.statistics()

        future = coro.Future()

        @coroutine
        def main():
            yield moment
            assert in_child(child) == 0
            # The parent goes on.
            loop.add_handler(here, lambda *_: future.set_result("came"), IOLoop.READ)
            there.send(b"x")
            result = yield future
            loop.remove_handler(here)
            return result

        assert loop.run_sync(main) == "came"
        loop.close()
        """)

    def test_a_new_loop_runs_in_the_child_meanwhile(self) -> None:
        program("""
        @coroutine
        def other():
            yield sleep(0)
            return "other"

        def child():
            assert coro.run(other) == "other"
            loop = IOLoop.current()
            assert loop.run_sync(other) == "other"
            loop.close()

        @coroutine
        def main():
            yield moment
            assert in_child(child) == 0
            return (yield other())

        assert coro.run(main) == "other"
        """)

    def test_start_ends_with_an_error_in_a_child_that_comes_back_to_it(self) -> None:
        """And nothing else of the turn happens there: no callback, no timer, no event."""
        printed = program("""
        loop = IOLoop()
        parent = os.getpid()
        here, there = socket.socketpair()

        def say(what):
            os.write(1, f"{'parent' if os.getpid() == parent else 'child'}: {what}\\n".encode())

        def on_event(sock, _events):
            sock.recv(9)
            say("event")
            loop.stop()

        def fork():
            if os.fork():
                assert os.wait()[1] == 0

        loop.add_handler(here, on_event, IOLoop.READ)
        loop.call_later(0, say, "timer")
        loop.add_callback(fork)
        loop.add_callback(say, "callback")
        loop.add_callback(there.send, b"x")
        try:
            loop.start()
        except RuntimeError as error:
            assert os.getpid() != parent
            refuses(loop.start)
            say("refused" if "was running when" in str(error) else error)
            os._exit(0)
        loop.close()
        """)
        first, *others = printed.splitlines()
        assert first == "child: refused"
        assert sorted(others) == ["parent: callback", "parent: event", "parent: timer"]

    def test_from_a_handler_of_an_event(self) -> None:
        """Of two events of one poll, the child sees the one that forked."""
        printed = program("""
        loop = IOLoop()
        parent = os.getpid()
        pairs = [socket.socketpair() for _ in range(2)]
        forked = []

        def on_event(sock, _events):
            sock.recv(9)
            if not forked:
                forked.append(True)
                if os.fork():
                    assert os.wait()[1] == 0
                return
            os.write(1, b"parent\\n" if os.getpid() == parent else b"child\\n")
            loop.stop()

        for here, there in pairs:
            loop.add_handler(here, on_event, IOLoop.READ)
            there.send(b"x")
        # Due in the same turn.
        loop.call_later(0, os.write, 1, b"timer\\n")
        try:
            loop.start()
        except RuntimeError as error:
            os._exit(0 if "was running when" in str(error) else 1)
        loop.close()
        """)
        assert printed == "parent\ntimer\n"

    def test_exit_leaves_run_in_order(self) -> None:
        """``sys.exit`` passes through ``coro.run``; no clean-up of the parent's runs there."""
        printed = program("""
        parent = os.getpid()

        @coroutine
        def other():
            try:
                yield sleep(1000)
            finally:
                os.write(1, b"parent\\n" if os.getpid() == parent else b"child\\n")

        @coroutine
        def main():
            task = other()
            yield moment
            if os.fork() == 0:
                sys.exit(7)
            assert os.waitstatus_to_exitcode(os.wait()[1]) == 7
            task.cancel()

        try:
            coro.run(main)
        except SystemExit:
            pass
        gc.collect()
        if os.getpid() != parent:
            # Python's own end would close generators that are left.
            os._exit(7)
        """)
        assert printed == "parent\n"

    def test_another_threads_loop(self) -> None:
        program("""
        import warnings
        began, end = threading.Event(), threading.Event()
        loops = []

        @coroutine
        def main():
            loops.append(IOLoop.current())
            began.set()
            while not end.is_set():
                yield sleep(0.001)

        thread = threading.Thread(target=coro.run, args=[main])
        thread.start()
        began.wait()
        mine = IOLoop()

        def child():
            refuses(loops[0].add_callback, print)
            mine.add_callback(mine.stop)
            mine.start()
            mine.close()

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            assert in_child(child) == 0
        end.set()
        thread.join()
        mine.close()
        """)

    def test_signals_are_the_childs_own_again(self) -> None:
        program("""
        loop = IOLoop()
        came = []

        @coroutine
        def main():
            loop.add_signal_handler(signal.SIGTERM, came.append, True)
            yield moment
            reader, writer = os.pipe()
            pid = os.fork()
            if pid == 0:
                assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
                assert signal.set_wakeup_fd(-1) == -1
                os.write(writer, b"x")
                while True:
                    signal.pause()
            assert os.read(reader, 1) == b"x"
            os.kill(pid, signal.SIGTERM)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGTERM
            # It has not woken the parent.
            assert loop._poller.poll(0) == []
            os.close(reader)
            os.close(writer)
            os.kill(os.getpid(), signal.SIGTERM)
            while not came:
                yield moment

        loop.run_sync(main)
        loop.close()
        """)


class TestMultiprocessing:
    def test_its_children_run_loops_of_their_own(self) -> None:
        program("""
        import multiprocessing

        @coroutine
        def other(number):
            yield sleep(0)
            return number * 2

        def work(number):
            return coro.run(other, number)

        loop = IOLoop()
        context = multiprocessing.get_context("fork")

        def target():
            assert work(4) == 8
            loop.add_callback(loop.stop)
            loop.start()

        child = context.Process(target=target)
        child.start()
        child.join()
        assert child.exitcode == 0
        loop.close()
        """)
