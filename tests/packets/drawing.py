"""Configurations and packets by lot, with few words, so that what can meet does."""

import random
from collections.abc import Iterator, Sequence
from ipaddress import ip_network
from typing import Final, TypeAlias

from fwdaemon.config.model import Config
from fwdaemon.core.types import Address
from tests.packets.plan import BRIDGES, GUESTS, HELD, LINK, LOCAL, NAT_NETWORKS, ROUTED
from tests.packets.promise import Packet, Place, Refusal, within
from tests.packets.theirs import GATE
from tests.unit.configurations import accepted, toml

HEAD: Final = f'[daemon]\ngates = ["{GATE}"]\n'
_BAD: Final = ["198.51.100.2", "192.168.122.50", "203.0.113.64/29", "2001:db8::2", "2001:db8:122::/64"]
_SETS: Final = toml("set", name="bad", addresses=_BAD) + toml("set", name="banned", external=True)
_MEMBERS: Final = ("set:bad", "set:banned", "198.51.100.0/24", "192.168.123.60", "2001:db8:5::/64")
_PORTS: Final = ("25", "80", "80:81", "80-83", "81-84:91-94", "53/udp", "25:80/tcp+udp", "80/tcp+udp", "53/tcp+udp")
_LISTENS: Final = ("198.51.100.1", "198.51.100.8", "203.0.113.129", "2001:db8::1", "2001:db8::8")
_INTERFACES: Final = (None, None, None, "eth0", "eth1", "virbr0")
_SOURCES: Final = (
    *("198.51.100.0/24", "203.0.113.128/25", "203.0.113.64/29", "192.168.122.0/24", "192.168.123.60", "192.0.2.7"),
    *("2001:db8::/64", "2001:db8:5::/64", "2001:db8:64::/64", "2001:db8:122::/64", "2001:db8:123::60"),
)
_PUBLIC: Final = ("198.51.100.8", "198.51.100.9", "198.51.100.77", "2001:db8::8", "2001:db8::9", "2001:db8::77")
_ASKED: Final = (25, 53, 80, 81, 83, 84, 91, 443)
_EVERYBODY: Final = tuple(address for held in HELD.values() for address in held)
# Some of these are marked by others.
_FIRST_PORT: Final = 39900

_BANS: Final = tuple(Refusal(25, sources=ip_network(text)) for text in ("203.0.113.130", "2001:db8:5::2"))
_GUESTS_MAIL: Final = tuple(Refusal(25, sources=subnet) for subnet in NAT_NETWORKS)
_ROUTED_MAIL: Final = tuple(Refusal(25, sources=subnet) for subnet in ROUTED)
_BY_BRIDGE: Final = tuple(Refusal(25, came_in=bridge) for bridge in BRIDGES)
_REFUSALS: Final = ((), _BANS, _GUESTS_MAIL, _ROUTED_MAIL, _BY_BRIDGE, _BANS + _GUESTS_MAIL + _BY_BRIDGE)


def head(lot: random.Random) -> str:
    """Draw a head with sets, and with a client to which everything is denied, or none."""
    barred = lot.choice(["", "", 'deny = ["set:banned"]\n', 'deny = ["203.0.113.130", "2001:db8::77"]\n'])
    return HEAD + barred + _SETS


def place(lot: random.Random, head: str = HEAD) -> tuple[Place, list[str]]:
    """Draw a configuration and what an administrator refuses; give the entries as text, too."""
    drawn = [_asking(lot, _entry(lot), head) for _ in range(lot.randint(2, 7))]
    # Some lead to the same by another interface.
    more = [narrowed(lot, entry) for entry in drawn if "interface" in entry]
    config, entries = accepted([*drawn, *more], head)
    turned_on = lot.random() < 0.5
    return Place(config, lot.choice(_REFUSALS), turned_on, flushed=turned_on and lot.random() < 0.5), entries


def changed(lot: random.Random, entries: list[str], head: str = HEAD) -> tuple[Config, list[str]]:
    """Draw another configuration that has some of these entries, some of them otherwise."""
    kept = [entry for entry in entries if lot.random() < 0.5]
    other = [narrowed(lot, entry) for entry in entries if entry not in kept and lot.random() < 0.7]
    asking = [_asking(lot, entry, head) for entry in other]
    return accepted([*kept, *asking, *(_entry(lot) for _ in range(lot.randint(0, 2)))], head)


