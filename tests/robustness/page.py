"""Renders the page from all records beside it: what was run and what came of it first, then a section for each."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.chaos import figures as chaos
from tests.endurance import figures as endurance
from tests.fuzz import figures as fuzz
from tests.packets import figures as packets
from tests.referee import figures as referee
from tests.robustness import record as records
from tests.robustness.record import Figures, Record
from tests.turnover import figures as turnover

_HEAD = """\
# Robustness

Written by `sudo scripts/robustness`, which takes hours; the figures are in [robustness](robustness) as JSON, too.
Everything runs on real hosts in namespaces, with libvirtd, guests and packets.
"""
_COLUMNS = ("what", "pressed", "probes", "failures", "worst time to converge")


@dataclass(frozen=True, slots=True)
class _Kind:
    """How runs of one kind are shown: a chapter of its own, a row of the summary and a section for each run."""

    title: str
    introduction: str
    row: Callable[[Figures], tuple[str, str, str, str]]
    section: Callable[[Figures], Iterator[str]]


_KINDS = {
    "chaos": _Kind("Faults drawn by lot", chaos.INTRODUCTION, chaos.row, chaos.section),
    "endurance": _Kind("The long run", endurance.INTRODUCTION, endurance.row, endurance.section),
    "turnover": _Kind("Domains that come and go", turnover.INTRODUCTION, turnover.row, turnover.section),
    "referee": _Kind("Faults in a fleet", referee.INTRODUCTION, referee.row, referee.section),
    "packets": _Kind("Packets drawn by lot", packets.INTRODUCTION, packets.row, packets.section),
    "fuzz": _Kind("Fuzzing", fuzz.INTRODUCTION, fuzz.row, fuzz.section),
}
_TITLES = {
    "nftables": "libvirt on nftables",
    "iptables": "libvirt on iptables-nft",
    "legacy": "libvirt on iptables-legacy",
    "debian13-legacy": "libvirt on iptables-legacy, Debian 13",
    "all": "Everything that reads what others wrote",
}


def store(page: Path, record: Record) -> None:
    """Keep a record beside the page, and render that anew."""
    directory = page.with_suffix("")
    records.write(directory, record)
    page.write_text(rendered(records.read(directory)), encoding="utf-8")


def rendered(told: list[Record]) -> str:
    """Render the whole page."""
    ordered = sorted(told, key=lambda record: (list(_KINDS).index(record.kind), list(_TITLES).index(record.name)))
    lines = [_HEAD, *_summary(ordered)]
    for name, kind in _KINDS.items():
        if of_kind := [record for record in ordered if record.kind == name]:
            lines += ["", f"## {kind.title}", "", kind.introduction.rstrip("\n")]
            lines += [line for record in of_kind for line in _section(kind, record)]
    return "\n".join([*lines, ""])


def _summary(told: list[Record]) -> Iterator[str]:
    yield f"| {' | '.join(_COLUMNS)} |"
    yield "| --- | --- | --- | ---: | ---: |"
    for record in told:
        kind = _KINDS[record.kind]
        yield f"| {kind.title}: {_TITLES[record.name]} | {' | '.join(kind.row(record.figures))} |"


def _section(kind: _Kind, record: Record) -> Iterator[str]:
    yield from ("", f"### {_TITLES[record.name]}", "")
    yield f"{record.stamp.date}, commit {record.stamp.commit}; {record.on}."
    yield ""
    yield from kind.section(record.figures)
