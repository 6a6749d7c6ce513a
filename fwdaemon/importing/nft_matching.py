"""What an nft rule asks of packets: its comparisons, one by one, and the elements of sets and maps."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Final

from fwdaemon.core.text import GrammarError, quote
from fwdaemon.core.types import PROTOCOL_NUMBERS, Family
from fwdaemon.importing.nft_tables import Group, Item, NamedSet, Word, elements_of, is_mark, shown, split
from fwdaemon.rulesets.rules import EMPTY, LAST_PORT, LAST_PROTOCOL, Field, Match, Space, Spans, matching, one
from fwdaemon.rulesets.xt_matches import Services

# What nft's rules compare, and with what: the words of nft(8) for a connection's first packet.
#
# A reader raises `GrammarError` where it cannot tell; the rule then may or may not match.
_NAMES: Final = {number: name for name, number in PROTOCOL_NUMBERS.items()}
_BEFORE, _AFTER, _ALWAYS = one(0), one(1), Spans(((0, 1),))
_LONGEST_NUMBER: Final = 5
INTERFACES: Final = frozenset({"iif", "iifname", "oif", "oifname"})


@dataclass(frozen=True, slots=True)
class Key:
    """What a rule looks at: a field, or a property that `words` name, each with the `TRANSLATED` it holds for.

    `header` are the packets that have it at all, and `family` is the one whose packets do.
    """

    side: Field = Field.TRANSLATED
    words: Mapping[str, Spans] | None = None
    header: Match = field(default_factory=dict)
    family: Family | None = None

    def holding(self, items: tuple[Item, ...], space: Space, services: Services) -> Match:
        """Give what is asked by comparing with one value."""
        text = "".join(item.text for item in items if isinstance(item, Word))
        if text == "*":
            return self.header
        if self.words is not None:
            return matching([*self.header.items(), (Field.TRANSLATED, self.words.get(text, EMPTY))])
        return matching([*self.header.items(), (self.side, self._spans(text, space, services))])

    def _spans(self, text: str, space: Space, services: Services) -> Spans:
        if not text or text[0] in "$@":
            raise GrammarError(f"nothing here says what {quote(text)} is")
        try:
            match self.side:
                case Field.SOURCE | Field.DESTINATION | Field.WANTED:
                    return _addresses(text, space)
                case Field.PORT | Field.WANTED_PORT:
                    protocol = self.header.get(Field.PROTOCOL)
                    return _ports(text, services, _NAMES.get(protocol.ranges[0][0], "") if protocol else "tcp")
                case Field.PROTOCOL:
                    return _protocols(text)
        except (ValueError, KeyError):
            raise GrammarError(f"{quote(text)} is not understood") from None
        if (pattern := pattern_of(text)) not in space.interfaces:
            raise GrammarError(f"{quote(text)} is no interface that is known by its name")
        return space.interfaces_like(pattern)


def pattern_of(text: str) -> str:
    """Give a pattern of interfaces in the words of `Space`."""
    return f"{text[:-1]}+" if text.endswith("*") else text


def _addresses(text: str, space: Space) -> Spans:
    if "-" not in text:
        return space.addresses_in(text)
    first, last = map(ip_address, text.split("-"))
    if {first.version, last.version} != {space.family}:
        raise ValueError(text)
    return Spans.of([(int(first), int(last))])


def _ports(text: str, services: Services, protocol: str) -> Spans:
    if (port := services(text, protocol)) is not None:
        return one(port)
    first, dash, last = text.partition("-")
    start = _number(first, LAST_PORT)
    return Spans.of([(start, _number(last, LAST_PORT) if dash else start)])


def _number(text: str, last: int) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > _LONGEST_NUMBER or int(text) > last:
        raise ValueError(text)
    return int(text)


def _protocols(text: str) -> Spans:
    if text in PROTOCOL_NUMBERS:
        return one(PROTOCOL_NUMBERS[text])
    first, dash, last = text.partition("-")
    start = _number(first, LAST_PROTOCOL)
    return Spans.of([(start, _number(last, LAST_PROTOCOL) if dash else start)])


def key_of(words: tuple[str, ...]) -> Key | None:
    """Give what a rule looks at by these words, if it is known."""
    match words:
        case ("fib", *rest):
            return _fib(rest)
        case ("ct", "original", *rest):
            return _wanted(rest)
        case ("ip" | "ip6" as name, "saddr" | "daddr" | "protocol" | "nexthdr" | "version" as part):
            return _network_header(Family.called(name), part)
        case ("tcp" | "udp" | "sctp" | "udplite" as name, "dport"):
            return Key(Field.PORT, header={Field.PROTOCOL: one(PROTOCOL_NUMBERS[name])})
    return _KEYS.get(words)


_KEYS: Final[Mapping[tuple[str, ...], Key]] = {
    ("th", "dport"): Key(Field.PORT),
    **dict.fromkeys((("meta", "iif"), ("meta", "iifname")), Key(Field.CAME_IN)),
    **dict.fromkeys((("meta", "oif"), ("meta", "oifname")), Key(Field.GOES_OUT)),
    ("meta", "l4proto"): Key(Field.PROTOCOL),
    ("meta", "pkttype"): Key(words={"host": _ALWAYS, "unicast": _ALWAYS}),
    ("ct", "state"): Key(words={"new": _ALWAYS}),
    ("ct", "status"): Key(words={"dnat": _AFTER}),
    ("ct", "direction"): Key(words={"original": _ALWAYS}),
}


def family_key(words: tuple[str, ...], family: Family) -> Key | None:
    """Give the key that asks for a packet's family."""
    if words in (("meta", "nfproto"), ("meta", "protocol"), ("ether", "type")):
        own = ("ipv4", "ip") if family is Family.IPV4 else ("ipv6", "ip6")
        return Key(words=dict.fromkeys(own, _ALWAYS))
    return None


