"""One `[[nat]]`, key by key."""

from typing import Final

from fwdaemon.config.addresses import parse_public
from fwdaemon.config.contradictions import refuse_nat_contradictions
from fwdaemon.config.entry import read_guest, read_key, require
from fwdaemon.config.model import NatEntry
from fwdaemon.config.names import parse_interface
from fwdaemon.config.node import Node

KEYS: Final = ("address", "assign", "domain", "mac", "network", "public")


def read_nat(node: Node) -> NatEntry | None:
    """Read one entry, recording every problem in it; where anything is wrong, `None` is returned."""
    before = len(node.document.problems)
    fields = node.fields(KEYS)
    require(node, fields, "public", 'for example public = "198.51.100.8"')
    public = read_key(fields, "public", parse_public, "198.51.100.8")
    assign = read_key(fields, "assign", parse_interface, "eth0")
    guest = read_guest(node, fields)
    if public is None:
        return None
    entry = NatEntry(public=public, origin=fields["public"].origin, assign=assign, **guest)
    refuse_nat_contradictions(entry, fields)
    return entry if len(node.document.problems) == before else None
