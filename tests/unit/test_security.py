"""SECURITY.md promises nothing that no test shows."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", TEXT)))


@pytest.mark.parametrize(("file", "name"), NAMED, ids=[name for _, name in NAMED])
def test_a_test_that_it_names_is_there(file: str, name: str) -> None:
    assert re.search(rf"^(?: {{4}})?(async )?def {name}\(", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE)


def test_every_promise_names_a_test() -> None:
    promises = re.findall(
        r"^\| (?!promise |---)(.*) \| (.*) \|$", TEXT.partition("## What it promises")[2], re.MULTILINE
    )
    assert len(promises) > 20
    assert [promise for promise, shown_by in promises if "`tests/" not in shown_by] == []


def test_what_it_links_to_is_there() -> None:
    links = re.findall(r"\]\(([\w./-]+)\)", TEXT)
    assert links
    assert [link for link in links if not (ROOT / link).is_file()] == []
