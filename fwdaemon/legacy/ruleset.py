"""From the desired state to the rules that do it.

The nat table (`fwdaemon.legacy.translation`) marks and translates a connection's first packet. What needs no
translation is marked in the mangle table, on its way through FORWARD: it is there only while something needs it. In the
filter table one rule lets through what is marked. For a packet that is forwarded, mangle (-150) comes before every
filter chain (0), those of nftables included: netfilter_ipv4.h. So a gate there sees these marks as well.
"""

from collections.abc import Iterable, Iterator

from fwdaemon.desired import Desired, Forward, Nat, Opening, Route
from fwdaemon.flows import Flow
from fwdaemon.legacy.model import COMMENT, FWD, OUT, POST, PRE, Rule, Table, TableName, host, masked, set_mark
from fwdaemon.legacy.translation import (
    LOOPBACK,
    Serving,
    leaving,
    on_localhost,
    outer,
    output,
    postrouting,
    prerouting,
)
from fwdaemon.model import Family, Protocol
from fwdaemon.naming import is_interface_name, label

_UNREACHABLE = {Family.IPV4: "icmp-port-unreachable", Family.IPV6: "icmp6-port-unreachable"}

_LINKS = {
    TableName.FILTER: {"FORWARD": FWD},
    TableName.MANGLE: {"PREROUTING": PRE, "FORWARD": FWD},
    TableName.NAT: {"PREROUTING": PRE, "OUTPUT": OUT, "POSTROUTING": POST},
}

# What needs a table, apart from the guard of 127.0.0.0/8.
_RELYING = {
    TableName.FILTER: (Forward, Nat, Route),
    TableName.MANGLE: (Nat, Route),
    TableName.NAT: (Forward, Nat),
}

Tables = dict[TableName, Table]
_Chains = dict[TableName, dict[str, list[Serving]]]


def tables(desired: Desired, ended: Iterable[Flow] = ()) -> dict[Family, Tables]:
    """Make the tables of each family that needs any; `ended` are connections whose guests are to be refused."""
    flows = tuple(ended)
    return {
        family: {
            table: _table(table, chains)
            for table, chains in _chains(family, desired, [flow for flow in flows if flow.family is family]).items()
        }
        for family in sorted(desired.families)
    }


def openings_of(desired: Desired, family: Family) -> dict[str, Opening]:
    """Tell which opening each rule serves, by the rule's comment; rules that are not named serve all."""
    return {rule.comment: opening for _, _, opening, rule in rules_of(desired, family)}


def rules_of(desired: Desired, family: Family) -> Iterator[tuple[TableName, str, Opening, Rule]]:
    """Give the rules that an opening has for itself, with their tables and chains."""
    for table, chains in _chains(family, desired, ()).items():
        for chain, servings in chains.items():
            yield from ((table, chain, opening, rule) for opening, rule in servings if opening is not None)


def relying_on(table: TableName, chain: str, desired: Desired, family: Family) -> frozenset[Opening]:
    """Tell which openings do not work, or not as they should, while a chain of ours does not."""
    if table is TableName.MANGLE and chain == PRE:
        return frozenset(on_localhost(family, desired))
    return frozenset(item for item in desired.openings if item.family is family and isinstance(item, _RELYING[table]))


def gate(mark: int) -> Rule:
    """Make the rule that lets our connections through a chain that is not ours."""
    return Rule(_marked(mark), "ACCEPT", COMMENT)


def links(table: TableName) -> dict[str, Rule]:
    """Make the rules that lead from the kernel's own chains to those ours that a table may have."""
    return {chain: Rule("", ours, COMMENT) for chain, ours in _LINKS[table].items()}


def _table(name: TableName, chains: dict[str, list[Serving]]) -> Table:
    heads = {chain: link for chain, link in links(name).items() if link.target in chains}
    return Table({chain: _unique(rule for _, rule in servings) for chain, servings in chains.items()}, heads)


def _unique(rules: Iterable[Rule]) -> tuple[Rule, ...]:
    """Leave out what could never be reached, and could not be told from its first appearance."""
    return tuple({rule.comment: rule for rule in rules}.values())


def _chains(family: Family, desired: Desired, ended: Iterable[Flow]) -> _Chains:
    mangle = {PRE: list(_guard(family, desired)), FWD: list(_marking(family, desired))}
    found: _Chains = {
        TableName.FILTER: {FWD: [(None, rule) for rule in _forward(desired.mark, ended)]},
        TableName.MANGLE: {chain: servings for chain, servings in mangle.items() if servings},
        TableName.NAT: {
            PRE: list(prerouting(family, desired)),
            OUT: list(output(family, desired)),
            POST: list(postrouting(family, desired)),
        },
    }
    return {table: chains for table, chains in found.items() if chains}


