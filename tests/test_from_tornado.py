"""docs/from-tornado.md is true: what it names exists, what is still to come does not."""

import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from coro.http.client import AsyncHTTPClient
from coro.http.messages import HTTPRequest, RequestOptions
from coro.http.server import HTTPServer
from coro.stream import IOStream, SSLIOStream
from coro.tcpserver import TCPServer
from tests.support.documents import ROOT, Program, programs, run

DOCUMENT = "docs/from-tornado.md"
TEXT = (ROOT / DOCUMENT).read_text()
KINDS = ("kept", "renamed", "replaced", "gone")

# Where the arguments stand of those who take them as keywords.
KEYWORDS: dict[Any, Callable[[], set[str]]] = {
    AsyncHTTPClient: lambda: set(inspect.signature(AsyncHTTPClient._initialize).parameters),
    HTTPRequest: lambda: set(RequestOptions.__annotations__),
    HTTPServer: lambda: {
        *inspect.signature(HTTPServer).parameters,
        *inspect.signature(TCPServer).parameters,
    },
    SSLIOStream: lambda: set(inspect.signature(IOStream).parameters),
}


@dataclass(frozen=True)
class Name:
    """A dotted path, and the arguments that a row gives it."""

    path: str
    arguments: tuple[str, ...]

    @property
    def last(self) -> str:
        return self.path.rpartition(".")[2]


@dataclass(frozen=True)
class Row:
    """A row of a table of names."""

    old: tuple[Name, ...]
    kind: str
    new: tuple[Name, ...]

    def __str__(self) -> str:
        return self.old[0].path


def names(cell: str) -> tuple[Name, ...]:
    found = []
    for span in re.findall(r"`([^`]+)`", cell):
        whole = re.fullmatch(r"([\w.]+)(?:\((.*)\))?", span)
        assert whole is not None, span
        arguments = [each.strip(" *") for each in (whole[2] or "").split(",")]
        found.append(Name(whole[1], tuple(filter(None, arguments))))
    return tuple(found)


def rows() -> Iterator[Row]:
    for table in re.findall(r"^\| old \| new \| .*\n\|[-|]+\n((?:\|.*\n)+)", TEXT, re.MULTILINE):
        for line in table.splitlines():
            cells = re.fullmatch(r"\| (.+?) \| (.+?) \| (?:(.+) )?\|", line)
            assert cells is not None, line
            kind, _, new = cells[2].partition(": ")
            yield Row(names(cells[1]), kind, names(new))


def find(path: str) -> Any:
    """Return what a dotted path leads to, or None for what instances of a class are given.

    Raises:
        ImportError, AttributeError: it leads nowhere.
    """
    parts = path.split(".")
    for count in range(len(parts), 0, -1):
        try:
            thing: Any = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError as error:
            # Only what is missing itself, not what it misses.
            if not ".".join(parts[:count]).startswith(error.name or "?"):
                raise
            continue
        for part in parts[count:]:
            if inspect.isclass(thing) and not hasattr(thing, part):
                assigned = any(
                    re.search(rf"\bself\.{part}\b[^=\n]*=", inspect.getsource(each))
                    for each in thing.__mro__
                    if each.__module__.startswith("coro.")
                )
                if assigned:
                    return None
            thing = getattr(thing, part)
        return thing
    raise ImportError(path)


def arguments_of(thing: Any) -> set[str]:
    """Return the names of the arguments that something takes."""
    taken = set(inspect.signature(thing).parameters)
    return taken | KEYWORDS[thing]() if thing in KEYWORDS else taken


ROWS = list(rows())


def test_every_row_is_read() -> None:
    lines = re.findall(r"^\| .*", TEXT[TEXT.index("## Names") :], re.MULTILINE)
    headings = [line for line in lines if line.startswith("| old |")]
    assert len(ROWS) == len(lines) - len(headings) > 200
    assert {row.kind for row in ROWS} == set(KINDS)


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_the_new_name_exists_and_takes_the_arguments(row: Row) -> None:
    assert bool(row.new) == (row.kind != "gone")
    for name in row.new:
        thing = find(name.path)
        if name.arguments:
            assert set(name.arguments) <= arguments_of(thing), name


@pytest.mark.parametrize("row", [row for row in ROWS if row.kind == "kept"], ids=str)
def test_what_is_kept_has_its_name(row: Row) -> None:
    assert [name.last for name in row.old] == [name.last for name in row.new]


@pytest.mark.parametrize("row", [row for row in ROWS if row.kind == "renamed"], ids=str)
def test_what_is_renamed_has_another(row: Row) -> None:
    assert [(name.last, name.arguments) for name in row.old] != [
        (name.last, name.arguments) for name in row.new
    ]


def test_the_modules_that_imports_are_changed_to_exist() -> None:
    table = TEXT[TEXT.index("### Imports") : TEXT.index("```python")]
    for module in re.findall(r"`(coro\.[\w.]+)`", table):
        importlib.import_module(module)


@pytest.mark.parametrize("program", programs(DOCUMENT), ids=lambda program: f"line {program.line}")
def test_a_program_prints_what_is_shown(program: Program) -> None:
    if program.printed is None:
        assert program.source.startswith("# Tornado")
    else:
        assert run(program.source) == program.printed
