"""The libvirtd of a lab host: its configuration, its life and its networks."""

import signal
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Any

import libvirt

from tests.lab.command import LabError
from tests.lab.place import Place, Process, wait_until
from tests.lab.release import LibvirtFirewall

_SOCKET = "run/libvirt/libvirt-sock"
_STOP_TIMEOUT = 5.0
# A lab host has no polkit to ask, no virtlogd to log through, and no AppArmor or SELinux of its own. It is apart enough
# for emulators to share its /dev.
_FILES = {
    "libvirtd.conf": 'auth_unix_rw = "none"\nauth_unix_ro = "none"\n',
    "qemu.conf": 'security_driver = "none"\nstdio_handler = "file"\nnamespaces = []\n',
    "lxc.conf": 'security_driver = "none"\n',
}
# This kernel may lack the checksum action libvirt's nftables backend asks `tc` for; no guest of the lab needs it.
_TC = '#!/bin/sh\ncase " $* " in *" csum "*) exit 0 ;; esac\nexec /usr/sbin/tc.real "$@"\n'
# libvirt reads its own place in the control groups, and cannot use one outside the host's roots.
_START = """
groups=/sys/fs/cgroup/init
[ -d $groups ] || groups='/sys/fs/cgroup/*'
for group in $groups; do
    echo 0 >$group/cgroup.procs
done
exec libvirtd
"""
_PREPARE = """
set -e
rm -rf /etc/libvirt/qemu /etc/libvirt/lxc /var/lib/libvirt/dnsmasq/*
mkdir -p /etc/libvirt/qemu/networks /var/log/libvirt
# libvirt asks each emulator what it can do, half a second a piece.
for emulator in /usr/bin/qemu-system-*; do
    [ "${emulator##*-}" = x86_64 ] || rm -f "$emulator"
done
for name in iptables ip6tables; do
    update-alternatives --quiet --set $name /usr/sbin/$name-$1
done
"""


@dataclass(frozen=True, slots=True)
class Reservation:
    """An address libvirt's DHCP server keeps for a MAC address."""

    mac: str
    address: str


class Libvirt:
    """libvirtd of one host. Its processes live and die with the host."""

    def __init__(self, place: Place, init: int, firewall: LibvirtFirewall) -> None:
        self._place = place
        self._socket = Path(f"/proc/{init}/root/{_SOCKET}")
        self._firewall = firewall
        self._process: Process | None = None

    def prepare(self) -> None:
        """Give the host a libvirt without networks or domains, on the firewall of its flavour."""
        legacy = self._firewall is LibvirtFirewall.LEGACY
        self._place.run(["sh", "-c", _PREPARE, "sh", "legacy" if legacy else "nft"])
        for name, text in _FILES.items():
            self._write(f"/etc/libvirt/{name}", text)
        self.choose_firewall(self._firewall)

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

    @property
    def process(self) -> Process:
        """The running libvirtd."""
        if self._process is None:
            raise LabError("libvirtd was not started")
        return self._process

    @property
    def running(self) -> bool:
        """Whether libvirtd was started and has not ended."""
        return self._process is not None and self._process.running

    def start(self) -> None:
        """Start libvirtd and wait until it answers."""
        self._process = self._place.popen(["sh", "-c", _START])
        wait_until(self._answers, "libvirtd answers", timeout=30, interval=0.02)

    def stop(self) -> None:
        """SIGTERM, and SIGKILL if it hangs then, as systemd would. Guests and networks stay.

        libvirtd 11.3 now and then hangs at its end, its socket already gone.
        """
        try:
            self.process.stop(timeout=_STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """SIGKILL: a crash. Guests and networks stay."""
        self.process.stop(signal.SIGKILL)

    def restart(self) -> None:
        """Stop, then start."""
        self.stop()
        self.start()

    def _answers(self) -> bool:
        if not self.process.running:
            raise LabError(f"libvirtd ended:\n{self.process.text()}")
        try:
            with self.connection():
                return True
        except libvirt.libvirtError:
            return False

    @contextmanager
    def connection(self, driver: str = "lxc") -> Iterator[libvirt.virConnect]:
        """A connection to one of its drivers, from the test itself."""
        connection = libvirt.open(f"{driver}+unix:///system?socket={self._socket}")
        try:
            yield connection
        finally:
            connection.close()

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
    ) -> None:
        """Define and start a network.

        `mode` is libvirt's forward mode, or `isolated` for none. The host has the first address of each subnet.
        """
        subnets = [ip_network(subnet) for subnet in (subnet4, subnet6) if subnet is not None]
        document = _network_xml(name, subnets, mode, reservations, dhcp=dhcp)
        with self.connection() as connection:
            connection.networkDefineXML(document).create()

    def start_network(self, name: str) -> None:
        """Start a defined network."""
        with self.connection() as connection:
            connection.networkLookupByName(name).create()

    def destroy_network(self, name: str) -> None:
        """Stop a network; it stays defined."""
        with self.connection() as connection:
            connection.networkLookupByName(name).destroy()

    def remove_network(self, name: str) -> None:
        """Stop it if it is active, and forget it."""
        with self.connection() as connection:
            network = connection.networkLookupByName(name)
            if network.isActive():
                network.destroy()
            network.undefine()

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


def _network_xml(
    name: str,
    subnets: Sequence[IPv4Network | IPv6Network],
    mode: str,
    reservations: Sequence[Reservation],
    *,
    dhcp: bool,
) -> str:
    network = ET.Element("network")
    ET.SubElement(network, "name").text = name
    if mode != "isolated":
        forward = ET.SubElement(network, "forward", mode=mode)
        if mode == "nat" and any(subnet.version == 6 for subnet in subnets):
            ET.SubElement(forward, "nat", ipv6="yes")
    ET.SubElement(network, "bridge", stp="off", delay="0")
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
