"""What a rule of iptables asks of a connection's first packet. Pure; the source is iptables-extensions(8).

The packet is new to connection tracking. Before a DNAT it is for the host itself, and after it for a guest.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final, TypeAlias

from fwdaemon.core.types import PROTOCOL_NUMBERS, Protocol
from fwdaemon.rulesets.rules import EMPTY, LAST_PORT, LAST_PROTOCOL, Field, Match, Range, Space, Spans, matching, one

# The words of one rule of iptables as options, however they are written. Pure; the source is iptables(8).
#
# Long and short options, with `=` or glued to their value, and long ones cut short are all the same to iptables.
_LONG: Final[Mapping[str, str]] = {
    "--source": "-s",
    "--src": "-s",
    "--destination": "-d",
    "--dst": "-d",
    "--protocol": "-p",
    "--proto": "-p",
    "--in-interface": "-i",
    "--out-interface": "-o",
    "--jump": "-j",
    "--goto": "-g",
    "--match": "-m",
    "--fragment": "-f",
    "--set-counters": "-c",
    "--destination-port": "--dport",
    "--destination-ports": "--dports",
    "--source-port": "--sport",
    "--source-ports": "--sports",
    "--to": "--to-destination",
    **dict.fromkeys(
        ("--ctstate", "--state", "--ctstatus", "--ctdir", "--ctproto", "--ctorigdst", "--ctorigdstport"), ""
    ),
    **dict.fromkeys(("--ctorigsrc", "--dst-type", "--src-type", "--src-range", "--dst-range", "--tcp-flags"), ""),
    **dict.fromkeys(("--dport", "--dports", "--sport", "--sports", "--ports", "--syn", "--comment", "--set"), ""),
    **dict.fromkeys(("--to-destination", "--random", "--persistent", "--limit-iface-in", "--limit-iface-out"), ""),
}
_GLUED: Final = re.compile(r"-[sdpiojgm][^-\s].*", re.DOTALL)
# What follows these is a text of its own, whatever it looks like.
_FREE_TEXT: Final = frozenset({"--comment", "--log-prefix", "--nflog-prefix"})


@dataclass(frozen=True, slots=True)
class Option:
    """One option by its usual name, its values, whether a `!` inverts it, and the `module` whose `-m` it came after."""

    name: str
    values: tuple[str, ...] = ()
    inverted: bool = False
    module: str = ""

    def __str__(self) -> str:
        return " ".join([*(["!"] if self.inverted else []), self.name, *self.values])


def options_of(words: Sequence[str]) -> Iterator[Option]:
    """Read the options of a rule; each has the words up to the next one."""
    words = list(_parted(words))
    index, module = 0, ""
    while index < len(words):
        inverted = words[index] == "!"
        index += inverted
        if index == len(words):
            yield Option("!", (), inverted=True)
            return
        name = _usual(words[index])
        end = min(index + 2, len(words)) if name in _FREE_TEXT else _end_of_values(words, index + 1)
        values = words[index + 1 : end]
        # `-i ! eth0`, as it was written long ago.
        if not values and end + 1 < len(words) and words[end] == "!" and not words[end + 1].startswith("-"):
            inverted, end = not inverted, _end_of_values(words, end + 1)
            values = words[index + 2 : end]
        yield Option(name, tuple(values), inverted, module)
        module = values[0] if name == "-m" and values else module
        index = end


def _parted(words: Iterable[str]) -> Iterator[str]:
    """Part all options from values that are glued to them; a text of its own is no option."""
    is_text = False
    for word in words:
        parts = (word,) if is_text else tuple(_parts(word))
        yield from parts
        is_text = not is_text and len(parts) == 1 and _usual(word) in _FREE_TEXT


def _parts(word: str) -> Iterator[str]:
    """Part an option from a value that is glued to it."""
    if word.startswith("--") and "=" in word:
        name, _, value = word.partition("=")
        yield from (name, value)
    elif _GLUED.fullmatch(word):
        yield from (word[:2], word[2:])
    else:
        yield word


def _usual(word: str) -> str:
    if word in _LONG:
        return _LONG[word] or word
    if not word.startswith("--"):
        return word
    meant = {usual or name for name, usual in _LONG.items() if name.startswith(word)}
    return meant.pop() if len(meant) == 1 else word


def _end_of_values(words: Sequence[str], start: int) -> int:
    index = start
    while index < len(words) and words[index] != "!" and not words[index].startswith("-"):
        index += 1
    return index


Services: TypeAlias = Callable[[str, str], int | None]
"""Gives the port of a service's name with a protocol, if it has one."""

