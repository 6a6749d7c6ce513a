"""One round after the other: a configuration in the kernel, packets through it, and what each came to."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from fwdaemon.connections import Sweep, Sweeper, close_everything
from fwdaemon.core.admission import Ranges
from fwdaemon.core.state import Desired
from fwdaemon.core.types import Family
from fwdaemon.explain.gather import Kernel
from fwdaemon.kernel.process import SystemRunner
from fwdaemon.legacy.backend import LegacyBackend
from fwdaemon.netfilter import Backend
from fwdaemon.nftables.backend import NftablesBackend
from fwdaemon.resolve import placement
from fwdaemon.resolve.flows import renamings
from fwdaemon.rulesets.packet import BaseChain
from tests.packets import drawing, theirs
from tests.packets.outliving import answer_to, answered, fate_of_answer, fate_of_more
from tests.packets.plan import HOLDER, LOCAL, inventory
from tests.packets.prediction import predict
from tests.packets.promise import ACK, Fate, Packet, Place, fate, is_forged
from tests.packets.taken_away import Theft
from tests.packets.world import Arrival, World, same
from tests.unit.configurations import accepted

Arrived = dict[int, list[Arrival]]
_HOST = inventory()
_RANGES = {(family, "banned"): Ranges(theirs.banned(family)) for family in Family}
# Numbers of answers, and of what clients send later, start here.
_ANSWERS, _ANSWERS_LATER, _LATER = 100_000, 200_000, 300_000


@dataclass(slots=True)
class Result:
    """What was sent, and where any two disagreed."""

    packets: int = 0
    delivered: int = 0
    unsure: int = 0
    connections: int = 0
    ended: int = 0
    differences: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Side:
    """One rule system of the host."""

    world: World
    backend: Backend
    legacy: bool


@contextmanager
def side(world: World, *, legacy: bool) -> Iterator[Side]:
    """Use one rule system, and leave nothing in it."""
    backend = LegacyBackend() if legacy else NftablesBackend(SystemRunner())
    try:
        yield Side(world, backend, legacy)
    finally:
        backend.remove()
        if isinstance(backend, LegacyBackend):
            backend.close()


def play(on: Side, seed: int, number: int, *, theft: Theft | None = None, sweeping: bool = True) -> Result:
    """Play the round that a seed draws, with a guard taken away, or with no connection ended."""
    lot = random.Random(seed)  # noqa: S311  what is drawn is to be drawn again
    head = drawing.head(lot) if has_sets(seed) else drawing.HEAD
    before, entries = drawing.place(lot, head)
    sent = list(drawing.packets(lot, before.config, range(number)))
    config, changed = drawing.changed(lot, entries, head)
    after = replace(before, config=config, refusals=before.refusals + drawing.more_refusals(lot, before.refusals))
    if is_flushed(seed):
        (config, changed), after = accepted([], drawing.HEAD), replace(after, turned_on=False, gone=True)
        after = replace(after, config=config)
    stages = Stage(before, entries), Stage(after, changed)
    new = list(drawing.packets(lot, after.config, range(number, number + number // 2)))
    return Round(on, stages, sent, theft, new=new, sweeping=sweeping).play()


def has_sets(seed: int) -> bool:
    """Whether a round has sets, and entries that ask for them."""
    return seed % 2 == 1


def is_flushed(seed: int) -> bool:
    """Whether in a round everything is taken away that is ours, instead of another configuration coming into force."""
    return seed % 10 == 0


@dataclass(frozen=True, slots=True)
class Stage:
    """What is in force at a time, and the entries of its configuration as text."""

    place: Place
    entries: list[str]


class Round:
    """Packets through one stage, and on their connections through the next; there, `new` ones begin others."""

    def __init__(  # noqa: PLR0913  what is played, and how
        self,
        on: Side,
        stages: tuple[Stage, Stage],
        sent: Sequence[Packet],
        theft: Theft | None = None,
        *,
        new: Sequence[Packet] = (),
        sweeping: bool = True,
    ) -> None:
        self._on, self._sent, self._new, self._theft, self._sweeping = on, sent, new, theft, sweeping
        self._now, self._next = stages
        self._result = Result(packets=len(sent) + len(new))
        self._live = Desired()

    def play(self) -> Result:
        """Play it once."""
        theirs.load(self._on.world.host, self._now.place, legacy=self._on.legacy)
        self._apply(self._now.place)
        self._go_on(self._begin("first", self._sent))
        self._begin("first after the change", self._new)
        return self._result

    def _begin(self, what: str, sent: Sequence[Packet]) -> Arrived:
        """Send packets that are the first of their connections; all four have to agree on these."""
        chains = Kernel(SystemRunner()).chains()
        arrived = self._on.world.send(sent)
        for packet in sent:
            self._compare(what, packet, fate(self._now.place, packet), arrived)
            self._foretold(chains, packet, arrived)
        return arrived

    def _apply(self, place: Place) -> None:
        confined = frozenset(Family) if place.turned_on else frozenset[Family]()
        desired = placement.desired_state(place.config, _HOST).keeping(self._live.families)
        desired = desired.confining(confined, frozenset())
        result = self._on.backend.apply(desired, full=True)
        assert not result.faults, result.faults
        if desired.has_external:
            theirs.ban(self._on.world.host, legacy=self._on.legacy)
        gone, come = self._live.exposures - desired.exposures, desired.exposures - self._live.exposures
        if self._live.exposures and self._sweeping:
            sweeper = Sweeper(self._on.backend.refuse)
            keeper = desired.gatekeeper(_RANGES)
            sweeper.sweep(Sweep(desired.exposures, desired.label, tuple(LOCAL), gone, come, gatekeeper=keeper))
            assert sweeper.wait()
        self._live = desired
        if self._theft:
            self._theft(self._on.world.host, self._on.legacy)

    def _go_on(self, arrived: Arrived) -> None:
        """Have receivers answer, change the configuration, and have both ends send again."""
        open_ = {
            packet.number: (packet, arrived[packet.number][0])
            for packet in self._sent
            if self._is_open(packet, arrived)
        }
        answers = {n: _answer(packet, met, _ANSWERS) for n, (packet, met) in open_.items() if met.fate.where != "host"}
        self._expect("answer", {n: (answers[n], answered(open_[n][0])) for n in answers})
        before, after = self._now.place, self._next.place
        self._now = self._next
        theirs.refuse(self._on.world.host, after.refusals[len(before.refusals) :], legacy=self._on.legacy)
        self._change(after)
        later = {n: replace(answer, number=n + _ANSWERS_LATER, flags=ACK) for n, answer in answers.items()}
        told = {n: fate_of_answer(before, after, open_[n][0], answer) for n, answer in later.items()}
        self._result.connections += len(told)
        self._result.ended += sum(told[n] != answered(open_[n][0]) for n in told)
        more = {n: replace(packet, number=n + _LATER, flags=ACK) for n, (packet, _) in open_.items()}
        sent = {
            "answer after the change": {n: (later[n], told[n]) for n in told},
            "next after the change": {
                n: (packet, fate_of_more(before, after, packet, answers.get(n))) for n, packet in more.items()
            },
        }
        # Where nothing refuses what was ended, an answer may begin what its client's next packet would belong to.
        for what in sorted(sent, reverse=after.gone):
            self._expect(what, sent[what])

    def _change(self, after: Place) -> None:
        if not after.gone:
            return self._apply(after)
        result = close_everything(self._on.backend, self._live.label, left=renamings(self._live.nats))
        assert not result.faults, result.faults
        self._live = Desired()
        return None

    def _is_open(self, packet: Packet, arrived: Arrived) -> bool:
        """Whether it may have begun a connection that both ends can go on with; the host itself ends those of TCP."""
        own = HOLDER[packet.source] == packet.sender == packet.mac and not is_forged(self._now.place.config, packet)
        met = arrived.get(packet.number, ())
        return own and len(met) == 1 and (packet.protocol == "udp" or met[0].fate.where != "host")

    def _expect(self, what: str, expected: dict[int, tuple[Packet, Fate | None]]) -> None:
        arrived = self._on.world.send(packet for packet, _ in expected.values())
        for packet, told in expected.values():
            self._compare(what, packet, told, arrived)

    def _compare(self, what: str, packet: Packet, expected: Fate | None, arrived: Arrived) -> None:
        met = arrived.get(packet.number, [])
        self._result.delivered += bool(met)
        if not same(expected, met):
            told = [f"{what}: {packet}", f"  promised {expected}", f"  came to {met}"]
            self._result.differences.append("\n".join([*told, *self._now.entries, *map(str, self._now.place.refusals)]))

    def _foretold(self, chains: Sequence[BaseChain], packet: Packet, arrived: Arrived) -> None:
        prediction, met = predict(chains, packet), arrived.get(packet.number, [])
        self._result.unsure += not prediction.certain
        if not prediction.fits(packet, met[0].fate if met else None):
            self._result.differences.append(f"explain: {packet}\n  foretold {prediction}\n  came to {met}")


def _answer(packet: Packet, met: Arrival, base: int) -> Packet:
    return answer_to(packet, met.fate, met.source_port, packet.number + base)


def entries_of(seed: int) -> str:
    """Say what a seed draws."""
    lot = random.Random(seed)  # noqa: S311  the same lot
    place, entries = drawing.place(lot, drawing.head(lot) if has_sets(seed) else drawing.HEAD)
    said = {"forwarding was turned on": place.turned_on, "libvirt's refusals were flushed": place.flushed}
    return "\n".join([*entries, *map(str, place.refusals), *(text for text, is_so in said.items() if is_so)])
