"""The guests of the host: domains whose name and address can change while their UUID and MAC address stay."""

import xml.etree.ElementTree as ET
from typing import Self

import libvirt

from tests.chaos.asking import ASKING, NAMESPACE
from tests.chaos.model import Domain
from tests.lab.domain import Link, mac_of
from tests.lab.host import SOURCE, Host
from tests.lab.lxc import LxcGuest

# Those that answer on more than web pages.
SPEAKING = ("b", "steady")


class ChaosGuest(LxcGuest):
    """A guest as the model has it at the time of each call."""

    def __init__(self, host: Host, model: Domain) -> None:
        super().__init__(host, model.name)
        self.model = model
        self.adopt()

    def adopt(self) -> None:
        """Take name and address from the model."""
        model = self.model
        self.name = model.name
        self.links = [Link(model.network, (f"{model.address4}/24", f"{model.address6}/64"))]

    def mac(self, index: int = 0) -> str:
        """The MAC address, whatever the name."""
        return mac_of(self.model.key, index)

    def _xml(self) -> ET.Element:
        domain = super()._xml()
        ET.SubElement(domain, "uuid").text = self.model.uuid
        asked = ET.fromstring(ASKING[self.model.asks])  # noqa: S314  it is our own
        ET.SubElement(domain, "metadata").append(asked)
        return domain

    def wait_up(self) -> None:
        """Wait until it serves all that it is to serve."""
        super().wait_up()
        if self.model.key in SPEAKING:
            program = f"{SOURCE}/tests/chaos/server.py"
            self.place.popen([self.host.python, program, self.model.key]).wait_line("^ready$")

    def move(self, before: tuple[str, str]) -> None:
        """Take the model's addresses instead of those it had before, now and at every later start."""
        self.adopt()
        self.define()
        for old, new, length in zip(before, (self.model.address4, self.model.address6), (24, 64), strict=True):
            # The first address of a subnet takes the others with it when it goes.
            self.run("ip", "address", "del", f"{old}/{length}", "dev", "eth0")
            self.run("ip", "address", "add", f"{new}/{length}", "dev", "eth0", *(["nodad"] if ":" in new else []))
        gateway4 = self.model.address4.rpartition(".")[0] + ".1"
        self.run("ip", "route", "replace", "default", "via", gateway4)
        self.run("ip", "-6", "route", "replace", "default", "via", self.model.address6.rpartition("::")[0] + "::1")

    def undefine(self) -> None:
        """Forget its definition; what runs goes on."""
        with self.domain() as domain:
            domain.undefine()

    def rename(self) -> Self:
        """Define it under the model's name instead of its own; it does not run."""
        self.undefine()
        self.adopt()
        return self.define()

    def ask(self) -> None:
        """Write what the model asks for into its definition, of now and, if it has one, of later."""
        text, where = ASKING[self.model.asks], libvirt.VIR_DOMAIN_AFFECT_LIVE
        if self.model.defined:
            where |= libvirt.VIR_DOMAIN_AFFECT_CONFIG
        with self.domain() as domain:
            domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, text, "portfwd", NAMESPACE, where)

    def flutter(self, times: int) -> None:
        """Pause and resume it so many times."""
        with self.domain() as domain:
            for _ in range(times):
                domain.suspend()
                domain.resume()

    def multiply(self, times: int) -> None:
        """Define another domain and undefine it, so many times: more events than the daemon receives."""
        text = ET.tostring(super()._xml(), encoding="unicode").replace(f"<name>{self.name}<", "<name>flood<")
        with self.host.libvirt.connection() as connection:
            for _ in range(times):
                connection.defineXML(text).undefine()


def is_running(host: Host, name: str) -> bool:
    """Whether libvirt has a running domain of that name."""
    with host.libvirt.connection() as connection:
        return name in {domain.name() for domain in connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE)}
