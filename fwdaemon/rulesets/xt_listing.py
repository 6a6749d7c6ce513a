"""Every base chain of iptables, from what `iptables-save` prints. Pure; the source is iptables(8)."""

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from itertools import pairwise
from typing import Final

from fwdaemon.core.text import rule_lines
from fwdaemon.core.types import Address, Family
from fwdaemon.rulesets.packet import (
    BaseChain,
    Change,
    End,
    Jump,
    Match,
    Packet,
    Place,
    Return,
    Rule,
    State,
    Statement,
    System,
    Translate,
    Truth,
    Verdict,
)
from fwdaemon.rulesets.xt_conditions import Option, labels_set, tests_of

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


@dataclass(slots=True)
class _Table:
    name: str
    policies: dict[str, str] = field(default_factory=dict)
    rules: dict[str, list[Rule]] = field(default_factory=dict)


def base_chains(save: str, system: System, family: Family) -> list[BaseChain]:
    """Read all base chains in what `iptables-save` or one of its sisters printed, with the rules they lead to."""
    name = family.word
    found = []
    for table in _tables(save, system, name):
        chains = {chain: tuple(rules) for chain, rules in table.rules.items()}
        for chain, policy in table.policies.items():
            if policy != "-" and chain in _HOOKS:
                kind = "nat" if table.name == "nat" else "filter"
                where = system, name, table.name, chain, kind, _HOOKS[chain], _priority(table.name, chain)
                found.append(BaseChain(*where, policy == "ACCEPT", chains))
    return found


def _priority(table: str, chain: str) -> int:
    if table == "nat":
        return _DNAT if chain in ("PREROUTING", "OUTPUT") else _SNAT
    return _PRIORITIES.get(table, 0)


def _tables(save: str, system: System, family: str) -> Iterator[_Table]:
    table = _Table("")
    for line in rule_lines(save):
        if line.startswith("*"):
            table = _Table(line[1:])
        elif line.startswith(":"):
            chain, policy, *_ = [*line[1:].split(), "-"]
            table.policies[chain] = policy
            table.rules[chain] = []
        elif line.startswith("-A "):
            _add_rule(table, line, system, family)
        elif line == "COMMIT":
            yield table


def _add_rule(table: _Table, line: str, system: System, family: str) -> None:
    try:
        _, chain, *words = shlex.split(line)
    except ValueError:  # a comment with an odd quote in it: the rule may be anything
        chain, words = line.split()[1], ["-m", "unreadable", "-j", "unreadable"]
    rules = table.rules.setdefault(chain, [])
    text = line.removeprefix(f"-A {chain} ")
    place = Place(system, family, table.name, chain, len(rules) + 1, text)
    matches, target = _split(words)
    options = list(_options(matches))
    tests = [Match(test) for test in tests_of(options)]
    labelling = [_label(label) for label in labels_set(options)]
    rules.append(Rule(place, (*tests, *labelling, *_target(target, frozenset(table.policies)))))


def _split(words: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """Part a rule into its matches, and its target with what belongs to it."""
    for index, word in enumerate(words):
        if word in ("-j", "-g") and (index == 0 or words[index - 1] != "--comment"):
            return words[:index], words[index:]
    return words, ()


def _options(words: Sequence[str]) -> Iterator[Option]:
    """Read options with their words, each of which goes on to the next option or `!`."""
    module = ""
    index = 0
    while index < len(words):
        inverted = words[index] == "!"
        index += inverted
        name, start = words[index], index + 1
        index = start + 1 if name == "--comment" else _end_of_words(words, start)
        option = Option(name, tuple(words[start:index]), module, inverted)
        module = option.words[0] if name == "-m" and option.words else module
        yield option


def _end_of_words(words: Sequence[str], start: int) -> int:
    index = start
    while index < len(words) and words[index] != "!" and not words[index].startswith("-"):
        index += 1
    return index


def _label(label: str) -> Statement:
    return Change(lambda packet: packet.labelled(label))


# --- targets ---------------------------------------------------------------------------------------------------------


def _target(words: Sequence[str], chains: frozenset[str]) -> Iterable[Statement]:
    """Read a target; one that is not known here may do anything."""
    if len(words) < 2:  # noqa: PLR2004  the option and its word; a rule without only counts
        return ()
    name, options = words[1], dict(pairwise([*words[2:], ""]))
    if name in chains:
        return (Jump(name, goto=words[0] == "-g"),)
    if name in _ENDS:
        return (Verdict(_ENDS[name]),)
    if name in _WITHOUT_EFFECT:
        return ()
    reader = _TARGETS.get(name)
    return reader(options) if reader else (Match(lambda _packet, _around: Truth.UNKNOWN), Verdict(End.UNCLEAR))


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

    def translate(packet: Packet, place: Place) -> Packet:
        port = first
        if base is not None and first is not None:
            port = None if packet.port is None else first + packet.port - base
        return packet.sent_to(address or packet.destination, port if first is not None else packet.port, place)

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

    def translate(packet: Packet, place: Place) -> Packet:
        local = ip_address("127.0.0.1" if packet.family is Family.IPV4 else "::1")
        return packet.sent_to(local, int(port) if port else packet.port, place)

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
