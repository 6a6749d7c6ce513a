"""Reads libvirt's XML: the interfaces of a running domain, and what a network is.

Pure: text in, data out; who asks libvirt for the text is `fwdaemon.hypervisor`. The formats are
https://libvirt.org/formatdomain.html and https://libvirt.org/formatnetwork.html.

The standard library's ElementTree is enough: the XML is written by libvirt itself, which never emits a DTD, so there
are no entities to expand. Names inside it are hostile, and are only ever carried along as text.

Not read: `<route>` of a network (what lies behind another router is no guest of ours), and reservations without a MAC
address: for DHCPv6 libvirt keys them by DUID or host name, neither of which says which interface is meant.
"""

import re
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Interface, ip_address, ip_interface
from xml.etree import ElementTree as ET

from fwdaemon.inventory import AddressSource, GuestInterface, LearnedAddress, Network
from fwdaemon.model import Address
from fwdaemon.observation import MacClaim

AGENT_CHANNEL = "org.qemu.guest_agent.0"

_MAC = re.compile(r"(?:[0-9a-f]{2}:){5}[0-9a-f]{2}")


@dataclass(frozen=True, slots=True)
class DomainDevices:
    """What a running domain's XML says of its interfaces, and whether its guest agent is there to be asked."""

    interfaces: tuple[GuestInterface, ...]
    agent_connected: bool


@dataclass(frozen=True, slots=True)
class NetworkDefinition:
    """A network and the DHCP reservations written in it."""

    network: Network
    reservations: tuple[MacClaim, ...]


def parse_domain(xml: str) -> DomainDevices:
    """Read the XML of a running domain."""
    devices = ET.fromstring(xml).find("devices")  # noqa: S314 - libvirt's own XML, see the module's docstring
    if devices is None:
        return DomainDevices((), agent_connected=False)
    interfaces = (_interface(element) for element in devices.iterfind("interface"))
    return DomainDevices(
        interfaces=tuple(interface for interface in interfaces if interface is not None),
        agent_connected=any(_is_connected_agent(target) for target in devices.iterfind("channel/target")),
    )


def parse_network(xml: str, *, active: bool) -> NetworkDefinition:
    """Read a network's XML; `active` is libvirt's word, as the XML does not tell."""
    root = ET.fromstring(xml)  # noqa: S314 - libvirt's own XML, see the module's docstring
    bridge = root.find("bridge")
    addresses = tuple(_network_address(element) for element in root.iterfind("ip") if "address" in element.attrib)
    network = Network(
        name=root.findtext("name", ""),
        active=active,
        bridge=None if bridge is None else bridge.get("name"),
        subnets=tuple(address.network for address in addresses),
        gateways=tuple(address.ip for address in addresses),
    )
    hosts = (_reservation(element) for element in root.iterfind("ip/dhcp/host"))
    return NetworkDefinition(network, tuple(claim for claim in hosts if claim is not None))


def normal_mac(text: str | None) -> str | None:
    """Write a MAC address as this program does, in lower case with colons; `None` if it is none."""
    mac = (text or "").lower()
    return mac if _MAC.fullmatch(mac) else None


def guest_address(text: str | None) -> Address | None:
    """Read an address from a guest, libvirt or the kernel; `None` if it is none, or one with a zone."""
    try:
        address = ip_address(text or "")
    except ValueError:
        return None
    return None if getattr(address, "scope_id", None) else address


def _interface(element: ET.Element) -> GuestInterface | None:
    """One `<interface>`.

    A running domain on a network that only names a bridge is shown with type 'bridge' and both attributes, so the type
    is no guide. Sources of other types have neither attribute.
    """
    mac = normal_mac(_attribute(element, "mac", "address"))
    if mac is None:
        return None
    return GuestInterface(
        mac=mac,
        network=_attribute(element, "source", "network"),
        bridge=_attribute(element, "source", "bridge"),
        device=_attribute(element, "target", "dev"),
    )


def _attribute(element: ET.Element, child: str, name: str) -> str | None:
    found = element.find(child)
    return None if found is None else found.get(name)


def _is_connected_agent(target: ET.Element) -> bool:
    return target.get("name") == AGENT_CHANNEL and target.get("state") == "connected"


def _network_address(element: ET.Element) -> IPv4Interface | IPv6Interface:
    """Read the host's address on the bridge; without prefix or netmask libvirt takes the address's class."""
    address = element.get("address", "")
    length = element.get("prefix") or element.get("netmask") or _classful_prefix(address)
    return ip_interface(f"{address}/{length}")


def _classful_prefix(address: str) -> int:
    """Give what libvirt's virSocketAddrGetIPPrefix does where nothing is written: RFC 791's classes, 64 for IPv6."""
    parsed = ip_address(address)
    if parsed.version != 4:  # noqa: PLR2004 - the IP version
        return 64
    first = parsed.packed[0]
    return 8 if first < 128 else 16 if first < 192 else 24  # noqa: PLR2004 - bounds of class A and B


def _reservation(element: ET.Element) -> MacClaim | None:
    mac, address = normal_mac(element.get("mac")), guest_address(element.get("ip"))
    if mac is None or address is None:
        return None
    return MacClaim(mac, LearnedAddress(address, AddressSource.RESERVATION))
