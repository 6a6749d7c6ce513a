"""The ipsets in which rules of the iptables-legacy tables look sources up: made, filled and read.

A set of our own is changed element by element, which waits for nothing: to swap or destroy one, the kernel waits until
no packet looks there, which took 100 ms and more on a busy host. What others put into external sets stays, and comes
back after a wipe. The kernel reports no changes, so it is asked how many
elements a set has. What is in it goes through ipset(8): to restore 100,000 elements takes it 0.15 s, and to list them
0.06 s, where pyroute2 0.9.7 takes 19 s and 1.2 s. Sources: `enum ipset_cmd` and the attributes in
linux/netfilter/ipset/ip_set.h.
"""

import errno
import logging
import re
import socket
import struct
from collections.abc import Collection, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from ipaddress import IPv4Address, IPv6Address
from math import ceil
from typing import Final, NamedTuple

from fwdaemon.core.admission import Element, Parts, Place, SourceSet
from fwdaemon.core.bans import between
from fwdaemon.core.report import ApplyResult
from fwdaemon.core.state import Desired
from fwdaemon.core.types import Address, Family, Until
from fwdaemon.errors import KernelError, PortfwdError
from fwdaemon.kernel.external_sets import Externals, now
from fwdaemon.kernel.netlink import NETFILTER, Message, NetlinkSocket, attribute, attributes
from fwdaemon.kernel.process import Runner
from fwdaemon.legacy.model import lasting_name, set_name

_log = logging.getLogger(__name__)

# What the kernel says of sets, and what it is to destroy.
_DESTROY, _LIST = 6 << 8 | 3, 6 << 8 | 7  # NFNL_SUBSYS_IPSET, IPSET_CMD_DESTROY and _LIST
_PROTOCOL, _NAME, _KIND, _FAMILY, _FLAGS, _DATA = 1, 2, 3, 5, 6, 7  # IPSET_ATTR_…
_ELEMENTS: Final = 24
_NAMES_ALONE, _HEADER_ALONE = 1 << 1, 1 << 2  # IPSET_FLAG_LIST_SETNAME and _HEADER
_GENERIC: Final = struct.pack("=BBH", socket.AF_INET, 0, 0)  # struct nfgenmsg
_VERSION: Final = attribute(_PROTOCOL, b"\x06")

_OURS: Final = re.compile(r"KVMPF_(?:[A-Za-z][A-Za-z0-9_-]*_[46]|\+[0-9.]+_[46]|whole)")
# It holds one address, and no one has a reason to take that out: where it is gone, another program flushed or destroyed
# all sets there were. Who empties an external set alone means that.
_WHOLE: Final = "KVMPF_whole"
_WITNESS: Final = "192.0.2.1"
_MOST: Final = 1_000_000
# Larger sets are compared by their size alone, unless that has changed.
_LARGE: Final = 10_000
_HALVES: Final = 2
_LONGEST_S: Final = 2_147_483  # IPSET_MAX_TIMEOUT
_WORDS: Final = {Family.IPV4: "inet", Family.IPV6: "inet6"}


# Types of sets whose elements are networks, and can be asked whether a source is in one.
_NETWORKS: Final = frozenset({"hash:net", "hash:ip", "bitmap:ip"})


class Header(NamedTuple):
    """What kind of set there is, and how many elements it has."""

    kind: str
    domain: int
    elements: int


def header_of(name: str) -> Header | None:
    """Ask the kernel about a set; `None` where it is not there.

    Raises:
        KernelError: the kernel does not answer.

    """
    found = _listed(_HEADER_ALONE, attribute(_NAME, f"{name}\0".encode()))
    return next(map(_header, found), None)


def names_there() -> frozenset[str]:
    """Name the sets of ours that are there.

    Raises:
        KernelError: the kernel does not answer, as one without ipset.

    """
    names = (_text(attributes(message.body[len(_GENERIC) :]), _NAME) for message in _listed(_NAMES_ALONE))
    return frozenset(filter(_OURS.fullmatch, names))


