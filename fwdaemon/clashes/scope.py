"""What a rule, or an opening, asks of a packet: for each field the values it may have. Pure.

A field that is not named may be anything. A test that is not understood counts as passed, so a scope may be too wide,
but never too narrow.
"""

from collections.abc import Iterable, Mapping
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network
from typing import TypeAlias

from fwdaemon.model import PortRange, Protocol, Subnet


class Field(StrEnum):
    """What may be asked of the first packet of a connection; an interface is the one it came in by."""

    PROTOCOL = "protocol"
    PORT = "port"
    DESTINATION = "destination"
    SOURCE = "source"
    INTERFACE = "interface"


Value: TypeAlias = Protocol | PortRange | IPv4Network | IPv6Network | str
Scope: TypeAlias = Mapping[Field, tuple[Value, ...]]


def both(one: Scope, other: Scope) -> Scope | None:
    """Give the scope of what passes both, or `None` where nothing does."""
    merged = {**one, **other}
    for field in one.keys() & other.keys():
        merged[field] = common(one[field], other[field])
    return merged if all(merged.values()) else None


def common(some: Iterable[Value], others: Iterable[Value]) -> tuple[Value, ...]:
    """Give the values of a field that are in both."""
    others = tuple(others)
    pairs = ((one, other) for one in some for other in others)
    return tuple(met for one, other in pairs if (met := _met(one, other)) is not None)


def _met(one: Value, other: Value) -> Value | None:
    match one, other:
        case PortRange(), PortRange():
            first, last = max(one.first, other.first), min(one.last, other.last)
            return PortRange(first, last) if first <= last else None
        case IPv4Network() | IPv6Network() as subnet, IPv4Network() | IPv6Network() as around:
            return _met_subnets(subnet, around)
        case Protocol(), Protocol():
            return one if one is other else None
        case str(), str():
            return _met_interfaces(one, other)
    return None


def _met_subnets(one: Subnet, other: Subnet) -> Subnet | None:
    """Give the narrower one if it lies in the wider one; otherwise they have nothing in common."""
    narrow, wide = (one, other) if one.prefixlen >= other.prefixlen else (other, one)
    within = narrow.version == wide.version and narrow.subnet_of(wide)  # type: ignore[arg-type]  # the family is one
    return narrow if within else None


def _met_interfaces(one: str, other: str) -> str | None:
    """Compare names, which may end in a `*`."""
    for wide, narrow in ((one, other), (other, one)):
        if wide == narrow or (wide.endswith("*") and narrow.startswith(wide[:-1])):
            return narrow
    return None
