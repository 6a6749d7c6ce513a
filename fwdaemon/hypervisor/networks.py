"""Reads networks and the leases on them; and what stands in where libvirt does not answer.

libvirt answers nothing at all at times, for seconds, while it starts or stops domains. So where the files of its DHCP
servers are on this host, leases are read there, as it does itself, and it is asked for networks only when they are in
doubt: at first, after an event about one, where the file of a network's reservations changed, and now and then.
"""

import json
import logging
import time
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar
from xml.etree.ElementTree import ParseError

import libvirt

from fwdaemon.core.inventory import AddressSource, LearnedAddress, MacClaim, ObservedNetwork
from fwdaemon.core.text import shown
from fwdaemon.errors import LibvirtUnavailableError
from fwdaemon.hypervisor.xml import NetworkDefinition, guest_address, normal_mac, parse_network
from fwdaemon.resolve.snapshot import LARGEST

_log = logging.getLogger(__name__)

DNSMASQ_DIRECTORY: Final = Path("/var/lib/libvirt/dnsmasq")

T = TypeVar("T")
Key = tuple[str, str]

# libvirt's errors, told apart: gone meanwhile, not supported by this driver, or no answer at all.
_GONE = frozenset(
    {
        libvirt.VIR_ERR_NO_DOMAIN,
        libvirt.VIR_ERR_NO_NETWORK,
        libvirt.VIR_ERR_OPERATION_INVALID,  # "domain is not running", "network is not active"
    }
)


def is_gone(error: libvirt.libvirtError) -> bool:
    """Tell whether the domain or network is no longer there, or no longer active."""
    return error.get_error_code() in _GONE


def is_unsupported(error: libvirt.libvirtError) -> bool:
    """Tell whether this driver cannot do it at all."""
    return error.get_error_code() == libvirt.VIR_ERR_NO_SUPPORT


def unavailable(uri: str, error: libvirt.libvirtError) -> LibvirtUnavailableError:
    """Turn libvirt's error into ours, one sentence."""
    return LibvirtUnavailableError(f"libvirt at {uri} does not answer: {error.get_error_message() or error}")


class Answers:
    """The last good answer to each question, which stands in where libvirt cannot tell now; of the rest, none is kept.

    An observation is taken between `begin` and `end`.
    """

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._last: dict[Key, Any] = {}
        self._now: dict[Key, Any] = {}
        self._silent: set[Key] = set()

    def begin(self) -> None:
        """Forget nothing yet: what is asked or kept from now on counts."""
        self._now = {}

    def end(self) -> None:
        """Forget what was neither asked nor kept."""
        self._last = self._now
        self._silent &= self._now.keys()

    def keep(self, key: Key) -> None:
        """Keep an answer that is in no doubt."""
        self._now[key] = self._last.get(key)

    def is_silent(self, key: Key) -> bool:
        """Whether libvirt could not tell the last time, so that an older answer stands in."""
        return key in self._silent

    def ask(self, key: Key, subject: libvirt.virDomain | libvirt.virNetwork, question: Callable[[], T]) -> T | None:
        """Ask; `None` if the subject is gone or has no such thing, and the last answer if libvirt cannot tell now."""
        answer: T | None
        try:
            answer = question()
        except libvirt.libvirtError as error:
            if is_gone(error) or is_unsupported(error):
                return None
            if not _is_alive(subject):
                raise
            answer = self._last_answer(key, subject.name(), error)
        except (ParseError, ValueError) as error:
            answer = self._last_answer(key, subject.name(), error)
        else:
            self._silent.discard(key)
        self._now[key] = answer
        return answer

    def _last_answer(self, key: Key, name: str, error: Exception) -> Any:
        if key not in self._silent:
            self._silent.add(key)
            _log.warning("libvirt at %s does not report the %s of %s: %s", self._uri, key[0], shown(name), error)
        return self._last.get(key)


def _is_alive(subject: libvirt.virDomain | libvirt.virNetwork) -> bool:
    """Tell whether the connection it came from still stands; asks only this side of it."""
    connection: libvirt.virConnect = subject.connect()  # type: ignore[no-untyped-call]
    return bool(connection.isAlive())


class DhcpFiles:
    """The files of libvirt's DHCP servers, below a directory of this host: what libvirt reads is as good as its word.

    `clock` gives the time as expiries are written, in seconds since 1970.
    """

    def __init__(self, directory: Path, clock: Callable[[], float] = time.time) -> None:
        self._directory, self._clock = directory, clock

    @property
    def are_there(self) -> bool:
        """Whether libvirt keeps such files there at all."""
        return self._directory.is_dir()

    def leases(self, bridge: str) -> list[dict[str, Any]] | None:
        """Give the leases on a bridge, as libvirt tells them; `None` where libvirt has to be asked.

        That is where there is no such file, or it is not as expected, or very long: then it costs libvirt, and not us.
        """
        try:
            with (self._directory / f"{_plain(bridge)}.status").open("rb") as file:
                text = file.read(LARGEST + 1)
        except (OSError, ValueError):
            return None
        return None if len(text) > LARGEST else written_leases(text, self._clock())

    def stamp(self, network: str) -> object:
        """Give what is another thing once the reservations of a network have changed."""
        try:
            found = (self._directory / f"{_plain(network)}.hostsfile").stat()
        except (OSError, ValueError):
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size


