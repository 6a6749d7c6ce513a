"""What a run is counted as, and the section of the page that is made of it."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.chaos.actions import Action
from tests.lab.host import Host
from tests.robustness.record import machine

INTRODUCTION = """\
A fault is drawn by lot, round after round. After each one the whole truth is compared: what must answer and what must
not, our rules as `nft` and `iptables-legacy-save` list them, everybody else's rules byte for byte (line by line where
libvirt itself has just written its own anew), the daemon's descriptors, threads and children.

The host has what an administrator may use. Others add to an external set, take out of it, flush it, and wipe it with
its table, also while the daemon is dead; what the daemon has seen of it comes back. The file of a set is replaced, or
broken or removed: then what was read before stays. Who is in either set is denied everything. Of two forwards, one is
limited by rate for each source, and one by open connections: a new client gets as much as it may and no more, another
is served meanwhile, and the journal has where a connection began and ended. A domain asks for ports in its own
definition, for what it may have, what it may not, and with malice. Ports that were assigned stay the same throughout.
`reload` loads another configuration to be confirmed: `confirmed` stays, `lapsed` is not confirmed, and `killed` is not
either, with the daemon killed meanwhile; the one before has to be back. With `keep_guests_online`, guests reach the
outside in every round, also when another program has FORWARD refuse by its policy, as Docker does.

In every state that a fault leaves, packets are sent that must get nowhere: from a guest to the host's 127.0.0.1, with
guests' addresses from outside, with the address of a 1:1 guest from its neighbour, from whom a set denies, and to ports
that nothing publishes.
All the time a guest floods its network with ARP and neighbour discovery, forged datagrams come from outside, and junk
comes to the control socket and the port of the metrics.

`take` leaves the host short of something until `give-back`: room in /run or /var, threads, descriptors, a journal that
reads, the lock of iptables, `nft` or its time; `connections` and `elements` are 100,000 of others each. What the daemon
cannot do meanwhile must not end it, and all has to be right afterwards.

Three TCP streams and one of numbered datagrams go through forwards that no round touches, one more was opened by a 1:1
guest itself, and none may lose anything. They pause where no host could carry them: when `nft flush ruleset` takes the
last NAT rule, when a foreign rule that refuses everything is put ahead of all others, and while libvirt writes its own
rules anew after a wipe. The very same connections have to go on afterwards. `flush`, and a stop that removes
everything, have to end them instead and leave nothing behind; a stop that keeps everything has to leave it exactly as
it was. `open` opens a port for a while, which comes back with the daemon until `close`; with `open-briefly`, it ends on
time, in that very round, with the daemon running, stopped or killed.

*Worst* is the longest time from the end of a fault until everything was right again, on a machine as busy as it was.
Where none is given, the fault left a state, such as the daemon killed, in which that could not be asked.
"""


@dataclass(slots=True)
class Figures:
    """The figures of one run. Times are in seconds."""

    rounds: int = 0
    probes: int = 0
    tries: int = 0
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

    def record(self, seed: int) -> dict[str, Any]:
        """All of it for JSON."""
        names = ("rounds", "probes", "tries", "bytes", "datagrams", "failures", "lost")
        counted = {"seconds": round(self.seconds), "counts": dict(self.counts), "worst": dict(self.worst)}
        return {name: getattr(self, name) for name in names} | counted | {"seed": seed}


def row(figures: dict[str, Any]) -> tuple[str, str, str, str]:
    """Give the summary: what was pressed, probes, failures, worst time."""
    pressed = f"{figures['rounds']:,} faults of {len(figures['counts'])} kinds"
    worst = max(figures["worst"].values(), default=0.0)
    return pressed, f"{figures['probes']:,}", f"{figures['failures']}", f"{worst:.1f} s"


def section(figures: dict[str, Any]) -> Iterator[str]:
    """Lines of Markdown below the heading."""
    carried = f"{figures['bytes'] / 1e6:.0f} MB in streams and {figures['datagrams']:,} datagrams"
    # An older record has none.
    tries = f"{figures['tries']:,} packets that must get nowhere, " if "tries" in figures else ""
    lost = "broken" if figures["lost"] else "nothing lost"
    yield (
        f"{figures['rounds']:,} rounds (seed {figures['seed']}) in {figures['seconds']} s,"
        f" {figures['probes']:,} probes, {tries}{figures['failures']} failures; {carried}, {lost}."
    )
    yield ""
    yield "| fault | times | worst |"
    yield "| --- | ---: | ---: |"
    worst = figures["worst"]
    for label, count in sorted(figures["counts"].items()):
        yield f"| {label} | {count} | {f'{worst[label]:.2f} s' if label in worst else 'not asked'} |"


def versions(host: Host) -> str:
    """Name what it ran on."""
    asked = (("libvirtd", "--version"), ("nft", "--version"), ("iptables", "--version"))
    programs = [host.run(*words).stdout.strip() for words in asked]
    return "; ".join([machine(), f"{host.flavour}", *programs])
