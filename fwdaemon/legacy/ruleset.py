"""From the desired state to the rules that do it.

A new connection's first packet walks KVMPF_PRE, from the most specific claim to the least: forwards on one address,
then, behind three rules that send everything else back, those on every local address. What a forward takes is marked
and translated by two rules with the same match. KVMPF_OUT only leads there: a connection the host itself opens has come
in through no interface, so a forward bound to one does not take it.
"""

from collections.abc import Iterable, Iterator

from fwdaemon.desired import Desired, Forward
from fwdaemon.flows import Flow
from fwdaemon.legacy.model import COMMENT, FWD, OUT, POST, PRE, Rule, Table, TableName
from fwdaemon.model import Address, Family, PortRange, Protocol, collapse, show_endpoint
from fwdaemon.naming import label
from fwdaemon.slots import Slot, slots

# Never "every local address": a loopback address is not reachable from elsewhere, a link-local one means another host
# on each link.
_NOT_ANYWHERE = {Family.IPV4: ("127.0.0.0/8", "169.254.0.0/16"), Family.IPV6: ("::1/128", "fe80::/10")}
_UNREACHABLE = {Family.IPV4: "icmp-port-unreachable", Family.IPV6: "icmp6-port-unreachable"}

# What the rules that let only packets for the host's own addresses go on call themselves.
EVERY_ADDRESS = "every_address"

_LINKS = {
    TableName.NAT: {"PREROUTING": PRE, "OUTPUT": OUT, "POSTROUTING": POST},
    TableName.FILTER: {"FORWARD": FWD},
}

Tables = dict[TableName, Table]


def tables(desired: Desired, ended: Iterable[Flow] = ()) -> dict[Family, Tables]:
    """Make the tables of each family that needs any; `ended` are connections whose guests are to be refused."""
    flows = tuple(ended)
    return {
        family: _tables(family, desired, [flow for flow in flows if flow.family is family])
        for family in sorted(desired.families)
    }


def forwards_of(desired: Desired, family: Family) -> dict[str, Forward]:
    """Tell which forward each rule serves, by the rule's comment."""
    found = slots(desired.of_family(family))
    return {rule.comment: forward for slot in found for forward, rule in _claims(slot, desired.mark)}


def gate(mark: int) -> Rule:
    """Make the rule that lets our connections through a chain that is not ours."""
    return Rule(_marked(mark), "ACCEPT", COMMENT)


def links(table: TableName) -> dict[str, Rule]:
    """Make the rules that lead from the kernel's own chains to ours."""
    return {chain: Rule("", ours, COMMENT) for chain, ours in _LINKS[table].items()}


def _tables(family: Family, desired: Desired, ended: Iterable[Flow]) -> Tables:
    nat = {
        PRE: _unique(_prerouting(family, desired)),
        OUT: (Rule.of("", PRE, "all"),),
        POST: _unique(_hairpin(family, desired)),
    }
    forward = {FWD: _unique(_forward(desired.mark, ended))}
    return {
        TableName.FILTER: Table(forward, links(TableName.FILTER)),
        TableName.NAT: Table(nat, links(TableName.NAT)),
    }


def _unique(rules: Iterable[Rule]) -> tuple[Rule, ...]:
    """Leave out what could never be reached, and could not be told from its first appearance."""
    return tuple({rule.comment: rule for rule in rules}.values())


def _prerouting(family: Family, desired: Desired) -> Iterator[Rule]:
    ordered = sorted(slots(desired.of_family(family)), key=_most_specific_first)
    for slot in ordered:
        if slot.listen is not None:
            yield from (rule for _, rule in _claims(slot, desired.mark))
    if any(slot.listen is None for slot in ordered):
        for subnet in _NOT_ANYWHERE[family]:
            yield Rule.of(f"-d {subnet}", "RETURN", EVERY_ADDRESS)
        yield Rule.of("-m addrtype ! --dst-type LOCAL", "RETURN", EVERY_ADDRESS)
    for slot in ordered:
        if slot.listen is None:
            yield from (rule for _, rule in _claims(slot, desired.mark))


