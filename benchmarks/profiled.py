"""A subject under a profiler: ``python -m benchmarks.profiled --by NAME --file FILE --module ...``.

It stands in the place of the subject, with whose arguments its own are mixed: passes its output on,
and when it is told to end, ends it in the way in which the profiler still writes its file.
"""

import os
import signal
import subprocess
import sys
from argparse import ArgumentParser
from collections.abc import Sequence

from .processes import python

SAMPLES = 500
"""Stacks that py-spy looks at in a second."""

CHATTER = "py-spy>"
"""How lines begin that are py-spy's own; it writes empty ones too."""


def by_py_spy(command: Sequence[str], file: str) -> int:
    """Write a flame graph of the lines of Python in which time was spent; return the exit status.

    py-spy is the parent of the process that it looks at, which is what systems allow.
    """
    options = ["--rate", str(SAMPLES), "--output", file]
    with subprocess.Popen(
        ["py-spy", "record", *options, "--", *command], stdout=subprocess.PIPE, text=True
    ) as spy:
        # On this signal it ends the process and writes the file.
        signal.signal(signal.SIGTERM, lambda *_: spy.send_signal(signal.SIGINT))
        assert spy.stdout is not None
        for line in spy.stdout:
            if line.strip() and not line.startswith(CHATTER):
                print(line, end="", flush=True)
    return spy.returncode


def by_callgrind(command: Sequence[str], file: str) -> int:
    """Become the command, under a count of instructions by C function."""
    options = ["--tool=callgrind", f"--callgrind-out-file={file}"]
    os.execvp("valgrind", ["valgrind", *options, *command])


PROFILERS = {"py-spy": by_py_spy, "callgrind": by_callgrind}


def main() -> int:
    """Run a subject under a profiler."""
    parser = ArgumentParser(allow_abbrev=False)
    parser.add_argument("--by", choices=list(PROFILERS))
    parser.add_argument("--file", help="where the profiler is to write")
    parser.add_argument("--module", help="the subject")
    own, arguments = parser.parse_known_args()
    return PROFILERS[own.by](python(own.module, *arguments), own.file)


if __name__ == "__main__":
    sys.exit(main())
