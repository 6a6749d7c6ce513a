"""Who may connect: `[[set]]`, files of networks, and the keys `sources`, `deny`, `rate` and `max_open` of entries."""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from difflib import get_close_matches
from hashlib import blake2s
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Final, TypeAlias, TypeVar

from fwdaemon.config.addresses import parse_source
from fwdaemon.config.model import KEYS, Config, Entry, ForwardEntry, NamedSets, SetEntry
from fwdaemon.config.node import Node, read_distinct, read_key, require
from fwdaemon.core.admission import UNITS, Admission, Parts, Rate, SourceSet, parted, without_everybody
from fwdaemon.core.text import GrammarError, quote
from fwdaemon.core.types import Family, Origin, Subnet
from fwdaemon.errors import Problem

SET_KEYS: Final = KEYS["set"]
_ONE_OF: Final = ("addresses", "file", "external")
_FILE: Final = "/etc/portfwd.d/blocklist.txt"
# Plain in rules of any language; the longest that an ipset's name has room for, which is recognised by both its ends.
_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,22}")
_PREFIX: Final = "set:"
_RATE: Final = re.compile(r"([1-9][0-9]{0,4})/([a-z]+)")
_PLAIN_UNITS: Final = {"s": "second", "sec": "second", "m": "minute", "min": "minute", "h": "hour", "d": "day"}
_MOST_OPEN: Final = 65_535
_MOST_LIMITED: Final = 10_000
# What a listing of problems in one file of networks stops at.
_MOST_PROBLEMS: Final = 20
# What IPv4 is mapped into IPv6 behind.
_MAPPED: Final = 0xFFFF
MOST_NETWORKS: Final = 250_000
MOST_LIST_BYTES: Final = 16 << 20

_EMPTY: Final = "is empty, so nothing would match; name at least one, or remove the whole entry"

T = TypeVar("T")
E = TypeVar("E", bound=Entry)


class SetName(str):
    """The name of a set, among networks."""

    __slots__ = ()


Member: TypeAlias = Subnet | SetName


# --- `[[set]]` -------------------------------------------------------------------------------------------------------


def read_set(node: Node) -> tuple[SetEntry, ...]:
    """Read one entry, recording every problem in it; where anything is wrong, none is returned."""
    before = len(node.document.problems)
    fields = node.fields(SET_KEYS)
    require(node, fields, "name", 'name = "office"')
    name = read_key(fields, "name", parse_set_name, "office")
    given = [key for key in _ONE_OF if key in fields]
    if len(given) > 1:
        fields[given[1]].refuse(f"stands beside {given[0]}; write one of them, and an entry of its own for the other")
    if fields and not given:
        node.refuse(f'holds nothing; write addresses = ["203.0.113.0/24"], file = {quote(_FILE)} or external = true')
    addresses = _read_addresses(fields["addresses"]) if "addresses" in fields else {}
    file = read_key(fields, "file", parse_list_file, _FILE)
    external = "external" in fields and _read_external(fields["external"])
    if name is None or len(node.document.problems) > before:
        return ()
    return (SetEntry(name, fields["name"].origin, addresses, file, external),)


def _read_addresses(node: Node) -> dict[Subnet, Origin]:
    example, found = "203.0.113.0/24", dict[Subnet, Origin]()
    for item in node.one_or_more(example):
        for subnet in read_distinct([item], parse_source, example):
            if subnet in found:
                item.refuse(
                    f"{quote(str(subnet))} is already named on line {found[subnet].line}; remove one of the two"
                )
            found.setdefault(subnet, item.origin)
    return found


def _read_external(node: Node) -> bool:
    """Read a flag that says nothing where it is false."""
    is_external = node.flag(default=True)
    if not is_external:
        node.refuse(f"must be true; write addresses or file = {quote(_FILE)} in its place for a set of your own")
    return is_external


