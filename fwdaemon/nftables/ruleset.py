"""From the desired state to the tables that do it.

The frame of a table, which is its hooks, maps and sets, is the same whatever is open; only the rule that leads to
masquerading forwards comes and goes. What is open are dispatch chains (`fwdaemon.nftables.dispatch_chains`). Here
tables are made whole; `fwdaemon.nftables.table_cache` brings those of one state up to date for the next.

Every packet of a new connection walks five lookups, from the most specific claim to the least: its address and port in
a hash, its address and port in ranges, then the same two for every local address, then its address alone. What it finds
is the chain of one *port segment* (`fwdaemon.resolve.segments`), which holds a rule for each forward that may take the
packet, or that of a 1:1 NAT. A packet no rule takes goes on as if we were not there.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from math import ceil

from fwdaemon.core.exposures import Exposure, Renaming
from fwdaemon.core.state import LABELS, REFUSED_FOR_S, Desired
from fwdaemon.core.text import is_interface_name
from fwdaemon.core.types import Family, Protocol, collapse
from fwdaemon.nftables.admission import Terms, admission_chains, admission_sets, barring, kept_from_forgers, terms
from fwdaemon.nftables.dispatch_chains import (
    CLOSED,
    EVERY_ADDRESS,
    HOMES,
    INSIDE,
    LASTING,
    LEAVING_AS,
    MASQUERADED,
    NEWCOMERS,
    ONE_ADDRESS,
    ONE_TO_ONE_LEAVING,
    PASSING,
    PLAIN,
    STRANGERS,
    TARGETS,
    TO_PUBLIC,
    UPLINKS,
    DispatchChain,
    MapKey,
    asked,
    dispatch_chains,
    elements_of,
    labelled,
    labelling,
    renaming,
)
from fwdaemon.nftables.model import (
    ENDED,
    ENDED_PORTS,
    VERDICT,
    Chain,
    Elements,
    Hook,
    Rule,
    Set,
    SetType,
    Step,
    Table,
    declared_lines,
    element_lines,
    table_name,
)
from fwdaemon.resolve.flows import Flow
from fwdaemon.resolve.segments import bridged, closed, outside, routed_outside, switched

# Just before Docker's and libvirt's own NAT chains (dstnat is -100, srcnat 100: netfilter_ipv4.h).
_BEFORE_DSTNAT = -105
_BEFORE_SRCNAT = 95
_BEFORE_FILTER = -10

_ADDRESS_TYPES = {Family.IPV4: "ipv4_addr", Family.IPV6: "ipv6_addr"}
_PORT_TYPE = "inet_proto . inet_service"

# Never "every local address": a loopback address is not reachable from elsewhere, a link-local one means another host
# on each link.
_NOT_ANYWHERE = {Family.IPV4: "127.0.0.0/8, 169.254.0.0/16", Family.IPV6: "::1, fe80::/10"}


def tables(desired: Desired) -> dict[Family, Table]:
    """Make the table of each family that needs one."""
    return {family: _table(family, dispatch_chains(family, desired), desired) for family in sorted(desired.families)}


def map_keys_of(desired: Desired) -> dict[tuple[Family, MapKey], tuple[Exposure, ...]]:
    """Say which exposures each map key serves, for the audit."""
    return {
        (family, dispatch_chain.map_key): dispatch_chain.exposures
        for family in Family
        for dispatch_chain in dispatch_chains(family, desired)
    }


def frame(family: Family, desired: Desired) -> Table:
    """Make the table that is there whatever is open."""
    masquerading = any(forward.family is family for forward in desired.masquerading)
    chains = _frame(family, terms(family, desired), kept_from_forgers(family, desired), masquerading=masquerading)
    chains = _leaving_alone(chains, _elsewhere(family, desired))
    if family in desired.confined:
        chains = _confined(chains, family, desired, [_astray("", STRANGERS)], STRANGERS)
    elif ways := switched(family, desired):
        chains = _confined(chains, family, desired, map(newcomers_from, ways), NEWCOMERS)
    maps = {name: Set(set_type) for name, set_type in _map_types(family).items()}
    sets = {
        **admission_sets(family, desired),
        "guest_subnets": _guest_subnets(family, desired),
        UPLINKS: _interfaces(desired.uplinks),
        INSIDE: _interfaces(desired.inside),
        CLOSED: _interfaces(closed(family, desired)),
        ENDED: Set(_ended_type(family)),
        ENDED_PORTS: Set(_ended_ports_type(family)),
    }
    return Table(family, admission_chains(family, desired) | chains, maps | sets)


def with_elements(
    bare: Table, chains: Mapping[str, Chain], elements: Mapping[str, Elements], step: Step | None = None
) -> Table:
    """Add dispatch chains to a frame: their chains, and by map the elements that lead to them."""
    maps = {name: Set(bare.sets[name].type, found) for name, found in elements.items()}
    return Table(bare.family, {**bare.chains, **chains}, {**bare.sets, **maps}, step=step)


def labels_of(table: Table) -> frozenset[int]:
    """Say by which labels the rules of a table go that was found: what is listed of a rule is its digest."""
    name = EVERY_ADDRESS[0]
    found = {rule.comment for rule in table.chains.get(PLAIN[name], Chain(())).rules}
    return frozenset(bit for bit in LABELS if found and _translating(table.family, name, bit).comment in found)


def uplinks_of(table: Table) -> frozenset[str]:
    """Say which uplinks a table names that was found."""
    return frozenset(key.strip('"') for key in table.sets[UPLINKS].elements) if UPLINKS in table.sets else frozenset()


def renamings_of(table: Table) -> frozenset[Renaming]:
    """Say under which public addresses guests open connections by a table that was found."""
    found = table.sets[LEAVING_AS].elements.items() if LEAVING_AS in table.sets else ()
    return frozenset(pair for guest, chain in found if (pair := renaming(guest, str(chain))) is not None)


def _table(family: Family, found: Iterable[DispatchChain], desired: Desired) -> Table:
    listed = tuple(found)
    chains = {each.chain: Chain(each.rules) for each in listed if each.target is None}
    return with_elements(frame(family, desired), chains, elements_of(listed))


# --- hooks -----------------------------------------------------------------------------------------------------------


def _frame(family: Family, shared: Terms, kept: tuple[str, ...], *, masquerading: bool) -> dict[str, Chain]:
    bit = shared.bit
    source = (*([_hidden(family, bit)] if masquerading else []), *_source(family, bit))
    return {
        "forwards": Chain(_dispatch(family)),
        **{chain: Chain((*barring(family, shared), *_plain(family, name, bit))) for name, chain in PLAIN.items()},
        "prerouting": Chain((_as_the_host(), _homes(family), _jump()), Hook("nat", "prerouting", _BEFORE_DSTNAT)),
        "output": Chain((_jump(),), Hook("nat", "output", _BEFORE_DSTNAT)),
        "postrouting": Chain(source, Hook("nat", "postrouting", _BEFORE_SRCNAT)),
        "forward": Chain(_refusal(family) + _passage(family, kept), Hook("filter", "forward", _BEFORE_FILTER)),
    }


def _leaving_alone(chains: dict[str, Chain], elsewhere: str) -> dict[str, Chain]:
    """Have the host and its guests reach addresses that another machine on the link may hold, unless they came here."""
    if not elsewhere:
        return chains
    guests = Rule.of(f"{elsewhere.split(maxsplit=1)[0]} saddr @guest_subnets {elsewhere} return", "elsewhere")
    heads = {"prerouting": guests, "output": Rule.of(f"{elsewhere} return", "elsewhere")}
    return chains | {name: replace(chains[name], rules=(head, *chains[name].rules)) for name, head in heads.items()}


def _elsewhere(family: Family, desired: Desired) -> str:
    """Write the match of packets for such addresses while the host does not hold them; empty where there are none."""
    addresses = sorted(address for address in desired.elsewhere if Family.of(address) is family)
    listed = ", ".join(map(str, addresses))
    return f"{family.word} daddr {{ {listed} }} fib daddr type != local" if addresses else ""


def _jump() -> Rule:
    return Rule.of("jump forwards", "all")


def _as_the_host() -> Rule:
    """Leave what has an address of the host, but did not come from it, to others; IPv6 forwards that as any other."""
    return Rule.of('iifname != "lo" fib saddr type local accept', "all")


def _homes(family: Family) -> Rule:
    """Leave what has a guest's address, but cannot have come from there, to others."""
    return Rule.of(f"{family.word} saddr vmap @{HOMES}", "all")


