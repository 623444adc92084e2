"""The databases that tests of this directory share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.authority import Authority
from tests.support.databases import Database, running_postgres, running_redis


@pytest.fixture(scope="session")
def postgres(ca: Authority) -> Iterator[Database]:
    """A private PostgreSQL."""
    with running_postgres(ca) as it:
        yield it


@pytest.fixture(scope="session")
def redis_server(ca: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    """A private Redis."""
    with running_redis(ca, tmp_path_factory.mktemp("redis")) as it:
        yield it