def parse_set_name(text: str) -> str:
    """Read the name of a set: plain in every rule."""
    if _NAME.fullmatch(text):
        return text
    plain = re.sub(r"[^A-Za-z0-9_-]+", "_", text.removeprefix(_PREFIX)).strip("_")[:23]
    right = plain if _NAME.fullmatch(plain) else "office"
    rule = "begins with a letter and has at most 23 letters, digits, - and _"
    raise GrammarError(f"{quote(text)} is no name of a set, which {rule}", right=right)


def parse_list_file(text: str) -> Path:
    """Read the path of a file of networks."""
    path = Path(text)
    if not text.isprintable() or not path.is_absolute() or path.name == "":
        raise GrammarError(
            f"{quote(text)} is no absolute path of plain characters", f"write one such as {quote(_FILE)}"
        )
    return path


# --- files of networks -----------------------------------------------------------------------------------------------


def read_list(file: Path, text: bytes, held: int = 0) -> tuple[Parts, list[Problem]]:
    """Read a network a line, `#` before comments; with any problem, nothing of it counts.

    A blank file is one while `held` networks of its set are in force: editors empty a file before they write it, and
    of a set that is denied, that would let in everyone it keeps out.
    """
    if held and not text.strip():
        networks = f"{held:,} network{' of its set is' if held == 1 else 's of its set are'} in force"
        return {}, [Problem(file, 1, f"is empty, while {networks}; if none is meant, write a comment line, # none")]
    found: dict[tuple[Family, int], dict[str, None]] = {}
    problems: list[Problem] = []
    for number, word in _words(text):
        try:
            kind, first = _network(word) or _slowly(word)
            found.setdefault(kind, {})[first] = None
        except GrammarError as error:
            problems.append(Problem(file, number, str(error)))
            if len(problems) == _MOST_PROBLEMS:
                break
    if sum(map(len, found.values())) > MOST_NETWORKS:
        problems.append(Problem(file, 1, f"has more than {MOST_NETWORKS:,} networks; write wider ones, or two sets"))
    return without_everybody(found), problems


def place_of(network: Subnet, item: SourceSet, text: bytes) -> Origin:
    """Say where a network of a set is written; `text` is what is in its file. A half stands for all addresses."""
    may_be = [network, *([network.supernet()] if network.prefixlen == 1 else [])]
    if item.file is None:
        return next((item.places[found] for found in may_be if found in item.places), item.origin)
    wanted = list(map(_key, may_be))
    for number, word in _words(text):
        with suppress(GrammarError):
            if (_network(word) or _slowly(word)) in wanted:
                return Origin(item.file, number)
    return Origin(item.file, 1)


def _words(text: bytes) -> Iterator[tuple[int, str]]:
    """Give what is in each line that is not blank, without its comment, with its number."""
    for number, line in enumerate(text.decode(errors="replace").split("\n"), 1):
        if word := line.partition("#")[0].strip():
            yield number, word


def _network(word: str) -> tuple[tuple[Family, int], str] | None:
    """Read a network that is written as it should be; lists are long, so this does only what it takes."""
    base, slash, length = word.partition("/")
    if slash and not length.isdecimal():
        return None
    try:
        address = IPv6Address(base) if ":" in base else IPv4Address(base)
    except ValueError:
        return None
    family = Family.IPV6 if ":" in base else Family.IPV4
    prefix = int(length) if slash else family.bits
    if prefix > family.bits or int(address) & ((1 << (family.bits - prefix)) - 1):
        return None
    if family is Family.IPV6 and int(address) >> 32 == _MAPPED:
        return None
    return (family, prefix), str(address)


def _slowly(word: str) -> tuple[tuple[Family, int], str]:
    """Say what is wrong with a word that is no network."""
    return _key(parse_source(word))


def _key(network: Subnet) -> tuple[tuple[Family, int], str]:
    return (Family.of(network), network.prefixlen), str(network.network_address)


