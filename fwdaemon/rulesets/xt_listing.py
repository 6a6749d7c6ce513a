"""Every base chain of iptables, from what `iptables-save` prints. Pure; the source is iptables(8)."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from ipaddress import ip_address
from typing import Final

from fwdaemon.core.types import Address, Family
from fwdaemon.legacy.model import LASTING, SET_MATCH, is_own
from fwdaemon.rulesets import xt_tables
from fwdaemon.rulesets.packet import (
    BaseChain,
    Change,
    End,
    Jump,
    Match,
    Packet,
    Return,
    Rule,
    RuleLocation,
    State,
    Statement,
    System,
    Translate,
    Tristate,
    Verdict,
)
from fwdaemon.rulesets.rules import End as Ending
from fwdaemon.rulesets.xt_conditions import NO_MEMBERS, Members, labels_set, tests_of
from fwdaemon.rulesets.xt_matches import Option
from fwdaemon.rulesets.xt_tables import Table

_FULL: Final = 0xFFFFFFFF
_HOOKS: Final = {
    "PREROUTING": "prerouting",
    "INPUT": "input",
    "FORWARD": "forward",
    "OUTPUT": "output",
    "POSTROUTING": "postrouting",
}
# netfilter_ipv4.h; for the table nat see `_priority`.
_PRIORITIES: Final = {"raw": -300, "mangle": -150, "filter": 0, "security": 50}
_DNAT, _SNAT = -100, 100
# Targets after which a packet goes on to the next rule as it was, as far as we look.
_WITHOUT_EFFECT: Final = frozenset(
    {"LOG", "NFLOG", "ULOG", "CHECKSUM", "TCPMSS", "TRACE", "AUDIT", "DSCP", "TOS", "TTL", "HL", "CLASSIFY", "SET"}
    | {"SECMARK", "CONNSECMARK", "TEE", "IDLETIMER", "LED", "RATEEST", "TCPOPTSTRIP", "ECN"}
)
_ENDS: Final = {
    "ACCEPT": End.ACCEPT,
    "DROP": End.REFUSE,
    "REJECT": End.REFUSE,
    "QUEUE": End.UNCLEAR,
    "NFQUEUE": End.UNCLEAR,
    "TPROXY": End.UNCLEAR,
    "SYNPROXY": End.UNCLEAR,
}
_UNKNOWN: Final = Match(lambda _packet, _around: Tristate.UNKNOWN)
# What may do anything.
_UNCLEAR: Final = (_UNKNOWN, Verdict(End.UNCLEAR))


def base_chains(save: str, system: System, family: Family, members: Members = NO_MEMBERS) -> list[BaseChain]:
    """Read all base chains in what `iptables-save` or one of its sisters printed, with the rules they lead to."""
    found = []
    for table in xt_tables.read(save).tables:
        chains = {chain: tuple(_rules(table, chain, system, family, members)) for chain in table.chains}
        for chain, policy in table.policies.items():
            if chain in _HOOKS:
                kind = "nat" if table.name == "nat" else "filter"
                where = system, family.word, table.name, chain, kind, _HOOKS[chain], _priority(table.name, chain)
                found.append(BaseChain(*where, policy.end is Ending.ACCEPT, chains))
    return found


def _priority(table: str, chain: str) -> int:
    if table == "nat":
        return _DNAT if chain in ("PREROUTING", "OUTPUT") else _SNAT
    return _PRIORITIES.get(table, 0)


def _rules(table: Table, chain: str, system: System, family: Family, members: Members) -> Iterator[Rule]:
    known = frozenset(table.chains)
    for number, line in enumerate(table.chains[chain], 1):
        location = RuleLocation(system, family.word, table.name, chain, number, line.text.removeprefix(f"-A {chain} "))
        options = line.options
        if options is not None and is_own(chain):
            options = tuple(option for option in options if not _is_of_time(option))
        yield Rule(location, _UNCLEAR if options is None else tuple(_statements(options, known, members)))


def _is_of_time(option: Option) -> bool:
    """Whether a match looks at the clock; a rule of ours that does is in force as long as it is there."""
    if option.name == SET_MATCH:
        return any(name.startswith(LASTING) for name in option.values)
    return option.module == "time" or (option.name == "-m" and "time" in option.values)


def _statements(options: Sequence[Option], chains: frozenset[str], members: Members) -> Iterator[Statement]:
    """Part a rule into its matches, and its target with what belongs to it."""
    at = next((index for index, option in enumerate(options) if option.name in ("-j", "-g")), len(options))
    matches = options[:at]
    yield from (Match(test) for test in tests_of(matches, members))
    yield from (_label(label) for label in labels_set(matches))
    yield from _target(options[at:], chains)


def _label(label: str) -> Statement:
    return Change(lambda packet: packet.labelled(label))


# --- targets ---------------------------------------------------------------------------------------------------------


def _target(said: Sequence[Option], chains: frozenset[str]) -> Iterable[Statement]:
    """Read a target; one that is not known here may do anything."""
    if not said or not said[0].values:  # a rule without only counts
        return ()
    name, options = said[0].values[0], {option.name: " ".join(option.values) for option in said[1:]}
    if name in chains:
        return (Jump(name, goto=said[0].name == "-g"),)
    if name in _ENDS:
        return (Verdict(_ENDS[name]),)
    if name in _WITHOUT_EFFECT:
        return ()
    reader = _TARGETS.get(name)
    return reader(options) if reader else _UNCLEAR


def _return(options: Mapping[str, str]) -> Iterable[Statement]:
    del options
    return (Return(),)


def _mark(options: Mapping[str, str]) -> Iterable[Statement]:
    return (Change(lambda packet: replace(packet, mark=_changed(packet.mark, options.get("--set-xmark")))),)


def _connmark(options: Mapping[str, str]) -> Iterable[Statement]:
    # What is saved or restored under a mask is not worth the trouble: it counts as unknown.
    whole = options.get("--nfmask", "0xffffffff") == options.get("--ctmask", "0xffffffff") == "0xffffffff"

    def change(packet: Packet) -> Packet:
        if not packet.tracked:
            return packet
        if "--restore-mark" in options:
            return replace(packet, mark=packet.connmark if whole else None)
        if "--save-mark" in options:
            return replace(packet, connmark=packet.mark if whole else None)
        return replace(packet, connmark=_changed(packet.connmark, options.get("--set-xmark")))

    return (Change(change),)


def _changed(mark: int | None, argument: str | None) -> int | None:
    """Set a mark as `--set-xmark VALUE/MASK` does: zero the bits of the mask, then XOR with the value."""
    if mark is None or argument is None:
        return None
    value, _, mask = argument.partition("/")
    return (mark & ~int(mask or "0xffffffff", 0) & _FULL) ^ int(value, 0)


def _untracked(options: Mapping[str, str]) -> Iterable[Statement]:
    if "--notrack" not in options:
        return ()
    return (Change(lambda packet: replace(packet, state=State.UNTRACKED) if packet.state is State.UNSEEN else packet),)


def _rename(options: Mapping[str, str]) -> Iterable[Statement]:
    """Follow a translation of the source; under which address it goes on is of no interest here."""
    del options
    return (Change(lambda packet: replace(packet, renamed=True)), Verdict(End.ACCEPT))


def _dnat(options: Mapping[str, str]) -> Iterable[Statement]:
    address, first, base = _destination(options.get("--to-destination", ""))

    def translate(packet: Packet, location: RuleLocation) -> Packet:
        port = first
        if base is not None and first is not None:
            port = None if packet.port is None else first + packet.port - base
        return packet.sent_to(address or packet.destination, port if first is not None else packet.port, location)

    return (Translate(translate),)


def _destination(text: str) -> tuple[Address | None, int | None, int | None]:
    """Read `[ADDRESS[-ADDRESS]][:PORT[-PORT[/BASE]]]`, with IPv6 addresses in brackets; of a range, the first."""
    addresses, _, ports = text.rpartition(":") if _has_port(text) else (text, "", "")
    first = addresses.strip("[]").partition("-")[0].strip("[]")
    number, _, base = ports.partition("/")
    return (
        ip_address(first) if first else None,
        int(number.partition("-")[0]) if number else None,
        int(base) if base else None,
    )


def _has_port(text: str) -> bool:
    return text.rfind(":") > text.rfind("]") and (text.startswith("[") or text.count(":") == 1)


def _redirect(options: Mapping[str, str]) -> Iterable[Statement]:
    port = options.get("--to-ports", "").partition("-")[0]

    def translate(packet: Packet, location: RuleLocation) -> Packet:
        local = ip_address("127.0.0.1" if packet.family is Family.IPV4 else "::1")
        return packet.sent_to(local, int(port) if port else packet.port, location)

    return (Translate(translate),)


_TARGETS = {
    "RETURN": _return,
    "MARK": _mark,
    "CONNMARK": _connmark,
    "CT": _untracked,
    "NOTRACK": lambda _options: _untracked({"--notrack": ""}),
    "DNAT": _dnat,
    "REDIRECT": _redirect,
    "SNAT": _rename,
    "MASQUERADE": _rename,
}
