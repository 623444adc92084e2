"""What one operation of each hot path costs, in counts that no machine changes, and may cost.

``paths``     the hot paths, each as a function of how many operations it is to do
``counting``  runs one of them in a process of its own, and counts
``recorded``  the counts that were recorded, a file for each Python version

Three things are counted: instructions of the interpreter (bytecodes), calls (of Python functions
and of C functions by Python code), and allocations (calls of ``malloc`` and its kin). A path is run
with some number of operations and with twice as many: the difference is what these cost, without
setting up and tearing down. The loop's clock stands still, so that nothing depends on time.

``python -m tests.budgets`` shows the counts beside the recorded ones; with ``--record`` they are
recorded anew: do that when a path costs more on purpose, or less, and say why in the commit.
"""

import json
import sys
from pathlib import Path
from typing import TypeAlias

Counts: TypeAlias = dict[str, dict[str, float]]
"""Of each path, by its name: what one operation takes, by what is counted."""

RECORDED = Path(__file__).parent / "recorded"

VERSION = f"{sys.version_info[0]}.{sys.version_info[1]}"


def recorded() -> Counts:
    """The counts recorded for this Python version; none, if it is a new one."""
    file = RECORDED / f"{VERSION}.json"
    return json.loads(file.read_text()) if file.exists() else {}