_LONGEST_NUMBER: Final = 5
_PLAIN_MODULES: Final = frozenset(
    {"tcp", "udp", "sctp", "multiport", "comment", "conntrack", "state", "addrtype", "iprange"}
)
# Matches of protocols and of modules above that are not read; others need a module of their own, by which they are
# recognised.
_UNREAD: Final = frozenset(
    {"--sport", "--sports", "--ports", "--src-type", "--limit-iface-in", "--limit-iface-out", "--tcp-option"}
    | {"--chunk-types", "-m", "-4", "-6"}
)
# Whether a way leads back to the source. What it does not lead to gets no answer, so that to refuse it closes nothing.
_WAY_BACK: Final = "rpfilter"
_NEVER, _BEFORE, _AFTER, _ALWAYS = EMPTY, one(0), one(1), Spans(((0, 1),))
# Those of a packet that has not been answered yet.
_STATUSES: Final = {"DNAT": _AFTER, **dict.fromkeys(("EXPECTED", "SEEN_REPLY", "ASSURED", "CONFIRMED", "SNAT"), _NEVER)}
_STATES: Final = {
    "NEW": _ALWAYS,
    "DNAT": _AFTER,
    **dict.fromkeys(("ESTABLISHED", "RELATED", "INVALID", "UNTRACKED", "SNAT"), _NEVER),
}
_DIRECTIONS: Final = {"ORIGINAL": _ALWAYS, "REPLY": _NEVER}
_TYPES: Final = {
    "LOCAL": _BEFORE,
    "UNICAST": _AFTER,
    **dict.fromkeys(
        ("UNSPEC", "BROADCAST", "ANYCAST", "MULTICAST", "BLACKHOLE", "UNREACHABLE", "PROHIBIT", "THROW", "NAT"), _NEVER
    ),
}


@dataclass(frozen=True, slots=True)
class Asked:
    """What a rule asks; `unread` is the first thing of it that is not understood, if any."""

    match: Match
    unread: str = ""


def asked_by(options: Sequence[Option], space: Space, services: Services) -> Asked:
    """Read all matches of a rule; options that belong to its target say nothing here."""
    reader = _Reader(space, services, _protocol_of(options), _modules_of(options))
    found: list[tuple[Field, Spans]] = []
    unread: list[str] = []
    seen: set[str] = set()
    has_target = False
    for option in options:
        if option.name in ("-j", "-g"):
            has_target = True
        elif option.name in _READERS:
            asked = None if option.name in seen else reader.read(option)
            seen.add(option.name)
            found += [] if asked is None else [asked]
            unread += [str(option)] if asked is None else []
        elif not _says_nothing(option) and (option.name in _UNREAD or not has_target):
            unread.append(str(option))
    return Asked(matching(found), next(iter(unread), ""))


def _says_nothing(option: Option) -> bool:
    plain = option.name == "-m" and len(option.values) == 1 and option.values[0] in {*_PLAIN_MODULES, _WAY_BACK}
    return not option.inverted and (plain or option.name in ("--comment", "-c"))


def _protocol_of(options: Iterable[Option]) -> str:
    return next((option.values[0].lower() for option in options if option.name == "-p" and option.values), "")


def _modules_of(options: Iterable[Option]) -> frozenset[str]:
    return frozenset(value for option in options if option.name == "-m" for value in option.values) - _PLAIN_MODULES


