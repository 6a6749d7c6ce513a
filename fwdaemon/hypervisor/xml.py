"""Reads libvirt's XML: the interfaces of a running domain, and what a network is.

Pure: text in, data out; who asks libvirt for the text is `fwdaemon.hypervisor`. The formats are
https://libvirt.org/formatdomain.html and https://libvirt.org/formatnetwork.html.

The standard library's ElementTree is enough: the XML is written by libvirt itself, which never emits a DTD, so there
are no entities to expand. Names inside it are hostile, and are only ever carried along as text.

Not read: `<route>` of a network (what lies behind another router is no guest of ours), and reservations without a MAC
address: for DHCPv6 libvirt keys them by DUID or host name, neither of which says which interface is meant.
"""

import re
from dataclasses import dataclass, replace
from enum import Enum, auto
from ipaddress import IPv4Interface, IPv6Interface, ip_address, ip_interface
from typing import Final
from uuid import UUID
from xml.etree import ElementTree as ET

from fwdaemon.core.inventory import (
    AddressSource,
    Attachment,
    Element,
    GuestInterface,
    LearnedAddress,
    MacClaim,
    Metadata,
    Move,
    Network,
)
from fwdaemon.core.types import Address, Family

# What the state of an active domain means for us: whether its CPUs run on this host.
#
# Pure: libvirt's numbers in. They are part of its ABI (https://libvirt.org/html/libvirt-libvirt-domain.html) and
# written down here, so that a number of a newer libvirt is no error. An active domain need not run here: while its copy
# is being received, it is paused here and runs on the other host; once it is handed over, it is paused here until
# libvirt ends it. A guest that its user has paused is handed over without a word: only its end says that another host
# has it.
_RUNNING: Final = 1
_PAUSED: Final = 3
_SHUTTING_DOWN: Final = 4
_SHUT_OFF: Final = 5
_CRASHED: Final = 6
_RUNNING_POSTCOPY: Final = (10, 11)  # under way, failed
# Some drivers, and some users, reboot a guest by ending it and starting it again. One whose emulator died, or that
# could not be started, is no such case.
_SHUT_OFF_DIED: Final = (3, 6)  # crashed, failed
_SHUT_OFF_MIGRATED: Final = 4
_MIGRATION, _STARTING_UP, _POSTCOPY, _POSTCOPY_FAILED = 2, 11, 12, 13


class DomainState(Enum):
    """Where a domain stands. One that is paused runs here, unless its CPUs are on another host.

    libvirt has one reason, `MIGRATING`, for a copy that is being received and for a guest that was handed over, and
    one, `FAILED`, for both ends of a post-copy migration that failed. `FETCHING` runs here while the rest of its memory
    comes. `ENDING` ends, wherever it ran. `DOWN` has ended, and may be rebooting. `ENDED` has ended since its emulator
    died, or it could not be started. `GONE` has ended, and runs on another host.
    """

    HERE = auto()
    FETCHING = auto()
    ENDING = auto()
    PAUSED = auto()
    STARTING = auto()
    MIGRATING = auto()
    LEFT = auto()
    FAILED = auto()
    DOWN = auto()
    ENDED = auto()
    GONE = auto()
    CRASHED = auto()


_NOT_HERE: Final = {
    _MIGRATION: DomainState.MIGRATING,
    _STARTING_UP: DomainState.STARTING,
    _POSTCOPY: DomainState.LEFT,
    _POSTCOPY_FAILED: DomainState.FAILED,
}


def domain_state(state: int, reason: int) -> DomainState:
    """Say where a domain stands by its state, and the reason libvirt gives for it."""
    if state == _CRASHED:
        return DomainState.CRASHED
    if state == _PAUSED:
        return _NOT_HERE.get(reason, DomainState.PAUSED)
    if state == _RUNNING and reason in _RUNNING_POSTCOPY:
        return DomainState.FETCHING
    if state == _SHUTTING_DOWN:
        return DomainState.ENDING
    return _ended(reason) if state == _SHUT_OFF else DomainState.HERE


def _ended(reason: int) -> DomainState:
    if reason in _SHUT_OFF_DIED:
        return DomainState.ENDED
    return DomainState.GONE if reason == _SHUT_OFF_MIGRATED else DomainState.DOWN


