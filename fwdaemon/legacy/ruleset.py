"""From the desired state to the rules that do it.

The nat table (`fwdaemon.legacy.translation`) labels and translates a connection's first packet. What needs no
translation is labelled in mangle's FORWARD, which comes (-150) before every filter chain (0), those of nftables
included (netfilter_ipv4.h): so a gate there sees these labels as well. In the filter table one rule lets through what
is labelled.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain as chained
from typing import NamedTuple, Self

from fwdaemon.core.exposures import Exposure, Nat, Renaming
from fwdaemon.core.report import Fault, FaultKind
from fwdaemon.core.state import LABELS, Desired
from fwdaemon.core.text import is_interface_name, is_mac, label
from fwdaemon.core.types import Family, Gate, Protocol
from fwdaemon.legacy.admission import asking, entrances, excluding, routes_of
from fwdaemon.legacy.model import (
    COMMENT,
    FORMER,
    FWD,
    OUT,
    POST,
    PRE,
    Change,
    Head,
    ObservedTable,
    Rule,
    Table,
    TableName,
    difference,
    host,
    labelled,
    labelling,
)
from fwdaemon.legacy.translation import (
    EVERY_ADDRESS,
    GOING_ON,
    Serving,
    believed,
    confined,
    leaving,
    translating,
    uplinks,
    ways_out,
)
from fwdaemon.resolve.flows import Flow

_UNREACHABLE = {Family.IPV4: "icmp-port-unreachable", Family.IPV6: "icmp6-port-unreachable"}

# In mangle, KVMPF_PRE and KVMPF_POST are there where not all may connect (`fwdaemon.legacy.admission`).
_LINKS = {
    TableName.FILTER: {"FORWARD": FWD},
    TableName.MANGLE: {"PREROUTING": PRE, "FORWARD": FWD, "OUTPUT": POST},
    TableName.NAT: {"PREROUTING": PRE, "OUTPUT": OUT, "POSTROUTING": POST},
}

Tables = dict[TableName, Table]
_Chains = dict[TableName, dict[str, list[Serving]]]


def tables(desired: Desired, ended: Iterable[Flow] = ()) -> dict[Family, Tables]:
    """Make the tables of each family that needs any; `ended` are connections whose guests are to be refused."""
    flows = tuple(ended)
    return {family: Wanted.of(family, desired, flows).tables for family in sorted(desired.families)}


class Wanted(NamedTuple):
    """The tables of one family, and which exposure each rule serves, by its comment; those not named serve all."""

    tables: Tables
    served: Mapping[str, Exposure]

    @classmethod
    def of(cls, family: Family, desired: Desired, ended: Iterable[Flow] = ()) -> Self:
        """Make both at once: of 10,000 forwards, either takes 0.1 s by itself."""
        found = _chains(family, desired, [flow for flow in ended if flow.family is family])
        made = {table: _table(table, chains) for table, chains in found.items()}
        return cls(made, {rule.comment: exposure for exposure, rule in _serving(found, desired)})


def exposures_of(desired: Desired, family: Family) -> Mapping[str, Exposure]:
    """Give the exposure that each rule serves, as in `Wanted`."""
    return Wanted.of(family, desired).served


def _serving(found: _Chains, desired: Desired) -> Iterator[tuple[Exposure, Rule]]:
    """Give the rules that a live exposure has for itself."""
    for chains in found.values():
        for exposure, rule in chained.from_iterable(chains.values()):
            if exposure is not None and exposure not in desired.imminent:
                yield exposure, rule


def relying_on(table: TableName, desired: Desired, family: Family) -> frozenset[Exposure]:
    """Say which exposures do not work, or not as they should, while our chains in a table do not."""
    is_asked = desired.barred is not None
    found = (item for item in desired.exposures if item.family is family)
    return frozenset(item for item in found if _relies(item, table, is_asked=is_asked))


def _relies(exposure: Exposure, table: TableName, *, is_asked: bool) -> bool:
    match table:
        case TableName.NAT:
            return exposure.guest is not None
        case TableName.MANGLE:
            return exposure.outward or is_asked or exposure.admission is not None
    return True


def gate(bit: int) -> Rule:
    """Make the rule that lets our connections through a chain that is not ours."""
    return Rule(labelled(bit), "ACCEPT", COMMENT)


def links(table: TableName) -> dict[str, Rule]:
    """Make the rules that lead from the kernel's own chains to those ours that a table may have."""
    return {chain: Rule("", ours, COMMENT) for chain, ours in _LINKS[table].items()}


