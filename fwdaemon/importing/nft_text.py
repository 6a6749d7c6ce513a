"""Texts in nft's own language: what `nft list ruleset` prints, and /etc/nftables.conf as people write it.

All tables are followed as the kernel would: what becomes a forward is what the rules are known to have let in.
"""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Final

from fwdaemon.core.text import quote
from fwdaemon.core.types import Family
from fwdaemon.importing.adopting import Adopter, Origin
from fwdaemon.importing.findings import BrokenFileError, Findings
from fwdaemon.importing.iptables_nat import Carrier, Sending, WayOut
from fwdaemon.importing.judging import BaseChain, Ruleset
from fwdaemon.importing.nft_chains import Chained, asleep, chained, space_of, unfollowed
from fwdaemon.importing.nft_rule import NftRule
from fwdaemon.importing.nft_tables import Tables, tables_of
from fwdaemon.importing.nft_words import BracesError, read
from fwdaemon.importing.recognise import Kind
from fwdaemon.rulesets.region import Space
from fwdaemon.rulesets.rules import End, TangledError, led_to
from fwdaemon.rulesets.xt_matches import Services

_WHOLE: Final = "give the output of `nft list ruleset`, which has everything"
_NO_FORWARD: Final = f"no chain of hook forward is in the file, so what was refused is not known; {_WHOLE}"
# What leads to a proxy of this host, as nft writes it, and as it shows what iptables made.
_PROXIES: Final = frozenset({"tproxy", '"TPROXY"'})


def parse(file: Path, text: str, services: Services, way_out: WayOut) -> Findings:
    """Read the file.

    Raises:
        BrokenFileError: its braces do not match, or its rules lead in a circle.

    """
    findings = Findings(file, Kind.NFT_TEXT)
    try:
        tables = tables_of(read(text))
        _carry(findings, tables, services, way_out)
    except BracesError as error:
        raise BrokenFileError(file, error.line, f"{error}; {_WHOLE}") from None
    except TangledError as error:
        raise BrokenFileError(file, 1, f"{error}; write the forwards by hand") from None
    for origin in asleep(tables):
        _leave_out(findings, origin, "its table is dormant, so no connection came to it")
    return findings


def _carry(findings: Findings, tables: Tables, services: Services, way_out: WayOut) -> None:
    for line, text in tables.unread:
        findings.warn(line, f"{quote(text)} is not followed, and may refuse anything; {_WHOLE}")
    others = list(unfollowed(tables))
    for origin in others:
        findings.warn(origin.line, f"{quote(origin.text)} may refuse anything: its chain's hook is not followed")
    blocked = next(
        chain(
            (f"what line {line} does is not known" for line, _ in tables.unread),
            (f"line {origin.line}, {quote(origin.text)}, may have stopped it" for origin in others),
        ),
        "",
    )
    reached: dict[Origin, bool] = {}
    findings.families.update(_families(tables))
    for family in Family:
        space = space_of(tables, family)
        found = chained(tables, space, services)
        carrier = _carrier(findings, space, found, way_out, blocked or ("" if found.forwards else _NO_FORWARD))
        strange = _strange(found)
        for number, said in found.said.items():
            if (sending := _sending(number, said.rule)) is not None:
                reached[said.origin] = carrier.carry(sending) or reached.get(said.origin, False)
            elif said.rule is not None and said.rule.action is End.TRANSLATE and said.rule.doubt:
                _leave_out(findings, said.origin, said.rule.doubt)
            elif number in strange or (said.rule is not None and _PROXIES & {*said.origin.text.split()}):
                _leave_out(findings, said.origin, "where it leads is not followed")
    for origin, is_reached in reached.items():
        if not is_reached:
            _leave_out(findings, origin, "no connection from outside comes to it")


def _strange(found: Chained) -> frozenset[int]:
    """Give the rules of connections from outside that may lead elsewhere in a way that is not followed."""
    return frozenset(
        rule.line
        for base in found.nat
        for name in led_to(base.chains, base.name)
        for rule in base.chains.get(name, ())
        if rule.action is End.UNCLEAR
    )


def _families(tables: Tables) -> Iterator[Family]:
    """Yield the families that any of it may be for."""
    for family in Family:
        foreign = next(other.word for other in Family if other is not family)
        if tables.unread or any(name != foreign for name, _ in tables.tables):
            yield family


def _carrier(findings: Findings, space: Space, found: Chained, way_out: WayOut, blocked: str) -> Carrier:
    targets = {number: said.rule.target for number, said in found.said.items() if said.rule and said.rule.target}
    first, *others = found.nat or [BaseChain({}, "")]
    ruleset = Ruleset(space, found.before, first, found.after, targets, tuple(others))
    origins = {number: said.origin for number, said in found.said.items()}
    names = {number: target.address for number, target in targets.items()}
    return Carrier(Adopter(findings, ruleset, origins, blocked), way_out, found.postrouting, names)


def _sending(number: int, rule: NftRule | None) -> Sending | None:
    if rule is None or rule.action is not End.TRANSLATE or rule.target is None:
        return None
    return Sending(number, rule.match, rule.target, rule.doubt)


def _leave_out(findings: Findings, origin: Origin, why: str) -> None:
    said = f"{quote(origin.text)} left out: {why}"
    if all((remark.origin.line, remark.text) != (origin.line, said) for remark in findings.remarks):
        findings.warn(origin.line, said)
