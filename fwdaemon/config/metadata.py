"""Reads forwards from a domain's metadata, with the grammar of the file, and compares them with an `[[allow]]`.

So are those read that are opened for a while.

Each element is valid or not by itself: one that is not opens nothing, and is reported as it would be in a file.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypeAlias
from uuid import UUID

from fwdaemon.config.exposures import ASKED_READERS, AskedEntry
from fwdaemon.config.lines import KeyPath, LineIndex
from fwdaemon.config.model import KEYS, AllowEntry, ForwardEntry, NatEntry
from fwdaemon.config.node import Document, Node
from fwdaemon.config.sets import unknown_set
from fwdaemon.core.inventory import Element, Metadata
from fwdaemon.core.text import quote, suggest
from fwdaemon.core.types import Address, Origin, PortRange, Protocol, Until
from fwdaemon.errors import ConfigError, Problem

# The keys of the file, but for those that are for who administers the host: `domain`, as each asks for itself; `log`
# and `log_anonymize`, which fill its journal; and `masquerade`, which gives a guest a way to clients that its network
# and its own routes may be meant not to have.
ATTRIBUTES: Final[Mapping[str, tuple[str, ...]]] = {
    "forward": ("address", "deny", "interface", "listen", "mac", "max_open", "network", "ports", "rate", "sources"),
    "nat": ("address", "assign", "deny", "mac", "network", "public", "sources"),
}
# Attributes that are lists, separated by blanks.
LISTS: Final = frozenset({"deny", "listen", "ports", "sources"})
# Attributes that are numbers.
_NUMBERS: Final = frozenset({"max_open"})
# A domain may write this many elements of lists in all: each is compared with those of others.
MOST_ITEMS: Final = 256
# A domain may make this many claims in all: a port string is one for each protocol on each listening address.
MOST_CLAIMS: Final = 256

_TOO_MANY: Final = (
    f"the ports on each address of listen make more than {MOST_CLAIMS} together with what stands before; write fewer, "
    "and wider ranges"
)


@dataclass(frozen=True, slots=True)
class Reading:
    """The result of reading one element: its entries, or what is wrong with it."""

    origin: Origin
    entries: tuple[AskedEntry, ...] = ()
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Definition(Document):
    """One element, as a document whose values all stand at the same place."""

    place: Origin

    def origin(self, _: KeyPath) -> Origin:
        return self.place


def read_metadata(metadata: Metadata, name: str, uuid: UUID, sets: Collection[str] = ()) -> tuple[Reading, ...]:
    """Read the metadata of a domain, element by element; `sets` are the names of those that files have."""
    whole = Origin(Path(), 0, name, str(uuid))
    if metadata.fault:
        return (Reading(whole, problems=(f"{metadata.fault}; nothing of it is in force",)),)
    if sum(map(_items, metadata.elements)) > MOST_ITEMS:
        what = f"lists more than {MOST_ITEMS} ports, addresses and sources; write fewer, and wider ones"
        return (Reading(whole, problems=(what,)),)
    return tuple(_readings(metadata, name, uuid, sets))


def read_opening(
    domain: str, ports: Sequence[str], sources: Sequence[str], origin: Origin, until: Until | None = None
) -> ForwardEntry:
    """Read what is opened for a while as an entry of a file is read; `origin` is where that is said to stand.

    Which sets there are is not known here; see `config.sets.settled`.

    Raises:
        ConfigError: something of it is wrong.

    """
    problems: list[Problem] = []
    document = _Definition(origin.file, LineIndex({}), problems, origin)
    values: dict[str, object] = {"domain": domain, "ports": list(ports)}
    if sources:
        values["sources"] = list(sources)
    node = Node(values, ("forward", 0), document)
    entries = [entry for entry in ASKED_READERS["forward"](node) if isinstance(entry, ForwardEntry)]
    if not problems and any(entry.is_pattern for entry in entries):
        node.refuse(f"{quote(domain)} is a pattern, and one domain is to be named; write its name or UUID")
    if problems:
        raise ConfigError(problems)
    return replace(entries[0], until=until)


def _items(element: Element) -> int:
    return sum(len(value.split()) for key, value in element.attributes if key in LISTS)


def _readings(metadata: Metadata, name: str, uuid: UUID, sets: Collection[str]) -> Iterator[Reading]:
    seen, left = Counter[str](), MOST_CLAIMS
    for number, element in enumerate(metadata.elements, 1):
        called = f"{element.name} {seen[element.name] + 1}" if element.name in ATTRIBUTES else f"element {number}"
        origin = Origin(Path(), number, name, str(uuid), element=called)
        problems: list[Problem] = []
        document = _Definition(Path(), LineIndex({}), problems, origin)
        node = Node(None, (element.name, seen[element.name]), document)
        entries = _read(element, seen[element.name], uuid, document)
        seen[element.name] += 1
        for unknown in dict.fromkeys(found for entry in entries for found, _ in entry.named if found not in sets):
            node.refuse(unknown_set(unknown, sets))
        if (claims := sum(map(_claims, entries))) > left:
            node.refuse(_TOO_MANY)
        else:
            left -= claims
        yield Reading(origin, () if problems else entries, tuple(problem.text for problem in problems))


def _claims(entry: AskedEntry) -> int:
    return entry.number * max(1, len(entry.listen)) if isinstance(entry, ForwardEntry) else 1


def _read(element: Element, number: int, uuid: UUID, document: Document) -> tuple[AskedEntry, ...]:
    if element.name not in ATTRIBUTES:
        _refuse_element(element, document)
        return ()
    values: dict[str, object] = {key: _value(key, text) for key, text in element.attributes}
    node = Node(values, (element.name, number), document)
    if element.inside:
        node.refuse(f"has {_shown_name(element.inside)} inside; write an element without any, <{element.name} …/>")
    strange = [key for key in values if key not in ATTRIBUTES[element.name]]
    for key in strange:
        Node(values[key], (*node.path, key), document).refuse_key(_about_strange(element, key))
        del values[key]
    return () if strange else ASKED_READERS[element.name](_with_domain(node, uuid))


def _with_domain(node: Node, uuid: UUID) -> Node:
    """Add the domain, by its UUID, which no other has."""
    values = node.value if isinstance(node.value, dict) else {}
    return Node(values | {"domain": str(uuid)}, node.path, node.document)


def _value(key: str, text: str) -> object:
    if key in LISTS:
        return list(dict.fromkeys(text.split()))
    return int(text) if key in _NUMBERS and re.fullmatch("[0-9]{1,9}", text) else text


def _refuse_element(element: Element, document: Document) -> None:
    if element.name == "forwards":
        text = f"unknown attribute {quote(element.attributes[0][0])}; write it in <forward> or <nat>"
    elif element.name.rpartition("}")[2] in ATTRIBUTES:
        text = f"{_shown_name(element.name)} is of another namespace; write the prefix of <forwards> before it"
    else:
        text = f"unknown element {_shown_name(element.name)}; {suggest(element.name, ATTRIBUTES)}"
    Node(None, ("forwards",), document).refuse(text)


def _about_strange(element: Element, key: str) -> str:
    if key.rpartition("}")[2] in ATTRIBUTES[element.name]:
        return f"attribute {quote(key)} is of a namespace; write it without a prefix"
    if key in KEYS[element.name]:
        return f"{quote(key)} is a key of the host's files only; leave it out"
    return f"unknown attribute {quote(key)}; {suggest(key, ATTRIBUTES[element.name])}"


def _shown_name(name: str) -> str:
    return name if name == "text" else quote(name.removeprefix("{}"))


# What a policy does not cover, as far as that does not depend on the inventory.
Lack: TypeAlias = tuple[str, str]
"""A key of an `[[allow]]`, and what it does not cover."""


def lacks(entry: AskedEntry, allow: AllowEntry, local: Collection[Address], pool: PortRange | None) -> Iterator[Lack]:
    """Give what a policy does not cover of an entry; `local` are the host's addresses, `pool` is `auto_ports`.

    Which port of the pool will be assigned is not known yet, so a policy has to cover the whole pool.
    """
    if isinstance(entry, NatEntry):
        yield from _nat_lacks(entry, allow)
        return
    for claim, _ in entry.every_claim():
        if claim.address is None and allow.listen:
            yield "listen", "*"
        elif claim.address is not None and claim.address not in (allow.listen or local):
            yield "listen", str(claim.address)
    for mapping in entry.mappings:
        if mapping.protocol is Protocol.SCTP or not _covers(allow.ports, mapping.host):
            yield "ports", f"{mapping.protocol} {mapping.host}"
    for auto in entry.auto:
        if pool is None or auto.protocol is Protocol.SCTP or not _covers(allow.ports, pool):
            of = "no auto_ports are set" if pool is None else f"one of auto_ports, {pool}"
            yield "ports", f"{auto.protocol} auto:{auto.guest} ({of})"


def _nat_lacks(entry: NatEntry, allow: AllowEntry) -> Iterator[Lack]:
    if not any(entry.public in subnet for subnet in allow.public):
        yield "public", str(entry.public)
    if entry.assign not in (None, allow.assign):
        yield "assign", str(entry.assign)


def _covers(allowed: Iterable[PortRange], ports: PortRange) -> bool:
    """Whether ranges together, which may adjoin or overlap, have all of these ports."""
    lacking = ports.first
    for item in sorted(allowed):
        if item.first <= lacking <= item.last:
            lacking = item.last + 1
    return lacking > ports.last


def allowed(entry: AskedEntry, allow: AllowEntry) -> AskedEntry:
    """Note the policy that allows an entry; of a 1:1 entry, that also sets where its address is held."""
    origin = replace(entry.origin, allowed=allow.origin)
    if isinstance(entry, NatEntry):
        return replace(entry, origin=origin, assign=allow.assign)
    mappings = tuple(replace(mapping, origin=origin) for mapping in entry.mappings)
    return replace(
        entry, origin=origin, mappings=mappings, auto=tuple(replace(item, origin=origin) for item in entry.auto)
    )


def cost(entry: AskedEntry) -> int:
    """Count each port on each address, and a public address as one."""
    return sum(1 if claim.ports is None else claim.ports.width for claim, _ in entry.every_claim())
