"""The example on PostgreSQL and Redis, through HTTP, at real databases."""

from __future__ import annotations

import asyncio
import http.client
import json
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import redis

from tests.support.authority import Authority
from tests.support.databases import USER, Database, running_postgres, running_redis
from tests.test_examples import LIMIT, command, serving


def urls(postgres: Database, redis_server: Database) -> list[str]:
    return [
        *("--postgres", f"postgresql://{USER}@127.0.0.1:{postgres.port}/postgres"),
        *("--redis", f"redis://127.0.0.1:{redis_server.port}/0"),
    ]


def ask(address: str, method: str, path: str, body: str | None = None) -> tuple[int, Any, str]:
    """Return status, ``Location`` and body of an answer."""
    connection = http.client.HTTPConnection(address[len("http://") : -1], timeout=LIMIT)
    try:
        connection.request(method, path, body)
        response = connection.getresponse()
        return response.status, response.headers["Location"], response.read().decode()
    finally:
        connection.close()


def shorten(address: str, url: str) -> str:
    """Store a link; return its path."""
    status, path, _ = ask(address, "POST", "/links", url)
    assert status == 201
    return str(path)


@pytest.fixture
def cache(redis_server: Database) -> Iterator[redis.Redis]:
    with redis.Redis(port=redis_server.port) as client:
        yield client


def test_links_and_visits(postgres: Database, redis_server: Database, cache: redis.Redis) -> None:
    with serving("mixed.py", *urls(postgres, redis_server)) as address:
        path = shorten(address, "http://Example.org")
        key = f"target:{path[1:]}"
        for times in (1, 2):
            assert ask(address, "GET", path)[:2] == (302, "http://example.org/")
            assert json.loads(ask(address, "GET", f"/links{path}")[2]) == {
                "code": path[1:],
                "target": "http://example.org/",
                "visits": times,
            }
        assert 0 < cache.ttl(key) <= 300
        cache.set(key, "http://from.the.cache/")
        assert ask(address, "GET", path)[1] == "http://from.the.cache/"
        cache.delete(key)
        assert ask(address, "GET", path)[1] == "http://example.org/"
    with serving("mixed.py", *urls(postgres, redis_server)) as address:
        assert json.loads(ask(address, "GET", f"/links{path}")[2])["visits"] == 4


def test_wrong_requests(postgres: Database, redis_server: Database) -> None:
    with serving("mixed.py", *urls(postgres, redis_server)) as address:
        assert ask(address, "POST", "/links", "no URL")[0] == 400
        assert ask(address, "POST", "/links", "ftp://x.test/")[0] == 400
        assert ask(address, "POST", "/links", f"http://x.test/{'a' * 2000}")[0] == 413
        assert ask(address, "GET", "/nothing")[0] == 404
        assert ask(address, "GET", "/links/nothing")[0] == 404
        assert ask(address, "DELETE", "/nothing")[0] == 405


def test_a_database_that_takes_too_long(postgres: Database, redis_server: Database) -> None:
    where = {"host": "127.0.0.1", "port": postgres.port, "user": USER, "database": "postgres"}

    async def while_locked(address: str) -> tuple[int, Any, str]:
        connection = await asyncpg.connect(**where, ssl=False)
        try:
            async with connection.transaction():
                await connection.execute("LOCK TABLE links IN ACCESS EXCLUSIVE MODE")
                return await asyncio.to_thread(ask, address, "POST", "/links", "http://x.test/")
        finally:
            await connection.close()

    with serving("mixed.py", "--limit", "0.5", *urls(postgres, redis_server)) as address:
        assert asyncio.run(while_locked(address))[0] == 503
        shorten(address, "http://x.test/")


def test_databases_that_end_meanwhile(ca: Authority, tmp_path: Path) -> None:
    with ExitStack() as no_postgres, ExitStack() as no_redis:
        postgres = no_postgres.enter_context(running_postgres(ca))
        redis_server = no_redis.enter_context(running_redis(ca, tmp_path))
        with serving("mixed.py", *urls(postgres, redis_server)) as address:
            path = shorten(address, "http://example.org/")
            no_redis.close()
            assert ask(address, "GET", path)[:2] == (302, "http://example.org/")
            assert json.loads(ask(address, "GET", f"/links{path}")[2])["visits"] == 0
            no_postgres.close()
            assert ask(address, "GET", path)[0] == 503


@pytest.mark.parametrize("missing", ["PostgreSQL", "Redis"])
def test_a_database_that_is_not_there(
    redis_server: Database, refused_port: int, missing: str
) -> None:
    port = redis_server.port if missing == "PostgreSQL" else refused_port
    done = subprocess.run(
        command(
            *("mixed.py", "--port", "0", "--redis", f"redis://127.0.0.1:{port}/"),
            *("--postgres", f"postgresql://me:secret@127.0.0.1:{refused_port}/links"),
        ),
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"cannot use {missing} at 127.0.0.1:{refused_port}: ")
    assert "refused" in done.stderr or "Connect call failed" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "secret" not in done.stderr


@pytest.mark.parametrize("option", ["--postgres", "--redis"])
def test_a_wrong_call(option: str) -> None:
    done = subprocess.run(
        command("mixed.py", option, "localhost"),
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT,
    )
    assert done.returncode == 2
    assert f"argument {option}: it begins with" in done.stderr
