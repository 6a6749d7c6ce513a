"""The tables `[[forward]]`, `[[nat]]` and `[[route]]`."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final, TypeAlias, TypeVar

from fwdaemon.config.addresses import EveryAddressError, parse_listen, parse_public, parse_routed
from fwdaemon.config.model import (
    DEFAULT_MAX,
    KEYS,
    AllowEntry,
    AutoMapping,
    Entry,
    ForwardEntry,
    NatEntry,
    PortMapping,
    RouteEntry,
)
from fwdaemon.config.names import (
    is_pattern,
    parse_domain,
    parse_domains,
    parse_holding,
    parse_incoming,
    parse_network,
    parse_pattern,
)
from fwdaemon.config.node import Node, read_distinct, read_guest, read_key, require
from fwdaemon.config.overlap import (
    families_of_entry,
    refuse_contradictions,
    refuse_nat_contradictions,
    refuse_port_contradictions,
    refuse_unmatched,
    refuse_wide_proxies,
)
from fwdaemon.config.ports import PortSpec, parse_host_ports, parse_ports, split_ports
from fwdaemon.config.sets import read_asked
from fwdaemon.core.text import GrammarError, quote, show
from fwdaemon.core.types import ConnectionLog, Family, Subnet

# What to write in place of a listening address that stands for every one.
#
# To leave it out opens the other family too, unless the rest of the entry keeps that closed.
_OTHER: Final = {Family.IPV4: Family.IPV6, Family.IPV6: Family.IPV4}
_EVERYONE: Final = {Family.IPV4: "0.0.0.0/0", Family.IPV6: "::/0"}
_WRITTEN: Final = {Family.IPV4: "0.0.0.0", Family.IPV6: "::"}  # noqa: S104 - what is written, nothing listens there
_BEFORE_PORT: Final = {Family.IPV4: "0.0.0.0:", Family.IPV6: "[::]:"}

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Everywhere:
    """What an entry says beside such an address: `sources` and `address`, and which of its keys are written."""

    entry: ForwardEntry
    fields: Mapping[str, Node]

    @property
    def families(self) -> frozenset[Family]:
        """The families in which the entry can forward anything."""
        return families_of_entry(self.entry)

    def listening(self, parse: Callable[[str], T]) -> Callable[[str], T]:
        """Let `parse`, which reads an element of `listen`, give the remedy that is right in this entry."""
        return _advised(parse, self._of_listen)

    def among_ports(self, parse: Callable[[str], T]) -> Callable[[str], T]:
        """Let `parse`, which reads an element of `ports`, give the remedy that is right in this entry."""
        return _advised(parse, self._of_ports)

    def _of_listen(self, family: Family) -> str:
        listen = self.fields["listen"].value
        written = listen if isinstance(listen, list) else [listen]
        if all(address in written for address in _WRITTEN.values()):
            return "leave listen out, as both families are named"
        if self.families == {family}:
            return f"leave listen out; IPv{_OTHER[family]} stays closed"
        return self._remedy(family, "leave listen out" if len(written) == 1 else "")

    def _of_ports(self, family: Family) -> str:
        ports = self.fields["ports"].value
        strings = ports if isinstance(ports, list) else [ports]
        beside = _BEFORE_PORT[family]
        is_alone = len(strings) == 1 or all(isinstance(text, str) and text.startswith(beside) for text in strings)
        if self.families == {family}:
            where = " in an entry of its own" if "listen" in self.fields else ""
            return f"leave it out{where}; IPv{_OTHER[family]} stays closed"
        return self._remedy(family, "leave it out" if is_alone and "listen" not in self.fields else "")

    def _remedy(self, family: Family, leave: str) -> str:
        """Keep the other family closed; without `leave`, other elements need it, so that takes another entry."""
        if family not in self.families:
            return f"the entry is IPv{_OTHER[family]} only, so nothing could match; remove {self._unmatched(leave)}"
        closed = f"so that IPv{_OTHER[family]} stays closed"
        if "sources" not in self.fields:
            sources = f"sources = [{quote(_EVERYONE[family])}]"
            return f"{leave}, and write {sources}, {closed}" if leave else f"{_APART} with {sources}, {closed}"
        if leave:
            return f"{leave}, and the IPv{_OTHER[family]} networks of sources too, {closed}"
        return f"{_APART} with the IPv{family} networks of sources only, {closed}"

    @staticmethod
    def _unmatched(leave: str) -> str:
        return "the entry" if leave else "this element"


_APART: Final = "leave it out in an entry of its own"


def _advised(parse: Callable[[str], T], remedy: Callable[[Family], str]) -> Callable[[str], T]:
    def read(text: str) -> T:
        try:
            return parse(text)
        except EveryAddressError as error:
            raise GrammarError(error.what, remedy(error.family)) from None

    return read


# One `[[forward]]`, key by key.
_CUT: Final = re.compile(r"/([0-9]{1,2})(?:, ?/([0-9]{1,3}))?")
# Of IPv6, where only IPv4's is written: a /48 is what one site has (RFC 6177).
_CUT_OF_IPV6: Final = 48
LONGEST: Final = 32, 128
FORWARD_KEYS: Final = KEYS["forward"]


def _read_forward(node: Node) -> tuple[ForwardEntry, ...]:
    """Read one entry, recording every problem in it.

    Where anything but single ports is wrong, it is not known where the entry listens or for which clients, so none is
    returned and no conflicts are made up from a guess.
    """
    before = len(node.document.problems)
    fields = node.fields(FORWARD_KEYS)
    entry = _read_without_ports(node, fields)
    if len(node.document.problems) == before:
        refuse_contradictions(entry, fields)
    is_sound = len(node.document.problems) == before
    specs = _read_ports(node, fields, Everywhere(entry, fields))
    if not is_sound:
        return ()
    refuse_port_contradictions(entry, specs)
    found = [mapping for item, spec in specs for mapping in _mappings(item, spec)]
    fixed = tuple(mapping for mapping in found if isinstance(mapping, PortMapping))
    return (replace(entry, mappings=fixed, auto=tuple(item for item in found if isinstance(item, AutoMapping))),)


def _read_without_ports(node: Node, fields: Mapping[str, Node]) -> ForwardEntry:
    guest = read_guest(node, fields, parse_domains)
    several = is_pattern(guest["domain"])
    if not several and guest["domain"]:
        guest["domain"] = parse_domain(guest["domain"])
    asked = read_asked(fields)
    entry = ForwardEntry(
        mappings=(),
        origin=node.origin,
        interface=read_key(fields, "interface", parse_incoming, "eth0"),
        sources=asked.sources,
        admission=asked.admission,
        named=asked.named,
        masquerade="masquerade" in fields and fields["masquerade"].flag(default=False),
        log=_read_log(fields),
        is_pattern=several,
        **guest,
    )
    if "listen" not in fields:
        return entry
    parse = Everywhere(entry, fields).listening(parse_listen)
    return replace(entry, listen=_read_many(fields, "listen", parse, "198.51.100.7"))


def _read_log(fields: Mapping[str, Node]) -> ConnectionLog | None:
    is_on = "log" in fields and fields["log"].flag(default=False)
    cut = read_key(fields, "log_anonymize", parse_cut, "/24")
    if "log_anonymize" in fields and not is_on:
        fields["log_anonymize"].refuse_key(
            "is for entries with log = true; delete this line, or write log = true beside it"
        )
    return (cut or ConnectionLog()) if is_on else None


def parse_cut(text: str) -> ConnectionLog:
    """Read how much of a client's address is logged: `/24` of IPv4, with a /48 of IPv6, or both, `/24,/56`."""
    match = _CUT.fullmatch(text)
    lengths = (int(match[1]), int(match[2] or _CUT_OF_IPV6)) if match is not None else (LONGEST[0] + 1, 0)
    if lengths[0] > LONGEST[0] or lengths[1] > LONGEST[1]:
        raise GrammarError(
            f"{quote(text)} is no length of a prefix", ', or one for each family, "/24,/48"', right="/24"
        )
    return ConnectionLog(*lengths)


