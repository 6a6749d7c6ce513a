"""A transient domain that asks for ports in its definition, and is gone when it stops; it takes its address by DHCP."""

import re
import time
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final

from fwdaemon.hypervisor.xml import NAMESPACE
from tests.lab.command import LabError
from tests.lab.domain import Link
from tests.lab.host import Host
from tests.lab.lxc import LxcGuest
from tests.lab.place import child_of

# On each of them a guest of the lab serves its page.
PORTS: Final = (80, 443)
_STARTS = 5


@dataclass(frozen=True, slots=True)
class Created:
    """A guest that runs: its PID 1, when libvirt told so, and from when to when each before it was there.

    Those had lost their controller, so libvirt ended them.
    """

    init: int
    told: float
    lost: tuple[tuple[float, float], ...]


class PassingGuest(LxcGuest):
    """A guest as a CI runner makes it."""

    def __init__(self, host: Host, name: str, network: str) -> None:
        super().__init__(host, name, Link(network, dhcp=True))

    def _xml(self) -> ET.Element:
        domain = super()._xml()
        forwards = ET.SubElement(ET.SubElement(domain, "metadata"), f"{{{NAMESPACE}}}forwards")
        ET.SubElement(forwards, f"{{{NAMESPACE}}}forward", ports=" ".join(f"auto:{port}" for port in PORTS))
        return domain

    def create(self) -> Created:
        """Start it. Where libvirt lost its controller, which `LxcGuest.start` explains, another takes its place."""
        lost = list[tuple[float, float]]()
        for _ in range(_STARTS):
            with self.host.libvirt.connection(self.driver) as connection:
                domain = connection.createXML(ET.tostring(self._xml(), encoding="unicode"))
                told = time.monotonic()
                if self.heard() and (init := self.started()) is not None:
                    return Created(init, told, tuple(lost))
                domain.destroy()
                lost.append((told, time.monotonic()))
        raise LabError(f"libvirt lost the controller of {self.name} {_STARTS} times")

    def started(self) -> int | None:
        """Give its PID 1 by the host's numbers, as soon as it has one; libvirt is not asked."""
        root = Path(f"/proc/{self.host.init}/root")
        try:
            controller = int((root / f"run/libvirt/lxc/{self.name}.pid").read_text(encoding="ascii"))
        except (OSError, ValueError):  # it is not there yet, or not written yet
            return None
        return child_of(controller, root / "proc")

    def address(self, init: int) -> str | None:
        """Give the address that its interface has now, as its own kernel has it: no lease has to be waited for."""
        try:
            told = Path(f"/proc/{self.host.init}/root/proc/{init}/net/fib_trie").read_text(encoding="ascii")
        except OSError:  # this one has ended
            return None
        found = re.findall(r"-- (\S+)\n\s+/32 host LOCAL", told)
        return next((address for address in found if not IPv4Address(address).is_loopback), None)
