"""The Debian package: what is in it, what it depends on, and that every build gives the same."""

import gzip
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from fwdaemon import __version__
from fwdaemon import config as configuration
from tests.lab.image import PYTHON_PACKAGES
from tests.unit import programs

SOURCE: Final = Path(__file__).parents[2]
# What build-deb reads of a checkout; no history and no environment are among it.
PARTS: Final = ("completion", "docs", "etc", "fwdaemon", "man", "packaging", "systemd")
MODULES: Final = "usr/lib/python3/dist-packages/fwdaemon"
SHIPPED: Final = {
    "etc/portfwd.toml": "etc/portfwd.toml",
    "systemd/kvm-portfwd.service": "usr/lib/systemd/system/kvm-portfwd.service",
    "systemd/kvm-portfwd.tmpfiles": "usr/lib/tmpfiles.d/kvm-portfwd.conf",
    "systemd/kvm-portfwd.apparmor": "etc/apparmor.d/kvm-portfwd",
    "systemd/kvm-portfwd.catalog": "usr/lib/systemd/catalog/kvm-portfwd.catalog",
    "completion/kvm-portfwd.bash": "usr/share/bash-completion/completions/kvm-portfwd",
    "completion/kvm-portfwd.zsh": "usr/share/zsh/vendor-completions/_kvm-portfwd",
    "completion/kvm-portfwd.fish": "usr/share/fish/vendor_completions.d/kvm-portfwd.fish",
}
# Older than the checkout, and than any other time that could get into the package.
EPOCH: Final = "1700000000"


def checkout(target: Path) -> Path:
    """Copy what a release's archive holds."""
    for part in PARTS:
        shutil.copytree(SOURCE / part, target / part, ignore=shutil.ignore_patterns("__pycache__"))
    for file in (*SOURCE.glob("*.md"), SOURCE / "LICENSE", SOURCE / "pyproject.toml"):
        shutil.copy(file, target)
    return target


def build(source: Path, umask: int = 0o022, **environment: str) -> subprocess.CompletedProcess[str]:
    programs.find("dh_python3")
    argv = [str(source / "packaging" / "build-deb")]
    env = {**os.environ, "SOURCE_DATE_EPOCH": EPOCH, **environment}
    return subprocess.run(  # noqa: S603  words of ours
        argv, env=env, umask=umask, capture_output=True, text=True, check=False, timeout=300
    )


def dpkg_deb(*words: str | Path) -> str:
    argv = [programs.find("dpkg-deb"), *map(str, words)]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout  # noqa: S603  words of ours


def files(root: Path) -> Iterator[Path]:
    return (path.relative_to(root) for path in sorted(root.rglob("*")) if path.is_file())


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkout(tmp_path_factory.mktemp("checkout"))


@pytest.fixture(scope="module")
def package(source: Path) -> Path:
    """The package, built from a checkout in which nothing but dist/ may change."""
    before = list(files(source))
    done = build(source)
    assert done.returncode == 0, done.stderr
    built = Path(done.stdout.removesuffix("\n"))
    assert list(files(source)) == sorted([*before, built.relative_to(source)])
    return built