def _listed(flags: int, more: bytes = b"") -> list[Message]:
    body = _GENERIC + _VERSION + more + attribute(_FLAGS, struct.pack(">I", flags))
    try:
        with NetlinkSocket(NETFILTER) as asking:
            return asking.listing(_LIST, body).messages
    except OSError as error:
        if error.errno == errno.ENOENT:
            return []
        raise KernelError(f"the kernel says nothing about ipsets: {error.strerror or error}") from error


def _header(message: Message) -> Header:
    found = attributes(message.body[len(_GENERIC) :])
    elements = attributes(found.get(_DATA, b"")).get(_ELEMENTS, b"")
    return Header(_text(found, _KIND), int.from_bytes(found.get(_FAMILY, b"")), int.from_bytes(elements))


def _text(found: Mapping[int, bytes], kind: int) -> str:
    return found.get(kind, b"").rstrip(b"\0").decode(errors="replace")


def _known_header(name: str) -> Header | None:
    try:
        return header_of(name)
    except KernelError:
        return None


def _destroy(names: Iterable[str]) -> None:
    """Take sets away; one that rules of others look at stays."""
    bodies = [_GENERIC + _VERSION + attribute(_NAME, f"{name}\0".encode()) for name in names]
    if not bodies:
        return
    try:
        with NetlinkSocket(NETFILTER) as asking:
            asking.change(_DESTROY, bodies)
    except OSError as error:
        raise KernelError(f"the kernel does not destroy ipsets: {error.strerror or error}") from error


# --- as ipset(8) writes and reads them -------------------------------------------------------------------------------


def creation(name: str, family: Family, *, external: bool, number: int = 0) -> str:
    """Write what makes a set, for so many elements."""
    size = 64 if external else 1 << max(number - 1, 63).bit_length()
    timeout = " timeout 0" if external else ""
    return f"create {name} hash:net family {_WORDS[family]} hashsize {size} maxelem {_MOST}{timeout}\n"


def networks_of(parts: Parts, family: Family) -> Iterator[str]:
    """Write the networks of a family as ipset does."""
    for (kind, length), firsts in parts.items():
        if kind is family:
            yield from firsts if length == family.bits else (f"{first}/{length}" for first in firsts)


def number_of(parts: Parts, family: Family) -> int:
    """Count them."""
    return sum(len(firsts) for (kind, _), firsts in parts.items() if kind is family)


def wanted_sets(desired: Desired) -> dict[str, tuple[Family, SourceSet]]:
    """Give the sets that rules need, and those that others fill: these for both families, whatever is open."""
    return {
        set_name(item.name, family): (family, item)
        for item in desired.used_sets.values()
        for family in (Family if item.external else sorted(desired.families))
    }


def lasting_sets(desired: Desired) -> dict[str, tuple[Family, Until]]:
    """Give the sets that hold all addresses for a while."""
    found = (item for item in desired.forwards if item.until is not None) if desired.counts_down else ()
    return {lasting_name(item.until, item.family): (item.family, item.until) for item in found if item.until}


def _names(desired: Desired) -> frozenset[str]:
    is_shared = any(item.external for item in desired.used_sets.values())
    return frozenset([*wanted_sets(desired), *lasting_sets(desired), *([_WHOLE] if is_shared else [])])


def written(desired: Desired) -> str:
    """Write all sets of our own, and external ones empty, for `ipset restore`."""
    lines = []
    for name, (family, item) in wanted_sets(desired).items():
        networks = [*networks_of(item.parts, family)]
        lines += [creation(name, family, external=item.external, number=len(networks))]
        lines += [f"add {name} {network}\n" for network in networks]
    for name, (family, until) in lasting_sets(desired).items():
        lines += _counting_down(name, family, until)
    return "".join(["# ipset restore\n", *lines]) if lines else ""


def _counting_down(name: str, family: Family, until: Until) -> list[str]:
    """Write what makes a set of all addresses, until the next second after an end; a daemon that runs is first."""
    left, everybody = until.boottime - now(), Element(0, (1 << family.bits) - 1)
    made = creation(name, family, external=True)
    return [made, *(_put_back(name, family, {everybody: left + 1}) if left > 0 else ())]


