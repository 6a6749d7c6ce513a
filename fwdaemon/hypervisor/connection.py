"""A connection to libvirt, and what its events say."""

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import libvirt

from fwdaemon.core.inventory import LibvirtObservation, Move
from fwdaemon.core.report import Reason, ReasonKind, Trigger
from fwdaemon.errors import LibvirtUnavailableError
from fwdaemon.hypervisor.networks import DNSMASQ_DIRECTORY, DhcpFiles, is_unsupported, unavailable
from fwdaemon.hypervisor.reader import Reader
from fwdaemon.hypervisor.xml import NAMESPACE
from fwdaemon.kernel.process import find_program

# What libvirt's events mean: of domain web1, that it "stopped (crashed)".
#
# Pure: numbers and names in, a reason out. The numbers are part of libvirt's ABI
# (https://libvirt.org/html/libvirt-libvirt-domain.html, libvirt-libvirt-network.html) and written down here, so that no
# event needs a call into libvirt and a number of a newer libvirt is no error.
_LIFECYCLE = (
    "defined",
    "undefined",
    "started",
    "suspended",
    "resumed",
    "stopped",
    "shutting down",
    "suspended by its guest",
    "crashed",
)
_DEFINED, _UNDEFINED, _STARTED, _SUSPENDED, _RESUMED, _STOPPED, _SHUTTING_DOWN, _ASLEEP_BY_GUEST, _CRASHED = range(9)
# What a guest does itself, as often as it likes: it wakes up; it has its disk fail or its watchdog bite, which pauses
# it; it shuts down, which may start it again; it sleeps; it crashes, or says so.
_BY_GUEST = {
    (_STARTED, 4),
    (_SUSPENDED, 2),
    (_SUSPENDED, 3),
    *((event, detail) for event in (_SHUTTING_DOWN, _ASLEEP_BY_GUEST, _CRASHED) for detail in range(4)),
}
# Those that say more than the event itself. A rename is reported as the end of one name, then as the begin of another.
_DETAILS: dict[int, dict[int, str]] = {
    _DEFINED: {2: "renamed"},
    _UNDEFINED: {1: "renamed"},
    _STARTED: {1: "migrated here", 2: "restored", 3: "from a snapshot"},
    _SUSPENDED: {
        1: "handed over to another host",
        7: "handed over, post-copy",
        8: "post-copy migration failed",
    },
    # After a migration that failed or was cancelled, the host it did not leave says so too.
    _RESUMED: {1: "migration ended", 3: "migrated here, post-copy", 4: "post-copy migration failed"},
    _STOPPED: {
        0: "shut down",
        1: "destroyed",
        2: "crashed",
        3: "handed over to another host",
        4: "saved",
        5: "failed",
        6: "reverted to a snapshot",
    },
}
# How libvirt starts a guest again that has just shut down or crashed, where its domain says so.
_RESTARTED = (_RESUMED, 0)
_MIGRATED = {(_STARTED, 1): Move.HERE, (_STOPPED, 3): Move.GONE}
_NETWORK_LIFECYCLE = ("defined", "undefined", "started", "stopped")
_AGENT_STATE = {1: "connected", 2: "disconnected"}
_CLOSE_REASON = ("an input/output error", "the end of the stream", "no answer to keepalive messages", "our own request")


def domain_lifecycle(name: str, event: int, detail: int) -> Reason:
    """Name a domain's lifecycle event, with `detail` where it says more, as why a domain stopped."""
    why = _DETAILS.get(event, {}).get(detail)
    text = f"{_word(_LIFECYCLE, event)}{f' ({why})' if why else ''}"
    return Reason(ReasonKind.DOMAIN, name, text, by_guest=(event, detail) in _BY_GUEST)


def migrated(event: int, detail: int) -> Move | None:
    """Whether a lifecycle event says that a domain is being received, or that it ended as another host has it."""
    return _MIGRATED.get((event, detail))


def domain_rebooted(name: str) -> Reason:
    """Say that the guest rebooted without its domain stopping."""
    return Reason(ReasonKind.DOMAIN, name, "rebooted", by_guest=True)


def domain_devices_changed(name: str) -> Reason:
    """Say that a device was plugged in or out."""
    return Reason(ReasonKind.DEVICES, name)


def agent_lifecycle(name: str, state: int) -> Reason:
    """Say that the guest agent came or went."""
    return Reason(ReasonKind.AGENT, name, _AGENT_STATE.get(state, "changed"))


def network_lifecycle(name: str, event: int) -> Reason:
    """Name a network's lifecycle event."""
    return Reason(ReasonKind.NETWORK, name, _word(_NETWORK_LIFECYCLE, event))


def close_reason(reason: int) -> str:
    """Say why libvirt's client closed a connection."""
    return _word(_CLOSE_REASON, reason)


def _word(words: tuple[str, ...], number: int) -> str:
    return words[number] if 0 <= number < len(words) else f"changed (event {number})"