def _network_header(family: Family, part: str) -> Key:
    match part:
        case "saddr":
            return Key(Field.SOURCE, family=family)
        case "daddr":
            return Key(Field.DESTINATION, family=family)
        case "version":
            return Key(words={str(family.value): _ALWAYS}, family=family)
    return Key(Field.PROTOCOL, family=family)


def _wanted(words: Iterable[str]) -> Key | None:
    match list(words):
        case ["ip" | "ip6" as name, "daddr"]:
            return Key(Field.WANTED, family=Family.called(name))
        case ["proto-dst"]:
            return Key(Field.WANTED_PORT)
    return None


def _fib(words: Iterable[str]) -> Key | None:
    """Give the kind of address: forwards take what was sent to the host itself, and guests are elsewhere."""
    match list(words):
        case ["daddr", "type"]:
            return Key(words={"local": _BEFORE, "unicast": _AFTER})
        # A source that no way leads back to by the same interface gets no answer: to refuse it closes nothing.
        case ["saddr", *_, "oif" | "oifname"]:
            return Key(words={"exists": _ALWAYS})
    return None


def concatenated(keys: tuple[Key, ...], items: tuple[Item, ...], space: Space, services: Services) -> Match:
    """Give what is asked by one element, `192.0.2.1 . 80`."""
    parts = list(split(items, "."))
    if len(parts) == 1 and shown(parts[0]) == "*":
        parts *= len(keys)
    if len(parts) != len(keys):
        raise GrammarError(f"{quote(shown(items))} has another number of values than there are keys")
    asked = [key.holding(part, space, services) for key, part in zip(keys, parts, strict=True)]
    return matching([pair for match in asked for pair in match.items()])


HEADS: Final = frozenset({"ip", "ip6", "tcp", "udp", "sctp", "udplite", "th", "meta", "ct", "fib", "ether"})
# Words that may stand without the `meta` they are short for.
SHORT: Final = frozenset({*INTERFACES, "l4proto", "nfproto", "protocol", "pkttype", "mark", "iifgroup", "oifgroup"})
OPERATORS: Final = frozenset({"&", "|", "and", "or", "xor", "^", "<<", ">>", "<", ">", "<=", ">=", "/"})
QUESTIONS: Final = frozenset({"==", "!=", "eq", "ne", "!", "="})
NEGATIONS: Final = frozenset({"!=", "ne", "!"})
# What may follow the key of an element.
_EXTRAS: Final = ("timeout", "expires", "counter", "comment", "limit", "quota", "last")


@dataclass(frozen=True, slots=True)
class Scope:
    """What rules are read with: what there is at all, names of services, and the sets of the table."""

    space: Space
    services: Services
    sets: Mapping[str, NamedSet]


@dataclass(slots=True)
class Cursor:
    """Where in a rule the reading stands."""

    items: tuple[Item, ...]
    at: int = 0

    @property
    def done(self) -> bool:
        """Whether nothing is left."""
        return self.at >= len(self.items)

    @property
    def rest(self) -> tuple[Item, ...]:
        """What is left."""
        return self.items[self.at :]

    def word(self, ahead: int = 0) -> str:
        """Give the word that comes next; empty where none does."""
        item = self.items[self.at + ahead] if self.at + ahead < len(self.items) else None
        return item.text if isinstance(item, Word) and not item.quoted else ""

    def take(self, count: int = 1) -> tuple[Item, ...]:
        """Give the next items, and go on behind them."""
        taken = self.items[self.at : self.at + count]
        self.at += count
        return taken


