"""An aggregating gateway: one request fans out to several services side by side.

    python examples/gateway.py --port 8080 \\
        prices=http://127.0.0.1:8001/ stock=http://127.0.0.1:8002/
    curl http://127.0.0.1:8080/

The answer comes when all services have answered, or when the time budget is used up: what has come
by then is in it, and what is missing is named. A service that failed several times in a row is left
alone for a while (a circuit breaker), so that nobody waits for it. Connections to the services are
kept.
"""

import argparse
import json
import logging
import signal
from collections.abc import Generator
from typing import Any

from coro import IOLoop, coroutine, run
from coro.http import AsyncHTTPClient, HTTPError, HTTPServer, HTTPServerRequest, Response, Router
from coro.http.server import log_access
from coro.locks import Event

GRACE = 10.0
"""Seconds that requests under way have when the gateway stops."""


class Breaker:
    """Whether a service may be asked.

    Arguments:
        failures: after so many in a row it may not;
        seconds: for so long. Then one request tries it again.
    """

    def __init__(self, failures: int = 5, seconds: float = 10.0) -> None:
        self.failures = failures
        self.seconds = seconds
        self._in_a_row = 0
        self._closed_until = 0.0

    def allows(self, now: float) -> bool:
        """Whether to ask."""
        if self._in_a_row < self.failures:
            return True
        if now < self._closed_until:
            return False
        # This one tries; others wait for what comes of it.
        self._closed_until = now + self.seconds
        return True

    def note(self, succeeded: bool, now: float) -> None:
        """Take note of how a request went."""
        self._in_a_row = 0 if succeeded else self._in_a_row + 1
        if self._in_a_row >= self.failures:
            self._closed_until = now + self.seconds


class Service:
    """One of the services behind the gateway."""

    def __init__(self, name: str, url: str, client: AsyncHTTPClient) -> None:
        self.name = name
        self.url = url
        self.breaker = Breaker()
        self._client = client

    @coroutine
    def ask(self, budget: float) -> Generator[Any, Any, dict[str, Any]]:
        """Return what it says, or what is wrong, within so many seconds."""
        loop = IOLoop.current()
        began = loop.time()
        if not self.breaker.allows(began):
            return {"error": "left alone after several failures", "seconds": 0.0}
        answer = yield from self._ask(budget)
        return {**answer, "seconds": round(loop.time() - began, 4)}

    def _ask(self, budget: float) -> Generator[Any, Any, dict[str, Any]]:
        loop = IOLoop.current()
        try:
            response = yield self._client.fetch(self.url, request_timeout=budget)
            said = json.loads(response.body)
        except HTTPError as error:
            # 4xx is an answer: the service works, and the request was wrong.
            self.breaker.note(400 <= error.code < 500, loop.time())
            return {"error": str(error)}
        except ValueError:
            self.breaker.note(False, loop.time())
            return {"error": "its answer is no JSON"}
        self.breaker.note(True, loop.time())
        return {"said": said}


def gateway(services: list[Service], budget: float) -> Router:
    """Return what answers requests."""
    router = Router()

    @router.route("GET", "/")
    @coroutine
    def everything(request: HTTPServerRequest) -> Generator[Any, Any, Response]:
        answers = yield {service.name: service.ask(budget) for service in services}
        missing = sorted(name for name, answer in answers.items() if "error" in answer)
        body = json.dumps({"services": answers, "missing": missing}, indent=2) + "\n"
        # Some of it is better than nothing of it.
        status = 502 if len(missing) == len(services) else 200
        return Response(body, status, {"Content-Type": "application/json"})

    return router


@coroutine
def main(services: dict[str, str], port: int, budget: float) -> Generator[Any, Any, None]:
    """Serve until SIGTERM or Ctrl-C."""
    client = AsyncHTTPClient(max_clients=1000)
    router = gateway([Service(name, url, client) for name, url in services.items()], budget)
    server = HTTPServer(router, on_request_end=log_access)
    server.listen(port, "127.0.0.1")
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/", flush=True)
    stopped = Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        IOLoop.current().add_signal_handler(number, stopped.set)
    yield stopped.wait()
    yield server.shutdown(GRACE)


def service(text: str) -> tuple[str, str]:
    """Read NAME=URL."""
    name, equals, url = text.partition("=")
    if not (name and equals and url.startswith(("http://", "https://"))):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=URL")
    return name, url


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="One request fans out to several services.")
    parser.add_argument("services", nargs="+", type=service, metavar="NAME=URL")
    parser.add_argument("--port", type=int, default=8080, help="0: a free one")
    parser.add_argument("--budget", type=float, default=0.5, help="seconds that services have")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    run(main, dict(options.services), options.port, options.budget)