def move(now: DomainState, *, ran_here: bool, received: bool, before: Move | None = None) -> Move | None:
    """Say which way an active domain is moving; one that ends goes on as `before`.

    `ran_here` says that this run of it was seen running on this host, `received` that it came from another host, and
    was not seen running here with all its memory.
    """
    match now:
        case DomainState.ENDING:
            return before
        case DomainState.FAILED if received:
            return None if ran_here else Move.HERE
        case DomainState.LEFT | DomainState.FAILED:
            return Move.AWAY
        case DomainState.MIGRATING:
            return Move.AWAY if ran_here else Move.HERE
        case DomainState.PAUSED if received and not ran_here:
            return Move.ARRIVED
    return None


AGENT_CHANNEL = "org.qemu.guest_agent.0"

# The modes of a network for which libvirt turns on the host's forwarding (networkStartNetworkVirtual).
_FORWARDING = ("nat", "route", "open")
# Those for which it writes no rules.
_UNFILTERED = ("open", "bridge")

_MAC = re.compile(r"(?:[0-9a-f]{2}:){5}[0-9a-f]{2}")


@dataclass(frozen=True, slots=True)
class DomainDevices:
    """What a running domain's XML says of its interfaces, and whether its guest agent is there to be asked."""

    interfaces: tuple[GuestInterface, ...]
    agent_connected: bool
    metadata: Metadata | None = None


@dataclass(frozen=True, slots=True)
class NetworkDefinition:
    """A network and the DHCP reservations written in it."""

    network: Network
    reservations: tuple[MacClaim, ...]


def parse_domain(xml: str) -> DomainDevices:
    """Read the XML of a running domain."""
    root, metadata = _without_metadata(xml)
    devices = root.find("devices")
    if devices is None:
        return DomainDevices((), agent_connected=False, metadata=metadata)
    interfaces = (_interface(element) for element in devices.iterfind("interface"))
    return DomainDevices(
        interfaces=tuple(interface for interface in interfaces if interface is not None),
        agent_connected=any(_is_connected_agent(target) for target in devices.iterfind("channel/target")),
        metadata=metadata,
    )


# What a domain asks for in its own definition: metadata is any XML, of up to 4 MB.
NAMESPACE: Final = "urn:kvm-portfwd:1"
_FORWARDS: Final = f"{{{NAMESPACE}}}forwards"
# How much text, and how many elements, a domain may ask with.
_MOST_TEXT: Final = 65_536
_MOST_ELEMENTS: Final = 256
# What has less text, and no word of ours in it, is read at once: that takes a quarter of the time.
_SMALL: Final = 131_072
_METADATA_DEPTH, _FORWARDS_DEPTH, _ENTRY_DEPTH = 2, 3, 4


def _without_metadata(xml: str) -> tuple[ET.Element, Metadata | None]:
    """Read a domain's XML but for its metadata, of which only what is ours is kept, and of that only so much."""
    if len(xml) <= _SMALL and NAMESPACE not in xml:
        return ET.fromstring(xml), None  # noqa: S314 - libvirt's own XML, see the module's docstring
    reader = _MetadataReader()
    parser = ET.XMLParser(target=reader)  # noqa: S314 - the same
    parser.feed(xml)
    return parser.close(), reader.metadata


