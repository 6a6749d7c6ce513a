"""What scripts/install takes from PyPI: only what neither the environment nor the distribution has as it should be."""

import subprocess
import venv
from pathlib import Path

import pytest

from tests.unit.test_pins import PROGRAM, ROOT, asked, pins


class Environment:
    """An environment, and a place outside of it from which it takes libraries too, as from the distribution."""

    def __init__(self, path: Path) -> None:
        venv.create(path / "own", with_pip=True)
        (self.own,) = (path / "own/lib").glob("python*/site-packages")
        self.distribution = path / "distribution"
        self.distribution.mkdir()
        (self.own / "distribution.pth").write_text(f"{self.distribution}\n")
        self._python = path / "own/bin/python"

    def lacks(self) -> set[str]:
        done = subprocess.run(  # noqa: S603  words of ours
            [self._python, "-I", ROOT / "scripts/lacking.py"], capture_output=True, text=True, check=True
        )
        lines = done.stdout.split("\n")[:-1]
        assert all(" --hash=sha256:" in line for line in lines)
        return {line.partition("==")[0] for line in lines}


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """Nothing but pip is there, and what the tests put there by names of their own."""
    return Environment(tmp_path_factory.mktemp("environment"))


def put(place: Path, name: str, version: str, *requires: str) -> None:
    directory = place / f"{name}-0.dist-info"
    directory.mkdir(exist_ok=True)
    lines = [
        "Metadata-Version: 2.1",
        f"Name: {name}",
        f"Version: {version}",
        *(f"Requires-Dist: {each}" for each in requires),
    ]
    (directory / "METADATA").write_text("\n".join(lines) + "\n")


def test_all_that_the_program_asks_for_is_lacking_at_first(environment: Environment) -> None:
    assert environment.lacks() >= {each.name for each in asked(PROGRAM)} - {"rich", "tomli", "tomlkit"}


@pytest.mark.parametrize(("version", "lacks"), [("99", False), ("0.1", True)])
def test_what_the_distribution_has_is_lacking_where_it_is_too_old(
    environment: Environment, version: str, *, lacks: bool
) -> None:
    put(environment.distribution, "tomlkit", version)
    assert ("tomlkit" in environment.lacks()) == lacks


@pytest.mark.parametrize(("version", "lacks"), [(pins(PROGRAM)["tomli"], False), ("99", True)])
def test_what_the_environment_has_is_lacking_where_it_is_not_what_is_pinned(
    environment: Environment, version: str, *, lacks: bool
) -> None:
    put(environment.own, "tomli", version)
    assert ("tomli" in environment.lacks()) == lacks


def test_what_a_library_asks_for_is_lacking_too_unless_its_marker_says_otherwise(environment: Environment) -> None:
    put(environment.own, "rich", pins(PROGRAM)["rich"], "pygments>=2", "mdurl; sys_platform == 'win32'")
    found = environment.lacks()
    assert "rich" not in found
    assert "pygments" in found
    assert "mdurl" not in found