# One hypervisor URI: its connection, the one to its networks, and the events of both.
#
# The two are one unit: when either is lost, both are closed, and the owner of this opens it again. Networks get a
# connection of their own because, with the modular daemons, network events asked for at the hypervisor's daemon stop
# silently when virtnetworkd restarts.
#
# Callbacks run in libvirt's event loop and do nothing but pass a reason on, and say what is in doubt; they ask libvirt
# nothing (name and UUID come with the event). Events that cannot matter to an address are not registered for: a change
# of a network's metadata, say. A change of its reservations sends none at all; the watch on dnsmasq's files sees it.
_log = logging.getLogger(__name__)

_KEEPALIVE_INTERVAL_S = 5
_KEEPALIVE_COUNT = 3

# Where it is not installed, the hypervisor's daemon has the networks, or there are none.
_NETWORK_DAEMON = "virtnetworkd"
_SCHEMES_WITH_NETWORK_DAEMON = frozenset({"qemu", "lxc", "xen"})
# The networks whose DHCP servers' files are where this program looks for them.
_OF_THIS_HOST = "network:///system"

Callback = Callable[..., None]


def network_uri(uri: str) -> str | None:
    """Give the URI of the networks beside a local hypervisor; `None` where its own connection has to serve.

    >>> network_uri("qemu:///session")
    'network:///session'
    """
    parts = urlsplit(uri)
    plain = parts.scheme in _SCHEMES_WITH_NETWORK_DAEMON and not parts.netloc and not parts.query
    return f"network://{parts.path}" if plain and parts.path in ("/system", "/session") else None


