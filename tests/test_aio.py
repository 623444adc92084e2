"""``coro.aio.EventLoop``: asyncio's programs on coro's loop, and coro's coroutines among them."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import logging
import os
import re
import signal
import socket
import ssl
import threading
import time
import traceback
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import anyio.from_thread
import anyio.to_thread
import pytest

import coro.aio
from coro.errors import CancelledError, WrongLoopError
from coro.gen import (
    TaskGroup,
    convert_yielded,
    coroutine,
    current_task,
    moment,
    sleep,
    timeout,
)
from coro.http import AsyncHTTPClient, HTTPServer, Response
from coro.loop import IOLoop
from coro.main import run_on
from coro.tcp import connect
from coro.testing import simulate
from tests.support.authority import Authority
from tests.support.leaks import count_fds

Run = Callable[..., Any]


def _run_by_asyncio(main: Any, debug: bool = False) -> Any:
    with asyncio.Runner(loop_factory=coro.aio.new_event_loop, debug=debug) as runner:
        return runner.run(main)


def _run_by_coro(main: Any, debug: bool = False) -> Any:
    loop = IOLoop(make_current=False)
    loop.asyncio_loop.set_debug(debug)
    return run_on(loop, lambda: main)


def _run_face_by_asyncio(main: Any, debug: bool = False) -> Any:
    def face() -> Any:
        return IOLoop(make_current=False).asyncio_loop

    with asyncio.Runner(loop_factory=face, debug=debug) as runner:
        return runner.run(main)


@pytest.fixture(params=[_run_by_asyncio, _run_by_coro, _run_face_by_asyncio])
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    """``run(main())``: on a loop of coro's, which gives everything back."""
    before = count_fds()
    yield request.param
    assert count_fds() == before


