"""Ten thousand connections at once, in one process on each side."""

import resource

import pytest

from benchmarks import connections


def test_ten_thousand_connections_each_echoes() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 10_000 + connections.SPARE:
        pytest.skip(f"this system allows {hard} descriptors: raise the hard limit (ulimit -Hn)")
    try:
        result = connections.measure(10_000)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert result.count == 10_000
    assert result.echoed == 10_000
