"""One `[[forward]]`, key by key."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Final, TypeVar

from fwdaemon.config.addresses import parse_listen, parse_source
from fwdaemon.config.contradictions import refuse_contradictions, refuse_port_contradictions
from fwdaemon.config.entry import read_guest, read_key, require
from fwdaemon.config.model import ForwardEntry, PortMapping
from fwdaemon.config.names import parse_interface
from fwdaemon.config.node import Node, read_distinct
from fwdaemon.config.ports import LAST_PORT, PortSpec, parse_ports

KEYS: Final = ("address", "domain", "interface", "listen", "mac", "network", "ports", "sources")

T = TypeVar("T")


def read_forward(node: Node) -> ForwardEntry | None:
    """Read one entry, recording every problem in it.

    Where anything but single ports is wrong, it is not known where the entry listens or for whom, so `None` is returned
    and no conflicts are made up from a guess.
    """
    before = len(node.document.problems)
    fields = node.fields(KEYS)
    entry = _read_without_ports(node, fields)
    if len(node.document.problems) == before:
        refuse_contradictions(entry, fields)
    is_sound = len(node.document.problems) == before
    specs = _read_ports(node, fields)
    if not is_sound:
        return None
    refuse_port_contradictions(entry, specs)
    return replace(entry, mappings=tuple(mapping for item, spec in specs for mapping in _mappings(item, spec)))


def _read_without_ports(node: Node, fields: Mapping[str, Node]) -> ForwardEntry:
    return ForwardEntry(
        mappings=(),
        origin=node.origin,
        listen=_read_many(fields, "listen", parse_listen, "198.51.100.7"),
        interface=read_key(fields, "interface", parse_interface, "eth0"),
        sources=_read_many(fields, "sources", parse_source, "203.0.113.0/24"),
        **read_guest(node, fields),
    )


def _read_many(fields: Mapping[str, Node], key: str, parse: Callable[[str], T], example: str) -> tuple[T, ...]:
    if key not in fields:
        return ()
    node = fields[key]
    if node.value == []:
        node.refuse("is empty; leave the key out, or name at least one")
    return read_distinct(node.one_or_more(example), parse, example)


def _read_ports(node: Node, fields: Mapping[str, Node]) -> list[tuple[Node, PortSpec]]:
    """Read `ports`, each element with its place; those which are wrong are left out."""
    require(node, fields, "ports", 'for example ports = ["80", "2222:22"]')
    if "ports" not in fields:
        return []
    ports = fields["ports"]
    if not isinstance(ports.value, list) or not ports.value:
        ports.refuse('must be an array of at least one string; write for example ["80", "2222:22"]')
        return []
    specs = ((item, item.text(parse_ports, _example_for(item.value))) for item in ports.elements("80"))
    return [(item, spec) for item, spec in specs if spec is not None]


def _example_for(value: object) -> str:
    """Return what was probably meant by an element that may be a bare number."""
    is_port = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= LAST_PORT
    return str(value) if is_port else "80"


def _mappings(item: Node, spec: PortSpec) -> Iterator[PortMapping]:
    for protocol in spec.protocols:
        yield PortMapping(spec.host, spec.guest, protocol, spec.listen, item.origin)
