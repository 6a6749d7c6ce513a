"""One rule of an nft text as rules of no language: which packets it takes, and what it does to them.

What is not understood does not stop the reading: the rule then may or may not take the packets that the rest of it
names.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address
from itertools import takewhile
from typing import Final

from fwdaemon.core.text import GrammarError, quote
from fwdaemon.core.types import PROTOCOL_NUMBERS, Address, PortRange, Protocol
from fwdaemon.importing.findings import port_range, read_port
from fwdaemon.importing.iptables_nat import Target
from fwdaemon.importing.nft_matching import (
    HEADS,
    NEGATIONS,
    OPERATORS,
    QUESTIONS,
    SHORT,
    Cursor,
    Key,
    Scope,
    compare,
    held,
    keys,
    pairs,
)
from fwdaemon.importing.nft_tables import Group, Item, Word, is_mark, line_of, shown
from fwdaemon.rulesets.rules import Action, End, Field, Jump, Match, Return, Rule, matching, one

# What an nft rule asks of TCP's flags, of which a connection's first packet has SYN only.
_FLAGS: Final = frozenset({"fin", "syn", "rst", "psh", "ack", "urg", "ecn", "cwr"})
_NONE: Final = ("0x0", "0", "0x00")
_OWN: Final = frozenset({"syn"})
_TCP: Final[Match] = {Field.PROTOCOL: one(Protocol.TCP.number)}


def compare_flags(cursor: Cursor) -> list[Match]:
    """Read `tcp flags …`, of which all but these two words are left, and give the packets it holds for.

    Raises:
        GrammarError: it is not understood.

    """
    mask = None
    if cursor.word() == "&":
        cursor.take()
        mask = _flags(cursor)
    is_asked, negated = cursor.word() in QUESTIONS, cursor.word() in NEGATIONS
    if is_asked:
        cursor.take()
    wanted = _flags(cursor)
    if cursor.word() == "/":
        cursor.take()
        mask = _flags(cursor)
    holds = bool(wanted & _OWN) if mask is None and not is_asked else wanted == (_OWN if mask is None else _OWN & mask)
    return [_TCP] if holds != negated else []


def _flags(cursor: Cursor) -> frozenset[str]:
    """Read flags, joined by `|` or commas, in brackets or not."""
    bracketed = cursor.word() == "("
    if bracketed:
        cursor.take()
    found: set[str] = set()
    while True:
        word = cursor.word()
        if word not in _FLAGS and word not in _NONE:
            raise GrammarError(f"{quote(word)} is no flag that is known")
        found |= {word} & _FLAGS
        cursor.take()
        if cursor.word() not in ("|", ","):
            break
        cursor.take()
    if bracketed:
        cursor.take()
    return frozenset(found)


# Where a `dnat` or a `redirect` of an nft rule leads.
_NFT_TARGETS_FLAGS: Final = ("random", "fully-random", "persistent")


def target_of(items: tuple[Item, ...]) -> Target:
    """Read `192.0.2.1`, `192.0.2.1:80`, or `192.0.2.1 . 80` of a map; raise `GrammarError` where it is another kind."""
    words = tuple(item for item in items if not is_mark(item, *_NFT_TARGETS_FLAGS))
    match [item.text if isinstance(item, Word) else "" for item in words]:
        case [address]:
            return Target(_address(address), None, None)
        case [address, ":" | ".", *ports] if ports:
            return Target(_address(address), _ports("".join(ports)), None)
    raise GrammarError(f"{quote(shown(items))} is not one address with its ports")


def _address(text: str) -> Address:
    try:
        return ip_address(text)
    except ValueError:
        raise GrammarError(f"{quote(text)} is not one address") from None


def _ports(text: str) -> PortRange:
    first, dash, last = text.partition("-")
    start = read_port(first)
    return port_range(start, read_port(last) if dash else start)


_STATEMENTS: Final[Mapping[str, tuple[str, ...]]] = {
    "counter": ("packets", "bytes", "name"),
    "log": ("prefix", "level", "group", "snaplen", "queue-threshold", "flags"),
    "last": ("used",),
}
_VERDICTS: Final[Mapping[str, Action]] = {
    "accept": End.ACCEPT,
    "drop": End.REFUSE,
    "reject": End.REFUSE,
    "return": Return(),
    "continue": None,
    **dict.fromkeys(("masquerade", "snat"), End.RENAME),
    **dict.fromkeys(("queue", "notrack", "tproxy", "fwd", "synproxy", "goto", "jump", "vmap", "dnat"), End.UNCLEAR),
    "redirect": End.TRANSLATE,
}
# Tests whose outcome cannot be foreseen; rules with them have a verdict of their own, or none.
_LIMITS: Final = frozenset({"limit", "quota", "meter"})
# What is asked of these headers, only packets that have them pass.
_OF_PROTOCOL: Final[Mapping[str, int]] = {name: PROTOCOL_NUMBERS[name] for name in ("icmp", "icmpv6", *Protocol)}
_WRITING: Final = frozenset({"set", "add", "update", "delete"})
_WITHOUT_VERDICT: Final = frozenset({*HEADS, *SHORT, *_LIMITS, "icmp", "icmpv6", "arp", "vlan", "rt", "socket", "dup"})


@dataclass(frozen=True, slots=True)
class NftRule(Rule):
    """A rule, with where it leads if it is a DNAT, and what in it is not followed."""

    target: Target | None = None
    doubt: str = ""


def read_rule(items: tuple[Item, ...], scope: Scope) -> list[NftRule]:
    """Read a rule: several where it has a map or a set of concatenations, and none where it decides nothing."""
    reader = _Reader(Cursor(items), scope, line_of(items))
    while not reader.cursor.done and reader.asked:
        reader.read_statement()
    return reader.rules


@dataclass(slots=True)
class _Reader:
    """Where the reading stands; `asked` are the packets that the rule is for so far, any of them."""

    cursor: Cursor
    scope: Scope
    line: int
    asked: list[Match] = field(default_factory=lambda: [{}])
    doubt: str = ""
    rules: list[NftRule] = field(default_factory=list)

    def read_statement(self) -> None:
        """Read a match, a verdict, or what is neither."""
        word = self.cursor.word()
        if word in _VERDICTS:
            self._verdict(word)
        elif word in _STATEMENTS:
            self._pass_over(word)
        elif word == "comment":
            self.cursor.take(2)
        elif word == "flow":
            self.cursor.take(3)
        elif word == "limit":
            self._limit()
        elif word in _WRITING and self.cursor.word(1).startswith("@"):
            self._fill_set()
        elif word in HEADS or word in SHORT:
            self._match(word)
        else:
            self._not_understood(word)

    def _pass_over(self, word: str) -> None:
        self.cursor.take()
        while self.cursor.word() in _STATEMENTS[word]:
            self.cursor.take(2)
            while self.cursor.word() == ",":
                self.cursor.take(2)

    def _limit(self) -> None:
        """Pass over `limit rate over 10/second burst 5 packets`, whose outcome cannot be foreseen."""
        begin = self.cursor.at
        self.cursor.take(2)
        if self.cursor.word() == "over":
            self.cursor.take()
        is_rate = self.cursor.word(-1) != "name" and "/" not in self.cursor.word()
        self.cursor.take(2 if is_rate else 1)
        if self.cursor.word() == "burst":
            self.cursor.take(3)
        self._doubt(quote(shown(self.cursor.items[begin : self.cursor.at])))

    def _fill_set(self) -> None:
        """Pass over what fills a set; with a limit in it, it is a test whose outcome is not known."""
        block = self.cursor.take(3)[-1]
        if isinstance(block, Group) and any(is_mark(item, *_LIMITS, "count") for item in block.items):
            self._doubt("its limit")

    def _doubt(self, what: str) -> None:
        self.doubt = self.doubt or what

    def _not_understood(self, word: str) -> None:
        """Pass over what is not understood, up to a verdict; without one it may be a verdict itself."""
        begin = self.cursor.at
        if (protocol := _OF_PROTOCOL.get(word)) is not None:
            self.asked = _both(self.asked, [{Field.PROTOCOL: one(protocol)}])
        while not self.cursor.done and (self.cursor.at == begin or self.cursor.word() not in _VERDICTS):
            self.cursor.take()
        self._doubt(quote(shown(self.cursor.items[begin : self.cursor.at])))
        if self.cursor.done and word not in _WITHOUT_VERDICT:
            self._add(self.asked, End.UNCLEAR)

    def _match(self, word: str) -> None:
        begin = self.cursor.at
        if _writes(self.cursor):
            self._pass_over_value()
            return
        if (word, self.cursor.word(1)) == ("tcp", "flags"):
            self._flags(begin)
            return
        looked_at = keys(self.cursor, self.scope)
        if looked_at is None or self.cursor.word() in OPERATORS:
            self.cursor.at = begin
            self._not_understood(word)
        elif self.cursor.word() == "vmap":
            self.cursor.take()
            self._verdict_map(looked_at)
        else:
            self._compare(begin, looked_at)

    def _flags(self, begin: int) -> None:
        self.cursor.take(2)
        try:
            self.asked = _both(self.asked, compare_flags(self.cursor))
        except GrammarError:
            self.cursor.at = begin
            self._not_understood("tcp")

    def _pass_over_value(self) -> None:
        """Pass over what a rule writes, marks and the like; a rule that asks for those is not followed."""
        while self.cursor.word() != "set":
            self.cursor.take()
        self.cursor.take()
        self.cursor.take(2 if self.cursor.word() in HEADS else 1)
        while self.cursor.word() in OPERATORS or self.cursor.word() == "map":
            self.cursor.take(3 if self.cursor.word(1) in HEADS else 2)

    def _compare(self, begin: int, looked_at: tuple[Key, ...]) -> None:
        try:
            found = compare(self.cursor, looked_at, self.scope)
        except GrammarError as error:
            while not self.cursor.done and self.cursor.word() in OPERATORS:
                self.cursor.take(2)
            self._doubt(f"{quote(shown(self.cursor.items[begin : self.cursor.at]))} ({error})")
            return
        self.asked = _both(self.asked, found)

    def _verdict_map(self, looked_at: tuple[Key, ...]) -> None:
        if not _is_possible(looked_at, self.scope):
            self.asked = []
            return
        try:
            found = pairs(self.cursor, self.scope)
        except GrammarError as error:
            self._doubt(f"its map ({error})")
            self._add(self.asked, End.UNCLEAR)
            return
        for key, value in found:
            with self._element(looked_at, key) as asked:
                self._add(asked, _simple(value))

    @contextmanager
    def _element(self, looked_at: tuple[Key, ...], key: tuple[Item, ...]) -> Iterator[list[Match]]:
        """Give what an element of a map asks for; where its key is not understood, it may be anything."""
        before = self.doubt
        try:
            asked = _both(self.asked, held(looked_at, [key], self.scope))
        except GrammarError as error:
            asked = self.asked
            self._doubt(f"{quote(shown(key))} ({error})")
        yield asked
        self.doubt = before

    def _verdict(self, word: str) -> None:
        rest = tuple(takewhile(lambda item: not is_mark(item, "comment"), self.cursor.take(len(self.cursor.items))))
        if word in ("dnat", "snat"):
            self._translate(rest, End.TRANSLATE if word == "dnat" else End.RENAME)
        else:
            self._add(self.asked, _simple(rest))

    def _translate(self, rest: tuple[Item, ...], end: End) -> None:
        cursor = Cursor(rest)
        # `to` need not be there, but nothing else stands before the target then.
        cursor.take(next((index for index, item in enumerate(rest) if is_mark(item, "to")), 0) + 1)
        begin = cursor.at
        looked_at = keys(cursor, self.scope) if cursor.word() in HEADS | SHORT else None
        if looked_at is None or cursor.word() != "map":
            cursor.at = begin
            self._send(self.asked, cursor.rest, end)
            return
        cursor.take()
        try:
            found = pairs(cursor, self.scope)
        except GrammarError as error:
            self._doubt(f"its map ({error})")
            self._add(self.asked, End.UNCLEAR)
            return
        for key, value in found:
            with self._element(looked_at, key) as asked:
                self._send(asked, value, end)

    def _send(self, asked: list[Match], value: tuple[Item, ...], end: End) -> None:
        try:
            target = target_of(value)
        except GrammarError as error:
            self._add(asked, end, said=str(error))
            return
        if target.address.version == self.scope.space.family:
            self._add(asked, end, target)

    def _add(self, asked: Iterable[Match], action: Action, target: Target | None = None, said: str = "") -> None:
        certain = not self.doubt
        for match in asked:
            self.rules.append(NftRule(self.line, match, action, certain, target, self.doubt or said))


def _writes(cursor: Cursor) -> bool:
    """Whether a statement sets what its first words name: `meta mark set 1`, `ct helper set "ftp"`, `mark set 1`."""
    return cursor.word(1 if cursor.word() in SHORT else 2) == "set"


def _is_possible(looked_at: Iterable[Key], scope: Scope) -> bool:
    return all(key.family in (None, scope.space.family) for key in looked_at)


def _both(some: Iterable[Match], others: Iterable[Match]) -> list[Match]:
    """Give the packets that one match of each asks for."""
    found = [matching([*one.items(), *other.items()]) for one in some for other in others]
    return [match for match in found if all(match.values())]


def _simple(items: tuple[Item, ...]) -> Action:
    """Read a verdict without a translation."""
    words = [item.text if isinstance(item, Word) else "" for item in items]
    match words:
        case ["jump" | "goto" as way, chain, *_] if chain:
            return Jump(chain, goto=way == "goto")
    return _VERDICTS.get(words[0], End.UNCLEAR) if words else End.UNCLEAR
