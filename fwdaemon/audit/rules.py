"""What is said of rules: why a gate was changed, where they are, and who else has what ours take. Pure."""

from collections.abc import Mapping, Sequence
from typing import Final

from fwdaemon.core.conflicts import Conflict, Entry, ListenerConflict, Order, RuleConflict
from fwdaemon.core.report import LIBVIRT_TABLE, GateChange, LocationReason
from fwdaemon.core.text import shown
from fwdaemon.core.types import Gate, GateFault, Protocol

# Why a gate was changed, and why rules are in a rule system.
_GATE_FAULTS: Final[Mapping[GateFault, str]] = {
    GateFault.ABSENT: "it was not there",
    GateFault.BEHIND_RULE: "another rule was ahead of it",
    GateFault.AHEAD_OF_BAN: "it was ahead of a ban",
    GateFault.REPEATED: "it was there more than once",
    GateFault.ALTERED: "it was not as we made it",
    GateFault.GUESTS: "its rules for guests were not as keep_guests_online asks",
}
_LOCATION_REASONS: Final[Mapping[LocationReason, str]] = {
    LocationReason.CONFIGURED: "the configuration says so",
    LocationReason.LIBVIRT_TABLE: f"libvirt's rules are in its table {LIBVIRT_TABLE}",
    LocationReason.LIBVIRT_CHAINS: "libvirt's chains are there",
    LocationReason.NO_LIBVIRT_RULES: "libvirt has no rules of its own",
    LocationReason.WRITTEN_TO: "libvirt's chains are in both rule systems, and iptables writes to this one",
}


def format_gate_fault(fault: GateFault) -> str:
    """Say what was wrong with a gate."""
    return _GATE_FAULTS[fault]


def format_gate(change: GateChange) -> str:
    """Say what was wrong with which gate."""
    return f"{name_gate(change.gate)}: {format_gate_fault(change.fault)}"


def name_gate(gate: Gate) -> str:
    """Name a gate."""
    return f"gate in {gate}"


def format_location_reason(reason: LocationReason) -> str:
    """Say why rules are in a rule system, or belong there."""
    return _LOCATION_REASONS[reason]


# Who else has what an entry takes.
_MOST: Final = 3
# What follows from whose rule comes first, with what is on its way, and where to.
_FOLLOWS: Final[Mapping[Order, str]] = {
    Order.OURS: "but our rule comes first, so {} reach {}",
    Order.THEIRS: "and that comes first, so {} may not reach {}",
    Order.UNKNOWN: "and whichever of the two was made last comes first, so {} may not reach {}",
}


def format_conflict(conflict: Conflict) -> str:
    """Say who else has what, and who is reached therefore, with the place in the configuration at the end."""
    entry = conflict.entry
    said = _of_listeners(conflict) if isinstance(conflict, ListenerConflict) else _of_rules(conflict)
    return f"{format_entry(entry)}: {said}" + (f" ({entry.origin})" if entry.origin else "")


def format_entry(entry: Entry) -> str:
    """Say what an entry takes."""
    if entry.protocol is None:
        return f"all of {entry.address}"
    ports = f"port{'' if entry.ports.width == 1 else 's'} {entry.ports}/{entry.protocol}"
    return ports if entry.address is None else f"{ports} of {entry.address}"


def _of_listeners(conflict: ListenerConflict) -> str:
    entry, who = conflict.entry, _holders(conflict)
    verb = "listens" if len(who) == 1 else "listen"
    place, whence = (f" on {_listed(conflict.places)}", "there") if conflict.places else ("", "from outside")
    follows = f"{_reaching(entry, whence)} will reach {shown(entry.domain)} instead"
    if entry.yields:
        follows = f"no domain {shown(entry.domain)} is given the port before that ends"
    return f"{_listed(who)} of the host {verb} there{place}; {follows}"


def _holders(conflict: ListenerConflict) -> Sequence[str]:
    """Name each holder once, or once for each port of several; the protocol only where the entry takes several."""
    entry = conflict.entry
    named = [(shown(name or "a process"), protocol, port) for name, protocol, port in conflict.holders]
    if entry.ports.width == 1:
        return list(dict.fromkeys(name for name, _, _ in named))
    return [f"{name} at port {port if entry.protocol else f'{port}/{protocol}'}" for name, protocol, port in named]


def _of_rules(conflict: RuleConflict) -> str:
    entry, who = conflict.entry, conflict.owner or "another rule"
    named = [f"{ports}/{protocol}" if protocol else str(ports) for ports, protocol in conflict.ports]
    follows = _FOLLOWS[conflict.order].format(_reaching(entry, "from outside"), shown(entry.domain))
    return f"{who} forwards {_listed(named) if named else 'it'} too (in {conflict.chain}), {follows}"


def _reaching(entry: Entry, whence: str) -> str:
    """Say what is reached by what: `connections from outside`, or only those that a restricted forward takes."""
    noun = "datagrams" if entry.protocol is Protocol.UDP else "connections"
    return f"the {noun} that the forward takes" if entry.is_restricted else f"{noun} {whence}"


def _listed(items: Sequence[str]) -> str:
    """Name at most three, and say how many more there are: `a, b, c and 4 more`."""
    more = [f"{len(items) - _MOST} more"] if len(items) > _MOST else []
    *first, last = [*items[:_MOST], *more]
    return f"{', '.join(first)} and {last}" if first else last
