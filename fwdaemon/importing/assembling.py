"""What was found in all files as the text of one configuration that is accepted, whatever the files said.

The text is checked as the daemon would check it. What conflicts with an earlier entry is commented out, and says why.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypeAlias

import tomlkit

from fwdaemon import config as configuration
from fwdaemon.config.model import RouteEntry
from fwdaemon.config.names import as_pattern
from fwdaemon.core.inventory import AddressSource, Inventory
from fwdaemon.core.text import quote
from fwdaemon.core.types import Address, Origin, Protocol
from fwdaemon.errors import ConfigError, Problem
from fwdaemon.importing.adopting import absorbed, fallbacks, uncovered
from fwdaemon.importing.findings import Findings, Forward, Kind, Nat, printable

# Which domain has an address, and on which bridge, for rules that name the address only.
Owners: TypeAlias = Mapping[Address, tuple[str, ...]]
"""The names of the running domains with the best evidence for an address; it is known where there is one only."""


Bridges: TypeAlias = Mapping[Address, str]
"""The bridge that leads to an address, where all who are said to have it are on one."""


def bridges_of(inventory: Inventory) -> Bridges:
    """Index the bridges of an inventory by the addresses behind them."""
    found: defaultdict[Address, set[str | None]] = defaultdict(set)
    for domain in inventory.domains:
        for interface in domain.interfaces:
            for claim in interface.learned:
                found[claim.address].add(interface.bridge)
    single = ((address, next(iter(bridges))) for address, bridges in found.items() if len(bridges) == 1)
    return {address: bridge for address, bridge in single if bridge is not None}


def owners_of(inventory: Inventory) -> Owners:
    """Index the domains of an inventory by all their addresses."""
    claims: defaultdict[Address, dict[AddressSource, set[str]]] = defaultdict(dict)
    for address, source, name in _claims(inventory):
        claims[address].setdefault(source, set()).add(name)
    return {address: tuple(sorted(sources[min(sources)])) for address, sources in claims.items()}


def _claims(inventory: Inventory) -> Iterator[tuple[Address, AddressSource, str]]:
    for domain in inventory.domains:
        for interface in domain.interfaces:
            for claim in interface.learned:
                yield claim.address, claim.source, domain.name


# Our configuration as text: entries with the place each of them comes from, and comments on what was left out.
#
# Every value is written by tomlkit, and whatever else comes from outside stands in comments, printable and on one line.
_HEAD: Final = (
    "Made by kvm-portfwd import. `kvm-portfwd check FILE` says whether a configuration is right.",
    "What is left out, or different from before, is listed here.",
)

Keys: TypeAlias = tuple[tuple[str, str | tuple[str, ...]], ...]


@dataclass(frozen=True, slots=True)
class Exposure:
    """One element of an entry: `element` of the array `array`, in a `[[table]]` with these other keys.

    Without an array the keys are the whole entry, and `element` is what messages call it.
    `reason` says why it is written commented out, if it is.
    """

    table: str
    keys: Keys
    array: str
    element: str
    origin: Origin
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the configuration, and the exposures that it holds for; none where it is only a comment."""

    text: str
    exposures: tuple[Exposure, ...] = ()


def write(files: Iterable[Findings], exposures: Iterable[Exposure]) -> list[Line]:
    """Write the remarks on each file, then the entries: one for all exposures that differ only in the element."""
    lines = [_comment(text) for text in _HEAD]
    for findings in files:
        lines += _remarks(findings)
    groups: dict[tuple[str, str, Keys], list[Exposure]] = {}
    for exposure in sorted(exposures, key=lambda exposure: bool(exposure.reason)):
        groups.setdefault((exposure.reason, exposure.table, exposure.keys), []).append(exposure)
    for group in groups.values():
        lines += [Line(""), *(_entry(group) if not group[0].reason else _commented_out(group))]
    return lines


def _remarks(findings: Findings) -> Iterator[Line]:
    yield _comment("")
    yield _comment(f"From {findings.file}, {findings.kind}")
    for remark in findings.in_order():
        yield _comment(f"  line {remark.origin.line}: {remark.text}")


def _entry(group: Sequence[Exposure]) -> Iterator[Line]:
    every, first = tuple(group), group[0]
    yield Line(f"[[{first.table}]]" + ("" if first.array else f" # {printable(str(first.origin))}"), every)
    for key, value in first.keys:
        yield Line(f"{key} = {_value(value)}", every)
    if not first.array:
        return
    yield Line(f"{first.array} = [", every)
    for exposure in group:
        yield Line(f"    {_value(exposure.element)}, # {printable(str(exposure.origin))}", (exposure,))
    yield Line("]", every)