@dataclass(frozen=True, slots=True)
class _Reader:
    """What matches are read with; `modules` are those whose options could have any name."""

    space: Space
    services: Services
    protocol: str
    modules: frozenset[str]

    def read(self, option: Option) -> tuple[Field, Spans] | None:
        """Read one match; `None` where it is not understood."""
        field, read = _READERS[option.name]
        try:
            spans = read(self, *option.values)
        except (ValueError, TypeError, KeyError):
            return None
        return field, self.space.complement(field, spans) if option.inverted else spans

    def networks(self, text: str) -> Spans:
        """Read one or more networks, separated by commas."""
        return _union(self.space.addresses_in(part.strip()) for part in text.split(","))

    def addresses(self, text: str) -> Spans:
        """Read the addresses from one to another."""
        first, _, last = text.partition("-")
        ends = ip_address(first), ip_address(last or first)
        if {end.version for end in ends} != {self.space.family}:
            raise ValueError(text)
        return Spans.of([(int(ends[0]), int(ends[1]))])

    def interface(self, pattern: str) -> Spans:
        """Read the name of an interface, or the beginning of one."""
        return self.space.interfaces_like(pattern)

    def protocols(self, text: str) -> Spans:
        """Read a protocol, which may be a number, and in any case."""
        name = text.lower()
        if name in ("all", "0"):
            return Spans(((0, LAST_PROTOCOL),))
        return one(_number(name, LAST_PROTOCOL) if name.isdigit() else PROTOCOL_NUMBERS[name])

    def ports(self, text: str) -> Spans:
        """Read `80`, `80:90`, `:90` and `http,443,1000:2000`."""
        return Spans.of(map(self._ports, text.split(",")))

    def _ports(self, text: str) -> Range:
        first, colon, last = text.partition(":")
        start = self._port(first or "0")
        return start, self._port(last or str(LAST_PORT)) if colon else start

    def _port(self, text: str) -> int:
        if text.isdigit():
            return _number(text, LAST_PORT)
        port = self.services(text, self.protocol)
        if port is None:
            raise ValueError(text)
        return port

    def states(self, text: str) -> Spans:
        """Read states of connection tracking."""
        return _union(_STATES[word] for word in text.upper().split(","))

    def statuses(self, text: str) -> Spans:
        """Read statuses of connection tracking."""
        return _union(_STATUSES[word] for word in text.upper().split(","))

    def direction(self, text: str) -> Spans:
        """Read a direction: the packet is the first one."""
        return _DIRECTIONS[text.upper()]

    def types(self, text: str) -> Spans:
        """Read kinds of a destination."""
        return _union(_TYPES[word] for word in text.upper().split(","))

    def flags(self, mask: str, wanted: str) -> Spans:
        """Read flags of TCP, of which the packet has SYN only."""
        asked = {"SYN"} if {"SYN", "ALL"} & set(mask.upper().split(",")) else set()
        return _ALWAYS if asked == set(wanted.upper().split(",")) - {"NONE"} else _NEVER

    def opening(self) -> Spans:
        """Whether it opens a TCP connection: it does."""
        return _ALWAYS

    def fragment(self) -> Spans:
        """Whether it is a later fragment: connection tracking has put those together."""
        return _NEVER

    def way_back(self) -> Spans:
        """Whether a way leads back, however that is asked."""
        if self.modules != {_WAY_BACK}:
            raise ValueError(self.modules)
        return _ALWAYS

    def no_way_back(self) -> Spans:
        """Whether no way leads back."""
        return _ALWAYS.minus(self.way_back())


def _union(found: Iterable[Spans]) -> Spans:
    return Spans.of(_ranges(found))


def _ranges(found: Iterable[Spans]) -> Iterator[Range]:
    for spans in found:
        yield from spans.ranges


def _number(text: str, last: int) -> int:
    number = int(text) if text.isascii() and len(text) <= _LONGEST_NUMBER else last + 1
    if number > last:
        raise ValueError(text)
    return number


_READERS: Final[Mapping[str, tuple[Field, Callable[..., Spans]]]] = {
    "-s": (Field.SOURCE, _Reader.networks),
    "-d": (Field.DESTINATION, _Reader.networks),
    "-i": (Field.CAME_IN, _Reader.interface),
    "-o": (Field.GOES_OUT, _Reader.interface),
    "-p": (Field.PROTOCOL, _Reader.protocols),
    "--dport": (Field.PORT, _Reader.ports),
    "--dports": (Field.PORT, _Reader.ports),
    "--src-range": (Field.SOURCE, _Reader.addresses),
    "--dst-range": (Field.DESTINATION, _Reader.addresses),
    "--ctstate": (Field.TRANSLATED, _Reader.states),
    "--state": (Field.TRANSLATED, _Reader.states),
    "--ctstatus": (Field.TRANSLATED, _Reader.statuses),
    "--ctdir": (Field.TRANSLATED, _Reader.direction),
    "--ctproto": (Field.PROTOCOL, _Reader.protocols),
    "--ctorigsrc": (Field.SOURCE, _Reader.networks),
    "--ctorigdst": (Field.WANTED, _Reader.networks),
    "--ctorigdstport": (Field.WANTED_PORT, _Reader.ports),
    "--dst-type": (Field.TRANSLATED, _Reader.types),
    "--tcp-flags": (Field.TRANSLATED, _Reader.flags),
    "--syn": (Field.TRANSLATED, _Reader.opening),
    "-f": (Field.TRANSLATED, _Reader.fragment),
    **dict.fromkeys(("--loose", "--validmark", "--accept-local"), (Field.TRANSLATED, _Reader.way_back)),
    "--invert": (Field.TRANSLATED, _Reader.no_way_back),
}
WITH_PORTS: Final[Mapping[Protocol, int]] = {protocol: protocol.number for protocol in Protocol}
"""The numbers of the protocols that have ports."""
