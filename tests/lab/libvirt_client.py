"""Speaking with the libvirt of a lab host or machine: domains and networks, however its daemons are started."""

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Any

import libvirt

from tests.lab.place import Place, wait_until
from tests.lab.release import LibvirtFirewall

_SOCKET = "run/libvirt/libvirt-sock"
# This kernel may lack the checksum action libvirt's nftables backend asks `tc` for; no guest of the lab needs it.
_TC = '#!/bin/sh\ncase " $* " in *" csum "*) exit 0 ;; esac\nexec /usr/sbin/tc.real "$@"\n'


def _run_events_once() -> None:
    """Free the socket of a closed connection, which libvirt leaves to its event loop where a test registered one."""
    try:
        libvirt.virEventAddTimeout(0, _only_once, None)
    except libvirt.libvirtError:  # none is registered
        return
    libvirt.virEventRunDefaultImpl()


def _only_once(timer: int, _opaque: None) -> None:
    libvirt.virEventRemoveTimeout(timer)


@dataclass(frozen=True, slots=True)
class Reservation:
    """An address libvirt's DHCP server keeps for a MAC address."""

    mac: str
    address: str


class LibvirtClient:
    """The libvirt whose daemons run under the PID 1 `init`."""

    def __init__(self, place: Place, init: int) -> None:
        self._place = place
        self._socket = Path(f"/proc/{init}/root/{_SOCKET}")

    @property
    def answers(self) -> bool:
        """Whether its daemon can be asked."""
        try:
            with self.connection():
                return True
        except libvirt.libvirtError:
            return False

    def restart(self) -> None:
        """Stop its daemon and start it again."""
        raise NotImplementedError

    def move_to(self, firewall: LibvirtFirewall) -> None:
        """Restart libvirtd on another firewall, as an administrator would: alternatives or libvirt's own setting."""
        legacy = firewall is LibvirtFirewall.LEGACY
        for name in ("iptables", "ip6tables"):
            target = f"/usr/sbin/{name}-{'legacy' if legacy else 'nft'}"
            self._place.run(["update-alternatives", "--quiet", "--set", name, target])
        self.choose_firewall(firewall)
        self.restart()

    def choose_firewall(self, firewall: LibvirtFirewall) -> None:
        """Set what libvirt writes its rules with from its next start on; libvirt 9.0 ignores this file."""
        nftables = firewall is LibvirtFirewall.NFTABLES
        self._write("/etc/libvirt/network.conf", f'firewall_backend = "{"nftables" if nftables else "iptables"}"\n')
        if nftables:
            self._place.run(["sh", "-c", "test -e /usr/sbin/tc.real || mv /usr/sbin/tc /usr/sbin/tc.real"])
            self._write("/usr/sbin/tc", _TC)
            self._place.run(["chmod", "0755", "/usr/sbin/tc"])

    def _write(self, path: str, text: str) -> None:
        self._place.run(["sh", "-c", 'cat >"$1"', "sh", path], stdin=text)

    @contextmanager
    def connection(self, driver: str = "lxc") -> Iterator[libvirt.virConnect]:
        """A connection to one of its drivers, from the test itself."""
        connection = libvirt.open(f"{driver}+unix:///system?socket={self._socket}")
        try:
            yield connection
        finally:
            connection.close()
            _run_events_once()

    def virsh(self, *words: str, driver: str = "lxc", check: bool = True) -> str:
        """What virsh prints on the host."""
        return self._place.run(["virsh", "--quiet", "-c", f"{driver}:///system", *words], check=check).stdout

    def define_network(  # noqa: PLR0913  a network has that many sides
        self,
        name: str,
        subnet4: str | None,
        subnet6: str | None = None,
        *,
        mode: str = "nat",
        dhcp: bool = False,
        reservations: Sequence[Reservation] = (),
        mac: str | None = None,
    ) -> None:
        """Define and start a network.

        `mode` is libvirt's forward mode, or `isolated` for none. The host has the first address of each subnet, and on
        the bridge the MAC address `mac`; libvirt draws one by default.
        """
        subnets = [ip_network(subnet) for subnet in (subnet4, subnet6) if subnet is not None]
        document = _network_xml(name, subnets, mode, reservations, dhcp=dhcp, mac=mac)
        with self.connection() as connection:
            connection.networkDefineXML(document).create()

    def start_network(self, name: str) -> None:
        """Start a defined network."""
        with self.connection() as connection:
            connection.networkLookupByName(name).create()

    def destroy_network(self, name: str) -> None:
        """Stop a network; it stays defined."""
        with self.connection() as connection:
            self._stop(connection.networkLookupByName(name))

    def remove_network(self, name: str) -> None:
        """Stop it if it is active, and forget it."""
        with self.connection() as connection:
            network = connection.networkLookupByName(name)
            if network.isActive():
                self._stop(network)
            network.undefine()

    def _stop(self, network: libvirt.virNetwork) -> None:
        """Stop a network, and wait for its DHCP server: libvirt does not, and its successor needs the address."""
        network.destroy()
        words = ["pgrep", "--full", f"dnsmasq/{re.escape(network.name())}[.]conf"]
        wait_until(lambda: self._place.run(words, check=False).returncode != 0, "the DHCP server has ended")

    def reserve(self, network: str, reservation: Reservation) -> None:
        """Change the address that a running network keeps for a MAC address."""
        host = ET.Element("host", mac=reservation.mac, ip=reservation.address)
        document = ET.tostring(host, encoding="unicode")
        modify, section = libvirt.VIR_NETWORK_UPDATE_COMMAND_MODIFY, libvirt.VIR_NETWORK_SECTION_IP_DHCP_HOST
        with self.connection() as connection:
            changed = connection.networkLookupByName(network)
            changed.update(modify, section, -1, document, libvirt.VIR_NETWORK_UPDATE_AFFECT_LIVE)

    def bridge(self, network: str) -> str:
        """The name of an active network's bridge."""
        with self.connection() as connection:
            return connection.networkLookupByName(network).bridgeName()

    def leases(self, network: str) -> dict[str, str]:
        """Addresses DHCP gave out, by MAC address."""
        with self.connection() as connection:
            # libvirt.py says that the lease is a string; it is a dictionary.
            leases: list[Any] = list(connection.networkLookupByName(network).DHCPLeases())
        return {lease["mac"]: lease["ipaddr"] for lease in leases}

    def domains(self) -> list[str]:
        """Every domain of every driver, running or not."""
        names: list[str] = []
        for driver in ("lxc", "qemu"):
            with self.connection(driver) as connection:
                names += [domain.name() for domain in connection.listAllDomains()]
        return names

    def networks(self) -> list[str]:
        """Every network, active or not."""
        with self.connection() as connection:
            return [network.name() for network in connection.listAllNetworks()]


