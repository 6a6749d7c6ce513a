"""What scripts/install takes from PyPI: exactly what pyproject.toml asks for, each by its hash."""

import re
import tomllib
from importlib.metadata import requires
from pathlib import Path
from typing import Final

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT: Final = Path(__file__).parents[2]
PROJECT: Final = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROGRAM: Final = "scripts/requirements.txt"
TOOLS: Final = "scripts/build-requirements.txt"
_PIN: Final = re.compile(r"(\S+)==(\S+) ; sys_platform == 'linux'((?: --hash=sha256:[0-9a-f]{64})+)")


def asked(file: str) -> list[Requirement]:
    project = PROJECT["project"]
    texts = {
        PROGRAM: [*project["dependencies"], *project["optional-dependencies"]["metrics"]],
        TOOLS: [*PROJECT["build-system"]["requires"], "setuptools"],
    }
    return [Requirement(text) for text in texts[file]]


def pins(file: str) -> dict[str, str]:
    """Give the release of each name."""
    lines = re.sub(r" \\\n +", " ", (ROOT / file).read_text(encoding="utf-8")).splitlines()
    found = [_PIN.fullmatch(line) for line in lines if not line.lstrip().startswith("#")]
    return {canonicalize_name(match[1]): match[2] for match in found if match}


@pytest.mark.parametrize("file", [PROGRAM, TOOLS])
def test_each_line_is_one_release_with_hashes(file: str) -> None:
    lines = [line for line in (ROOT / file).read_text(encoding="utf-8").splitlines() if line[:1] not in ("#", " ")]
    assert len(lines) == len(pins(file)) > 0


@pytest.mark.parametrize("file", [PROGRAM, TOOLS])
def test_what_is_asked_for_is_pinned_to_a_release_that_fits(file: str) -> None:
    for requirement in asked(file):
        release = pins(file).get(canonicalize_name(requirement.name))
        assert release is not None, f"{requirement} has no pin: run scripts/pin"
        assert requirement.specifier.contains(release), f"{requirement} is pinned to {release}: run scripts/pin"


def test_nothing_is_pinned_that_the_program_does_not_need() -> None:
    needed: set[str] = set()
    open_ = asked(PROGRAM)
    while open_:
        requirement = open_.pop()
        name = canonicalize_name(requirement.name)
        if name in needed or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        needed.add(name)
        open_ += [Requirement(text) for text in requires(name) or []]
    assert pins(PROGRAM).keys() == needed
