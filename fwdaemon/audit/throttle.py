"""Which lines are news: what is wrong is said once, and what flaps is counted; and the many lines of connections.

The time is always an argument.
"""

import logging
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final, TypeAlias

from fwdaemon.audit.journal import MESSAGE_IDS
from fwdaemon.core.exposures import Exposure, Owner
from fwdaemon.core.report import AnyFault, Cause, GateChange, Setting, SettingKind
from fwdaemon.core.state import Waiting
from fwdaemon.core.text import shown
from fwdaemon.core.types import Address, Gate, Protocol, Subnet, show_endpoint

# Which of the things that are wrong now are news. Pure; the time is given.
#
# What waits, and why, is said once. A fault is said once it has lasted for a moment: while libvirt takes a network
# down, the kernel reports that a bridge went before libvirt reports that the network did.
LASTING_S = 1.0


class NewProblems:
    """Remembers what has been said."""

    def __init__(self, lasting_s: float = LASTING_S) -> None:
        self._lasting_s = lasting_s
        self._waiting: frozenset[Waiting] = frozenset()
        self._faults: dict[AnyFault, float] = {}
        self._said: frozenset[AnyFault] = frozenset()

    def of_waiting(self, entries: Iterable[Waiting], live: Collection[Owner], *, everything: bool) -> list[Waiting]:
        """Give the new entries; `live` are those who had exposures just before.

        That one of these stopped is said with its exposures.
        """
        present = dict.fromkeys(entry for entry in entries if not entry.is_idle)
        unsaid = [entry for entry in present if entry not in self._waiting]
        new = [entry for entry in unsaid if everything or not (entry.stopped and entry.owner in live)]
        self._waiting = frozenset(present)
        return new

    def of_faults(self, faults: Iterable[AnyFault], now: float, *, everything: bool) -> list[AnyFault]:
        """Give the faults that have lasted and were not said yet; with `everything`, those of this moment too."""
        self._faults = {fault: self._faults.get(fault, now) for fault in faults}
        lasting = [fault for fault, since in self._faults.items() if everything or now >= since + self._lasting_s]
        new = [fault for fault in lasting if fault not in self._said]
        self._said = frozenset(fault for fault in self._faults if fault in self._said or fault in lasting)
        return new

    @property
    def ends(self) -> float | None:
        """When the next fault will have lasted; `None` when all have been said."""
        unsaid = (since + self._lasting_s for fault, since in self._faults.items() if fault not in self._said)
        return min(unsaid, default=None)


class Rations:
    """Limits the lines about what one domain asks for and is refused: its metadata may ask for much at once."""

    def __init__(self, lines: int = 6, window_s: float = 60.0) -> None:
        self._lines, self._window_s = lines, window_s
        self._said: dict[Owner, list[float]] = {}

    def admitted(self, entries: Iterable[Waiting], now: float) -> list[Waiting]:
        """Give those that are to be written; the status shows all."""
        recent = {owner: [at for at in said if now < at + self._window_s] for owner, said in self._said.items()}
        self._said = {owner: said for owner, said in recent.items() if said}
        return [entry for entry in entries if not entry.declined or self._admit(entry.owner, now)]

    def _admit(self, owner: Owner, now: float) -> bool:
        said = self._said.setdefault(owner, [])
        if len(said) >= self._lines:
            return False
        said.append(now)
        return True


# Warnings about what is tried again and again.
_log = logging.getLogger(__name__)


class WarnOnce:
    """Says what is wrong when it is new, and not again until it was well in between."""

    def __init__(self) -> None:
        self._said = ""

    def warn(self, text: str) -> None:
        """Say what is wrong."""
        if text != self._said:
            _log.warning("%s", text)
            self._said = text

    def settle(self, over: str = "") -> None:
        """Note that it is well, and say that it is again, where there is a text for that."""
        if self._said and over:
            _log.info("%s", over)
        self._said = ""


# Keeps the audit readable when something flaps: after some lines about one thing, it counts them.
#
# Pure; the time is given.
Subject: TypeAlias = Exposure | GateChange | Setting
"""What a line is about."""
_Key: TypeAlias = tuple[Owner | SettingKind, str] | Gate

# So many lines about one subject within so many seconds are news; what comes after is counted.
LINES = 6
WINDOW_S = 60.0


@dataclass(frozen=True, slots=True)
class Flapped:
    """Something changed `number` more times in `seconds`; the last of them was `action`, for `cause`."""

    subject: Subject
    number: int
    seconds: float
    action: str
    cause: Cause


@dataclass(slots=True)
class _Window:
    since: float
    lines: int = 0
    counted: int = 0
    last: tuple[Subject, str, Cause] | None = None


