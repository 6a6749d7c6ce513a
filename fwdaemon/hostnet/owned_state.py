"""What is ours on the host: written records of it, and the settings we changed."""

import json
import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Final, TypeAlias
from uuid import UUID

from fwdaemon.audit.throttle import WarnOnce
from fwdaemon.core.inventory import AddressSource, LearnedAddress, MacClaim, Neighbour, ObservedDomain
from fwdaemon.core.report import ApplyResult, Fault, FaultKind, Setting
from fwdaemon.core.text import shown
from fwdaemon.core.types import Family
from fwdaemon.errors import KernelError
from fwdaemon.kernel import sysctl
from fwdaemon.kernel.rtnetlink import interface_index
from fwdaemon.resolve.guests import Chosen

# Written records of what we changed on the host, for what the kernel itself does not tell whose doing it was.
#
# They say *whose* a change is, never *that* it is so: every keeper asks the kernel for that. They lie in /run: a reboot
# forgets them together with the changes. A later run reads them, and puts back what is wanted no more. They are JSON,
# as an interface may have a name of any bytes.
_log = logging.getLogger(__name__)

DIRECTORY: Final = Path("/run/kvm-portfwd")

Record: TypeAlias = Mapping[str, str | int]


def have_directory(path: Path) -> None:
    """Make a directory that all users may enter, whatever our umask, unless it is there. Raises OSError."""
    with suppress(FileExistsError):
        path.mkdir(mode=0o755)
        path.chmod(0o755)


class OwnedStateFile:
    """A list of records, in the file `NAME.json`. It is read once, and written as a whole with each change."""

    def __init__(self, name: str, directory: Path = DIRECTORY) -> None:
        self._path = directory / f"{name}.json"
        self._records = _read(self._path)
        self._is_written, self._warning, self._reason = True, WarnOnce(), ""

    @property
    def records(self) -> tuple[Record, ...]:
        """What is recorded."""
        return self._records

    @property
    def is_whole(self) -> bool:
        """Whether the file is there, as far as there is anything to hold in it."""
        return not self._records or self._path.exists()

    def write(self, records: Iterable[Record]) -> bool:
        """Record these and no others, and return whether they are in the file.

        That they cannot be written is a warning, once, and they count even so; the next call tries again.
        """
        ordered = tuple(sorted(records, key=str))
        if ordered == self._records and self._is_written and self.is_whole:
            return True
        self._records, self._is_written = ordered, False
        new = self._path.with_name(f"{self._path.name}.new")
        try:
            have_directory(self._path.parent)
            new.write_text(f"{json.dumps(ordered)}\n")
            new.replace(self._path)
        except OSError as error:
            self._reason = f"{self._path}: {error.strerror}"
            self._warning.warn(f"cannot write {self._path} ({error.strerror}): settings may stay as they are now")
        else:
            self._is_written = True
            self._warning.settle()
        return self._is_written

    def write_first(self, records: Iterable[Record]) -> None:
        """Record these before what they are about is done.

        Raises:
            KernelError: they cannot be written. What was recorded before still is.

        """
        before = self._records, self._is_written
        if not self.write(records):
            self._records, self._is_written = before
            raise KernelError(f"its record cannot be written ({self._reason})")


def _read(path: Path) -> tuple[Record, ...]:
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return ()
    except (OSError, ValueError, RecursionError) as error:
        _log.warning("cannot read %s (%s): what it says is ours stays as it is", path, error)
        return ()
    return tuple(item for item in found if _is_record(item)) if isinstance(found, list) else ()


def _is_record(item: object) -> bool:
    return isinstance(item, dict) and all(isinstance(value, str | int) for value in item.values())


# A setting of interfaces that is switched while something needs it, and put back after.


@dataclass(slots=True)
class Switched:
    """What came of it: whether anything was written, what was set, and why an interface could not be switched."""

    changed: bool = False
    faults: dict[str, str] = field(default_factory=dict)
    settings: list[Setting] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Former:
    """What an interface had before; `index` distinguishes it from a later one of the same name."""

    index: int
    value: str


