"""What LXC and QEMU guests have in common: a domain of libvirt with interfaces in its networks."""

import hashlib
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_interface
from typing import ClassVar, Self

import libvirt

from tests.lab.computer import Computer
from tests.lab.place import wait_until


def mac_of(name: str, index: int = 0) -> str:
    """The fixed MAC address of a guest's interface, in libvirt's own range."""
    digest = hashlib.sha256(f"{name}/{index}".encode()).digest()
    return "52:54:00:" + ":".join(f"{byte:02x}" for byte in digest[:3])


@dataclass(frozen=True, slots=True)
class Link:
    """A guest's interface: the network it is plugged into, its addresses with prefix (`192.168.122.10/24`), or DHCP.

    With `bridge`, it is plugged into that bridge of the host, past libvirt's networks, and `network` means nothing.
    """

    network: str
    addresses: tuple[str, ...] = ()
    dhcp: bool = False
    bridge: str | None = None

    @property
    def word(self) -> str:
        """What the guest's init gets, ADDRESS/PREFIX@GATEWAY; the gateway is the subnet's first address."""
        told = ",".join(f"{address}@{ip_interface(address).network[1]}" for address in self.addresses)
        return "dhcp" if self.dhcp else told or "none"


class Guest:
    """A domain; subclasses know how it boots. Not running until `start`."""

    driver: ClassVar[str]
    undefine_flags: ClassVar[int] = 0

    def __init__(self, host: Computer, name: str, *links: Link) -> None:
        self.host = host
        self.name = name
        self.links: Sequence[Link] = links

    def _xml(self) -> ET.Element:
        raise NotImplementedError

    def mac(self, index: int = 0) -> str:
        """The MAC address of one interface."""
        return mac_of(self.name, index)

    def _element(self, kind: str, memory: int) -> tuple[ET.Element, ET.Element]:
        domain = ET.Element("domain", type=kind)
        ET.SubElement(domain, "name").text = self.name
        ET.SubElement(domain, "memory", unit="MiB").text = str(memory)
        devices = ET.SubElement(domain, "devices")
        devices.extend(self._interface(link, self.mac(index)) for index, link in enumerate(self.links))
        return domain, devices

    def _interface(self, link: Link, mac: str) -> ET.Element:
        interface = ET.Element("interface", type="bridge" if link.bridge else "network")
        source = {"bridge": link.bridge} if link.bridge else {"network": link.network}
        ET.SubElement(interface, "source", source)
        ET.SubElement(interface, "mac", address=mac)
        return interface

    @contextmanager
    def domain(self) -> Iterator[libvirt.virDomain]:
        """What libvirt has of it."""
        with self.host.libvirt.connection(self.driver) as connection:
            yield connection.lookupByName(self.name)

    def define(self) -> Self:
        """Make it known to libvirt."""
        with self.host.libvirt.connection(self.driver) as connection:
            connection.defineXML(ET.tostring(self._xml(), encoding="unicode"))
        return self

    def start(self) -> Self:
        """Start it; defines it first if need be."""
        if not self.defined:
            self.define()
        with self.domain() as domain:
            domain.create()
        return self

    def stop(self) -> None:
        """Pull the plug (libvirt's destroy); it stays defined."""
        with self.domain() as domain:
            domain.destroy()

    def pause(self) -> None:
        """Freeze it; libvirt's suspend."""
        with self.domain() as domain:
            domain.suspend()

    def resume(self) -> None:
        """Undo `pause`."""
        with self.domain() as domain:
            domain.resume()

    def plug_in(self, link: Link, index: int) -> None:
        """Give it one more interface while it runs; setting it up inside is the caller's business."""
        self._change_device(libvirt.virDomain.attachDeviceFlags, link, index)

    def unplug(self, link: Link, index: int) -> None:
        """Take an interface away while it runs."""
        self._change_device(libvirt.virDomain.detachDeviceFlags, link, index)

    def _change_device(self, change: Callable[[libvirt.virDomain, str, int], int], link: Link, index: int) -> None:
        document = ET.tostring(self._interface(link, self.mac(index)), encoding="unicode")
        with self.domain() as domain:
            change(domain, document, libvirt.VIR_DOMAIN_AFFECT_LIVE)

    def remove(self) -> None:
        """Stop it if it runs, and forget it; nothing to do if libvirt does not know it."""
        if not self.defined:
            return
        with self.domain() as domain:
            persistent = domain.isPersistent()
            if domain.isActive():
                domain.destroy()
            if persistent:
                domain.undefineFlags(self.undefine_flags)

    @property
    def uuid(self) -> str:
        """Its UUID, as libvirt writes it."""
        with self.domain() as domain:
            return domain.UUIDString()

    @property
    def defined(self) -> bool:
        """Whether libvirt knows it."""
        try:
            with self.domain():
                return True
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                return False
            raise

    @property
    def running(self) -> bool:
        """Whether it runs or is paused."""
        with self.domain() as domain:
            return bool(domain.isActive())

    def lease(self, timeout: float = 60) -> str:
        """The address DHCP gave its first interface; waits for it."""
        network, mac = self.links[0].network, self.mac()
        wait_until(
            lambda: mac in self.host.libvirt.leases(network), f"{self.name} has a lease", timeout=timeout, interval=0.05
        )
        return self.host.libvirt.leases(network)[mac]
