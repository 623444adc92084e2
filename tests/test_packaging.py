"""What a stranger installs: the wheel, built from the source archive, in a clean environment.

These tests build and install from the package index, therefore they run in CI or when asked for:

    python -m pytest -m packaging
"""

import os
import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import coro

ROOT = Path(__file__).parent.parent
LIMIT = 300.0
"""Seconds that a build or an installation may take."""

pytestmark = [pytest.mark.packaging, pytest.mark.timeout(2 * LIMIT)]


def run(*command: str | Path, cwd: Path, code: int = 0) -> str:
    """Run a command as if in a shell of its own; return what it printed."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PYTEST"))}
    ran = subprocess.run(
        command,
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=LIMIT,
    )
    assert ran.returncode == code, ran.stdout
    return ran.stdout


def readme_programs() -> list[str]:
    """Return the README's Python programs."""
    return re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the source archive and the wheel that was built from it."""
    directory = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--outdir", directory, ROOT, cwd=directory)
    return directory


@pytest.fixture(scope="module")
def wheel(distributions: Path) -> Path:
    (wheel,) = distributions.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def clean_python(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Path:
    """The interpreter of an environment where only the wheel was installed."""
    directory = tmp_path_factory.mktemp("clean") / "env"
    venv.create(directory, with_pip=True)
    python = directory / "bin" / "python"
    install(python, str(wheel))
    return python


def install(python: Path, what: str) -> None:
    options = ["--quiet", "--disable-pip-version-check"]
    run(python, "-m", "pip", "install", *options, what, cwd=python.parent)


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names}
    assert tops == {"coro", f"coro_loop-{coro.__version__}.dist-info"}
    assert "coro/py.typed" in names
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "coro").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == sources


def test_the_source_archive_can_test_itself(distributions: Path) -> None:
    (archive,) = distributions.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    assert names >= {"LICENSE", "README.md", "pyproject.toml", "Makefile", "tests/conftest.py"}
    assert not any(part.startswith(".venv") for name in names for part in name.split("/"))


def test_the_readmes_first_program(clean_python: Path, tmp_path: Path) -> None:
    program = tmp_path / "first.py"
    program.write_text(readme_programs()[0])
    printed = run(clean_python, "-W", "error", program, cwd=tmp_path)
    shown = re.search(r"It prints\n\n```text\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert shown is not None
    assert printed == shown[1]


def test_pytest_finds_the_plugin(clean_python: Path, tmp_path: Path) -> None:
    install(clean_python, "pytest")
    test = tmp_path / "test_it.py"
    test.write_text(
        "from coro import coroutine, sleep\n"
        "@coroutine\n"
        "def test_it(coro_world):\n"
        "    yield sleep(3600)\n"
    )
    printed = run(clean_python, "-m", "pytest", "-W", "error", "--coro-seeds=3", test, cwd=tmp_path)
    assert "3 passed" in printed


def test_the_command_names_the_extra_that_it_misses(clean_python: Path, tmp_path: Path) -> None:
    printed = run(clean_python.with_name("coro"), "--version", cwd=tmp_path, code=2)
    assert "pip install 'coro-loop[cli]'" in printed
    assert "Traceback" not in printed


def test_the_command_with_its_extra(
    wheel: Path, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    python = tmp_path_factory.mktemp("cli") / "env" / "bin" / "python"
    venv.create(python.parent.parent, with_pip=True)
    install(python, f"{wheel}[cli]")
    assert coro.__version__ in run(python.with_name("coro"), "--version", cwd=tmp_path)
    assert coro.__version__ in run(python, "-m", "coro", "--version", cwd=tmp_path)


def test_the_plugin_of_pytest(clean_python: Path, tmp_path: Path) -> None:
    install(clean_python, "pytest")
    (tmp_path / "test_it.py").write_text(
        "from coro import coroutine, sleep\n\n"
        "@coroutine\ndef test_a_world(coro_world):\n    yield sleep(1000)\n"
    )
    printed = run(clean_python, "-m", "pytest", "--coro-seeds=3", cwd=tmp_path)
    assert "3 passed" in printed
