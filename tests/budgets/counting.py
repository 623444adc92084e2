"""Counts what a path costs, in a process of its own.

``malloc`` can only be counted from the outside, by a library that the dynamic linker puts before
the C library; Python's own allocator is switched off there, and so is the collector. System calls
are counted by strace. In its list the process marks where the counted operations begin and end, by
a call that nothing else makes.
"""

import ctypes
import gc
import json
import logging
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

OPERATIONS = 200
"""How many operations are counted; as many more are not."""

MARK = "getppid"

ROOT = Path(__file__).parents[2]

LIMIT = 50.0
"""Seconds that counting one path may take."""

COUNTER = """
#include <stddef.h>
extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t);
unsigned long coro_allocations;
void *malloc(size_t size) { coro_allocations++; return __libc_malloc(size); }
void *calloc(size_t count, size_t size) { coro_allocations++; return __libc_calloc(count, size); }
void *realloc(void *old, size_t size) { coro_allocations++; return __libc_realloc(old, size); }
"""


def count(path: str, compiler: str) -> dict[str, float]:
    """What one operation of a path costs, by kind; ``compiler`` is a C compiler."""
    with tempfile.TemporaryDirectory() as directory:
        library = f"{directory}/counter.so"
        command = [compiler, "-shared", "-fPIC", "-O1", "-x", "c", "-", "-o", library]
        subprocess.run(command, input=COUNTER.encode(), check=True)
        environment = {"LD_PRELOAD": library, "PYTHONMALLOC": "malloc"}
        return json.loads(_run(["tell", path], environment))


def count_system_calls(path: str, strace: str) -> dict[str, float]:
    """What system calls one operation of a path makes, by their names."""
    with tempfile.NamedTemporaryFile("r") as log:
        _run(["mark", path], {}, strace, "-qq", "-o", log.name)
        made = re.findall(r"^(\w+)\(", log.read(), re.MULTILINE)
    marks = [at for at, name in enumerate(made) if name == MARK][-3:]
    once, twice = (Counter(made[begin + 1 : end]) for begin, end in pairwise(marks))
    return {
        name: (twice[name] - once[name]) / OPERATIONS
        for name in sorted(twice)
        if twice[name] != once[name]
    }


def _run(arguments: list[str], environment: dict[str, str], *under: str) -> bytes:
    return subprocess.run(
        [*under, sys.executable, "-m", "tests.budgets.counting", *arguments],
        env={"PATH": os.environ.get("PATH", os.defpath), "PYTHONHASHSEED": "0", **environment},
        cwd=ROOT,
        check=True,
        stdout=subprocess.PIPE,
        timeout=LIMIT,
    ).stdout


def instructions(work: Callable[[], None]) -> int:
    """How many instructions the interpreter runs in ``work``."""
    ran = 0
    if sys.version_info >= (3, 12):
        monitoring = sys.monitoring
        tool, event = monitoring.PROFILER_ID, monitoring.events.INSTRUCTION

        def count_one(code: CodeType, offset: int) -> None:
            nonlocal ran
            ran += 1

        monitoring.use_tool_id(tool, "budgets")
        monitoring.register_callback(tool, event, count_one)
        monitoring.set_events(tool, event)
        try:
            work()
        finally:
            monitoring.set_events(tool, 0)
            monitoring.free_tool_id(tool)
    else:
        # It counts some instructions twice where there is the other way.
        def trace(frame: FrameType, event: str, argument: Any) -> Any:
            nonlocal ran
            frame.f_trace_opcodes = True
            frame.f_trace_lines = False
            if event == "opcode":
                ran += 1
            return trace

        previous = sys.gettrace()
        sys.settrace(trace)
        try:
            work()
        finally:
            sys.settrace(previous)
    return ran


def calls(work: Callable[[], None]) -> int:
    """How many functions are called in ``work``; resuming a generator is a call too."""
    made = 0

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal made
        if event in {"call", "c_call"}:
            made += 1

    previous = sys.getprofile()
    sys.setprofile(profile)
    try:
        work()
    finally:
        sys.setprofile(previous)
    return made


def allocations(work: Callable[[], None]) -> int:
    """How often ``work`` asks for memory."""
    counter = ctypes.c_ulong.in_dll(ctypes.CDLL(None), "coro_allocations")
    before = counter.value
    work()
    return counter.value - before


def main(mode: str, path: str) -> None:
    """Do the work of a path, and tell what was counted or mark where it was done."""
    from tests.budgets.paths import PATHS

    work = PATHS[path]
    logging.disable()
    gc.disable()
    # Caches fill, and code is specialised.
    work(OPERATIONS)
    work(2 * OPERATIONS)
    if mode == "mark":
        for times in (1, 2):
            os.getppid()
            work(times * OPERATIONS)
        os.getppid()
        return
    counted = {}
    for kind in (instructions, calls, allocations):
        once, twice = (kind(partial(work, times * OPERATIONS)) for times in (1, 2))
        counted[kind.__name__] = round((twice - once) / OPERATIONS, 2)
    print(json.dumps(counted))


if __name__ == "__main__":
    main(*sys.argv[1:])
