"""One `[[route]]`, key by key."""

from collections.abc import Mapping
from typing import Final

from fwdaemon.config.addresses import parse_routed
from fwdaemon.config.contradictions import refuse_wide_proxies
from fwdaemon.config.entry import read_key, require
from fwdaemon.config.model import RouteEntry
from fwdaemon.config.names import parse_interface, parse_name
from fwdaemon.config.node import Node
from fwdaemon.model import Subnet

KEYS: Final = ("addresses", "network", "proxy")


def read_routes(node: Node) -> tuple[RouteEntry, ...]:
    """Read one entry, recording every problem in it, and return its elements of `addresses` that are right.

    Where anything else is wrong it is not known whose they are, so none is returned.
    """
    before = len(node.document.problems)
    fields = node.fields(KEYS)
    require(node, fields, "network", 'network = "…" with the name that virsh net-list shows')
    network = read_key(fields, "network", parse_name, "default")
    proxy = read_key(fields, "proxy", parse_interface, "eth0")
    is_sound = len(node.document.problems) == before
    subnets = _read_addresses(node, fields)
    if proxy is not None:
        refuse_wide_proxies(subnets)
    if network is None or not is_sound:
        return ()
    return tuple(RouteEntry(network, subnet, item.origin, proxy) for item, subnet in subnets)


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