def _table(name: TableName, chains: dict[str, list[Serving]]) -> Table:
    heads = {chain: link for chain, link in links(name).items() if link.target in chains}
    return Table({chain: _unique(rule for _, rule in servings) for chain, servings in chains.items()}, heads)


def _unique(rules: Iterable[Rule]) -> tuple[Rule, ...]:
    """Leave out what could never be reached, and could not be distinguished from its first appearance."""
    return tuple({rule.comment: rule for rule in rules}.values())


def _chains(family: Family, desired: Desired, ended: Iterable[Flow]) -> _Chains:
    passage, routed = list(_passage(family, desired)), list(_routed(family, desired))
    let_in: list[Serving] = [(None, rule) for rule in _forward(desired.label, ended)]
    others: list[Serving] = [guard.serving for guard in excluding(family, desired)]
    guards = {chain: [guard.serving for guard in found] for chain, found in asking(family, desired).items()}
    found: _Chains = {
        TableName.FILTER: {FWD: [*let_in, *others, *((None, rule) for rule in confined(family, desired))]},
        TableName.MANGLE: {FWD: passage, OUT: routed, **guards},
        TableName.NAT: translating(family, desired),
    }
    found[TableName.MANGLE] = {chain: rules for chain, rules in found[TableName.MANGLE].items() if rules}
    return {table: chains for table, chains in found.items() if chains}


def _passage(family: Family, desired: Desired) -> Iterator[Serving]:
    """Lead new connections on to routes; keep others from sending as a 1:1 guest."""
    routes = routes_of(family, desired)
    nats = leaving(family, desired)
    if not routes and not nats:
        return
    yield None, Rule.of("-m conntrack ! --ctstate NEW", "RETURN", "all")
    for nat in nats:
        for match in _sent_by_others(nat, desired):
            yield nat, Rule.of(match, "DROP", label(nat.domain))
    if routes:
        yield from ((None, rule) for rule in believed(family, desired))


def _routed(family: Family, desired: Desired) -> Iterator[Serving]:
    """Label new connections of routes, which need no translation.

    Only what leaves through an uplink may leave, so no route leads into another guest network.
    """
    for route in routes_of(family, desired):
        yield from (guard.serving for guard in entrances(route, desired))
        for way in [] if route.let_out else ways_out(route.subnet, route.bridge, desired):
            yield route, Rule.of(f"{way} {labelling(desired.label)}", "RETURN", label(route.network))


def _sent_by_others(nat: Nat, desired: Desired) -> Iterator[str]:
    """Write the matches of packets that the guest cannot have sent, though they have its address and lead away."""
    source, ways = f"-s {host(nat.target)}", uplinks(desired)
    if nat.bridge is None or not is_interface_name(nat.bridge):
        yield from (f"{source} -i {came_in} -o {interface}" for came_in in ways for interface in ways)
        return
    for interface in ways:
        yield f"{source} ! -i {nat.bridge} -o {interface}"
        if nat.mac is not None and is_mac(nat.mac):
            yield f"{source} -i {nat.bridge} -o {interface} -m mac ! --mac-source {nat.mac.lower()}"


def _forward(bit: int, ended: Iterable[Flow]) -> Iterator[Rule]:
    """Let our connections through, and keep those that were ended from coming back from their guests' side.

    Once a connection is forgotten, its guest's next packet looks like the first of a connection to its client;
    masqueraded to the address and port that the client knows, it would go on as if nothing had happened. Where the
    guest sends it counts: an exposure may lead that to the client by now.
    """
    rules = [Rule.of(_ended(flow), f"REJECT --reject-with {_refusal(flow)}", "ended") for flow in ended]
    if rules:
        # A routed guest's packet is labelled by now; what goes on is led past the rules that may be many.
        yield Rule.of(f"{labelled(bit)} -m conntrack ! --ctstate NEW", "ACCEPT", "ended")
        yield Rule.of(GOING_ON, "RETURN", "ended")
        yield from sorted(rules, key=str)
    yield Rule.of(labelled(bit), "ACCEPT", "all")


