"""What a guest, or its name, can say: XML, leases, its agent, neighbour discovery, the kernel's messages."""

import socket
from dataclasses import replace
from functools import cache
from ipaddress import IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import Any
from uuid import UUID
from xml.etree.ElementTree import ParseError
from xml.sax.saxutils import quoteattr

from fwdaemon import config
from fwdaemon.audit.causes import why
from fwdaemon.config.metadata import read_metadata
from fwdaemon.config.model import Config
from fwdaemon.core.exposures import Forward, Nat
from fwdaemon.core.inventory import (
    AddressSource,
    Domain,
    Element,
    GuestInterface,
    HostAddress,
    HostObservation,
    Inventory,
    LearnedAddress,
    LibvirtObservation,
    MacClaim,
    Metadata,
    Network,
    ObservedDomain,
    ObservedNetwork,
)
from fwdaemon.core.types import Protocol
from fwdaemon.hypervisor.guest_addresses import MAX_ADDRESSES, agent_claims
from fwdaemon.hypervisor.xml import guest_address, parse_domain, parse_network
from fwdaemon.kernel import host_watch, listeners, packets, rtnl_links
from fwdaemon.kernel.conntrack_listing import read_entry, read_open_flow
from fwdaemon.kernel.host_watch import KernelChanges
from fwdaemon.kernel.netlink import attribute, attributes, messages, packed
from fwdaemon.nftables import ruleset
from fwdaemon.nftables.difference import creation
from fwdaemon.nftables.existing import name_of_table, read_hooked_chain, read_rule
from fwdaemon.nftables.generation import Announcements
from fwdaemon.resolve import placement
from fwdaemon.resolve.snapshot import merge
from tests.fuzz.choices import Choices
from tests.unit.nd_packets import solicitation as solicitation_packet

MAC = "52:54:00:00:00:01"
_UUID = UUID(int=1)
_NEW_GENERATION = 10 << 8 | 15
_MOST = 9  # of ports and addresses, by the policy
_GENERIC_BYTES = 4  # nfgenmsg, which all that nfnetlink says begins with


def domain_xml(data: bytes) -> None:
    """Read a domain's XML. What is no XML, or has no sense, is reported by the two errors that its reader expects."""
    try:
        metadata = parse_domain(data.decode("utf-8", "replace")).metadata
    except (ParseError, ValueError):
        return
    if metadata is not None:
        _check_metadata(metadata)


def metadata(data: bytes) -> None:
    """Read what a domain asks for, of any element whose attributes hold any text."""
    lines = data.decode("utf-8", "replace").split("\n")
    pairs = (line.partition("=")[::2] for line in lines[1:])
    _check_metadata(Metadata((Element(lines[0] or "forward", tuple(dict(pairs).items())),)))


# What any domain may ask for, on a host that has one address, and one guest that has a lease.
_POLICY = f"""
[daemon]
auto_ports = "8000-8009"
[[set]]
name = "bad"
addresses = ["192.0.2.1"]
[[allow]]
domains = ["*"]
networks = ["default"]
ports = ["8000-8099"]
public = ["192.0.2.64/28"]
max = {_MOST}
"""
_HELD = ip_address("198.51.100.1")
_LEASE = LearnedAddress(ip_address("192.168.122.10"), AddressSource.LEASE)
_NIC = GuestInterface(MAC, "default", "virbr0", "vnet0", (_LEASE,))
_GUEST = Domain("web", _UUID, running=True, interfaces=(_NIC,))
_HOST = Inventory(
    (_GUEST,),
    (Network("default", active=True, bridge="virbr0", subnets=(ip_network("192.168.122.0/24"),)),),
    (HostAddress(_HELD, ip_network("198.51.100.0/24"), "eth0"),),
)


@cache
def _allowing() -> Config:
    return config.parse({Path("/portfwd.toml"): _POLICY})