def _read_many(fields: Mapping[str, Node], key: str, parse: Callable[[str], T], example: str) -> tuple[T, ...]:
    if key not in fields:
        return ()
    node = fields[key]
    if node.value == []:
        node.refuse("is empty, so nothing would match; name at least one, or remove the whole entry")
    return read_distinct(node.one_or_more(example), parse, example)


def _read_ports(node: Node, fields: Mapping[str, Node], everywhere: Everywhere) -> list[tuple[Node, PortSpec]]:
    """Read `ports`, each element with its place; those which are wrong are left out."""
    require(node, fields, "ports", 'ports = ["…"] with those that are to be open')
    if "ports" not in fields:
        return []
    ports = fields["ports"]
    if not isinstance(ports.value, list) or not ports.value:
        what = "is empty" if ports.value == [] else f"must be an array of strings, not {show(ports.value)}"
        ports.refuse(f"{what}; {_as_array(ports.value)}")
        return []
    parse = everywhere.among_ports(parse_ports)
    specs = ((item, item.text(parse, "HOST:GUEST")) for item in ports.elements("HOST:GUEST"))
    return _distinct([(item, spec) for item, spec in specs if spec is not None])


def _as_array(value: object) -> str:
    """Say how something that is no array of ports is to be written: as the elements that it is, where it is some."""
    if isinstance(value, str) and (parts := split_ports(value)):
        return f"write [{', '.join(map(quote, parts))}]"
    if isinstance(value, int) and not isinstance(value, bool):
        with suppress(GrammarError, ValueError):
            parse_ports(str(value))
            return f"write [{quote(str(value))}]"
    return 'name the ports that are to be open, ["HOST:GUEST"], or remove the whole entry'


def _distinct(specs: Iterable[tuple[Node, PortSpec]]) -> list[tuple[Node, PortSpec]]:
    """Refuse what says the same as an element before it."""
    found: dict[PortSpec, Node] = {}
    for item, spec in specs:
        if spec in found:
            what = quote(str(item.value))
            item.refuse(f"{what} is already named on line {found[spec].origin.line}; remove one of the two")
        else:
            found[spec] = item
    return [(item, spec) for spec, item in found.items()]


