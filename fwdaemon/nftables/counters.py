"""Which rules count connections, and what they have counted. Pure.

A rule that translates sees the first packet of each connection only, so its packets are connections; the bytes are
those of first packets, and no use to anybody. Rules that only mark see every packet of a flow that nobody has answered
yet, so they count nothing worth telling.
"""

import re
from collections.abc import Iterator, Mapping
from typing import TypeAlias

from fwdaemon.desired import Desired, Opening
from fwdaemon.model import Family
from fwdaemon.nftables.branches import EVERY_ADDRESS, LEAVING_AS, ONE_ADDRESS, ONE_TO_ONE, branches
from fwdaemon.nftables.model import family_name

# A rule: the family of its table, its chain, its comment.
Place: TypeAlias = tuple[str, str, str]

_TRANSLATING = {*ONE_ADDRESS, *EVERY_ADDRESS, ONE_TO_ONE, LEAVING_AS}
_CHAIN = re.compile(r"\tchain (\S+) \{")
_RULE = re.compile(r'\bcounter packets (\d+) bytes \d+ .*comment "([^"]*)"$')


def counting_rules(desired: Desired) -> Mapping[Place, Opening]:
    """Give the rules that count connections, each with its opening."""
    return {
        (family_name(family), branch.chain, rule.comment): opening
        for family in Family
        for branch in branches(family, desired)
        if branch.map in _TRANSLATING
        for rule, opening in zip(branch.rules, branch.openings, strict=True)
    }


def read_packets(family: Family, listing: str) -> Iterator[tuple[Place, int]]:
    """Read the packets of each rule that counts any from `nft --terse list table`."""
    chain = ""
    for line in listing.splitlines():
        if found := _CHAIN.match(line):
            chain = found[1]
        elif found := _RULE.search(line):
            yield (family_name(family), chain, found[2]), int(found[1])
