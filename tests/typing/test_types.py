"""What a type checker sees: run as tests, and checked by ``mypy --strict``."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, assert_type

from coro.future import Future
from coro.gen import Task, coroutine, current_task, is_coroutine_function, shield, sleep
from coro.http import AsyncHTTPClient, HTTPRequest, HTTPResponse, fetch
from coro.http.streaming import StreamedResponse
from coro.loop import IOLoop
from tests.conftest import RawServerFactory
from tests.support.raw_server import answer


@coroutine
def generator(number: int, *, text: str = "") -> Generator[Any, Any, str]:
    yield sleep(0)
    return text * number


@coroutine
async def native(number: int) -> float:
    await sleep(0)
    return number / 2


@coroutine
def plain(number: int) -> bytes:
    return bytes(number)


@coroutine
def nothing() -> Generator[Any, Any, None]:
    yield None


class Methods:
    @coroutine
    def method(self, number: int) -> Generator[Any, Any, list[int]]:
        yield None
        return [number]


def test_coroutine_keeps_parameters_and_gives_a_task_of_the_result() -> None:
    loop = IOLoop(make_current=True)
    try:
        assert_type(generator(2, text="x"), Task[str])
        assert_type(native(2), Task[float])
        assert_type(plain(2), Task[bytes])
        assert_type(nothing(), Task[None])
        assert_type(generator(2).result, Callable[[], str])
        task = generator(2, text="x")
        assert loop.run_sync(lambda: task) == "xx"
        assert_type(task.result(), str)
        loop.run_sync(lambda: sleep(0.001))
    finally:
        loop.close()


def test_wrong_arguments_are_errors_for_the_checker() -> None:
    loop = IOLoop(make_current=True)
    try:
        plain("2")  # type: ignore[arg-type]
        native()  # type: ignore[call-arg]
        for task in (native(1, 2), plain(2, 3)):  # type: ignore[call-arg]
            assert isinstance(task.exception(), TypeError)
    finally:
        loop.close()


def test_awaiting_gives_the_result() -> None:
    async def main() -> str:
        assert_type(await generator(1, text="y"), str)
        assert_type(await native(1), float)
        assert_type(await plain(1), bytes)
        assert_type(await Methods().method(1), list[int])
        assert_type(await sleep(0), None)
        assert_type(current_task(), Task[Any] | None)
        await shield(nothing())
        return "end"

    loop = IOLoop(make_current=False)
    try:
        assert loop.run_sync(main) == "end"
    finally:
        loop.close()


def test_yield_from_gives_the_result() -> None:
    @coroutine
    def main() -> Generator[Any, Any, tuple[str, float]]:
        text = yield from generator(1, text="z")
        assert_type(text, str)
        number = yield from native(3)
        assert_type(number, float)
        return text, number

    loop = IOLoop(make_current=False)
    try:
        assert loop.run_sync(main) == ("z", 1.5)
    finally:
        loop.close()


def test_futures_are_generic() -> None:
    future: Future[int] = Future()
    future.set_result(5)
    assert_type(future.result(), int)
    assert_type(future.exception(), BaseException | None)
    assert_type(is_coroutine_function(generator), bool)
    assert is_coroutine_function(generator)


def test_a_response_whose_body_is_pulled_can_be_read(
    raw_server: RawServerFactory, refused_port: int
) -> None:
    server = raw_server(answer(*[b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody"] * 4))

    async def main() -> None:
        url = server.url()
        refused = f"http://127.0.0.1:{refused_port}/"
        client = AsyncHTTPClient()
        assert_type(await fetch(url), HTTPResponse)
        assert_type(await client.fetch(HTTPRequest(url)), HTTPResponse)
        # It may tell of a failure, which has no body.
        failed = await client.fetch(refused, stream=True, raise_error=False)
        assert_type(failed, HTTPResponse)
        assert not isinstance(failed, StreamedResponse)
        with await fetch(url, stream=True) as response:
            assert_type(await response.read_all(), bytes)
        async with await client.fetch(url, stream=True) as response:
            assert [piece async for piece in response] == [b"body"]

    loop = IOLoop(make_current=False)
    try:
        loop.run_sync(main)
    finally:
        loop.close()
