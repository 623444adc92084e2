"""What the tests of the client share: a virtual loop, servers on it, a client."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Generator, Iterator
from typing import Any

import pytest

from coro.http import AsyncHTTPClient, HTTPResponse
from coro.loop import IOLoop
from tests.http.serving import LoopServer, Peer, Script
from tests.support.virtual import closing_loop


@pytest.fixture
def loop() -> Iterator[IOLoop]:
    """A current loop whose time is virtual."""
    with closing_loop() as loop:
        yield loop


@pytest.fixture
def serve(loop: IOLoop) -> Iterator[Callable[[Script], LoopServer]]:
    """``serve(script)`` starts a server on the loop."""
    with contextlib.ExitStack() as stack:

        def start(script: Script) -> LoopServer:
            server = LoopServer(loop, script)
            stack.callback(server.close)
            return server

        yield start


@pytest.fixture
def answering(serve: Callable[[Script], LoopServer]) -> Callable[..., LoopServer]:
    """``answering(a, b)``: a server that gives its next response to each request, then the last.

    A dict gives the response by the path of the request. Requests are kept in ``requests``; the
    responses still to be given are ``answers``.
    """

    def start(*responses: Any) -> LoopServer:

        def script(peer: Peer) -> Generator[Any, Any, None]:
            while True:
                request = yield from peer.request()
                server.requests.append(request)
                left = server.answers
                answer = left.pop(0) if len(left) > 1 else left[0]
                if isinstance(answer, dict):
                    answer = answer[request.split()[1].decode()]
                yield peer.send(answer)

        server = serve(script)
        server.answers = list(responses)
        return server

    return start


@pytest.fixture
def client(loop: IOLoop) -> Iterator[AsyncHTTPClient]:
    """A client of its own."""
    made = AsyncHTTPClient(force_instance=True)
    yield made
    made.close()


@pytest.fixture
def fetch(loop: IOLoop, client: AsyncHTTPClient) -> Callable[..., HTTPResponse]:
    """``fetch(url, ...)`` runs the loop until the response is there."""

    def run(*args: Any, **kwargs: Any) -> HTTPResponse:
        result: HTTPResponse = loop.run_sync(functools.partial(client.fetch, *args, **kwargs))
        return result

    return run
