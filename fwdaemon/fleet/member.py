"""The thread of a host in a fleet, which follows the table in etcd, and claims public addresses.

A second thread waits for what etcd says, and the first does everything else. The daemon waits for neither: it reads
what is known, and is woken when that has changed.
"""

import json
import logging
import os
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, Final

from fwdaemon.audit import lines
from fwdaemon.audit.throttle import WarnOnce
from fwdaemon.config.loader import TABLE
from fwdaemon.config.model import Config
from fwdaemon.core.report import Fault, FaultKind
from fwdaemon.core.state import Desired
from fwdaemon.core.types import Address, FleetState, OnPartition
from fwdaemon.errors import ConfigError, PortfwdError, Problem
from fwdaemon.fleet.claims import Claims, History, Holder, Lease, Timing, claim_key, claims_in
from fwdaemon.fleet.etcd import Client, EtcdError, Watch, coded
from fwdaemon.fleet.table import Item, KeptTable, Site, Table, host_key, is_of_table, name_of
from fwdaemon.status.temporary import boottime
from fwdaemon.triggers import Backoff

_log = logging.getLogger(__name__)

_MOST_COMPARED: Final = 100
_PROBE_S: Final = 1.0
_MOST_TOLD: Final = 200


@dataclass(frozen=True, slots=True)
class _News:
    """What the watch `by` says: what changed; or, with an `error`, that it has ended."""

    by: object
    items: tuple[Item, ...] = ()
    error: str = ""


