"""From the desired state to the tables that do it.

The frame of a table, which is its hooks, maps and sets, is the same whatever is open; only the parts for 127.0.0.1 come
and go. What is open are branches (`fwdaemon.nftables.branches`). Here tables are made whole;
`fwdaemon.nftables.rulebook` brings those of one state up to date for the next.

Every packet of a new connection walks five lookups, from the most specific claim to the least: its address and port in
a hash, its address and port in ranges, then the same two for every local address, then its address alone. What it finds
is the chain of one *slot* (`fwdaemon.slots`), which holds a rule for each forward that may take the packet, or that of
a 1:1 NAT. A packet no rule takes goes on as if we were not there.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping

from fwdaemon.desired import Desired, Opening
from fwdaemon.model import Family, collapse
from fwdaemon.naming import is_interface_name
from fwdaemon.nftables.branches import (
    ENTERING,
    EVERY_ADDRESS,
    LEAVING,
    LEAVING_AS,
    ONE_ADDRESS,
    ONE_TO_ONE,
    ONE_TO_ONE_LEAVING,
    OUTER,
    PLAIN,
    TARGETS,
    Branch,
    branches,
    marked,
    marking,
)
from fwdaemon.nftables.model import (
    ENDED,
    VERDICT,
    Chain,
    Elements,
    Hook,
    Rule,
    Set,
    SetType,
    Step,
    Table,
    Target,
    family_name,
)
from fwdaemon.nftables.places import Place

# Just before Docker's and libvirt's own NAT chains (dstnat is -100, srcnat 100: netfilter_ipv4.h).
_BEFORE_DSTNAT = -105
_BEFORE_SRCNAT = 95
_BEFORE_FILTER = -10
# Before connections are tracked, and so before any NAT (NF_IP_PRI_RAW in netfilter_ipv4.h).
_FIRST = -300

# How long an ended connection is remembered: longer than a guest that has something to send waits to try again.
_REFUSED_FOR_S = 120

_ADDRESS_TYPES = {Family.IPV4: "ipv4_addr", Family.IPV6: "ipv6_addr"}
_PORT_TYPE = "inet_proto . inet_service"
_PORT = "meta l4proto . th dport"

# Never "every local address": a loopback address is not reachable from elsewhere, a link-local one means another host
# on each link.
_NOT_ANYWHERE = {Family.IPV4: "127.0.0.0/8, 169.254.0.0/16", Family.IPV6: "::1, fe80::/10"}
_LOOPBACK = "127.0.0.0/8"
# The rest of 127.0.0.0/8 is the host's own, as systemd-resolved's 127.0.0.53 is.
_LOCALHOST = "127.0.0.1"


def tables(desired: Desired) -> dict[Family, Table]:
    """Make the table of each family that needs one."""
    return {family: _table(family, branches(family, desired), desired) for family in sorted(desired.families)}


def places_of(desired: Desired) -> dict[tuple[Family, Place], tuple[Opening, ...]]:
    """Tell which openings each place serves, for the audit."""
    return {(family, branch.place): branch.openings for family in Family for branch in branches(family, desired)}


def frame(family: Family, desired: Desired) -> Table:
    """Make the table that is there whatever is open."""
    localhost = desired.localhost and family is Family.IPV4
    chains = _frame(family, desired.mark, localhost=localhost)
    maps = {name: Set(set_type) for name, set_type in _map_types(family).items()}
    sets = {"guest_subnets": _guest_subnets(family, desired), OUTER: _outer(desired), ENDED: Set(_ended_type(family))}
    return Table(family, chains, maps | sets)


def with_elements(
    bare: Table, chains: Mapping[str, Chain], elements: Mapping[str, Elements], step: Step | None = None
) -> Table:
    """Add branches to a frame: their chains, and by map the elements that lead to them."""
    maps = {name: Set(bare.sets[name].type, found) for name, found in elements.items()}
    return Table(bare.family, {**bare.chains, **chains}, {**bare.sets, **maps}, step=step)


def _table(family: Family, found: Iterable[Branch], desired: Desired) -> Table:
    chains, elements = {}, defaultdict[str, dict[str, str | Target | None]](dict)
    for branch in found:
        for name, content in branch.elements:
            elements[name][branch.key] = content
        if branch.target is None:
            chains[branch.chain] = Chain(branch.rules)
    return with_elements(frame(family, desired), chains, elements)


# --- hooks -----------------------------------------------------------------------------------------------------------


def _frame(family: Family, mark: int, *, localhost: bool) -> dict[str, Chain]:
    output = (_jump(), *_from_localhost()) if localhost else (_jump(),)
    postrouting = (_localhost_returns(mark),) if localhost else ()
    frame = {
        "forwards": Chain(_dispatch(family)),
        **{chain: Chain(_plain(family, name, mark)) for name, chain in PLAIN.items()},
        "prerouting": Chain((_jump(),), Hook("nat", "prerouting", _BEFORE_DSTNAT)),
        "output": Chain(output, Hook("nat", "output", _BEFORE_DSTNAT)),
        "postrouting": Chain(postrouting + _source(family, mark), Hook("nat", "postrouting", _BEFORE_SRCNAT)),
        "forward": Chain(_refusal(family) + _passage(family), Hook("filter", "forward", _BEFORE_FILTER)),
    }
    return frame | ({"guard": Chain(_guard(), Hook("filter", "prerouting", _FIRST))} if localhost else {})


def _jump() -> Rule:
    return Rule.of("jump forwards", "all")


def _dispatch(family: Family) -> tuple[Rule, ...]:
    ip = family_name(family)
    anywhere = f"{ip} daddr != {{ {_NOT_ANYWHERE[family]} }} fib daddr type local "
    lookups = [f"{_asked(family, name)} vmap @{name}" for name in ONE_ADDRESS]
    lookups += [f"{anywhere}{_asked(family, name)} vmap @{name}" for name in EVERY_ADDRESS]
    lookups.append(f"{ip} daddr vmap @{ONE_TO_ONE}")
    return tuple(Rule.of(lookup, "all") for lookup in lookups)


def _asked(family: Family, name: str) -> str:
    """Write what a packet is looked up by in a map of forwards."""
    return f"{family_name(family)} daddr . {_PORT}" if name in ONE_ADDRESS else _PORT


def _plain(family: Family, name: str, mark: int) -> tuple[Rule, ...]:
    """Translate what a map of plain forwards has a target for.

    Where somebody took the target away, the first rule ends after its mark, and the second takes that back.
    """
    target = f"{_asked(family, name)} map @{TARGETS[name]}"
    translation = Rule.of(f"{marking(mark)} dnat {family_name(family)} to {target}", "all")
    return translation, Rule.of(f"ct mark set ct mark and {mark ^ 0xFFFFFFFF:#010x}", "all")


def _source(family: Family, mark: int) -> tuple[Rule, ...]:
    """Give 1:1 guests their public address, and make guests that are reached from guests answer through the host.

    The host alone knows both addresses of such a connection.
    """
    ip = family_name(family)
    ours = f"{marked(mark)} ct status dnat"
    return (
        Rule.of(f"oifname @{OUTER} {ip} saddr vmap @{LEAVING_AS}", "outbound"),
        Rule.of(f"{ours} {ip} daddr @guest_subnets {ip} saddr vmap @{LEAVING_AS}", "hairpin"),
        Rule.of(f"{ours} {ip} saddr @guest_subnets {ip} daddr @guest_subnets masquerade", "hairpin"),
    )


def _refusal(family: Family) -> tuple[Rule, ...]:
    """Keep a connection that was ended from coming back from its guest's side.

    Once it is forgotten, the guest's next packet looks like the first of a connection to its client; masqueraded to the
    address and port that the client knows, it would go on as if nothing had happened.
    """
    ip = family_name(family)
    ended = f"ct state new {ip} saddr . meta l4proto . th sport . {ip} daddr . th dport @{ENDED}"
    reset = Rule.of(f"{ended} meta l4proto tcp reject with tcp reset", "ended")
    return reset, Rule.of(f"{ended} reject", "ended")


def _passage(family: Family) -> tuple[Rule, ...]:
    """Mark new connections of routes, and from 1:1 guests, before any filter could refuse them."""
    ip = family_name(family)
    lookups = (f"daddr vmap @{ENTERING}", f"saddr vmap @{LEAVING}", f"saddr vmap @{ONE_TO_ONE_LEAVING}")
    return tuple(Rule.of(f"ct state new {ip} {lookup}", "all") for lookup in lookups)


# --- 127.0.0.1 -------------------------------------------------------------------------------------------------------


def _from_localhost() -> tuple[Rule, ...]:
    """Take what the host itself sends to 127.0.0.1; a rule for one interface cannot match there."""
    lookups = (f"ip daddr {_LOCALHOST} {_PORT} vmap @{name}" for name in EVERY_ADDRESS)
    return tuple(Rule.of(lookup, "localhost") for lookup in lookups)


def _localhost_returns(mark: int) -> Rule:
    """Make the guest answer to the host's address on its network, as it could not to 127.0.0.1."""
    return Rule.of(f"{marked(mark)} ct status dnat ip saddr {_LOOPBACK} masquerade", "localhost")


