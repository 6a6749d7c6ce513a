"""Whose a chain is, by the names its tools are known to use. Pure."""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from ipaddress import ip_address
from typing import Any, Final

from fwdaemon.core.bans import Judge, Kind, read_iptables
from fwdaemon.core.text import unquoted
from fwdaemon.core.types import Address, Family
from fwdaemon.legacy.model import OWN_CHAINS
from fwdaemon.nftables.gates import COMMENT
from fwdaemon.rulesets.packet import (
    BaseChain,
    Chains,
    Choice,
    Jump,
    Match,
    Packet,
    Rule,
    RuleLocation,
    State,
    Surroundings,
    System,
)

OURS: Final = "kvm-portfwd"
ADMIN: Final = "admin"
# Tools that are there to refuse clients.
BANNING: Final = frozenset({"fail2ban", "CrowdSec"})

_TABLES: Final = (
    (r"kvm_portfwd", OURS),
    (r"libvirt_network", "libvirt"),
    (r"firewalld", "firewalld"),
    (r"docker.*", "Docker"),
    (r"kube.*", "Kubernetes"),
    (r"incus", "Incus"),
    (r"lxd|lxc", "LXD"),
    (r"f2b.*|fail2ban.*", "fail2ban"),
    (r"netavark", "Podman"),
    (r"crowdsec.*", "CrowdSec"),
)
_CHAINS: Final = (
    ("|".join(OWN_CHAINS), OURS),
    (r"LIBVIRT_.*", "libvirt"),
    (r"DOCKER.*", "Docker"),
    (r"(INPUT|FORWARD|OUTPUT|PREROUTING|POSTROUTING)_(direct|ZONES.*|(IN|OUT)_ZONES.*|POLICIES.*)", "firewalld"),
    (r"ufw6?-.*", "ufw"),
    (r"KUBE-.*", "Kubernetes"),
    (r"cali-.*", "Calico"),
    (r"CILIUM_.*", "Cilium"),
    (r"FLANNEL-.*", "flannel"),
    (r"CNI-.*", "CNI"),
    (r"NETAVARK.*", "Podman"),
    (r"f2b-.*", "fail2ban"),
    (r"(?i:crowdsec).*", "CrowdSec"),
)


def owner_of(location: RuleLocation) -> str:
    """Name the tool that a rule's chain or table belongs to; what no tool is known for is the administrator's."""
    return _named(location.chain, _CHAINS) or _named(location.table, _TABLES) or ADMIN


def owners_of(chain: BaseChain) -> str:
    """Name everybody who has rules in a base chain, or `nobody`; one of iptables is shared, so its rules tell."""
    owner = owner_of(chain.policy)
    if chain.system is System.NFTABLES:
        return owner
    return ", ".join(sorted({_owner_of_rule(rule) for rule in chain.chains.get(chain.name, ())})) or "nobody"


def _owner_of_rule(rule: Rule) -> str:
    targets = [statement.chain for statement in rule.statements if isinstance(statement, Jump)]
    if COMMENT in unquoted(rule.location.text).split():
        return OURS
    return owner_of(replace(rule.location, chain=targets[0])) if targets else owner_of(rule.location)


def _named(name: str, owners: tuple[tuple[str, str], ...]) -> str | None:
    return next((owner for pattern, owner in owners if re.fullmatch(pattern, name)), None)


# Whether rules look at who the client is: what tells clients apart was put there on purpose. Pure.

# A packet that nobody marked.
_NO_MARKS: Final[Mapping[str, Any]] = {"mark": 0, "connmark": 0, "labels": frozenset()}
# Documentation addresses, for a client that no list is likely to hold.
_SOMEONE: Final[dict[Family, Address]] = {
    Family.IPV4: ip_address("192.0.2.254"),
    Family.IPV6: ip_address("2001:db8:ffff::fffe"),
}


def asks_who(chain: BaseChain, packets: Collection[Packet], around: Surroundings) -> bool:
    """Whether a rule of a base chain, or of one it leads to, tells clients apart, or marks, which may be of some."""
    rules = [rule for name in _reached(chain.chains, chain.name) for rule in chain.chains.get(name, ())]
    return any(_is_ban(rule) or any(_tells_apart(rule, packet, around) for packet in packets) for rule in rules)


def _reached(chains: Chains, start: str) -> Iterator[str]:
    """Name the chains that packets may come to, each once."""
    waiting, seen = [start], {start}
    while waiting:
        name = waiting.pop()
        yield name
        jumps = (item.chain for rule in chains.get(name, ()) for item in rule.statements if isinstance(item, Jump))
        new = [target for target in jumps if target not in seen]
        seen.update(new)
        waiting += new


def _is_ban(rule: Rule) -> bool:
    """Whether a rule of iptables names sources, also by a set, whose elements are not read here."""
    if rule.location.system is System.NFTABLES:
        return False
    return Judge(()).kind(read_iptables(rule.location.text)) is Kind.BAN


def _tells_apart(rule: Rule, packet: Packet, around: Surroundings) -> bool:
    someone = _SOMEONE[packet.family]
    pairs = [
        (packet.of_client(None), packet.of_client(someone)),
        (replace(packet, **_NO_MARKS), packet.marked_anyhow()),
    ]
    if packet.state is State.ESTABLISHED:
        # What asks for a source, and stops an answer by that, asks for the client where that has its turn.
        pairs.append((replace(packet, source=None), replace(packet, source=someone)))
    return any(_differs(rule, *pair, around) for pair in pairs)


def _differs(rule: Rule, one: Packet, other: Packet, around: Surroundings) -> bool:
    """Whether a rule treats two packets in different ways."""
    for statement in rule.statements:
        match statement:
            case Match(test) if test(one, around) is not test(other, around):
                return True
            case Choice(choose):
                truths = [[truth for truth, _ in choose(packet, around)] for packet in (one, other)]
                if truths[0] != truths[1]:
                    return True
    return False