class SysctlOverrides:
    """Keeps a setting at `value` on the interfaces that need it; those that had it before are none of ours.

    The former values are in the owned-state file: nothing else would tell a later run whose doing that was. What the
    interfaces have now is read each time.
    """

    def __init__(self, state_file: OwnedStateFile, family: Family, setting: str, value: str) -> None:
        self._state_file = state_file
        self._family = family
        self._setting = setting
        self._value = value
        self._former = dict(_overrides_read(state_file.records))
        self._seen: dict[str, int] = {}

    @property
    def ours(self) -> Collection[str]:
        """The interfaces that we switched and have not put back."""
        return self._former.keys()

    def lacking(self, needed: Iterable[str]) -> list[str]:
        """Give the interfaces that have another value, touching nothing."""
        return [interface for interface in needed if sysctl.read(self._name(interface)) not in ("", self._value)]

    def taken(self, needed: Iterable[str]) -> frozenset[str]:
        """Give the interfaces that we switched, and those that we would, as they were never right without us."""
        there = frozenset(name for name, former in self._former.items() if interface_index(name) == former.index)
        return there.union(name for name in self.lacking(needed) if self._seen.get(name) != interface_index(name))

    def adopt(self, interface: str, former: str) -> None:
        """Record that we switched an interface, which had `former` before, where no record says so any more."""
        index = interface_index(interface)
        if index is not None and interface not in self._former and sysctl.read(self._name(interface)) == self._value:
            self._former[interface] = _Former(index, former)
            self._record()

    def apply(self, needed: Collection[str]) -> Switched:
        """Switch where it is needed, and put back where it is not."""
        switched = self._done(sorted(needed), self._switch, self.release(needed))
        self._seen = {name: index for name, index in self._seen.items() if name in needed}
        self._record()  # again, where it could not be written before
        return switched

    def release(self, needed: Collection[str]) -> Switched:
        """Put back where it is not needed. What others have changed since stays as it is."""
        self._forget_gone()
        return self._done(sorted(self._former.keys() - needed), self._put_back, Switched())

    def _done(self, interfaces: Collection[str], switch: Callable[[str, Switched], None], so_far: Switched) -> Switched:
        for interface in interfaces:
            try:
                switch(interface, so_far)
            except KernelError as error:
                so_far.faults[interface] = str(error)
        return so_far

    def _name(self, interface: str) -> str:
        return sysctl.of_interface(self._family, interface, self._setting)

    def _switch(self, interface: str, so_far: Switched) -> None:
        name = self._name(interface)
        before, index = sysctl.read(name), interface_index(interface)
        if not before or index is None:
            raise KernelError(f"there is no {shown(name)}")
        was_right = self._seen.get(interface) == index
        if before != self._value:
            if interface not in self._former and not was_right:
                self._record_first(interface, _Former(index, before))
                restored = False
            else:
                restored = True
            sysctl.write(name, self._value)
            so_far.changed = True
            so_far.settings.append(Setting(f"{name} = {self._value}", restored))
        self._seen[interface] = index

    def _put_back(self, interface: str, so_far: Switched) -> None:
        name = self._name(interface)
        if sysctl.read(name) == self._value:
            sysctl.write(name, self._former[interface].value)
            so_far.changed = True
        del self._former[interface]
        self._record()

    def _forget_gone(self) -> None:
        """Forget interfaces that went; another one of the same name has settings of its own."""
        there = {name: former for name, former in self._former.items() if interface_index(name) == former.index}
        if there != self._former:
            self._former = there
            self._record()

    def _record_first(self, interface: str, former: _Former) -> None:
        """Record the old value before switching an interface, so that the next run can restore it after a crash."""
        known = {**self._former, interface: former}
        try:
            self._state_file.write_first(_override_records(known))
        except KernelError as error:
            raise KernelError(f"cannot set {shown(self._name(interface))} to {self._value}: {error}") from error
        self._former = known

    def _record(self) -> None:
        self._state_file.write(_override_records(self._former))


