"""Dumps: what every task waits for, from every place where one may ask."""

from __future__ import annotations

import concurrent.futures
import gc
import io
import logging
import os
import re
import signal
import socket
import sys
import threading
import types
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from coro import stuck
from coro.connector import connect_first
from coro.future import Future, chain_future
from coro.gen import (
    Task,
    WaitIterator,
    coroutine,
    moment,
    multi,
    shield,
    sleep,
    to_thread,
    with_timeout,
)
from coro.hooks import Observer
from coro.http.client import AsyncHTTPClient
from coro.locks import Condition, Event, Lock, Semaphore
from coro.loop import IOLoop
from coro.net import AF_INET6, GAIError
from coro.queues import Queue
from coro.resolver import ThreadedResolver
from coro.stream import IOStream
from coro.stuck import MAX_INDENT, MAX_LINE, dump, dump_on, format_dump
from coro.task import MAX_DEPTH
from coro.tcp import connect
from tests.support.authority import Authority
from tests.support.documents import ROOT, programs, run
from tests.support.virtual import Clock, VirtualNetwork, closing_loop, turns

SOURCE = Path(__file__).read_text().splitlines()
SECONDS = timedelta(seconds=1)


@pytest.fixture
def loop() -> Iterator[IOLoop]:
    with closing_loop() as loop:
        yield loop


@pytest.fixture(autouse=True)
def _in_this_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Places are written relative to the current directory."""
    monkeypatch.chdir(Path(__file__).parent)


def at(mark: str) -> str:
    """The place of the line that ends with ``# mark``."""
    (number,) = [n for n, line in enumerate(SOURCE, 1) if line.endswith(f"# {mark}")]
    return f"test_stuck.py:{number}"


def tree(loop: IOLoop | None = None) -> str:
    """What is below the summary."""
    return format_dump(loop).partition("\n")[2]


def waiting(what: Any) -> str:
    """How a dump shows what a task waits for."""

    @coroutine
    def waits() -> Any:
        yield what

    task = waits()
    lines = tree().splitlines()
    assert re.search(r"waits  [05].0 s", lines[0])
    end(task._loop, task)
    return "\n".join(lines[1:])


def end(loop: IOLoop, *tasks: Any) -> None:
    """Cancel tasks, and let them end."""
    for task in tasks:
        task.cancel()
    turn = loop._turns
    while not all(task.done() for task in tasks) and loop._turns < turn + 100_000:
        turns(loop)
    assert all(task.done() for task in tasks)


@coroutine
def plain(what: Any) -> Any:
    yield what  # plain


def name(task: Task[Any], name: str) -> Task[Any]:
    task.set_name(name)
    return task


