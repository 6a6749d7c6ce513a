"""What a run is counted as, and the table that is made of it."""

import os
import platform
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.actions import Action
from tests.lab.host import Host

_INTRODUCTION = """\
# Robustness

Written by `sudo scripts/chaos`: on a real host in namespaces, with libvirtd, guests and packets, a fault is drawn by
lot, round after round. After each one the whole truth is compared: what must answer and what must not, our rules as
`nft` and `iptables-legacy-save` list them, everybody else's rules byte for byte (line by line where libvirt itself has
just written its own anew), the daemon's descriptors, threads and children.

Meanwhile three TCP streams and one of numbered datagrams go through forwards that no round touches, and may lose
nothing. They rest where nobody could carry them: when `nft flush ruleset` takes the last NAT rule, when a foreign rule
that refuses everything is put ahead of all others, and while libvirt writes its own rules anew after a wipe. The very
same connections have to go on afterwards.

*Worst* is the longest time from the end of a fault until everything was right again, on a machine as busy as it was.
Where none is given, the fault left a state, such as the daemon killed, in which that could not be asked.
"""


@dataclass(slots=True)
class Figures:
    """The figures of one run. Times are in seconds."""

    rounds: int = 0
    probes: int = 0
    bytes: int = 0
    datagrams: int = 0
    seconds: float = 0.0
    failures: int = 0
    lost: bool = False
    counts: Counter[str] = field(default_factory=Counter)
    worst: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    def settled(self, action: Action, seconds: float) -> None:
        """Count how long it took until all was right."""
        self.worst[action.label] = max(self.worst[action.label], seconds)

    def table(self, title: str, seed: int, on: str) -> str:
        """One section of Markdown."""
        rows = (f"| {label} | {count} | {self._worst(label)} |" for label, count in sorted(self.counts.items()))
        head = ["| fault | times | worst |", "| --- | ---: | ---: |"]
        return "\n".join([f"## {title}", "", f"{on}.", "", self._summary(seed), "", *head, *rows, ""])

    def _summary(self, seed: int) -> str:
        streams, lost = f"{self.bytes / 1e6:.0f} MB in streams", "broken" if self.lost else "nothing lost"
        return (
            f"{self.rounds} rounds (seed {seed}) in {self.seconds:.0f} s, {self.probes} probes,"
            f" {self.failures} failures; {streams} and {self.datagrams} datagrams, {lost}."
        )

    def _worst(self, label: str) -> str:
        return f"{self.worst[label]:.2f} s" if label in self.worst else "not asked"


def versions(host: Host) -> str:
    """Name what it ran on."""
    asked = (("libvirtd", "--version"), ("nft", "--version"), ("iptables", "--version"))
    programs = [host.run(*words).stdout.strip() for words in asked]
    return "; ".join([f"Linux {platform.release()}, {os.cpu_count()} processors", f"{host.flavour}", *programs])


def write_section(path: Path, name: str, section: str) -> None:
    """Put a section into the page in place of the one of that name."""
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
    page = path.read_text(encoding="utf-8") if path.exists() else _INTRODUCTION
    head, found, rest = page.partition(begin)
    tail = rest.partition(end)[2] if found else ""
    path.write_text(f"{head if found else page.rstrip() + chr(10) * 2}{begin}{section}{end}{tail}", encoding="utf-8")
