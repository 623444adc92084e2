"""coro inside asyncio: on asyncio's own loop, on uvloop, and on those that stand on coro's."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import io
import itertools
import logging
import os
import signal
import socket
import threading
from collections.abc import Generator, Iterator
from concurrent import futures
from typing import Any

import pytest
import uvloop

import coro.aio
from coro.errors import BadYieldError, StreamClosedError, WrongLoopError, WrongThreadError
from coro.future import Future, slot
from coro.gen import TaskGroup, coroutine, current_task, moment, shield, sleep, timeout, to_thread
from coro.hosted import HostedLoop
from coro.http import AsyncHTTPClient
from coro.locks import Condition, Event, Lock, Semaphore
from coro.loop import IOLoop, PeriodicCallback
from coro.queues import Queue
from coro.stream import IOStream
from coro.tcp import TCPServer, connect
from coro.threads import run_coroutine_threadsafe
from tests.conftest import RawServerFactory
from tests.http.serving import response
from tests.support.leaks import count_fds
from tests.support.raw_server import read_request

Coroutine = Generator[Any, Any, Any]

# Seconds. Only a broken test waits so long.
LIMIT = 30.0

HOSTS: dict[str, Any] = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
LOOPS = HOSTS | {"coro": coro.aio.new_event_loop}

# What a ``HostedLoop`` does, and none of coro's own.
hosted = pytest.mark.asyncio(loop_factories=[*HOSTS])
# Where generators are shown to asyncio as its current tasks: not on a native loop.
shown = pytest.mark.asyncio(loop_factories=[*LOOPS])


@pytest.fixture(params=[*LOOPS.values()], ids=[*LOOPS])
def run(request: Any) -> Any:
    """``run(main())``: what ``asyncio.run`` and ``uvloop.run`` do."""

    def run(main: Any) -> Any:
        with asyncio.Runner(loop_factory=request.param) as runner:
            return runner.run(main)

    return run


@coroutine
def after(future: Any, value: Any = None) -> Coroutine:
    """Wait for something; return it, or another value."""
    result = yield future
    return result if value is None else value


@coroutine
def nested(depth: int, bottom: Any) -> Coroutine:
    if depth:
        return (yield nested(depth - 1, bottom))
    return (yield bottom())


# --- calling coro from asyncio --------------------------------------------------------------


@pytest.mark.asyncio
class TestTheLoop:
    async def test_it_is_current_and_one(self) -> None:
        loop = IOLoop.current()
        assert loop is IOLoop.current() is IOLoop.current(instance=False)
        assert loop.asyncio_loop is asyncio.get_running_loop()
        assert Future().get_loop() is asyncio.get_running_loop()

    @hosted
    async def test_it_names_its_host(self) -> None:
        assert type(IOLoop.current()) is HostedLoop
        assert repr(asyncio.get_running_loop()) in repr(IOLoop.current())

    async def test_one_that_was_made_current_before_is_not_taken(self) -> None:
        mine = IOLoop(make_current=False)
        slot.current = mine
        try:
            assert IOLoop.current().asyncio_loop is asyncio.get_running_loop()
            future: Future[int] = Future()
            lock = Lock()
            async with lock:
                IOLoop.current().add_callback(future.set_result, 5)
                assert await future == 5
        finally:
            slot.current = None
            mine.close()

    @hosted
    async def test_what_is_the_hosts_matter_is_refused(self) -> None:
        loop = IOLoop.current()
        for call in (loop.start, loop.stop, loop.close, lambda: loop.run_sync(moment)):
            with pytest.raises(RuntimeError, match="which asyncio runs"):
                call()
        loop.make_current()
        assert slot.current is None
        native = IOLoop(make_current=False)
        with pytest.raises(RuntimeError, match="is running in this thread"):
            native.run_sync(lambda: moment)
        with pytest.raises(RuntimeError, match="await main"):
            coro.run(after, None)
        native.close()

    async def test_callbacks_in_order_and_by_turns(self) -> None:
        loop = IOLoop.current()
        host = asyncio.get_running_loop()
        seen: list[str] = []
        ended = asyncio.Event()

        def again(number: int) -> None:
            seen.append(f"coro {number}")
            if number < 3:
                loop.add_callback(again, number + 1)

        def hosts(number: int) -> None:
            seen.append(f"host {number}")
            if number < 6:
                host.call_soon(hosts, number + 1)
            else:
                ended.set()

        loop.add_callback(again, 1)
        hosts(1)
        await ended.wait()
        own = [each for each in seen if each.startswith("coro")]
        assert own == ["coro 1", "coro 2", "coro 3"]
        # Never two turns of ours without one of the host's.
        assert not any(a[:4] == b[:4] == "coro" for a, b in itertools.pairwise(seen))

    async def test_an_error_of_a_callback_is_logged(self, caplog: Any) -> None:
        loop = IOLoop.current()
        loop.add_callback(lambda: 1 // 0)
        loop.add_callback(lambda: after(moment))
        await sleep(0)
        assert [each.name for each in caplog.records] == ["coro.application"]
        caplog.clear()

    async def test_timers(self) -> None:
        loop = IOLoop.current()
        seen: list[str] = []
        now = loop.time()
        loop.call_at(now + 0.003, seen.append, "third")
        loop.call_later(0.001, seen.append, "second")
        loop.add_timeout(now - 1, seen.append, "first")
        never = loop.call_later(0.0005, seen.append, "never")
        loop.remove_timeout(never)
        done: Future[None] = Future()
        loop.call_later(0.004, done.set_result, None)
        await done
        assert seen == ["first", "second", "third"]
        assert loop.time() - now >= 0.004
        with pytest.raises(ValueError, match="more than a year"):
            loop.call_at(now + 1e9, print)

    async def test_a_timer_whose_predecessor_was_cancelled(self) -> None:
        """The host was asked to call for the first one, and has to be asked again."""
        loop = IOLoop.current()
        cancelled = loop.call_later(0.001, print)
        done: Future[None] = Future()
        loop.call_later(0.05, done.set_result, None)
        loop.remove_timeout(cancelled)
        await done

    @hosted
    async def test_what_is_to_be_done_at_the_end_of_a_turn(self) -> None:
        """There is a turn for it, also if nothing else asks for one."""
        loop = IOLoop.current()
        called = asyncio.Event()
        loop._at_turn_end.append(lambda: loop._at_turn_end.append(called.set))
        await asyncio.wait_for(called.wait(), LIMIT)

    async def test_periodic(self) -> None:
        calls: list[int] = []
        enough = asyncio.Event()

        def call() -> None:
            calls.append(1)
            if len(calls) == 3:
                enough.set()

        periodic = PeriodicCallback(call, 1)
        periodic.start()
        await enough.wait()
        periodic.stop()

    async def test_other_threads(self) -> None:
        loop = IOLoop.current()
        seen: Future[int] = Future()
        idents: list[int] = []

        def called() -> None:
            idents.append(threading.get_ident())
            seen.set_result(3)

        thread = threading.Thread(target=loop.add_callback, args=(called,))
        thread.start()
        assert await seen == 3
        thread.join()
        assert idents == [threading.get_ident()]
        with futures.ThreadPoolExecutor(1) as pool:
            with pytest.raises(WrongThreadError):
                await loop.run_in_executor(pool, loop.call_later, 1, print)
            assert await loop.run_in_executor(pool, pow, 2, 5) == 32
        assert await to_thread(pow, 2, 6) == 64

    async def test_many_threads_wake_it(self) -> None:
        loop = IOLoop.current()
        all_came: Future[None] = Future()
        count = 0

        def came() -> None:
            nonlocal count
            count += 1
            if count == 800:
                all_came.set_result(None)

        def call() -> None:
            for _ in range(200):
                loop.add_callback(came)

        threads = [threading.Thread(target=call) for _ in range(4)]
        for thread in threads:
            thread.start()
        await asyncio.wait_for(all_came, LIMIT)
        for thread in threads:
            thread.join()

    async def test_signals(self) -> None:
        loop = IOLoop.current()
        before = signal.getsignal(signal.SIGUSR1)
        got: Future[int] = Future()
        loop.add_signal_handler(signal.SIGUSR1, got.set_result, 5)
        signal.raise_signal(signal.SIGUSR1)
        assert await got == 5
        assert loop.remove_signal_handler(signal.SIGUSR1)
        assert not loop.remove_signal_handler(signal.SIGUSR1)
        assert signal.getsignal(signal.SIGUSR1) == before

    @hosted
    async def test_figures_and_dump(self) -> None:
        loop = IOLoop.current()
        never: Future[None] = Future()
        task = nested(3, lambda: never)
        figures = loop.statistics()
        assert figures["tasks"] == 4
        assert (figures["timers"], figures["handlers"]) == (0, 0)
        assert 0 <= figures["busy_ratio"] <= 1
        out = io.StringIO()
        coro.dump(file=out)
        assert out.getvalue().startswith("HostedLoop")
        assert "4 tasks, 0 timers, 0 descriptors" in out.getvalue()
        never.set_result(None)
        await task
        assert loop.statistics()["tasks"] == 0

    @hosted
    async def test_hosts_error_while_a_callback_runs_loses_nothing(self) -> None:
        """Stopped by ``KeyboardInterrupt`` in the middle of a turn, it goes on with the rest."""
        host = asyncio.new_event_loop()
        seen: list[int] = []

        def interrupt() -> None:
            raise KeyboardInterrupt

        def inside() -> None:
            async def main() -> None:
                loop = IOLoop.current()
                loop.add_callback(interrupt)
                loop.add_callback(seen.append, 1)
                await asyncio.sleep(LIMIT)

            with pytest.raises(KeyboardInterrupt):
                host.run_until_complete(main())
            host.run_until_complete(asyncio.sleep(0))
            host.run_until_complete(asyncio.sleep(0))
            for task in asyncio.all_tasks(host):
                task.cancel()
            host.run_until_complete(asyncio.sleep(0))
            host.run_until_complete(host.shutdown_asyncgens())
            host.close()

        thread = threading.Thread(target=inside)
        thread.start()
        thread.join()
        assert seen == [1]


@pytest.mark.asyncio
class TestTasks:
    @shown
    async def test_current_task(self) -> None:
        mine = asyncio.current_task()
        seen: list[Any] = []

        @coroutine
        def inner() -> Coroutine:
            seen.append((asyncio.current_task(), current_task()))
            yield moment
            seen.append((asyncio.current_task(), current_task()))

        @coroutine
        def outer() -> Coroutine:
            me = asyncio.current_task()
            child = inner()
            assert asyncio.current_task() is me is current_task()
            yield child
            assert asyncio.current_task() is me is current_task()
            seen.extend([(child, child)] * 2)
            yield sleep(0)
            assert asyncio.current_task() is me

        task = outer()
        assert asyncio.current_task() is mine is current_task()
        await task
        assert asyncio.current_task() is mine
        assert seen[:2] == seen[2:]

    async def test_deep_chains_and_many_at_once(self) -> None:
        assert await nested(200, lambda: sleep(0.001)) is None
        assert await after([nested(n, lambda: moment) for n in range(70)])
        assert asyncio.current_task() is not None

    @shown
    async def test_all_tasks(self) -> None:
        never: Future[None] = Future()
        task = nested(3, lambda: never)
        ended = after(moment)
        assert len(asyncio.all_tasks()) == 1 + 4 + 1
        assert task in asyncio.all_tasks()
        await ended
        assert ended not in asyncio.all_tasks()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert asyncio.all_tasks() == {asyncio.current_task()}

    async def test_it_is_taken_by_asyncios_functions(self) -> None:
        never: Future[None] = Future()
        assert await asyncio.gather(after(sleep(0), 1), after(moment, 2), asyncio.sleep(0, 3)) == [
            1,
            2,
            3,
        ]
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(nested(3, lambda: never), 0.001)
        assert never.cancelled()
        assert await asyncio.wait_for(after(sleep(0), 1), LIMIT) == 1
        assert await asyncio.shield(after(sleep(0), 1)) == 1
        slow: Any = after(sleep(LIMIT))
        done, pending = await asyncio.wait(
            [slow, after(moment)], return_when=asyncio.FIRST_COMPLETED
        )
        assert len(done) == 1
        assert pending == {slow}
        slow.cancel("enough")
        outcomes = await asyncio.gather(slow, return_exceptions=True)
        assert [(type(each), each.args) for each in outcomes] == [
            (asyncio.CancelledError, ("enough",))
        ]
        assert [await each for each in asyncio.as_completed([after(moment, 1)])] == [1]

    async def test_shield_keeps_it(self) -> None:
        result: Future[int] = Future()
        task = after(result)
        waiting = asyncio.ensure_future(asyncio.shield(task))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        result.set_result(5)
        assert await task == 5

    @shown
    async def test_timeouts_of_both_kinds(self) -> None:
        never: Future[None] = Future()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await after(shield(never))
        with pytest.raises(coro.TimeoutError), timeout(0.001):
            await asyncio.sleep(LIMIT)
        mine: Any = asyncio.current_task()
        assert mine.cancelling() == 0

        async def limited() -> None:
            async with asyncio.timeout(0.001):
                await asyncio.sleep(LIMIT)

        @coroutine
        def catches() -> Coroutine:
            try:
                yield limited()
            except TimeoutError:
                me: Any = asyncio.current_task()
                assert me.cancelling() == 0
                yield moment
                return "told"

        assert await catches() == "told"

    async def test_task_groups(self) -> None:
        cleaned: list[str] = []

        @coroutine
        def works() -> Coroutine:
            try:
                yield sleep(LIMIT)
            finally:
                cleaned.append("coro")

        async def waits() -> None:
            await works()

        async def fails() -> None:
            await sleep(0.001)
            raise KeyError("no")

        async def group() -> None:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(waits())
                tasks.create_task(fails())

        with pytest.raises(ExceptionGroup) as caught:
            await after(group())
        assert [type(each) for each in caught.value.exceptions] == [KeyError]
        assert cleaned == ["coro"]
        async with TaskGroup() as own:
            one = own.create_task(after, sleep(0), 1)
            two = own.create_task(after, asyncio.sleep(0, 2))
        assert (one.result(), two.result()) == (1, 2)

    async def test_cancelled_from_asyncio_down_to_asyncio(self) -> None:
        """Through asyncio's task, ours, an ``async def`` and asyncio's future; and back up."""
        log: list[str] = []
        begun = asyncio.Event()

        async def bottom() -> None:
            begun.set()
            try:
                await asyncio.sleep(LIMIT)
            except asyncio.CancelledError:
                log.append("bottom")
                await asyncio.sleep(0.001)
                log.append("cleaned")
                raise

        @coroutine
        def middle() -> Coroutine:
            try:
                yield asyncio.create_task(bottom())
            finally:
                log.append("middle")
                yield moment

        async def top() -> None:
            try:
                await middle()
            finally:
                log.append("top")

        task = asyncio.create_task(top())
        await begun.wait()
        task.cancel("why")
        with pytest.raises(asyncio.CancelledError):
            await task
        assert log == ["bottom", "cleaned", "middle", "top"]

    async def test_an_asyncio_task_that_does_not_mind_being_cancelled(self) -> None:
        async def stubborn() -> str:
            try:
                await asyncio.sleep(LIMIT)
            except asyncio.CancelledError:
                return "here I am"
            raise AssertionError

        task = after(asyncio.create_task(stubborn()))
        await asyncio.sleep(0)
        assert task.cancel()
        assert await task == "here I am"

    @shown
    async def test_uncancel(self) -> None:
        @coroutine
        def stays() -> Coroutine:
            me: Any = asyncio.current_task()
            try:
                yield sleep(LIMIT)
            except asyncio.CancelledError:
                assert me.cancelling() == 1
                assert me.uncancel() == 0
            return (yield asyncio.sleep(0, "stayed"))

        task = stays()
        await asyncio.sleep(0)
        task.cancel()
        assert await task == "stayed"

    async def test_errors_keep_type_text_and_traceback(self) -> None:
        async def bottom() -> None:
            await asyncio.sleep(0)
            raise KeyError("text")

        @coroutine
        def middle() -> Coroutine:
            yield asyncio.create_task(bottom())

        async def top() -> None:
            await middle()

        with pytest.raises(KeyError, match="text") as caught:
            await asyncio.create_task(top())
        names = [entry.name for entry in caught.traceback]
        assert [name for name in names if name in {"bottom", "middle", "top"}] == [
            "top",
            "middle",
            "bottom",
        ]

    async def test_context(self) -> None:
        var: contextvars.ContextVar[str] = contextvars.ContextVar("var", default="none")

        async def reads() -> str:
            await asyncio.sleep(0)
            return var.get()

        @coroutine
        def sets() -> Coroutine:
            assert var.get() == "outer"
            var.set("inner")
            yield moment
            assert var.get() == "inner"
            assert (yield reads()) == "inner"
            assert (yield asyncio.create_task(reads())) == "inner"
            assert (yield to_thread(var.get)) == "inner"
            called: Future[str] = Future()
            IOLoop.current().call_later(0, lambda: called.set_result(var.get()))
            assert (yield called) == "inner"

        var.set("outer")
        await sets()
        assert var.get() == "outer"

    async def test_what_cannot_be_waited_for(self) -> None:
        with pytest.raises(BadYieldError, match="yield sleep"):
            await after(5)

    async def test_a_failure_that_nobody_looked_at_is_told_once(self, caplog: Any) -> None:
        @coroutine
        def fails() -> Coroutine:
            yield moment
            raise KeyError("nobody")

        fails()
        await sleep(0)
        await sleep(0)
        assert [each.name for each in caplog.records] == ["coro.application"]
        caplog.clear()


# --- calling asyncio from coro --------------------------------------------------------------


@pytest.mark.asyncio
class TestYielding:
    async def test_everything_of_asyncio(self) -> None:
        @coroutine
        def main() -> Coroutine:
            future = asyncio.get_running_loop().create_future()
            asyncio.get_running_loop().call_soon(future.set_result, 1)
            assert (yield future) == 1
            assert (yield future) == 1
            assert (yield asyncio.sleep(0, 2)) == 2
            assert (yield asyncio.create_task(asyncio.sleep(0, 3))) == 3
            assert (yield asyncio.gather(asyncio.sleep(0, 4), asyncio.sleep(0, 5))) == [4, 5]
            assert (yield [asyncio.sleep(0, 6), after(moment, 7)]) == [6, 7]
            assert (yield asyncio.get_running_loop().run_in_executor(None, pow, 2, 3)) == 8
            queue: asyncio.Queue[int] = asyncio.Queue()
            queue.put_nowait(9)
            assert (yield queue.get()) == 9
            return "end"

        assert await main() == "end"

    async def test_streams_of_asyncio(self) -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write((await reader.readline()).upper())
            await writer.drain()
            writer.close()
            await writer.wait_closed()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)

        @coroutine
        def main() -> Coroutine:
            stream = yield connect("127.0.0.1", server.sockets[0].getsockname()[1])
            yield stream.write(b"ping\n")
            return (yield stream.read_until_close())

        assert await main() == b"PING\n"
        server.close()
        await server.wait_closed()

    async def test_a_cancelled_future(self) -> None:
        future = asyncio.get_running_loop().create_future()
        task = after(future)
        future.cancel("gone")
        with pytest.raises(asyncio.CancelledError, match="gone"):
            await task

    async def test_a_future_of_another_loop(self) -> None:
        other = asyncio.new_event_loop()
        try:
            with pytest.raises(WrongLoopError) as caught:
                await after(other.create_future())
            assert repr(other) in str(caught.value)
            assert repr(IOLoop.current()) in str(caught.value)
        finally:
            other.close()


# --- the rest of coro -----------------------------------------------------------------------


@pytest.mark.asyncio
class TestRooms:
    async def test_locks(self) -> None:
        lock, semaphore, event, condition = Lock(), Semaphore(1), Event(), Condition()
        async with lock, semaphore:
            waiting = asyncio.gather(event.wait(), condition.wait(), lock.acquire())
            await asyncio.sleep(0)
            event.set()
            condition.notify()
        await asyncio.wait_for(waiting, LIMIT)
        with pytest.raises(coro.TimeoutError):
            await Event().wait(timeout=IOLoop.current().time() + 0.001)

    async def test_queues(self) -> None:
        queue: Queue[int | None] = Queue(maxsize=2)

        async def put() -> None:
            for number in range(5):
                await queue.put(number)

        producer = asyncio.create_task(put())
        got = []
        async for item in queue:
            got.append(item)
            queue.task_done()
            if item == 4:
                break
        assert got == [0, 1, 2, 3, 4]
        await queue.join()
        await producer

    async def test_server_and_streams(self) -> None:
        class Upper(TCPServer):
            async def handle_stream(self, stream: IOStream, address: Any) -> None:
                async with stream:
                    async for piece in stream:
                        await stream.write(piece.upper())

        server = Upper()
        server.listen(0, "127.0.0.1")
        (port,) = {sock.getsockname()[1] for sock in server.sockets}
        async with await connect("127.0.0.1", port) as stream:
            await stream.write(b"hello")
            assert await stream.read_bytes(5) == b"HELLO"
            stream.send_eof()
            assert [piece async for piece in stream] == []
        assert stream.closed()
        server.stop()

    async def test_a_stream_that_fails_does_not_just_end(self) -> None:
        class Rude(TCPServer):
            async def handle_stream(self, stream: IOStream, address: Any) -> None:
                await stream.read_bytes(1)
                stream.abort()

        server = Rude()
        server.listen(0, "127.0.0.1")
        (port,) = {sock.getsockname()[1] for sock in server.sockets}
        async with await connect("127.0.0.1", port) as stream:
            await stream.write(b"x")
            with pytest.raises(StreamClosedError) as caught:
                async for _ in stream:
                    raise AssertionError
            assert isinstance(caught.value.real_error, ConnectionResetError)
        server.stop()

    async def test_fetch(self, raw_server: RawServerFactory) -> None:
        def script(conn: socket.socket) -> None:
            for _ in range(3):
                read_request(conn)
                conn.sendall(response(b"hello"))

        server = raw_server(script)
        for _ in range(3):
            got = await coro.fetch(f"http://127.0.0.1:{server.port}/")
            assert got.body == b"hello"
        shared = AsyncHTTPClient()
        assert shared is AsyncHTTPClient()
        assert shared.statistics()["opened"] == 1

    async def test_a_response_that_is_read_piece_by_piece(
        self, raw_server: RawServerFactory
    ) -> None:
        body = bytes(range(256)) * 1000

        def script(conn: socket.socket) -> None:
            read_request(conn)
            conn.sendall(response(body))

        url = f"http://127.0.0.1:{raw_server(script).port}/"
        client: Any = AsyncHTTPClient()
        async with await client.fetch(url, stream=True) as got:
            assert b"".join([piece async for piece in got]) == body
        async with await client.fetch(url, stream=True) as left:
            assert await left.read(10) == body[:10]
            assert client.statistics()["active"] == 1
        # Its connection, in the middle of a body, is of no use any more: it ends in two turns.
        await sleep(0)
        await sleep(0)
        assert (client.statistics()["active"], client.statistics()["idle"]) == (0, 0)

    async def test_the_stall_watch(self, caplog: Any) -> None:
        caplog.set_level(logging.WARNING)
        loop = IOLoop.current()
        loop.set_stall_threshold(0.001)
        told = threading.Event()
        said: list[str] = []

        class Tell(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                said.append(record.getMessage())
                told.set()

        handler = Tell()
        log = logging.getLogger("coro.general")
        log.addHandler(handler)
        try:
            loop.add_callback(told.wait, LIMIT)
            await sleep(0)
            await sleep(0)
            assert told.is_set()
        finally:
            log.removeHandler(handler)
            loop.set_stall_threshold(None)
        assert "is stuck" in said[0]


# --- lifetimes ------------------------------------------------------------------------------


def test_the_hosts_shutdown_closes_what_depends_on_it(run: Any, raw_server: Any) -> None:
    """Idle connections, servers, descriptors; without a ResourceWarning."""
    fds = count_fds()

    def script(conn: socket.socket) -> None:
        read_request(conn)
        conn.sendall(response())
        conn.recv(1)

    server = raw_server(script)
    loops: list[Any] = []
    cleaned: list[str] = []

    @coroutine
    def left_behind() -> Coroutine:
        try:
            yield sleep(LIMIT)
        finally:
            yield moment
            cleaned.append("up")

    async def main() -> None:
        loops.append(IOLoop.current())
        await coro.fetch(f"http://127.0.0.1:{server.port}/")
        TCPServer().listen(0, "127.0.0.1")
        left_behind()

    run(main())
    assert cleaned == ["up"]
    (loop,) = loops
    assert loop._closed
    assert "closed" in repr(loop)
    loop.add_callback(print, "never")
    server.close()
    assert count_fds() <= fds


def test_nothing_is_left_for_the_collector(run: Any) -> None:
    async def main() -> None:
        await nested(3, lambda: sleep(0))
        with pytest.raises(KeyError):
            await failing()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(nested(3, lambda: sleep(LIMIT)), 0)

    @coroutine
    def failing() -> Coroutine:
        try:
            yield asyncio.create_task(asyncio.sleep(0))
        finally:
            raise KeyError

    loops: list[IOLoop] = []

    async def bare() -> None:
        await asyncio.sleep(0)

    def garbage(main: Any) -> int:
        gc.collect()
        gc.disable()
        try:
            run(main())
            return gc.collect()
        finally:
            gc.enable()

    async def used() -> None:
        await nested(3, lambda: sleep(0))

    garbage(used)
    assert garbage(used) <= garbage(bare)
    run(main())
    assert not loops


def test_two_runs(run: Any, raw_server: Any) -> None:
    """The shared client is one of each loop; one that was kept says to which it belongs."""

    def script(conn: socket.socket) -> None:
        read_request(conn)
        conn.sendall(response())
        conn.recv(1)

    server = raw_server(script)
    url = f"http://127.0.0.1:{server.port}/"
    kept: list[Any] = []

    async def main() -> None:
        assert (await coro.fetch(url)).body == b"hello"
        kept.append((AsyncHTTPClient(force_instance=True), IOLoop.current()))
        if len(kept) == 2:
            with pytest.raises(RuntimeError) as caught:
                await kept[0][0].fetch(url)
            assert repr(kept[0][1]) in str(caught.value)
            assert repr(kept[1][1]) in str(caught.value)
            assert "\n" not in str(caught.value)

    run(main())
    run(main())
    assert kept[0][1] is not kept[1][1]


def test_a_fork(run: Any) -> None:
    """The child's copy lets go of the poller, which is the parent's too."""

    async def main() -> int:
        loop = IOLoop.current()
        ours, theirs = socket.socketpair()
        with theirs:
            stream = IOStream(ours)
            reading = stream.read_bytes(1)
            child = os.fork()
            if not child:
                status = 1
                try:
                    stream.close()
                    status = 0 if IOLoop.current(instance=False) is None and loop._closed else 2
                finally:
                    os._exit(status)
            _, status = await to_thread(os.waitpid, child, 0)
            theirs.send(b"x")
            assert await reading == b"x"
            stream.close()
        return os.waitstatus_to_exitcode(status)

    assert run(main()) == 0


def test_a_host_that_runs_again() -> None:
    """Without a shutdown in between it keeps its loop, also when another thread runs it."""
    host = asyncio.new_event_loop()
    loops: list[Any] = []

    async def main() -> None:
        loops.append(IOLoop.current())
        await sleep(0)

    host.run_until_complete(main())
    thread = threading.Thread(target=lambda: host.run_until_complete(main()))
    thread.start()
    thread.join()
    assert loops[0] is loops[1]
    watched = loops[0]._poller.fileno()
    host.run_until_complete(host.shutdown_asyncgens())
    assert loops[0]._closed
    assert not host.remove_reader(watched)
    host.close()


def test_a_host_with_a_clock_of_its_own() -> None:
    class Host(asyncio.SelectorEventLoop):
        ahead = 0.0

        def time(self) -> float:
            return super().time() + self.ahead

    host = Host()

    async def main() -> None:
        host.ahead = 1000.0
        loop = IOLoop.current()
        assert abs(loop.time() - host.time()) < 500
        late = sleep(500)
        host.ahead += 500
        await late

    host.run_until_complete(main())
    host.run_until_complete(host.shutdown_asyncgens())
    host.close()


# --- across threads -------------------------------------------------------------------------


class TestThreads:
    @pytest.fixture
    def loop(self, request: Any, kind: str) -> Iterator[IOLoop]:
        """A loop that runs in another thread."""
        begun: futures.Future[Any] = futures.Future()
        ended: futures.Future[Any] = futures.Future()

        async def main() -> None:
            end: Future[None] = Future()
            begun.set_result((IOLoop.current(), end))
            await end

        def inside() -> None:
            if kind == "native":
                coro.run(main)
            else:
                with asyncio.Runner(loop_factory=LOOPS[kind]) as runner:
                    runner.run(main())
            ended.set_result(None)

        thread = threading.Thread(target=inside)
        thread.start()
        loop, end = begun.result(LIMIT)
        yield loop
        loop.add_callback(end.set_result, None)
        thread.join()

    @pytest.fixture(params=["native", *LOOPS])
    def kind(self, request: Any) -> str:
        return str(request.param)

    def test_results_and_errors(self, loop: IOLoop) -> None:
        var: contextvars.ContextVar[str] = contextvars.ContextVar("var")
        var.set("mine")

        @coroutine
        def work(a: int, b: int = 0) -> Coroutine:
            yield sleep(0)
            assert IOLoop.current() is loop
            assert var.get() == "mine"
            return a // b

        async def native() -> str:
            await sleep(0)
            return "async def"

        untyped: Any = work
        assert run_coroutine_threadsafe(loop, work, 6, b=2).result(LIMIT) == 3
        assert run_coroutine_threadsafe(loop, native).result(LIMIT) == "async def"
        with pytest.raises(ZeroDivisionError):
            run_coroutine_threadsafe(loop, work, 6, b=0).result(LIMIT)
        with pytest.raises(BadYieldError):
            run_coroutine_threadsafe(loop, lambda: 5).result(LIMIT)
        with pytest.raises(TypeError):
            run_coroutine_threadsafe(loop, untyped).result(LIMIT)

    def test_cancelled_from_either_side(self, loop: IOLoop) -> None:
        waits = threading.Event()
        cleaned = threading.Event()

        @coroutine
        def work() -> Coroutine:
            waits.set()
            try:
                yield sleep(LIMIT)
            finally:
                cleaned.set()

        @coroutine
        def cancels_itself() -> Coroutine:
            yield moment
            raise asyncio.CancelledError

        outcome = run_coroutine_threadsafe(loop, work)
        assert waits.wait(LIMIT)
        assert outcome.cancel()
        assert cleaned.wait(LIMIT)
        with pytest.raises(futures.CancelledError):
            run_coroutine_threadsafe(loop, cancels_itself).result(LIMIT)

    def test_a_future_of_another_thread_is_yielded(self, loop: IOLoop) -> None:
        given: futures.Future[int] = futures.Future()
        outcome = run_coroutine_threadsafe(loop, after, given)
        given.set_result(5)
        assert outcome.result(LIMIT) == 5
        never: futures.Future[int] = futures.Future()
        outcome = run_coroutine_threadsafe(loop, after, never)
        never.cancel()
        with pytest.raises(futures.CancelledError):
            outcome.result(LIMIT)


def test_a_loop_that_is_closed_before() -> None:
    loop = IOLoop(make_current=False)
    outcome = run_coroutine_threadsafe(loop, after, 1)
    never = run_coroutine_threadsafe(loop, after, 1)
    never.cancel()
    loop.close()
    assert outcome.cancelled()
    with pytest.raises(RuntimeError, match="is closed"):
        run_coroutine_threadsafe(loop, after, 1)