def elements_in(runner: Runner, name: str, family: Family) -> dict[Element, float | None]:
    """Read who is in a set, each with the seconds that are left, if they end; an exception in it is left out.

    Raises:
        ProcessError: there is no such set.
        KernelError: its elements are no networks.

    """
    found = {}
    for line in runner.run("ipset", "save", name).stdout.splitlines():
        words = line.split()
        if words[:1] == ["add"] and "nomatch" not in words[3:]:
            left = float(words[4]) if words[3:4] == ["timeout"] else 0
            try:
                found[_element(words[2], family)] = left or None
            except (OSError, ValueError, IndexError) as error:
                raise KernelError(f"set {name} has an element that is no network") from error
    return found


def _element(text: str, family: Family) -> Element:
    address, _, length = text.partition("/")
    first = int.from_bytes(socket.inet_pton(family.domain, address))
    return Element(first, first + (1 << family.bits - int(length or family.bits)) - 1)


def _put_back(name: str, family: Family, elements: Mapping[Element, float | None]) -> Iterator[str]:
    for element, left in elements.items():
        timeout = "" if left is None else f" timeout {min(ceil(left), _LONGEST_S)}"
        for network in between(_address(family, element.first), _address(family, element.last)):
            # A set takes no network of all addresses, but both halves.
            halves = [network] if network.prefixlen else network.subnets()
            yield from (f"add {name} {half}{timeout}\n" for half in halves)


def _address(family: Family, number: int) -> Address:
    return IPv4Address(number) if family is Family.IPV4 else IPv6Address(number)


# --- kept ------------------------------------------------------------------------------------------------------------