def _network_xml(  # noqa: PLR0913  a network has that many sides
    name: str,
    subnets: Sequence[IPv4Network | IPv6Network],
    mode: str,
    reservations: Sequence[Reservation],
    *,
    dhcp: bool,
    mac: str | None,
) -> str:
    network = ET.Element("network")
    ET.SubElement(network, "name").text = name
    if mode != "isolated":
        forward = ET.SubElement(network, "forward", mode=mode)
        if mode == "nat" and any(subnet.version == 6 for subnet in subnets):
            ET.SubElement(forward, "nat", ipv6="yes")
    ET.SubElement(network, "bridge", stp="off", delay="0")
    if mac is not None:
        ET.SubElement(network, "mac", address=mac)
    for subnet in subnets:
        family = "ipv6" if subnet.version == 6 else "ipv4"
        ip = ET.SubElement(network, "ip", family=family, address=str(subnet[1]), prefix=str(subnet.prefixlen))
        if dhcp and subnet.version == 4:
            _add_dhcp(ip, subnet, reservations)
    return ET.tostring(network, encoding="unicode")


def _add_dhcp(ip: ET.Element, subnet: IPv4Network | IPv6Network, reservations: Sequence[Reservation]) -> None:
    element = ET.SubElement(ip, "dhcp")
    ET.SubElement(element, "range", start=str(subnet[100]), end=str(subnet[200]))
    for reservation in reservations:
        ET.SubElement(element, "host", mac=reservation.mac, ip=reservation.address)


def _silence(_context: object, _error: object) -> None:
    """Keep libvirt from printing every error on standard error, also those a test expects."""


libvirt.registerErrorHandler(_silence, None)
