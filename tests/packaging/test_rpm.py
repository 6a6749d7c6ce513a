"""The source archive, the wheel and the RPM packages are built for real, and hold what they should.

Debian's rpmbuild has none of Fedora's macros for Python and systemd. Those here stand in for them, so that the spec is
run from its first line to its last; what Fedora's own do is not shown.
"""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Final

import pytest

from fwdaemon import __version__
from tests.unit import programs

ROOT: Final = Path(__file__).parents[2]
FILTERS: Final = ROOT / "packaging/kvm-portfwd.rpmlintrc"
SPEC: Final = ROOT / "packaging/kvm-portfwd.spec"
_MACROS: Final = f"""\
%_topdir %{{getenv:HOME}}/rpmbuild
%_unitdir /usr/lib/systemd/system
%_tmpfilesdir /usr/lib/tmpfiles.d
%_journalcatalogdir /usr/lib/systemd/catalog
%bash_completions_dir /usr/share/bash-completion/completions
%fish_completions_dir /usr/share/fish/vendor_completions.d
%zsh_completions_dir /usr/share/zsh/site-functions
%systemd_post() : post %1
%systemd_preun() : preun %1
%pyproject_buildrequires(R) %{{nil}}
%pyproject_wheel /usr/bin/python3 -m hatchling build -t wheel -d wheels
%pyproject_install {sys.executable} -m pip install -q --no-deps --no-compile --root %{{buildroot}} --prefix /usr \
wheels/*.whl; sed -i '1s|.*|#!/usr/bin/python3 -sP|' %{{buildroot}}/usr/bin/*
%pyproject_save_files() (cd %{{buildroot}} && find usr/lib/python3* -type f | sed 's|^|/|') > %{{pyproject_files}}
%pyproject_files %{{_builddir}}/pyproject-files
%pyproject_check_import(t) %{{nil}}
%__os_install_post find %{{buildroot}}/usr/share/man -type f -exec gzip -9n {{}} +
"""


