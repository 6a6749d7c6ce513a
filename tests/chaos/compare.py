"""Comparing the kernel with the truth: our rules, the gates, the host's addresses. Pure, on one listing."""

import re
from collections.abc import Iterator, Mapping
from itertools import takewhile

from tests.chaos import legacy_rules, nft_rules
from tests.chaos.admission import EXTERNAL, LISTED, LISTS
from tests.chaos.commands import FAMILIES
from tests.chaos.foreign import changed_lines
from tests.chaos.legacy_rules import LegacyRules
from tests.chaos.listing import Listing
from tests.chaos.model import World
from tests.chaos.nft_rules import NftTable
from tests.chaos.truth import guest_subnets, live_exposures, public_addresses
from tests.lab.release import LibvirtFirewall

_VERSIONS = {"ip": 4, "ip6": 6}
# What a 1:1 guest has besides its translation: dispatch chains for what it sends; rules that refuse its address to
# others on its uplink, by bridge and by MAC address, and for what leaves there and between guests.
_GUEST_RULES = {"nftables": 2, "legacy": 4}
_SHOWN = 5
_UPLINKS = frozenset({"eth0"})
_GATE = re.compile(re.escape('-A FORWARD -m connlabel --label "25" -m comment --comment kvm-portfwd -j ACCEPT'))
# Out by an uplink, back, and to each other.
_PATHS_EACH = 3
_REFUSAL = re.compile(r"-A FORWARD -m comment --comment chaos -j DROP")
_PATH = re.compile(r"-A FORWARD -i \S+ -o \S+ (?:-m conntrack \S+ \S+ )?-m comment --comment kvm-portfwd -j ACCEPT")
# The bystander's rule in FORWARD refuses one source, and so stays ahead of a gate.
_BAN = re.compile(r'-A FORWARD -s \S+ -m comment --comment "theirs, -j ACCEPT" -j DROP')
_NATIVE_GATE = re.compile(r"\s*ct label 25 accept comment \"kvm-portfwd\"")
_LINK = re.compile(r"-A \S+ -m comment --comment kvm-portfwd -j KVMPF_\S+")
# Where our chains are linked; in mangle because a 1:1 guest is always there.
_NAT = tuple(("nat", chain) for chain in ("PREROUTING", "OUTPUT", "POSTROUTING"))
_LINKED = (("filter", "FORWARD"), *(("mangle", chain) for chain in ("FORWARD", "PREROUTING", "OUTPUT")), *_NAT)


