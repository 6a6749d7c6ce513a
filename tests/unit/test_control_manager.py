"""The methods of the control socket: made once for many, never without a request, and sent when it changes."""

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from fwdaemon.control.manager import Inquiries, Manager
from fwdaemon.control.protocol import CONFIGURATION_REFUSED, MANAGER, CallError
from fwdaemon.core.report import (
    Actor,
    ActorKind,
    ApplyResult,
    Cause,
    Change,
    GateChange,
    Location,
    LocationReason,
    ReconcileReport,
)
from fwdaemon.core.state import Desired
from fwdaemon.core.types import Family, Gate, GateFault
from fwdaemon.errors import Problem
from fwdaemon.hypervisor.link import ConnectionState
from fwdaemon.status.records import Feed, Records
from fwdaemon.status.reloads import Reloaded
from fwdaemon.status.rows import Readings
from tests.sentences import error
from tests.unit.saying import because
from tests.unit.statuses import GAME, LIVE, MAIN, NAT, WEB, read, waiting
from tests.unit.varlink_types import Interface

INTERFACE = Interface(MANAGER)
CONNECTED = ConnectionState("lxc:///system", connected=True, since=datetime(2026, 3, 1, tzinfo=UTC))
NFT = Actor(ActorKind.PROGRAM, "nft", 9)


def report(*changes: Change, desired: Desired = LIVE, **result: Any) -> ReconcileReport:
    return ReconcileReport(desired, ApplyResult(**result), changes, (NFT,))


@dataclass
class Bench:
    """A manager, and everything it is given or asks."""

    feed: Feed = field(default_factory=Feed)
    connections: tuple[ConnectionState, ...] = (CONNECTED,)
    result: Reloaded = field(default_factory=Reloaded)
    counts: int = 0
    counting: threading.Event = field(default_factory=threading.Event)
    may_count: threading.Event = field(default_factory=threading.Event)
    count_patience: float = 5.0
    libvirt_period: float = 1.0
    records: Records = field(init=False)
    manager: Manager = field(init=False)

    def __post_init__(self) -> None:
        self.records = Records(MAIN, read(), self.feed.publish)
        ask = Inquiries(lambda: self.connections, self._reload, self._count, self.count_patience, self.libvirt_period)
        self.manager = Manager(self.records, self.feed, ask)
        self.may_count.set()

    async def _reload(self, confirm: int | None = None) -> Reloaded:
        self.confirm = confirm
        return self.result

    def _count(self, _desired: Desired) -> Readings:
        self.counts += 1
        self.counting.set()
        self.may_count.wait(10)
        return Readings({WEB: self.counts})

    async def call(self, method: str) -> dict[str, Any]:
        answer = self.manager.service().method(f"{MANAGER}.{method}").answer
        assert answer is not None
        content: dict[str, Any] = json.loads(await answer({}))
        assert list(INTERFACE.faults(INTERFACE.replies[method], content)) == []
        return content

    def watching(self, heard: "asyncio.Queue[dict[str, Any]]") -> "asyncio.Task[None]":
        stream = self.manager.service().method(f"{MANAGER}.Watch").stream
        assert stream is not None

        async def hear(sent: bytes) -> None:
            content = json.loads(sent)
            assert list(INTERFACE.faults(INTERFACE.replies["Watch"], content)) == []
            await heard.put(content)

        return asyncio.ensure_future(stream(hear))


def on_bench(play: Callable[[Bench], Awaitable[None]], make: Callable[[], Bench] = Bench) -> None:
    async def scene() -> None:
        there = make()
        await play(there)
        there.may_count.set()
        await there.manager.close()

    asyncio.run(scene())


def test_before_libvirt_has_answered_everything_waits() -> None:
    async def play(there: Bench) -> None:
        status = await there.call("Status")
        assert status["counts"] == {"active": 0, "waiting": 7, "refused": 0}
        assert status["backend"] is None
        assert status["last_look"] is None
        assert status["daemon"]["pid"]
        assert there.counts == 0

    on_bench(play)


def test_a_status_tells_what_was_remembered() -> None:
    async def play(there: Bench) -> None:
        problem = Problem(Path("/etc/portfwd.toml"), 3, "unknown key")
        done = report(mended=frozenset({WEB}), changed=True, faults=(error("a fault"),))
        where = Location("iptables", "iptables-legacy", LocationReason.LIBVIRT_CHAINS)
        there.records.pass_ended(replace(done, location=where, unusable={Family.IPV6: error("it lacks a match")}), 0.5)
        there.records.configuration_refused([problem])
        status = await there.call("Status")
        assert status["backend"] == {
            "name": "iptables",
            "title": "iptables-legacy",
            "reason": "libvirt's chains are there",
        }
        assert status["problems"] == ["a fault"]
        assert (status["last_look"]["seconds"], status["last_look"]["changed"]) == (0.5, True)
        refused = status["configuration"]["refused_problems"]
        assert refused == [{"file": "/etc/portfwd.toml", "line": 3, "text": "unknown key"}]
        rows = {(row["owner"], row["family"]): row for row in status["openings"]}
        assert rows["web1", 4]["connections"] == 1
        assert rows["web1", 4]["connections_since"] is not None
        assert rows["game", 4]["connections_since"] is None
        assert rows["web1", 6]["state"] == "refused"
        there.records.configuration_loaded(read())
        assert (await there.call("Status"))["configuration"]["refused_at"] is None

    on_bench(play)


