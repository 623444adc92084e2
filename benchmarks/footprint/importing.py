"""The first import of some modules: ``python -m benchmarks.footprint.importing MODULE...``."""

import json
import os
import subprocess
import sys
from argparse import ArgumentParser

TIMES = 7
"""How many processes import them, one after another.

The least counts: whatever disturbs a process that does one thing once makes it slower.
"""

PROGRAM = """
from time import perf_counter, process_time
wall, cpu = perf_counter(), process_time()
import {}
print(perf_counter() - wall, process_time() - cpu)
"""


def main() -> None:
    """Time the import."""
    parser = ArgumentParser()
    parser.add_argument("modules", nargs="+")
    program = PROGRAM.format(", ".join(parser.parse_args().modules))
    # Compiled and cached before it is timed.
    once(program)
    walls, cpus = zip(*(once(program) for _ in range(TIMES)), strict=True)
    print(json.dumps({"operations": 1, "wall": min(walls), "cpu": min(cpus)}))


def once(program: str) -> tuple[float, float]:
    """Seconds that passed, and seconds of the processor."""
    # With leave to write the cache, which may be denied to this one.
    environment = {
        name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"
    }
    told = subprocess.run(
        [sys.executable, "-c", program], check=True, stdout=subprocess.PIPE, env=environment
    )
    wall, cpu = map(float, told.stdout.split())
    return wall, cpu


if __name__ == "__main__":
    main()
