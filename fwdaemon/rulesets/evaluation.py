"""What becomes of packets in a base chain, and whether its rules look at who the client is. Pure.

Where it is unknown whether a rule matches, both cases are followed. A chain refuses only if every case ends so; if
some do, it may refuse.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from ipaddress import ip_address
from typing import Any, Final, TypeAlias

from fwdaemon.core.bans import Judge, Kind, read_iptables
from fwdaemon.core.types import Address, Family
from fwdaemon.rulesets.packet import (
    OURS,
    BaseChain,
    Chains,
    Change,
    Choice,
    End,
    Jump,
    Match,
    Packet,
    Return,
    Rule,
    RuleLocation,
    State,
    Statement,
    Surroundings,
    System,
    Translate,
    Tristate,
    Verdict,
    owner_of,
)

# Cases differ in marks and labels only; where there are more than this, both count as unknown.
_MOST_CASES = 16
# The kernel allows 16 jumps in nftables (NFT_JUMP_STACK_SIZE); only a listing that is broken has more.
_DEEPEST = 64


class Judgement(StrEnum):
    """What a chain does."""

    ACCEPTS = "accepts"
    REFUSES = "refuses"
    MAY_REFUSE = "may refuse"


@dataclass(frozen=True, slots=True)
class Passage:
    """Packets' way through a base chain: who refuses them, or may, and what they are like after it.

    What decides there because of who the client is: `selects` are rules that let another client go on, and
    `spares_others` says that another may get through, and `asks_who` that rules of the chain look at the client at all,
    which is reported only where all packets are refused. A mark may stand for clients that an earlier rule picked out:
    `by_mark` says that another mark or label may lead elsewhere, and `marked_by` who gave the packets theirs.
    """

    chain: BaseChain
    judgement: Judgement
    culprit: RuleLocation | None
    packets: frozenset[Packet]
    selects: frozenset[RuleLocation] = frozenset()
    spares_others: bool = False
    asks_who: bool = False
    by_mark: bool = False
    marked_by: RuleLocation | None = None


_Ending: TypeAlias = tuple[End, RuleLocation, Packet]


@dataclass(slots=True)
class _Cases:
    """What may have become of a packet: still in the chain, back from it, or at an end."""

    staying: set[Packet] = field(default_factory=set)
    returned: set[Packet] = field(default_factory=set)
    ended: list[_Ending] = field(default_factory=list)


def pass_through(chain: BaseChain, packets: Iterable[Packet], surroundings: Surroundings) -> Passage:
    """Follow packets through a base chain."""
    packets = frozenset(packets)
    walker = _Walker(chain.chains, surroundings)
    ended: list[_Ending] = []
    selects: set[RuleLocation] = set()
    spares_others = by_mark = False
    for packet in packets:
        found = _endings(walker, chain, packet)
        others = _endings(walker, chain, packet.of_client(None))
        ended += found
        selects |= _selecting(found, others)
        spares_others |= any(end is not End.REFUSE for end, _, _ in others)
        by_mark |= _outcomes(found) != _outcomes(_endings(walker, chain, packet.marked_anyhow()))
    accepted = frozenset(packet for end, _, packet in ended if end is not End.REFUSE)
    refusals = [location for end, location, _ in ended if end is not End.ACCEPT]
    passage = Passage(
        chain,
        _judge(ended),
        refusals[0] if refusals else None,
        accepted,
        frozenset(selects),
        spares_others,
        by_mark=by_mark,
        marked_by=next(filter(None, (packet.marked_by for packet in packets)), None),
    )
    if passage.judgement is not Judgement.REFUSES:
        return passage
    # Only the last of several is certain to be reached.
    return replace(passage, culprit=refusals[-1], asks_who=asks_who(chain, packets, surroundings))


def _endings(walker: "_Walker", chain: BaseChain, packet: Packet) -> list[_Ending]:
    """Give every way in which a packet's passage may end, in the order of the rules."""
    policy = End.ACCEPT if chain.accepts else End.REFUSE
    cases = walker.walk(chain.name, {packet}, 0)
    return [*cases.ended, *((policy, chain.policy, left) for left in cases.staying | cases.returned)]


