"""The packages of the page in Cockpit: what is in them, what they depend on, and that each build gives the same."""

import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import pytest

from fwdaemon import __version__
from fwdaemon.audit.journal import LATE_JOBS
from fwdaemon.core.inventory import HindranceKind
from fwdaemon.explain.report import Cause
from tests.unit import programs

SOURCE: Final = Path(__file__).parents[2]
PAGE: Final = SOURCE / "cockpit"
# What the packages are made of, and what only a build leaves.
PARTS: Final = ("cockpit", "packaging", "fwdaemon/__init__.py", "CHANGELOG.md")
LEFT: Final = ("dist", "dist.new", ".built-from", ".build.lock")
EXPLAIN: Final = SOURCE / "fwdaemon/explain"
DEB: Final = SOURCE / f"dist/cockpit-kvm-portfwd_{__version__}-1_all.deb"
RPM: Final = SOURCE / f"dist/cockpit-kvm-portfwd-{__version__}-1.noarch.rpm"


def run(*words: str | Path, directory: Path = SOURCE) -> str:
    argv = [programs.find(str(words[0])), *map(str, words[1:])]
    environment = {**os.environ, "SOURCE_DATE_EPOCH": "1700000000"}
    done = subprocess.run(  # noqa: S603  words of ours
        argv, env=environment, cwd=directory, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def left_by_a_build(folder: str, names: Iterable[str]) -> set[str]:
    return set(names) & set(LEFT) if Path(folder) == PAGE else set()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout in another place, with the packages that were built there from the same sources as those here."""
    assert run(SOURCE / "packaging/build-cockpit").split() == [str(RPM), str(DEB)]
    there = tmp_path_factory.mktemp("another place")
    for part in PARTS:
        copied = there / part
        copied.parent.mkdir(exist_ok=True)
        if (SOURCE / part).is_dir():
            shutil.copytree(SOURCE / part, copied, symlinks=True, ignore=left_by_a_build)
        else:
            shutil.copyfile(SOURCE / part, copied)
    run(there / "packaging/build-cockpit", directory=there)
    return there


def test_each_build_gives_the_same_wherever_it_is_made(built: Path) -> None:
    for package in (DEB, RPM):
        assert digest(built / "dist" / package.name) == digest(package)
    here = {file.name: digest(file) for file in (PAGE / "dist").iterdir()}
    assert {file.name: digest(file) for file in (built / "cockpit/dist").iterdir()} == here


def test_it_needs_the_oldest_cockpit_that_it_is_tried_with(built: Path) -> None:  # noqa: ARG001  built before
    assert (
        run("dpkg-deb", "--field", DEB, "Depends").strip() == f"cockpit-bridge (>= 287), kvm-portfwd (>= {__version__})"
    )
    assert {"cockpit-bridge >= 287", f"kvm-portfwd >= {__version__}"} <= set(run("rpm", "-qpR", RPM).splitlines())
    assert json.loads((PAGE / "manifest.json").read_text())["requires"] == {"cockpit": "287"}


def test_both_hold_the_page_in_both_languages_and_all_licences(built: Path) -> None:  # noqa: ARG001  as above
    names = {line.split("./")[-1] for line in run("dpkg-deb", "--contents", DEB).splitlines()}
    page = {name.rpartition("/")[2] for name in names if name.startswith("usr/share/cockpit/kvm-portfwd/")}
    bundle = {"index.css.gz", "index.html", "index.js.gz", "manifest.json", "po.de.js.gz", "po.manifest.de.js.gz"}
    assert page - {""} == bundle
    listed = run("rpm", "-qlp", RPM).splitlines()
    assert bundle <= {name.rpartition("/")[2] for name in listed}
    licences = (PAGE / "dist/LICENSES.txt").read_text(encoding="utf-8")
    locked = json.loads((PAGE / "package-lock.json").read_text())["packages"]
    heads = [entry.splitlines()[0] for entry in licences.split("-" * 80 + "\n\n")]
    *named, icons = [head.rpartition(", ") for head in heads]
    assert {licence for *_, licence in named} == {"MIT", "0BSD"}
    versions = dict(what.rsplit(" ", 1) for what, *_ in named)
    assert {"react", "react-dom", "@patternfly/react-core", "@patternfly/react-icons"} <= versions.keys()
    assert versions == {name: locked[f"node_modules/{name}"]["version"] for name in versions}
    # Of them, @patternfly/react-icons makes its own.
    assert icons == ("Font Awesome Free 5.15.4", ", ", "CC-BY-4.0")


def test_the_drop_in_keeps_what_the_page_does_not_change_and_follows_what_the_daemon_answers(built: Path) -> None:  # noqa: ARG001  as above
    assert "\n# fail 0" in run("npm", "--prefix", PAGE, "test")


def test_the_page_has_words_for_every_kind_that_the_daemon_gives() -> None:
    """In words of its own, which are translated; what it has none for is shown in English."""
    text = (PAGE / "src/words.tsx").read_text(encoding="utf-8")
    lists = re.findall(r"^const (\w+): Record<string, string> = \{(.*?)^\};", text, re.DOTALL | re.MULTILINE)
    kinds = {name: re.findall(r'^    "([^"]+)": ', listed, re.MULTILINE) for name, listed in lists}
    assert sorted(kinds["WHOLE"] + kinds["IN_PART"]) == sorted(HindranceKind)
    assert sorted(kinds["CAUSES"]) == sorted(Cause)
    late = dict(re.findall(r'^    "([^"]+)": _\("([^"]+)"\)', dict(lists)["LATE"], re.MULTILINE))
    assert late == {job: words.replace("{}", "$0") for job, words in LATE_JOBS.items()}
    named = set(re.findall(r'\b(?:fine|wrong|unknown)\(\s*"([^"]+)"', "\n".join(map(read, EXPLAIN.glob("*.py")))))
    assert named <= set(kinds["STEPS"])
    assert len(named) > 10


def read(file: Path) -> str:
    return file.read_text(encoding="utf-8")


def test_packages_are_pinned_and_no_registry_is_named() -> None:
    wanted = json.loads((PAGE / "package.json").read_text())
    versions = [*wanted["dependencies"].values(), *wanted["devDependencies"].values()]
    assert [version for version in versions if not re.fullmatch(r"\d+\.\d+\.\d+", version)] == []
    lock = (PAGE / "package-lock.json").read_text()
    assert "resolved" not in lock
    assert [name for name, item in json.loads(lock)["packages"].items() if name and "integrity" not in item] == []


def test_the_page_has_no_script_of_its_own_in_its_text() -> None:
    """As Cockpit's content policy wants it."""
    text = (PAGE / "src/index.html").read_text(encoding="utf-8")
    assert re.findall(r"<script(?![^>]* src=)|<style| on\w+=| style=", text) == []
