"""Which public addresses of the shared table this host may have, and until when, by its own clock.

A claim is a key with a lease, made by a transaction, so that etcd knows of one holder at a time. What keeps two hosts
from having an address at once is the clock of the holder: it lets go before etcd could give the address to another,
whether or not it hears of that. CLOCK_BOOTTIME counts while the host sleeps, and it cannot be set (clock_gettime(2)).
"""

import json
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from math import inf
from pathlib import Path
from threading import Lock
from typing import Final
from uuid import uuid4

from fwdaemon.core.exposures import Nat
from fwdaemon.core.inventory import Hindrance, HindranceKind
from fwdaemon.core.report import Reason, ReasonKind
from fwdaemon.core.state import Desired, Waiting
from fwdaemon.core.types import Address, OnPartition, Origin
from fwdaemon.errors import STRANGE
from fwdaemon.fleet.table import Item, is_of_table
from fwdaemon.hostnet.owned_state import DIRECTORY, OwnedStateFile, Record
from fwdaemon.status.temporary import boottime

CLAIMS: Final = "claims/"
# What guests send right after they arrived leaves with their public address, though the claim may take a moment.
_MOMENT_S: Final = 15.0
# The kernel takes an address away up to about a second later than it was asked to (net/ipv4/devinet.c).
_LEAST_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Timing:
    """All in seconds: a lease holds for `lease`, is renewed each `renew`, and is trusted until `margin` before its end.

    Each `compare`, the number of keys and the newest of them are compared with what the watch has reported, each
    `relist` everything. What failed is tried again after `again`, and after `again_at_most` in the end.
    """

    lease: int = 15
    renew: float = 3.0
    margin: float = 3.0
    compare: float = 15.0
    relist: float = 300.0
    again: float = 0.25
    again_at_most: float = 4.0


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease of etcd's that this host has; `until` is when it may count on it no more, by CLOCK_BOOTTIME."""

    number: int = 0
    until: float = 0.0


@dataclass(frozen=True, slots=True)
class Holder:
    """Who has a claim: a host by its name, and `run`, a number made for each of its starts."""

    host: str
    run: str

    def as_value(self) -> bytes:
        """Give what stands in etcd."""
        return json.dumps({"host": self.host, "run": self.run}).encode()

    @classmethod
    def read(cls, value: bytes) -> "Holder":
        """Read that; what cannot be read is another host, without a name."""
        try:
            found = json.loads(value)
            return cls(str(found["host"]), str(found["run"]))
        except STRANGE:
            return cls("", "")


def claim_key(prefix: str, address: Address) -> bytes:
    """Give the key of the claim of an address."""
    return f"{prefix}/{CLAIMS}{address}".encode()


def claims_in(prefix: str, items: Iterable[Item]) -> dict[Address, Item]:
    """Give the claims among keys, by address; one that names no address is left out."""
    start, found = f"{prefix}/{CLAIMS}".encode(), dict[Address, Item]()
    for item in items:
        if item.key.startswith(start):
            try:
                found[ip_address(item.key.removeprefix(start).decode())] = item
            except ValueError:
                continue
    return found


@dataclass(slots=True)
class History:
    """What etcd has told of its store: its `origin`, and at a revision, when each key was written last.

    The origin is the number of the cluster, and the term of its leader, which only grows.
    """

    origin: tuple[int, int] = (0, 0)
    revision: int = 0
    written: dict[bytes, int] = field(default_factory=dict)

    @classmethod
    def of(cls, origin: tuple[int, int], revision: int, items: Iterable[Item]) -> "History":
        """Begin with a list."""
        return cls(origin, revision, {item.key: item.revision for item in items})

    def hear(self, items: Iterable[Item]) -> None:
        """Go on with what a watch has told."""
        for item in items:
            self.revision = max(self.revision, item.revision)
            if item.is_deleted:
                self.written.pop(item.key, None)
            else:
                self.written[item.key] = item.revision

    def follows(self, known: "History", then: Callable[[int], Iterable[Item] | None]) -> bool:
        """Whether this is the store of before; `then` gives what it had at a revision, or `None` if it has forgotten.

        One that was restored may have overtaken the revision that is known, by what was written since; but at that one
        it had something else. Where it has forgotten what, only that is seen which was not written again.
        """
        (cluster, term), (known_cluster, known_term) = self.origin, known.origin
        if not known.revision:
            return True
        if cluster != known_cluster or term < known_term:
            return False
        if (items := then(known.revision)) is not None:
            return {item.key: item.revision for item in items} == known.written
        return all(known.written.get(key) == at for key, at in self.written.items() if at <= known.revision)


