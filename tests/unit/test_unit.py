"""The unit as a file: nothing for this machine's systemd to complain of, and every power has its reason beside it."""

import re
import subprocess
from collections import defaultdict
from pathlib import Path
from typing import Final

import pytest

from tests.unit import programs

SOURCE: Final = Path(__file__).parents[2]
UNIT: Final = SOURCE / "systemd/kvm-portfwd.service"
DOCUMENT: Final = SOURCE / "docs/service.md"
MOST_EXPOSED: Final = 2.0

# What gives a power that the strictest unit would not have; the document has a row for each word of theirs.
POWERS: Final = ("CapabilityBoundingSet", "RestrictAddressFamilies", "ReadWritePaths")


def words() -> dict[str, list[str]]:
    """The words of each directive, of all of its lines together."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for line in UNIT.read_text().splitlines():
        name, is_directive, value = line.partition("=")
        if is_directive and not line.startswith("#"):
            found[name] += value.split()
    return found


def rows() -> dict[str, str]:
    """The document's tables: the rest of a row by what its first cell names."""
    cells = re.findall(r"^\| `([^`]+)` \| (.+) \|$", DOCUMENT.read_text(), flags=re.MULTILINE)
    return dict(cells)


@pytest.fixture
def runnable(tmp_path: Path) -> Path:
    """The unit with a program that is there; its name is the same."""
    copied = tmp_path / UNIT.name
    copied.write_text(UNIT.read_text().replace("ExecStart=/usr/bin/kvm-portfwd", "ExecStart=/bin/true"))
    return copied


def systemd_analyze(*arguments: str) -> tuple[str, str]:
    done = subprocess.run(  # noqa: S603  words of ours
        [programs.find("systemd-analyze"), *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout, done.stderr


def test_systemd_finds_nothing_wrong_with_it(runnable: Path) -> None:
    assert systemd_analyze("verify", str(runnable)) == ("", "")


def test_it_is_exposed_as_little_as_promised(runnable: Path) -> None:
    told, _ = systemd_analyze("security", "--offline=true", "--no-pager", str(runnable))
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", told)
    assert found is not None, told
    assert float(found[1]) <= MOST_EXPOSED


@pytest.mark.parametrize("directive", POWERS)
def test_the_reason_for_every_power_is_written_down(directive: str) -> None:
    assert {word.removeprefix("-") for word in words()[directive]} <= rows().keys()


def test_no_power_is_explained_that_it_does_not_have() -> None:
    powers = {word.removeprefix("-") for directive in POWERS for word in words()[directive]}
    assert {name for name in rows() if name.startswith(("CAP_", "AF_", "/"))} == powers


def test_every_test_that_the_document_names_is_there() -> None:
    named = set(re.findall(r"`(test_\w+)`", DOCUMENT.read_text()))
    written = "\n".join(path.read_text() for path in (SOURCE / "tests").rglob("test_*.py"))
    assert named
    assert {name for name in named if f"def {name}(" not in written} == set()