def _asking(lot: random.Random, entry: str, head: str) -> str:
    """Have an entry deny some, or be for some alone, where the head has sets."""
    if head == HEAD or lot.random() < 0.5:
        return entry
    key = lot.choice(["deny", "deny", "sources"])
    lines = [line for line in entry.splitlines() if not line.startswith(key)]
    return "\n".join([*lines, toml("", **{key: lot.sample(_MEMBERS, 2)}).splitlines()[1], ""])


def more_refusals(lot: random.Random, before: Sequence[Refusal]) -> tuple[Refusal, ...]:
    """Draw what an administrator refuses later, and first: a ban that stands behind anything else comes too late."""
    drawn = lot.choice([*_REFUSALS, _BY_BRIDGE, _BY_BRIDGE])
    bans = tuple(refusal for refusal in drawn if refusal.sources)
    return bans if bans or any(refusal.sources for refusal in before) else drawn


def narrowed(lot: random.Random, entry: str) -> str:
    """Write an entry with another interface, or for other sources."""
    if "[[forward]]" not in entry:
        return entry
    lines = [line for line in entry.splitlines() if not line.startswith(("interface", "sources"))]
    key, value = lot.choice([("interface", lot.choice(_INTERFACES[3:])), ("sources", lot.sample(_SOURCES, 2))])
    return "\n".join([*lines, toml("", **{key: value}).splitlines()[1], ""])


def _entry(lot: random.Random) -> str:
    kind = lot.random()
    if kind < 0.6:
        return toml(
            "forward",
            domain=lot.choice(GUESTS),
            ports=lot.sample(_PORTS, lot.randint(1, 2)),
            listen=lot.choice([None, None, [lot.choice(_LISTENS)]]),
            interface=lot.choice(_INTERFACES),
            sources=lot.choice([None, None, lot.sample(_SOURCES, 3)]),
            masquerade=lot.random() < 0.15,
        )
    if kind < 0.9:
        return toml("nat", domain=lot.choice(GUESTS), public=lot.choice(_PUBLIC))
    return toml("route", network="public", addresses=[str(subnet) for subnet in lot.sample(ROUTED, lot.randint(1, 3))])


def packets(lot: random.Random, config: Config, numbers: range) -> Iterator[Packet]:
    """Draw packets; of each sender many are its own, and the rest has the address, or the MAC address, of another.

    Each number has a source port of its own, and so begins a connection of its own.
    """
    aims = list(_aims(config))
    public = [(nat.domain, nat.public.version) for nat in config.nats]
    for index in numbers:
        if public and lot.random() < 0.1:
            yield _opened(lot, *lot.choice(public), index)
            continue
        sender = lot.choice(list(LINK))
        source = lot.choice(HELD[sender] if lot.random() < 0.6 else _EVERYBODY)
        mac = lot.choice([sender, sender, *(other for other in LINK if LINK[other] == LINK[sender])])
        to, port, protocol = _aim(lot, aims, source.version)
        yield Packet(index, sender, mac, source, _FIRST_PORT + index, to, port, protocol)


def _opened(lot: random.Random, guest: str, version: int, index: int) -> Packet:
    """Draw what a 1:1 guest opens to the outside, of a family in which it is one."""
    source, to = (next(item for item in HELD[name] if item.version == version) for name in (guest, "outside"))
    return Packet(index, guest, guest, source, _FIRST_PORT + index, to, lot.choice(_ASKED[:3]), "udp")


_Aim: TypeAlias = tuple[Address, int, str]


def _aim(lot: random.Random, aims: Sequence[_Aim], version: int) -> _Aim:
    """Choose what an entry is for, or anything."""
    possible = [aim for aim in aims if aim[0].version == version]
    if possible and lot.random() < 0.5:
        return lot.choice(possible)
    among = [*LOCAL] if lot.random() < 0.4 else _EVERYBODY
    to = lot.choice([address for address in among if address.version == version])
    return to, lot.choice(_ASKED), lot.choice(["udp", "udp", "tcp"])


def _aims(config: Config) -> Iterator[_Aim]:
    for entry in config.forwards:
        for mapping in entry.mappings:
            for to in [mapping.listen] if mapping.listen else entry.listen or LOCAL:
                yield from ((to, port, mapping.protocol) for port in (mapping.host.first, mapping.host.last))
    for nat in config.nats:
        yield from ((nat.public, port, "udp") for port in _ASKED)
    for route in config.routes:
        yield from ((to, 80, "udp") for to in HELD["routed"] if within(to, route.subnet))