class Member:
    """The thread, which connects to etcd until something is in doubt, and then lists everything again.

    What it knows is read from other threads by its public methods alone.
    """

    def __init__(self, site: Site, claims: Claims, kept: KeptTable, table: Table, notify: Callable[[], None]) -> None:
        """Begin with the table that is kept; `notify` is called from the thread when something is to be looked at."""
        self._site, self._settings, self._prefix = site, site.settings, site.settings.prefix
        self._claims, self._kept, self._notify, self._timing = claims, kept, notify, Timing()
        self._messages: SimpleQueue[_News | None] = SimpleQueue()
        self._table, self._news = table, list[tuple[Table, Config]]()
        self._reached, self._served = Desired(), dict[str, list[str]]()
        self._heard, self._answering, self._trouble = 0.0, 0, ""
        self._refused: tuple[Problem, ...] = ()
        self._over, self._remove = threading.Event(), False
        self._warning = WarnOnce()
        self._self = Holder(os.uname().nodename, claims.run)
        self._thread = threading.Thread(target=self._run, name="fleet", daemon=True)
        self._history = History()
        self._client, self._prober = Client(self._settings), Client(self._settings, _PROBE_S)
        # Of one time of being connected.
        self._watch: Watch | None = None
        self._items: dict[bytes, Item] = {}
        self._presence, self._due = b"", dict[str, float]()
        self._lag: tuple[int, int] | None = None

    # --- for other threads ---------------------------------------------------------------------------------------

    def start(self, timing: Timing) -> None:
        """Begin; where no thread is available, there is no fleet until the next reload."""
        self._timing, self._claims.wake = timing, lambda: self._messages.put(None)
        try:
            self._thread.start()
        except RuntimeError as error:
            self._trouble = f"no thread is available: {error}"

    def end(self, *, remove: bool = False) -> None:
        """Have it end; with `remove`, give back what this host claims."""
        self._remove = remove
        self._over.set()
        self._messages.put(None)

    @property
    def is_alive(self) -> bool:
        """Whether it has not ended yet."""
        return self._thread.is_alive()

    def take(self) -> tuple[Table, Config] | None:
        """Give a newer table, and what it says, once."""
        return self._news.pop() if self._news else None

    def serve(self, desired: Desired) -> None:
        """Note what of the table is reachable here."""
        if desired is not self._reached:
            self._reached, self._served = desired, served(desired)
        self._messages.put(None)

    @property
    def problems(self) -> tuple[Fault, ...]:
        """What is wrong."""
        trouble = (Fault(FaultKind.ERROR, detail=self._trouble),) if self._trouble else ()
        return (*trouble, *(Fault(FaultKind.ERROR, detail=str(problem)) for problem in self._refused))

    @property
    def state(self) -> FleetState:
        """How it is with etcd."""
        age = boottime() - self._heard if self._heard else None
        numbers = self._answering, len(self._settings.etcd), self._table.revision
        return FleetState(*numbers, age, len(self._table.texts), self._claims.held)

    # --- the thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        pauses = Backoff(self._timing.again, self._timing.again_at_most)
        while not self._over.is_set():
            try:
                self._connect()
                pauses.settle()
                while not self._over.is_set():
                    self._go_on()
            except (PortfwdError, OSError, RuntimeError) as error:
                self._fail(str(error))
            except Exception:  # noqa: BLE001 - the thread outlives a mistake of its own, and shows where it is
                _log.exception("this is a bug in kvm-portfwd; etcd is asked again")
            self._disconnect()
            self._over.wait(pauses.next())
        if self._remove:
            self._give_back()

    def _fail(self, trouble: str) -> None:
        self._answering = 0
        self._warning.warn(f"etcd: {trouble}; trying again")
        if self._trouble != (said := f"etcd: {trouble}"):
            self._trouble = said
            self._notify()

    def _disconnect(self) -> None:
        if self._watch is not None:
            self._watch.close()
        self._client.close()
        self._prober.close()

    def _give_back(self) -> None:
        with suppress(EtcdError):
            for address in self._claims.held:
                self._claims.give_back(address)
            self._client.revoke(self._claims.lease.number)
        self._client.close()

    def _connect(self) -> None:
        """Have a lease and the table, and follow what changes. Raises EtcdError."""
        self._watch, self._presence, self._lag, self._items = None, b"", None, {}
        lease = self._keep_alive()
        self._list()
        self._confirm(lease)
        self._answering = self._prober.answering()
        if self._trouble:
            self._trouble = ""
            self._warning.settle("etcd answers again")
            self._notify()

    def _go_on(self) -> None:
        """Do what is to be done now, and wait for more. Raises EtcdError."""
        self._claim()
        self._show_presence()
        now = boottime()
        try:
            news = self._messages.get(timeout=max(0.0, min(self._due.values()) - now))
        except Empty:
            news = None
        if isinstance(news, _News) and news.by is self._watch:
            self._hear(news)
        for what, do in (("renew", self._renew), ("compare", self._compare), ("relist", self._list)):
            if self._due[what] <= boottime():
                do()

    # --- the lease -----------------------------------------------------------------------------------------------

    def _renew(self) -> None:
        self._confirm(self._keep_alive())

    def _keep_alive(self) -> Lease:
        """Renew the lease, or get one; what etcd has as ours then is ours until shortly before that ends.

        It counts from before the question was sent: the answer may have been under way for as long as it took.
        """
        self._due["renew"] = boottime() + self._timing.renew
        number, sent = self._claims.lease.number, boottime()
        seconds = self._client.keep_alive(number) if number else 0
        if not seconds:
            if number:
                self._claims.doubt()
            sent = boottime()
            number, seconds = self._client.grant(self._timing.lease)
            self._presence = b""
        self._heard = boottime()
        lease = Lease(number, sent + min(seconds, self._timing.lease) - self._timing.margin)
        self._claims.confirm((), lease)
        return lease

    def _confirm(self, lease: Lease) -> None:
        """Have etcd say that all our claims are still there, by this lease: the store may be an older one by now."""
        ours = self._ours()
        for start in range(0, len(ours), _MOST_COMPARED):
            some = ours[start : start + _MOST_COMPARED]
            if not self._client.transact([_has_lease(self._prefix, item, lease.number) for item in some]).succeeded:
                self._list()
                return
            held = self._claims.held
            self._claims.confirm([item for item in some if item in held or not self._claims.is_in_doubt], lease)
        if ours:
            self._notify()

    def _ours(self) -> list[Address]:
        """Give the addresses that are claimed by the lease we have."""
        number = self._claims.lease.number
        claims = claims_in(self._prefix, self._items.values())
        return [address for address, item in claims.items() if item.lease == number and self._is_ours(item)]

    def _is_ours(self, item: Item) -> bool:
        return Holder.read(item.value).run == self._self.run

    # --- what etcd holds -----------------------------------------------------------------------------------------

    def _list(self) -> None:
        """Read everything, and follow what changes from there on."""
        if self._watch is not None:
            self._watch.close()
        prefix = f"{self._prefix}/".encode()
        revision, items = self._client.list(prefix)
        history = History.of(self._client.origin, revision, items)
        is_other = not history.follows(self._history, lambda known: self._client.list_at(prefix, known))
        self._saw(revision, is_other=is_other)
        self._history = history
        self._watch = watch = self._client.watch(prefix, revision + 1)
        threading.Thread(target=_follow, args=(watch, self._messages), name="fleet watch", daemon=True).start()
        self._items, self._heard = {item.key: item for item in items}, boottime()
        self._due |= {"compare": self._heard + self._timing.compare, "relist": self._heard + self._timing.relist}
        self._learn()

    def _saw(self, revision: int, *, is_other: bool = False) -> bool:
        """Take note of how far the store is, and tell whether its claims are in doubt."""
        before = self._claims.is_in_doubt
        self._claims.saw(revision, self._timing.lease, is_other=is_other)
        if self._claims.is_in_doubt and not before:
            _log.warning("etcd has an older state than before; for %d s, no address is claimed", self._timing.lease)
        return self._claims.is_in_doubt

    def _hear(self, news: _News) -> None:
        """Take in what the watch says. Raises EtcdError where it has ended."""
        if news.error:
            raise EtcdError(news.error)
        self._heard = boottime()
        self._history.hear(news.items)
        for item in news.items:
            self._claims.heard(item.revision)
            if item.key == host_key(self._prefix, self._self.run) and item.value != self._presence:
                self._presence = b""  # an earlier try has reached the store late
            if item.is_deleted:
                self._items.pop(item.key, None)
            else:
                self._items[item.key] = item
        self._learn()

    def _compare(self) -> None:
        """Find out whether the watch is silent though something changed: then nothing it says can be relied on."""
        self._due["compare"] = boottime() + self._timing.compare
        self._answering = self._prober.answering()
        known = len(self._items), max((item.revision for item in self._items.values()), default=0)
        found = self._client.newest(f"{self._prefix}/".encode())
        self._heard = boottime()
        # What has just changed may be on its way: it has until the next time.
        if found != known and found == self._lag:
            raise EtcdError("the watch does not say what changed")
        self._lag = None if found == known else found

    def _learn(self) -> None:
        """Follow from the keys which table there is, and who has which address. Raises EtcdError."""
        self._learn_claims()
        table = Table.of(self._prefix, self._items.values())
        if table.digest != self._table.digest or self._refused:
            self._read(table)

    def _learn_claims(self) -> None:
        claims = claims_in(self._prefix, self._items.values())
        others = {address: Holder.read(item.value).host for address, item in claims.items() if not self._is_ours(item)}
        self._claims.learn_others(others)
        mine = {*self._ours(), *others}
        gone = [address for address in self._claims.held if address not in mine]
        # What is missing in an older state is claimed again, and held meanwhile: no other host had it.
        if gone and self._claims.on_partition is OnPartition.RELEASE and not self._claims.is_in_doubt:
            self._claims.lose(gone)
            self._notify()

    def _read(self, table: Table) -> None:
        """Take up another table, unless it is wrong."""
        try:
            found = table.read(self._site.config, self._site.main)
        except ConfigError as error:
            if self._refused != error.problems:
                lines.configuration_refused(error.problems, "the table before stays in force")
                self._refused = error.problems
                self._notify()
            return
        self._table, self._refused = table, ()
        self._news = [(table, found)]
        lines.configuration_loaded(f"{TABLE}{self._prefix}, revision {table.revision},")
        self._kept.keep(table)
        self._notify()

    # --- claims --------------------------------------------------------------------------------------------------

    def _claim(self) -> None:
        """Take what guests here need and no host has, and give back what is not needed here. Raises EtcdError."""
        claims, lease = claims_in(self._prefix, self._items.values()), self._claims.lease
        ours = {address: item for address, item in claims.items() if self._is_ours(item)}
        for address in sorted(self._claims.wanted, key=str):
            item = claims.get(address)
            if self._claims.is_in_doubt and address not in self._claims.held:
                continue
            if item is None or (address in ours and item.lease != lease.number):
                self._take(address, lease, item)
        for address in self._claims.superfluous(ours):
            self._release(address, ours[address])

    def _take(self, address: Address, lease: Lease, known: Item | None) -> None:
        """Claim an address that has no claim, or one of an earlier lease of ours."""
        key, value = claim_key(self._prefix, address), self._self.as_value()
        compare = {"key": coded(key), "target": "MOD", "result": "EQUAL", "mod_revision": 0}
        compare["mod_revision"] = known.revision if known else 0
        put = {"request_put": {"key": coded(key), "value": coded(value), "lease": lease.number}}
        outcome = self._client.transact([compare], [put], [{"request_range": {"key": coded(key)}}])
        self._heard = boottime()
        self._items.pop(key, None)
        was_in_doubt = self._claims.is_in_doubt
        if self._saw(outcome.revision) and not was_in_doubt:
            raise EtcdError("it has an older state than before")
        if outcome.succeeded:
            self._items[key] = Item(key, value, outcome.revision, lease.number)
            self._claims.confirm([address], lease)
        elif outcome.items:
            self._items[key] = found = outcome.items[0]
            # The answer to an earlier try may have been lost.
            if self._is_ours(found) and found.lease == lease.number:
                self._claims.confirm([address], lease)
            self._learn_claims()
        self._notify()

    def _release(self, address: Address, item: Item) -> None:
        """Give an address back, which the kernel does not have any more."""
        self._claims.give_back(address)
        # This claim alone: what is sent may reach the store late, after another try and the next claim of ours.
        compare = {"key": coded(item.key), "target": "MOD", "result": "EQUAL", "mod_revision": item.revision}
        self._client.transact([compare], [{"request_delete_range": {"key": coded(item.key)}}])
        self._items.pop(item.key, None)

    # --- what other hosts may know of this one -------------------------------------------------------------------

    def _show_presence(self) -> None:
        """Say in etcd, as long as we have a lease, which table we have and what of it is reachable here."""
        table = self._table
        known = {"host": self._self.host, "revision": table.revision, "digest": table.digest, "serves": self._served}
        value = json.dumps(known | {"problems": [*map(str, self._refused[:_MOST_TOLD])]}).encode()
        if value != self._presence:
            put = {"key": coded(host_key(self._prefix, self._self.run)), "value": coded(value)}
            self._client.transact([], [{"request_put": {**put, "lease": self._claims.lease.number}}])
            self._presence = value


def _follow(watch: Watch, messages: "SimpleQueue[_News | None]") -> None:
    """Pass on what a watch says, in a thread of its own, until it ends."""
    try:
        for items in watch.batches():
            messages.put(_News(watch, items))
    except EtcdError as error:
        messages.put(_News(watch, error=str(error)))


def _has_lease(prefix: str, address: Address, lease: int) -> Mapping[str, Any]:
    return {"key": coded(claim_key(prefix, address)), "target": "LEASE", "result": "EQUAL", "lease": lease}


def served(desired: Desired) -> dict[str, list[str]]:
    """Give the entries of the table of which something is reachable, each with the domains or networks it leads to."""
    found = dict[str, set[str]]()
    for exposure in desired.exposures:
        if exposure.origin is not None and is_of_table(exposure.origin):
            found.setdefault(name_of(exposure.origin), set()).add(exposure.owner.name)
    return {name: sorted(found[name])[:_MOST_TOLD] for name in sorted(found)[:_MOST_TOLD]}