def _dispatch(family: Family) -> tuple[Rule, ...]:
    ip = family.word
    anywhere = f"{ip} daddr != {{ {_NOT_ANYWHERE[family]} }} fib daddr type local "
    lookups = [f"{asked(family, name)} vmap @{name}" for name in ONE_ADDRESS]
    lookups += [f"{anywhere}{asked(family, name)} vmap @{name}" for name in EVERY_ADDRESS]
    lookups += [f"{ip} daddr vmap @{name}" for name in TO_PUBLIC]
    return tuple(Rule.of(lookup, "all") for lookup in lookups)


def _plain(family: Family, name: str, bit: int) -> tuple[Rule, ...]:
    """Translate what a map of plain forwards has a target for.

    Where another program took the target away, the first rule ends after its label. That cannot be taken back, and
    another tool's DNAT must not go by it, so the second drops the packet; the connection begins again once the target
    is back.
    """
    return _translating(family, name, bit), Rule.of("drop", "all")


def _translating(family: Family, name: str, bit: int) -> Rule:
    target = f"{asked(family, name)} map @{TARGETS[name]}"
    return Rule.of(f"{labelling(bit)} dnat {family.word} to {target}", "all")


def _source(family: Family, bit: int) -> tuple[Rule, ...]:
    """Give 1:1 guests their public address, and make guests that are reached from guests answer through the host.

    The host alone knows both addresses of such a connection.
    """
    ip = family.word
    ours = f"{labelled(bit)} ct status dnat"
    return (
        Rule.of(f"oifname @{UPLINKS} {ip} saddr vmap @{LEAVING_AS}", "outbound"),
        Rule.of(f"{ours} {ip} daddr @guest_subnets {ip} saddr vmap @{LEAVING_AS}", "hairpin"),
        Rule.of(f"{ours} {ip} saddr @guest_subnets {ip} daddr @guest_subnets masquerade", "hairpin"),
    )