def _run(*argv: str | Path, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(  # noqa: S603  words of ours
        [str(word) for word in argv], capture_output=True, text=True, env=env, cwd=ROOT, check=False
    )
    assert done.returncode == 0, (done.stderr + done.stdout)[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def source_package() -> Path:
    """What `scripts/package rpm` builds here; the archive and the wheel lie beside it."""
    programs.find("rpmbuild")
    printed = _run("scripts/package", "rpm").splitlines()
    assert printed == [str(ROOT / f"dist/kvm-portfwd-{__version__}-1.src.rpm")]
    return Path(printed[0])


@pytest.fixture(scope="module")
def package(source_package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package, made of the source package alone."""
    home = tmp_path_factory.mktemp("home")
    (home / ".rpmmacros").write_text(_MACROS)
    _run("rpmbuild", "--quiet", "--rebuild", "--nodeps", source_package, env={**os.environ, "HOME": str(home)})
    return home / f"rpmbuild/RPMS/noarch/kvm-portfwd-{__version__}-1.noarch.rpm"


def modules() -> set[str]:
    """Every file of the program, its data included."""
    found = (ROOT / "fwdaemon").rglob("*")
    return {str(path.relative_to(ROOT)) for path in found if path.is_file() and path.parent.name != "__pycache__"}


def test_the_wheel_holds_the_program_and_its_data(source_package: Path) -> None:
    with zipfile.ZipFile(source_package.parent / f"kvm_portfwd-{__version__}-py3-none-any.whl") as wheel:
        held = set(wheel.namelist())
    assert {name for name in held if ".dist-info/" not in name} == modules()


def test_the_source_archive_holds_what_installations_need(source_package: Path) -> None:
    with tarfile.open(source_package.parent / f"kvm_portfwd-{__version__}.tar.gz") as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    needed = [ROOT / "LICENSE", ROOT / "README.md"]
    for directory in ("completion", "docs", "etc", "man", "packaging", "scripts", "systemd"):
        needed += [path for path in (ROOT / directory).rglob("*") if path.is_file()]
    assert {str(path.relative_to(ROOT)) for path in needed} | modules() <= held


def test_the_package_puts_everything_in_its_place(package: Path) -> None:
    held = set(_run("rpm", "-qpl", package).splitlines())
    assert {
        "/etc/portfwd.d",
        "/etc/portfwd.toml",
        "/usr/bin/kvm-portfwd",
        "/usr/lib/systemd/catalog/kvm-portfwd.catalog",
        "/usr/lib/systemd/system/kvm-portfwd.service",
        "/usr/lib/systemd/system/kvm-portfwd.service.d/backoff.conf",
        "/usr/lib/tmpfiles.d/kvm-portfwd.conf",
        "/usr/share/bash-completion/completions/kvm-portfwd",
        "/usr/share/fish/vendor_completions.d/kvm-portfwd.fish",
        "/usr/share/man/man5/portfwd.toml.5.gz",
        "/usr/share/man/man8/kvm-portfwd.8.gz",
        "/usr/share/zsh/site-functions/_kvm-portfwd",
    } <= held
    assert {"fwdaemon/" + name.partition("/fwdaemon/")[2] for name in held if "/fwdaemon/" in name} == modules()
    assert _run("rpm", "-qpc", package) == "/etc/portfwd.toml\n"


def test_removal_takes_the_rules_away_and_an_upgrade_does_not(package: Path) -> None:
    script = _run("rpm", "-qp", "--queryformat", "%{PREUN}", package)
    condition = '[ "$1" -eq 0 ] && [ -d /run/kvm-portfwd ]'
    assert script.count("kvm-portfwd flush") == 1
    assert script.index(condition) < script.index("kvm-portfwd flush")


@pytest.mark.parametrize("runs", [True, False])
def test_an_upgrade_restarts_a_daemon_that_runs_and_tells_it_to_keep_its_rules(
    package: Path, tmp_path: Path, *, runs: bool
) -> None:
    """`systemctl` only notes what it was asked, and whether the daemon would have found the file at that time."""
    systemctl = tmp_path / "systemctl"
    systemctl.write_text(
        f'#!/bin/sh\nset -- "$@" "$(ls {tmp_path}/kvm-portfwd)"\necho $* >>{tmp_path}/asked\n'
        f'[ "$2" != is-active ] || {str(runs).lower()}\n'
    )
    systemctl.chmod(0o755)
    (tmp_path / "kvm-portfwd").mkdir()
    script = _run("rpm", "-qp", "--queryformat", "%{POSTTRANS}", package).replace("/run/", f"{tmp_path}/")
    _run("sh", "-ec", script, env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"})
    asked = (tmp_path / "asked").read_text().splitlines()
    restarted = ["daemon-reload upgrade", "try-restart kvm-portfwd.service upgrade"]
    assert asked == ["--quiet is-active kvm-portfwd.service", *(restarted if runs else [])]
    assert list((tmp_path / "kvm-portfwd").iterdir()) == []


def test_what_fedora_makes_requirements_of_is_all_in_fedora(package: Path) -> None:
    assert "nftables" in _run("rpm", "-qp", "--requires", package).split()
    _run("rpm2archive", "--nocompression", package)
    _run("tar", "-xf", f"{package}.tar", "-C", package.parent)
    (metadata,) = package.parent.rglob("*.dist-info")
    # Fedora's rpmbuild runs this; Debian's has it too.
    required = _run("/usr/bin/python3", "/usr/lib/rpm/pythondistdeps.py", "--requires", metadata)
    names = re.findall(r"dist\((\S+)\)", required)
    assert names == ["json5", "libvirt-python", "pyroute2", "rich", "tomli", "tomlkit", "watchdog"]


def test_rpmlint_has_nothing_to_say(source_package: Path, package: Path) -> None:
    summary = _run(programs.find("rpmlint"), "-r", FILTERS, SPEC, source_package, package).splitlines()[-1]
    assert " 0 errors, 0 warnings," in summary, summary


def test_files_that_a_group_may_write_in_the_checkout_are_not_so_in_the_packages(tmp_path: Path) -> None:
    """As after a checkout with umask 002."""
    checkout = tmp_path / "checkout"
    left = shutil.ignore_patterns(".*", "__pycache__", "dist", "tests", "bench")
    shutil.copytree(ROOT, checkout, ignore=left)
    for path in (checkout, *checkout.rglob("*")):
        path.chmod(path.stat().st_mode | 0o020)
    built = _run(checkout / "packaging/build-rpm").splitlines()
    modes = _run("rpm", "-qp", "--queryformat", "[%{FILEMODES:octal}\n]", *built).split()
    assert {int(mode, 8) & 0o022 for mode in modes} == {0}
    with tarfile.open(next((checkout / "dist").glob("*.tar.gz"))) as archive:
        assert {member.mode & 0o022 for member in archive.getmembers()} == {0}
