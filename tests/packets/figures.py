"""What a run is counted as, and the section of the page that is made of it."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.packets.run import Result

INTRODUCTION = """\
A configuration and packets are drawn by lot, round after round: by any interface, with sources and MAC addresses of
others, and with marks that other programs set. What comes of each is compared with a plain model of what the
documentation promises and, for the first packet of a connection, with what the evaluator of `explain` foretells. Then
receivers answer, the configuration changes, both ends of every connection send again, and others begin. In every tenth
round, all that is ours is taken away instead, as by `kvm-portfwd flush`.

`explain` judges first packets only, so on packets of connections that go on, the promise and the two rule systems alone
have to agree. Where what it foretells is uncertain, anything fits; how often that is so is given below.

A comparison that finds nothing may be blind. So afterwards each guard is taken out of our rules in the kernel, one at a
time, and rounds are played until packets show that it is missing: `homes` and `links` keep out who comes from elsewhere
with an address of a guest or of a link, `impostors` who leaves with that of a 1:1 guest, `strangers` what is forwarded
only because we turned that on, `ended` what was ended, and `uplinks` guests from going out elsewhere. With the
`late label`, what guests open is labelled before the host's filters have seen it, and with `no label` after they have,
so that a gate lets it past a refusal. The tests do the same (`tests/kernel/test_packet_model.py`).
"""


@dataclass(slots=True)
class Figures:
    """The figures of one run; `unsure` are packets of which `explain` could not tell, as they ask for a MAC address.

    `missed` tells of each guard that was taken away in which round that showed; `None` is in none.
    """

    rounds: int = 0
    packets: int = 0
    connections: int = 0
    ended: int = 0
    unsure: int = 0
    differences: int = 0
    seconds: float = 0.0
    missed: dict[str, int | None] = field(default_factory=dict)

    def add(self, result: Result) -> None:
        """Count one round."""
        self.rounds += 1
        self.packets += result.packets
        self.connections += result.connections
        self.ended += result.ended
        self.unsure += result.unsure
        self.differences += len(result.differences)

    def record(self, seed: int) -> dict[str, Any]:
        """All of it for JSON."""
        names = ("rounds", "packets", "connections", "ended", "unsure", "differences", "missed")
        return {name: getattr(self, name) for name in names} | {"seconds": round(self.seconds), "seed": seed}


def row(figures: dict[str, Any]) -> tuple[str, str, str, str]:
    """Give the summary: what was pressed, probes, failures, worst time."""
    pressed = f"{figures['rounds']:,} configurations and as many changes"
    return pressed, f"{figures['packets']:,} packets", f"{figures['differences']}", ""


def section(figures: dict[str, Any]) -> Iterator[str]:
    """Lines of Markdown below the heading."""
    yield (
        f"{figures['rounds']:,} rounds from seed {figures['seed']} in {figures['seconds']} s:"
        f" {figures['packets']:,} packets, {figures['unsure']:,} of which `explain` could not judge;"
        f" {figures['connections']:,} connections, {figures['ended']:,} of which the change ended;"
        f" {figures['differences']} differences."
    )
    # A record of before tells none.
    if missed := figures.get("missed"):
        shown = ", ".join(f"`{guard}` in round {number}" for guard, number in missed.items() if number is not None)
        blind = ", ".join(f"`{guard}`" for guard, number in missed.items() if number is None)
        yield ""
        yield f"Guards that were taken away, and when packets showed that: {shown or 'none'}; not: {blind or 'none'}."