def _selecting(found: Iterable[_Ending], others: Iterable[_Ending]) -> set[RuleLocation]:
    """Give the rules that end this client's way for certain, and not that of every other."""
    ends = [location for _, location, _ in found]
    beyond = [location for _, location, _ in others]
    return {
        location for location in ends if location in beyond and not set(beyond[beyond.index(location) :]) <= set(ends)
    }


def _outcomes(ended: Iterable[_Ending]) -> set[tuple[End, RuleLocation | None, State]]:
    """Give what may become of a packet in a chain, whichever rule does it."""
    return {(end, packet.translated_by, packet.state) for end, _, packet in ended}


def _judge(ended: Iterable[_Ending]) -> Judgement:
    ends = {end for end, _, _ in ended}
    if ends <= {End.ACCEPT}:
        return Judgement.ACCEPTS
    return Judgement.REFUSES if ends == {End.REFUSE} else Judgement.MAY_REFUSE


class _Walker:
    def __init__(self, chains: Chains, surroundings: Surroundings) -> None:
        self._chains = chains
        self._surroundings = surroundings

    def walk(self, name: str, packets: set[Packet], depth: int) -> _Cases:
        """Follow packets through a chain by name; one that is not there does nothing."""
        cases = _Cases(staying=packets)
        if depth > _DEEPEST:
            return cases
        for rule in self._chains.get(name, ()):
            staying: set[Packet] = set()
            for packet in cases.staying:
                staying |= self._apply(rule, packet, cases, depth)
            cases.staying = _few(staying)
            if not staying:
                break
        return cases

    def _apply(self, rule: Rule, packet: Packet, cases: _Cases, depth: int) -> set[Packet]:
        """Apply one rule: gives what goes on to the next one."""
        current, tristate = packet, Tristate.YES
        for statement in rule.statements:
            match statement:
                case Match(test):
                    holds = test(current, self._surroundings)
                    if holds is Tristate.NO:
                        # What an earlier statement changed stays changed.
                        break
                    tristate = min(tristate, holds)
                case Change(change):
                    current = _marked(current, change(current), rule.location)
                case Choice(choose):
                    return self._choose(choose(current, self._surroundings), rule, current, cases, depth) | _if_unsure(
                        tristate, packet
                    )
                case _:
                    return self._end(statement, rule, current, cases, depth) | _if_unsure(tristate, packet)
        return {current} | _if_unsure(tristate, packet)

    def _choose(
        self, choices: Iterable[tuple[Tristate, Statement]], rule: Rule, packet: Packet, cases: _Cases, depth: int
    ) -> set[Packet]:
        staying: set[Packet] = set()
        for tristate, statement in choices:
            if tristate is not Tristate.NO:
                staying |= self._end(statement, rule, packet, cases, depth)
            if tristate is Tristate.YES:
                return staying
        return staying | {packet}

    def _end(self, statement: Statement, rule: Rule, packet: Packet, cases: _Cases, depth: int) -> set[Packet]:
        """Carry out a verdict: gives what goes on in this chain."""
        match statement:
            case Verdict(end):
                cases.ended.append((end, rule.location, packet))
            case Translate(translate):
                cases.ended.append((End.ACCEPT, rule.location, translate(packet, rule.location)))
            case Jump(chain, goto):
                below = self.walk(chain, {packet}, depth + 1)
                cases.ended += below.ended
                back = below.staying | below.returned
                if not goto:
                    return back
                cases.returned |= back
            case Return():
                cases.returned.add(packet)
            case _:  # a verdict map may say `continue`
                return {packet}
        return set()


def _if_unsure(tristate: Tristate, packet: Packet) -> set[Packet]:
    return {packet} if tristate is Tristate.UNKNOWN else set()


def _few(packets: set[Packet]) -> set[Packet]:
    if len(packets) <= _MOST_CASES:
        return packets
    return {packet.marked_anyhow() for packet in packets}


def _marked(before: Packet, after: Packet, by: RuleLocation) -> Packet:
    """Note who gave a packet a mark, us aside; a copy from or to its connection's is none of its own."""
    copied = {after.mark, after.connmark} <= {before.mark, before.connmark} and after.labels == before.labels
    return after if copied or owner_of(by) == OURS else replace(after, marked_by=by)


