"""Connections end beside the reconcile: nothing waits for that, and what has come back meanwhile is spared."""

import time
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack
from dataclasses import replace
from ipaddress import ip_address
from threading import Event
from typing import Any

import pytest

from fwdaemon.config.model import BackendChoice
from fwdaemon.connections import Sweep, Sweeper, close_everything
from fwdaemon.core.exposures import Exposure, Forward
from fwdaemon.core.state import Desired
from fwdaemon.core.types import Address
from fwdaemon.errors import KernelError
from fwdaemon.hostnet.host_network import SystemHostNetwork
from fwdaemon.kernel import conntrack
from fwdaemon.kernel.conntrack import open_flows
from fwdaemon.kernel.conntrack_listing import Entry
from fwdaemon.kernel.process import SystemRunner
from fwdaemon.netfilter import Netfilter
from fwdaemon.reconcile import Reconciler, Request, Seams
from fwdaemon.resolve.flows import Flow
from tests.lab.command import run
from tests.lab.connections import Connection, Tuple, label_rule, track
from tests.lab.place import wait_until
from tests.unit.forwards import forward
from tests.unit.seams import Clock, Others

LABEL = 25
WEB = forward("tcp *:8080", "192.168.122.50:80")
MAIL = forward("tcp *:2525", "192.168.122.51:25")


def begin(through: Forward, number: int) -> None:
    """Have the kernel track so many connections through a forward."""
    target, port = str(through.target), through.target_ports.first
    clients = [f"10.0.{client // 256}.{client % 256}" for client in range(number)]
    track(
        Connection(
            "tcp",
            Tuple(client, "198.51.100.1", 1, through.ports.first),
            Tuple(target, client, port, 1),
            LABEL,
        )
        for client in clients
    )


def left() -> int:
    return sum(item.number for item in open_flows(LABEL, bytes(65536)))


def sweep(live: Collection[Exposure], removed: Collection[Exposure] | None) -> Sweep:
    return Sweep(frozenset(live), LABEL, (), None if removed is None else frozenset(removed), frozenset())


def test_nobody_waits_for_a_sweep_and_the_next_one_follows(runner: SystemRunner) -> None:
    label_rule(runner)
    begin(WEB, 3)
    begin(MAIL, 2)
    go_on, refused = Event(), list[Flow]()

    def refuse(flows: Collection[Flow]) -> None:
        go_on.wait()
        refused.extend(flows)

    sweeper = Sweeper(refuse)
    sweeper.sweep(sweep({MAIL}, {WEB}))
    sweeper.sweep(sweep((), {MAIL}))
    assert not sweeper.wait(0)
    assert left() == 5
    go_on.set()
    assert sweeper.wait()
    assert (sweeper.take_ended(), left(), len(refused)) == (5, 0, 5)
    assert sweeper.take_ended() == 0


@pytest.fixture
def listing(monkeypatch: pytest.MonkeyPatch, at_end: ExitStack) -> tuple[Event, Event]:
    """Give what is set once connections are about to be listed, and what lets that begin."""
    asked, go = Event(), Event()
    outdated = conntrack.outdated

    def held(*concerned: Any) -> Iterator[list[Entry]]:
        asked.set()
        go.wait()
        return outdated(*concerned)

    monkeypatch.setattr(conntrack, "outdated", held)
    at_end.callback(go.set)
    return asked, go


WIPES = {
    BackendChoice.NFTABLES: ("nft delete table ip kvm_portfwd", "nft list table ip kvm_portfwd"),
    BackendChoice.IPTABLES: ("iptables-legacy -t nat -F KVMPF_OUT", "iptables-legacy -t nat -S KVMPF_OUT"),
}


@pytest.mark.usefixtures("lock_file")
@pytest.mark.parametrize("choice", WIPES)
def test_a_wipe_is_mended_while_connections_are_still_being_listed(
    runner: SystemRunner, listing: tuple[Event, Event], at_end: ExitStack, choice: BackendChoice
) -> None:
    wipe, show = WIPES[choice]
    rules = Netfilter(runner, choice)
    at_end.callback(rules.close)
    reconciler = Reconciler(Seams(rules, SystemHostNetwork(rules.confined), conntrack, Others(), time))
    at_end.callback(reconciler.close)
    at_end.callback(listing[1].set)

    def reconcile(live: Collection[Forward], *, reloaded: bool = False) -> bool:
        request = Request((), (), time.monotonic(), ip_forward=False, reloaded=reloaded, full=True)
        return reconciler.reconcile(Desired(frozenset(live)), request)

    listing[1].set()
    reconcile({WEB, MAIL})
    begin(WEB, 5000)
    begin(MAIL, 1)
    for event in listing:
        event.clear()
    reconcile({MAIL}, reloaded=True)
    assert listing[0].wait(10)
    runner.run(*wipe.split())
    assert reconcile({MAIL})
    assert str(MAIL.target) in runner.run(*show.split()).stdout
    assert left() == 5001
    listing[1].set()
    wait_until(lambda: left() == 1, "they end")