# --- keys of entries -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Asked:
    """What an entry asks of who connects: networks that take part in conflicts, the rest, and the places of names."""

    sources: tuple[Subnet, ...] = ()
    admission: Admission | None = None
    named: NamedSets = ()

    @property
    def whole(self) -> Admission | None:
        """All of it, for what is claimed whole: there, who else may connect says nothing of conflicts."""
        return replace(self.admission or Admission(), sources=self.sources) if self.sources else self.admission


def read_asked(fields: Mapping[str, Node]) -> Asked:
    """Read `sources`, `deny`, `rate` and `max_open`, as far as an entry may have them.

    Where sets are among the sources, it takes all of these to say which clients it is for: as long as they are not
    known, that may be any.
    """
    sources, sets = _members(fields, "sources")
    deny, denied = _members(fields, "deny")
    rate = fields["rate"].text(parse_rate, "30/minute") if "rate" in fields else None
    max_open = fields["max_open"].count(_MOST_OPEN, 20) if "max_open" in fields else None
    entry = _told_apart(fields) if rate is not None or max_open is not None else ""
    admission = Admission(sources if sets else (), sets, deny, denied, rate, max_open, entry)
    named = tuple(place for key in ("sources", "deny") if key in fields for place in _places(fields[key]))
    return Asked(() if sets else sources, admission if admission.is_limited else None, named)


def _told_apart(fields: Mapping[str, Node]) -> str:
    """Name an entry by what is written in it: on another line, or after a reload, it is the same one."""
    written = sorted((key, repr(node.value)) for key, node in fields.items())
    return blake2s(repr(written).encode(errors="surrogatepass"), digest_size=8).hexdigest()


def _members(fields: Mapping[str, Node], key: str) -> tuple[tuple[Subnet, ...], tuple[str, ...]]:
    if key not in fields:
        return (), ()
    node, example = fields[key], "203.0.113.0/24"
    if node.value == []:
        why = _EMPTY if key == "sources" else "is empty, so no one is kept out; name at least one, or remove it"
        node.refuse(why)
    members: tuple[Member, ...] = read_distinct(node.one_or_more(example), parse_member, example)
    subnets = tuple(member for member in members if not isinstance(member, SetName))
    return subnets, tuple(str(member) for member in members if isinstance(member, SetName))


def parse_member(text: str) -> Member:
    """Read a network, or `set:` with the name of a set."""
    if text.startswith(_PREFIX):
        return SetName(parse_set_name(text.removeprefix(_PREFIX)))
    if text.startswith("@") and _NAME.fullmatch(text[1:]):
        raise GrammarError(f"{quote(text)} is no network", right=_PREFIX + text[1:])
    return parse_source(text)


def _places(node: Node) -> Iterator[tuple[str, Origin]]:
    items = [node] if isinstance(node.value, str) else node.elements("203.0.113.0/24")
    for item in items:
        if isinstance(item.value, str) and item.value.startswith(_PREFIX):
            yield item.value.removeprefix(_PREFIX), item.origin


def parse_rate(text: str) -> Rate:
    """Read a number of connections in a second, minute, hour or day."""
    match = _RATE.fullmatch(text)
    if match and match[2] in UNITS and int(match[1]) <= _MOST_LIMITED:
        return Rate(int(match[1]), match[2])
    raise GrammarError(f"{quote(text)} is no rate of new connections", right=_rate_meant(text))


def _rate_meant(text: str) -> str:
    """Give the rate that a text means in other words."""
    match = re.fullmatch(r"\s*([1-9][0-9]{0,4})\s*(?:/|per|a)\s*([a-z]+?)s?\s*", text.lower())
    if match and int(match[1]) <= _MOST_LIMITED:
        unit = _PLAIN_UNITS.get(match[2], match[2])
        unit = _PLAIN_UNITS.get(f"{match[2]}s", unit) if unit not in UNITS else unit
        if unit in UNITS:
            return f"{match[1]}/{unit}"
    return "30/minute"