def _commented_out(group: Sequence[Exposure]) -> Iterator[Line]:
    yield _comment(f"Left out: {group[0].reason}")
    yield from (_comment(line.text) for line in _entry(group))


def _comment(text: str) -> Line:
    return Line(f"# {printable(text)}".rstrip())


def _value(value: str | tuple[str, ...]) -> str:
    """Write a value as TOML; tomlkit leaves characters in it that a terminal would obey, such as U+009B."""
    text = tomlkit.item(value if isinstance(value, str) else list(value)).as_string()
    return "".join(letter if letter.isprintable() else f"\\U{ord(letter):08X}" for letter in text)


# What the text is called while it is checked.
_FILE: Final = Path("portfwd.toml")
_UNKNOWN: Final = "?"
_NOWHERE: Final = Origin(Path(), 0)


@dataclass(frozen=True, slots=True)
class Imported:
    """The configuration, what could not carry over, by file and line, and whether anything is in force in it."""

    text: str
    warnings: tuple[Problem, ...]
    has_entries: bool


def assemble(files: Sequence[Findings], owners: Owners | None) -> Imported:
    """Put together what was found in all files, in their order; `owners` is `None` if libvirt did not tell."""
    found = list(_distinct(files, owners))
    exposures = [exposure for exposure, _ in found]
    lines = write(files, exposures)
    while reasons := dict(_blamed(lines, _check(lines))) or dict(_unshielded(found, exposures)):
        exposures = [replace(exposure, reason=exposure.reason or reasons.get(exposure, "")) for exposure in exposures]
        lines = write(files, exposures)
    _remark_fallbacks(files, _live(found, exposures))
    return Imported(
        "".join(f"{line.text}\n" for line in write(files, exposures)),
        tuple(_warnings(files, exposures)),
        any(not exposure.reason for exposure in exposures),
    )


def _distinct(files: Iterable[Findings], owners: Owners | None) -> Iterator[tuple[Exposure, Forward | None]]:
    """Yield every exposure once, with its forward; what is in another one, in any file, is no contradiction."""
    wider = absorbed(forward for findings in files for forward in findings.forwards)
    first: dict[Exposure, Exposure] = {}
    for findings in files:
        found: list[tuple[Exposure, Forward | None]] = []
        for forward in findings.forwards:
            if forward in wider:
                findings.note(forward.origin.line, _is_part(forward, wider[forward]))
            else:
                found.append((_forward(forward, owners), forward))
        found += ((_nat(nat, owners), None) for nat in findings.nats)
        found += ((_route(route), None) for route in findings.routes)
        for exposure, made_of in found:
            known = first.setdefault(replace(exposure, origin=_NOWHERE), exposure)
            if known is exposure:
                yield exposure, made_of
            else:
                findings.note(exposure.origin.line, f"{exposure.element} is the same as at {known.origin}")


def _is_part(narrow: Forward, wide: Forward) -> str:
    is_same = replace(narrow, origin=wide.origin, judged=wide.judged) == wide
    return f"{_ports(narrow)} is {'the same as at' if is_same else 'part of what is at'} {wide.origin}"


def _unshielded(
    found: Iterable[tuple[Exposure, Forward | None]], exposures: Iterable[Exposure]
) -> Iterator[tuple[Exposure, str]]:
    """Yield the exposures that would take what an old rule sent to another guest, now that no forward does."""
    live = _live(found, exposures)
    for forward, line in uncovered(live):
        taken = Origin(forward.origin.file, line)
        yield live[forward], f"the rule at {taken} took some of it before, and no forward from here does so now"


def _live(
    found: Iterable[tuple[Exposure, Forward | None]], exposures: Iterable[Exposure]
) -> Mapping[Forward, Exposure]:
    return {
        forward: exposure
        for (_, forward), exposure in zip(found, exposures, strict=True)
        if forward is not None and not exposure.reason
    }


def _remark_fallbacks(files: Iterable[Findings], live: Collection[Forward]) -> None:
    """Say whose clients come to another guest while theirs is down."""
    said: dict[tuple[Origin, str], None] = {}
    for first, then in fallbacks(live):
        clients = f"clients of {first.listen}, which line {first.origin.line} leads to {first.address},"
        said[then.origin, f"{_ports(then)}: {clients} come to {then.address} while that guest is down"] = None
    for findings in files:
        for origin, text in said:
            if origin.file == findings.file:
                findings.warn(origin.line, text)


