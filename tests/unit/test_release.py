"""A release is one version, one day and one maintainer, whichever file of the project says so."""

import re
import tomllib
from datetime import date
from pathlib import Path
from typing import Final

import pytest

from fwdaemon import __version__

ROOT: Final = Path(__file__).parents[2]
MAINTAINER: Final = r"kvm-portfwd maintainers <maintainers@[a-z0-9.-]+>"
UPGRADE: Final = "### What changes when you upgrade"


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def found(pattern: str, name: str) -> list[str]:
    return re.findall(pattern, read(name), re.MULTILINE)


def releases() -> list[tuple[str, date]]:
    """Each version of CHANGELOG.md and its day, the newest first."""
    headings = re.findall(r"^## \[([0-9.]+)\] - (\S+)$", read("CHANGELOG.md"), re.MULTILINE)
    return [(version, date.fromisoformat(day)) for version, day in headings]


def test_the_version_is_the_newest_of_the_changelog() -> None:
    assert releases()[0][0] == __version__
    assert releases() == sorted(releases(), key=lambda each: [*map(int, each[0].split("."))], reverse=True)
    headings = found(r"^## (.*)$", "CHANGELOG.md")
    assert len(headings) - ("[Unreleased]" in headings[:1]) == len(releases())


@pytest.mark.parametrize(
    ("name", "pattern"),
    [("packaging/kvm-portfwd.spec", r"^Version: +(\S+)$"), ("packaging/ansible/galaxy.yml", r"^version: (\S+)$")],
)
def test_what_cannot_read_the_version_repeats_it(name: str, pattern: str) -> None:
    assert found(pattern, name) == [__version__]


def test_the_spec_lists_the_releases() -> None:
    entries = found(r"^\* (.*)$", "packaging/kvm-portfwd.spec")
    (maintainer,) = found(r"^Maintainer: (.*)$", "packaging/debian/control")
    assert entries == [f"{day:%a %b %d %Y} {maintainer} - {version}-1" for version, day in releases()]


@pytest.mark.parametrize("page", ["kvm-portfwd.8", "portfwd.toml.5"])
def test_the_manual_pages_are_of_the_day_of_the_release(page: str) -> None:
    day = releases()[0][1]
    assert found(r"^\.Dd (.*)$", f"man/{page}") == [f"{day:%B} {day.day}, {day.year}"]


def test_one_maintainer_is_named_everywhere() -> None:
    (maintainer,) = found(r"^Maintainer: (.*)$", "packaging/debian/control")
    assert re.fullmatch(MAINTAINER, maintainer)
    (author,) = tomllib.loads(read("pyproject.toml"))["project"]["authors"]
    assert f"{author['name']} <{author['email']}>" == maintainer
    assert found(r"^Upstream-Contact: (.*)$", "packaging/debian/copyright") == [maintainer]
    assert found(r"^authors:\n  - (.*)$", "packaging/ansible/galaxy.yml") == [maintainer]
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "packaging").rglob("*") if path.is_file()]
    addresses = {address for text in texts for address in re.findall(r"<[^<>\s]+@[^<>\s]+>", text)}
    assert addresses == {f"<{author['email']}>"}


def test_the_newest_release_begins_with_what_an_upgrade_changes() -> None:
    newest = read("CHANGELOG.md").partition(f"## [{__version__}]")[2].partition("\n## [")[0]
    assert newest.split("\n\n")[1].startswith(UPGRADE)


def test_the_changelog_is_short_enough_to_read() -> None:
    entries = re.split(r"\n(?:- |\n|#)", read("CHANGELOG.md"))
    assert [entry for entry in entries if len(entry.splitlines()) > 4] == []
    assert [line for line in read("CHANGELOG.md").splitlines() if len(line) > 120] == []
