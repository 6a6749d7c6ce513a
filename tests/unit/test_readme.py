"""What README says is there, is there: its configuration is right, its commands, files and links exist."""

import re
from pathlib import Path
from typing import Final

from fwdaemon.config import parse
from fwdaemon.config.model import ControlSettings, DaemonSettings
from tests.unit.commands import COMMANDS

ROOT: Final = Path(__file__).parents[2]
README: Final = (ROOT / "README.md").read_text(encoding="utf-8")
WIDEST: Final = 120


def blocks(language: str) -> list[str]:
    """The blocks of code in that language."""
    return re.findall(rf"^ *```{language}\n(.*?)^ *```$", README, re.MULTILINE | re.DOTALL)


def test_the_configuration_is_right_and_names_the_defaults() -> None:
    (whole,) = [block for block in blocks("toml") if "[daemon]" in block]
    config = parse({Path("README.toml"): whole})
    assert config.daemon == DaemonSettings()
    assert config.control == ControlSettings()
    for block in blocks("toml"):
        parse({Path("README.toml"): block})


def test_the_table_of_commands_has_each() -> None:
    assert sorted(re.findall(r"^\| `kvm-portfwd (\w+)", README, re.MULTILINE)) == sorted(COMMANDS)
    assert set(re.findall(r"sudo kvm-portfwd (\w+)", README)) <= COMMANDS.keys()


def test_files_and_links_lead_somewhere() -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    scripts = re.findall(r"\b(?:scripts|packaging|fwdaemon|tests|systemd|etc)/[\w./-]*\w", README)
    named = {*links, *(path for path in scripts if f"/{path}" not in README)}
    assert {path for path in named if not (ROOT / path).exists()} == set()
    headings = {re.sub(r"\W+", "-", line.lower()) for line in re.findall(r"^#+ (.*)$", README, re.MULTILINE)}
    assert set(re.findall(r"\]\(#([^)]+)\)", README)) <= headings


def test_lines_are_short_but_in_tables_and_output() -> None:
    prose = re.sub(r"^ *```.*?^ *```$", "", README, flags=re.MULTILINE | re.DOTALL)
    assert [line for line in prose.splitlines() if len(line) > WIDEST and not line.startswith("|")] == []
