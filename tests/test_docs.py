"""The programs in the guides print what is shown; links in the documents lead somewhere."""

import re

import pytest

from tests.support.documents import ROOT, Program, programs, run

DOCUMENTS = [
    "README.md",
    "CONTRIBUTING.md",
    *sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/**/*.md")),
]


@pytest.mark.parametrize(
    "program",
    [
        *programs("docs/asyncio.md"),
        *programs("docs/coroutines.md"),
        *programs("docs/http.md"),
        *programs("docs/network.md"),
        *programs("docs/services.md"),
        *programs("docs/testing.md"),
    ],
    ids=lambda program: f"line {program.line}",
)
def test_a_program_prints_what_is_shown(program: Program) -> None:
    assert run(program.source) == program.printed


def anchor(heading: str) -> str:
    """What a page calls a heading: words and hyphens of it, in small letters."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    here = ROOT / document
    for target in re.findall(r"\]\(([^)\s]+)\)", here.read_text()):
        if "://" in target:
            continue
        path, _, place = target.partition("#")
        there = here.parent / path if path else here
        assert there.exists(), target
        if place:
            headings = re.findall(r"^#+ (.+)$", there.read_text(), re.MULTILINE)
            assert place in map(anchor, headings), target
