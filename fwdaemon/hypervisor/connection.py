"""One hypervisor URI: its connection, the one to its networks, and the events of both.

The two are one unit: when either is lost, both are closed, and whoever owns this opens it again. Networks get a
connection of their own because, with the modular daemons, network events asked for at the hypervisor's daemon stop
silently when virtnetworkd restarts.

Callbacks run in libvirt's event loop and do nothing but pass a sentence on, and say what is in doubt; they ask libvirt
nothing (name and UUID come with the event). Events that cannot matter to an address are not registered for: a change of
a network's metadata, say. A change of its reservations sends none at all; the watch on dnsmasq's files sees it.
"""

import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import libvirt

from fwdaemon import libvirt_events
from fwdaemon.errors import LibvirtUnavailableError
from fwdaemon.hypervisor.failure import is_unsupported, unavailable
from fwdaemon.hypervisor.reader import Reader
from fwdaemon.observation import LibvirtObservation
from fwdaemon.process import find_program

_log = logging.getLogger(__name__)

_KEEPALIVE_INTERVAL_S = 5
_KEEPALIVE_COUNT = 3

# Where it is not installed, the hypervisor's daemon has the networks, or nobody has.
_NETWORK_DAEMON = "virtnetworkd"
_SCHEMES_WITH_NETWORK_DAEMON = frozenset({"qemu", "lxc", "xen"})

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
    """Use it from one thread at a time. `trigger` and `lost` are called with a reason, from libvirt's event loop."""

    def __init__(self, uri: str, trigger: Callable[[str], None], lost: Callable[[str], None]) -> None:
        self.uri = uri
        self._trigger = trigger
        self._lost = lost
        self._reader = Reader(uri)
        self._hypervisor: libvirt.virConnect | None = None
        self._networks: libvirt.virConnect | None = None
        self._deregister: list[Callable[[], object]] = []

    def open(self) -> None:
        """Open both connections and register for their events. The event loop must be running.

        Raises:
            LibvirtUnavailableError: it could not be opened; nothing stays open.

        """
        try:
            self._hypervisor = open_with_keepalive(self.uri)
            self._networks = self._open_networks(self._hypervisor)
            for connection in {self._hypervisor, self._networks}:
                self._watch_close(connection)
            self._watch_domains(self._hypervisor)
            self._watch_networks(self._networks)
        except libvirt.libvirtError as error:
            self.close()
            raise unavailable(self.uri, error) from error

    def observe(self) -> LibvirtObservation:
        """Take a fresh observation.

        Raises:
            LibvirtUnavailableError: the connection is not open, or was lost on the way.

        """
        if self._hypervisor is None or self._networks is None:
            raise LibvirtUnavailableError(f"libvirt at {self.uri} does not answer: there is no connection")
        try:
            return self._reader.observe(self._hypervisor, self._networks)
        except libvirt.libvirtError as error:
            raise unavailable(self.uri, error) from error

    def doubt(self) -> None:
        """Have the next observation ask for everything, also for what no event was about."""
        self._reader.doubt()

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
            self._lost(libvirt_events.close_reason(reason))

        if if_supported(connection.registerCloseCallback, closed, None) is not None:
            self._deregister.append(connection.unregisterCloseCallback)

    def _watch_domains(self, connection: libvirt.virConnect) -> None:
        def lifecycle(_connection: object, domain: libvirt.virDomain, event: int, detail: int, _opaque: object) -> None:
            self._news(domain, libvirt_events.domain_lifecycle(domain.name(), event, detail))

        def rebooted(_connection: object, domain: libvirt.virDomain, _opaque: object) -> None:
            self._news(domain, libvirt_events.domain_rebooted(domain.name()))

        def devices(_connection: object, domain: libvirt.virDomain, *_details: object) -> None:
            self._news(domain, libvirt_events.domain_devices_changed(domain.name()))

        def agent(_connection: object, domain: libvirt.virDomain, state: int, reason: int, _opaque: object) -> None:
            # That it is not there when its domain starts goes without saying, and ahead of the start itself.
            if reason != libvirt.VIR_CONNECT_DOMAIN_EVENT_AGENT_LIFECYCLE_REASON_DOMAIN_STARTED:
                self._news(domain, libvirt_events.agent_lifecycle(domain.name(), state))

        self._watch_domain_event(connection, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, lifecycle)
        self._watch_domain_event(connection, libvirt.VIR_DOMAIN_EVENT_ID_REBOOT, rebooted)
        self._watch_domain_event(connection, libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_ADDED, devices)
        self._watch_domain_event(connection, libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED, devices)
        self._watch_domain_event(connection, libvirt.VIR_DOMAIN_EVENT_ID_AGENT_LIFECYCLE, agent)

    def _news(self, domain: libvirt.virDomain, reason: str) -> None:
        self._reader.doubt(domain.UUIDString())
        self._trigger(reason)

    def _watch_domain_event(self, connection: libvirt.virConnect, event: int, callback: Callback) -> None:
        number = if_supported(connection.domainEventRegisterAny, None, event, callback, None)
        if number is not None:
            self._deregister.append(lambda: connection.domainEventDeregisterAny(number))

    def _watch_networks(self, connection: libvirt.virConnect) -> None:
        def lifecycle(_connection: object, network: libvirt.virNetwork, event: int, *_details: object) -> None:
            self._reader.doubt()
            self._trigger(libvirt_events.network_lifecycle(network.name(), event))

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
