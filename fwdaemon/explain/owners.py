"""Whose a chain is, by the names its tools are known to use. Pure."""

import re
from dataclasses import replace
from typing import Final

from fwdaemon.explain.packet import Place, System
from fwdaemon.explain.rules import BaseChain, Jump, Rule
from fwdaemon.naming import unquoted
from fwdaemon.nftables.gates import COMMENT

OURS: Final = "kvm-portfwd"
ADMIN: Final = "admin"

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
    (r"KVMPF_.*", OURS),
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
)


def owner_of(place: Place) -> str:
    """Name the tool that a rule's chain or table belongs to; what no tool is known for is the administrator's."""
    return _named(place.chain, _CHAINS) or _named(place.table, _TABLES) or ADMIN


def owners_of(chain: BaseChain) -> str:
    """Name everybody who has rules in a base chain, or `nobody`; one of iptables is shared, so its rules tell."""
    owner = owner_of(chain.policy)
    if chain.system is System.NFTABLES:
        return owner
    return ", ".join(sorted({_owner_of_rule(rule) for rule in chain.chains.get(chain.name, ())})) or "nobody"


def _owner_of_rule(rule: Rule) -> str:
    targets = [statement.chain for statement in rule.statements if isinstance(statement, Jump)]
    if COMMENT in unquoted(rule.place.text).split():
        return OURS
    return owner_of(replace(rule.place, chain=targets[0])) if targets else owner_of(rule.place)


def _named(name: str, owners: tuple[tuple[str, str], ...]) -> str | None:
    return next((owner for pattern, owner in owners if re.fullmatch(pattern, name)), None)
