"""What the documents say is there, is there: configuration is right, commands, files and links exist."""

import re
from pathlib import Path
from typing import Final

import pytest

from fwdaemon.config import parse
from tests.unit.commands import COMMANDS

ROOT: Final = Path(__file__).parents[2]
README: Final = (ROOT / "README.md").read_text(encoding="utf-8")
WIDEST: Final = 120
DEVELOPERS: Final = [
    ROOT / "ARCHITECTURE.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "docs/rules.md",
    ROOT / "docs/following.md",
]
DOCUMENTS: Final = sorted({ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *DEVELOPERS})
# Those that programs write.
WRITTEN: Final = {"benchmark.md", "robustness.md"}


def code(text: str, language: str) -> list[str]:
    """The blocks of code in that language."""
    return re.findall(rf"^ *```{language}\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_configuration_is_right(document: Path) -> None:
    for block in code(document.read_text(encoding="utf-8"), "toml"):
        parse({document.with_suffix(".toml"): block})


def test_the_table_of_commands_has_each() -> None:
    assert sorted(re.findall(r"^\| `kvm-portfwd (\w+)", README, re.MULTILINE)) == sorted(COMMANDS)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_files_and_links_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    assert set(re.findall(r"sudo kvm-portfwd (\w+)", text)) <= COMMANDS.keys()
    links = set(re.findall(r"\]\((?!http)([^)#]+)\)", text))
    assert {link for link in links if not (document.parent / link).exists()} == set()
    paths = re.findall(r"(?<![/\w])(?:scripts|packaging|fwdaemon|tests|systemd|etc|docs)/[\w./-]*\w", text)
    assert {path for path in paths if not (ROOT / path).exists()} == set()


@pytest.mark.parametrize(
    "document", [path for path in DOCUMENTS if path.name not in WRITTEN], ids=lambda path: path.name
)
def test_lines_are_short_but_in_tables_and_output(document: Path) -> None:
    prose = re.sub(r"^ *```.*?^ *```$", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    assert [line for line in prose.splitlines() if len(line) > WIDEST and not line.startswith("|")] == []


@pytest.mark.parametrize(("document", "longest"), [("README.md", 200), ("ARCHITECTURE.md", 300)])
def test_a_newcomer_reads_it_in_minutes(document: str, longest: int) -> None:
    assert len((ROOT / document).read_text(encoding="utf-8").splitlines()) <= longest


@pytest.mark.parametrize("document", DEVELOPERS, ids=lambda path: path.name)
def test_modules_and_tests_that_are_named_exist(document: Path) -> None:
    prose = re.sub(r"^ *```.*?^ *```$", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    names = re.findall(r"`([A-Za-z_][\w.]*)`", prose)
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    assert {name for name in names if name.startswith("test_") and f"def {name}(" not in tests} == set()
    rooms = {path.stem for path in (ROOT / "fwdaemon").iterdir()}
    assert {name for name in names if name.split(".")[0] in rooms and not is_there(*name.split("."))} == set()


def is_there(room: str, *names: str) -> bool:
    """Whether a package has this module, or a module this name: `room.module.Name`, or `module.Name`."""
    place = ROOT / "fwdaemon" / room
    if place.is_dir() and names:
        place, names = place / names[0], names[1:]
    return place.is_dir() or all(name in place.with_suffix(".py").read_text(encoding="utf-8") for name in names)
