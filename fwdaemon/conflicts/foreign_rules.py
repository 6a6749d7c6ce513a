"""Rules of other tools that translate what an exposure takes, and whose come first. Pure."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from ipaddress import ip_network
from typing import Any, Final

from fwdaemon.config.names import NFT_NAME
from fwdaemon.conflicts.comparing import EVERY_PORT, Entry, PortIndex, Taking, listed
from fwdaemon.core.types import Address, Family, PortRange
from fwdaemon.errors import KernelError, ProcessError
from fwdaemon.kernel.process import Runner
from fwdaemon.legacy.info import existing_tables, table_info
from fwdaemon.legacy.model import TableName
from fwdaemon.nftables.existing import HookedChain, hooked_chains, is_iptables, is_larger
from fwdaemon.nftables.generation import current_generation
from fwdaemon.nftables.model import TABLE_NAME
from fwdaemon.rulesets import nat_chains
from fwdaemon.rulesets.nat_chains import Field, Scope, Translation, Value, both, translations
from fwdaemon.rulesets.packet import ADMIN, RuleLocation, System, owner_of


class Order(StrEnum):
    """Whose rule a packet comes to first."""

    OURS = "ours"
    THEIRS = "theirs"
    UNKNOWN = "unknown"


# What follows from it, with what is on its way, and to whom.
_FOLLOWS: Final = {
    Order.OURS: "but our rule comes first, so %s reach %s",
    Order.THEIRS: "and that comes first, so %s may not reach %s",
    Order.UNKNOWN: "and whichever of the two was made last comes first, so %s may not reach %s",
}


@dataclass(frozen=True, slots=True)
class ChainLocation:
    """In which rule system our own translation is, and the priority of its chain."""

    system: System
    priority: int

    def order(self, other: Translation) -> Order:
        """Tell whose rule comes first.

        Chains of one priority are called in the reverse order of their making (nf_hook_entries_grow), which nobody
        tells; but in the table nat of iptables ours is the first rule of the chain.
        """
        if other.priority != self.priority:
            return Order.THEIRS if other.priority < self.priority else Order.OURS
        return Order.OURS if other.location.system is self.system is System.LEGACY else Order.UNKNOWN


@dataclass(slots=True)
class _Rules:
    """The rules of another tool that were found for an entry, and the ports that are in question.

    Ports come with the name of their protocol, or with nothing where the entry has but one.
    """

    locations: set[RuleLocation] = field(default_factory=set)
    ports: set[tuple[PortRange, str]] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class RuleConflict:
    """An entry, and whose rules in which chain translate it too; of several ports, those in question."""

    entry: Entry
    owner: str
    order: Order
    chain: str
    ports: tuple[tuple[PortRange, str], ...]

    def sentence(self) -> str:
        """See `fwdaemon.core.report.Conflict`."""
        entry, who = self.entry, "another rule" if self.owner == ADMIN else self.owner
        named = [f"{ports}/{name}" if name else str(ports) for ports, name in self.ports]
        follows = _FOLLOWS[self.order] % (entry.reaching("from outside"), entry.owner)
        return entry.sentence(f"{who} forwards {listed(named) if named else 'it'} too (in {self.chain}), {follows}")


def conflicts(
    takings: Iterable[Taking], others: Sequence[Translation], ours: ChainLocation, local: Collection[Address]
) -> Iterator[RuleConflict]:
    """Give each entry with each other tool that translates what it takes; `local` are the host's addresses."""
    index = PortIndex((ports, other) for other in others for ports in ports_of(other.scope))
    here = {family: tuple(_subnets(local, family)) for family in Family}
    found: dict[tuple[Entry, str, Order], _Rules] = {}
    for taking in takings:
        for other in index.meeting(taking.ports):
            order = ours.order(other)
            if not _concerns(other, taking, order):
                continue
            shared = both(_scope(taking, here[taking.family]), other.scope)
            if shared is not None:
                rules = found.setdefault((taking.entry, owner_of(other.location), order), _Rules())
                rules.locations.add(other.location)
                rules.ports.update(_ports_in_question(taking, shared))
    for (entry, owner, order), rules in found.items():
        several = entry.ports.width > 1
        ports = (item for item in rules.ports if several and item[0] != EVERY_PORT)
        yield RuleConflict(entry, owner, order, _where(rules), tuple(sorted(ports)))


def _subnets(local: Iterable[Address], family: Family) -> Iterator[Value]:
    """Give the host's addresses of a family that can be reached from elsewhere."""
    yield from (ip_network(item) for item in local if Family.of(item) is family and not item.is_loopback)


def _concerns(other: Translation, taking: Taking, order: Order) -> bool:
    """Whether a rule may be about an exposure.

    One for all addresses, which ours comes before, is not meant for an address that is there for one guest alone.
    """
    if other.location.family not in ("inet", taking.family.word):
        return False
    return taking.shared or order is not Order.OURS or Field.DESTINATION in other.scope


def _scope(taking: Taking, here: tuple[Value, ...]) -> Scope:
    scope: dict[Field, tuple[Value, ...]] = {
        Field.DESTINATION: here if taking.address is None else (ip_network(taking.address),)
    }
    if taking.protocol is not None:
        scope |= {Field.PROTOCOL: (taking.protocol,), Field.PORT: (taking.ports,)}
    if taking.interface is not None:
        scope[Field.INTERFACE] = (taking.interface,)
    if taking.sources:
        scope[Field.SOURCE] = taking.sources
    return scope