def _guard() -> tuple[Rule, ...]:
    """Drop what comes from elsewhere to or from 127.0.0.0/8, as the kernel itself does without `route_localnet`."""
    return tuple(Rule.of(f'iifname != "lo" ip {end} {_LOOPBACK} drop', "localhost") for end in ("daddr", "saddr"))


# --- maps and sets ---------------------------------------------------------------------------------------------------


def _map_types(family: Family) -> dict[str, SetType]:
    address = _ADDRESS_TYPES[family]
    keys = dict.fromkeys(ONE_ADDRESS, f"{address} . {_PORT_TYPE}") | dict.fromkeys(EVERY_ADDRESS, _PORT_TYPE)
    keys |= dict.fromkeys((ONE_TO_ONE, ONE_TO_ONE_LEAVING, LEAVING_AS, ENTERING, LEAVING), address)
    intervals = (ONE_ADDRESS[1], EVERY_ADDRESS[1], ENTERING, LEAVING)
    targets = {TARGETS[name]: SetType(keys[name], f"{address} . inet_service", counter=True) for name in TARGETS}
    return {name: SetType(key, VERDICT, interval=name in intervals) for name, key in keys.items()} | targets


def _ended_type(family: Family) -> SetType:
    address = _ADDRESS_TYPES[family]
    return SetType(f"{address} . {_PORT_TYPE} . {address} . inet_service", timeout_s=_REFUSED_FOR_S)


def _guest_subnets(family: Family, desired: Desired) -> Set:
    subnets = [subnet for subnet in desired.guest_subnets if Family.of(subnet) is family]
    return Set(SetType(_ADDRESS_TYPES[family], interval=True), dict.fromkeys(collapse(subnets)))


def _outer(desired: Desired) -> Set:
    """Name the interfaces that lead away; one with a name that could be syntax leads nowhere for us."""
    names = sorted(filter(is_interface_name, desired.outer))
    return Set(SetType("ifname"), {f'"{name}"': None for name in names})