@pytest.fixture(scope="module")
def unpacked(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("unpacked")
    dpkg_deb("-R", package, target)
    return target


def test_it_has_the_version_of_the_program(package: Path) -> None:
    assert dpkg_deb("--field", package, "Version") == f"{__version__}-1\n"


def test_an_upgrade_shows_what_it_changes(package: Path, unpacked: Path) -> None:
    news = gzip.decompress((unpacked / "usr/share/doc/kvm-portfwd/NEWS.Debian.gz").read_bytes()).decode()
    assert news.startswith(f"kvm-portfwd ({__version__}-1) unstable; urgency=medium\n\n  Before you upgrade, see that ")
    maintainer = dpkg_deb("--field", package, "Maintainer").strip()
    assert news.splitlines()[-2:] == ["", f" -- {maintainer}  Tue, 14 Nov 2023 22:13:20 +0000"]


def test_it_depends_on_every_library_and_on_nft(package: Path) -> None:
    depends, suggests = (dpkg_deb("--field", package, field).strip() for field in ("Depends", "Suggests"))
    names = {entry.partition(" ")[0] for entry in depends.split(", ")}
    assert names == {"nftables", "python3:any", *PYTHON_PACKAGES} - {"python3", "python3-prometheus-client"}
    assert "python3-prometheus-client" in suggests


def test_every_file_the_program_reads_is_in_it(unpacked: Path, source: Path) -> None:
    wanted, shipped = source / "fwdaemon", unpacked / MODULES
    assert list(files(shipped)) == list(files(wanted))
    assert [path for path in files(wanted) if (shipped / path).read_bytes() != (wanted / path).read_bytes()] == []


@pytest.mark.parametrize(("ours", "shipped"), SHIPPED.items(), ids=SHIPPED)
def test_what_is_beside_the_program_is_where_debian_looks_for_it(unpacked: Path, ours: str, shipped: str) -> None:
    assert (unpacked / shipped).read_bytes() == (SOURCE / ours).read_bytes()


def test_the_configuration_is_the_administrators_and_opens_nothing(unpacked: Path) -> None:
    conffiles = (unpacked / "DEBIAN/conffiles").read_text().splitlines()
    assert sorted(conffiles) == ["/etc/apparmor.d/kvm-portfwd", "/etc/portfwd.toml"]
    config = configuration.load(unpacked / "etc/portfwd.toml")
    assert (config.forwards, config.nats, config.routes) == ((), (), ())
    assert list((unpacked / "etc/portfwd.d").iterdir()) == []


def test_the_profile_is_loaded_before_the_daemon_is_started_again(unpacked: Path) -> None:
    script = (unpacked / "DEBIAN/postinst").read_text()
    assert 0 < script.index("apparmor_parser -r") < script.index("deb-systemd-invoke")


def test_apparmor_knows_every_word_of_the_profile_and_it_is_the_units_own(unpacked: Path) -> None:
    """Only the unit names it: a profile that names a program would confine what administrators run, too."""
    argv = [programs.find("apparmor_parser"), "--quiet", "--skip-kernel-load", "--skip-cache"]
    profile = str(unpacked / "etc/apparmor.d/kvm-portfwd")
    done = subprocess.run([*argv, profile], capture_output=True, text=True, check=False)  # noqa: S603  words of ours
    assert done.returncode == 0, done.stderr
    named = subprocess.run([*argv, "--names", profile], capture_output=True, text=True, check=True)  # noqa: S603  the same
    assert named.stdout == "kvm-portfwd\n"
    assert "AppArmorProfile=-kvm-portfwd\n" in (unpacked / "usr/lib/systemd/system/kvm-portfwd.service").read_text()
    assert "profile kvm-portfwd flags=(attach_disconnected) {" in Path(profile).read_text()


def test_the_program_imports_nothing_from_the_current_directory(unpacked: Path) -> None:
    assert (unpacked / "usr/bin/kvm-portfwd").read_text().splitlines()[0] == "#! /usr/bin/python3 -I"


def test_lintian_has_nothing_to_say(package: Path) -> None:
    # Debian 13's lintian does not know this one any more, and calls an override of it an error.
    argv = ["--suppress-tags", "package-supports-alternative-init-but-no-init.d-script", str(package)]
    argv = [programs.find("lintian"), "--allow-root", "--pedantic", "--display-info", *argv]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)  # noqa: S603  words of ours
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_a_later_build_elsewhere_gives_the_same_bytes(source: Path, package: Path, tmp_path: Path) -> None:
    """By a user with another umask, home, language and time zone, whose checkout has other times and modes."""
    elsewhere = shutil.copytree(source, tmp_path / "elsewhere", copy_function=shutil.copy)
    for path in elsewhere.rglob("*"):
        path.chmod(path.stat().st_mode & 0o700)
    done = build(elsewhere, 0o077, HOME=str(tmp_path), LC_ALL="tr_TR.UTF-8", TZ="Pacific/Kiritimati")
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).read_bytes() == package.read_bytes()


def test_a_version_that_the_changelog_does_not_know_is_refused(tmp_path: Path) -> None:
    source = checkout(tmp_path)
    module = source / "fwdaemon" / "__init__.py"
    module.write_text(module.read_text().replace(__version__, "99.0.0"))
    done = build(source)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"says 99.0.0, CHANGELOG.md's newest entry is {__version__}" in done.stderr
