"""Connections of logged forwards in the journal, by both rule systems: when they begin, when they end, and how many."""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from fwdaemon.audit.throttle import Ration
from fwdaemon.core.exposures import Forward
from fwdaemon.core.state import Desired
from fwdaemon.core.types import ConnectionLog as Cut
from fwdaemon.kernel import conntrack
from fwdaemon.netfilter import Backend
from fwdaemon.resolve.flows import Judge
from fwdaemon.status.connection_log import ConnectionLog
from tests.kernel.conftest import GATE, GUESTS
from tests.kernel.scene import Plan
from tests.kernel.test_usage import guest
from tests.kernel.topology import Topology
from tests.lab.place import wait_until
from tests.unit.forwards import forward


@contextmanager
def logging_of(rules: Backend, *forwards: Forward, legacy: bool, **how: object) -> Iterator[ConnectionLog]:
    """Have these forwards in the kernel, and their connections logged."""
    gates = () if legacy else (GATE,)
    desired = Desired(guest_subnets=GUESTS, uplinks=frozenset({"eth0"}), gates=gates).having(forwards)
    rules.apply(desired, full=True)
    log = ConnectionLog(**how)  # type: ignore[arg-type]  # a test's own words
    log.follow(desired)
    try:
        yield log
    finally:
        assert asyncio.run(log.close(5.0))


def told(caplog: pytest.LogCaptureFixture, action: str) -> list[dict[str, str]]:
    found = (getattr(record, "journal", {}) for record in caplog.records)
    return [fields for fields in found if fields.get("PORTFWD_ACTION") == action]


def end_all() -> None:
    for batch in conntrack.outdated(Judge((), ()), 25):
        conntrack.end(batch)


@pytest.fixture
def journal(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "fwdaemon.audit")
    return caplog


def test_a_connection_is_logged_from_its_begin_to_its_end(
    machines: Topology, rules: Backend, plan: Plan, journal: pytest.LogCaptureFixture, *, legacy: bool
) -> None:
    web = replace(forward("tcp *:8000", guest(plan.peer), domain="web"), log=Cut())
    quiet = forward("tcp *:9000", guest(plan.peer))
    machines.host.sysctl("netfilter.nf_conntrack_acct=1")
    with logging_of(rules, web, quiet, legacy=legacy):
        assert machines.outside.tcp(plan.other, 9000).answered
        assert machines.outside.tcp(plan.other, 8000).answered
        wait_until(lambda: len(told(journal, "connected")) == 1, "the begin is told")
        end_all()
        wait_until(lambda: len(told(journal, "disconnected")) == 1, "the end is told")
    machines.host.sysctl("netfilter.nf_conntrack_acct=0")
    (began,), (ended,) = told(journal, "connected"), told(journal, "disconnected")
    assert began["PORTFWD_DOMAIN"] == "web"
    assert began["PORTFWD_CLIENT"] == plan.outside
    assert began["PORTFWD_LISTEN"] == f"tcp {guest(plan.other).rpartition(':')[0]}:8000"
    assert began["PORTFWD_TARGET"] == guest(plan.peer)
    assert ended["PORTFWD_CONNECTION"] == began["PORTFWD_CONNECTION"]
    assert ended["PORTFWD_CLIENT_PORT"] == began["PORTFWD_CLIENT_PORT"]
    assert float(ended["PORTFWD_SECONDS"]) >= 0
    assert int(ended["PORTFWD_BYTES"]) > 0


def test_an_address_is_cut_and_bytes_that_nobody_counts_are_not_told(
    machines: Topology, rules: Backend, plan: Plan, journal: pytest.LogCaptureFixture, *, legacy: bool
) -> None:
    web = replace(forward("tcp *:8000", guest(plan.peer)), log=Cut(24, 48))
    with logging_of(rules, web, legacy=legacy):
        assert machines.outside.tcp(plan.other, 8000).answered
        wait_until(lambda: bool(told(journal, "connected")), "the begin is told")
        end_all()
        wait_until(lambda: bool(told(journal, "disconnected")), "the end is told")
    for fields in (*told(journal, "connected"), *told(journal, "disconnected")):
        assert fields["PORTFWD_CLIENT"].endswith("/24" if "." in plan.outside else "/48")
        assert "PORTFWD_CLIENT_PORT" not in fields
        assert "PORTFWD_BYTES" not in fields
    assert plan.outside not in journal.text


def test_what_is_too_much_is_counted(
    machines: Topology, rules: Backend, plan: Plan, journal: pytest.LogCaptureFixture, *, legacy: bool
) -> None:
    web = replace(forward("tcp *:8000", guest(plan.peer)), log=Cut())
    with logging_of(rules, web, legacy=legacy, ration=Ration(0, 1)) as log:
        for _ in range(3):
            assert machines.outside.tcp(plan.other, 8000).answered
        wait_until(lambda: log.lost == 2, "two lines are lost")
        end_all()
        wait_until(lambda: log.lost == 5, "so are those of all ends")
    assert len(told(journal, "connected")) == 1
    (lost,) = told(journal, "unlogged")
    assert "5 begins and ends of connections were not logged" in journal.text
    assert lost["MESSAGE_ID"]


def test_what_the_kernel_has_no_room_for_is_counted(
    machines: Topology, rules: Backend, plan: Plan, journal: pytest.LogCaptureFixture, *, legacy: bool
) -> None:
    web = replace(forward("tcp *:8000", guest(plan.peer)), log=Cut())
    with logging_of(rules, web, legacy=legacy, buffer=1) as log:
        for _ in range(20):
            assert machines.outside.tcp(plan.other, 8000).answered
        end_all()
        wait_until(lambda: log.lost > 0, "some are lost")
    assert told(journal, "unlogged")


def test_ends_are_told_that_come_just_after_the_last_forward_went(
    machines: Topology, rules: Backend, plan: Plan, journal: pytest.LogCaptureFixture, *, legacy: bool
) -> None:
    web = replace(forward("tcp *:8000", guest(plan.peer)), log=Cut())
    with logging_of(rules, web, legacy=legacy) as log:
        assert machines.outside.tcp(plan.other, 8000).answered
        wait_until(lambda: bool(told(journal, "connected")), "the begin is told")
        log.follow(Desired())
        end_all()
        wait_until(lambda: bool(told(journal, "disconnected")), "the end is told")
        log.follow(Desired().having([web]))
        assert machines.outside.tcp(plan.other, 8000).answered
        wait_until(lambda: len(told(journal, "connected")) > 1, "the log goes on")