def _most_specific_first(slot: Slot) -> tuple[bool, int, Protocol, PortRange]:
    return slot.listen is None, int(slot.listen or 0), slot.protocol, slot.ports


def _claims(slot: Slot, mark: int) -> Iterator[tuple[Forward, Rule]]:
    """Write the rules of a slot: for each forward and source, one that marks and one that translates."""
    for forward in sorted(slot.forwards, key=_narrowest_first):
        name = label(forward.domain)
        for source in collapse(forward.sources) or [""]:
            matches = _matches(forward, slot.ports, source)
            yield forward, Rule.of(matches, f"CONNMARK --set-xmark {_masked(mark)}", name)
            yield forward, Rule.of(matches, f"DNAT --to-destination {_destination(forward, slot.ports)}", name)


def _narrowest_first(forward: Forward) -> tuple[bool, str, bool, list[str], str]:
    sources = [str(source) for source in forward.sources]
    return forward.interface is None, forward.interface or "", not sources, sources, str(forward.target)


def _matches(forward: Forward, ports: PortRange, source: str) -> str:
    parts = [f"-s {source}"] if source else []
    if forward.listen is not None:
        parts.append(f"-d {_host(forward.listen)}")
    if forward.interface is not None:
        parts.append(f"-i {forward.interface}")
    between = str(ports).replace("-", ":")
    return " ".join([*parts, f"-p {forward.protocol} -m {forward.protocol} --dport {between}"])


def _destination(forward: Forward, ports: PortRange) -> str:
    """Write where `ports`, a piece of the forward's own, lead; the number after the slash is what is counted from."""
    shift = forward.target_ports.first - forward.ports.first
    if ports.width > 1 and shift == 0:
        return str(forward.target)
    there = show_endpoint(forward.target, PortRange(ports.first + shift, ports.last + shift))
    return there if ports.width == 1 else f"{there}/{ports.first}"


def _hairpin(family: Family, desired: Desired) -> Iterator[Rule]:
    """Make a guest that is reached from a guest answer through the host, which alone knows both addresses.

    Our connections go to guests, most of them in known subnets. The few targets outside are sent back first, so that
    one rule for each subnet is enough.
    """
    subnets = [subnet for subnet in desired.guest_subnets if Family.of(subnet) is family]
    if not subnets:
        return
    yield Rule.of(f"-m connmark ! --mark {_masked(desired.mark)}", "RETURN", "hairpin")
    yield Rule.of("-m conntrack ! --ctstate DNAT", "RETURN", "hairpin")
    targets = {forward.target for forward in desired.of_family(family)}
    for target in sorted(targets, key=int):
        if not any(target in subnet for subnet in subnets):
            yield Rule.of(f"-d {_host(target)}", "RETURN", "hairpin")
    for source in collapse(subnets):
        yield Rule.of(f"-s {source}", "MASQUERADE", "hairpin")


def _forward(mark: int, ended: Iterable[Flow]) -> Iterator[Rule]:
    """Let our connections through, and keep those that were ended from coming back from their guests' side.

    Once a connection is forgotten, its guest's next packet looks like the first of a connection to its client;
    masqueraded to the address and port that the client knows, it would go on as if nothing had happened.
    """
    yield Rule.of(_marked(mark), "ACCEPT", "all")
    rules = [Rule.of(_ended(flow), f"REJECT --reject-with {_refusal(flow)}", "ended") for flow in ended]
    if rules:
        yield Rule.of("-m conntrack ! --ctstate NEW", "RETURN", "ended")
        yield from sorted(rules, key=str)


def _ended(flow: Flow) -> str:
    ends = f"-s {_host(flow.server)} -d {_host(flow.client)}"
    return f"{ends} -p {flow.protocol} -m {flow.protocol} --sport {flow.server_port} --dport {flow.client_port}"


def _refusal(flow: Flow) -> str:
    return "tcp-reset" if flow.protocol is Protocol.TCP else _UNREACHABLE[flow.family]


def _marked(mark: int) -> str:
    return f"-m connmark --mark {_masked(mark)}"


def _masked(mark: int) -> str:
    return f"{mark:#x}/{mark:#x}"


def _host(address: Address) -> str:
    return f"{address}/{address.max_prefixlen}"
