"""The package itself: its public names."""

from __future__ import annotations

import subprocess
import sys
import types

import pytest

import coro


def test_every_public_name_is_there() -> None:
    assert sorted(coro.__all__) == coro.__all__
    for name in coro.__all__:
        thing = getattr(coro, name)
        assert thing is getattr(coro, name)
        if not isinstance(thing, types.ModuleType) and name != "moment":
            assert thing.__name__ == name
    assert set(coro.__all__) < set(dir(coro))


def test_what_is_not_there_is_told_as_python_does() -> None:
    with pytest.raises(AttributeError, match="module 'coro' has no attribute 'nothing'"):
        _ = coro.nothing


def test_modules_are_not_hidden_by_functions() -> None:
    """``import coro.x as x`` gives the module, never a function of that name."""
    modules = [name for name in sys.modules if name.startswith("coro.") and name.count(".") == 1]
    assert modules
    for name in modules:
        attribute = getattr(coro, name.partition(".")[2], None)
        assert attribute is None or isinstance(attribute, types.ModuleType), name


def test_a_program_without_connections_loads_neither_tls_nor_http() -> None:
    code = (
        "import sys, coro\n"
        "coro.run(coro.coroutine(lambda: None))\n"
        "names = 'coro.tls', 'coro.tcp', 'coro.http', 'httptools'\n"
        "print([name for name in names if name in sys.modules])\n"
        "coro.connect, coro.fetch\n"
        "print('coro.http' in sys.modules, coro.http.fetch is coro.fetch)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=50
    )
    assert ran.stdout.split("\n")[:2] == ["[]", "True True"]