def _check_metadata(metadata: Metadata) -> None:
    """Whatever it is, each element is an entry or wrong, what is wrong can be named, and nothing else is open."""
    for reading in read_metadata(metadata, "web", _UUID, ("bad",)):
        assert bool(reading.entries) != bool(reading.problems)
        assert all(text.isprintable() for text in reading.problems)
    desired = placement.desired_state(_allowing(), replace(_HOST, domains=(replace(_GUEST, metadata=metadata),)))
    assert all(why(item.reason).isprintable() for item in desired.waiting)
    assert sum(forward.ports.width for forward in desired.forwards) + len(desired.nats) <= _MOST
    for forward in desired.forwards:
        assert 8000 <= forward.ports.first <= forward.ports.last < 8100
        assert (forward.target, forward.listen) in ((_LEASE.address, None), (_LEASE.address, _HELD))
    assert all(nat.public in ip_network("192.0.2.64/28") for nat in desired.nats)


def network_xml(data: bytes) -> None:
    """Read a network's XML."""
    try:
        parse_network(data.decode("utf-8", "replace"), active=True)
    except (ParseError, ValueError):
        return


def names(data: bytes) -> None:
    """Carry hostile names of a domain, its network, bridge and interface to the text of rules."""
    choices = Choices(data)
    domain, network, bridge, device = (_xml_text(choices) for _ in range(4))
    xml = (
        f"<domain><devices><interface type='network'><mac address='{MAC}'/>"
        f"<source network={quoteattr(network)} bridge={quoteattr(bridge)}/><target dev={quoteattr(device)}/>"
        "</interface></devices></domain>"
    )
    defined = (
        f"<network><name>{network.replace('&', '&amp;').replace('<', '&lt;')}</name><bridge name={quoteattr(bridge)}/>"
        "<ip address='192.168.122.1' prefix='24'/></network>"
    )
    seen = ObservedDomain(Domain(domain, _UUID, running=True, interfaces=parse_domain(xml).interfaces), instance=1)
    leases = (MacClaim(MAC, LearnedAddress(ip_address("192.168.122.50"), AddressSource.LEASE)),)
    observed = LibvirtObservation((seen,), (ObservedNetwork(parse_network(defined, active=True).network, leases),))
    written = config.parse({Path("/etc/portfwd.toml"): _CONFIGURATION})
    desired = placement.desired_state(written, merge([observed], HostObservation(), {}))
    assert len(desired.exposures) == 2
    for table in ruleset.tables(desired).values():
        text = creation(table)
        assert text.isascii()
        assert all(line.isprintable() for line in text.replace("\t", " ").split("\n"))
        assert text.count('"') % 2 == 0


_CONFIGURATION = f"""
[[forward]]
domain = "{_UUID}"
ports = ["80"]
[[nat]]
domain = "{_UUID}"
public = "198.51.100.8"
"""


def _xml_text(choices: Choices) -> str:
    """Give a text that XML can hold (https://www.w3.org/TR/xml/#charsets), as all of libvirt's names are."""
    return "".join(letter for letter in choices.text() if letter in "\t\n" or " " <= letter < "\ud800")


def agent(data: bytes) -> None:
    """Read what a guest's agent said, in the shape libvirt gives it."""
    choices, answer = Choices(data), dict[str, dict[str, Any]]()
    while not choices.over:
        entries = [_spoken(choices) for _ in range(choices.number(200))]
        hwaddr = choices.one_of((MAC, "52-54-00-00-00-01", "", None, choices.text()))
        answer[choices.text()] = {"hwaddr": hwaddr, "addrs": choices.one_of((entries, None))}
    claims = agent_claims(answer)
    assert len(claims) <= MAX_ADDRESSES
    believed(claims)


def _spoken(choices: Choices) -> dict[str, Any]:
    text = choices.one_of(("192.168.122.50", "192.168.122.1", "::ffff:192.168.122.50", "fe80::1%eth0", "0.0.0.0"))  # noqa: S104  an address a guest may name
    packed = ".".join(map(str, choices.taken(4)))
    return {"addr": choices.one_of((text, packed, choices.text(), None)), "prefix": choices.number(256), "type": 0}


