"""What the kinds of entries have in common: how a key is read, and which guest an entry speaks of."""

from collections.abc import Callable, Mapping
from typing import TypedDict, TypeVar

from fwdaemon.config.addresses import parse_guest
from fwdaemon.config.names import parse_mac, parse_name
from fwdaemon.config.node import Node
from fwdaemon.model import Address

T = TypeVar("T")


class Guest(TypedDict):
    """The keys that name a guest, its address and, where it has several, which of its interfaces is meant."""

    domain: str
    address: Address | None
    network: str | None
    mac: str | None


def read_key(fields: Mapping[str, Node], key: str, parse: Callable[[str], T], example: str) -> T | None:
    """Read a key that holds one string; `None` where it is left out or wrong."""
    return fields[key].text(parse, example) if key in fields else None


def read_guest(node: Node, fields: Mapping[str, Node]) -> Guest:
    """Read the keys of `Guest`; a domain that is missing or wrong is recorded and stands as the empty name."""
    require(node, fields, "domain", 'domain = "…" with the name or UUID that virsh shows')
    return Guest(
        domain=read_key(fields, "domain", parse_name, "web1") or "",
        address=read_key(fields, "address", parse_guest, "192.168.122.50"),
        network=read_key(fields, "network", parse_name, "default"),
        mac=read_key(fields, "mac", parse_mac, "52:54:00:12:34:56"),
    )


def require(node: Node, fields: Mapping[str, Node], key: str, remedy: str) -> None:
    """Record that an entry lacks a key; one that is no table at all has been refused for that already."""
    if key not in fields and isinstance(node.value, dict):
        node.refuse(f"has no {key}; write {remedy}")