def test_what_the_kernel_refused_is_told_of_those_it_refused_it_to() -> None:
    async def play(there: Bench) -> None:
        there.records.pass_ended(report(refused=((NAT, error("there is no such interface")),)), 0.1)
        rows = {row["owner"]: row for row in (await there.call("Status"))["openings"]}
        assert (rows["post"]["state"], rows["post"]["reason"]) == ("refused", "there is no such interface")
        assert rows["game"]["state"] == "active"
        there.records.pass_ended(report(), 0.1)
        assert (await there.call("Status"))["counts"]["refused"] == 0

    on_bench(play)


def test_a_failed_pass_is_told_until_one_goes_well() -> None:
    async def play(there: Bench) -> None:
        there.records.pass_ended(report(desired=Desired().having([NAT])), 0.1)
        there.records.failed(LIVE, "nft failed", 0.2)
        status = await there.call("Status")
        assert status["last_look"]["error"] == "nft failed"
        assert status["counts"] == {"active": 1, "waiting": 0, "refused": 4}
        there.records.pass_ended(report(), 0.1)
        status = await there.call("Status")
        assert status["last_look"]["error"] is None
        assert status["counts"] == {"active": 5, "waiting": 0, "refused": 0}

    on_bench(play)


def test_what_was_restored_is_told_by_cause_the_newest_first_and_only_the_last() -> None:
    async def play(there: Bench) -> None:
        lost = [Change("restored", exposure, Cause((NFT,))) for exposure in (WEB, GAME)]
        there.records.pass_ended(report(*lost, Change("added", NAT, because("started"))), 0.1)
        gate = GateChange(Gate("ip", "filter", "FORWARD"), restored=True, fault=GateFault.BEHIND_RULE)
        there.records.pass_ended(report(gates=(gate,)), 0.1)
        restored = (await there.call("Status"))["restored"]
        assert [(entry["what"], entry["more"], entry["cause"]) for entry in restored] == [
            ("gate in ip filter FORWARD", 0, "another rule was ahead of it; changed by nft, pid 9"),
            ("web1: tcp *:80 -> 192.168.122.10:80", 1, "changed by nft, pid 9"),
        ]
        for _ in range(10):
            there.records.pass_ended(report(*lost), 0.1)
        assert len((await there.call("Status"))["restored"]) == 5

    on_bench(play)


def test_many_who_ask_at_once_are_given_one_status() -> None:
    async def play(there: Bench) -> None:
        there.records.pass_ended(report(), 0.1)
        statuses = await asyncio.gather(*(there.call("Status") for _ in range(50)))
        assert there.counts == 1
        assert all(status == statuses[0] for status in statuses)

    on_bench(play)


def test_one_who_asks_after_a_change_is_told_of_it_with_counters_a_second_old() -> None:
    async def play(there: Bench) -> None:
        there.records.pass_ended(report(), 0.1)
        await there.call("Status")
        there.records.pass_ended(
            report(Change("removed", GAME, because("stopped")), desired=Desired().having([WEB])), 0.1
        )
        status = await there.call("Status")
        assert status["counts"]["active"] == 1
        assert status["openings"][0]["connections"] == 1
        assert there.counts == 1

    on_bench(play)


def test_one_who_asks_after_the_host_was_confined_is_told_of_it() -> None:
    async def play(there: Bench) -> None:
        there.records.pass_ended(report(), 0.1)
        assert (await there.call("Status"))["confined"] == []
        there.records.pass_ended(report(desired=replace(LIVE, confined=frozenset(Family))), 0.1)
        assert (await there.call("Status"))["confined"] == [4, 6]
        there.records.pass_ended(report(desired=replace(LIVE, switched=frozenset({(Family.IPV4, "eth0")}))), 0.1)
        status = await there.call("Status")
        assert (status["confined"], status["confined_interfaces"]) == ([], ["eth0"])

    on_bench(play)


def test_counters_that_take_too_long_are_not_waited_for() -> None:
    async def play(there: Bench) -> None:
        there.may_count.clear()
        there.records.pass_ended(report(), 0.1)
        status = await there.call("Status")
        assert status["counts"]["active"] == 5
        assert {row["connections"] for row in status["openings"]} == {None}

    on_bench(play, lambda: Bench(count_patience=0.01))