def _guard(family: Family, desired: Desired) -> Iterator[Serving]:
    """Keep 127.0.0.0/8 the host's own where the kernel, for `localhost`, is told to route it."""
    if desired.localhost and family is Family.IPV4:
        for end in ("-s", "-d"):
            yield None, Rule.of(f"{end} {LOOPBACK} ! -i lo", "DROP", "guard")


def _marking(family: Family, desired: Desired) -> Iterator[Serving]:
    """Mark new connections to and from guests that nobody translates on the way in: those of routes, and out of 1:1.

    Only what leaves through an outer interface may leave, so no route leads into another guest network.
    """
    routes = sorted((route for route in desired.routes if _is_marked(route, family)), key=_first_address)
    nats = leaving(family, desired)
    if not routes and not nats:
        return
    yield None, Rule.of("-m conntrack ! --ctstate NEW", "RETURN", "all")
    for route in routes:
        ways = [f"-s {route.subnet} -i {route.bridge} -o {interface}" for interface in outer(desired)]
        for way in [f"-d {route.subnet} -o {route.bridge}", *ways]:
            yield route, Rule.of(way, set_mark(desired.mark), label(route.network))
    yield from _marking_guests(nats, desired)


def _marking_guests(nats: Iterable[Nat], desired: Desired) -> Iterator[Serving]:
    """Mark what 1:1 guests open: it came in by the guest's bridge or, where that is not known, from within the host.

    Anybody could give a guest's address as his own.
    """
    plugged = [nat for nat in nats if _is_plugged(nat)]
    others = [nat for nat in nats if not _is_plugged(nat)]
    for nat in plugged:
        yield from _marking_guest(nat, f" -i {nat.bridge}", desired)
    if others:
        for interface in outer(desired):
            yield None, Rule.of(f"-i {interface}", "RETURN", "all")
    for nat in others:
        yield from _marking_guest(nat, "", desired)


def _marking_guest(nat: Nat, origin: str, desired: Desired) -> Iterator[Serving]:
    for interface in outer(desired):
        way = f"-s {host(nat.target)}{origin} -o {interface}"
        yield nat, Rule.of(way, set_mark(desired.mark), label(nat.domain))


def _is_plugged(nat: Nat) -> bool:
    """Whether it is known where a 1:1 guest is plugged in, under a name that could be read as nothing else."""
    return nat.bridge is not None and is_interface_name(nat.bridge)


def _is_marked(route: Route, family: Family) -> bool:
    """Whether rules can be written for a route: not for a bridge with a name that could be read as anything else."""
    return route.family is family and is_interface_name(route.bridge)


def _first_address(route: Route) -> tuple[int, int, str]:
    return int(route.subnet.network_address), route.subnet.prefixlen, route.bridge


def _forward(mark: int, ended: Iterable[Flow]) -> Iterator[Rule]:
    """Let our connections through, and keep those that were ended from coming back from their guests' side.

    Once a connection is forgotten, its guest's next packet looks like the first of a connection to its client;
    masqueraded to the address and port that the client knows, it would go on as if nothing had happened.
    """
    rules = [Rule.of(_ended(flow), f"REJECT --reject-with {_refusal(flow)}", "ended") for flow in ended]
    if rules:
        # A 1:1 guest's packet is marked by now; what goes on is led past the rules that may be many.
        yield Rule.of(f"{_marked(mark)} -m conntrack ! --ctstate NEW", "ACCEPT", "ended")
        yield Rule.of("-m conntrack ! --ctstate NEW", "RETURN", "ended")
        yield from sorted(rules, key=str)
    yield Rule.of(_marked(mark), "ACCEPT", "all")


def _ended(flow: Flow) -> str:
    ends = f"-s {host(flow.server)} -d {host(flow.client)}"
    return f"{ends} -p {flow.protocol} -m {flow.protocol} --sport {flow.server_port} --dport {flow.client_port}"


def _refusal(flow: Flow) -> str:
    return "tcp-reset" if flow.protocol is Protocol.TCP else _UNREACHABLE[flow.family]


def _marked(mark: int) -> str:
    return f"-m connmark --mark {masked(mark)}"
