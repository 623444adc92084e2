"""What the figures depend on besides the code: versions of everything, and the machine."""

import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

DISTRIBUTIONS = (
    "coro-loop",
    "httptools",
    "uvloop",
    "tornado",
    "twisted",
    "trio",
    "aiohttp",
    "httpx",
    "pycurl",
    "uvicorn",
    "hypercorn",
    "granian",
)


def describe() -> dict[str, str]:
    """Names and versions, in the order in which to print them."""
    facts = {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "kernel": platform.release(),
        "processor": f"{_processor()}, {len(os.sched_getaffinity(0))} cores usable",
    }
    for distribution in DISTRIBUTIONS:
        try:
            facts[distribution] = version(distribution)
        except PackageNotFoundError:
            facts[distribution] = "not installed"
    facts["libcurl"] = _libcurl()
    facts["nginx"] = _nginx()
    facts["wrk"] = _wrk()
    return facts


def nginx_path() -> str | None:
    """The nginx executable, also where sbin is not on the path of ordinary users."""
    return shutil.which("nginx", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _libcurl() -> str:
    try:
        import pycurl
    except ImportError:
        return "not installed"
    return str(pycurl.version_info()[1])


def _nginx() -> str:
    path = nginx_path()
    if path is None:
        return "not installed"
    told = subprocess.run([path, "-v"], capture_output=True, text=True, check=False)
    return told.stderr.strip().rpartition("/")[2]


def _wrk() -> str:
    path = shutil.which("wrk")
    if path is None:
        return "not installed"
    told = subprocess.run([path, "-v"], capture_output=True, text=True, check=False)
    return told.stdout.partition("[")[0].split()[-1]
