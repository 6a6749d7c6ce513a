"""From the desired state to the tables that do it.

Every packet of a new connection walks four lookups, from the most specific claim to the least: its address and port
in a hash, its address and port in ranges, then the same two for every local address. What it finds is the chain of
one *slot* (`fwdaemon.slots`), which holds a rule for each forward that may take the packet. A packet no rule takes
goes on as if we were not there.
"""

from collections.abc import Iterable
from ipaddress import IPv6Address

from fwdaemon.desired import Desired, Forward
from fwdaemon.model import Address, Family, PortRange, collapse
from fwdaemon.naming import label
from fwdaemon.nftables.model import ENDED, Chain, Hook, Rule, Set, SetType, Table, family_name
from fwdaemon.slots import Slot, slots

# Just before Docker's and libvirt's own NAT chains (dstnat is -100, srcnat 100: netfilter_ipv4.h).
_BEFORE_DSTNAT = -105
_BEFORE_SRCNAT = 95
_BEFORE_FILTER = -10

# How long an ended connection is remembered: longer than a guest that has something to send waits to try again.
_REFUSED_FOR_S = 120

_ADDRESS_TYPES = {Family.IPV4: "ipv4_addr", Family.IPV6: "ipv6_addr"}

# Never "every local address": a loopback address is not reachable from elsewhere, a link-local one means another host
# on each link.
_NOT_ANYWHERE = {Family.IPV4: "127.0.0.0/8, 169.254.0.0/16", Family.IPV6: "::1, fe80::/10"}

# The maps a packet is looked up in, in this order.
_ONE_ADDRESS = ("one_address", "one_address_ranges")
_EVERY_ADDRESS = ("every_address", "every_address_ranges")


def tables(desired: Desired) -> dict[Family, Table]:
    """Make the table of each family that needs one."""
    return {family: _table(family, tuple(desired.of_family(family)), desired) for family in sorted(desired.families)}


def chains_of(desired: Desired) -> dict[tuple[Family, str], tuple[Forward, ...]]:
    """Tell which forwards each slot's chain serves, for the audit."""
    return {
        (family, _chain_name(slot)): slot.forwards for family in Family for slot in slots(desired.of_family(family))
    }


def _table(family: Family, forwards: Iterable[Forward], desired: Desired) -> Table:
    found = slots(forwards)
    chains = {
        "forwards": Chain(_dispatch(family)),
        "prerouting": Chain((Rule.of("jump forwards", "all"),), Hook("nat", "prerouting", _BEFORE_DSTNAT)),
        "output": Chain((Rule.of("jump forwards", "all"),), Hook("nat", "output", _BEFORE_DSTNAT)),
        "postrouting": Chain((_hairpin(family, desired.mark),), Hook("nat", "postrouting", _BEFORE_SRCNAT)),
        "forward": Chain(_refusal(family), Hook("filter", "forward", _BEFORE_FILTER)),
    }
    chains |= {_chain_name(slot): Chain(_rules(slot, desired.mark)) for slot in found}
    sets = {"guest_subnets": _guest_subnets(family, desired), ENDED: Set(_ended_type(family))}
    return Table(family, chains, _maps(family, found) | sets)


def _dispatch(family: Family) -> tuple[Rule, ...]:
    ip = family_name(family)
    anywhere = f"{ip} daddr != {{ {_NOT_ANYWHERE[family]} }} fib daddr type local "
    lookups = [f"{ip} daddr . meta l4proto . th dport vmap @{name}" for name in _ONE_ADDRESS]
    lookups += [f"{anywhere}meta l4proto . th dport vmap @{name}" for name in _EVERY_ADDRESS]
    return tuple(Rule.of(lookup, "all") for lookup in lookups)


def _hairpin(family: Family, mark: int) -> Rule:
    """Make a guest that is reached from a guest answer through the host, which alone knows both addresses."""
    ip = family_name(family)
    ours = f"ct mark and {mark:#010x} == {mark:#010x} ct status dnat"
    return Rule.of(f"{ours} {ip} saddr @guest_subnets {ip} daddr @guest_subnets masquerade", "hairpin")