class TestLoop:
    def test_callbacks_come_in_order(self, run: Run) -> None:
        async def main() -> list[int]:
            loop = asyncio.get_running_loop()
            assert isinstance(loop, coro.aio.EventLoop)
            seen: list[int] = []
            for number in range(5):
                loop.call_soon(seen.append, number)
            loop.call_soon(seen.append, 9).cancel()
            await asyncio.sleep(0)
            return seen

        assert run(main()) == [0, 1, 2, 3, 4]

    def test_timers(self, run: Run) -> None:
        async def main() -> list[str]:
            loop = asyncio.get_running_loop()
            seen: list[str] = []
            loop.call_later(0.02, seen.append, "later")
            loop.call_at(loop.time() + 0.01, seen.append, "soon")
            cancelled = loop.call_later(0.01, seen.append, "never")
            assert not cancelled.cancelled()
            cancelled.cancel()
            assert cancelled.cancelled()
            await asyncio.sleep(0.05)
            with pytest.raises(TypeError):
                loop.call_at(None, print)  # type: ignore[arg-type]
            return seen

        assert run(main()) == ["soon", "later"]

    def test_cancelled_timers_are_forgotten(self, run: Run) -> None:
        async def main() -> None:
            loop: Any = asyncio.get_running_loop()
            seen: list[int] = []
            came = asyncio.Event()
            last = loop.call_later(0.02, came.set)
            for number in range(10_000):
                timer = loop.call_later(1000 - number % 7, seen.append, 0)
                assert timer.when() > loop.time() + 900
                timer.cancel()
                timer.cancel()
            assert len(loop._scheduled) < 2 * coro.aio.MANY_CANCELLED
            await came.wait()
            last.cancel()
            assert seen == []
            assert loop._timer_cancelled_count == len(loop._scheduled)

        run(main())

    def test_descriptors(self, run: Run) -> None:
        async def main() -> list[str]:
            loop = asyncio.get_running_loop()
            ours, theirs = socket.socketpair()
            seen: list[str] = []
            done = asyncio.Event()

            def remove() -> None:
                seen.append("write")
                assert loop.remove_writer(ours)
                assert not loop.remove_writer(ours)

            def read() -> None:
                seen.append(ours.recv(10).decode())
                # Its own event, and that of this very turn.
                assert loop.remove_reader(ours)
                assert loop.remove_reader(theirs)
                done.set()

            with ours, theirs:
                loop.add_writer(ours, remove)
                loop.add_reader(ours, seen.append, "replaced")
                loop.add_reader(ours, read)
                loop.add_reader(theirs, seen.append, "removed before it was called")
                # Both have events in one turn.
                ours.send(b"pong")
                theirs.send(b"ping")
                await done.wait()
                await asyncio.sleep(0)
                # It would be called for as long as there is something to read.
                loop.add_reader(theirs, seen.append, "cancelled")
                loop._selector.get_key(theirs).data[0].cancel()  # type: ignore[attr-defined]
                await asyncio.sleep(0.01)
                assert not loop.remove_reader(theirs)
            return seen

        assert run(main()) == ["ping", "write"]
        assert run(main(), debug=True) == ["ping", "write"]

    def test_threads_wake_it(self, run: Run) -> None:
        async def main() -> str:
            loop = asyncio.get_running_loop()
            future = loop.create_future()
            thread = threading.Thread(
                target=loop.call_soon_threadsafe, args=(future.set_result, "from a thread")
            )
            thread.start()
            result: str = await asyncio.wait_for(future, 10)
            thread.join()
            assert await asyncio.to_thread(threading.get_ident) != threading.get_ident()
            return result

        assert run(main()) == "from a thread"

    def test_stop(self) -> None:
        loop = coro.aio.new_event_loop()
        seen: list[int] = []
        loop.call_soon(seen.append, 1)
        loop.stop()
        loop.run_forever()
        assert seen == [1]

        def stopping() -> None:
            loop.stop()
            loop.call_soon(seen.append, 3)

        loop.call_soon(stopping)
        loop.call_soon(seen.append, 2)
        loop.run_forever()
        assert seen == [1, 2]
        loop.run_until_complete(asyncio.sleep(0))
        assert seen == [1, 2, 3]
        loop.close()
        assert loop.is_closed()
        loop.close()
        with pytest.raises(RuntimeError, match="closed"):
            loop.call_soon(print)

    def test_signals(self, run: Run) -> None:
        async def main() -> None:
            loop = asyncio.get_running_loop()
            came = asyncio.Event()
            loop.add_signal_handler(signal.SIGUSR1, came.set)
            os.kill(os.getpid(), signal.SIGUSR1)
            await asyncio.wait_for(came.wait(), 10)
            assert loop.remove_signal_handler(signal.SIGUSR1)

        run(main())

    def test_errors_go_to_the_handler(self, run: Run) -> None:
        async def main() -> list[Any]:
            loop = asyncio.get_running_loop()
            told: list[Any] = []
            loop.set_exception_handler(lambda _loop, context: told.append(context["exception"]))

            def fail() -> None:
                raise KeyError("no")

            loop.call_soon(fail)
            loop.call_later(0, fail)
            await asyncio.sleep(0.02)
            return told

        assert [str(error) for error in run(main())] == ["'no'", "'no'"]

    def test_debug_mode_tells_of_slow_callbacks(
        self, run: Run, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def main() -> None:
            loop = asyncio.get_running_loop()
            loop.slow_callback_duration = 0.01
            loop.call_soon(time.sleep, 0.05)
            await asyncio.sleep(0.02)

        with caplog.at_level(logging.WARNING, "asyncio"):
            run(main(), debug=True)
        assert any(
            re.match("Executing <Handle .*sleep.* took", message) for message in caplog.messages
        )

    def test_debug_mode_tells_of_slow_readers(
        self, run: Run, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Also of those that were added before."""

        async def main() -> None:
            loop = asyncio.get_running_loop()
            loop.slow_callback_duration = 0.01
            ours, theirs = socket.socketpair()
            with ours, theirs:
                came = loop.create_future()

                def slow() -> None:
                    loop.remove_reader(ours)
                    time.sleep(0.05)
                    came.set_result(None)

                loop.add_reader(ours, slow)
                loop.set_debug(True)
                theirs.send(b"x")
                await came

        with caplog.at_level(logging.WARNING, "asyncio"):
            run(main())
        assert any("slow() at" in message and "took" in message for message in caplog.messages)

    def test_debug_mode_tells_where_a_callback_was_scheduled(self, run: Run) -> None:
        async def main() -> None:
            loop = asyncio.get_running_loop()
            handles: list[Any] = [
                loop.call_soon(int),
                loop.call_soon_threadsafe(int),
                loop.call_later(0, int),
                loop.call_at(0, int),
            ]
            assert {handle._source_traceback[-1].name for handle in handles} == {"main"}
            handles[-1].cancel()
            assert re.match("<TimerHandle cancelled when=.* int", repr(handles[-1]))
            calls: list[Any] = [loop.call_soon, functools.partial(loop.call_later, 0)]
            for call in calls:
                with pytest.raises(TypeError):
                    call(None)
                with (
                    futures.ThreadPoolExecutor(1) as pool,
                    pytest.raises(RuntimeError, match="thread"),
                ):
                    pool.submit(call, int).result()

        run(main(), debug=True)

    def test_asynchronous_generators_are_closed(self, run: Run) -> None:
        closed = []

        async def numbers() -> Any:
            try:
                yield 1
                yield 2
            finally:
                await asyncio.sleep(0)
                closed.append(True)

        async def main() -> None:
            generator = numbers()
            assert await anext(generator) == 1
            kept.append(generator)

        kept: list[Any] = []
        run(main())
        assert closed == [True]


class TestTransports:
    @pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
    def test_streams(self, run: Run, ca: Authority, tls: bool) -> None:
        data = bytes(range(256)) * 4000

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(await reader.readexactly(len(data)))
            await writer.drain()
            writer.close()
            await writer.wait_closed()

        async def main() -> bytes:
            server = await asyncio.start_server(
                handle, "127.0.0.1", 0, ssl=ca.server_context() if tls else None
            )
            async with server:
                port = server.sockets[0].getsockname()[1]
                context: ssl.SSLContext | None = ca.client_context() if tls else None
                reader, writer = await asyncio.open_connection(
                    "127.0.0.1", port, ssl=context, server_hostname="localhost" if tls else None
                )
                writer.write(data)
                received = await reader.readexactly(len(data))
                writer.close()
                await writer.wait_closed()
                return received

        assert run(main()) == data

    def test_unix_sockets(self, run: Run, tmp_path: Path) -> None:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(await reader.readline())
            writer.close()

        async def main() -> bytes:
            path = tmp_path / "socket"
            async with await asyncio.start_unix_server(handle, path):
                reader, writer = await asyncio.open_unix_connection(path)
                writer.write(b"hello\n")
                line = await reader.read()
                writer.close()
                await writer.wait_closed()
                return line

        assert run(main()) == b"hello\n"

    def test_datagrams(self, run: Run) -> None:
        class Echo(asyncio.DatagramProtocol):
            def connection_made(self, transport: Any) -> None:
                self.transport = transport

            def datagram_received(self, data: bytes, address: Any) -> None:
                self.transport.sendto(data, address)

        async def main() -> bytes:
            loop = asyncio.get_running_loop()
            transport, _ = await loop.create_datagram_endpoint(Echo, local_addr=("127.0.0.1", 0))
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ours:
                ours.setblocking(False)
                ours.connect(transport.get_extra_info("sockname"))
                await loop.sock_sendall(ours, b"hello")
                data = await asyncio.wait_for(loop.sock_recv(ours, 100), 10)
            transport.close()
            await asyncio.sleep(0)
            return data

        assert run(main()) == b"hello"

    def test_subprocesses_and_pipes(self, run: Run) -> None:
        async def main() -> Any:
            process = await asyncio.create_subprocess_exec(
                "cat", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
            )
            output, _ = await process.communicate(b"x" * 200_000)
            return process.returncode, len(output)

        assert run(main()) == (0, 200_000)

    def test_sendfile(self, run: Run, tmp_path: Path) -> None:
        path = tmp_path / "file"
        path.write_bytes(b"x" * 500_000)

        async def main() -> int:
            loop = asyncio.get_running_loop()
            ours, theirs = socket.socketpair()
            ours.setblocking(False)
            theirs.setblocking(False)

            async def count() -> int:
                total = 0
                while data := await loop.sock_recv(theirs, 65536):
                    total += len(data)
                return total

            counting = asyncio.ensure_future(count())
            with path.open("rb") as file:
                await loop.sock_sendfile(ours, file)
            ours.close()
            total = await counting
            theirs.close()
            return total

        assert run(main()) == 500_000


class TestTogether:
    def test_coroutines_of_both_kinds_await_each_other(self, run: Run) -> None:
        @coroutine
        def of_coro(depth: int) -> Any:
            if run is _run_by_asyncio:
                assert current_task() is asyncio.current_task()
            yield sleep(0.001)
            got = yield of_asyncio(depth - 1) if depth else asyncio.sleep(0, "the bottom")
            yield asyncio.ensure_future(asyncio.sleep(0))
            return got

        async def of_asyncio(depth: int) -> Any:
            assert current_task() is asyncio.current_task()
            await asyncio.sleep(0.001)
            assert current_task() is asyncio.current_task()
            return await of_coro(depth - 1) if depth else "the bottom"

        async def main() -> Any:
            return await asyncio.gather(of_coro(10), of_asyncio(9), of_coro(0))

        assert run(main()) == ["the bottom"] * 3

    def test_threads_of_anyio(self, run: Run) -> None:
        """Which takes the loop from the task that it runs in, also one of coro's."""

        def in_a_thread() -> str:
            anyio.from_thread.run_sync(IOLoop.current)
            answer: str = anyio.from_thread.run(asyncio.sleep, 0, "from the loop")
            return answer

        async def asks() -> str:
            return await anyio.to_thread.run_sync(in_a_thread)

        @coroutine
        def main() -> Any:
            return (yield [asks() for _ in range(3)])

        async def amain() -> Any:
            return await main()

        assert run(amain()) == ["from the loop"] * 3

    def test_cancellation_goes_through(self, run: Run) -> None:
        ended = []

        @coroutine
        def wait() -> Any:
            try:
                yield sleep(1000)
            finally:
                yield asyncio.sleep(0)
                ended.append(True)

        async def main() -> None:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await wait()
            async with asyncio.TaskGroup() as group:
                task = group.create_task(asyncio.wait_for(wait(), 1000))
                await asyncio.sleep(0.01)
                task.cancel()
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(wait(), 0.01)

        run(main())
        assert ended == [True] * 3

    def test_errors_keep_their_type_and_place(self, run: Run) -> None:
        @coroutine
        def fail() -> Any:
            yield sleep(0)
            raise LookupError("here")

        async def main() -> None:
            with pytest.raises(LookupError, match="here") as caught:
                await fail()
            assert any(entry.name == "fail" for entry in caught.traceback)

        run(main())

    def test_the_network_of_coro(self, run: Run) -> None:
        async def main() -> Any:
            server = HTTPServer(lambda request: Response(b"x" * 100_000))
            server.listen(0, "127.0.0.1")
            port = server.sockets[0].getsockname()[1]
            client = AsyncHTTPClient()
            assert IOLoop.current() is client.io_loop
            url = f"http://127.0.0.1:{port}/"
            got = await asyncio.gather(*[client.fetch(url) for _ in range(20)])
            assert all(len(response.body) == 100_000 for response in got)
            stream = await connect("127.0.0.1", port)
            await stream.write(b"GET / HTTP/1.0\r\n\r\n")
            assert (await stream.read_until_close()).endswith(b"x" * 100_000)
            # Libraries of asyncio reach it as well.
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET / HTTP/1.0\r\n\r\n")
            assert (await reader.read()).endswith(b"x" * 100_000)
            writer.close()
            await writer.wait_closed()
            await server.shutdown(5)

        run(main())

    def test_two_loops_in_a_row(self, run: Run) -> None:
        async def main() -> int:
            await sleep(0)
            return id(IOLoop.current())

        assert run(main()) != 0
        assert run(main()) != 0

    def test_two_loops_in_two_threads(self) -> None:
        async def main(number: int) -> int:
            await sleep(0.01)
            return number

        results: list[int] = []

        def in_thread(number: int) -> None:
            with asyncio.Runner(loop_factory=coro.aio.new_event_loop) as runner:
                results.append(runner.run(main(number)))

        threads = [threading.Thread(target=in_thread, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(results) == [0, 1]

    def test_it_cannot_run_inside_another_loop(self) -> None:
        @coroutine
        def main() -> Any:
            yield sleep(0)
            loop = coro.aio.new_event_loop()
            try:
                with pytest.raises(RuntimeError, match="is running"):
                    loop.run_until_complete(loop.create_future())
            finally:
                loop.close()

        coro.run(main)


class TestFace:
    """The asyncio loop of a loop that ``coro.run`` made, or that was there already."""

    def test_it_is_the_running_loop(self) -> None:
        loop = IOLoop(make_current=False)
        face = loop.asyncio_loop
        assert isinstance(face, coro.aio.EventLoop)
        assert not face.is_running()

        @coroutine
        def main() -> Any:
            assert asyncio.get_running_loop() is face
            assert face.is_running()
            assert IOLoop.current() is loop
            yield asyncio.sleep(0)
            with pytest.raises(RuntimeError):
                face.run_forever()
            with pytest.raises(RuntimeError):
                face.close()
            with pytest.raises(RuntimeError, match="running event loop"):
                asyncio.run(nothing())  # type: ignore[arg-type]

        nothing = object
        loop.run_sync(main)
        with pytest.raises(RuntimeError):
            asyncio.get_running_loop()
        loop.close()
        assert face.is_closed()
        assert loop.asyncio_loop is None

    def test_it_opens_no_descriptor(self) -> None:
        with contextlib.closing(IOLoop(make_current=False)) as loop:
            before = count_fds()
            loop.run_sync(lambda: asyncio.sleep(0.001))
            assert count_fds() == before

    def test_it_is_there_from_one_run_to_the_next(self) -> None:
        with contextlib.closing(IOLoop(make_current=False)) as loop:
            queue: asyncio.Queue[str] = asyncio.Queue()
            loop.run_sync(lambda: queue.put("kept"))
            got: Any = loop.run_sync(lambda: asyncio.wait_for(queue.get(), 10))
            assert got == "kept"
            assert loop.asyncio_loop.run_until_complete(asyncio.sleep(0, "run by asyncio"))

    def test_closing_it_closes_the_loop(self) -> None:
        loop = IOLoop(make_current=False)
        loop.asyncio_loop.close()
        with pytest.raises(RuntimeError, match="closed"):
            loop.start()

    def test_what_asyncio_left_is_cancelled_and_awaited(self) -> None:
        ended: list[str] = []

        async def left() -> None:
            try:
                await asyncio.sleep(1000)
            finally:
                await asyncio.sleep(0.001)
                ended.append("the task")

        async def values() -> AsyncGenerator[int, None]:
            try:
                yield 1
            finally:
                await asyncio.sleep(0)
                ended.append("the generator")

        kept: list[Any] = []

        async def main() -> None:
            kept.append(asyncio.create_task(left()))
            kept.append(values())
            await anext(kept[1])

        coro.run(main)
        assert ended == ["the task", "the generator"]

    def test_limits_and_groups_of_both_kinds_in_tasks_of_both_kinds(self) -> None:
        async def limited(limit: Any) -> str:
            with pytest.raises(TimeoutError):
                async with limit(0.01):
                    await sleep(1000)
            return "in time"

        async def grouped(kind: Any) -> str:
            async with kind() as group:
                first = group.create_task(limited(asyncio.timeout))
                second = group.create_task(limited(timeout))
            return f"{first.result()}, {second.result()}"

        @coroutine
        def main() -> Any:
            kinds = (asyncio.TaskGroup, TaskGroup)
            driven = yield [grouped(kind) for kind in kinds]
            tasks = yield [asyncio.ensure_future(grouped(kind)) for kind in kinds]
            return driven + tasks

        assert coro.run(main) == ["in time, in time"] * 4

    def test_an_error_has_the_frames_of_the_user_alone(self) -> None:
        async def inner() -> None:
            await asyncio.sleep(0)
            raise ZeroDivisionError

        async def outer() -> None:
            try:
                await sleep(1000)
            except CancelledError:
                await inner()

        @coroutine
        def main() -> Any:
            task = convert_yielded(outer())
            yield moment
            task.cancel()
            try:
                yield task
            except ZeroDivisionError as error:
                frames = traceback.extract_tb(error.__traceback__)
                return [frame.name for frame in frames]

        assert coro.run(main) == ["main", "outer", "inner"]

    def test_threads_are_the_loops_own(self) -> None:
        async def main() -> None:
            loop = IOLoop.current()
            first = await asyncio.to_thread(threading.current_thread)
            second = await loop.run_in_executor(None, threading.current_thread)
            assert first is second

        coro.run(main)

    def test_signals(self) -> None:
        async def main() -> int:
            loop = asyncio.get_running_loop()
            came = loop.create_future()
            loop.add_signal_handler(signal.SIGUSR1, came.set_result, signal.SIGUSR1)
            os.kill(os.getpid(), signal.SIGUSR1)
            number: int = await came
            assert loop.remove_signal_handler(signal.SIGUSR1)
            assert not loop.remove_signal_handler(signal.SIGUSR1)
            return number

        assert coro.run(main) == signal.SIGUSR1
        assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL

    def test_futures_of_another_loop_are_told(self) -> None:
        other = asyncio.new_event_loop()

        @coroutine
        def main() -> Any:
            yield other.create_future()

        with contextlib.closing(other), pytest.raises(WrongLoopError, match="belongs to"):
            coro.run(main)

    def test_in_virtual_time(self) -> None:
        """asyncio's timers and coro's go by one clock, asyncio's callbacks in their order."""

        async def main() -> Any:
            seen: list[int] = []
            loop = asyncio.get_running_loop()
            for number in range(20):
                loop.call_soon(seen.append, number)
            began = loop.time()
            await asyncio.gather(asyncio.sleep(1000), sleep(2000))
            assert loop.time() - began >= 2000
            return seen

        for seed in range(5):
            assert simulate(main, seed=seed) == list(range(20))

    def test_it_leaves_no_circle(self, no_collector: None) -> None:
        async def main() -> None:
            with contextlib.suppress(ZeroDivisionError):
                await asyncio.create_task(fail())

        async def fail() -> None:
            await asyncio.sleep(0)
            raise ZeroDivisionError

        coro.run(main)
        assert gc.collect() == 0
        with asyncio.Runner(loop_factory=coro.aio.new_event_loop) as runner:
            runner.run(main())
        del runner
        assert gc.collect() == 0


@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize("native", [False, True])
def test_a_sleep_of_zero_lets_what_has_come_be_read(native: bool, debug: bool) -> None:
    """Each is a turn, and each turn looks at the descriptors, however soon after the last one."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_debug(debug)
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.setblocking(False)
            seen: list[bytes] = []
            loop.add_reader(ours, lambda: seen.append(ours.recv(1)))
            for number in range(1, 101):
                theirs.send(b"x")
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                assert len(seen) == number
            loop.remove_reader(ours)

    if native:
        coro.run(main)
    else:
        with asyncio.Runner(loop_factory=coro.aio.new_event_loop) as runner:
            runner.run(main())
