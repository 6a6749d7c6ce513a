"""The short form of ports: `[ADDRESS:]HOST[-HOST][:GUEST[-GUEST]][/tcp|udp|sctp|tcp+udp]`, or `auto:GUEST`.

It is Docker's, made strict: decimal ASCII digits only, nothing before a port but an address, ranges of equal width
mapped one to one, and IPv6 addresses in brackets, since their colons would be read as ours.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from fwdaemon.config.addresses import EveryAddressError, LoopbackError, parse_listen
from fwdaemon.core.text import GrammarError, quote, refuse_negation
from fwdaemon.core.types import Address, PortRange, Protocol, show_endpoint

LAST_PORT = 65535
_LONGEST_PORT = len(str(LAST_PORT))
_MOST_COLONS = 2
_PROTOCOLS = {
    "tcp": (Protocol.TCP,),
    "udp": (Protocol.UDP,),
    "sctp": (Protocol.SCTP,),
    "tcp+udp": (Protocol.TCP, Protocol.UDP),
}
# What most of them are, and nothing of what is refused below; and what most of these are.
_ORDINARY = re.compile(r"[0-9]{1,5}(?:-[0-9]{1,5})?(?::[0-9]{1,5}(?:-[0-9]{1,5})?)?(?:/[a-z+]{1,9})?")
_PLAIN = re.compile(r"([1-9][0-9]{0,4}):([1-9][0-9]{0,4})")
_AUTO = re.compile(r"(?i)(?<![a-z])auto(?![a-z])")
_AUTO_PORT = re.compile(r"(?P<before>(?:[^/]*:)?)auto:(?P<guest>[^:]*)")
# Blanks, and what stands before another port.
_SEVERAL = re.compile(r"\s|[,;](?=[0-9[])")
# `53:53:udp`, `53 udp`, `udp:53`; `8000:8010:9000` and `8000:8010:9000:9010`.
_PROTOCOL = r"(?i:tcp\+udp|tcp|udp|sctp)"
_PROTOCOL_ELSEWHERE = re.compile(
    rf"(?P<before>[^/]*[0-9])[:-]?(?P<last>{_PROTOCOL})\Z|(?P<first>{_PROTOCOL})[:/-]?(?P<after>[0-9[][^/]*)\Z"
)
# `53:udp:53`, `53/udp:53`, `80/tcp:8080/tcp`, `198.51.100.7/udp:53:53`.
_WORDS = r"(?<![A-Za-z.-])(?i:tcp|udp|sctp)(?:[+,&|/](?i:tcp|udp|sctp)){0,3}(?![A-Za-z.-])"
_PROTOCOL_AMONG = re.compile(rf"[:/]?({_WORDS})[:/]?")
_PROTOCOL_BETWEEN = re.compile(rf".*?{_WORDS}[:/][0-9[]")
# Words and signs for every address, and what stands for a colon elsewhere.
_EVERY_ADDRESS = re.compile(r"(?i:\*|any|all|every|\[\*\]):(?P<after>[0-9][^:]*(?::[^:]*)?)\Z")
_ARROW = re.compile(r"[-=]?>+|\u2192|=")
# `8000-8010:9000:9010`, `8000:8010:9000-9010`.
_HALF_COLON_RANGE = re.compile(
    r"(?P<host>[0-9]{1,5}[-:][0-9]{1,5}):(?P<guest>[0-9]{1,5}[-:][0-9]{1,5})(?P<protocol>/[a-z+]+)?"
)
_COLON_RANGE = re.compile(r"([1-9][0-9]{0,4}):([1-9][0-9]{0,4}):([1-9][0-9]{0,4})(?::([1-9][0-9]{0,4}))?(/[a-z+]+)?")
# `80..90`; `198.51.100.7/24:80`, `[2001:db8::7/64]:80`.
_DOTS = re.compile(r"(?<=[0-9])\.{2,3}(?=[0-9])")
_OTHER_DASH = re.compile(r"\s{0,4}[\u2010-\u2015\u2212\u2e3a\ufe58\ufe63\uff0d]\s{0,4}")
# `8000-8010-9000`, `8000-8010-9000-9010`.
_FOUR_ENDS = re.compile(r"(?<![0-9-])([0-9]{1,5}-[0-9]{1,5})-([0-9]{1,5}-[0-9]{1,5})(?![0-9-])")
_THREE_ENDS = re.compile(r"(?<![0-9-])([0-9]{1,5}-[0-9]{1,5})-[0-9]{1,5}(?![0-9-])")
_MANY_ENDS = re.compile(r".*?(?<![0-9-])[0-9]{1,5}(?:-[0-9]{1,5}){2,3}(?![0-9-])")
_DOTTED_RANGE = re.compile(r".*?[0-9]\.{2,3}[0-9]")
_WITH_PREFIX = re.compile(r"(?P<before>[0-9.]+|\[[0-9A-Fa-f:.]+\]?)/[0-9]{1,3}(?P<after>\]?:.*)\Z")
# `8080:192.168.122.50:80`, as ssh has it, also behind a listening address.
_GUEST_BETWEEN = re.compile(
    r"(?P<host>(?:(?:[0-9]{1,3}(?:\.[0-9]{1,3}){3}|\[[0-9A-Fa-f:.]+\]):)?[0-9-]+):(?P<guest>[^:/]*[^0-9:/-][^:/]*|[0-9-]+)(?P<rest>:[0-9-]+(?:/[a-z+]+)?)"
)
_BEHIND_BRACKETS = re.compile(r"(?P<address>\[[0-9A-Fa-f:.]+\])[.,]?(?P<rest>[0-9].*)\Z")
_HOST_PORTS = re.compile(r"[0-9]{1,5}(?:-[0-9]{1,5})?")
_ONE_PORT = "write one host port"
_SUPPORTED = "write /tcp, /udp, /sctp or /tcp+udp"


@dataclass(frozen=True, slots=True)
class PortSpec:
    """One port string, understood: `host` and `guest` have equal width, `listen` is the address written in it.

    A `host` of `None` is `auto`, and `guest` one port then.
    """

    listen: Address | None
    host: PortRange | None
    guest: PortRange
    protocols: tuple[Protocol, ...]

    def __str__(self) -> str:
        """Write it so that parsing gives the same again."""
        ports = "auto" if self.host is None else str(self.host)
        host = ports if self.listen is None else show_endpoint(self.listen, ports)
        return f"{host}:{self.guest}/{'+'.join(self.protocols)}"


def parse_ports(text: str) -> PortSpec:
    """Read one port string; raise `GrammarError` with the remedy if it is not one."""
    return _parse(text)


def parse_host_ports(text: str) -> PortRange:
    """Read a port or a range of ports of the host, and nothing else."""
    remedy = 'write a port or a range of ports of the host, as in "20000-29999", which is for tcp and udp'
    if _HOST_PORTS.fullmatch(text) is None:
        raise GrammarError(f"{quote(text)} is no range of ports", remedy)
    return _parse_range(text, text)


@lru_cache(maxsize=1024)  # thousands of entries may have the same one
def _parse(text: str) -> PortSpec:
    if (plain := _PLAIN.fullmatch(text)) is not None:
        first, second = map(int, plain.groups())
        if max(first, second) <= LAST_PORT:
            return PortSpec(None, _range(first, first), _range(second, second), (Protocol.TCP,))
    if _AUTO.search(text):
        return _parse_auto(text)
    if _ORDINARY.fullmatch(text) is None:
        _refuse_strange_characters(text)
        _refuse_other_forms(text)
    ports, slash, protocol = text.partition("/")
    protocols = _parse_protocols(text, protocol) if slash else (Protocol.TCP,)
    address, numbers = _split_address(text, ports)
    listen = None if address is None else _parse_listen(text, address, protocols)
    host_text, colon, guest_text = numbers.partition(":")
    host = _parse_range(text, host_text)
    guest = _parse_range(text, guest_text) if colon else host
    _refuse_unequal_widths(text, numbers, host, guest)
    return PortSpec(listen, host, guest, protocols)


def _parse_auto(text: str) -> PortSpec:
    """Read a port string whose port of the host is assigned: it is one without that port and its colon."""
    match = _AUTO_PORT.fullmatch(text)
    if match is None or not match["guest"]:
        raise _no_auto(text)
    try:
        spec = _parse(f"{match['before']}{match['guest']}")
    except EveryAddressError:
        raise
    except GrammarError:
        raise _no_auto(text) from None
    # A port before it would have been read as the host's.
    if spec.guest.width > 1 or spec.guest != spec.host or bool(match["before"]) != (spec.listen is not None):
        raise _no_auto(text)
    return PortSpec(spec.listen, None, spec.guest, spec.protocols)


def _no_auto(text: str) -> GrammarError:
    """Say what to write, with an address where there is one: without it, every address would be open."""
    what, before = f"{quote(text)} is no automatic port", text.lower().partition("auto")[0].strip(" :")
    if right := _auto_meant(text):
        return GrammarError(what, right=right)
    if before and not before.isdecimal():
        return GrammarError(
            what, 'write an address of the host before "auto:" and one port, as in "198.51.100.7:auto:22"'
        )
    return GrammarError(what, ' and one port of the guest in each string, as in "auto:22"', right="auto:")


def _auto_meant(text: str) -> str | None:
    """Give what is meant by `auto` in other letters, or in another place."""
    plain = re.sub(r"\s+", "", text).replace("AUTO", "auto").replace("Auto", "auto")
    found = [plain, re.sub(r"\A([^/]*):auto((?:/.*)?)\Z", r"auto:\1\2", plain)]
    return next((right for right in found if right != text and _is_right(right)), None)


def _refuse_strange_characters(text: str) -> None:
    if not text:
        raise GrammarError('"" is empty', "write a port, or remove it")
    refuse_negation(text, "write the ports that are to be open")
    if len(parts := _ARROW.split(text, maxsplit=2)) == 2:  # noqa: PLR2004 - what is before it, and after
        right = ":".join(map(str.strip, parts))
        if _is_right(right):
            raise GrammarError(f'{quote(text)} has an arrow where ":" belongs', right=right)
    if (right := _OTHER_DASH.sub("-", text)) != text and _is_right(right):
        raise GrammarError(f'{quote(text)} has another sign where a range has "-"', right=right)
    if _SEVERAL.search(text):
        raise _apart(text)
    if not text.isascii() or not text.isprintable():
        raise GrammarError(f"{quote(text)} has characters that no port string has", "write plain digits, as in 2222:22")


def _apart(text: str) -> GrammarError:
    """Say how a text with blanks or commas is written: as one port string without them, or as several."""
    closed = re.sub(r"\s*([-:/])\s*", r"\1", text.strip())
    closed = re.sub(rf"(?<=[0-9])\s+({_PROTOCOL})(?![a-z+])", lambda match: f"/{match[1].lower()}", closed)
    closed = re.sub(rf"^({_PROTOCOL})\s+(?=[0-9[][^/\s]*$)", r"\1:", closed)
    if not _is_right(closed) and (match := _PROTOCOL_ELSEWHERE.fullmatch(closed)):
        closed = _with_protocol_last(match)
    if not _is_right(closed) and _PROTOCOL_BETWEEN.match(closed):
        closed = _with_protocol_behind(closed) or closed
    if _is_right(closed):
        return GrammarError(f"{quote(text)} has white space in it", right=closed)
    if parts := split_ports(closed):
        return GrammarError(f"{quote(text)} is several in one string", right=parts)
    behind = ', its protocol behind it, as in "53/udp"' if _PROTOCOL_AMONG.search(text) else ""
    remedy = f"write one port or range in each string{behind}"
    return GrammarError(f"{quote(text)} has white space or commas in it", remedy)


def split_ports(text: str) -> list[str]:
    """Give the port strings of a text that is a list in itself; none where one of them is wrong."""
    parts = list(dict.fromkeys(part for part in re.split(r"[\s,;]+", text) if part))
    return parts if all(map(_is_right, parts)) else []


def _is_right(text: str) -> bool:
    if _SEVERAL.search(text):
        return False
    try:
        parse_ports(text)
    except GrammarError:
        return False
    return True


def _refuse_other_forms(text: str) -> None:
    """Refuse what other programs have ranges and protocols in, where it can only mean one thing."""
    for pattern, what, mend in _OTHER_FORMS:
        match = pattern.match(text)
        if match and _is_right(right := mend(match)):
            raise GrammarError(f"{quote(text)} {what}", right=right)
    if match := _COLON_RANGE.fullmatch(text):
        _refuse_colon_range(text, match)
    elif match := _HALF_COLON_RANGE.fullmatch(text):
        _refuse_half_colon_range(text, match)
    if (match := _GUEST_BETWEEN.fullmatch(text)) and _PROTOCOL_AMONG.fullmatch(match["guest"]):
        raise GrammarError(f"{quote(text)} has protocols between its ports", 'write one at the end, as in "53:53/udp"')
    if match and _is_right(right := match["host"] + match["rest"]):
        what = "has a third port" if match["guest"].isdecimal() else "names the guest, which domain and address do"
        raise GrammarError(f"{quote(text)} {what}", right=right)


def _with_protocol_last(match: re.Match[str]) -> str:
    return f"{match['before'] or match['after']}/{(match['last'] or match['first']).lower()}"


def _with_protocol_behind(text: str) -> str:
    """Move the protocol from among the ports to the end; give nothing where a text names different ones."""
    named = {"+".join(sorted(set(re.split(r"[+,&|/]", words.lower())))) for words in _PROTOCOL_AMONG.findall(text)}
    return f"{_PROTOCOL_AMONG.sub(':', text).strip(':')}/{named.pop()}" if len(named) == 1 else ""


_OTHER_FORMS: tuple[tuple[re.Pattern[str], str, Callable[[re.Match[str]], str]], ...] = (
    (_PROTOCOL_ELSEWHERE, "has the protocol in another place", _with_protocol_last),
    (_PROTOCOL_BETWEEN, "has the protocol in another place", lambda match: _with_protocol_behind(match.string)),
    (_MANY_ENDS, "has more than two ends in a range", lambda match: _with_two_ends(match.string)),
    (_DOTTED_RANGE, "has dots where a range has a dash", lambda match: _DOTS.sub("-", match.string)),
    (_BEHIND_BRACKETS, 'has no ":" after the brackets', lambda match: f"{match['address']}:{match['rest']}"),
    (
        _WITH_PREFIX,
        "has a prefix length, which no listening address has",
        lambda match: match["before"] + match["after"],
    ),
    (_EVERY_ADDRESS, "names every address, which needs no word", lambda match: match["after"]),
)


def _with_two_ends(text: str) -> str:
    """Read four ends as two ranges; of three, only the first two surely belong to one."""
    return _THREE_ENDS.sub(r"\1", _FOUR_ENDS.sub(r"\1:\2", text))


def _refuse_colon_range(text: str, match: re.Match[str]) -> None:
    """Refuse ranges written with colons. One that leads to a single guest port keeps one host port only."""
    first, last, guest, guest_last, protocol = match.groups(default="")
    if int(first) >= int(last):
        return
    is_range = bool(guest_last) and guest != guest_last
    right = f"{first}-{last}:{guest}-{guest_last}{protocol}" if is_range else f"{first}:{guest}{protocol}"
    if not _is_right(right):
        return
    if is_range:
        raise GrammarError(
            f"{quote(text)} is no address and two ports, and a range has a dash", f"write dashes, {quote(right)}"
        )
    raise GrammarError(
        f"{quote(text)} is no address and two ports, and no range leads to one port", f"{_ONE_PORT}, {quote(right)}"
    )


def _refuse_half_colon_range(text: str, match: re.Match[str]) -> None:
    """Refuse two ranges of which one is written with a dash and one with a colon; of unequal ones, what is in both."""
    ends = [int(port) for port in re.split("[-:]", f"{match['host']}:{match['guest']}")]
    host, guest = ends[:2], ends[2:]
    width = min(host[1] - host[0], guest[1] - guest[0])
    ranges = (f"{first}-{first + width}" if width else str(first) for first in (host[0], guest[0]))
    right = f"{':'.join(ranges)}{match['protocol'] or ''}"
    if "-" in text and ":" in match["host"] + match["guest"] and _is_right(right):
        raise GrammarError(f"{quote(text)} has a colon where a range has a dash", right=right)


def _parse_protocols(text: str, protocol: str) -> tuple[Protocol, ...]:
    if protocol in _PROTOCOLS:
        return _PROTOCOLS[protocol]
    if not protocol:
        raise GrammarError(f'{quote(text)} names no protocol after "/"', _SUPPORTED)
    words = re.split(r"[,+/&|]", protocol.lower())
    meant = "+".join(sorted(words))
    if meant in _PROTOCOLS:
        hint = "in lower case, " if protocol != protocol.lower() else ""
        raise GrammarError(f"{quote(text)} writes the protocol in another way", f"write {hint}/{meant}")
    raise GrammarError(f"{quote(text)} names the protocol {quote(protocol)}, which is not supported", _SUPPORTED)


def _split_address(text: str, ports: str) -> tuple[str | None, str]:
    """Split off the listening address; what is left is `HOST` or `HOST:GUEST`."""
    if "[" in ports or "]" in ports:
        return _split_bracketed(text, ports)
    if ports.count(":") > _MOST_COLONS:
        raise GrammarError(f"{quote(text)} has too many colons", 'write an IPv6 address in brackets, "[ADDRESS]:PORT"')
    first, _, rest = ports.partition(":")
    if ports.count(":") == _MOST_COLONS or "." in first or first == "localhost":
        if text.startswith("::"):
            raise GrammarError(f'{quote(text)} has nothing before "::"', 'write an IPv6 address as "[ADDRESS]:PORT"')
        if not first:
            raise GrammarError(f'{quote(text)} has nothing before ":"', " for every address", right=text[1:])
        if not rest:
            raise GrammarError(f"{quote(text)} names no port", 'write it after the address, "ADDRESS:PORT"')
        return first, rest
    return None, ports


def _split_bracketed(text: str, ports: str) -> tuple[str, str]:
    match = re.fullmatch(r"\[([^][]*)\](?::([^][]*))?", ports)
    if match is None:
        raise GrammarError(f"{quote(text)} has brackets in the wrong places", " for IPv6", right="[ADDRESS]:PORT")
    address, numbers = match.groups()
    if ":" not in address:
        plain = text.replace("[", "").replace("]", "")
        raise GrammarError(f"{quote(text)} has brackets without an IPv6 address in them", right=plain)
    if not numbers:
        raise GrammarError(f"{quote(text)} names no port", 'write it after the address, "[ADDRESS]:PORT"')
    return address, numbers


def _parse_listen(text: str, address: str, protocols: tuple[Protocol, ...]) -> Address:
    try:
        return parse_listen(address)
    except LoopbackError as error:
        if Protocol.SCTP in protocols:
            raise GrammarError(f"{error.what}, which nothing serves with SCTP", f"remove {quote(text)}") from None
        raise


def _parse_range(text: str, ports: str) -> PortRange:
    if not ports:
        raise GrammarError(f'{quote(text)} lacks a port beside ":"', "write the host's port, \":\" and the guest's")
    first_text, dash, last_text = ports.partition("-")
    first = _parse_port(text, first_text)
    last = _parse_port(text, last_text) if dash else first
    if last < first:
        raise GrammarError(f"{quote(text)} has a reversed range", f"write {last}-{first}")
    return _range(first, last)


@lru_cache(maxsize=256)
def _range(first: int, last: int) -> PortRange:
    """Give the very same for all of the same: thousands of entries lead to few ports of their guests."""
    return PortRange(first, last)


def _parse_port(text: str, port: str) -> int:
    if not port:
        raise GrammarError(f'{quote(text)} lacks a port beside "-"', "write both ends, as in 8000-8099")
    if not (port.isascii() and port.isdigit()):
        if _PROTOCOL_AMONG.search(port):
            raise GrammarError(f"{_within(text, port)} is no port", 'write the protocol behind one, as in "53/udp"')
        remedy = f"write a number from 1 to {LAST_PORT}"
        raise GrammarError(
            f"{_within(text, port)} is no port", f"{remedy}{'' if re.search('[0-9]', port) else ' in quotes'}"
        )
    plain = port.lstrip("0")
    if not plain or len(plain) > _LONGEST_PORT or int(plain) > LAST_PORT:
        raise GrammarError(f"{_within(text, port)} is out of range", f"write a number from 1 to {LAST_PORT}")
    if plain != port:
        raise GrammarError(f"{_within(text, port)} starts with 0", f"write {plain}")
    return int(port)


def _within(text: str, part: str) -> str:
    """Name a part of a text, and the text only where that is more."""
    return quote(part) if part == text else f"{quote(text)}: {quote(part)}"


def _refuse_unequal_widths(text: str, numbers: str, host: PortRange, guest: PortRange) -> None:
    """Refuse them with the part of both that the text surely means: a wider one would open ports it does not name."""
    if host.width == guest.width:
        return
    width = min(host.width, guest.width) - 1
    ports = f"{PortRange(host.first, host.first + width)}:{PortRange(guest.first, guest.first + width)}"
    before, _, after = text.rpartition(numbers)
    right = quote(before + ports + after)
    if guest.width == 1:
        raise GrammarError(f"{quote(text)} leads {host.width} ports to the one port {guest}", f"{_ONE_PORT}, {right}")
    raise GrammarError(
        f"{quote(text)} is {host.width} wide on the host ({host}) but {guest.width} wide in the guest ({guest})",
        f"write equal widths, {right}",
    )
