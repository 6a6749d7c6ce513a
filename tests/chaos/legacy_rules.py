"""Our chains in iptables-legacy, read back from iptables-legacy-save: which exposures they hold, and what else."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from tests.chaos.admission import DENYING
from tests.chaos.listing import Listing
from tests.chaos.truth import ANY, Exposure, collapsed

_MATCHES = (
    r"(?: -s (?P<source>\S+))?(?: -d (?P<listen>[^/\s]+)/(?:32|128))?"
    r"(?: -p (?P<protocol>tcp|udp) -m (?:tcp|udp) --dport (?P<first>\d+)(?::(?P<last>\d+))?)?"
    # What is open for a while says until when, by the time of day and by the kernel's own count.
    r"(?: -m time --datestop \S+(?: --utc)?(?: -m set --match-set KVMPF_\+\S+ src)?)?"
    # A 1:1 NAT has a second rule, for a public address that is not the host's.
    r"(?P<elsewhere> -m addrtype ! --dst-type LOCAL)?"
)
COMMENT = r" -m comment --comment (?P<comment>\"[^\"]*\"|\S+)"
_TAKEN = re.compile(rf'-A KVMPF_OUT{_MATCHES} -m connlabel --label "25" --set{COMMENT} -j DNAT (?P<rest>.*)')
# What all that is taken has to pass ahead of that; ports that touch are asked for together.
_DENIED = re.compile(rf"-A KVMPF_POST{_MATCHES}{COMMENT} -j KVMPF_DENY")
_HOME = re.compile(
    r"(?:nat -A KVMPF_PRE|mangle -A KVMPF_(?:FWD|PRE)) -s \S+ (?:! )?(?:-i \S+ )?-m comment .* -j (?:RETURN|KVMPF_OUT)$"
)
_LIMITED = re.compile(r"-A KVMPF_POST -p tcp -m tcp --dport (?P<port>\d+) .* -j (?P<chain>KVMPF_[0-9a-f]{12})")
_RATE = re.compile(r"--hashlimit-above (?P<number>\d+)/(?P<unit>\w+) --hashlimit-burst (?P=number) ")
_OPEN = re.compile(r"--connlimit-above (?P<number>\d+) --connlimit-mask 32 --connlimit-saddr ")
_TARGET = re.compile(r"--to-destination \[?(?P<target>[0-9a-f.:]+?)\]?(?::(?P<port>\d+)(?:-\d+/\d+|-\d+)?)?$")


@dataclass(frozen=True, slots=True)
class LegacyRules:
    """One family's rules. `guests` counts the rules for what 1:1 guests send; `frame` is the rest, as text.

    `sets` is who is in those that deny.
    """

    exposures: frozenset[Exposure]
    subnets: frozenset[str]
    guests: int
    frame: str
    oddities: tuple[str, ...]
    sets: Mapping[str, frozenset[str]]


def read_family(version: int, listing: Listing) -> LegacyRules:
    """Read one family's tables."""
    family = "ip" if version == 4 else "ip6"
    tables = {name: listing.legacy(family, name) for name in ("nat", "mangle", "filter")}
    ours = [f"{name} {line}" for name, lines in tables.items() for line in lines if "KVMPF_" in line]
    taken = [found for line in tables["nat"] if (found := _TAKEN.fullmatch(line))]
    denied = [found for line in tables["mangle"] if (found := _DENIED.fullmatch(line))]
    subnets = [line for line in ours if " -j MASQUERADE" in line]
    guests = [line for line in ours if " -j SNAT " in line or _is_impostor(line)]
    # What has the address of a guest, or of a link, and came in elsewhere is none of ours.
    forged = [line for line in ours if _HOME.match(line)]
    # What is left of connections that were ended is refused for two minutes.
    ended = [line for line in ours if ' --comment "ended ' in line]
    variable = {f"nat {found[0]}" for found in taken}.union(subnets, guests, ended, forged)
    variable |= {f"mangle {found[0]}" for found in denied}
    limits = _limits(tables["mangle"])
    return LegacyRules(
        frozenset(_exposure(version, found, limits) for found in taken),
        collapsed(line.split(" -s ")[1].split()[0] for line in subnets),
        len(guests),
        "\n".join(line for line in ours if line not in variable),
        (*_doubled(taken), *_not_asked(taken, denied), *_asked_late(tables["mangle"])),
        {name: _members(listing["ipsets"], f"KVMPF_{name}_{version}") for name in DENYING},
    )


def _is_impostor(line: str) -> bool:
    return line.startswith("mangle -A KVMPF_FWD") and " -j DROP" in line


def _members(ipsets: str, name: str) -> frozenset[str]:
    lines = (line.split() for line in ipsets.splitlines())
    return frozenset(words[2] for words in lines if words[:2] == ["add", name])


def _limits(mangle: list[str]) -> dict[str, str]:
    """Read which ports are limited, as the configuration says it."""
    chains = {found["port"]: found["chain"] for line in mangle if (found := _LIMITED.fullmatch(line))}
    return {
        port: _limit(next((line for line in mangle if f"-A {chain} " in line), "")) for port, chain in chains.items()
    }


def _limit(line: str) -> str:
    if found := _RATE.search(line):
        return f'rate = "{found["number"]}/{found["unit"]}"'
    return f"max_open = {found['number']}" if (found := _OPEN.search(line)) else line


def _not_asked(taken: list[re.Match[str]], denied: list[re.Match[str]]) -> Iterator[str]:
    """Say of what it is not asked whether it is denied, and what is asked more than once or for nothing."""
    wanted = Counter(claim for found in taken for claim in _claims(found))
    asked = Counter(claim for found in denied for claim in _claims(found))
    yield from (
        f"asked {asked[claim]} times, not {wanted[claim]}: {claim}"
        for claim in asked | wanted
        if asked[claim] != wanted[claim]
    )


def _asked_late(mangle: list[str]) -> Iterator[str]:
    """Say what is asked behind a limit, which lets through who is not over it."""
    limited = [number for number, line in enumerate(mangle) if _LIMITED.fullmatch(line)]
    late = [line for line in mangle[limited[0] :] if _DENIED.fullmatch(line)] if limited else []
    yield from (f"asked too late: {line}" for line in late)


def _claims(found: re.Match[str]) -> Iterator[tuple[str | int | None, ...]]:
    first = int(found["first"] or 0)
    for port in range(first, int(found["last"] or first) + 1):
        yield found["source"], found["listen"], found["elsewhere"], found["protocol"], port


def _exposure(version: int, found: re.Match[str], limits: Mapping[str, str]) -> Exposure:
    target = _TARGET.search(found["rest"])
    first = int(found["first"] or 0)
    width = int(found["last"] or first) - first + 1 if found["protocol"] else 0
    return Exposure(
        version,
        found["protocol"] or "",
        found["listen"] or ANY,
        first,
        width,
        found["source"] or ANY,
        target["target"] if target else found["rest"],
        int(target["port"] or 0) if target else 0,
        limits.get(found["first"], ""),
    )


def _doubled(taken: list[re.Match[str]]) -> list[str]:
    return [f"twice: {found[0]}" for found in taken if sum(found[0] == other[0] for other in taken) > 1]
