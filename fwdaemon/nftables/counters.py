"""Which rules and elements count connections, and what they have counted. Pure.

A rule that translates sees the first packet of each connection only, so its packets are connections; the bytes are
those of first packets, and no use to anybody. Rules that only mark see every packet of a flow that nobody has answered
yet, so they count nothing worth telling.
"""

import re
from collections.abc import Iterator, Mapping
from ipaddress import ip_address
from typing import TypeAlias

from fwdaemon.desired import Desired, Opening
from fwdaemon.model import Family
from fwdaemon.nftables.branches import EVERY_ADDRESS, LEAVING_AS, ONE_ADDRESS, ONE_TO_ONE, TARGETS, Branch, branches
from fwdaemon.nftables.model import family_name
from fwdaemon.nftables.readback import PROTOCOL_NAMES

Counter: TypeAlias = tuple[str, str, str]
"""The family of a table, and a chain and a rule's comment, or a map and an element's key."""

_TRANSLATING = {*ONE_ADDRESS, *EVERY_ADDRESS, ONE_TO_ONE, LEAVING_AS}
_BLOCK = re.compile(r"\t(?:chain|map) (\S+) \{")
_RULE = re.compile(r'\bcounter packets (\d+) bytes \d+ .*comment "([^"]*)"$')
_ELEMENT = re.compile(r'(?:([0-9a-f.:]+) \. )?(\w+) \. (\d+) counter packets (\d+) bytes \d+ comment "[^"]*" : ')


def counting_rules(desired: Desired) -> Mapping[Counter, Opening]:
    """Give what counts connections, each with its opening."""
    return {
        (family_name(family), *counter): opening
        for family in Family
        for branch in branches(family, desired)
        if branch.map in _TRANSLATING
        for counter, opening in zip(_counters(branch), branch.openings, strict=True)
    }


def _counters(branch: Branch) -> Iterator[tuple[str, str]]:
    if branch.target is not None:
        yield TARGETS[branch.map], branch.key
    yield from ((branch.chain, rule.comment) for rule in branch.rules)


def read_packets(family: Family, listing: str) -> Iterator[tuple[Counter, int]]:
    """Read the packets of each rule and element that counts any from `nft list table`."""
    block, name = "", family_name(family)
    for line in listing.splitlines():
        if found := _BLOCK.match(line):
            block = found[1]
        elif elements := list(_ELEMENT.finditer(line)):
            yield from (((name, block, _key(element)), int(element[4])) for element in elements)
        elif found := _RULE.search(line):
            yield (name, block, found[2]), int(found[1])


def _key(element: re.Match[str]) -> str:
    """Write the key as we do."""
    address, protocol, port = element.group(1, 2, 3)
    known = PROTOCOL_NAMES.get(int(protocol), protocol) if protocol.isdecimal() else protocol
    return " . ".join([*([_plain(address)] if address else []), known, port])


def _plain(address: str) -> str:
    """Write an address as we do; what is none stands in somebody's comment, and is nobody's key."""
    try:
        return str(ip_address(address))
    except ValueError:
        return address