class IpSets:
    """Keeps our sets. For one thread at a time, but `sizes`."""

    def __init__(self, runner: Runner, externals: Externals) -> None:
        self._runner, self._externals = runner, externals
        self._filled: dict[str, Parts] = {}
        self._seen: dict[str, Header | None] = {}
        self._kept: tuple[str, ...] = ()
        self._there: frozenset[str] | None = None

    def sizes(self) -> Mapping[str, Header | None]:
        """Say what the kernel says of our sets now; any thread may ask."""
        return {name: header_of(name) for name in self._kept}

    @staticmethod
    def hindrance() -> str | None:
        """Say why there can be no sets."""
        try:
            names_there()
        except KernelError as error:
            return str(error)
        return None

    def keep(self, desired: Desired, *, full: bool) -> frozenset[str]:
        """Make the sets hold what is desired; gives the names of those that others had changed.

        Raises:
            PortfwdError: ipset, or the kernel, refused.

        """
        wanted = wanted_sets(desired)
        self._kept = tuple(sorted(_names(desired)))
        try:
            for name, (family, until) in lasting_sets(desired).items():
                self._keep_lasting(name, family, until)
            return self._keep(wanted, full=full) if wanted else frozenset()
        except PortfwdError as error:
            if _is_asked(desired):
                raise
            _log.debug("no set is kept, and none is asked for: %s", error)
            return frozenset()

    def _keep(self, wanted: Mapping[str, tuple[Family, SourceSet]], *, full: bool) -> frozenset[str]:
        externals = frozenset(item.name for _, item in wanted.values() if item.external)
        if externals:
            self._externals.names = externals
        is_whole = not externals or header_of(_WHOLE) == Header("hash:net", socket.AF_INET, 1)
        keep = {name: self._keep_external if item.external else self._keep_own for name, (_, item) in wanted.items()}
        changed = {
            item.name
            for name, (family, item) in wanted.items()
            if keep[name](name, family, item, full=full or not is_whole, is_whole=is_whole)
        }
        if not is_whole:
            self._restore([f"{creation(_WHOLE, Family.IPV4, external=False)}add {_WHOLE} {_WITNESS}\n"], "-exist")
        return frozenset(changed)

    def preview(self, desired: Desired) -> ApplyResult:
        """Say which sets would be made, or filled."""
        found = []
        for name, (family, item) in wanted_sets(desired).items():
            number, header = number_of(item.parts, family), _known_header(name)
            if header is None or (not item.external and header.elements != number):
                found.append(creation(name, family, external=item.external, number=number))
        return ApplyResult(script="".join(["# ipset restore\n", *found]) if found else "", changed=bool(found))

    def drop(self, desired: Desired, *, full: bool) -> None:
        """Take away the sets that are not wanted; none that others look at."""
        wanted = _names(desired)
        if wanted == self._there and not full:
            return
        try:
            _destroy(names_there() - wanted)
        except KernelError as error:  # a kernel without ipset holds none of ours
            _log.debug("no set is taken away: %s", error)
        self._there = wanted
        self._filled = {name: parts for name, parts in self._filled.items() if name in wanted}

    def _keep_lasting(self, name: str, family: Family, until: Until) -> None:
        """Have a set count down; one that was emptied before its time is filled again."""
        header = header_of(name)
        if header is None or (header.elements < _HALVES and until.boottime > now()):
            self._restore(_counting_down(name, family, until), "-exist")

    def _keep_own(self, name: str, family: Family, item: SourceSet, *, full: bool, is_whole: bool) -> bool:
        """Fill a set of our own, unless it is right; gives whether others had changed it."""
        del is_whole
        known, number, header = self._filled.get(name), number_of(item.parts, family), header_of(name)
        is_known = known is item.parts or known == item.parts
        has_size = header == Header("hash:net", family.domain, number)
        if has_size and is_known and not (full and number <= _LARGE):
            return False
        networks = {*networks_of(item.parts, family)}
        is_right = has_size and self._listing(name) == networks
        if not is_right:
            self._fill(name, family, networks, header)
        self._filled[name] = item.parts
        return is_known and not is_right

    def _fill(self, name: str, family: Family, networks: AbstractSet[str], header: Header | None) -> None:
        """Add what is missing before anything goes: who is in the old and the new set is in it all the time."""
        lines = []
        if header is not None and header[:2] != ("hash:net", family.domain):
            _destroy([name])
            header = None
        there = self._listing(name) if header is not None else set()
        if header is None:
            lines.append(creation(name, family, external=False, number=len(networks)))
        lines += [f"add {name} {network}\n" for network in networks - there]
        lines += [f"del {name} {network}\n" for network in there - networks]
        self._restore(lines)

    def _keep_external(self, name: str, family: Family, item: SourceSet, *, full: bool, is_whole: bool) -> bool:
        """Read a set that others fill, or put back what was in it; gives whether it was put back."""
        place, header = (family, item.name), header_of(name)
        if header is not None and (header.kind not in _NETWORKS or header.domain != family.domain):
            _destroy([name])
            header = None
        is_known = self._externals.is_seen(place) and self._seen.get(name) == header
        if header is not None and is_known and is_whole and not (full and header.elements <= _LARGE):
            return False
        lost = self._externals.left(place, now()) if header is None or not is_whole else {}
        there = elements_in(self._runner, name, family) if header is not None else {}
        missing = {element: left for element, left in lost.items() if element not in there}
        if header is None or missing:
            made = [creation(name, family, external=True)] if header is None else []
            self._restore([*made, *_put_back(name, family, missing)], "-exist")
            there |= missing
        self._seen[name] = header_of(name)
        self._take(place, there)
        return bool(missing)

    def _take(self, place: Place, there: Mapping[Element, float | None]) -> None:
        at = now()
        self._externals.replace(place, {item: None if left is None else at + left for item, left in there.items()})

    def _listing(self, name: str) -> set[str]:
        """Give what is in a set of our own, as ipset writes it."""
        lines = self._runner.run("ipset", "save", name).stdout.splitlines()
        return {line.split()[2] for line in lines if line.startswith("add ")}

    def _restore(self, lines: Iterable[str], *options: str) -> None:
        self._runner.run("ipset", *options, "restore", stdin="".join(lines))


def _is_asked(desired: Desired) -> bool:
    """Whether any rule looks into a set."""
    barred = bool(desired.barred is not None and desired.barred.denied and desired.exposures)
    return barred or any(item.admission is not None and item.admission.names for item in desired.limited)


def refilled(desired: Desired, names: Collection[str]) -> ApplyResult:
    """Report the exposures that did not do as they should while others had changed the sets of these names."""
    if not names:
        return ApplyResult()
    barred = desired.barred is not None and not set(names).isdisjoint(desired.barred.names)
    found = frozenset(
        item
        for item in desired.exposures
        if barred or (item.admission is not None and not set(names).isdisjoint(item.admission.names))
    )
    return ApplyResult(found, found, changed=True)