def _override_records(known: Mapping[str, _Former]) -> list[Record]:
    return [
        {"interface": interface, "index": former.index, "former": former.value} for interface, former in known.items()
    ]


def _overrides_read(records: Iterable[Record]) -> Iterator[tuple[str, _Former]]:
    """Read what is recorded; what cannot be read was not written by us."""
    for record in records:
        match record:
            case {"interface": str(interface), "index": int(index), "former": str(former)}:
                yield interface, _Former(index, former)


# IPv6 on the bridges of networks that have none of their own.
#
# libvirt switches `disable_ipv6` on for them, and the kernel then takes no IPv6 route through the bridge. Without a
# link-local address there, it could not ask which guest has an address either (RFC 4861, section 7.2.2). What guests
# advertise as routers is not heeded on a bridge that was closed to them before, whatever the setting was.
_DISABLED, _HEEDED, _MODE = "disable_ipv6", "accept_ra", "addr_gen_mode"
_BY_MAC, _NEVER = "0", "1"  # enum in6_addr_gen_mode in linux/if_link.h
_IS_OFF: Final = "1"


class Ipv6Bridges:
    """Keeps IPv6 on for bridges that need it, and switches off again where we switched it on."""

    def __init__(self, state_file: Callable[[str], OwnedStateFile] = OwnedStateFile) -> None:
        self._opened = SysctlOverrides(state_file("disable-ipv6"), Family.IPV6, _DISABLED, "0")
        self._unheeded = SysctlOverrides(state_file("accept-ra"), Family.IPV6, _HEEDED, "0")
        self._addressed = SysctlOverrides(state_file("addr-gen-mode"), Family.IPV6, _MODE, _BY_MAC)

    def apply(self, bridges: Collection[str]) -> ApplyResult:
        """Do so, and return what was set, and what could not be."""
        self._opened.release(bridges)
        closed = [
            bridge
            for bridge in bridges
            if bridge in self._opened.ours or _ipv6_bridges_read(bridge, _DISABLED) == _IS_OFF
        ]
        unheeded = self._unheeded.apply(closed)
        # Not before it is closed to what guests advertise.
        may_open = set(bridges) - (unheeded.faults.keys() - self._opened.ours)
        done = [unheeded, self._opened.apply(may_open)]
        bare = [
            bridge for bridge in closed if bridge in self._addressed.ours or _ipv6_bridges_read(bridge, _MODE) == _NEVER
        ]
        done.append(self._addressed.apply(bare))
        faults = {bridge: reason for switched in reversed(done) for bridge, reason in switched.faults.items()}
        return ApplyResult(
            faults=tuple(Fault(FaultKind.NO_IPV6, (bridge,), reason) for bridge, reason in faults.items()),
            changed=any(switched.changed for switched in done),
            settings=tuple(setting for switched in done for setting in switched.settings),
        )


def _ipv6_bridges_read(bridge: str, setting: str) -> str:
    return sysctl.read(sysctl.of_interface(Family.IPV6, bridge, setting))


# Which interfaces entries lead to that name none, kept for the next start.
#
# Rules outlive the daemon, and a domain may get a second interface meanwhile: what led to the first one stays with it.
# Kept in /run like an owned-state file, a choice lasts as long as the rules do: a reboot forgets both.


class LedTo:
    """The choices of the daemon before, and of this one. `keep` writes a file, and is called from one thread."""

    def __init__(self, directory: Path = DIRECTORY) -> None:
        self._state_file = OwnedStateFile("interfaces", directory)

    @property
    def chosen(self) -> Chosen:
        """What was kept; what cannot be read as a choice is none."""
        return dict(choice for record in self._state_file.records if (choice := _led_to_read(record)) is not None)

    def keep(self, chosen: Chosen) -> bool:
        """Keep these choices and no others, and return whether that was done."""
        return self._state_file.write(
            {"domain": str(uuid), "family": family.name, "mac": mac} for (uuid, family), mac in chosen.items()
        )