def keys(cursor: Cursor, scope: Scope) -> tuple[Key, ...] | None:
    """Read what is looked at, several joined by dots; `None` where one of them is not known."""
    found: list[Key | None] = []
    while True:
        words = tuple(item.text for item in cursor.take(_key_length(cursor)) if isinstance(item, Word))
        words = ("meta", *words) if words and words[0] in SHORT else words
        if words[:1] == ("fib",):
            words = tuple(word for word in words if word != ".")
        found.append(family_key(words, scope.space.family) or key_of(words))
        if cursor.word() != ".":
            return None if None in found else tuple(key for key in found if key is not None)
        cursor.take()


def _key_length(cursor: Cursor) -> int:
    if cursor.word() in SHORT:
        return 1
    if cursor.word() == "fib":
        return next((n + 1 for n in range(1, 9) if cursor.word(n) in ("type", "oif", "oifname")), 2)
    if (cursor.word(), cursor.word(1)) == ("ct", "original"):
        return 4 if cursor.word(2) in ("ip", "ip6") else 3
    return 2


def compare(cursor: Cursor, looked_at: Sequence[Key], scope: Scope) -> list[Match]:
    """Read a comparison, and give the packets it holds for.

    Raises:
        GrammarError: it is not understood; all of it is passed over.

    """
    negated = cursor.word() in NEGATIONS
    if cursor.word() in QUESTIONS:
        cursor.take()
    values = list(_values(cursor, len(looked_at)))
    headers = matching([pair for key in looked_at for pair in key.header.items()])
    if any(key.family not in (None, scope.space.family) for key in looked_at):
        return []
    if cursor.word() in OPERATORS:
        raise GrammarError("it computes")
    found = held(looked_at, values, scope)
    if not negated:
        return found
    left = [scope.space.everything.meet(headers)]
    boxes = [box for box in left if box is not None]
    for match in found:
        boxes = [rest for box in boxes for rest in box.minus(match)]
    return [box.match for box in boxes]


def _values(cursor: Cursor, count: int) -> Iterator[tuple[Item, ...]]:
    """Yield what keys are compared with: elements of a set, words with commas, or one value."""
    if cursor.rest and isinstance(cursor.rest[0], Group):
        yield from elements_of(cursor.take())
        return
    while True:
        length = 1 if cursor.word().startswith("@") else 2 * count - 1
        if cursor.word(length) == "-":
            length += 2
        yield cursor.take(length)
        if cursor.word() != ",":
            return
        cursor.take()


def held(looked_at: Sequence[Key], elements: Iterable[tuple[Item, ...]], scope: Scope) -> list[Match]:
    """Give the packets whose values are among the elements; those of one key become one match."""
    found = [
        concatenated(tuple(looked_at), _bare(element), scope.space, scope.services)
        for element in _unfolded(elements, scope.sets)
    ]
    found = [match for match in found if all(match.values())]
    return _joined(looked_at[0].side, found) if len(looked_at) == 1 else found


def _joined(side: Field, found: Sequence[Match]) -> list[Match]:
    """Join matches that differ on one side only."""
    if not found or any(side not in match for match in found):
        return list(found[:1])
    return [{**found[0], side: Spans.of(pair for match in found for pair in match[side].ranges)}]


def _unfolded(elements: Iterable[tuple[Item, ...]], sets: Mapping[str, NamedSet]) -> Iterator[tuple[Item, ...]]:
    """Yield elements, with those of a named set in place of its name."""
    for element in elements:
        if element and isinstance(element[0], Word) and element[0].text.startswith("@") and not element[0].quoted:
            yield from _named(element[0].text[1:], sets)
        else:
            yield element


def _named(name: str, sets: Mapping[str, NamedSet]) -> list[tuple[Item, ...]]:
    found = sets.get(name)
    if found is None or not found.elements:
        raise GrammarError(f"what is in set {quote(name)} is not known here")
    if found.changes:
        raise GrammarError(f"the elements of set {quote(name)} come and go")
    return found.elements


def _bare(element: tuple[Item, ...]) -> tuple[Item, ...]:
    """Give an element without its counter, comment and the like."""
    end = next((index for index, item in enumerate(element) if index and is_mark(item, *_EXTRAS)), len(element))
    return element[:end]


def pairs(cursor: Cursor, scope: Scope) -> list[tuple[tuple[Item, ...], tuple[Item, ...]]]:
    """Read a map, anonymous or by its name, as keys and values."""
    (item,) = cursor.take() or (Word("", 0),)
    elements = _named(item.text[1:], scope.sets) if isinstance(item, Word) else list(elements_of((item,)))
    found: list[tuple[tuple[Item, ...], tuple[Item, ...]]] = []
    for element in elements:
        key, *value = split(element, ":")
        if len(value) != 1 or not value[0]:
            raise GrammarError(f"{quote(shown(element))} is no key and value")
        found.append((_bare(key), value[0]))
    return found
