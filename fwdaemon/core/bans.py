"""Which rules of others may stand ahead of a gate: bans, and nothing else. Pure.

A ban refuses named sources only, or is a jump to a chain that `behind` of the configuration names, such as fail2ban's
and Docker's for the administrator. What such a chain accepts needs no gate, and what it refuses is refused on purpose.

A gate belongs right after the bans at the head of its chain. A rule that decides nothing, such as one that logs, may
stand between them. So the same rules always give the same place, whichever came first.
"""

from collections.abc import Collection, Iterable
from enum import StrEnum
from fnmatch import fnmatchcase
from ipaddress import collapse_addresses, summarize_address_range
from itertools import groupby

from fwdaemon.core.types import Address, Family, Subnet

# Shell patterns of the chains in which programs and administrators refuse sources: jumps to these stay ahead of a gate.
BEHIND = ("DOCKER-USER", "f2b-*", "CROWDSEC*", "crowdsec*", "ufw-before-forward", "ufw-user-forward")


class Kind(StrEnum):
    """What a rule of another program does to packets that a gate would accept."""

    BAN = "ban"
    IDLE = "idle"
    DECIDES = "decides"


def place(kinds: Iterable[Kind]) -> int:
    """Count the rules that stay ahead of a gate: all up to the last ban before the first rule that decides."""
    staying = 0
    for number, kind in enumerate(kinds, 1):
        if kind is Kind.DECIDES:
            break
        if kind is Kind.BAN:
            staying = number
    return staying


def is_behind(chain: str, behind: Collection[str]) -> bool:
    """Whether one of the patterns of `behind` names a chain."""
    return any(fnmatchcase(chain, pattern) for pattern in behind)


def are_named(sources: Iterable[Subnet]) -> bool:
    """Whether these are some sources, and not every one of a family."""
    ordered = sorted(sources, key=Family.of)
    families = [list(found) for _, found in groupby(ordered, Family.of)]
    return bool(ordered) and all(subnet.prefixlen for found in families for subnet in _merged(found))


def between(first: Address, last: Address) -> list[Subnet]:
    """Give a range of addresses as subnets; nothing where it is none."""
    if first.version != last.version or int(first) > int(last):
        return []
    return list(summarize_address_range(first, last))


def _merged(subnets: list[Subnet]) -> list[Subnet]:
    return list(collapse_addresses(subnets))  # type: ignore[type-var]  # all are of one family