def _led_to_read(record: Record) -> tuple[tuple[UUID, Family], str] | None:
    try:
        return (UUID(str(record["domain"])), Family[str(record["family"])]), str(record["mac"])
    except (KeyError, ValueError):
        return None


# Which addresses agents and the neighbour table named, kept for the next start.
#
# An agent takes seconds to answer, and the kernel forgets neighbours it has not talked to for long. Without this, a
# start would move or close what leads to a guest that only they name, and end its connections, until they speak again.

_Run: TypeAlias = tuple[UUID, int]
"""A domain, and libvirt's number of this run of it."""


class Learned:
    """What the daemon before heard, and this one. `keep` writes a file, and is called from one thread.

    It counts for that run of a domain only, and only until the same witness says something else.
    """

    def __init__(self, directory: Path = DIRECTORY) -> None:
        self._state_file = OwnedStateFile("learned", directory)
        self._kept: object = None
        in_order = sorted(self._state_file.records, key=_learned_place)
        claims = [claim for record in in_order if (claim := _learned_read(record)) is not None]
        self._before: defaultdict[_Run, list[MacClaim | Neighbour]] = defaultdict(list)
        for run, learned in claims:
            self._before[run].append(learned)

    def said(self, seen: ObservedDomain) -> tuple[MacClaim, ...]:
        """Give what the agent of this run of a domain said to the daemon before."""
        return tuple(learned for learned in self._before.get(_run(seen), ()) if isinstance(learned, MacClaim))

    def neighbours(self, domains: Iterable[ObservedDomain]) -> tuple[Neighbour, ...]:
        """Give the neighbours that the daemon before knew, of those runs of domains that go on."""
        learned = (item for seen in domains for item in self._before.get(_run(seen), ()))
        return tuple(item for item in learned if isinstance(item, Neighbour))

    def keep(
        self, domains: Collection[ObservedDomain], said: Mapping[UUID, Iterable[MacClaim]], near: Iterable[Neighbour]
    ) -> bool:
        """Keep this and nothing else, in its order, and return whether that was done."""
        present = [(_run(seen), seen.domain.interfaces) for seen in domains if seen.instance >= 0]
        runs = {interface.mac: run for run, interfaces in present for interface in interfaces}
        agents = ((run, claim) for run, _ in present for claim in said.get(run[0], ()))
        beside = ((runs[item.mac], item) for item in near if item.mac in runs)
        learned: tuple[tuple[_Run, MacClaim | Neighbour], ...] = (*agents, *beside)
        if learned != self._kept or not self._state_file.is_whole:
            records = (_learned_record(place, *item) for place, item in enumerate(learned))
            self._kept = learned if self._state_file.write(records) else None
        return self._kept is not None


def _run(seen: ObservedDomain) -> _Run:
    return seen.domain.uuid, seen.instance


def _learned_record(place: int, run: _Run, learned: MacClaim | Neighbour) -> Record:
    address = learned.address if isinstance(learned, Neighbour) else learned.learned.address
    record: Record = {"domain": str(run[0]), "instance": run[1], "mac": learned.mac, "address": str(address)}
    return {**record, "place": place} | ({"device": learned.device} if isinstance(learned, Neighbour) else {})


def _learned_place(record: Record) -> int:
    place = record.get("place")
    return place if isinstance(place, int) else 0


def _learned_read(record: Record) -> tuple[_Run, MacClaim | Neighbour] | None:
    try:
        run = UUID(str(record["domain"])), int(record["instance"])
        mac, address = str(record["mac"]), ip_address(record["address"])
    except (KeyError, ValueError):
        return None
    if "device" in record:
        return run, Neighbour(str(record["device"]), mac, address)
    return run, MacClaim(mac, LearnedAddress(address, AddressSource.AGENT))