def leases(data: bytes) -> None:
    """Read leases: whatever is in them, no guest gets an address that is not one of its network's."""
    choices, claims = Choices(data), list[MacClaim]()
    while not choices.over:
        found = guest_address(choices.one_of((".".join(map(str, choices.taken(4))), choices.text())))
        if found is not None:
            claims.append(MacClaim(MAC, LearnedAddress(found, choices.one_of(list(AddressSource)[1:]))))
    believed(tuple(claims))


def believed(claims: tuple[MacClaim, ...]) -> None:
    """See that a guest with these claims gets a forward to an address of its own network, or none."""
    interface = GuestInterface(MAC, "default", "virbr0", "vnet0")
    seen = ObservedDomain(Domain("web", _UUID, running=True, interfaces=(interface,)), instance=1)
    gateway = ip_address("192.168.122.1")
    network = Network("default", active=True, bridge="virbr0", subnets=_SUBNETS, gateways=(gateway,))
    observed = LibvirtObservation((seen,), (ObservedNetwork(network, claims),))
    inventory = merge([observed], HostObservation(), {_UUID: claims})
    written = config.parse({Path("/etc/portfwd.toml"): _CONFIGURATION})
    for exposure in placement.desired_state(written, inventory).exposures:
        assert isinstance(exposure, Forward | Nat)
        target = exposure.target
        assert any(target in subnet and target != subnet[0] and target != subnet[-1] for subnet in _SUBNETS)
        assert target != gateway


_SUBNETS = (parse_network("<network><ip address='192.168.122.1'/></network>", active=True).network.subnets[0],)


def solicitation(data: bytes) -> None:
    """Read a packet of neighbour discovery, also with its checksum put right, which no fuzzer finds."""
    packets.read_solicitation(data)
    choices = Choices(data)
    target, source = (str(IPv6Address(choices.taken(16))) for _ in range(2))
    asked = packets.read_solicitation(solicitation_packet(target, source=source, options=choices.rest()))
    assert asked is None or asked.target == IPv6Address(target)


def netlink(data: bytes) -> None:
    """Read datagrams of rtnetlink as bytes of any kind, and what nftables' monitor hears."""
    changes = KernelChanges()
    changes.watch_macs(frozenset({MAC}))
    for _ in range(2):
        list(changes.news(data))
    for message in messages(data):
        attributes(message.body)
    list(Announcements().generations(packed(_NEW_GENERATION, 0, 0, _generation(Choices(data))) + data[:8]))


def _generation(choices: Choices) -> bytes:
    """Write a commit as the kernel does: it always writes whole attributes, of the widths that they have."""
    words = attribute(1, choices.taken(4)) + attribute(2, choices.taken(4))
    name = choices.taken(choices.number(16)).replace(b"\0", b"") + b"\0"
    return bytes(4) + choices.one_of((words + attribute(3, name), words))


def conntrack(data: bytes) -> None:
    """Read a datagram of the kernel's listings of connections, and of tables, chains and rules."""
    for message in messages(data):
        read_entry(message)
        read_open_flow(message)
        if len(message.body) >= _GENERIC_BYTES:
            name_of_table(message)
            read_hooked_chain(message)
            read_rule(message)


def rtnetlink(data: bytes) -> None:
    """Read neighbours and routes, of which what is fixed is always whole, and addresses have their family's length."""
    choices = Choices(data)
    family, size = choices.one_of(((socket.AF_INET, 4), (socket.AF_INET6, 16)))
    others = b"".join(attribute(choices.number(64), choices.taken(4)) for _ in range(choices.number(3)))
    body = bytes([family, *choices.taken(11)]) + others + attribute(1, choices.taken(size))
    list(rtnl_links.neighbours_of(body))
    list(host_watch.ways_of(body))


def sockets(data: bytes) -> None:
    """Read an answer of sock_diag, whose fixed part the kernel always writes whole."""
    choices = Choices(data)
    fixed = bytes([choices.one_of((2, 10)), *choices.taken(71)])
    more = b"".join(attribute(choices.number(32), choices.taken(choices.number(9))) for _ in range(choices.number(4)))
    listeners.read(choices.one_of(list(Protocol)), fixed + more, {1: "eth0"})
