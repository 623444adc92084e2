"""The fuzzer finds what it is for; and what it has found so far is nothing.

These are a few inputs, always the same; ``make fuzz`` draws others, for as long as it is given.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import pytest
from click.testing import CliRunner

from tests.fuzz import TARGETS, Failure, fuzz, main
from tests.http.readings import read_requests, read_response


@pytest.mark.parametrize("name", TARGETS)
def test_a_few_inputs(name: str) -> None:
    most, least = (2000, 10) if name == "codings" else (10_000, 45)
    count, ways = fuzz(TARGETS[name], 1, lambda count: count >= most)
    assert count == most
    # It has come farther than to the first byte.
    assert ways >= least


def naive(pieces: Iterable[bytes], **options: Any) -> int:
    """Look for the end of a head in each piece by itself."""
    return sum(piece.count(b"\r\n\r\n") for piece in pieces)


def without_limit(pieces: Iterable[bytes], **options: Any) -> Any:
    """Let a number of many digits reach int()."""
    data = b"".join(pieces)
    found = data.partition(b"Content-Length: ")[2].partition(b"\r")[0]
    return int(found) if found else read_response([data], **options)


def blind(pieces: Iterable[bytes], **options: Any) -> Any:
    """Miss a field that comes in two pieces."""
    seen = [piece.replace(b"chunked", b"x") for piece in pieces]
    return read_requests(seen, **options)


@pytest.mark.parametrize(
    ("name", "read", "told"),
    [
        ("responses", naive, "it depends on the pieces"),
        ("responses", without_limit, "ValueError: invalid literal"),
        ("requests", blind, "it depends on the pieces"),
    ],
)
def test_a_planted_fault_is_found(name: str, read: Any, told: str) -> None:
    target = dataclasses.replace(TARGETS[name], read=read)
    found = []
    for _ in range(2):
        with pytest.raises(Failure, match=told) as caught:
            fuzz(target, 1, lambda count: count >= 20_000)
        found.append(str(caught.value))
    assert "data = b" in found[0]
    assert found[0] == found[1], "a seed draws the same bytes each time"


def test_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    told = CliRunner().invoke(main, ["--seconds", "0", "--seed", "7"]).output
    for name in TARGETS:
        assert f"{name}: {len(TARGETS[name].seeds)} inputs, answered in " in told
    broken = dataclasses.replace(TARGETS["responses"], read=naive)
    monkeypatch.setitem(TARGETS, "responses", broken)
    got = CliRunner().invoke(main, ["--only", "responses", "--seed", "7"])
    assert got.exit_code == 1
    assert "replay it with: python -m tests.fuzz --only responses --seed 7" in got.output