def ports_of(scope: Scope) -> Sequence[PortRange]:
    """Give the ports that a scope has, which are all where it names none."""
    found = scope.get(Field.PORT, (EVERY_PORT,))
    return [ports for ports in found if isinstance(ports, PortRange)]


def _ports_in_question(taking: Taking, shared: Scope) -> set[tuple[PortRange, str]]:
    several = shared.get(Field.PROTOCOL, ()) if taking.protocol is None else ()
    return {(ports, str(protocol)) for protocol in several or [""] for ports in ports_of(shared)}


def _where(rules: _Rules) -> str:
    """Name the first of the chains, so that it is the same the next time."""
    location = min(
        rules.locations, key=lambda location: (location.system, location.family, location.table, location.chain)
    )
    return location.chain_name


# Reads the translations that other tools put at prerouting, from every rule system that has any.
#
# Sets of others may have hundreds of thousands of elements (firewalld's block lists). `nft` lists everything without
# them first, and then those sets that a rule asks which translates or leads on, up to a certain size.
_DSTNAT: Final = -100  # NF_IP_PRI_NAT_DST, netfilter_ipv4.h
_PREROUTING: Final = 0  # NF_INET_PRE_ROUTING, netfilter.h
# So many bytes of elements, as the kernel lists them, are some thousand.
_LARGEST_SET: Final = 1 << 18
# Where our own rules are to be, as long as there are none; see `fwdaemon.nftables.ruleset`.
_EXPECTED: Final = ChainLocation(System.NFTABLES, -105)


@dataclass(frozen=True, slots=True)
class Foreign:
    """What other tools translate, and where our own rules stand beside it."""

    translations: tuple[Translation, ...] = ()
    ours: ChainLocation = _EXPECTED


class ForeignRules:
    """Reads them, and finds cheaply whether there is something new to read. Its methods block."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    def state(self) -> object:
        """Give what is another whenever rules changed; in the legacy tables, unless by something of the same size.

        Raises:
            KernelError: it cannot be read.

        """
        legacy = [(family, table_info(family, TableName.NAT)) for family in _legacy_families()]
        return current_generation(), legacy

    def read(self) -> Foreign:
        """Read everything.

        Raises:
            PortfwdError: the rules could not be listed, as for anybody but root, or not be understood at all.

        """
        try:
            return self._read()
        except (KeyError, TypeError, ValueError) as error:
            raise KernelError(f"rules of other tools are listed in a form that cannot be read: {error!r}") from error

    def _read(self) -> Foreign:
        found: list[Translation] = []
        ours, listed = _EXPECTED, cache(self._listed)
        for chain in hooked_chains():
            if (chain.kind, chain.hook) != ("nat", _PREROUTING):
                continue
            if chain.table == TABLE_NAME:
                ours = ChainLocation(System.NFTABLES, chain.priority)
            elif is_iptables(chain):
                found += self._iptables(Family.called(chain.family), System.IPTABLES_NFT)[0]
            else:
                found += self._native(chain, listed)
        for family in _legacy_families():
            legacy, has_ours = self._iptables(family, System.LEGACY)
            found += legacy
            ours = ChainLocation(System.LEGACY, _DSTNAT) if has_ours else ours
        return Foreign(tuple(found), ours)

    def _listed(self, family: str, table: str) -> str:
        """List a table without the elements of its sets.

        nft 1.0.6 reads them all the same when it is asked for a table, but not for everything. That in turn ends where
        anything has a name that is no text.
        """
        for what in (("ruleset", family), ("table", family, table)):
            with suppress(ProcessError):  # the table has gone
                return self._runner.run("nft", "-j", "-t", "list", *what).stdout
        return ""

    def _native(self, chain: HookedChain, listed: Callable[[str, str], str]) -> list[Translation]:
        if not NFT_NAME.fullmatch(chain.table):  # what nft could not be asked for, and might take for more than a name
            return []
        table = chain.family, chain.table
        if not (listing := listed(*table)):
            return []
        asked = nat_chains.read_sets(listing, table)
        read = {name: self._elements(table, kind, name) for kind, name in asked}
        sets = {name: elements for name, elements in read.items() if elements is not None}
        return list(translations(nat_chains.read_nft(listing, table, sets), chain.name, chain.priority))

    def _elements(self, table: nat_chains.Table, kind: str, name: str) -> Sequence[Any] | None:
        """Give a set's elements; `None` where there are too many, or it has gone."""
        if not NFT_NAME.fullmatch(name):
            return None
        try:
            if is_larger(*table, name, _LARGEST_SET):
                return None
            return nat_chains.read_elements(self._runner.run("nft", "-j", "list", kind, *table, name).stdout)
        except (KernelError, ProcessError):
            return None

    def _iptables(self, family: Family, system: System) -> tuple[list[Translation], bool]:
        """Read the table nat that one variant of iptables wrote, and whether chains of ours are in it."""
        variant = "nft" if system is System.IPTABLES_NFT else "legacy"
        try:
            save = self._runner.run(f"{family.iptables}-{variant}-save", "-t", "nat").stdout
        except ProcessError:  # it is not installed, or what is there is beyond it
            return [], False
        chains = nat_chains.read_iptables(save, system, family)
        return list(translations(chains, nat_chains.PREROUTING, _DSTNAT)), nat_chains.has_own_chains(save)


def _legacy_families() -> list[Family]:
    return [family for family in Family if TableName.NAT in existing_tables(family)]
