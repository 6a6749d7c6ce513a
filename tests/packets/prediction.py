"""What the evaluator that `explain` uses foretells of a packet, from the rules that the kernel lists."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fwdaemon.core.types import Address, Family, Protocol
from fwdaemon.rulesets import packet as explained
from fwdaemon.rulesets.evaluation import Judgement, Way, through
from fwdaemon.rulesets.packet import BaseChain
from tests.packets.plan import HOLDER, LINK, LOCAL, NETWORKS
from tests.packets.promise import Fate, Packet


@dataclass(frozen=True, slots=True)
class Prediction:
    """Where a packet comes to, and whether its source is another there; without a place, it is refused.

    `certain` is not so where some rule asks what the evaluator does not know, as a MAC address.
    """

    certain: bool
    where: str | None = None
    to: Address | None = None
    port: int | None = None
    renamed: bool = False

    def fits(self, packet: Packet, met: Fate | None) -> bool:
        """Whether it agrees with what came of the packet."""
        if not self.certain:
            return True
        if met is None or self.where is None:
            return met is None and self.where is None
        return (self.where, self.to, self.port, self.renamed) == (
            met.where,
            met.to,
            met.port,
            met.source != packet.source,
        )


def predict(chains: Sequence[BaseChain], packet: Packet) -> Prediction:
    """Follow the first packet of a connection through all rules, from the link it comes in by."""
    around = explained.Surroundings(
        {address: frozenset({link}) for address, link in LOCAL.items()},
        tuple(NETWORKS),
        LINK.get(HOLDER.get(packet.source, ""), "eth0"),
    )
    entering = through(chains, "prerouting", [_first(packet)], around)
    ways, found = [entering], entering.packets
    (to,) = {item.destination for item in found}
    assert to is not None
    if to in LOCAL:
        ways.append(through(chains, "input", found, around))
    else:
        for hook in ("forward", "postrouting"):
            ways.append(
                through(chains, hook, [replace(item, goes_out=LINK[HOLDER[to]]) for item in ways[-1].packets], around)
            )
    return _judged(ways, "host" if to in LOCAL else HOLDER[to])


def _first(packet: Packet) -> explained.Packet:
    return explained.Packet(
        Family.of(packet.to),
        Protocol(packet.protocol),
        packet.source,
        packet.to,
        packet.port,
        (packet.to, packet.port),
        packet.source_port,
        LINK[packet.sender],
    )


def _judged(ways: Sequence[Way], where: str) -> Prediction:
    if any(way.refused for way in ways):
        return Prediction(certain=True)
    ends = {(item.destination, item.port, item.renamed) for item in ways[-1].packets}
    unsure = any(passage.judgement is Judgement.MAY_REFUSE for way in ways for passage in way.passages)
    if unsure or len(ends) != 1:
        return Prediction(certain=False)
    ((to, port, renamed),) = ends
    return Prediction(True, where, to, port, renamed)  # noqa: FBT003  fields in their order