class TestShape:
    def test_a_tree(self, loop: IOLoop) -> None:
        @coroutine
        def leaf(seconds: float) -> Any:
            yield sleep(seconds)  # leaf

        def helper(seconds: float) -> Any:
            yield leaf(seconds)  # helper

        @coroutine
        def page(seconds: float) -> Any:
            yield from helper(seconds)  # page

        async def native(seconds: float) -> Any:
            await also_native(seconds)  # native

        async def also_native(seconds: float) -> Any:
            await sleep(seconds)  # also native

        @coroutine
        def titles() -> Any:
            yield {"quick": page(0), "slow": page(5), "native": native(7)}  # titles

        @coroutine
        def main() -> Any:
            yield [moment, with_timeout(9 * SECONDS, shield(titles())), sleep(2.5)]  # main

        here = "TestShape.test_a_tree.<locals>."
        task = main()
        turns(loop, 2)
        assert isinstance(loop.time, Clock)
        loop.time.now += 1.26
        expected = f"""\
IOLoop at {id(loop):#x} not running, 5 tasks, 4 timers, 0 descriptors
{here}main  1.3 s  {at("main")} in main
└─ list, 2 of 3 unfinished
   ├─ [1] with_timeout, 7.7 s left
   │  └─ shield
   │     └─ {here}titles  1.3 s  {at("titles")} in titles
   │        └─ dict, 2 of 3 unfinished
   │           ├─ ['slow'] {here}page  1.3 s  {at("page")} in page
   │           │  │        {"".ljust(len(here))}             {at("helper")} in helper
   │           │  └─ {here}leaf  1.3 s  {at("leaf")} in leaf
   │           │     └─ sleep, 3.7 s left
   │           └─ ['native'] {here}native  1.3 s  {at("native")} in native
   │              │          {"".ljust(len(here))}               {at("also native")} in also_native
   │              └─ sleep, 5.7 s left
   └─ [2] sleep, 1.2 s left"""
        assert format_dump(loop) == expected
        end(loop, task)

    def test_of_the_roots_the_oldest_is_the_first(self, loop: IOLoop) -> None:
        assert isinstance(loop.time, Clock)
        tasks = []
        for each in ("old", "young"):
            tasks.append(name(plain(sleep(9)), each))
            loop.time.now += 1
            loop.add_callback(int)
            turns(loop)
            loop._now = loop.time()
        assert re.findall(r"^\w+  \S+ s", tree(), re.MULTILINE) == ["old  2.0 s", "young  1.0 s"]
        end(loop, *tasks)

    def test_what_several_wait_for_is_written_once(self, loop: IOLoop) -> None:
        shared = name(plain(sleep(9)), "shared")
        tasks = [name(plain([shared]), "a"), name(plain([shield(shared), shared]), "b")]
        place = f"{at('plain')} in plain"
        assert tree() == (
            f"a  0.0 s  {place}\n"
            "└─ list, 1 of 1 unfinished\n"
            f"   └─ [0] #1 shared  0.0 s  {place}\n"
            "      └─ sleep, 9.0 s left\n"
            f"b  0.0 s  {place}\n"
            "└─ list, 2 of 2 unfinished\n"
            "   ├─ [0] shield\n"
            "   │  └─ #1 shared: see above\n"
            "   └─ [1] #1 shared: see above"
        )
        end(loop, *tasks)

    def test_tasks_that_wait_for_each_other(self, loop: IOLoop) -> None:
        box: list[Any] = []

        @coroutine
        def waits() -> Any:
            yield
            yield box[0]  # circle

        tail = name(waits(), "tail")
        middle = name(plain([tail, sleep(1)]), "middle")
        head = name(plain(middle), "head")
        box.append(head)
        outside = name(plain(middle), "outside")
        turns(loop, 2)
        text = tree()
        assert "circle: middle -> tail -> head -> middle" in text.splitlines()
        assert len(re.findall(r"^circle: ", text, re.MULTILINE)) == 1
        assert len(re.findall(r"^ .*: circle$", text, re.MULTILINE)) == 1
        for each in ("head", "middle", "tail", "outside"):
            assert len(re.findall(rf"\b{each}  0.0 s", text)) == 1
        end(loop, outside, head)

    def test_a_circle_alone(self, loop: IOLoop) -> None:
        box: list[Any] = []

        @coroutine
        def waits() -> Any:
            yield
            yield box[0]  # alone

        box.append(name(waits(), "self"))
        other = name(plain(box[0]), "other")
        box[0] = other
        turns(loop, 2)
        place, where = f"{at('plain')} in plain", f"{at('alone')} in waits"
        assert tree() == (
            "circle: other -> self -> other\n"
            f"#1 other  0.0 s  {place}\n"
            f"└─ self  0.0 s  {where}\n"
            "   └─ #1 other: circle"
        )
        end(loop, other)

    def test_many_circles_are_counted(self, loop: IOLoop) -> None:
        tasks = []
        for _ in range(stuck.MAX_CIRCLES + 3):
            box: list[Any] = []

            @coroutine
            def waits(box: list[Any] = box) -> Any:
                yield
                yield box[0]

            box.append(plain(waits()))
            tasks += box
        turns(loop, 2)
        lines = [line for line in tree().splitlines() if line.startswith("circle: ")]
        assert len(lines) == stuck.MAX_CIRCLES + 1
        assert lines[-1] == "circle: and 3 more"
        end(loop, *tasks)

    @pytest.mark.parametrize("wrap", [lambda x: x, lambda x: [x, sleep(1)]])
    def test_depth_has_no_limit(self, loop: IOLoop, wrap: Callable[[Any], Any]) -> None:
        depth = 10_000
        task = name(plain(sleep(9)), "innermost")
        for _ in range(depth):
            task = plain(wrap(task))
        text = tree()
        assert text.count(" in plain") == depth + 1
        assert max(map(len, text.splitlines())) < 3 * MAX_INDENT + MAX_LINE + 10
        assert "innermost" in text
        assert f"({depth} deep)" in text
        end(loop, task)

    def test_lines_have_a_limit(self, loop: IOLoop) -> None:
        long = "x" * 1000

        class Wordy(Future[Any]):
            def __repr__(self) -> str:
                return f"{long}\n{long}"

        def helper() -> Any:
            yield {long: name(plain(Wordy()), long), "short": Wordy()}

        @coroutine
        def outer() -> Any:
            yield from helper()

        task = name(outer(), long)
        lines = tree().splitlines()
        assert len(lines) == 6
        assert max(map(len, lines)) == 3 * 3 + MAX_LINE
        assert " in outer" in lines[0]
        assert " in helper" in lines[1]
        assert " in plain" in lines[3]
        end(loop, task)

    def test_so_have_frames(self, loop: IOLoop) -> None:
        def deep(depth: int) -> Any:
            if depth:
                yield from deep(depth - 1)
            else:
                yield sleep(9)  # deepest

        @coroutine
        def outer() -> Any:
            yield from deep(100)

        task = outer()
        lines = tree().splitlines()
        assert len(lines) == stuck.MAX_FRAMES + 2
        assert lines[stuck.MAX_FRAMES // 2].strip("│ ") == "... 62 more ..."
        assert at("deepest") in lines[-2]
        end(loop, task)


class TestStates:
    def test_not_started(self, loop: IOLoop) -> None:
        made = []

        @coroutine
        def late() -> Any:
            yield sleep(9)  # late

        @coroutine
        def calls(depth: int) -> Any:
            made.append(calls(depth - 1) if depth else late())
            yield sleep(9)

        calls(MAX_DEPTH - 1)
        text = tree()
        assert text.count("calls  0.0 s") == MAX_DEPTH
        assert len(re.findall(r"late \[not started\]  0.0 s  test_stuck.py:\d+ in late", text)) == 1
        turns(loop)
        assert f"late  0.0 s  {at('late')} in late" in tree()
        end(loop, *loop._live_tasks())

    def test_ready(self, loop: IOLoop) -> None:
        @coroutine
        def yields() -> Any:
            yield  # bare

        done: Future[None] = Future()
        tasks = [yields(), plain(done)]
        assert tree().count("[ready]") == 1
        assert f"yields [ready]  0.0 s  {at('bare')} in yields" in tree()
        done.set_result(None)
        assert tree().count("[ready]") == 2
        turns(loop, 2)
        assert tree() == ""
        assert all(task.done() for task in tasks)

    def test_cancelled_and_still_there(self, loop: IOLoop) -> None:
        @coroutine
        def stubborn() -> Any:
            try:
                yield sleep(9)
            finally:
                yield sleep(5)  # cleaning up

        task = stubborn()
        task.cancel()
        turns(loop)
        assert f"stubborn [cancelled]  0.0 s  {at('cleaning up')} in stubborn" in tree()
        end(loop, task)

    @pytest.mark.parametrize("observed", [False, True])
    def test_running_with_the_calls_that_are_under_way(self, loop: IOLoop, observed: bool) -> None:
        if observed:
            loop.add_observer(Observer())
        texts = []

        def look() -> None:
            texts.append(format_dump())  # look

        @coroutine
        def called() -> Any:
            look()  # called
            yield sleep(1)

        def in_between() -> Any:
            return called()  # in between

        @coroutine
        def main() -> Any:
            yield
            yield in_between()  # calls

        async def native_main() -> Any:
            look()  # native main

        here = "TestStates.test_running_with_the_calls_that_are_under_way.<locals>."
        loop.run_sync(main)
        loop.run_sync(native_main)
        in_generator, in_native = (text.splitlines() for text in texts)
        head = f"{here}main [running]  0.0 s  "
        below = f"└─ calls {here}called [running]  0.0 s  "
        assert in_generator == [
            f"IOLoop at {id(loop):#x} running, 2 tasks, 0 timers, 0 descriptors",
            f"{head}{at('calls')} in main",
            f"{'│':<{len(head)}}{at('in between')} in in_between",
            f"{below}{at('called')} in called",
            f"{'':<{len(below)}}{at('look')} in look",
        ]
        head = f"{here}native_main [running]  0.0 s  "
        assert in_native[1:] == [
            f"{head}{at('native main')} in native_main",
            f"{'':<{len(head)}}{at('look')} in look",
        ]

    def test_called_before_any_loop_runs(self, loop: IOLoop) -> None:
        texts = []

        @coroutine
        def main() -> Any:
            texts.append(format_dump())  # before
            yield

        task = main()
        (line,) = texts[0].splitlines()[1:]
        assert line.endswith(f".main [running]  0.0 s  {at('before')} in main")
        end(loop, task)

    def test_a_callback_that_runs(self, loop: IOLoop) -> None:
        texts = []

        def look() -> None:
            texts.append(format_dump())  # looks

        def callback() -> None:
            look()  # calls back

        task = plain(sleep(9))
        loop.add_callback(callback)
        turns(loop)
        lines = texts[0].splitlines()
        assert lines[0].endswith("running, 1 task, 1 timer, 0 descriptors")
        assert lines[1] == f"callback  {at('calls back')} in callback"
        assert lines[2] == f"          {at('looks')} in look"
        assert lines[3].startswith("plain  0.0 s  ")
        end(loop, task)

    def test_a_loop_beside_the_one_that_runs(self, loop: IOLoop) -> None:
        texts = []

        @coroutine
        def looks() -> Any:
            texts.append(format_dump(other))
            yield

        with closing_loop() as other:
            task = name(plain(sleep(9)), "there")
            loop.run_sync(looks)
            end(other, task)
        assert "not running, 1 task," in texts[0]
        assert re.findall(r"^\w+  ", texts[0], re.MULTILINE) == ["there  "]
        assert "looks" not in texts[0]

    def test_a_frame_that_has_only_begun(
        self, loop: IOLoop, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def lacks_its_locals(_frame: Any) -> Any:
            raise KeyError("task")

        monkeypatch.setattr(stuck, "running_tasks", lacks_its_locals)
        assert "not running, 0 tasks" in format_dump()

    def test_a_loop_that_is_closed(self, loop: IOLoop) -> None:
        loop.close()
        closed = f"IOLoop at {id(loop):#x} closed, 0 tasks, 0 timers, 0 descriptors"
        assert format_dump(loop) == closed

    def test_frames_behind_what_does_not_tell(self, loop: IOLoop) -> None:
        async def numbers() -> Any:
            yield 1
            await sleep(9)  # numbers

        async def walks() -> Any:
            async for _ in numbers():  # walks
                pass

        async def asks() -> Any:
            generator = numbers()
            await anext(generator)
            await anext(generator, None)  # asks

        class Wrapped:
            def __await__(self) -> Any:
                return walks().__await__()

        @types.coroutine
        def old_style() -> Any:
            yield from walks().__await__()  # old style

        async def new_style() -> Any:
            await old_style()  # new style

        def places(task: Any) -> list[str]:
            found = re.findall(r"\S+:\d+ in \w+", tree())
            end(loop, task)
            return found

        inside = [f"{at('walks')} in walks", f"{at('numbers')} in numbers"]
        assert places(plain(walks()))[1:] == inside
        assert places(plain(Wrapped()))[1:] == inside
        assert places(plain(asks()))[1:] == [f"{at('asks')} in asks", inside[1]]
        assert places(plain(new_style()))[1:] == [
            f"{at('new style')} in new_style",
            f"{at('old style')} in old_style",
            *inside,
        ]


class TestWhatIsWaitedFor:
    def test_futures(self, loop: IOLoop) -> None:
        class Own(Future[Any]):
            def _awaited(self) -> str:
                raise ZeroDivisionError

        class Bad:
            def __repr__(self) -> str:
                raise ZeroDivisionError

        class Wordy(Future[Any]):
            def __repr__(self) -> str:
                return "two\n  lines"

        assert waiting(Future()) == "└─ <Future pending>"
        assert waiting(Wordy()) == "└─ two lines"
        assert re.fullmatch(r"└─ \(.*Own\._awaited failed: ZeroDivisionError\)", waiting(Own()))
        text = waiting({Bad(): sleep(1), 2: sleep(1)})
        assert text == "└─ (_Multi._awaited failed: ZeroDivisionError)"

    def test_futures_of_others(self, loop: IOLoop) -> None:
        thread: concurrent.futures.Future[Any] = concurrent.futures.Future()
        shown = f"└─ {thread!r}"
        assert waiting(thread) == shown
        thread = concurrent.futures.Future()
        shown = f"└─ {thread!r}"
        followed: Future[Any] = Future()
        chain_future(thread, followed)
        twice: Future[Any] = Future()
        chain_future(followed, twice)
        assert waiting(twice) == shown
        future = loop.asyncio_loop.create_future()
        assert waiting(future).startswith("└─ <Future pending")

    def test_futures_that_follow_each_other(self, loop: IOLoop) -> None:
        a: Future[Any] = Future()
        b: Future[Any] = Future()
        chain_future(a, b)
        chain_future(b, a)
        task = plain(a)
        first, *rest = tree().splitlines()
        assert first == "circle: <Future pending> -> <Future pending> -> <Future pending>"
        assert len(rest) == 4
        end(loop, task)

    def test_one_that_follows_two(self, loop: IOLoop) -> None:
        a: Future[Any] = Future()
        chain_future(name(plain(sleep(1)), "one"), a)
        chain_future(name(plain(sleep(2)), "two"), a)

        assert re.findall(r"[├└]─ (\S+)", waiting(a)) == [
            "<Future",
            "one",
            "sleep,",
            "two",
            "sleep,",
        ]

    def test_scopes(self, loop: IOLoop) -> None:
        assert waiting(sleep(3)) == "└─ sleep, 3.0 s left"
        late = sleep(3)
        assert isinstance(loop.time, Clock)
        loop.time.now += 5
        assert waiting(late) == "└─ sleep, due 2.0 s ago"
        bare: Future[Any] = Future()
        assert waiting(shield(bare)) == "└─ shield\n   └─ <Future pending>"
        bounded = with_timeout(4 * SECONDS, bare)
        assert waiting(bounded) == "└─ with_timeout, 4.0 s left\n   └─ <Future pending>"

    def test_several(self, loop: IOLoop) -> None:
        done: Future[Any] = Future()
        done.set_result(1)
        assert (
            waiting([done, sleep(2)]) == "└─ list, 1 of 2 unfinished\n   └─ [1] sleep, 2.0 s left"
        )
        assert waiting(multi({"x": sleep(2)})) == (
            "└─ dict, 1 of 1 unfinished\n   └─ ['x'] sleep, 2.0 s left"
        )
        iterator = WaitIterator(sleep(1), x := sleep(2), x)
        assert waiting(iterator.next()) == (
            "└─ the first of 3\n"
            "   ├─ [0] sleep, 1.0 s left\n"
            "   ├─ [1] sleep, 2.0 s left\n"
            "   └─ [2] sleep, 2.0 s left"
        )
        named = WaitIterator(a=sleep(1))
        assert waiting(named.next()) == "└─ the first of 1\n   └─ ['a'] sleep, 1.0 s left"

    def test_locks(self, loop: IOLoop) -> None:
        lock, semaphore, event, condition = Lock(), Semaphore(0), Event(), Condition()
        lock.acquire()
        assert waiting(lock.acquire()) == "└─ acquire <Lock [locked,waiters:1]>"
        assert waiting(semaphore.acquire(SECONDS)) == (
            "└─ acquire <Semaphore [locked,waiters:1]>, 1.0 s left"
        )
        event.wait()
        assert waiting(event.wait()) == "└─ wait for an Event, 2 in line"
        assert waiting(condition.wait()) == "└─ wait for <Condition waiters[1]>"

    def test_queues(self, loop: IOLoop) -> None:
        queue: Queue[int] = Queue(1)
        getting = re.sub("0x[0-9a-f]+", "0x", waiting(queue.get()))
        assert getting == "└─ get from <Queue at 0x maxsize=1 getters[1]>"
        queue.put(1)
        assert waiting(queue.put(2, SECONDS)) == "└─ put into a full Queue, 1 in line, 1.0 s left"
        assert waiting(queue.join()) == "└─ join a Queue, 1 in line"

    def test_threads(self, loop: IOLoop) -> None:
        begun, go_on = threading.Event(), threading.Event()

        def blocks() -> None:
            begun.set()
            go_on.wait(10)

        class Call:
            def __call__(self) -> None:
                pass

            def __repr__(self) -> str:
                return "a Call"

        executor = concurrent.futures.ThreadPoolExecutor(1)
        loop.set_default_executor(executor)
        first, second = to_thread(blocks), to_thread(Call())
        assert begun.wait(10)
        name = "TestWhatIsWaitedFor.test_threads.<locals>.blocks"
        assert waiting(shield(first)) == f"└─ shield\n   └─ thread: {name}, running"
        assert waiting(second) == "└─ thread: a Call, queued"
        go_on.set()
        executor.shutdown()
        turns(loop)

    def test_a_name_that_is_looked_up(self, loop: IOLoop, monkeypatch: pytest.MonkeyPatch) -> None:
        go_on = threading.Event()
        begun, ended = threading.Semaphore(0), threading.Semaphore(0)

        def getaddrinfo(host: str, port: int, family: int, numeric: bool) -> Any:
            if numeric:
                raise GAIError
            begun.release()
            go_on.wait(10)
            ended.release()
            return []

        monkeypatch.setattr(loop.network, "getaddrinfo", getaddrinfo)
        task = plain(connect("example.org", 80, resolver=ThreadedResolver()))
        text = tree()
        assert begun.acquire(timeout=10)
        assert begun.acquire(timeout=10)
        end(loop, task)
        go_on.set()
        assert ended.acquire(timeout=10)
        assert ended.acquire(timeout=10)
        kinds = re.findall(r"[├└]─ (.*?)(?:  \d.*)?$", text, re.MULTILINE)
        assert kinds == [
            "connect",
            "look up example.org:80",
            "IPv6 CachingResolver.resolve",
            "resolve example.org in a thread",
            "IPv4 CachingResolver.resolve",
            "resolve example.org in a thread",
        ]

    def test_a_connection_that_is_not_answered(self, loop: IOLoop, deaf_port: int) -> None:
        task = plain(connect("127.0.0.1", deaf_port))
        text = tree()
        assert f"connect 127.0.0.1:{deaf_port}, attempt 1 of 1" in text
        assert f"└─ 127.0.0.1:{deaf_port} " in text
        assert re.search(rf"└─ \S* ?connect fd \d+ to 127.0.0.1:{deaf_port}$", text, re.MULTILINE)
        end(loop, task)

    def test_a_race_of_addresses(self, loop: IOLoop) -> None:
        def begin(address: Any) -> Task[Any]:
            return plain(sleep(9))

        lookup: Future[Any] = Future()
        lookup.set_result([(AF_INET6, ("::1", port)) for port in (1, 2, 3)])
        race = coroutine(connect_first)("host:1", {AF_INET6: lookup}, begin, int, [])
        loop.stop()
        assert "connect host:1, attempt 1 of 3" in tree()
        turns(loop)
        assert isinstance(loop.time, Clock)
        loop.time.now += 0.25
        turns(loop, 3)
        text = tree()
        assert "connect host:1, attempt 2 of 3" in text
        assert re.findall(r"\[::1\]:\d", text) == ["[::1]:1", "[::1]:2"]
        end(loop, race)

    def test_streams(self, loop: IOLoop) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            client = socket.create_connection(listener.getsockname())
            server, _ = listener.accept()
        host, port = client.getpeername()
        reader, writer = IOStream(client), IOStream(server)
        where = f"fd {reader.fileno()} peer {host}:{port}"
        writer.write(b"abc")
        for text, read in [
            ("read_bytes 100", lambda: reader.read_bytes(100)),
            ("read_until b'\\r\\n'", lambda: reader.read_until(b"\r\n")),
            ("read_until_regex b'x+'", lambda: reader.read_until_regex(rb"x+")),
            ("read_until_close", reader.read_until_close),
        ]:
            future = read()
            turns(loop)
            assert waiting(future) == f"└─ {text} on {where}, 3 bytes buffered"
        reader.read_bytes(3)
        partial = waiting(reader.read_bytes(10, partial=True))
        assert partial == f"└─ read_bytes(partial) 10 on {where}, 0 bytes buffered"
        writer.write(b"abc")
        filling = reader.read_into(bytearray(10))
        turns(loop)
        assert waiting(filling) == f"└─ read_into 3/10 on {where}, 0 bytes buffered"
        writing = writer.write(bytes(10_000_000))
        where = f"fd {writer.fileno()} peer {host}:{reader.socket.getsockname()[1]}"
        unsent = writer.unsent()
        assert waiting(writing) == f"└─ write on {where}, {unsent} bytes queued"
        reader.close()
        writer.close()

    def test_streams_without_names(self, loop: IOLoop, ca: Authority) -> None:
        ours, theirs = socket.socketpair()
        stream = IOStream(ours)
        fd = stream.fileno()
        assert waiting(stream.read_bytes(1)) == f"└─ read_bytes 1 on fd {fd}, 0 bytes buffered"
        handshake = stream.start_tls(False, ca.client_context(), "localhost")
        assert waiting(shield(handshake)).endswith(f"─ TLS handshake on fd {fd}")
        handshake.cancel()
        theirs.close()

    def test_requests(self, loop: IOLoop, deaf_port: int) -> None:
        client = AsyncHTTPClient(force_instance=True, max_clients=1)
        url = f"http://127.0.0.1:{deaf_port}/"
        tasks = [client.fetch(url), client.fetch(url)]
        text = tree()
        assert "└─ queue for a request slot, 1 of 1 busy, 1 queued" in text
        assert re.search(rf"coro{os.sep}http{os.sep}pool.py:\d+ in acquire", text)
        end(loop, *tasks)
        client.close()


class TestFromAnywhere:
    def test_dump_prints(self, loop: IOLoop, capsys: pytest.CaptureFixture[str]) -> None:
        task = plain(sleep(9))
        dump()
        assert capsys.readouterr().err == format_dump() + "\n"
        file = io.StringIO()
        dump(loop=loop, file=file)
        assert file.getvalue() == format_dump(loop) + "\n"
        assert capsys.readouterr() == ("", "")
        end(loop, task)

    def test_without_a_loop(self) -> None:
        assert format_dump().startswith("No loop")

    def test_in_another_thread_while_a_step_is_stuck(self, loop: IOLoop) -> None:
        texts = []
        go_on = threading.Event()
        running = threading.Event()

        @coroutine
        def blocks() -> Any:
            yield
            running.set()
            assert go_on.wait(10)  # blocks

        def look() -> None:
            assert running.wait(10)
            texts.append(format_dump())  # no loop of its own: that which runs elsewhere
            go_on.set()

        thread = threading.Thread(target=look)
        thread.start()
        loop.run_sync(blocks)
        thread.join(10)
        lines = texts[0].splitlines()
        assert lines[0].startswith(f"IOLoop at {id(loop):#x} running, 1 task")
        assert "blocks [running]" in lines[1]
        assert f"{at('blocks')} in blocks" in lines[1]

    def test_in_another_thread_while_all_changes(self, loop: IOLoop) -> None:
        failures: list[BaseException] = []
        looks = 0
        over = threading.Event()

        @coroutine
        def child(depth: int) -> Any:
            yield sleep(0.001 * depth)
            if depth:
                yield [child(depth - 1), with_timeout(SECONDS, child(depth - 1)), moment]

        def look() -> None:
            nonlocal looks
            try:
                while not over.is_set():
                    assert format_dump(loop).startswith("IOLoop")
                    looks += 1
            except BaseException as error:
                failures.append(error)

        @coroutine
        def main() -> Any:
            while looks < 50 and not failures:
                yield child(4)

        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-5)
        thread = threading.Thread(target=look)
        thread.start()
        try:
            loop.run_sync(main)
        finally:
            sys.setswitchinterval(interval)
            over.set()
            thread.join(10)
        assert not failures

    def test_a_set_that_changes_meanwhile_is_looked_at_again(
        self, loop: IOLoop, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        task = name(plain(sleep(9)), "there")
        look = loop._live_tasks
        failures = [3]

        def fails() -> Any:
            if failures[0]:
                failures[0] -= 1
                raise RuntimeError("Set changed size during iteration")
            return look()

        monkeypatch.setattr(loop, "_live_tasks", fails)
        assert "there" in tree()
        failures[0] = 10**6
        failed = "RuntimeError('Set changed size during iteration')"
        assert format_dump() == f"IOLoop at {id(loop):#x} cannot be looked at now: {failed}"
        monkeypatch.undo()
        end(loop, task)

    def test_while_the_loop_waits(self) -> None:
        file = io.StringIO()
        take_back = dump_on(signal.SIGUSR1, file=file)

        class Interrupted(VirtualNetwork):
            def poller(self) -> Any:
                poller: Any = super().poller()
                poll = poller.poll

                def interrupted(timeout: float | None) -> Any:
                    if timeout and not file.getvalue():
                        signal.raise_signal(signal.SIGUSR1)
                    return poll(timeout)

                poller.poll = interrupted
                return poller

        clock = Clock()
        loop = IOLoop(make_current=False, clock=clock, network=Interrupted(clock))
        loop.run_sync(lambda: sleep(1))
        loop.close()
        take_back()
        text = file.getvalue()
        assert " waiting for events, 0 tasks, 1 timer, 0 descriptors\n" in text
        assert "\ncallback" not in text
        assert "in interrupted\n" in text

    def test_while_the_main_thread_is_blocked(self, loop: IOLoop) -> None:
        file = io.StringIO()
        take_back = dump_on(signal.SIGUSR1, file=file)

        @coroutine
        def loops() -> Any:
            other = plain(sleep(1))
            yield
            signal.raise_signal(signal.SIGUSR1)
            while not file.getvalue():
                pass  # blocked
            yield other

        loop.run_sync(loops)
        take_back()
        text = file.getvalue()
        assert re.search(r"loops \[running\]  0.0 s  test_stuck.py:\d+ in loops\n", text)
        assert "plain  0.0 s" in text
        dumped, stack = text.split("\n\nStack of the main thread:\n")
        assert dumped.startswith("IOLoop")
        assert stack.index("in run_sync") < stack.index("in loops")
        assert "stuck.py" not in stack.replace("test_stuck.py", "")
        assert stack.endswith("\n")

    def test_the_signal_s_former_handler_comes_back(self) -> None:
        calls = []
        signal.signal(signal.SIGUSR1, lambda *_: calls.append(1))
        first = dump_on(signal.SIGUSR1, file=io.StringIO())
        first()
        signal.raise_signal(signal.SIGUSR1)
        assert calls == [1]
        first = dump_on(signal.SIGUSR1, file=io.StringIO())
        handler = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        first()
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN
        assert callable(handler)
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)

    def test_a_failure_stays_inside(self, caplog: pytest.LogCaptureFixture) -> None:
        file = io.StringIO()
        file.close()
        take_back = dump_on(signal.SIGUSR1, file=file)
        signal.raise_signal(signal.SIGUSR1)
        take_back()
        (record,) = caplog.records
        assert (record.levelno, record.name) == (logging.ERROR, "coro.general")
        assert "dump on signal" in record.getMessage()

    def test_in_the_middle_of_another_write_to_the_file(self, tmp_path: Path) -> None:
        with open(tmp_path / "file", "w") as target:

            class Busy(io.StringIO):
                def write(self, text: str) -> int:
                    raise RuntimeError("reentrant call")

                def fileno(self) -> int:
                    return target.fileno()

            dump(file=Busy())
        assert (tmp_path / "file").read_text().startswith("No loop")


def test_the_documents_program_prints_what_is_said_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    (program,) = [p for p in programs("docs/debugging.md") if "dump(" in p.source]

    def plainly(text: str) -> str:
        return re.sub(r"0x[0-9a-f]+|\d+\.\d s", "...", text)

    assert program.printed is not None
    assert plainly(run(program.source).replace("<string>", "app.py")) == plainly(program.printed)


class TestNothingChanges:
    def test_no_error_counts_as_looked_at(
        self, loop: IOLoop, caplog: pytest.LogCaptureFixture
    ) -> None:
        failed: Future[Any] = Future()
        task = plain([failed, Future()])
        failed.set_exception(ZeroDivisionError("unseen"))
        turns(loop)
        assert "list, 1 of 2 unfinished\n   └─ [1] <Future pending>" in tree()
        assert not caplog.records
        loop._tasks.clear()
        del task, failed
        gc.collect()
        assert "failed and nobody looked at its error" in caplog.text

    def test_nothing_is_woken(self, loop: IOLoop) -> None:
        lock = Lock()
        lock.acquire()
        task = plain([lock.acquire(), sleep(1), shield(plain(Queue().get()))])
        before = (list(loop._ready), len(loop._timers), loop._turns, task._waiting)
        format_dump()
        assert (list(loop._ready), len(loop._timers), loop._turns, task._waiting) == before
        end(loop, task)

    def test_no_circle_is_left(self, loop: IOLoop, no_collector: None) -> None:
        texts = []

        @coroutine
        def fails() -> Any:
            yield sleep(1)
            texts.append(format_dump())
            raise ZeroDivisionError

        @coroutine
        def fails_at_once() -> Any:
            texts.append(format_dump())
            raise ZeroDivisionError
            yield

        @coroutine
        def main() -> Any:
            for call in (fails, fails_at_once):
                try:
                    yield [call(), with_timeout(SECONDS, shield(plain(moment)))]
                except ZeroDivisionError:
                    pass

        loop.run_sync(main)
        gc.collect()
        loop.run_sync(main)
        assert "[running]" in texts[0]
        assert gc.collect() == 0

    def test_none_where_a_race_was_looked_at(
        self, loop: IOLoop, deaf_port: int, no_collector: None
    ) -> None:
        def once() -> None:
            task = plain(connect("127.0.0.1", deaf_port))
            assert "attempt 1 of 1" in tree()
            end(loop, task)
            turns(loop, 5)

        once()
        gc.collect()
        once()
        assert gc.collect() == 0

    def test_futures_have_no_dict(self, loop: IOLoop) -> None:
        """What a future tells of itself, it finds in its slots."""
        ours, theirs = socket.socketpair()
        stream = IOStream(ours)
        kinds = [
            stream.write(bytes(5_000_000)),
            stream.read_bytes(1),
            Queue().get(),
            Event().wait(),
        ]
        assert not any(hasattr(each, "__dict__") for each in kinds)
        stream.close()
        theirs.close()
        assert not hasattr(plain(moment), "__dict__")
        turns(loop, 2)