def _ended(flow: Flow) -> str:
    sent = f"-p {flow.protocol} -m {flow.protocol} --sport {flow.server_port}"
    if flow.client.is_unspecified:
        return f"-s {host(flow.server)} {sent}"
    return f"-s {host(flow.server)} {sent} -m conntrack --ctorigdst {flow.client} --ctorigdstport {flow.client_port}"


def _refusal(flow: Flow) -> str:
    return "tcp-reset" if flow.protocol is Protocol.TCP else _UNREACHABLE[flow.family]


# What one reconcile commits to the tables of one family, and what that says of the time before it. Pure.
ObservedTables = Mapping[TableName, Table]
Observed = Mapping[TableName, ObservedTable]

# The chains whose rules serve one exposure each, most of them.
_SERVING = ((TableName.NAT, OUT), (TableName.MANGLE, FWD), (TableName.MANGLE, OUT))
_FRAMEWORK_LABELS = frozenset({EVERY_ADDRESS, "all", ""})


@dataclass(frozen=True, slots=True)
class Plan:
    """The changes of one family's tables, in the order in which they are to be committed.

    `mended` are the exposures that do not work before it, `damaged` those of them whose rules differ from what was
    committed last; `stale` names what holds rules of exposures that are not wanted. `moved` are links that are not as
    they should be. `left` names chains of ours that cannot be deleted. `altered` are forwards of owners that had a rule
    which is not wanted any more; only of those that an earlier run left, as are the `labels` that rules go by,
    `let_out`, digests of rules that let guests out in a way that is not wanted, `moved_owners`, whose routes led to
    another bridge, and `renamings`, under which addresses guests opened connections.
    """

    changes: tuple[tuple[TableName, Change], ...]
    mended: frozenset[Exposure]
    damaged: frozenset[Exposure]
    stale: frozenset[str]
    moved: tuple[tuple[Gate, Head], ...]
    left: tuple[Fault, ...]
    altered: frozenset[Exposure]
    labels: frozenset[int]
    let_out: frozenset[str]
    moved_owners: frozenset[str]
    renamings: frozenset[Renaming] = frozenset()

    @classmethod
    def of(
        cls, family: Family, asked: Wanted, observed: Observed, desired: Desired, committed: ObservedTables
    ) -> "Plan":
        """Compare what is desired with what is there, and what is with what we committed last."""
        wanted, served = asked
        changes = _differences(wanted, observed, served)
        damage = (
            _differences(committed, observed, served) if any(not change.empty for change in changes.values()) else {}
        )
        mended = _concerned(changes, served, desired, family)
        return cls(
            tuple((table, changes[table]) for table in _order(wanted) if table in changes and not changes[table].empty),
            mended,
            mended & _concerned(damage, served, desired, family),
            _stale(family, wanted, observed),
            tuple(_moved(family, wanted, observed)),
            tuple(_left(family, wanted, observed)),
            frozenset() if committed else _altered(wanted, observed, served),
            frozenset() if committed else _labels(observed),
            frozenset() if committed else _let_out(wanted, observed),
            frozenset() if committed else _moved_owners(wanted, observed),
        )


def _order(wanted: ObservedTables) -> tuple[TableName, ...]:
    """Open the way before anything takes it, and close it after."""
    order = (TableName.FILTER, TableName.MANGLE, TableName.NAT)
    return order if wanted else order[::-1]


def _differences(wanted: ObservedTables, observed: Observed, served: Mapping[str, Exposure]) -> dict[TableName, Change]:
    found = {}
    for table, seen in observed.items():
        rules = wanted.get(table, Table())
        framework = {rule.comment for chain in rules.chains.values() for rule in chain} - served.keys()
        found[table] = difference(rules, seen, framework)
    return found


def _concerned(
    changes: Mapping[TableName, Change], served: Mapping[str, Exposure], desired: Desired, family: Family
) -> frozenset[Exposure]:
    """Name the exposures that did not work before the changes."""
    broken = (relying_on(table, desired, family) for table, change in changes.items() if change.broken)
    placed = frozenset().union(*(change.placed for change in changes.values()))
    return frozenset(served[comment] for comment in placed if comment in served).union(*broken)


def _stale(family: Family, wanted: ObservedTables, observed: Observed) -> frozenset[str]:
    """Name the owners whose rules are there for nothing, as far as their comments show."""
    return frozenset(
        f"{family.word} {table} {chain} {label}"
        for table, chain in _SERVING
        for label in _unwanted(wanted, observed, table, chain)
    )