def _forward(forward: Forward, owners: Owners | None) -> Exposure:
    domain, reason = (forward.domain, "") if forward.domain is not None else _owner(forward, owners)
    keys: dict[str, str | tuple[str, ...]] = {"domain": domain, "address": str(forward.address)}
    if forward.listen is not None:
        keys["listen"] = str(forward.listen)
    if forward.interface is not None:
        keys["interface"] = forward.interface
    if forward.sources:
        keys["sources"] = tuple(map(str, forward.sources))
    return Exposure("forward", tuple(keys.items()), "ports", _ports(forward), forward.origin, forward.reason or reason)


def _nat(nat: Nat, owners: Owners | None) -> Exposure:
    domain, reason = _owner(nat, owners)
    keys = (("domain", domain), ("address", str(nat.address)), ("public", str(nat.public)))
    return Exposure("nat", keys, "", str(nat.public), nat.origin, nat.reason or reason)


def _owner(forward: Forward | Nat, owners: Owners | None) -> tuple[str, str]:
    """Give the domain that has the address, or else why it is not known."""
    if owners is None:
        return _UNKNOWN, f"libvirt did not say which domain has {forward.address}; write its name"
    match owners.get(forward.address, ()):
        case (name,):
            return as_pattern(name), ""  # what libvirt says is a name, whatever is in it
        case ():
            return _UNKNOWN, f"no running domain is known to have {forward.address}; start it, or write its name"
        case names:
            listed = " and ".join(map(quote, names))
            return _UNKNOWN, f"domains {listed} are both said to have {forward.address}; write the name of one"


def _ports(forward: Forward) -> str:
    guest = "" if forward.guest == forward.host else f":{forward.guest}"
    protocol = "" if forward.protocol is Protocol.TCP else f"/{forward.protocol}"
    return f"{forward.host}{guest}{protocol}"


def _route(route: RouteEntry) -> Exposure:
    subnet = route.subnet
    is_single = subnet.prefixlen == subnet.max_prefixlen
    element = str(subnet.network_address if is_single else subnet)
    return Exposure("route", (("network", route.network),), "addresses", element, route.origin)


def _check(lines: Iterable[Line]) -> tuple[Problem, ...]:
    try:
        configuration.parse({_FILE: "".join(f"{line.text}\n" for line in lines)})
    except ConfigError as error:
        return error.problems
    return ()


def _blamed(lines: Sequence[Line], problems: Iterable[Problem]) -> Iterator[tuple[Exposure, str]]:
    """Yield the exposures on the lines of the problems, with the reason, but for those against one that goes."""
    gone: set[Exposure] = set()
    for problem in sorted(problems, key=lambda problem: problem.line):
        blamed, clash = lines[problem.line - 1].exposures, problem.clash
        others = lines[clash.other.line - 1].exposures if clash is not None else ()
        if gone.isdisjoint(others):
            gone.update(blamed)
            text = str(clash._replace(other=others[0].origin)) if clash is not None else problem.text
            yield from ((exposure, text) for exposure in blamed)


def _warnings(files: Iterable[Findings], exposures: Iterable[Exposure]) -> Iterator[Problem]:
    for findings in files:
        for remark in findings.in_order():
            if remark.is_warning:
                yield Problem(remark.origin.file, remark.origin.line, remark.text)
    for exposure in exposures:
        if exposure.reason:
            said = f"{exposure.element} left out: {exposure.reason}"
            yield Problem(exposure.origin.file, exposure.origin.line, said)


# Several files of one host's rules: each is judged by its own rules alone, so together they must not be live.
#
# A connection has to pass the rules of all files. What one of them sends to a guest another one may refuse.

# The zones of firewalld know each other: a file is read with those beside it.
_ZONES: Final = frozenset({Kind.FIREWALLD_XML, Kind.FIREWALLD_LIST})


def keep_apart(files: Sequence[Findings]) -> None:
    """Leave out what is in one file of rules where another has rules of the same family."""
    for findings in files:
        other = next((other for other in files if _may_refuse(other, findings)), None)
        if other is not None:
            _leave_out(findings, _WHY.format(quote(str(other.file))))


def _may_refuse(other: Findings, findings: Findings) -> bool:
    are_zones = findings.kind in _ZONES and other.kind in _ZONES
    return other is not findings and not are_zones and bool(other.families & findings.families)


def _leave_out(findings: Findings, why: str) -> None:
    findings.forwards[:] = [replace(forward, reason=forward.reason or why) for forward in findings.forwards]
    findings.nats[:] = [replace(nat, reason=nat.reason or why) for nat in findings.nats]


_WHY: Final = (
    "{} has rules too, which may refuse it, and each file is judged alone; give in one file all that iptables-save, or"
    " nft list ruleset, prints"
)
