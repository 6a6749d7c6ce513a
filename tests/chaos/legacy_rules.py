"""Our chains in the legacy tables, read back from iptables-legacy-save: which exposures they hold, and what else."""

import re
from dataclasses import dataclass

from tests.chaos.listing import Listing
from tests.chaos.truth import ANY, Exposure, collapsed

_PROTOCOL = r"(?: -p (?P<protocol>tcp|udp) -m (?:tcp|udp) --dport (?P<first>\d+)(?::(?P<last>\d+))?)?"
_TAKEN = re.compile(
    r"-A KVMPF_OUT(?: -s (?P<source>\S+))?(?: -d (?P<listen>[^/\s]+)/(?:32|128))?"
    + _PROTOCOL
    # What is open for a while says until when, by the time of day and by the kernel's own count.
    + r"(?: -m time --datestop \S+(?: --utc)?(?: -m set --match-set KVMPF_\+\S+ src)?)?"
    # A 1:1 NAT has a second rule, for a public address that is not the host's.
    + r"(?P<elsewhere> -m addrtype ! --dst-type LOCAL)?"
    r' -m connlabel --label "25" --set'
    r" -m comment --comment (?P<comment>\"[^\"]*\"|\S+) -j DNAT (?P<rest>.*)"
)
_HOME = re.compile(
    r"(?:nat -A KVMPF_PRE|mangle -A KVMPF_FWD) -s \S+ (?:! )?(?:-i \S+ )?-m comment .* -j (?:RETURN|KVMPF_OUT)$"
)
_TARGET = re.compile(r"--to-destination \[?(?P<target>[0-9a-f.:]+?)\]?(?::(?P<port>\d+)(?:-\d+/\d+|-\d+)?)?$")


@dataclass(frozen=True, slots=True)
class LegacyRules:
    """One family's rules. `guests` counts the rules for what 1:1 guests send; `frame` is the rest, as text."""

    exposures: frozenset[Exposure]
    subnets: frozenset[str]
    guests: int
    frame: str
    oddities: tuple[str, ...]


def read_family(version: int, listing: Listing) -> LegacyRules:
    """Read one family's tables."""
    family = "ip" if version == 4 else "ip6"
    tables = {name: listing.legacy(family, name) for name in ("nat", "mangle", "filter")}
    ours = [f"{name} {line}" for name, lines in tables.items() for line in lines if "KVMPF_" in line]
    taken = [found for line in tables["nat"] if (found := _TAKEN.fullmatch(line))]
    subnets = [line for line in ours if " -j MASQUERADE" in line]
    guests = [line for line in ours if " -j SNAT " in line or ("mangle" in line and " -j DROP" in line)]
    # What has the address of a guest, or of a link, and came in elsewhere is none of ours.
    forged = [line for line in ours if _HOME.match(line)]
    # What is left of connections that were ended is refused for two minutes.
    ended = [line for line in ours if ' --comment "ended ' in line]
    variable = {f"nat {found[0]}" for found in taken}.union(subnets, guests, ended, forged)
    return LegacyRules(
        frozenset(_exposure(version, found) for found in taken),
        collapsed(line.split(" -s ")[1].split()[0] for line in subnets),
        len(guests),
        "\n".join(line for line in ours if line not in variable),
        tuple(_doubled(taken)),
    )


def _exposure(version: int, found: re.Match[str]) -> Exposure:
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
    )


def _doubled(taken: list[re.Match[str]]) -> list[str]:
    return [f"twice: {found[0]}" for found in taken if sum(found[0] == other[0] for other in taken) > 1]