class Comparison:
    """Compares listings of one host; `frames` are what of our rules stays the same, as they were at the start."""

    def __init__(self, firewall: LibvirtFirewall, frames: Listing) -> None:
        self._legacy = firewall is LibvirtFirewall.LEGACY
        self._decides_elsewhere = firewall is not LibvirtFirewall.IPTABLES
        self._frames = {family: self._frame(family, frames) for family in FAMILIES}

    def differences(self, world: World, listing: Listing) -> list[str]:
        """Say what is not as it must be; nothing where all is well."""
        found = [line for family in FAMILIES for line in self._of_family(world, listing, family)]
        return [*found, *self._elsewhere(listing), *self._gates(world, listing), *_addresses(world, listing)]

    def _read(self, family: str, listing: Listing) -> NftTable | LegacyRules | None:
        if self._legacy:
            return legacy_rules.read_family(_VERSIONS[family], listing)
        return nft_rules.read_table(_VERSIONS[family], listing[f"own-{family}"])

    def _frame(self, family: str, listing: Listing) -> str:
        found = self._read(family, listing)
        return found.frame if found else ""

    def _of_family(self, world: World, listing: Listing, family: str) -> Iterator[str]:
        version, found = _VERSIONS[family], self._read(family, listing)
        if found is None:
            yield f"{family}: our table is not there"
            return
        wanted = {exposure for exposure in live_exposures(world) if exposure.version == version}
        yield from (f"{family}: missing {exposure}" for exposure in sorted(wanted - found.exposures))
        yield from (f"{family}: too many {exposure}" for exposure in sorted(found.exposures - wanted))
        yield from (f"{family}: {oddity}" for oddity in found.oddities)
        subnets = guest_subnets(world, version)
        if wanted and found.subnets != subnets:
            yield f"{family}: guest subnets {sorted(found.subnets)}, not {sorted(subnets)}"
        if isinstance(found, NftTable) and found.uplinks != _UPLINKS:
            yield f"{family}: {sorted(found.uplinks)} are to lead away from the host, not {sorted(_UPLINKS)}"
        yield from (f"{family}: {line}" for line in _of_sets(world, version, found.sets))
        guests = sum(not exposure.protocol for exposure in wanted)
        if found.guests != guests * _GUEST_RULES["legacy" if self._legacy else "nftables"]:
            yield f"{family}: {found.guests} rules of what {guests} 1:1 guests send"
        frame = changed_lines(self._frames[family].splitlines(), found.frame.splitlines())
        yield from (f"{family}: the frame differs: {line}" for line in frame)

    def _elsewhere(self, listing: Listing) -> Iterator[str]:
        """On the side where our rules do not belong there are none."""
        for family in FAMILIES:
            if self._legacy and listing[f"own-{family}"]:
                yield f"{family}: a table of ours beside the legacy ones"
            if not self._legacy and "KVMPF_" in listing[f"legacy-{family}"]:
                yield f"{family}: legacy chains of ours beside the table"

    def _gates(self, world: World, listing: Listing) -> Iterator[str]:
        for family in FAMILIES:
            native = [line for line in listing[f"libvirt-{family}"].splitlines() if line.startswith("\t\t")][1:]
            yield from _at_head(f"{family} libvirt_network", native, _NATIVE_GATE)
            rules = [line for line in listing[f"iptables-{family}"].splitlines() if line.startswith("-A ")]
            yield from _at_head(f"{family} iptables-nft", rules, _GATE)
            yield from self._paths(world, family, rules, drops="-P FORWARD DROP" in listing[f"iptables-{family}"])
            for table, chain in _LINKED if self._legacy else (("filter", "FORWARD"),):
                legacy = [line for line in listing.legacy(family, table) if line.startswith(f"-A {chain} ")]
                yield from _at_head(f"{family} legacy {table} {chain}", legacy, _LINK if self._legacy else _GATE)

    def _paths(self, world: World, family: str, rules: list[str], *, drops: bool) -> Iterator[str]:
        """Guests pass right ahead of what refuses everything, by a rule or by policy, where libvirt's rules are not."""
        end = next((number for number, rule in enumerate(rules) if _REFUSAL.fullmatch(rule)), len(rules))
        refuses = drops or end < len(rules)
        wanted = _PATHS_EACH * len(world.active_networks) if refuses and self._decides_elsewhere else 0
        there = [number for number, rule in enumerate(rules) if _PATH.fullmatch(rule)]
        if there != [*range(end - wanted, end)]:
            yield f"{family} iptables-nft: rules for guests are at {there}, and should be {wanted} ahead of {end}"


def _of_sets(world: World, version: int, found: Mapping[str, frozenset[str]]) -> Iterator[str]:
    denied = {EXTERNAL: frozenset(world.banned), LISTED: frozenset(LISTS[world.listed])}
    for name, wanted in denied.items():
        wrong = sorted(found[name] ^ (wanted if version == 4 else frozenset()))
        yield from (f"{address} is in set {name} and should not be, or is not" for address in wrong[:_SHOWN])


def _at_head(where: str, rules: list[str], gate: re.Pattern[str]) -> Iterator[str]:
    """Only bans stay ahead of a gate; a chain that holds no other program's rules needs none."""
    ours = [number for number, rule in enumerate(rules) if gate.fullmatch(rule)]
    others = (rule for rule in rules if not gate.fullmatch(rule))
    bans = sum(1 for _ in takewhile(_BAN.fullmatch, others))
    if ours != [bans] and (len(ours) > 1 or len(rules) > len(ours)):
        yield f"{where}: our rules are at {ours} of {len(rules)}, not at {bans}"


def held_addresses(listing: Listing) -> set[str]:
    """The addresses of 1:1 guests that the host holds."""
    return {f"198.51.100.{number}" for number in (8, 9) if f"inet 198.51.100.{number}/32 " in listing["addresses"]}


def _addresses(world: World, listing: Listing) -> Iterator[str]:
    if (held := held_addresses(listing)) != public_addresses(world):
        yield f"the host holds {sorted(held)}, not {sorted(public_addresses(world))}"
