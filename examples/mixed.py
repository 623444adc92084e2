"""A URL shortener on PostgreSQL and Redis: yield-style handlers, and asyncio's libraries.

    pip install coro-loop asyncpg redis
    python examples/mixed.py --postgres postgresql://me@127.0.0.1/links --redis redis://127.0.0.1/
    curl -d https://example.org/ http://127.0.0.1:8080/links
    curl -i http://127.0.0.1:8080/CODE

asyncpg and redis.asyncio know nothing of coro: what they return is yielded like anything else. The
links are in PostgreSQL. Redis keeps those that were asked for lately, and counts visits; should it
fail, the links still work. Should PostgreSQL fail, clients are told to come again, and find it
working once the database is back.
"""

import argparse
import logging
import secrets
import signal
import sys
from collections.abc import Callable, Generator
from typing import Any
from urllib.parse import urlsplit

from coro import IOLoop, coroutine, run
from coro.gen import timeout
from coro.http import HTTPServer, HTTPServerRequest, Response, Router
from coro.http.server import log_access
from coro.http.urls import parse
from coro.locks import Event

try:
    import asyncpg
    import redis.asyncio
except ModuleNotFoundError as error:
    sys.exit(f"{error}; this example needs: pip install asyncpg redis")

log = logging.getLogger("mixed")

CACHED = 300
"""Seconds for which Redis keeps a link."""
MAX_URL = 2000
"""Bytes of a link."""
GRACE = 10.0
"""Seconds that requests under way have when the service stops."""

TABLE = "CREATE TABLE IF NOT EXISTS links (code text PRIMARY KEY, target text NOT NULL)"

# TimeoutError is an OSError.
POSTGRES_ERRORS = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError)
REDIS_ERRORS = (OSError, redis.asyncio.RedisError)


class Shortener:
    """Answers requests.

    Arguments:
        pool: connections to PostgreSQL.
        cache: Redis.
        limit: seconds that a database may take to answer.
    """

    def __init__(self, pool: Any, cache: Any, limit: float) -> None:
        self._pool = pool
        self._cache = cache
        self._limit = limit
        self._router = Router()
        self._router.add("POST", "/links", self.shorten)
        self._router.add("GET", "/links/{code}", self.show)
        self._router.add("GET", "/{code}", self.follow)

    @coroutine
    def __call__(self, request: HTTPServerRequest) -> Generator[Any, Any, Response]:
        """Answer a request; with 503 if PostgreSQL cannot."""
        try:
            answer = self._router(request)
            return answer if isinstance(answer, Response) else (yield answer)
        except POSTGRES_ERRORS as error:
            log.error("PostgreSQL: %s", describe(error))
            return Response("the database does not answer\n", 503, {"Retry-After": "5"})

    @coroutine
    def shorten(self, request: HTTPServerRequest) -> Generator[Any, Any, Response]:
        """Store a link: the body is a URL."""
        try:
            target = parse(request.body.decode().strip()).url
        except ValueError as error:
            return Response(f"{error}\n", 400)
        code = secrets.token_urlsafe(6)
        with timeout(self._limit):
            yield self._pool.execute("INSERT INTO links VALUES ($1, $2)", code, target)
        return Response.json({"code": code, "target": target}, 201, {"Location": f"/{code}"})

    @coroutine
    def follow(self, request: HTTPServerRequest, code: str) -> Generator[Any, Any, Response]:
        """Lead to where a link leads."""
        target = yield self._ask_cache("get", f"target:{code}")
        if target is None:
            target = yield self._look_up(code)
            if target is None:
                return Response("no such link\n", 404)
            yield self._ask_cache("set", f"target:{code}", target, ex=CACHED)
        yield self._ask_cache("incr", f"visits:{code}")
        return Response.redirect(target, 302)

    @coroutine
    def show(self, request: HTTPServerRequest, code: str) -> Generator[Any, Any, Response]:
        """Tell about a link; both databases are asked side by side."""
        target, visits = yield [self._look_up(code), self._ask_cache("get", f"visits:{code}")]
        if target is None:
            return Response("no such link\n", 404)
        return Response.json({"code": code, "target": target, "visits": int(visits or 0)})

    @coroutine
    def _look_up(self, code: str) -> Generator[Any, Any, str | None]:
        with timeout(self._limit):
            target: str | None = yield self._pool.fetchval(
                "SELECT target FROM links WHERE code = $1", code
            )
        return target

    @coroutine
    def _ask_cache(self, command: str, *args: Any, **options: Any) -> Generator[Any, Any, Any]:
        """Return what Redis says; None if it fails, for all goes well without it."""
        try:
            with timeout(self._limit):
                return (yield getattr(self._cache, command)(*args, **options))
        except REDIS_ERRORS as error:
            log.warning("Redis: %s", describe(error))
            return None


def describe(error: BaseException) -> str:
    """Return what an error says, on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def address(url: str) -> str:
    """Return as much of a database's URL as may be shown: it may have a password."""
    parts = urlsplit(url)
    return f"{parts.hostname or 'the default host'}{f':{parts.port}' if parts.port else ''}"


@coroutine
def main(options: argparse.Namespace) -> Generator[Any, Any, str | None]:
    """Serve until SIGTERM or Ctrl-C; return what is wrong, if a database cannot be used."""
    cache = redis.asyncio.from_url(options.redis, decode_responses=True)
    pool = None
    try:
        try:
            with timeout(options.limit):
                yield cache.ping()
        except REDIS_ERRORS as error:
            return f"cannot use Redis at {address(options.redis)}: {describe(error)}"
        try:
            with timeout(options.limit):
                pool = yield asyncpg.create_pool(
                    options.postgres,
                    min_size=0,
                    max_size=20,
                    server_settings={"application_name": "mixed"},
                )
                yield pool.execute(TABLE)
        except POSTGRES_ERRORS as error:
            return f"cannot use PostgreSQL at {address(options.postgres)}: {describe(error)}"
        yield serve(Shortener(pool, cache, options.limit), options.port)
        return None
    finally:
        if pool is not None:
            with timeout(GRACE):
                yield pool.close()
        yield cache.aclose()


@coroutine
def serve(shortener: Shortener, port: int) -> Generator[Any, Any, None]:
    """Serve until SIGTERM or Ctrl-C, and finish what is under way."""
    server = HTTPServer(shortener, max_body_size=MAX_URL, on_request_end=log_access)
    server.listen(port, "127.0.0.1")
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/", flush=True)
    stopped = Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        IOLoop.current().add_signal_handler(number, stopped.set)
    yield stopped.wait()
    yield server.shutdown(GRACE)


def database(*schemes: str) -> Callable[[str], str]:
    """Return what reads the URL of a database."""

    def read(text: str) -> str:
        if urlsplit(text).scheme not in schemes:
            raise argparse.ArgumentTypeError(f"it begins with {schemes[0]}://")
        return text

    return read


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A URL shortener on PostgreSQL and Redis.")
    postgres, keys = database("postgresql", "postgres"), database("redis", "rediss", "unix")
    parser.add_argument("--postgres", type=postgres, required=True, metavar="URL")
    parser.add_argument("--redis", type=keys, required=True, metavar="URL")
    parser.add_argument("--port", type=int, default=8080, help="0: a free one")
    parser.add_argument("--limit", type=float, default=3.0, help="seconds that a database has")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    sys.exit(run(main, arguments))