# The order in which the kernel calls base chains, and packets' way through all of one hook. Pure.
#
# Priorities are those of netfilter_ipv4.h. Chains of type nat are called where the kernel's own NAT is, whatever their
# priority says, which only orders them among themselves; the first that translates a connection is the last to be
# asked.
_NAT_AT: Final = {"prerouting": -100, "output": -100, "input": 100, "postrouting": 100}
_TRACKING_AT: Final = -200


@dataclass(frozen=True, slots=True)
class Way:
    """Packets' way through all chains of a hook, in order; `packets` are those that were not refused for certain."""

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
            # What follows is looked at as if it had passed, so that everything wrong is reported at once.
            passage = replace(passage, packets=found)
        if untracked_by is None and _all_untracked(passage.packets) and not _all_untracked(found):
            untracked_by = chain
        found = passage.packets
    return Way(tuple(passages), frozenset(map(_seen, found)), untracked_by)


def _in_order(chains: Iterable[BaseChain], hook: str, packets: Iterable[Packet], link: str) -> Sequence[BaseChain]:
    families = {packet.family.word for packet in packets} | {"inet"}
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


def translations(packets: Iterable[Packet]) -> Iterator[RuleLocation]:
    """Give the rules that translated packets, each once."""
    yield from dict.fromkeys(packet.translated_by for packet in packets if packet.translated_by is not None)


# Whether rules look at who the client is: what distinguishes clients was put there on purpose. Pure.

# A packet without a mark.
_NO_MARKS: Final[Mapping[str, Any]] = {"mark": 0, "connmark": 0, "labels": frozenset()}
# Documentation addresses, for a client that no list is likely to hold.
_SOMEONE: Final[dict[Family, Address]] = {
    Family.IPV4: ip_address("192.0.2.254"),
    Family.IPV6: ip_address("2001:db8:ffff::fffe"),
}


def asks_who(chain: BaseChain, packets: Collection[Packet], around: Surroundings) -> bool:
    """Whether a rule of a base chain, or of one it leads to, distinguishes clients, or marks, which may be of some."""
    rules = [rule for name in _reached(chain.chains, chain.name) for rule in chain.chains.get(name, ())]
    return any(_is_ban(rule) or any(_tells_apart(rule, packet, around) for packet in packets) for rule in rules)


def _reached(chains: Chains, start: str) -> Iterator[str]:
    """Name the chains that packets may come to, each once."""
    waiting, seen = [start], {start}
    while waiting:
        name = waiting.pop()
        yield name
        jumps = (item.chain for rule in chains.get(name, ()) for item in rule.statements if isinstance(item, Jump))
        new = [target for target in jumps if target not in seen]
        seen.update(new)
        waiting += new


def _is_ban(rule: Rule) -> bool:
    """Whether a rule of iptables names sources, also by a set, whose elements are not read here."""
    if rule.location.system is System.NFTABLES:
        return False
    return Judge(()).kind(read_iptables(rule.location.text)) is Kind.BAN


def _tells_apart(rule: Rule, packet: Packet, around: Surroundings) -> bool:
    someone = _SOMEONE[packet.family]
    pairs = [
        (packet.of_client(None), packet.of_client(someone)),
        (replace(packet, **_NO_MARKS), packet.marked_anyhow()),
    ]
    if packet.state is State.ESTABLISHED:
        # What asks for a source, and stops an answer by that, asks for the client where that has its turn.
        pairs.append((replace(packet, source=None), replace(packet, source=someone)))
    return any(_differs(rule, *pair, around) for pair in pairs)


def _differs(rule: Rule, one: Packet, other: Packet, around: Surroundings) -> bool:
    """Whether a rule treats two packets in different ways."""
    for statement in rule.statements:
        match statement:
            case Match(test) if test(one, around) is not test(other, around):
                return True
            case Choice(choose):
                truths = [[truth for truth, _ in choose(packet, around)] for packet in (one, other)]
                if truths[0] != truths[1]:
                    return True
    return False