class FlapDamping:
    """Counts the lines about each gate and setting, and each exposure, known by its owner and where it listens."""

    def __init__(self, lines: int = LINES, window_s: float = WINDOW_S) -> None:
        self._lines = lines
        self._window_s = window_s
        self._windows: dict[_Key, _Window] = {}

    def admit(self, subject: Subject, action: str, cause: Cause, now: float) -> bool:
        """Whether a line is to be written; otherwise it is counted. Ask for `due` first."""
        window = self._windows.setdefault(_key(subject), _Window(now))
        if window.lines < self._lines:
            window.lines += 1
            return True
        window.counted += 1
        window.last = (subject, action, cause)
        return False

    def due(self, now: float) -> list[Flapped]:
        """Give what was counted in windows that are over, and forget these."""
        over = [key for key, window in self._windows.items() if now >= window.since + self._window_s]
        closed = [self._windows.pop(key) for key in over]
        return [
            Flapped(window.last[0], window.counted, now - window.since, *window.last[1:])
            for window in closed
            if window.last is not None
        ]

    @property
    def ends(self) -> float | None:
        """When a line about something counted is due; `None` where none is."""
        counting = (window.since + self._window_s for window in self._windows.values() if window.counted)
        return min(counting, default=None)


def _key(subject: Subject) -> _Key:
    match subject:
        case GateChange():
            return subject.gate
        case Setting():
            return subject.kind, subject.what
    return subject.owner, subject.listens_at()


# The log of connections, line by line, of forwards that ask for it, and how many lines there may be.
_audit = logging.getLogger("fwdaemon.audit")

_UNKNOWN_SIZE: Final = "bytes are not counted (net.netfilter.nf_conntrack_acct)"


@dataclass(frozen=True, slots=True)
class LoggedConnection:
    """A connection of a forward that began, or with `ended` one that did.

    `client` sent it to `listen`, from a port that is `None` where only a part of the address is logged, and `target` is
    the guest's side. `number` is the kernel's for it. It took so many `seconds`, `None` where its begin is not known,
    and carried `size` bytes both ways, `None` where the kernel does not count.
    """

    ended: bool
    owner: Owner
    protocol: Protocol
    client: Address | Subnet
    client_port: int | None
    listen: tuple[Address, int]
    target: tuple[Address, int]
    number: int
    seconds: float | None = None
    size: int | None = None


def connection(logged: LoggedConnection) -> None:
    """Say that a connection began, or that it ended."""
    action = "disconnected" if logged.ended else "connected"
    protocol, client = logged.protocol, _client(logged)
    listen, target = (show_endpoint(address, str(port)) for address, port in (logged.listen, logged.target))
    text = f"{action} {shown(logged.owner.name)}: {protocol} {client} -> {listen} -> {target}"
    fields = {
        "MESSAGE_ID": MESSAGE_IDS[action],
        "PORTFWD_ACTION": action,
        "PORTFWD_DOMAIN": logged.owner.name,
        "PORTFWD_CLIENT": str(logged.client),
        "PORTFWD_LISTEN": f"{protocol} {listen}",
        "PORTFWD_TARGET": target,
        "PORTFWD_CONNECTION": f"{logged.number:08x}",
    }
    if logged.client_port is not None:
        fields["PORTFWD_CLIENT_PORT"] = str(logged.client_port)
    if logged.ended:
        text += f" ({_ending(logged)})"
        fields |= {"PORTFWD_SECONDS": f"{logged.seconds:.3f}"} if logged.seconds is not None else {}
        fields |= {"PORTFWD_BYTES": str(logged.size)} if logged.size is not None else {}
    _audit.info("%s", text, extra={"journal": fields})


def unlogged(number: int, seconds: float) -> None:
    """Say how many begins and ends of connections were not written in so many seconds."""
    text = f"{number} begins and ends of connections were not logged in {seconds:.0f} s: there were too many"
    fields = {"MESSAGE_ID": MESSAGE_IDS["unlogged"], "PORTFWD_ACTION": "unlogged"}
    _audit.warning("%s", text, extra={"journal": fields})


def _ending(logged: LoggedConnection) -> str:
    lasted = "for an unknown time" if logged.seconds is None else f"{logged.seconds:.1f} s"
    return f"{lasted}, {_UNKNOWN_SIZE if logged.size is None else f'{logged.size} bytes'}"


def _client(logged: LoggedConnection) -> str:
    """Write who it is, with the port where the whole address is logged."""
    match logged.client, logged.client_port:
        case (IPv4Address() | IPv6Address()) as address, int(port):
            return show_endpoint(address, str(port))
    return str(logged.client)


class Ration:
    """So many lines a second, and so many at once after a quiet time: the journal, too, takes only so many of us."""

    def __init__(self, each_second: float, most: float) -> None:
        self._each_second, self._most = each_second, most
        self._left, self._since = most, 0.0

    def take(self, now: float) -> bool:
        """Whether one more may be written."""
        self._left = min(self._most, self._left + self._each_second * (now - self._since))
        self._since = now
        if self._left < 1:
            return False
        self._left -= 1
        return True