def _hidden(family: Family, bit: int) -> Rule:
    """Lead to what makes masquerading forwards; it is there only while there are any."""
    lookup = f"{family.word} daddr vmap @{MASQUERADED}"
    return Rule.of(f"{labelled(bit)} ct status dnat {lookup}", "masquerade")


def _refusal(family: Family) -> tuple[Rule, ...]:
    """Keep a connection that was ended from coming back from its guest's side.

    Once it is forgotten, the guest's next packet looks like the first of a connection to its client; masqueraded to the
    address and port that the client knows, it would go on as if nothing had happened. Where the guest sends it counts:
    an exposure may lead that to the client by now. nft knows how long a port is there only next to its protocol.
    """
    ip = family.word
    port = f"{ip} saddr . meta l4proto . th sport"
    flow = f"{port} . ct original {ip} daddr . ct original proto-dst"
    refused = {protocol: "reject with tcp reset" if protocol is Protocol.TCP else "reject" for protocol in Protocol}
    return tuple(
        Rule.of(f"ct state new meta l4proto {protocol} {found} {refusal}", "ended")
        for found in (f"{flow} @{ENDED}", f"{port} @{ENDED_PORTS}")
        for protocol, refusal in refused.items()
    )


def _confined(
    chains: Mapping[str, Chain], family: Family, desired: Desired, leading: Iterable[Rule], name: str
) -> dict[str, Chain]:
    """Refuse what was not forwarded before we turned forwarding on, but for what libvirt wants forwarded.

    It is dropped without a word, as a host does that forwards nothing.
    """
    forward = chains["forward"]
    return {
        **chains,
        "forward": replace(forward, rules=(*leading, *forward.rules)),
        name: Chain(tuple(_strangers(family, desired))),
    }


def newcomers_from(interface: str) -> Rule:
    """Lead what came in by an interface to the chain that refuses it; by this rule a later run knows which one it was.

    Where our record is lost, nothing else says that forwarding was off on it.
    """
    return _astray(f'iifname "{interface}" ', NEWCOMERS)


def _astray(came_in: str, chain: str) -> Rule:
    """What belongs to a connection passes; what is not tracked does not."""
    return Rule.of(f"{came_in}ct state != {{ established, related }} jump {chain}", "all")


def _strangers(family: Family, desired: Desired) -> Iterator[Rule]:
    """Let through what exposures are for, frames of one bridge, which netfilter shows as routed, and libvirt's own.

    It has rules of its own, but puts them back only when it starts again.
    """
    yield Rule.of(f"{labelled(desired.label)} return", "all")
    for target in outside(family, desired):
        yield Rule.of(f"oifname @{UPLINKS} {family.word} saddr {target} return", "all")
    for route in routed_outside(family, desired):
        subnet, bridge = f"{family.word} {{}}addr {route.subnet}", f'ifname "{route.bridge}"'
        yield Rule.of(f"o{bridge} {subnet.format('d')} return", "all")
        yield Rule.of(f"i{bridge} oifname @{UPLINKS} {subnet.format('s')} return", "all")
    for bridge in bridged(family, desired):
        yield Rule.of(f'iifname "{bridge}" oifname "{bridge}" return', "all")
    yield Rule.of(f"oifname @{CLOSED} counter drop", "all")
    yield Rule.of(f"iifname @{INSIDE} return", "all")
    yield Rule.of(f"iifname != @{CLOSED} oifname @{INSIDE} return", "all")
    yield Rule.of("counter drop", "all")


