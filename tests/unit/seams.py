"""What a reconcile works on, in memory: the host's network, connections, other programs, and a clock."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace

from fwdaemon.core.conflicts import Conflict
from fwdaemon.core.exposures import Exposure, Nat
from fwdaemon.core.report import ApplyResult, Fault
from fwdaemon.core.state import Desired
from fwdaemon.core.types import Address, Family
from fwdaemon.errors import KernelError
from fwdaemon.kernel.conntrack_listing import Entry
from fwdaemon.netfilter import Netfilter
from fwdaemon.reconcile import Seams
from fwdaemon.resolve.flows import Flow, Judge, Strangers, is_claimed
from fwdaemon.triggers import Origin
from tests.unit.memory_backend import Kernel, MemoryBackend, NoProgram


@dataclass
class Host:
    """The host's network: what it was asked for, and `result`, what it says of that."""

    result: ApplyResult = field(default_factory=ApplyResult)
    confines: frozenset[Family] = frozenset()
    switches: frozenset[tuple[Family, str]] = frozenset()
    adopted: list[tuple[frozenset[Family], frozenset[tuple[Family, str]]]] = field(default_factory=list)
    released: list[Desired] = field(default_factory=list)
    kept: list[tuple[Desired, bool]] = field(default_factory=list)
    removed: list[frozenset[tuple[Family, str]]] = field(default_factory=list)
    closed: int = 0

    def adopt(self, confined: Collection[Family], switched: Collection[tuple[Family, str]]) -> None:
        self.adopted.append((frozenset(confined), frozenset(switched)))

    def confine(self, desired: Desired, *, ip_forward: bool) -> Desired:
        nothing = Desired()
        families, interfaces = (self.confines, self.switches) if ip_forward else (nothing.confined, nothing.switched)
        return desired.confining(families, frozenset(), interfaces)

    def release(self, desired: Desired) -> None:
        self.released.append(desired)

    def apply(self, desired: Desired, *, ip_forward: bool, full: bool = True, replugged: bool = False) -> ApplyResult:
        del ip_forward
        self.kept.append((desired, full or replugged))
        return self.result

    def remove(self, forwarded: frozenset[tuple[Family, str]]) -> ApplyResult:
        self.removed.append(forwarded)
        return self.result

    def close(self) -> None:
        self.closed += 1


@dataclass
class Connections:
    """Connection tracking: `flows`, some with one label alone in `labels`.

    `faults` are what the next listings fail with, `arrived` and `resumed` what was asked.
    """

    flows: list[Flow] = field(default_factory=list)
    labels: dict[Flow, int] = field(default_factory=dict)
    faults: list[KernelError | OSError] = field(default_factory=list)
    arrived: list[frozenset[Nat]] = field(default_factory=list)
    resumed: list[frozenset[Address]] = field(default_factory=list)

    def outdated(
        self, judge: Judge, label: int, guests: Collection[Address] | None = None, clients: Collection[Address] = ()
    ) -> Iterator[list[Entry]]:
        del guests, clients
        if self.faults:
            raise self.faults.pop()
        yield [Entry(flow, b"") for flow in self.flows if self._is_over(flow, judge, label)]

    def _is_over(self, flow: Flow, judge: Judge, label: int) -> bool:
        has = self.labels.get(flow, label) == label
        return judge.is_outdated(flow) if has else judge.is_misnamed(flow)

    def end(self, entries: Sequence[Entry]) -> int:
        for entry in entries:
            self.flows.remove(entry.flow)
        return len(entries)

    def end_claimed(self, added: Collection[Exposure], local: Collection[Address]) -> Sequence[Flow]:
        taken = [exposure for exposure in added if not hasattr(exposure, "subnet")]
        claimed = [flow for flow in self.flows if is_claimed(flow, [exposure.claim for exposure in taken], local)]
        self.end([Entry(flow, b"") for flow in claimed])
        return claimed

    def end_flows(self, flows: Collection[Flow]) -> int:
        return self.end([Entry(flow, b"") for flow in self.flows if flow in flows])

    def end_strayed(self, arrived: Collection[Nat]) -> int:
        self.arrived.append(frozenset(arrived))
        return 0

    def end_strangers(self, strangers: Strangers, label: int) -> int:
        found = [flow for flow in self.flows if self.labels.get(flow, label) != label and strangers.include(flow)]
        return self.end([Entry(flow, b"") for flow in found])

    def end_resumed(self, taken_over: Collection[Address]) -> int:
        self.resumed.append(frozenset(taken_over))
        return 0


@dataclass
class Others:
    """Other programs, and which of their ports they have reported."""

    found: tuple[Conflict | Fault, ...] = ()
    due: float | None = None

    def find(
        self,
        desired: Desired,
        local: Collection[Address],
        *,
        full: bool,
        reloaded: bool = False,
        origin: Origin = Origin.OTHERS,
    ) -> tuple[Conflict | Fault, ...]:
        del desired, local, full, reloaded, origin
        return self.found


@dataclass
class Clock:
    """Waits no time at all, and remembers for how long."""

    slept: list[float] = field(default_factory=list)
    now: float = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float, /) -> None:
        self.slept.append(seconds)


@dataclass
class Memory:
    """All of it."""

    kernel: Kernel = field(default_factory=Kernel)
    host: Host = field(default_factory=Host)
    connections: Connections = field(default_factory=Connections)
    others: Others = field(default_factory=Others)
    clock: Clock = field(default_factory=Clock)

    def rules(self) -> Netfilter:
        return Netfilter(NoProgram(), among=(MemoryBackend(self.kernel, "nftables"),))

    def seams(self) -> Seams:
        return Seams(self.rules(), self.host, self.connections, self.others, self.clock)


def without(desired: Desired, *exposures: Exposure) -> Desired:
    """Give the same state with these exposures gone."""
    return replace(
        desired,
        forwards=desired.forwards.difference(exposures),
        nats=desired.nats.difference(exposures),
        routes=desired.routes.difference(exposures),
    )
