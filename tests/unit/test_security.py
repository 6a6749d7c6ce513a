"""SECURITY.md and ARCHITECTURE.md promise nothing that no test shows."""

import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
PROMISES = TEXT.partition("## What it promises\n")[2].partition("\n## ")[0]
INVARIANTS = ARCHITECTURE.partition("## Invariants\n")[2].partition("\n## ")[0]
NEVER = ARCHITECTURE.partition("## What we never do\n")[2].partition("\n## ")[0]
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", TEXT)))
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


@cache
def every_test() -> frozenset[str]:
    files = (path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py"))
    return frozenset(name for text in files for name in re.findall(r"^ *(?:async )?def (test_\w+)", text, re.MULTILINE))


def rows(text: str, columns: int) -> list[tuple[str, ...]]:
    """Give the rows of its tables without their heads."""
    cells = (tuple(line.strip("| ").split(" | ")) for line in text.splitlines() if line.startswith("| "))
    found = [row for row in cells if row[0] not in {"promise", "invariant", "never"} and set(row[0]) != {"-"}]
    assert {len(row) for row in found} == {columns}
    return found


@pytest.mark.parametrize(("file", "name"), NAMED, ids=[name for _, name in NAMED])
def test_a_test_that_it_names_is_there(file: str, name: str) -> None:
    assert re.search(rf"^(?: {{4}})?(async )?def {name}\(", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_whatever_a_document_names_as_a_test_is_there(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    names = set(re.findall(r"\b(test_\w+)\b(?!\.py)", text))
    assert names - every_test() == set()
    files = set(re.findall(r"\btests/[\w/]+(?:\.\w+)?", text))
    assert {file for file in files if not (ROOT / file).exists()} == set()


def test_every_promise_names_a_test() -> None:
    promises = rows(PROMISES, 2)
    assert len(promises) > 50
    whole = re.compile(r"(`tests/[\w/]+\.py::test_\w+`(, )?)+")
    assert [promise for promise, shown_by in promises if not whole.fullmatch(shown_by)] == []


def test_so_does_every_paragraph_among_them() -> None:
    paragraphs = [each for each in PROMISES.split("\n\n") if each.strip() and each.lstrip()[0] not in "#|-"]
    assert paragraphs
    assert [each for each in paragraphs if "::test_" not in each] == []


def test_every_invariant_names_a_test() -> None:
    invariants = rows(INVARIANTS, 3)
    assert len(invariants) > 50
    assert [what for what, _, shown_by in invariants if not re.search(r"`(tests/\w+/)?test_\w+", shown_by)] == []


def test_so_does_whatever_is_never_done() -> None:
    never = rows(NEVER, 2)
    assert len(never) == sum(1 for line in NEVER.splitlines() if line.strip()) - 2
    assert [what for what, shown_by in never if not re.fullmatch(r"(`test_\w+`(, )?)+", shown_by)] == []


def test_what_it_links_to_is_there() -> None:
    links = re.findall(r"\]\(([\w./-]+)\)", TEXT)
    assert links
    assert [link for link in links if not (ROOT / link).is_file()] == []