def _unwanted(wanted: ObservedTables, observed: Observed, table: TableName, chain: str) -> frozenset[str]:
    """Give the labels of rules in a chain that are not wanted."""
    found = _unasked(wanted, observed, table, chain)
    return frozenset(comment.partition(" ")[0] for comment in found) - _FRAMEWORK_LABELS


def _unasked(wanted: ObservedTables, observed: Observed, table: TableName, chain: str) -> Iterator[str]:
    asked_for = {rule.comment for rule in wanted.get(table, Table()).chains.get(chain, ())}
    return (comment for comment in _seen(observed, table, chain) if comment not in asked_for)


def _seen(observed: Observed, table: TableName, chain: str) -> Iterator[str]:
    """Give the comments in a chain; those of exposures were in another one in versions before."""
    chains = observed[table].chains if table in observed else {}
    return chained.from_iterable(chains.get(name, ()) for name in ((chain, FORMER) if chain == OUT else (chain,)))


def _let_out(wanted: ObservedTables, observed: Observed) -> frozenset[str]:
    chains = ((TableName.NAT, POST), (TableName.MANGLE, OUT))
    return frozenset(_digest(comment) for place in chains for comment in _unasked(wanted, observed, *place))


def _digest(comment: str) -> str:
    return comment.rpartition(" ")[2]


def _moved_owners(wanted: ObservedTables, observed: Observed) -> frozenset[str]:
    """Name the networks of whose rules, each of which names the bridge, none is as it was."""
    place = TableName.MANGLE, OUT
    asked_for = {rule.comment for rule in wanted.get(TableName.MANGLE, Table()).chains.get(OUT, ())}
    missing = asked_for.difference(_seen(observed, *place))
    staying = {comment.partition(" ")[0] for comment in asked_for - missing}
    return (_unwanted(wanted, observed, *place) & {comment.partition(" ")[0] for comment in missing}) - staying


def uplinks_named(plan: Plan, family: Family, desired: Desired, among: Collection[str]) -> frozenset[str]:
    """Say by which of these interfaces, no uplinks now, an earlier run's rules may have let guests of `desired` out.

    A digest says nothing of itself, so it is looked for among those of the rules that each interface would have. Those
    of a route to a bridge that no entry names any more cannot be found so: it may have let guests out by any.
    """
    let_out, guests = plan.let_out, replace(desired, forwards=frozenset())
    others = (
        frozenset(among).difference(desired.uplinks) if let_out and (desired.nats or desired.routes) else frozenset()
    )
    if any(route.family is family and label(route.network) in plan.moved_owners for route in desired.routes):
        return others
    return frozenset(name for name in others if not _leading_out(family, guests, name).isdisjoint(let_out))


def _leading_out(family: Family, desired: Desired, uplink: str) -> frozenset[str]:
    led = replace(desired, uplinks=frozenset({uplink}))
    rules = _serving(_chains(family, led, ()), led)
    return frozenset(_digest(rule.comment) for _, rule in rules if f" -o {uplink} " in f"{rule.matches} ")


def _altered(wanted: ObservedTables, observed: Observed, served: Mapping[str, Exposure]) -> frozenset[Exposure]:
    owners = _unwanted(wanted, observed, TableName.NAT, OUT)
    return frozenset(item for comment, item in served.items() if owners and comment.partition(" ")[0] in owners)


def _labels(observed: Observed) -> frozenset[int]:
    found = observed[TableName.FILTER].chains.get(FWD, ()) if TableName.FILTER in observed else ()
    return frozenset(bit for bit in LABELS if found and Rule.of(labelled(bit), "ACCEPT", "all").comment in found)


def _moved(family: Family, wanted: ObservedTables, observed: Observed) -> list[tuple[Gate, Head]]:
    return [
        (Gate(family.word, table.value, chain), observed[table].heads[chain])
        for table, rules in wanted.items()
        for chain in rules.heads
        if not observed[table].heads[chain].holds
    ]


def _left(family: Family, wanted: ObservedTables, observed: Observed) -> Iterator[Fault]:
    """Give the chains of ours that are not needed any more, and others keep all the same."""
    program = f"{family.iptables}-legacy"
    for table, seen in observed.items():
        for chain in sorted(seen.held - wanted.get(table, Table()).chains.keys()):
            yield Fault(FaultKind.LEGACY_CHAIN_HELD, (chain, table, str(family), program))