def _passage(family: Family, kept: Iterable[str]) -> tuple[Rule, ...]:
    """Label new connections of routes before libvirt could refuse them; keep others from sending as a 1:1 guest.

    Who forges an address of the host does not get to what is `kept` from forgers.
    """
    ip = family.word
    as_host = _as_the_host().expression
    lookups = (
        f"{ip} saddr vmap @{ONE_TO_ONE_LEAVING}",
        *(f"{as_host.removesuffix('accept')}{match} drop" for match in kept),
        as_host,
        f"{ip} saddr vmap @{HOMES}",
        *(f"{ip} {end} vmap @{name}" for name, end in PASSING.items()),
    )
    return tuple(Rule.of(f"ct state new {lookup}", "all") for lookup in lookups)


# --- maps and sets ---------------------------------------------------------------------------------------------------


def _map_types(family: Family) -> dict[str, SetType]:
    address = _ADDRESS_TYPES[family]
    keys = dict.fromkeys(ONE_ADDRESS, f"{address} . {_PORT_TYPE}") | dict.fromkeys(EVERY_ADDRESS, _PORT_TYPE)
    subnets = *PASSING, HOMES
    keys |= dict.fromkeys((*TO_PUBLIC, ONE_TO_ONE_LEAVING, LEAVING_AS, *subnets, MASQUERADED), address)
    intervals = (ONE_ADDRESS[1], EVERY_ADDRESS[1], *subnets)
    targets = {TARGETS[name]: SetType(keys[name], f"{address} . inet_service", counter=True) for name in TARGETS}
    lasting = {LASTING[name]: SetType(keys[name], interval=name in intervals, lasting=True) for name in LASTING}
    return {name: SetType(key, VERDICT, interval=name in intervals) for name, key in keys.items()} | targets | lasting


def _ended_type(family: Family) -> SetType:
    address = _ADDRESS_TYPES[family]
    return SetType(f"{address} . {_PORT_TYPE} . {address} . inet_service", timeout_s=REFUSED_FOR_S)


def _ended_ports_type(family: Family) -> SetType:
    return SetType(f"{_ADDRESS_TYPES[family]} . {_PORT_TYPE}", timeout_s=REFUSED_FOR_S)


def _guest_subnets(family: Family, desired: Desired) -> Set:
    subnets = [subnet for subnet in desired.guest_subnets if Family.of(subnet) is family]
    return Set(SetType(_ADDRESS_TYPES[family], interval=True), dict.fromkeys(collapse(subnets)))


def _interfaces(found: Iterable[str]) -> Set:
    """Name interfaces; one with a name that could be syntax is left out, and so leads nowhere for us."""
    names = sorted(filter(is_interface_name, found))
    return Set(SetType("ifname"), {f'"{name}"': None for name in names})


# --- connections that were ended -------------------------------------------------------------------------------------


def refusal_script(ended: Mapping[Flow, float], families: Iterable[Family], *, crowded: bool = False) -> str:
    """Write what remembers ended connections for so many seconds each, so that their guests' packets are refused.

    It takes the place of all that was remembered: an element that is there already would keep its old time.
    """
    keys: defaultdict[str, list[str]] = defaultdict(list)
    for flow, left in ended.items():
        keys[f"{table_name(flow.family)} {_remembering(flow)}"].append(f"{_refused(flow)} timeout {ceil(left)}s")
    lines = []
    for family in sorted(families):
        for name, kind in (ENDED, _ended_type(family)), (ENDED_PORTS, _ended_ports_type(family)):
            where = f"{table_name(family)} {name}"
            texts = keys[where]
            added = declared_lines(where, Set(kind), texts) if crowded else element_lines("add", where, texts)
            lines += [f"flush set {where}", *added]
    return "".join(f"{line}\n" for line in lines)


def _remembering(flow: Flow) -> str:
    return ENDED_PORTS if flow.client.is_unspecified else ENDED


def _refused(flow: Flow) -> str:
    port = f"{flow.server} . {flow.protocol} . {flow.server_port}"
    return port if flow.client.is_unspecified else f"{port} . {flow.client} . {flow.client_port}"