class LibvirtConnection:
    """Use it from one thread at a time. Libvirt's event loop calls `trigger` with a reason, and `lost` with a text."""

    def __init__(self, uri: str, trigger: Trigger, lost: Callable[[str], None]) -> None:
        self.uri = uri
        self._trigger = trigger
        self._lost = lost
        self._reader = Reader(uri, DhcpFiles(DNSMASQ_DIRECTORY) if network_uri(uri) == _OF_THIS_HOST else None)
        self._hypervisor: libvirt.virConnect | None = None
        self._networks: libvirt.virConnect | None = None
        self._deregister: list[Callable[[], object]] = []
        self._listens = False
        self._on_their_own: set[str] = set()
        self._repeated: set[tuple[str, Reason]] = set()

    def open(self) -> None:
        """Open both connections. The event loop must be running.

        Raises:
            LibvirtUnavailableError: it could not be opened; nothing stays open.

        """
        try:
            self._hypervisor = open_with_keepalive(self.uri)
            self._networks = self._open_networks(self._hypervisor)
            for connection in {self._hypervisor, self._networks}:
                self._watch_close(connection)
        except libvirt.libvirtError as error:
            self.close()
            raise unavailable(self.uri, error) from error

    def listen(self) -> None:
        """Register for events, unless that is done; the next observation asks for everything that came before.

        Raises:
            LibvirtUnavailableError: the connection is not open, or was lost on the way.

        """
        hypervisor, networks = self._opened()
        if self._listens:
            return
        self._listens = True
        try:
            self._watch_domains(hypervisor)
            self._watch_networks(networks)
        except libvirt.libvirtError as error:
            raise unavailable(self.uri, error) from error
        self._reader.invalidate()

    def deafen(self) -> None:
        """Have libvirt send no events any more: open others in place of the connections that do.

        Deregistering is not enough: with an event on its way, libvirt's client never passes on another, should one
        register again. To read none would have libvirtd keep all of them in its memory.

        Raises:
            LibvirtUnavailableError: no other could be opened; nothing stays open.

        """
        if self._listens:
            self.close()
            self.open()

    def observe(self) -> LibvirtObservation:
        """Take a fresh observation.

        Raises:
            LibvirtUnavailableError: the connection is not open, or was lost on the way.

        """
        self._repeated.clear()
        hypervisor, networks = self._opened()
        try:
            return self._reader.observe(hypervisor, networks)
        except libvirt.libvirtError as error:
            raise unavailable(self.uri, error) from error

    def relist(self) -> None:
        """Have the next observation find out which domains there are, and ask about those that are not as they were."""
        self._reader.relist()

    def invalidate(self) -> None:
        """Have the next observation ask for everything, also for what no event was about."""
        self._reader.invalidate()

    def close(self) -> None:
        """Deregister from everything and close; does nothing if it is closed already."""
        for deregister in reversed(self._deregister):
            with suppress(libvirt.libvirtError):  # the daemon may be gone; libvirt's side here is undone all the same
                deregister()
        self._deregister.clear()
        for connection in {self._networks, self._hypervisor}:
            if connection is not None:
                with suppress(libvirt.libvirtError):
                    connection.close()
        self._hypervisor = self._networks = None
        self._listens = False

    def _opened(self) -> tuple[libvirt.virConnect, libvirt.virConnect]:
        if self._hypervisor is None or self._networks is None:
            raise LibvirtUnavailableError(f"libvirt at {self.uri} does not answer: there is no connection")
        return self._hypervisor, self._networks

    def _open_networks(self, hypervisor: libvirt.virConnect) -> libvirt.virConnect:
        uri = network_uri(self.uri)
        if uri is None:
            return hypervisor
        try:
            return open_with_keepalive(uri)
        except libvirt.libvirtError as error:
            # A daemon of the networks that is away has not said that there are none.
            if find_program(_NETWORK_DAEMON) is not None and not is_unsupported(error):
                raise
            _log.info("%s cannot be opened, so networks are asked for at %s: %s", uri, self.uri, error)
            return hypervisor

    def _watch_close(self, connection: libvirt.virConnect) -> None:
        def closed(_connection: libvirt.virConnect, reason: int, _opaque: object) -> None:
            self._lost(close_reason(reason))

        if if_supported(connection.registerCloseCallback, closed, None) is not None:
            self._deregister.append(connection.unregisterCloseCallback)

    def _watch_domains(self, connection: libvirt.virConnect) -> None:
        def lifecycle(_connection: object, domain: libvirt.virDomain, event: int, detail: int, _opaque: object) -> None:
            reason = domain_lifecycle(domain.name(), event, detail)
            if (event, detail) == _RESTARTED and domain.UUIDString() in self._on_their_own:
                reason = replace(reason, by_guest=True)
            self._news(domain, reason, migrated(event, detail))

        def rebooted(_connection: object, domain: libvirt.virDomain, _opaque: object) -> None:
            self._news(domain, domain_rebooted(domain.name()))

        def devices(_connection: object, domain: libvirt.virDomain, *_details: object) -> None:
            self._news(domain, domain_devices_changed(domain.name()))

        def agent(_connection: object, domain: libvirt.virDomain, state: int, reason: int, _opaque: object) -> None:
            # That it is not there when its domain starts goes without saying, and ahead of the start itself.
            if reason != libvirt.VIR_CONNECT_DOMAIN_EVENT_AGENT_LIFECYCLE_REASON_DOMAIN_STARTED:
                self._news(domain, agent_lifecycle(domain.name(), state))

        def metadata(_connection: object, domain: libvirt.virDomain, _type: int, uri: str | None, _o: object) -> None:
            # Other programs keep things of their own there; a change of all of it names no namespace.
            if uri in (None, "", NAMESPACE):
                self._news(domain, Reason(ReasonKind.METADATA, domain.name()))

        self._watch_domain_event(connection, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, lifecycle)
        self._watch_domain_event(connection, libvirt.VIR_DOMAIN_EVENT_ID_REBOOT, rebooted)
        self._watch_domain_event(connection, libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_ADDED, devices)
        self._watch_domain_event(connection, libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED, devices)
        self._watch_domain_event(connection, libvirt.VIR_DOMAIN_EVENT_ID_AGENT_LIFECYCLE, agent)
        self._watch_domain_event(connection, libvirt.VIR_DOMAIN_EVENT_ID_METADATA_CHANGE, metadata)

    def _news(self, domain: libvirt.virDomain, reason: Reason, move: Move | None = None) -> None:
        """Say what happened; of what happens again before a look was taken, nothing more is to be said."""
        uuid = domain.UUIDString()
        (self._on_their_own.add if reason.by_guest else self._on_their_own.discard)(uuid)
        if (uuid, reason) in self._repeated:
            return
        self._repeated.add((uuid, reason))
        self._reader.invalidate(uuid, move)
        self._trigger(reason)

    def _watch_domain_event(self, connection: libvirt.virConnect, event: int, callback: Callback) -> None:
        number = if_supported(connection.domainEventRegisterAny, None, event, callback, None)
        if number is not None:
            self._deregister.append(lambda: connection.domainEventDeregisterAny(number))

    def _watch_networks(self, connection: libvirt.virConnect) -> None:
        def lifecycle(_connection: object, network: libvirt.virNetwork, event: int, *_details: object) -> None:
            self._reader.invalidate()
            self._trigger(network_lifecycle(network.name(), event))

        number = if_supported(
            connection.networkEventRegisterAny, None, libvirt.VIR_NETWORK_EVENT_ID_LIFECYCLE, lifecycle, None
        )
        if number is not None:
            self._deregister.append(lambda: connection.networkEventDeregisterAny(number))


def open_with_keepalive(uri: str) -> libvirt.virConnect:
    """Open a connection that notices a daemon which no longer answers, within 20 s (5 s, three times unanswered)."""
    connection = libvirt.open(uri)
    if_supported(connection.setKeepAlive, _KEEPALIVE_INTERVAL_S, _KEEPALIVE_COUNT)
    return connection


def if_supported(function: Callable[..., Any], *arguments: object) -> Any:
    """Call it; `None` where this driver has no such thing (those inside this process need no keepalive, say)."""
    try:
        return function(*arguments)
    except libvirt.libvirtError as error:
        if not is_unsupported(error):
            raise
        return None
