"""What docs/automation.md prints does what it says in libvirt and the daemon, on guests of the names it says."""

import re
import textwrap
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.conftest import MakeLxcGuest, MakeNetwork, StartDaemon
from tests.host.conftest import HEAD
from tests.host.typed import typed
from tests.lab.domain import Link
from tests.lab.host import CLIENT4, CLIENT4_SECOND, PUBLIC4, Host
from tests.lab.lxc import LxcGuest
from tests.lab.place import wait_until
from tests.lab.release import LibvirtFirewall

PAGE: Final = (Path(__file__).parents[2] / "docs/automation.md").read_text(encoding="utf-8")
# What virt-install printed for the command of the page, and the file of the task.
PRINTED: Final = (Path(__file__).parents[1] / "unit/samples/virt-install-4.1.xml").read_text(encoding="utf-8")
DROP_IN: Final = "/etc/portfwd.d/build.toml"
BOTH: Final = pytest.mark.on(LibvirtFirewall.LEGACY, LibvirtFirewall.NFTABLES)


def shown(language: str, section: str) -> list[str]:
    """The blocks in that language below a heading."""
    [text] = re.findall(rf"^## {section}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.mark.in_turn
@BOTH
def test_a_guest_gets_what_the_page_has_it_ask_for(
    host: Host, network: MakeNetwork, lxc_guest: MakeLxcGuest, daemon: StartDaemon
) -> None:
    network("default", "192.168.122.0/24")
    guest = lxc_guest("ci-7", Link("default", ("192.168.122.10/24",)))
    guest.serve_tcp(22)
    daemon(of_containers("The host's file"))
    ask, withdraw = shown("sh", "virsh")
    typed(host, ask)
    wait_until(lambda: host.outside.fetch(f"http://{PUBLIC4}:8080/").text == f"ci-7 {CLIENT4}", "8080 answers")
    [ssh] = shown("sh", "The host's file")
    wait_until(lambda: typed(host, ssh.replace("vmhost", PUBLIC4)).startswith("ci-7 "), "its port 22 answers")
    typed(host, withdraw)
    wait_until(lambda: not host.outside.fetch(f"http://{PUBLIC4}:8080/").answered, "8080 is closed")


@pytest.mark.in_turn
@BOTH
def test_definitions_and_files_of_the_page_give_guests_their_ports(
    host: Host, network: MakeNetwork, lxc_guest: MakeLxcGuest, daemon: StartDaemon
) -> None:
    network("default", "192.168.122.0/24")
    running = daemon(of_containers("The host's file"))
    [whole] = shown("xml", "What a guest asks for")
    for definition in (whole, PRINTED):
        with created(host, definition):
            answers(host, 8080, "ci-7")
            answers(host, assigned(host, "ci-7", 443), "ci-7", CLIENT4_SECOND)
            assert assigned(host, "ci-7", 22)
    [task] = shown("yaml", "Ansible")
    [(_, content)] = re.findall(r"^( *)content: \|\n((?:\1  .*\n|\n)+)", task, re.MULTILINE)
    host.write(DROP_IN, textwrap.dedent(content))
    try:
        running.reload_with(of_containers("Vagrant"))
        for number, name in enumerate(("project_default", "build-1"), 11):
            lxc_guest(name, Link("default", (f"192.168.122.{number}/24",)))
        answers(host, assigned(host, "project_default", 80), "project_default")
        assert assigned(host, "project_default", 22) != assigned(host, "build-1", 22)
        with created(host, whole):
            answers(host, assigned(host, "ci-7", 443), "ci-7", CLIENT4_SECOND)
            running.wait_log(rf"^added ci-7: .*; allowed by {DROP_IN}:\d+\)$")
            running.wait_log(rf"^declined ci-7: tcp \*:8080, .*, {DROP_IN}:\d+, does not cover ports tcp 8080 ")
    finally:
        host.run("rm", "-f", DROP_IN)


def of_containers(section: str) -> str:
    """The file below a heading, for guests that are containers."""
    [file] = shown("toml", section)
    return file.replace("[daemon]\n", HEAD)


@contextmanager
def created(host: Host, definition: str) -> Iterator[None]:
    """Have libvirt create the domain of a definition; what it does not say, or of other machines, is a guest's."""
    guest = Defined(host, definition)
    guest.prepare()
    with host.libvirt.connection("lxc") as connection:
        connection.createXML(guest.definition)
    try:
        guest.wait_up()
        yield
    finally:
        guest.remove()


class Defined(LxcGuest):
    """A guest of the name, and with the metadata, of a definition."""

    def __init__(self, host: Host, definition: str) -> None:
        self._asked = ET.fromstring(definition)  # noqa: S314  it is ours
        super().__init__(host, self._asked.findtext("name", ""), Link("default", ("192.168.122.10/24",)))

    @property
    def definition(self) -> str:
        domain = self._xml()
        domain.extend(self._asked.findall("metadata"))
        return ET.tostring(domain, encoding="unicode")


def assigned(host: Host, domain: str, port: int) -> int:
    """Give the port of the host that a guest's port has, once it has one."""
    words = ("port", "--port-only", domain, str(port))
    wait_until(lambda: host.portfwd(*words, check=False).returncode == 0, f"{domain} has a port for {port}")
    return int(host.portfwd(*words).stdout)


def answers(host: Host, port: int, guest: str, client: str = CLIENT4) -> None:
    page = f"http://{PUBLIC4}:{port}/"
    wait_until(lambda: host.outside.fetch(page, source=client).text == f"{guest} {client}", f"{page} answers")