# --- all files together ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Lists:
    """Reads files of networks, or raises `GrammarError` with what is wrong.

    `live` are the sets in force, whose networks no blank file takes away.
    """

    read: Callable[[Path], bytes]
    live: Collection[SourceSet] = ()

    def held(self, entry: SetEntry) -> int:
        """Tell how many networks are in force of a set, by its name or its file."""
        found = (item for item in self.live if entry.name == item.name or entry.file == item.file)
        return max((item.number for item in found), default=0)


def settle(config: Config, entries: Iterable[SetEntry], lists: Lists, found: list[Problem]) -> Config:
    """Put the sets into a configuration, and what is written in them in the place of their names.

    Problems are added to `found`.
    """
    known: dict[str, SetEntry] = {}
    for entry in entries:
        if (other := known.setdefault(entry.name, entry)) is not entry:
            what = f"a set {quote(entry.name)} is already at {other.origin}; give one of the two another name"
            found.append(Problem(entry.origin.file, entry.origin.line, what))
    found += _unknown(config, known)
    sets = {name: _made(entry, lists, found) for name, entry in known.items()}
    written = {name: tuple(entry.addresses) for name, entry in known.items() if entry.addresses}
    config = config.with_entries(tuple(_settled(entry, written) for entry in config.entries))
    return replace(config, sets=tuple(sets.values()))


def _made(entry: SetEntry, lists: Lists, found: list[Problem]) -> SourceSet:
    if entry.file is None:
        return SourceSet(
            entry.name, entry.origin, entry.external, parts=parted(entry.addresses), places=entry.addresses
        )
    parts: Parts = {}
    try:
        parts, problems = read_list(entry.file, lists.read(entry.file), lists.held(entry))
        found += problems
    except GrammarError as error:
        found.append(Problem(entry.origin.file, entry.origin.line, f"set {quote(entry.name)}: {error}"))
    return SourceSet(entry.name, entry.origin, file=entry.file, parts=parts)


def _unknown(config: Config, known: Collection[str]) -> Iterator[Problem]:
    named = [*config.daemon.named, *(place for entry in config.entries for place in entry.named)]
    for name, origin in dict.fromkeys(named):
        if name not in known and _NAME.fullmatch(name):
            yield Problem(origin.file, origin.line, unknown_set(name, known))


def unknown_set(name: str, known: Collection[str]) -> str:
    """Say what to do about the name of a set that there is none of."""
    meant = get_close_matches(name, known, n=1)
    question = f"did you mean {quote(_PREFIX + meant[0])}? If not, " if meant else ""
    return f"no set is called {quote(name)}; {question}write a [[set]] with name = {quote(name)}"


def settled(entry: ForwardEntry, sets: Iterable[SourceSet]) -> ForwardEntry | None:
    """Give an entry that was read without any as if it stood beside these sets; `None` where it names others."""
    known = {item.name: item for item in sets}
    if any(name not in known for name, _ in entry.named):
        return None
    return _settled(entry, {name: item.networks for name, item in known.items() if item.is_written})


def networks_named(entry: Entry, sets: Iterable[SourceSet]) -> Iterator[Subnet]:
    """Give the networks from which an entry lets clients connect; none where that is all, or not known."""
    yield from entry.sources
    if entry.admission is not None:
        yield from entry.admission.sources
        yield from (network for item in sets if item.name in entry.admission.sets for network in item.networks)


def _settled(entry: E, written: Mapping[str, Collection[Subnet]]) -> E:
    """Write what is in sets of the configuration itself among the sources: so its clients are known."""
    asked = entry.admission
    if not isinstance(entry, ForwardEntry) or asked is None or not asked.sets:
        return entry
    if not all(name in written for name in asked.sets):
        return entry
    inside = (subnet for name in asked.sets for subnet in written[name])
    rest = replace(asked, sources=(), sets=())
    sources = tuple(dict.fromkeys([*asked.sources, *inside]))
    return replace(entry, sources=sources, admission=rest if rest.is_limited else None)