def _plain(name: str) -> str:
    """Give a name that is to be part of a file's. Raises ValueError where it would lead elsewhere."""
    if "/" in name:
        raise ValueError(name)
    return name


def written_leases(text: bytes, now: float) -> list[dict[str, Any]] | None:
    """Read what dnsmasq's helper writes, without those that ended; `None` where it is not as expected."""
    try:
        leases: list[dict[str, Any]] = [
            {"mac": str(item["mac-address"]), "ipaddr": str(item["ip-address"]), "expirytime": int(item["expiry-time"])}
            for item in json.loads(text or b"[]")
        ]
    except (ValueError, TypeError, KeyError, ArithmeticError, RecursionError):
        return None
    return [lease for lease in leases if not 0 < lease["expirytime"] < now]


@dataclass(frozen=True, slots=True)
class _Found:
    """A network as libvirt told it, with the stamp of its reservations; without a definition it went meanwhile."""

    name: str
    uuid: str
    stamp: object
    definition: NetworkDefinition | None

    @property
    def key(self) -> Key:
        """What its answers are remembered by."""
        return "network", self.uuid


class NetworkReader:
    """Reads the networks of one connection; without `files`, all of them are always in doubt."""

    def __init__(self, answers: Answers, files: DhcpFiles | None) -> None:
        self._answers, self._files = answers, files
        self._found: list[_Found] = []
        self._in_doubt = True

    def invalidate(self) -> None:
        """Have all of them asked for the next time."""
        self._in_doubt = True

    def observe(self, connection: libvirt.virConnect, macs: AbstractSet[str]) -> list[ObservedNetwork]:
        """Give them with the claims for these MAC addresses."""
        if self._in_doubt or not self._are_as_before():
            self._found = self._asked(connection)
            self._in_doubt = False
        else:
            for found in self._found:
                self._answers.keep(found.key)
        return [
            ObservedNetwork(told.network, told.reservations + self._leases(connection, found, told, macs))
            for found in self._found
            if (told := found.definition) is not None
        ]

    def _are_as_before(self) -> bool:
        if self._files is None or not self._files.are_there:
            return False
        stamps = all(self._stamp(found.name) == found.stamp for found in self._found)
        return stamps and not any(self._answers.is_silent(found.key) for found in self._found)

    def _stamp(self, name: str) -> object:
        return None if self._files is None else self._files.stamp(name)

    def _asked(self, connection: libvirt.virConnect) -> list[_Found]:
        try:
            networks = connection.listAllNetworks()
            active = {n.UUIDString() for n in connection.listAllNetworks(libvirt.VIR_CONNECT_LIST_NETWORKS_ACTIVE)}
        except libvirt.libvirtError as error:
            if is_unsupported(error):
                return []
            raise
        return [self._network(network, active=network.UUIDString() in active) for network in networks]

    def _network(self, network: libvirt.virNetwork, *, active: bool) -> _Found:
        stamp = self._stamp(network.name())  # first, or a change meanwhile would go unnoticed
        found = _Found(network.name(), network.UUIDString(), stamp, None)
        told = self._answers.ask(found.key, network, lambda: parse_network(network.XMLDesc(), active=active))
        return _Found(found.name, found.uuid, stamp, told)

    def _leases(
        self, connection: libvirt.virConnect, found: _Found, told: NetworkDefinition, macs: AbstractSet[str]
    ) -> tuple[MacClaim, ...]:
        bridge = told.network.bridge
        if not told.network.active:
            return ()
        if self._files is not None and bridge is not None and (leases := self._files.leases(bridge)) is not None:
            return lease_claims(leases, macs)
        try:
            network = connection.networkLookupByUUIDString(found.uuid)
        except libvirt.libvirtError as error:
            if is_gone(error):
                return ()
            raise
        return self._answers.ask(("leases", found.uuid), network, lambda: _told_leases(network, macs)) or ()


def _told_leases(network: libvirt.virNetwork, macs: AbstractSet[str]) -> tuple[MacClaim, ...]:
    leases: Any = network.DHCPLeases()
    return lease_claims(leases, macs)


def lease_claims(leases: list[dict[str, Any]], macs: AbstractSet[str]) -> tuple[MacClaim, ...]:
    """Read the leases of an active network that these MAC addresses have, the newest first.

    A MAC address can have several, one per client ID. Those of others are not kept: who sends from many MAC addresses
    can have as many as the network has addresses.
    """
    claims = (_lease(lease, macs) for lease in sorted(leases, key=_expiry, reverse=True))
    return tuple(claim for claim in claims if claim is not None)


def _expiry(lease: dict[str, Any]) -> float:
    """Give when a lease ends; 0 is libvirt's word for never."""
    return lease["expirytime"] or float("inf")


def _lease(lease: dict[str, Any], macs: AbstractSet[str]) -> MacClaim | None:
    mac, address = normal_mac(lease["mac"]), guest_address(lease["ipaddr"])
    if mac is None or mac not in macs or address is None:
        return None
    return MacClaim(mac, LearnedAddress(address, AddressSource.LEASE))
