"""Takes the observation: what libvirt says of all domains and networks, in as few calls as possible.

Some calls are for each domain in doubt: it is looked up, asked for its state and, if it runs, for its definition. After
each event about it a domain is in doubt, and now and then all are, which then are listed by two calls. One that does
not run here, because it is migrating, always is. Of networks that are in doubt, two calls list all, and one for each
tells its definition; see `fwdaemon.hypervisor.networks`.
Domains and networks that go away in the middle are normal, and simply not there. If libvirt stays, but cannot answer
for one of them (a lease file it cannot read, a domain whose lock is held), or not so that we understand it, what it
said the last time stands in: one broken guest must not blind us to the others.
"""

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import replace
from queue import SimpleQueue
from typing import Any, Final
from uuid import UUID

import libvirt

from fwdaemon.core.inventory import (
    Domain,
    LibvirtObservation,
    Metadata,
    Move,
    ObservedDomain,
)
from fwdaemon.hypervisor.networks import Answers, DhcpFiles, Key, NetworkReader, is_gone
from fwdaemon.hypervisor.xml import (
    DomainDevices,
    DomainState,
    domain_state,
    move,
    parse_domain,
)

_PAUSED_OR_CRASHED: Final = libvirt.VIR_CONNECT_LIST_DOMAINS_PAUSED | libvirt.VIR_CONNECT_LIST_DOMAINS_OTHER
_MOST_DEPARTED: Final = 1000
# To ask about more new domains than this one by one costs more than a list of all.
_MANY_NEW: Final = 100
# Stands for a list in place of a UUID.
_LIST: Final = ""
_SHUT_OFF: Final = (DomainState.DOWN, DomainState.ENDED, DomainState.GONE)


