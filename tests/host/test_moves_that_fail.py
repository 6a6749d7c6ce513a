"""Migrations that fail at each step: the guest and its addresses stay with the host that goes on with it."""

import signal
from collections.abc import Callable, Iterator
from functools import partial

import libvirt
import pytest

from tests.host.conftest import Conversation, rules_have_no_part
from tests.host.moving import (
    HELD,
    MAIL4,
    MAIL6,
    Migration,
    Move,
    guest_on_the_first,
    held_by,
    holds,
    moved_lines,
    runs_on,
    streams,
    two_hosts_alike,
)
from tests.lab.host import PUBLIC4
from tests.lab.pair import Holders, Pair
from tests.lab.place import wait_until
from tests.lab.release import Flavour


@pytest.fixture(scope="module")
def pair(lab: None, flavour: Flavour) -> Iterator[Pair]:
    del lab
    with two_hosts_alike(flavour) as pair:
        yield pair


@pytest.fixture
def move(pair: Pair) -> Iterator[Move]:
    with guest_on_the_first(pair) as move:
        yield move


@pytest.mark.in_turn
@rules_have_no_part
def test_a_post_copy_that_fails_leaves_the_guest_with_the_host_that_goes_on_if_any(move: Move) -> None:
    """Where the receiving end dies, the first host goes on as long as it may, and later nobody can."""
    pair = move.pair
    move.answered(pair.first)
    with Holders(pair, *HELD) as holders:
        migration = move.migrate(pair.first, bandwidth=4, flags=libvirt.VIR_MIGRATE_POSTCOPY)
        migration.wait_copying()
        migration.guest.start_post_copy()
        wait_until(partial(runs_on, move, pair.second), "it runs there", timeout=90, interval=0.01)
        wait_until(lambda: {MAIL4, MAIL6} <= held_by(pair.second), "the second host holds what runs there")
        pid = pair.second.read("/run/libvirt/qemu/vm.pid").strip()
        pair.second.run("kill", "-KILL", pid)
        assert migration.ended() != ""
        wait_until(partial(holds, pair.second, set()), "the host where it died holds none")
        kept = set(HELD) if runs_on(move, pair.first) else set[str]()
        wait_until(partial(holds, pair.first, kept), "the first host holds what it goes on with")
    assert not holders.both


@pytest.mark.in_turn
@rules_have_no_part
def test_a_migration_that_fails_changes_nothing_until_the_guest_dies(move: Move) -> None:
    """Cancelled, with daemons that start during the copy, and with either side killed; in the end with the guest's."""
    pair = move.pair
    move.answered(pair.first)
    forwarded = Conversation(pair.first.outside, PUBLIC4, 9000)

    def kill_target(migration: Migration) -> None:
        pid = migration.to.read("/run/libvirt/qemu/vm.pid").strip()
        migration.to.run("kill", "-KILL", pid)

    def kill_libvirtd(migration: Migration) -> None:
        pair.first.libvirt.kill()
        migration.ended()
        pair.first.libvirt.start()

    def kill_target_libvirtd(migration: Migration) -> None:
        migration.to.libvirt.kill()
        migration.to.libvirt.start()

    def restart_daemons_and_cancel(migration: Migration) -> None:
        for host in (pair.first, pair.second):
            move.restart_daemon(host)
        migration.guest.abort_job()

    with Holders(pair, *HELD) as holders:
        with streams(move) as go_on:
            for spoil in (restart_daemons_and_cancel, kill_target, kill_libvirtd, kill_target_libvirtd):
                _spoil_one(move, spoil, go_on)
                assert forwarded.goes_on(), spoil.__name__
                move.answered(pair.first)
        assert not [line for line in moved_lines(move.daemon(pair.first)) if line.startswith("removed")]
        _die_during_the_copy(move)
        assert moved_lines(move.daemon(pair.second)) == []
    forwarded.close()
    assert set(map(tuple, holders.seen.values())) == {(1,)}


def _spoil_one(move: Move, spoil: Callable[[Migration], None], go_on: Callable[[], None]) -> None:
    """Have one migration fail, after which the guest goes on here, and no copy is there."""
    migration = move.migrate(move.pair.first, bandwidth=1)
    migration.wait_copying()
    spoil(migration)
    assert migration.ended() != "", spoil.__name__
    wait_until(lambda: not move.guest(move.pair.second).defined, f"{spoil.__name__}: the copy is gone")
    go_on()


def _die_during_the_copy(move: Move) -> None:
    """Then neither host holds its addresses."""
    pair = move.pair
    migration = move.migrate(pair.first, bandwidth=1)
    migration.wait_copying()
    move.guest(pair.first).crash()
    assert migration.ended() != ""
    for address in (MAIL4, MAIL6):
        move.daemon(pair.first).wait_log(rf"^removed vm: all of {address} -> ")
    wait_until(lambda: not move.guest(pair.second).defined, "the copy is gone")


@pytest.mark.in_turn
@rules_have_no_part
def test_what_was_handed_over_and_not_taken_comes_back(move: Move) -> None:
    """The other host dies at the last moment, with the guest stopped here already and not yet running there."""
    pair = move.pair
    move.answered(pair.first)
    forwarded = Conversation(pair.first.outside, PUBLIC4, 9000)
    with streams(move) as go_on, Holders(pair, *HELD) as holders:
        migration = move.migrate(pair.first, bandwidth=1)
        migration.wait_copying()
        pid = pair.second.read("/run/libvirt/qemu/vm.pid").strip()
        pair.second.libvirt.process.send(signal.SIGSTOP)
        migration.hurry()
        handed_over = (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_MIGRATION)
        wait_until(lambda: move.guest(pair.first).state() == handed_over, "it is handed over", timeout=90)
        move.daemon(pair.first).wait_log(
            rf"^removed vm: all of {MAIL4} -> .*\(domain vm suspended \(handed over to another host\)"
        )
        pair.second.run("kill", "-KILL", pid)
        pair.second.libvirt.process.send(signal.SIGCONT)
        assert migration.ended() != ""
        move.daemon(pair.first).wait_log(rf"^added vm: all of {MAIL4} -> .*domain vm resumed")
        go_on()
        assert forwarded.goes_on()
        move.answered(pair.first)
        assert moved_lines(move.daemon(pair.second)) == []
    forwarded.close()
    assert not holders.both


@pytest.mark.in_turn
@rules_have_no_part
def test_a_daemon_that_is_killed_at_the_switch_over_leaves_addresses_with_the_target(move: Move) -> None:
    """That of the host the guest leaves, then that of the host it comes to, each as soon as the guest runs there.

    What a daemon has not let go of when it is killed, its host holds until the next one starts.
    """
    pair = move.pair
    move.answered(pair.first)
    for start in (pair.first, pair.second):
        target = pair.other(start)
        migration = move.migrate(start, bandwidth=1)
        migration.wait_copying()
        migration.hurry()
        wait_until(partial(runs_on, move, target), "it runs there", timeout=90, interval=0.01)
        move.restart_daemon(pair.first)
        assert migration.ended() == ""
        move.answered(target)
        wait_until(partial(holds, start, set()), "the host that was left holds none")
        assert held_by(target) == set(HELD)
