"""Who takes a packet, by what knows nothing of one another: the configuration, and the rules of each backend.

Each gives where the first packet of a connection goes, or `None`. Those that walk text understand that of our
own rules only, and take a word they do not know for a mistake.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from ipaddress import ip_address, ip_network
from typing import TypeAlias

from fwdaemon.config.model import Config, ForwardEntry, PortMapping
from fwdaemon.core.types import Address, Family, Protocol
from fwdaemon.legacy.model import OUT, PRE, TableName
from fwdaemon.legacy.model import Rule as LegacyRule
from fwdaemon.legacy.model import Table as LegacyTable
from fwdaemon.nftables.dispatch_chains import PLAIN
from fwdaemon.nftables.model import Table
from fwdaemon.nftables.model import Target as MapTarget
from fwdaemon.rulesets.packet import Packet, Surroundings
from tests.unit.configurations import NAMES, leased
from tests.unit.memory_backend import Kernel

Target: TypeAlias = tuple[Address, int] | None

GUESTS = ip_network("192.168.122.0/24")
BRIDGE = "virbr0"

# The same few are read again for each of hundreds of packets.
_address, _network = cache(ip_address), cache(ip_network)


@dataclass(frozen=True)
class Arrival:
    """The first packet of a connection, as it came in; `local` says whether `to` is an address of the host."""

    protocol: str
    source: Address
    to: Address
    port: int
    came_in: str
    local: bool

    @property
    def reaches_host(self) -> bool:
        """Whether it is for an address at which the host can be reached from elsewhere."""
        return self.local and not self.to.is_loopback and not self.to.is_link_local


# --- by the configuration --------------------------------------------------------------------------------------------


def by_configuration(found: Config, packet: Arrival) -> Target:
    """Decide as the documentation says: one address before every address, and any forward before a 1:1 NAT."""
    if _may_be_elsewhere(found, packet) or _is_forged(found, packet):
        return None
    claims = list(_claims(found, packet))
    for exact in (True, False):
        takers = [target for is_exact, target in claims if is_exact is exact]
        assert len(takers) <= 1, f"{takers} all claim {packet}"
        if takers:
            return takers[0]
    for nat in found.nats:
        if nat.public == packet.to:
            return _guest(nat.domain, packet), packet.port
    return None


def _may_be_elsewhere(found: Config, packet: Arrival) -> bool:
    """Whether a guest asks for an address of the link that another machine may have, and no guest does."""
    ours = packet.local or any(nat.public == packet.to for nat in found.nats)
    routed = any(packet.to in entry.subnet for entry in found.routes if entry.subnet.version == packet.to.version)
    return packet.source in GUESTS and not (ours or routed or packet.to.is_loopback)


def _is_forged(found: Config, packet: Arrival) -> bool:
    """Whether a packet cannot have come from the guest that it names."""
    if packet.source in GUESTS:
        return packet.came_in != BRIDGE
    return any(packet.source in entry.subnet for entry in found.routes if entry.subnet.version == packet.source.version)


def _claims(found: Config, packet: Arrival) -> Iterator[tuple[bool, Target]]:
    for entry in found.forwards:
        if entry.address is not None and entry.address.version != packet.to.version:
            continue
        if entry.interface not in (None, packet.came_in):
            continue
        if entry.sources and not any(
            packet.source in subnet for subnet in entry.sources if subnet.version == packet.source.version
        ):
            continue
        for mapping in entry.mappings:
            if mapping.protocol == packet.protocol and packet.port in mapping.host:
                yield from _claim(entry, mapping, packet)


def _claim(entry: ForwardEntry, mapping: PortMapping, packet: Arrival) -> Iterator[tuple[bool, Target]]:
    target = (
        entry.address or _guest(entry.domain, packet),
        mapping.guest.first + packet.port - mapping.host.first,
    )
    listens = [mapping.listen] if mapping.listen else list(entry.listen)
    if packet.to in listens:
        yield True, target
    if not listens and packet.reaches_host:
        yield False, target


def _guest(domain: str, packet: Arrival) -> Address:
    return _address(leased(NAMES.index(domain))[Family.of(packet.to) is Family.IPV6])


# --- by the rules of nftables ----------------------------------------------------------------------------------------

_LOOKUP = re.compile(
    r"(?P<anywhere>ip6? daddr != \{ (?P<never>[^}]*) \} fib daddr type local )?"
    r"(?P<key>(?:ip6? daddr)?(?: \. )?(?:meta l4proto \. th dport)?) vmap @(?P<map>\w+)"
)
_RULE = re.compile(
    r'(?:meta l4proto (?P<protocol>\w+) )?(?:iifname "(?P<interface>[^"]*)" )?(?:ip6? saddr \{ (?P<sources>[^}]*) \} )?'
    r"ct label set \d+ counter dnat to (?P<address>\[[^]]*\]|[0-9a-f.:]+?)"
    r"(?P<port>:\d+)?(?: : \w+ dport map \{ (?P<pairs>[^}]*) \})?"
)
_LEFT = re.compile(r"ip6? saddr @guest_subnets ip6? daddr \{ (?P<addresses>[^}]*) \} fib daddr type != local return")
_HOME = re.compile(r"iifname != \{ (?P<bridges>[^}]*) \} accept")
_PLAIN = re.compile(
    r"ct label set \d+ dnat ip6? to (?P<key>(?:ip6? daddr \. )?meta l4proto \. th dport)"
    r" map @(?P<map>\w+)"
)


def by_nftables(table: Table, packet: Arrival) -> Target:
    """Walk the chain `forwards`, and the branches that its maps lead to, unless the packet is left alone before."""
    if any(packet.source in _network(home) for home in _left_by(table, packet)):
        return None
    for head in table.chains["prerouting"].rules:
        left = _LEFT.fullmatch(head.expression)
        if left and not packet.local and packet.source in GUESTS and _among(packet.to, left["addresses"]):
            return None
    for rule in table.chains["forwards"].rules:
        lookup = _LOOKUP.fullmatch(rule.expression)
        assert lookup, rule.expression
        if lookup["anywhere"] and not (packet.local and not _among(packet.to, lookup["never"])):
            continue
        for key, chain in table.sets[lookup["map"]].elements.items():
            if _is_key(key, packet, with_address="daddr" in lookup["key"]):
                if chain in PLAIN.values():
                    return _plain(table, str(chain), key)
                rules = table.chains[str(chain)].rules
                takers = [target for rule in rules if (target := _taken(rule.expression, packet))]
                assert len(takers) <= 1, f"{takers} all take {packet}"
                if takers:
                    return takers[0]
    return None


def _left_by(table: Table, packet: Arrival) -> Iterator[str]:
    """Give the homes of guests from which a packet that came in there cannot have come."""
    for home, chain in table.sets["homes"].elements.items():
        (rule,) = table.chains[str(chain)].rules
        found = _HOME.fullmatch(rule.expression)
        assert found, rule
        if f'"{packet.came_in}"' not in found["bridges"].split(", "):
            yield home


def _plain(table: Table, chain: str, key: str) -> Target:
    """Look the target up that a packet has which was found under this key."""
    rule = _PLAIN.fullmatch(table.chains[chain].rules[0].expression)
    assert rule, chain
    target = table.sets[rule["map"]].elements[key]
    assert isinstance(target, MapTarget)
    address, _, port = target.data.partition(" . ")
    return _address(address), int(port)


def _is_key(key: str, packet: Arrival, *, with_address: bool) -> bool:
    parts = key.split(" . ")
    if with_address and _address(parts.pop(0)) != packet.to:
        return False
    return not parts or (parts[0] == packet.protocol and _in_range(packet.port, parts[1], "-"))


def _taken(expression: str, packet: Arrival) -> Target:
    rule = _RULE.fullmatch(expression)
    assert rule, expression
    if rule["protocol"] not in (None, packet.protocol) or rule["interface"] not in (None, packet.came_in):
        return None
    if rule["sources"] and not _among(packet.source, rule["sources"]):
        return None
    pairs = dict(pair.split(" : ") for pair in rule["pairs"].split(", ")) if rule["pairs"] else {}
    port = rule["port"][1:] if rule["port"] else pairs.get(str(packet.port), str(packet.port))
    return _address(rule["address"].strip("[]")), int(port)


def _among(address: Address, subnets: str) -> bool:
    return any(address in _network(subnet) for subnet in subnets.split(", "))


def _in_range(port: int, text: str, separator: str) -> bool:
    first, _, last = text.partition(separator)
    return int(first) <= port <= int(last or first)


# --- by the rules of the backend in memory ----------------------------------------------------------------------------


def by_memory(kernel: Kernel, packet: Arrival) -> Target:
    """Have the evaluator of `explain` follow it."""
    family, local = Family.of(packet.to), {packet.to: frozenset({"eth0"})} if packet.local else {}
    met = Packet(
        family,
        Protocol(packet.protocol),
        packet.source,
        packet.to,
        packet.port,
        (packet.to, packet.port),
        came_in=packet.came_in,
    )
    return kernel.led(met, Surroundings(local))


# --- by the rules of iptables ----------------------------------------------------------------------------------------


def by_iptables(tables: Mapping[TableName, LegacyTable], packet: Arrival) -> Target:
    """Walk KVMPF_PRE of the table nat and on; the first DNAT that matches takes the packet."""
    table = tables.get(TableName.NAT)
    for rule in _walked(table) if table else ():
        matches, labels, _ = rule.matches.partition("-m connlabel --label ")
        if not _matches(matches, packet):
            continue
        target, _, destination = rule.target.partition(" --to-destination ")
        assert bool(labels) == (target == "DNAT"), rule
        return _translated(destination, packet.port) if labels else None
    return None


def _walked(table: LegacyTable) -> Iterator[LegacyRule]:
    """Give the rules in order; no subnet of guests has several bridges here, so only the last of one chain leads on."""
    *guards, on = table.chains[PRE]
    assert (on.matches, on.target) == ("", OUT)
    assert not any(rule.target == OUT for rule in guards)
    yield from (*guards, *table.chains[OUT])


def _matches(matches: str, packet: Arrival) -> bool:
    options, elsewhere = _options(matches, packet.protocol)
    if elsewhere and packet.local:
        return False
    tests: dict[str, Callable[[str], bool]] = {
        "-s": lambda value: packet.source in _network(value),
        "-d": lambda value: packet.to in _network(value),
        "-i": lambda value: packet.came_in == value,
        "!-i": lambda value: packet.came_in != value,
        "-p": lambda value: packet.protocol == value,
        "-m": lambda _value: False,  # that of another protocol
        "--dport": lambda value: _in_range(packet.port, value, ":"),
    }
    return all(tests[option](value) for option, value in options.items())


@cache
def _options(matches: str, protocol: str) -> tuple[dict[str, str], bool]:
    """Read what a packet of this protocol has to match, and whether it must not be for an address of the host."""
    # None of the packets has an address of the host as its source.
    text = matches.replace("! -i lo -m addrtype --src-type LOCAL", "-s 0.0.0.0").replace("! -i", "!-i")
    words = " ".join(text.replace("-m addrtype --src-type LOCAL ! --dst-type LOCAL", "-s 0.0.0.0").split())
    text = words.replace("-m addrtype ! --dst-type LOCAL", "")
    options = dict(zip(*[iter(text.replace(f"-m {protocol} ", "").split())] * 2, strict=True))
    return options, text != words


def _translated(destination: str, port: int) -> Target:
    there, _, base = destination.partition("/")
    address, _, ports = there.rpartition(":") if ("]:" in there or "." in there) and ":" in there else (there, "", "")
    first = int(ports.partition("-")[0]) if ports else port
    return _address(address.strip("[]")), first + (port - int(base) if base else 0)