def test_one_who_leaves_takes_no_status_from_others() -> None:
    async def play(there: Bench) -> None:
        there.may_count.clear()
        there.records.pass_ended(report(), 0.1)
        leaving = asyncio.ensure_future(there.call("Status"))
        staying = asyncio.ensure_future(there.call("Status"))
        assert await asyncio.to_thread(there.counting.wait, 10)
        leaving.cancel()
        there.may_count.set()
        assert (await staying)["counts"]["active"] == 5

    on_bench(play)


def test_metrics_are_told_as_text_or_why_not() -> None:
    async def play(there: Bench) -> None:
        assert await there.call("Metrics") == {"text": ""}

        async def made() -> bytes:
            return b"a 1\n"

        async def missing() -> bytes:
            raise ImportError("no prometheus_client")

        there.manager.metrics = made
        assert await there.call("Metrics") == {"text": "a 1\n"}
        there.manager.metrics = missing
        with pytest.raises(CallError, match="MetricsUnavailable"):
            await there.call("Metrics")

    on_bench(play)


def test_reload_tells_what_came_of_it() -> None:
    async def play(there: Bench) -> None:
        there.records.pass_ended(report(), 0.1)
        result = await there.call("Reload")
        counts = {"active": 5, "waiting": 0, "refused": 0}
        assert result == {"file": "/etc/portfwd.toml", "counts": counts, "failure": None, "confirm_by": None}
        there.result = Reloaded(failure="nft failed")
        assert (await there.call("Reload"))["failure"] == "nft failed"
        there.result = Reloaded(problems=(Problem(MAIN, 3, "unknown key"),))
        with pytest.raises(CallError) as raised:
            await there.call("Reload")
        assert raised.value.name == CONFIGURATION_REFUSED
        shape = INTERFACE.errors["ConfigurationRefused"]
        assert list(INTERFACE.faults(shape, raised.value.parameters)) == []

    on_bench(play)


def test_only_root_may_reload() -> None:
    async def play(there: Bench) -> None:
        service = there.manager.service()
        assert service.method(f"{MANAGER}.Reload").for_root
        assert not service.method(f"{MANAGER}.Status").for_root
        assert not service.method(f"{MANAGER}.Watch").for_root

    on_bench(play)


def test_who_watches_hears_of_changes_at_once_and_of_nothing_else() -> None:
    async def play(there: Bench) -> None:
        heard: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        watching = there.watching(heard)
        assert await heard.get() == {"changes": [], "missed": 0}
        there.records.pass_ended(report(Change("added", WEB, because("started"))), 0.1)
        (change,) = (await heard.get())["changes"]
        assert (change["action"], change["owner"], change["listens"]) == ("added", "web1", "tcp *:80")
        assert (change["leads_to"], change["cause"]) == ("192.168.122.10:80", "domain lab1 started")
        revision = there.feed.revision
        for _ in range(3):
            there.records.pass_ended(report(), 0.1)
        assert there.feed.revision == revision
        there.records.pass_ended(report(faults=(error("a fault"),)), 0.1)
        assert await heard.get() == {"changes": [], "missed": 0}
        watching.cancel()

    on_bench(play)


def test_who_watches_hears_that_a_connection_was_lost() -> None:
    async def play(there: Bench) -> None:
        heard: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        watching = there.watching(heard)
        await heard.get()
        there.connections = (replace(CONNECTED, connected=False),)
        assert await heard.get() == {"changes": [], "missed": 0}
        assert (await there.call("Status"))["libvirt"][0]["connected"] is False
        watching.cancel()

    on_bench(play, lambda: Bench(libvirt_period=0.01))


def test_who_does_not_listen_loses_the_oldest_changes() -> None:
    feed = Feed()
    subscription = feed.subscribe()
    at = datetime.now(UTC)
    for number in range(3):
        feed.publish(at, [Change("added", WEB, because(str(number)))] * 100)
    changes, missed = subscription.take()
    assert (len(changes), missed) == (256, 44)
    assert changes[-1][1].cause == because("2")
    feed.publish(at, [Change("added", WEB, because(str(number))) for number in range(1000)])
    changes, missed = subscription.take()
    assert (len(changes), missed, changes[-1][1].cause) == (256, 744, because("999"))
    feed.leave(subscription)
    feed.publish(at, [Change("added", WEB, because(""))])
    assert subscription.take() == ([], 0)


def test_what_waits_is_no_news_while_it_stays_the_same() -> None:
    told: list[int] = []
    config = read()
    records = Records(MAIN, config, lambda _at, changes: told.append(len(changes)))
    for state in (Desired(waiting=waiting(config)), Desired(waiting=waiting(config))):
        records.pass_ended(report(desired=state), 0.1)
    assert told == [0]
    records.pass_ended(report(desired=Desired(waiting=waiting(config)[1:])), 0.1)
    assert told == [0, 0]
