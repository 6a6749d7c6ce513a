"""Configurations that `check` accepts, of every kind and with odd but allowed words in them, and a host they are for.

They are made as text, as a user writes them: entries that stand against earlier ones are left out.
"""

import json
from collections.abc import Iterable
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any
from uuid import UUID

from hypothesis import strategies as st

from fwdaemon import config
from fwdaemon.config.model import Config
from fwdaemon.core.inventory import (
    AddressSource,
    Domain,
    GuestInterface,
    HostAddress,
    Inventory,
    LearnedAddress,
    Network,
)
from fwdaemon.errors import ConfigError

# What is left of a rule's syntax when any of these gets into one as it is.
NAMES = ("web", '"; } flush ruleset; #', "--comment\n-j ACCEPT", "a\\'$(reboot)", "x\u202e\x85" + "x" * 189, "x\x1b[2J")
# The kernel takes all of these for names of interfaces, and so does the configuration.
INTERFACES = ("eth0", "wg0.5", "a{b", "a;b", "a,b", "@outer", "$x", "#", "{", "}", "é", "a=b", "0", "accept", "inet")
LOCAL4, LOCAL6 = ("198.51.100.1", "198.51.100.7"), ("2001:db8::1", "2001:db8::7")
ELSEWHERE4, ELSEWHERE6 = ("198.51.100.8",), ("2001:db8::8",)
SOURCES = (
    *("203.0.113.0/24", "203.0.113.0/25", "203.0.113.128/25", "203.0.113.7", "0.0.0.0/0", "128.0.0.0/1"),
    *("2001:db8:9::/48", "2001:db8:9::9", "::/0", "8000::/1"),
)
_PORTS = ("1", "53", "80", "80-89", "85-99", "1-65535", "65535", "65000-65535", "81:8081", "80-89:180-189", "84:1")
_LABELS = (25, 0, 127)


def toml(table: str, **keys: Any) -> str:
    """One entry; a JSON string or array is one of TOML."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in keys.items() if value]
    return "\n".join([f"[[{table}]]", *lines, ""])


def leased(index: int) -> tuple[str, str]:
    """The addresses that the guest `NAMES[index]` was given."""
    return f"192.168.122.{10 + index}", f"2001:db8:122::{10 + index:x}"


def inventory() -> Inventory:
    """A host on which all domains run and are known in both families, whose interfaces lead away."""
    domains = tuple(
        Domain(name, UUID(int=index + 1), running=True, interfaces=(_interface(index),))
        for index, name in enumerate(NAMES)
    )
    subnets = ip_network("192.168.122.0/24"), ip_network("2001:db8:122::/64")
    gateways = ip_address("192.168.122.1"), ip_address("2001:db8:122::1")
    networks = (
        Network("default", active=True, bridge="virbr0", subnets=subnets, gateways=gateways),
        Network("public", active=True, bridge="virbr1"),
    )
    own = tuple(
        HostAddress(ip_address(item), ip_network(f"{item}/{24 if '.' in item else 64}", strict=False), "eth0")
        for item in (*LOCAL4, *LOCAL6)
    )
    return Inventory(domains, networks, own, frozenset({"eth0", "wg0.5", "a b", 'x"'}))


def _interface(index: int) -> GuestInterface:
    learned = tuple(LearnedAddress(ip_address(item), AddressSource.LEASE) for item in leased(index))
    return GuestInterface(f"52:54:00:00:00:{index:02x}", "default", "virbr0", f"vnet{index}", learned)


def _ports() -> st.SearchStrategy[str]:
    listens = ("", "", "", "", f"{LOCAL4[0]}:", f"{ELSEWHERE4[0]}:", f"[{LOCAL6[0]}]:")
    protocols = ("", "", "/udp", "/sctp", "/tcp+udp")
    return st.builds(
        lambda listen, ports, protocol: f"{listen}{ports}{protocol}",
        st.sampled_from(listens),
        st.sampled_from(_PORTS),
        st.sampled_from(protocols),
    )


def _forwards() -> st.SearchStrategy[str]:
    return st.builds(
        lambda guest, ports, listen, interface, sources, address: toml(
            "forward",
            domain=NAMES[guest],
            ports=ports,
            listen=listen,
            interface=interface,
            sources=sources,
            address=address and leased(guest)[address - 1],
        ),
        st.integers(0, len(NAMES) - 1),
        st.lists(_ports(), min_size=1, max_size=3, unique=True),
        st.lists(st.sampled_from(LOCAL4 + ELSEWHERE4 + LOCAL6 + ELSEWHERE6), max_size=1),
        # More often than not, entries are to meet, be it on one of two interfaces.
        st.sampled_from(("", "", "", "", "eth0", "eth0", *INTERFACES)),
        st.one_of(st.just([]), st.lists(st.sampled_from(SOURCES), max_size=2, unique=True)),
        st.sampled_from((0, 0, 1, 2)),
    )


def _nats() -> st.SearchStrategy[str]:
    return st.builds(
        lambda guest, public: toml("nat", domain=NAMES[guest], public=public),
        st.integers(0, len(NAMES) - 1),
        st.sampled_from(LOCAL4 + ELSEWHERE4 + LOCAL6 + ELSEWHERE6 + ("203.0.113.66",)),
    )


def _routes() -> st.SearchStrategy[str]:
    subnets = ("203.0.113.64/29", "203.0.113.72/32", "198.51.100.8/32", "2001:db8:1::/64", "2001:db8::8/128")
    return st.builds(
        lambda addresses: toml("route", network="public", addresses=addresses),
        st.lists(st.sampled_from(subnets), min_size=1, max_size=3, unique=True),
    )


def accepted(entries: Iterable[str], head: str = "") -> tuple[Config, list[str]]:
    """Give the configuration of as many of the entries as go together, in their order, and those."""
    kept: list[str] = []
    found = config.parse({Path("portfwd.toml"): head})
    for entry in entries:
        try:
            found = config.parse({Path("portfwd.toml"): head + "".join([*kept, entry])})
        except ConfigError:
            continue
        kept.append(entry)
    return found, kept


def some_entries() -> st.SearchStrategy[list[str]]:
    """Entries of every kind, which need not go together."""
    return st.lists(st.one_of(_forwards(), _forwards(), _forwards(), _nats(), _routes()), min_size=1, max_size=10)


def some_heads() -> st.SearchStrategy[str]:
    """Any `[daemon]` that makes a difference for rules."""
    return st.builds(
        lambda label, localhost: f"[daemon]\nlabel = {label}\nlocalhost = {str(localhost).lower()}\n",
        st.sampled_from(_LABELS),
        st.booleans(),
    )