class _MetadataReader:
    """Builds the tree of a domain without its metadata, and keeps what that asks for."""

    def __init__(self) -> None:
        self._tree = ET.TreeBuilder()
        self._depth = 0
        self._in_metadata = self._in_forwards = False
        self._elements: list[Element] | None = None
        self._size = 0
        self._fault = ""

    @property
    def metadata(self) -> Metadata | None:
        """What the metadata asks for; `None` where there is no element of ours."""
        if self._elements is None:
            return None
        return Metadata(fault=self._fault) if self._fault else Metadata(tuple(self._elements))

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        """Take a start tag."""
        self._depth += 1
        if self._depth == _METADATA_DEPTH and tag == "metadata":
            self._in_metadata = True
        if not self._in_metadata:
            self._tree.start(tag, attributes)
        elif self._in_forwards:
            self._measure(tag, *attributes, *attributes.values())
            self._take(tag, attributes)
        elif self._depth == _FORWARDS_DEPTH and tag == _FORWARDS and self._elements is None:
            self._in_forwards, self._elements = True, []
            if attributes:
                self._take("forwards", attributes)

    def end(self, tag: str) -> None:
        """Take an end tag."""
        if not self._in_metadata:
            self._tree.end(tag)
        elif self._depth == _FORWARDS_DEPTH:
            self._in_forwards = False
        elif self._depth == _METADATA_DEPTH:
            self._in_metadata = False
        self._depth -= 1

    def data(self, text: str) -> None:
        """Take text between tags."""
        if not self._in_metadata:
            self._tree.data(text)
        elif self._in_forwards:
            self._measure(text)
            if self._depth >= _ENTRY_DEPTH and text.strip():
                self._hold("text")

    def close(self) -> ET.Element:
        """Give the tree."""
        return self._tree.close()

    def _measure(self, *texts: str) -> None:
        self._size += sum(map(len, texts))
        if self._size > _MOST_TEXT:
            self._refuse(f"is larger than {_MOST_TEXT // 1024} KiB")

    def _refuse(self, fault: str) -> None:
        self._fault, self._elements = fault, []

    def _take(self, tag: str, attributes: dict[str, str]) -> None:
        """Keep an element, or the name of one inside another."""
        if self._elements is None or self._fault:
            return
        if self._depth > _ENTRY_DEPTH:
            self._hold(_own_name(tag))
        elif len(self._elements) == _MOST_ELEMENTS:
            self._refuse(f"has more than {_MOST_ELEMENTS} elements")
        else:
            self._elements.append(Element(_own_name(tag), tuple(attributes.items())))

    def _hold(self, inside: str) -> None:
        if self._elements and not self._elements[-1].inside:
            self._elements[-1] = replace(self._elements[-1], inside=inside)


def _own_name(tag: str) -> str:
    """Give the name of an element of our namespace; that of any other, or none, in braces before it."""
    if tag.startswith(f"{{{NAMESPACE}}}"):
        return tag.removeprefix(f"{{{NAMESPACE}}}")
    return tag if tag.startswith("{") or tag == "forwards" else f"{{}}{tag}"


def parse_network(xml: str, *, active: bool) -> NetworkDefinition:
    """Read a network's XML; `active` is libvirt's word, as the XML does not say."""
    root = ET.fromstring(xml)  # noqa: S314 - libvirt's own XML, see the module's docstring
    bridge, forward = root.find("bridge"), root.find("forward")
    addresses = tuple(_network_address(element) for element in root.iterfind("ip") if "address" in element.attrib)
    network = Network(
        name=root.findtext("name", ""),
        active=active,
        bridge=None if bridge is None else bridge.get("name"),
        subnets=tuple(address.network for address in addresses),
        gateways=tuple(address.ip for address in addresses),
        own_bridge=forward is None or forward.get("mode") != "bridge",
        forwards=forward is not None and forward.get("mode", "nat") in _FORWARDING,
        unfiltered=forward is not None and forward.get("mode") in _UNFILTERED,
        closed=_closed(forward),
        uuid=_uuid(root.findtext("uuid", "")),
    )
    hosts = (_reservation(element) for element in root.iterfind("ip/dhcp/host"))
    return NetworkDefinition(network, tuple(claim for claim in hosts if claim is not None))


def _closed(forward: ET.Element | None) -> frozenset[Family]:
    """Give the families in which libvirt lets no one in; IPv6 it masquerades only where that is asked for."""
    if forward is None:
        return frozenset(Family)
    if forward.get("mode", "nat") != "nat":
        return frozenset()
    nat = forward.find("nat")
    hidden = nat is not None and nat.get("ipv6") == "yes"
    return frozenset(Family) if hidden else frozenset({Family.IPV4})


def _uuid(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None


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
    is no guide to these. Sources of other types have neither attribute.
    """
    mac = normal_mac(_attribute(element, "mac", "address"))
    if mac is None:
        return None
    attachment = _attachment(element)
    return GuestInterface(
        mac=mac,
        network=_attribute(element, "source", "network"),
        bridge=_attribute(element, "source", "bridge"),
        device=_attribute(element, "target", "dev"),
        attachment=attachment,
        parent=_attribute(element, "source", "dev") if attachment is Attachment.MACVTAP else None,
    )


def _attachment(element: ET.Element) -> Attachment:
    """Tell macvtap, also of a network that hands it out, and slirp or passt, which may be a vhost-user device."""
    match element.get("type"), _attribute(element, "backend", "type"):
        case "direct", _:
            return Attachment.MACVTAP
        case ("user", _) | (_, "passt"):
            return Attachment.USER_MODE
    return Attachment.PORT


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
