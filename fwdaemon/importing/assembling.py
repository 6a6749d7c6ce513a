"""What was found in all files as one configuration that is accepted, whatever the files said.

The text is checked as the daemon would check it. What conflicts with an earlier entry is commented out, and says why.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from fwdaemon import config as configuration
from fwdaemon.config.model import Origin, RouteEntry
from fwdaemon.config.text import quote
from fwdaemon.errors import ConfigError, Problem
from fwdaemon.importing.findings import Findings, Forward
from fwdaemon.importing.owners import Owners
from fwdaemon.importing.writing import Line, Opening, write
from fwdaemon.model import Protocol

# What the text is called while it is checked. No message has the character otherwise, whatever names are in it, so the
# places in the text can be told as those they come from.
_FILE: Final = Path("\0")
_PLACE: Final = re.compile(r"\0:(\d+)")
_UNKNOWN: Final = "?"
_NOWHERE: Final = Origin(Path(), 0)


@dataclass(frozen=True, slots=True)
class Imported:
    """The configuration, and what could not carry over, by file and line."""

    text: str
    warnings: tuple[Problem, ...]


def assemble(files: Sequence[Findings], owners: Owners | None) -> Imported:
    """Put together what was found in all files, in their order; `owners` is `None` if libvirt did not tell."""
    openings = list(_distinct(files, owners))
    lines = write(files, openings)
    while reasons := dict(_blamed(lines, _check(lines))):
        openings = [replace(opening, reason=reasons.get(opening, opening.reason)) for opening in openings]
        lines = write(files, openings)
    return Imported("".join(f"{line.text}\n" for line in lines), tuple(_warnings(files, openings)))


def _distinct(files: Iterable[Findings], owners: Owners | None) -> Iterator[Opening]:
    """Yield every opening once; what stands in several files, or twice in one, is no contradiction."""
    first: dict[Opening, Opening] = {}
    for findings in files:
        found = [_forward(forward, owners) for forward in findings.forwards]
        for opening in [*found, *map(_route, findings.routes)]:
            known = first.setdefault(replace(opening, origin=_NOWHERE), opening)
            if known is opening:
                yield opening
            else:
                findings.note(opening.origin.line, f"{opening.element} is the same as at {known.origin}")


def _forward(forward: Forward, owners: Owners | None) -> Opening:
    domain, reason = (forward.domain, "") if forward.domain is not None else _owner(forward, owners)
    keys: dict[str, str | tuple[str, ...]] = {"domain": domain, "address": str(forward.address)}
    if forward.listen is not None:
        keys["listen"] = str(forward.listen)
    if forward.interface is not None:
        keys["interface"] = forward.interface
    if forward.sources:
        keys["sources"] = tuple(map(str, forward.sources))
    return Opening("forward", tuple(keys.items()), "ports", _ports(forward), forward.origin, reason)


def _owner(forward: Forward, owners: Owners | None) -> tuple[str, str]:
    """Give the domain that has the address, or else why it is not known."""
    if owners is None:
        return _UNKNOWN, f"libvirt did not tell which domain has {forward.address}; write its name"
    match owners.get(forward.address, ()):
        case (name,):
            return name, ""
        case ():
            return _UNKNOWN, f"no running domain is known to have {forward.address}; start it, or write its name"
        case names:
            listed = " and ".join(map(quote, names))
            return _UNKNOWN, f"domains {listed} are both said to have {forward.address}; write the name of one"


def _ports(forward: Forward) -> str:
    guest = "" if forward.guest == forward.host else f":{forward.guest}"
    protocol = "" if forward.protocol is Protocol.TCP else f"/{forward.protocol}"
    return f"{forward.host}{guest}{protocol}"


def _route(route: RouteEntry) -> Opening:
    subnet = route.subnet
    is_single = subnet.prefixlen == subnet.max_prefixlen
    element = str(subnet.network_address if is_single else subnet)
    return Opening("route", (("network", route.network),), "addresses", element, route.origin)


def _check(lines: Iterable[Line]) -> tuple[Problem, ...]:
    try:
        configuration.parse({_FILE: "".join(f"{line.text}\n" for line in lines)})
    except ConfigError as error:
        return error.problems
    return ()


def _blamed(lines: Sequence[Line], problems: Iterable[Problem]) -> Iterator[tuple[Opening, str]]:
    """Yield the openings on the lines of the problems, with the reason; not those which stand against one that goes."""

    def origin(match: re.Match[str]) -> str:
        return str(lines[int(match[1]) - 1].openings[0].origin)

    gone: set[Opening] = set()
    for problem in sorted(problems, key=lambda problem: problem.line):
        others = {opening for place in _PLACE.findall(problem.text) for opening in lines[int(place) - 1].openings}
        if not others & gone:
            gone.update(lines[problem.line - 1].openings)
            yield from ((opening, _PLACE.sub(origin, problem.text)) for opening in lines[problem.line - 1].openings)


def _warnings(files: Iterable[Findings], openings: Iterable[Opening]) -> Iterator[Problem]:
    for findings in files:
        for remark in findings.in_order():
            if remark.is_warning:
                yield Problem(remark.origin.file, remark.origin.line, remark.text)
    for opening in openings:
        if opening.reason:
            said = f"{opening.element} left out: {opening.reason}"
            yield Problem(opening.origin.file, opening.origin.line, said)