def _refusal(family: Family) -> tuple[Rule, ...]:
    """Keep a connection that was ended from coming back from its guest's side.

    Once it is forgotten, the guest's next packet looks like the first of a connection to its client; masqueraded to the
    address and port that the client knows, it would go on as if nothing had happened.
    """
    ip = family_name(family)
    ended = f"ct state new {ip} saddr . meta l4proto . th sport . {ip} daddr . th dport @{ENDED}"
    reset = Rule.of(f"{ended} meta l4proto tcp reject with tcp reset", "ended")
    return reset, Rule.of(f"{ended} reject", "ended")


def _ended_type(family: Family) -> SetType:
    address = _ADDRESS_TYPES[family]
    return SetType(f"{address} . inet_proto . inet_service . {address} . inet_service", timeout_s=_REFUSED_FOR_S)


def _maps(family: Family, found: Iterable[Slot]) -> dict[str, Set]:
    elements: dict[str, dict[str, str | None]] = {name: {} for name in (*_ONE_ADDRESS, *_EVERY_ADDRESS)}
    for slot in found:
        exact, ranges = _EVERY_ADDRESS if slot.listen is None else _ONE_ADDRESS
        elements[exact if slot.ports.width == 1 else ranges][_key(slot)] = _chain_name(slot)
    return {
        name: Set(
            SetType(
                f"{_ADDRESS_TYPES[family]} . inet_proto . inet_service"
                if name in _ONE_ADDRESS
                else "inet_proto . inet_service",
                verdict=True,
                interval=name.endswith("_ranges"),
            ),
            found_elements,
        )
        for name, found_elements in elements.items()
    }


def _guest_subnets(family: Family, desired: Desired) -> Set:
    subnets = [subnet for subnet in desired.guest_subnets if Family.of(subnet) is family]
    return Set(SetType(_ADDRESS_TYPES[family], interval=True), dict.fromkeys(collapse(subnets)))


def _key(slot: Slot) -> str:
    parts = [] if slot.listen is None else [str(slot.listen)]
    return " . ".join([*parts, str(slot.protocol), str(slot.ports)])


def _chain_name(slot: Slot) -> str:
    """Name a chain for what it serves: `any.tcp.80`, `on.198.51.100.7.udp.27015_27030`."""
    where = "any" if slot.listen is None else f"on.{slot.listen}".replace(":", "_")
    return f"{where}.{slot.protocol}.{slot.ports}".replace("-", "_")


def _rules(slot: Slot, mark: int) -> tuple[Rule, ...]:
    ordered = sorted(slot.forwards, key=lambda forward: (forward.interface or "", forward.sources, str(forward.target)))
    return tuple(Rule.of(_expression(forward, slot.ports, mark), label(forward.domain)) for forward in ordered)


def _expression(forward: Forward, ports: PortRange, mark: int) -> str:
    ip = family_name(forward.family)
    parts = [f"meta l4proto {forward.protocol}"]
    if forward.interface is not None:
        parts.append(f'iifname "{forward.interface}"')
    if forward.sources:
        parts.append(f"{ip} saddr {{ {', '.join(collapse(forward.sources))} }}")
    parts.append(f"ct mark set ct mark or {mark:#010x} counter {_dnat(forward, ports)}")
    return " ".join(parts)


def _dnat(forward: Forward, ports: PortRange) -> str:
    """Write the DNAT; nft cannot shift a range of ports, so a shifted one is spelled out as a map."""
    shift = forward.target_ports.first - forward.ports.first
    if ports.width == 1:
        return f"dnat to {_with_port(forward.target, ports.first + shift)}"
    if shift == 0:
        return f"dnat to {forward.target}"
    pairs = ", ".join(f"{port} : {port + shift}" for port in ports)
    return f"dnat to {forward.target} : {forward.protocol} dport map {{ {pairs} }}"


def _with_port(address: Address, port: int) -> str:
    return f"[{address}]:{port}" if isinstance(address, IPv6Address) else f"{address}:{port}"