class Reader:
    """Reads one connection; it remembers the last good answer about each domain and network, and what is in doubt."""

    def __init__(self, uri: str, files: DhcpFiles | None = None) -> None:
        self._answers = Answers(uri)
        self._known: dict[str, ObservedDomain] = {}
        self._before: dict[str, ObservedDomain] = {}
        self._parsed: dict[str, tuple[int, DomainDevices]] = {}
        self._received: set[str] = set()
        self._handed_over: set[str] = set()
        self._invalidations: SimpleQueue[tuple[str | None, Move | None]] = SimpleQueue()
        self._listed: dict[str, int] = {}
        self._in_doubt: set[str] = set()
        self._wants_list = True
        self._networks = NetworkReader(self._answers, files)

    def invalidate(self, uuid: str | None = None, move: Move | None = None) -> None:
        """Have a domain asked again the next time, or all of them. May be called from any thread.

        `move` is what the event about it says: it is being received (`HERE`), or another host has it (`GONE`).
        """
        self._invalidations.put((uuid, move))

    def relist(self) -> None:
        """Have the next observation find out which domains there are, and ask only those that are not as they were.

        May be called from any thread. What changed in a domain that runs on is not noticed.
        """
        self._invalidations.put((_LIST, None))

    def observe(self, hypervisor: libvirt.virConnect, networks: libvirt.virConnect) -> LibvirtObservation:
        """Take one observation. Raises `libvirt.libvirtError` when libvirt does not answer."""
        self._forget_invalidated()
        self._answers.begin()
        domains = tuple(self._domains(hypervisor))
        macs = {interface.mac for seen in domains for interface in seen.domain.interfaces}
        observation = LibvirtObservation(domains, tuple(self._networks.observe(networks, macs)))
        self._answers.end()
        return observation

    def _domains(self, connection: libvirt.virConnect) -> list[ObservedDomain]:
        asked = self._to_be_asked(connection)
        observed: dict[str, ObservedDomain] = {}
        for uuid in self._listed:
            seen = self._domain(*asked[uuid], uuid) if uuid in asked else self._as_known(uuid)
            if seen is not None:
                observed[uuid] = seen
        self._known = {uuid: seen for uuid, seen in observed.items() if not self._answers.is_silent(_devices(uuid))}
        self._before = observed | _departed(
            self._before, observed, self._handed_over | set(filter(self._ran_in_part, self._received))
        )
        self._received &= observed.keys()
        self._parsed = {uuid: item for uuid, item in self._parsed.items() if uuid in observed}
        self._handed_over.clear()
        return list(self._before.values())

    def _to_be_asked(self, connection: libvirt.virConnect) -> dict[str, tuple[libvirt.virDomain, bool]]:
        """Bring the list up to date; gives the domains to ask, and which of these may be paused or crashed.

        A list of all waits for each domain that libvirt starts or stops just then, which may be seconds. So it is asked
        for where all are in doubt only, or very many new ones, and what follows from news of one domain, or from a
        lease, does without.
        """
        if self._wants_list or len(self._in_doubt - self._listed.keys()) > _MANY_NEW:
            asked = self._list(connection)
        else:
            asked = {}
            for uuid in self._in_doubt | {uuid for uuid in self._listed if self._as_known(uuid) is None}:
                if (domain := self._looked_up(connection, uuid)) is not None:
                    asked[uuid] = domain, True
        self._wants_list = False
        self._in_doubt.clear()
        return asked

    def _list(self, connection: libvirt.virConnect) -> dict[str, tuple[libvirt.virDomain, bool]]:
        domains = {domain.UUIDString(): domain for domain in connection.listAllDomains()}
        unusual = {domain.UUIDString() for domain in connection.listAllDomains(_PAUSED_OR_CRASHED)}
        self._listed = {uuid: domain.ID() for uuid, domain in domains.items()}
        return {
            uuid: (domain, uuid in unusual)
            for uuid, domain in domains.items()
            if uuid in unusual or (known := self._as_known(uuid)) is None or known.domain.name != domain.name()
        }

    def _looked_up(self, connection: libvirt.virConnect, uuid: str) -> libvirt.virDomain | None:
        try:
            domain = connection.lookupByUUIDString(uuid)
        except libvirt.libvirtError as error:
            if not is_gone(error):
                raise
            self._listed.pop(uuid, None)
            return None
        self._listed[uuid] = domain.ID()
        return domain

    def _as_known(self, uuid: str) -> ObservedDomain | None:
        """Give what was seen of a listed domain, if nothing says that it is otherwise by now."""
        known = self._known.get(uuid)
        if known is None or known.instance != self._listed[uuid] or known.domain.move is not None:
            return None
        self._answers.keep(_devices(uuid))
        return known

    def _forget_invalidated(self) -> None:
        while not self._invalidations.empty():
            uuid, moved = self._invalidations.get()
            if uuid is None:
                self._known.clear()
            if not uuid:
                self._wants_list = True
                self._networks.invalidate()
                continue
            self._known.pop(uuid, None)
            self._in_doubt.add(uuid)
            if moved is Move.HERE:
                self._received.add(uuid)
            elif moved is Move.GONE:
                self._handed_over.add(uuid)

    def _domain(self, domain: libvirt.virDomain, unusual: bool, uuid: str) -> ObservedDomain | None:  # noqa: FBT001  a pair
        """Observe one domain; its number, name and UUID came with it and cost no call."""
        name, instance, key = domain.name(), domain.ID(), _devices(uuid)
        if instance < 0:
            return ObservedDomain(self._ended(domain, uuid, None))
        now = self._domain_state(domain, uuid) if unusual or uuid in self._received else DomainState.HERE
        if now in _SHUT_OFF:  # it ended after it was listed
            return ObservedDomain(self._ended(domain, uuid, now))
        if now in (DomainState.STARTING, DomainState.CRASHED):
            returning, metadata = now is DomainState.STARTING, self._last_metadata(uuid)
            return ObservedDomain(Domain(name, UUID(uuid), running=False, returning=returning, metadata=metadata))
        devices = self._answers.ask(key, domain, lambda: self._devices(uuid, domain.XMLDesc()))
        if devices is None or now is None:
            return None
        moving = self._move(now, uuid, instance)
        observed = Domain(name, UUID(uuid), running=moving is None, interfaces=devices.interfaces, move=moving)
        observed = replace(observed, metadata=devices.metadata, instance=instance)
        return ObservedDomain(observed, instance, devices.agent_connected and moving is None)

    def _devices(self, uuid: str, xml: str) -> DomainDevices:
        """Read a domain's XML, unless it is what it was: who owns it may have made it 4 MB, half a second to read."""
        number, known = hash(xml), self._parsed.get(uuid)
        if known is None or known[0] != number:
            known = self._parsed[uuid] = number, parse_domain(xml)
        return known[1]

    def _domain_state(self, domain: libvirt.virDomain, uuid: str) -> DomainState | None:
        """Ask where a domain stands; libvirt counts those that crashed, and those on the move, as active."""
        state: Any = self._answers.ask(("state", uuid), domain, domain.state)
        return None if state is None else domain_state(*state)

    def _move(self, now: DomainState, uuid: str, instance: int) -> Move | None:
        """Say which way an active domain is moving, and remember that it was received until it runs here wholly.

        A copy whose source has died shuts down, too, and has never run here.
        """
        ran_here = self._ran_here(uuid, instance)
        if now is DomainState.HERE:
            self._received.discard(uuid)
        elif now is DomainState.MIGRATING and not ran_here:
            self._received.add(uuid)
        received, known = uuid in self._received, self._before.get(uuid)
        before = known.domain.move if known is not None else Move.HERE if received else None
        return move(now, ran_here=ran_here, received=received, before=before)

    def _ran_here(self, uuid: str, instance: int) -> bool:
        before = self._before.get(uuid)
        has_run = before is not None and before.domain.move not in (Move.HERE, Move.ARRIVED)
        return before is not None and before.instance == instance and has_run

    def _ran_in_part(self, uuid: str) -> bool:
        """Whether a domain was seen running here while another host had part of its memory, and may go on."""
        before = self._before.get(uuid)
        return uuid in self._received and before is not None and before.domain.running

    def _ended(self, domain: libvirt.virDomain, uuid: str, now: DomainState | None) -> Domain:
        """Say of a domain that does not run whether it was handed over, as what it did last, or libvirt, says.

        Where it was not, it may be rebooting; how it ended is asked once, unless it is known `now`.
        """
        ran_in_part = self._ran_in_part(uuid)
        self._received.discard(uuid)
        before, metadata = self._before.get(uuid), self._last_metadata(uuid)
        ended = Domain(domain.name(), UUID(uuid), running=False, metadata=metadata)
        if before is None:
            return ended
        if before.instance < 0:
            return replace(ended, move=before.domain.move, returning=before.domain.returning)
        if ran_in_part or uuid in self._handed_over or _has_left(before):
            return replace(ended, move=Move.GONE)
        now = now or self._domain_state(domain, uuid)
        # One that runs again by now has rebooted.
        returning = now not in (DomainState.ENDED, DomainState.GONE)
        return replace(ended, move=Move.GONE if now is DomainState.GONE else None, returning=returning)

    def _last_metadata(self, uuid: str) -> Metadata | None:
        """Give the last metadata of a domain that does not run any more: it may be rebooting, or be on another host."""
        before = self._before.get(uuid)
        return None if before is None else before.domain.metadata


def _devices(uuid: str) -> Key:
    return "devices", uuid


def _has_left(seen: ObservedDomain) -> bool:
    return seen.domain.move in (Move.AWAY, Move.GONE)


def _departed(
    before: Mapping[str, ObservedDomain], now: Mapping[str, ObservedDomain], handed_over: AbstractSet[str]
) -> dict[str, ObservedDomain]:
    """Give the last domains that another host has and libvirt knows here no more, unless one has such a name again.

    `handed_over` are those whose end said so.
    """
    names = {seen.domain.name for seen in now.values()}
    gone = [
        (uuid, ObservedDomain(_left(seen.domain)))
        for uuid, seen in before.items()
        if uuid not in now and (uuid in handed_over or _has_left(seen)) and seen.domain.name not in names
    ]
    return dict(gone[-_MOST_DEPARTED:])


def _left(domain: Domain) -> Domain:
    """Say of a domain that another host has it."""
    return replace(domain, running=False, interfaces=(), move=Move.GONE, returning=False, instance=-1)
