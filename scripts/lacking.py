# ruff: noqa: INP001, T201  a script, which prints
"""Prints those pins of scripts/requirements.txt that the environment of this interpreter lacks.

What the distribution has is good if it is new enough, and so is what it has for that in turn. What an earlier
scripts/install put into the environment has to be what is pinned. Once the pins that were printed are installed, there
may be more: what those ask for.
"""

import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

# An environment has pip, and not always this library by itself.
from pip._vendor.packaging.requirements import Requirement
from pip._vendor.packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]


def pinned() -> dict[str, str]:
    """Give the line with version and hashes for each name."""
    lines = (ROOT / "scripts/requirements.txt").read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    return {canonicalize_name(line.partition("==")[0]): line for line in lines if "==" in line}


def found(name: str) -> Distribution | None:
    """Look a library up in the environment."""
    try:
        return distribution(name)
    except PackageNotFoundError:
        return None


def asked_for() -> Iterator[Requirement]:
    """Give what the program asks for, and what that asks for as far as it is there."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    open_ = [*project["dependencies"], *project["optional-dependencies"]["metrics"]]
    seen = set()
    while open_:
        text = open_.pop()
        requirement = Requirement(text)
        if text in seen or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        seen.add(text)
        yield requirement
        there = found(requirement.name)
        open_ += (there.requires or []) if there else []


def is_met(requirement: Requirement, pin: str) -> bool:
    """Whether the environment has what is asked for, in the release that is pinned if it is not the distribution's."""
    there = found(requirement.name)
    if there is None or not requirement.specifier.contains(there.version, prereleases=True):
        return False
    is_ours = Path(str(there.locate_file(""))).is_relative_to(sys.prefix)
    return not is_ours or pin.partition("==")[2].split()[0] == there.version


def main() -> None:
    """Print the pins; what has none is refused by pip for want of a hash."""
    pins = pinned()
    wanted = [(each, pins.get(canonicalize_name(each.name), str(each))) for each in asked_for()]
    print("\n".join(sorted({pin for each, pin in wanted if not is_met(each, pin)})))


main()