def _mappings(item: Node, spec: PortSpec) -> Iterator[PortMapping | AutoMapping]:
    for protocol in spec.protocols:
        if spec.host is None:
            yield AutoMapping(spec.guest.first, protocol, spec.listen, item.origin)
        else:
            yield PortMapping(spec.host, spec.guest, protocol, spec.listen, item.origin)


# One `[[nat]]`, key by key.
NAT_KEYS: Final = KEYS["nat"]


def _read_nat(node: Node) -> tuple[NatEntry, ...]:
    """Read one entry, recording every problem in it; where anything is wrong, none is returned."""
    before = len(node.document.problems)
    fields = node.fields(NAT_KEYS)
    require(node, fields, "public", 'for example public = "198.51.100.8"')
    public = read_key(fields, "public", parse_public, "198.51.100.8")
    assign = read_key(fields, "assign", parse_holding, "eth0")
    guest, asked = read_guest(node, fields), read_asked(fields)
    if public is None:
        return ()
    entry = NatEntry(
        public=public,
        origin=fields["public"].origin,
        assign=assign,
        admission=asked.whole,
        named=asked.named,
        **guest,
    )
    refuse_nat_contradictions(entry, fields)
    return (entry,) if len(node.document.problems) == before else ()


# One `[[route]]`, key by key.
ROUTE_KEYS: Final = KEYS["route"]


def _read_routes(node: Node) -> tuple[RouteEntry, ...]:
    """Read one entry, recording every problem in it, and return its elements of `addresses` that are right.

    Where anything else is wrong it is not known whose they are, so none is returned.
    """
    before = len(node.document.problems)
    fields = node.fields(ROUTE_KEYS)
    require(node, fields, "network", 'network = "…" with the name that virsh net-list shows')
    network = read_key(fields, "network", parse_network, "default")
    proxy, asked = read_key(fields, "proxy", parse_holding, "eth0"), read_asked(fields)
    is_sound = len(node.document.problems) == before
    subnets = _read_addresses(node, fields)
    if proxy is not None:
        refuse_wide_proxies(subnets)
    refuse_unmatched(fields, asked.whole, [subnet for _, subnet in subnets], "addresses are")
    if network is None or not is_sound:
        return ()
    return tuple(RouteEntry(network, subnet, item.origin, proxy, asked.whole, asked.named) for item, subnet in subnets)


def _read_addresses(node: Node, fields: Mapping[str, Node]) -> list[tuple[Node, Subnet]]:
    """Read `addresses`, each element with its place; those which are wrong are left out."""
    require(node, fields, "addresses", 'for example addresses = ["203.0.113.64/29"]')
    if "addresses" not in fields:
        return []
    addresses = fields["addresses"]
    if addresses.value == []:
        addresses.refuse('is empty; write at least one subnet, ["203.0.113.64/29"]')
    items = addresses.one_or_more("203.0.113.64/29")
    subnets = ((item, item.text(parse_routed, "203.0.113.64/29")) for item in items)
    return [(item, subnet) for item, subnet in subnets if subnet is not None]


# One `[[allow]]`, key by key.
ALLOW_KEYS: Final = KEYS["allow"]
_MOST: Final = 65_535


def read_allow(node: Node) -> tuple[AllowEntry, ...]:
    """Read one entry, recording every problem in it; where anything is wrong, none is returned."""
    before = len(node.document.problems)
    fields = node.fields(ALLOW_KEYS)
    require(node, fields, "domains", 'domains = ["…"] with patterns of names, or UUIDs')
    entry = AllowEntry(
        domains=_read_many(fields, "domains", parse_pattern, "ci-*"),
        origin=node.origin,
        networks=_read_many(fields, "networks", parse_network, "default"),
        listen=_read_many(fields, "listen", parse_listen, "198.51.100.7"),
        ports=_read_many(fields, "ports", parse_host_ports, "20000-29999"),
        public=_read_many(fields, "public", parse_routed, "198.51.100.64/27"),
        assign=read_key(fields, "assign", parse_holding, "eth0"),
        most=(fields["max"].count(_MOST, DEFAULT_MAX) if "max" in fields else None) or DEFAULT_MAX,
    )
    if "assign" in fields and "public" not in fields:
        fields["assign"].refuse("is where the addresses of public are held, and there are none; remove it")
    if fields and not entry.ports and not entry.public and len(node.document.problems) == before:
        node.refuse('allows nothing; write ports = ["20000-29999"] or public = ["198.51.100.64/27"]')
    return (entry,) if len(node.document.problems) == before else ()


AskedEntry: TypeAlias = ForwardEntry | NatEntry
"""What a guest may ask for in its metadata."""

ASKED_READERS: Final[Mapping[str, Callable[[Node], tuple[AskedEntry, ...]]]] = {
    "forward": _read_forward,
    "nat": _read_nat,
}
READERS: Final[Mapping[str, Callable[[Node], tuple[Entry, ...]]]] = {**ASKED_READERS, "route": _read_routes}
"""What reads one entry of each table, giving those that are fit to be compared with others."""
