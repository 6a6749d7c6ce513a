"""Who is where: the machines around the host, their addresses in both families, and what the host holds itself.

`outside` is behind the uplink, `lan` on an inner network of the host. `mail` and `peer` are guests behind `virbr0`,
`far` and `routed` behind `virbr1`; the addresses of `routed` are public ones, half of them in subnets of libvirt's
network, so that libvirt lets out what they open.
"""

from ipaddress import ip_address, ip_network
from typing import Final
from uuid import UUID

from fwdaemon.core.inventory import (
    AddressSource,
    Domain,
    GuestInterface,
    HostAddress,
    Inventory,
    LearnedAddress,
    Network,
)
from fwdaemon.core.types import Address, Family, Subnet

UPLINK: Final = "eth0"
# The interface of the host behind which each machine is.
LINK: Final = {
    "outside": UPLINK,
    "lan": "eth1",
    "mail": "virbr0",
    "peer": "virbr0",
    "far": "virbr1",
    "routed": "virbr1",
}
BRIDGES: Final = ("virbr0", "virbr1")
MAC: Final = {name: f"52:54:00:00:00:{number:02x}" for number, name in enumerate(LINK, start=1)}

_HELD: Final = {
    "outside": ("198.51.100.2", "198.51.100.77", "192.0.2.7", "2001:db8::2", "2001:db8::77", "2001:db8:ffff::7"),
    "lan": ("203.0.113.130", "2001:db8:5::2"),
    "mail": ("192.168.122.50", "2001:db8:122::50"),
    "peer": ("192.168.122.51", "2001:db8:122::51"),
    "far": ("192.168.123.60", "2001:db8:123::60"),
    "routed": ("203.0.113.66", "203.0.113.74", "2001:db8:64::66", "2001:db8:65::66"),
}
HELD: Final = {name: tuple(map(ip_address, texts)) for name, texts in _HELD.items()}
HOLDER: Final[dict[Address, str]] = {address: name for name, held in HELD.items() for address in held}

# The first of each family and interface is what the host itself goes out with.
_OWN: Final = (
    ("198.51.100.1/24", "eth0"),
    ("198.51.100.8/24", "eth0"),
    ("198.51.100.9/24", "eth0"),
    ("203.0.113.129/25", "eth1"),
    ("192.168.122.1/24", "virbr0"),
    ("192.168.123.1/24", "virbr1"),
    ("2001:db8::1/64", "eth0"),
    ("2001:db8::8/64", "eth0"),
    ("2001:db8::9/64", "eth0"),
    ("2001:db8:5::1/64", "eth1"),
    ("2001:db8:122::1/64", "virbr0"),
    ("2001:db8:123::1/64", "virbr1"),
)
OWN: Final = tuple(
    HostAddress(ip_address(text.partition("/")[0]), ip_network(text, strict=False), link) for text, link in _OWN
)
# What routes say of the host's own links; a gateway leads to a part of the uplink's subnet, so it comes in anywhere.
BEHIND_GATEWAY: Final = tuple(map(ip_network, ("198.51.100.64/26", "2001:db8::40/122")))
LINKS: Final[dict[Subnet, str]] = {item.subnet: item.device for item in OWN}
LOCAL: Final = {item.address: item.device for item in OWN}

NAT_NETWORKS: Final[dict[Subnet, str]] = {item.subnet: item.device for item in OWN if item.device in BRIDGES}
ROUTED: Final = tuple(map(ip_network, ("203.0.113.64/29", "203.0.113.72/29", "2001:db8:64::/64", "2001:db8:65::/64")))
# All subnets that libvirt knows as its networks' own.
NETWORKS: Final = NAT_NETWORKS | dict.fromkeys(ROUTED[::2], BRIDGES[1])

# What another program has in the external set.
BANNED: Final = tuple(map(ip_network, ("203.0.113.128/28", "192.168.123.60", "198.51.100.77", "2001:db8:5::/64")))

GUESTS: Final = ("mail", "peer", "far")


def own_address(link: str, version: int) -> Address:
    """Give the address that the host goes out with by an interface."""
    return next(item.address for item in OWN if item.device == link and item.address.version == version)


def inventory() -> Inventory:
    """The host as the daemon would see it."""
    networks = tuple(
        Network(
            name,
            active=True,
            bridge=bridge,
            subnets=tuple(subnet for subnet, link in NETWORKS.items() if link == bridge),
            forwards=True,
            closed=frozenset(Family),
        )
        for name, bridge in zip(("default", "public"), BRIDGES, strict=True)
    )
    domains = tuple(
        Domain(name, UUID(int=number), running=True, interfaces=(_interface(name),))
        for number, name in enumerate(GUESTS, start=1)
    )
    links = frozenset({*LINKS.items(), *((subnet, "") for subnet in BEHIND_GATEWAY)})
    return Inventory(domains, networks, OWN, frozenset({UPLINK}), links=links)


def _interface(name: str) -> GuestInterface:
    learned = tuple(LearnedAddress(address, AddressSource.LEASE) for address in HELD[name])
    network = "default" if LINK[name] == "virbr0" else "public"
    return GuestInterface(MAC[name], network, LINK[name], name, learned)
