"""The order in which the kernel calls base chains, and packets' way through all of one hook. Pure.

Priorities are those of netfilter_ipv4.h. Chains of type nat are called where the kernel's own NAT is, whatever their
priority says, which only orders them among themselves; the first that translates a connection is the last to be asked.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from fwdaemon.explain.evaluation import Judgement, Passage, pass_through
from fwdaemon.explain.packet import Packet, Place, State, Surroundings
from fwdaemon.explain.rules import BaseChain
from fwdaemon.model import Family

_NAT_AT: Final = {"prerouting": -100, "output": -100, "input": 100, "postrouting": 100}
_TRACKING_AT: Final = -200


@dataclass(frozen=True, slots=True)
class Way:
    """Packets' way through all chains of a hook, in order; `packets` are those that nobody refused for certain."""

    passages: tuple[Passage, ...]
    packets: frozenset[Packet]
    untracked_by: BaseChain | None = None

    @property
    def refused(self) -> bool:
        """Whether it ends in there for certain."""
        return any(passage.judgement is Judgement.REFUSES for passage in self.passages)


def through(
    chains: Iterable[BaseChain], hook: str, packets: Iterable[Packet], around: Surroundings, *, link: str = ""
) -> Way:
    """Follow packets through a hook; with `link`, that of an interface or bridge, and else that of their family."""
    found, passages = frozenset(packets), []
    untracked_by: BaseChain | None = None
    for chain in _in_order(chains, hook, found, link):
        passage = _ask(chain, found, around)
        if passage is None:
            continue
        passages.append(passage)
        if passage.judgement is Judgement.REFUSES:
            # What follows is looked at as if it had passed, so that everything wrong is told at once.
            passage = replace(passage, packets=found)
        if untracked_by is None and _all_untracked(passage.packets) and not _all_untracked(found):
            untracked_by = chain
        found = passage.packets
    return Way(tuple(passages), frozenset(map(_seen, found)), untracked_by)


def _in_order(chains: Iterable[BaseChain], hook: str, packets: Iterable[Packet], link: str) -> Sequence[BaseChain]:
    families = {"ip" if packet.family is Family.IPV4 else "ip6" for packet in packets} | {"inet"}
    wanted: Callable[[BaseChain], bool]
    if not link:
        wanted = lambda chain: chain.family in families  # noqa: E731  one of two ways to choose
    else:
        wanted = lambda chain: chain.family == "bridge" or link in chain.devices  # noqa: E731  the other
    return sorted((chain for chain in chains if chain.hook == hook and wanted(chain)), key=_order)


def _order(chain: BaseChain) -> tuple[int, int]:
    at = _NAT_AT.get(chain.hook, chain.priority) if chain.kind == "nat" else chain.priority
    return at, chain.priority


def _ask(chain: BaseChain, packets: frozenset[Packet], around: Surroundings) -> Passage | None:
    """Ask one chain; `None` where it sees none of the packets."""
    early = chain.hook in ("prerouting", "output") and chain.priority < _TRACKING_AT and chain.kind != "nat"
    if chain.hook == "ingress" or early:
        return pass_through(chain, map(_unseen, packets), around)
    packets = frozenset(map(_seen, packets))
    if chain.kind != "nat":
        return pass_through(chain, packets, around)
    asked = frozenset(packet for packet in packets if _wants_translation(packet, chain))
    if not asked:
        return None
    passage = pass_through(chain, asked, around)
    return replace(passage, packets=passage.packets | (packets - asked))


def _wants_translation(packet: Packet, chain: BaseChain) -> bool:
    if packet.state is not State.NEW:
        return False
    return chain.hook in ("input", "postrouting") or packet.translated_by is None


def _unseen(packet: Packet) -> Packet:
    return replace(packet, state=State.UNSEEN) if packet.state is State.NEW else packet


def _seen(packet: Packet) -> Packet:
    return replace(packet, state=State.NEW) if packet.state is State.UNSEEN else packet


def _all_untracked(packets: frozenset[Packet]) -> bool:
    return bool(packets) and all(packet.state is State.UNTRACKED for packet in packets)


def translations(packets: Iterable[Packet]) -> Iterator[Place]:
    """Give the rules that translated packets, each once."""
    yield from dict.fromkeys(packet.translated_by for packet in packets if packet.translated_by is not None)