def test_what_is_live_again_meanwhile_is_spared(runner: SystemRunner) -> None:
    label_rule(runner)
    begin(WEB, 1250)
    begin(MAIL, 1)
    sweeper = Sweeper(lambda _: sweeper.expect(frozenset({WEB})))
    sweeper.sweep(sweep((), {WEB}))
    assert sweeper.wait()
    ended = sweeper.take_ended()
    assert 0 < ended < 1250
    assert left() == 1251 - ended


def test_what_cannot_be_refused_yet_is_refused_again(runner: SystemRunner) -> None:
    """As when the table that refuses has just been wiped."""
    label_rule(runner)
    begin(WEB, 2)
    asked = list[int]()

    def refuse(flows: Collection[Flow]) -> None:
        asked.append(len(flows))
        if len(asked) < 3:
            raise KernelError("the table is not there")

    sweeper = Sweeper(refuse)
    sweeper.sweep(sweep((), {WEB}))
    assert sweeper.wait()
    assert (asked, sweeper.take_ended(), left()) == ([2, 2, 2], 2, 0)


def test_what_failed_is_tried_again_with_a_later_reconcile(runner: SystemRunner) -> None:
    label_rule(runner)
    begin(WEB, 2)
    works = Event()

    def refuse(_: Collection[Flow]) -> None:
        if not works.is_set():
            raise KernelError("the table is not there")

    clock = Clock()
    sweeper = Sweeper(refuse, clock=clock)
    sweeper.sweep(sweep((), {WEB}))
    assert sweeper.wait()
    assert left() == 2
    works.set()
    clock.now = sweeper.due or 0
    sweeper.expect(frozenset())
    assert sweeper.wait()
    assert left() == 0


def test_after_a_start_everything_is_looked_at(runner: SystemRunner) -> None:
    label_rule(runner)
    begin(WEB, 2)
    begin(MAIL, 1)
    sweeper = Sweeper(lambda _: None)
    sweeper.sweep(sweep({MAIL}, None))
    assert sweeper.wait()
    assert (sweeper.take_ended(), left()) == (2, 1)


class _Racing:
    """The kernel's connections; a client comes through each time they have been listed, if rules let it."""

    def outdated(self, *asked: Any) -> Iterator[list[Entry]]:
        listed = [*conntrack.outdated(*asked)]
        if "dnat" in run(["nft", "list", "chain", "ip", "kvm_portfwd", "any.tcp.8080"], check=False).stdout:
            begin(WEB, 20)
        yield from listed

    def __getattr__(self, name: str) -> Any:
        return getattr(conntrack, name)


@pytest.mark.parametrize("number", [1, 30])
def test_nothing_is_open_once_everything_is_closed_whatever_label_is_configured(
    runner: SystemRunner, number: int
) -> None:
    label_rule(runner)
    Netfilter(runner).apply(Desired(label=LABEL).having([replace(WEB, interface="eth0")]), full=True)
    begin(WEB, number)
    rules = Netfilter(runner)
    assert not close_everything(rules, LABEL + 5, _Racing(), Clock()).faults
    assert (left(), rules.held()) == (0, frozenset())


def test_an_answer_that_was_on_its_way_does_not_keep_datagrams_with_the_host(runner: SystemRunner) -> None:
    """It begins the flow anew from the other end, which no rule would ever lead to the guest."""
    client, host, dns = "198.51.100.9", "198.51.100.1", forward("udp *:53", "192.168.122.50:53")
    asked = Connection("udp", Tuple(client, host, 4000, 53), Tuple(host, client, 53, 4000), 0)
    answered, other = (
        Connection("udp", Tuple(host, client, 53, port), Tuple(client, host, port, 53), 0) for port in (4000, 4001)
    )
    track([asked])
    there = _Watched(lambda: track([answered, other]))
    sweeper = Sweeper(lambda _flows: None, there)
    sweeper.sweep(Sweep(frozenset({dns}), LABEL, {ip_address(host)}, frozenset(), frozenset({dns})))
    assert sweeper.wait()
    listed = runner.run("conntrack", "-L", "-p", "udp").stdout
    assert [("dport=4000" in line, "dport=4001" in line) for line in listed.splitlines()] == [(False, True)]


class _Watched:
    """The kernel's connections; once those that an exposure claims have ended, something happens."""

    def __init__(self, then: Callable[[], None]) -> None:
        self._then = then

    def __getattr__(self, name: str) -> Any:
        return getattr(conntrack, name)

    def end_claimed(self, added: Collection[Exposure], local: Collection[Address]) -> list[Flow]:
        claimed = conntrack.end_claimed(added, local)
        self._then()
        return claimed