class Claims:
    """What this host may have, wants and has. Safe to use from any thread; it calls `wake` when it wants another.

    It is recorded in /run, so that a daemon that is started again goes on with it: it was this host in any case.
    """

    def __init__(self, record: OwnedStateFile, clock: Callable[[], float] = boottime) -> None:
        self._record, self._clock, self._lock = record, clock, Lock()
        self.on_partition = OnPartition.RELEASE
        self.wake: Callable[[], object] = lambda: None
        self.run, self.lease, self._held, (self._revision, self._doubted_until) = _read(record.records)
        self._wanted: dict[Address, float] = {}
        self._others: Mapping[Address, str] = {}
        self._applied: frozenset[Address] | None = None
        self._reasons: list[Reason] = []
        self._looked_at: frozenset[Nat] = frozenset()
        self._claimed: list[Nat] = []
        self._known: tuple[Desired, tuple[Waiting, ...], frozenset[Nat], Desired] | None = None

    # --- what the thread that talks to etcd says and asks --------------------------------------------------------

    def confirm(self, addresses: Collection[Address], lease: Lease) -> None:
        """Note that etcd has these as ours, by this lease."""
        until = inf if self.on_partition is OnPartition.KEEP else lease.until
        with self._lock:
            self.lease = lease
            news = [address for address in addresses if not self._has(address)]
            self._held |= dict.fromkeys(addresses, until)
            self._reasons += [Reason(ReasonKind.CLAIM_TAKEN, str(address)) for address in news]
            self._write()

    def give_back(self, address: Address) -> None:
        """Note that one is not ours any more, and not needed here."""
        with self._lock:
            self._held.pop(address, None)
            self._write()

    def lose(self, addresses: Collection[Address], to: str = "") -> None:
        """Note that these are ours no more, and another host's, if that is known."""
        with self._lock:
            lost = [address for address in addresses if self._held.pop(address, None) is not None]
            self._reasons += [Reason(ReasonKind.CLAIM_LOST, str(address), to) for address in lost]
            self._write()

    def follow(self, on_partition: OnPartition) -> None:
        """Do from now on what is configured."""
        with self._lock:
            self.on_partition = on_partition
            if on_partition is OnPartition.RELEASE:
                self._held = {address: min(until, self.lease.until) for address, until in self._held.items()}

    def doubt(self) -> None:
        """Note that our lease has ended: what is ours by it may be another's any time, unless that is to be kept."""
        with self._lock:
            self.lease = Lease()
        if self.on_partition is OnPartition.RELEASE:
            self.lose(list(self._held))

    def learn_others(self, others: Mapping[Address, str]) -> None:
        """Note which other hosts have addresses; those are not ours."""
        with self._lock:
            self._others = dict(others)
        for address in self._held.keys() & others.keys():
            self.lose([address], others[address])

    def saw(self, revision: int, seconds: float, *, is_other: bool = False) -> None:
        """Note at which revision the store is now, and whether it `is_other` than the one that was known.

        Then, or where it was at a higher one before, an older state was restored, from before other hosts claimed what
        they hold still: nothing is to be taken for so long that all hosts have noticed, or have let go of it.
        """
        if is_other or revision < self._revision:
            self._revision, self._doubted_until = revision, self._clock() + seconds
        self.heard(revision)

    def heard(self, revision: int) -> None:
        """Note a revision that the store has been at."""
        self._revision = max(self._revision, revision)

    @property
    def is_in_doubt(self) -> bool:
        """Whether what etcd says is unclaimed, or ours, may be held by another host."""
        return self._clock() < self._doubted_until

    @property
    def wanted(self) -> frozenset[Address]:
        """Those that guests here need."""
        return frozenset(self._wanted)

    @property
    def held(self) -> tuple[Address, ...]:
        """Those that this host may have now."""
        with self._lock:
            return tuple(sorted(filter(self._has, self._held), key=lambda address: (address.version, address)))

    def superfluous(self, ours: Iterable[Address]) -> list[Address]:
        """Give those of our claims that are not needed here, and the kernel has no more."""
        applied = self._applied
        return [] if applied is None else [item for item in ours if item not in applied and item not in self._wanted]

    # --- what the daemon says and asks ---------------------------------------------------------------------------

    def take_reasons(self) -> list[Reason]:
        """Give what was taken and lost since the last call."""
        with self._lock:
            taken, self._reasons = self._reasons, []
        return taken

    @property
    def due(self) -> float | None:
        """When the next of those that this host has runs out, by time.monotonic."""
        with self._lock:
            ends = [until for until in self._held.values() if until != inf]
        return time.monotonic() + min(ends) - self._clock() - _LEAST_S if ends else None

    def seconds(self, nat: Nat) -> int | None:
        """Say for how long an address may be held from now on; `None` is for ever, 0 is not at all."""
        if not is_claimed(nat):
            return None
        left = self._held.get(nat.public, 0.0) - self._clock()
        return None if left == inf else max(0, int(left))

    def gate(self, desired: Desired) -> Desired:
        """Leave out the addresses that this host may not have now; an unchanged state stays the same object."""
        if self._looked_at is not desired.nats:
            self._looked_at, self._claimed = desired.nats, [nat for nat in desired.nats if is_claimed(nat)]
        wanted, now = self._claimed, self._clock()
        with self._lock:
            before, self._wanted = self._wanted, {nat.public: self._wanted.get(nat.public, now) for nat in wanted}
            missing = frozenset(nat for nat in wanted if not self._has(nat.public))
            fresh = frozenset(nat for nat in missing if now - self._wanted[nat.public] < _MOMENT_S)
        if self._wanted.keys() - before.keys():
            self.wake()
        if not missing:
            return desired
        waiting = tuple(self._waiting(nat) for nat in sorted(missing, key=lambda nat: str(nat.public)))
        if self._known is None or (self._known[0] is not desired or self._known[1:3] != (waiting, fresh)):
            self._known = (desired, waiting, fresh, self._gated(desired, missing, fresh, waiting))
        return self._known[3]

    def applied(self, desired: Desired) -> None:
        """Note what the kernel has now."""
        self._applied = frozenset(nat.public for nat in desired.nats if is_claimed(nat))

    @staticmethod
    def _gated(
        desired: Desired, missing: frozenset[Nat], fresh: frozenset[Nat], waiting: tuple[Waiting, ...]
    ) -> Desired:
        gated = replace(
            desired,
            nats=desired.nats - missing,
            imminent=desired.imminent | fresh,
            waiting=(*desired.waiting, *waiting),
        )
        return gated.knowing(desired.families, desired.bridge_ports, desired.bridges)

    def _waiting(self, nat: Nat) -> Waiting:
        other = self._others.get(nat.public)
        kind = HindranceKind.NO_CLAIM if other is None else HindranceKind.CLAIMED_BY_HOST
        hindrance = Hindrance(kind, address=nat.public, names=() if other is None else (other,))
        return Waiting(nat.owner, hindrance, nat.origin or Origin(Path(), 0), public=nat.public)

    def _has(self, address: Address) -> bool:
        return self._held.get(address, 0.0) - self._clock() > _LEAST_S

    def _write(self) -> None:
        records: list[Record] = [
            {
                "run": self.run,
                "lease": self.lease.number,
                "until": str(self.lease.until),
                "revision": self._revision,
                "doubted": str(self._doubted_until),
            }
        ]
        records += [{"address": str(address), "until": str(until)} for address, until in self._held.items()]
        self._record.write(records)


def recorded(directory: Path = DIRECTORY) -> Claims:
    """Give the claims of the daemon of this host as it wrote them last, for one look at them."""
    return Claims(OwnedStateFile("fleet", directory))


def is_claimed(nat: Nat) -> bool:
    """Whether it takes a claim to have an address."""
    return nat.assign is not None and is_of_table(nat.origin)


def _read(records: Iterable[Record]) -> tuple[str, Lease, dict[Address, float], tuple[int, float]]:
    """Read what an earlier daemon of this run of the host recorded; without that, this is a new one."""
    run, lease, held, revision = uuid4().hex, Lease(), dict[Address, float](), (0, 0.0)
    for record in records:
        try:
            until = float(record["until"])
            if "address" in record:
                held[ip_address(record["address"])] = until
            else:
                run, lease = str(record["run"]), Lease(int(record["lease"]), until)
                revision = int(record.get("revision", 0)), float(record.get("doubted", 0))
        except STRANGE:
            continue
    return run, lease, held, revision
