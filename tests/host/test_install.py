"""`scripts/install` where the distribution's Python has none of the bindings, and what it refuses to start with."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.host.conftest import HEAD, WEB4, Scene, entry
from tests.lab.computer import PUBLIC4
from tests.lab.host import Host
from tests.lab.installation import CONFIG, UNIT_FILE, Installation, installable
from tests.lab.place import Process, wait_until
from tests.lab.release import Flavour, own_flavour


@pytest.fixture(scope="module", params=[own_flavour()], ids=str)
def flavour(request: pytest.FixtureRequest) -> Flavour:
    """The machine's own release: scripts/prepare installed what pip takes to build the bindings there."""
    flavour: Flavour = request.param
    return flavour


@pytest.fixture
def installation(host: Host) -> Iterator[Installation]:
    """A host on which nothing of ours is installed."""
    with installable(host) as installation:
        yield installation


@contextmanager
def service(host: Host) -> Iterator[Process]:
    """Run what the installed unit starts."""
    command = re.search(r"^ExecStart=(.*)$", host.read(UNIT_FILE), re.MULTILINE)
    assert command is not None
    daemon = host.popen(*command[1].split())
    try:
        yield daemon
    finally:
        daemon.stop()


def test_the_installed_daemon_runs_on_bindings_that_pip_built(shared_scene: Scene, installation: Installation) -> None:
    host = shared_scene.host
    before = installation.files()
    installation.install()
    host.write(CONFIG, HEAD + entry("web", "8000:80", WEB4))
    with service(host):
        page = f"http://{PUBLIC4}:8000/"
        wait_until(lambda: host.outside.fetch(page).answered, "the installed daemon forwards")
        assert re.search(r"active +web ", host.run("kvm-portfwd", "status").stdout)
        assert "kvm_portfwd" in host.run("kvm-portfwd", "rules").stdout
    assert host.own_rules()
    host.run("/opt/kvm-portfwd/uninstall", "--purge")
    assert host.own_rules() == ""
    assert installation.files() == before


def test_both_want_root(installation: Installation) -> None:
    for script in ("install", "uninstall"):
        refused = installation.run_as_nobody(script)
        assert refused.returncode == 1
        assert f"it must be run as root: sudo scripts/{script}" in refused.stderr


def test_nothing_is_written_where_python_is_missing(installation: Installation) -> None:
    before = installation.files()
    refused = installation.install("PYTHON=/bin/false", check=False)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith("scripts/install: Python 3.11 or newer is missing; install python3 ")
    assert installation.files() == before


def test_an_installation_that_failed_can_be_removed(installation: Installation) -> None:
    before = installation.files()
    failed = installation.install("PIP_NO_INDEX=1", "PIP_FIND_LINKS=/nowhere", check=False)
    assert failed.returncode == 1
    assert installation.files() != before
    installation.uninstall()
    assert installation.files() == before


@pytest.mark.parametrize("pins", ["requirements.txt", "build-requirements.txt"])
def test_nothing_with_another_hash_is_installed(installation: Installation, pins: str) -> None:
    """As if another file had been put on PyPI in the place of one that is pinned."""
    installation.there.run("sed", "-i", f"s/sha256:[0-9a-f]*/sha256:{0:064}/", f"/root/checkout/scripts/{pins}")
    refused = installation.install(check=False)
    assert refused.returncode == 1
    assert "THESE PACKAGES DO NOT MATCH THE HASHES" in refused.stderr
    assert not any("/opt/kvm-portfwd/bin/kvm-portfwd " in file for file in installation.files())
