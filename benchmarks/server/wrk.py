"""Load by wrk: ``python -m benchmarks.server.wrk URL PID``, 50 connections from one thread.

The CPU time told is that of the server, whose process id it is given, with its workers.
"""

import json
import math
import re
import subprocess
import time
from argparse import ArgumentParser, Namespace

from ..echo.load import CONNECTIONS, cpu_clock
from ..processes import family

WARM_UP = 0.5
"""So much of the measured time goes before, unmeasured; wrk knows whole seconds only."""


def main() -> None:
    """Warm the server up, then measure."""
    parser = ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("pid", type=int, help="the server's process")
    parser.add_argument("--seconds", type=float, default=0.5)
    parser.add_argument("--script", default="", help="in Lua, what makes the requests")
    options = parser.parse_args()
    clocks = [cpu_clock(pid) for pid in family(options.pid)]
    load(options, options.seconds * WARM_UP)
    before = sum(map(time.clock_gettime, clocks))
    count, seconds = load(options, options.seconds)
    cpu = sum(map(time.clock_gettime, clocks)) - before
    print(json.dumps({"operations": count, "wall": seconds, "cpu": cpu}))


def load(options: Namespace, seconds: float) -> tuple[int, float]:
    """Run wrk; return how many requests were answered, and in how many seconds."""
    command = ["wrk", "--threads", "1", "--connections", str(CONNECTIONS)]
    command += ["--duration", f"{math.ceil(seconds)}s"]
    if options.script:
        command += ["--script", options.script]
    command.append(options.url)
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    if re.search("Socket errors|Non-2xx", told):
        raise ValueError(" ".join(told.split()))
    found = re.search(r"(\d+) requests in ([\d.]+)s", told)
    assert found is not None
    return int(found[1]), float(found[2])


if __name__ == "__main__":
    main()
