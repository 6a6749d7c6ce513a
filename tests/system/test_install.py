"""`scripts/install` on a machine with systemd: what it asks the user to type works, and removal leaves no file."""

import re
import shlex
from collections.abc import Iterator

import pytest

from tests.lab.computer import CLIENT4, PUBLIC4
from tests.lab.domain import Link
from tests.lab.installation import CONFIG, installable
from tests.lab.lxc import LxcGuest
from tests.lab.machine import Machine
from tests.lab.place import wait_until
from tests.lab.release import LibvirtFirewall

# tests/host installs on the other release.
pytestmark = pytest.mark.on(LibvirtFirewall.NFTABLES)
CONFIGURATION = """\
[daemon]
libvirt = ["lxc:///system"]

[[forward]]
domain = "web"
address = "192.168.122.10"
ports = ["8080:80"]
"""


@pytest.fixture
def web(machine: Machine) -> Iterator[LxcGuest]:
    """A guest that serves a page."""
    machine.libvirt.define_network("default", "192.168.122.0/24")
    guest = LxcGuest(machine, "web", Link("default", ("192.168.122.10/24",)))
    guest.start()
    yield guest
    guest.remove()
    machine.libvirt.remove_network("default")


@pytest.mark.usefixtures("web")
def test_systemd_runs_what_was_installed_until_it_is_removed(machine: Machine) -> None:
    def page_is_there() -> bool:
        return machine.outside.fetch(f"http://{PUBLIC4}:8080/").text == f"web {CLIENT4}"

    with installable(machine) as installation:
        installation.provide()
        before = installation.files()
        told = installation.install().stdout
        assert machine.property("ActiveState") == "inactive"
        assert machine.property("UnitFileState") == "disabled"
        machine.write(CONFIG, CONFIGURATION)
        commands = re.findall(r"^ +sudo (.*)$", told, re.MULTILINE)
        assert len(commands) == 3
        for command in commands:
            machine.run(*shlex.split(command))
        wait_until(page_is_there, "the forward is live")

        installed = installation.files()
        told = installation.install().stdout
        assert installation.files() == installed
        assert machine.read(CONFIG) == CONFIGURATION
        assert page_is_there()
        (command,) = re.findall(r"^ +sudo (.*)$", told, re.MULTILINE)
        machine.run(*shlex.split(command))
        assert page_is_there()

        assert "--purge" in installation.uninstall().stdout
        assert machine.property("LoadState") == "not-found"
        assert machine.own_rules() == ""
        assert machine.read(CONFIG) == CONFIGURATION
        installation.uninstall("--purge")
        assert installation.files() == before
